"""GRPO: sample a group of rollouts for every prompt, reward each, and push towards those above their group's mean.

The textbook version (DeepSeekMath; for flows Flow-GRPO and FlowSE-GRPO): PPO's clipped ratio, no critic, the advantage is the
reward normalised inside its group, a KL to the reference policy in the loss. Nothing is left out. What is changed:
rows that cannot be scored get advantage 0 and do not enter their group's statistics; groups without spread are skipped and
counted; the first update checks that the policy's second look agrees with its first (ratio 1 within 1e-3); every update
logs ``grad_agreement``, the mean pairwise cosine of its micro-batches' gradients, which tells a setting that learns from
one that wanders; and the clip range may be measured instead of guessed, because its useful size depends on how
log-probabilities are reduced (papers use 0.2 and 1e-5 for the same thing).

Launch: ``rlspeech rl --algo grpo --task flowse`` (one process), ``torchrun --nproc-per-node 8 -m rlspeech rl ...`` (several).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlspeech.algos.math import Advantage, Surrogate, agreement, critical_batch, group_advantage, policy_loss
from rlspeech.config import RL, RewardSpec
from rlspeech.rewards.mix import compose
from rlspeech.types import Policy, Rollout, Sample, Score, UserError

__all__ = ["GRPO", "Experience", "JointScorer"]

RATIO_TOLERANCE = 1e-3


class JointScorer(Protocol):
    """Scores samples with every reward and guard at once (``rewards.pool.Scorer``)."""

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        """Column by column, in the samples' order."""
        ...


@dataclass
class Experience:
    """A collection: rollouts, their scores (N,) by name with NaN for null, composed reward and advantage, seconds by phase."""

    rollout: Rollout
    scores: dict[str, np.ndarray]
    reward: np.ndarray
    advantage: Advantage
    seconds: dict[str, float]


class GRPO:
    """Collect and update. ``requires`` names what the policy must support.

    Args:
        config: the run's.
        policy: the one to train.
        optimizer: over ``policy.parameters()``.
        average: averages gradients over processes, called once an update.
    """

    requires = frozenset({"sample"})

    def __init__(self, config: RL, policy: Policy, optimizer: torch.optim.Optimizer, average: Any = lambda parameters: None) -> None:
        if not self.requires <= policy.supports:
            raise UserError("this policy cannot be trained with grpo", f"it does not support {sorted(self.requires - policy.supports)}")
        self.config, self.policy, self.optimizer, self.average = config, policy, optimizer, average
        self.clip_range = float("inf") if config.clip_range == "auto" else float(config.clip_range)
        self.checked = False

    # -- collecting ----------------------------------------------------------------------------------------------------

    def collect(self, prompts: list[Any], scorer: JointScorer, *, seed: int) -> Experience:
        """Roll out the group of every prompt and score it.

        Raises:
            UserError: more rows without a score than ``max_unscorable``.
        """
        cfg, started = self.config, time.perf_counter()
        rollout = self.policy.rollout(prompts, group=cfg.group, seed=seed)
        rolled = time.perf_counter()
        columns = scorer.score(rollout.samples)
        scored = time.perf_counter()
        scores = {name: np.array([np.nan if s.value is None else s.value for s in column]) for name, column in columns.items()}
        reward, advantage = self.judge(rollout, scores, cfg.rewards)
        if advantage.unscorable > cfg.max_unscorable:
            reasons = [s.error for spec in cfg.rewards for s in columns[spec.name] if s.error]
            common = max(set(reasons), key=reasons.count) if reasons else "unknown"
            share, limit = 100 * advantage.unscorable, 100 * cfg.max_unscorable
            raise UserError(f"{share:.0f} % of the rollouts could not be scored (limit {limit:.0f} %)",
                            f"most often: {common}", "rlspeech doctor, or rlspeech reward on the run's samples/")
        return Experience(rollout, scores, reward, advantage, {"rollout": rolled - started, "reward": scored - rolled})

    def judge(self, rollout: Rollout, scores: dict[str, np.ndarray], specs: Sequence[RewardSpec]) -> tuple[np.ndarray, Advantage]:
        """Composed reward and advantage, both (N,), of one collection under any composition of its scores."""
        cfg = self.config
        reward = compose(scores, rollout.group.numpy(), specs, cfg.advantage).reward
        # norm_then_sum has divided each reward by its own spread already
        std = "none" if cfg.advantage == "norm_then_sum" else cfg.advantage_std
        return reward, group_advantage(torch.from_numpy(reward), rollout.group, std, cfg.advantage_clip)

    # -- updating ------------------------------------------------------------------------------------------------------

    def update(self, experience: Experience, *, lr: float) -> dict[str, float]:
        """Train on a collection in ``updates_per_collection`` optimiser steps, each on its own share of the prompts.

        Returns:
            what is logged, means over the updates.
        """
        started, rows = time.perf_counter(), []
        prompts = torch.unique(experience.rollout.group)
        shares = [s for s in torch.tensor_split(prompts, self.config.updates_per_collection) if len(s)]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for i, share in enumerate(shares):
            grads, stats = self.gradients(experience, experience.advantage.value, share)
            if i:  # before the first update of a collection the ratio is 1 but for rounding
                self._measure_clip(stats["log_ratio_std"])
            rows.append({**stats, **self._apply(grads, len(share))})
        experience.seconds["update"] = time.perf_counter() - started
        return {k: float(np.mean(v)) if (v := [r[k] for r in rows if k in r and not np.isnan(r[k])]) else float("nan") for k in rows[0]}

    def gradients(self, experience: Experience, advantage: Tensor, prompts: Tensor) -> tuple[list[Tensor], dict[str, float]]:
        """The policy gradient of some prompts, micro-batch by micro-batch.

        Args:
            experience: the collection.
            advantage: (N,).
            prompts: indices of the prompts that take part.

        Returns:
            one flat gradient (P,) a micro-batch, whose sum is the gradient of the update's mean loss, and statistics.
        """
        cfg, parameters, rollout = self.config, self.policy.parameters(), experience.rollout
        mask = rollout.mask & (rollout.finished & (advantage != 0))[:, None].to(rollout.mask.device)
        mine = torch.isin(rollout.group, prompts)
        normaliser = float(rollout.mask[mine.to(rollout.mask.device)].sum().clamp_min(1))
        grads, stats = [], []
        for part in prompts.split(cfg.micro_batch):
            rows = torch.isin(rollout.group, part).nonzero()[:, 0]
            device_rows = rows.to(rollout.logp.device)
            new = self.policy.log_prob(rollout, rows, with_kl=cfg.kl_beta > 0)
            made = policy_loss(new, rollout.logp[device_rows], mask[device_rows], advantage[rows].to(new.logp.device),
                               clip_range=self.clip_range, kl_beta=cfg.kl_beta, normaliser=normaliser, ratio=cfg.ratio)
            self._check(made)
            found = torch.autograd.grad(made.loss, parameters, allow_unused=True)
            grads.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]))
            stats.append({**made.stats, "log_ratio_std": made.log_ratio.std().item() if made.log_ratio.numel() > 1 else 0.0})
        merged = {k: float(np.mean([s[k] for s in stats])) for k in stats[0] if k != "rows"}
        return grads, merged

    def _check(self, made: Surrogate) -> None:
        """The first look at the first collection must repeat the policy that acted."""
        if self.checked:
            return
        gap = made.stats["ratio_max_gap"]
        if not gap <= RATIO_TOLERANCE:
            raise UserError(f"the ratio is off by {gap:.2e} before the first update (limit {RATIO_TOLERANCE:g})",
                            "the training pass does not repeat the sampling pass",
                            "a policy of your own: compare its log_prob with its rollout; else report this with the run folder")
        self.checked = True

    def _measure_clip(self, spread: float) -> None:
        """``clip_range: auto``: frozen at the first update whose ratio has moved, ``clip_std`` times the spread of the log-ratio there."""
        if self.config.clip_range == "auto" and self.clip_range == float("inf") and spread > 1e-9:
            self.clip_range = self.config.clip_std * spread

    def _apply(self, grads: list[Tensor], prompts: int) -> dict[str, float]:
        """One optimiser step on the sum of the micro-batches' gradients."""
        total, parameters = torch.stack(grads).sum(0), self.policy.parameters()
        for p, g in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p)
        self.average(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite and norm > 0:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        cosine = agreement(grads)
        return {"grad_norm": norm.item(), "skipped_updates": float(not finite), "grad_agreement": cosine, "clip_range": self.clip_range,
                "critical_prompts": critical_batch(cosine, prompts / max(1, len(grads)))}
