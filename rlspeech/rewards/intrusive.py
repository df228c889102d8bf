"""Metrics that compare a waveform with its reference on a CPU: PESQ, STOI and ESTOI, SI-SDR, distances of spectra.

They run in the worker pool, one item at a time. Lengths may differ by a quarter of a second (the longer one is cut at its end); more
is unscorable. PESQ is the compiled ``pesq`` package; where it raises, or has nothing to align, the score is null: it never becomes
a number.

STOI and extended STOI (Taal et al. 2011; Jensen and Taal 2016) are computed in numpy from one front end. The reference implementation
is ``pystoi``, and the constants and the resampling filter are its: here segments are views of one array, and frames and overlap-add
have no loops. They agree to 1e-9. What pystoi answers with 1e-5 and a warning (too little speech) is an error here.

All but PESQ have a gradient: where the degraded waveform is a torch tensor, the same lines run in torch, in double precision on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rlspeech.types import Sample, Score

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH_GAP_S = 0.25
MAX_PESQ_S = 60.0  # the C code's buffers overflow on long recordings; longer ones are scored in equal parts
SHIFT_MS, SHIFT_CORRELATION = 1.0, 0.7
EPS = 1e-12
STOI_HZ, FRAME, N_FFT, BANDS, LOWEST_HZ = 10000, 256, 512, 15, 150.0
SEGMENT, BETA_DB, RANGE_DB = 30, -15.0, 40.0
EPS64 = float(np.finfo(np.float64).eps)


def _doubles(*wavs: Any) -> tuple[Any, ...]:
    """What computes, numpy or torch as the last one of the waveforms (T,) is, and all of them there in double precision."""
    if isinstance(wavs[-1], np.ndarray):
        return np, *(w.astype(np.float64) for w in wavs)
    import torch

    return torch, *(torch.as_tensor(w).cpu().double() for w in wavs)


def _root(x: Any) -> Any:
    """Square root; of a tensor one whose gradient at 0 is 0."""
    return np.sqrt(x) if isinstance(x, np.ndarray | np.floating) else x.clamp_min(1e-30).sqrt()


def _views(x: Any, size: int, step: int = 1) -> Any:
    """Stretches of ``size`` along the first axis of (T, ...), one each ``step``: (n, ..., size)."""
    return sliding_window_view(x, size, axis=0)[::step] if isinstance(x, np.ndarray) else x.unfold(0, size, step)


def _once(work: Callable[..., Any], xp: Any, reference: np.ndarray, *how: Any) -> Any:
    """``work`` on a reference in double precision; in numpy once for the rollouts that are compared with it."""
    x = reference.astype(np.float64)
    return _kept(work, x.tobytes(), *how) if xp is np else work(xp, xp.as_tensor(x), *how)


@lru_cache(maxsize=8)
def _kept(work: Callable[..., Any], reference: bytes, *how: Any) -> Any:
    return work(np, np.frombuffer(reference), *how)


def stoi_estoi(reference: np.ndarray, degraded: Any, sample_rate: int) -> tuple[Any, Any]:
    """Intelligibility of ``degraded`` given ``reference``.

    Args:
        reference: (T,) clean speech.
        degraded: (T,) processed speech, aligned; a tensor where its gradient is wanted.
        sample_rate: of both, in Hz.

    Returns:
        STOI and ESTOI.

    Raises:
        ValueError: fewer than 30 frames (0.4 s) of the reference are within 40 dB of its loudest one.
    """
    xp, y = _doubles(degraded)
    keep, sx, ex, scale, b, length = _once(_reference, xp, reference, sample_rate)
    if len(sx) < 1:
        raise ValueError(f"too little speech in the reference ({length} frames, at least {SEGMENT})")
    sy = _views(_bands(xp, _overlap_add(xp, _frames(xp, _to_10k(y, sample_rate))[keep])), SEGMENT)
    estoi = xp.einsum("sbn,sbn->", ex, _normalise(xp, sy)) / SEGMENT / len(sx)
    norm = xp.linalg.norm
    clipped = xp.minimum(sy * (scale / (norm(sy, axis=2, keepdims=True) + EPS64)), sx * (1 + 10 ** (-BETA_DB / 20)))
    a = clipped - clipped.mean(2, keepdims=True)
    stoi = xp.einsum("sbn,sbn->sb", a, b) / ((norm(a, axis=2) + EPS64) * (norm(b, axis=2) + EPS64))
    return stoi.mean(), estoi


def _reference(xp: Any, x: Any, sample_rate: int) -> tuple[Any, ...]:
    """Frames within 40 dB of the loudest, segments (n, bands, 30), they normalised, their norms, they centred, and how many frames."""
    fx = _frames(xp, _to_10k(x, sample_rate))
    level_db = 20 * xp.log10(xp.linalg.norm(fx, axis=1) + EPS64)
    keep = level_db > (level_db.max() - RANGE_DB if len(fx) else 0.0)
    bands = _bands(xp, _overlap_add(xp, fx[keep]))
    sx = _views(bands, SEGMENT) if len(bands) >= SEGMENT else bands[:0]
    if not len(sx):
        return keep, sx, sx, sx, sx, len(bands)
    norms = xp.linalg.norm(sx, axis=2, keepdims=True)
    return keep, sx, _normalise(xp, sx), norms, sx - sx.mean(2, keepdims=True), len(bands)


def _normalise(xp: Any, segments: Any) -> Any:
    """Zero mean and length 1 of every band over time, then of every frame over the bands."""
    for axis in (2, 1):
        segments = segments - segments.mean(axis, keepdims=True)
        segments = segments / (xp.linalg.norm(segments, axis=axis, keepdims=True) + EPS64)
    return segments


@lru_cache(maxsize=1)
def _band_matrix() -> np.ndarray:
    """(bins, bands) of zeros and ones: third octaves from 150 Hz, edges on the nearest bin."""
    hz = np.linspace(0, STOI_HZ, N_FFT + 1)[: N_FFT // 2 + 1]
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


def _to_10k(wav: Any, sample_rate: int) -> Any:
    if sample_rate == STOI_HZ:
        return wav
    from scipy.fft import next_fast_len  # type: ignore[import-untyped]
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    common = int(np.gcd(STOI_HZ, sample_rate))
    up, down = STOI_HZ // common, sample_rate // common
    taps = _filter(up, down)
    if isinstance(wav, np.ndarray):
        return np.asarray(resample_poly(wav, up, down, window=taps))
    import torch  # the same by spectra, which have a gradient

    spread = torch.nn.functional.pad(wav[:, None], (0, up - 1)).ravel()
    size = next_fast_len(len(spread) + len(taps), real=True)
    spectrum = torch.fft.rfft(spread, size) * torch.fft.rfft(torch.from_numpy(up * taps), size)
    return torch.fft.irfft(spectrum, size)[len(taps) // 2 :][: len(spread) : down]


def _frames(xp: Any, x: Any) -> Any:
    """Windowed frames (L, 256) at half overlap. A last frame that ends with the signal is left out, as in the reference code."""
    if len(x) <= FRAME:
        return x[:0].reshape(0, FRAME)
    return _views(x[:-1], FRAME, FRAME // 2) * xp.asarray(np.hanning(FRAME + 2)[1:-1])


def _overlap_add(xp: Any, frames: Any) -> Any:
    half = FRAME // 2
    out = xp.zeros((len(frames) + 1) * half, dtype=xp.float64)
    out[:-half] += frames[:, :half].ravel()
    out[half:] += frames[:, half:].ravel()
    return out


def _bands(xp: Any, x: Any) -> Any:
    spectrum = xp.fft.rfft(_frames(xp, x), N_FFT)
    return _root((spectrum.real**2 + spectrum.imag**2) @ xp.asarray(_band_matrix()))


def si_sdr(reference: np.ndarray, degraded: Any) -> Any:
    """Scale-invariant signal-to-distortion ratio of (T,) and (T,) in dB, means removed (Le Roux et al. 2019), at most 120."""
    xp, x, y = _doubles(reference, degraded)
    x, y = x - x.mean(), y - y.mean()
    dust = EPS * EPS * max(xp.dot(y, y).item(), 1e-200)  # relative: any level will do
    target = x * (xp.dot(x, y) / max(xp.dot(x, x).item(), 1e-200))
    noise = y - target
    ratio = (xp.dot(target, target) + dust) / (xp.dot(noise, noise) + dust)
    return (10 * xp.log10(ratio)).clip(-120.0, 120.0)


def log_spectral_distance(reference: np.ndarray, degraded: Any, n_fft: int = 512, hop: int = 128) -> Any:
    """Root-mean-square difference of the power spectra in dB over the bins, averaged over the frames (Gray and Markel 1976).

    Of (T,) and (T,), in Hann windows of ``n_fft`` samples. Both spectra are floored 80 dB below the reference's strongest bin: silence
    against silence is no distance. Level counts.
    """
    xp, y = _doubles(degraded)
    p, q = _floored(xp, (reference, y), n_fft, hop)
    return _root(((10 * xp.log10(p / q)) ** 2).mean(1)).mean()


def multi_resolution_stft(reference: np.ndarray, degraded: Any, sizes: Sequence[int] = (512, 1024, 2048)) -> Any:
    """Spectral convergence plus mean log-magnitude difference in nepers, the mean over STFTs of these sizes (arXiv 1910.11480, eqs. 4-6).

    Of (T,) and (T,), in Hann windows that overlap by three quarters, with the floor of ``log_spectral_distance``. Level counts.
    """
    xp, y = _doubles(degraded)
    pair, total = (reference, y), 0.0
    for n_fft in sizes:
        p, q = (_root(power) for power in _floored(xp, pair, n_fft, n_fft // 4))
        total = total + _root(((p - q) ** 2).sum()) / _root((p**2).sum()) + abs(xp.log(p / q)).mean()
    return total / len(sizes)


def _floored(xp: Any, pair: tuple[np.ndarray, Any], n_fft: int, hop: int) -> list[Any]:
    """Power spectra (frames, bins) of reference and degraded, floored 80 dB below the reference's strongest bin."""
    powers = [_once(_power, xp, pair[0], n_fft, hop), _power(xp, pair[1], n_fft, hop)]
    floor = xp.asarray(powers[0].max() * 1e-8 + 1e-20)
    return [xp.maximum(p, floor) for p in powers]


def _power(xp: Any, x: Any, n_fft: int, hop: int) -> Any:
    """Power spectra (frames, bins) in Hann windows."""
    x = xp.concatenate([x, xp.zeros(max(0, n_fft - len(x)), dtype=xp.float64)])
    spectrum = xp.fft.rfft(_views(x, n_fft, hop) * xp.asarray(np.hanning(n_fft + 1)[:-1]))
    return spectrum.real**2 + spectrum.imag**2


def lag(reference: np.ndarray, degraded: np.ndarray, max_lag: int) -> tuple[int, float, float]:
    """Delay of ``degraded`` (T,) in samples by cross-correlation, at most ``max_lag`` either way, positive where it is late.

    Returns the normalised correlation there as well, and the one at delay 0.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(len(reference) + max_lag, real=True)
    product = rfft(degraded.astype(np.float64), size) * np.conj(rfft(reference.astype(np.float64), size))
    cross = irfft(product, size)
    around = np.abs(np.concatenate([cross[-max_lag:], cross[: max_lag + 1]]))
    scale = float(np.linalg.norm(reference) * np.linalg.norm(degraded)) + EPS
    best = int(around.argmax())
    return best - max_lag, float(around[best] / scale), float(around[max_lag] / scale)


class _Paired:
    """A family that compares pairs of one length with ``pair``."""

    version = ""

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        out = []
        for s in samples:
            assert s.target is not None
            n, gap = min(len(s.wav), len(s.target)), abs(len(s.wav) - len(s.target)) / s.sample_rate
            try:
                if gap > MAX_LENGTH_GAP_S:
                    raise ValueError(f"length differs from the reference by {gap:.2f} s")
                scores = self.pair(s.target[:n], s.wav[:n], s.sample_rate)
            except ValueError as error:
                scores = dict.fromkeys(columns, Score(None, str(error)))
            out.append({c: scores[c] for c in columns})
        return out

    def soft(self, wavs: list[Tensor], samples: list[Sample], columns: list[str]) -> list[dict[str, Tensor]]:
        """Values with a gradient to the waveforms, which ``samples`` hold as numbers; none of what ``compute`` has no value of."""
        out = []
        for wav, s, scores in zip(wavs, samples, self.compute(samples, columns), strict=True):
            known = [c for c in columns if scores[c].value is not None]
            reference, n = cast(np.ndarray, s.target), min(len(s.wav), len(cast(np.ndarray, s.target)))
            values = self.measure(reference[:n], wav[:n], s.sample_rate) if known else {}
            out.append({c: values[c] for c in known})
        return out

    def pair(self, reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> dict[str, Score]:
        """Return the scores by column of two waveforms (T,); ``ValueError`` says why there are none."""
        return {c: Score(float(value)) for c, value in self.measure(reference, degraded, sample_rate).items()}

    def measure(self, reference: np.ndarray, degraded: Any, sample_rate: int) -> dict[str, Any]:
        """Return the values by column of two waveforms (T,), of a tensor with their gradients."""
        raise NotImplementedError


class PesqWb(_Paired):
    """``pesq_wb``: PESQ, wide band, 16 kHz."""

    mode, rates = "wb", "16 kHz, of files of 16 kHz and more"

    def __init__(self) -> None:
        self.version = f"pesq {version('pesq')}, {self.mode}, {self.rates}, parts of at most {MAX_PESQ_S:g} s"

    def pair(self, reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> dict[str, Score]:
        """PESQ, averaged over equal parts where the recording is longer than a minute; parts without speech are left out."""
        from pesq import PesqError, pesq  # type: ignore[import-untyped]

        parts = int(np.ceil(len(reference) / (MAX_PESQ_S * sample_rate)))
        values, reason = [], ""
        for x, y in zip(np.array_split(reference, parts), np.array_split(degraded, parts), strict=True):
            try:
                value = float(pesq(sample_rate, x, y, self.mode))
            except (PesqError, ValueError, ZeroDivisionError) as error:
                text = error.args[0] if error.args else ""
                reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
                continue
            if np.isfinite(value) and value >= 0.99:
                values.append(value)
            else:
                reason = f"PESQ answered {value}"
        name = f"pesq_{self.mode}"
        detail = {f"{name}_parts": f"{len(values)} of {parts}"} if parts > 1 else {}
        return {name: Score(float(np.mean(values)), detail=detail) if values else Score(None, f"PESQ: {reason}")}


class PesqNb(PesqWb):
    """``pesq_nb``: PESQ, narrow band."""

    mode, rates = "nb", "16 kHz, files of less at 8 kHz"


class Stoi(_Paired):
    """``stoi`` and ``estoi`` from one front end."""

    version = "stoi-1 (as pystoi 0.4)"

    def measure(self, reference: np.ndarray, degraded: Any, sample_rate: int) -> dict[str, Any]:
        return dict(zip(("stoi", "estoi"), stoi_estoi(reference, degraded, sample_rate), strict=True))


class SiSdr(_Paired):
    """``si_sdr``; a clear copy of the reference that is shifted in time is reported as such and has no score.

    ``max_lag_ms``: how far a shift is looked for.
    """

    version = "si-sdr-1 (zero mean)"

    def __init__(self, max_lag_ms: float = 250.0) -> None:
        self.max_lag_ms = max_lag_ms

    def pair(self, reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> dict[str, Score]:
        shift, there, here = lag(reference, degraded, int(self.max_lag_ms * sample_rate / 1000))
        lag_ms = 1000.0 * shift / sample_rate
        detail = {"lag_ms": round(lag_ms, 3), "lag_correlation": round(there, 4)}
        if abs(lag_ms) > SHIFT_MS and there > SHIFT_CORRELATION and here < 0.5 * there:
            return {"si_sdr": Score(None, f"shifted by {lag_ms:.1f} ms against the reference", detail)}
        return {"si_sdr": Score(float(si_sdr(reference, degraded)), detail=detail)}

    def measure(self, reference: np.ndarray, degraded: Any, sample_rate: int) -> dict[str, Any]:
        return {"si_sdr": si_sdr(reference, degraded)}


class Lsd(_Paired):
    """``lsd``: log-spectral distance in dB."""

    version = "lsd-1 (n_fft 512, hop 128, floor -80 dB)"  # at 16 kHz

    def measure(self, reference: np.ndarray, degraded: Any, sample_rate: int) -> dict[str, Any]:
        n_fft, hop = round(0.032 * sample_rate), round(0.008 * sample_rate)  # 512 and 128 at 16 kHz
        return {"lsd": log_spectral_distance(reference, degraded, n_fft, hop)}


class MultiResolutionStft(_Paired):
    """``mrstft``: multi-resolution STFT distance."""

    version = "mrstft-1 (n_fft 512, 1024, 2048, hop a quarter, floor -80 dB)"  # at 16 kHz

    def measure(self, reference: np.ndarray, degraded: Any, sample_rate: int) -> dict[str, Any]:
        sizes = [4 * round(seconds * sample_rate / 4) for seconds in (0.032, 0.064, 0.128)]
        return {"mrstft": multi_resolution_stft(reference, degraded, sizes)}
