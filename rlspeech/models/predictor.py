"""The deterministic front of a flow: a complex mask on the noisy spectrum, from recurrent layers along time and across bands.

The textbook version is the band-split RNN (arXiv 2209.15174): every band of a frame becomes a vector, one recurrent layer runs along time
within each band, another across the bands of each frame, and each band writes its part of the mask. A predictor before a generative
model is that of StoRM (arXiv 2212.11851): what it predicts conditions the flow and may centre its prior.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

MOST_GAIN = 1.2


def band_edges(bins: int, bands: int) -> list[int]:
    """Edges (bands + 1) of bands of equal width in mel over ``bins`` bins up to 8 kHz, of two bins at the least."""
    top = 2595 * math.log10(1 + 8000 / 700)
    edges = np.round((10 ** (np.linspace(0, top, bands + 1) / 2595) - 1) * 700 / 8000 * bins).astype(int)
    low = 2 * np.arange(bands + 1)
    return [int(e) for e in np.minimum(np.maximum.accumulate(edges - low) + low, bins - low[::-1])]


class Along(nn.Module):
    """x + linear(GRU(norm(x))), in both directions: (N, L, C) -> (N, L, C); ``frames`` (N,) cpu counts where rows are padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.gru = nn.GRU(channels, channels, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """Args: x (N, L, C)."""
        h = self.norm(x)
        if frames is None:
            return x + self.out(self.gru(h)[0])
        packed = self.gru(pack_padded_sequence(h, frames, batch_first=True, enforce_sorted=False))[0]
        return x + self.out(pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0])


class Predictor(nn.Module):
    """Predicts a clean spectrum from a noisy one, both packed and compressed (N, L, 2K).

    Args:
        bins: K.
        channels: of a band's vector.
        bands: number of bands.
        blocks: pairs of a layer along time and one across bands.
    """

    index: Tensor
    real: Tensor

    def __init__(self, bins: int, channels: int, bands: int, blocks: int) -> None:
        super().__init__()
        edges = band_edges(bins, bands)
        widths = np.diff(edges)
        wide = int(widths.max())
        index, real = torch.zeros(bands, wide, dtype=torch.long), torch.zeros(bands, wide, dtype=torch.bool)
        for band, width in enumerate(widths):
            index[band, :width] = torch.arange(edges[band], edges[band + 1])
            real[band, :width] = True
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("real", real, persistent=False)
        self.bins, self.channels = bins, channels
        self.inp = nn.Parameter(torch.randn(bands, 4 * wide, channels) / math.sqrt(4 * widths.mean()))
        self.inp_bias = nn.Parameter(torch.zeros(bands, channels))
        self.time = nn.ModuleList(Along(channels) for _ in range(blocks))
        self.band = nn.ModuleList(Along(channels) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Parameter(torch.randn(bands, channels, 2 * channels) / math.sqrt(channels))
        self.hidden_bias = nn.Parameter(torch.zeros(bands, 2 * channels))
        self.out = nn.Parameter(0.1 * torch.randn(bands, 2 * channels, 3 * wide) / math.sqrt(2 * channels))
        self.out_bias = nn.Parameter(torch.zeros(bands, 3 * wide))

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Args: y (N, L, 2K); mask (N, L) bool, False on padding. Returns (N, L, 2K)."""
        n, length, _ = y.shape
        re, im = y.chunk(2, dim=-1)
        size = (re.square() + im.square() + 1e-9).sqrt()
        log = size.log()
        weight = y.new_ones(n, length, 1) if mask is None else mask[..., None].to(y.dtype)
        spectrum = (log * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)  # the clip's mean, bin by bin
        level = log - spectrum.mean(-1, keepdim=True)
        parts = torch.stack([2 * level, 2 * (log - spectrum), re, im], dim=-1)  # (N, L, K, 4)
        parts = parts[:, :, self.index] * self.real[..., None]
        x = torch.einsum("nlbm,bmc->nblc", parts.flatten(3), self.inp) + self.inp_bias[:, None]
        bands = x.shape[1]
        frames = None if mask is None else mask.sum(1).repeat_interleave(bands).cpu()
        for time, band in zip(self.time, self.band, strict=True):
            x = time(x.flatten(0, 1), frames).view(n, bands, length, self.channels)
            x = band(x.transpose(1, 2).flatten(0, 1)).view(n, length, bands, self.channels).transpose(1, 2)
        h = torch.tanh(torch.einsum("nblc,bcd->nbld", self.norm(x), self.hidden) + self.hidden_bias[:, None])
        out = torch.einsum("nbld,bdm->nlbm", h, self.out) + self.out_bias
        out = out.unflatten(-1, (-1, 3))[:, :, self.real]  # (N, L, K, 3), bands in the order of their bins
        gain = MOST_GAIN * torch.sigmoid(out[..., 0] + 1)
        turn = math.pi * torch.tanh(out[..., 1]) * torch.sigmoid(out[..., 2])
        cos, sin = gain * turn.cos(), gain * turn.sin()
        return torch.cat([re * cos - im * sin, re * sin + im * cos], dim=-1) * weight
