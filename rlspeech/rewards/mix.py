"""Several rewards become one: scaling, weights, bounds, directions.

Composition as FlowSE-GRPO states it: R = sum_i w_i r_i / std(r_i), the standard deviation over the current batch, scale only, no
centring (the group advantage centres later), summed *before* the advantage is taken ("sum_then_norm"). The other order,
"norm_then_sum" (as MixGRPO and GDPO): every reward is normalised inside its group and the weighted advantages are added, so that no
reward's spread inside a group outweighs another's. Nothing is centred or divided where there is nothing to divide by: a constant
reward carries no signal and adds 0 (``unit_of`` says what is constant).

Two things rule rewards of recognisers need. A reward may have nothing to judge (keywords where there are none): ``missing`` says
whether such a null leaves the row without a reward or adds 0; a row that no reward judges has none either way. And a hallucination
may be the whole verdict instead of one more term: ``mode`` "override", where the other rewards of that row count for nothing
(arXiv 2509.18569 says "reward = -1" and not which of the two it means).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rlspeech.config import RewardSpec
from rlspeech.rewards.base import column_of, known_column
from rlspeech.types import Score, UserError

FLOOR = 1e-4
Scale = Literal["sum_then_norm", "norm_then_sum"]


class Composed(NamedTuple):
    """What ``compose`` answers."""

    reward: np.ndarray  # (N,) float64, nan where a rewarded score is missing
    # (N, R) float64, every reward signed, clamped and scaled by its spec, *not* weighted, in the order of the specs; 0 where it is skipped
    # or overridden
    parts: np.ndarray
    weights: np.ndarray  # (R,) float64; ``reward`` is ``parts @ weights`` for sum_then_norm


def to_arrays(scores: Mapping[str, Sequence[Score]]) -> dict[str, np.ndarray]:
    """Scores by name -> (N,) float64 by name, nan for null."""
    return {k: np.array([np.nan if s.value is None else s.value for s in v], np.float64) for k, v in scores.items()}


def compose(
    scores: Mapping[str, np.ndarray],
    group: np.ndarray,
    specs: Sequence[RewardSpec],
    how: Scale = "sum_then_norm",
    spread: Sequence[float | None] | None = None,
) -> Composed:
    """Compose N scored rows.

    Args:
        scores: reward name -> (N,), nan where unscorable.
        group: (N,) prompt of every row.
        specs: names, weights, scales ("batch": divide by the batch's standard deviation; "group": z-score inside the group;
            "none"), bounds of the raw score, what a null means, and whether it adds or overrides.
        how: "sum_then_norm" adds the scaled rewards; "norm_then_sum" normalises each inside its group first, whatever its scale.
        spread: a spec's divisor, in place of its scale, where the caller has measured it (inf: the reward adds 0); None: the scale's.

    Returns:
        a ``Composed``. Weight-0 specs poison nothing.

    Raises:
        UserError: a spec names a reward that was not scored, or none has a weight, or an override that is scaled.
    """
    spread = [None] * len(specs) if spread is None else spread
    _refuse(scores, specs, how, spread)
    group = np.asarray(group)
    columns = []
    for spec, unit in zip(specs, spread, strict=True):
        raw = np.asarray(scores[spec.name], np.float64)
        if raw.shape != group.shape:
            raise ValueError(f"{spec.name}: {raw.shape} scores for {group.shape} rows")
        raw = np.where(np.isfinite(raw), raw, np.nan)
        low, high = spec.bounds
        kept = np.clip(raw, low, high) if low is not None or high is not None else raw
        signed = kept if column_of(spec.name).higher_is_better else -kept
        if unit is not None:
            columns.append(signed / unit)
        else:
            z = how == "norm_then_sum" or spec.scale == "group"
            columns.append(np.divide(*centred(signed, group)) if z else signed / divisor(signed, group, spec.scale))
    parts, weights = np.stack(columns, 1), np.array([s.weight for s in specs], np.float64)
    active = weights != 0
    _skip(parts, specs, active)
    _override(parts, specs, weights)
    reward = parts[:, active] @ weights[active]  # nan in any rewarded score makes the row nan
    return Composed(reward, parts, weights)


def _refuse(scores: Mapping[str, Any], specs: Sequence[RewardSpec], how: Scale, spread: Sequence[float | None]) -> None:
    missing = [s.name for s in specs if s.name not in scores]
    if missing:
        raise UserError(f"no scores for {', '.join(missing)}", f"scored: {', '.join(scores)}", "")
    if not any(s.weight for s in specs):
        why = "a composition needs one whose weight is not 0"
        raise UserError("no reward has a weight", why, "--set rewards.0.weight=1")
    for s, unit in zip(specs, spread, strict=True):
        why = f"scale {s.scale} moves the 0 below which it overrides" if s.scale != "none" and unit is None else ""
        if s.weight < 0:
            why = "its weight is negative, so a bad score would be a good verdict"
        if how == "norm_then_sum":
            why = "norm_then_sum normalises every reward by itself, and a row has one verdict"
        if s.mode == "override" and why:
            hint = "advantage: sum_then_norm, and for that reward scale: none and a weight above 0; or mode: add"
            raise UserError(f"{s.name} cannot override the other rewards", why, hint)


def _skip(parts: np.ndarray, specs: Sequence[RewardSpec], active: np.ndarray) -> None:
    """Nulls of rewards that may have nothing to judge become 0, in place, in the rows that another reward judges."""
    judged = np.isfinite(parts[:, active]).any(1)
    for i, spec in enumerate(specs):
        null = ~np.isfinite(parts[:, i])
        optional = getattr(known_column(spec.name), "optional", False) if spec.missing == "auto" else False
        if null.any() and (spec.missing == "skip" or optional):
            parts[null & judged, i] = 0.0


def _override(parts: np.ndarray, specs: Sequence[RewardSpec], weights: np.ndarray) -> None:
    """Where an overriding reward is below 0 the lowest such one keeps its part and all others become 0, in place."""
    verdict = np.full(len(parts), -1)
    lowest = np.zeros(len(parts))
    for i, spec in enumerate(specs):
        if spec.mode == "override" and spec.weight:
            weighted = np.where(np.isfinite(parts[:, i]), parts[:, i] * weights[i], 0.0)
            verdict, lowest = np.where(weighted < lowest, i, verdict), np.minimum(weighted, lowest)
    for i in range(len(specs)):
        parts[(verdict >= 0) & (verdict != i), i] = 0.0


def divisor(x: np.ndarray, group: np.ndarray, scale: str) -> np.ndarray:
    """(N,) what each row's score is divided by (``unit_of``): by the spread of the batch or of its group, or 1 ("none")."""
    if scale == "none":
        return np.ones(len(x))
    return centred(x, group if scale == "group" else np.zeros(len(x)))[1]


def centred(x: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) less the mean of their group's scorable ones, and what to divide by, each row by its group's spread (``unit_of``)."""
    _, index = np.unique(group, return_inverse=True)
    good = np.isfinite(x)
    count = np.maximum(np.bincount(index, good), 1)
    away = x - (np.bincount(index, np.where(good, x, 0.0)) / count)[index]
    spread = np.sqrt(np.bincount(index, np.where(good, away**2, 0.0)) / count)[index]
    return away, unit_of(spread, float(np.square(x[good]).mean()) if good.any() else 0.0)


def unit_of(spread: np.ndarray | float, power: float) -> np.ndarray:
    """What to divide rewards by: sqrt(spread^2 + floor^2); inf, so that they become 0, where the spread is not above the floor.

    The field adds 1e-4 to a deviation, for rewards of order 1. Here the floor is 1e-4 of the reward's size in the whole batch, the root
    of its mean square (``power``), so that the same rewards in another unit have the same advantages. The size and not the batch's own
    spread: where every reward of a batch is the same but for rounding, its spread is rounding too. And added in squares: a real spread
    divides as published.
    """
    floor = FLOOR * power**0.5
    return np.where(spread > floor, np.hypot(spread, floor), np.inf)
