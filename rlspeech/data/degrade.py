"""Real clean speech made worse in known ways: what a listening model learns from, and the ladders that a judge is checked on.

The textbook version adds noise at a signal-to-noise ratio and asks for that ratio back. Here every way in which a recording gets bad
has its own function (noise, a second talker, a room, distortion, muffling, gaps, the traces of a noise reducer), each answers with the
waveform and with what was done, and ``degrade`` draws a combination. How bad a trait is, is given as a *severity* from 0 to 1, mostly
measured on the parts before they are summed (signal-to-noise ratio, clarity C50, signal-to-distortion ratio): a recipe's own setting says
little, for one and the same limiter does nothing to one voice and ruins another. The noise reducer is a masked spectrum whose mask
knows too much (it sees speech and noise apart) and is then spoilt: over-subtraction, a floor, random errors of cells and of bands.
What is left out: codecs, packet-loss concealment, wind, microphones. No two degradations share a random draw: all of them come from the
generator that is passed in, so that a seed is a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from rlspeech.data.audio import SILENT_DBFS, AudioError, rms_dbfs, to_level
from rlspeech.data.mixing import coloured, crop, reverberate

TRAITS = ("noise", "talker", "reverb", "distortion", "muffling", "dropouts", "artefacts")
RUNGS = 7
Facts = dict[str, Any]


def match_gain(made: np.ndarray, model: np.ndarray) -> float:
    """The gain that brings ``made`` to the RMS of ``model``."""
    a, b = rms_dbfs(made), rms_dbfs(model)
    return float(10.0 ** ((b - a) / 20.0)) if np.isfinite(a) and np.isfinite(b) else 1.0


def sdr_db(reference: np.ndarray, made: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, held within -30 and 60."""
    x, y = (wav.astype(np.float64) - wav.mean(dtype=np.float64) for wav in (reference, made))
    part = x * (np.dot(x, y) / max(float(np.dot(x, x)), 1e-12))
    ratio = float(np.dot(part, part)) / max(float(np.dot(y - part, y - part)), 1e-12)
    return float(np.clip(10 * np.log10(max(ratio, 1e-12)), -30.0, 60.0))


def stft(wav: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
    """Spectra (L, n_fft / 2 + 1) of windowed frames of (T,), with a window's length of zeros on both sides."""
    padded = np.pad(wav, (len(window), len(window) + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop]
    return np.asarray(np.fft.rfft(frames * window, axis=1))


def istft(spectrum: np.ndarray, window: np.ndarray, hop: int, length: int) -> np.ndarray:
    """(length,) float32 of what ``stft`` made with the same window and hop, by weighted overlap-add; a Hann window at a quarter's hop."""
    frames = np.fft.irfft(spectrum, len(window), axis=1) * window
    out = np.zeros(hop * (len(frames) - 1) + len(window))
    for shift in range(len(window) // hop):  # frames a window apart do not overlap: all of them at once
        part = frames[shift :: len(window) // hop]
        out[shift * hop : shift * hop + part.size] += part.ravel()[: len(out) - shift * hop]
    return np.asarray(out[len(window) : len(window) + length] / np.sum(window[::hop] ** 2), dtype=np.float32)


class Sources(NamedTuple):
    """What a degradation may draw from: recordings (T,) float32 at one rate; any of the lists may be empty."""

    noises: Sequence[np.ndarray]
    talkers: Sequence[np.ndarray]
    rirs: Sequence[np.ndarray]


class Degraded(NamedTuple):
    """A degraded recording (T,), the severity 0..1 of each of ``TRAITS``, and its level in dBFS."""

    wav: np.ndarray
    severity: dict[str, float]
    level_dbfs: float


class Rung(NamedTuple):
    """One step of a ladder: rung 0 is the best, ``RUNGS - 1`` the worst; ``snr_db`` where noise was added."""

    ladder: str
    rung: int
    wav: np.ndarray
    snr_db: float | None


# ------------------------------------------------------------------------------------------------------------- single ways


def add_noise(wav: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, Facts]:
    """Add a recording (T,) of noise or of another talker at a ratio of RMS levels. Raises ``AudioError`` where either is silent."""
    level = rms_dbfs(wav)
    if level < SILENT_DBFS - 30 or rms_dbfs(noise) < SILENT_DBFS - 30:
        raise AudioError("silent speech or noise")
    return (wav + to_level(noise, level - snr_db)).astype(np.float32), {"snr_db": snr_db}


def synthetic_rir(sample_rate: int, rt60_s: float, direct_db: float, rng: Generator) -> np.ndarray:
    """A room of noise that decays by 60 dB in ``rt60_s``; ``direct_db``: the direct sound's energy against the tail's."""
    n = max(2, int(min(rt60_s, 3.0) * sample_rate))
    tail = rng.standard_normal(n) * 10.0 ** (-3.0 * np.arange(n) / (rt60_s * sample_rate))
    tail[: int(0.002 * sample_rate)] = 0.0
    tail *= 10.0 ** (-direct_db / 20.0) / max(float(np.linalg.norm(tail)), 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def add_room(wav: np.ndarray, rir: np.ndarray, sample_rate: int) -> tuple[np.ndarray, Facts]:
    """Reverberate (T,), aligned on the direct sound. ``c50_db``: energy of the first 50 ms against the rest, by the speech itself."""
    wet, early = reverberate(wav, rir, sample_rate, 50.0)
    wet, early = wet * np.float32(gain := match_gain(wet, wav)), early * np.float32(gain)
    late = float(np.mean((wet - early) ** 2)) + 1e-12
    return wet.astype(np.float32), {"c50_db": 10 * np.log10(float(np.mean(early**2)) / late + 1e-6)}


def clip_peaks(wav: np.ndarray, headroom_db: float, soft: bool = False) -> tuple[np.ndarray, Facts]:
    """Cut peaks at ``headroom_db`` above (below, if negative) the RMS; ``soft`` saturates instead. RMS is kept; ``sdr_db`` is measured."""
    limit = max(1e-6, 10.0 ** ((max(rms_dbfs(wav), -120.0) + headroom_db) / 20.0))
    made = limit * np.tanh(wav / limit) if soft else np.clip(wav, -limit, limit)
    made = (made * match_gain(made, wav)).astype(np.float32)
    return made, {"headroom_db": headroom_db, "sdr_db": sdr_db(wav, made)}


def quantise(wav: np.ndarray, bits: int) -> tuple[np.ndarray, Facts]:
    """Round (T,) to ``bits`` over its own range."""
    step = max(float(np.abs(wav).max(initial=0.0)), 1e-6) / 2 ** (bits - 1)
    made = (np.round(wav / step) * step).astype(np.float32)
    return made, {"bits": bits, "sdr_db": sdr_db(wav, made)}


def low_pass(wav: np.ndarray, cutoff_hz: float, sample_rate: int) -> tuple[np.ndarray, Facts]:
    """Take away what lies above ``cutoff_hz`` (sixth-order Butterworth, no delay)."""
    if cutoff_hz >= 0.49 * sample_rate:
        return wav, {"cutoff_hz": cutoff_hz}
    from scipy.signal import butter, sosfiltfilt

    sos = butter(6, cutoff_hz, fs=sample_rate, output="sos")
    made = np.asarray(sosfiltfilt(sos, wav), dtype=np.float32)
    return (made * match_gain(made, wav)).astype(np.float32), {"cutoff_hz": cutoff_hz}


def drop_out(
    wav: np.ndarray, share: float, gap_ms: float, sample_rate: int, rng: Generator
) -> tuple[np.ndarray, Facts]:
    """Silence stretches of ``gap_ms`` until ``share`` of (T,) is gone. With one seed a larger share contains a smaller one's gaps."""
    gap = max(1, int(gap_ms * sample_rate / 1000))
    slots = max(1, len(wav) // gap)
    lost = rng.permutation(slots)[: round(share * slots)]
    keep = np.ones(len(wav), dtype=np.float32)
    for slot in lost:
        keep[slot * gap : (slot + 1) * gap] = 0.0
    half = max(1, int(0.001 * sample_rate))  # ramps of 2 ms
    ramp = np.full(2 * half + 1, 1 / (2 * half + 1))
    keep = np.clip(np.convolve(np.pad(keep, half, mode="edge"), ramp, mode="valid"), 0.0, 1.0).astype(np.float32)
    gone = float(np.sum((wav * (1 - keep)) ** 2) / max(float(np.sum(wav**2)), 1e-12))
    return wav * keep, {"share": share, "energy_lost": gone}


def suppress(
    speech: np.ndarray, noise: np.ndarray, strength: float, rng: Generator, floor: float = 0.03
) -> tuple[np.ndarray, Facts]:
    """A noise reducer that errs: both parts (T,) pass one spoilt mask.

    Args:
        strength: 0 is a good mask; towards 1 it subtracts more than there is and errs in cells and bands (musical noise, a
            watery or hollow voice).
        floor: smallest gain.

    Returns:
        the sum of the masked parts, and ``sdr_db`` (the speech alone, after against before) and ``snr_db`` (what noise is left).
    """
    hop, window = 128, np.hanning(513)[:-1]
    s, n = stft(speech, window, hop), stft(noise, window, hop)
    ps, pn = np.abs(s) ** 2, np.abs(n) ** 2
    over = 1.0 + 8.0 * strength**2
    bands = np.repeat(rng.standard_normal((s.shape[0], -(-s.shape[1] // 8))), 8, axis=1)[:, : s.shape[1]]
    slow = np.repeat(bands[::6], 6, axis=0)[: len(s)]
    error = strength * (1.2 * rng.standard_normal(s.shape) + 1.2 * slow)
    gain = np.clip(ps / (ps + over * pn + 1e-10) * np.exp(error - np.abs(error) * 0.3), floor, 1.0)
    threshold = np.quantile(np.sqrt(ps), 0.55 * strength, axis=1, keepdims=True)
    gain = np.where((np.sqrt(ps) < threshold) & (rng.random(s.shape) < strength), floor, gain)
    kept, left = istft(s * gain, window, hop, len(speech)), istft(n * gain, window, hop, len(speech))
    kept_db, left_db = rms_dbfs(kept), rms_dbfs(left)
    snr = float(np.clip(kept_db - left_db, -30, 60)) if np.isfinite(left_db) else 60.0
    return (kept + left).astype(np.float32), {"strength": strength, "sdr_db": sdr_db(speech, kept), "snr_db": snr}


# -------------------------------------------------------------------------------------------------------------- severities


def fall(value: float, best: float, worst: float) -> float:
    """Linear severity: 0 at ``best`` and 1 at ``worst``, held there beyond them."""
    return float(np.clip((value - best) / (worst - best), 0.0, 1.0))


def noise_severity(snr_db: float) -> float:
    """0 from 30 dB on, 1 at -8 dB."""
    return fall(snr_db, 30.0, -8.0)


# ------------------------------------------------------------------------------------------------------------ combinations


def degrade(clean: np.ndarray, sources: Sources, sample_rate: int, rng: Generator) -> Degraded:
    """Draw a combination of zero to four ways, in the order in which a recording meets them: room, noise, reducer, device.

    Args:
        clean: (T,) float32 speech.
        sources: recordings to draw from; without any, noise is synthetic and so are the rooms.

    Raises:
        AudioError: silent speech.
    """
    if rms_dbfs(clean) < SILENT_DBFS:
        raise AudioError("silent speech")
    severity, wav = dict.fromkeys(TRAITS, 0.0), clean
    odds = {"noise": 0.55, "artefacts": 0.25, "reverb": 0.2, "distortion": 0.13, "muffling": 0.15}
    odds |= {"dropouts": 0.12, "talker": 0.13}
    wanted = {k for k, p in odds.items() if rng.random() < p} if rng.random() > 0.05 else set[str]()
    if "reverb" in wanted:
        wav = _room(wav, sources, sample_rate, rng, severity)
    if "talker" in wanted and sources.talkers:
        other = crop(_pick(sources.talkers, rng), len(wav), rng)
        wav = _plus(wav, other, float(rng.uniform(-5, 25)), "talker", severity)
    if "artefacts" in wanted:
        noise, snr, strength = _noise(len(wav), sources, rng), float(rng.uniform(-5, 20)), float(rng.uniform(0.0, 1.0))
        noise = to_level(noise, rms_dbfs(wav) - snr)
        wav, facts = suppress(wav, noise, strength, rng, floor=float(10 ** rng.uniform(-2.5, -0.7)))
        severity["artefacts"] = fall(facts["sdr_db"], 22.0, 0.0)
        severity["noise"] = noise_severity(facts["snr_db"])
    elif "noise" in wanted:
        wav = _plus(wav, _noise(len(wav), sources, rng), float(rng.uniform(-6, 30)), "noise", severity)
    if "distortion" in wanted:
        if rng.random() < 0.2:
            wav, facts = quantise(wav, int(rng.integers(3, 9)))
        else:
            wav, facts = clip_peaks(wav, float(rng.uniform(-12, 10)), soft=bool(rng.random() < 0.4))
        severity["distortion"] = fall(facts["sdr_db"], 25.0, 3.0)
    if "muffling" in wanted:
        wav, facts = low_pass(wav, float(6500 * 2 ** -rng.uniform(0, 3.4)), sample_rate)
        severity["muffling"] = fall(np.log2(facts["cutoff_hz"]), np.log2(6500.0), np.log2(700.0))
    if "dropouts" in wanted:
        share, gap_ms = float(rng.uniform(0.01, 0.45)), float(rng.choice([20, 40, 80, 160]))
        wav, facts = drop_out(wav, share, gap_ms, sample_rate, rng)
        severity["dropouts"] = fall(facts["energy_lost"] ** 0.5, 0.03, 0.65)
    wav = _at_level(wav, float(rng.uniform(-42, -14)))
    return Degraded(wav, severity, rms_dbfs(wav))


def _at_level(wav: np.ndarray, dbfs: float) -> np.ndarray:
    """(T,) at an RMS level, lower where it would clip."""
    wav = to_level(wav, dbfs)
    return (wav * min(1.0, 0.99 / max(float(np.abs(wav).max()), 1e-9))).astype(np.float32)


def _plus(wav: np.ndarray, other: np.ndarray, snr_db: float, trait: str, severity: dict[str, float]) -> np.ndarray:
    try:
        wav = add_noise(wav, other, snr_db)[0]
    except AudioError:  # a silent stretch of a recording adds nothing
        return wav
    severity[trait] = noise_severity(snr_db)
    return wav


def _room(
    wav: np.ndarray, sources: Sources, sample_rate: int, rng: Generator, severity: dict[str, float]
) -> np.ndarray:
    if sources.rirs and rng.random() < 0.3:
        rir = _pick(sources.rirs, rng)
    else:
        rir = synthetic_rir(sample_rate, float(10 ** rng.uniform(-0.8, 0.4)), float(rng.uniform(-12, 12)), rng)
    wav, facts = add_room(wav, rir, sample_rate)
    severity["reverb"] = fall(facts["c50_db"], 22.0, -5.0)
    return wav


def _noise(length: int, sources: Sources, rng: Generator) -> np.ndarray:
    if not sources.noises or rng.random() < 0.25:
        return coloured(length, float(rng.uniform(0, 1)), rng)
    made = crop(_pick(sources.noises, rng), length, rng)
    return made if rms_dbfs(made) > SILENT_DBFS else coloured(length, 0.5, rng)


def _pick(items: Sequence[np.ndarray], rng: Generator) -> np.ndarray:
    return items[int(rng.integers(len(items)))]


# ----------------------------------------------------------------------------------------------------------------- ladders


def ladders(clean: np.ndarray, noise: np.ndarray, sample_rate: int, rng: Generator) -> list[Rung]:
    """Degradations in a known order, ``RUNGS`` steps each from untouched to bad, for calibration of judges.

    Args:
        clean: (T,) float32 speech; the rungs keep its level.
        noise: a recording of noise, looped where it is shorter.
        rng: draws the stretch of noise, the room and the gaps, once for a whole ladder, so that rungs differ in degree alone.

    Raises:
        AudioError: silent speech or noise.
    """
    if rms_dbfs(clean) < SILENT_DBFS:
        raise AudioError("silent speech")
    noise = crop(noise, len(clean), rng)
    seed, level = int(rng.integers(2**31)), rms_dbfs(clean)
    spoilt = to_level(noise, level - 5.0)

    def fresh() -> Generator:
        return np.random.default_rng(seed)

    def room(rt60_s: float, direct_db: float) -> np.ndarray:
        return add_room(clean, synthetic_rir(sample_rate, rt60_s, direct_db, fresh()), sample_rate)[0]

    def worn(step: int) -> np.ndarray:
        wav = add_noise(room(0.15 + 0.15 * step, 10.0 - 3.0 * step), noise, 30.0 - 5.0 * step)[0]
        return low_pass(wav, 7000.0 * 0.75**step, sample_rate)[0]

    snrs = {"noise": (25.0, 19.0, 13.0, 7.0, 1.0, -5.0), "combined": tuple(30.0 - 5.0 * k for k in range(1, RUNGS))}
    ways: dict[str, Callable[[int], np.ndarray]] = {
        "noise": lambda k: add_noise(clean, noise, snrs["noise"][k - 1])[0],
        "reverb": lambda k: room((0.2, 0.3, 0.5, 0.8, 1.2, 2.0)[k - 1], 9.0 - 3.5 * k),
        "clipping": lambda k: clip_peaks(clean, (8.0, 4.0, 0.0, -4.0, -9.0, -15.0)[k - 1])[0],
        "low_pass": lambda k: low_pass(clean, (5000.0, 3500.0, 2500.0, 1800.0, 1200.0, 700.0)[k - 1], sample_rate)[0],
        "dropouts": lambda k: drop_out(clean, (0.03, 0.07, 0.13, 0.2, 0.3, 0.45)[k - 1], 40.0, sample_rate, fresh())[0],
        "artefacts": lambda k: suppress(clean, spoilt, (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)[k - 1], fresh())[0],
        "combined": worn,
    }
    made = []
    for name, way in ways.items():
        for k in range(RUNGS):
            wav = clean if k == 0 else way(k)
            made.append(Rung(name, k, _at_level(wav, level), snrs[name][k - 1] if k and name in snrs else None))
    return made
