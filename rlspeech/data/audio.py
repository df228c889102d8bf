"""Reading, writing and levelling waveforms: float32 in [-1, 1], mono or two ears, soundfile for files, soxr for rates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SILENT_DBFS, MAX_GAIN_DB = -60.0, 60.0  # of a recording that is brought to a level

# a header beyond these is damaged, and would ask for absurd memory
MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 1000, 768_000, 64


class AudioError(Exception):
    """A file or waveform that cannot be used; ``reason`` is short enough for a table."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def open_audio(path: str | Path) -> Iterator[Any]:
    """Open a ``soundfile.SoundFile`` to read. Raises ``AudioError``: missing, empty, or unreadable, then or while it is read."""
    import soundfile as sf

    path = Path(path)
    if not path.is_file():
        raise AudioError("missing file")
    if path.stat().st_size == 0:
        raise AudioError("empty file (0 bytes)")
    try:
        with sf.SoundFile(path) as file:
            if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ or file.channels > MAX_CHANNELS:
                raise AudioError(f"absurd header: {file.samplerate} Hz, {file.channels} channels")
            yield file
    except (sf.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"unreadable: {str(error).splitlines()[0][:120]}") from error


def load_audio(
    path: str | Path, sample_rate: int = 16000, offset_s: float = 0, duration_s: float | None = None, channels: int = 1
) -> np.ndarray:
    """Read a file at ``sample_rate``, as mono or binaural.

    Args:
        path: any format libsndfile reads (wav, flac, ogg, mp3).
        sample_rate: of the result, in Hz.
        offset_s: where to start, in seconds of the file.
        duration_s: how much to read at most; None reads to the end.
        channels: 1 averages what there is; 2 keeps both ears, and gives both a mono file.

    Returns:
        (T,) float32, or (2, T) where ``channels`` is 2.

    Raises:
        AudioError: missing, empty, unreadable, non-finite, or of three channels and more where two are asked for.
    """
    with open_audio(path) as file:
        native = file.samplerate
        if offset_s > 0:
            file.seek(min(int(offset_s * native), file.frames))
        frames = -1 if duration_s is None else int(duration_s * native)
        wav = file.read(frames, dtype="float32", always_2d=True)
    if len(wav) == 0:
        raise AudioError("no samples")
    if channels == 2 and wav.shape[1] > 2:
        raise AudioError(f"{wav.shape[1]} channels instead of 2")
    wav = wav.mean(axis=1) if channels == 1 else np.repeat(wav.T, 2 // wav.shape[1], axis=0)
    if not np.isfinite(wav).all():
        raise AudioError("NaN or infinite samples")
    return resample(wav, native, sample_rate)


def resample(wav: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """Change the rate of (T,) or (C, T) float32 with soxr's high-quality setting; the same rate returns the input."""
    if source_hz == target_hz:
        return np.ascontiguousarray(wav, dtype=np.float32)
    import soxr

    made = soxr.resample(wav.T, source_hz, target_hz, quality="HQ").T  # soxr wants channels last
    return np.ascontiguousarray(made, dtype=np.float32)


def save_audio(path: str | Path, wav: np.ndarray, sample_rate: int) -> None:
    """Write (T,) or (C, T) float32 as 16-bit audio, format by suffix; complete or not at all.

    A peak above full scale is scaled down to 0.99 rather than clipped.

    Raises:
        AudioError: non-finite samples.
    """
    import soundfile as sf

    path = Path(path)
    wav = np.asarray(wav, dtype=np.float32)
    if not np.isfinite(wav).all():
        raise AudioError("NaN or infinite samples")
    peak = float(np.abs(wav).max(initial=0.0))
    if peak > 0.999:
        wav = wav * (0.99 / peak)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part{os.getpid()}{path.suffix}")
    try:
        sf.write(part, wav.T, sample_rate, subtype="PCM_16" if path.suffix.lower() in {".wav", ".flac"} else None)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def rms_dbfs(wav: np.ndarray) -> float:
    """RMS level of (T,), or of all channels of (C, T), in dB relative to full scale; digital silence is -inf."""
    power = float(np.mean(np.square(wav, dtype=np.float64))) if wav.size else 0.0
    return 10.0 * np.log10(power) if power > 0 else float("-inf")


def to_level(wav: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale (T,) to an RMS level; silence stays silence."""
    level = rms_dbfs(wav)
    if not np.isfinite(level):
        return wav
    return np.asarray(wav * 10.0 ** ((dbfs - level) / 20.0), dtype=np.float32)


def level_gain(wav: np.ndarray, level_dbfs: float | None) -> float:
    """Factor that brings a recording to a level, at most ``MAX_GAIN_DB``; silence keeps its own: no gain makes speech of it."""
    if level_dbfs is None:
        return 1.0
    level = rms_dbfs(wav.reshape(-1))
    return 10.0 ** (min(level_dbfs - level, MAX_GAIN_DB) / 20.0) if level > SILENT_DBFS - MAX_GAIN_DB else 1.0


def mono(wav: np.ndarray) -> np.ndarray:
    """(T,) of (T,) or (C, T): metrics take the mean of the channels."""
    return wav if wav.ndim == 1 else np.ascontiguousarray(wav.mean(0))
