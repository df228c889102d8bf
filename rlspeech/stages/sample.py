"""``rlspeech sample``: K outputs of every prompt, as ``rl`` rolls them out, to be scored and to be learnt from (``rl --algo dpo``).

    rlspeech sample --task tts --data train.jsonl --draws 8 --out samples
    rlspeech reward samples --reward tts_accuracy --reward tts_duration
    rlspeech rl --task tts --algo dpo --samples samples

The folder is complete in itself and can be moved: ``prompts.jsonl`` with its sound under ``prompts/``, ``manifest.jsonl`` with a row an
output, whose sound is under ``audio/``, ``samples.json``, and the files of a run. Outputs are those of the prompts as they were written.
A prompt's outputs depend on the seed and its place alone, and what is there is not made again.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rlspeech import log
from rlspeech.config import DEVICE, RL, SEED, TASK, Exploration, OwnTask, Tuned
from rlspeech.config_parts import Count, NonNegative, Sampling, Strict, Whole, conf
from rlspeech.data.audio import AudioError, load_audio, save_audio, save_exact
from rlspeech.data.batches import Clip, open_clips
from rlspeech.data.manifest import PROMPTS, SAMPLE_SET, read_manifest, to_row, write_manifest
from rlspeech.data.video import save_lips
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import JsonlWriter, read_object
from rlspeech.models.adapters import Adapted
from rlspeech.models.hub import fingerprint
from rlspeech.parallel import one_by_one
from rlspeech.run import Run
from rlspeech.scores import write_json
from rlspeech.tasks import complete, get_task
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
    suppress: Literal["keep", "allow_empty", "none"] = conf("keep", "asr: as in rl")
    precision: Literal["auto", "fp32", "bf16"] = conf("fp32", "of language models; auto: bf16 where a GPU has it")
    batch: Count = conf(8, "prompts in one batch")
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)


def run(config: SampleSet) -> dict[str, Any]:
    """Sample what is not there yet.

    Returns:
        the folder, counts of prompts and outputs, the share that stopped by itself, the reason of each failure.

    Raises:
        UserError: data, checkpoint or settings that cannot be used; the folder holds other samples; not one prompt could be used.
    """
    began_s, task = time.monotonic(), get_task(config.task)
    given = {k: getattr(config, k) for k in config.model_fields_set & set(RL.model_fields) - {"out"}}
    settings = complete(RL(**given, group=config.draws, valid=config.data, valid_items=1, guards=[]), task)
    facts = {"task": config.task, "model": config.model, "weights": fingerprint(config.model, config.task)}
    facts |= {"draws": config.draws, "data": config.data}
    engine = Engine(config.device, "fp32", config.seed)
    with Run.create(config.out, "sample", config, neutral=("batch", "limit")) as folder, Watchdog() as dog:
        before = read_object(folder.path / SAMPLE_SET)
        if before.get("weights", facts["weights"]) != facts["weights"]:
            raise UserError(f"{folder.path} holds samples of other weights", f"{config.model} has changed", "--out NEW")
        model, _ = task.load(config.model, engine.device, **task.load_options(settings))
        policy = task.policy(Adapted(model, settings.lora), settings)
        failed = _write_prompts(folder.path, task, settings, model, config.limit)
        write_json(folder.path / SAMPLE_SET, facts)
        paired = "target_filepath" in task.required
        source = open_clips(
            folder.path / PROMPTS, task.sample_rate_of(model), channels=task.channels_of(model), paired=paired
        )
        with JsonlWriter(folder.path / "manifest.jsonl") as rows:
            todo = [i for i, u in enumerate(source.utts) if not all(k in rows for k in _ids(u.id, config.draws))]
            log.say(f"{log.several(len(todo), 'prompt')} x {config.draws} outputs, {engine.reason}")
            with log.progress(len(source.utts), "sample", "prompts", start=len(source.utts) - len(todo)) as bar:
                for at in range(0, len(todo), config.batch):
                    failed |= _sample(policy, source, todo[at : at + config.batch], config, folder.path, rows)
                    bar.advance(len(todo[at : at + config.batch]))
                    dog.beat()
            made = list(rows.rows.values())
    if not made:
        raise UserError("not one prompt could be sampled from", "; ".join(list(failed.values())[:3]), "rlspeech check")
    summary: dict[str, Any] = {"stage": "sample", "out": str(folder.path), "prompts": len(source.utts)}
    summary |= {"outputs": len(made), "failed": len(failed), "errors": failed}
    summary["finished"] = float(np.mean([bool(row.get("finished", True)) for row in made]))
    summary |= {
        "audio_s": round(sum(row["duration"] for row in made), 1),
        "seconds": round(time.monotonic() - began_s, 1),
    }
    shown = {
        "prompts": len(source.utts),
        "outputs": len(made),
        "left out": len(failed),
        "stopped by themselves": f"{summary['finished']:.1%}",
    }
    log.table(f"Samples in {folder.path}", ["", ""], [[k, v] for k, v in shown.items()])
    rewards = " ".join(f"--reward {r.name}" for r in settings.rewards)
    log.say(f"next: rlspeech reward {folder.path} {rewards}")
    log.say(f"then: rlspeech rl --task {config.task} --algo dpo --model {config.model} --samples {folder.path}")
    return summary


def _ids(prompt: str, draws: int) -> list[str]:
    return [f"{prompt}-{k:02d}" for k in range(draws)]


# ------------------------------------------------------------------------------------------------------------- prompts


def _write_prompts(folder: Path, task: Any, settings: RL, model: Any, limit: int | None) -> dict[str, str]:
    """Write prompts that are not there yet, complete with their sound. Returns the reasons of those left out."""
    source, failed = task.data(settings, model)[0], dict[str, str]()
    clip_s = 0.0 if task.transcribed else settings.clip_s
    known = {u.id: u for u in read_manifest(folder / PROMPTS)} if (folder / PROMPTS).exists() else {}
    wanted = source.utts[:limit]
    if len(known) >= len(wanted):
        return failed

    def rows() -> Iterator[Utterance]:
        for index, utt in enumerate(wanted):
            try:
                yield known.get(utt.id) or _prompt(folder / "prompts", source.clip(0, index, clip_s), utt)
            except AudioError as error:
                failed[utt.id] = error.reason
                log.say(f"left out: {utt.id}: {error.reason}")

    with log.waiting("writing the prompts"):
        write_manifest(folder / PROMPTS, rows())
    return failed


def _prompt(folder: Path, clip: Clip, utt: Utterance) -> Utterance:
    """Write a clip; returns its row. Raises ``AudioError``."""
    rate = clip.sample_rate
    row = Utterance(clip.key, "", clip.noisy.shape[-1] / rate, rate, text=clip.text)
    for name, value in clip.columns.items():
        if name in Utterance.field_names():
            setattr(row, name, row.duration if name == "duration" else value)
        else:
            row.extra[name] = value
    if row.prompt_filepath:
        voice = folder / f"voice-{zlib.crc32(row.prompt_filepath.encode()):08x}.flac"
        if not voice.exists():
            save_audio(voice, load_audio(row.prompt_filepath, rate), rate)
        row.prompt_filepath = str(voice)
    if utt.prompt_filepath and utt.prompt_filepath == utt.audio_filepath:
        row.audio_filepath = str(row.prompt_filepath)  # a text without a recording
        return row
    row.audio_filepath = str(save_exact(folder / clip.key, clip.noisy, rate))
    if clip.target is not clip.noisy:
        row.target_filepath = str(save_exact(folder / f"{clip.key}.target", clip.target, rate))
    if clip.lips is not None:
        row.lips_filepath = str(folder / f"{clip.key}.npz")
        save_lips(row.lips_filepath, clip.lips)
    return row


# ------------------------------------------------------------------------------------------------------------- outputs


def _sample(
    policy: Any, source: Any, indices: Sequence[int], config: SampleSet, folder: Path, rows: JsonlWriter
) -> dict[str, str]:
    """Sample some prompts and write their outputs. Returns the reasons of those that failed."""
    failed, clips = dict[str, str](), list[Clip]()
    for index in indices:
        try:
            clip = source.clip(0, index, 0.0)
            clip.place = index
            clips.append(clip)
        except AudioError as error:
            failed[source.utts[index].id] = error.reason

    def drawn(some: list[Clip]) -> list[list[Sample]]:
        rollout = policy.rollout(some, group=config.draws, seed=1)
        for sample, finished in zip(rollout.samples, rollout.finished.tolist(), strict=True):
            sample.finished = bool(finished)
        return [
            [s for s, p in zip(rollout.samples, rollout.group.tolist(), strict=True) if p == i]
            for i in range(len(some))
        ]

    by_id = {u.id: u for u in source.utts}
    for clip, made in zip(clips, one_by_one(drawn, clips), strict=True):
        if isinstance(made, Exception):
            failed[clip.key] = f"{type(made).__name__}: {made}"[:200]
            continue
        for draw, (key, sample) in enumerate(zip(_ids(clip.key, config.draws), made, strict=True)):
            rows.write(to_row(_output(folder, by_id[clip.key], key, draw, sample), folder))
    for key, why in failed.items():
        log.say(f"left out: {key}: {why}")
    return failed


def _output(folder: Path, prompt: Utterance, key: str, draw: int, sample: Sample) -> Utterance:
    """Write an output's sound, and return its row: the prompt's with what is the output's own."""
    row = Utterance(key, prompt.audio_filepath, prompt.duration, prompt.sample_rate, text=prompt.text)
    for name in ("speaker_id", "language", "snr_db", "prompt_filepath", "prompt_text"):
        setattr(row, name, getattr(prompt, name))
    row.extra = {**prompt.extra, "prompt": prompt.id, "draw": draw, "finished": sample.finished}
    if sample.hypothesis is not None:
        row.extra["hypothesis"] = sample.hypothesis
    else:
        row.audio_filepath = str(folder / "audio" / f"{key}.flac")
        row.duration, row.sample_rate = len(sample.wav) / sample.sample_rate, sample.sample_rate
        if len(sample.wav):  # nothing said has no file
            row.audio_filepath = str(save_exact(folder / "audio" / key, sample.wav, sample.sample_rate))
    if sample.target is not None:
        row.target_filepath = prompt.target_filepath or prompt.prompt_filepath or prompt.audio_filepath
    if sample.tokens is not None:
        row.extra |= {"tokens": sample.tokens.tolist(), "token_s": sample.token_s}
    return row
