"""Advantage-weighted regression: GRPO's gradient on whole outputs, a bounded push away, and what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import GOAL, Judge, clips, make, written

from rlspeech.config import RewardSpec
from rlspeech.types import Sample, Score

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


def test_an_output_that_is_far_enough_away_is_let_go() -> None:
    algo = make(**AWR, epochs=2, clip_range=0.1)
    made = algo.collect(clips(8), Judge(), seed=1)
    made.updates = 1
    worst = -(made.advantage.value < 0).float()
    assert float(algo.gradients(made, worst, torch.arange(8))[0].total.norm()) > 0
    algo.policy.theta.data += 5.0
    grads, stats = algo.gradients(made, worst, torch.arange(8))
    assert float(grads.total.norm()) == 0 and stats["clipped_negative"] == 1


class Split(Judge):
    """Three scores: of the way to the goal, of the way to another, and of the way back."""

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        x = np.stack([s.wav[:3] for s in samples])
        ways = {"si_sdr": x @ GOAL.numpy(), "stoi": x[:, 0] + x[:, 1], "estoi": -x @ GOAL.numpy()}
        return {name: [Score(float(v)) for v in values] for name, values in ways.items()}


@pytest.mark.parametrize("algo", [{"algo": "grpo"}, {"algo": "awr"}, {"ppo": {"form": "critic"}}, {}], ids=str)
def test_further_rewards_weigh_as_much_as_they_agree_with_the_first(algo: dict[str, Any]) -> None:
    rewards = [RewardSpec(name=n, weight=2.0, scale="none") for n in ("si_sdr", "stoi", "estoi")]
    how: dict[str, Any] = {"group": 8, "rewards": rewards, "weights": "agreement", "weights_every": 2, **algo}
    made, other = make(**how), make(**how)
    rows = [made.update(made.collect(clips(8), Split(), seed=i), lr=0.0) for i in range(3)]
    first = rows[0]
    assert first["weight/si_sdr"] == 2.0 and first["weight/estoi"] == 0.0 and first["agreement/estoi"] < -0.9
    assert first["weight/stoi"] == pytest.approx(2 * first["agreement/stoi"]) and 0 < first["agreement/stoi"] < 0.9
    assert "agreement/stoi" not in rows[1] and rows[1]["weight/stoi"] == first["weight/stoi"]
    mean = 0.7 * first["agreement/stoi"] + 0.3 * rows[2]["agreement/stoi"]
    assert rows[2]["weight/stoi"] == pytest.approx(2 * mean)
    other.load_state(made.state())
    other.policy.theta.data.copy_(made.policy.theta.data)
    ours, theirs = (x.update(x.collect(clips(8), Split(), seed=3), lr=0.0) for x in (made, other))
    assert {**ours, "base_cached": 0} == pytest.approx({**theirs, "base_cached": 0}, nan_ok=True)
