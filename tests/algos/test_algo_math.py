"""Advantages, clipped losses and agreement against plain loops, autograd of scalars, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.algos.math import agreement, critical_batch, group_advantage, policy_loss
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
        st.tuples(st.one_of(st.integers(-40, 40).map(lambda i: i / 8), st.just(math.nan)), st.integers(0, 4)),
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


def test_advantages_have_mean_zero_and_spread_one_inside_groups() -> None:
    g = torch.Generator().manual_seed(0)
    reward, group = 100 + 3 * torch.randn(60, generator=g, dtype=torch.double), torch.arange(6).repeat_interleave(10)
    value = group_advantage(reward, group).value.view(6, 10)
    torch.testing.assert_close(value.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(value.std(1, correction=0), torch.ones(6), atol=1e-4, rtol=0)
    order = torch.randperm(60, generator=g)  # rows of a group need not stand together
    torch.testing.assert_close(group_advantage(reward[order], group[order]).value, value.flatten()[order])
    torch.testing.assert_close(group_advantage(7 * reward - 3, group).value, value.flatten(), atol=1e-4, rtol=1e-4)


def test_trl_divides_by_the_sample_deviation() -> None:
    """TRL: (r - mean) / (std + 1e-4) with n - 1; Dr. GRPO: scale_rewards=False, no division."""
    reward, group = torch.tensor([1.0, 2.0, 4.0, 3.0, 0.0, 10.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    rows = reward.view(2, 3)
    trl = ((rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(group_advantage(reward, group).value, trl * math.sqrt(3 / 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        group_advantage(reward, group, "none", clip=1e9).value, (rows - rows.mean(1, keepdim=True)).flatten()
    )


def test_rows_without_a_score_and_groups_without_spread() -> None:
    nan = float("nan")
    reward = torch.tensor([1.0, nan, 3.0, 5.0, 5.0, 5.0, 2.0, nan, nan, 0.1, 0.1 + 1e-12, 0.1])
    made = group_advantage(reward.double(), torch.arange(4).repeat_interleave(3))
    assert made.value.tolist() == [-1.0, 0.0, 1.0] + [0.0] * 9
    assert made.signal == 1 and made.constant_groups == 0.75 and made.unscorable == pytest.approx(0.25)
    empty = group_advantage(torch.tensor([nan, nan]), torch.tensor([0, 0]))
    assert empty.value.tolist() == [0.0, 0.0] and empty.unscorable == 1.0
    assert (
        group_advantage(torch.tensor([0.0] * 9 + [100.0]), torch.zeros(10, dtype=torch.long), clip=2.5).value.max()
        == 2.5
    )
    infinite = group_advantage(torch.tensor([1.0, float("inf"), 3.0]), torch.zeros(3, dtype=torch.long))
    assert infinite.value.tolist() == [-1.0, 0.0, 1.0]


# -- the loss --------------------------------------------------------------------------------------------------------------


def _look(
    logp: torch.Tensor, kl: torch.Tensor | None = None, drift: float = 0.0, scale: float = 1.0, dt: float = 1.0
) -> LogProb:
    steps = logp.shape[1]
    return LogProb(
        logp, kl, torch.full_like(logp, drift).detach(), torch.full((steps,), scale), torch.full((steps,), dt)
    )


@pytest.mark.parametrize("a", [1.5, -0.8, 0.0])
@pytest.mark.parametrize("moved", [-0.5, -0.1, 0.0, 0.1, 0.5])
def test_the_clipped_loss_against_a_scalar(a: float, moved: float) -> None:
    """PPO: no gradient once the ratio has gone too far in the direction that the advantage wants, full gradient otherwise."""
    logp = torch.tensor([[-1.0 + moved]], requires_grad=True)
    made = policy_loss(
        _look(logp),
        torch.tensor([[-1.0]]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.tensor([a]),
        clip_range=0.2,
        kl_beta=0.0,
        normaliser=1.0,
    )
    (grad,) = torch.autograd.grad(made.loss, logp)
    rho = math.exp(moved)
    clipped = (a > 0 and rho > 1.2) or (a < 0 and rho < 0.8)
    bound = 1.2 if a > 0 else 0.8
    assert made.loss.item() == pytest.approx(-a * (bound if clipped else rho), abs=1e-6)
    assert grad.item() == pytest.approx(0.0 if clipped else -a * rho, abs=1e-6)
    assert made.stats["clipped_positive"] == float(clipped and a > 0)
    assert made.stats["clipped_negative"] == float(clipped and a < 0)
    assert made.stats["ratio_max_gap"] == pytest.approx(abs(rho - 1), abs=1e-6)


def test_at_ratio_one_the_gradient_is_reinforce_whatever_the_clip() -> None:
    g = torch.Generator().manual_seed(0)
    old, advantage = torch.randn(6, 3, generator=g), torch.randn(6, generator=g)
    mask = torch.rand(6, 3, generator=g) > 0.3
    for clip in (1e-4, 0.2, math.inf):
        logp = old.clone().requires_grad_()
        made = policy_loss(_look(logp), old, mask, advantage, clip_range=clip, kl_beta=0.0, normaliser=18.0)
        (grad,) = torch.autograd.grad(made.loss, logp)
        torch.testing.assert_close(grad, -advantage[:, None] * mask / 18.0)


def test_parts_add_up_and_masked_decisions_are_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    old, new, kl = (torch.randn(8, 2, generator=g) * 0.1 for _ in range(3))
    advantage, mask = torch.randn(8, generator=g), torch.rand(8, 2, generator=g) > 0.4
    options = {"clip_range": 0.05, "kl_beta": 0.3, "normaliser": float(mask.sum())}
    whole = policy_loss(_look(new, kl), old, mask, advantage, **options)
    parts = [
        policy_loss(_look(new[r], kl[r]), old[r], mask[r], advantage[r], **options).loss
        for r in torch.arange(8).split(3)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole.loss), abs=1e-6)
    junk = policy_loss(_look(torch.where(mask, new, 3.0), torch.where(mask, kl, 50.0)), old, mask, advantage, **options)
    assert float(junk.loss) == pytest.approx(float(whole.loss), abs=1e-6) and junk.stats == pytest.approx(whole.stats)
    assert whole.stats["kl"] == pytest.approx(float(kl[mask].mean()))
    free = policy_loss(_look(new, None), old, mask, advantage, **{**options, "kl_beta": 0.0})
    assert float(whole.loss - free.loss) == pytest.approx(0.3 * float(kl[mask].mean()), abs=1e-6)
    assert whole.log_ratio.shape == (int(mask.sum()),)


def test_rationorm() -> None:
    g = torch.Generator().manual_seed(2)
    old, new = torch.randn(5, 2, generator=g), torch.randn(5, 2, generator=g)
    mask, advantage = torch.ones(5, 2, dtype=torch.bool), torch.randn(5, generator=g)
    options = {"clip_range": 0.2, "kl_beta": 0.0, "normaliser": 10.0}
    plain = policy_loss(_look(new), old, mask, advantage, **options)
    assert float(policy_loss(_look(new), old, mask, advantage, ratio="rationorm", **options).loss) == pytest.approx(
        float(plain.loss)
    )
    assert float(
        policy_loss(_look(new, dt=0.1), old, mask, advantage, ratio="rationorm", **options).loss
    ) == pytest.approx(10 * float(plain.loss), rel=1e-5)
    assert float(
        policy_loss(_look(new, drift=9.0, scale=9.0, dt=9.0), old, mask, advantage, **options).loss
    ) == pytest.approx(float(plain.loss))


def test_rationorm_centres_the_log_ratio_of_a_gaussian() -> None:
    """log N(x; d, 1) - log N(x; 0, 1) = eps d - d^2/2 has mean -d^2/2; with the drift added back it has mean 0 and spread scale * d."""
    eps, d = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(3)), 0.8
    old, new = -0.5 * eps**2, -0.5 * (eps - d) ** 2
    mask, advantage = torch.ones_like(eps, dtype=torch.bool), torch.ones(len(eps))
    options = {"clip_range": math.inf, "kl_beta": 0.0, "normaliser": 1.0}
    plain = policy_loss(_look(new), old, mask, advantage, **options).log_ratio
    normed = policy_loss(
        _look(new, drift=d**2 / 2, scale=0.2), old, mask, advantage, ratio="rationorm", **options
    ).log_ratio
    assert float(plain.mean()) == pytest.approx(-(d**2) / 2, abs=0.01)
    assert float(normed.mean()) == pytest.approx(0.0, abs=0.002)
    assert float(normed.std()) == pytest.approx(0.2 * d, rel=0.01)


# -- agreement -------------------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_pairwise_cosine() -> None:
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 40)) + 0.4
    cosines = [
        grads[i] @ grads[j] / np.linalg.norm(grads[i]) / np.linalg.norm(grads[j]) for i in range(6) for j in range(i)
    ]
    assert agreement([torch.from_numpy(g) for g in grads]) == pytest.approx(np.mean(cosines), abs=1e-9)
    assert agreement(
        [torch.from_numpy(g) * s for g, s in zip(grads, (1, 5, 0.1, 9, 2, 3), strict=True)]
    ) == pytest.approx(np.mean(cosines), abs=1e-9)
    one = torch.ones(5)
    assert agreement([one, 3 * one]) == pytest.approx(1.0) and agreement([one, -one]) == pytest.approx(-1.0)
    assert math.isnan(agreement([one])) and math.isnan(agreement([one, 0 * one]))
    assert agreement([one, 0 * one, one]) == pytest.approx(1.0)


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
