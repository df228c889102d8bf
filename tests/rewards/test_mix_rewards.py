"""Composition: the published formula, missing scores, directions, verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.config import RewardSpec
from rlspeech.rewards.mix import compose, to_arrays
from rlspeech.types import Score, UserError

GROUP = np.repeat(np.arange(4), 5)
RNG = np.random.default_rng(0)
A, B = RNG.normal(3, 2, 20), RNG.normal(-1, 0.1, 20)


def specs(*rows):
    return [RewardSpec(name=n, weight=w, **rest) for n, w, rest in rows]


def mixed(scores, rows, group=GROUP, **more):
    return compose(scores, group, rows, **more)


PLAIN = specs(("estoi", 1.0, {}), ("stoi", 1.0, {}))
WAYS = [(how, scale) for how in ("sum_then_norm", "norm_then_sum") for scale in ("batch", "group", "none")]


def test_published_composition_divides_by_the_batch_deviation_and_does_not_centre():
    out = mixed({"estoi": A, "stoi": B}, specs(("estoi", 0.6, {}), ("stoi", 1.0, {})))
    np.testing.assert_allclose(out.reward, 0.6 * A / A.std() + B / B.std(), rtol=1e-5)
    np.testing.assert_allclose(out.reward, out.parts @ out.weights)
    scaled = mixed({"estoi": 7 * A, "stoi": B / 4}, specs(("estoi", 0.6, {}), ("stoi", 1.0, {})))
    np.testing.assert_allclose(scaled.reward, out.reward)  # units do not matter


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5), st.floats(0.01, 100))
def test_group_scale_ignores_offset_and_unit_and_is_centred(offset, unit):
    one = mixed({"estoi": A}, specs(("estoi", 1.0, {"scale": "group"}))).reward
    two = mixed({"estoi": offset + unit * A}, specs(("estoi", 1.0, {"scale": "group"}))).reward
    np.testing.assert_allclose(one, two, atol=1e-6 + 2 * (5e-4 / (unit * 0.3)) ** 2)  # far from 0 the floor is higher
    for g in range(4):
        assert abs(one[GROUP == g].mean()) < 1e-9 and one[GROUP == g].std() == pytest.approx(1, abs=1e-5)


def test_norm_then_sum_weighs_equal_spreads_where_sum_then_norm_does_not():
    """A reward that varies little inside groups and much between them counts in full only when normalised first."""
    between = np.repeat([0.0, 10.0, 20.0, 30.0], 5) + RNG.normal(0, 0.1, 20)
    first = mixed({"estoi": between, "stoi": B}, PLAIN, how="norm_then_sum")
    np.testing.assert_allclose(first.parts.std(0), [1, 1], rtol=1e-3)
    np.testing.assert_allclose(first.reward, first.parts.sum(1))
    summed = mixed({"estoi": between, "stoi": B}, PLAIN)
    centred = summed.parts - np.stack([summed.parts[GROUP == g].mean(0) for g in GROUP])
    assert centred[:, 0].std() < 0.05 * centred[:, 1].std()


def test_a_spread_that_the_caller_has_measured_takes_the_place_of_the_scale():
    rows = specs(("estoi", 0.6, {}), ("stoi", 1.0, {"scale": "group"}))
    plain = mixed({"estoi": A, "stoi": B}, rows, spread=[1.0, 1.0])
    np.testing.assert_array_equal(plain.parts, np.stack([A, B], 1))
    partly = mixed({"estoi": A, "stoi": B}, rows, spread=[2.0, None])
    own = mixed({"estoi": A, "stoi": B}, rows)
    np.testing.assert_array_equal(partly.parts[:, 0], A / 2)
    np.testing.assert_array_equal(partly.parts[:, 1], own.parts[:, 1])
    nothing = mixed({"estoi": A, "stoi": B}, rows, spread=[np.inf, 1.0])
    np.testing.assert_array_equal(nothing.reward, B)


def test_missing_scores_make_the_row_nan_and_move_no_other():
    a = A.copy()
    a[[2, 7]] = np.nan
    keep = np.delete(np.arange(20), [2, 7])
    for how, scale in WAYS:
        scaled = specs(("estoi", 1.0, {"scale": scale}))
        out = mixed({"estoi": a, "stoi": B}, [*scaled, *PLAIN[1:]], how=how)
        assert np.isnan(out.reward).nonzero()[0].tolist() == [2, 7]
        without = mixed({"estoi": a[keep], "stoi": B[keep]}, scaled, GROUP[keep], how=how)
        np.testing.assert_allclose(out.parts[keep, 0], without.parts[:, 0])


def test_a_weightless_or_constant_reward_adds_nothing_and_never_divides_by_zero():
    constant, broken = np.full(20, 3.3), np.full(20, np.nan)
    out = mixed({"estoi": A, "stoi": broken}, specs(("estoi", 1.0, {}), ("stoi", 0.0, {})))
    assert np.isfinite(out.reward).all()
    for how, scale in WAYS:
        if scale != "none":
            rows = specs(("estoi", 5.0, {"scale": scale}), ("stoi", 1.0, {}))
            out = mixed({"estoi": constant, "stoi": B}, rows, how=how)
            assert np.allclose(out.parts[:, 0], 0) and np.isfinite(out.reward).all()


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_what_is_no_more_than_rounding_adds_nothing_and_what_is_near_it_little(unit):
    flat = unit * (0.5 + 1e-6 * A)
    for how, scale in WAYS:
        if scale != "none":
            row = specs(("estoi", 1.0, {"scale": scale}))
            assert not mixed({"estoi": flat}, row, how=how).parts.any()
            near = mixed({"estoi": unit * (0.5 + 2e-4 * A)}, row, how=how).parts
            assert 0.3 < abs(near - near.mean()).max() < 0.99 * abs(mixed({"estoi": 0.5 + A}, row, how=how).parts).max()


def test_group_ids_need_no_order():
    shuffle = RNG.permutation(20)
    row = specs(("estoi", 1.0, {"scale": "group"}))
    shuffled = mixed({"estoi": A[shuffle]}, row, GROUP[shuffle] * 17 - 3)
    np.testing.assert_allclose(shuffled.reward, mixed({"estoi": A}, row).reward[shuffle])


def test_mistakes_are_told():
    with pytest.raises(UserError, match="stoi"):
        mixed({"estoi": A}, specs(("stoi", 1.0, {})))
    with pytest.raises(UserError) as caught:
        mixed({"estoi": A}, specs(("estoi", 0.0, {})))
    assert "rewards.0.weight" in caught.value.try_this


def test_scores_become_arrays_lower_is_better_is_flipped_and_bounds_clamp_the_raw_score():
    arrays = to_arrays({"lsd": [Score(2.0), Score(None, "silent"), Score(4.0)]})
    out = compose(arrays, np.zeros(3), specs(("lsd", 1.0, {"scale": "none", "bounds": (None, 3.0)})))
    np.testing.assert_allclose(out.reward, [-2.0, np.nan, -3.0])


ROWS = np.repeat([0, 1], 3)
ACCURACY = np.array([0.9, 0.5, np.nan, 0.2, 0.4, 0.6])
KEYWORDS = np.array([np.nan, np.nan, np.nan, 1.0, 0.5, np.nan])
FALSE = np.array([0.0, -1.0, -1.0, 0.0, 0.0, -1.0])


def rules(accuracy=None, keywords=None, hallucination=None):
    rows = (("asr_accuracy", accuracy), ("asr_keywords", keywords), ("asr_hallucination", hallucination))
    chosen = [RewardSpec(name=n, **{"scale": "none", **options}) for n, options in rows if options is not None]
    return compose({"asr_accuracy": ACCURACY, "asr_keywords": KEYWORDS, "asr_hallucination": FALSE}, ROWS, chosen)


def test_a_reward_with_nothing_to_judge_adds_nothing_and_one_that_failed_costs_the_row():
    np.testing.assert_allclose(rules({}, {}).reward, [0.9, 0.5, np.nan, 1.2, 0.9, 0.6])  # auto: as the catalogue says
    np.testing.assert_allclose(rules({}, {"missing": "unscorable"}).reward, [np.nan, np.nan, np.nan, 1.2, 0.9, np.nan])
    # nobody judged row 2
    np.testing.assert_allclose(rules({"missing": "skip"}, {}).reward, [0.9, 0.5, np.nan, 1.2, 0.9, 0.6])
    out = rules({}, {})
    np.testing.assert_allclose(out.parts @ out.weights, out.reward)
    for scale in ("batch", "group"):  # a skipped row moves no other
        with_null = rules({}, {"scale": scale}).parts[3:5, 1]
        scaled = specs(("asr_keywords", 1.0, {"scale": scale}))
        np.testing.assert_allclose(with_null, compose({"asr_keywords": KEYWORDS[3:5]}, ROWS[3:5], scaled).parts[:, 0])


def test_a_hallucination_adds_or_is_the_whole_verdict():
    np.testing.assert_allclose(rules({}, None, {}).reward, [0.9, -0.5, np.nan, 0.2, 0.4, -0.4])
    out = rules({}, {}, {"mode": "override", "weight": 2.0})
    # row 2 has a verdict though its accuracy is missing
    np.testing.assert_allclose(out.reward, [0.9, -2.0, -2.0, 1.2, 0.9, -2.0])
    np.testing.assert_allclose(out.parts @ out.weights, out.reward)  # whoever uses the parts sees the same


def test_the_lowest_of_several_verdicts_counts_and_one_without_weight_does_not():
    verdicts = {"estoi": np.array([-1.0, -1.0, 1.0, np.nan]), "stoi": np.array([-2.0, -0.1, 0.0, -1.0])}
    scores = verdicts | {"lsd": np.full(4, 9.0)}
    over = {"mode": "override", "scale": "none"}
    rows = specs(("estoi", 1.0, over), ("stoi", 1.0, over), ("lsd", 1.0, {"scale": "none"}))
    np.testing.assert_allclose(mixed(scores, rows, np.zeros(4)).reward, [-2.0, -1.0, -8.0, -1.0])
    quiet = specs(("estoi", 0.0, over), ("lsd", 1.0, {"scale": "none"}))
    np.testing.assert_allclose(mixed(scores, quiet, np.zeros(4)).reward, [-9.0] * 4)


SCALED = [({"scale": scale}, "sum_then_norm", f"scale {scale}") for scale in ("batch", "group")]
SCALED.append(({"scale": "none"}, "norm_then_sum", "norm_then_sum"))


@pytest.mark.parametrize(
    ("options", "how", "why"), [*SCALED, ({"scale": "none", "weight": -1.0}, "sum_then_norm", "negative")]
)
def test_a_verdict_that_is_scaled_is_refused(options, how, why):
    chosen = [RewardSpec(name="estoi", **{"scale": "none"}), RewardSpec(name="stoi", mode="override", **options)]
    with pytest.raises(UserError, match="^stoi ") as error:
        compose({"estoi": A, "stoi": B}, GROUP, chosen, how)
    assert why in error.value.why
