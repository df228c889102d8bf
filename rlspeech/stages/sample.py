"""``rlspeech sample``: K outputs of every prompt, as ``rl`` rolls them out, to be scored and to be learnt from (``rl --algo dpo``).

    rlspeech sample --task tts --data train.jsonl --draws 8 --out samples
    rlspeech reward samples --reward tts_accuracy --reward tts_duration
    rlspeech rl --task tts --algo dpo --samples samples

The folder is complete in itself and can be moved: ``prompts.jsonl`` with its sound under ``prompts/``, ``manifest.jsonl`` with a row an
output, whose sound is under ``audio/``, ``samples.json``, and the files of a run. What is there is not made again: a prompt's outputs
depend on the seed and its place alone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from rlspeech import log
from rlspeech.config import DEVICE, RL, SEED, TASK, Exploration, OwnTask, Tuned
from rlspeech.config_parts import Count, NonNegative, Sampling, Strict, Whole, conf
from rlspeech.data.audio import AudioError, load_audio, save_audio, save_exact
from rlspeech.data.batches import Clip, open_clips
from rlspeech.data.manifest import FIELDS, PROMPTS, SAMPLE_SET, read_manifest, to_row, write_manifest
from rlspeech.data.video import save_lips
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import JsonlWriter, read_object
from rlspeech.models.adapters import Adapted
from rlspeech.models.hub import fingerprint
from rlspeech.parallel import one_by_one
from rlspeech.run import Run
from rlspeech.scores import write_json
from rlspeech.tasks import complete, get_task
from rlspeech.tasks.evaluation import reason_of
from rlspeech.types import Sample, UserError, Utterance


class SampleSet(Strict):
    """``rlspeech sample``."""

    task: Tuned | OwnTask = conf(get_args(Tuned)[0], TASK)
    model: str = conf("embedded", "checkpoint or run folder to sample from, or 'embedded'")
    data: str | None = conf(None, "manifest or mixture recipe of the prompts (default: the embedded corpus)")
    out: str | None = None
    draws: Count = conf(8, "outputs of each prompt")
    limit: Count | None = conf(None, "take only the first N prompts")
    explore: Exploration = Exploration()
    sampling: Sampling = Sampling()
    clip_s: NonNegative = conf(2.0, "length of a prompt; 0 keeps whole utterances (asr, tts)")
    suppress: Literal["keep", "allow_empty", "none"] = conf(
        "keep", "asr: tokens that stay suppressed: all that the checkpoint names, all but the stop, or none"
    )
    precision: Literal["auto", "fp32", "bf16"] = conf("fp32", "of language models; auto: bf16 where a GPU has it")
    batch: Count = conf(8, "prompts in one batch")
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)


def run(config: SampleSet) -> dict[str, Any]:
    """Sample what is not there yet.

    Returns the folder, counts of prompts and outputs, the share that stopped by itself, the reason of each failure.
    Raises ``UserError``: data, checkpoint or settings that cannot be used; the folder holds other samples; not one prompt could be used.
    """
    began_s, task = time.monotonic(), get_task(config.task)
    given = {k: getattr(config, k) for k in config.model_fields_set & set(RL.model_fields) - {"out"}}
    settings = complete(RL(**given, group=config.draws, valid=config.data, valid_items=1, guards=[]), task)
    facts = config.model_dump(include={"task", "model", "draws", "data"})
    facts["weights"] = fingerprint(config.model, config.task)
    engine = Engine(config.device, "fp32", config.seed)
    with Run.create(config.out, "sample", config, neutral=("batch", "limit")) as run, Watchdog() as dog:
        folder = run.path
        if read_object(folder / SAMPLE_SET).get("weights", facts["weights"]) != facts["weights"]:
            raise UserError(f"{folder} holds samples of other weights", f"{config.model} has changed", "--out NEW")
        model, _ = task.load(config.model, engine.device, **task.load_options(settings))
        policy, failed = task.policy(Adapted(model, settings.lora), settings), dict[str, str]()
        _write_prompts(folder, task, settings, model, config.limit, failed)
        write_json(folder / SAMPLE_SET, facts)
        form = {"channels": task.channels_of(model), "paired": "target_filepath" in task.required}
        source = open_clips(folder / PROMPTS, task.sample_rate_of(model), **form)
        total, size = len(source.utts), config.batch
        with JsonlWriter(folder / "manifest.jsonl") as rows:
            todo = [i for i, u in enumerate(source.utts) if not all(k in rows for k in _ids(u.id, config.draws))]
            log.say(f"{log.several(len(todo), 'prompt')} x {config.draws} outputs, {engine.reason}")
            with log.progress(total, "sample", "prompts", start=total - len(todo)) as bar:
                for part in (todo[at : at + size] for at in range(0, len(todo), size)):
                    _sample(policy, source, part, config.draws, rows, failed)
                    bar.advance(len(part))
                    dog.beat()
            made = list(rows.rows.values())
    if not made:
        raise UserError("not one prompt could be sampled from", "; ".join(list(failed.values())[:3]), "rlspeech check")
    counts: dict[str, float] = {"prompts": total, "outputs": len(made), "failed": len(failed)}
    counts |= {"finished": round(sum(row.get("finished", True) for row in made) / len(made), 4)}
    log.table(f"Samples in {folder}", ["", ""], [[k, v] for k, v in counts.items()])
    log.say(f"next: rlspeech reward {folder} --reward NAME, for each reward to learn from")
    task = f"--task {config.task} --model {config.model}"
    log.say(f"then: rlspeech rl --algo dpo {task} --samples {folder} --reward NAME")
    counts["seconds"] = round(time.monotonic() - began_s, 1)
    return {"stage": "sample", "out": str(folder), **counts, "errors": failed}


def _ids(prompt: str, draws: int) -> list[str]:
    return [f"{prompt}-{k:02d}" for k in range(draws)]


def _fail(failed: dict[str, str], key: str, error: Exception) -> None:
    failed[key] = reason_of(error)
    log.say(f"left out: {key}: {failed[key]}")


def _write_prompts(
    folder: Path, task: Any, settings: RL, model: Any, limit: int | None, failed: dict[str, str]
) -> None:
    """Write prompts that are not there yet, complete with their sound; ``failed`` gets the reasons of those that cannot be read."""
    source, clip_s = task.data(settings, model)[0], 0.0 if task.transcribed else settings.clip_s
    known = {u.id: u for u in read_manifest(folder / PROMPTS)} if (folder / PROMPTS).exists() else {}
    wanted = source.utts[:limit]

    def rows() -> Iterator[Utterance]:
        for index, utt in enumerate(wanted):
            try:
                yield known.get(utt.id) or _prompt(folder / "prompts", source.clip(0, index, clip_s), utt)
            except AudioError as error:
                _fail(failed, utt.id, error)

    if len(known) < len(wanted):
        with log.waiting("writing the prompts"):
            write_manifest(folder / PROMPTS, rows())


def _prompt(folder: Path, clip: Clip, utt: Utterance) -> Utterance:
    """Write a clip; returns its row. Raises ``AudioError``."""
    rate, length_s = clip.sample_rate, clip.noisy.shape[-1] / clip.sample_rate
    known = {k: v for k, v in clip.columns.items() if k in FIELDS} | {"duration": length_s}
    extra = {k: v for k, v in clip.columns.items() if k not in FIELDS}
    row = Utterance(clip.key, "", sample_rate=rate, text=clip.text, extra=extra, **known)
    if row.prompt_filepath:
        voice = folder / f"voice-{zlib.crc32(row.prompt_filepath.encode()):08x}.flac"
        if not voice.exists():
            save_audio(voice, load_audio(row.prompt_filepath, rate), rate)
        row.prompt_filepath = str(voice)
        if utt.prompt_filepath == utt.audio_filepath:  # a text without a recording
            return replace(row, audio_filepath=str(voice))
    row.audio_filepath = str(save_exact(folder / clip.key, clip.noisy, rate))
    if clip.target is not clip.noisy:
        row.target_filepath = str(save_exact(folder / f"{clip.key}.target", clip.target, rate))
    if clip.lips is not None:
        row.lips_filepath = str(folder / f"{clip.key}.npz")
        save_lips(row.lips_filepath, clip.lips)
    return row


def _sample(
    policy: Any, source: Any, part: Sequence[int], draws: int, rows: JsonlWriter, failed: dict[str, str]
) -> None:
    """Sample some prompts, by their places, and write their outputs."""

    def drawn(some: list[int]) -> list[list[Sample]]:
        clips = [replace(source.clip(0, i, 0.0), place=i) for i in some]
        rollout = policy.rollout(clips, group=draws, seed=1)
        made = [replace(s, finished=bool(done)) for s, done in zip(rollout.samples, rollout.finished, strict=True)]
        return [made[at : at + draws] for at in range(0, len(made), draws)]

    for index, made in zip(part, one_by_one(drawn, part), strict=True):
        prompt, folder = source.utts[index], rows.path.parent
        if isinstance(made, Exception):
            _fail(failed, prompt.id, made)
            continue
        for draw, (key, sample) in enumerate(zip(_ids(prompt.id, draws), made, strict=True)):
            rows.write(to_row(_output(folder, prompt, key, draw, sample), folder))


def _output(folder: Path, prompt: Utterance, key: str, draw: int, sample: Sample) -> Utterance:
    """Write an output's sound, and return its row: the prompt's with what is the output's own."""
    own: dict[str, Any] = {"prompt": prompt.id, "draw": draw, "finished": sample.finished}
    row = replace(prompt, id=key, lips_filepath=None, target_filepath=None, extra={**prompt.extra, **own})
    if sample.target is not None:
        row.target_filepath = prompt.target_filepath or prompt.prompt_filepath or prompt.audio_filepath
    if sample.tokens is not None:
        row.extra |= {"tokens": sample.tokens.tolist(), "token_s": sample.token_s}
    if sample.hypothesis is not None:
        row.extra["hypothesis"] = sample.hypothesis
        return row
    place, rate = folder / "audio" / key, sample.sample_rate
    made = save_exact(place, sample.wav, rate) if len(sample.wav) else f"{place}.flac"  # nothing said has no file
    return replace(row, audio_filepath=str(made), duration=len(sample.wav) / rate, sample_rate=rate)
