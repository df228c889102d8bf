"""A policy of a few numbers over five codes and a stop, and a reward that can be differentiated by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tiny_ppo import NAME, Judge
from torch import Tensor, nn
from torch.nn.functional import pad

from rlspeech.config import RL, DiffRO, RewardSpec
from rlspeech.tasks.tts.policy import gumbel_noise, relaxed_tokens
from rlspeech.types import LogProb, Relaxed, Rollout, Sample

CODES, STOP, LONGEST = 5, 5, 12


class Chain:
    """A Markov chain: logits of the next token (stop among them) by the one before; all prompts are alike."""

    sample_rate = 16000

    def __init__(
        self, supports: frozenset[str] = frozenset({"sample", "relax"}), dtype: Any = torch.float32, own_kl: bool = True
    ) -> None:
        start = 0.5 * torch.randn(CODES + 1, CODES + 1, generator=torch.Generator().manual_seed(1))
        self.table = nn.Parameter(start.to(dtype))
        self.reference, self.supports, self.own_kl = self.table.detach().clone(), supports, own_kl
        self.relaxed: list[Tensor] = []
        self.seeds: list[int] = []

    def parameters(self) -> list[nn.Parameter]:
        return [self.table]

    @torch.no_grad()
    def rollout(self, batch: list[Any], *, group: int, seed: int) -> Rollout:
        index, g = torch.arange(len(batch)).repeat_interleave(group), torch.Generator().manual_seed(seed)
        n = len(index)
        ids, alive = torch.full((n, LONGEST), STOP), torch.ones(n, dtype=torch.bool)
        mask = torch.zeros(n, LONGEST, dtype=torch.bool)
        last = torch.full((n,), STOP)
        for s in range(LONGEST):
            last = torch.multinomial(self.table[last].softmax(-1).float(), 1, generator=g)[:, 0]
            ids[:, s], mask[:, s] = torch.where(alive, last, STOP), alive
            alive = alive & (last != STOP)
        samples = [Sample(str(batch[i]), np.zeros(0, np.float32), 16000, text=str(batch[i])) for i in index.tolist()]
        for sample, row, m, a in zip(samples, ids, mask, alive, strict=True):
            sample.tokens, sample.finished = row[m & (row != STOP)].numpy(), not bool(a)
        made = Rollout(index, torch.zeros(n, LONGEST), mask, samples, ids, ~alive)
        made.logp = self.log_prob(made, torch.arange(n), with_kl=False).logp.detach()
        return made

    def _logits(self, ids: Tensor, table: Tensor) -> Tensor:
        return table[pad(ids[:, :-1], (1, 0), value=STOP)]

    def _kl(self, ids: Tensor) -> Tensor:
        here, there = (self._logits(ids, t).log_softmax(-1) for t in (self.table, self.reference))
        return (here.exp() * (here - there)).sum(-1)

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        ids = rollout.state[rows]
        logp = self._logits(ids, self.table).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        one = torch.ones(LONGEST)
        return LogProb(logp, self._kl(ids) if with_kl else None, torch.zeros_like(logp).detach(), one, one)

    def relax(
        self, rollout: Rollout, rows: Tensor, *, tau: float, hard: bool, seed: int, with_kl: bool = False
    ) -> Relaxed:
        self.relaxed.append(rows)
        self.seeds.append(seed)
        ids = rollout.state[rows]
        mask = rollout.mask[rows] & (ids != STOP)
        logits = self._logits(ids, self.table)
        noise = gumbel_noise(mask.sum(1).tolist(), CODES, [seed * 1000 + r for r in rows.tolist()])
        noise = pad(noise, (0, 0, 0, LONGEST - noise.shape[1])).to(self.table.dtype)
        codes, kl = logits[..., :CODES], self._kl(ids) if with_kl and self.own_kl else None
        soft = relaxed_tokens(codes, noise, tau, True) if hard else ((codes + noise) / tau).softmax(-1)
        return Relaxed(soft, mask, codes, kl, seed)


class Likes:
    """Likes some codes more than others, and says what it saw of each part."""

    def __init__(
        self, taste: Sequence[float] = (1.0, 0.5, 0.0, -0.5, -1.0), blind: frozenset[str] = frozenset()
    ) -> None:
        self.taste, self.blind, self.last, self.rows = torch.tensor(taste), blind, dict[str, float](), 0

    def score_soft(self, relaxed: Relaxed, samples: Sequence[Sample]) -> Tensor:
        self.rows += len(samples)
        mean = relaxed.soft @ self.taste.to(relaxed.soft.dtype)
        liked = mean.square() + mean
        value = (liked * relaxed.mask).sum(1) / relaxed.mask.sum(1).clamp_min(1)
        self.last = {"taste": float(value.detach().mean())}
        unknown = torch.tensor([s.key in self.blind for s in samples])
        return torch.where(unknown, torch.nan, value) if bool(unknown.any()) else value


def judge(values: Sequence[float | None] | None = None) -> Judge:
    """Scores by number in the batch, or how often the first code was drawn."""
    return Judge(lambda i, s: float(np.sum(s.tokens == 0)) if values is None else values[i])


def config(algo: str, **changes: Any) -> RL:
    """Settings for the toy; ``diffro`` as a dictionary."""
    changes["diffro"] = DiffRO(**changes.pop("diffro", {}))
    sizes = {"prompts_per_step": 4, "group": 4, "micro_batch": 2, "steps": 5}
    plain = {"rewards": [RewardSpec(name=NAME)], "kl_beta": 0.0, "clip_range": 0.2, "lr": 0.05, "truncated": "keep"}
    return RL(**{"algo": algo, "task": "tts", **sizes, **plain, **changes})
