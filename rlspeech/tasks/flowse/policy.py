"""A flow-matching enhancer at work: batches, the training loss, the deterministic ODE, and the policy.

As a policy it makes N = B*G rollouts of S stochastic steps inside an otherwise deterministic ODE.

The textbook version (Flow-GRPO, FlowSE-GRPO) turns a window of Euler steps into SDE steps and trains on their Gaussian
log-probabilities. What is changed: the deterministic steps before the window are run once a prompt and shared by the group
(option ``shared_latent``); ratios and KLs come from how far the mean moved, not from differences of large numbers; states
that several rows share are evaluated once; and the noise may be structured (``tasks/explore.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import Exploration, Pretrain
from rlspeech.data.batches import Clip, Keys, Videos, seed_of
from rlspeech.models.adapters import Adapted
from rlspeech.models.flow import FlowEnhancer, euler, magnitude
from rlspeech.models.spectra import frame_mask
from rlspeech.tasks.explore import Site, build_kernel
from rlspeech.tasks.gaussian import (
    GaussianPolicy,
    Levelled,
    Reduction,
    Regression,
    RelaxedGaussian,
    distance,
    levelled,
    normal,
    real_samples,
    reduce,
)
from rlspeech.types import LogProb, Rollout, Sample, UserError

QUARTERS = 4


def collate(
    clips: Sequence[Clip], model: FlowEnhancer, device: torch.device | str = "cpu", with_target: bool = True
) -> Levelled:
    """Bring clips to the model's level and pad them: (B, T)."""
    return levelled(clips, model.cfg.level_dbfs, None, device, with_target)


def flow_loss(model: FlowEnhancer, batch: Levelled, config: Pretrain) -> dict[str, Tensor]:
    """The losses of flow matching and of a predictor in front, in named parts; ``loss`` is the one to minimise.

    The flow learns with the predictor's output as it is: its gradient ends there. Raises ``UserError`` where nothing has a weight.
    """
    assert batch.target is not None
    x1, parts = encode(model, batch.target, batch.samples), dict[str, Tensor]()
    with torch.set_grad_enabled(config.predictor_weight > 0 and torch.is_grad_enabled()):
        y, mask = condition(model, batch)
    if model.predictor is not None and config.predictor_weight:
        found = model.regression_loss(y[..., model.front.width :], x1, batch.target, mask)
        named = {"predictor": found["spectrum"], "si_sdr": found["si_sdr"]}
        parts |= {k: config.predictor_weight * v for k, v in named.items()}
    if config.flow_weight:
        flow = model.loss(x1, y.detach(), mask, config.magnitude_weight, batch.target)
        parts |= {k: config.flow_weight * v for k, v in flow.items() if k != "loss"}
    if not parts:
        why = "flow_weight is 0, and there is no predictor or its weight is 0 too"
        raise UserError("nothing is trained", why, "--set flow_weight=1")
    return {**parts, "loss": torch.stack([*parts.values()]).sum()}


def latent(keys: Sequence[str], seed: int, shape: tuple[int, int]) -> Tensor:
    """Standard normal (B, L, D), each row drawn from (seed, key) alone, so that a clip's output does not depend on its batch."""
    count = shape[0] * shape[1]
    return torch.stack([normal(count, seed_of(seed, key)).view(shape) for key in keys])


class Enhancer:
    """Deterministic enhancement by the ODE; every clip's latent depends on (seed, key) alone.

    ``nfe`` Euler steps under classifier-free guidance of scale ``guidance``; None: the model's own.
    """

    uses_video = False

    def __init__(
        self, model: FlowEnhancer, *, nfe: int | None = None, guidance: float | None = None, seed: int = 0
    ) -> None:
        self.model, self.seed, self.sample_rate, self.channels = model, seed, model.sample_rate, 1
        self.nfe = nfe or model.cfg.nfe
        self.guidance = model.cfg.guidance if guidance is None else guidance

    @torch.no_grad()
    def infer(self, wavs: Sequence[np.ndarray], keys: Keys = None, lips: Videos = None) -> list[np.ndarray]:
        model = self.model
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        device = next(model.parameters()).device
        clips = [Clip(k, w, w, self.sample_rate) for k, w in zip(names, wavs, strict=True)]
        batch = collate(clips, model, device, with_target=False)
        y, mask = condition(model, batch)
        z = latent(names, self.seed, (y.shape[1], model.front.width)).to(device)
        x = model.ode(y, z, self.nfe, mask, self.guidance)
        out = decode(model, x, batch.samples) / batch.gain[:, None]
        return [o[:n].numpy() for o, n in zip(out.float().cpu(), batch.samples.tolist(), strict=True)]


def encode(model: FlowEnhancer, wavs: Tensor, samples: Tensor) -> Tensor:
    """(B, T) padded -> (B, L, D) padded; every row as if it were alone, for a window that reaches into padding would see another end."""
    counts = samples.tolist()
    if min(counts) == wavs.shape[1]:
        return model.front.encode(wavs)
    rows = [model.front.encode(w[None, :n])[0] for w, n in zip(wavs, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def decode(model: FlowEnhancer, x: Tensor, samples: Tensor) -> Tensor:
    """(B, L, D) padded -> (B, T) padded with zeros; every row as if it were alone, as in ``encode``."""
    counts = samples.tolist()
    if min(counts) == max(counts):
        return model.front.decode(x, counts[0])
    rows = [model.front.decode(row[None, : model.front.frames(n)], n)[0] for row, n in zip(x, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def condition(model: FlowEnhancer, batch: Levelled) -> tuple[Tensor, Tensor | None]:
    """What the flow is given of a batch (B, L, D or 2D), and (B, L) bool over its real frames, or None where nothing is padded."""
    frames = [model.front.frames(n) for n in batch.samples.tolist()]
    mask = frame_mask(torch.tensor(frames, device=batch.noisy.device), max(frames))
    return model.condition(encode(model, batch.noisy, batch.samples), mask), mask


# --------------------------------------------------------------------------------------------------------- the policy


@dataclass
class Decision:
    """One stochastic step of all rollouts: ``site`` holds n unique states, row i starts from ``states[i]`` with noise ``eps[i]`` (N, J)."""

    site: Site
    eps: Tensor
    states: Tensor
    active: Tensor
    old: Tensor


class Trail(list[Decision]):
    """A collection's decisions, samples (N,) and gain (N,) of every rollout's prompt, and the ``start`` of its ``last_steps``.

    That is one state a prompt, or one a rollout: ``rows`` (N,) says whose is whose.
    """

    start: Site
    rows: Tensor

    def __init__(self, samples: Tensor, gain: Tensor) -> None:
        super().__init__()
        self.samples, self.gain = samples, gain


class FlowPolicy(GaussianPolicy):
    """A ``GaussianPolicy`` over a window of the ODE's steps. Raises ``UserError``: a window that does not fit the number of steps."""

    supports = GaussianPolicy.supports | {"latent"}
    last_steps = 0  # Euler steps that are made again for a gradient

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
        """The flow's loss, as in pretraining with its default weights; there is none of sampled outputs."""
        data = collate(prompts, self.model, self.device)
        return flow_loss(self.model, data, Pretrain(predictor_weight=0))["loss"]

    def regression(self, prompts: list[Clip], rows: Tensor, outputs: list[Clip], seed: int) -> Regression:
        """The denoising form: the clean spectrum that is predicted from x_t, between an x_0 of the prior and the output's at a time t.

        t is one of those that the ODE asks at, so that a model of one step is fitted where it acts: at x_0 (the rollouts' own, where they
        share a latent and the seed is theirs).
        """
        model, nfe = self.model, self.schedule(np.random.default_rng([self.seed, seed]))[0]
        with torch.no_grad():
            y, mask = condition(model, collate(prompts, model, self.device, with_target=False))
            given = collate(outputs, model, self.device)
            assert given.target is not None
            x1 = encode(model, given.target, given.samples)
            steps = [seed_of(self.seed, seed, c.draw, "t") % nfe for c in prompts]
            t = torch.tensor(steps, device=y.device) / nfe
            x0 = model.prior(y, latent([c.draw for c in prompts], self.seed + seed, (y.shape[1], x1.shape[2])).to(y))
            x = x0[rows].lerp(x1, t[rows, None, None])

        def predict(model: FlowEnhancer) -> Tensor:
            if nfe == 1:  # all of a prompt's outputs are fitted from one state
                return model.clean(x0, y, t, mask)[rows]
            return model.clean(x, y[rows], t[rows], None if mask is None else mask[rows])

        real = x1.new_ones(x1.shape[:2], dtype=torch.bool) if mask is None else mask[rows]
        return Regression(predict, x1, model.noisy(y)[rows], real)

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
        y, mask = condition(model, data)
        nfe, window = self.schedule(np.random.default_rng([self.seed, seed]))
        dt = 1.0 / nfe
        shared, n = self.explore.shared_latent, len(batch) * group
        prompts = torch.arange(len(batch), device=device).repeat_interleave(group)
        states = torch.arange(len(batch), device=device) if shared else prompts  # prompt of every state so far
        names = [c.draw for c in batch] if shared else [f"{c.draw}#{g}" for c in batch for g in range(group)]
        y = y[states]
        mask = None if mask is None else mask[states]
        x = model.prior(y, latent(names, self.seed + seed, (y.shape[1], model.front.width)).to(device))
        owners = [batch[p] for p in prompts.tolist()]
        steps = Trail(data.samples[prompts], data.gain[prompts])
        for i in range(nfe):
            rows = prompts if len(x) < n else torch.arange(n, device=device)
            site = Site(x, y, model.clean(x, y, i * dt, mask), i * dt, dt, mask)
            if i == nfe - self.last_steps:
                steps.start, steps.rows = site, rows
            if i in window:
                active = self.kernel.active(site)
                eps = self.noise([c.draw for c in owners], group, active.shape[1], seed, i) * active[rows]
                old = reduce(-0.5 * eps.square(), active[rows], self.reduction)
                steps.append(Decision(site, eps, rows, active, old))
                x = self.kernel.act(site, eps, rows)
                y, mask = y[rows], None if mask is None else mask[rows]
            else:
                x = euler(x, site.x1, site.t, dt)
        out = decode(model, x, steps.samples) / steps.gain[:, None]
        wavs = zip(owners, out.float().cpu().numpy(), strict=True)
        samples = [c.sample(wav[: len(c.noisy)], self.sample_rate) for c, wav in wavs]
        logp = torch.stack([d.old for d in steps], dim=1)
        alive = torch.stack([d.active[d.states].sum(1) > 0 for d in steps], dim=1)
        return Rollout(prompts.cpu(), logp, alive, samples, steps, torch.ones(n, dtype=torch.bool))

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
        y, x, x1 = site.y.float(), site.x.float(), site.x1.float()
        if self.model.cfg.front_end == "stft":  # a mel front end's are logarithmic already
            y, x, x1 = (magnitude(v).clamp_min(1e-3).log() for v in (y, x, x1))
        real = y.new_ones(y.shape[:2]) if site.mask is None else site.mask.to(y.dtype)
        frames, change = real.sum(1).clamp_min(1), x1 - y
        profile = (change * real[..., None]).sum(1) / frames[:, None]  # (n, K) over frames
        parts = [y.new_tensor([site.t, site.dt]).expand(len(y), -1)]
        for field in (y, x, x1, change):
            mean = (field.mean(2) * real).sum(1) / frames
            spread = (((field - mean[:, None, None]).square().mean(2) * real).sum(1) / frames).sqrt()
            parts.append(torch.stack([mean, spread], dim=1))
        parts.append(torch.stack([p.mean(1) for p in profile.tensor_split(QUARTERS, dim=1)], dim=1))
        return torch.cat(parts, dim=1)


class RelaxedFlow(RelaxedGaussian, FlowPolicy):
    """A ``FlowPolicy`` whose output can be differentiated: the ``last_steps`` Euler steps again, with the noise that was drawn.

    The gradient stops at the state that those steps start from (a truncated backpropagation, as DRaFT-K, arXiv 2309.17400): earlier
    steps cost as much memory again and add little, because the last ones decide the output.

    Raises ``UserError``: more steps than there are, or exploration without noise, which is the KL's unit.
    """

    supports = FlowPolicy.supports | {"relax"}

    def __init__(self, *args: Any, last_steps: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.explore.nfe is not None  # filled in there
        if last_steps > self.explore.nfe[0]:
            what = f"the gradient cannot pass through {last_steps} last steps"
            raise UserError(what, f"there are {self.explore.nfe[0]}", f"--set diffro.last_steps={self.explore.nfe[0]}")
        self.last_steps = last_steps

    def wave(self, model: FlowEnhancer, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (n, T) at the inputs' levels, and their real samples; rows that share a state share its passes."""
        trail: Trail = rollout.state
        rows = rows.to(trail.samples.device)
        used, back = torch.unique(trail.rows[rows], return_inverse=True)
        start = trail.start.pick(used)
        x, y, dt, mask = start.x, start.y, start.dt, start.mask
        decisions = {round(d.site.t / dt): d for d in trail}
        for step in range(round(start.t / dt), round(1 / dt)):
            x1, decision = model.clean(x, y, step * dt, mask), decisions.get(step)
            if decision is None:
                x = euler(x, x1, step * dt, dt)
                continue
            # from here on every rollout goes its own way
            x, x1, y, mask = x[back], x1[back], y[back], None if mask is None else mask[back]
            back = torch.arange(len(rows), device=rows.device)
            old = decision.site.pick(decision.states[rows])
            x = self.kernel.act(Site(x, y, x1, step * dt, dt, mask), decision.eps[rows], back, old)
        out = decode(model, x[back], trail.samples[rows]) / trail.gain[rows][:, None]
        return out, real_samples(trail.samples[rows], out.shape[1])
