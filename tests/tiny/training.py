"""What tests of losses, gradients and policies share: a few steps of an optimiser or an algorithm, and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.algos import get_algorithm
from rlspeech.algos.math import flat_gradient
from rlspeech.data.batches import Clip
from rlspeech.types import Sample, Score


def fit(
    model: nn.Module, loss: Callable[[int], dict[str, Tensor]], steps: int, rate: float, by: Any = torch.optim.Adam
) -> list[dict[str, float]]:
    """Train for a few steps on the "loss" of each; return the parts of the loss, one dictionary a step."""
    optimizer, rows = by(model.parameters(), rate), []
    for step in range(steps):
        parts = loss(step)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        rows.append({k: float(torch.as_tensor(v).detach()) for k, v in parts.items()})
    return rows


def slope(value: Callable[[], Tensor], parameters: list[nn.Parameter], step: float) -> tuple[float, float]:
    """The length of a gradient, and the slope along it by finite differences, which should be the same."""
    found = flat_gradient(value(), parameters)
    ways = (found / found.norm()).split([p.numel() for p in parameters])
    ends = []
    for sign in (1, -1):
        for turn in (sign, -sign):
            with torch.no_grad():
                for p, way in zip(parameters, ways, strict=True):
                    p.data += turn * step * way.view_as(p)
                if turn == sign:
                    ends.append(float(value().double()))
    return float(found.norm()), (ends[0] - ends[1]) / (2 * step)


class Judge:
    """A scorer of one column of the registry, by the sample."""

    def __init__(self, name: str, value: Callable[[Sample], float]) -> None:
        self.name, self.value = name, value

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        return {self.name: [Score(self.value(s)) for s in samples]}


def algorithm(policy: Any, rate: float = 0.02, **more: Any) -> Any:
    """The algorithm that a policy's settings name, over it."""
    return get_algorithm(policy.config, policy, torch.optim.AdamW(policy.parameters(), rate, weight_decay=0.0), **more)


def train(algo: Any, clips: list[Clip], judge: Judge, steps: int = 2, lr: float = 0.01) -> list[dict[str, float]]:
    """What the updates of some collections of the clips say."""
    return [algo.update(algo.collect(clips, judge, seed=step), lr=lr) for step in range(steps)]


def check_grpo(policy: Any, clips: list[Clip], judge: Judge) -> None:
    """Two steps of GRPO in groups of 4: the first at the reference, the second away from it."""
    algo, before = algorithm(policy), [p.detach().clone() for p in policy.parameters()]
    for step in range(2):
        made = algo.collect(clips, judge, seed=step)
        assert made.rollout.group.tolist() == [i for i in range(len(clips)) for _ in range(4)]
        stats = algo.update(made, lr=0.02)
        assert stats["ratio_max_gap"] < 1e-4 and stats["grad_norm"] > 0 and stats["skipped_updates"] == 0
        assert made.advantage.signal > 0 and (stats["kl"] > 1e-7) == (step > 0)
    assert any((a != b).any() for a, b in zip(before, policy.parameters(), strict=True))
    assert {"encode", "rollout", "reward", "update"} <= set(made.seconds)
