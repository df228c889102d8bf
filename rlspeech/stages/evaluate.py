"""``rlspeech eval``: every system on the same held-out utterances, the unprocessed input always first.

    rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base --out runs/eval

Recognisers (``--task asr``) are compared by what they write: ``stages/recognition.py``; synthesisers (``--task tts``) by what is heard
in what they say: ``stages/synthesis.py``. For the others:

Scores are of the saved 16-bit audio, so what is scored is what can be heard, and a run that goes on scores the same files. Rows
are appended as they come; a (system, utterance) that has its row is not computed again. Differences are paired by utterance.

A model that sees can be scored a second time, in the same table, on the video of the next utterance (``shuffled``): the paired
difference says what its video is worth to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate, Video
from rlspeech.data import long as chunks
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import PairedClips, lips_of
from rlspeech.data.manifest import find_manifest, read_manifest, safe_name
from rlspeech.data.video import LIPS_FPS, LipsError
from rlspeech.engine import Engine, Watchdog
from rlspeech.log import several
from rlspeech.models.hub import fingerprint
from rlspeech.rewards.scorer import Pending, Scorer
from rlspeech.run import Run
from rlspeech.stages.summary import Table, default_metrics, summarise, write_report
from rlspeech.tasks import get_task
from rlspeech.tasks.avse.av_inputs import load_recording, neighbours
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["run", "utterances"]

INPUT = "input"
RESERVED = {INPUT, "reference"}
NEUTRAL = ("models", "shuffled", "baseline", "metrics", "limit", "batch")  # what a run that goes on may change
CHUNK_S, OVERLAP_S = 30.0, 1.0


def run(config: Evaluate, *, json_mode: bool = False) -> dict[str, Any]:
    """Enhance, score and compare.

    Returns:
        what ``metrics.json`` holds, and the paths of the report and the scores.

    Raises:
        UserError: data, checkpoint, metric or baseline that cannot be used; no utterance that could be scored.
    """
    if config.task == "asr":
        from rlspeech.stages.recognition import run as recognise

        return recognise(config, utterances(config), json_mode=json_mode)
    if config.task == "tts":
        from rlspeech.stages.synthesis import run as synthesise

        return synthesise(config, utterances(config), json_mode=json_mode)
    task = get_task(config.task)
    systems = _systems(config, sees="lips_filepath" in getattr(task, "required", ()))
    weights = {s.name: fingerprint(s.checkpoint, config.task) for s in systems if s.checkpoint is not None}
    weights |= {
        s.name: f"{weights[s.name]} {s.video} video" for s in systems if s.name in weights and s.video != "right"
    }
    names = [s.name for s in systems]
    baseline = _baseline(config, names)
    every = utterances(config)
    utts = every[: config.limit]
    partners = neighbours(every) if any(s.video == "shuffled" for s in systems) else {}  # whatever the limit
    metrics, notes = (config.metrics, []) if config.metrics else default_metrics(task.default_metrics)
    notes += _uncut(config, utts)
    engine = Engine(config.device, "fp32", config.seed)
    if not engine.is_main:  # one process evaluates; the others have nothing to add
        return {}
    began_s = time.monotonic()
    with Run.create(config.out, "eval", config, neutral=NEUTRAL) as folder, Watchdog() as dog:
        folder.note(device=engine.reason)
        engine.say(
            f"{several(len(utts), 'utterance')}, {several(len(systems), 'system')}, {several(len(metrics), 'metric')}, "
            f"{engine.reason}"
        )
        for note in notes:
            engine.say(note)
        table = Table(folder.path, metrics)
        table.keep(
            {INPUT: "", **weights}, config.model_dump(mode="json", include={"data", "nfe", "guidance", "seed", "video"})
        )
        with Scorer(metrics, device=str(engine.device), workers=config.workers) as scorer:
            scorer.dry_run()
            for system in systems:
                _Job(config, engine, task, folder.path, table, scorer, dog, system, partners).run(utts)
            meta, seconds = scorer.meta(), dict(scorer.seconds)
        summary = summarise(table, names, baseline, [u.id for u in utts], meta)
        summary["seconds"] = {
            "total": round(time.monotonic() - began_s, 1),
            **{k: round(v, 2) for k, v in seconds.items()},
        }
        page = write_report(folder, config, table, utts, summary, notes, engine.reason)
        summary |= {"run": str(folder.path), "report": str(page), "scores": str(table.path)}
    log.say(f"next: open {page} in a browser")
    return summary


@dataclass(frozen=True, slots=True)
class _System:
    """A column of the table; the input has no checkpoint."""

    name: str
    checkpoint: str | None = None
    video: Video = "right"


def _systems(config: Evaluate, sees: bool) -> list[_System]:
    """The input, the models, and their controls; names are looked at before anything is computed."""
    if not sees and (config.video != "right" or config.shuffled):
        raise UserError(f"{config.task} is shown no video", "so there is none to shuffle or to hide", "--task avse")
    strangers = [n for n in config.shuffled if n not in config.models]
    if strangers:
        raise UserError(
            f"no model is called {strangers[0]!r}",
            f"there are {', '.join(config.models) or 'none'}",
            "--shuffled with one of them",
        )
    if config.shuffled and config.video == "shuffled":
        raise UserError("every model sees shuffled video already", "video: shuffled", "--shuffled without it")
    systems = [_System(INPUT)]
    for name, checkpoint in config.models.items():
        if name in RESERVED or safe_name(name) != name:
            raise UserError(
                f"a model cannot be called {name!r}",
                "the name becomes a folder; 'input' and 'reference' are taken",
                "--model NAME=PATH",
            )
        systems.append(_System(name, checkpoint, config.video))
        if name in config.shuffled:
            if f"{name}-shuffled" in config.models:
                raise UserError(
                    f"a model cannot be called '{name}-shuffled'",
                    f"it is the name of {name} with shuffled video",
                    "--model with another name",
                )
            systems.append(_System(f"{name}-shuffled", checkpoint, "shuffled"))
    return systems


def _baseline(config: Evaluate, names: Sequence[str]) -> str | None:
    if config.baseline is not None and config.baseline not in names:
        raise UserError(
            f"no system is called {config.baseline!r}", f"there are {', '.join(names)}", "--baseline with one of them"
        )
    if not config.models:
        return None
    return config.baseline or (names[1] if len(names) > 2 else INPUT)


def _uncut(config: Evaluate, utts: Sequence[Utterance]) -> list[str]:
    """A word on rows whose videos have not been prepared."""
    count = sum(bool(u.video_filepath and not u.lips_filepath) for u in utts) if config.task == "avse" else 0
    if not count:
        return []
    return [
        f"{count} of {len(utts)} rows name a video but no mouth crops, and are enhanced without: "
        f"rlspeech prepare lips {config.data} --out FOLDER"
    ]


def utterances(config: Evaluate) -> list[Utterance]:
    """The rows to evaluate on; without ``data`` those of the embedded test set. Raises ``UserError``."""
    if config.data is None and config.task in ("asr", "tts"):
        from rlspeech.corpora.demo_commands import demo_commands, demo_commands_clean

        path = demo_commands("test") if config.task == "asr" else demo_commands_clean("test")
    elif config.data is None:
        from rlspeech.corpora.demo import demo_test

        path = demo_test(faces=True) if config.task == "avse" else demo_test()
    else:
        path = find_manifest(config.data, recipe=False)
    if path.suffix == ".json":
        raise UserError(
            f"{path} is a mixture recipe", "an evaluation needs fixed files", "render it: rlspeech prepare mix --help"
        )
    return read_manifest(path)


@dataclass
class _Job:
    """What one system's pass over the utterances needs."""

    config: Evaluate
    engine: Engine
    task: Any
    out: Path
    table: Table
    scorer: Scorer
    dog: Watchdog
    of: _System
    partners: dict[str, Utterance]
    seen: dict[str, dict[str, str]] = field(default_factory=dict)

    def run(self, utts: Sequence[Utterance]) -> None:
        """Enhance and score what has no row yet; the CPU metrics of one batch run while the next one is enhanced."""
        name = self.of.name
        for utt in utts:
            if "video_error" in self.table.rows.get((name, utt.id), {}) and self._see(utt, 0.0) is not None:
                self.table.forget(name, utt.id)  # its video has been mended
                self._file(utt.id).unlink(missing_ok=True)
        todo = [u for u in utts if not self.table.done(name, u.id)]
        if not todo:
            self.engine.say(f"{name}: all {len(utts)} utterances are scored already")
            return
        enhancer = None
        if self.of.checkpoint is not None:
            model, _ = self.task.load(self.of.checkpoint, self.engine.device)
            enhancer = self.task.enhancer(model, seed=self.config.seed, config=self.config)
        rate = enhancer.sample_rate if enhancer is not None else 16000
        waiting: tuple[Pending, list[Sample]] | None = None
        with log.progress(len(utts), name, "utterances", start=len(utts) - len(todo)) as bar:
            for batch in _batches(todo, self.config.batch):
                samples = self._outputs(enhancer, rate, batch)
                started = (self.scorer.start(samples), samples) if samples else None
                bar.advance(self._collect(waiting))
                waiting = started
                bar.advance(len(batch) - len(samples))
                self.dog.beat()
            bar.advance(self._collect(waiting))

    def _outputs(self, enhancer: Any, rate: int, batch: Sequence[Utterance]) -> list[Sample]:
        """Samples of the saved outputs; what fails on the way gets its row of nulls here."""
        name, rows = self.of.name, {u.id: u for u in batch}
        pairs: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for utt in batch:
            try:
                pairs[utt.id] = _load(utt, rate, 1 if enhancer is None else enhancer.channels)
            except AudioError as error:
                self.table.fail(name, utt.id, f"audio: {error.reason}")
        missing = [k for k in pairs if not _readable(self._file(k), pairs[k][0].shape[-1], rate)]
        made: list[np.ndarray | Exception] = [pairs[k][0] for k in missing]
        if enhancer is not None and missing:
            lips = [self._see(rows[k], pairs[k][0].shape[-1] / rate) for k in missing] if enhancer.uses_video else None
            made = chunks.apply(
                enhancer.infer,
                [pairs[k][0] for k in missing],
                missing,
                batch=self.config.batch,
                size=int(CHUNK_S * rate),
                overlap=int(OVERLAP_S * rate),
                lips=lips,
                hop=round(rate / LIPS_FPS),
            )
        samples = []
        problems = {k: m for k, m in zip(missing, made, strict=True) if isinstance(m, Exception)}
        for key, wav in zip(missing, made, strict=True):
            if not isinstance(wav, Exception):
                save_audio(self._file(key), wav, rate)  # two ears are kept
        for key, (noisy, target) in pairs.items():
            if key in problems:
                self.table.fail(name, key, f"enhance: {type(problems[key]).__name__}: {problems[key]}"[:300])
                continue
            if (
                enhancer is not None
                and enhancer.uses_video
                and key not in self.seen
                and (name, key) not in self.table.rows
            ):
                self._see(
                    rows[key], noisy.shape[-1] / rate
                )  # made before a run was killed, which left no row that says what was seen
            wav = load_audio(self._file(key), rate)  # the mean of both ears is what is scored
            samples.append(
                Sample(key, wav, rate, target, rows[key].text, {"snr_db": rows[key].snr_db, **rows[key].extra})
            )
        return samples

    def _see(self, utt: Utterance, seconds: float) -> np.ndarray | None:
        """The video that an utterance is shown, and a note of it for its row; a bad one costs the video, not the utterance."""
        self.seen[utt.id] = {"video": "none"}
        if self.of.video == "none":
            return None
        shown = self.partners[utt.id] if self.of.video == "shuffled" else utt
        try:
            lips = lips_of(shown, 0.0, seconds)
        except LipsError as error:
            self.seen[utt.id] |= {
                "video_error": f"{shown.lips_filepath}: {error.reason}" if shown is not utt else error.reason
            }
            return None
        if lips is None:
            self.seen[utt.id] |= {"video_error": "no mouth crops in the manifest"}
            return None
        self.seen[utt.id] = {"video": self.of.video}
        return lips

    def _collect(self, waiting: tuple[Pending, list[Sample]] | None) -> int:
        if waiting is None:
            return 0
        scores = waiting[0].result()
        for i, sample in enumerate(waiting[1]):
            self.table.add(
                self.of.name, sample.key, {metric: scores[metric][i] for metric in scores}, self.seen.get(sample.key)
            )
        return len(waiting[1])

    def _file(self, key: str) -> Path:
        return self.out / "audio" / self.of.name / f"{key}.flac"


def _batches(utts: Sequence[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Like lengths together, long ones last: less padding, and trouble with memory comes when most is done."""
    ordered = sorted(utts, key=lambda u: u.duration)
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]


def _load(utt: Utterance, rate: int, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The input, (T,) or (2, T) where model and file have two channels, and the mono reference."""
    if not utt.target_filepath:
        return load_recording(utt.audio_filepath, rate, channels, utt.offset, utt.duration or None), None
    clip = PairedClips([replace(utt, lips_filepath=None)], rate).clip(0, 0, 0.0)
    if channels == 1:
        return clip.noisy, clip.target
    return load_recording(utt.audio_filepath, rate, channels, utt.offset, utt.duration)[
        ..., : len(clip.noisy)
    ], clip.target


def _readable(path: Path, samples: int, rate: int) -> bool:
    """True where an earlier attempt has left this output whole."""
    try:
        return len(load_audio(path, rate)) == samples
    except AudioError:
        return False
