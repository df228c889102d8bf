"""Noise from code: each kind is a short numpy function of (seconds, rate, random generator) that answers (T,) float64."""

from __future__ import annotations

import numpy as np

KINDS = {  # test has kinds that training never saw, and new draws of some that it did
    "train": [
        "white",
        "pink",
        "brown",
        "babble",
        "hum",
        "machine",
        "rain",
        "wind",
        "keyboard",
        "fan",
        "clicks",
        "traffic",
        "babble",
        "pink",
        "drill",
        "crowd",
    ],
    "test": ["babble", "pink", "engine", "waves", "dishes", "siren", "fan", "footsteps"],
}


def coloured(n: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose power falls as frequency to the power of ``slope`` (0 white, 1 pink, 2 brown)."""
    f = np.fft.rfftfreq(n)
    shape = np.zeros_like(f)
    shape[1:] = np.maximum(f[1:], 1e-3) ** (-slope / 2)
    wav = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * shape, n)
    return wav / wav.std()


def band(wav: np.ndarray, rate: int, low_hz: float, high_hz: float, width: float = 0.3) -> np.ndarray:
    """Keep a band, with edges that fall over ``width`` octaves."""
    f = np.maximum(np.fft.rfftfreq(len(wav), 1 / rate), 1e-3)
    gain = 1 / (1 + np.exp(-np.log2(f / low_hz) / width * 4)) / (1 + np.exp(np.log2(f / high_hz) / width * 4))
    return np.fft.irfft(np.fft.rfft(wav) * gain, len(wav))


def drift(n: int, rate: int, hz: float, rng: np.random.Generator) -> np.ndarray:
    """A slow random curve with deviation 1 and no content above about ``hz``."""
    f = np.fft.rfftfreq(n, 1 / rate)
    wav = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * np.exp(-((f / hz) ** 2)), n)
    return wav / wav.std()


def bursts(
    n: int,
    rate: int,
    per_s: float,
    rng: np.random.Generator,
    low_hz: float,
    high_hz: float,
    decay_s: float,
    steady: bool = False,
) -> np.ndarray:
    """Short decaying noise bursts, at random moments or (``steady``) at a nearly even pace."""
    wav = np.zeros(n)
    count = max(1, int(per_s * n / rate))
    starts = (
        rng.uniform(0, n, count)
        if not steady
        else (np.arange(count) + 0.5 + 0.1 * rng.standard_normal(count)) * rate / per_s
    )
    length = int(6 * decay_s * rate)
    envelope = np.exp(-np.arange(length) / (decay_s * rate))
    for start in starts.astype(int):
        if 0 <= start < n - 1:
            centre = rng.uniform(0.7, 1.3)
            burst = (
                band(rng.standard_normal(length), rate, low_hz * centre, min(high_hz * centre, rate * 0.45)) * envelope
            )
            piece = burst[: n - start] * np.exp(0.5 * rng.standard_normal())
            wav[start : start + len(piece)] += piece
    return wav


def tone(
    n: int, rate: int, hz: np.ndarray | float, partials: int, slope: float, rng: np.random.Generator
) -> np.ndarray:
    """Harmonics of a frequency (a number or a curve); amplitudes fall as the partial's number to the power of ``slope``."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(np.asarray(hz, dtype=float), n)) / rate
    top = float(np.max(hz))
    return sum(
        (
            k**-slope * rng.uniform(0.5, 1.5) * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
            for k in range(1, partials + 1)
            if k * top < rate * 0.45
        ),
        start=np.zeros(n),
    )


def talker(n: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Something with the rhythm, pitch and formants of speech, and no words."""
    f0 = rng.uniform(90, 240) * 2 ** (0.2 * drift(n, rate, 2.0, rng))
    source = tone(n, rate, f0, 24, 1.0, rng) + 0.3 * coloured(n, 0, rng)
    gates = np.clip(drift(n, rate, 4.0, rng) + 0.3, 0, None) * (drift(n, rate, 0.6, rng) > -0.6)
    formants = [
        band(source, rate, c / 1.25, c * 1.25) * np.clip(1 + 0.6 * drift(n, rate, 6.0, rng), 0, None)
        for c in (rng.uniform(350, 800), rng.uniform(1000, 2200), rng.uniform(2300, 3200))
    ]
    wav = (
        sum((g * f / (f.std() + 1e-9) for g, f in zip((1.0, 0.5, 0.25), formants, strict=True)), start=np.zeros(n))
        * gates
    )
    return wav / (wav.std() + 1e-9)


def make_noise(kind: str, seconds: float, rate: int, seed: int) -> np.ndarray:
    """(T,) float32 noise of a kind named in ``KINDS``, the same for the same seed."""
    rng = np.random.Generator(np.random.Philox(seed))
    n = int(seconds * rate)
    t = np.arange(n) / rate
    if kind in {"white", "pink", "brown"}:
        wav = coloured(n, {"white": 0, "pink": 1, "brown": 2}[kind], rng)
    elif kind in {"babble", "crowd"}:
        wav = sum((talker(n, rate, rng) for _ in range(6 if kind == "babble" else 16)), start=0.3 * coloured(n, 1, rng))
    elif kind == "hum":
        wav = tone(n, rate, 50.0, 12, 0.7, rng) + 0.3 * coloured(n, 1, rng)
    elif kind == "machine":
        beat = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * 7.3 * t))
        wav = (
            tone(n, rate, 118.0, 20, 0.5, rng) * (0.4 + 0.6 * beat)
            + 0.8 * band(coloured(n, 0, rng), rate, 800, 3500) * beat
        )
    elif kind == "rain":
        wav = 0.5 * band(coloured(n, 0.3, rng), rate, 800, 7000) + bursts(n, rate, 90, rng, 1500, 6500, 0.003)
    elif kind in {"wind", "waves"}:
        low, high, slow = (40, 600, 0.8) if kind == "wind" else (150, 4000, 0.25)
        wav = band(coloured(n, 1.0, rng), rate, low, high) * np.exp(0.8 * drift(n, rate, slow, rng))
    elif kind in {"keyboard", "clicks", "dishes", "footsteps"}:
        per_s, low, high, decay = {
            "keyboard": (7, 1200, 6000, 0.008),
            "clicks": (14, 2500, 7000, 0.002),
            "dishes": (3, 2200, 5200, 0.06),
            "footsteps": (1.9, 70, 700, 0.05),
        }[kind]
        wav = bursts(n, rate, per_s, rng, low, high, decay, steady=kind == "footsteps")
        wav = wav / wav.std() + 0.15 * coloured(n, 1, rng)
    elif kind == "fan":
        wav = band(coloured(n, 1.2, rng), rate, 60, 3000) * (1 + 0.2 * np.sin(2 * np.pi * 23 * t)) + 0.3 * tone(
            n, rate, 92.0, 6, 1.0, rng
        )
    elif kind in {"traffic", "engine"}:
        base = 38.0 if kind == "traffic" else 63.0
        hum = tone(n, rate, base * 2 ** (0.15 * drift(n, rate, 0.4, rng)), 30, 0.9, rng)
        wav = hum / hum.std() + coloured(n, 1.5, rng) * np.exp(0.4 * drift(n, rate, 0.5, rng))
    elif kind == "drill":
        wav = tone(n, rate, 310.0 * 2 ** (0.05 * drift(n, rate, 3.0, rng)), 18, 0.3, rng) + 1.5 * coloured(n, 0, rng)
    elif kind == "siren":
        wav = tone(n, rate, 750.0 * 2 ** (0.5 * np.sin(2 * np.pi * 0.4 * t)), 6, 1.2, rng) + 0.3 * coloured(n, 1, rng)
    else:
        raise ValueError(f"unknown kind of noise {kind!r}")
    return (wav / np.abs(wav).max() * 0.5).astype(np.float32)
