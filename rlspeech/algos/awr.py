"""AWR: regress the policy onto its own outputs, weighted by their advantage; who acted, and under what noise, need not be known.

The textbook version is AdvantageFlow (arXiv 2605.26013; on FlowSE as GA-AF; kin of AWM, arXiv 2509.25050): a flow is rolled out without
noise, from differing latents, and its clean prediction at a random time is drawn to each output x_1 with its advantage A, one below the
group's mean away from it. What keeps that from running off is a completed square: with gamma above every |A| (1.1; A clipped at 1),

    A |x - x_1|^2 + (gamma - A) |x - x_old|^2 = gamma |x - x_old - (A / gamma) (x_1 - x_old)|^2 + constant,

so that a bad output is a goal too, mirrored about the old prediction x_old. Where x = x_old its gradient is that of A |x - x_1|^2.

What is changed: for tokens and masks to have it too, the regression is the policy's own (``types.FittingPolicy``), the mean of an output's
log-likelihood over its tokens or elements, l; and the pull to x_old, whose place AWM gives to a ratio, is GRPO's clip of exp(l - l_old):
an output that has been pushed away far enough is let go. The first update of a collection has the published gradient, the further ones
a bounded one. The weight is A itself: exp(A / beta), of the offline AWR (arXiv 1910.00177), is never negative and throws half of a group's
comparison away (``awr.repulsion`` 0 drops those below the mean). The EMA of the policy that rolls out there is left out. The KL to the
reference is that of the fitted Gaussians, |x - x_ref|^2 / (2 sigma^2) a mean element; of tokens k3.

Of a flow of one step the regression is at the state that acted: GRPO's gradient in another metric (all bins instead of the gains that
were drawn). ``rl --probe --set probe_algos=[grpo,awr]`` measures which has less noise before anything is trained.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rlspeech.algos.grpo import GRPO
from rlspeech.algos.update import Columns, Experience, Judged, Specs
from rlspeech.types import FittingPolicy, LogProb, Rollout


class AWR(GRPO):
    """GRPO's advantages on the log-likelihood of whole outputs instead of decisions."""

    name = "awr"
    requires = frozenset({"sample", "fit"})

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        reward, made = super().advantage_of(rollout, scores, specs, base)
        return reward, made._replace(value=made.value * torch.where(made.value < 0, self.config.awr.repulsion, 1.0))

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        """As GRPO; and where a collection has several updates, how likely its outputs were before the first."""
        super().assign_credit(experience, rollout)
        if self.config.updates_per_collection * self.config.epochs > 1 and experience.prompts:
            with torch.no_grad():
                found = [self.evaluate(experience, rows)[0].logp for rows in self.parts(rollout)]
            experience.extra["fitted"] = torch.cat(found)

    def counting(self, rollout: Rollout) -> Tensor:
        """(N, 1) bool: an output is one decision."""
        return super().counting(rollout).any(1, keepdim=True)

    def evaluate(self, experience: Experience, rows: Tensor, *, with_kl: bool = False) -> tuple[LogProb, Tensor]:
        rollout, policy = cast(Rollout, experience.rollout), cast(FittingPolicy, self.policy)
        prompts = [experience.prompts[p] for p in rollout.group[rows].tolist()]
        samples = [rollout.samples[i] for i in rows.tolist()]
        fit = policy.fit(prompts, samples, seed=experience.seed, reference=with_kl)
        size = fit.size.clamp_min(1)
        logp, kl = (None if x is None else (x / size)[:, None] for x in (fit.logp, fit.kl))
        assert logp is not None
        one, before = torch.ones(1, device=logp.device), experience.extra.get("fitted")
        old = logp.detach() if before is None else before[rows.to(before.device)]
        return LogProb(logp, kl, torch.zeros_like(logp), one, one), old
