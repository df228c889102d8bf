"""Made-up signals that behave like speech for the metrics: voiced bursts with formants, pauses, and noise; and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlspeech.rewards.scorer import Scorer
from rlspeech.types import Sample, Score

RATE = 16000
NOTHING = np.zeros(0, np.float32)


def voice(
    seconds: float, f0_hz: float = 120.0, seed: int = 0, formants_hz: tuple[float, ...] = (600.0, 1500.0, 2600.0)
) -> np.ndarray:
    """(T,) float32: syllables at 4 Hz with a moving pitch."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = f0_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    wav = np.zeros_like(t)
    for k in range(1, int(7000 / f0_hz)):
        gain = sum(np.exp(-(((k * f0_hz - f) / 250.0) ** 2)) for f in formants_hz) + 0.02
        wav += gain * np.sin(k * phase + rng.uniform(0, 6))
    envelope = np.clip(np.sin(2 * np.pi * 2 * t + rng.uniform(0, 6)), 0, None) ** 0.5
    wav = wav * envelope + 1e-3 * rng.standard_normal(len(t))
    return (0.1 * wav / np.sqrt(np.mean(wav**2))).astype(np.float32)


def with_noise(wav: np.ndarray, snr_db: float, seed: int = 0) -> np.ndarray:
    """(T,) float32: white noise added at an SNR."""
    noise = np.random.default_rng(seed + 100).standard_normal(len(wav))
    return (wav + noise * np.sqrt(np.mean(wav**2) * 10 ** (-snr_db / 10))).astype(np.float32)


def sample(
    wav: Any = NOTHING, key: str = "a", *, target: Any = None, rate: int = RATE, tokens: Any = None, **rest: Any
) -> Sample:
    """A sample to be scored; what is no field of it is a column of its row."""
    ids = None if tokens is None else np.asarray(tokens, np.int64)
    fields = {k: rest.pop(k) for k in ("text", "hypothesis", "finished") if k in rest}
    return Sample(key, np.asarray(wav, np.float32), rate, target, columns=rest, tokens=ids, **fields)


def scored(samples: Sequence[Sample], *names: str, **options: Any) -> dict[str, list[Score]]:
    """Scores by reward, computed in this process; the options are for each of them."""
    with Scorer(names, workers=0, options={n: options for n in names}) as scorer:
        return scorer.score(samples)
