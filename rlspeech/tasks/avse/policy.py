"""An audio-visual enhancer as a policy: one decision a clip, the mask.

The textbook version (LR-AVSE, arXiv 2603.13952): the mask is the mean of a Gaussian with fixed sigma, a sampled mask is decoded and
judged (``explore.kind=mask``). A 2-s mask has hundreds of thousands of dimensions, and a listener hears only the sum of their
noise: most of what a reward says of such a sample is chance. What is added: the structured exploration of the flow task
(``explore.kind=gain``, see ``tasks/explore.py``) in the mask's own domain, noise on the level and the contrast of a few bands of the
masked latents, a band being the encoder's filters of neighbouring centre frequencies.

What is not found in the paper and chosen here: a sampled mask is cut at 0 before it is decoded (``explore.mask_clamp``), because a
mask below 0 would turn a filter's phase; probabilities are those of the uncut mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlspeech.config import Exploration
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.avse import AvseEnhancer, Masked
from rlspeech.tasks.avse.enhancer import AvBatch, collate, supervised_loss
from rlspeech.tasks.explore import Fields
from rlspeech.tasks.gaussian import (
    GaussianPolicy,
    Reduction,
    Regression,
    RelaxedGaussian,
    distance,
    real_samples,
    reduce,
)
from rlspeech.types import LogProb, Rollout, Sample, UserError

SHUT = 1e-3  # a mask this small is as good as 0: its logarithm goes no further


@dataclass
class Decisions:
    """What the N masks of a collection came from: B clips, the masks of the policy that acted, and the noise (N, J) on them."""

    batch: AvBatch
    old: Masked
    eps: Tensor
    prompts: Tensor
    active: Tensor


class MaskKernel:
    """Independent noise on every element of the mask, as published."""

    def __init__(self, cfg: Exploration) -> None:
        self.noise, self.clamp = cfg.noise, cfg.mask_clamp

    def active(self, old: Masked) -> Tensor:
        """(B, J) float, 1 on elements of real frames; J = K C N."""
        flat = _frames_first(old.mask)
        real = flat.new_ones(flat.shape[:2]) if old.real is None else old.real.to(flat.dtype)
        return real[..., None].expand_as(flat).flatten(1)

    def act(self, made: Masked, old: Masked, eps: Tensor) -> Tensor:
        """Masks (n, C, N, K) of ``made`` with noise (n, J)."""
        b, channels, filters, frames = made.mask.shape
        moved = made.mask + self.noise * eps.view(b, frames, channels, filters).permute(0, 2, 3, 1)
        return moved.clamp_min(0.0) if self.clamp else moved

    def shift(self, old: Masked, mask: Tensor) -> Tensor:
        """How far (n, J) masks lie from the old ones, in standard deviations."""
        return _frames_first(mask - old.mask).flatten(1) / max(self.noise, 1e-12)


class GainKernel:
    """Noise on level and contrast of bands of the masked latents."""

    def __init__(self, model: AvseEnhancer, cfg: Exploration) -> None:
        rate = model.sample_rate / model.cfg.stride
        segment = None if cfg.segment_s is None else max(1, round(cfg.segment_s * rate))
        # both ears share a gain: what tells directions stays
        bands = filter_bands(model, cfg.bands).repeat(model.cfg.channels, 1)
        self.fields, self.noise = Fields(bands, 1.0, cfg.noise, cfg.basis, segment), cfg.noise

    def _at(self, old: Masked) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        latent = old.latent[:, None].expand_as(old.mask)
        output = _frames_first(old.mask * latent)
        unit = output.mean((1, 2), keepdim=True).clamp_min(1e-12)
        return self.fields.at(output / unit, _frames_first(latent) / unit, old.real)

    def active(self, old: Masked) -> Tensor:
        """(B, J) float, 1 on the coefficients of cells that hold energy."""
        return self.fields.active(self._at(old)[1])

    def act(self, made: Masked, old: Masked, eps: Tensor) -> Tensor:
        """Masks (n, C, N, K) of ``made`` under the gains of coefficients (n, J) in the old masks' fields."""
        _, total, fields = self._at(old)
        gain = self.fields.gain(fields, total, eps, torch.arange(len(eps), device=eps.device))
        b, channels, filters, frames = made.mask.shape
        return made.mask * gain.view(b, frames, channels, filters).permute(0, 2, 3, 1)

    def shift(self, old: Masked, mask: Tensor) -> Tensor:
        """How far (n, J) masks lie from the old ones along every field, in standard deviations."""
        weight, _, fields = self._at(old)
        change = (mask + SHUT).log() - (old.mask + SHUT).log()
        return self.fields.shift(weight, fields, _frames_first(change))


class AvsePolicy(GaussianPolicy):
    """A ``GaussianPolicy`` of one decision a clip: the mask; ``explore.kind`` is ``gain`` or ``mask``.

    Raises:
        UserError: an exploration that is not for masks.
    """

    supports = GaussianPolicy.supports | {"supervised_sample"}

    def __init__(self, adapted: Adapted, explore: Exploration, reduction: Reduction = "mean", seed: int = 0) -> None:
        model = adapted.model
        if explore.kind not in {"gain", "mask"}:
            what = f"explore.kind={explore.kind} is for the task flowse"
            why = "an audio-visual enhancer has a mask and no steps"
            raise UserError(what, why, "--set explore.kind=gain, or explore.kind=mask as published")
        if explore.kind == "gain" and explore.bands > model.cfg.filters:
            what = f"{explore.bands} bands do not fit {model.cfg.filters} filters"
            raise UserError(what, "", "--set explore.bands=4")
        kernel = MaskKernel(explore) if explore.kind == "mask" else GainKernel(model, explore)
        super().__init__(adapted, explore, kernel, reduction, seed)

    # -- acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, batch: list[Clip], *, group: int, seed: int) -> Rollout:
        data = collate(batch, self.model, self.device)
        old = self.model(data.noisy, data.video, data.present, data.samples)
        prompts = torch.arange(len(batch), device=data.noisy.device).repeat_interleave(group)
        active = self.kernel.active(old)
        eps = self.noise([batch[p].draw for p in prompts.tolist()], group, active.shape[1], seed)
        state = Decisions(data, old, eps * active[prompts], prompts, active)
        logp = reduce(-0.5 * state.eps.square(), active[prompts], self.reduction)[:, None]
        made = old.pick(prompts)
        out = self.model.decode(made.latent[:, None] * self.kernel.act(made, made, state.eps), data.noisy.shape[-1])
        wavs = out / data.gain[prompts][:, None, None]
        samples = [self._sample(batch[p], wavs[i]) for i, p in enumerate(prompts.tolist())]
        alive = active[prompts].sum(1, keepdim=True) > 0
        return Rollout(prompts.cpu(), logp, alive, samples, state, torch.ones(len(prompts), dtype=torch.bool))

    @torch.no_grad()
    def base(self, batch: list[Clip], *, seed: int | None = None) -> list[Sample]:
        """What the reference weights make of each clip; the seed changes nothing."""
        data = collate(batch, self.model, self.device)
        with self.adapted.reference() as model:
            out = model.enhance(data.noisy, data.video, data.present, data.samples) / data.gain[:, None, None]
        return [self._sample(c, w) for c, w in zip(batch, out, strict=True)]

    def supervised(self, prompts: list[Clip], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        """-SI-SNR in dB of the noiseless outputs; with a rollout and its rows (n,), of those sampled masks under the current weights."""
        model = self.model
        if rollout is None or rows is None:
            data = collate(prompts, self.model, self.device)
            return supervised_loss(model, model.enhance(data.noisy, data.video, data.present, data.samples), data)
        state: Decisions = rollout.state
        rows = rows.to(state.prompts.device)
        return supervised_loss(model, self._sampled(model, state, rows), state.batch.pick(state.prompts[rows]))

    def regression(self, prompts: list[Clip], rows: Tensor, outputs: list[Clip], seed: int) -> Regression:
        """The noiseless waveform: the decoder being linear, noise on the latents is noise on it. Channels are averaged, as in samples.

        The unit is the RMS of the output itself: a model that was trained on SI-SNR has a level of its own.
        """
        data, given = (collate(clips, self.model, self.device) for clips in (prompts, outputs))
        assert given.target is not None
        real = real_samples(data.samples, data.noisy.shape[-1])[rows]

        def predict(model: AvseEnhancer) -> Tensor:
            return model.enhance(data.noisy, data.video, data.present, data.samples).mean(1)[rows]

        output = given.target.mean(1)
        return Regression(predict, output, output, real)

    def _sampled(self, model: AvseEnhancer, state: Decisions, rows: Tensor) -> Tensor:
        """Waveforms (n, C, T) of the masks that a model gives now with the noise that was drawn; a clip's mask is computed once."""
        used, back = torch.unique(state.prompts[rows], return_inverse=True)
        made = self._masked(state, used, model).pick(back)
        mask = self.kernel.act(made, state.old.pick(used[back]), state.eps[rows])
        return model.decode(made.latent[:, None] * mask, state.batch.noisy.shape[-1])

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """What a decision starts from, in a few numbers: (n, 1, D). Mean and spread of log-latents, and mean mask, by quarter of bands."""
        state: Decisions = rollout.state
        old, bands = state.old, filter_bands(self.model, 4)
        real = torch.ones_like(old.latent[:, :1]) if old.real is None else old.real[:, None].to(old.latent.dtype)
        count = real.sum(2).clamp_min(1)
        levels = (torch.einsum("bnk,nj->bjk", old.latent, bands) / bands.sum(0)[:, None] + 1e-6).log()
        mean = (levels * real).sum(2) / count
        spread = (((levels - mean[..., None]).square() * real).sum(2) / count).sqrt()
        masks = (torch.einsum("bnk,nj->bjk", old.mask.mean(1), bands) / bands.sum(0)[:, None] * real).sum(2) / count
        found = torch.cat([mean, spread, masks, state.batch.present[:, None].to(mean.dtype)], dim=1)
        return found[state.prompts[rows.to(state.prompts.device)]][:, None].detach()

    # -- a second look -------------------------------------------------------------------------------------------------

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        state: Decisions = rollout.state
        rows = rows.to(state.prompts.device)
        used, back = torch.unique(state.prompts[rows], return_inverse=True)  # each clip once, however many masks it has
        old, active, eps = state.old.pick(used), state.active[used][back], state.eps[rows]
        made, samples, reference = self._masked(state, used), state.batch.noisy.shape[-1], None
        shift = self.kernel.shift(old, made.mask)
        if with_kl:
            with torch.no_grad(), self.adapted.reference() as model:
                base = self._masked(state, used, model)
                there = model.decode(base.latent[:, None] * base.mask, samples)
            wavs = self.model.decode(made.latent[:, None] * made.mask, samples)
            change = distance(wavs, there, real_samples(state.batch.samples[used], samples))
            reference = (shift - self.kernel.shift(old, base.mask))[back], change[back]
        terms = self.terms(rollout.logp[rows, 0], eps, active, shift[back], reference)
        return self.packed([terms], [self.kernel.noise], [1.0])

    def _masked(self, state: Decisions, used: Tensor, model: AvseEnhancer | None = None) -> Masked:
        data = state.batch.pick(used)
        return (model or self.model)(data.noisy, data.video, data.present, data.samples)

    def _sample(self, clip: Clip, wav: Tensor) -> Sample:
        return clip.sample(wav[:, : clip.noisy.shape[-1]].float().cpu().numpy(), self.sample_rate)


def filter_bands(model: AvseEnhancer, bands: int) -> Tensor:
    """(N, bands) 0/1: filters in the order of their centre frequencies, as many in every band; learned filters crowd as hearing does."""
    ranks = model.centres_hz().argsort().argsort()
    return torch.nn.functional.one_hot(ranks * bands // len(ranks), bands).to(torch.float32)


def _frames_first(mask: Tensor) -> Tensor:
    """(B, C, N, K) -> (B, K, C N): padding adds dimensions at the end."""
    return mask.permute(0, 3, 1, 2).flatten(2)


class RelaxedAvse(RelaxedGaussian, AvsePolicy):
    """An ``AvsePolicy`` whose output can be differentiated: its mask again, with the noise that was drawn.

    A binaural model's channels are averaged, as by every metric.
    """

    supports = AvsePolicy.supports | {"relax"}

    def wave(self, model: AvseEnhancer, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        state: Decisions = rollout.state
        rows = rows.to(state.prompts.device)
        batch, who = state.batch, state.prompts[rows]
        wavs = self._sampled(model, state, rows) / batch.gain[who][:, None, None]
        return wavs.mean(1), real_samples(batch.samples[who], wavs.shape[-1])
