"""The task ``flowse``: flow-matching speech enhancement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlspeech.config import RL, Evaluate, Exploration, Pretrain, RewardSpec
from rlspeech.config_parts import FlowModel
from rlspeech.data.batches import Clip
from rlspeech.models.flow import FlowEnhancer
from rlspeech.models.hub import load_model, save_model
from rlspeech.run import Run
from rlspeech.tasks.base import EnhancementTask, Numbers, Weights, check_enhancer, set_anew
from rlspeech.tasks.flowse.enhancer import Enhancer, collate, flow_loss
from rlspeech.tasks.gaussian import Levelled

SOFT = frozenset({"time_power", "condition_drop", "nfe", "guidance"})  # settings that weights do not depend on


class FlowSE(EnhancementTask):
    """The task ``flowse``."""

    name = "flowse"
    settings = EnhancementTask.settings | {
        *(
            "diffro.last_steps",
            "explore.window",
            "explore.start",
            "explore.nfe",
            "explore.shared_latent",
            "valid_draws",
        ),
        *("model", "magnitude_weight", "nfe", "guidance"),
    }
    next_command = "rlspeech rl --task flowse --algo grpo --model {run}"
    default_rewards = tuple(RewardSpec(name=n) for n in ("estoi", "speaker_similarity", "speech_bert_score", "lsd"))
    default_guards = ("si_sdr", "dnsmos_ovrl", "pesq_wb")
    default_metrics = ("dnsmos_ovrl", "pesq_wb", "estoi", "si_sdr", "lsd", "speaker_similarity", "speech_bert_score")

    published = Exploration(kind="sde", noise=0.4, window=2, start=(1, 3), nfe=(7, 7), antithetic=False)

    def build(self, config: Pretrain | FlowModel) -> FlowEnhancer:
        """Fresh weights, or ``init``'s: there only settings that fit its weights may be given anew."""
        if isinstance(config, FlowModel):
            return FlowEnhancer(config)
        if config.init is None:
            return FlowEnhancer(config.model)
        model, _ = load_model(config.init, "flowse")
        return set_anew(model, config.init, config.model, SOFT)

    def load(self, name: str, device: torch.device | str = "cpu") -> tuple[FlowEnhancer, dict[str, Any]]:
        return load_model(name, "flowse", device)

    def save(self, folder: Path, model: FlowEnhancer, *, facts: dict[str, Any], weights: Weights = None) -> None:
        save_model(folder, model, "flowse", facts=facts, weights=weights)

    collate = staticmethod(collate)

    def pretrain_loss(self, model: FlowEnhancer, batch: Levelled, config: Pretrain) -> dict[str, Tensor]:
        return flow_loss(model, batch, config.magnitude_weight)

    def validate(self, model: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0) -> Numbers:
        return check_enhancer(Enhancer(model, seed=seed), clips, folder, step, scorer)

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        from rlspeech.tasks.flowse.policy import FlowPolicy, RelaxedFlow

        explore = explore or config.explore
        if "diffro" not in config.algo:
            return FlowPolicy(adapted, explore, config.reduction, config.seed)
        return RelaxedFlow(adapted, explore, config.reduction, config.seed, last_steps=config.diffro.last_steps)

    def climbed(self, config: RL) -> str:
        d = config.diffro
        return f"DNSMOS through the last {d.last_steps} step(s), {d.smooth} altered copies"

    def enhancer(self, model: FlowEnhancer, *, seed: int = 0, config: Evaluate | None = None) -> Enhancer:
        nfe, guidance = (config.nfe, config.guidance) if config else (None, None)
        return Enhancer(model, nfe=nfe, guidance=guidance, seed=seed)
