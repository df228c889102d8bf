"""Kaldi's log-mel filter bank with low-frame-rate stacking: what Fun-ASR and SenseVoice hear.

transformers' own extractor for Fun-ASR-Nano asks torchaudio for it, which has no build beside every torch. This is the same function
(25-ms Hamming frames every 10 ms, offset removed, pre-emphasis 0.97, power spectrum, triangles on Kaldi's mel scale from 20 Hz to half the
rate, natural logarithm floored at the float's epsilon; frames that do not fit are left out), then windows of 7 frames every 6, the first
and the last frame repeated at the ends, so that one window stands for 60 ms.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FRAME_S", "fbank", "fbank_lfr", "stack_frames"]

FRAME_S = 0.06
LOW_HZ = 20.0
PREEMPHASIS = 0.97


@lru_cache(maxsize=8)
def _filters(mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangles (n_fft // 2, mels) on the mel scale 1127 ln(1 + f / 700); Kaldi leaves the last bin out."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([LOW_HZ, sample_rate / 2], dtype=torch.double))
    step = (high - low) / (mels + 1)
    centre = low + step * (1 + torch.arange(mels, dtype=torch.double))
    bins = mel(torch.arange(n_fft // 2, dtype=torch.double) * sample_rate / n_fft)[:, None]
    return torch.minimum((bins - centre + step) / step, (centre + step - bins) / step).clamp_min(0).float()


@lru_cache(maxsize=8)
def _window(length: int) -> Tensor:
    return torch.hamming_window(length, periodic=False)


def fbank(wav: Tensor, mels: int = 80, sample_rate: int = 16000) -> Tensor:
    """Log-mel energies (L, mels) of a waveform (T,) in [-1, 1]; one shorter than a frame (25 ms) is padded to one.

    Agrees with ``torchaudio.compliance.kaldi.fbank(..., window_type="hamming")``, dither 0.
    """
    size, hop = int(0.025 * sample_rate), int(0.01 * sample_rate)
    if len(wav) < size:
        wav = torch.nn.functional.pad(wav, (0, size - len(wav)))
    frames = wav.float().unfold(0, size, hop)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - PREEMPHASIS * before) * _window(size).to(wav.device)
    n_fft = 2 ** math.ceil(math.log2(size))
    power = torch.fft.rfft(frames, n_fft).abs().square()[:, :-1]
    return (power @ _filters(mels, n_fft, sample_rate).to(wav.device)).clamp_min(torch.finfo(torch.float32).eps).log()


def stack_frames(frames: Tensor, stack: int = 7, stride: int = 6) -> Tensor:
    """(L, D) -> (ceil(L / stride), stack * D): windows centred on every ``stride``-th frame, the ends repeated."""
    count = -(-len(frames) // stride)
    left = (stack - 1) // 2
    right = max(stack - 1 - left, (count - 1) * stride + stack - left - len(frames))
    padded = torch.cat([frames[:1].expand(left, -1), frames, frames[-1:].expand(right, -1)])
    return padded.unfold(0, stack, stride)[:count].transpose(1, 2).reshape(count, -1)


def fbank_lfr(wav: Tensor, mels: int = 80, sample_rate: int = 16000, stack: int = 7, stride: int = 6) -> Tensor:
    """Stacked log-mel windows (L', stack * mels) of a waveform (T,)."""
    return stack_frames(fbank(wav, mels, sample_rate), stack, stride)
