"""Labels of a recording whose clean reference is known: a measured quality from 1 to 5, and graded traits.

The textbook version takes ratings of people (ITU-T P.808). None can be had for recordings that are made while a program runs, so the
overall quality is *measured* against the reference, by three scales that fail in different places and are averaged:

* PESQ (wide band), square root of its height above 1: follows rated quality best, reacts to muffling, but has a floor near 1.03 below
  5 dB and would call all bad recordings alike; the root spreads what it has there;
* ESTOI, on 0.15..1: falls steadily where PESQ lies at its floor, and reacts to gaps and rooms;
* SI-SDR, on -5..25 dB: an even ruler for noise, but blind to what hurts (a low-pass filter leaves it high).

Weights 0.4, 0.35, 0.25; the sum is stretched so that white noise at -5 dB is 1 and at 25 dB above 4. Without the pesq package the other two
share its weight, which react to muffling less. The level of the recording does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from rlspeech.data.degrade import TRAITS, Degraded
from rlspeech.rewards.intrusive import si_sdr, stoi_estoi

__all__ = ["labels_of", "quality", "row_of"]

WEIGHTS = {"pesq": 0.4, "estoi": 0.35, "si_sdr": 0.25}
LOW, HIGH = 0.12, 0.92  # of the weighted sum: 1 and 5


def quality(reference: np.ndarray, degraded: np.ndarray, sample_rate: int = 16000) -> float:
    """Quality 1..5 of ``degraded`` (T,) against ``reference`` (T,), aligned.

    Raises:
        ValueError: too little speech in the reference to measure anything.
    """
    scales = {
        "estoi": _unit(stoi_estoi(reference, degraded, sample_rate)[1], 0.15, 1.0),
        "si_sdr": _unit(si_sdr(reference, degraded), -5.0, 25.0),
    }
    raw = _pesq(reference, degraded, sample_rate)
    if raw is not None:
        scales["pesq"] = _unit(raw, 1.0, 4.64) ** 0.5
    total = sum(WEIGHTS[k] * v for k, v in scales.items()) / sum(WEIGHTS[k] for k in scales)
    return 1.0 + 4.0 * _unit(total, LOW, HIGH)


def row_of(made: Degraded, stars: float) -> dict[str, float]:
    """Manifest columns of a labelled recording: ``quality``, ``trait_...`` and ``level_dbfs``."""
    traits = {f"trait_{k}": round(made.severity[k], 4) for k in TRAITS}
    return {"quality": round(stars, 4), **traits, "level_dbfs": round(made.level_dbfs, 2)}


def labels_of(columns: Mapping[str, Any]) -> dict[str, float] | None:
    """The labels that ``row_of`` wrote, or None where a row does not hold all of them as numbers."""
    names = ("quality", *(f"trait_{k}" for k in TRAITS), "level_dbfs")
    values = [columns.get(n) for n in names]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values):
        return None
    return {n.removeprefix("trait_"): float(v) for n, v in zip(names, values, strict=True) if v is not None}


def _unit(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


@lru_cache(maxsize=1)
def _pesq_reward() -> Any:
    from rlspeech.rewards.intrusive import PesqWb

    try:
        return PesqWb()
    except Exception:  # not installed, or not compiled: the other scales answer
        return None


def _pesq(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float | None:
    reward = _pesq_reward()
    return None if reward is None else reward.pair(reference, degraded, sample_rate)["pesq_wb"].value
