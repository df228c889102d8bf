"""Recordings put end to end, and where in a recording nothing is said: what sets of long, looped and cut speech are made of.

Where two recordings meet there is no digital silence, which a recogniser would learn to hear, but noise at the level of the
recordings' own quietest tenth. Where nothing is said is found by level alone, and the bar is set so that quiet ends of words are
on the safe side: a stretch counts only where it stays 35 dB under the loud frames, and loses a margin at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.types import Utterance

__all__ = ["join", "levels_db", "onset", "quiet_stretches", "read", "room_tone", "write_joined"]

FRAME_S = 0.01
QUIET_DB = 35.0  # this far under the loud frames nothing is said
MARGIN_S, QUIET_S = 0.08, 0.3
FADE_S = 0.005
FLOOR_DB = -96.0  # one step of 16 bits


def read(utt: Utterance, sample_rate: int) -> np.ndarray:
    """The row's stretch of its file, (T,). Raises ``AudioError``."""
    return load_audio(utt.audio_filepath, sample_rate, utt.offset, utt.duration or None)


def levels_db(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """RMS of (T,) in frames of 10 ms, dB relative to full scale, at least ``FLOOR_DB``."""
    size = max(1, round(FRAME_S * sample_rate))
    usable = len(wav) // size * size
    parts = wav[:usable].reshape(-1, size) if usable else np.zeros((1, size), np.float32)
    power = np.mean(np.square(parts, dtype=np.float64), axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10))))


def quiet_stretches(wav: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
    """Stretches (start, end) in samples of (T,) speech in which nothing is said, margins taken off; longest first."""
    level = levels_db(wav, sample_rate)
    quiet = np.concatenate([[False], level < np.percentile(level, 95) - QUIET_DB, [False]]).astype(np.int8)
    starts, ends = np.flatnonzero(np.diff(quiet) == 1), np.flatnonzero(np.diff(quiet) == -1)
    size, margin = max(1, round(FRAME_S * sample_rate)), round(MARGIN_S * sample_rate)
    found = [
        (int(a) * size + margin, int(b) * size - margin)
        for a, b in zip(starts, ends, strict=True)
        if (b - a) * FRAME_S >= QUIET_S
    ]
    return sorted(found, key=lambda s: s[0] - s[1])


def onset(wav: np.ndarray, sample_rate: int) -> int:
    """The sample at which speech begins in (T,): the first of three frames in a row within 25 dB of the loud ones."""
    level = levels_db(wav, sample_rate)
    loud = level > np.percentile(level, 95) - 25.0
    run = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])
    return int(run[0]) * max(1, round(FRAME_S * sample_rate)) if len(run) else 0


def room_tone(wav: np.ndarray, length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """White noise (length,) at the level of the quietest tenth of (T,)."""
    level = max(FLOOR_DB, float(np.percentile(levels_db(wav, sample_rate), 10)))
    return (rng.standard_normal(length) * 10.0 ** (level / 20)).astype(np.float32)


def join(
    wavs: Sequence[np.ndarray], gap_s: tuple[float, float], sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
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
    utts: Sequence[Utterance],
    path: Path,
    *,
    gap_s: tuple[float, float],
    sample_rate: int,
    rng: np.random.Generator,
    extra: dict[str, Any],
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
    first, speakers = utts[0], {utt.speaker_id for utt in utts}
    return Utterance(
        path.stem,
        str(path),
        len(wav) / sample_rate,
        sample_rate,
        text=" ".join(utt.text or "" for utt in utts).strip(),
        speaker_id=first.speaker_id if len(speakers) == 1 else None,
        language=first.language,
        extra={"clean_id": " ".join(dict.fromkeys(utt.id for utt in utts))} | extra,
    )
