"""Intervals: coverage, agreement with scipy, and what missing values do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlspeech import stats
from rlspeech.stats import draws_interval, mean_interval, paired_delta, pairwise_cosine, resampled_sums, spearman


def test_interval_agrees_with_students_t_on_normal_data() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, 40)
    ours = mean_interval(x, n=20_000)
    lo, hi = scipy_stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=scipy_stats.sem(x))
    assert ours.mean == pytest.approx(x.mean())
    assert (ours.hi - ours.lo) == pytest.approx(hi - lo, rel=0.04)
    assert ours.lo == pytest.approx(lo, abs=0.06) and ours.hi == pytest.approx(hi, abs=0.06)


def test_coverage_at_ten_values() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        interval = mean_interval(rng.normal(0.0, 1.0, 10), seed=trial, n=400)
        hits += interval.lo <= 0 <= interval.hi
    assert 0.92 <= hits / 400 <= 0.98  # the plain percentile interval reaches about 0.90 here


@pytest.mark.parametrize("items", [3, 4, 6, 10, 31, 301])
def test_percentiles_are_expanded_by_students_t(items: int) -> None:
    found = draws_interval(0.5, np.linspace(0, 1, 100_001), items)
    reach = np.sqrt(items / (items - 1)) * scipy_stats.t.ppf(0.975, items - 1)
    assert -scipy_stats.norm.ppf(found.lo) == pytest.approx(reach, rel=1e-2) and found.hi == pytest.approx(1 - found.lo)


def test_missing_values_are_dropped_and_counted() -> None:
    interval = mean_interval([1.0, None, 2.0, math.nan, 3.0, math.inf])
    assert (interval.mean, interval.n, interval.dropped) == (2.0, 3, 3)


def test_too_few_values_have_no_interval_and_no_significance() -> None:
    for values in ([], [None], [5.0]):
        interval = mean_interval(values)
        assert math.isnan(interval.lo) and not interval.significant
    assert mean_interval([]).as_dict()["mean"] is None
    assert mean_interval([]).text() == "-"


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).normal(size=50)
    assert mean_interval(x, seed=3) == mean_interval(x, seed=3)
    assert mean_interval(x, seed=3) != mean_interval(x, seed=4)
    whole = mean_interval(x, seed=3)
    monkeypatch.setattr("rlspeech.stats.CHUNK", 60 * 50)
    assert mean_interval(x, seed=3) == whole


def test_paired_delta_is_sharper_than_the_spread_and_pairs_by_key() -> None:
    rng = np.random.default_rng(3)
    base = {f"u{i}": float(v) for i, v in enumerate(rng.normal(0, 10, 60))}
    better = {k: v + 0.5 + rng.normal(0, 0.1) for k, v in reversed(base.items())}
    delta = paired_delta(better, base)
    assert delta.significant and delta.mean == pytest.approx(0.5, abs=0.05) and delta.hi - delta.lo < 0.1
    assert not stats.Interval(0.1, -0.1, 0.3, 5).significant
    assert stats.Interval(-0.2, -0.3, -0.1, 5).significant


def test_paired_delta_counts_items_without_a_partner() -> None:
    delta = paired_delta({"a": 1.0, "b": 2.0, "c": None, "d": 4.0}, {"a": 0.0, "b": 1.0, "c": 1.0, "e": 9.0})
    assert (delta.mean, delta.n, delta.dropped) == (1.0, 2, 3)
    with pytest.raises(ValueError, match="2 and 3"):
        paired_delta([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="mappings"):
        paired_delta({"a": 1.0}, [1.0])


def _brute_cosine(grads: np.ndarray) -> float:
    units = [g / np.linalg.norm(g) for g in grads]
    return float(np.mean([units[i] @ units[j] for i in range(len(units)) for j in range(i)]))


def test_cosine_matches_the_definition_and_is_scale_free() -> None:
    rng = np.random.default_rng(4)
    grads = rng.normal(size=(9, 50)) + 0.5
    interval = pairwise_cosine(grads)
    assert interval.mean == pytest.approx(_brute_cosine(grads))
    assert interval.lo < interval.mean < interval.hi and interval.n == 9
    assert pairwise_cosine(grads * rng.uniform(0.1, 10, (9, 1))).mean == pytest.approx(interval.mean)
    assert pairwise_cosine(grads.astype(np.float32)).mean == pytest.approx(interval.mean, abs=1e-6)


def test_cosine_of_noise_holds_zero_and_of_a_common_direction_does_not() -> None:
    rng = np.random.default_rng(5)
    hits = sum(pairwise_cosine(rng.normal(size=(24, 4000)), seed=i, n=500).significant for i in range(60))
    assert hits <= 9  # 5 % nominal
    common = pairwise_cosine(rng.normal(size=(24, 4000)) + rng.normal(size=4000))
    assert common.significant and common.mean == pytest.approx(0.5, abs=0.05)
    assert pairwise_cosine(np.ones((4, 3))).mean == pytest.approx(1.0)


def test_cosine_drops_vectors_without_a_direction() -> None:
    grads = np.random.default_rng(6).normal(size=(6, 10))
    bad = np.vstack([grads, np.zeros(10), np.full(10, np.nan)])
    got = pairwise_cosine(bad)
    assert (got.n, got.dropped) == (6, 2) and got.mean == pytest.approx(_brute_cosine(grads))
    assert math.isnan(pairwise_cosine(np.zeros((5, 3))).mean)
    assert math.isnan(pairwise_cosine(grads[:2]).lo)
    with pytest.raises(ValueError, match="K, P"):
        pairwise_cosine(np.zeros(5))


def test_spearman_matches_scipy_with_ties() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    assert spearman(a, b + a) == pytest.approx(scipy_stats.spearmanr(a, b + a).statistic)
    assert spearman([1, 2, None, 4, 5], [1, 2, 3, 8, math.nan]) == pytest.approx(1.0)
    assert math.isnan(spearman([1, 2], [1, 2])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_resampled_sums_share_their_draws_and_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (30, 3)).astype(float)
    counts[:, 2] = counts[:, 0] + counts[:, 1]
    sums = resampled_sums(counts, seed=3, n=3000)
    assert sums.shape == (3000, 3) and np.allclose(sums[:, 2], sums[:, 0] + sums[:, 1])  # one draw for all columns
    assert np.allclose(sums.mean(0), counts.sum(0), rtol=0.02)
    assert np.allclose(sums[:, 0].std(), counts[:, 0].std() * np.sqrt(30), rtol=0.06)
    assert np.array_equal(sums, resampled_sums(counts, seed=3, n=3000))
    assert resampled_sums(np.zeros((0, 2)), n=5).shape == (5, 2)


def test_an_interval_of_draws_leaves_out_what_is_not_a_number() -> None:
    draws = np.concatenate([np.linspace(-1, 1, 2001), [np.nan, np.inf]])
    found = draws_interval(0.0, draws, 1000)
    assert found.lo == pytest.approx(-0.95, abs=0.01) and found.hi == pytest.approx(0.95, abs=0.01)
    for value, some, items in ((1.0, draws, 1), (float("nan"), draws, 9), (1.0, np.array([np.nan]), 9)):
        assert np.isnan(draws_interval(value, some, items).lo)
