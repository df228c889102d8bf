"""The AVSEC-4 baseline, told again: random weights under its names, and what its network does with them, in plain functions.

Written from a description of the published network, apart from ``rlspeech``: a checkpoint here is a dictionary, there are no modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL, HOP, STRETCH = 40, 20, 32
Weights = dict[str, Tensor]


def random_weights(channels: int = 1, seed: int = 0, *, width: int = 12, hidden: int = 10, **sizes: Any) -> Weights:
    """Weights of every part, none of them at a value that would hide it (norms scaled and shifted, statistics moved).

    ``sizes`` are ``blocks``, ``repeats``, ``visual`` (layers), ``stem`` and ``stages`` (widths of the picture's network).
    """
    blocks, repeats, visual = (sizes.get(name, n) for name, n in (("blocks", 3), ("repeats", 2), ("visual", 2)))
    stem, stages = sizes.get("stem", 4), sizes.get("stages", (4, 5, 6, 7))
    rng = torch.Generator().manual_seed(seed)
    made: Weights = {}

    def weight(name: str, *shape: int) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        made[f"{name}.weight"] = torch.randn(shape, generator=rng) / fan**0.5

    def batch_norm(name: str, size: int) -> None:
        made[f"{name}.weight"] = 0.5 + torch.rand(size, generator=rng)
        made[f"{name}.bias"] = 0.3 * torch.randn(size, generator=rng)
        made[f"{name}.running_mean"] = 0.2 * torch.randn(size, generator=rng)
        made[f"{name}.running_var"] = 0.02 + torch.rand(size, generator=rng)  # small ones show a wrong epsilon
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def global_norm(name: str, size: int) -> None:
        made[f"{name}.gamma"] = 0.5 + torch.rand(1, size, 1, generator=rng)
        made[f"{name}.beta"] = 0.3 * torch.randn(1, size, 1, generator=rng)

    def slope(name: str) -> None:
        made[f"{name}.weight"] = 0.1 + 0.5 * torch.rand(1, generator=rng)

    sep = "model.separator"
    weight("model.encoder.conv1d_U", width, channels, KERNEL)
    made[f"{sep}.layer_norm.weight"] = 0.5 + torch.rand(width, generator=rng)
    made[f"{sep}.layer_norm.bias"] = 0.3 * torch.randn(width, generator=rng)
    weight(f"{sep}.bottleneck_conv1x1", width, width, 1)
    for r in range(repeats):
        weight(f"{sep}.tcn.{r}.0", width, 2 * width, 1)
        weight(f"{sep}.ve_conv1x1.{r}", width, stages[-1], 1)
        for x in range(blocks):
            net = f"{sep}.tcn.{r}.{x + 1}.net"
            weight(f"{net}.0", hidden, width, 1)
            slope(f"{net}.1")
            global_norm(f"{net}.2", hidden)
            weight(f"{net}.3.net.0", hidden, 1, 3)
            slope(f"{net}.3.net.1")
            global_norm(f"{net}.3.net.2", hidden)
            weight(f"{net}.3.net.3", width, hidden, 1)
    for i in range(visual):
        net = f"{sep}.visual_conv.{i}.net"
        batch_norm(f"{net}.1", stages[-1])
        weight(f"{net}.2", stages[-1], 1, 3)
        slope(f"{net}.3")
        batch_norm(f"{net}.4", stages[-1])
        weight(f"{net}.5", stages[-1], stages[-1], 1)
    weight(f"{sep}.mask_conv1x1", width * channels, width, 1)
    weight("model.decoder.basis_signals", KERNEL, width)
    front = "visual_frontend"
    weight(f"{front}.frontend3D.0", stem, 1, 5, 7, 7)
    batch_norm(f"{front}.frontend3D.1", stem)
    before = stem
    for i, size in enumerate(stages):
        layer = f"{front}.resnet.layer{i + 1}"
        weight(f"{layer}.conv1a", size, before, 3, 3)
        weight(f"{layer}.downsample", size, before, 1, 1)
        for name in ("conv2a", "conv1b", "conv2b"):
            weight(f"{layer}.{name}", size, size, 3, 3)
        for name in ("bn1a", "outbna", "bn1b", "outbnb"):
            batch_norm(f"{layer}.{name}", size)
        before = size
    return made


def baseline(w: Weights, mixture: Tensor, video: Tensor) -> Tensor:
    """(B, C, T) and grey frames (B, F, 112, 112) in 0..255 -> (B, C, T)."""
    samples, channels = mixture.shape[-1], mixture.shape[1]
    latent = F.conv1d(mixture, w["model.encoder.conv1d_U.weight"], stride=HOP).clamp_min(0)  # whole windows only
    width, frames = latent.shape[1:]
    seen = _look(w, video)
    scale, shift = (w[f"model.separator.layer_norm.{part}"] for part in ("weight", "bias"))
    h = F.layer_norm(latent.mT, (width,), scale, shift).mT
    h = F.conv1d(h, w["model.separator.bottleneck_conv1x1.weight"])
    r = 0
    while f"model.separator.tcn.{r}.0.weight" in w:
        v = F.conv1d(seen, w[f"model.separator.ve_conv1x1.{r}.weight"])
        v = F.interpolate(v, STRETCH * seen.shape[-1], mode="linear")
        v = F.pad(v, (0, frames - v.shape[-1]))  # zeros behind the video, or cut to the audio
        h = F.conv1d(torch.cat((h, v), 1), w[f"model.separator.tcn.{r}.0.weight"])
        x = 0
        while f"model.separator.tcn.{r}.{x + 1}.net.0.weight" in w:
            h = h + _block(w, f"model.separator.tcn.{r}.{x + 1}.net", h, 2**x)
            x += 1
        r += 1
    mask = F.conv1d(h, w["model.separator.mask_conv1x1.weight"]).clamp_min(0).reshape(-1, channels, width, frames)
    pieces = (latent[:, None] * mask).mT @ w["model.decoder.basis_signals.weight"].T  # (B, C, K, L)
    made = torch.zeros(*mixture.shape)
    for k in range(frames):
        made[..., k * HOP : k * HOP + KERNEL] += pieces[:, :, k]
    assert made.shape[-1] == samples
    return made


def _block(w: Weights, net: str, x: Tensor, dilation: int) -> Tensor:
    h = F.conv1d(x, w[f"{net}.0.weight"])
    h = _global_norm(w, f"{net}.2", _prelu(w, f"{net}.1", h))
    h = F.conv1d(h, w[f"{net}.3.net.0.weight"], padding=dilation, dilation=dilation, groups=h.shape[1])
    h = _global_norm(w, f"{net}.3.net.2", _prelu(w, f"{net}.3.net.1", h))
    return F.conv1d(h, w[f"{net}.3.net.3.weight"])


def _look(w: Weights, video: Tensor) -> Tensor:
    """(B, D, F)."""
    x = ((video.float() / 255 - 0.4161) / 0.1688)[:, None]
    h = F.conv3d(x, w["visual_frontend.frontend3D.0.weight"], stride=(1, 2, 2), padding=(2, 3, 3))
    h = _batch_norm(w, "visual_frontend.frontend3D.1", h, 1e-3).clamp_min(0)
    h = F.max_pool3d(h, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    rows = []
    for clip in h:  # (D, F, H, W): the pictures one clip at a time
        pictures = clip.transpose(0, 1)
        for i in range(4):
            pictures = _stage(w, f"visual_frontend.resnet.layer{i + 1}", pictures, 1 if i == 0 else 2)
        rows.append(F.avg_pool2d(pictures, 4)[:, :, 0, 0].T)
    seen = torch.stack(rows)
    i = 0
    while (net := f"model.separator.visual_conv.{i}.net") + ".2.weight" in w:
        h = _batch_norm(w, f"{net}.1", seen.clamp_min(0), 1e-5)
        h = F.conv1d(h, w[f"{net}.2.weight"], padding=1, groups=seen.shape[1])
        seen = seen + F.conv1d(_batch_norm(w, f"{net}.4", _prelu(w, f"{net}.3", h), 1e-5), w[f"{net}.5.weight"])
        i += 1
    return seen


def _stage(w: Weights, layer: str, x: Tensor, stride: int) -> Tensor:
    def conv(name: str, y: Tensor, step: int = 1) -> Tensor:
        return F.conv2d(y, w[f"{layer}.{name}.weight"], stride=step, padding=1)

    def norm(name: str, y: Tensor) -> Tensor:
        return _batch_norm(w, f"{layer}.{name}", y, 1e-3).clamp_min(0)

    bare = x if stride == 1 else F.conv2d(x, w[f"{layer}.downsample.weight"], stride=stride)
    total = conv("conv2a", norm("bn1a", conv("conv1a", x, stride))) + bare
    return norm("outbnb", conv("conv2b", norm("bn1b", conv("conv1b", norm("outbna", total)))) + total)


def _prelu(w: Weights, name: str, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * w[f"{name}.weight"])


def _batch_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, scale, shift = (w[f"{name}.{part}"].view(1, -1, *(1,) * (x.dim() - 2)) for part in parts)
    return (x - mean) / (var + eps).sqrt() * scale + shift


def _global_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, var = x.mean((1, 2), keepdim=True), x.var((1, 2), keepdim=True, correction=0)
    return w[f"{name}.gamma"] * (x - mean) / (var + 1e-8).sqrt() + w[f"{name}.beta"]
