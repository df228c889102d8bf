"""PPO with a critic: it learns what can be known beforehand, and the policy learns the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import GOAL, NAME, Judge, Toy, clips, make, train, written
from tiny_ranks import together

from rlspeech.algos.ppo import Critic
from rlspeech.config import PPO, RL, RewardSpec
from rlspeech.types import Sample

CRITIC = {"form": "critic", "value_lr": 0.01, "gae_lambda": 1.0, "value_clip": None}


def seen(s: Sample) -> np.ndarray:
    """(S, 2) what the toy's states showed."""
    return s.wav[3:].reshape(-1, 2)


def luck(i: int, s: Sample) -> float:
    """A reward that the first state tells and no action changes."""
    return 5.0 + 3.0 * float(np.tanh(seen(s)[0, 0])) - float(seen(s)[0, 1])


def test_the_critic_learns_a_return_that_can_be_known() -> None:
    algo = make(ppo=CRITIC, prompts_per_step=64, micro_batch=64)
    rows = train(algo, 40, judge=Judge(luck))
    assert rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6)  # it starts as the mean return
    assert rows[0]["value_mean"] == pytest.approx(5.0, abs=1.0)
    assert np.mean([r["explained_variance"] for r in rows[-5:]]) > 0.9
    assert rows[-1]["value_loss"] < 0.1 * rows[0]["value_loss"]
    assert rows[-1]["advantage_std"] < 0.4 * rows[0]["advantage_std"]


def test_what_cannot_be_known_is_not_explained() -> None:
    rng = np.random.default_rng(0)
    chance = Judge(lambda i, s: float(rng.standard_normal()))
    rows = train(make(ppo=CRITIC, prompts_per_step=64, micro_batch=64), 20, judge=chance)
    assert np.mean([r["explained_variance"] for r in rows[-5:]]) < 0.2


WAYS = [(1, {}, {}), (3, {"gae_lambda": 0.95}, {}), (3, {"kl_in": "loss"}, {"kl_beta": 1e-3})]
WAYS += [(3, {"gae_lambda": 0.9, "discount": 0.99, "whiten": True, "value_clip": 0.2}, {"epochs": 2})]


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "ppo", "changes"), WAYS, ids=str)
def test_many_decisions_climb(steps: int, ppo: dict[str, Any], changes: dict[str, Any]) -> None:
    """The reward hangs on the mean of the actions; every decision is to blame alike."""
    policy = Toy(steps=steps)
    algo = make(policy, ppo={"form": "critic", **ppo}, prompts_per_step=32, micro_batch=16, **changes)
    rows = train(algo, 60, lr=0.1)
    assert float((policy.theta.detach() - GOAL).norm()) < 0.35 * float(GOAL.norm())
    assert (rows[0]["ratio_max_gap"] < 1e-3) is ("epochs" not in changes)
    assert {"value_loss", "explained_variance", "kl_old", "grad_agreement", "advantage_std"} <= set(rows[0])
    assert policy.based == []  # no base is asked


def test_ragged_rows_and_rows_without_a_score() -> None:
    policy = Toy(steps=3)
    policy.ragged = True
    algo = make(policy, ppo={**CRITIC, "gae_lambda": 0.9}, prompts_per_step=12, truncated="mask")
    experience = algo.collect(clips(12), Judge(lambda i, s: None if i == 5 else luck(i, s)), seed=0)
    value, mask = experience.advantage.value, experience.rollout.mask
    assert float(value[~mask].abs().sum()) == 0 and float(value[5].abs().sum()) == 0
    known = torch.arange(12) != 5
    assert bool((value[mask & known[:, None]] != 0).all()) and experience.advantage.unscorable == pytest.approx(1 / 12)
    assert not bool(experience.extra["counts"][5].any()) and torch.equal(experience.extra["counts"][known], mask[known])
    grads, _ = algo.gradients(experience, value, torch.arange(12))
    torch.testing.assert_close(grads.total, written(algo, experience))
    assert np.isfinite(algo.update(experience, lr=0.01)["value_loss"])
    cut = algo.collect(clips(12), Judge(luck), seed=1)
    cut.rollout.finished[3] = False
    algo.assign_credit(cut, cut.rollout)
    assert float(cut.advantage.value[3].abs().sum()) == 0 and not bool(cut.extra["counts"][3].any())


def test_the_kl_is_taken_off_every_decision() -> None:
    plain, held = (make(Toy(steps=3), ppo=CRITIC, kl_beta=b) for b in (0.0, 0.5))
    values = []
    for algo in (plain, held):
        algo.policy.theta.data[:] = torch.tensor([0.5, 0.0, 0.0])  # half a nat a decision
        algo.critic.settled = True
        for what, shape in (("feature", (2,)), ("return", ())):
            algo.critic.units |= {f"{what}_mean": torch.zeros(shape), f"{what}_spread": torch.ones(shape)}
        experience = algo.collect(clips(8), Judge(), seed=0)
        values.append(experience.advantage.value)
    torch.testing.assert_close(values[0] - values[1], torch.tensor([0.75, 0.5, 0.25]).expand(8, 3), atol=1e-4, rtol=0)
    assert experience.logged["kl"] == pytest.approx(0.5)


def test_another_composition_is_judged_against_its_mean() -> None:
    algo = make(Toy(steps=3), ppo=CRITIC)
    experience = algo.collect(clips(8), Judge(luck), seed=0)
    scores = {k: np.where(np.arange(8) == 2, np.nan, v) for k, v in experience.scores.items()}
    reward, advantage = algo.advantage_of(experience.rollout, scores, algo.config.rewards)
    known = np.arange(8) != 2
    wanted = np.where(known, reward - reward[known].mean(), 0)
    np.testing.assert_allclose(advantage.value.numpy(), np.repeat(wanted[:, None], 3, 1), atol=1e-5)
    assert advantage.unscorable == pytest.approx(1 / 8)


def test_a_score_is_worth_the_same_in_every_collection() -> None:
    """Scale "batch" divides by the first collection's spread, for the value of a state must not hang on its neighbours."""
    algo = make(ppo=CRITIC, rewards=[RewardSpec(name=NAME, scale="batch", weight=2.0)])
    flat = algo.collect(clips(8), Judge(lambda i, s: 3.0), seed=0)
    assert flat.reward.tolist() == [0.0] * 8 and algo.state()["spread"] == {}  # nothing to divide by yet
    first = algo.collect(clips(8), Judge(lambda i, s: float(i)), seed=0)
    np.testing.assert_allclose(first.reward, 2 * np.arange(8) / np.arange(8).std(), rtol=1e-6)
    second = algo.collect(clips(8), Judge(lambda i, s: 10.0 * i), seed=1)
    np.testing.assert_allclose(second.reward, 10 * first.reward, rtol=1e-6)
    other = make(ppo=CRITIC, rewards=[RewardSpec(name=NAME, scale="batch", weight=2.0)])
    other.load_state(algo.state())
    np.testing.assert_array_equal(other.collect(clips(8), Judge(lambda i, s: 10.0 * i), seed=1).reward, second.reward)
    gap = other.collect(clips(8), Judge(lambda i, s: None if i == 1 else float(i)), seed=2)
    assert np.flatnonzero(np.isnan(gap.reward)).tolist() == [1]


def test_units_are_those_of_all_processes_together() -> None:
    g = torch.Generator().manual_seed(0)
    x, r = 3 + 2 * torch.randn(10, 2, 4, generator=g), 5 * torch.randn(10, 2, generator=g)
    mask = torch.rand(10, 2, generator=g) > 0.3
    whole = Critic(RL())
    whole.measure(x, r, mask)

    def measured(ranks: Any) -> Critic:
        critic, part = Critic(RL(), ranks), (slice(0, 3), slice(3, 10))[ranks.rank]
        critic.measure(x[part], r[part], mask[part])
        return critic

    shared = together(2, measured)[0]
    for name, value in whole.units.items():
        torch.testing.assert_close(shared.units[name], value)
    torch.testing.assert_close(whole.units["feature_mean"], x[mask].mean(0))
    assert whole.units["return_spread"].item() == pytest.approx(float(r[mask].std(correction=0)), rel=1e-4)
    before = {k: v.clone() for k, v in whole.units.items()}
    whole.measure(x + 9, r + 9, mask)
    assert all(torch.equal(before[k], v) for k, v in whole.units.items())  # once and for all
    flat = Critic(RL())
    flat.measure(x, torch.full_like(r, 5.0), mask)
    # nothing to be surprised at, and nothing settled
    assert flat.values(x).unique().tolist() == [5.0] and not flat.settled
    flat.measure(x, r, mask)
    assert flat.settled and torch.equal(flat.units["return_mean"], before["return_mean"])
    none = Critic(RL())
    none.measure(x, r, torch.zeros_like(mask))
    assert not none.units and none.values(x).shape == (10, 2)


def test_the_clip_holds_values_back_within_one_collection() -> None:
    x, mask = torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(0)), torch.ones(50, 1, dtype=torch.bool)
    returns = x[..., 0] * 4
    left = {}
    for clip in (None, 0.5, 0.1):
        critic = Critic(RL(ppo=PPO(value_lr=0.02, value_clip=clip)))
        critic.measure(x, returns, mask)
        old = critic.values(x)
        for _ in range(30):
            critic.fit(x, old, returns, mask)
        left[clip] = float((critic.values(x) - returns).square().mean() / returns.var())
    assert left[None] < 0.01 and left[None] < left[0.5] < left[0.1] and left[0.1] > 0.05, left


def test_initial_weights_hang_on_the_seed_alone() -> None:
    x = torch.ones(2, 1, 3)
    nets = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        critic = Critic(RL(seed=seed))
        critic.values(x)
        # and leave the generator alone
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(noise))
        nets.append(critic.state()["net"]["0.weight"])
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])
