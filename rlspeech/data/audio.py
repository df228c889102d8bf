"""Reading, writing and levelling waveforms: float32 in [-1, 1], mono or two ears, soundfile for files, soxr for rates."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from rlspeech.data.decode import AudioError as AudioError
from rlspeech.data.decode import read_audio
from rlspeech.files import replacing

SILENT_DBFS, MAX_GAIN_DB = -60.0, 60.0  # of a recording that is brought to a level
NOTHING_DBFS, ACTIVE_S = -70.0, 0.1  # the one rule of silence: its loudest stretch of this length lies below this
FULL = 0.999  # the largest peak of 16-bit audio
PADDING = 4096  # samples that a lossy format may add


def load_audio(
    path: str | Path, sample_rate: int = 16000, offset_s: float = 0, duration_s: float | None = None, channels: int = 1
) -> np.ndarray:
    """Read a file or a stretch of it at ``sample_rate``: (T,) float32, or (2, T) where ``channels`` is 2; see ``decode.read_audio``."""
    return resample(*read_audio(path, offset_s, duration_s, channels), sample_rate)


def resample(wav: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """Change the rate of (T,) or (C, T) float32 with soxr's high-quality setting; the same rate returns the input."""
    if source_hz == target_hz:
        return np.ascontiguousarray(wav, dtype=np.float32)
    import soxr

    made = soxr.resample(wav.T, source_hz, target_hz, quality="HQ").T  # soxr wants channels last
    return np.ascontiguousarray(made, dtype=np.float32)


def save_exact(path: Path, wav: np.ndarray, sample_rate: int) -> Path:
    """Write to ``path``.flac as ``save_audio``, or what is beyond full scale to ``path``.wav in 32-bit floats. Returns which."""
    loud = float(np.abs(wav).max(initial=0.0)) > FULL
    path = path.with_name(f"{path.name}.{'wav' if loud else 'flac'}")
    save_audio(path, wav, sample_rate, exact=loud)
    return path


def save_audio(path: str | Path, wav: np.ndarray, sample_rate: int, *, exact: bool = False) -> None:
    """Write (T,) or (C, T) float32 as 16-bit audio, format by suffix; complete or not at all.

    A peak above full scale is scaled down to 0.99 rather than clipped; with ``exact`` a .wav has 32-bit floats.
    Raises ``AudioError`` for non-finite samples, ``OSError`` for a disk that does not take it.
    """
    import soundfile as sf

    path = Path(path)
    wav = np.asarray(wav, dtype=np.float32)
    if not np.isfinite(wav).all():
        raise AudioError("NaN or infinite samples")
    peak = float(np.abs(wav).max(initial=0.0))
    if peak > FULL and not exact:
        wav = wav * (0.99 / peak)
    length, written = wav.shape[-1], -1
    with replacing(path) as part:
        with suppress(sf.LibsndfileError, AssertionError):  # of samples that were not written
            depth = "FLOAT" if exact else "PCM_16" if path.suffix.lower() in {".wav", ".flac"} else None
            sf.write(part, wav.T, sample_rate, subtype=depth)
            written = sf.info(part).frames if length else 0
        # libsndfile does not say why it fails, nor whether its last bytes found room; the system does
        if not 0 <= written - length < PADDING:
            part.write_bytes(bytes(wav.nbytes))
            raise OSError(f"libsndfile cannot write {path.suffix} of {sample_rate} Hz")


def rms_dbfs(wav: np.ndarray) -> float:
    """RMS level of (T,), or of all channels of (C, T), about the mean, in dB relative to full scale; digital silence is -inf.

    Here and wherever levels and ratios are computed the mean (an offset of the converter) does not count: nobody hears it.
    """
    power = float(np.var(wav, axis=-1, dtype=np.float64).mean()) if wav.size else 0.0
    return 10.0 * np.log10(power) if power > 0 else float("-inf")


def loudest_dbfs(wav: np.ndarray, sample_rate: int) -> float:
    """Level of the loudest 0.1 s of (T,), about its mean, in dB relative to full scale; -200 for digital silence."""
    width = max(1, int(ACTIVE_S * sample_rate))
    parts = wav[: len(wav) // width * width].reshape(-1, width) if len(wav) >= width else wav[None]
    power = float(np.var(parts, axis=1, dtype=np.float64).max()) if wav.size else 0.0
    return 10.0 * float(np.log10(power)) if power > 1e-20 else -200.0


def silence(dbfs: float) -> str:
    """The reason of a recording that is silent by the level of its loudest 0.1 s."""
    return f"silent (the loudest {ACTIVE_S:g} s lies at {dbfs:.0f} dBFS)"


def to_level(wav: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale (T,) to an RMS level; silence stays silence, and an offset that is larger than the sound is taken out, not scaled with it."""
    level = rms_dbfs(wav)
    if not np.isfinite(level):
        return wav
    if abs(offset := float(wav.mean(dtype=np.float64))) > 10.0 ** (level / 20.0):
        wav = wav - np.float32(offset)
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
