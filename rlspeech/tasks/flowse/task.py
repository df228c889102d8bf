"""The task ``flowse``: flow-matching speech enhancement."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlspeech.config import RL, Evaluate, Exploration, Pretrain, RewardSpec
from rlspeech.models.flow import FlowEnhancer
from rlspeech.tasks.base import EnhancementTask
from rlspeech.tasks.flowse.policy import Enhancer, FlowPolicy, RelaxedFlow, collate, flow_loss
from rlspeech.tasks.gaussian import Levelled


class FlowSE(EnhancementTask):
    """The task ``flowse``."""

    name = "flowse"
    settings = EnhancementTask.settings | {
        *("diffro.last_steps", "explore.window", "explore.start", "explore.nfe", "explore.shared_latent"),
        *("valid_draws", "model", "magnitude_weight", "flow_weight", "predictor_weight", "nfe", "guidance"),
    }
    next_command = "rlspeech rl --task flowse --algo grpo --model {run}"
    default_rewards = tuple(RewardSpec(name=n) for n in ("estoi", "speaker_similarity", "speech_bert_score", "lsd"))
    default_guards = ("si_sdr", "dnsmos_ovrl", "pesq_wb")
    default_metrics = ("dnsmos", "pesq_wb", "estoi", "si_sdr", "lsd", "speaker_similarity", "speech_bert_score")
    published = Exploration(kind="sde", noise=0.4, window=2, start=(1, 3), nfe=(7, 7), antithetic=False)

    part, network = "model", FlowEnhancer
    soft = frozenset({"objective", "time_power", "condition_drop", "nfe", "guidance"})
    collate = staticmethod(collate)

    def pretrain_loss(self, model: FlowEnhancer, batch: Levelled, config: Pretrain) -> dict[str, Tensor]:
        return flow_loss(model, batch, config)

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        explore = explore or config.explore
        if "diffro" not in config.algo:
            return FlowPolicy(adapted, explore, config.reduction, config.seed)
        return RelaxedFlow(adapted, explore, config.reduction, config.seed, last_steps=config.diffro.last_steps)

    def climbed(self, config: RL) -> str:
        return f"{super().climbed(config)}, through the last {config.diffro.last_steps} step(s)"

    def enhancer(self, model: FlowEnhancer, *, seed: int = 0, config: Evaluate | None = None) -> Enhancer:
        nfe, guidance = (config.nfe, config.guidance) if config else (None, None)
        return Enhancer(model, nfe=nfe, guidance=guidance, seed=seed)
