"""``rlspeech prepare join``: several manifests as one; and recordings put end to end, of which long, looped and cut speech is made.

    rlspeech prepare join data/test:condition=clean data/noisy.jsonl:condition=noisy,snr_db=5 data/nonspeech --out data/joined

Paths are written anew, relative to the result. An id that several manifests use gets the name of each one's folder in front (and of its
file, where the folders are the same), for all of them: scores under the bare id then belong to no row.
"""

from __future__ import annotations

import os
import random
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.base import Sets, Source, shown
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.manifest import FIELDS, PATH_KEYS, TEXT_KEYS, find_manifest, usable_rows
from rlspeech.files import parse_json, safe_name
from rlspeech.types import UserError, Utterance

FIXED = {"id", "duration", "offset", "sample_rate", *PATH_KEYS}  # facts of the recording


class Join(Source):
    """``rlspeech prepare join``."""

    name = "join"
    needed = ("manifests",)
    manifests: list[str] = conf([], "manifests or folders that hold one; MANIFEST:condition=noisy sets a column in it")
    sample: int | None = conf(None, "keep only this many rows, drawn at random, in their order; none: all", ge=1)
    seed: int = conf(0, "of the sample", ge=0)

    def make(self, out: Path) -> Sets:
        """Return the rows of all manifests in one set."""
        given = [_understood(text) for text in self.manifests]
        paths = [find_manifest(path, recipe=False) for path, _ in given]
        target = out / "manifest.jsonl"
        if any(os.path.realpath(p) == os.path.realpath(target) for p in paths):
            raise UserError(f"{target} would be overwritten", "it is one of the manifests", "--out with another folder")
        parts = [_Part(*part) for part in zip(paths, _tags(paths), (columns for _, columns in given), strict=True)]
        rows = Joined(parts)
        if self.sample is not None and self.sample < (count := len(rows)):
            rows.kept = bytearray(count)
            for n in random.Random(self.seed).sample(range(count), self.sample):
                rows.kept[n] = 1
        elif self.sample is not None:
            log.warn(f"there are {len(rows)} rows, all of them are taken (--sample {self.sample})")
        joined, table = [], []
        for part, span in zip(parts, rows.spans, strict=True):
            kept, set_to = rows.kept[span], ", ".join(f"{k}={v}" for k, v in part.columns.items())
            hours = round(sum(compress(rows.durations[span], kept)) / 3600, 6)
            joined.append({"path": str(part.path), "rows": sum(kept), "hours": hours, "columns": part.columns})
            table.append([str(part.path), sum(kept), round(hours, 3), set_to])
        facts: dict[str, Any] = {"joined": joined, "renamed": rows.renamed}
        spoken = all(compress(rows.spoken, rows.kept))
        command = f"eval --task asr --data {shown(out)}/manifest.jsonl" if spoken else f"check {shown(out)}"
        manifest: Any = rows  # no list, but with a length, and to be gone through
        sets = Sets({"manifest": manifest}, facts=facts, meta=facts, following=f"rlspeech {command}")
        sets.table = (["manifest", "rows", "hours", "set"], table)
        note = "rows of several manifests had the same id; the name of their manifest is now in front of it"
        sets.notes = [f"{rows.renamed} {note}"] if rows.renamed else []
        return sets


class _Part(NamedTuple):
    """A manifest: where it lies, what it is called in ids, the columns that are set."""

    path: Path
    tag: str
    columns: dict[str, Any]

    def rows(self) -> Iterator[Utterance]:
        """Read the rows. Raises ``UserError``, see ``read_manifest``."""
        for _, utt in usable_rows(self.path):
            for name, value in self.columns.items():
                if name in FIELDS:
                    setattr(utt, name, value)
                else:
                    utt.extra[name] = value
            yield utt


class Joined:
    """The rows of several manifests, read anew whenever they are gone through: in memory there are some bytes of each.

    Those of an id that several manifests use get one each (``renamed``); those whose byte in ``kept`` is 0 are left out.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts, ends = parts, [0]
        self._ids, self.durations, self.spoken = array("q"), array("d"), bytearray()  # ids by their hashes
        for part in parts:
            for utt in part.rows():
                self._ids.append(hash(utt.id))
                self.durations.append(utt.duration)
                self.spoken.append(utt.text is not None and not utt.target_filepath)
            ends.append(len(self._ids))
        self.kept, self.spans = bytearray(b"\1" * len(self._ids)), [slice(*pair) for pair in pairwise(ends)]
        ids, counts = np.unique(np.array(self._ids), return_counts=True)
        self._shared, self.renamed = set(ids[counts > 1].tolist()), int(counts[counts > 1].sum())

    def __len__(self) -> int:
        return sum(self.kept)

    def __iter__(self) -> Iterator[Utterance]:
        return compress(self._renamed(), self.kept)

    def _renamed(self) -> Iterator[Utterance]:
        taken = set(self._ids if self._shared else ())
        for part in self._parts:
            for utt in part.rows():
                if hash(utt.id) in self._shared:
                    name, number = safe_name(f"{part.tag}_{utt.id}"), 1
                    while hash(name) in taken:
                        number += 1
                        name = safe_name(f"{part.tag}_{utt.id}_{number}")
                    utt.id = name
                    taken.add(hash(name))
                yield utt


def _understood(text: str) -> tuple[str, dict[str, Any]]:
    """Path and columns of ``PATH:COLUMN=VALUE,COLUMN=VALUE``; a path that is there is nothing else."""
    match = re.fullmatch(r"(.+?):(\w+=.*)", text, re.DOTALL)
    if match is None or os.path.exists(text):
        return text, {}
    columns: dict[str, Any] = {}
    for pair in re.split(r",(?=\w+=)", match[2]):
        name, _, value = pair.partition("=")
        if name in FIXED:
            why = f"it is a fact of each recording ({text})"
            raise UserError(f"the column {name} cannot be set", why, "another column, e.g. condition")
        columns[name] = value if name in TEXT_KEYS else _value(value)
        if name == "snr_db" and not isinstance(columns[name], float | int):
            raise UserError(f"the column {name} is a number", f"not {value!r} ({text})", f"{match[1]}:{name}=5")
    return match[1], columns


def _value(text: str) -> Any:
    """A number where it is one, else text."""
    try:
        value = parse_json(text.encode())
    except ValueError:
        return text
    # 1e999 is infinity, which a manifest cannot hold; 007 is no JSON and stays text
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else text


def _tags(paths: list[Path]) -> list[str]:
    """Names of the manifests: their folders; with the file where two folders have one name; numbered where even that is the same."""
    folders = [Path(os.path.abspath(p)).parent.name or "root" for p in paths]
    longer = [tag if folders.count(tag) == 1 else f"{tag}_{p.stem}" for tag, p in zip(folders, paths, strict=True)]
    return [tag if longer.count(tag) == 1 else f"{tag}_{1 + longer[:n].count(tag)}" for n, tag in enumerate(longer)]


# ------------------------------------------------------------------------------------------------ recordings end to end
#
# Where two recordings meet there is no digital silence, which a recogniser would learn to hear, but noise at the level of the
# recordings' own quietest tenth. Where nothing is said is found by level alone, and the bar is set so that quiet ends of words are
# on the safe side: a stretch counts only where it stays 35 dB under the loud frames, and loses a margin at both ends.

FRAME_S = 0.01
QUIET_DB = 35.0  # this far under the loud frames nothing is said
MARGIN_S, QUIET_S = 0.08, 0.3
FADE_S = 0.005
FLOOR_DB = -96.0  # one step of 16 bits
Range = tuple[float, float]  # lowest and highest


def read(utt: Utterance, sample_rate: int) -> np.ndarray:
    """The row's stretch of its file, (T,). Raises ``AudioError``."""
    return load_audio(utt.audio_filepath, sample_rate, utt.offset, utt.duration)


def levels_db(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """RMS of (T,) in frames of 10 ms, each about its mean, dB relative to full scale, at least ``FLOOR_DB``."""
    size = max(1, round(FRAME_S * sample_rate))
    usable = len(wav) // size * size
    parts = wav[:usable].reshape(-1, size) if usable else np.zeros((1, size), np.float32)
    power = np.var(parts, axis=1, dtype=np.float64)
    return np.asarray(10 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10))))


def quiet_stretches(wav: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
    """Stretches (start, end) in samples of (T,) speech in which nothing is said, margins taken off; longest first."""
    level = levels_db(wav, sample_rate)
    quiet = np.concatenate([[False], level < np.percentile(level, 95) - QUIET_DB, [False]]).astype(np.int8)
    starts, ends = np.flatnonzero(np.diff(quiet) == 1), np.flatnonzero(np.diff(quiet) == -1)
    size, margin = max(1, round(FRAME_S * sample_rate)), round(MARGIN_S * sample_rate)
    long = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if (b - a) * FRAME_S >= QUIET_S]
    found = [(a * size + margin, b * size - margin) for a, b in long]
    return sorted(found, key=lambda s: s[0] - s[1])


def onset(wav: np.ndarray, sample_rate: int) -> int:
    """The sample at which speech begins in (T,): the first of three frames in a row within 25 dB of the loud ones."""
    level = levels_db(wav, sample_rate)
    loud = level > np.percentile(level, 95) - 25.0
    run = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])
    return int(run[0]) * max(1, round(FRAME_S * sample_rate)) if len(run) else 0


def room_tone(wav: np.ndarray, length: int, sample_rate: int, rng: Generator) -> np.ndarray:
    """White noise (length,) at the level of the quietest tenth of (T,)."""
    level = max(FLOOR_DB, float(np.percentile(levels_db(wav, sample_rate), 10)))
    return (rng.standard_normal(length) * 10.0 ** (level / 20)).astype(np.float32)


def join(wavs: Sequence[np.ndarray], gap_s: Range, sample_rate: int, rng: Generator) -> np.ndarray:
    """Recordings (T,) one after the other with gaps of room tone of a drawn length between them; ends are faded in and out."""
    parts: list[np.ndarray] = []
    for number, wav in enumerate(wavs):
        if number:
            parts.append(room_tone(wav, round(rng.uniform(*gap_s) * sample_rate), sample_rate, rng))
        parts.append(faded(wav, sample_rate))
    return np.concatenate(parts).astype(np.float32)


def faded(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """(T,) with 5 ms ramps at both ends: a splice must not click."""
    n = min(len(wav) // 2, round(FADE_S * sample_rate))
    if not n:
        return wav
    ramp = np.linspace(0, 1, n + 2, dtype=np.float32)[1:-1]
    return np.concatenate([wav[:n] * ramp, wav[n:-n], wav[-n:] * ramp[::-1]])


def write_joined(
    utts: Sequence[Utterance], path: Path, *, gap_s: Range, sample_rate: int, rng: Generator, extra: dict[str, Any]
) -> Utterance:
    """Write rows one after the other as one file; the text is theirs in order, the id is the file's stem.

    Raises:
        AudioError: one of them cannot be read, or has no known text.
    """
    if any(utt.text is None for utt in utts):
        raise AudioError("no transcript")
    wavs = {utt.id: read(utt, sample_rate) for utt in utts}  # a repeated row is read once
    wav = join([wavs[utt.id] for utt in utts], gap_s, sample_rate, rng)
    save_audio(path, wav, sample_rate)
    speakers, text = {utt.speaker_id for utt in utts}, " ".join(utt.text or "" for utt in utts).strip()
    made = Utterance(path.stem, str(path), len(wav) / sample_rate, sample_rate, text=text, language=utts[0].language)
    made.speaker_id = utts[0].speaker_id if len(speakers) == 1 else None
    made.extra = {"clean_id": " ".join(dict.fromkeys(utt.id for utt in utts))} | extra
    return made
