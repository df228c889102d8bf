"""``rlspeech enhance``: a model on files of any length. A bad file is one failure in the summary; inputs are never overwritten.

    rlspeech enhance noisy.wav more/ --out enhanced
    rlspeech enhance test.jsonl --model runs/rl --out enhanced
    rlspeech enhance --task avse talk.mp4 noisy.wav --video videos/ --out enhanced

An audio-visual model takes the video that lies beside a recording under its name, or in ``--video``, or that its manifest row names; of a
video file the sound track is enhanced. A recording without a usable video is enhanced without one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import Field

from rlspeech import log
from rlspeech.config import Enhancement, Strict
from rlspeech.data.inputs import AUDIO_SUFFIXES, ROWS, Item, expand
from rlspeech.log import several
from rlspeech.tasks import get_task
from rlspeech.tasks.avse.av_inputs import find_video, is_video, load_mouth, load_recording
from rlspeech.types import UserError

__all__ = ["Enhance", "run"]

WRITTEN = frozenset({".wav", ".flac"})  # everything else becomes .flac
OVERLAP_S = 1.0
BLIND = "were enhanced without video"


class Enhance(Strict):
    """``rlspeech enhance``."""

    task: Enhancement = Field(get_args(Enhancement)[0], description="what the model enhances with")
    inputs: list[str] = Field(
        default_factory=list, description="audio files (also videos, for their sound track), folders or manifests"
    )
    video: str | None = Field(
        None,
        description="avse: video or mouth crops (.npz) of the input, or a folder of them, named as the inputs "
        "(default: those that manifests name or that lie beside the inputs)",
    )
    out: str | None = Field(None, description="folder for the results; names and sub-folders of the inputs are kept")
    model: str = Field("embedded", description="checkpoint or run folder, or 'embedded'")
    nfe: int | None = Field(None, ge=1, description="number of Euler steps (default: the model's own)")
    guidance: float | None = Field(
        None, ge=0, description="strength of classifier-free guidance (default: the model's own)"
    )
    batch: int = Field(8, ge=1, description="files or chunks at once")
    chunk_s: float = Field(20.0, gt=3, description="longer files are cut into chunks that overlap by a second")
    overwrite: bool = Field(False, description="write results that already exist again")
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class _Job:
    """One recording to enhance, and where the result goes."""

    item: Item
    target: Path

    @property
    def source(self) -> Path:
        assert self.item.audio is not None  # rows of a manifest name their audio
        return self.item.audio


def run(config: Enhance, *, json_mode: bool = False) -> dict[str, Any]:
    """Enhance everything that can be enhanced.

    Returns:
        counts, the output folder, and the reason of each failure.

    Raises:
        UserError: nothing to do, results would land on their inputs, or not one file could be enhanced.
    """
    from rlspeech.config import Evaluate
    from rlspeech.engine import Engine, Watchdog

    if config.out is None:
        raise UserError("no output folder", "", "--out FOLDER")
    out = Path(config.out).absolute()
    jobs, failed = _jobs(config, out)
    todo = [job for job in jobs if config.overwrite or not job.target.exists()]
    skipped, done, audio_s, notes = len(jobs) - len(todo), 0, 0.0, Counter[str]()
    began_s = time.monotonic()
    if todo:
        engine = Engine(config.device, "fp32", config.seed)
        task = get_task(config.task)
        model, _ = task.load(config.model, engine.device)
        options = Evaluate(task=config.task, nfe=config.nfe, guidance=config.guidance, seed=config.seed)
        enhancer = task.enhancer(model, seed=config.seed, config=options)
        log.say(f"{several(len(todo), 'file')}, {engine.reason}")
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
        log.say(f"{several(count, 'file')} {note}")
    blind = sum(n for note, n in notes.items() if note.startswith(BLIND))
    wall_s = time.monotonic() - began_s
    summary = {
        "out": str(out),
        "enhanced": done,
        "skipped": skipped,
        "failed": len(failed),
        "errors": failed,
        "audio_s": round(audio_s, 2),
        "seconds": round(wall_s, 2),
        **({"without_video": blind} if blind else {}),
    }
    if failed and not done and not skipped:
        raise UserError(
            f"not one of {len(failed)} files could be enhanced",
            "; ".join(f"{k}: {v}" for k, v in list(failed.items())[:3]),
            "rlspeech check on the input",
        )
    log.table(
        "Enhanced",
        ["", "files"],
        [["enhanced", done], ["there already", skipped], ["left out", len(failed)]],
        [
            *([f"{blind} of them without video"] if blind else []),
            f"{audio_s:.1f} s of audio in {wall_s:.1f} s, in {out}",
        ],
    )
    log.say(f"next: rlspeech reward {out} --reward dnsmos")
    return summary


def _jobs(config: Enhance, out: Path) -> tuple[list[_Job], dict[str, str]]:
    """All files with their targets, and those that cannot be taken, with the reason."""
    inputs, uses_video = config.inputs, get_task(config.task).uses_video
    if not inputs:
        raise UserError("nothing to enhance", "", "rlspeech enhance FILE_OR_FOLDER... --out FOLDER")
    failed = {str(Path(name).absolute()): "missing file" for name in inputs if not Path(name).exists()}
    wanted = [j for name in inputs if Path(name).exists() for j in _expand(Path(name).absolute(), out, uses_video)]
    if config.video is not None:
        _check_video(config.video, uses_video, len(wanted))
    sources = {_identity(job.source): job.source for job in wanted}
    jobs: list[_Job] = []
    taken: dict[Path, Path] = {}
    for job in wanted:
        if (
            _identity(job.target) in sources
        ):  # before names are told apart: nothing that was named as an input may be written to
            raise UserError(
                f"{job.target} would be overwritten",
                f"it is an input: {sources[_identity(job.target)]}",
                "--out with another folder",
            )
        if job.target in taken:
            failed[str(job.source)] = f"its result would have the name of that of {taken[job.target]}"
            continue
        taken[job.target] = job.source
        jobs.append(job)
    if not jobs and not failed:
        raise UserError(
            "no audio files in the input", f"looked for {', '.join(sorted(AUDIO_SUFFIXES))}", "rlspeech enhance --help"
        )
    return jobs, failed


def _check_video(video: str, uses_video: bool, inputs: int) -> None:
    if not uses_video:
        raise UserError(
            "--video is for audio-visual tasks", f"--video {video}", "leave it out, or name such a task with --task"
        )
    if not Path(video).exists():
        raise UserError(f"no video at {video}", "missing file", "--video with a file or a folder")
    if inputs > 1 and not Path(video).is_dir():
        raise UserError(
            f"one video for {inputs} recordings",
            video,
            "--video with a folder of files that are named as the recordings",
        )


def _expand(path: Path, out: Path, videos: bool) -> Iterator[_Job]:
    for item in expand(path, skip=out, videos=videos):
        if path.suffix in ROWS and not path.is_dir():
            yield _Job(item, out / f"{item.key}.flac")
        elif item.audio is not None:
            yield _Job(item, _named(out / (item.audio.relative_to(path) if path.is_dir() else path.name)))


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


def _enhance(
    enhancer: Any, batch: Sequence[_Job], config: Enhance, notes: Counter[str]
) -> Iterator[tuple[_Job, float, str | None]]:
    """Job, seconds of audio, and why it failed or None, one after another; long files are held one at a time."""
    rate = enhancer.sample_rate
    held: list[_Held] = []
    from rlspeech.data.audio import AudioError

    for job in batch:
        try:
            wav = load_recording(job.source, rate, enhancer.channels, job.item.offset_s, job.item.duration_s)
        except AudioError as error:
            yield job, 0.0, error.reason
            continue
        except MemoryError:
            yield job, 0.0, "too long for this machine's memory"
            continue
        _note(job.source, rate, wav.ndim, notes)
        one = _Held(job, wav, _mouth(job, wav.shape[-1] / rate, config, notes) if enhancer.uses_video else None)
        if wav.shape[-1] > config.chunk_s * rate:
            yield from _write(enhancer, [one], config)
        else:
            held.append(one)
    yield from _write(enhancer, held, config)


@dataclass(frozen=True, slots=True)
class _Held:
    """What is known of a file: the recording (T,) or (2, T), and its mouth (F, H, W) or None."""

    job: _Job
    wav: np.ndarray
    lips: np.ndarray | None


def _mouth(job: _Job, seconds: float, config: Enhance, notes: Counter[str]) -> np.ndarray | None:
    """The mouth of the talker, or None, which is counted in ``notes``: the file is then enhanced by its sound alone."""
    from rlspeech.data.video import LipsError

    given = find_video(job.source, Path(config.video)) if config.video else None
    path = given or job.item.video or find_video(job.source)
    if path is None:
        notes[f"{BLIND}: none was found"] += 1
        return None
    try:
        return load_mouth(path, job.item.offset_s, seconds)
    except LipsError as error:
        notes[f"{BLIND}: {error.reason}"] += 1
        log.say(f"{job.source}: {path} is not used: {error.reason}")
        return None


def _write(enhancer: Any, held: Sequence[_Held], config: Enhance) -> Iterator[tuple[_Job, float, str | None]]:
    from rlspeech.data import long as chunks
    from rlspeech.data.audio import AudioError, save_audio
    from rlspeech.data.video import LIPS_FPS

    rate = enhancer.sample_rate
    keys = [one.job.target.stem for one in held]  # as in `rlspeech eval`, which gives the same result
    lips = [one.lips for one in held] if enhancer.uses_video else None
    results = chunks.apply(
        enhancer.infer,
        [one.wav for one in held],
        keys,
        batch=config.batch,
        size=int(config.chunk_s * rate),
        overlap=int(OVERLAP_S * rate),
        lips=lips,
        hop=round(rate / LIPS_FPS),
    )
    for one, result in zip(held, results, strict=True):
        job = one.job
        if isinstance(result, Exception):
            yield job, 0.0, f"{type(result).__name__}: {result}"[:200]
            continue
        try:
            save_audio(job.target, result, rate)
        except AudioError as error:
            yield job, 0.0, error.reason
        except OSError as error:
            from rlspeech.files import write_error

            raise write_error(job.target, error, "files enhanced before it were kept") from error
        else:
            yield job, one.wav.shape[-1] / rate, None


def _note(path: Path, rate: int, axes: int, notes: Counter[str]) -> None:
    if is_video(path):
        return
    import soundfile as sf

    info = sf.info(path)
    if info.channels > 1 and axes == 1:
        notes["had several channels, which were averaged"] += 1
    if info.samplerate != rate:
        notes[f"were resampled from {info.samplerate} to {rate} Hz"] += 1
