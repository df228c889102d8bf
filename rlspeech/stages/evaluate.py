"""``rlspeech eval``: every system on the same held-out utterances, the unprocessed input always first.

    rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base --out runs/eval

Scores are of the saved 16-bit audio, so what is scored is what can be heard, and a run that goes on scores the same files. Rows
are appended as they come; a (system, utterance) that has its row is not computed again. Differences are paired by utterance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data import chunks
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import PairedClips
from rlspeech.data.manifest import find_manifest, read_manifest, safe_name
from rlspeech.engine import Engine, Watchdog
from rlspeech.rewards.scorer import Pending, Scorer
from rlspeech.run import Run
from rlspeech.stages.summary import Table, default_metrics, fingerprint, summarise, write_report
from rlspeech.tasks import get_task
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["run"]

INPUT = "input"
RESERVED = {INPUT, "reference"}
CHUNK_S, OVERLAP_S = 30.0, 1.0


def run(config: Evaluate, *, json_mode: bool = False) -> dict[str, Any]:
    """Enhance, score and compare.

    Returns:
        what ``metrics.json`` holds, and the paths of the report and the scores.

    Raises:
        UserError: data, checkpoint, metric or baseline that cannot be used; no utterance that could be scored.
    """
    weights = _models(config)
    baseline = _baseline(config)
    task = get_task(config.task)
    utts = _utterances(config)
    metrics, notes = (config.metrics, []) if config.metrics else default_metrics(task.default_metrics)
    engine = Engine(config.device, "fp32", config.seed)
    if not engine.is_main:  # one process evaluates; the others have nothing to add
        return {}
    systems: dict[str, str | None] = {INPUT: None, **config.models}
    began_s = time.monotonic()
    with Run.create(config.out, "eval", config, neutral=("models", "baseline", "metrics", "limit", "batch")) as folder, Watchdog() as dog:
        folder.note(device=engine.reason)
        engine.say(f"{len(utts)} utterances, {len(systems)} systems, {len(metrics)} metrics, {engine.reason}")
        for note in notes:
            engine.say(note)
        table = Table(folder.path, metrics)
        table.keep({INPUT: "", **weights}, config.model_dump(mode="json", include={"data", "nfe", "guidance", "seed"}))
        with Scorer(metrics, device=str(engine.device), workers=config.workers) as scorer:
            scorer.dry_run()
            for name, checkpoint in systems.items():
                _Job(config, engine, task, folder.path, table, scorer, dog).system(name, checkpoint, utts)
            meta, seconds = scorer.meta(), dict(scorer.seconds)
        summary = summarise(table, list(systems), baseline, [u.id for u in utts], meta)
        summary["seconds"] = {"total": round(time.monotonic() - began_s, 1), **{k: round(v, 2) for k, v in seconds.items()}}
        page = write_report(folder, config, table, utts, summary, notes, engine.reason)
        summary |= {"run": str(folder.path), "report": str(page), "scores": str(table.path)}
    log.say(f"next: open {page}")
    return summary


def _models(config: Evaluate) -> dict[str, str]:
    """Name -> fingerprint; every checkpoint is looked at before anything is computed."""
    found = {}
    for name, checkpoint in config.models.items():
        if name in RESERVED or safe_name(name) != name:
            raise UserError(f"a model cannot be called {name!r}", "the name becomes a folder; 'input' and 'reference' are taken",
                            "--model NAME=PATH")
        found[name] = fingerprint(checkpoint)
    return found


def _baseline(config: Evaluate) -> str | None:
    names = [INPUT, *config.models]
    if config.baseline is not None and config.baseline not in names:
        raise UserError(f"no system is called {config.baseline!r}", f"there are {', '.join(names)}", "--baseline with one of them")
    if not config.models:
        return None
    return config.baseline or (names[1] if len(config.models) > 1 else INPUT)


def _utterances(config: Evaluate) -> list[Utterance]:
    if config.data is None:
        from rlspeech.corpora.demo import demo_test

        path = demo_test()
    else:
        path = find_manifest(config.data, recipe=False)
    if path.suffix == ".json":
        raise UserError(f"{path} is a mixture recipe", "an evaluation needs fixed files",
                        "render it: rlspeech prepare mix --help")
    return read_manifest(path)[: config.limit]


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

    def system(self, name: str, checkpoint: str | None, utts: Sequence[Utterance]) -> None:
        """Enhance and score what has no row yet; the CPU metrics of one batch run while the next one is enhanced."""
        todo = [u for u in utts if not self.table.done(name, u.id)]
        if not todo:
            self.engine.say(f"{name}: all {len(utts)} utterances are scored already")
            return
        enhancer = None
        if checkpoint is not None:
            enhancer = self.task.enhancer(checkpoint, self.engine.device, nfe=self.config.nfe, guidance=self.config.guidance,
                                          seed=self.config.seed)
        rate = enhancer.sample_rate if enhancer is not None else 16000
        waiting: tuple[Pending, list[Sample]] | None = None
        with log.progress(len(utts), name, "utterances", start=len(utts) - len(todo)) as bar:
            for batch in _batches(todo, self.config.batch):
                samples = self._outputs(name, enhancer, rate, batch)
                started = (self.scorer.start(samples), samples) if samples else None
                bar.advance(self._collect(name, waiting))
                waiting = started
                bar.advance(len(batch) - len(samples))
                self.dog.beat()
            bar.advance(self._collect(name, waiting))

    def _outputs(self, name: str, enhancer: Any, rate: int, batch: Sequence[Utterance]) -> list[Sample]:
        """Samples of the saved outputs; what fails on the way gets its row of nulls here."""
        pairs: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for utt in batch:
            try:
                pairs[utt.id] = _load(utt, rate)
            except AudioError as error:
                self.table.fail(name, utt.id, f"audio: {error.reason}")
        missing = [k for k in pairs if not _readable(self._file(name, k), len(pairs[k][0]), rate)]
        made: list[np.ndarray | Exception] = [pairs[k][0] for k in missing]
        if enhancer is not None and missing:
            made = chunks.apply(enhancer.infer, [pairs[k][0] for k in missing], missing, batch=self.config.batch, size=int(CHUNK_S * rate),
                                overlap=int(OVERLAP_S * rate))
        samples = []
        problems = {k: m for k, m in zip(missing, made, strict=True) if isinstance(m, Exception)}
        for key, wav in zip(missing, made, strict=True):
            if not isinstance(wav, Exception):
                save_audio(self._file(name, key), wav, rate)
        texts = {u.id: u for u in batch}
        for key, (_, target) in pairs.items():
            if key in problems:
                self.table.fail(name, key, f"enhance: {type(problems[key]).__name__}: {problems[key]}"[:300])
                continue
            wav = load_audio(self._file(name, key), rate)
            samples.append(Sample(key, wav, rate, target, texts[key].text, {"snr_db": texts[key].snr_db, **texts[key].extra}))
        return samples

    def _collect(self, name: str, waiting: tuple[Pending, list[Sample]] | None) -> int:
        if waiting is None:
            return 0
        scores = waiting[0].result()
        for i, sample in enumerate(waiting[1]):
            self.table.add(name, sample.key, {metric: scores[metric][i] for metric in scores})
        return len(waiting[1])

    def _file(self, name: str, key: str) -> Path:
        return self.out / "audio" / name / f"{key}.flac"


def _batches(utts: Sequence[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Like lengths together, long ones last: less padding, and trouble with memory comes when most is done."""
    ordered = sorted(utts, key=lambda u: u.duration)
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]


def _load(utt: Utterance, rate: int) -> tuple[np.ndarray, np.ndarray | None]:
    if utt.target_filepath:
        clip = PairedClips([utt], rate).clip(0, 0, 0.0)
        return clip.noisy, clip.target
    return load_audio(utt.audio_filepath, rate, utt.offset, utt.duration or None), None


def _readable(path: Path, samples: int, rate: int) -> bool:
    """True where an earlier attempt has left this output whole."""
    try:
        return len(load_audio(path, rate)) == samples
    except AudioError:
        return False
