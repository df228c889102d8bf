"""A collection and what scores it: the data that every algorithm passes from ``collect`` to ``update``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlspeech.algos.math import Advantage
from rlspeech.types import Rollout, Sample, Score

__all__ = ["Average", "Experience", "JointScorer", "rows_of"]

Average = Callable[[Iterable[Any]], None]


class JointScorer(Protocol):
    """Scores samples with every reward and guard at once (``rewards.scorer.Scorer``)."""

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        """Column by column, in the samples' order."""
        ...


@dataclass
class Experience:
    """A collection.

    Args:
        rollout: None where the policy's loss has no weight: then there are only prompts.
        scores: (N,) by name with NaN for null.
        reward: (N,) composed.
        advantage: with ``value`` (N,), or (N, S).
        seconds: by phase; ``memory_mb/PHASE`` beside them where the device tells.
        prompts: the B prompts.
        base: (N,) by name, scores of the base's output for every row's prompt; None where the algorithm needs none.
        logged: further numbers of the collection; ``update`` returns them with its own.
        extra: tensors that the algorithm keeps for its updates.
        updates: optimiser updates made on it so far; before the first one the ratio is 1.
    """

    rollout: Rollout | None
    scores: dict[str, np.ndarray]
    reward: np.ndarray
    advantage: Advantage
    seconds: dict[str, float]
    prompts: list[Any]
    base: dict[str, np.ndarray] | None = None
    logged: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0


def rows_of(rollout: Rollout, prompts: Tensor) -> Tensor:
    """Indices (n,) of the rows of some prompts, in order."""
    return torch.isin(rollout.group, prompts).nonzero()[:, 0]
