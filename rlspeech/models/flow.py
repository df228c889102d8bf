"""A flow-matching speech enhancer: a DiT over spectral frames, conditioned on the noisy input.

The textbook version (conditional flow matching, rectified path): x_t = (1-t) x_0 + t x_1 with x_0 ~ N(0, I) noise at t = 0 and x_1 the
clean spectrum at t = 1; the network regresses the velocity x_1 - x_0, and an Euler solver integrates it (FlowSE-GRPO, arXiv 2601.16483;
FlowSE, arXiv 2505.19476). Its blocks are those of diffusion transformers (Peebles and Xie, "DiT") and F5-TTS: convolutional position
encoding, rotary attention, a GELU feed-forward, and six modulation vectors a block from the time embedding, initialised at zero so that
every block starts as the identity.

What is changed: the network may predict the clean spectrum instead, v = (x_1_hat - x_t) / (1-t), because a trunk narrower than its input
cannot carry white noise; its head may be complex masks on input and state plus a residual, which starts as the identity, with
magnitudes among its inputs (a linear layer cannot compute them); and the prior may sit on the noisy input, N(y, sigma^2) (arXiv
2508.06840, there written in reversed time).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.config_parts import FlowModel
from rlspeech.models.predictor import Predictor
from rlspeech.models.spectra import MelFrontEnd, StftFrontEnd
from rlspeech.types import UserError


class TimeEmbedding(nn.Module):
    """Sinusoids of t (256 of them) through a two-layer MLP: (N,) in [0, 1] -> (N, D)."""

    freq: Tensor

    def __init__(self, dim: int, n_freq: int = 256) -> None:
        super().__init__()
        half = n_freq // 2
        freq = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1)) * 1000.0
        self.register_buffer("freq", freq, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(n_freq, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times. Args: t (N,)."""
        angle = t.float()[:, None] * self.freq[None]
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]


class ConvPosition(nn.Module):
    """Two grouped convolutions over frames that tell the trunk where it is: (N, L, D) -> (N, L, D), added by the caller."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Args: x (N, L, D); mask (N, L, 1), 1 on real frames."""
        for conv in self.convs:
            x = F.mish(conv((x * mask).transpose(1, 2))).transpose(1, 2)
        return x * mask


def rotary(length: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, dim) of rotary positions for heads of width ``dim``."""
    freq = 10000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim)
    angle = torch.arange(length, device=device).float()[:, None] * freq[None]
    return angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of dimensions (..., L, dim) by their positions."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions. The four projections are what a LoRA adapter attaches to."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, keep: Tensor | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Args: x (N, L, D); keep (N, 1, 1, L) bool or None where nothing is padded."""
        n, length, dim = x.shape
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(rotate(q, *rope), rotate(k, *rope), v, attn_mask=keep)
        return self.to_out(out.transpose(1, 2).reshape(n, length, dim))


class Block(nn.Module):
    """adaLN-zero block: x + gate * attention(norm(x)), x + gate * ff(norm(x)), shifts, scales and gates from the time."""

    def __init__(self, dim: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads)
        wide = dim * ff_mult
        self.ff = nn.Sequential(nn.Linear(dim, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, dim))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, keep: Tensor | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Args: x (N, L, D); time (N, D) time embedding; keep (N, 1, 1, L) bool or None."""
        # each (N, 1, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(time))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, rope)
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)


# --------------------------------------------------------------------------------------------------------------- the flow


# the velocity of a clean prediction is divided by 1-t; sampling never asks beyond, Euler's last step is exact
T_MAX = 0.98
# of the regression loss: share of the ratio in dB, where it stops to count, and the energy below which a clip is silent
SDR_WEIGHT, SDR_CAP_DB, SILENT = 2e-3, 30.0, 1e-4
UNDER_SUPPRESSION = 2.0  # what is left of the noise weighs 1 + this, what is missing of the speech 1


def euler(x: Tensor, x1: Tensor, t: float, dt: float) -> Tensor:
    """One deterministic step along v = (x1 - x) / (1 - t); every stochastic sampler reduces to exactly this at noise 0.

    Args:
        x: (N, L, D) state at t.
        x1: (N, L, D) predicted clean spectrum; a step that reaches t = 1 lands on it.
        t, dt: time and step length.
    """
    return x1 if t + dt > 1 - 1e-6 else x + (x1 - x) * (dt / (1.0 - t))


class FlowEnhancer(nn.Module):
    """DiT enhancer. Everything spectral is (N, L, D); times are (N,); masks (N, L) bool or None.

    Raises:
        UserError: a head and a prediction target that do not go together.
    """

    lora_targets: ClassVar[dict[str, str]] = {  # patterns of module names, see ``adapters.Adapted``
        "attention": r".*\.(to_q|to_k|to_v|to_out)",
        "attention+ff": r".*\.(to_q|to_k|to_v|to_out|ff\.0|ff\.2)",
        "all": r"inp|out|.*\.(to_q|to_k|to_v|to_out|ff\.0|ff\.2)",
    }

    def __init__(self, cfg: FlowModel) -> None:
        super().__init__()
        needs = cfg.head == "mask" or cfg.objective == "regression"
        if needs and (cfg.front_end != "stft" or cfg.prediction != "clean"):
            why = f"head={cfg.head}, objective={cfg.objective}, front_end={cfg.front_end}, prediction={cfg.prediction}"
            what = "a mask head and regression need the stft front end and clean prediction"
            raise UserError(what, why, "--set model.head=linear --set model.objective=matching")
        if (cfg.predictor and cfg.front_end != "stft") or (cfg.prior == "predicted" and not cfg.predictor):
            why = f"front_end={cfg.front_end}, predictor={cfg.predictor}, prior={cfg.prior}"
            raise UserError(
                "the predictor is a mask on an STFT", why, "--set model.front_end=stft --set model.predictor=256"
            )
        self.cfg, self.sample_rate = cfg, cfg.sample_rate
        self.front = StftFrontEnd(cfg) if cfg.front_end == "stft" else MelFrontEnd(cfg)
        width = self.front.width
        self.predictor: Predictor | None = None
        if cfg.predictor:
            self.predictor = Predictor(width // 2, cfg.predictor, cfg.predictor_layers)
        self.time = TimeEmbedding(cfg.dim)
        self.inp = nn.Linear(width * (3 if cfg.head == "mask" else 2) + width * bool(cfg.predictor), cfg.dim)
        self.position = ConvPosition(cfg.dim, cfg.conv_pos_kernel, cfg.conv_pos_groups)
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads, cfg.ff_mult) for _ in range(cfg.depth))
        self.final_modulation = nn.Linear(cfg.dim, 2 * cfg.dim)
        self.final_norm = nn.LayerNorm(cfg.dim, elementwise_affine=False, eps=1e-6)
        self.out = nn.Linear(cfg.dim, width * (3 if cfg.head == "mask" else 1))
        for layer in (self.final_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    # -- the network -------------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, y: Tensor, t: Tensor, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """The raw prediction (velocity or clean spectrum, as ``cfg.prediction`` says).

        Args:
            x: (N, L, D) state at time t.
            y: (N, L, D), or (N, L, 2D) with a predictor: what ``condition`` makes of the noisy input.
            t: (N,) in [0, 1].
            mask: (N, L) bool, False on padding.
            drop: (N,) bool, rows whose condition is hidden (classifier-free guidance).
        """
        condition = y if drop is None else y * (~drop)[:, None, None]
        noisy, condition = condition[..., : x.shape[2]], condition[..., -x.shape[2] :]
        length = x.shape[1]
        real = x.new_ones(1, length, 1) if mask is None else mask[..., None].to(x.dtype)
        keep = None if mask is None else mask[:, None, None, :]
        rope = rotary(length, self.cfg.dim // self.cfg.heads, x.device)
        time = self.time(t)
        parts = [x, condition] if self.cfg.head == "linear" else [x, condition, magnitude(x), magnitude(condition)]
        parts += [noisy] if self.predictor else []
        h = self.inp(torch.cat(parts, dim=-1))
        h = h + self.position(h, real)
        for block in self.blocks:
            h = block(h, time, keep, rope)
        shift, scale = self.final_modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        out = self.out(self.final_norm(h) * (1 + scale) + shift).float()
        if self.cfg.head == "mask":
            out = _masked(out, condition.float(), x.float())
        return out * real

    # -- the flow ----------------------------------------------------------------------------------------------------

    def unfreeze(self) -> None:
        """Train the flow; a predictor in front stays as it is, as a function of the input that rollouts have in common."""
        self.requires_grad_(True)
        if self.predictor is not None:
            self.predictor.requires_grad_(False)

    def condition(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the flow is given of a noisy spectrum (N, L, D): itself, with a predictor's output behind it (N, L, 2D)."""
        return y if self.predictor is None else torch.cat([y, self.predictor(y, mask)], dim=-1)

    def noisy(self, y: Tensor) -> Tensor:
        """The noisy spectrum (N, L, D) of a condition."""
        return y[..., : self.front.width]

    def prior(self, y: Tensor, z: Tensor) -> Tensor:
        """x_0 from standard normal ``z`` (N, L, D) and the condition: mean + deviation z."""
        mean, deviation = self.prior_moments(y)
        return z if self.cfg.prior == "standard" else mean + deviation * z

    def prior_moments(self, y: Tensor) -> tuple[Tensor | float, float]:
        """Mean and standard deviation of x_0 for a condition, as the samplers need them."""
        if self.cfg.prior == "standard":
            return 0.0, 1.0
        return self.noisy(y) if self.cfg.prior == "noisy" else y[..., self.front.width :], self.cfg.prior_sigma

    def loss(
        self, x1: Tensor, y: Tensor, mask: Tensor | None, magnitude_weight: float, target: Tensor
    ) -> dict[str, Tensor]:
        """Loss at random times in named parts, ``loss`` their sum: flow matching, whose conditional mean samplers need, or regression.

        Args:
            x1: (N, L, D) clean spectra.
            y: the ``condition`` of the noisy ones.
            mask: (N, L) bool or None.
            magnitude_weight: of the squared error of the compressed magnitudes; only with the stft front end, in flow matching.
            target: (N, T) the clean waveforms.
        """
        n = x1.shape[0]
        t = torch.rand(n, device=x1.device) ** self.cfg.time_power * T_MAX
        x0 = self.prior(y, torch.randn_like(x1))
        x_t = torch.lerp(x0, x1, t[:, None, None])
        drop = torch.rand(n, device=x1.device) < self.cfg.condition_drop if self.cfg.condition_drop else None
        pred = self(x_t, y, t, mask, drop)
        if self.cfg.objective == "regression":
            error = sum(self.regression_loss(pred, x1, target, mask).values(), pred.new_zeros(()))
            return {"flow": error, "loss": error}
        goal = x1 if self.cfg.prediction == "clean" else x1 - x0
        weight = (x1.new_ones(x1.shape[:2]) if mask is None else mask.to(x1.dtype))[..., None]
        count = weight.sum() * x1.shape[2]
        parts = {"flow": ((pred - goal).square() * weight).sum() / count}
        if magnitude_weight and self.cfg.front_end == "stft" and self.cfg.prediction == "clean":
            error = magnitude(pred) - magnitude(x1)
            parts["magnitude"] = magnitude_weight * (error.square() * weight).sum() / count
        parts["loss"] = sum(parts.values())
        return parts

    def clean(
        self, x: Tensor, y: Tensor, t: float | Tensor, mask: Tensor | None = None, guidance: float = 0.0
    ) -> Tensor:
        """The clean spectrum (N, L, D) that the network expects, x_1_hat, at one time for all rows or one each (N,)."""
        times = t if isinstance(t, Tensor) else torch.full((x.shape[0],), t, device=x.device)
        pred = self(x, y, times, mask)
        if guidance:
            blind = self(x, y, times, mask, torch.ones_like(times, dtype=torch.bool))
            pred = pred + guidance * (pred - blind)
        left = 1.0 - (t[:, None, None] if isinstance(t, Tensor) else t)
        return pred if self.cfg.prediction == "clean" else x + left * pred

    def ode(self, y: Tensor, z: Tensor, nfe: int, mask: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Integrate from the prior to t = 1 in ``nfe`` Euler steps. Args: y a condition, z (N, L, D). Returns (N, L, D)."""
        x, dt = self.prior(y, z), 1.0 / nfe
        for i in range(nfe):
            x = euler(x, self.clean(x, y, i * dt, mask, guidance), i * dt, dt)
        return x

    def regression_loss(self, predicted: Tensor, x1: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Errors of a predicted spectrum (N, L, D): of compressed magnitudes and complex values, and of the waveform as -SI-SDR.

        Args:
            predicted, x1: (N, L, D) predicted and clean spectra.
            target: (N, T) the clean waveforms.
            mask: (N, L) bool or None.
        """
        real = x1.new_ones(x1.shape[:2]) if mask is None else mask.to(x1.dtype)
        count = real.sum() * x1.shape[2] * self.cfg.scale**2
        error = magnitude(predicted) - magnitude(x1)
        size = (error.square() * (1 + UNDER_SUPPRESSION * (error > 0))).sum(-1)
        both = (predicted - x1).square().sum(-1)
        made = self.front.decode(predicted, target.shape[1])
        onto = target * (made * target).sum(1, keepdim=True) / (target.square().sum(1, keepdim=True) + SILENT)
        left = (made - onto).square().sum(1) + SILENT
        sdr_db = (10 * torch.log10((onto.square().sum(1) + SILENT) / left)).clamp(max=SDR_CAP_DB)
        spectral = ((1.4 * size + 0.3 * both) * real).sum() / count
        return {"spectrum": spectral, "si_sdr": -SDR_WEIGHT * sdr_db.mean()}


def _masked(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Complex masks on the condition (starting at 1) and on the state (at 0), plus a residual: (N, L, 3D) -> (N, L, D).

    The mask on the state carries what is already clean past a trunk that is narrower than a spectrum.
    """
    on_y, on_x, residual = out.chunk(3, dim=-1)
    return y + _times(on_y, y) + _times(on_x, x) + residual


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Product of packed complex spectra (N, L, 2K)."""
    a_re, a_im = a.chunk(2, dim=-1)
    b_re, b_im = b.chunk(2, dim=-1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-1)


def magnitude(x: Tensor) -> Tensor:
    """Compressed magnitudes (N, L, K) of packed complex spectra (N, L, 2K)."""
    re, im = x.chunk(2, dim=-1)
    return (re.square() + im.square() + 1e-9).sqrt()
