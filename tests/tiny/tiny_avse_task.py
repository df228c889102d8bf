"""Small audio-visual models and clips that the avse tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_avse as sizes
import torch

from rlspeech.config import AvseModel, Exploration, Lora
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.avse import AvseEnhancer
from rlspeech.tasks.avse.policy import AvsePolicy

RATE = 16000
TINY: dict[str, Any] = sizes.TINY.model_dump(exclude_unset=True) | {"video_crop": 32}


def tiny_avse(seed: int = 0, **changes: Any) -> AvseEnhancer:
    """Random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return AvseEnhancer(AvseModel(**{**TINY, **changes})).eval()


def av_clips(*samples: int, seed: int = 0, lips: bool = True) -> list[Clip]:
    """One clip a length: a modulated tone in noise, with random pictures."""
    out = []
    for i, n in enumerate(samples):
        rng = np.random.default_rng(seed + i)
        t = np.arange(n) / RATE
        tone = 0.1 * np.sin(2 * np.pi * (200 + 40 * i) * t)
        target = (tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)
        noisy = (target + 0.05 * rng.standard_normal(n)).astype(np.float32)
        video = rng.integers(0, 255, (-(-n * 25 // RATE), 32, 32), dtype=np.uint8) if lips else None
        out.append(Clip(f"clip{seed + i}", noisy, target, RATE, lips=video))
    return out


def av_policy(explore: Exploration, lora: Lora | None = None, reduction: Any = "mean", **changes: Any) -> AvsePolicy:
    """A policy on a tiny model."""
    return AvsePolicy(Adapted(tiny_avse(**changes), lora), explore, reduction)
