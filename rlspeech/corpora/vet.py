"""Check every file that candidates name, in several processes and resumably, and sort rows into kept and dropped.

Measurements go to ``checks.jsonl`` in the output folder as they come, keyed by path, size and time of change. A run that was stopped,
or is started again with other limits, reads them there instead of reading the audio.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.corpora.common import Candidate
from rlspeech.data.checks import FileFacts, Limits, Verdict, judge, judge_pair, measure
from rlspeech.data.jsonl import JsonlWriter
from rlspeech.parallel import parallel_map
from rlspeech.types import Utterance

__all__ = ["Vetted", "vet"]

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
