"""What a task is to the stages: how its model is built, loaded, saved, trained with supervision, checked, and made to act."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.config import RL, Evaluate, Pretrain, RewardSpec
from rlspeech.data.audio import rms_dbfs, save_audio
from rlspeech.data.batches import Clip
from rlspeech.run import Run
from rlspeech.stats import Interval, mean_interval
from rlspeech.types import Sample, Score, UserError

__all__ = [
    "EnhancementTask",
    "Enhancer",
    "Numbers",
    "Task",
    "channels_of",
    "check_enhancer",
    "enhance_clips",
    "level_gain",
    "means_of",
    "mono",
    "sample_of",
    "set_anew",
]

Numbers = dict[str, float | Interval]
SILENT_DBFS, MAX_GAIN_DB = -60.0, 60.0
VALID_METRICS = ("estoi", "si_sdr", "dnsmos_ovrl")


class Task(Protocol):
    """What ``pretrain`` needs of every task."""

    name: str
    valid_metrics: ClassVar[tuple[str, ...]]  # what the stage's scorer computes for ``validate``
    next_command: ClassVar[str]  # what to type after pretraining, {run} is the run folder

    def build(self, config: Pretrain) -> nn.Module:
        """A model with fresh weights, or ``config.init``'s."""
        ...

    def load(self, name: str, device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
        """A checkpoint's model in evaluation mode and its ``config.json``. Raises ``UserError``."""
        ...

    def save(
        self, folder: Path, model: Any, *, facts: dict[str, Any], weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint folder; ``weights`` in place of the model's own."""
        ...

    def sample_rate_of(self, model: Any) -> int:
        """Of the clips that the model takes, in Hz."""
        ...

    def collate(self, clips: Sequence[Clip], model: Any, device: torch.device | str = "cpu") -> Any:
        """Clips as a batch of tensors."""
        ...

    def pretrain_loss(self, model: Any, batch: Any, config: Pretrain) -> dict[str, Tensor]:
        """The loss in named parts; ``loss`` is the one to minimise."""
        ...

    def validate(self, model: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0) -> Numbers:
        """Numbers of a model on held-out clips, with their intervals where known; a few outputs are kept under ``samples/``."""
        ...


class Enhancer(Protocol):
    """A model at inference: waveforms in, waveforms of the same lengths out."""

    sample_rate: int
    channels: int
    uses_video: bool

    def infer(
        self,
        wavs: Sequence[np.ndarray],
        keys: Sequence[str] | None = None,
        lips: Sequence[np.ndarray | None] | None = None,
    ) -> list[np.ndarray]:
        """Enhance B waveforms (T_i,), or (C, T_i) where ``channels`` is 2; ``lips`` are (F_i, H, W) uint8 or None."""
        ...


class EnhancementTask(Task, Protocol):
    """What ``rl``, ``eval`` and ``enhance`` need beyond that."""

    uses_video: ClassVar[bool]
    default_rewards: ClassVar[tuple[RewardSpec, ...]]
    default_guards: ClassVar[tuple[str, ...]]
    default_metrics: ClassVar[tuple[str, ...]]
    rl_defaults: ClassVar[dict[str, Any]]  # settings of ``RL`` that are this task's where nobody gives others

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        """The model as a policy (``types.Policy``)."""
        ...

    def outputs(self, policy: Any, clips: list[Clip], folder: Path, *, players: int = 4, seed: int = 0) -> list[Sample]:
        """What the policy makes of whole clips when it does not explore, as samples to score; the same ``seed``, the same outputs."""
        ...

    def enhancer(self, model: Any, *, seed: int = 0, config: Evaluate | None = None) -> Enhancer:
        """The model at inference; a task whose outputs are not sound has none."""
        ...


def set_anew(model: Any, name: str, settings: Any, soft: Collection[str]) -> Any:
    """A checkpoint's model under the settings that were given beside ``--init``.

    Args:
        model: with its settings in ``cfg``.
        name: of the checkpoint, for the message.
        settings: the task's part of ``Pretrain``; only what was set in it counts.
        soft: settings that weights do not depend on; the others must be those of the checkpoint.

    Raises:
        UserError: a setting that does not fit the weights.
    """
    given = {k: getattr(settings, k) for k in settings.model_fields_set}
    misfits = [k for k, v in given.items() if k not in soft and v != getattr(model.cfg, k)]
    if misfits:
        raise UserError(
            f"{name} has another {', '.join(misfits)}",
            f"with --init only {', '.join(sorted(soft))} can be set",
            "leave them out, or train from random weights without --init",
        )
    model.cfg = model.cfg.model_copy(update={k: v for k, v in given.items() if k in soft})
    return model


def check_enhancer(enhancer: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, players: int = 2) -> Numbers:
    """Enhance held-out clips, score them, keep a few to listen to. Returns means with their intervals."""
    samples = enhance_clips(enhancer, clips, folder.path / "samples" / f"step_{step:06d}", players)
    return means_of(scorer.score(samples))


def means_of(scores: Mapping[str, Sequence[Score]]) -> Numbers:
    """Mean of every metric over the clips, with its interval."""
    return {name: mean_interval([s.value for s in column]) for name, column in scores.items()}


def enhance_clips(enhancer: Any, clips: list[Clip], folder: Path, players: int) -> list[Sample]:
    """Outputs of whole clips as samples to score, the first ``players`` saved under ``folder``."""
    made = [enhancer.infer([c.noisy], [c.key], [c.lips])[0] for c in clips]
    for c, wav in list(zip(clips, made, strict=True))[:players]:
        save_audio(folder / f"{c.key}.flac", mono(wav), enhancer.sample_rate)
    return [sample_of(c, w, enhancer.sample_rate) for c, w in zip(clips, made, strict=True)]


def sample_of(clip: Clip, wav: np.ndarray, sample_rate: int) -> Sample:
    """An output (T,) or (C, T) of a clip as a sample to score."""
    return Sample(clip.key, mono(wav), sample_rate, mono(clip.target), clip.text, clip.columns)


def level_gain(wav: np.ndarray, level_dbfs: float | None) -> float:
    """Factor that brings a recording to a level, at most ``MAX_GAIN_DB``; silence keeps its own: no gain makes speech of it."""
    if level_dbfs is None:
        return 1.0
    level = rms_dbfs(wav.reshape(-1))
    return 10.0 ** (min(level_dbfs - level, MAX_GAIN_DB) / 20.0) if level > SILENT_DBFS - MAX_GAIN_DB else 1.0


def channels_of(task: Any, model: Any) -> int:
    """Channels of the clips that a task's model takes: 1 for every task that does not say otherwise."""
    says = getattr(task, "channels_of", None)
    return 1 if says is None else int(says(model))


def mono(wav: np.ndarray) -> np.ndarray:
    """(T,) of (T,) or (C, T): metrics hear the mean of the ears."""
    return wav if wav.ndim == 1 else np.ascontiguousarray(wav.mean(0))
