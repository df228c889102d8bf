"""``rlspeech transcribe``: a recogniser on files of any length. A bad file is one failure in the summary.

    rlspeech transcribe talk.wav                                 # the text on stdout
    rlspeech transcribe talks/ more.flac --out texts             # texts/NAME.txt, sub-folders are kept
    rlspeech transcribe test.jsonl --model runs/rl --out texts.jsonl

A file that is longer than the model takes at once is read and recognised piece by piece, cut at pauses; an hour takes no more
memory than a few pieces. JSONL rows say where the pieces are, and the file is a manifest: it can be trained on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlspeech import log
from rlspeech.config_parts import SHARD, Count, Sampling, Shard, ShardText, Strict, Whole, conf
from rlspeech.data.decode import AudioError, regular_file
from rlspeech.data.inputs import SOUND, expand
from rlspeech.files import JsonlWriter, held, join_rows, read_jsonl, safe_name, too_long, write_text
from rlspeech.log import several
from rlspeech.stages.jobs import FileJob, summarise
from rlspeech.tasks.owners import check_owners
from rlspeech.types import UserError


class Transcribe(Strict):
    """``rlspeech transcribe``."""

    inputs: list[str] = conf([], "audio files, folders or manifests")
    out: str | None = conf(None, "x.jsonl for one row per file, or a folder for .txt files (default, and -: stdout)")
    model: str = conf("embedded", "Hub id, checkpoint or run folder, or 'embedded'")
    sampling: Sampling = conf(Sampling(), "language, prompt and length; decoding is greedy")
    beams: Count = conf(1, "width of the beam search; 1 is greedy")
    batch: Count = conf(8, "files or pieces in one batch")
    precision: Literal["fp32", "bf16"] = "fp32"
    overwrite: bool = conf(False, "write results that already exist again")
    shard: ShardText | None = conf(None, SHARD)
    seed: Whole = 0
    device: str = "auto"


@dataclass(slots=True)
class _Job(FileJob):
    """One recording, and its result."""

    row: dict[str, Any] = field(default_factory=dict)  # further keys of its row in JSONL
    texts: list[str] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    cut_short: int = 0

    @property
    def key(self) -> str:
        return self.item.key


def run(config: Transcribe, joined: Sequence[Path] = ()) -> dict[str, Any]:
    """Recognise everything that can be recognised.

    Args:
        joined: folders of shards, whose results are taken over; nothing is recognised then.

    Returns:
        counts, seconds, the results, and the reason of each failure.

    Raises:
        UserError: nothing to do, a checkpoint that cannot be used, or not one file could be recognised.
    """
    from rlspeech.tasks import RECOGNITION, get_task

    check_owners(config, get_task(RECOGNITION))
    jobs, began_s, shard = _jobs(config.inputs), time.monotonic(), Shard.of(config.shard)
    jobs = [job for job in jobs if shard.has(job.key)]
    place = None if config.out in (None, "-") else Path(str(config.out))
    folder = place.parent if place is not None and place.suffix == ".jsonl" else place and shard.place(place)
    with held(folder):
        if joined and place and folder != place:
            order = (safe_name(job.key) for job in jobs)
            join_rows(place, (part / place.name for part in joined), "id", order)
        with contextlib.closing(_sink(config, len(jobs))) as sink:
            todo = [job for job in jobs if job.error is None and not sink.has(job)]
            for job in todo if joined else ():
                job.fail()
            if todo and not joined:
                _recognise(config, todo, sink)
    good = [j for j in todo if j.error is None]
    if cut := sum(j.cut_short for j in good):
        log.warn(f"{cut} pieces ran into their limit, texts may end early or loop: --set sampling.tokens_per_s=20")
    hint = "" if shard.own else "rlspeech check on the input"
    summary = summarise("transcribed", "file", jobs, todo, began_s, config.out, hint)
    return summary | {"truncated": cut, "results": [_row(j) for j in good]}


def _jobs(inputs: Sequence[str]) -> list[_Job]:
    """Everything that was named, each under a key of its own; what is not there carries its error."""
    jobs = [_Job(item) for name in inputs for item in expand(Path(name))]
    if not jobs:
        raise UserError("nothing to transcribe", f"looked for {', '.join(sorted(SOUND))}", "rlspeech transcribe --help")
    taken = dict[str, Path]()
    for job in jobs:
        job.row = {k: v for k, v in job.item.columns.items() if v is not None and k != "snr_db"}
        try:
            regular_file(job.source)
        except AudioError as error:
            job.fail(error)
        if job.error is None and job.key in taken:
            job.fail(f"its result would have the name of that of {taken[job.key]}")
        taken.setdefault(job.key, job.source)
    return jobs


def _recognise(config: Transcribe, jobs: Sequence[_Job], sink: _Sink) -> None:
    from rlspeech.engine import Engine, Watchdog
    from rlspeech.rewards.recognisers import Recogniser, join_texts
    from rlspeech.tasks import RECOGNITION, get_task

    engine = Engine(config.device, "fp32", config.seed)
    model, _ = get_task(RECOGNITION).load(config.model, engine.device, dtype=config.precision)
    recogniser = Recogniser(model, sampling=config.sampling, beams=config.beams, batch=config.batch)
    log.say(f"{several(len(jobs), 'file')}, {engine.reason}")
    with log.progress(len(jobs), "transcribe", "files") as bar, Watchdog() as dog:
        waiting: list[tuple[_Job, float, np.ndarray]] = []
        open_jobs: list[_Job] = []

        def flush() -> None:
            for (job, start, wav), decoded in zip(waiting, recogniser.short([w for _, _, w in waiting]), strict=True):
                _note(job, start, len(wav) / recogniser.sample_rate, decoded)
            waiting.clear()
            dog.beat()
            close()

        def close() -> None:  # files that are read to their end and wait for nothing
            for job in open_jobs:
                job.row["text"] = join_texts(job.texts) if job.texts else ""
                if job.error is None:
                    sink.take(job)
                bar.advance()
            open_jobs.clear()

        for job in jobs:
            for start, wav in _pieces(job, recogniser.sample_rate, recogniser.max_s):
                waiting.append((job, start, wav))
                if len(waiting) >= config.batch:
                    flush()
            open_jobs.append(job)
            if not waiting:
                close()
        flush()


def _pieces(job: _Job, sample_rate: int, max_s: float) -> Iterator[tuple[float, np.ndarray]]:
    """The pieces of a recording; an error on the way is noted, and the text before it is not used."""
    from rlspeech.data.long import stream

    try:
        yield from stream(job.source, sample_rate, max_s, job.item.offset_s, job.item.duration_s)
    except (AudioError, MemoryError) as error:
        job.fail(error)


def _note(job: _Job, start_s: float, seconds: float, decoded: Any) -> None:
    if isinstance(decoded, Exception):
        job.fail(decoded)
        return
    job.texts.append(decoded.text)
    job.spans.append({"start": round(start_s, 3), "end": round(start_s + seconds, 3), "text": decoded.text})
    job.seconds, job.cut_short = start_s + seconds, job.cut_short + decoded.truncated


def _row(job: _Job) -> dict[str, Any]:
    """A row of JSONL, with the keys of a manifest; ``pieces`` where there is more than one."""
    row = {"id": safe_name(job.key), "audio_filepath": str(job.source), "duration": round(job.seconds, 3), **job.row}
    if job.item.offset_s:
        row["offset"] = job.item.offset_s
    if len(job.spans) > 1:
        row["pieces"] = job.spans
    return row | ({"truncated": job.cut_short} if job.cut_short else {})


class _Sink:
    """Where texts go: one line each on stdout, ``NAME<tab>text`` where there are several; nothing with ``--json``."""

    def __init__(self, several: bool = False, silent: bool = False) -> None:
        self.several, self.silent = several, silent

    def has(self, job: _Job) -> bool:
        """True where the result exists."""
        return False

    def take(self, job: _Job) -> None:
        """Write a result as soon as it is known."""
        if self.silent:
            return
        line = " ".join(job.row["text"].split())
        name = job.key.replace("\t", "\\t").replace("\n", "\\n")  # a row is a line, and a name its first column
        line = log.printable(f"{name}\t{line}" if self.several else line)
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), flush=True)

    def close(self) -> None:
        """Flush."""


class _Rows(_Sink):
    """JSONL that goes on where it was."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        super().__init__()
        if overwrite:
            path.unlink(missing_ok=True)
        elif any("audio_filepath" not in r or "text" not in r for r in read_jsonl(path)):
            try_this = "--out with another name, or --overwrite"
            raise UserError(f"{path} is not what transcribe writes", "it holds other rows", try_this)
        self.rows = JsonlWriter(path)

    def has(self, job: _Job) -> bool:
        return safe_name(job.key) in self.rows

    def take(self, job: _Job) -> None:
        self.rows.write(_row(job))

    def close(self) -> None:
        self.rows.close()


class _Texts(_Sink):
    """A folder of ``.txt`` files."""

    def __init__(self, folder: Path, overwrite: bool) -> None:
        super().__init__()
        self.folder, self.overwrite = folder, overwrite

    def _path(self, job: _Job) -> Path:
        return self.folder / f"{job.key}.txt"

    def has(self, job: _Job) -> bool:
        return self._path(job).exists() and not self.overwrite

    def take(self, job: _Job) -> None:
        if too_long(self._path(job)):
            job.fail("the name of its result would be too long")
            return
        write_text(self._path(job), job.row["text"].strip().encode("utf-8", "replace").decode() + "\n")


def _sink(config: Transcribe, count: int) -> _Sink:
    if config.out in (None, "-"):
        return _Sink(several=count > 1, silent=log.json_mode)
    path = Path(str(config.out))
    named = {Path(name).resolve() for name in config.inputs}
    if path.resolve() in named and not path.is_dir():
        raise UserError(f"{path} would be overwritten", "it is an input", "--out with another name")
    if path.suffix == ".jsonl":
        return _Rows(path, config.overwrite)
    if path.is_file():
        why = "results of several files need a folder, or a name that ends in .jsonl"
        raise UserError(f"{path} is a file", why, "--out FOLDER")
    return _Texts(path, config.overwrite)
