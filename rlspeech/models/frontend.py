"""Between waveforms and what the flow lives on: compressed complex STFT (exact inverse), or log-mel with a vocoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlspeech.config import FlowModel
from rlspeech.types import UserError

__all__ = ["MelFrontEnd", "StftFrontEnd", "build_front_end", "mel_filters"]


class StftFrontEnd(nn.Module):
    """Complex STFT with a square-root Hann window and compressed magnitude, real and imaginary parts side by side.

    c = s |X|^p exp(i angle X), p = ``compress``, s = ``scale``; the inverse is exact but for rounding. D = 2 * (n_fft // 2 + 1).
    """

    window: Tensor

    def __init__(self, cfg: FlowModel) -> None:
        super().__init__()
        self.n_fft, self.hop, self.power, self.scale = cfg.n_fft, cfg.hop, cfg.compress, cfg.scale
        self.width = 2 * (cfg.n_fft // 2 + 1)
        self.register_buffer("window", torch.hann_window(cfg.n_fft).sqrt(), persistent=False)

    def frames(self, samples: int) -> int:
        """Spectral frames of ``samples`` audio samples: a started hop counts, and reflection at the ends needs half a window."""
        return -(-max(samples, self.n_fft // 2 + 1) // self.hop) + 1

    def encode(self, wav: Tensor) -> Tensor:
        """(N, T) -> (N, L, D)."""
        pad = (self.frames(wav.shape[1]) - 1) * self.hop - wav.shape[1]
        spec = torch.stft(
            nn.functional.pad(wav, (0, pad)), self.n_fft, self.hop, window=self.window, return_complex=True
        )
        return self.pack(spec * (spec.abs() + 1e-8) ** (self.power - 1.0) * self.scale)

    def decode(self, x: Tensor, samples: int) -> Tensor:
        """(N, L, D) -> (N, T = samples)."""
        spec = self.unpack(x) / self.scale
        spec = spec * (spec.abs() + 1e-8) ** (1.0 / self.power - 1.0)
        padded = (x.shape[1] - 1) * self.hop
        return torch.istft(spec, self.n_fft, self.hop, window=self.window, length=padded)[:, :samples]

    def pack(self, spec: Tensor) -> Tensor:
        """Complex (N, K, L) -> real (N, L, 2K)."""
        return torch.cat([spec.real, spec.imag], dim=1).transpose(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        """Real (N, L, 2K) -> complex (N, K, L)."""
        real, imag = x.float().transpose(1, 2).chunk(2, dim=1)
        return torch.complex(real.contiguous(), imag.contiguous())


def mel_filters(sample_rate: int, n_fft: int, n_mels: int, fmax_hz: float) -> Tensor:
    """Slaney-style triangular filters, area-normalised: (n_mels, n_fft // 2 + 1), equal to librosa.filters.mel."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, fmax_hz, sample_rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T).float()


class MelFrontEnd(nn.Module):
    """Log-mel spectrogram (natural log, floored at 1e-5) and a HiFi-GAN vocoder of transformers' ``SpeechT5HifiGan`` class.

    The vocoder is frozen. D = n_mels.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, cfg: FlowModel) -> None:
        super().__init__()
        self.n_fft, self.hop, self.width = cfg.n_fft, cfg.hop, cfg.n_mels
        self.register_buffer("window", torch.hann_window(cfg.n_fft), persistent=False)
        self.register_buffer(
            "bank", mel_filters(cfg.sample_rate, cfg.n_fft, cfg.n_mels, cfg.mel_fmax_hz), persistent=False
        )
        self.vocoder_name = cfg.vocoder
        self._vocoder: list[nn.Module] = []  # in a list: frozen, and not part of this model's weights

    def frames(self, samples: int) -> int:
        """Spectral frames of ``samples`` audio samples."""
        return -(-max(samples, self.n_fft // 2) // self.hop)  # reflection at the ends needs (n_fft - hop) / 2 samples

    def encode(self, wav: Tensor) -> Tensor:
        """(N, T) -> (N, L, D)."""
        total = self.frames(wav.shape[1]) * self.hop
        side = (self.n_fft - self.hop) // 2
        wav = nn.functional.pad(wav, (0, total - wav.shape[1]))
        wav = nn.functional.pad(wav[:, None], (side, self.n_fft - self.hop - side), mode="reflect")[:, 0]
        spec = torch.stft(wav, self.n_fft, self.hop, window=self.window, center=False, return_complex=True).abs()
        return (self.bank @ spec).clamp_min(1e-5).log().transpose(1, 2)

    def decode(self, x: Tensor, samples: int) -> Tensor:
        """(N, L, D) -> (N, T = samples) through the vocoder.

        Raises:
            UserError: no vocoder was named, or it does not fit the mel settings.
        """
        if not self._vocoder:
            self._vocoder.append(self._load(x.device))
        return self._vocoder[0](x.float())[:, :samples]

    def _load(self, device: torch.device) -> nn.Module:
        if not self.vocoder_name:
            raise UserError(
                "the mel front end needs a vocoder",
                "model.vocoder is not set",
                "--set model.vocoder=FOLDER (a transformers SpeechT5HifiGan), or model.front_end=stft",
            )
        from transformers import SpeechT5HifiGan

        try:
            vocoder = SpeechT5HifiGan.from_pretrained(self.vocoder_name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load the vocoder {self.vocoder_name}",
                str(error).splitlines()[0],
                "a folder with config.json and weights",
            ) from error
        hop = math.prod(vocoder.config.upsample_rates)
        if vocoder.config.model_in_dim != self.width or hop != self.hop:
            raise UserError(
                "the vocoder does not fit",
                f"it wants {vocoder.config.model_in_dim} mels at hop {hop}, the model has {self.width} at {self.hop}",
            )
        return vocoder.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]


def build_front_end(cfg: FlowModel) -> StftFrontEnd | MelFrontEnd:
    """The front end that the config names."""
    return StftFrontEnd(cfg) if cfg.front_end == "stft" else MelFrontEnd(cfg)
