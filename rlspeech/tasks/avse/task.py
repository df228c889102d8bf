"""The task ``avse``: audio-visual speech enhancement."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlspeech.config import RL, Evaluate, Exploration, Pretrain, RewardSpec
from rlspeech.data.batches import Clip, with_video
from rlspeech.models.avse import AvseEnhancer, si_snr
from rlspeech.run import Run
from rlspeech.stats import mean_interval
from rlspeech.tasks.avse.enhancer import AvBatch, AvInference, collate, supervised_loss
from rlspeech.tasks.avse.policy import AvsePolicy, RelaxedAvse
from rlspeech.tasks.base import EnhancementTask, Numbers, enhance_clips


class Avse(EnhancementTask):
    """The task ``avse``."""

    name = "avse"
    required = frozenset({"audio_filepath", "target_filepath", "lips_filepath"})
    uses_video = True
    settings = EnhancementTask.settings | {"supervised_on", "video", "explore.mask_clamp", "avse", "shuffled"}
    next_command = "rlspeech rl --task avse --algo ppo --model {run}"
    default_rewards = (RewardSpec(name="llm"),)
    default_guards = ("si_sdr", "estoi", "dnsmos_ovrl", "speaker_similarity")
    default_metrics = (
        *("pesq_wb", "stoi", "estoi", "si_sdr", "dnsmos"),
        *("speaker_similarity", "speech_bert_score", "llm"),
    )
    rl_defaults: ClassVar[dict[str, Any]] = {
        **{"lora": None, "lr": 3e-4, "group": 4, "prompts_per_step": 8},
        **{"supervised_weight": 0.05},  # measured: at weight 1 SI-SNR drowns the reward
    }
    dpo_defaults: ClassVar[dict[str, Any]] = {**EnhancementTask.dpo_defaults, "lr": 3e-5, "supervised_weight": 0.0}
    published = Exploration(kind="mask", noise=0.05, antithetic=False)

    part, network, soft = "avse", AvseEnhancer, frozenset({"video_drop", "floor_db", "cap_db"})

    def channels_of(self, model: AvseEnhancer) -> int:
        return model.cfg.channels

    collate = staticmethod(collate)

    def pretrain_loss(self, model: AvseEnhancer, batch: AvBatch, config: Pretrain) -> dict[str, Tensor]:
        """Negative SI-SNR, floored; in training some clips lose their video (``video_drop``)."""
        if config.video == "none":
            batch.video = None
        elif config.video == "shuffled" and batch.video is not None:
            batch.video, batch.present = batch.video.roll(1, 0), batch.present.roll(1, 0)
        if batch.video is not None and model.training and model.cfg.video_drop:
            kept = torch.rand(len(batch.keys), device=batch.present.device) >= model.cfg.video_drop
            batch.present = batch.present & kept
        made = model.enhance(batch.noisy, batch.video, batch.present, batch.samples)
        return {"loss": supervised_loss(model, made, batch)}

    def validate(self, model: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0) -> Numbers:
        """Scores on held-out clips with their own videos, and SI-SDR with each other's: what the video is worth."""
        found = super().validate(model, clips, folder, step, scorer, seed)
        if any(c.lips is not None for c in clips) and len(clips) > 1:
            wrong = enhance_clips(self.enhancer(model), with_video(clips, "shuffled"))
            pairs = [(torch.from_numpy(s.wav), torch.from_numpy(s.target)) for s in wrong]
            found["si_sdr_shuffled_video"] = mean_interval([float(si_snr(*pair)) for pair in pairs])
        return found

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        policy = RelaxedAvse if "diffro" in config.algo else AvsePolicy
        return policy(adapted, explore or config.explore, config.reduction, config.seed)

    def enhancer(self, model: AvseEnhancer, *, seed: int = 0, config: Evaluate | None = None) -> AvInference:
        return AvInference(model)
