"""Audio-visual speech enhancement: batches with video, the SI-SNR loss, and noiseless enhancement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import RL, AvseModel, Evaluate, Pretrain, RewardSpec
from rlspeech.data.audio import rms_dbfs
from rlspeech.data.batches import Clip
from rlspeech.data.video import frames_of
from rlspeech.models.avse import AvseEnhancer, si_snr
from rlspeech.models.hub import load_avse, save_avse
from rlspeech.run import Run
from rlspeech.stats import mean_interval
from rlspeech.tasks.base import VALID_METRICS, Numbers, check_enhancer, enhance_clips, mono, set_anew
from rlspeech.types import Sample, UserError

__all__ = ["AvBatch", "Avse", "AvseInference", "shuffled", "supervised_loss"]

SILENT_DBFS, MAX_GAIN_DB = -60.0, 60.0
SOFT = frozenset({"video_drop", "floor_db", "cap_db"})  # settings that weights do not depend on


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


class Avse:
    """The task ``avse``."""

    name = "avse"
    required: ClassVar[frozenset[str]] = frozenset({"audio_filepath", "target_filepath", "lips_filepath"})
    valid_metrics: ClassVar[tuple[str, ...]] = VALID_METRICS
    next_command: ClassVar[str] = "rlspeech rl --task avse --algo ppo --model {run}"
    default_rewards: ClassVar[tuple[RewardSpec, ...]] = (RewardSpec(name="llm"),)
    default_guards: ClassVar[tuple[str, ...]] = ("si_sdr", "estoi", "dnsmos_ovrl", "speaker_similarity")
    default_metrics: ClassVar[tuple[str, ...]] = (
        "pesq_wb",
        "stoi",
        "estoi",
        "si_sdr",
        "dnsmos_ovrl",
        "speaker_similarity",
        "speech_bert_score",
        "llm",
    )
    rl_defaults: ClassVar[dict[str, Any]] = {  # measured: at weight 1 SI-SNR drowns the reward
        "lora": None,
        "lr": 3e-4,
        "supervised_weight": 0.05,
        "group": 4,
        "prompts_per_step": 8,
    }

    def build(self, config: Pretrain) -> AvseEnhancer:
        """Fresh weights, or ``init``'s: there only settings that fit its weights may be given anew."""
        if config.init is None:
            return AvseEnhancer(config.avse)
        model, _ = load_avse(config.init)
        return set_anew(model, config.init, config.avse, SOFT)

    def load(self, name: str, device: torch.device | str = "cpu") -> tuple[AvseEnhancer, dict[str, Any]]:
        """A checkpoint's model and its ``config.json``. Raises ``UserError``."""
        return load_avse(name, device)

    def save(
        self, folder: Path, model: AvseEnhancer, *, facts: dict[str, Any], weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint."""
        save_avse(folder, model, facts=facts, weights=weights)

    def sample_rate_of(self, model: AvseEnhancer) -> int:
        """In Hz."""
        return model.sample_rate

    def channels_of(self, model: AvseEnhancer) -> int:
        """Of the clips that the model takes: 2 are both ears."""
        return model.cfg.channels

    def collate(
        self,
        clips: Sequence[Clip],
        model: AvseEnhancer,
        device: torch.device | str = "cpu",
        *,
        with_target: bool = True,
    ) -> AvBatch:
        """Level and pad clips, and their videos."""
        cfg = model.cfg
        samples = [c.noisy.shape[-1] for c in clips]
        noisy = torch.zeros(len(clips), cfg.channels, max(samples))
        target = torch.zeros_like(noisy) if with_target else None
        gains = torch.ones(len(clips))
        for i, c in enumerate(clips):
            gains[i] = _gain(c.noisy, cfg)
            noisy[i, :, : samples[i]] = _ears(c.noisy, cfg.channels) * gains[i]
            if target is not None:
                target[i, :, : samples[i]] = _ears(c.target, cfg.channels) * gains[i]
        frames, present = _stack([c.lips for c in clips], frames_of(max(samples) / model.sample_rate))
        return AvBatch(
            [c.key for c in clips],
            noisy.to(device),
            None if target is None else target.to(device),
            torch.tensor(samples, device=device),
            gains.to(device),
            None if frames is None else frames.to(device),
            present.to(device),
        )

    def pretrain_loss(self, model: AvseEnhancer, batch: AvBatch, config: Pretrain) -> dict[str, Tensor]:
        """Negative SI-SNR, floored; in training some clips' video is hidden."""
        if config.video == "none":
            batch.video = None
        elif config.video == "shuffled" and batch.video is not None:
            batch.video, batch.present = batch.video.roll(1, 0), batch.present.roll(1, 0)
        if batch.video is not None and model.training and model.cfg.video_drop:
            batch.present = batch.present & (
                torch.rand(len(batch.keys), device=batch.present.device) >= model.cfg.video_drop
            )
        made = model.enhance(batch.noisy, batch.video, batch.present, batch.samples)
        return {"loss": supervised_loss(model, made, batch)}

    def validate(
        self, model: AvseEnhancer, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Scores on held-out clips with their own videos, and SI-SDR with each other's: what the video is worth."""
        found = check_enhancer(AvseInference(self, model), clips, folder, step, scorer)
        if any(c.lips is not None for c in clips) and len(clips) > 1:
            wrong = AvseInference(self, model)
            made = [wrong.infer([c.noisy], [c.key], [o.lips])[0] for c, o in zip(clips, shuffled(clips), strict=True)]
            ratio = [
                float(si_snr(torch.from_numpy(mono(w)), torch.from_numpy(mono(c.target))))
                for w, c in zip(made, clips, strict=True)
            ]
            found["si_sdr_shuffled_video"] = mean_interval(ratio)
        return found

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        """The enhancer as a policy over masks."""
        from rlspeech.tasks.avse.policy import AvsePolicy

        if "diffro" in config.algo:
            from rlspeech.tasks.avse.policy import RelaxedAvse

            return RelaxedAvse(self, adapted, explore or config.explore, reduction=config.reduction, seed=config.seed)
        return AvsePolicy(self, adapted, explore or config.explore, reduction=config.reduction, seed=config.seed)

    def outputs(self, policy: Any, clips: list[Clip], folder: Path, *, players: int = 4, seed: int = 0) -> list[Sample]:
        """What the policy makes of whole clips without noise, as samples to score; the first ``players`` are saved under ``folder``."""
        return enhance_clips(policy.enhancer(seed), clips, folder, players)

    def enhancer(self, model: AvseEnhancer, *, seed: int = 0, config: Evaluate | None = None) -> AvseInference:
        """The model at inference; it draws nothing, the seed changes nothing."""
        return AvseInference(self, model)


class AvseInference:
    """Deterministic enhancement: the mask as it is."""

    uses_video = True

    def __init__(self, task: Avse, model: AvseEnhancer) -> None:
        self.task, self.model = task, model
        self.sample_rate, self.channels = model.sample_rate, model.cfg.channels

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
            B arrays of the inputs' shapes and levels; from a mono recording a binaural model gives the mean of its ears.
        """
        model = self.model
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        clips = [
            Clip(k, w, w, self.sample_rate, lips=v)
            for k, w, v in zip(names, wavs, lips or [None] * len(wavs), strict=True)
        ]
        batch = self.task.collate(clips, model, next(model.parameters()).device, with_target=False)
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
    """The clips moved on by one: every one's neighbour, for its video. A single clip stays its own neighbour."""
    return [clips[i - 1] for i in range(len(clips))]


def _gain(wav: np.ndarray, cfg: AvseModel) -> float:
    """Factor to the network's level; silence keeps its own: no gain makes speech of it."""
    if cfg.level_dbfs is None:
        return 1.0
    level = rms_dbfs(wav.reshape(-1))
    return 10.0 ** (min(cfg.level_dbfs - level, MAX_GAIN_DB) / 20.0) if level > SILENT_DBFS - MAX_GAIN_DB else 1.0


def _ears(wav: np.ndarray, channels: int) -> Tensor:
    """(C, T) of (T,) or (2, T): one ear heard by both, or both averaged."""
    if wav.ndim == 1:
        return torch.from_numpy(wav)[None].expand(channels, -1)
    return torch.from_numpy(wav if channels == 2 else wav.mean(0, keepdims=True))


def _stack(lips: Sequence[np.ndarray | None], frames: int) -> tuple[Tensor | None, Tensor]:
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
