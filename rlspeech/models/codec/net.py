"""The embedded speech codec: one stream of tokens at 25 a second, the voice from a prompt, a source-filter decoder.

    log-mel and pitch -> convolutions -> finite scalar quantisation (arXiv 2309.15505) -> convolutions -> envelopes and pitch -> waveform

Level, mean spectrum and mean pitch are taken off before the encoder, so tokens hold what is said and how; who says it comes from a
voice vector, pooled over prompt speech. The decoder writes, every 10 ms, a pitch, and the band gains of two sources, a pulse train and
noise; both are filtered in the STFT domain and overlap-added. A head that writes phases as well (Vocos, arXiv 2306.00814) needs an
adversary and days of a GPU before it sounds like speech, because no magnitude loss can teach it phases; pulses bring their own (as in
DDSP, arXiv 2001.04643). The filter is left without a phase: a minimum-phase one measured worse (PESQ 3.1 against 3.7 at true gains).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.config_parts import CodecModel
from rlspeech.models.spectra import mel_filters, track_pitch

LEVEL_DBFS = -25.0
PITCH_HZ = 150.0  # pitches are logarithms of their ratio to this
FLOOR = 1e-4  # under the mel magnitudes of speech at -25 dBFS by some 60 dB
MEL_CENTRE, MEL_SCALE, PITCH_SCALE = -4.0, 2.0, 3.0  # bring features to a spread near 1


class DecoderOutput(NamedTuple):
    """What the decoder writes for L frames: log-gains of pulses and noise (N, L, M), logit of voice and log of pitch / 150 Hz (N, L)."""

    pulse: Tensor
    noise: Tensor
    voiced: Tensor
    pitch: Tensor


class FiniteScalar(nn.Module):
    """Finite scalar quantisation: every dimension is rounded to one of its ``levels``, gradients pass straight through.

    Ids are their mixed-radix number, the first dimension counting fastest.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in [-1, 1] (..., D) with gradient, and ids (...) long, of (..., D) about standard normal: every level is as likely."""
        top = self.levels - 1
        place = torch.special.ndtr(z) * self.levels - 0.5
        digits = place.round().clamp(min=0).minimum(top)
        code = place + (digits - place).detach()
        return code / top * 2 - 1, (digits.detach().long() * self.basis).sum(-1)

    def codes(self, ids: Tensor) -> Tensor:
        """(...) long -> (..., D) in [-1, 1]."""
        digits = torch.div(ids[..., None], self.basis, rounding_mode="floor") % self.levels.long()
        return digits.float() / (self.levels - 1) * 2 - 1


class ConvBlock(nn.Module):
    """ConvNeXt block over time: depthwise convolution, norm, two linear layers, residual."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.wide, self.back = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Args: x (N, L, D); mask (N, L, 1), 1 on real frames."""
        y = self.conv((x * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.back(F.gelu(self.wide(self.norm(y))))


class CodecNet(nn.Module):
    """The codec's weights and signal processing, on padded batches; ``models/codec/codec.py`` takes lists."""

    window: Tensor
    bank: Tensor
    spread: Tensor

    def __init__(self, cfg: CodecModel) -> None:
        super().__init__()
        self.cfg, self.sample_rate = cfg, cfg.sample_rate
        self.samples = cfg.hop * cfg.stride  # a token
        dim, inputs = cfg.dim, cfg.mels + 2
        self.factors = prime_factors(cfg.stride)
        shares = [1] * (len(self.factors) - 1) + [max(1, cfg.blocks - len(self.factors) + 1)]  # most where tokens are
        widths = [inputs * self.factors[0], *(dim * f for f in self.factors[1:])]
        self.merges = nn.ModuleList(nn.Linear(w, dim) for w in widths)
        self.listen = nn.ModuleList(nn.ModuleList(ConvBlock(dim, cfg.kernel) for _ in range(n)) for n in shares)
        self.squeeze = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(cfg.levels)))
        # without it the encoder runs into the ends of every dimension, and 4 dimensions are 4 bits (57 ids of 1000 in use, measured)
        self.level = nn.BatchNorm1d(len(cfg.levels), momentum=0.05, affine=False)
        self.quantise = FiniteScalar(cfg.levels)
        self.enter = nn.Linear(len(cfg.levels), dim)
        turned = list(reversed(self.factors))
        half = max(1, cfg.blocks // len(turned))
        self.speak = nn.ModuleList(nn.ModuleList(ConvBlock(dim, cfg.kernel) for _ in range(half)) for _ in turned)
        self.splits = nn.ModuleList(nn.Linear(dim, dim * f) for f in turned[:-1])
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, turned[-1] * (2 * cfg.mels + 2)))
        if cfg.voice_dim:
            self.ear = nn.Conv1d(inputs, 128, 5, padding=2)
            self.look = nn.Linear(128, 1)
            self.voice = nn.Linear(256, cfg.voice_dim)
            self.nobody = nn.Parameter(torch.zeros(cfg.voice_dim))
            self.colour = nn.ModuleList(nn.Linear(cfg.voice_dim, dim) for _ in turned)
        self.register_buffer("window", torch.hann_window(cfg.n_fft), persistent=False)
        bank = mel_filters(cfg.sample_rate, cfg.n_fft, cfg.mels)
        self.register_buffer("bank", bank / bank.sum(1, keepdim=True).clamp_min(1e-9), persistent=False)
        self.register_buffer("spread", band_interpolation(cfg), persistent=False)

    def frames(self, samples: int) -> int:
        """Spectral frames of so many samples: whole tokens, at least one."""
        return max(1, -(-samples // self.samples)) * self.cfg.stride

    # -- analysis ------------------------------------------------------------------------------------------------------

    def stft(self, wav: Tensor, frames: int) -> Tensor:
        """(N, T) -> complex (N, frames, K); frame ``l`` is centred at sample (l + 0.5) hop."""
        side = (self.cfg.n_fft - self.cfg.hop) // 2
        total = (frames - 1) * self.cfg.hop + self.cfg.n_fft
        wav = F.pad(wav, (side, max(0, total - side - wav.shape[1])))[:, :total]
        return torch.fft.rfft(wav.unfold(1, self.cfg.n_fft, self.cfg.hop) * self.window)

    def analyse(self, wav: Tensor, frames: int, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel (N, L, M) and pitch (N, L) in Hz, 0 where unvoiced, of speech at -25 dBFS; ``real`` (N,) frames of padded rows."""
        mel = (self.stft(wav, frames).abs() @ self.bank.T / math.sqrt(self.cfg.n_fft) + FLOOR).log()
        return mel, track_pitch(wav, self.sample_rate, self.cfg.hop, frames, self.cfg.n_fft, real)

    def encode(self, mel: Tensor, pitch: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (N, S, D) with gradient and ids (N, S) of ``analyse``'s output; real: (N,) frames of each."""
        mask = length_mask(real, mel.shape[1])
        count = mask.sum(1, keepdim=True).clamp_min(1)
        voiced = (pitch > 0).float()[..., None] * mask
        height = (pitch.clamp_min(1.0) / PITCH_HZ).log()[..., None]
        middle = (height * voiced).sum(1, keepdim=True) / voiced.sum(1, keepdim=True).clamp_min(1)
        shape = (mel - (mel * mask).sum(1, keepdim=True) / count) / MEL_SCALE
        x = torch.cat([shape, voiced, PITCH_SCALE * (height - middle) * voiced], -1)
        for merge, factor, blocks in zip(self.merges, self.factors, self.listen, strict=True):
            x, mask = merge(x.unflatten(1, (-1, factor)).flatten(2)), mask[:, ::factor]
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, mask)
        return self.quantise(self.level(self.squeeze(x).transpose(1, 2)).transpose(1, 2))

    def encode_voice(self, mel: Tensor, pitch: Tensor, real: Tensor) -> Tensor:
        """Voice vectors (N, voice_dim) of prompt speech; the learned neutral one where ``real`` is 0."""
        mask = length_mask(real, mel.shape[1])
        voiced = (pitch > 0).float()[..., None]
        height = PITCH_SCALE * (pitch.clamp_min(1.0) / PITCH_HZ).log()[..., None] * voiced
        x = torch.cat([(mel - MEL_CENTRE) / MEL_SCALE, voiced, height], -1) * mask
        x = F.gelu(self.ear(x.transpose(1, 2))).transpose(1, 2)
        weight = self.look(x).masked_fill(mask == 0, -1e4).softmax(1)
        mean = (x * weight).sum(1)
        power = (x.square() * weight).sum(1) - mean.square()
        voice = torch.tanh(self.voice(torch.cat([mean, power.clamp_min(1e-4).sqrt()], -1)))
        return torch.where((real > 0)[:, None], voice, self.nobody.to(voice.dtype))

    # -- synthesis -----------------------------------------------------------------------------------------------------

    def decode(self, codes: Tensor, real: Tensor, voice: Tensor | None) -> DecoderOutput:
        """What to play for codes (N, S, D), of which ``real`` (N,) tokens are real, in a voice (N, voice_dim)."""
        x, mask = self.enter(codes), length_mask(real, codes.shape[1])
        for i, blocks in enumerate(self.speak):
            if i:
                split = self.splits[i - 1](x)
                factor = split.shape[-1] // x.shape[-1]
                x, mask = split_frames(split, factor), mask.repeat_interleave(factor, 1)
            if voice is not None and self.cfg.voice_dim:
                x = x + self.colour[i](voice)[:, None]
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, mask)
        out = split_frames(self.head(x), self.factors[0])
        pulse, noise, voiced, pitch = out.split([self.cfg.mels, self.cfg.mels, 1, 1], -1)
        return DecoderOutput(pulse + MEL_CENTRE, noise + MEL_CENTRE, voiced[..., 0], pitch[..., 0] / PITCH_SCALE)

    def synthesise(self, out: DecoderOutput, pitch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The waveform (N, L hop) of what ``decode`` gave, at a pitch (N, L) in Hz, 0 where unvoiced; the noise is the generator's."""
        cfg, length = self.cfg, pitch.shape[1] * self.cfg.hop
        ones = pulses(pitch, cfg.hop, self.sample_rate)
        noise = torch.randn(pitch.shape[0], length, generator=generator, device="cpu").to(pitch.device)
        gain = (out.pulse.float().clamp(-14, 4) @ self.spread).exp()
        hiss = (out.noise.float().clamp(-14, 4) @ self.spread).exp()
        frames = pitch.shape[1]
        spectrum = self.stft(ones, frames) * gain + self.stft(noise, frames) * hiss
        return self.overlap(torch.fft.irfft(spectrum, cfg.n_fft) * self.window)[:, :length]

    def overlap(self, frames: Tensor) -> Tensor:
        """Overlap-add of windowed frames (N, L, n_fft), divided by what the windows add up to."""
        cfg, side = self.cfg, (self.cfg.n_fft - self.cfg.hop) // 2
        total = (frames.shape[1] - 1) * cfg.hop + cfg.n_fft

        def fold(x: Tensor) -> Tensor:
            return F.fold(x.transpose(1, 2), (1, total), (1, cfg.n_fft), stride=(1, cfg.hop))[:, 0, 0]

        weight = fold(self.window.square().expand(1, frames.shape[1], -1))
        return (fold(frames) / weight.clamp_min(0.1))[:, side : total - side]


def pulses(pitch: Tensor, hop: int, sample_rate: int) -> Tensor:
    """Band-limited pulse trains of power 1 where voiced, 0 elsewhere: (N, L) Hz, 0 where unvoiced, -> (N, L hop)."""
    voiced = (pitch > 0).float()
    height = torch.where(pitch > 0, pitch, hold_pitch(pitch))
    both = torch.stack([height, voiced], 1)
    smooth = F.interpolate(both, scale_factor=float(hop), mode="linear", align_corners=False)
    hertz, open_ = smooth[:, 0], smooth[:, 1]
    phase = torch.remainder((hertz.double() / sample_rate).cumsum(1), 1.0).float() * 2 * math.pi
    count = torch.ceil(sample_rate / 2 / hertz) - 1  # harmonics below half the rate
    half = torch.sin(phase / 2)
    sharp = half.abs() < 1e-4
    kernel = torch.sin((count + 0.5) * phase) / torch.where(sharp, torch.ones_like(half), half) / 2 - 0.5
    return torch.where(sharp, count, kernel) * (2 / count).sqrt() * open_


def hold_pitch(pitch: Tensor) -> Tensor:
    """Pitch (N, L) with the last one held where there is none, ``PITCH_HZ`` before the first."""
    index = torch.arange(pitch.shape[1], device=pitch.device).expand_as(pitch)
    last = torch.where(pitch > 0, index, -1).cummax(1).values
    return torch.where(last >= 0, pitch.gather(1, last.clamp_min(0)), torch.full_like(pitch, PITCH_HZ))


def band_interpolation(cfg: CodecModel) -> Tensor:
    """(M, K): linear interpolation from the centres of the mel bands to the bins of the STFT."""
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    top = float(hertz_to_mel(cfg.sample_rate / 2, mel_scale="slaney"))
    marks = np.asarray(mel_to_hertz(top * np.arange(1, cfg.mels + 1) / (cfg.mels + 1), mel_scale="slaney"))
    centres = torch.from_numpy(marks).float()
    bins = torch.linspace(0, cfg.sample_rate / 2, cfg.n_fft // 2 + 1).clamp(centres[0], centres[-1])
    right = torch.searchsorted(centres, bins).clamp(1, cfg.mels - 1)
    share = (bins - centres[right - 1]) / (centres[right] - centres[right - 1])
    out, index = torch.zeros(cfg.mels, len(bins)), torch.arange(len(bins))
    out[right - 1, index] = 1 - share
    out[right, index] += share
    return out


def prime_factors(number: int) -> list[int]:
    """Prime factors, smallest first; [1] of 1."""
    found, at = [], 2
    while number > 1:
        while number % at == 0:
            found.append(at)
            number //= at
        at += 1
    return found or [1]


def length_mask(real: Tensor, length: int) -> Tensor:
    """(N, L, 1) float, 1 on the first ``real`` places."""
    return (torch.arange(length, device=real.device) < real[:, None]).float()[..., None]


def split_frames(x: Tensor, factor: int) -> Tensor:
    """(N, L, factor D) -> (N, L factor, D)."""
    return x.reshape(x.shape[0], x.shape[1] * factor, x.shape[2] // factor)
