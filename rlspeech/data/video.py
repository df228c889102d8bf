"""Videos as grey frames at 25 frames a second, one frame at a time, and mouth crops on disk.

A file names its frames' times, and those times decide: whatever the rate, constant or not, output frame k is the frame shown nearest
to k / 25 s. Times that are missing, go back or leap ahead (cut and joined recordings) go on at the declared rate. Time 0 is the start of
the container, where its sound track begins, so that crops fit the audio that was taken from the same file.

Crops are one compressed array a clip: numpy's ``.npz`` with ``frames`` (F, H, W) uint8, ``fps`` and, where a tracker made it, ``found``
(F,) bool: the frames in which a face was found. Nothing is pickled, and nothing that is pickled is read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.decode import AudioError, open_container, packets, regular_file
from rlspeech.files import replacing
from rlspeech.types import UserError

MIN_FRAMES = 3  # a broken file must give at least this many
NO_FRAMES = ("no frames", "no video: a single picture")
ATTACHED = 0x400  # FFmpeg's mark of a cover picture
MAX_GAP_S = 10.0  # a longer gap between two frames is a broken time stamp, not a still picture
MAX_VIDEO_SIDE = 8192
LIPS_FPS = 25.0
MAX_SIDE, MAX_FRAMES = 1024, 25 * 3600


class LipsError(AudioError):
    """A video or its crops cannot be used; ``reason`` says why. Only its utterance is lost, as with bad audio."""


def frames_of(seconds: float) -> int:
    """Frames that cover a stretch of audio."""
    return max(1, int(np.ceil(seconds * LIPS_FPS - 1e-6)))


def save_lips(path: str | Path, frames: np.ndarray, found: np.ndarray | None = None) -> None:
    """Write (F, H, W) uint8 frames at 25 a second as ``.npz``, atomically; ``found`` (F,) bool tells where a face was, by default in all.

    Raises:
        ValueError: another type or shape.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (F, H, W) uint8, not {frames.shape} {frames.dtype}")
    found = np.ones(len(frames), dtype=bool) if found is None else found.astype(bool)
    with replacing(Path(path)) as part:
        np.savez_compressed(part, frames=frames, fps=np.float32(LIPS_FPS), found=found)


def frames_at(video: np.ndarray, start_s: float, seconds: float) -> np.ndarray:
    """Frames (F', H, W) that cover a stretch of a video (F, H, W) at 25 frames a second; where it ends earlier the last one is held."""
    wanted = np.arange(frames_of(seconds)) + round(start_s * LIPS_FPS)
    return video[np.clip(wanted, 0, len(video) - 1)]


def load_lips(path: str | Path) -> np.ndarray:
    """Read crops, (F, H, W) uint8 at 25 frames a second. Raises ``LipsError``: missing, truncated, of another kind, or empty."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            video, fps = stored["frames"], float(stored["fps"])
    except FileNotFoundError as error:
        raise LipsError("missing file") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise LipsError(f"no lip crops: {type(error).__name__}") from error
    small = video.ndim == 3 and 0 < len(video) <= MAX_FRAMES and 0 < max(video.shape[1:]) <= MAX_SIDE
    if not small or video.dtype != np.uint8:
        raise LipsError(f"no lip crops: {video.dtype} of shape {video.shape}")
    if not abs(fps - LIPS_FPS) <= 0.01:  # NaN is caught too
        raise LipsError(f"{fps:g} frames a second instead of {LIPS_FPS:g}")
    return np.ascontiguousarray(video)


class Stream:
    """Grey frames with their times, decoded as they are asked for; iterating yields (seconds, (H, W) uint8).

    Args:
        path: any format that FFmpeg's libraries decode, playlists excepted.

    After the last frame ``problem`` says what was wrong with the file, or is None; ``end_s`` is when the last frame's time is over.

    Raises:
        LipsError: while iterating: missing, 0 bytes, unreadable, no pictures, or hardly any.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.end_s = 0.0
        self.problem: str | None = None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        with _opened(self.path) as container:
            stream = _pictures(container)
            stream.codec_context.thread_count = 1  # clips are what runs in parallel
            fps = _fps(stream)
            zero_s = (container.start_time or 0) / 1e6 if container.streams.audio else None
            last_s, shift_s, count = -1.0 / fps, 0.0, 0
            size: tuple[int, int] | None = None
            for frame in packets(container, stream, self._note):
                if zero_s is None:
                    zero_s = frame.time or 0.0
                time_s = last_s + 1 / fps if frame.time is None else frame.time - zero_s + shift_s
                if count and not last_s < time_s <= last_s + MAX_GAP_S:
                    shift_s += last_s + 1 / fps - time_s
                    time_s = last_s + 1 / fps
                size = size or (frame.width, frame.height)
                if max(size) > MAX_VIDEO_SIDE:
                    raise LipsError(f"absurd size: {size[0]} x {size[1]}")
                yield max(0.0, time_s) if not count else time_s, _grey(frame, size)
                last_s, count = time_s, count + 1
                self.end_s = last_s + 1 / fps
        if count < 2 or (self.problem and count < MIN_FRAMES):
            raise LipsError(self.problem or NO_FRAMES[count])

    def frames(self) -> Iterator[np.ndarray]:
        """Frames (H, W) at 25 a second. Raises ``LipsError`` behind those of the longest video that is taken."""
        for number, frame in enumerate(at_25_fps(self, lambda: self.end_s)):
            if number == MAX_FRAMES:
                raise LipsError(f"longer than {MAX_FRAMES / LIPS_FPS / 60:g} min")
            yield frame

    def _note(self, problem: str) -> None:
        self.problem = problem


def at_25_fps(
    timed: Iterable[tuple[float, np.ndarray]], end_s: Callable[[], float] | None = None
) -> Iterator[np.ndarray]:
    """Resample in time: for every k the frame whose time lies nearest to k / 25 s. Holds two frames.

    Args:
        timed: (seconds, frame) in rising order; before the first one it is held.
        end_s: asked when ``timed`` is over: when the last frame's time ends. None: 1/25 s after it began.
    """
    k, before = 0, None
    for time_s, frame in timed:
        # of two that are equally near the earlier one
        while before is not None and k / LIPS_FPS <= (before[0] + time_s) / 2 + 1e-6:
            yield before[1]
            k += 1
        before = time_s, frame
    if before is None:
        return
    stop = round((end_s() if end_s else before[0] + 1 / LIPS_FPS) * LIPS_FPS)
    for _ in range(k, max(stop, k + (k == 0))):
        yield before[1]


def centre_square(frame: np.ndarray, side: int, share: float = 0.5) -> np.ndarray:
    """The central square whose side is a share of the shorter one, scaled to (side, side).

    Of a 224 x 224 frame the default with ``side=112`` is exactly the central 112 x 112 pixels.
    """
    height, width = frame.shape
    cut = max(2, round(min(height, width) * share))
    top, left = (height - cut) // 2, (width - cut) // 2
    square = frame[top : top + cut, left : left + cut]
    if cut == side:
        return square.copy()
    import cv2

    way = cv2.INTER_AREA if cut > side else cv2.INTER_LINEAR
    scaled: np.ndarray = cv2.resize(square, (side, side), interpolation=way)
    return scaled


def check_video(path: str | Path) -> None:
    """Open a file and decode its first pictures, no more.

    Raises:
        LipsError: missing, 0 bytes, unreadable, no pictures or a single one, or the first one cannot be decoded.
    """
    with _opened(Path(path)) as container:
        problems = list[str]()
        first = list(islice(packets(container, _pictures(container), problems.append), 2))
        if len(first) < 2:
            raise LipsError(problems[0] if problems else NO_FRAMES[len(first)])


def extract_audio(path: str | Path, out: str | Path) -> bool:
    """Write a video's own sound track as mono audio of 16 kHz (format by suffix), silent until it begins; False where it has none.

    Raises:
        LipsError: the file cannot be read, or is no video.
        AudioError: the track cannot be read, or holds what cannot be written.
    """
    with _opened(Path(path)) as container:
        if not container.streams.audio:
            return False
    save_audio(out, load_audio(path, 16000), 16000)
    return True


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError("videos cannot be read", f"PyAV is not usable: {error}", "pip install 'av>=13'") from error
    try:
        with open_container(regular_file(path)) as container:
            _pictures(container)
            yield container
    except AudioError as error:
        raise error if isinstance(error, LipsError) else LipsError(error.reason) from error


def _pictures(container: Any) -> Any:
    """The first stream of moving pictures: a cover that is attached to a sound track is none. Raises ``LipsError``."""
    moving = [s for s in container.streams.video if not int(getattr(s, "disposition", 0)) & ATTACHED]
    if not moving:
        raise LipsError("no video: a picture is attached" if container.streams.video else "no video stream")
    return moving[0]


def _fps(stream: Any) -> float:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and math.isfinite(float(rate)) and 1.0 <= float(rate) <= 1000.0:
            return float(rate)
    return LIPS_FPS


def _grey(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 at full range, the way up that the file asks for; a picture whose size differs from the first is scaled to it."""
    grey: np.ndarray = frame.reformat(width=size[0], height=size[1], format="gray").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(grey, turns)) if turns else grey
