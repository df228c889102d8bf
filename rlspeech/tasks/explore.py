"""Where a flow policy's randomness goes: kernels that make one Euler step stochastic, each with its log-probability.

Every kernel turns a deterministic step of the ODE into a Gaussian whose mean is the network's own output and which is that
output exactly at noise 0. A kernel never needs two large log-probabilities: moving the network from x1_old to x1_new (its
prediction of the clean spectrum) moves the Gaussian's mean by d standard deviations in every dimension, and

    log pi_new - log pi_old = sum (eps d - d^2 / 2),      KL(new || reference) = sum d_ref^2 / 2,

eps being the noise that was drawn. So the ratio is exactly 1 and the KL exactly 0 where the network has not moved.

Published kernels (independent noise in every bin), for x_t = (1-t) x_0 + t x_1, x_0 ~ N(m, s^2), with x0_hat = x - t v:

    sde     mean = x + dt [v - a^2 / (2t) (x0_hat - m)],                     std = s a sqrt((1-t)/t dt)     FlowSE-GRPO, Eq. 6
    cps     mean = t' x1_hat + (1-t') [m + cos(eta pi/2) (x0_hat - m)],      std = s (1-t') sin(eta pi/2)   arXiv 2509.05952
    dance   mean = x + dt [v - eta^2 / (2 (1-t)) (x0_hat - m)],              std = s eta sqrt(dt)           DanceGRPO

With a fixed eta cps redraws a fixed share of x_0 in every step, so unlike the other two its marginal is not that of the ODE as dt -> 0
(it is where eta falls with the square root of dt).

Ours (``gain``): noise where a change is audible as a whole. The predicted clean spectrum x1_hat has compressed magnitudes
m = |X|^p; fields phi_j over its bins (orthogonal under weights w, unit weighted spread) are the dimensions of the action:

    log m_tilde = log m + p sigma sum_j eps_j phi_j,          x1_tilde has the phases of x1_hat,

    level      phi = 1 on the bins of one band and stretch of time: the band gets louder or softer, sigma in nepers;
    contrast   phi = the input's log attenuation log m - log |y|, centred and scaled within the band: the network's own noise
               suppression gets stronger or weaker there.

What the network says of dimension j is the weighted projection of its log-magnitudes on phi_j, so that for new weights

    d_j = sum_bins w phi_j (log m_new - log m_old) / (p sigma sum_bins w phi_j^2),        w = m_old.

The projection is exact for the action itself (moving by eps_j gives back eps_j). The spectrum's shape inside a field and its
phases are the network's, held fixed while the action is evaluated: the policy is a distribution over the coefficients.
A 2-s clip has 33,000 bins a step and 2 x 16 coefficients, and at the last step the whole group shares one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import Exploration
from rlspeech.models.flow import FlowEnhancer, euler, magnitude
from rlspeech.types import UserError

TINY = 1e-2  # compressed magnitude under which a bin counts as empty: |X| = 2e-7 at p = 0.3
PHI_MAX = 3.0


@dataclass
class Site:
    """Where a stochastic step starts from; n unique states (a group may share one)."""

    # x, x1: (n, L, D) state and predicted clean spectrum of the policy that acted; y: its condition
    x: Tensor
    y: Tensor
    x1: Tensor
    # t, dt: time and length of the step
    t: float
    dt: float
    mask: Tensor | None  # (n, L) bool or None

    def pick(self, rows: Tensor) -> Site:
        """The site of a selection of states (n,)."""
        mask = None if self.mask is None else self.mask[rows]
        return Site(self.x[rows], self.y[rows], self.x1[rows], self.t, self.dt, mask)


class BinNoise:
    """sde, cps and dance: independent noise in every bin.

    As in every kernel ``eps`` and ``shift`` are (N, J): noise and movement of the mean in every dimension of the action.
    """

    def __init__(self, model: FlowEnhancer, cfg: Exploration) -> None:
        self.model, self.kind, self.noise = model, cfg.kind, cfg.noise

    def _terms(self, site: Site) -> tuple[float, float]:
        """Coefficient of (x0_hat - m) in the drift, per dt, and the standard deviation."""
        _, spread = self.model.prior_moments(site.y)
        a, t, dt = self.noise, site.t, site.dt
        after = max(0.0, 1 - t - dt)
        if self.kind == "sde":
            return a**2 / (2 * t), spread * a * math.sqrt((1 - t) / t * dt)
        if self.kind == "dance":
            return a**2 / (2 * (1 - t)), spread * a * math.sqrt(dt)
        return after * (1 - math.cos(a * math.pi / 2)) / dt, spread * after * math.sin(a * math.pi / 2)

    def active(self, site: Site) -> Tensor:
        """(n, J) float, 1 on dimensions of the action that exist (not padding, not empty)."""
        real = site.x.new_ones(site.x.shape[:2]) if site.mask is None else site.mask.float()
        return real[..., None].expand_as(site.x).flatten(1)

    def act(self, site: Site, eps: Tensor, states: Tensor, old: Site | None = None) -> Tensor:
        """The next state (N, L, D) for noise (N, J); row i starts from state ``states[i]``.

        ``old``: where the noise was drawn, if ``site`` is what other weights make of it; gains stay in the fields of their draw.
        """
        centre, _ = self.model.prior_moments(site.y)
        v = (site.x1 - site.x) / (1.0 - site.t)
        pull, std = self._terms(site)
        mean = euler(site.x, site.x1, site.t, site.dt) - site.dt * pull * (site.x - site.t * v - centre)
        return mean[states] + std * eps.view(len(states), *site.x.shape[1:])

    def shift(self, site: Site, x1: Tensor) -> Tensor:
        """How far (n, J) the mean lies from where it was when ``x1`` (n, L, D) replaces the prediction, in standard deviations."""
        pull, std = self._terms(site)
        moved = (x1.float() - site.x1) / (1.0 - site.t)  # of the velocity
        return (moved * (site.dt * (1.0 + pull * site.t) / max(std, 1e-12))).flatten(1)

    def scale(self, site: Site) -> float:
        """Standard deviation of the noise."""
        return self._terms(site)[1]


@dataclass
class Fields:
    """Level and contrast of bands and stretches of time, over any non-negative magnitudes (n, L, K); see the top of the file."""

    bands: Tensor  # (K, bands) 0/1, which band a bin belongs to
    power: float  # exponent p that the magnitudes carry; 1 where they are plain amplitudes
    noise: float  # sigma, in nepers
    basis: Sequence[str]  # kinds of field
    segment: int | None  # frames that share a gain; None: all

    def cells(self, field: Tensor) -> Tensor:
        """Sum (n, L, K) over the bins of every cell: (n, stretches, bands)."""
        banded = field @ self.bands  # (n, L, bands)
        step = self.segment or banded.shape[1]
        pad = -banded.shape[1] % step
        return torch.nn.functional.pad(banded, (0, 0, 0, pad)).unflatten(1, (-1, step)).sum(2)

    def spread(self, cells: Tensor, length: int) -> Tensor:
        """Write a number per cell back on its bins: (n, stretches, bands) -> (n, L, K)."""
        step = self.segment or length
        return cells.repeat_interleave(step, dim=1)[:, :length] @ self.bands.T

    def at(self, m: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weights, cell weights, and phi per kind of field.

        Args:
            m: (n, L, K) magnitudes that the fields live on.
            reference: (n, L, K) the input's, in the same units; contrast is relative to them.
            mask: (n, L) bool, real frames, or None.
        """
        weight = m * (m > TINY)
        if mask is not None:
            weight = weight * mask[..., None]
        total = self.cells(weight).clamp_min(1e-12)
        fields = {}
        if "level" in self.basis:
            fields["level"] = torch.ones_like(m)
        if "contrast" in self.basis:
            q = m.clamp_min(1e-9).log() - reference.clamp_min(1e-9).log()
            q = q - self.spread(self.cells(weight * q) / total, m.shape[1])
            deviation = (self.cells(weight * q.square()) / total).clamp_min(1e-8).sqrt()
            phi = (q / self.spread(deviation, m.shape[1]).clamp_min(1e-4)).clamp(-PHI_MAX, PHI_MAX)
            # orthogonal to level again
            fields["contrast"] = phi - self.spread(self.cells(weight * phi) / total, m.shape[1])
        return weight, total, fields

    def active(self, total: Tensor) -> Tensor:
        """(n, J) float, 1 on the coefficients of cells that hold energy in real frames; J = stretches x kinds of field x bands."""
        return torch.stack([(total > 1e-6).float() for _ in self.basis], dim=2).flatten(1)

    def gain(self, fields: dict[str, Tensor], total: Tensor, eps: Tensor, states: Tensor) -> Tensor:
        """Factors (N, L, K) on the magnitudes for coefficients (N, J); row i belongs to state ``states[i]``."""
        # stretches first: padding adds dimensions at the end
        parts = eps.view(len(states), total.shape[1], len(fields), total.shape[2]).unbind(2)
        pairs = zip(parts, fields.values(), strict=True)
        gains = (self.spread(part, phi.shape[1]) * phi[states] for part, phi in pairs)
        return (self.power * self.noise * sum(gains, start=eps.new_zeros(()))).exp()

    def shift(self, weight: Tensor, fields: dict[str, Tensor], change: Tensor) -> Tensor:
        """Projection (n, J) of a change of the log-magnitudes (n, L, K) on every field, in standard deviations."""

        def projected(phi: Tensor) -> Tensor:
            return self.cells(weight * phi * change) / self.cells(weight * phi.square()).clamp_min(1e-12)

        moved = torch.stack([projected(phi) for phi in fields.values()], dim=2)
        return moved.flatten(1) / (self.power * max(self.noise, 1e-12))


class GainNoise:
    """Log-gains and contrast by band and stretch of time of a predicted spectrum; see the top of the file."""

    def __init__(self, model: FlowEnhancer, cfg: Exploration) -> None:
        self.model, self.noise = model, cfg.noise
        segment = None if cfg.segment_s is None else max(1, round(cfg.segment_s * model.sample_rate / model.cfg.hop))
        bands = band_matrix(model.front.width // 2, cfg.bands, model.sample_rate).to(next(model.parameters()).device)
        self.fields = Fields(bands, model.cfg.compress, cfg.noise, cfg.basis, segment)

    def _fields(self, site: Site) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Old log-magnitudes, weights, cell weights, and phi per kind of field."""
        m = magnitude(site.x1)
        return m, *self.fields.at(m, magnitude(self.model.noisy(site.y).float()), site.mask)

    def active(self, site: Site) -> Tensor:
        return self.fields.active(self._fields(site)[2])

    def act(self, site: Site, eps: Tensor, states: Tensor, old: Site | None = None) -> Tensor:
        _, _, total, fields = self._fields(old or site)
        moved = site.x1[states] * torch.cat([self.fields.gain(fields, total, eps, states)] * 2, dim=-1)
        return euler(site.x[states], moved, site.t, site.dt)

    def shift(self, site: Site, x1: Tensor) -> Tensor:
        m, weight, _, fields = self._fields(site)
        return self.fields.shift(weight, fields, magnitude(x1.float()).log() - m.log())

    def scale(self, site: Site) -> float:
        return self.noise


def band_matrix(bins: int, bands: int, sample_rate: int) -> Tensor:
    """(K, bands) 0/1: every bin in one band, band edges equally spaced in mel, at least one bin each."""
    top, number = 2595 * math.log10(1 + sample_rate / 2 / 700), np.arange(bands + 1)
    edges = ((10 ** (top * number / bands / 2595) - 1) * 700 / (sample_rate / 2) * bins).round().astype(int)
    edges = np.maximum.accumulate(edges - number).clip(max=bins - bands) + number
    return torch.nn.functional.one_hot(torch.from_numpy(np.repeat(number[:-1], np.diff(edges))), bands).float()


def build_kernel(model: FlowEnhancer, cfg: Exploration) -> BinNoise | GainNoise:
    """The kernel that the config names; ``gain`` needs the stft front end."""
    if cfg.kind == "mask":
        raise UserError("explore.kind=mask is for the task avse", "a flow has no mask", "--set explore.kind=gain")
    if cfg.kind != "gain":
        return BinNoise(model, cfg)
    if model.cfg.front_end != "stft":
        why = "log-mel magnitudes go through a vocoder"
        raise UserError("explore.kind=gain needs the stft front end", why, "--set explore.kind=sde")
    if cfg.bands > model.front.width // 2:
        what = f"{cfg.bands} bands do not fit {model.front.width // 2} bins"
        raise UserError(what, "", f"--set explore.bands={model.front.width // 8}")
    return GainNoise(model, cfg)
