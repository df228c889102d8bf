"""Advantages, GAE, clipped losses, relative rewards and agreement against plain loops and numpy, autograd of scalars, simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlspeech.algos.math import (
    GradientSum,
    Surrogate,
    agreement,
    critical_batch,
    decision_rewards,
    explained_variance,
    gae,
    group_advantage,
    policy_loss,
    relative_advantage,
    value_loss,
    whitened,
)
from rlspeech.algos.ppo import relative_reward
from rlspeech.config import RewardSpec
from rlspeech.types import LogProb


def _loop(reward: list[float], group: list[int], std: str) -> list[float]:
    """Group by group with the standard library."""
    members = {g: [r for r, h in zip(reward, group, strict=True) if h == g and not math.isnan(r)] for g in group}
    centred = {g: [r - sum(m) / len(m) for r in m] for g, m in members.items() if m}
    alive = {g for g, c in centred.items() if len(c) > 1 and max(map(abs, c)) > 1e-6}
    every = [v for g in alive for v in centred[g]]
    out = []
    for r, g in zip(reward, group, strict=True):
        if math.isnan(r) or g not in alive:
            out.append(0.0)
            continue
        rows = {"group": centred[g], "batch": every, "none": [1.0]}[std]
        out.append((r - sum(members[g]) / len(members[g])) / math.sqrt(sum(v * v for v in rows) / len(rows)))
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-40, 40).map(lambda i: i / 8) | st.just(math.nan), st.integers(0, 4)),
        min_size=1,
        max_size=24,
    ),
    st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_equal_a_plain_loop(rows: list[tuple[float, int]], std: str) -> None:
    reward, group = [r for r, _ in rows], [g for _, g in rows]
    made = group_advantage(torch.tensor(reward), torch.tensor(group), std, clip=1e9)
    np.testing.assert_allclose(made.value.numpy(), _loop(reward, group, std), atol=1e-4)
    assert made.unscorable == pytest.approx(sum(map(math.isnan, reward)) / len(reward))
    assert made.groups == len(set(group))


def test_rows_without_a_score_and_groups_without_spread() -> None:
    nan = float("nan")
    reward = torch.tensor([1.0, nan, 3.0, 5.0, 5.0, 5.0, 2.0, nan, nan, 0.1, 0.1 + 1e-12, 0.1])
    made = group_advantage(reward.double(), torch.arange(4).repeat_interleave(3))
    assert made.value.tolist() == pytest.approx([-1.0, 0.0, 1.0] + [0.0] * 9)
    assert made.signal == 1 and made.constant_groups == 0.75 and made.unscorable == pytest.approx(0.25)
    empty = group_advantage(torch.tensor([nan, nan]), torch.tensor([0, 0]))
    assert empty.value.tolist() == [0.0, 0.0] and empty.unscorable == 1.0
    far = group_advantage(torch.tensor([0.0] * 9 + [100.0]), torch.zeros(10, dtype=torch.long), clip=2.5)
    assert far.value.max() == 2.5
    infinite = group_advantage(torch.tensor([1.0, float("inf"), 3.0]), torch.zeros(3, dtype=torch.long))
    assert infinite.value.tolist() == pytest.approx([-1.0, 0.0, 1.0])


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_rewards_that_differ_by_a_millionth_are_the_same(std: Any, unit: float) -> None:
    """Beside a group whose rewards do differ, and alone; in every unit."""
    rounding, real, group = [0.5, 0.5, 0.5, 0.5 + 1e-6], [0.2, 0.4, 0.6, 0.8], torch.arange(8) // 4
    made = group_advantage(unit * torch.tensor(rounding + real, dtype=torch.double), group, std)
    assert not made.value[:4].any() and made.signal == 1 and made.constant_groups == 0.5
    alone = unit * torch.tensor(rounding, dtype=torch.double)
    assert not group_advantage(alone, group[:4], std).value.any()
    assert not whitened(alone, torch.ones(4, dtype=torch.bool), 5.0).any()
    wanted = torch.tensor([-1.3416, -0.4472, 0.4472, 1.3416]) * (0.2236 * unit if std == "none" else 1)
    torch.testing.assert_close(made.value[4:], wanted.clamp(-5, 5), rtol=1e-3, atol=0)


def test_near_the_floor_an_advantage_shrinks() -> None:
    """TRL's (std + 1e-4) at rewards of order 1, in squares: .45 of the whole at half the floor is refused, .9 is left at twice."""
    for times, left in ((0.9, 0.0), (2.0, 2 / 5**0.5), (100.0, 1.0)):
        reward = 1 + times * 1e-4 * torch.tensor([-1.0, 1.0], dtype=torch.double)
        value = group_advantage(reward, torch.zeros(2, dtype=torch.long)).value
        torch.testing.assert_close(value, torch.tensor([-left, left]), atol=1e-3, rtol=0)


# -- the loss --------------------------------------------------------------------------------------------------------------


def _look(logp: Tensor, kl: Tensor | None = None, drift: float = 0.0, scale: float = 1.0, dt: float = 1.0) -> LogProb:
    scales, times = (torch.full(logp.shape[1:], v) for v in (scale, dt))
    return LogProb(logp, kl, torch.full_like(logp, drift).detach(), scales, times)


def _loss(logp: Tensor | LogProb, old: Tensor, mask: Tensor, advantage: Tensor, **options: Any) -> Surrogate:
    look = logp if isinstance(logp, LogProb) else _look(logp)
    return policy_loss(look, old, mask, advantage, **{"clip_range": 0.2, "kl_beta": 0.0, "normaliser": 1.0, **options})


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_at_ratio_one_the_gradient_is_reinforce_whatever_the_clip(mean: str) -> None:
    """Of a token A over what is divided by, or that over the tokens of its own row: a long rollout weighs no more."""
    g = torch.Generator().manual_seed(0)
    old, advantage = torch.randn(6, 3, generator=g), torch.randn(6, generator=g)
    mask = torch.rand(6, 3, generator=g) > 0.3
    share = mask.sum(1, keepdim=True).clamp_min(1) if mean == "sequence" else 1
    for clip in (1e-4, 0.2, math.inf):
        logp = old.clone().requires_grad_()
        made = _loss(logp, old, mask, advantage, clip_range=clip, normaliser=18.0, mean=mean)
        (grad,) = torch.autograd.grad(made.loss, logp)
        torch.testing.assert_close(grad, -advantage[:, None] * mask / share / 18.0)


def test_rationorm() -> None:
    g = torch.Generator().manual_seed(2)
    old, new = torch.randn(5, 2, generator=g), torch.randn(5, 2, generator=g)
    mask, advantage = torch.ones(5, 2, dtype=torch.bool), torch.randn(5, generator=g)

    def loss(ratio: str = "plain", **look: float) -> float:
        return float(_loss(_look(new, **look), old, mask, advantage, ratio=ratio, normaliser=10.0).loss)

    assert loss("rationorm") == pytest.approx(loss()) == loss(drift=9.0, scale=9.0, dt=9.0)
    assert loss("rationorm", dt=0.1) == pytest.approx(10 * loss(), rel=1e-5)


def test_rationorm_centres_the_log_ratio_of_a_gaussian() -> None:
    """log N(x; d, 1) - log N(x; 0, 1) = eps d - d^2/2 has mean -d^2/2; with the drift added back it has mean 0 and spread scale * d."""
    eps, d = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(3)), 0.8
    old, new = -0.5 * eps**2, -0.5 * (eps - d) ** 2
    mask, advantage = torch.ones_like(eps, dtype=torch.bool), torch.ones(len(eps))
    plain = _loss(new, old, mask, advantage, clip_range=math.inf).log_ratio
    look = _look(new, drift=d**2 / 2, scale=0.2)
    normed = _loss(look, old, mask, advantage, ratio="rationorm", clip_range=math.inf).log_ratio
    assert float(plain.mean()) == pytest.approx(-(d**2) / 2, abs=0.01)
    assert float(normed.mean()) == pytest.approx(0.0, abs=0.002)
    assert float(normed.std()) == pytest.approx(0.2 * d, rel=0.01)


# -- agreement -------------------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_pairwise_cosine() -> None:
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 40)) + 0.4
    unit = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    cosine = np.mean([unit[i] @ unit[j] for i in range(6) for j in range(i)])
    for scales in (np.ones(6), (1, 5, 0.1, 9, 2, 3)):
        scaled = [torch.from_numpy(g) * s for g, s in zip(grads, scales, strict=True)]
        assert agreement(scaled) == pytest.approx(cosine, abs=1e-9)
    one = torch.ones(5)
    assert agreement([one, 3 * one]) == pytest.approx(1.0) and agreement([one, -one]) == pytest.approx(-1.0)
    assert math.isnan(agreement([one])) and math.isnan(agreement([one, 0 * one]))
    assert agreement([one, 0 * one, one]) == pytest.approx(1.0)


@pytest.mark.parametrize("common", [0.0, 0.3, 1.0])
def test_the_agreement_of_a_sum_is_estimated(common: float) -> None:
    """Whatever a layer's columns have in common; of few parameters it is exact, and the sum always is."""
    g = torch.Generator().manual_seed(1)
    for shapes in ([(512, 512), (512,), (300, 96)], [(100, 5), (7,)]):
        held = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
        made, wanted, shared = (
            GradientSum(held),
            list[torch.Tensor](),
            [common * torch.randn(s, generator=g) for s in shapes],
        )
        for scale in (1, 3, 0.2):
            each = [scale * (x + torch.randn(x.shape, generator=g)) for x in shared]
            each[0][:, ::64] *= 30
            wanted.append(torch.cat([x.flatten() for x in each]))
            made.add(torch.stack([(p * x).sum() for p, x in zip(held, each, strict=True)]).sum())
        assert made.agreement() == pytest.approx(agreement(wanted), abs=0.02 if len(wanted[0]) > 1000 else 1e-5)
        torch.testing.assert_close(made.total, torch.stack(wanted).sum(0))


@pytest.mark.parametrize("wanted", [4.0, 40.0])
def test_critical_batch_by_simulation(wanted: float) -> None:
    """Gradients of b prompts = signal + noise / sqrt(b); at b = ``wanted`` the noise has the signal's power."""
    rng, size, batch = np.random.default_rng(1), 4000, 16
    signal = rng.standard_normal(size)
    noise = rng.standard_normal((60, size)) * math.sqrt(wanted / batch)
    cosine = agreement([torch.from_numpy(signal + n) for n in noise])
    assert critical_batch(cosine, batch) == pytest.approx(wanted, rel=0.1)
    assert critical_batch(0.5, 7) == 7.0
    assert critical_batch(0.0, 7) == critical_batch(-0.1, 7) == critical_batch(math.nan, 7) == math.inf


def _episode(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """A_s as the sum of all later temporal differences, each weighted by (discount lam)^distance; no recursion."""
    after = [*values[1:], 0.0]
    delta = [r + discount * v1 - v0 for r, v1, v0 in zip(rewards, after, values, strict=True)]
    return [sum((discount * lam) ** (k - s) * delta[k] for k in range(s, len(delta))) for s in range(len(delta))]


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 6), st.integers(1, 6)),
    *(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 10**6)),
)
def test_gae_equals_a_loop_over_each_row(n: int, steps: int, discount: float, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.standard_normal((n, steps)), rng.standard_normal((n, steps))
    mask = rng.random((n, steps)) > 0.3
    known = rng.random(n) > 0.2
    tensors, options = map(torch.from_numpy, (rewards, values, mask)), {"known": torch.from_numpy(known)}
    made, returns = gae(*tensors, torch.arange(n), discount=discount, lam=lam, **options)
    wanted = np.zeros((n, steps))
    for i in np.flatnonzero(known):
        on = np.flatnonzero(mask[i])
        wanted[i, on] = _episode(rewards[i, on].tolist(), values[i, on].tolist(), discount, lam) if len(on) else []
    np.testing.assert_allclose(made.value.numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(returns.numpy(), np.where(mask & known[:, None], wanted + values, 0), atol=1e-5)
    assert made.unscorable == pytest.approx(1 - known.mean()) and made.groups == n
    assert made.signal == int((np.abs(wanted) > 0).any(1).sum())


def test_the_reward_comes_at_each_rows_last_decision() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, float("nan")])
    assert decision_rewards(reward, mask).tolist() == [[0, 0, 1], [0, 2, 0], [0, 3, 0], [0, 0, 0], [0, 0, 0]]
    paid = decision_rewards(reward, mask, torch.full((5, 3), 10.0), 0.1)
    assert paid.tolist() == [[-1, -1, 0], [-1, 1, 0], [0, 2, 0], [0, 0, 0], [0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.2, math.inf]), st.sampled_from([0.0, 0.3]), st.booleans())
def test_the_clipped_loss_equals_numpy(seed: int, clip: float, beta: float, per_decision: bool) -> None:
    rng = np.random.default_rng(seed)
    n, steps = 5, 3
    old, new, kl = (0.3 * rng.standard_normal((n, steps)) for _ in range(3))
    mask, a = rng.random((n, steps)) > 0.3, rng.standard_normal((n, steps) if per_decision else n)
    w = rng.uniform(0.2, 2.0, (n, steps)) if per_decision else np.ones((n, steps))  # of who sampled
    total, slope, hit = 0.0, np.zeros((n, steps)), {1: [0, 0], -1: [0, 0]}
    for i in range(n):
        for s in range(steps):
            if not mask[i, s]:
                continue
            advantage = float(a[i, s] if per_decision else a[i])
            rho, side = math.exp(new[i, s] - old[i, s]), 1 if advantage > 0 else -1
            bound = min(rho, 1 + clip) if advantage > 0 else max(rho, 1 - clip)
            total += -bound * advantage * w[i, s] + beta * kl[i, s]
            slope[i, s] = (
                -rho * advantage * w[i, s] * (bound == rho)
            )  # none where the ratio has gone too far for the advantage
            hit[side][0] += int(bound != rho)
            hit[side][1] += 1
    new[~mask], kl[~mask] = np.nan, np.inf  # what is masked may hold anything
    tensors = [torch.from_numpy(v).float() for v in (new, kl)]
    leaf = tensors[0].requires_grad_()
    look = LogProb(leaf, tensors[1], torch.zeros(n, steps), torch.ones(steps), torch.ones(steps), 3 * tensors[1])
    given = torch.from_numpy(old).float(), torch.from_numpy(mask), torch.from_numpy(a).float()
    importance = torch.from_numpy(w).float() if per_decision else None
    made = policy_loss(look, *given, clip_range=clip, kl_beta=beta, normaliser=7.0, importance=importance)
    assert made.loss.item() == pytest.approx(total / 7.0, abs=1e-4)
    part = given[1] & (torch.arange(n) > 0)[:, None]
    form: Any = {"clip_range": clip, "kl_beta": beta, "normaliser": 7.0, "importance": importance}
    less = policy_loss(look, *given, measured=part, **form)
    assert less.loss == made.loss and less.stats == policy_loss(look, given[0], part, given[2], **form).stats
    (grad,) = torch.autograd.grad(made.loss, leaf)
    np.testing.assert_allclose(grad.numpy(), slope / 7.0, atol=1e-5)
    for name, side in (("positive", 1), ("negative", -1)):
        assert made.stats[f"clipped_{name}"] == pytest.approx(hit[side][0] / max(1, hit[side][1]), abs=1e-6)
    if mask.any():
        gap = (new - old)[mask]
        assert made.stats["ratio_max_gap"] == pytest.approx(np.abs(np.exp(gap) - 1).max(), abs=1e-6)
        assert made.stats["kl_old"] == pytest.approx(np.mean(np.exp(gap) - 1 - gap), abs=1e-5)
        assert made.stats["kl_old"] >= 0
        assert made.stats["kl"] == pytest.approx(kl[mask].mean(), abs=1e-5)
        assert made.stats["kl_other"] == pytest.approx(3 * kl[mask].mean(), abs=1e-5)


@pytest.mark.parametrize("gap", [90.0, -200.0, math.inf])
def test_a_ratio_beyond_all_numbers_is_none_of_an_advantage_of_zero(gap: float) -> None:
    """inf * 0 would be nan and cost the whole update."""
    new = torch.tensor([[gap], [0.1]], requires_grad=True)
    made = _loss(new, torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0.0, 1.0]))
    (grad,) = torch.autograd.grad(made.loss, new)
    assert made.loss.item() == pytest.approx(-math.exp(0.1)) and grad[1].item() == pytest.approx(-math.exp(0.1))
    assert grad[0].item() == 0 and math.isfinite(made.stats["ratio_max_gap"]) and math.isfinite(made.stats["kl_old"])


def test_the_change_of_outputs_enters_the_loss_by_its_weight_and_the_log_in_db() -> None:
    zero, mask = torch.zeros(3, 2), torch.tensor([[True, True], [True, False], [False, False]])
    change = torch.tensor([[0.1, 0.01], [0.0, float("nan")], [float("inf"), 1.0]], requires_grad=True)
    look = LogProb(zero, zero, zero, torch.ones(2), torch.ones(2), change=change)
    form: dict[str, Any] = {"clip_range": 0.2, "kl_beta": 0.5, "normaliser": 4.0}
    plain = policy_loss(look, zero, mask, torch.zeros(3), **form)
    assert plain.loss.item() == 0 and plain.stats["change_db"] == pytest.approx((-10 - 20 - 100) / 3)
    made = policy_loss(look, zero, mask, torch.zeros(3), change_weight=8.0, **form)
    assert made.loss.item() == pytest.approx(8 * 0.11 / 4)
    (grad,) = torch.autograd.grad(made.loss, change)
    assert grad.tolist() == [[2.0, 2.0], [2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("clip", [None, 0.1, 0.5])
def test_the_value_loss_equals_numpy(clip: float | None) -> None:
    rng = np.random.default_rng(1)
    new, old, returns = (rng.standard_normal((40, 2)) for _ in range(3))
    mask = rng.random((40, 2)) > 0.4
    errors = []
    for v, o, r in zip(new[mask], old[mask], returns[mask], strict=True):
        held = v if clip is None else min(max(v, o - clip), o + clip)
        errors.append(max((v - r) ** 2, (held - r) ** 2) / 2)
    leaf = torch.from_numpy(new).requires_grad_()
    made = value_loss(leaf, torch.from_numpy(old), torch.from_numpy(returns), torch.from_numpy(mask), clip)
    assert made.item() == pytest.approx(np.mean(errors))
    if clip is not None:  # moved too far, towards the return, and not past it: no gradient
        one = torch.tensor([[0.9]], requires_grad=True)
        far = value_loss(one, torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1, dtype=torch.bool), clip)
        assert torch.autograd.grad(far, one)[0].item() == 0.0


def test_explained_variance() -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((20_000, 1)), rng.standard_normal((20_000, 1))
    returns, mask = torch.from_numpy(signal + 0.5 * noise), torch.ones(20_000, 1, dtype=torch.bool)
    assert explained_variance(torch.from_numpy(signal), returns, mask) == pytest.approx(1 - 0.25 / 1.25, abs=0.02)
    assert explained_variance(returns + 3, returns, mask) == pytest.approx(1.0)  # an offset is not variance
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))


def test_the_relative_advantage_is_the_difference_less_the_kl() -> None:
    nan = float("nan")
    relative, group = torch.tensor([0.5, -1.0, nan, 9.0]), torch.tensor([0, 0, 1, 2])
    made = relative_advantage(relative, group, torch.tensor([1.0, 2.0, 3.0, 0.0]), 0.1)
    assert made.value.tolist() == pytest.approx([0.4, -1.2, 0.0, 9.0])  # in the reward's units: nothing is cut
    assert made.unscorable == 0.25 and made.groups == 3 and made.signal == 2
    assert made.constant_groups == pytest.approx(1 / 3)
    white = relative_advantage(torch.tensor([1.0, 2.0, nan, 6.0]), group, whiten=True).value
    assert float(white[2]) == 0 and white[[0, 1, 3]].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[[0, 1, 3]].std(correction=0).item() == pytest.approx(1)
    many = whitened(torch.tensor([0.0] * 99 + [100.0]), torch.ones(100, dtype=torch.bool), 5.0)
    assert many.max() == 5.0 and float(whitened(torch.ones(3), torch.ones(3, dtype=torch.bool), 5.0).abs().max()) == 0
    assert float(whitened(torch.ones(3), torch.zeros(3, dtype=torch.bool), 5.0).abs().max()) == 0


# -- composition -----------------------------------------------------------------------------------------------------------


def _specs(**scales: str) -> list[RewardSpec]:
    return [RewardSpec(name=n, scale=s, weight=w) for (n, s), w in zip(scales.items(), (1.0, 0.5, 2.0), strict=False)]


def test_one_reward_as_it_comes_is_the_plain_difference() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal(6), rng.standard_normal(6)

    def made(*specs: RewardSpec) -> Any:
        (name,) = {s.name for s in specs}
        return relative_reward({name: ours}, {name: theirs}, np.arange(6), specs)

    plain = made(*_specs(stoi="none"))
    assert np.array_equal(plain.difference, ours - theirs) and np.array_equal(plain.reward, ours)
    assert np.array_equal(plain.base, theirs)
    assert np.array_equal(made(*_specs(lsd="none")).difference, theirs - ours)  # lower is better
    cut = made(RewardSpec(name="stoi", scale="none", bounds=(None, 0.0)))
    np.testing.assert_array_equal(cut.difference, np.minimum(ours, 0) - np.minimum(theirs, 0))


def test_rewards_of_unlike_units_weigh_the_same() -> None:
    rng = np.random.default_rng(1)
    a, b, base_a, base_b = (rng.standard_normal(12) for _ in range(4))

    def made(ours: dict[str, Any], theirs: dict[str, Any], **scales: str) -> Any:
        return relative_reward(ours, theirs, np.arange(12) // 3, _specs(**scales))

    one = made({"stoi": a, "lsd": b}, {"stoi": base_a, "lsd": base_b}, stoi="batch", lsd="batch")
    two = made({"stoi": 100 * a, "lsd": b + 7}, {"stoi": 100 * base_a, "lsd": base_b + 7}, stoi="batch", lsd="batch")
    np.testing.assert_allclose(one.difference, two.difference, rtol=1e-5)
    np.testing.assert_allclose(one.difference, (a - base_a) / a.std() - 0.5 * (b - base_b) / b.std(), rtol=1e-5)
    np.testing.assert_allclose(one.difference, one.reward - one.base, atol=1e-9)
    inside = made({"stoi": a}, {"stoi": base_a}, stoi="group").difference
    np.testing.assert_allclose(inside[3:6], (a - base_a)[3:6] / a[3:6].std(), rtol=1e-5)
    # nothing to divide by
    assert np.array_equal(made({"stoi": np.ones(12)}, {"stoi": base_a}, stoi="batch").difference, np.zeros(12))
    at = np.arange(12)
    ours, theirs = (np.where(at == i, np.nan, x) for i, x in ((2, a), (5, base_a)))
    missing = made({"stoi": ours}, {"stoi": theirs}, stoi="batch").difference
    assert np.flatnonzero(np.isnan(missing)).tolist() == [2, 5]
