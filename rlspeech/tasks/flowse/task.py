"""Flow-matching speech enhancement: batches, the pretraining loss, and deterministic enhancement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import RL, Evaluate, FlowModel, Pretrain, RewardSpec
from rlspeech.data.audio import rms_dbfs
from rlspeech.data.batches import Clip, seed_of
from rlspeech.models.flow import FlowEnhancer, frame_mask
from rlspeech.models.hub import load_flow, save_flow
from rlspeech.run import Run
from rlspeech.tasks.base import VALID_METRICS, Numbers, check_enhancer, enhance_clips, set_anew
from rlspeech.types import Sample

__all__ = ["Enhancer", "FlowBatch", "FlowSE", "latent"]

SILENT_DBFS = -60.0
MAX_GAIN_DB = 60.0
SOFT = frozenset({"time_power", "condition_drop", "nfe", "guidance"})  # settings that weights do not depend on


@dataclass
class FlowBatch:
    """B clips at the network's level, padded to one length.

    Args:
        keys: B utterance ids.
        noisy: (B, T) scaled input.
        target: (B, T) reference under the same gain, or None at inference.
        samples: (B,) long, real samples of every row.
        gain: (B,) what the input was multiplied by.
    """

    keys: list[str]
    noisy: Tensor
    target: Tensor | None
    samples: Tensor
    gain: Tensor


def latent(keys: Sequence[str], seed: int, shape: tuple[int, int]) -> Tensor:
    """Standard normal (B, L, D), each row drawn from (seed, key) alone, so that a clip's output does not depend on its batch."""
    count = shape[0] * shape[1]
    return torch.stack([normal(count, seed_of(seed, key)).view(shape) for key in keys])


def normal(count: int, seed: int) -> Tensor:
    """Standard normal (count,) whose beginning does not depend on how many are drawn (torch draws the last 16 in another way)."""
    return torch.randn(max(16, count + -count % 16), generator=torch.Generator().manual_seed(seed))[:count]


class FlowSE:
    """The task ``flowse``."""

    name = "flowse"
    required: ClassVar[frozenset[str]] = frozenset({"audio_filepath", "target_filepath"})
    valid_metrics: ClassVar[tuple[str, ...]] = VALID_METRICS
    next_command: ClassVar[str] = "rlspeech rl --task flowse --algo grpo --model {run}"
    rl_defaults: ClassVar[dict[str, Any]] = {}
    default_rewards: ClassVar[tuple[RewardSpec, ...]] = tuple(
        RewardSpec(name=n) for n in ("estoi", "speaker_similarity", "speech_bert_score", "lsd")
    )
    default_guards: ClassVar[tuple[str, ...]] = ("si_sdr", "dnsmos_ovrl", "pesq_wb")
    default_metrics: ClassVar[tuple[str, ...]] = (
        "dnsmos_ovrl",
        "pesq_wb",
        "estoi",
        "si_sdr",
        "lsd",
        "speaker_similarity",
        "speech_bert_score",
    )

    def build(self, config: Pretrain | FlowModel) -> FlowEnhancer:
        """Fresh weights, or ``init``'s: there only settings that fit its weights may be given anew."""
        if isinstance(config, FlowModel):
            return FlowEnhancer(config)
        if config.init is None:
            return FlowEnhancer(config.model)
        model, _ = load_flow(config.init)
        return set_anew(model, config.init, config.model, SOFT)

    def load(self, name: str, device: torch.device | str = "cpu") -> tuple[FlowEnhancer, dict[str, Any]]:
        """A checkpoint's model and its ``config.json``. Raises ``UserError``."""
        return load_flow(name, device)

    def save(
        self, folder: Path, model: FlowEnhancer, *, facts: dict[str, Any], weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint."""
        save_flow(folder, model, facts=facts, weights=weights)

    def sample_rate_of(self, model: FlowEnhancer) -> int:
        """In Hz."""
        return model.sample_rate

    def collate(
        self,
        clips: Sequence[Clip],
        model: FlowEnhancer | FlowModel,
        device: torch.device | str = "cpu",
        *,
        with_target: bool = True,
    ) -> FlowBatch:
        """Level and pad clips. Silence keeps its level: no gain makes speech of it."""
        cfg = model if isinstance(model, FlowModel) else model.cfg
        samples = [len(c.noisy) for c in clips]
        noisy = torch.zeros(len(clips), max(samples))
        target = torch.zeros_like(noisy) if with_target else None
        gains = torch.ones(len(clips))
        for i, c in enumerate(clips):
            level = rms_dbfs(c.noisy)
            if level > SILENT_DBFS - MAX_GAIN_DB:
                gains[i] = 10.0 ** (min(cfg.level_dbfs - level, MAX_GAIN_DB) / 20.0)
            noisy[i, : samples[i]] = torch.from_numpy(c.noisy) * gains[i]
            if target is not None:
                target[i, : samples[i]] = torch.from_numpy(c.target) * gains[i]
        batch = FlowBatch([c.key for c in clips], noisy, target, torch.tensor(samples), gains)
        return _to(batch, device)

    def pretrain_loss(self, model: FlowEnhancer, batch: FlowBatch, config: Pretrain) -> dict[str, Tensor]:
        """Flow-matching loss in named parts; ``loss`` is the one to minimise."""
        assert batch.target is not None
        x1, y = encode(model, batch.target, batch.samples), encode(model, batch.noisy, batch.samples)
        return model.loss(x1, y, spectral_mask(model, batch, y.shape[1]), config.magnitude_weight)

    def validate(
        self, model: FlowEnhancer, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Scores of held-out clips."""
        return check_enhancer(Enhancer(self, model, seed=seed), clips, folder, step, scorer)

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        """The enhancer as a policy over the steps of its ODE."""
        from rlspeech.tasks.flowse.policy import FlowPolicy

        if "diffro" in config.algo:
            from rlspeech.tasks.flowse.policy import RelaxedFlow

            return RelaxedFlow(
                self,
                adapted,
                explore or config.explore,
                reduction=config.reduction,
                seed=config.seed,
                last_steps=config.diffro.last_steps,
            )
        return FlowPolicy(self, adapted, explore or config.explore, reduction=config.reduction, seed=config.seed)

    def outputs(self, policy: Any, clips: list[Clip], folder: Path, *, players: int = 4, seed: int = 0) -> list[Sample]:
        """What the policy makes of whole clips without noise, as samples to score; the first ``players`` are saved under ``folder``."""
        return enhance_clips(policy.enhancer(seed), clips, folder, players)

    def enhancer(self, model: FlowEnhancer, *, seed: int = 0, config: Evaluate | None = None) -> Enhancer:
        """The model at inference; ``config`` may give steps and guidance."""
        return Enhancer(
            self, model, nfe=config.nfe if config else None, guidance=config.guidance if config else None, seed=seed
        )


class Enhancer:
    """Deterministic enhancement by the ODE; every clip's latent depends on (seed, key) alone."""

    uses_video = False

    def __init__(
        self, task: FlowSE, model: FlowEnhancer, *, nfe: int | None = None, guidance: float | None = None, seed: int = 0
    ) -> None:
        self.task, self.model, self.seed = task, model, seed
        self.sample_rate, self.channels = model.sample_rate, 1
        self.nfe = nfe or model.cfg.nfe
        self.guidance = model.cfg.guidance if guidance is None else guidance

    @torch.no_grad()
    def infer(
        self,
        wavs: Sequence[np.ndarray],
        keys: Sequence[str] | None = None,
        lips: Sequence[np.ndarray | None] | None = None,
    ) -> list[np.ndarray]:
        """Enhance waveforms.

        Args:
            wavs: B arrays (T_i,) float32 at ``sample_rate``.
            keys: B ids that seed the latents; their positions by default.
            lips: not looked at.

        Returns:
            B arrays (T_i,) float32 at the inputs' levels.
        """
        model, cfg = self.model, self.model.cfg
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        device = next(model.parameters()).device
        clips = [Clip(k, w, w, self.sample_rate) for k, w in zip(names, wavs, strict=True)]
        batch = self.task.collate(clips, cfg, device, with_target=False)
        y = encode(model, batch.noisy, batch.samples)
        z = latent(names, self.seed, (y.shape[1], y.shape[2])).to(device)
        x = model.ode(y, z, self.nfe, spectral_mask(model, batch, y.shape[1]), self.guidance)
        out = decode(model, x, batch.samples) / batch.gain[:, None]
        return [o[:n].numpy() for o, n in zip(out.float().cpu(), batch.samples.tolist(), strict=True)]


def encode(model: FlowEnhancer, wavs: Tensor, samples: Tensor) -> Tensor:
    """(B, T) padded -> (B, L, D) padded; every row as if it were alone, for a window that reaches into padding would see another end."""
    counts = samples.tolist()
    if min(counts) == wavs.shape[1]:
        return model.front.encode(wavs)
    rows = [model.front.encode(w[None, :n])[0] for w, n in zip(wavs, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def decode(model: FlowEnhancer, x: Tensor, samples: Tensor) -> Tensor:
    """(B, L, D) padded -> (B, T) padded with zeros; every row as if it were alone, as in ``encode``."""
    counts = samples.tolist()
    if min(counts) == max(counts):
        return model.front.decode(x, counts[0])
    rows = [model.front.decode(row[None, : model.front.frames(n)], n)[0] for row, n in zip(x, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def spectral_mask(model: FlowEnhancer, batch: FlowBatch, length: int) -> Tensor | None:
    """(B, L) bool over real frames, or None where nothing is padded."""
    frames = torch.tensor([model.front.frames(n) for n in batch.samples.tolist()], device=batch.noisy.device)
    return frame_mask(frames, length)


def _to(batch: FlowBatch, device: torch.device | str) -> FlowBatch:
    moved: dict[str, Any] = {k: getattr(batch, k).to(device) for k in ("noisy", "samples", "gain")}
    return FlowBatch(batch.keys, target=None if batch.target is None else batch.target.to(device), **moved)
