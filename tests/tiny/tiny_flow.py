"""Small models and clips that the flow tests share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.config import Exploration, FlowModel, Lora
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.flow import FlowEnhancer
from rlspeech.tasks.flowse.policy import FlowPolicy

RATE = 16000
SMALL = Lora(rank=2, alpha=4)
TINY = dict(dim=32, depth=1, heads=2, conv_pos_kernel=7, conv_pos_groups=4)


def tiny_model(seed: int = 0, std: float = 0.02, **changes: Any) -> FlowEnhancer:
    """Random everywhere, so that nothing is trivially zero."""
    torch.manual_seed(seed)
    model = FlowEnhancer(FlowModel(**{**TINY, **changes}))
    for p in model.parameters():
        if float(p.detach().abs().max()) == 0:
            nn.init.normal_(p, std=std)
    return model.eval()


def voice(seed: int, samples: int) -> np.ndarray:
    """(T,) harmonics with a slow envelope."""
    t, rng = np.arange(samples) / RATE, np.random.default_rng(seed)
    wav = sum(np.sin(2 * np.pi * (110 + 10 * seed) * k * t + rng.uniform(0, 6)) / k for k in range(1, 30))
    return (0.05 * wav * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def clips(*samples: int, seed: int = 0) -> list[Clip]:
    """One noisy clip a length."""
    out = []
    for i, n in enumerate(samples):
        target = voice(seed + i, n)
        noise = 0.03 * np.random.default_rng(50 + seed + i).standard_normal(n)
        out.append(Clip(f"clip{seed + i}", (target + noise).astype(np.float32), target, RATE))
    return out


def published(kind: str, a: float, x: Tensor, x1: Tensor, t: float, dt: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step as the papers write them, for a standard normal x_0."""
    v = (x1 - x) / (1 - t)
    score = (-x + t * v) / (1 - t)
    if kind == "sde":
        sigma = a * math.sqrt((1 - t) / t)
        return x + (v + sigma**2 / (2 * (1 - t)) * (-x + t * v)) * dt, sigma * math.sqrt(dt)
    if kind == "dance":
        return x + v * dt + a**2 / 2 * score * dt, a * math.sqrt(dt)
    after = t + dt
    x0_hat, x1_hat = x - t * v, x + (1 - t) * v
    return after * x1_hat + (1 - after) * math.cos(a * math.pi / 2) * x0_hat, (1 - after) * math.sin(a * math.pi / 2)


def policy(
    explore: Exploration, lora: Lora | None = SMALL, seed: int = 0, reduction: Any = "mean", **changes: Any
) -> FlowPolicy:
    model = tiny_model(**changes)
    torch.manual_seed(3)
    return FlowPolicy(Adapted(model, lora), explore, reduction, seed)


def disturb(parameters: list[nn.Parameter], size: float, seed: int = 9) -> None:
    """Move weights by random amounts."""
    g = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data += size * torch.randn(p.shape, generator=g)
