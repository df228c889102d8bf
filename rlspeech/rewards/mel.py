"""Mel filters and log-mel spectrograms, shared by the P.808 predictor and the embedded encoders.

The filters are Slaney's (linear below 1 kHz, logarithmic above, unit area), the same numbers that librosa computes, without
importing librosa: its first use costs seconds, and a GPU needs the filters as a tensor anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["LogMel", "level_normalise", "mel_filters"]


@lru_cache(maxsize=8)
def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, fmin_hz: float = 0.0, fmax_hz: float | None = None
) -> np.ndarray:
    """Slaney's mel filter bank.

    Args:
        sample_rate: in Hz.
        n_fft: length of the transform; the filters cover its n_fft // 2 + 1 bins.
        n_mels: number of filters.
        fmin_hz: lower edge of the lowest filter.
        fmax_hz: upper edge of the highest filter; None is half the rate.

    Returns:
        (n_mels, n_fft // 2 + 1) float32, each filter of unit area (Slaney, Auditory Toolbox, 1998).
    """
    fmax_hz = sample_rate / 2 if fmax_hz is None else fmax_hz
    step, corner_hz = 200.0 / 3, 1000.0
    log_step = np.log(6.4) / 27.0

    def to_mel(hz: float) -> float:
        return hz / step if hz < corner_hz else corner_hz / step + float(np.log(hz / corner_hz)) / log_step

    mels = np.linspace(to_mel(fmin_hz), to_mel(fmax_hz), n_mels + 2)
    edges_hz = np.where(mels < corner_hz / step, mels * step, corner_hz * np.exp(log_step * (mels - corner_hz / step)))
    bins_hz = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    rise = (bins_hz[None] - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    fall = (edges_hz[2:, None] - bins_hz[None]) / np.diff(edges_hz)[1:, None]
    bank = np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return cast(np.ndarray, bank.astype(np.float32))


def level_normalise(wav: Tensor, dbfs: float) -> Tensor:
    """Scale each row of (N, T) to an RMS level, differentiably; silence stays silence."""
    rms = wav.square().mean(-1, keepdim=True).add(1e-12).sqrt()
    return cast(Tensor, wav * (10.0 ** (dbfs / 20.0) / rms))


class LogMel(nn.Module):
    """Log-mel spectrogram of 16-kHz speech at a fixed level: (N, T) -> (N, n_mels, L), hop 10 ms, Hann window of 25 ms.

    Args:
        n_mels: number of filters.
        centre: subtract each filter's mean over the clip, which removes a fixed colouring of the channel.
    """

    def __init__(self, n_mels: int = 64, centre: bool = False) -> None:
        super().__init__()
        self.centre = centre
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("bank", torch.from_numpy(mel_filters(16000, 512, n_mels, 20.0, 7600.0)), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T) at 16 kHz."""
        wav = level_normalise(wav, -25.0)
        window, bank = cast(Tensor, self.window), cast(Tensor, self.bank)
        spec = torch.stft(wav, 512, 160, 400, window, center=True, pad_mode="constant", return_complex=True)
        power = torch.view_as_real(spec).square().sum(-1)
        logmel = (bank @ power + 1e-5).log()
        return logmel - logmel.mean(-1, keepdim=True) if self.centre else logmel
