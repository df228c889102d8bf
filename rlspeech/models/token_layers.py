"""Layers of the token reward's text decoder: causal self-attention, attention to the sound, feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.models.blocks import rotate

__all__ = ["TextLayer"]

Pair = tuple[Tensor, Tensor]


class TextLayer(nn.Module):
    """One layer, for a whole text at once or a piece at a time.

    Args:
        dim: width.
        heads: of both attentions.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.own_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.source, self.source_out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def sources(self, states: Tensor) -> Pair:
        """Keys and values (n, H, L, D / H) of the sound (n, L, D), computed once a sound."""
        key, value = self.source(states).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(
        self, x: Tensor, sound: Pair, keep: Tensor, rope: Pair, past: Pair | None = None
    ) -> tuple[Tensor, Pair]:
        """Args: x (n, S, D); sound of ``sources``; keep (n, 1, 1, L) bool; rope of these S positions; past what was returned before."""
        q, k, v = (self._split(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.own_out(self._join(F.scaled_dot_product_attention(q, k, v, is_causal=past is None)))
        seen = F.scaled_dot_product_attention(self._split(self.query(self.norm2(x))), *sound, attn_mask=keep)
        x = x + self.source_out(self._join(seen))
        return x + self.ff(self.norm3(x)), (k, v)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)
