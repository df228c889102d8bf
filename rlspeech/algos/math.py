"""The only place that computes an advantage, a KL penalty or a clipped loss.

Notation: N rollouts in groups of G, S decisions; A advantage, rho = exp(logp - logp_old) the ratio, eps the clip range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlspeech.types import LogProb

__all__ = ["Advantage", "Surrogate", "agreement", "critical_batch", "group_advantage", "policy_loss"]

EPS = 1e-8


class Advantage(NamedTuple):
    """``value`` (N,) with 0 for rows without signal; shares of rows that could not be scored and of groups without spread."""

    value: Tensor
    unscorable: float
    constant_groups: float
    groups: int
    signal: int


def group_advantage(reward: Tensor, group: Tensor, std: Literal["group", "batch", "none"] = "group", clip: float = 5.0) -> Advantage:
    """A_i = (R_i - mean of its group) / std, the statistics over the rows that could be scored.

    Unscorable rows (NaN) and groups whose rewards are all equal get 0. Population standard deviation, as in FlowSE-GRPO (Eq. 8).

    Args:
        reward: (N,), NaN where a row could not be scored.
        group: (N,) long, prompt of every row.
        std: divide by the group's spread, by the root mean square of all centred rewards, or by nothing (Dr. GRPO).
        clip: bound on the absolute advantage.
    """
    reward = reward.double()
    known = reward.isfinite()
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    filled = torch.where(known, reward, torch.zeros_like(reward))
    count = torch.zeros(groups, dtype=torch.double).index_add_(0, index, known.double())
    mean = torch.zeros(groups, dtype=torch.double).index_add_(0, index, filled) / count.clamp_min(1)
    centred = torch.where(known, reward - mean[index], torch.zeros_like(reward))
    spread = (torch.zeros(groups, dtype=torch.double).index_add_(0, index, centred.square()) / count.clamp_min(1)).sqrt()
    signal = (count >= 2) & (spread > EPS * (1 + mean.abs()))
    if std == "group":
        value = centred / spread[index].clamp_min(EPS)
    elif std == "batch":
        rows = known & signal[index]
        value = centred / (centred[rows].square().mean().sqrt().clamp_min(EPS) if rows.any() else 1.0)
    else:
        value = centred
    value = torch.where(known & signal[index], value, torch.zeros_like(value)).clamp(-clip, clip)
    return Advantage(value.float(), 1.0 - known.double().mean().item(), 1.0 - signal.double().mean().item(), groups, int(signal.sum()))


class Surrogate(NamedTuple):
    """Loss (to minimise, summed over rows and divided by ``normaliser``) and what it was made of."""

    loss: Tensor
    stats: dict[str, float]
    log_ratio: Tensor


def policy_loss(new: LogProb, old: Tensor, mask: Tensor, advantage: Tensor, *, clip_range: float, kl_beta: float, normaliser: float,
                ratio: Literal["plain", "rationorm"] = "plain") -> Surrogate:
    """PPO's clipped surrogate plus beta times the true KL to the reference.

    loss = sum over decisions of [-min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta KL] / normaliser.
    RatioNorm (GRPO-Guard, arXiv 2510.22319) takes log rho = (logp - logp_old + drift) * scale and divides by the step length,
    because the plain log-ratio of a Gaussian has a negative mean, so that positive samples would hardly ever be clipped.

    Args:
        new: (n, S) the policy's second look, with gradient.
        old: (n, S) log-probabilities of the policy that acted.
        mask: (n, S) bool, decisions that count.
        advantage: (n,).
        clip_range: eps; ``inf`` leaves the ratio alone.
        kl_beta: beta.
        normaliser: decisions in the whole update, so that micro-batches add up to its mean.
    """
    log_ratio, weight = new.logp - old, mask.float()
    if ratio == "rationorm":
        log_ratio = (log_ratio + new.drift) * new.scale
        weight = weight / new.dt
    rho = log_ratio.exp()
    a = advantage[:, None]
    clipped = rho.clamp(1 - clip_range, 1 + clip_range)
    loss = (-torch.minimum(rho * a, clipped * a) * weight).sum() / normaliser
    count = mask.sum().clamp_min(1)
    stats = {"ratio_mean": float((rho.detach() * mask).sum() / count), "ratio_max_gap": float(((rho.detach() - 1).abs() * mask).max()),
             "rows": float(mask.shape[0]),
             **{f"clipped_{name}": _share(((rho - clipped).abs() > 0) & (rho * a > clipped * a) & mask, sign & mask)
                for name, sign in (("positive", a > 0), ("negative", a < 0))}}
    if new.kl is not None:
        penalty = (new.kl * mask).sum() / normaliser
        stats["kl"] = float((new.kl.detach() * mask).sum() / count)
        loss = loss + kl_beta * penalty
    return Surrogate(loss, stats, log_ratio.detach()[mask])


def _share(part: Tensor, whole: Tensor) -> float:
    total = whole.sum().item()
    return part.sum().item() / total if total else 0.0


def agreement(grads: Sequence[Tensor]) -> float:
    """Mean pairwise cosine of K gradients (each (P,)); NaN with fewer than two that are not zero."""
    units = [g / norm for g in grads if (norm := g.norm()) > 0]
    k = len(units)
    if k < 2:
        return float("nan")
    return float((torch.stack(units).sum(0).square().sum() - k) / (k * (k - 1)))


def critical_batch(cosine: float, batch: float) -> float:
    """Prompts at which a gradient is half signal, half noise, given the mean cosine of gradients of ``batch`` prompts each.

    With gradient = signal + noise / sqrt(batch), cosine = s / (s + n / batch), so n / s = batch (1 - cosine) / cosine
    (the noise scale of McCandlish et al., arXiv 1812.06162). Infinite where the cosine is not above 0.
    """
    return batch * (1 - cosine) / cosine if cosine > 0 else float("inf")
