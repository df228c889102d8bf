"""Audio-visual enhancement without exploration: sound and mouth of an input file, padded batches, the SI-SNR loss, inference.

Both channels are read where the model takes two, and the mouth wherever its video lies. Where a video cannot be used, callers catch
``LipsError`` and enhance the file by its sound alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.data.audio import load_audio, mono
from rlspeech.data.batches import Clip, Keys, Videos
from rlspeech.data.decode import VIDEO_SUFFIXES, sound_info
from rlspeech.data.video import LipsError, frames_at, frames_of, load_lips
from rlspeech.models.avse import AvseEnhancer, si_snr
from rlspeech.tasks.gaussian import Levelled, levelled
from rlspeech.types import UserError, Utterance

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
    both = channels == 2 and not is_video(Path(path)) and sound_info(path).channels == 2
    return load_audio(path, sample_rate, offset_s, duration_s, channels=1 + both)


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
    return frames_at(_whole(str(path)), start_s, seconds)


@lru_cache(maxsize=1)
def _whole(path: str) -> np.ndarray:
    """Rows that share a video stand together: the last one is kept."""
    if path.lower().endswith(".npz"):
        return load_lips(path)
    from rlspeech.corpora.lips import crop_clip

    with tempfile.TemporaryDirectory(prefix="rlspeech-") as folder:
        out = Path(folder) / "lips.npz"
        try:
            fact = crop_clip(path, out)
        except UserError as error:  # no library that reads videos, or no detector
            raise LipsError(f"{error.what}: {error.why}"[:200]) from error
        if not fact["face_rate"]:
            raise LipsError("no face in any frame")
        return load_lips(out)


def neighbours(utts: Sequence[Utterance]) -> dict[str, Utterance]:
    """For every id the utterance whose video it gets when videos are shuffled: the next one of other speech, around the list's end.

    Raises:
        UserError: fewer than two videos.
    """
    if len({u.lips_filepath for u in utts} - {None}) < 2:
        why = "fewer than two utterances have mouth crops (lips_filepath)"
        raise UserError("videos cannot be shuffled", why, "rlspeech prepare lips")

    def other(a: Utterance, b: Utterance) -> bool:
        clean = a.extra.get("clean_id")
        same = clean is not None and clean == b.extra.get("clean_id")
        return bool(b.lips_filepath) and a.lips_filepath != b.lips_filepath and not same

    found = {}
    for i, utt in enumerate(utts):
        partner = next((u for k in range(1, len(utts)) if other(utt, u := utts[(i + k) % len(utts)])), None)
        if partner is None:
            why = f"only the speech of {utt.id!r} has mouth crops"
            raise UserError("videos cannot be shuffled", why, "rlspeech prepare lips")
        found[utt.id] = partner
    return found


@dataclass
class AvBatch(Levelled):
    """B clips and their videos."""

    video: Tensor | None  # (B, F, H, W) uint8, or None where no clip has any
    present: Tensor  # (B,) bool, clips with a video

    def pick(self, rows: Tensor) -> AvBatch:
        """The clips ``rows`` (n,) of the batch."""
        keys = [self.keys[i] for i in rows.tolist()]
        parts: dict[str, Any] = {k: None if v is None else v[rows] for k, v in vars(self).items() if k != "keys"}
        return AvBatch(keys, **parts)


def collate(
    clips: Sequence[Clip], model: AvseEnhancer, device: torch.device | str = "cpu", with_target: bool = True
) -> AvBatch:
    """Bring clips to the model's level and pad them, and their videos."""
    batch = levelled(clips, model.cfg.level_dbfs, model.cfg.channels, device, with_target)
    video, present = _pad_videos([c.lips for c in clips], frames_of(batch.noisy.shape[-1] / model.sample_rate))
    return AvBatch(**vars(batch), video=None if video is None else video.to(device), present=present.to(device))


class AvInference:
    """Deterministic enhancement: the mask as it is. From a mono recording a binaural model gives the mean of its channels."""

    uses_video = True

    def __init__(self, model: AvseEnhancer) -> None:
        self.model, self.sample_rate = model, model.sample_rate
        self.channels: int = model.cfg.channels

    @torch.no_grad()
    def infer(self, wavs: Sequence[np.ndarray], keys: Keys = None, lips: Videos = None) -> list[np.ndarray]:
        model = self.model
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        rows = zip(names, wavs, lips or [None] * len(wavs), strict=True)
        clips = [Clip(k, w, w, self.sample_rate, lips=v) for k, w, v in rows]
        batch = collate(clips, model, next(model.parameters()).device, with_target=False)
        out = model.enhance(batch.noisy, batch.video, batch.present, batch.samples) / batch.gain[:, None, None]
        made = [o[:, : w.shape[-1]].float().cpu().numpy() for o, w in zip(out, wavs, strict=True)]
        return [mono(o) if w.ndim == 1 else o for o, w in zip(made, wavs, strict=True)]


def supervised_loss(model: AvseEnhancer, made: Tensor, batch: AvBatch) -> Tensor:
    """-SI-SNR in dB, the mean over clips and channels.

    A clip that is good enough (``cap_db``, as in the challenge's baseline, whose loss ends at -30) has no gradient, nor one that is
    hopeless (``floor_db``).
    """
    assert batch.target is not None
    return -si_snr(made, batch.target, batch.samples).clamp(model.cfg.floor_db, model.cfg.cap_db).mean()


def _pad_videos(lips: Sequence[np.ndarray | None], frames: int) -> tuple[Tensor | None, Tensor]:
    """Videos (B, F, H, W) cut or held to F frames, and which rows have one. Raises ``UserError`` for sizes that differ."""
    present = torch.tensor([v is not None for v in lips])
    sizes = {v.shape[1:] for v in lips if v is not None}
    if not sizes:
        return None, present
    if len(sizes) > 1:
        why = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
        raise UserError("the videos have different sizes", why, "rlspeech prepare lips with one --crop for all of them")
    video = torch.zeros(len(lips), frames, *sizes.pop(), dtype=torch.uint8)
    for i, v in enumerate(lips):
        if v is not None:
            video[i] = torch.from_numpy(v[np.minimum(np.arange(frames), len(v) - 1)])
    return video, present
