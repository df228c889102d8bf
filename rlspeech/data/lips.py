"""Mouth crops on disk: one compressed array a clip, 25 grey frames a second.

A file is numpy's ``.npz`` with ``frames`` (F, H, W) uint8, ``fps`` and, where a tracker made it, ``found`` (F,) bool: the frames in
which a face was seen. Nothing is pickled, and nothing that is pickled is read.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from rlspeech.data.audio import AudioError

__all__ = ["LIPS_FPS", "LipsError", "centre_crop", "frames_of", "load_lips", "save_lips"]

LIPS_FPS = 25.0
MAX_SIDE, MAX_FRAMES = 1024, 25 * 3600


class LipsError(AudioError):
    """A video or its crops cannot be used; ``reason`` says why. It costs its utterance, like bad audio."""


def frames_of(seconds: float) -> int:
    """Frames that cover a stretch of audio."""
    return max(1, int(np.ceil(seconds * LIPS_FPS - 1e-6)))


def save_lips(path: str | Path, frames: np.ndarray, found: np.ndarray | None = None) -> None:
    """Write (F, H, W) uint8 frames, atomically.

    Args:
        path: ends in ``.npz``.
        frames: at 25 frames a second.
        found: (F,) bool, frames in which a face was seen; all by default.

    Raises:
        ValueError: another type or shape.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (F, H, W) uint8, not {frames.shape} {frames.dtype}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = np.ones(len(frames), dtype=bool) if found is None else found.astype(bool)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.npz")
    try:
        np.savez_compressed(part, frames=frames, fps=np.float32(LIPS_FPS), found=seen)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_lips(path: str | Path, start_s: float = 0.0, frames: int | None = None) -> np.ndarray:
    """Read crops, (F, H, W) uint8 at 25 frames a second.

    Args:
        path: of an ``.npz`` file.
        start_s: where the stretch begins, relative to the clip's audio.
        frames: how many are wanted; where the video ends earlier the last frame is held. None: to the end.

    Raises:
        LipsError: missing, truncated, of another kind, or empty.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            video, fps = stored["frames"], float(stored["fps"])
    except FileNotFoundError as error:
        raise LipsError("missing file") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise LipsError(f"no lip crops: {type(error).__name__}") from error
    if (
        video.ndim != 3
        or video.dtype != np.uint8
        or not 0 < len(video) <= MAX_FRAMES
        or not 0 < max(video.shape[1:]) <= MAX_SIDE
    ):
        raise LipsError(f"no lip crops: {video.dtype} of shape {video.shape}")
    if not abs(fps - LIPS_FPS) <= 0.01:  # NaN is caught too
        raise LipsError(f"{fps:g} frames a second instead of {LIPS_FPS:g}")
    if frames is None:
        video = video[min(round(start_s * LIPS_FPS), len(video) - 1) :]
    else:
        wanted = np.arange(frames) + round(start_s * LIPS_FPS)
        video = video[np.clip(wanted, 0, len(video) - 1)]
    return np.ascontiguousarray(video)


def centre_crop(frames: np.ndarray, side: int) -> np.ndarray:
    """The central (F, side, side) of (F, H, W); frames that are smaller are padded by their edges."""
    _, height, width = frames.shape
    pad = max(0, side - height), max(0, side - width)
    if max(pad):
        frames = np.pad(frames, ((0, 0), *((p // 2, p - p // 2) for p in pad)), mode="edge")
        _, height, width = frames.shape
    top, left = (height - side) // 2, (width - side) // 2
    return frames[:, top : top + side, left : left + side]
