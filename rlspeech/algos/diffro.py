"""DiffRO: follow a reward's own gradient into the policy (arXiv 2507.05911), alone or beside GRPO (arXiv 2509.18569).

The textbook version: the policy's draw of each token becomes a Gumbel-softmax, the relaxed tokens go into a frozen reward network, and

    maximise  R(mu~) - beta sum_t KL(pi_t || pi_ref,t),   the KL over the whole codec vocabulary,

by the chain rule: no advantage, no ratio, no second rollout to compare with. What the papers leave open is a setting here (``DiffRO`` in
config.py): the temperature and its course, straight-through or soft, one pass over self-generated tokens or relaxed free running. The
policy does the relaxing (``types.RelaxPolicy``), so that a waveform of an enhancer is as good as tokens.

What is changed: reward and KL are means, over N pieces of text and over T decisions, where the papers sum (``diffro.reduction=sum``), so
that neither weight depends on a row's length; a published beta is then T / N times weaker (3.6 with the embedded pair). A row that never
stopped, or loops, is left out: its length is given, no gradient can end it, and what the reward network says of it is about nothing that
it was trained on.

Both together: GRPO on every rollout; DiffRO on those with an advantage above 0 (``diffro.on``), after the rows above are dropped, times
``diffro.weight``; one KL, GRPO's. Of a waveform's rewards those with a gradient are DiffRO's, the others GRPO's. The mean is over all rows
of an update, so that a filter that keeps little asks for little. ``on=all`` drops nothing at all, the naive sum, for comparison; alone,
DiffRO knows no advantage, and ``all`` takes the rows that did not stop, or loop, as well. Logged: the share that is kept, what the others
were dropped for, both gradients' sizes and their cosine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from rlspeech.algos.grpo import GRPO
from rlspeech.algos.math import Advantage, GradientSum, Mean, soft_loss
from rlspeech.algos.update import Columns, Experience, JointScorer, Judged, Logged, PolicyUpdate, Scored, Specs, rows_of
from rlspeech.config import RL
from rlspeech.engine import sampled_rows
from rlspeech.rewards.speech_rules import TOKEN_S, find_loop
from rlspeech.types import RelaxPolicy, Rollout, Sample, SoftReward, UserError

ROUND = 1_000_003  # between the seeds of collections
EPOCH = 7_919  # and of updates on one


def sound_rows(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """(N,) bool each: rows that stopped by themselves, and rows whose tokens do not loop (those without tokens do not)."""

    def loops(s: Sample) -> bool:
        return s.tokens is not None and find_loop(np.asarray(s.tokens).ravel(), s.token_s or TOKEN_S) is not None

    return rollout.finished.clone(), ~torch.tensor([loops(s) for s in rollout.samples], dtype=torch.bool)


class _Soft(PolicyUpdate):
    """What both forms share: the temperature, and the gradient of the differentiable reward.

    Raises:
        UserError: no differentiable reward.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"sample", "relax"})
    alone: ClassVar[bool] = False

    def __init__(self, *given: Any, soft: SoftReward | None = None) -> None:
        super().__init__(*given)
        if soft is None and self.config.policy_weight:
            why = "none was given"
            raise UserError(f"{self.name} needs a differentiable reward", why, "--algo grpo")
        self.soft = soft

    @property
    def tau(self) -> float:
        """Temperature at this collection: from ``tau`` to ``tau_end`` by equal factors over the run's steps."""
        cfg = self.config.diffro
        end = cfg.tau if cfg.tau_end is None else cfg.tau_end
        return float(cfg.tau * (end / cfg.tau) ** min(1.0, self.collections / max(1, self.config.steps - 1)))

    def note_kept(self, experience: Experience, rollout: Rollout, wanted: Tensor, *, drop: bool = True) -> Tensor:
        """Rows (N,) bool that DiffRO sees: those wanted, without the unfinished and the looping ones; kept and logged."""
        if getattr(self.soft, "divides", False):
            soft = cast(Any, self.soft)
            soft.settle(self.ranks.rows(rollout, experience.prompts, soft.measure(rollout.samples))[2][0])
        finished, straight = sound_rows(rollout)
        kept = wanted & finished & straight if drop else wanted
        experience.extra["kept"] = kept
        share = {"kept": kept, "unfinished": ~finished, "looping": finished & ~straight}
        experience.logged.update({f"diffro/{name}": float(rows.double().mean()) for name, rows in share.items()})
        experience.logged["diffro/tau"] = self.tau
        return kept

    def soft_gradients(self, experience: Experience, prompts: Tensor, kl_beta: float) -> tuple[GradientSum, Logged]:
        """Gradients of the differentiable reward's loss, one a micro-batch of prompts, and what is logged of them.

        The kept rows are in the experience's ``extra``; its ``reward`` takes the values where DiffRO is alone. ``kl_beta`` is 0 where
        another loss has the KL. Raises ``UserError``: more kept rows without a score than ``max_unscorable``.
        """
        cfg, rollout, kept = self.config, cast(Rollout, experience.rollout), experience.extra["kept"]
        policy, soft = cast(RelaxPolicy, self.policy), cast(SoftReward, self.soft)
        seed = cfg.seed + ROUND * (1 + self.collections) + EPOCH * (experience.updates // cfg.updates_per_collection)
        whole = rows_of(rollout, prompts)
        size, own = max(1.0, self.total(len(whole))), whole[kept[whole]]
        # the KL's mean shrinks with the share that is kept, as the reward's does
        normaliser = self.decisions(rollout.mask[own.to(rollout.mask.device)]) * size / max(1.0, self.total(len(own)))
        mean: Mean = cfg.loss_mean
        if cfg.diffro.reduction == "sum":
            normaliser, mean = size, "token"
        grads, parts, away = GradientSum(policy.parameters()), list[Logged](), list[float]()
        blind = judged = 0
        for rows in self.parts(rollout, prompts):
            rows = rows[kept[rows]]
            if not len(rows):
                continue
            made = policy.relax(rollout, rows, tau=self.tau, hard=cfg.diffro.hard, seed=seed, with_kl=kl_beta > 0)
            reward = soft.score_soft(made, [rollout.samples[i] for i in rows.tolist()])
            kl = None
            if kl_beta:
                kl = policy.log_prob(rollout, rows, with_kl=True).kl if made.kl is None else made.kl
            mask, known = rollout.mask[rows.to(rollout.mask.device)], reward.detach().isfinite()
            loss = soft_loss(reward, size, kl, mask, kl_beta=kl_beta, normaliser=normaliser, mean=mean)
            if loss.requires_grad:  # not where nothing could be scored
                grads.add(loss)
            values = reward.detach().float().cpu()
            blind, judged = blind + int((~known).sum()), judged + len(rows)
            parts.append({"reward": float(values.nanmean()), **soft.last, "rows": float(len(rows))})
            if kl is not None:
                away.append(float(kl.detach()[mask].mean()))
            if self.alone:  # the reward of the log is the differentiable one
                experience.reward[rows.numpy()] = values.double().numpy()
        grads.join(self.ranks)
        found = self.ranks.gather((parts, away, blind, judged))
        parts, away = ([x for own_rows in found for x in own_rows[i]] for i in (0, 1))
        blind, judged = (sum(own_rows[i] for own_rows in found) for i in (2, 3))
        if blind > cfg.max_unscorable * max(1, judged):
            share, limit = (f"{100 * x:.0f} %" for x in (blind / judged, cfg.max_unscorable))
            what = f"{share} of the relaxed rows could not be scored (limit {limit})"
            why = "the differentiable reward has no number for them"
            raise UserError(what, why, "--set clip_s=2, or rlspeech check on the data")
        logged = {f"diffro/{k}": _mean(parts, k) for k in (parts[0] if parts else {}) if k != "rows"}
        logged |= {"kl": float(np.mean(away))} if away else {}
        return grads, {**logged, "diffro/agreement": grads.agreement(), "diffro/grad_norm": grads.norm()}


class DiffRO(_Soft):
    """The differentiable reward alone. The run's rewards are measured at validation; rollouts are not scored, only relaxed."""

    name, alone = "diffro", True

    def check(self, config: RL) -> None:
        if config.change_weight:
            why = "its KL is the output's change already, over 2 noise^2"
            raise UserError("diffro has no change_weight", why, "--set kl_beta=0.1")

    def score(self, rollout: Rollout, prompts: list[Any], scorer: JointScorer, *, seed: int) -> Scored:
        """Nothing: no sampled reward takes part."""
        return {}, None

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        """No reward yet, and an advantage of 0."""
        n = len(rollout.group)
        return np.full(n, np.nan), Advantage(torch.zeros(n), 0.0, 0.0, len(torch.unique(rollout.group)), 0)

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        """Which rows are relaxed; their advantage is 1, for the count of prompts with signal."""
        super().assign_credit(experience, rollout)
        kept = self._keep(experience, rollout)
        groups = experience.advantage.groups
        signal = int(self.total(len(torch.unique(rollout.group[kept]))))
        experience.advantage = Advantage(kept.float(), 0.0, 1.0 - signal / max(1, groups), groups, signal)

    def _keep(self, experience: Experience, rollout: Rollout) -> Tensor:
        everything = torch.ones(len(rollout.group), dtype=torch.bool)
        return self.note_kept(experience, rollout, everything, drop=self.config.diffro.on != "all")

    def weigh(self, experience: Experience, rollout: Rollout) -> None:
        """As others do; what is followed gets those weights."""
        experience.reward = np.full(len(rollout.group), np.nan)
        super().weigh(experience, rollout)
        soft, weights = cast(Any, self.soft), {s.name: s.weight for s in self.specs}
        soft.specs = [s.model_copy(update={"weight": weights[s.name]}) for s in soft.specs]

    def reward_gradients(self, experience: Experience, advantages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients (P,) of the rewards that are followed, each alone, whatever the advantages."""
        soft, found = cast(Any, self.soft), dict[str, Tensor]()
        self._keep(experience, cast(Rollout, experience.rollout))
        every, prompts = soft.specs, torch.arange(len(experience.prompts))
        signs = {s.name: math.copysign(1.0, s.weight) for s in self.config.rewards}
        for spec in every:
            soft.specs = [spec.model_copy(update={"weight": signs[spec.name]})]
            found[spec.name] = self.soft_gradients(experience, prompts, 0.0)[0].total
        soft.specs = every
        return found

    def gradients(self, experience: Experience, advantage: Tensor, prompts: Tensor) -> tuple[GradientSum, Logged]:
        grads, stats = self.soft_gradients(experience, prompts, self.loss_beta)
        return grads, {**stats, "log_ratio_std": 0.0}


class GRPODiffRO(_Soft, GRPO):
    """GRPO on every rollout, and DiffRO on the better ones."""

    name = "grpo+diffro"

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        """GRPO's, of the rewards whose gradient is not followed, or of all where there are none, and of guards that are held."""
        followed, count = {s.name for s in getattr(self.soft, "specs", ())}, len(self.config.rewards)
        own = [s for i, s in enumerate(specs) if s.name not in followed or (i >= count and s.name in self.held)]
        return super().advantage_of(rollout, scores, own if len(own) > len(self.held) else specs, base)

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        super().assign_credit(experience, rollout)
        a, on = experience.advantage.value, self.config.diffro.on
        scored = torch.from_numpy(np.isfinite(experience.reward))
        wanted = {"positive": a > 0, "nonnegative": (a >= 0) & scored, "all": torch.ones_like(scored)}
        self.note_kept(experience, rollout, wanted[on] & sampled_rows(rollout.samples), drop=on != "all")
        experience.logged["diffro/weight"] = self.config.diffro.weight

    def gradients(self, experience: Experience, advantage: Tensor, prompts: Tensor) -> tuple[GradientSum, Logged]:
        """GRPO's gradient plus ``diffro.weight`` times the differentiable reward's; the agreement of the parts stays GRPO's."""
        grads, stats = super().gradients(experience, advantage, prompts)
        weight = self.config.diffro.weight / (1 + sum(self.held.values()))  # as ``specs``
        if not weight:
            return grads, stats
        aside = grads.set_aside()
        soft, more = self.soft_gradients(experience, prompts, 0.0)
        soft.scale(weight)
        size, cosine = soft.join_with(aside)
        stats.update(more, **{"diffro/grpo_grad_norm": size, "diffro/cosine": cosine})
        return grads, stats


def _mean(parts: Sequence[dict[str, float]], name: str) -> float:
    """Mean by rows over micro-batches, those without a number left out."""
    found = [(p[name], p["rows"]) for p in parts if name in p and np.isfinite(p[name])]
    return float(np.average([v for v, _ in found], weights=[w for _, w in found])) if found else float("nan")
