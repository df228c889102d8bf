"""Finding faces in grey frames, following one of them, and cutting its mouth.

The embedded detector is OpenCV's frontal-face cascade (Viola and Jones 2001, with the trees of Lienhart 2003) on frames reduced to
``SEARCH_SIDE``, and inside each face the eye cascade. It knows faces that look towards the camera with the head tilted by at most some 15
degrees. A face-landmarker model that the user names (MediaPipe ``.task``) takes its place where more is needed. Every ``EVERY``-th
frame is searched: heads move slowly against 25 frames a second, and what is found is smoothed over 12 frames anyway.

The usual recipe for crops (AV-HuBERT, auto_avsr) fits a similarity to landmarks of eyes and nose, averages it over 12 frames,
interpolates where the face was missed and cuts 96 x 96 pixels around the mouth. Here the similarity comes from the two eyes (rotation
and scale), because the embedded detector finds no other points. The mouth then lies straight below them at a distance that differs
between people (1.05 to 1.3 times the distance of the eyes in the faces measured), so the height is corrected once for each clip by
what the pixels say (``mouth_row``). Scale and tilt change more slowly than position and are measured less well: they are averaged over
2 s. With landmarks the mouth's own points are used and nothing is corrected. Mouths in profile are cut as frontal ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.types import UserError

EVERY = 4  # 160 ms
SEARCH_SIDE = 216  # the shorter side of the frames that are searched, in pixels
SMALLEST = 1 / 7  # of the shorter side: smaller faces are not searched for
EYE_FACE = 120  # faces are scaled to this width before eyes are searched for
OVERLAP = 0.25  # boxes that share this much (intersection over union) are the same face
PATIENCE = 12  # searched frames in which a face may be missing before it is another one: 2 s
EYE_X, EYE_Y, EYE_GAP = 0.33, 0.395, 0.335  # of the box's side, where eyes are expected: medians of frontal faces


@dataclass(frozen=True, slots=True)
class Face:
    """One face in one frame, in pixels (x to the right, y down)."""

    box: tuple[float, float, float, float]  # left, top, width, height
    # (2, 2) centres of the eye on the left of the picture and of the one on the right, or None
    eyes: np.ndarray | None = None
    mouth: np.ndarray | None = None  # (2,) centre of the mouth where the detector knows it, or None


Detector = Callable[[np.ndarray], Sequence[Face]]


@dataclass(frozen=True, slots=True)
class Track:
    """One face over time."""

    frames: np.ndarray  # (n,) indices of the frames in which it was found
    faces: list[Face]  # the n faces
    searched: np.ndarray  # indices of the frames that were searched
    length: int  # number of all frames
    others: int = 0  # how many other faces were about as present


def search(frames: Iterable[np.ndarray], detect: Detector) -> tuple[dict[int, list[Face]], int]:
    """Search every ``EVERY``-th frame and the last one.

    Returns faces by frame index (an empty list where there is none), and the number of frames.
    """
    found: dict[int, list[Face]] = {}
    last, count = None, 0
    for count, last in enumerate(frames, 1):
        if (count - 1) % EVERY == 0:
            found[count - 1] = list(detect(last))
    if last is not None and count - 1 not in found:
        found[count - 1] = list(detect(last))
    return found, count


def follow(found: dict[int, list[Face]], length: int) -> Track | None:
    """Link faces over time and choose the one with the largest sum of widths: large, and there for long.

    Args:
        found, length: as ``search`` gives them.

    Returns:
        the face, or None where no frame shows any.
    """
    tracks: list[list[tuple[int, Face]]] = []
    spacing = max(1, int(np.median(np.diff(sorted(found)))) if len(found) > 1 else 1)
    for index in sorted(found):
        recent = [(t, track[-1][1]) for t, track in enumerate(tracks) if index - track[-1][0] <= PATIENCE * spacing]
        faces = list(enumerate(found[index]))
        pairs = [(_overlap(last.box, face.box), t, f) for t, last in recent for f, face in faces]
        taken, extended = set[int](), set[int]()
        for share, t, f in sorted(pairs, reverse=True):
            if share >= OVERLAP and t not in extended and f not in taken:
                tracks[t].append((index, found[index][f]))
                extended.add(t)
                taken.add(f)
        tracks += [[(index, face)] for f, face in faces if f not in taken]
    if not tracks:
        return None
    weights = [sum(face.box[2] for _, face in track) for track in tracks]
    best = int(np.argmax(weights))
    chosen = tracks[best]
    others = sum(w > 0.5 * weights[best] for i, w in enumerate(weights) if i != best)
    frames = np.array([i for i, _ in chosen])
    return Track(frames, [face for _, face in chosen], np.array(sorted(found)), length, others)


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
    try_this = "pip install 'opencv-python-headless<5', or name a landmark model with --landmarks"
    try:
        import cv2

        folder = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    except (ImportError, AttributeError) as error:
        why = f"OpenCV or its cascades are not usable: {error}"
        raise UserError("faces cannot be found", why, try_this) from error
    cv2.setNumThreads(1)
    cascades = [cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml")) for name in ("frontalface_alt2", "eye")]
    if any(c.empty() for c in cascades):
        raise UserError("faces cannot be found", f"no cascades in {folder}", try_this)
    faces, eyes = cascades

    def detect(frame: np.ndarray) -> list[Face]:
        scale = min(1.0, SEARCH_SIDE / min(frame.shape))
        small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        smallest = max(24, round(min(small.shape) * SMALLEST))
        boxes = faces.detectMultiScale(small, 1.1, 4, minSize=(smallest, smallest))
        found = [tuple(float(v) / scale for v in box) for box in boxes]
        return [Face(box, _eyes(cv2, eyes, frame, box)) for box in found]

    return detect


def _eyes(cv2: Any, cascade: Any, frame: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray | None:
    """Both eyes of a face, (2, 2), or None. Each is searched for in its own half of the upper face."""
    left, top, side, _ = box
    y0, y1 = round(top + 0.18 * side), round(top + 0.62 * side)
    if side < 20 or y0 < 0 or left < 0 or y1 > frame.shape[0] or left + side > frame.shape[1]:
        return None
    scale = EYE_FACE / side
    centres = []
    for x0, expected in ((left + 0.08 * side, EYE_X), (left + 0.5 * side, 1 - EYE_X)):
        patch = frame[y0:y1, round(x0) : round(x0 + 0.42 * side)]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        patch = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=method)
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
    """MediaPipe's face landmarker with the user's ``face_landmarker.task`` (newer releases of the package carry none).

    Raises:
        UserError: the package or the file is not there, or the file is another model.
    """
    path = Path(model)
    if not path.is_file():
        try_this = "name a face landmarker's .task file with --landmarks"
        raise UserError(f"no landmark model {model}", "there is no such file", try_this)
    try:
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision
    except ImportError as error:
        try_this = "pip install mediapipe, or leave --landmarks out"
        raise UserError("landmarks need mediapipe", str(error), try_this) from error
    try:
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(path)), num_faces=4)
        model_ = vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model} is not a face landmarker", why, "a .task file is needed") from error

    def detect(frame: np.ndarray) -> list[Face]:
        picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.repeat(frame[:, :, None], 3, axis=2))
        size = np.array([frame.shape[1], frame.shape[0]])
        found = (np.array([[p.x, p.y] for p in points]) for points in model_.detect(picture).face_landmarks)
        return [face_of_landmarks(points * size) for points in found]

    return detect


def face_of_landmarks(points: np.ndarray) -> Face:
    """A face of the 468 (or 478) points of MediaPipe's mesh, (n, 2) in pixels."""
    low, high = points.min(axis=0), points.max(axis=0)
    eyes = np.stack([points[[33, 133]].mean(axis=0), points[[362, 263]].mean(axis=0)])
    box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    return Face(box, eyes, points[[61, 291, 0, 17]].mean(axis=0))


# --------------------------------------------------------------------------------------------------------- mouth crops

SIDE = 96  # of a crop, in pixels
EYES_PX = 52.0  # distance of the eyes in a crop's pixels: the mouth then fills about 40 % of the width, nose tip and chin are inside
BELOW = 1.16  # of the distance of the eyes: how far below them the mouth lies, before correction
REACH = 14  # pixels of the crop by which the correction may move it
STANDS_OUT = 1.5  # times the usual motion of a row
WINDOW, SLOW_WINDOW = 12, 50  # frames


@dataclass(frozen=True, slots=True)
class Path2D:
    """Where to cut in each of F frames."""

    centre: np.ndarray  # (F, 2) mouth centre in the frame's pixels
    scale: np.ndarray  # (F,) crop pixels for one pixel of the frame
    angle: np.ndarray  # (F,) tilt of the head in radians, clockwise in the picture
    # (F,) bool, frames in which the face was found (frames between two searched ones count with the nearer one)
    found: np.ndarray
    exact: bool = False  # the mouth itself was found, nothing is to be corrected


def mouth_path(track: Track) -> Path2D:
    """Where the mouth of a face is in all frames: smoothed, interpolated, constant before the first and after the last find."""
    from scipy.ndimage import median_filter

    poses = median_filter(_poses(track.faces), (3, 1), mode="nearest")  # one wrong eye does not move the crop
    everywhere = np.arange(track.length)
    full = np.stack([np.interp(everywhere, track.frames, column) for column in poses.T], axis=1)
    x, y = smooth(full[:, 0], WINDOW), smooth(full[:, 1], WINDOW)
    gap, angle = smooth(full[:, 2], SLOW_WINDOW), smooth(full[:, 3], SLOW_WINDOW)
    exact = any(face.mouth is not None for face in track.faces)
    if not exact:  # so far it is the point between the eyes
        x, y = x - BELOW * gap * np.sin(angle), y + BELOW * gap * np.cos(angle)
    nearest = track.searched[np.abs(everywhere[:, None] - track.searched).argmin(axis=1)]
    return Path2D(np.stack([x, y], axis=1), EYES_PX / gap, angle, np.isin(nearest, track.frames), exact)


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
    place, gap = (poses[:, :2] - boxes[:, :2]) / boxes[:, 2:3], poses[:, 2:3] / boxes[:, 2:3]
    relative = np.concatenate([place, gap, poses[:, 3:]], axis=1)
    known = ~np.isnan(poses[:, 0])
    usual = np.median(relative[known], axis=0) if known.any() else np.array([0.5, EYE_Y, EYE_GAP, 0.0])
    side, tilt = boxes[:, 2:3], np.full((len(boxes), 1), usual[3])
    guessed = np.concatenate([boxes[:, :2] + usual[:2] * side, usual[2] * side, tilt], axis=1)
    return np.where(known[:, None], poses, guessed)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window centred on each of (F,) values; at the ends the window shrinks evenly on both sides, so that trends stay."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return np.asarray((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))


def cut(frames: Iterable[np.ndarray], path: Path2D) -> np.ndarray:
    """The aligned crops, (F, SIDE, SIDE) uint8, of F frames (more are left alone), each (H, W) uint8."""
    reach = 0 if path.exact else REACH
    size, strips = (SIDE + 2 * reach, SIDE), []
    for frame, centre, scale, angle in zip(frames, path.centre, path.scale, path.angle, strict=False):
        strips.append(_warped(frame, centre, scale, angle, size))
    crops = np.stack(strips) if strips else np.empty((0, *size), np.uint8)
    top = mouth_row(crops) - SIDE // 2 if reach and strips else 0
    return np.ascontiguousarray(crops[:, top : top + SIDE])


def _warped(frame: np.ndarray, centre: np.ndarray, scale: float, angle: float, size: tuple[int, int]) -> np.ndarray:
    import cv2

    while scale < 0.6 and min(frame.shape) > 16:  # warpAffine takes single pixels: halve first, or fine detail flickers
        halved = (max(1, frame.shape[1] // 2), max(1, frame.shape[0] // 2))
        frame = cv2.resize(frame, halved, interpolation=cv2.INTER_AREA)
        centre, scale = (centre + 0.5) / 2 - 0.5, scale * 2
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    matrix = np.concatenate([turn, (middle - turn @ centre)[:, None]], axis=1)
    options: dict[str, Any] = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    return np.asarray(cv2.warpAffine(frame, matrix, (size[1], size[0]), **options))


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
