"""Mouth crops: where the mouth is in every frame, and the aligned 96 x 96 pixels around it.

The usual recipe (AV-HuBERT, auto_avsr) fits a similarity to landmarks of eyes and nose, averages it over 12 frames, interpolates where the
face was missed and cuts 96 x 96 pixels around the mouth. Here the similarity comes from the two eyes (rotation and scale), because the
embedded detector finds no other points. The mouth then lies straight below them at a distance that differs between people (1.05 to
1.3 times the distance of the eyes in the faces looked at), so the height is corrected once for each clip by what the pixels
say (``mouth_row``). Scale and tilt change more slowly than position and are measured less well: they are averaged over 2 s. With landmarks
the mouth's own points are used and nothing is corrected. Mouths seen from the side are cut as if they were seen from the front.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlspeech.corpora.faces import EYE_GAP, EYE_Y, Face, Followed

__all__ = ["SIDE", "Path2D", "cut", "mouth_path", "mouth_row", "smooth"]

SIDE = 96  # of a crop, in pixels
EYES_PX = 52.0  # distance of the eyes in a crop's pixels: the mouth then fills about 40 % of the width, nose tip and chin are in sight
BELOW = 1.16  # of the distance of the eyes: how far below them the mouth lies, before correction
REACH = 14  # pixels of the crop by which the correction may move it
STANDS_OUT = 1.5  # times the usual motion of a row
WINDOW, SLOW_WINDOW = 12, 50  # frames


@dataclass(frozen=True, slots=True)
class Path2D:
    """Where to cut in each of F frames.

    Args:
        centre: (F, 2) mouth centre in the frame's pixels.
        scale: (F,) crop pixels for one pixel of the frame.
        angle: (F,) tilt of the head in radians, clockwise in the picture.
        found: (F,) bool, frames in which the face was seen (frames between two searched ones count with the nearer one).
        exact: the mouth itself was seen, nothing is to be corrected.
    """

    centre: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    found: np.ndarray
    exact: bool = False


def mouth_path(seen: Followed) -> Path2D:
    """Where the mouth of the followed face is, from where it was seen, for all frames: smoothed, interpolated, the ends held."""
    poses = _poses(seen.faces)
    everywhere = np.arange(seen.length)
    full = np.stack([np.interp(everywhere, seen.frames, column) for column in _without_outliers(poses).T], axis=1)
    x, y = smooth(full[:, 0], WINDOW), smooth(full[:, 1], WINDOW)
    gap, angle = smooth(full[:, 2], SLOW_WINDOW), smooth(full[:, 3], SLOW_WINDOW)
    exact = any(face.mouth is not None for face in seen.faces)
    if not exact:  # so far it is the point between the eyes
        x, y = x - BELOW * gap * np.sin(angle), y + BELOW * gap * np.cos(angle)
    nearest = seen.looked[np.abs(everywhere[:, None] - seen.looked).argmin(axis=1)]
    return Path2D(np.stack([x, y], axis=1), EYES_PX / gap, angle, np.isin(nearest, seen.frames), exact)


def _poses(faces: list[Face]) -> np.ndarray:
    """(n, 4): x and y of the point between the eyes (or of the mouth), distance of the eyes, tilt.

    A face whose eyes were not found takes them from its box, by what box and eyes have to do with each other in the rest of the clip.
    """
    exact = any(face.mouth is not None for face in faces)
    poses = np.full((len(faces), 4), np.nan)
    for row, face in zip(poses, faces, strict=True):
        if face.eyes is not None and not (exact and face.mouth is None):
            gap = face.eyes[1] - face.eyes[0]
            row[:2] = face.mouth if exact and face.mouth is not None else face.eyes.mean(axis=0)
            row[2:] = np.hypot(*gap), np.arctan2(gap[1], gap[0])
    boxes = np.array([face.box for face in faces])
    relative = np.concatenate(
        [(poses[:, :2] - boxes[:, :2]) / boxes[:, 2:3], poses[:, 2:3] / boxes[:, 2:3], poses[:, 3:]], axis=1
    )
    known = ~np.isnan(poses[:, 0])
    usual = np.median(relative[known], axis=0) if known.any() else np.array([0.5, EYE_Y, EYE_GAP, 0.0])
    side, tilt = boxes[:, 2:3], np.full((len(boxes), 1), usual[3])
    guessed = np.concatenate([boxes[:, :2] + usual[:2] * side, usual[2] * side, tilt], axis=1)
    return np.where(known[:, None], poses, guessed)


def _without_outliers(poses: np.ndarray) -> np.ndarray:
    """Running median of three looks: one wrong eye does not move the crop."""
    if len(poses) < 3:
        return poses
    padded = np.concatenate([poses[:1], poses, poses[-1:]])
    middle: np.ndarray = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    return middle


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window centred on each of (F,) values; at the ends the window shrinks evenly on both sides, so that trends stay."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    mean: np.ndarray = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return mean


def cut(frames: Iterable[np.ndarray], path: Path2D, side: int = SIDE) -> np.ndarray:
    """The aligned crops, (F, side, side) uint8.

    Args:
        frames: the F frames (more are left alone), each (H, W) uint8.
        path: where to cut.
        side: of a crop in pixels.
    """
    reach = 0 if path.exact else REACH
    strips = np.empty((len(path.scale), side + 2 * reach, side), dtype=np.uint8)
    count = 0
    for count, (frame, strip) in enumerate(zip(frames, strips, strict=False), 1):
        strip[:] = _warped(
            frame, path.centre[count - 1], path.scale[count - 1], path.angle[count - 1], (side + 2 * reach, side)
        )
    strips = strips[:count]
    top = mouth_row(strips) - side // 2 if reach and count else 0
    return np.ascontiguousarray(strips[:, top : top + side])


def _warped(frame: np.ndarray, centre: np.ndarray, scale: float, angle: float, size: tuple[int, int]) -> np.ndarray:
    import cv2

    while scale < 0.6 and min(frame.shape) > 16:  # warpAffine takes single pixels: halve first, or fine detail flickers
        frame = cv2.resize(
            frame, (max(1, frame.shape[1] // 2), max(1, frame.shape[0] // 2)), interpolation=cv2.INTER_AREA
        )
        centre, scale = (centre + 0.5) / 2 - 0.5, scale * 2
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    matrix = np.concatenate([turn, (middle - turn @ centre)[:, None]], axis=1)
    result: Any = cv2.warpAffine(
        frame, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(result)


def mouth_row(strips: np.ndarray) -> int:
    """The row of (F, H, W) aligned crops around which most moves from frame to frame. The middle one where nothing stands out.

    The eyes and nostrils above and the chin below move less and stay out of reach.
    """
    middle = strips.shape[1] // 2
    if len(strips) < 5:
        return middle
    column = slice(strips.shape[2] * 27 // 100, strips.shape[2] * 73 // 100)
    motion = np.zeros(strips.shape[1])
    for before, after in zip(strips[:-1, :, column], strips[1:, :, column], strict=True):
        motion += np.abs(after.astype(np.float32) - before).mean(axis=1)
    if motion.max() <= 0:
        return middle
    motion = np.convolve(motion, np.ones(7) / 7, mode="same")
    near = motion[middle - REACH : middle + REACH + 1]
    if near.max() <= STANDS_OUT * np.median(motion):
        return middle
    weight = np.clip(near - near.max() / 2, 0, None)  # a mouth moves at both lips: its middle, not the livelier one
    return middle - REACH + round(float(weight @ np.arange(len(near)) / weight.sum()))
