"""The video front end of the audio-visual enhancer: grey frames to features, 25 a second.

The textbook version (lip reading since Stafylakis and Tzimiropoulos, arXiv 1703.04105): a 3-D convolution over a few frames, ResNet-18
on every frame, a mean over the picture, convolutions over time. What is changed: every size is a setting, and frames that are padding
are zero before every convolution over time, so that a clip's features do not depend on what it is padded with. ``Stage2d`` is the
AVSEC-4 code's kind of residual stage, for its weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.config import AvseModel
from rlspeech.types import UserError

__all__ = ["VideoFrontEnd"]

NORMS: dict[str, dict[str, Any]] = {"own": {}, "avse4": {"eps": 1e-3, "momentum": 0.01}}  # of the image part


class Residual2d(nn.Module):
    """The basic block of ResNet: (M, D, H, W) -> (M, D', H', W')."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.skip = (
            nn.Identity()
            if stride == 1 and width == out
            else nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Stage2d(nn.Module):
    """Two residual blocks as in the challenge's code: the second adds to the first's sum from before its norm and ReLU; bare skips."""

    def __init__(self, width: int, out: int, stride: int, norm: dict[str, Any]) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.conv3, self.conv4 = (nn.Conv2d(out, out, 3, 1, 1, bias=False) for _ in range(2))
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
            raise UserError(
                "variant avse4 has two residual blocks a stage", f"video_layers is {cfg.video_layers}", "variant: own"
            )
        self.norm = nn.BatchNorm3d(cfg.video_stem, **norm)
        stages: list[nn.Module] = []
        width = cfg.video_stem
        for i, (channels, layers) in enumerate(zip(cfg.video_channels, cfg.video_layers, strict=True)):
            if cfg.variant == "avse4":
                stages.append(Stage2d(width, channels, 2 if i else 1, norm))
                width = channels
                continue
            for j in range(layers):
                stages.append(Residual2d(width, channels, 2 if i and not j else 1))
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
        short = [max(0, side - s) for s in video.shape[2:]]
        x = video.float()
        if max(short):
            x = F.pad(
                x, (short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2), mode="replicate"
            )
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        if size != side:
            x = F.adaptive_avg_pool2d(x, size)
        return (x / 255.0 - self.cfg.video_mean) / self.cfg.video_std
