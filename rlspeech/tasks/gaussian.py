"""What policies with Gaussian noise share: the noise, the log-probability, and a sample as a differentiable function of the weights.

A decision draws eps ~ N(0, I), in the dimensions of a kernel (``tasks/explore.py``). The policy is evaluated by how far the mean has
moved since, d, in standard deviations (n, J):

    log pi_new - log pi_old = sum (eps d - d^2 / 2),      KL(new || reference) = sum d_ref^2 / 2.

That KL knows the few directions that noise is drawn in, and weights may move the output in any other for nothing: with eight gains, other
phases everywhere have KL 0. So beside it stands the change of the noiseless output w itself, which ``change_weight`` puts into the loss:

    change = |w - w_ref|^2 / |w_ref|^2,      in dB 10 log10(change); -20 dB is a hundredth of the output's energy.

Of a flow, w is the clean signal that a stochastic step predicts (mel magnitudes where there is a vocoder): at the last step the output.

For DiffRO, an enhancer has no tokens to relax: its sample is its own noise put through its weights, f(theta, eps), and the same eps
through other weights is the relaxed sample (the reparameterisation of arXiv 1312.6114). At the weights that acted it is the rollout
itself. A gradient through the waveform goes anywhere, first where the KL above sees nothing, so for relaxed policies the KL is that of
the waveforms: both outputs as means of white Gaussians whose standard deviation is ``noise`` times the reference output's RMS,

    KL = change / (2 noise^2),

0.056 where the two differ at -20 dB and noise is 0.3. GRPO beside DiffRO has the same one.

A given output is fitted (``fit``) as regression does: as a sample of a white Gaussian around the noiseless prediction, whose standard
deviation is ``SPREAD`` times the RMS of the prompt, the same for all of its outputs; of a mask, the RMS of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from rlspeech.config import Exploration
from rlspeech.data.audio import level_gain
from rlspeech.data.batches import Clip, seed_of
from rlspeech.models.adapters import Adapted
from rlspeech.types import Fit, LogProb, Relaxed, Rollout, Sample, UserError

QUIET = 1e-4  # RMS that a silent reference is taken to have
SPREAD = 0.3  # of a fitted Gaussian: the usual ``explore.noise``
Reduction = Literal["mean", "sum"]


@dataclass
class Levelled:
    """B clips at a network's level, padded to one length."""

    keys: list[str]  # B utterance ids
    noisy: Tensor  # (B, C, T) scaled input; (B, T) for a network of mono clips alone
    target: Tensor | None  # the reference under the same gain, or None at inference
    samples: Tensor  # (B,) long, real samples of every row
    gain: Tensor  # (B,) what the input was multiplied by


def levelled(
    clips: Sequence[Clip], level_dbfs: float | None, channels: int | None, device: torch.device | str, with_target: bool
) -> Levelled:
    """Bring clips to ``level_dbfs`` and pad them: (B, C, T), or (B, T) where ``channels`` is None.

    A mono clip goes to both of 2 channels, 2 are averaged for one.
    """
    samples = [c.noisy.shape[-1] for c in clips]
    gains = torch.tensor([level_gain(c.noisy, level_dbfs) for c in clips], dtype=torch.float32)

    def padded(wavs: Sequence[np.ndarray]) -> Tensor:
        out = torch.zeros(len(clips), channels or 1, max(samples))
        for i, wav in enumerate(wavs):
            chosen = wav.mean(0, keepdims=True) if wav.ndim == 2 and channels != 2 else np.atleast_2d(wav)
            out[i, :, : samples[i]] = torch.from_numpy(chosen).expand(channels or 1, -1) * gains[i]
        return (out if channels else out[:, 0]).to(device)

    target = padded([c.target for c in clips]) if with_target else None
    counts = torch.tensor(samples, device=device)
    return Levelled([c.key for c in clips], padded([c.noisy for c in clips]), target, counts, gains.to(device))


class Regression(NamedTuple):
    """What n outputs are fitted by, in any domain (n, L, ...)."""

    predict: Callable[[Any], Tensor]  # a model's noiseless predictions
    output: Tensor
    level: Tensor  # whose RMS is the unit
    real: Tensor  # (n, L) bool


class GaussianPolicy:
    """Acts with the current weights of ``adapted`` under Gaussian noise, which moves what ``kernel`` says; see ``types.Policy``.

    ``reduction`` is that of the log-probability over a decision's dimensions, ``seed`` that of the noise (and of latents).
    """

    supports: frozenset[str] = frozenset({"sample", "base", "critic", "supervised", "fit"})

    def __init__(
        self, adapted: Adapted, explore: Exploration, kernel: Any, reduction: Reduction = "mean", seed: int = 0
    ) -> None:
        self.adapted, self.model, self.explore, self.kernel = adapted, adapted.model, explore, kernel
        self.reduction, self.seed, self.sample_rate = reduction, seed, adapted.model.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def parameters(self) -> list[Parameter]:
        return self.adapted.parameters()

    def noise(self, keys: list[str], group: int, dims: int, seed: int, *step: int) -> Tensor:
        """Standard normal (N, J) where the model is, row i a function of (seed, collection, prompt, member, step) alone.

        Args:
            keys: N prompts (``Clip.draw``), the G members of a group next to each other.
            group: G; with ``explore.antithetic`` its second half is the first one's mirror.
            dims: J.
            seed: the collection's.
            step: what tells this decision from the rollout's others.
        """
        members, kept = [i % group for i in range(len(keys))], group - group // 2
        signs = [-1.0 if self.explore.antithetic and m >= kept else 1.0 for m in members]
        pairs = zip(keys, members, signs, strict=True)
        seeds = [seed_of(self.seed, seed, key, m if sign > 0 else m - kept, *step) for key, m, sign in pairs]
        on_host = self.device.type == "cpu"  # whose own generator is the faster one there
        drawn = torch.stack([normal(dims, s) for s in seeds]) if on_host else counted(seeds, dims, self.device)
        return drawn.mul_(drawn.new_tensor(signs)[:, None])

    def regression(self, prompts: list[Clip], rows: Tensor, outputs: list[Clip], seed: int) -> Regression:
        """How to fit n ``outputs`` (their targets, as long as the inputs) of the B distinct ``prompts``; row i is of prompt ``rows[i]``."""
        raise NotImplementedError

    def fit(self, prompts: list[Clip], samples: list[Sample], *, seed: int, reference: bool = True) -> Fit:
        """-|prediction - output|^2 / (2 sigma^2), sigma = ``SPREAD`` x RMS of ``Regression.level``; see ``types.FittingPolicy``."""
        clips, rows = distinct(prompts)
        cut = [(c, c.noisy.shape[-1], s.wav) for c, s in zip(prompts, samples, strict=True)]
        outputs = [replace(c, target=np.pad(wav[:n], (0, max(0, n - len(wav))))) for c, n, wav in cut]
        found = self.regression(clips, rows.to(self.device), outputs, seed)

        def per_row(x: Tensor) -> Tensor:
            return x.square().reshape(*x.shape[:2], -1).sum(2).masked_fill(~found.real, 0.0).sum(1)

        size = found.real.sum(1) * found.output[0, 0].numel()
        unit = 2 * SPREAD**2 * (per_row(found.level) / size.clamp_min(1)).clamp_min(QUIET**2)
        here, there, kl = found.predict(self.model), None, None
        if reference:
            with torch.no_grad(), self.adapted.reference() as model:
                away = found.predict(model)
            there, kl = -per_row(away - found.output) / unit, per_row(here - away) / unit
        return Fit(-per_row(here - found.output) / unit, there, kl, size.float())

    def references(self, prompts: list[Clip]) -> list[Sample]:
        return [c.sample(c.target, self.sample_rate) for c in prompts]

    def terms(
        self, old: Tensor, eps: Tensor, active: Tensor, shift: Tensor, reference: tuple[Tensor, Tensor] | None
    ) -> list[Tensor | None]:
        """Evaluate a decision again: log-probability, drift sum d^2/2, both KLs (the configured reduction first) and the change, each (n,).

        Args:
            old: (n,) log-probabilities under the policy that acted.
            eps: (n, J) the noise that was drawn.
            active: (n, J) 1 on dimensions that exist.
            shift: (n, J) how far the mean has moved since, in standard deviations.
            reference: (n, J) how far it lies from the reference's, and (n,) the change; None: neither is wanted.
        """
        logp = old + reduce(eps * shift - 0.5 * shift.square(), active, self.reduction)
        drift = reduce(0.5 * shift.detach().square(), active, self.reduction)
        if reference is None:
            return [logp, drift, None, None, None]
        other: Reduction = "mean" if self.reduction == "sum" else "sum"
        kls = [reduce(0.5 * reference[0].square(), active, how) for how in (self.reduction, other)]
        return [logp, drift, kls[0], kls[1].detach(), reference[1]]

    def packed(self, decisions: Any, scale: Sequence[float], dt: Sequence[float]) -> LogProb:
        """The ``terms`` of S decisions side by side, with the deviation of each one's noise and its length."""
        columns: Any = (None if c[0] is None else torch.stack(c, 1) for c in zip(*decisions, strict=True))
        logp, drift, kl, other, change = columns
        return LogProb(logp, kl, drift, logp.new_tensor(scale), logp.new_tensor(dt), other, change)


class RelaxedGaussian(GaussianPolicy):
    """Mixed in before a ``GaussianPolicy``: adds ``relax``; the KL becomes that of the waveforms.

    Raises:
        UserError: exploration without noise, which is the KL's unit.
    """

    def __init__(self, adapted: Adapted, explore: Exploration, *args: Any, **options: Any) -> None:
        super().__init__(adapted, explore, *args, **options)
        if not explore.noise:
            why = "it is also the unit of the KL to the reference"
            raise UserError("explore.noise is 0", why, "--set explore.noise=0.1")

    def wave(self, model: Any, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (n, T) of a model under the rows' own noise, at the inputs' levels, and (n, T) bool, real samples."""
        raise NotImplementedError

    # how tokens are relaxed (tau, hard) is nothing to a waveform
    def relax(self, rollout: Rollout, rows: Tensor, *, seed: int = 0, with_kl: bool = False, **_: Any) -> Relaxed:
        wav, mask = self.wave(self.model, rollout, rows)
        return Relaxed(wav, mask, kl=self._wave_kl(rollout, rows, wav, mask) if with_kl else None, seed=seed)

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        new: LogProb = super().log_prob(rollout, rows, with_kl=False)  # type: ignore[misc]
        if not with_kl:
            return new
        kl = self._wave_kl(rollout, rows, *self.wave(self.model, rollout, rows))
        return new._replace(kl=kl, change=kl * 2 * self.explore.noise**2)

    def _wave_kl(self, rollout: Rollout, rows: Tensor, wav: Tensor, mask: Tensor) -> Tensor:
        """(n, S): the KL to the reference's waveforms, the same at every decision."""
        with torch.no_grad(), self.adapted.reference() as model:
            there, _ = self.wave(model, rollout, rows)
        kl = distance(wav, there, mask) / (2 * self.explore.noise**2)
        return kl[:, None].expand(-1, rollout.mask.shape[1])


def distinct(prompts: Sequence[Clip]) -> tuple[list[Clip], Tensor]:
    """The different ones of n prompts, and which of them (n,) each is."""
    found = {id(c): c for c in prompts}
    places = {key: place for place, key in enumerate(found)}
    return list(found.values()), torch.tensor([places[id(c)] for c in prompts])


def normal(count: int, seed: int) -> Tensor:
    """Standard normal (count,) whose beginning does not depend on how many are drawn (torch draws the last 16 in another way)."""
    return torch.randn(max(16, count + -count % 16), generator=torch.Generator().manual_seed(seed))[:count]


def counted(seeds: Sequence[int], count: int, device: torch.device | str) -> Tensor:
    """Standard normal (n, count) from counters: element j of a row is a function of its seed and j, on every device, to rounding.

    Philox 4x32-10 (Salmon et al., SC 2011), by integer products that keep 64 bits, and Box and Muller's transform.
    """
    rows, words = [], torch.arange(-(-count // 4), device=device)
    for part in torch.tensor(seeds, device=device).split(max(1, 2**22 // max(1, count))):
        x = [b.float().add(0.5).mul(2.0**-32) for b in philox(words, part[:, None])]
        pairs = [(x[i].log().mul(-2).sqrt(), x[i + 1] * (2 * np.pi)) for i in (0, 2)]
        rows.append(torch.stack([r * f(a) for r, a in pairs for f in (torch.cos, torch.sin)], 2).flatten(1)[:, :count])
    return torch.cat(rows)


def philox(counter: Tensor, key: Tensor) -> list[Tensor]:
    """Four words of 32 bits, long, of counters and keys that broadcast; the upper words of both are 0."""
    low, zero = 2**32 - 1, torch.zeros_like(counter + key)
    c, k = [zero + counter, zero, zero, zero], [key, key * 0]
    for _ in range(10):
        products = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        (h0, l0), (h1, l1) = ((p >> 32 & low, p & low) for p in products)
        c = [h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return c


def reduce(value: Tensor, active: Tensor, how: Reduction) -> Tensor:
    """Mean or sum (n,) over the active dimensions of (n, J)."""
    total = (value * active).sum(1)
    return total if how == "sum" else total / active.sum(1).clamp_min(1)


def distance(made: Tensor, reference: Tensor, real: Tensor | None = None) -> Tensor:
    """Energy (n,) of ``made - reference`` over the reference's, both (n, ..., T), where ``real`` (n, T) bool; None: everywhere."""
    if real is not None:
        made, reference = (torch.where(real.view(len(x), *[1] * (x.dim() - 2), -1), x, 0.0) for x in (made, reference))
    size = reference[0].numel() if real is None else real.sum(1).clamp_min(1)
    energy, moved = (x.square().flatten(1).sum(1) for x in (reference, made - reference))
    return moved / energy.clamp_min(QUIET**2 * size)


def real_samples(samples: Tensor, length: int) -> Tensor:
    """(n, T) bool, True on the first ``samples[i]`` of T = ``length`` samples."""
    return torch.arange(length, device=samples.device)[None] < samples[:, None]
