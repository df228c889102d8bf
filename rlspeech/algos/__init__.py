"""The algorithms. They see policies and rewards through the protocols in ``types.py`` and know no task."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from rlspeech.algos.awr import AWR
from rlspeech.algos.diffro import DiffRO, GRPODiffRO
from rlspeech.algos.dpo import DPO
from rlspeech.algos.grpo import GRPO
from rlspeech.algos.ppo import CriticPPO, RelativePPO
from rlspeech.algos.update import PolicyUpdate
from rlspeech.config import RL
from rlspeech.engine import Ranks
from rlspeech.types import Policy, SoftReward

PPO = {"relative": RelativePPO, "critic": CriticPPO}  # by ``ppo.form``


def get_algorithm(
    config: RL, policy: Policy, optimizer: Optimizer, ranks: Ranks | None = None, soft: SoftReward | None = None
) -> PolicyUpdate:
    """The algorithm that ``config.algo`` names. ``soft`` is the differentiable reward of those that have one. Raises as they do."""
    known: dict[str, Any] = {"grpo": GRPO, "awr": AWR, "dpo": DPO, "ppo": PPO[config.ppo.form]}
    known |= {"diffro": DiffRO, "grpo+diffro": GRPODiffRO}
    options = {"soft": soft} if "diffro" in config.algo else {}
    return known[config.algo](config, policy, optimizer, ranks, **options)
