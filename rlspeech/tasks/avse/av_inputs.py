"""Sound and video of an input file: both channels where the model takes two, and the mouth, wherever its video lies.

Where a video cannot be used, callers catch ``LipsError`` and enhance the file by its sound alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.video import LIPS_FPS, VIDEO_SUFFIXES, LipsError, frames_of, load_lips
from rlspeech.types import UserError, Utterance

__all__ = ["find_video", "load_recording", "is_video", "neighbours", "load_mouth"]

FIRST = (".npz", ".mp4", ".mpg", ".avi", ".mov", ".mkv", ".webm")  # crops that are there already, then common videos


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def load_recording(
    path: str | Path, sample_rate: int, channels: int = 1, offset_s: float = 0.0, duration_s: float | None = None
) -> np.ndarray:
    """Read a recording, or the sound track of a video.

    Args:
        path: audio or video file.
        sample_rate: of the result, in Hz.
        channels: how many the model takes.
        offset_s, duration_s: the stretch, in seconds; None reads to the end.

    Returns:
        (2, T) float32 where file and model both have two channels, else their mean (T,). Sound tracks of videos are mono.

    Raises:
        AudioError: as ``load_audio``, and for a video without sound.
    """
    if is_video(Path(path)):
        return _sound_track(path, sample_rate, offset_s, duration_s)
    mono = load_audio(path, sample_rate, offset_s, duration_s)  # says all that can be wrong with the file
    if channels == 1 or _channels(path) != 2:
        return mono
    return load_audio(path, sample_rate, offset_s, duration_s, channels=2)


def _channels(path: str | Path) -> int:
    import soundfile as sf

    return int(sf.info(path).channels)


def _sound_track(path: str | Path, sample_rate: int, offset_s: float, duration_s: float | None) -> np.ndarray:
    from rlspeech.data.video import extract_audio

    with tempfile.TemporaryDirectory(prefix="rlspeech-") as folder:
        track = Path(folder) / "sound.wav"
        try:
            if not extract_audio(path, track, sample_rate):
                raise AudioError("the video has no sound track")
        except UserError as error:  # no library that reads videos
            raise AudioError(f"{error.what}: {error.why}"[:200]) from error
        return load_audio(track, sample_rate, offset_s, duration_s)


def find_video(recording: Path, given: Path | None = None) -> Path | None:
    """The crops or the video of a recording, matched by the name without its suffix; a video file is its own.

    Args:
        recording: audio or video file.
        given: a file, which is taken as it is, or a folder to look in; None: beside the recording.
    """
    if given is not None and not given.is_dir():
        return given
    folders = [recording.parent] if given is None else [given / recording.parent.name, given]
    own = [recording] if given is None and is_video(recording) else []
    names = [f for folder in folders for f in _named(folder, recording.stem)]
    return next((f for f in [*(n for n in names if n.suffix.lower() == ".npz"), *own, *names] if f.is_file()), None)


def _named(folder: Path, stem: str) -> Iterator[Path]:
    for suffix in (*FIRST, *sorted(VIDEO_SUFFIXES.difference(FIRST))):
        yield from (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}")


def load_mouth(path: str | Path, start_s: float, seconds: float) -> np.ndarray:
    """The mouth in a stretch of a video, cut here and now, or of crops that ``rlspeech prepare lips`` has made.

    Args:
        path: video, or ``.npz``.
        start_s: where the stretch begins, in seconds of the file.
        seconds: its length; where the video ends earlier its last frame is held.

    Returns:
        (F, H, W) uint8 at 25 frames a second.

    Raises:
        LipsError: the file cannot be used, or there is no face in it.
    """
    whole = _whole(str(path))
    return whole[np.clip(np.arange(frames_of(seconds)) + round(start_s * LIPS_FPS), 0, len(whole) - 1)]


@lru_cache(maxsize=1)
def _whole(path: str) -> np.ndarray:
    """Rows that share a video stand together: the last one is kept."""
    if path.lower().endswith(".npz"):
        return load_lips(path)
    from rlspeech.corpora.lips import crop_clip

    with tempfile.TemporaryDirectory(prefix="rlspeech-") as folder:
        out = Path(folder) / "lips.npz"
        try:
            fact = crop_clip(path, out, detect=_detector())
        except UserError as error:  # no library that reads videos, or no detector
            raise LipsError(f"{error.what}: {error.why}"[:200]) from error
        if not fact["face_rate"]:
            raise LipsError("no face in any frame")
        return load_lips(out)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from rlspeech.corpora.faces import haar_detector

    return haar_detector()


def neighbours(utts: Sequence[Utterance]) -> dict[str, Utterance]:
    """For every id the next utterance of the list, around its end, with a video of other speech: what it sees when videos are shuffled.

    Raises:
        UserError: fewer than two videos.
    """
    if len({u.lips_filepath for u in utts} - {None}) < 2:
        raise UserError(
            "videos cannot be shuffled",
            "fewer than two utterances have mouth crops (lips_filepath)",
            "rlspeech prepare lips",
        )

    def other(a: Utterance, b: Utterance) -> bool:
        clean = a.extra.get("clean_id")
        return (
            bool(b.lips_filepath)
            and a.lips_filepath != b.lips_filepath
            and (clean is None or clean != b.extra.get("clean_id"))
        )

    found = {}
    for i, utt in enumerate(utts):
        partner = next(
            (utts[(i + k) % len(utts)] for k in range(1, len(utts)) if other(utt, utts[(i + k) % len(utts)])), None
        )
        if partner is None:
            raise UserError(
                "videos cannot be shuffled", f"only the speech of {utt.id!r} has mouth crops", "rlspeech prepare lips"
            )
        found[utt.id] = partner
    return found
