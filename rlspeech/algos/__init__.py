"""The algorithms. They see policies and rewards through the protocols in ``types.py`` and know no task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from rlspeech.algos.update import PolicyUpdate
    from rlspeech.config import RL
    from rlspeech.engine import Ranks
    from rlspeech.types import Policy, SoftReward


def get_algorithm(
    config: RL, policy: Policy, optimizer: Optimizer, ranks: Ranks | None = None, soft: SoftReward | None = None
) -> PolicyUpdate:
    """The algorithm that ``config.algo`` names; see ``update.PolicyUpdate``. ``soft`` is the differentiable reward of those that have one.

    Raises:
        UserError: the policy does not support what the algorithm needs, or settings that do not go together.
    """
    if config.algo == "grpo":
        from rlspeech.algos.grpo import GRPO

        return GRPO(config, policy, optimizer, ranks)
    if config.algo in {"diffro", "grpo+diffro"}:
        from rlspeech.algos.diffro import DiffRO, GRPODiffRO

        return (DiffRO if config.algo == "diffro" else GRPODiffRO)(config, policy, optimizer, ranks, soft=soft)
    from rlspeech.algos.ppo import CriticPPO, RelativePPO

    return (RelativePPO if config.ppo.form == "relative" else CriticPPO)(config, policy, optimizer, ranks)
