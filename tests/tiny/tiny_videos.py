"""Small videos for tests: flat or drawn pictures, and a drawn head that a detector of the tests' own can find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from rlspeech.corpora.faces import Face


def write_video(
    path: Path,
    frames: Iterable[Any],
    fps: float = 25,
    codec: str = "mpeg4",
    size: tuple[int, int] = (48, 64),
    times_ms: Sequence[int] = (),
    tone_s: float = 0.0,
) -> Path:
    """One picture (H, W) a frame, or a flat one of ``size`` for a level, and so long a tone of 440 Hz; times need a container like mkv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [np.full(size, frame, np.uint8) if np.isscalar(frame) else frame for frame in frames]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt, stream.bit_rate = "gray" if codec == "ffv1" else "yuv420p", 4_000_000
        sound = container.add_stream("pcm_s16le", rate=16000, layout="mono") if tone_s else None
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            if times_ms:
                frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            piece = av.AudioFrame.from_ndarray(tone(tone_s)[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts = 16000, 0
            container.mux([*sound.encode(piece), *sound.encode()])
    return path


def tone(seconds: float) -> np.ndarray:
    """(T,) int16 at 16 kHz."""
    return (8000 * np.sin(np.arange(round(16000 * seconds)) * 2 * np.pi * 440 / 16000)).astype(np.int16)


def flat(count: int, level: int = 90, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    return [np.full(size, level, np.uint8)] * count


def head(
    x: float,
    y: float,
    gap: float,
    degrees: float = 0.0,
    opened: float = 0.3,
    below: float = 1.16,
    size: tuple[int, int] = (240, 320),
    onto: np.ndarray | None = None,
) -> np.ndarray:
    """A picture with two white eyes ``gap`` apart around (x, y), tilted clockwise, and a black mouth ``below`` eye distances below."""
    picture = np.full(size, 110, np.uint8) if onto is None else onto.copy()
    turn = np.radians(degrees)
    along, down = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for side in (-0.5, 0.5):
        centre = np.array([x, y]) + side * gap * along
        middle = tuple(np.round(centre * 16).astype(int).tolist())
        cv2.circle(picture, middle, round(0.09 * gap * 16), 255, -1, cv2.LINE_AA, 4)
    mouth = np.array([x, y]) + below * gap * down
    axes = (round(0.38 * gap * 16), round(max(0.03, 0.25 * opened) * gap * 16))
    cv2.ellipse(picture, tuple(np.round(mouth * 16).astype(int).tolist()), axes, degrees, 0, 360, 0, -1, cv2.LINE_AA, 4)
    return picture


def eye_finder(frame: np.ndarray) -> Sequence[Face]:
    """Finds drawn heads by their white eyes, from left to right two by two; knows nothing of how they were drawn."""
    count, _, stats, centres = cv2.connectedComponentsWithStats((frame > 190).astype(np.uint8))
    dots = sorted((tuple(centres[i]) for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 4), key=lambda c: c[0])
    faces = []
    for left, right in zip(dots[::2], dots[1::2], strict=False):
        side = float(np.hypot(right[0] - left[0], right[1] - left[1])) / 0.335
        middle = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
        faces.append(Face((middle[0] - side / 2, middle[1] - 0.395 * side, side, side), np.array([left, right])))
    return faces


def mouth_of(crop: np.ndarray) -> np.ndarray:
    """(x, y) of the black mouth in a crop, relative to its centre."""
    rows, columns = np.nonzero(crop < 45)
    assert len(rows), "no mouth in the crop"
    return np.array([columns.mean() - (crop.shape[1] - 1) / 2, rows.mean() - (crop.shape[0] - 1) / 2])
