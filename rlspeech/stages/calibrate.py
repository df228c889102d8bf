"""How well rewards follow a known order: rank correlation on degradation ladders, with SNR, and with each other.

Spearman's correlation, signed so that +1 is a reward that always calls the less degraded clip the better one. *Within* is the mean over
ladders (one utterance, one way of degrading it), *pooled* ranks all clips together: a judge can order each ladder perfectly and still not
compare a muffled clip with a noisy one. Intervals are bootstraps over utterances where they are named (the ladders of one utterance share
its voice and its noise), else over ladders, else over clips; what is undefined (too few clips, a constant reward) is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.stats import Interval, mean_interval, spearman

__all__ = [
    "Correlation",
    "calibrate",
    "calibration_heading",
    "calibration_rows",
    "has_order",
    "print_calibration",
    "text_of",
]

RESAMPLES = 500
MAX_WORK = 1_000_000  # clips times resamples: larger sets get fewer resamples
Row = Mapping[str, Any]
Correlation = dict[str, Any]  # value, lo, hi, n: null where undefined


def has_order(rows: Sequence[Row]) -> bool:
    """True where at least three rows say how far they are degraded, or at which SNR they are, and they do not all say the same."""
    return any(
        len({v for r in rows if (v := _number(r.get(key))) is not None}) >= 2
        and sum(_number(r.get(key)) is not None for r in rows) >= 3
        for key in ("rung", "snr_db")
    )


def calibrate(rows: Sequence[Row], better: Mapping[str, bool], seed: int = 0) -> dict[str, Any]:
    """Correlations of every reward.

    Args:
        rows: one a clip: the rewards' values by name (None where null), and ``rung`` (0 untouched), ``ladder``, ``clean_id``, ``snr_db``
            as far as they are known.
        better: reward -> higher is better.
        seed: of the bootstrap.

    Returns:
        ``n``, ``ladders``, ``utterances``; ``rewards``: name -> ``within`` (mean over ladders, its interval), ``pooled``, ``snr`` and
        ``ladder`` (name of a way -> mean over its ladders); ``between``: rows of ``a``, ``b`` and their correlation.
    """
    values = {name: _column(rows, name) * (1 if up else -1) for name, up in better.items()}
    order, snr = -_column(rows, "rung"), _column(rows, "snr_db")
    ladder = [
        f"{r.get('clean_id', '')}\0{r['ladder']}"
        if r.get("ladder") is not None and _number(r.get("rung")) is not None
        else None
        for r in rows
    ]
    named = [
        r.get("clean_id") if r.get("clean_id") is not None else group for r, group in zip(rows, ladder, strict=True)
    ]
    clusters = [str(c) if c is not None else f"\0{i}" for i, c in enumerate(named)]
    ways = sorted({str(r["ladder"]) for r, group in zip(rows, ladder, strict=True) if group is not None})
    found: dict[str, Any] = {}
    for name, value in values.items():
        means = _within(value, order, ladder, seed, clusters)
        by_way = {
            way: _within(
                value, order, [g if g is not None and g.endswith(f"\0{way}") else None for g in ladder], seed, clusters
            )
            for way in ways
        }
        found[name] = {
            "within": means,
            "pooled": _pooled(value, order, clusters, seed),
            "snr": _pooled(value, snr, clusters, seed),
            "ladder": by_way,
        }
    names = list(better)
    between = [
        {"a": a, "b": b, **_pooled(values[a], values[b], clusters, seed)}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return {
        "n": len(rows),
        "ladders": len({g for g in ladder if g is not None}),
        "utterances": len(set(clusters)),
        "rewards": found,
        "between": between,
    }


def calibration_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The table: a line a reward, then a line a pair of rewards."""
    if not result["ladders"]:
        lines = [[f"{name} with the SNR", text_of(r["snr"])] for name, r in result["rewards"].items()]
        return lines + [[f"{pair['a']} with {pair['b']}", text_of(pair)] for pair in result["between"]]
    lines = [[name, *(text_of(r[k]) for k in ("within", "pooled", "snr"))] for name, r in result["rewards"].items()]
    return lines + [[f"{pair['a']} with {pair['b']}", "", text_of(pair), ""] for pair in result["between"]]


def calibration_heading(result: Mapping[str, Any]) -> list[str]:
    """The table's columns: without ladders there is no order but that of the SNR."""
    return (
        ["reward", "order within a ladder", "order, all clips", "SNR"]
        if result["ladders"]
        else ["reward", "correlation"]
    )


def print_calibration(result: Mapping[str, Any]) -> None:
    """Print the table."""
    where = f"{result['n']} clips" + (f" in {result['ladders']} ladders" if result["ladders"] else "")
    notes = [
        f"Spearman correlation with 95 % intervals over {where}; +1: the less degraded clip always scores better, 0: by chance"
    ]
    log.table(
        "Calibration: do the rewards follow what is known?",
        calibration_heading(result),
        calibration_rows(result),
        notes,
    )


def _within(
    value: np.ndarray, order: np.ndarray, ladder: Sequence[str | None], seed: int, clusters: Sequence[str]
) -> Correlation:
    """Mean over ladders; the interval is over the utterances' means."""
    groups: dict[str, list[int]] = {}
    for i, group in enumerate(ladder):
        if group is not None:
            groups.setdefault(group, []).append(i)
    per: dict[str, list[float]] = {}
    undefined = 0
    for rows in groups.values():
        rho = spearman(value[rows], order[rows])
        if math.isfinite(rho):
            per.setdefault(clusters[rows[0]], []).append(rho)
        else:
            undefined += 1
    every = [rho for rhos in per.values() for rho in rhos]
    if not every:
        return {"value": None, "lo": None, "hi": None, "n": 0, "undefined": undefined}
    interval: Interval = mean_interval([float(np.mean(rhos)) for rhos in per.values()], seed)
    return {
        "value": float(np.mean(every)),
        "lo": _null(interval.lo),
        "hi": _null(interval.hi),
        "n": len(every),
        "undefined": undefined,
    }


def _pooled(a: np.ndarray, b: np.ndarray, clusters: Sequence[str], seed: int) -> Correlation:
    """Correlation over all clips, with an interval from resampled clusters."""
    good = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    rho = spearman(a[good], b[good])
    if not math.isfinite(rho):
        return {"value": None, "lo": None, "hi": None, "n": len(good)}
    groups: dict[str, list[int]] = {}
    for i in map(int, good):
        groups.setdefault(clusters[i], []).append(i)
    parts = [np.array(g) for g in groups.values()]
    lo = hi = math.nan
    if len(parts) >= 3:
        rng = np.random.default_rng(seed)
        drawn = []
        for _ in range(int(min(RESAMPLES, max(200, MAX_WORK // len(good))))):
            rows = np.concatenate([parts[int(k)] for k in rng.integers(0, len(parts), len(parts))])
            drawn.append(spearman(a[rows], b[rows]))
        kept = np.array([d for d in drawn if math.isfinite(d)])
        if len(kept) >= 0.9 * len(drawn):
            lo, hi = (float(q) for q in np.quantile(kept, [0.025, 0.975]))
    return {"value": rho, "lo": _null(lo), "hi": _null(hi), "n": len(good)}


def text_of(found: Correlation) -> str:
    """``+0.91 [+0.88, +0.94]``; ``-`` where it is undefined."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:+.3f}" + (f" [{found['lo']:+.3f}, {found['hi']:+.3f}]" if found["lo"] is not None else "")


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    found = (_number(r.get(name)) for r in rows)
    return np.array([math.nan if v is None else v for v in found], dtype=np.float64)


def _number(value: Any) -> float | None:
    """A finite number, or None: manifests hold what people write into them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
