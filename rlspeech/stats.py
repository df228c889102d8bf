"""Means with bootstrap intervals, paired differences, agreement between gradients.

The interval is the percentile bootstrap with Hesterberg's small-sample expansion ("What teachers should know about the
bootstrap", 2015, section 4.3): the plain percentile interval of a mean is too narrow by about sqrt((n-1)/n) z/t, which is a
quarter at n = 5, so the percentiles are taken further out. From n = 50 on the two are practically the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Values = Sequence[float | None] | np.ndarray
Column = Mapping[str, float | None] | Values  # by key, or in an order
CHUNK, MAX_WORK = 4_000_000, 200_000_000  # resampled values held at once, and in all where 200 resamples need no more
LEVEL = 0.95  # coverage of every interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval."""

    mean: float  # of the valid values; nan where there are none
    lo: float  # lower end; nan below two valid values, where nothing is known about the spread
    hi: float  # upper end
    n: int  # valid values
    dropped: int = 0  # values that were None, nan or infinite, or had no partner

    @property
    def significant(self) -> bool:
        """True where the interval exists and excludes 0."""
        return self.lo > 0 or self.hi < 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nan becomes null."""
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in asdict(self).items()}

    def text(self, digits: int = 3, sign: bool = False) -> str:
        """``0.392 [0.224, 0.531]``; ``-`` where there is no mean."""
        if not math.isfinite(self.mean):
            return "-"
        mean = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        return f"{mean} [{self.lo:.{digits}f}, {self.hi:.{digits}f}]" if math.isfinite(self.lo) else mean


def as_dicts(rows: Mapping[str, Mapping[str, Interval]], *, differences: bool = False) -> dict[str, Any]:
    """Rows of intervals for JSON; ``differences`` say as well whether they are significant."""
    more = (lambda i: {"significant": i.significant}) if differences else lambda i: {}
    return {s: {m: i.as_dict() | more(i) for m, i in row.items()} for s, row in rows.items()}


def interval_columns(prefix: str, found: Mapping[str, Interval]) -> dict[str, float]:
    """Means as flat columns of ``metrics.jsonl``: ``prefix/x``, and ``prefix/x_lo`` and ``prefix/x_hi`` where there is an interval."""
    return {
        f"{prefix}/{name}{end}": value
        for name, i in found.items()
        for end, value in (("", i.mean), ("_lo", i.lo), ("_hi", i.hi))
        if not end or math.isfinite(value)
    }


def mean_interval(values: Values, seed: int = 0, n: int = 2000) -> Interval:
    """Mean with a bootstrap interval over the values.

    Args:
        values: (K,) numbers; None, nan and infinities are dropped and counted.
        seed, n: of the resampling; number of resamples, of which very large sets get fewer (``MAX_WORK``).
    """
    x = _floats(values)
    good = x[np.isfinite(x)]
    dropped, n = len(x) - len(good), min(n, max(200, MAX_WORK // max(1, len(good))))
    if len(good) < 2:
        return Interval(float(good[0]) if len(good) else math.nan, math.nan, math.nan, len(good), dropped)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(good))
    parts = [good[rng.integers(0, len(good), (min(rows, n - start), len(good)))].mean(1) for start in range(0, n, rows)]
    return Interval(float(good.mean()), *_percentiles(np.concatenate(parts), len(good)), len(good), dropped)


def paired_delta(system: Column, baseline: Column, seed: int = 0) -> Interval:
    """Mean of ``system - baseline`` over the items that both have, with a bootstrap interval over the items.

    Values are by key, or (K,) in the same order.

    Raises ``ValueError``: two sequences of different lengths, or a mapping against a sequence.
    """
    if isinstance(system, Mapping) and isinstance(baseline, Mapping):
        keys = sorted({*system, *baseline})
        a, b = _floats([system.get(k) for k in keys]), _floats([baseline.get(k) for k in keys])
    elif isinstance(system, Mapping) or isinstance(baseline, Mapping):
        raise ValueError("paired_delta needs two mappings or two sequences")
    else:
        a, b = _floats(system), _floats(baseline)
        if len(a) != len(b):
            raise ValueError(f"paired_delta got {len(a)} and {len(b)} values")
    with np.errstate(invalid="ignore"):
        return mean_interval(a - b, seed)


def resampled_sums(counts: np.ndarray, seed: int = 0, n: int = 2000) -> np.ndarray:
    """Column sums of bootstrap resamples of the rows, (n, C); for ratios of sums, such as error rates, and for their differences.

    Columns of one call share their resamples: what is computed from several of them is paired. ``counts`` is (K, C), one row an item.
    """
    counts = np.asarray(counts, dtype=np.float64)
    k = len(counts)
    if k == 0:
        return np.zeros((n, counts.shape[1]))
    rng, rows, parts = np.random.default_rng(seed), max(1, CHUNK // k), []
    for start in range(0, n, rows):
        size = min(rows, n - start)
        items = rng.integers(0, k, (size, k)) + k * np.arange(size)[:, None]
        parts.append(np.bincount(items.ravel(), minlength=size * k).reshape(size, k) @ counts)
    return np.concatenate(parts)


def draws_interval(value: float, draws: np.ndarray, items: int) -> Interval:
    """A number with the interval of its bootstrap draws; no interval below two items.

    Args:
        value: from all items.
        draws: (n,) the same from resamples; those that are not finite (a ratio of nothing) are left out.
        items: that were resampled.
    """
    good = draws[np.isfinite(draws)]
    if items < 2 or not len(good) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, items)
    return Interval(value, *_percentiles(good, items), items)


def pairwise_cosine(grads: np.ndarray, seed: int = 0, n: int = 2000) -> Interval:
    """Mean cosine over the pairs of K vectors, with a bootstrap interval over the vectors. 0 means no common signal.

    A resample draws K vectors with replacement; pairs of a vector with itself are left out, for their cosine is 1 by
    construction. Zero and non-finite vectors have no direction: they are dropped and counted. ``grads`` is (K, P).
    """
    grads = np.asarray(grads)
    if grads.ndim != 2:
        raise ValueError(f"pairwise_cosine needs (K, P), got shape {grads.shape}")
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in grads])
    good = np.isfinite(norms) & (norms > 0)
    k, dropped = int(good.sum()), int((~good).sum())
    if k < 2:
        return Interval(math.nan, math.nan, math.nan, k, dropped)
    unit = grads[good] / norms[good, None].astype(grads.dtype if grads.dtype.kind == "f" else np.float64)
    cos = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cos, 0.0)
    mean = cos.sum() / (k * (k - 1))
    weights = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=n).astype(np.float64)  # (n, K)
    pairs = k**2 - (weights**2).sum(1)  # ordered pairs of different vectors in a resample
    sums = ((weights @ cos) * weights).sum(1)
    if k < 3:  # two vectors hold one pair: nothing to resample
        return Interval(float(mean), math.nan, math.nan, k, dropped)
    return Interval(float(mean), *_percentiles(sums[pairs > 0] / pairs[pairs > 0], k), k, dropped)


def spearman(a: Values, b: Values) -> float:
    """Rank correlation of (K,) pairs, ties shared, those with None or nan left out; nan below three or where one side is constant."""
    from scipy.stats import rankdata

    x, y = _floats(a), _floats(b)
    if len(x) != len(y):
        raise ValueError(f"spearman got {len(x)} and {len(y)} values")
    good = np.isfinite(x) & np.isfinite(y)
    if good.sum() < 3:
        return math.nan
    rx, ry = rankdata(x[good]), rankdata(y[good])
    if np.ptp(rx) == 0 or np.ptp(ry) == 0:
        return math.nan
    return float(np.corrcoef(np.stack([rx, ry]))[0, 1])


def _floats(values: Values) -> np.ndarray:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _percentiles(means: np.ndarray, n: int) -> tuple[float, float]:
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _t_quantile((1 + LEVEL) / 2, n - 1))
    lo, hi = np.quantile(means, [tail, 1 - tail])
    return float(lo), float(hi)


def _t_quantile(p: float, df: int) -> float:
    """Student's t quantile by the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5); exact for one and two degrees.

    Published intervals rest on it: the exact quantile moves those of five to nine values in the third decimal.
    """
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / df + second / df**2 + third / df**3)
