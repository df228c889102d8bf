"""Finding faces in grey frames and following one of them.

The embedded detector is OpenCV's frontal-face cascade (Viola and Jones 2001, with the trees of Lienhart 2003) on frames reduced to
``SEARCH_SIDE``, and inside each face the eye cascade. It knows faces that look towards the camera with the head tilted by at most some 15
degrees. A face-landmarker model that the user names (MediaPipe ``.task``) takes its place where more is needed. Faces are looked for
in every ``EVERY``-th frame: heads move slowly against 25 frames a second, and what is found is smoothed over 12 frames anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.types import UserError

__all__ = ["EVERY", "Detector", "Face", "Followed", "follow", "haar_detector", "landmark_detector", "look"]

EVERY = 4  # 160 ms
SEARCH_SIDE = 216  # the shorter side of the frames that are searched, in pixels
SMALLEST = 1 / 7  # of the shorter side: smaller faces are not looked for
EYE_FACE = 120  # faces are scaled to this width before eyes are looked for
OVERLAP = 0.25  # boxes that share this much (intersection over union) are the same face
PATIENCE = 12  # looks that a face may be missing before it is another one: 2 s
EYE_X, EYE_Y, EYE_GAP = 0.33, 0.395, 0.335  # of the box's side, where eyes are expected: medians of frontal faces


@dataclass(frozen=True, slots=True)
class Face:
    """One face in one frame, in pixels (x to the right, y down).

    Args:
        box: left, top, width, height.
        eyes: (2, 2) centres of the eye on the left of the picture and of the one on the right, or None.
        mouth: (2,) centre of the mouth where the detector knows it, or None.
    """

    box: tuple[float, float, float, float]
    eyes: np.ndarray | None = None
    mouth: np.ndarray | None = None


Detector = Callable[[np.ndarray], Sequence[Face]]


@dataclass(frozen=True, slots=True)
class Followed:
    """The face that was followed: ``frames`` (n,) indices of the frames in which it was seen, and the n ``faces``.

    ``looked`` holds the frames that were searched, ``length`` counts all frames, ``others`` the other faces that were about as present.
    """

    frames: np.ndarray
    faces: list[Face]
    looked: np.ndarray
    length: int
    others: int = 0


def look(frames: Iterable[np.ndarray], detect: Detector, every: int = EVERY) -> tuple[dict[int, list[Face]], int]:
    """Search every ``every``-th frame and the last one.

    Returns:
        faces by frame index (an empty list where there is none), and the number of frames.
    """
    found: dict[int, list[Face]] = {}
    last, count = None, 0
    for count, last in enumerate(frames, 1):
        if (count - 1) % every == 0:
            found[count - 1] = list(detect(last))
    if last is not None and count - 1 not in found:
        found[count - 1] = list(detect(last))
    return found, count


def follow(found: dict[int, list[Face]], length: int) -> Followed | None:
    """Link faces over time and choose the one with the largest sum of widths: large, and there for long.

    Args:
        found: faces by frame index, from ``look``.
        length: number of frames.

    Returns:
        the face, or None where no frame shows any.
    """
    tracks: list[list[tuple[int, Face]]] = []
    spacing = max(1, int(np.median(np.diff(sorted(found)))) if len(found) > 1 else 1)
    for index in sorted(found):
        pairs = sorted(
            (
                (_overlap(track[-1][1].box, face.box), t, f)
                for t, track in enumerate(tracks)
                if index - track[-1][0] <= PATIENCE * spacing
                for f, face in enumerate(found[index])
            ),
            reverse=True,
        )
        taken: set[int] = set()
        extended: set[int] = set()
        for share, t, f in pairs:
            if share >= OVERLAP and t not in extended and f not in taken:
                tracks[t].append((index, found[index][f]))
                extended.add(t)
                taken.add(f)
        tracks += [[(index, face)] for f, face in enumerate(found[index]) if f not in taken]
    if not tracks:
        return None
    weights = [sum(face.box[2] for _, face in track) for track in tracks]
    best = int(np.argmax(weights))
    chosen = tracks[best]
    others = sum(w > 0.5 * weights[best] for i, w in enumerate(weights) if i != best)
    return Followed(
        np.array([i for i, _ in chosen]), [face for _, face in chosen], np.array(sorted(found)), length, others
    )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def haar_detector() -> Detector:
    """The embedded detector: cascades that come with ``opencv-python-headless`` below version 5.

    Raises:
        UserError: OpenCV or its cascades are not there.
    """
    try:
        import cv2

        folder = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    except (ImportError, AttributeError) as error:
        raise UserError(
            "faces cannot be found",
            f"OpenCV or its cascades are not usable: {error}",
            "pip install 'opencv-python-headless<5', or name a landmark model with --landmarks",
        ) from error
    cv2.setNumThreads(1)
    cascades = [cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml")) for name in ("frontalface_alt2", "eye")]
    if any(c.empty() for c in cascades):
        raise UserError(
            "faces cannot be found",
            f"no cascades in {folder}",
            "pip install 'opencv-python-headless<5', or name a landmark model with --landmarks",
        )
    faces, eyes = cascades

    def detect(frame: np.ndarray) -> list[Face]:
        scale = min(1.0, SEARCH_SIDE / min(frame.shape))
        small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        smallest = max(24, round(min(small.shape) * SMALLEST))
        boxes = faces.detectMultiScale(small, 1.1, 4, minSize=(smallest, smallest))
        found = []
        for box in boxes:
            left, top, width, height = (float(v) / scale for v in box)
            found.append(Face((left, top, width, height), _eyes(cv2, eyes, frame, (left, top, width, height))))
        return found

    return detect


def _eyes(cv2: Any, cascade: Any, frame: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray | None:
    """Both eyes of a face, (2, 2), or None. Each is looked for in its own half of the upper face."""
    left, top, side, _ = box
    y0, y1 = round(top + 0.18 * side), round(top + 0.62 * side)
    if side < 20 or y0 < 0 or left < 0 or y1 > frame.shape[0] or left + side > frame.shape[1]:
        return None
    scale = EYE_FACE / side
    centres = []
    for x0, expected in ((left + 0.08 * side, EYE_X), (left + 0.5 * side, 1 - EYE_X)):
        patch = frame[y0:y1, round(x0) : round(x0 + 0.42 * side)]
        patch = cv2.resize(
            patch, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        boxes = cascade.detectMultiScale(patch, 1.08, 2, minSize=(20, 20), maxSize=(44, 44))
        if not len(boxes):
            return None
        points = np.array([[b[0] + b[2] / 2, b[1] + b[3] / 2] for b in boxes]) / scale + (round(x0), y0)
        want = np.array([left + expected * side, top + EYE_Y * side])
        centres.append(points[int(np.argmin(np.abs(points - want).sum(axis=1)))])
    gap = centres[1] - centres[0]
    plausible = 0.24 * side < np.hypot(*gap) < 0.46 * side and abs(gap[1]) < 0.4 * gap[0]
    return np.stack(centres) if plausible else None


def landmark_detector(model: str | Path) -> Detector:
    """MediaPipe's face landmarker with a model file of the user's (newer releases of the package carry none).

    Args:
        model: ``face_landmarker.task``.

    Raises:
        UserError: the package or the file is not there, or the file is another model.
    """
    path = Path(model)
    if not path.is_file():
        raise UserError(
            f"no landmark model {model}",
            "there is no such file",
            "name a face landmarker's .task file with --landmarks",
        )
    try:
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision
    except ImportError as error:
        raise UserError(
            "landmarks need mediapipe", str(error), "pip install mediapipe, or leave --landmarks out"
        ) from error
    try:
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(path)), num_faces=4)
        model_ = vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model} is not a face landmarker", why, "a .task file is needed") from error

    def detect(frame: np.ndarray) -> list[Face]:
        picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.repeat(frame[:, :, None], 3, axis=2))
        size = np.array([frame.shape[1], frame.shape[0]])
        return [
            face_of_landmarks(np.array([[p.x, p.y] for p in points]) * size)
            for points in model_.detect(picture).face_landmarks
        ]

    return detect


def face_of_landmarks(points: np.ndarray) -> Face:
    """A face of the 468 (or 478) points of MediaPipe's mesh, (n, 2) in pixels."""
    low, high = points.min(axis=0), points.max(axis=0)
    eyes = np.stack([points[[33, 133]].mean(axis=0), points[[362, 263]].mean(axis=0)])
    box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    return Face(box, eyes, points[[61, 291, 0, 17]].mean(axis=0))
