"""Audio-visual enhancement of a batch: levelling and padding of sound and video, the SI-SNR loss, and noiseless enhancement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlspeech.data.audio import level_gain, mono
from rlspeech.data.batches import Clip
from rlspeech.data.video import frames_of
from rlspeech.models.avse import AvseEnhancer, si_snr
from rlspeech.types import UserError

__all__ = ["AvBatch", "AvInference", "collate", "shuffled", "supervised_loss"]


@dataclass
class AvBatch:
    """B clips at the network's level, padded to one length.

    Args:
        keys: B utterance ids.
        noisy: (B, C, T) scaled input.
        target: (B, C, T) reference under the same gain, or None at inference.
        samples: (B,) long, real samples of every row.
        gain: (B,) what the input was multiplied by.
        video: (B, F, H, W) uint8, or None where no clip has any.
        present: (B,) bool, clips with a video.
    """

    keys: list[str]
    noisy: Tensor
    target: Tensor | None
    samples: Tensor
    gain: Tensor
    video: Tensor | None
    present: Tensor

    def pick(self, rows: Tensor) -> AvBatch:
        """The clips ``rows`` (n,) of the batch."""
        tensors = (self.noisy, self.target, self.samples, self.gain, self.video, self.present)
        noisy, target, samples, gain, video, present = (None if t is None else t[rows] for t in tensors)
        return AvBatch([self.keys[i] for i in rows.tolist()], noisy, target, samples, gain, video, present)


def collate(
    clips: Sequence[Clip], model: AvseEnhancer, device: torch.device | str = "cpu", *, with_target: bool = True
) -> AvBatch:
    """Bring clips to the model's level and pad them, and their videos."""
    cfg = model.cfg
    samples = [c.noisy.shape[-1] for c in clips]
    noisy = torch.zeros(len(clips), cfg.channels, max(samples))
    target = torch.zeros_like(noisy) if with_target else None
    gains = torch.tensor([level_gain(c.noisy, cfg.level_dbfs) for c in clips], dtype=torch.float32)
    for i, c in enumerate(clips):
        noisy[i, :, : samples[i]] = _channels(c.noisy, cfg.channels) * gains[i]
        if target is not None:
            target[i, :, : samples[i]] = _channels(c.target, cfg.channels) * gains[i]
    frames, present = _pad_videos([c.lips for c in clips], frames_of(max(samples) / model.sample_rate))
    return AvBatch(
        [c.key for c in clips],
        noisy.to(device),
        None if target is None else target.to(device),
        torch.tensor(samples, device=device),
        gains.to(device),
        None if frames is None else frames.to(device),
        present.to(device),
    )


class AvInference:
    """Deterministic enhancement: the mask as it is."""

    uses_video = True

    def __init__(self, model: AvseEnhancer) -> None:
        self.model, self.sample_rate, self.channels = model, model.sample_rate, model.cfg.channels

    @torch.no_grad()
    def infer(
        self,
        wavs: Sequence[np.ndarray],
        keys: Sequence[str] | None = None,
        lips: Sequence[np.ndarray | None] | None = None,
    ) -> list[np.ndarray]:
        """Enhance waveforms.

        Args:
            wavs: B arrays (T_i,) float32 at ``sample_rate``, or (2, T_i) for a binaural model.
            keys: B ids; they change nothing.
            lips: B arrays (F_i, H, W) uint8 at 25 frames a second, or None where there is no video.

        Returns:
            B arrays of the inputs' shapes and levels; from a mono recording a binaural model gives the mean of its channels.
        """
        model = self.model
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        clips = [
            Clip(k, w, w, self.sample_rate, lips=v)
            for k, w, v in zip(names, wavs, lips or [None] * len(wavs), strict=True)
        ]
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


def shuffled(clips: Sequence[Clip]) -> list[Clip]:
    """The clips moved on by one, so that each row is another clip's, for its video. A single clip stays as it is."""
    return [clips[i - 1] for i in range(len(clips))]


def _channels(wav: np.ndarray, channels: int) -> Tensor:
    """(C, T) of (T,) or (2, T): one channel for both, or both averaged."""
    if wav.ndim == 1:
        return torch.from_numpy(wav)[None].expand(channels, -1)
    return torch.from_numpy(wav if channels == 2 else wav.mean(0, keepdims=True))


def _pad_videos(lips: Sequence[np.ndarray | None], frames: int) -> tuple[Tensor | None, Tensor]:
    """Videos (B, F, H, W) cut or held to F frames, and which rows have one. Raises ``UserError`` for sizes that differ."""
    present = torch.tensor([v is not None for v in lips])
    sizes = {v.shape[1:] for v in lips if v is not None}
    if not sizes:
        return None, present
    if len(sizes) > 1:
        raise UserError(
            "the videos have different sizes",
            ", ".join(f"{h}x{w}" for h, w in sorted(sizes)),
            "rlspeech prepare lips with one --crop for all of them",
        )
    video = torch.zeros(len(lips), frames, *sizes.pop(), dtype=torch.uint8)
    for i, v in enumerate(lips):
        if v is not None:
            video[i] = torch.from_numpy(v[np.minimum(np.arange(frames), len(v) - 1)])
    return video, present
