"""Does a setting learn or wander? Independent policy gradients at the starting point, and how well they agree.

A policy gradient is signal plus noise: of the exploration (too many dimensions for the rollouts), of the reward (its gradient
differs from clip to clip). Both show in the mean pairwise cosine of gradients from disjoint prompts and noise: 0 means no
common direction, and no learning rate makes one. All rewards and guards are judged from the same rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rlspeech.algos.math import critical_batch
from rlspeech.algos.update import flat_gradient
from rlspeech.stats import Interval, pairwise_cosine
from rlspeech.types import Policy, Rollout

__all__ = ["Agreement", "probe_gradients", "summarise"]

Agreement = dict[str, tuple[Interval, float]]


def probe_gradients(
    policy: Policy, rollout: Rollout, advantages: Mapping[str, Tensor], micro_batch: int
) -> dict[str, Tensor]:
    """Gradient (P,) of the on-policy surrogate (ratio 1, no KL) for every column of advantages (N,) or (N, S).

    Args:
        policy: at the weights that made the rollout.
        advantages: column name -> (N,) or (N, S).
        micro_batch: prompts in one forward pass.
    """
    parameters = policy.parameters()
    size = sum(p.numel() for p in parameters)
    totals = {name: torch.zeros(size, device=parameters[0].device) for name in advantages}
    count = float(rollout.mask.sum().clamp_min(1))
    for part in torch.unique(rollout.group).split(micro_batch):
        rows = torch.isin(rollout.group, part).nonzero()[:, 0]
        logp = policy.log_prob(rollout, rows, with_kl=False).logp
        mask = rollout.mask[rows.to(rollout.mask.device)]
        for name, advantage in advantages.items():
            mine = advantage[rows].to(logp.device)
            loss = -(logp * mask * (mine if mine.dim() == 2 else mine[:, None])).sum() / count
            totals[name] += flat_gradient(loss, parameters, keep_graph=True)
    return {name: total.cpu() for name, total in totals.items()}


def summarise(gradients: Mapping[str, list[Tensor]], prompts: int, seed: int = 0) -> Agreement:
    """Mean pairwise cosine with its bootstrap 95 % interval, and the prompts at which a gradient is half signal, by column.

    Args:
        gradients: column name -> K gradients (P,).
        prompts: prompts behind each gradient.
    """
    out: Agreement = {}
    for name, grads in gradients.items():
        kept = [g.numpy() for g in grads if float(g.norm()) > 0]
        unknown = Interval(float("nan"), float("nan"), float("nan"), len(kept))
        interval = pairwise_cosine(np.stack(kept), seed=seed) if len(kept) > 2 else unknown
        out[name] = (interval, critical_batch(interval.mean, prompts))
    return out
