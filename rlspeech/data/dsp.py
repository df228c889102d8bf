"""Small tools on waveforms that several parts of ``data`` need: gains, distortion ratios, spectra and back, in numpy alone."""

from __future__ import annotations

import numpy as np

from rlspeech.data.audio import rms_dbfs

__all__ = ["istft", "match_gain", "sdr_db", "stft"]


def match_gain(made: np.ndarray, model: np.ndarray) -> float:
    """The gain that brings ``made`` to the RMS of ``model``."""
    a, b = rms_dbfs(made), rms_dbfs(model)
    return float(10.0 ** ((b - a) / 20.0)) if np.isfinite(a) and np.isfinite(b) else 1.0


def sdr_db(reference: np.ndarray, made: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, held within -30 and 60."""
    x, y = reference.astype(np.float64), made.astype(np.float64)
    part = x * (np.dot(x, y) / max(float(np.dot(x, x)), 1e-12))
    ratio = float(np.dot(part, part)) / max(float(np.dot(y - part, y - part)), 1e-12)
    return float(np.clip(10 * np.log10(max(ratio, 1e-12)), -30.0, 60.0))


def stft(wav: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
    """Spectra (L, n_fft / 2 + 1) of windowed frames of (T,), with a window's length of zeros on both sides."""
    padded = np.pad(wav, (len(window), len(window) + hop))
    return np.asarray(
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop] * window, axis=1)
    )


def istft(spectrum: np.ndarray, window: np.ndarray, hop: int, length: int) -> np.ndarray:
    """(length,) float32 of what ``stft`` made with the same window and hop, by weighted overlap-add; a Hann window at a quarter's hop."""
    frames = np.fft.irfft(spectrum, len(window), axis=1) * window
    out = np.zeros(hop * (len(frames) - 1) + len(window))
    for shift in range(len(window) // hop):  # frames a window apart do not overlap: all of them at once
        part = frames[shift :: len(window) // hop]
        out[shift * hop : shift * hop + part.size] += part.ravel()[: len(out) - shift * hop]
    return np.asarray(out[len(window) : len(window) + length] / np.sum(window[::hop] ** 2), dtype=np.float32)
