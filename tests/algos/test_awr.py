"""Advantage-weighted regression: GRPO's gradient on whole outputs, a bounded push away, and what it learns."""

from __future__ import annotations

import pytest
import torch
from tiny_ppo import GOAL, Judge, Toy, clips, make, written

from rlspeech.types import UserError

AWR = {"algo": "awr", "group": 8}


def test_the_first_gradient_is_that_of_the_weighted_regression() -> None:
    """Of one Gaussian decision that is GRPO's, a mean element instead of a decision."""
    for repulsion in (1.0, 0.5, 0.0):
        algo = make(**AWR, awr={"repulsion": repulsion})
        made = algo.collect(clips(8), Judge(), seed=1)
        assert float(made.advantage.value.min()) < 0 or repulsion == 0
        found = algo.gradients(made, made.advantage.value, torch.arange(8))[0].total
        torch.testing.assert_close(found, written(algo, made) / 3)
    assert not algo.policy.looks  # no log-probability of acting


@pytest.mark.parametrize("changes", [{}, {"epochs": 2, "updates_per_collection": 2, "clip_range": "auto"}], ids=str)
def test_it_finds_what_is_rewarded(changes: dict[str, object]) -> None:
    algo = make(**AWR, kl_beta=0.001, **changes)
    for step in range(40):
        stats = algo.update(algo.collect(clips(8), Judge(), seed=step), lr=0.1)
    assert float((algo.policy.theta.detach() - GOAL).abs().max()) < 0.25 and stats["kl"] > 0


def test_an_output_that_is_far_enough_away_is_let_go() -> None:
    algo = make(**AWR, epochs=2, clip_range=0.1)
    made = algo.collect(clips(8), Judge(), seed=1)
    made.updates = 1
    worst = -(made.advantage.value < 0).float()
    assert float(algo.gradients(made, worst, torch.arange(8))[0].total.norm()) > 0
    algo.policy.theta.data += 5.0
    grads, stats = algo.gradients(made, worst, torch.arange(8))
    assert float(grads.total.norm()) == 0 and stats["clipped_negative"] == 1


def test_a_policy_that_cannot_be_fitted_is_refused() -> None:
    policy = Toy()
    policy.supports = frozenset({"sample"})
    with pytest.raises(UserError, match="fit"):
        make(policy, **AWR)
