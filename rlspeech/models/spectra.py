"""Between waveforms and features: the flow's front ends, mel filters, log-mel, Kaldi's filter bank, and pitch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.config_parts import FlowModel
from rlspeech.types import UserError


def frame_mask(frames: Tensor, length: int) -> Tensor | None:
    """(N,) frame counts -> (N, L) bool, True on real frames; None where nothing is padded."""
    if bool((frames >= length).all()):
        return None
    return torch.arange(length, device=frames.device)[None] < frames[:, None]


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
        padded = nn.functional.pad(wav, (0, pad))
        spec = torch.stft(padded, self.n_fft, self.hop, window=self.window, return_complex=True)
        return self.pack(spec * (spec.abs() + 1e-8) ** (self.power - 1.0) * self.scale)

    def decode(self, x: Tensor, samples: int) -> Tensor:
        """(N, L, D) -> (N, T = samples)."""
        spec = self.unpack(x) / self.scale
        spec = spec * (spec.abs() + 1e-8) ** (1.0 / self.power - 1.0)
        padded = (x.shape[1] - 1) * self.hop
        return torch.istft(spec, self.n_fft, self.hop, window=self.window, length=padded)[:, :samples]

    def amplitudes(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(N, L, D) -> what an energy is the sum of squares of: samples (N, T) of the ``real`` frames (N, L) bool, None: all."""
        return self.decode(x if real is None else x * real[..., None], (x.shape[1] - 1) * self.hop)

    def pack(self, spec: Tensor) -> Tensor:
        """Complex (N, K, L) -> real (N, L, 2K)."""
        return torch.cat([spec.real, spec.imag], dim=1).transpose(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        """Real (N, L, 2K) -> complex (N, K, L)."""
        real, imag = x.float().transpose(1, 2).chunk(2, dim=1)
        return torch.complex(real.contiguous(), imag.contiguous())


def mel_filters(sample_rate: int, n_fft: int, n_mels: int, fmax_hz: float | None = None, fmin_hz: float = 0) -> Tensor:
    """Slaney's mel filters (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above, of unit area, as librosa.filters.mel.

    Args:
        n_fft: length of the transform, odd ones too; the filters cover its n_fft // 2 + 1 bins.
        fmax_hz, fmin_hz: upper edge of the highest filter, None is half the rate; lower edge of the lowest.

    Returns:
        (n_mels, n_fft // 2 + 1) float32, a transposed view: products round by the layout.
    """
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    top_hz = sample_rate / 2 if fmax_hz is None else fmax_hz
    ends = [float(hertz_to_mel(hz, mel_scale="slaney")) for hz in (fmin_hz, top_hz)]
    edges_hz = np.asarray(mel_to_hertz(np.linspace(ends[0], ends[1], n_mels + 2), mel_scale="slaney"))
    bins_hz = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    rise = (bins_hz[:, None] - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    fall = (edges_hz[2:] - bins_hz[:, None]) / np.diff(edges_hz)[1:]
    bank = np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))
    return torch.from_numpy(bank.astype(np.float32)).T


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
        bank = mel_filters(cfg.sample_rate, cfg.n_fft, cfg.n_mels, cfg.mel_fmax_hz)
        self.register_buffer("bank", bank, persistent=False)
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

    def amplitudes(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(N, L, D) -> what an energy is the sum of squares of: mel magnitudes (N, L, D), for samples cost a pass of the vocoder."""
        return x.float().exp() if real is None else x.float().exp() * real[..., None]

    def _load(self, device: torch.device) -> nn.Module:
        if not self.vocoder_name:
            try_this = "--set model.vocoder=FOLDER (a transformers SpeechT5HifiGan), or model.front_end=stft"
            raise UserError("the mel front end needs a vocoder", "model.vocoder is not set", try_this)
        from transformers import SpeechT5HifiGan

        from rlspeech.models.folder import loading, pretrained

        with loading(f"the vocoder {self.vocoder_name}", "a folder with config.json and weights"):
            vocoder = pretrained(SpeechT5HifiGan, self.vocoder_name)
        mels, hop = vocoder.config.model_in_dim, math.prod(vocoder.config.upsample_rates)
        if mels != self.width or hop != self.hop:
            why = f"it wants {mels} mels at hop {hop}, the model has {self.width} at {self.hop}"
            raise UserError("the vocoder does not fit", why)
        return vocoder.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- Kaldi's log-mel filter bank
#
# With low-frame-rate stacking it is the input of Fun-ASR and SenseVoice, for which transformers' extractor asks torchaudio: there is no
# build of it beside every torch.


FRAME_S = 0.06  # that one stacked window stands for
LOW_HZ, PREEMPHASIS = 20.0, 0.97


@lru_cache(maxsize=8)
def kaldi_filters(mels: int, n_fft: int, sample_rate: int) -> np.ndarray:
    """Triangles (n_fft // 2 + 1, mels) on the mel scale 1127 ln(1 + f / 700), from 20 Hz to half the rate."""
    from transformers.audio_utils import mel_filter_bank

    bins, high_hz = n_fft // 2 + 1, sample_rate / 2
    return mel_filter_bank(bins, mels, LOW_HZ, high_hz, sample_rate, None, "kaldi", triangularize_in_mel_space=True)


def fbank(wav: Tensor, mels: int = 80, sample_rate: int = 16000) -> Tensor:
    """Log-mel energies (L, mels) of a waveform (T,) in [-1, 1]: Hamming frames of 25 ms every 10 ms, a shorter waveform padded to one.

    Frames that do not fit are left out. Agrees with ``torchaudio.compliance.kaldi.fbank(..., window_type="hamming")``, dither 0.
    """
    size, hop = int(0.025 * sample_rate), int(0.01 * sample_rate)
    if len(wav) < size:
        wav = nn.functional.pad(wav, (0, size - len(wav)))
    frames = wav.float().unfold(0, size, hop)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - PREEMPHASIS * before) * torch.hamming_window(size, periodic=False, device=wav.device)
    n_fft = 2 ** math.ceil(math.log2(size))
    power = torch.fft.rfft(frames, n_fft).abs().square()[:, :-1]
    bank = torch.from_numpy(kaldi_filters(mels, n_fft, sample_rate)[:-1]).float()  # Kaldi leaves the last bin out
    return (power @ bank.to(wav.device)).clamp_min(torch.finfo(torch.float32).eps).log()


def stack_frames(frames: Tensor, stack: int = 7, stride: int = 6) -> Tensor:
    """(L, D) -> (ceil(L / stride), stack * D): windows centred on every ``stride``-th frame, the ends repeated."""
    count = -(-len(frames) // stride)
    left = (stack - 1) // 2
    right = max(stack - 1 - left, (count - 1) * stride + stack - left - len(frames))
    padded = torch.cat([frames[:1].expand(left, -1), frames, frames[-1:].expand(right, -1)])
    return padded.unfold(0, stack, stride)[:count].transpose(1, 2).reshape(count, -1)


def fbank_lfr(wav: Tensor) -> Tensor:
    """Stacked log-mel windows (L', 7 * 80) of a waveform (T,) at 16 kHz."""
    return stack_frames(fbank(wav))


def level_normalise(wav: Tensor, dbfs: float) -> Tensor:
    """Scale each row of (N, T) to an RMS level about its mean, differentiably; silence stays silence."""
    rms = wav.var(-1, correction=0, keepdim=True).add(1e-12).sqrt()
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
        self.register_buffer("bank", mel_filters(16000, 512, n_mels, 7600.0, 20.0).contiguous(), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T) at 16 kHz."""
        wav = level_normalise(wav, -25.0)
        window, bank = cast(Tensor, self.window), cast(Tensor, self.bank)
        spec = torch.stft(wav, 512, 160, 400, window, center=True, pad_mode="constant", return_complex=True)
        power = spec.real.square() + spec.imag.square()
        logmel = (bank @ power + 1e-5).log()
        return logmel - logmel.mean(-1, keepdim=True) if self.centre else logmel


# Fundamental frequency of speech: normalised autocorrelation (Boersma, 1993) and the best path through time. Batched, some hundred times
# faster than real time on a core; good enough to drive a vocoder and to measure intonation.


F0_LOW_HZ, F0_HIGH_HZ, BINS = 65.0, 400.0, 80
REACH = 5  # bins, of 40 cents, that the pitch may move from a frame to the next
VOICING = 0.45  # autocorrelation that is worth calling voiced
SILENCE = 0.03  # frames below this share of the loudest one are unvoiced
OCTAVE, JUMP, SWITCH = 0.03, 0.35, 0.14  # costs: of a lower octave, of moving by an octave, of starting or ending voice


def track_pitch(
    wav: Tensor, sample_rate: int, hop: int, frames: int, window: int = 640, real: Tensor | None = None
) -> Tensor:
    """Pitch of waveforms (N, T) float32 in ``frames`` L, frame ``l`` centred at sample ``(l + 0.5) * hop``.

    Args:
        window: samples a frame; 40 ms reach down to 75 Hz safely.
        real: (N,) frames of each row, where rows are padded; what is behind them decides nothing, and has no pitch.

    Returns:
        (N, L) in Hz, 0 where unvoiced.
    """
    side = (window - hop) // 2
    total = (frames - 1) * hop + window
    # (N, L, window)
    cut = nn.functional.pad(wav, (side, max(0, total - side - wav.shape[1])))[:, :total].unfold(1, window, hop)
    hann = torch.hann_window(window, device=wav.device)
    cut = (cut - cut.mean(-1, keepdim=True)) * hann
    size = 1 << (window + int(sample_rate / F0_LOW_HZ)).bit_length()
    spectrum = torch.fft.rfft(cut, size).abs().square()
    own = torch.fft.irfft(torch.fft.rfft(hann, size).abs().square(), size)
    energy = cut.square().sum(-1)
    lags = torch.fft.irfft(spectrum, size)
    lags = lags / (own / own[0]).clamp_min(1e-3) / energy.clamp_min(1e-9)[..., None]
    grid = F0_LOW_HZ * (F0_HIGH_HZ / F0_LOW_HZ) ** torch.linspace(0, 1, BINS, device=wav.device)
    at = sample_rate / grid
    low = at.long()
    part = at - low
    score = lags[..., low] * (1 - part) + lags[..., low + 1] * part + OCTAVE * torch.log2(grid / F0_LOW_HZ)
    quiet = energy < SILENCE**2 * energy.amax(1, keepdim=True).clamp_min(1e-7)
    scores = score.masked_fill(quiet[..., None], -1.0)
    inside = torch.ones_like(quiet)
    if real is not None:
        inside = torch.arange(frames, device=wav.device) < real.to(wav.device)[:, None]
    # behind the end any state is as good as any other
    path = _best_path(scores.masked_fill(~inside[..., None], VOICING))
    peak = path.clamp(1, BINS - 2)[..., None]
    left, top, right = (score.gather(2, peak + k)[..., 0] for k in (-1, 0, 1))
    # a parabola through three bins
    bend = (0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-6)).clamp(-0.5, 0.5)
    step = math.log(F0_HIGH_HZ / F0_LOW_HZ) / (BINS - 1)
    hertz = F0_LOW_HZ * torch.exp(step * (path.clamp_max(BINS - 1) + bend))
    return torch.where((path < BINS) & inside, hertz, torch.zeros((), device=wav.device))


def _best_path(score: Tensor) -> Tensor:
    """Viterbi over (N, L, BINS) voiced states and an unvoiced one: (N, L) long, ``BINS`` is unvoiced."""
    n, length, bins = score.shape
    octaves = math.log2(F0_HIGH_HZ / F0_LOW_HZ) / (bins - 1)
    move = JUMP * octaves * torch.arange(-REACH, REACH + 1, device=score.device).abs()
    voiced, silent = score[:, 0], score.new_full((n,), VOICING)
    back, back_silent = [], []
    index = torch.arange(bins, device=score.device)
    for step in range(1, length):
        # (N, BINS, 2 REACH + 1)
        near = nn.functional.pad(voiced, (REACH, REACH), value=-1e9).unfold(1, 2 * REACH + 1, 1) - move
        best, which = near.max(-1)
        start = (silent - SWITCH)[:, None]
        back.append(torch.where(best >= start, index + which - REACH, bins))
        top, peak = voiced.max(-1)
        stay = silent >= top - SWITCH
        back_silent.append(torch.where(stay, bins, peak))
        voiced, silent = torch.maximum(best, start) + score[:, step], torch.maximum(silent, top - SWITCH) + VOICING
    top, peak = voiced.max(-1)
    state = torch.where(silent >= top, bins, peak)
    states = [state]
    for one, none in zip(reversed(back), reversed(back_silent), strict=True):
        state = torch.where(state == bins, none, one.gather(1, state.clamp_max(bins - 1)[:, None])[:, 0])
        states.append(state)
    return torch.stack(states[::-1], 1)
