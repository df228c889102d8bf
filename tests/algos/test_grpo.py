"""GRPO on a Gaussian policy whose optimum is known: one number per dimension, reward by distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import GOAL, NAME, Judge, Toy, clips, make, train, written
from torch import Tensor

from rlspeech.config import RewardSpec
from rlspeech.stages.probe import summarise
from rlspeech.types import LogProb, Rollout, UserError


def _grpo(policy: Toy | None = None, optimizer: Any = torch.optim.Adam, **changes: Any) -> Any:
    plain = {"algo": "grpo", "rewards": [RewardSpec(name=NAME)], "group": 8}
    return make(policy, optimizer, **{**plain, **changes})


AUTO = {"updates_per_collection": 4, "clip_range": "auto"}
WAYS = [{"advantage_std": "batch"}, {"advantage": "norm_then_sum"}, {"ratio": "rationorm"}]
WAYS += [{"algo": "awr"}, {"algo": "awr", **AUTO, "kl_beta": 1e-3}]


@pytest.mark.parametrize("changes", [{}, {"updates_per_collection": 4}, AUTO, *WAYS], ids=str)
def test_it_finds_the_optimum(changes: dict[str, Any]) -> None:
    algo = _grpo(**changes)
    rows = train(algo, 100)
    assert float((algo.policy.theta - GOAL).detach().abs().max()) < 0.15
    # far from the goal all prompts agree
    assert rows[0]["grad_agreement"] > 0.3 or changes.get("updates_per_collection")
    # at the goal only noise is left
    assert np.mean([r["grad_agreement"] for r in rows[-30:] if np.isfinite(r["grad_agreement"])] or [0]) < 0.3


def test_the_kl_holds_it_back() -> None:
    algo = _grpo(kl_beta=3.0)
    rows = train(algo, 60)
    assert 0 < rows[-1]["kl"] < 0.5 and float(algo.policy.theta.detach().norm()) < 0.5 * float(GOAL.norm())
    algo = _grpo(kl_beta=0.0)
    assert "kl" not in train(algo, 1)[0]  # the reference pass is skipped


HELD = [{}, {"algo": "ppo", "ppo": {"form": "critic"}, "group": 4}, {"algo": "ppo", "group": 4}]


@pytest.mark.parametrize("changes", HELD, ids=["grpo", "critic", "relative"])
def test_a_kl_target_is_held_whatever_the_rate(changes: dict[str, Any]) -> None:
    """The goal is at a KL of 6; the way is as long as a step beyond the target, and ends on it with the rate."""
    free, held = (train(_grpo(kl_beta=1e-3, kl_target=t, **changes), 24, lr=0.2) for t in (None, 0.3))
    assert max(r["kl"] for r in free) > 3 and "kl_kept" not in free[0]
    assert max(r["kl"] for r in held) < 0.9 and held[-1]["kl"] == pytest.approx(0.3, abs=0.08)
    assert held[0]["kl_kept"] == 1 and 0.5 < held[-1]["kl_kept"] < 1
    agreement = np.nanmean([r["grad_agreement"] for r in held[-8:]])
    assert agreement > np.nanmean([r["grad_agreement"] for r in free[-8:]])  # there is still something to learn
    with pytest.raises(UserError, match="kl_beta"):
        _grpo(kl_beta=0.0, kl_target=0.3, **changes)


@pytest.mark.parametrize(("micro", "batches"), [(1, 8), (3, 3), (8, 1)])
def test_the_gradient_is_that_of_the_written_objective(micro: int, batches: int) -> None:
    """Those without signal at 0, whatever the micro-batch."""
    algo = _grpo(micro_batch=micro)
    # group 0 constant, some rows null
    judge = Judge(lambda i, s: None if i % 9 == 4 else (1.0 if i < 8 else float(s.wav[0])))
    experience = algo.collect(clips(8), judge, seed=0)
    grads, stats = algo.gradients(experience, experience.advantage.value, torch.arange(8))
    a = experience.advantage.value
    assert float(a[:8].abs().max()) == 0 and float(a[4::9].abs().max()) == 0 and stats["ratio_max_gap"] < 1e-6
    torch.testing.assert_close(grads.total, written(algo, experience))
    assert grads.count == batches and max(algo.policy.looks) == micro * 8
    assert experience.advantage.signal == 7 and experience.advantage.unscorable == pytest.approx(7 / 64)


def test_clip_auto_is_measured_where_weights_have_moved() -> None:
    algo = _grpo(clip_range="auto", clip_std=2.0, updates_per_collection=2)
    assert algo.clip_range == float("inf")
    experience = algo.collect(clips(8), Judge(), seed=0)
    before = algo.policy.theta.detach().clone()
    algo.update(experience, lr=0.05)
    moved = algo.policy.theta.detach() - before
    assert 0.01 < algo.clip_range < 2.0
    # the log-ratio after one Adam step of 0.05 a dimension: spread |step| / sigma; the second step comes after it was measured
    assert algo.clip_range == pytest.approx(2.0 * float(torch.full((3,), 0.05).norm()) / 0.5, rel=0.4)
    assert float(moved.abs().max()) < 0.11
    kept = algo.clip_range
    train(algo, 3)
    assert algo.clip_range == kept  # frozen
    once = _grpo(clip_range="auto", updates_per_collection=1)
    train(once, 4)
    assert once.clip_range == float("inf")  # one update a collection: the ratio never moves, and rounding is no measure


def test_clip_auto_is_not_fooled_by_rounding() -> None:
    """The second look differs by rounding; a range measured on that would clip everything for ever."""

    class Rounded(Toy):
        def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
            look = super().log_prob(rollout, rows, with_kl=with_kl)
            noise = 1e-6 * torch.randn(look.logp.shape, generator=torch.Generator().manual_seed(0))
            return look._replace(logp=look.logp + noise)

    algo = _grpo(Rounded(), clip_range="auto", updates_per_collection=2)
    train(algo, 2)
    assert algo.clip_range > 0.01


def test_too_many_unscorable_rows_stop_the_run_with_the_reason() -> None:
    algo = _grpo()
    with pytest.raises(UserError, match="25 %") as error:
        algo.collect(clips(8), Judge(lambda i, s: None if i % 4 == 0 else 1.0 * i), seed=0)
    assert "too quiet" in str(error.value)
    experience = algo.collect(clips(8), Judge(lambda i, s: None if i % 8 == 0 else 1.0 * i), seed=0)
    assert experience.advantage.unscorable == 0.125 and np.isnan(experience.reward[0])


def test_a_policy_whose_second_look_differs_is_stopped() -> None:
    for lie in (0.01, float("nan")):
        with pytest.raises(UserError, match="ratio"):
            train(_grpo(Toy(lie=lie)), 1)
    train(_grpo(Toy(lie=1e-4)), 2)


# -- the probe -------------------------------------------------------------------------------------------------------------


def test_the_probe_tells_a_signal_from_noise() -> None:
    """Reward by distance has a common direction; a random reward has none, from the same rollouts."""
    algo, rng, found = _grpo(micro_batch=3), np.random.default_rng(0), {"distance": [], "random": []}
    for k in range(12):
        experience = algo.collect(clips(8), Judge(), seed=k)
        noise = algo.advantage_of(experience.rollout, {NAME: rng.standard_normal(64)}, algo.config.rewards)[1].value
        advantages = {"distance": experience.advantage.value, "random": noise}
        for name, grad in algo.reward_gradients(experience, advantages).items():
            found[name].append(grad)
    summary = summarise(found, prompts=8)
    assert summary["distance"][0].lo > 0.8 and summary["distance"][1] < 4
    assert summary["random"][0].lo < 0 < summary["random"][0].hi and abs(summary["random"][0].mean) < 0.3
    torch.testing.assert_close(found["distance"][-1], written(algo, experience))
    assert algo.policy.theta.grad is None and float(algo.policy.theta.abs().max()) == 0  # nothing is trained
    empty = summarise({"none": [torch.zeros(3)] * 4}, 8)["none"]
    assert np.isnan(empty[0].mean) and empty[1] == float("inf")
