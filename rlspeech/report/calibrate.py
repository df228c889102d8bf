"""How well rewards follow a known order: rank correlation on degradation ladders, with SNR, and with each other.

Spearman's correlation, signed so that +1 is a reward that always calls the less degraded clip the better one. *Within* is the mean over
ladders (one utterance, one way of degrading it), *pooled* ranks all clips together: a judge can order each ladder perfectly and still not
compare a muffled clip with a noisy one. Intervals are bootstraps over utterances where they are named (the ladders of one utterance share
its voice and its noise), else over ladders, else over clips; what is undefined (too few clips, a constant reward) is null.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.report import Grid
from rlspeech.report.runs import number
from rlspeech.stats import mean_interval, spearman

ORDER = ("rung", "ladder", "snr_db", "clean_id")
RESAMPLES = 500
MAX_WORK = 1_000_000  # clips times resamples: larger sets get fewer resamples
Row = Mapping[str, Any]
Rows = Mapping[str, Row]  # key -> row
Correlation = dict[str, Any]  # value, lo, hi, n: null where undefined


def has_order(rows: Sequence[Row]) -> bool:
    """True where at least three rows say how far they are degraded, or at which SNR they are, and they do not all say the same."""
    columns = [[v for r in rows if (v := number(r.get(key))) is not None] for key in ("rung", "snr_db")]
    return any(len(set(c)) >= 2 and len(c) >= 3 for c in columns)


def calibrated(rows: Rows, columns: Rows, better: Mapping[str, bool], seed: int) -> dict[str, Any] | None:
    """Correlations of scored items with the order that their columns carry; None where they carry none.

    Args:
        rows: key -> scores.
        columns: key -> what is known of the item, which tells its place in the order.
        better: reward -> higher is better.
    """
    known = {k: {c: v for c, v in found.items() if c in ORDER} for k, found in columns.items()}
    merged = [{**columns[k], **rows.get(k, {}), **known[k]} for k in columns]
    return calibrate(merged, better, seed) if has_order(merged) else None


def calibrate(rows: Sequence[Row], better: Mapping[str, bool], seed: int = 0) -> dict[str, Any]:
    """Correlations of every reward.

    Args:
        rows: one a clip: the rewards' values by name (None where null), and ``rung`` (0 untouched), ``ladder``, ``clean_id``, ``snr_db``
            as far as they are known.
        better: reward -> higher is better.

    Returns:
        ``n``, ``ladders``, ``utterances``; ``rewards``: name -> ``within`` (mean over ladders, its interval), ``pooled``, ``snr`` and
        ``ladder`` (name of a way -> mean over its ladders); ``between``: rows of ``a``, ``b`` and their correlation.
    """
    values = {name: _column(rows, name) * (1 if up else -1) for name, up in better.items()}
    order, snr = -_column(rows, "rung"), _column(rows, "snr_db")
    placed = [r.get("ladder") is not None and number(r.get("rung")) is not None for r in rows]
    ways = [str(r["ladder"]) if here else None for r, here in zip(rows, placed, strict=True)]
    ladder = [None if w is None else f"{r.get('clean_id', '')}\0{r['ladder']}" for r, w in zip(rows, ways, strict=True)]
    named = [group if r.get("clean_id") is None else r["clean_id"] for r, group in zip(rows, ladder, strict=True)]
    clusters = [f"\0{i}" if c is None else str(c) for i, c in enumerate(named)]

    def within(value: np.ndarray, way: str | None = None) -> Correlation:
        some = [g if way is None or w == way else None for g, w in zip(ladder, ways, strict=True)]
        return _within(value, order, some, seed, clusters)

    pooled = partial(_pooled, clusters=clusters, seed=seed)
    every = sorted({w for w in ways if w is not None})
    rewards = {
        name: {"within": within(v), "pooled": pooled(v, order), "snr": pooled(v, snr)}
        | {"ladder": {way: within(v, way) for way in every}}
        for name, v in values.items()
    }
    pairs = itertools.combinations(better, 2)
    return {
        "n": len(rows),
        "ladders": len({g for g in ladder if g is not None}),
        "utterances": len(set(clusters)),
        "rewards": rewards,
        "between": [{"a": a, "b": b, **pooled(values[a], values[b])} for a, b in pairs],
    }


def calibration_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns, and a line a reward, then a line a pair of rewards; without ladders there is no order but that of the SNR."""
    rewards, between = result["rewards"].items(), [(f"{p['a']} with {p['b']}", text_of(p)) for p in result["between"]]
    if not result["ladders"]:
        lines = [[f"{name} with the SNR", text_of(r["snr"])] for name, r in rewards]
        return ["reward", "correlation"], lines + [[pair, text] for pair, text in between]
    lines = [[name, *(text_of(r[k]) for k in ("within", "pooled", "snr"))] for name, r in rewards]
    heading = ["reward", "order within a ladder", "order, all clips", "SNR"]
    return heading, lines + [[pair, "", text, ""] for pair, text in between]


def calibration_grids(result: Mapping[str, Any] | None) -> list[Grid]:
    """The tables of a page."""
    if result is None:
        return []
    ladders = f"{result['ladders']} ladders, " if result["ladders"] else ""
    note = (
        f"Spearman correlation, +1 where the less degraded clip always has the better score; {result['n']} clips, {ladders}"
        f"{result['utterances']} utterances. Intervals: bootstrap over utterances, 95 %."
    )
    grids = [Grid("Calibration", *calibration_table(result), note)]
    ways = list(dict.fromkeys(way for r in result["rewards"].values() for way in r["ladder"]))
    if ways:
        rows = [[way, *(text_of(r["ladder"][way]) for r in result["rewards"].values())] for way in ways]
        grids.append(Grid("Order within a ladder, by the way of degrading", ["ladder", *result["rewards"]], rows))
    return grids


def print_calibration(result: Mapping[str, Any]) -> None:
    """Print the table."""
    where = f"{result['n']} clips" + (f" in {result['ladders']} ladders" if result["ladders"] else "")
    what = f"Spearman correlation with 95 % intervals over {where}"
    note = f"{what}; +1: the less degraded clip always scores better, 0: by chance"
    log.table("Calibration: do the rewards follow what is known?", *calibration_table(result), [note])


def _within(
    value: np.ndarray, order: np.ndarray, ladder: Sequence[str | None], seed: int, clusters: Sequence[str]
) -> Correlation:
    """Mean over ladders; the interval is over the utterances' means."""
    groups: dict[str, list[int]] = {}
    for i, group in enumerate(ladder):
        if group is not None:
            groups.setdefault(group, []).append(i)
    per: dict[str, list[float]] = {}
    for rows in groups.values():
        if math.isfinite(rho := spearman(value[rows], order[rows])):
            per.setdefault(clusters[rows[0]], []).append(rho)
    every = [rho for rhos in per.values() for rho in rhos]
    interval = mean_interval([float(np.mean(rhos)) for rhos in per.values()], seed).as_dict()
    found: Correlation = {"value": float(np.mean(every)) if every else None, "lo": interval["lo"], "hi": interval["hi"]}
    return {**found, "n": len(every), "undefined": len(groups) - len(every)}


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
        resampled = []
        for _ in range(int(min(RESAMPLES, max(200, MAX_WORK // len(good))))):
            rows = np.concatenate([parts[int(k)] for k in rng.integers(0, len(parts), len(parts))])
            resampled.append(spearman(a[rows], b[rows]))
        kept = np.array([rho for rho in resampled if math.isfinite(rho)])
        if len(kept) >= 0.9 * len(resampled):
            lo, hi = (float(q) for q in np.quantile(kept, [0.025, 0.975]))
    return {"value": rho, **{k: v if math.isfinite(v) else None for k, v in (("lo", lo), ("hi", hi))}, "n": len(good)}


def text_of(found: Correlation) -> str:
    """``+0.91 [+0.88, +0.94]``; ``-`` where it is undefined."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:+.3f}" + (f" [{found['lo']:+.3f}, {found['hi']:+.3f}]" if found["lo"] is not None else "")


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    found = (number(r.get(name)) for r in rows)
    return np.array([math.nan if v is None else v for v in found], dtype=np.float64)
