"""STOI and extended STOI in numpy, both from one front end (Taal et al. 2011; Jensen and Taal 2016).

The reference implementation is ``pystoi``, and the constants and the resampling filter are its: this one computes segments as views
of one array, frames and overlap-add without loops, and both measures in one pass. They agree to 1e-9. What pystoi answers with 1e-5
and a warning (too little speech) is an error here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np

__all__ = ["stoi_estoi"]

RATE, FRAME, N_FFT, BANDS, LOWEST_HZ = 10000, 256, 512, 15, 150.0
SEGMENT, BETA_DB, RANGE_DB = 30, -15.0, 40.0
EPS = float(np.finfo(np.float64).eps)


def stoi_estoi(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """Intelligibility of ``degraded`` given ``reference``.

    Args:
        reference: (T,) clean speech.
        degraded: (T,) processed speech, aligned.
        sample_rate: of both, in Hz.

    Returns:
        STOI and ESTOI.

    Raises:
        ValueError: fewer than 30 frames (0.4 s) of the reference are within 40 dB of its loudest one.
    """
    x, y = _drop_silence(_to_10k(reference, sample_rate), _to_10k(degraded, sample_rate))
    bx, by = _bands(x), _bands(y)  # (frames, bands)
    if len(bx) < SEGMENT:
        raise ValueError(f"too little speech in the reference ({len(bx)} frames, at least {SEGMENT})")
    sx = np.lib.stride_tricks.sliding_window_view(bx, SEGMENT, axis=0)  # (segments, bands, 30), views
    sy = np.lib.stride_tricks.sliding_window_view(by, SEGMENT, axis=0)
    return _stoi(sx, sy), _estoi(sx, sy)


def _stoi(sx: np.ndarray, sy: np.ndarray) -> float:
    scale = np.linalg.norm(sx, axis=2, keepdims=True) / (np.linalg.norm(sy, axis=2, keepdims=True) + EPS)
    clipped = np.minimum(sy * scale, sx * (1 + 10 ** (-BETA_DB / 20)))
    a, b = clipped - clipped.mean(2, keepdims=True), sx - sx.mean(2, keepdims=True)
    dots = np.einsum("sbn,sbn->sb", a, b)
    norms = (np.linalg.norm(a, axis=2) + EPS) * (np.linalg.norm(b, axis=2) + EPS)
    return float((dots / norms).mean())


def _estoi(sx: np.ndarray, sy: np.ndarray) -> float:
    return float(np.einsum("sbn,sbn->", _normalise(sx), _normalise(sy)) / SEGMENT / len(sx))


def _normalise(segments: np.ndarray) -> np.ndarray:
    """Zero mean and length 1 of every band over time, then of every frame over the bands."""
    rows = segments - segments.mean(2, keepdims=True)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True) + EPS
    rows -= rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + EPS
    return cast(np.ndarray, rows)


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    return np.asarray(np.hanning(FRAME + 2)[1:-1])


@lru_cache(maxsize=1)
def _band_matrix() -> np.ndarray:
    """(bins, bands) of zeros and ones: third octaves from 150 Hz, edges on the nearest bin."""
    hz = np.linspace(0, RATE, N_FFT + 1)[: N_FFT // 2 + 1]
    k = np.arange(BANDS)
    low, high = (np.abs(hz[:, None] - LOWEST_HZ * 2.0 ** ((2 * k + side) / 6)).argmin(0) for side in (-1, 1))
    bins = np.arange(len(hz))[:, None]
    return ((bins >= low) & (bins < high)).astype(np.float64)


@lru_cache(maxsize=8)
def _filter(up: int, down: int) -> np.ndarray:
    """Anti-aliasing filter of Octave's resample: a sinc of 60 dB rejection under a Kaiser window, sum 1."""
    cutoff = 1.0 / (2 * max(up, down))
    half = int(np.ceil((60.0 - 8) / (28.714 * cutoff / 10)))
    t = np.arange(-half, half + 1)
    taps = np.kaiser(2 * half + 1, 0.1102 * (60.0 - 8.7)) * np.sinc(2 * cutoff * t)
    return cast(np.ndarray, taps / taps.sum())


def _to_10k(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    wav = wav.astype(np.float64)
    if sample_rate == RATE:
        return wav
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    common = int(np.gcd(RATE, sample_rate))
    up, down = RATE // common, sample_rate // common
    return np.asarray(resample_poly(wav, up, down, window=_filter(up, down)))


def _frames(x: np.ndarray) -> np.ndarray:
    """Windowed frames (L, 256) at half overlap. A last frame that ends with the signal is left out, as in the reference code."""
    if len(x) <= FRAME:
        return np.zeros((0, FRAME))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(x[:-1], FRAME)[:: FRAME // 2] * _window())


def _drop_silence(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fx, fy = _frames(x), _frames(y)
    if not len(fx):
        return x[:0], y[:0]
    level_db = 20 * np.log10(np.linalg.norm(fx, axis=1) + EPS)
    keep = level_db > level_db.max() - RANGE_DB
    return _overlap_add(fx[keep]), _overlap_add(fy[keep])


def _overlap_add(frames: np.ndarray) -> np.ndarray:
    half = FRAME // 2
    out = np.zeros((len(frames) + 1) * half)
    out[:-half] += frames[:, :half].ravel()
    out[half:] += frames[:, half:].ravel()
    return out


def _bands(x: np.ndarray) -> np.ndarray:
    frames = _frames(x)
    spectrum = np.fft.rfft(frames, N_FFT)
    return cast(np.ndarray, np.sqrt((spectrum.real**2 + spectrum.imag**2) @ _band_matrix()))
