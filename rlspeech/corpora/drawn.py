"""A drawn mouth that follows speech: video for recordings that have none.

It is not a talking face and does not claim to be one. Three things of the sound that a mouth shows are drawn, 25 times a second:
how wide the jaw opens (level of the voice below 1.5 kHz), how far the lips are spread or rounded (balance of the bands of the second
and the first formant) and teeth (energy above 4 kHz while the jaw is nearly shut). Skin, lips, light, place, size, tilt, a slow sway
of the head and a lag of up to 40 ms are drawn anew for every utterance. A model that has seen only this is no judge of faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.corpora.base import Rendered
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.mixing import mixture_rng
from rlspeech.data.video import LIPS_FPS, LipsError, frames_of, load_lips, save_lips
from rlspeech.files import safe_name
from rlspeech.parallel import parallel_map
from rlspeech.types import Utterance

__all__ = ["draw_all", "draw_mouth", "movements"]

SIDE = 96
RATE = 16000
FLOOR_DB = -32.0
SILENT_DB = -45.0  # of a frame's spectrum, about -90 dBFS: a recording of nothing is a shut mouth


def movements(wav: np.ndarray, sample_rate: int, lag_s: float = 0.0) -> np.ndarray:
    """How the mouth moves: (F, 3) in [0, 1], jaw opening, spread of the lips, teeth.

    Args:
        wav: (T,) speech.
        sample_rate: in Hz.
        lag_s: how much later the mouth is than the sound.
    """
    frames = frames_of(len(wav) / sample_rate)
    hop, size = sample_rate / LIPS_FPS, int(0.05 * sample_rate)
    padded = np.pad(np.asarray(wav, dtype=np.float64), (size, size + int(hop)))
    centres = ((np.arange(frames) + 0.5) * hop - lag_s * sample_rate).astype(int).clip(0, len(wav)) + size
    windows = padded[centres[:, None] + np.arange(-size // 2, size - size // 2)[None]] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    bands_hz = ((150, 1500), (1500, 3500), (4000, 7500))
    low, middle, high = (power[:, (hz >= a) & (hz < b)].sum(1) + 1e-10 for a, b in bands_hz)
    level = 10 * np.log10(low + 0.5 * middle)
    top = max(float(np.percentile(level, 95)), SILENT_DB)
    jaw = np.clip((level - top - FLOOR_DB) / -FLOOR_DB, 0, 1) ** 1.5
    spread = np.clip(0.5 + (10 * np.log10(middle / low) + 12) / 24, 0, 1)
    hiss = np.clip((10 * np.log10(high) - top - FLOOR_DB) / -FLOOR_DB, 0, 1)
    moved = np.stack([jaw, spread * jaw + 0.5 * (1 - jaw), hiss * (1 - jaw)], axis=1)
    kernel = np.array([0.25, 0.5, 0.25])  # lips have mass
    return np.apply_along_axis(lambda c: np.convolve(np.pad(c, 1, mode="edge"), kernel, mode="valid"), 0, moved)


def draw_mouth(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (F, 96, 96) uint8 at 25 a second for speech (T,); all chances from ``rng``."""
    moves = movements(wav, sample_rate, lag_s=float(rng.uniform(-0.02, 0.04))).astype(np.float32)
    u, v, light = _face(len(moves), rng)
    jaw, spread, teeth = (moves[:, i, None, None] for i in range(3))
    width = 15 + 9 * spread + 2 * rng.random()
    gap = 0.4 + 11 * jaw * rng.uniform(0.8, 1.2)
    v = v - 0.35 * gap  # the upper lip stays, the lower one falls
    bow = 1.5 * np.cos(np.clip(u / width, -1, 1) * np.pi)
    thick = rng.uniform(4.0, 6.5)
    outer = _inside(u, v + 0.4 * bow, width + thick * 0.8, gap + thick)
    inner = _inside(u, v, width * 0.86, gap)
    skin, lips, dark, white = rng.uniform(120, 190), rng.uniform(70, 115), rng.uniform(15, 45), rng.uniform(170, 220)
    texture = _blotches(rng) * rng.uniform(2, 7)
    chin = 14 * np.exp(-(((v - 26 - 0.6 * gap) / 5.0) ** 2)) * rng.uniform(0.3, 1.0)
    face = skin * light + texture - chin
    visible = np.clip(0.25 * jaw + teeth, 0, 1) * _inside(u, v + 0.5 * gap, width * 0.7, 0.45 * gap + 1.2)
    mouth = dark + (white - dark) * visible
    image = face + (lips * light + 0.5 * texture - face) * outer
    image = image + (mouth - image) * inner
    return np.clip(image, 0, 255).astype(np.uint8)


def _face(frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of every pixel in the frame of the swaying face, (F, 96, 96) across and down, and the light on it (96, 96)."""
    sway = np.cumsum(rng.normal(0, 0.25, (frames, 2)), axis=0)
    sway -= np.linspace(0, 1, frames)[:, None] * (sway[-1] - sway[0])  # wander, but come back
    x0, y0 = (SIDE / 2 + rng.normal(0, 2.5) + sway[:, i].astype(np.float32)[:, None, None] for i in (0, 1))
    tilt, size = rng.normal(0, 0.08), rng.uniform(0.85, 1.15)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    u = ((xs - x0) * np.cos(tilt) + (ys - y0) * np.sin(tilt)) / size
    v = ((ys - y0) * np.cos(tilt) - (xs - x0) * np.sin(tilt)) / size
    light = 1 + rng.uniform(-0.25, 0.25) * (xs / SIDE - 0.5) + rng.uniform(-0.25, 0.25) * (ys / SIDE - 0.5)
    return u, v, light


def _inside(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 inside the ellipse with half axes a, b, 0 outside, with a soft edge of about two pixels."""
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-6)
    return 1 / (1 + np.exp(np.clip((radius - 1) * np.minimum(a, b) * 2.0, -30, 30)))


def _blotches(rng: np.random.Generator) -> np.ndarray:
    """(96, 96) smooth noise with a spread of 1."""
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    smooth = np.fft.irfft2(white * np.exp(-(fy**2 + fx**2) * (2 * np.pi * 3.0) ** 2 / 2), (SIDE, SIDE))
    return (smooth / smooth.std()).astype(np.float32)


def draw_all(utts: Sequence[Utterance], out: Path, *, seed: int = 0, workers: int = 0) -> Rendered:
    """Draw a mouth for every utterance's clean speech (its target, where it has one) and store it under ``out/lips``.

    Returns:
        the utterances with ``lips_filepath`` and the columns ``face_rate`` and ``video: drawn``, and what was left out with reasons.
    """
    kept: list[Utterance] = []
    dropped: list[dict[str, Any]] = []
    draw = partial(_draw_one, out=str(out), seed=seed)
    for utt, path in parallel_map(draw, list(utts), workers, timeout_s=120.0, desc="draw", unit="utterances"):
        if isinstance(path, Exception):
            detail = path.reason if isinstance(path, AudioError) else f"{type(path).__name__}: {path}"
            row = {"id": utt.id, "audio_filepath": utt.audio_filepath, "reason": "cannot be drawn", "detail": detail}
            dropped.append(row)
        else:
            kept.append(replace(utt, lips_filepath=path, extra={**utt.extra, "face_rate": 1.0, "video": "drawn"}))
    return kept, dropped


def _draw_one(utt: Utterance, out: str, seed: int) -> str:
    """Path of an utterance's drawn lips, made unless they are there."""
    path = Path(out) / "lips" / f"{safe_name(utt.id)}.npz"
    try:
        load_lips(path)
    except LipsError:
        wav = load_audio(utt.target_filepath or utt.audio_filepath, RATE, utt.offset, utt.duration)
        lips = draw_mouth(wav, RATE, mixture_rng(seed, 0, utt.id))
        if utt.offset:  # frame 0 belongs to sample 0 of the file
            lips = np.concatenate([np.repeat(lips[:1], round(utt.offset * LIPS_FPS), axis=0), lips])
        save_lips(path, lips)
    return str(path)
