"""Small audio-visual models and clips that the avse tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_avse as sizes
import torch
from tiny_flow import RATE, clips

from rlspeech.config import AvseModel, Exploration, Lora
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.avse import AvseEnhancer
from rlspeech.tasks.avse.policy import AvsePolicy

TINY: dict[str, Any] = sizes.TINY.model_dump(exclude_unset=True) | {"video_crop": 32}


def tiny_avse(seed: int = 0, **changes: Any) -> AvseEnhancer:
    """Random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return AvseEnhancer(AvseModel(**{**TINY, **changes})).eval()


def av_clips(*samples: int, seed: int = 0, lips: bool = True) -> list[Clip]:
    """One noisy clip a length, with random pictures."""
    made = clips(*samples, seed=seed)
    for i, clip in enumerate(made if lips else []):
        shape = (-(-samples[i] * 25 // RATE), 32, 32)
        clip.lips = np.random.default_rng(seed + i).integers(0, 255, shape, dtype=np.uint8)
    return made


def av_policy(explore: Exploration, lora: Lora | None = None, reduction: Any = "mean", **changes: Any) -> AvsePolicy:
    """A policy on a tiny model."""
    return AvsePolicy(Adapted(tiny_avse(**changes), lora), explore, reduction)
