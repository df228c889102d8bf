"""``rlspeech enhance``: a model on files of any length. A bad file is one failure in the summary; inputs are never overwritten.

    rlspeech enhance noisy.wav more/ --out enhanced
    rlspeech enhance test.jsonl --model runs/rl --out enhanced
    rlspeech enhance --task avse talk.mp4 noisy.wav --video videos/ --out enhanced

An audio-visual model takes the video that lies beside a recording under its name, or in ``--video``, or that its manifest row names; of a
video file the sound track is enhanced. A recording without a usable video is enhanced without one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from rlspeech import log
from rlspeech.config import Enhancement
from rlspeech.config_parts import SHARD, Count, EulerSteps, NonNegative, Shard, ShardText, Strict, Whole, conf
from rlspeech.data import long
from rlspeech.data.audio import AudioError, save_audio
from rlspeech.data.decode import sound_info
from rlspeech.data.inputs import SOUND, Item, expand
from rlspeech.data.manifest import ROWS
from rlspeech.data.tars import TAR
from rlspeech.data.video import LIPS_FPS, LipsError
from rlspeech.files import held, too_long, write_error
from rlspeech.stages.jobs import FileJob, summarise
from rlspeech.tasks import get_task
from rlspeech.tasks.owners import check_owners
from rlspeech.types import UserError

WRITTEN = frozenset({".wav", ".flac"})  # everything else becomes .flac
OVERLAP_S = 1.0
BLIND = "were enhanced without video"


class Enhance(Strict):
    """``rlspeech enhance``."""

    task: Enhancement = conf(get_args(Enhancement)[0], "what the model enhances with")
    inputs: list[str] = conf([], "audio files (also videos, for their sound), folders or manifests")
    video: str | None = conf(
        None,
        "avse: video or mouth crops (.npz) of the input, or a folder of them, named as the inputs "
        "(default: those that manifests name or that lie beside the inputs)",
    )
    out: str | None = conf(None, "folder for the results; names and sub-folders of the inputs are kept")
    model: str = conf("embedded", "checkpoint or run folder, or 'embedded'")
    nfe: EulerSteps | None = conf(None, "number of Euler steps (default: the model's own)")
    guidance: NonNegative | None = conf(None, "strength of classifier-free guidance (default: the model's own)")
    batch: Count = conf(8, "files or chunks at once")
    chunk_s: float = conf(20.0, "longer files are cut into chunks that overlap by a second", gt=3)
    overwrite: bool = conf(False, "write results that already exist again")
    shard: ShardText | None = conf(None, SHARD)
    seed: Whole = 0
    device: str = "auto"


@dataclass(slots=True)
class _Job(FileJob):
    """One recording to enhance, and where the result goes."""

    target: Path


class _Recording(NamedTuple):
    """What is held of a file: the sound (T,) or (2, T), and the talker's mouth (F, H, W) or None."""

    job: _Job
    wav: np.ndarray
    lips: np.ndarray | None


def run(config: Enhance, joined: Sequence[Path] = ()) -> dict[str, Any]:
    """Enhance everything that can be enhanced; of ``joined`` shards nothing, their results are in place.

    Returns counts, the output folder, and the reason of each failure.
    Raises ``UserError``: nothing to do, results would land on their inputs, or not one file could be enhanced.
    """
    if config.out is None:
        raise UserError("no output folder", "", "--out FOLDER")
    check_owners(config, get_task(config.task))
    out, began_s = Path(config.out).absolute(), time.monotonic()
    jobs, shard = _jobs(config, out), Shard.of(config.shard)
    jobs = [job for job in jobs if shard.has(job.item.key)]
    todo = [job for job in jobs if job.error is None and (config.overwrite or not job.target.exists())]
    notes = Counter[str]()
    for job in todo if joined else ():
        job.fail()
    if todo and not joined:
        with held(shard.place(out)):
            _enhance(config, todo, notes)
    for note, count in notes.items():
        log.say(f"{log.several(count, 'file')} {note}")
    hint = "" if shard.own else "rlspeech check on the input"
    summary = summarise("enhanced", "file", jobs, todo, began_s, str(out), hint)
    if blind := sum(n for note, n in notes.items() if note.startswith(BLIND)):
        summary["without_video"] = blind
    rows = [["enhanced", summary["enhanced"]], ["exist already", summary["skipped"]], ["left out", summary["failed"]]]
    log.table("Enhanced", ["", "files"], rows, [f"{blind} of them without video"] if blind else [])
    log.say(f"next: rlspeech reward {out} --reward dnsmos")
    return summary


def _jobs(config: Enhance, out: Path) -> list[_Job]:
    """All files with their targets; those that cannot be taken carry the reason."""
    jobs = [job for name in config.inputs for job in _expand(Path(name).absolute(), out)]
    if not jobs:
        raise UserError("nothing to enhance", f"looked for {', '.join(sorted(SOUND))}", "rlspeech enhance --help")
    wanted = [job for job in jobs if job.error is None]
    if config.video is not None and not Path(config.video).exists():
        raise UserError(f"no video at {config.video}", "missing file", "--video with a file or a folder")
    if config.video is not None and len(wanted) > 1 and not Path(config.video).is_dir():
        try_this = "--video with a folder of files that are named as the recordings"
        raise UserError(f"one video for {len(wanted)} recordings", config.video, try_this)
    sources = {_identity(job.source): job.source for job in wanted}
    taken: dict[Path, Path] = {}
    for job in wanted:
        # before names are told apart: nothing that was named as an input may be written to
        if source := sources.get(_identity(job.target)):
            why = f"it is an input: {source}"
            raise UserError(f"{job.target} would be overwritten", why, "--out with another folder")
        if too_long(job.target):
            job.fail("the name of its result would be too long")
        elif job.target in taken:
            job.fail(f"its result would have the name of that of {taken[job.target]}")
        taken.setdefault(job.target, job.source)
    return jobs


def _expand(path: Path, out: Path) -> Iterator[_Job]:
    if not os.path.exists(path):
        job = _Job(Item(path.stem, str(path)), out / path.name)
        job.fail("missing file")
        yield job
        return
    for item in expand(path, skip=out):
        if path.suffix in {*ROWS, TAR} and not path.is_dir():
            yield _Job(item, out / f"{item.key}.flac")
        elif item.audio is not None:
            target = out / (Path(item.audio).relative_to(path) if path.is_dir() else path.name)
            yield _Job(item, target if target.suffix.lower() in WRITTEN else target.with_suffix(".flac"))


def _identity(path: Path) -> tuple[int, int] | str:
    """Equal for all names of one file, hard and symbolic links included."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return str(path)
    return (found.st_dev, found.st_ino) if found.st_ino else str(path)


def _enhance(config: Enhance, jobs: Sequence[_Job], notes: Counter[str]) -> None:
    """Enhance in batches; what is remarkable about files is counted in ``notes``. Long files are held one at a time."""
    from rlspeech.config import Evaluate
    from rlspeech.engine import Engine, Watchdog

    engine, task = Engine(config.device, "fp32", config.seed), get_task(config.task)
    model, _ = task.load(config.model, engine.device)
    options = Evaluate(task=config.task, nfe=config.nfe, guidance=config.guidance, seed=config.seed)
    enhancer = task.enhancer(model, seed=config.seed, config=options)
    log.say(f"{log.several(len(jobs), 'file')}, {engine.reason}")
    with log.progress(len(jobs), "enhance", "files") as bar, Watchdog() as dog:
        for at in range(0, len(jobs), config.batch):
            held: list[_Recording] = []
            for job in jobs[at : at + config.batch]:
                recording = _read(job, enhancer, config, notes)
                if recording is None:
                    bar.advance()
                elif recording.wav.shape[-1] > config.chunk_s * enhancer.sample_rate:
                    _write(enhancer, [recording], config)
                    bar.advance()
                else:
                    held.append(recording)
            _write(enhancer, held, config)
            bar.advance(len(held))
            dog.beat()


def _read(job: _Job, enhancer: Any, config: Enhance, notes: Counter[str]) -> _Recording | None:
    """Read a file; None where that cannot be done, which the job says."""
    from rlspeech.tasks.avse.enhancer import is_video, load_recording

    rate = enhancer.sample_rate
    try:
        wav = load_recording(job.source, rate, enhancer.channels, job.item.offset_s, job.item.duration_s)
    except (AudioError, MemoryError) as error:
        job.fail(error)
        return None
    if not is_video(job.source):
        info = sound_info(job.source)
        if info.channels > 1 and wav.ndim == 1:
            notes["had several channels, which were averaged"] += 1
        if info.sample_rate != rate:
            notes[f"were resampled from {info.sample_rate} to {rate} Hz"] += 1
    job.seconds = wav.shape[-1] / rate
    return _Recording(job, wav, _mouth(job, config, notes) if enhancer.uses_video else None)


def _mouth(job: _Job, config: Enhance, notes: Counter[str]) -> np.ndarray | None:
    """The mouth of the talker, or None, which is counted in ``notes``: the file is then enhanced by its sound alone."""
    from rlspeech.tasks.avse.enhancer import find_video, load_mouth

    given = find_video(job.source, Path(config.video)) if config.video else None
    path = given or job.item.video or find_video(job.source)
    if path is None:
        notes[f"{BLIND}: none was found"] += 1
        return None
    try:
        return load_mouth(path, job.item.offset_s, job.seconds)
    except LipsError as error:
        notes[f"{BLIND}: {error.reason}"] += 1
        log.say(f"{job.source}: {path} is not used: {error.reason}")
        return None


def _write(enhancer: Any, held: Sequence[_Recording], config: Enhance) -> None:
    """Enhance recordings and write the results."""
    rate = enhancer.sample_rate
    results = long.apply(
        enhancer.infer,
        [one.wav for one in held],
        [one.job.target.stem for one in held],  # as in `rlspeech eval`, which gives the same result
        batch=config.batch,
        size=int(config.chunk_s * rate),
        overlap=int(OVERLAP_S * rate),
        lips=[one.lips for one in held] if enhancer.uses_video else None,
        hop=round(rate / LIPS_FPS),
    )
    for (job, _, _), result in zip(held, results, strict=True):
        if isinstance(result, Exception):
            job.fail(result)
            continue
        try:
            save_audio(job.target, result, rate)
        except AudioError as error:
            job.fail(error)
        except OSError as error:
            raise write_error(job.target, error, "files enhanced before it were kept") from error
