"""PPO relative to a frozen base, and what it shares with GRPO, on Gaussian toys whose optimum is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import GOAL, NAME, Judge, Toy, clips, make, train, written

from rlspeech.algos.grpo import GRPO
from rlspeech.algos.ppo import CriticPPO, RelativePPO, clip_name
from rlspeech.config import RewardSpec
from rlspeech.state import load_state, save_state
from rlspeech.types import Policy, Sample, UserError


def test_algorithms_by_name() -> None:
    assert type(make()) is RelativePPO and type(make(ppo={"form": "critic"})) is CriticPPO
    assert type(make(algo="grpo", group=2)) is GRPO and isinstance(Toy(), Policy)


def pulled(algo: Any) -> Any:
    """The algorithm, its policy one standard deviation away from its base."""
    algo.policy.theta.data[:] = torch.tensor([0.5, 0.0, 0.0])
    return algo


UPDATES = [{"group": 4}, {"epochs": 3, "clip_range": 0.1}, {"updates_per_collection": 4, "clip_range": "auto"}]
CREDIT = [{"ppo": {"whiten": True}}, {"rewards": [RewardSpec(name=NAME, scale="batch")]}]
LOGGED = "ratio_mean ratio_max_gap clipped_positive clipped_negative kl_old advantage_mean advantage_std grad_norm"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, *UPDATES, *CREDIT, {"ppo": {"kl_in": "loss"}, "kl_beta": 1e-3}], ids=str)
def test_one_step_relative_ppo_climbs(changes: dict[str, Any]) -> None:
    algo = make(prompts_per_step=16, **changes)
    rows = train(algo, 75, lr=0.1)
    before, after = float(GOAL.norm()), float((algo.policy.theta.detach() - GOAL).norm())
    assert after < 0.35 * before, (before, after)
    late = np.mean([r["reward_relative"] for r in rows[-10:]])
    if "rewards" not in changes:  # in the reward's own units
        assert late > 1.0 > rows[0]["reward_relative"]
        assert rows[0]["reward_base"] == pytest.approx(-float(GOAL.square().sum()), rel=1e-4)
    assert late > 0 > rows[0]["reward_relative"] - 1.0
    assert {*LOGGED.split(), "grad_agreement", "critical_prompts", "clip_range"} <= set(rows[0])


def test_the_advantage_is_the_difference_of_scores() -> None:
    algo, judge = make(group=2), Judge(lambda i, s: float(s.wav[0]) + 10 * int(s.key[1:]))
    algo.policy.reference = torch.tensor([0.3, 0.0, 0.0])
    experience = algo.collect(clips(8), judge, seed=0)
    x = experience.rollout.state[0][:, 0, 0]
    # each row its own, whatever its group
    torch.testing.assert_close(experience.advantage.value, x - 0.3, atol=1e-5, rtol=0)
    assert experience.logged["reward_base"] == pytest.approx(35.3, abs=1e-4)
    assert experience.logged["reward_relative"] == pytest.approx(float(x.mean()) - 0.3, abs=1e-4)
    assert experience.reward.mean() == pytest.approx(float(x.mean()) + 35, abs=1e-4)
    reward, again = algo.advantage_of(experience.rollout, experience.scores, algo.config.rewards, experience.base)
    torch.testing.assert_close(again.value, experience.advantage.value)
    np.testing.assert_allclose(reward, (x - 0.3).numpy(), atol=1e-5)


# -- the base's scores ------------------------------------------------------------------------------------------------------


def test_the_base_is_heard_once_a_crop() -> None:
    algo, judge = make(), Judge()
    policy = algo.policy
    first = algo.collect(clips(8), judge, seed=0)
    assert policy.based == [[f"u{i}" for i in range(8)]] and judge.sizes == [16] and first.logged["base_cached"] == 0.0
    second = algo.collect(clips(8), judge, seed=1)
    assert len(policy.based) == 1 and judge.sizes == [16, 8] and second.logged["base_cached"] == 1.0
    np.testing.assert_array_equal(first.base[NAME], second.base[NAME])
    third = algo.collect([*clips(4), *clips(8, crop=1)[4:]], judge, seed=2)  # the same keys, another stretch
    assert policy.based[1] == ["u4", "u5", "u6", "u7"] and judge.sizes[-1] == 12 and third.logged["base_cached"] == 0.5
    twice = algo.collect([*clips(2, crop=5), *clips(2, crop=5)], judge, seed=3)
    assert policy.based[2] == ["u0", "u1"] and judge.sizes[-1] == 6 and np.isfinite(twice.reward).all()
    algo.policy.theta.data += 1.0  # the policy moves, the base does not
    assert algo.collect(clips(8), judge, seed=4).logged["reward_base"] == pytest.approx(first.logged["reward_base"])


def test_scores_of_the_base_belong_to_the_right_clip() -> None:
    """Mixed hits and misses in any order."""

    def value(i: int, s: Sample) -> float:
        return float(int(s.key[1:])) + (100.0 if abs(float(np.abs(s.wav[:3]).sum())) > 0 else 0.0)

    algo = make(group=2)
    batch = clips(8)
    algo.collect(batch[2:5], Judge(value), seed=0)
    mixed = algo.collect([batch[7], batch[3], batch[0], batch[4]], Judge(value), seed=1)
    assert mixed.base[NAME].tolist() == [7, 7, 3, 3, 0, 0, 4, 4]
    torch.testing.assert_close(mixed.advantage.value, torch.full((8,), 100.0))


def test_clips_are_told_apart_by_what_they_hold() -> None:
    one, other = clips(1)[0], clips(1, crop=1)[0]
    assert clip_name(one) == clip_name(clips(1)[0]) != clip_name(other) and clip_name(one)[0] == clip_name(other)[0]
    assert clip_name(replace(one, target=one.target + 1e-3)) != clip_name(one)
    frames = np.zeros((2, 4, 4), np.uint8)
    # another video, another output
    assert len({clip_name(replace(one, lips=v)) for v in (None, frames, frames + 1, frames.reshape(4, 2, 4))}) == 4


def test_a_policy_with_latents_starts_its_base_from_the_same() -> None:
    class Drawn(Toy):
        supports = frozenset({"sample", "base", "latent"})
        seeds: list[int | None] = []

        def base(self, batch: list[Any], *, seed: int | None = None) -> list[Sample]:
            self.seeds.append(seed)
            return super().base(batch)

    algo = make(Drawn())
    for seed in (3, 4):
        algo.collect(clips(8), Judge(), seed=seed)
    assert Drawn.seeds == [3, 4] and len(algo.known) == 0


def test_a_row_or_a_base_without_a_score_costs_itself_only() -> None:
    def value(i: int, s: Sample) -> float | None:
        return None if i == 3 or (s.key == "u6" and float(np.abs(s.wav[:3]).sum()) == 0) else float(s.wav[0])

    algo = make()
    experience = algo.collect(clips(16), Judge(value), seed=0)
    assert experience.advantage.value[[3, 6]].tolist() == [0.0, 0.0]
    assert experience.advantage.unscorable == pytest.approx(2 / 16)
    assert np.isnan(experience.reward[[3, 6]]).all() and np.isfinite(np.delete(experience.reward, [3, 6])).all()
    assert float(experience.advantage.value[[0, 1, 2, 4, 5]].abs().min()) > 0
    grads, _ = algo.gradients(experience, experience.advantage.value, torch.arange(16))
    torch.testing.assert_close(grads.total, written(algo, experience))
    assert len(algo.policy.based[0]) == 16
    algo.collect(clips(16), Judge(lambda i, s: 1.0), seed=1)
    assert algo.policy.based[1] == ["u6"]  # what was null is asked again
    with pytest.raises(UserError, match="50 %"):
        make().collect(clips(16), Judge(lambda i, s: None if i >= 24 else 1.0), seed=0)  # half of the bases


# -- the KL ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_the_kl_in_the_advantage_is_a_number(steps: int) -> None:
    algo, plain = (pulled(make(Toy(steps=steps), kl_beta=b)) for b in (0.5, 0.0))
    algo.policy.ragged = plain.policy.ragged = steps > 1
    one, two = (a.collect(clips(8), Judge(), seed=0) for a in (algo, plain))
    # beta x half of one standard deviation squared, of every decision
    torch.testing.assert_close(one.advantage.value, two.advantage.value - 0.25 * one.rollout.mask.sum(1))
    assert one.logged["kl"] == pytest.approx(0.5) and one.logged["kl_other"] == pytest.approx(0.5 / 3)
    assert "kl" not in two.logged
    grads, _ = algo.gradients(one, one.advantage.value, torch.arange(8))
    if steps == 1:
        torch.testing.assert_close(grads.total, written(algo, one))
    assert algo.update(one, lr=0.0)["kl"] == pytest.approx(0.5)


def test_the_kl_in_the_loss_pulls_back_where_the_reward_says_nothing() -> None:
    algo = pulled(make(ppo={"kl_in": "loss"}, kl_beta=0.5))
    experience = algo.collect(clips(8), Judge(lambda i, s: 1.0), seed=0)
    assert float(experience.advantage.value.abs().max()) == 0 and "kl" not in experience.logged
    grads, stats = algo.gradients(experience, experience.advantage.value, torch.arange(8))
    torch.testing.assert_close(grads.total, 0.5 * torch.tensor([0.5, 0.0, 0.0]) / 0.25)  # beta (theta - base) / sigma^2
    assert stats["kl"] == pytest.approx(0.5) and stats["kl_other"] == pytest.approx(0.5 / 3)
    train(algo, 30, judge=Judge(lambda i, s: 1.0))
    assert abs(float(algo.policy.theta[0].detach())) < 0.1


# -- the supervised term ---------------------------------------------------------------------------------------------------


def test_the_control_samples_nothing_and_scores_nothing() -> None:
    mute = Judge(lambda i, s: pytest.fail("scored"))
    weights = {"policy_weight": 0.0, "supervised_weight": 0.5, "grad_clip": 1e9}
    plain = {"optimizer": torch.optim.SGD, "epochs": 2, "updates_per_collection": 2, **weights}
    algo = make(**plain)
    experience = algo.collect(clips(8), mute, seed=0)
    assert experience.rollout is None and len(experience.reward) == 0 and len(experience.prompts) == 8
    row = algo.update(experience, lr=0.01)
    assert algo.policy.rolled == 0 and algo.policy.based == mute.sizes == []
    theta = torch.zeros(3)
    for _ in range(2):  # plain gradient descent on the same shares
        for part in (range(4), range(4, 8)):
            goals = torch.stack([GOAL * (1 + i) for i in part])
            theta = theta - 0.01 * 0.5 * 2 * (theta - goals).mean(0)
    torch.testing.assert_close(algo.policy.theta.detach(), theta, atol=1e-5, rtol=1e-5)
    assert row["supervised_loss"] > 0 and np.isnan(row["grad_agreement"]) and "ratio_mean" not in row
    for rollouts in ({"algo": "grpo"}, {"ppo": {"form": "critic"}}, {"group": 1, "algo": "grpo"}):
        other = make(**plain, **rollouts)
        other.update(other.collect(clips(8), mute, seed=0), lr=0.01)
        torch.testing.assert_close(other.policy.theta, algo.policy.theta)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_both_losses_add_up(micro: int) -> None:
    algo = make(optimizer=torch.optim.SGD, policy_weight=0.7, supervised_weight=0.2, micro_batch=micro, grad_clip=1e9)
    experience = algo.collect(clips(8), Judge(), seed=0)
    a, x, theta = experience.advantage.value, experience.rollout.state[0], algo.policy.theta
    loss = -0.7 * (a * algo.policy._logp(x)[:, 0]).mean() + 0.2 * algo.policy.supervised(clips(8))
    (wanted,) = torch.autograd.grad(loss, theta)
    row = algo.update(experience, lr=0.01)
    torch.testing.assert_close(theta.detach(), -0.01 * wanted, atol=1e-5, rtol=1e-4)
    assert row["grad_norm"] == pytest.approx(float(wanted.norm()), rel=1e-4) and -1 <= row["supervised_cosine"] <= 1
    goals = torch.stack([GOAL * (1 + i) for i in range(8)])
    # unweighted, at the start
    assert row["supervised_loss"] == pytest.approx(float(goals.square().sum(1).mean()), rel=1e-5)
    assert algo.policy.asked[-1] is None


def test_supervision_of_sampled_outputs_gets_their_rows() -> None:
    algo = make(supervised_weight=1.0, supervised_on="sample", micro_batch=3, group=2)
    train(algo, 1)
    assert [r.tolist() for r in algo.policy.asked] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]


# -- what it shares with GRPO ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_epochs_are_passes_over_the_same_rollouts(algo: str) -> None:
    made = make(algo=algo, group=2, epochs=3, updates_per_collection=2)
    steps, real = [], made.optimizer.step
    made.optimizer.step = lambda: (steps.append(1), real())
    train(made, 2)
    assert len(steps) == 12 and made.policy.rolled == 2


LATE = Judge(lambda i, s: None if i < 4 else float(s.wav[0]))  # nothing counts in the first half


def test_the_check_waits_for_a_decision_that_counts() -> None:
    """The first micro-batch holds nothing that counts; the lie is in the second."""
    algo = make(Toy(lie=0.01), micro_batch=4, max_unscorable=1.0)
    experience = algo.collect(clips(8), LATE, seed=0)
    with pytest.raises(UserError, match="ratio"):
        algo.update(experience, lr=0.01)
    blind = make(Toy(lie=0.01), max_unscorable=1.0)
    blind.update(blind.collect(clips(8), Judge(lambda i, s: None), seed=0), lr=0.01)
    assert not blind.checked
    with pytest.raises(UserError, match="ratio"):
        train(blind, 1)


def test_weights_that_supervision_moved_are_no_lie() -> None:
    """Nothing counts in the first share, supervision moves the weights, and then the ratio may differ."""
    algo = make(updates_per_collection=2, supervised_weight=1.0, max_unscorable=1.0)
    row = algo.update(algo.collect(clips(8), LATE, seed=0), lr=0.05)
    assert row["ratio_max_gap"] > 1e-3


def test_settings_that_cannot_work_are_refused() -> None:
    scaled = {how: [RewardSpec(name=NAME, scale=how)] for how in ("group", "batch")}
    for changes, named in (
        ({"algo": "grpo", "group": 1}, "--set group"),
        ({"advantage": "norm_then_sum"}, "norm_then_sum"),
        ({"policy_weight": 0.0}, "supervised_weight"),
        ({"policy_weight": 0.0, "supervised_weight": 1.0, "supervised_on": "sample"}, "supervised_on"),
        ({"rewards": scaled["group"]}, "scale"),
        ({"rewards": scaled["batch"], "prompts_per_step": 1}, "scale"),
    ):
        with pytest.raises(UserError, match=named):
            make(**changes)
    make(prompts_per_step=1)

    plain, grpo, critic = Toy(), {"algo": "grpo", "group": 2}, {"ppo": {"form": "critic"}}
    plain.supports, awr = frozenset({"sample"}), {"algo": "awr", "group": 2}
    lacking = (({}, "base"), (critic, "critic"), (awr, "fit"), ({"supervised_weight": 1.0}, "supervised"))
    for changes, missing in lacking:
        with pytest.raises(UserError, match=missing):
            make(plain, **changes)
    make(plain, **grpo)
    plain.supports = frozenset({"relax"})
    with pytest.raises(UserError, match="sample"):
        make(plain, **grpo)


RELATIVE = {"clip_range": "auto", "updates_per_collection": 2}
WITH_CRITIC = {"ppo": {"form": "critic", "value_lr": 0.01}, "steps": 3}
GROUPED = {"algo": "grpo", "group": 4, "clip_range": "auto", "epochs": 2}


@pytest.mark.parametrize("changes", [{}, RELATIVE, WITH_CRITIC, GROUPED], ids=str)
def test_a_stopped_run_goes_on_as_if_it_had_not(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = dict(changes)
    steps = changes.pop("steps", 1)
    whole = make(Toy(steps=steps), **changes)
    kept = train(whole, 5)
    half = make(Toy(steps=steps), **changes)
    train(half, 2, total=5)
    parts = {"theta": half.policy.theta.detach(), "optimizer": half.optimizer.state_dict()}
    save_state(tmp_path, {"algo": half.state(), **parts})
    state = load_state(tmp_path)
    other = make(Toy(steps=steps), **changes)
    other.policy.theta.data.copy_(state["theta"])
    other.optimizer.load_state_dict(state["optimizer"])
    other.load_state(state["algo"])
    rest = train(other, 3, start=2, total=5)
    assert torch.equal(other.policy.theta, whole.policy.theta) and other.clip_range == whole.clip_range
    for a, b in zip(rest, kept[2:], strict=True):
        same = {k for k in a if k != "base_cached"}  # what the base said is asked again
        np.testing.assert_equal({k: a[k] for k in same}, {k: b[k] for k in same})


def test_the_probe_takes_advantages_by_decision() -> None:
    algo = make(Toy(steps=3), ppo={"form": "critic"})
    experience = algo.collect(clips(8), Judge(), seed=0)
    value = experience.advantage.value
    assert value.shape == (8, 3)
    found = algo.reward_gradients(experience, {"all": value, "row": value[:, 0]})
    torch.testing.assert_close(found["all"], written(algo, experience))
    assert float((found["all"] - found["row"]).norm()) > 1e-3
