"""What every layout shares: candidates, finding audio files, ids and pairing."""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rlspeech import log
from rlspeech.data.checks import FileFacts, Limits, Verdict, judge, judge_pair, measure
from rlspeech.data.inputs import audio_files
from rlspeech.data.manifest import write_manifest
from rlspeech.files import JsonlWriter, dumps, safe_name, write_text
from rlspeech.parallel import parallel_map
from rlspeech.types import UserError, Utterance

__all__ = [
    "Candidate",
    "Vetted",
    "candidate",
    "check_folder",
    "file_id",
    "make_folder",
    "notes_of",
    "pair",
    "pair_by",
    "shown",
    "summary_of",
    "vet",
    "write_set",
]


# the last four cannot be read; they are found so that they are counted
FILE_ID = re.compile(r"fileid_(\d+)")


class Candidate(NamedTuple):
    """A row that may enter a manifest.

    Args:
        split: name of the manifest it belongs to (``clean``, ``noise``, ``test`` ...).
        utt: the row; ``duration`` and ``sample_rate`` are 0 where only the file knows them.
        problem: why it cannot be used, where that is known without opening it.
    """

    split: str
    utt: Utterance
    problem: str | None = None


def check_folder(path: str | Path, what: str) -> Path:
    """The folder as an absolute path. Raises ``UserError`` where it is none."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "it does not exist"
        raise UserError(f"{what} {path} is not a folder", why, "check the path")
    return folder


def file_id(path: Path, root: Path) -> str:
    """An id from a file's place below ``root``: folders and stem joined by underscores."""
    return safe_name("_".join(path.relative_to(root).with_suffix("").parts))


def candidate(
    split: str,
    path: Path,
    name: str,
    problem: str | None = None,
    *,
    target: Path | None = None,
    snr_db: float | None = None,
    text: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
    **extra: Any,
) -> Candidate:
    """A candidate whose duration and rate are still to be measured; ``extra`` columns that are None are left out."""
    utt = Utterance(
        name,
        str(path),
        0.0,
        0,
        text=text,
        target_filepath=str(target) if target else None,
        speaker_id=speaker,
        language=language,
        snr_db=snr_db,
        extra={k: v for k, v in extra.items() if v is not None},
    )
    return Candidate(split, utt, problem)


def numbered(path: Path) -> str | None:
    """The integer behind ``fileid_`` in a name, without leading zeros; None where there is none."""
    found = FILE_ID.findall(path.stem)
    return str(int(found[-1])) if found else None


def pair_by(
    noisy: Iterable[Path], clean: Iterable[Path], key: Callable[[Path], str | None]
) -> Iterator[tuple[Path | None, Path | None, str | None]]:
    """Match two lists of files by a key.

    Returns:
        (noisy, clean, problem) for every noisy file, then for every clean file that no noisy file asked for; ``problem`` is None
        where the match is unique.
    """
    targets: dict[str, list[Path]] = {}
    for path in clean:
        targets.setdefault(key(path) or f"?{path}", []).append(path)
    used: set[str] = set()
    for path in noisy:
        name = key(path)
        if name is None:
            yield path, None, "no number after fileid_ in the name"
        elif name not in targets:
            yield path, None, "no clean partner"
        elif len(targets[name]) > 1:
            yield path, None, f"{len(targets[name])} clean partners"
            used.add(name)
        else:
            yield path, targets[name][0], None
            used.add(name)
    for name, paths in targets.items():
        if name not in used:
            for path in paths:
                yield None, path, "no noisy partner"


def pair(
    split: str, noisy: Path, clean: Path, key: Callable[[Path], str | None], **columns: Callable[[Path], Any]
) -> Iterator[Candidate]:
    """Candidates of two folders; ``columns`` are functions of the noisy file's path (``snr_db``, ``text``, ``speaker`` or any other)."""
    nested = [
        inner for inner, outer in ((clean, noisy), (noisy, clean)) if outer in inner.parents
    ]  # noisy/clean inside noisy/
    skip = nested[0] if nested else None
    left = audio_files(noisy, skip if skip != noisy else None)
    right = audio_files(clean, skip if skip != clean else None)
    for source, target, problem in pair_by(left, right, key):
        path = source or target
        assert path is not None
        name = file_id(path, noisy if source else clean)
        values = {k: f(path) for k, f in columns.items()} if source and target else {}
        yield candidate(split, path, name, problem, target=target if source else None, **values)


# Check every file that candidates name, in several processes and resumably, and sort rows into kept and dropped.
#
# Measurements go to ``checks.jsonl`` in the output folder as they come, keyed by path, size and time of change. A run that was stopped,
# or is started again with other limits, reads them there instead of reading the audio.


FILE_TIMEOUT_S = 900.0
KINDS = {"clean": "speech", "noise": "noise", "rir": "rir", "real": "noisy"}
HELD_OUT = (
    "test",
    "valid",
    "dev",
    "blind",
    "real",
    "v5_dev",
)  # of two equal recordings the one here stays: training must not see it


@dataclass
class Vetted:
    """What came out: rows by split in the candidates' order, dropped rows with reasons, and how many files were read or known."""

    kept: dict[str, list[Utterance]] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    known: int = 0
    multichannel: int = 0

    def drop(self, row: Candidate, verdict: Verdict) -> None:
        """Put a row aside."""
        self.dropped.append(
            {
                "split": row.split,
                "id": row.utt.id,
                "path": row.utt.audio_filepath,
                "reason": verdict.reason,
                "detail": verdict.detail,
            }
        )

    def reasons(self, split: str | None = None) -> dict[str, int]:
        """How many rows were dropped for what, most frequent first."""
        counts: dict[str, int] = {}
        for row in self.dropped:
            if split in (None, row["split"]):
                counts[row["reason"]] = counts.get(row["reason"], 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def vet(
    candidates: Sequence[Candidate], journal: Path, limits: Limits, workers: int, kind: str | None = None
) -> Vetted:
    """Check candidates.

    Args:
        candidates: rows in the order in which they shall be written.
        journal: file for measurements, continued where it is there.
        limits: what is dropped.
        workers: processes; 0 checks in this one.
        kind: what rows without a target are held to (``speech``, ``noisy``, ``noise``, ``rir``); by default their split decides.

    Raises:
        UserError: the journal cannot be written.
    """
    done = Vetted()
    facts = _measure_all(candidates, journal, limits, workers, done)
    passed: list[Candidate] = []
    for row in candidates:
        verdict = Verdict(row.problem, row.problem) if row.problem else _judge_row(row, facts, limits, kind)
        if verdict:
            done.drop(row, verdict)
        else:
            passed.append(_filled(row, facts[row.utt.audio_filepath]))
    copies = _duplicates(passed, facts)
    taken: dict[str, set[str]] = {}
    for index, row in enumerate(passed):
        if index in copies:
            done.drop(row, Verdict("duplicate", f"same samples as {copies[index]}"))
            continue
        ids = taken.setdefault(row.split, set())
        if row.utt.id in ids:  # x.wav and x.flac, a/b and a_b
            row = row._replace(
                utt=replace(row.utt, id=f"{row.utt.id}-{zlib.crc32(os.fsencode(row.utt.audio_filepath)):08x}")
            )
        ids.add(row.utt.id)
        done.kept.setdefault(row.split, []).append(row.utt)
        done.multichannel += facts[row.utt.audio_filepath].channels > 1
    return done


def _measure_all(
    candidates: Sequence[Candidate], journal: Path, limits: Limits, workers: int, done: Vetted
) -> dict[str, FileFacts]:
    paths = dict.fromkeys(
        p for row in candidates if not row.problem for p in (row.utt.audio_filepath, row.utt.target_filepath) if p
    )
    keys = {path: _key(path, limits) for path in paths}
    facts: dict[str, FileFacts] = {}
    with JsonlWriter(journal, "key") as writer:
        for path, key in keys.items():
            if key and key in writer:
                facts[path] = FileFacts(**{k: v for k, v in writer.rows[key].items() if k != "key"})
        todo = [path for path in paths if path not in facts]
        done.known, done.read = len(facts), len(todo)
        if facts:
            log.say(f"{len(facts)} of {len(paths)} files were checked before")
        try:
            work = partial(measure, floor_db=limits.bandwidth_floor_db)
            for path, result in parallel_map(
                work, todo, workers, FILE_TIMEOUT_S, "checking" if todo else None, "files"
            ):
                if isinstance(result, Exception):  # its process crashed or hung: this file only, and not remembered
                    facts[path] = FileFacts(error=f"unreadable: {result}")
                    continue
                facts[path] = result
                if key := keys[path]:
                    writer.write({"key": key} | result.as_row())
        except KeyboardInterrupt:
            log.say(f"stopped: {len(facts)} of {len(paths)} files are checked; the same command goes on from there")
            raise
    return facts


def _key(path: str, limits: Limits) -> str | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{limits.bandwidth_floor_db:g}"


def _judge_row(row: Candidate, facts: dict[str, FileFacts], limits: Limits, kind: str | None) -> Verdict | None:
    utt = row.utt
    audio = facts[utt.audio_filepath]
    if utt.target_filepath is None:
        return judge(audio, limits, kind=kind or KINDS.get(row.split, "speech"), utt=utt)
    verdict = judge(audio, limits, kind="noisy", utt=utt)
    if verdict:
        return verdict
    target = facts[utt.target_filepath]
    if verdict := judge(target, limits, kind="speech"):
        return Verdict(f"target: {verdict.reason}", verdict.detail)
    return judge_pair(audio, target, limits)


def _filled(row: Candidate, facts: FileFacts) -> Candidate:
    utt = row.utt
    duration = utt.duration or round(facts.duration - utt.offset, 6)
    extra = utt.extra | ({"channels": facts.channels} if facts.channels > 1 else {})
    return row._replace(utt=replace(utt, duration=duration, sample_rate=facts.sample_rate, extra=extra))


def _duplicates(rows: Sequence[Candidate], facts: dict[str, FileFacts]) -> dict[int, str]:
    """Index of every later copy -> path of the one that stays."""

    def held_out(index: int) -> bool:
        return rows[index].split.lower().startswith(HELD_OUT)

    first: dict[tuple[str, float, float], str] = {}
    copies: dict[int, str] = {}
    for index in sorted(range(len(rows)), key=lambda i: (not held_out(i), i)):
        utt = rows[index].utt
        identity = (facts[utt.audio_filepath].digest, utt.offset, utt.duration)
        if identity in first:
            copies[index] = first[identity]
        else:
            first[identity] = utt.audio_filepath
    return copies


# What the stages that make sets share: their folder, their manifests, their summary.


def make_folder(out: str | None, name: str) -> Path:
    """The output folder as an absolute path, ``data/NAME`` by default. Raises ``UserError`` where it cannot be made."""
    path = Path(os.path.abspath(out or os.path.join("data", name)))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path}", error.strerror or str(error), "name another folder with --out"
        ) from error
    return path


def shown(out: Path) -> str:
    """A folder as a person would type it."""
    return os.path.relpath(out) if out.is_relative_to(Path.cwd()) else str(out)


def write_set(path: Path, rows: list[Utterance], meta: dict[str, Any], dropped: int = 0) -> dict[str, Any]:
    """Write a manifest; its entry in the summary."""
    counts = {"rows": len(rows), "hours": round(sum(u.duration for u in rows) / 3600, 6), "dropped": dropped}
    write_manifest(path, rows, meta | counts)
    return {"path": str(path)} | counts


def summary_of(
    source: str, out: Path, manifests: dict[str, Any], failed: list[dict[str, Any]], following: str, start_s: float
) -> dict[str, Any]:
    """The summary with the keys of ``prepare.run``; rows that failed go to ``OUT/dropped.jsonl``."""
    write_text(out / "dropped.jsonl", "".join(dumps(row) + "\n" for row in failed))
    reasons: dict[str, int] = {}
    for row in failed:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return {
        "source": source,
        "out": str(out),
        "manifests": manifests,
        "recipe": None,
        "dropped": reasons,
        "next": following,
        "seconds": round(time.monotonic() - start_s, 1),
    }


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What was dropped, for the table."""
    return [
        f"dropped: {n} {reason}; see {os.path.join(summary['out'], 'dropped.jsonl')}"
        for reason, n in summary["dropped"].items()
    ]
