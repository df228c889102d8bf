"""Transformer blocks with adaptive layer norm, as in diffusion transformers (Peebles and Xie, "DiT") and F5-TTS.

The textbook block, nothing left out: convolutional position encoding, rotary attention, a GELU feed-forward, and six
modulation vectors a block computed from the time embedding, initialised at zero so that every block starts as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "ConvPosition", "TimeEmbedding", "rotary", "rotate"]


class TimeEmbedding(nn.Module):
    """Sinusoids of t (256 of them) through a two-layer MLP: (N,) in [0, 1] -> (N, D)."""

    freq: Tensor

    def __init__(self, dim: int, n_freq: int = 256) -> None:
        super().__init__()
        half = n_freq // 2
        self.register_buffer(
            "freq", torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1)) * 1000.0, persistent=False
        )
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
        self.ff = nn.Sequential(
            nn.Linear(dim, dim * ff_mult), nn.GELU(approximate="tanh"), nn.Linear(dim * ff_mult, dim)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, keep: Tensor | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Args: x (N, L, D); time (N, D) time embedding; keep (N, 1, 1, L) bool or None."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(time))[:, None].chunk(
            6, dim=-1
        )  # each (N, 1, D)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, rope)
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)
