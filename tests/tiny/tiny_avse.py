"""A small untrained audio-visual enhancer and clips for it: what it hears and what it sees both change its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny_flow
import torch
from tiny_speech import write_pairs

from rlspeech.config import AvseModel, Exploration, Lora
from rlspeech.data.batches import Clip
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.data.video import load_lips, save_lips
from rlspeech.models.adapters import Adapted
from rlspeech.models.avse import AvseEnhancer
from rlspeech.models.hub import load_model, save_model
from rlspeech.tasks.avse.policy import AvsePolicy
from rlspeech.tasks.avse.task import Avse

RATE = 16000
SIZES = dict(filters=16, kernel=32, stride=16, bottleneck=8, hidden=8, blocks=2, repeats=1, visual_blocks=1)
TINY = AvseModel(**SIZES, video_crop=88, video_size=16, video_stem=2, video_channels=[2], video_layers=[1])
CROPPED: dict[str, Any] = TINY.model_dump(exclude_unset=True) | {"video_crop": 32}


def tiny_avse(seed: int = 0, **changes: Any) -> AvseEnhancer:
    """Random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return AvseEnhancer(AvseModel(**{**CROPPED, **changes})).eval()


def av_clips(*samples: int, seed: int = 0, lips: bool = True) -> list[Clip]:
    """One noisy clip a length, with random pictures."""
    made = tiny_flow.clips(*samples, seed=seed)
    for i, clip in enumerate(made if lips else []):
        shape = (-(-samples[i] * 25 // RATE), 32, 32)
        clip.lips = np.random.default_rng(seed + i).integers(0, 255, shape, dtype=np.uint8)
    return made


def av_policy(explore: Exploration, lora: Lora | None = None, reduction: Any = "mean", **changes: Any) -> AvsePolicy:
    return AvsePolicy(Adapted(tiny_avse(**changes), lora), explore, reduction)


def checkpoint(folder: Path, channels: int = 1, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = AvseEnhancer(TINY.model_copy(update={"channels": channels}))
    save_model(folder, model, "avse", facts={"what": "untrained"})
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


def write_talkers(folder: Path, count: int = 6) -> Path:
    """Write noisy/clean pairs of a second, each with a "mouth" of noise (26, 32, 32), and their manifest."""
    pairs = write_pairs(folder, count)
    rows = read_manifest(pairs)
    for i, utt in enumerate(rows):
        utt.lips_filepath = str(folder / "lips" / f"{utt.id}.npz")
        save_lips(utt.lips_filepath, np.random.default_rng(i).integers(0, 255, (26, 32, 32), dtype=np.uint8))
    write_manifest(pairs, rows, {})
    return pairs
