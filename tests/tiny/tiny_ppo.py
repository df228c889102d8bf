"""Gaussian toys for GRPO and PPO: one decision with a known optimum, and several decisions whose states say what is to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.algos import get_algorithm
from rlspeech.config import PPO, RL, RewardSpec
from rlspeech.data.batches import Clip
from rlspeech.types import Fit, LogProb, Rollout, Sample, Score

GOAL = torch.tensor([1.5, -0.5, 0.8])
NAME = "si_sdr"  # a column of the registry, for its direction


def clips(count: int, crop: int = 0) -> list[Clip]:
    """Clips whose samples depend on the crop."""
    return [Clip(f"u{i}", np.full(4, i + 10 * crop, np.float32), np.zeros(4, np.float32), 16000) for i in range(count)]


class Toy:
    """x = theta + sigma eps (N, S, 3). The reference is where it started."""

    sample_rate = 16000
    supports = frozenset({"sample", "base", "critic", "supervised", "supervised_sample", "fit"})

    def __init__(self, sigma: float = 0.5, steps: int = 1, lie: float = 0.0) -> None:
        self.theta, self.reference = nn.Parameter(torch.zeros(3)), torch.zeros(3)
        self.sigma, self.steps, self.lie = sigma, steps, lie
        self.looks: list[int] = []
        self.based: list[list[str]] = []
        self.rolled = 0
        self.ragged = False
        self.asked: list[Any] = []
        self.adapted = self

    def draw_back(self, left: float) -> None:
        self.theta.data.lerp_(self.reference, 1 - left)

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def _logp(self, x: Tensor) -> Tensor:
        return (-0.5 * ((x - self.theta) / self.sigma).square()).sum(2)

    @torch.no_grad()
    def rollout(self, batch: list[Clip], *, group: int, seed: int) -> Rollout:
        self.rolled += 1
        n, g = len(batch) * group, torch.Generator().manual_seed(seed)
        x = self.theta + self.sigma * torch.randn(n, self.steps, 3, generator=g)
        seen = torch.randn(n, self.steps, 2, generator=g)
        index = torch.arange(len(batch)).repeat_interleave(group)
        shown = torch.cat([x.mean(1), seen.flatten(1)], 1).numpy()
        samples = [Sample(batch[i].key, wav, 16000) for i, wav in zip(index.tolist(), shown, strict=True)]
        mask = torch.ones(n, self.steps, dtype=torch.bool)
        if self.ragged:
            mask[::2, -1] = False
            mask[::3, 0] = False
        return Rollout(index, self._logp(x), mask, samples, (x, seen), torch.ones(n, dtype=torch.bool))

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        self.looks.append(len(rows))
        logp = self._logp(rollout.state[0][rows]) + self.lie * (rows % 2)[:, None]
        moved = (0.5 * ((self.theta - self.reference) / self.sigma).square()).expand(len(rows), self.steps, 3)
        kl, other = (moved.sum(2), moved.mean(2)) if with_kl else (None, None)
        return LogProb(logp, kl, torch.zeros_like(logp).detach(), torch.ones(self.steps), torch.ones(self.steps), other)

    def fit(self, prompts: list[Clip], samples: list[Sample], *, seed: int, reference: bool = True) -> Fit:
        """Of one step ``log_prob``."""
        x = torch.from_numpy(np.stack([s.wav[:3] for s in samples]))[:, None]
        there = -0.5 * ((x - self.reference) / self.sigma).square().sum((1, 2))
        kl = (0.5 * ((self.theta - self.reference) / self.sigma).square().sum()).expand(len(x))
        both = (there, kl) if reference else (None, None)
        return Fit(self._logp(x)[:, 0], *both, torch.full((len(x),), 3.0))

    def base(self, batch: list[Clip]) -> list[Sample]:
        self.based.append([c.key for c in batch])
        wav = np.concatenate([self.reference.numpy(), np.zeros(2 * self.steps, np.float32)])
        return [Sample(c.key, wav, 16000) for c in batch]

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        return rollout.state[1][rows]

    def supervised(self, prompts: list[Clip], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        self.asked.append(None if rollout is None else rows)
        goals = torch.stack([GOAL * (1 + float(c.noisy[0])) for c in prompts])
        return (self.theta - goals).square().sum(1).mean()


class Judge:
    """Scores by distance to the goal, or by any function of the sample's number in the call."""

    def __init__(self, value: Callable[[int, Sample], float | None] | None = None) -> None:
        self.value = value or (lambda _, s: -float(np.square(s.wav[:3] - GOAL.numpy()).sum()))
        self.sizes: list[int] = []

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        self.sizes.append(len(samples))
        values = [self.value(i, s) for i, s in enumerate(samples)]
        return {NAME: [Score(v, None if v is not None else "too quiet") for v in values]}


def config(ppo: dict[str, Any] | None = None, **changes: Any) -> RL:
    """PPO with one reward as it comes, group 1."""
    sizes = {"prompts_per_step": 8, "group": 1, "micro_batch": 4}
    plain = {"rewards": [RewardSpec(name=NAME, scale="none")], "kl_beta": 0.0, "clip_range": 0.2, "lr": 0.05}
    return RL(**{"algo": "ppo", **sizes, **plain, "ppo": PPO(**(ppo or {})), **changes})


def make(
    policy: Toy | None = None, optimizer: Any = torch.optim.Adam, ppo: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """The algorithm that the configuration names, over a toy."""
    policy = policy or Toy()
    return get_algorithm(config(ppo, **changes), policy, optimizer(policy.parameters(), 0.05))  # type: ignore[arg-type]


def written(algo: Any, experience: Any) -> Tensor:
    """The gradient of -mean(A logp) over all rows and decisions, by autograd of all at once."""
    advantage, logp = experience.advantage.value, algo.policy._logp(experience.rollout.state[0])
    loss = -(advantage.view(len(logp), -1) * logp).sum() / experience.rollout.mask.sum()
    return torch.autograd.grad(loss, algo.policy.theta)[0]


def train(
    algo: Any, steps: int, lr: float = 0.05, judge: Judge | None = None, start: int = 0, total: int | None = None
) -> list[dict]:
    """``steps`` collections from number ``start``, linear schedule."""
    rows, total = [], total or steps
    for step in range(start, start + steps):
        experience = algo.collect(clips(algo.config.prompts_per_step), judge or Judge(), seed=step)
        row = algo.update(experience, lr=lr * (1 - step / total))
        rows.append({**row, **algo.steer(row)})
    return rows
