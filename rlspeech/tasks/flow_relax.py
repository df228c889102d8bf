"""The flow enhancer as a policy whose output can be differentiated: the last K Euler steps again, with the noise that was drawn.

The gradient stops at the state that those steps start from (a truncated backpropagation, as DRaFT-K, arXiv 2309.17400): earlier steps
cost as much memory again and add little, because the last ones decide what is heard. See ``tasks/wave_relax.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlspeech.data.batches import Clip
from rlspeech.models.flow import FlowEnhancer, euler, magnitude
from rlspeech.tasks.explore import GainNoise, Site
from rlspeech.tasks.flow_policy import Decision, FlowPolicy
from rlspeech.tasks.flowse import FlowBatch, decode
from rlspeech.tasks.wave_relax import real_samples, wave_kl
from rlspeech.types import LogProb, Relaxed, Rollout, UserError

__all__ = ["RelaxedFlow", "Trail"]


@dataclass
class Start:
    """States that the last K steps start from: one a prompt, or one a rollout (``rows`` (N,) says whose is whose)."""

    step: int
    nfe: int
    x: Tensor
    y: Tensor
    mask: Tensor | None
    rows: Tensor


class Trail(list[Decision]):
    """A collection's decisions, and what its last steps need beside them: samples (N,) and gain (N,) of every rollout's prompt."""

    start: Start
    samples: Tensor
    gain: Tensor


class RelaxedFlow(FlowPolicy):
    """A ``FlowPolicy`` with ``relax``; its KL is that of the waveforms.

    Args:
        last_steps: K.

    Raises:
        UserError: more steps than there are, or exploration without noise, which is the KL's unit.
    """

    supports = FlowPolicy.supports | {"relax"}

    def __init__(self, *args: Any, last_steps: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.explore.nfe is not None  # filled in there
        if last_steps > self.explore.nfe[0]:
            raise UserError(
                f"the gradient cannot pass through {last_steps} last steps",
                f"there are {self.explore.nfe[0]}",
                f"--set diffro.last_steps={self.explore.nfe[0]}",
            )
        if not self.explore.noise:
            raise UserError(
                "explore.noise is 0", "it is also the unit of the KL to the reference", "--set explore.noise=0.1"
            )
        self.last_steps = last_steps
        self._start: tuple[int, int, Tensor, Tensor, Tensor | None] | None = None

    # -- acting --------------------------------------------------------------------------------------------------------

    def passed(self, step: int, nfe: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Keep what the last K steps start from."""
        if step == nfe - self.last_steps:
            self._start = (step, nfe, x, y, mask)

    def _pack(
        self, batch: list[Clip], data: FlowBatch, x: Tensor, prompts: Tensor, decisions: list[Decision]
    ) -> Rollout:
        made = super()._pack(batch, data, x, prompts, decisions)
        assert self._start is not None
        rows = torch.arange(len(prompts), device=prompts.device) if len(self._start[2]) == len(prompts) else prompts
        trail = Trail(decisions)
        trail.start, trail.samples, trail.gain = Start(*self._start, rows), data.samples[prompts], data.gain[prompts]
        self._start, made.state = None, trail
        return made

    # -- again ---------------------------------------------------------------------------------------------------------

    def relax(
        self,
        rollout: Rollout,
        rows: Tensor,
        *,
        tau: float = 1.0,
        hard: bool = True,
        seed: int = 0,
        with_kl: bool = False,
    ) -> Relaxed:
        """Waveforms (n, T) of some rows under the current weights and their own noise; see ``types.RelaxPolicy``."""
        wav, mask = self._wave(self.model, rollout.state, rows)
        kl = self._away(rollout, rows, wav, mask) if with_kl else None
        return Relaxed(wav, mask, kl=kl, seed=seed)

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        """As ``FlowPolicy.log_prob``, with the KL of the waveforms."""
        new = super().log_prob(rollout, rows, with_kl=False)
        return (
            new._replace(kl=self._away(rollout, rows, *self._wave(self.model, rollout.state, rows))) if with_kl else new
        )

    def _away(self, rollout: Rollout, rows: Tensor, wav: Tensor, mask: Tensor) -> Tensor:
        """(n, S): the KL to the reference's waveforms, the same at every decision."""
        with torch.no_grad(), self.adapted.reference() as model:
            there, _ = self._wave(model, rollout.state, rows)
        return wave_kl(wav, there, mask, self.explore.noise)[:, None].expand(-1, rollout.mask.shape[1])

    def _wave(self, model: FlowEnhancer, trail: Trail, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (n, T) at the inputs' levels, and their real samples; rows that share a state share its passes."""
        start, rows = trail.start, rows.to(trail.samples.device)
        used, back = torch.unique(start.rows[rows], return_inverse=True)
        x, y, mask = start.x[used], start.y[used], None if start.mask is None else start.mask[used]
        dt, apart = 1.0 / start.nfe, False
        decisions = {round(d.site.t * start.nfe): d for d in trail}
        for step in range(start.step, start.nfe):
            x1, decision = model.clean(x, y, step * dt, mask), decisions.get(step)
            if decision is None:
                x = euler(x, x1, step * dt, dt)
                continue
            if not apart:
                x, x1, y, mask, apart = x[back], x1[back], y[back], None if mask is None else mask[back], True
            x = self._act(decision.site.pick(decision.states[rows]), x, x1, decision.eps[rows])
        out = decode(model, x if apart else x[back], trail.samples[rows]) / trail.gain[rows][:, None]
        return out, real_samples(trail.samples[rows], out.shape[1])

    def _act(self, old: Site, x: Tensor, x1: Tensor, eps: Tensor) -> Tensor:
        """A stochastic step (n, L, D) of another state and prediction with noise (n, J); gains stay in the fields of their draw."""
        rows = torch.arange(len(eps), device=eps.device)
        if not isinstance(self.kernel, GainNoise):
            return self.kernel.act(Site(x, old.y, x1, old.t, old.dt, old.mask), eps, rows)
        _, total, fields = self.kernel.fields.at(magnitude(old.x1), magnitude(old.y.float()), old.mask)
        gain = self.kernel.fields.gain(fields, total, eps, rows)
        return euler(x, x1 * torch.cat([gain] * 2, dim=-1), old.t, old.dt)
