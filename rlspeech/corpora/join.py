"""``rlspeech prepare join``: several manifests as one; and recordings put end to end, of which long, looped and cut speech is made.

    rlspeech prepare join data/test:condition=clean data/noisy.jsonl:condition=noisy,snr_db=5 data/nonspeech --out data/joined

Paths are written anew, relative to the result. An id that several manifests use gets the name of each one's folder in front (and of its
file, where the folders are the same), for all of them: scores under the bare id then belong to no row.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.base import Sets, Source, shown
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.manifest import PATH_KEYS, TEXT_KEYS, find_manifest, read_manifest
from rlspeech.files import parse_json, safe_name
from rlspeech.types import UserError, Utterance

FIXED = {"id", "duration", "offset", "sample_rate", *PATH_KEYS}  # facts of the recording


class Join(Source):
    """``rlspeech prepare join``."""

    name = "join"
    needed = ("manifests",)
    manifests: list[str] = conf(
        [], "manifests or folders that hold one; MANIFEST:condition=noisy sets a column of its rows"
    )
    sample: int | None = conf(None, "keep only this many rows, drawn at random, in their order; none: all", ge=1)
    seed: int = conf(0, "of the sample", ge=0)

    def make(self, out: Path) -> Sets:
        """Return the rows of all manifests in one set."""
        given = [_understood(text) for text in self.manifests]
        paths = [find_manifest(path, recipe=False) for path, _ in given]
        target = out / "manifest.jsonl"
        if any(os.path.realpath(p) == os.path.realpath(target) for p in paths):
            raise UserError(f"{target} would be overwritten", "it is one of the manifests", "--out with another folder")
        columns = (columns for _, columns in given)
        parts = [_Part(*part, read_manifest(part[0])) for part in zip(paths, _tags(paths), columns, strict=True)]
        for part in parts:
            for utt in part.rows:
                _set(utt, part.columns)
        renamed = _tell_apart(parts)
        rows = [(n, utt) for n, part in enumerate(parts) for utt in part.rows]
        if self.sample is not None and self.sample < len(rows):
            rows = [rows[i] for i in sorted(random.Random(self.seed).sample(range(len(rows)), self.sample))]
        elif self.sample is not None:
            log.warn(f"there are {len(rows)} rows, all of them are taken (--sample {self.sample})")
        utts = [utt for _, utt in rows]
        joined = [_facts(p, [utt for m, utt in rows if m == n]) for n, p in enumerate(parts)]
        facts: dict[str, Any] = {"joined": joined, "renamed": renamed}
        sets = Sets({"manifest": utts}, facts=facts, meta=facts, following=_following(out, utts))
        set_to = [", ".join(f"{k}={v}" for k, v in part.columns.items()) for part in parts]
        table = [[j["path"], j["rows"], round(j["hours"], 3), to] for j, to in zip(joined, set_to, strict=True)]
        sets.table = (["manifest", "rows", "hours", "set"], table)
        note = f"{renamed} rows of several manifests had the same id; the name of their manifest is now in front of it"
        sets.notes = [note] if renamed else []
        return sets


class _Part(NamedTuple):
    """A manifest: where it lies, what it is called in ids, the columns that are set, its rows."""

    path: Path
    tag: str
    columns: dict[str, Any]
    rows: list[Utterance]


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


def _set(utt: Utterance, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        if name in Utterance.field_names():
            setattr(utt, name, value)
        else:
            utt.extra[name] = value


def _tags(paths: list[Path]) -> list[str]:
    """Names of the manifests: their folders; with the file where two folders have one name; numbered where even that is the same."""
    folders = [Path(os.path.abspath(p)).parent.name or "root" for p in paths]
    longer = [tag if folders.count(tag) == 1 else f"{tag}_{p.stem}" for tag, p in zip(folders, paths, strict=True)]
    return [tag if longer.count(tag) == 1 else f"{tag}_{1 + longer[:n].count(tag)}" for n, tag in enumerate(longer)]


def _tell_apart(parts: list[_Part]) -> int:
    """Give rows of several manifests that share an id one each; the number of rows that have another id now."""
    uses = Counter(utt.id for part in parts for utt in part.rows)
    taken, renamed = set(uses), 0
    for part in parts:
        for utt in part.rows:
            if uses[utt.id] == 1:
                continue
            name, number = safe_name(f"{part.tag}_{utt.id}"), 1
            while name in taken:
                number += 1
                name = safe_name(f"{part.tag}_{utt.id}_{number}")
            utt.id, renamed = name, renamed + 1
            taken.add(name)
    return renamed


def _facts(part: _Part, rows: list[Utterance]) -> dict[str, Any]:
    hours = round(sum(u.duration for u in rows) / 3600, 6)
    return {"path": str(part.path), "rows": len(rows), "hours": hours, "columns": part.columns}


def _following(out: Path, rows: list[Utterance]) -> str:
    """The command that goes on from here."""
    if any(u.text is None or u.target_filepath for u in rows):
        return f"rlspeech check {shown(out)}"
    return f"rlspeech eval --task asr --data {shown(out)}/manifest.jsonl"


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
