"""``rlspeech enhance``: a model on files of any length. Bad files cost themselves, inputs are never overwritten.

    rlspeech enhance noisy.wav more/ --out enhanced
    rlspeech enhance test.jsonl --model runs/rl --out enhanced
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rlspeech import log
from rlspeech.config import Strict
from rlspeech.types import UserError

__all__ = ["Enhance", "run"]

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"})
WRITTEN = frozenset({".wav", ".flac"})  # everything else becomes .flac
OVERLAP_S = 1.0


class Enhance(Strict):
    """``rlspeech enhance``."""

    task: Literal["flowse"] = "flowse"
    inputs: list[str] = Field(default_factory=list, description="files, folders or manifests")
    out: str | None = Field(None, description="folder for the results; names and sub-folders of the inputs are kept")
    model: str = Field("embedded", description="checkpoint folder, run folder, or 'embedded'")
    nfe: int | None = Field(None, ge=1, description="Euler steps; none: the model's own")
    guidance: float | None = Field(None, ge=0, description="none: the model's own")
    batch: int = Field(8, ge=1, description="files or chunks at once")
    chunk_s: float = Field(20.0, gt=3, description="longer files are cut into chunks that overlap by a second")
    overwrite: bool = Field(False, description="redo results that are there")
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to enhance, and where the result goes."""

    source: Path
    target: Path
    offset_s: float = 0.0
    duration_s: float | None = None


def run(config: Enhance, *, json_mode: bool = False) -> dict[str, Any]:
    """Enhance everything that can be enhanced.

    Returns:
        counts, the output folder, and the reason of each failure.

    Raises:
        UserError: nothing to do, results would land on their inputs, or not one file could be enhanced.
    """
    from rlspeech.engine import Engine, Watchdog
    from rlspeech.tasks import get_task

    if config.out is None:
        raise UserError("no output folder", "", "--out FOLDER")
    out = Path(config.out).absolute()
    jobs, failed = _jobs(config.inputs, out)
    todo = [job for job in jobs if config.overwrite or not job.target.exists()]
    skipped, done, audio_s, notes = len(jobs) - len(todo), 0, 0.0, Counter[str]()
    began_s = time.monotonic()
    if todo:
        engine = Engine(config.device, "fp32", config.seed)
        enhancer = get_task(config.task).enhancer(config.model, engine.device, nfe=config.nfe, guidance=config.guidance, seed=config.seed)
        log.say(f"{len(todo)} files, {engine.reason}")
        with log.progress(len(todo), "enhance", "files") as bar, Watchdog() as dog:
            for batch in _batches(todo, config.batch):
                for job, seconds, reason in _enhance(enhancer, batch, config, notes):
                    done, audio_s = done + (reason is None), audio_s + seconds
                    if reason is not None:
                        failed[str(job.source)] = reason
                        log.say(f"left out: {job.source}: {reason}")
                    bar.advance()
                dog.beat()
    for note, count in notes.items():
        log.say(f"{count} files {note}")
    wall_s = time.monotonic() - began_s
    summary = {"out": str(out), "enhanced": done, "skipped": skipped, "failed": len(failed), "errors": failed, "audio_s": round(audio_s, 2),
               "seconds": round(wall_s, 2)}
    if failed and not done and not skipped:
        raise UserError(f"not one of {len(failed)} files could be enhanced", "; ".join(f"{k}: {v}" for k, v in list(failed.items())[:3]),
                        "rlspeech check on the input")
    log.table("Enhanced", ["", "files"], [["enhanced", done], ["there already", skipped], ["left out", len(failed)]],
              [f"{audio_s:.1f} s of audio in {wall_s:.1f} s, in {out}"])
    log.say(f"next: rlspeech reward {out} --reward dnsmos")
    return summary


def _jobs(inputs: Sequence[str], out: Path) -> tuple[list[_Job], dict[str, str]]:
    """All files with their targets, and those that cannot be taken, with the reason."""
    if not inputs:
        raise UserError("nothing to enhance", "", "rlspeech enhance FILE_OR_FOLDER... --out FOLDER")
    failed = {str(Path(name).absolute()): "missing file" for name in inputs if not Path(name).exists()}
    wanted = [job for name in inputs if Path(name).exists() for job in _expand(Path(name).absolute(), out)]
    sources = {_identity(job.source): job.source for job in wanted}
    jobs: list[_Job] = []
    taken: dict[Path, Path] = {}
    for job in wanted:
        if _identity(job.target) in sources:  # before names are told apart: nothing that was named as an input may be written to
            raise UserError(f"{job.target} would be overwritten", f"it is an input: {sources[_identity(job.target)]}",
                            "--out with another folder")
        if job.target in taken:
            failed[str(job.source)] = f"its result would have the name of that of {taken[job.target]}"
            continue
        taken[job.target] = job.source
        jobs.append(job)
    if not jobs and not failed:
        raise UserError("no audio files in the input", f"looked for {', '.join(sorted(SUFFIXES))}", "rlspeech enhance --help")
    return jobs, failed


def _expand(path: Path, out: Path) -> Iterator[_Job]:
    if path.is_dir():
        inside = out.resolve()
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")):
            if inside == path.resolve() or inside not in file.resolve().parents:  # results of an earlier run in a sub-folder are no inputs
                yield _Job(file, _named(out / file.relative_to(path)))
    elif path.suffix == ".jsonl":
        from rlspeech.data.manifest import read_manifest

        for utt in read_manifest(path):
            yield _Job(Path(utt.audio_filepath), out / f"{utt.id}.flac", utt.offset, utt.duration or None)
    else:
        yield _Job(path, _named(out / path.name))


def _named(target: Path) -> Path:
    return target if target.suffix.lower() in WRITTEN else target.with_suffix(".flac")


def _identity(path: Path) -> tuple[int, int] | str:
    """Equal for all names of one file, hard and symbolic links included."""
    try:
        found = path.stat()
    except OSError:
        return str(path.resolve())
    return (found.st_dev, found.st_ino) if found.st_ino else str(path.resolve())


def _batches(jobs: Sequence[_Job], size: int) -> Iterator[list[_Job]]:
    for at in range(0, len(jobs), size):
        yield list(jobs[at : at + size])


def _enhance(enhancer: Any, batch: Sequence[_Job], config: Enhance, notes: Counter[str]) -> Iterator[tuple[_Job, float, str | None]]:
    """Job, seconds of audio, and why it failed or None, one after another; long files are held one at a time."""
    rate = enhancer.sample_rate
    held: list[tuple[_Job, np.ndarray]] = []
    from rlspeech.data.audio import AudioError, load_audio

    for job in batch:
        try:
            wav = load_audio(job.source, rate, job.offset_s, job.duration_s)
        except AudioError as error:
            yield job, 0.0, error.reason
            continue
        except MemoryError:
            yield job, 0.0, "too long for this machine's memory"
            continue
        _note(job.source, rate, notes)
        if len(wav) > config.chunk_s * rate:
            yield from _write(enhancer, [(job, wav)], config)
        else:
            held.append((job, wav))
    yield from _write(enhancer, held, config)


def _write(enhancer: Any, held: Sequence[tuple[_Job, np.ndarray]], config: Enhance) -> Iterator[tuple[_Job, float, str | None]]:
    from rlspeech.data import chunks
    from rlspeech.data.audio import AudioError, save_audio

    rate = enhancer.sample_rate
    keys = [job.target.stem for job, _ in held]  # as in `rlspeech eval`, which gives the same result
    results = chunks.apply(enhancer.infer, [wav for _, wav in held], keys, batch=config.batch, size=int(config.chunk_s * rate),
                           overlap=int(OVERLAP_S * rate))
    for (job, wav), result in zip(held, results, strict=True):
        if isinstance(result, Exception):
            yield job, 0.0, f"{type(result).__name__}: {result}"[:200]
            continue
        try:
            save_audio(job.target, result, rate)
        except AudioError as error:
            yield job, 0.0, error.reason
        except OSError as error:
            from rlspeech.checkpoints import disk_error

            raise disk_error(error, job.target) from error
        else:
            yield job, len(wav) / rate, None


def _note(path: Path, rate: int, notes: Counter[str]) -> None:
    import soundfile as sf

    info = sf.info(path)
    if info.channels > 1:
        notes["had several channels, which were averaged"] += 1
    if info.samplerate != rate:
        notes[f"were resampled from {info.samplerate} to {rate} Hz"] += 1
