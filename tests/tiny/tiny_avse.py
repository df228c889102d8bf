"""A small untrained audio-visual enhancer and clips for it: what it hears and what it sees both change its output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rlspeech.config import AvseModel
from rlspeech.data.video import load_lips
from rlspeech.models.avse import AvseEnhancer
from rlspeech.models.hub import load_model, save_model
from rlspeech.tasks.avse.task import Avse

RATE = 16000
TINY = AvseModel(
    filters=16,
    kernel=32,
    stride=16,
    bottleneck=8,
    hidden=8,
    blocks=2,
    repeats=1,
    video_crop=88,
    video_size=16,
    video_stem=2,
    video_channels=[2],
    video_layers=[1],
    visual_blocks=1,
)


def checkpoint(folder: Path, channels: int = 1, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_model(
        folder, AvseEnhancer(TINY.model_copy(update={"channels": channels})), "avse", facts={"what": "untrained"}
    )
    return folder


def clip(seed: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy (T,), clean (T,), and a mouth (F, 88, 88) that opens and closes in its own way."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE
    clean = 0.1 * np.sin(2 * np.pi * (200 + 30 * seed) * t) * (1 + np.sin(2 * np.pi * 3 * t))
    noisy = clean + 0.04 * rng.standard_normal(samples)
    frames = -(-samples // 640)
    mouth = np.full((frames, 88, 88), 60 + 20 * seed, np.uint8)
    for frame, opened in zip(mouth, rng.integers(4, 40, frames), strict=True):
        frame[44 - opened // 2 : 44 + opened // 2, 20:68] = 250
    return noisy.astype(np.float32), clean.astype(np.float32), mouth


def reference(folder: Path, noisy: np.ndarray, mouth: np.ndarray | Path | None) -> np.ndarray:
    """What the checkpoint makes of one clip alone, without any stage."""
    model, _ = load_model(str(folder), "avse")
    lips = load_lips(mouth) if isinstance(mouth, Path) else mouth
    made: np.ndarray = Avse().enhancer(model).infer([noisy], ["alone"], [lips])[0]
    return made
