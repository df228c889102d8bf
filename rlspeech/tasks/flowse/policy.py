"""A flow-matching enhancer as a policy: N = B*G rollouts of S stochastic steps inside an otherwise deterministic ODE.

The textbook version (Flow-GRPO, FlowSE-GRPO) turns a window of Euler steps into SDE steps and trains on their Gaussian
log-probabilities. What is changed: the deterministic steps before the window are run once a prompt and shared by the group
(option ``shared_latent``); ratios and KLs come from how far the mean moved, not from differences of large numbers; states
that several rows share are evaluated once; and the noise may be structured (``tasks/explore.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import Exploration, Pretrain
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.flow import FlowEnhancer, euler, magnitude
from rlspeech.tasks.explore import GainNoise, Site, build_kernel
from rlspeech.tasks.flowse.enhancer import Enhancer, collate, decode, encode, flow_loss, latent, spectral_mask
from rlspeech.tasks.gaussian import GaussianPolicy, Levelled, Reduction, RelaxedGaussian, distance, real_samples, reduce
from rlspeech.types import LogProb, Rollout, Sample, UserError

QUARTERS = 4


@dataclass
class Decision:
    """One stochastic step of all rollouts: ``site`` holds n unique states, row i starts from ``states[i]`` with noise ``eps[i]`` (N, J)."""

    site: Site
    eps: Tensor
    states: Tensor
    active: Tensor
    old: Tensor


class FlowPolicy(GaussianPolicy):
    """A ``GaussianPolicy`` over a window of the ODE's steps.

    Raises:
        UserError: a window that does not fit the number of steps.
    """

    supports = GaussianPolicy.supports | {"latent"}

    def __init__(self, adapted: Adapted, explore: Exploration, reduction: Reduction = "mean", seed: int = 0) -> None:
        own = adapted.model.cfg.nfe
        explore = explore if explore.nfe else explore.model_copy(update={"nfe": (own, own)})
        assert explore.nfe is not None
        low = explore.nfe[0] - (explore.kind == "cps")  # cps has no noise in the last step
        fits = low >= 2 or (low == 1 and explore.kind in {"gain", "dance"} and explore.start == "last")
        starts = explore.start == "last" or 1 <= explore.start[0] <= explore.start[1] <= low - 1
        if not fits or not starts or explore.window > low:
            what = "the exploration window does not fit"
            why = f"start {explore.start}, window {explore.window}, at least {low} steps; step 0 stays an ODE step"
            raise UserError(what, why, "--set explore.start=[1,3] --set explore.nfe=[7,10]")
        super().__init__(adapted, explore, build_kernel(adapted.model, explore), reduction, seed)

    def enhancer(self, seed: int) -> Enhancer:
        """The current weights without noise."""
        return Enhancer(self.model, seed=seed)

    def base(self, batch: list[Clip], *, seed: int | None = None) -> list[Sample]:
        """What the reference weights make of each clip, by the ODE; see ``types.BasePolicy``.

        With the ``seed`` of a collection, from its latents (unshared: those of each group's first row) in its number of steps; without,
        from the policy's own latents in as many steps as the model takes at inference.
        """
        nfe = None if seed is None else self.schedule(np.random.default_rng([self.seed, seed]))[0]
        names = [c.key if seed is None else c.draw for c in batch]
        names = names if self.explore.shared_latent else [f"{name}#0" for name in names]
        with self.adapted.reference() as model:
            enhancer = Enhancer(model, nfe=nfe, guidance=0.0, seed=self.seed + (seed or 0))
            wavs = enhancer.infer([c.noisy for c in batch], names)
        return [c.sample(wav, self.sample_rate) for c, wav in zip(batch, wavs, strict=True)]

    def supervised(self, prompts: list[Clip], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        """The loss of flow matching, as in pretraining with its default weights; there is none of sampled outputs."""
        data = collate(prompts, self.model, self.device)
        return flow_loss(self.model, data, Pretrain().magnitude_weight)["loss"]

    # -- acting --------------------------------------------------------------------------------------------------------

    def schedule(self, rng: np.random.Generator) -> tuple[int, range]:
        """Number of Euler steps, and which of them are stochastic (never step 0, unless it is the only one); one draw a collection."""
        cfg = self.explore
        assert cfg.nfe is not None  # set above
        nfe = int(rng.integers(cfg.nfe[0], cfg.nfe[1] + 1))
        end = nfe - (cfg.kind == "cps")  # the last step of cps has no noise, so that its log-probability would be 0/0
        first = end - cfg.window if cfg.start == "last" else int(rng.integers(cfg.start[0], cfg.start[1] + 1))
        return nfe, range(max(first, 1) if nfe > 1 else 0, min(first + cfg.window, end))

    @torch.no_grad()
    def rollout(self, batch: list[Clip], *, group: int, seed: int) -> Rollout:
        model, device = self.model, self.device
        data = collate(batch, model, device)
        y = encode(model, data.noisy, data.samples)
        mask = spectral_mask(model, data, y.shape[1])
        nfe, window = self.schedule(np.random.default_rng([self.seed, seed]))
        dt = 1.0 / nfe
        shared, n = self.explore.shared_latent, len(batch) * group
        prompts = torch.arange(len(batch), device=device).repeat_interleave(group)
        states = torch.arange(len(batch), device=device) if shared else prompts  # prompt of every state so far
        names = [c.draw for c in batch] if shared else [f"{c.draw}#{g}" for c in batch for g in range(group)]
        y = y[states]
        mask = None if mask is None else mask[states]
        x = model.prior(y, latent(names, self.seed + seed, (y.shape[1], y.shape[2])).to(device))
        decisions: list[Decision] = []
        for i in range(nfe):
            self.passed(i, nfe, x, y, mask)
            x1 = model.clean(x, y, i * dt, mask)
            if i in window:
                site = Site(x, y, x1, i * dt, dt, mask)
                rows = prompts if len(x) < n else torch.arange(n, device=device)
                decision = self._decide(site, rows, [batch[p].draw for p in prompts.tolist()], group, seed, i)
                x = self.kernel.act(site, decision.eps, rows)
                decisions.append(decision)
                y, mask = (y, mask) if len(y) == n else (y[rows], None if mask is None else mask[rows])
            else:
                x = euler(x, x1, i * dt, dt)
        return self._pack(batch, data, x, prompts, decisions)

    def passed(self, step: int, nfe: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Hook: the state (n, L, D) that a step of ``nfe`` starts from, one a prompt or one a rollout."""

    def _decide(self, site: Site, rows: Tensor, keys: list[str], group: int, seed: int, step: int) -> Decision:
        eps = self.noise(keys, group, self.kernel.dims(site), seed, step)
        active = self.kernel.active(site)
        eps = eps.to(site.x.device) * active[rows]
        old = reduce(-0.5 * eps.square(), active[rows], self.reduction)
        return Decision(site, eps, rows, active, old)

    def _pack(self, batch: list[Clip], data: Levelled, x: Tensor, prompts: Tensor, steps: list[Decision]) -> Rollout:
        out = decode(self.model, x, data.samples[prompts]) / data.gain[prompts][:, None]
        wavs = out.float().cpu().numpy()
        owners = prompts.tolist()
        samples = [batch[p].sample(wavs[i, : len(batch[p].noisy)], self.sample_rate) for i, p in enumerate(owners)]
        logp = torch.stack([d.old for d in steps], dim=1)
        alive = torch.stack([d.active[d.states].sum(1) > 0 for d in steps], dim=1)
        return Rollout(prompts.cpu(), logp, alive, samples, steps, torch.ones(len(owners), dtype=torch.bool))

    # -- a second look -------------------------------------------------------------------------------------------------

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        steps: list[Decision] = rollout.state
        terms = [self._terms(d, rows.to(d.eps.device), with_kl) for d in steps]
        return self.packed(terms, [self.kernel.scale(d.site) for d in steps], [d.site.dt for d in steps])

    def _terms(self, decision: Decision, rows: Tensor, with_kl: bool) -> list[Tensor | None]:
        # each state once, however many rows start there
        used, back = torch.unique(decision.states[rows], return_inverse=True)
        site, active = decision.site.pick(used), decision.active[used][back]
        given = site.x, site.y, site.t, site.mask
        x1 = self.model.clean(*given)
        shift, reference = self.kernel.shift(site, x1), None
        if with_kl:
            with torch.no_grad(), self.adapted.reference() as model:
                there = model.clean(*given)
            change = distance(*(self.model.front.amplitudes(x, site.mask) for x in (x1, there)))
            reference = (shift - self.kernel.shift(site, there))[back], change[back]
        return self.terms(decision.old[rows], decision.eps[rows], active, shift[back], reference)

    # -- for a critic --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """What a decision starts from, in a few numbers: (n, S, D), see ``types.CriticPolicy``. No pass of the network.

        Time and step length; mean and spread, over bins and real frames, of the log-magnitudes of condition, state and prediction;
        mean and spread of how much the prediction lies above the condition, and its mean in each of ``QUARTERS`` parts of the bins.
        """
        columns = []
        for d in rollout.state:
            used, back = torch.unique(d.states[rows.to(d.states.device)], return_inverse=True)
            columns.append(self._describe(d.site.pick(used))[back])
        return torch.stack(columns, dim=1)

    def _describe(self, site: Site) -> Tensor:
        y, x, x1 = (self._log_spectrum(v) for v in (site.y, site.x, site.x1))
        real = y.new_ones(y.shape[:2]) if site.mask is None else site.mask.to(y.dtype)
        frames, change = real.sum(1).clamp_min(1), x1 - y
        profile = (change * real[..., None]).sum(1) / frames[:, None]  # (n, K) over frames
        parts = [y.new_full((len(y), 2), 0.0) + y.new_tensor([site.t, site.dt])]
        for field in (y, x, x1, change):
            mean = (field.mean(2) * real).sum(1) / frames
            spread = (((field - mean[:, None, None]).square().mean(2) * real).sum(1) / frames).sqrt()
            parts.append(torch.stack([mean, spread], dim=1))
        parts.append(torch.stack([p.mean(1) for p in profile.tensor_split(QUARTERS, dim=1)], dim=1))
        return torch.cat(parts, dim=1)

    def _log_spectrum(self, x: Tensor) -> Tensor:
        """(n, L, K) log-magnitudes of packed spectra; a mel front end's are logarithmic already."""
        return magnitude(x.float()).clamp_min(1e-3).log() if self.model.cfg.front_end == "stft" else x.float()


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


class RelaxedFlow(RelaxedGaussian, FlowPolicy):
    """A ``FlowPolicy`` whose output can be differentiated: the ``last_steps`` Euler steps again, with the noise that was drawn.

    The gradient stops at the state that those steps start from (a truncated backpropagation, as DRaFT-K, arXiv 2309.17400): earlier
    steps cost as much memory again and add little, because the last ones decide the output.

    Raises:
        UserError: more steps than there are, or exploration without noise, which is the KL's unit.
    """

    supports = FlowPolicy.supports | {"relax"}

    def __init__(self, *args: Any, last_steps: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.explore.nfe is not None  # filled in there
        if last_steps > self.explore.nfe[0]:
            what = f"the gradient cannot pass through {last_steps} last steps"
            raise UserError(what, f"there are {self.explore.nfe[0]}", f"--set diffro.last_steps={self.explore.nfe[0]}")
        self.last_steps = last_steps
        self._start: tuple[int, int, Tensor, Tensor, Tensor | None] | None = None

    # -- acting --------------------------------------------------------------------------------------------------------

    def passed(self, step: int, nfe: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        if step == nfe - self.last_steps:
            self._start = (step, nfe, x, y, mask)

    def _pack(self, batch: list[Clip], data: Levelled, x: Tensor, prompts: Tensor, steps: list[Decision]) -> Rollout:
        made = super()._pack(batch, data, x, prompts, steps)
        assert self._start is not None
        rows = torch.arange(len(prompts), device=prompts.device) if len(self._start[2]) == len(prompts) else prompts
        trail = Trail(steps)
        trail.start, trail.samples, trail.gain = Start(*self._start, rows), data.samples[prompts], data.gain[prompts]
        self._start, made.state = None, trail
        return made

    def wave(self, model: FlowEnhancer, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (n, T) at the inputs' levels, and their real samples; rows that share a state share its passes."""
        trail: Trail = rollout.state
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
