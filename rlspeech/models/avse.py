"""The audio-visual enhancer of the AVSEC-4 baseline's family: time-domain encoder, video front end, dilated separator, mask, decoder.

The textbook version (Conv-TasNet, arXiv 1809.07454, with the video joined before every repeat of the separator, as in the baseline of
the fourth AVSE challenge): w = ReLU(Enc(x)), m = ReLU(Sep(w, v)), y = Dec(w m), trained on SI-SNR. The defaults of ``AvseModel`` are
that baseline's, mono or binaural. The video goes through the front end of lip reading since Stafylakis and Tzimiropoulos (arXiv
1703.04105): a 3-D convolution over a few frames, ResNet-18 on every frame, a mean over the picture, convolutions over time.

What is changed: every size is a setting; norms and convolutions see real frames only, so that a clip's output does not depend on what it
is padded with; a clip may have no video (its visual features are zero, which pretraining practises); inputs are brought to one level,
because a time-domain encoder is not scale-free; the residual stages are plain ResNet's; and the last samples of a clip get a latent frame
of their own. ``variant="avse4"`` keeps the challenge's code in the last two (``Stage2d``), which its published weights need
(``models/avse_import.py``).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.config_parts import AvseModel
from rlspeech.data.video import LIPS_FPS, frames_of
from rlspeech.models.spectra import frame_mask
from rlspeech.types import UserError

NORMS: dict[str, dict[str, Any]] = {"own": {}, "avse4": {"eps": 1e-3, "momentum": 0.01}}  # of the image part


class Residual2d(nn.Module):
    """The basic block of ResNet: (M, D, H, W) -> (M, D', H', W')."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Stage2d(nn.Module):
    """Two residual blocks as in the challenge's code: the second adds to the first's sum from before its norm and ReLU; bare skips."""

    def __init__(self, width: int, out: int, stride: int, norm: dict[str, Any]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2, self.conv3, self.conv4 = (nn.Conv2d(out, out, 3, 1, 1, bias=False) for _ in range(3))
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(out, **norm) for _ in range(4))
        self.skip = nn.Identity() if stride == 1 and width == out else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One stage: (M, D, H, W) -> (M, D', H', W')."""
        first = self.conv2(F.relu(self.norm1(self.conv1(x)))) + self.skip(x)
        h = F.relu(self.norm3(self.conv3(F.relu(self.norm2(first)))))
        return F.relu(self.norm4(self.conv4(h) + first))


class VisualBlock(nn.Module):
    """ReLU, norm, depthwise convolution over time, PReLU, norm, pointwise, with a residual: (B, D, F) -> (B, D, F)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.depth = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        self.act = nn.PReLU()
        self.out = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """``real`` (B, 1, F) float or None."""
        h = self.norm1(F.relu(x))
        h = self.depth(h if real is None else h * real)
        return x + self.out(self.norm2(self.act(h)))


class VideoFrontEnd(nn.Module):
    """Grey frames to features: a 3-D convolution, residual stages frame by frame, residual blocks over time.

    Raises:
        UserError: ``variant="avse4"`` with other than two blocks a stage.
    """

    def __init__(self, cfg: AvseModel) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = nn.Conv3d(1, cfg.video_stem, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
        norm = NORMS[cfg.variant]
        if cfg.variant == "avse4" and set(cfg.video_layers) != {2}:
            why = f"video_layers is {cfg.video_layers}"
            raise UserError("variant avse4 has two residual blocks a stage", why, "variant: own")
        self.norm = nn.BatchNorm3d(cfg.video_stem, **norm)
        stages: list[nn.Module] = []
        width = cfg.video_stem
        for i, (channels, layers) in enumerate(zip(cfg.video_channels, cfg.video_layers, strict=True)):
            first = width, channels, 2 if i else 1
            if cfg.variant == "avse4":
                stages.append(Stage2d(*first, norm))
            else:
                stages += [Residual2d(*first), *(Residual2d(channels, channels, 1) for _ in range(layers - 1))]
            width = channels
        self.stages = nn.Sequential(*stages)
        self.time = nn.ModuleList(VisualBlock(width) for _ in range(cfg.visual_blocks))
        self.width = width

    def forward(self, video: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, F, H, W) grey levels 0..255 of the stored size -> (B, D, F); ``real`` (B, F) bool, frames that are not padding, or None."""
        x = self.prepare(video)
        keep = None if real is None else real[:, None].to(x.dtype)
        x = x if keep is None else x * keep[:, 0, :, None, None]  # as the convolutions pad
        h = F.max_pool3d(F.relu(self.norm(self.stem(x[:, None]))), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        b, _, frames = h.shape[:3]
        h = self.stages(h.transpose(1, 2).flatten(0, 1)).mean((2, 3)).unflatten(0, (b, frames)).transpose(1, 2)
        for block in self.time:
            h = block(h, keep)
        return h

    def prepare(self, video: Tensor) -> Tensor:
        """Centre, reduce by area, normalise: (B, F, H, W) -> (B, F, S, S)."""
        side, size = self.cfg.video_crop, self.cfg.video_size
        tall, wide = (max(0, side - s) for s in video.shape[2:])
        x = video.float()
        if tall or wide:
            x = F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2), mode="replicate")
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        if size != side:
            x = F.adaptive_avg_pool2d(x, size)
        return (x / 255.0 - self.cfg.video_mean) / self.cfg.video_std


# ----------------------------------------------------------------------------------------------------------- the enhancer


class Masked(NamedTuple):
    """What a forward pass gives: latents and masks (B, C, N, K), waveforms come from ``AvseEnhancer.decode``."""

    latent: Tensor  # (B, N, K) non-negative encoding of the mixture, shared by the channels
    mask: Tensor  # (B, C, N, K) non-negative
    real: Tensor | None  # (B, K) bool, frames that hold samples, or None where nothing is padded

    def pick(self, rows: Tensor) -> Masked:
        """The clips ``rows`` (n,)."""
        return Masked(self.latent[rows], self.mask[rows], None if self.real is None else self.real[rows])


def si_snr(output: Tensor, target: Tensor, samples: Tensor | None = None) -> Tensor:
    """Scale-invariant signal-to-noise ratio in dB over the last axis, means removed: (..., T), (..., T) -> (...).

    Args:
        output, target: equal shapes; the first axis is the batch.
        samples: (B,) real samples of every row; None: all.
    """
    count = torch.tensor([output.shape[-1]], device=output.device) if samples is None else samples
    count = count.view(-1, *(1,) * (output.dim() - 1))
    keep = torch.arange(output.shape[-1], device=output.device) < count
    output, target = ((x - (x * keep).sum(-1, keepdim=True) / count) * keep for x in (output, target))
    scale = (output * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-8)
    wanted = scale * target
    return 10 * torch.log10((wanted.square().sum(-1) + 1e-8) / ((output - wanted).square().sum(-1) + 1e-8))


class GlobalNorm(nn.Module):
    """Normalise over channels and real frames of (B, D, K), then scale and shift by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, D, K) -> (B, D, K); ``real`` (B, 1, K) float or None."""
        if real is None:
            return F.group_norm(x, 1, self.weight, self.bias, 1e-8)
        count = real.sum((1, 2), keepdim=True) * x.shape[1]
        mean = (x * real).sum((1, 2), keepdim=True) / count
        centred = (x - mean) * real
        std = (centred.square().sum((1, 2), keepdim=True) / count + 1e-8).sqrt()
        return centred / std * self.weight[:, None] + self.bias[:, None]


class DilatedBlock(nn.Module):
    """Pointwise, depthwise dilated, pointwise, with a residual: (B, D, K) -> (B, D, K)."""

    def __init__(self, width: int, hidden: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.inp = nn.Conv1d(width, hidden, 1, bias=False)
        self.act1, self.norm1 = nn.PReLU(), GlobalNorm(hidden)
        wide: dict[str, Any] = {"dilation": dilation, "padding": dilation * (kernel - 1) // 2}
        self.depth = nn.Conv1d(hidden, hidden, kernel, **wide, groups=hidden, bias=False)
        self.act2, self.norm2 = nn.PReLU(), GlobalNorm(hidden)
        self.out = nn.Conv1d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """``real`` (B, 1, K) float or None."""
        h = self.norm1(self.act1(self.inp(x)), real)
        h = self.depth(h if real is None else h * real)
        return x + self.out(self.norm2(self.act2(h), real))


class AvseEnhancer(nn.Module):
    """Mixture and video in, masks out; see the top of the file."""

    lora_targets: ClassVar[dict[str, str]] = {  # no attention here: the layers that join the video take its place
        "attention": r"(look|join)\.\d+",
        "attention+ff": r"(look|join)\.\d+|repeats\..*\.(inp|out)",
        "all": r"inp|out|(look|join)\.\d+|repeats\..*\.(inp|out)",
    }

    def __init__(self, cfg: AvseModel) -> None:
        super().__init__()
        self.cfg, self.sample_rate = cfg, cfg.sample_rate
        n, b = cfg.filters, cfg.bottleneck
        self.encoder = nn.Conv1d(cfg.channels, n, cfg.kernel, cfg.stride, bias=False)
        self.video = VideoFrontEnd(cfg)
        self.norm = nn.LayerNorm(n)
        self.inp = nn.Conv1d(n, b, 1, bias=False)
        self.look = nn.ModuleList(nn.Conv1d(self.video.width, b, 1) for _ in range(cfg.repeats))
        self.join = nn.ModuleList(nn.Conv1d(2 * b, b, 1) for _ in range(cfg.repeats))
        self.repeats = nn.ModuleList(
            nn.ModuleList(DilatedBlock(b, cfg.hidden, cfg.conv_kernel, 2**x) for x in range(cfg.blocks))
            for _ in range(cfg.repeats)
        )
        self.out = nn.Conv1d(b, n * cfg.channels, 1, bias=False)
        self.decoder = nn.ConvTranspose1d(n, 1, cfg.kernel, cfg.stride, bias=False)

    def frames(self, samples: int) -> int:
        """K, the latent frames that cover so many samples; of the variant avse4 those that are full."""
        beyond, stride = samples - self.cfg.kernel, self.cfg.stride
        return max(0, beyond // stride if self.cfg.variant == "avse4" else -(-beyond // stride)) + 1

    def encode_video(self, video: Tensor | None, present: Tensor | None, shown: Tensor | None = None) -> Tensor | None:
        """Visual features (B, D, F), zero where ``present`` (B,) is False; ``shown`` (B,) real frames. None without any video."""
        if video is None:
            return None
        real = None if shown is None else frame_mask(shown, video.shape[1])
        visual = self.video(video, real)
        return visual if present is None else visual * present[:, None, None].to(visual.dtype)

    def encode(self, wav: Tensor) -> Tensor:
        """(B, C, T) -> latents (B, N, K), T padded with zeros, or cut, to whole frames."""
        need = self.cfg.kernel + (self.frames(wav.shape[-1]) - 1) * self.cfg.stride
        return F.relu(self.encoder(F.pad(wav, (0, need - wav.shape[-1]))))

    def forward(
        self, wav: Tensor, video: Tensor | None = None, present: Tensor | None = None, samples: Tensor | None = None
    ) -> Masked:
        """Masks for mixtures.

        Args:
            wav: (B, C, T).
            video: (B, F, H, W) grey levels of the stored size, frame 0 at sample 0; None: no clip has one. Frames behind a row's
                samples count as padding.
            present: (B,) bool, clips that have a video; None: all.
            samples: (B,) real samples of every row; None: all.
        """
        latent = self.encode(wav)
        length = latent.shape[2]
        counts = None if samples is None else [self.frames(n) for n in samples.tolist()]
        real = None if counts is None else frame_mask(torch.tensor(counts, device=wav.device), length)
        keep = None if real is None else real[:, None].to(latent.dtype)
        # the first frame behind the end still overlaps the last samples
        latent = latent if keep is None else latent * keep
        shown = None  # video frames that lie within each row's samples
        if video is not None and samples is not None:
            counts = [min(video.shape[1], frames_of(n / self.sample_rate)) for n in samples.tolist()]
            shown = torch.tensor(counts, device=video.device)
        visual = self.encode_video(video, present, shown)
        visual = latent.new_zeros(len(wav), self.video.width, 1) if visual is None else visual
        h = self.inp(self.norm(latent.transpose(1, 2)).transpose(1, 2))
        for look, join, blocks in zip(self.look, self.join, self.repeats, strict=True):
            h = join(torch.cat([h, self._at_latent_rate(look(visual), length, shown)], dim=1))
            for block in cast("nn.ModuleList", blocks):
                h = block(h, keep)
        raw = self.out(h).unflatten(1, (self.cfg.channels, self.cfg.filters))
        return Masked(latent, F.relu(raw) if self.cfg.mask == "relu" else F.softplus(raw), real)

    def decode(self, masked_latent: Tensor, samples: int) -> Tensor:
        """(B, C, N, K) masked latents -> (B, C, T) waveforms by overlap-add."""
        wav = self.decoder(masked_latent.flatten(0, 1))[:, 0]
        return F.pad(wav, (0, max(0, samples - wav.shape[-1])))[:, :samples].unflatten(0, masked_latent.shape[:2])

    def enhance(
        self, wav: Tensor, video: Tensor | None = None, present: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        made = self(wav, video, present, samples)
        return self.decode(made.latent[:, None] * made.mask, wav.shape[-1])

    def centres_hz(self) -> Tensor:
        """(N,) centre of gravity of every encoder filter's power spectrum; what orders the filters for structured exploration."""
        power = torch.fft.rfft(self.encoder.weight.detach().float().mean(1), 512).abs().square()
        hertz = torch.linspace(0, self.sample_rate / 2, power.shape[1], device=power.device)
        return (power * hertz).sum(1) / power.sum(1).clamp_min(1e-12)

    def _at_latent_rate(self, visual: Tensor, length: int, shown: Tensor | None) -> Tensor:
        """(B, D, F) at 25 frames a second -> (B, D, K), linear between frame centres, the last frame held.

        The variant avse4 takes a latent frame's centre to be half a hop behind its start, and leaves zeros behind the last video frame.
        """
        if visual.shape[2] == 1:
            return visual.expand(-1, -1, length)
        published, device = self.cfg.variant == "avse4", visual.device
        half = (self.cfg.stride if published else self.cfg.kernel) / 2
        centre = torch.arange(length, device=device) * self.cfg.stride + half
        at = (centre * (LIPS_FPS / self.sample_rate) - 0.5)[None]
        last = torch.full((1, 1), visual.shape[2] - 1, device=device) if shown is None else shown[:, None] - 1
        held = torch.minimum(at.clamp_min(0), last)
        low = held.floor().long()
        part = (held - low).to(visual.dtype)[:, None]
        index = (i[:, None].expand(*visual.shape[:2], -1) for i in (low, torch.minimum(low + 1, last)))
        first, second = (visual.gather(2, i) for i in index)
        made = first * (1 - part) + second * part
        return made * (at < last + 0.5).to(visual.dtype)[:, None] if published else made
