"""GAE, clipped losses and relative advantages against plain numpy, written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.algos.math import (
    decision_rewards,
    explained_variance,
    gae,
    policy_loss,
    relative_advantage,
    value_loss,
    whitened,
)
from rlspeech.algos.ppo import relative_reward
from rlspeech.config import RewardSpec
from rlspeech.types import LogProb


def _episode(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """A_s as the sum of all later temporal differences, each weighted by (discount lam)^distance; no recursion."""
    after = [*values[1:], 0.0]
    delta = [r + discount * v1 - v0 for r, v1, v0 in zip(rewards, after, values, strict=True)]
    return [sum((discount * lam) ** (k - s) * delta[k] for k in range(s, len(delta))) for s in range(len(delta))]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.integers(0, 10**6),
)
def test_gae_equals_a_loop_over_each_row(n: int, steps: int, discount: float, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.standard_normal((n, steps)), rng.standard_normal((n, steps))
    mask = rng.random((n, steps)) > 0.3
    known = rng.random(n) > 0.2
    made, returns = gae(
        *(torch.from_numpy(a) for a in (rewards, values, mask)),
        torch.arange(n),
        discount=discount,
        lam=lam,
        known=torch.from_numpy(known),
    )
    wanted = np.zeros((n, steps))
    for i in np.flatnonzero(known):
        on = np.flatnonzero(mask[i])
        wanted[i, on] = _episode(rewards[i, on].tolist(), values[i, on].tolist(), discount, lam) if len(on) else []
    np.testing.assert_allclose(made.value.numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(returns.numpy(), np.where(mask & known[:, None], wanted + values, 0), atol=1e-5)
    assert made.unscorable == pytest.approx(1 - known.mean()) and made.groups == n
    assert made.signal == int((np.abs(wanted) > 0).any(1).sum())


def test_the_ends_of_lambda() -> None:
    """1: what really came minus the value; 0: one temporal difference."""
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(5, 4, generator=g).double(), torch.randn(5, 4, generator=g).double()
    mask, group = torch.ones(5, 4, dtype=torch.bool), torch.arange(5)
    monte, returns = gae(rewards, values, mask, group, discount=0.9, lam=1.0)
    came = torch.stack([sum(0.9**k * rewards[:, s + k] for k in range(4 - s)) for s in range(4)], dim=1)
    torch.testing.assert_close(monte.value.double(), came - values, atol=1e-5, rtol=0)
    torch.testing.assert_close(returns.double(), came, atol=1e-5, rtol=0)
    single, _ = gae(rewards, values, mask, group, discount=0.9, lam=0.0)
    ahead = torch.cat([values[:, 1:], torch.zeros(5, 1).double()], dim=1)
    torch.testing.assert_close(single.value.double(), rewards + 0.9 * ahead - values, atol=1e-5, rtol=0)


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
    total, hit = 0.0, {1: [0, 0], -1: [0, 0]}
    for i in range(n):
        for s in range(steps):
            if not mask[i, s]:
                continue
            advantage = float(a[i, s] if per_decision else a[i])
            rho, side = math.exp(new[i, s] - old[i, s]), 1 if advantage > 0 else -1
            bound = min(rho, 1 + clip) if advantage > 0 else max(rho, 1 - clip)
            total += -bound * advantage + beta * kl[i, s]
            hit[side][0] += int(bound != rho)
            hit[side][1] += 1
    new[~mask], kl[~mask] = np.nan, np.inf  # what is masked may hold anything
    tensors = [torch.from_numpy(v).float() for v in (new, kl)]
    leaf = tensors[0].requires_grad_()
    look = LogProb(leaf, tensors[1], torch.zeros(n, steps), torch.ones(steps), torch.ones(steps), 3 * tensors[1])
    made = policy_loss(
        look,
        torch.from_numpy(old).float(),
        torch.from_numpy(mask),
        torch.from_numpy(a).float(),
        clip_range=clip,
        kl_beta=beta,
        normaliser=7.0,
    )
    assert made.loss.item() == pytest.approx(total / 7.0, abs=1e-4)
    (grad,) = torch.autograd.grad(made.loss, leaf)
    assert bool(torch.isfinite(grad).all()) and float(grad[torch.from_numpy(~mask)].abs().sum()) == 0
    for name, side in (("positive", 1), ("negative", -1)):
        assert made.stats[f"clipped_{name}"] == pytest.approx(hit[side][0] / max(1, hit[side][1]), abs=1e-6)
    if mask.any():
        gap = (new - old)[mask]
        assert made.stats["kl_old"] == pytest.approx(np.mean(np.exp(gap) - 1 - gap), abs=1e-5)
        assert made.stats["kl_old"] >= 0
        assert made.stats["kl"] == pytest.approx(kl[mask].mean(), abs=1e-5)
        assert made.stats["kl_other"] == pytest.approx(3 * kl[mask].mean(), abs=1e-5)


def test_k3_estimates_the_kl_to_who_acted() -> None:
    eps, d = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(3)), 0.4
    old, new = -0.5 * eps**2, -0.5 * (eps - d) ** 2
    look = LogProb(new, None, torch.zeros_like(new), torch.ones(1), torch.ones(1))
    made = policy_loss(
        look,
        old,
        torch.ones_like(eps, dtype=torch.bool),
        torch.ones(len(eps)),
        clip_range=1.0,
        kl_beta=0,
        normaliser=1.0,
    )
    assert made.stats["kl_old"] == pytest.approx(d**2 / 2, rel=0.02)


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
    made = relative_reward({"a": ours}, {"a": theirs}, np.arange(6), _specs(a="none"), {"a": True})
    assert np.array_equal(made.difference, ours - theirs) and np.array_equal(made.reward, ours)
    assert np.array_equal(made.base, theirs)
    down = relative_reward({"a": ours}, {"a": theirs}, np.arange(6), _specs(a="none"), {"a": False})
    assert np.array_equal(down.difference, theirs - ours)
    bounded = [RewardSpec(name="a", scale="none", bounds=(None, 0.0))]
    cut = relative_reward({"a": ours}, {"a": theirs}, np.arange(6), bounded, {"a": True})
    np.testing.assert_array_equal(cut.difference, np.minimum(ours, 0) - np.minimum(theirs, 0))


def test_rewards_of_unlike_units_weigh_the_same() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(12), rng.standard_normal(12)
    base_a, base_b, group = rng.standard_normal(12), rng.standard_normal(12), np.arange(12) // 3
    ways = {"a": True, "b": False}
    one = relative_reward({"a": a, "b": b}, {"a": base_a, "b": base_b}, group, _specs(a="batch", b="batch"), ways)
    two = relative_reward(
        {"a": 100 * a, "b": b + 7}, {"a": 100 * base_a, "b": base_b + 7}, group, _specs(a="batch", b="batch"), ways
    )
    np.testing.assert_allclose(one.difference, two.difference, atol=1e-9)
    np.testing.assert_allclose(one.difference, (a - base_a) / a.std() - 0.5 * (b - base_b) / b.std(), atol=1e-9)
    np.testing.assert_allclose(one.difference, one.reward - one.base, atol=1e-9)
    inside = relative_reward({"a": a}, {"a": base_a}, group, _specs(a="group"), ways).difference
    np.testing.assert_allclose(inside[3:6], (a - base_a)[3:6] / a[3:6].std(), atol=1e-9)
    flat = relative_reward({"a": np.ones(12)}, {"a": base_a}, group, _specs(a="batch"), ways).difference
    assert np.array_equal(flat, np.zeros(12))  # nothing to divide by
    missing = relative_reward(
        {"a": np.where(np.arange(12) == 2, np.nan, a)},
        {"a": np.where(np.arange(12) == 5, np.nan, base_a)},
        group,
        _specs(a="batch"),
        ways,
    ).difference
    assert np.flatnonzero(np.isnan(missing)).tolist() == [2, 5]
