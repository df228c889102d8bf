"""Several processes as threads of one, and toys whose noise hangs on a prompt's place in the batch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tiny_ppo import clips

from rlspeech.data.batches import Clip
from rlspeech.engine import Ranks
from rlspeech.types import Rollout

T = TypeVar("T")


class Thread(Ranks):
    """One of ``world`` threads that exchange what processes would."""

    def __init__(self, rank: int, box: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._box, self._barrier = rank, len(box), box, barrier

    def gather(self, value: Any) -> list[Any]:
        self._box[self.rank] = value
        self._barrier.wait(20)
        found = copy.deepcopy(self._box)
        self._barrier.wait(20)
        return found

    def add_up(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            tensor.copy_(sum(self.gather(tensor.clone())))


def together(world: int, work: Callable[[Ranks], T]) -> list[T]:
    """What ``work`` returns in each of the threads; one that fails ends them all."""
    box, barrier = [None] * world, threading.Barrier(world)

    def one(rank: int) -> T:
        try:
            return work(Thread(rank, box, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(one, rank) for rank in range(world)]
        errors = [e for f in futures if (e := f.exception()) and not isinstance(e, threading.BrokenBarrierError)]
        if errors:
            raise errors[0]
        return [f.result() for f in futures]


def placed(count: int) -> list[Clip]:
    return [replace(c, place=i) for i, c in enumerate(clips(count))]


def by_place(policy: Any) -> Any:
    """The policy, its rollouts drawn one prompt after the other, each from the prompt's place."""
    plain = policy.rollout

    def rollout(batch: list[Clip], *, group: int, seed: int) -> Rollout:
        made = [plain([clip], group=group, seed=1000 * seed + clip.place) for clip in batch]
        state = [m.state if isinstance(m.state, tuple) else (m.state,) for m in made]
        states = tuple(torch.cat(part) for part in zip(*state, strict=True))
        logp, mask, done = (torch.cat([getattr(m, k) for m in made]) for k in ("logp", "mask", "finished"))
        index, samples = torch.arange(len(batch)).repeat_interleave(group), [s for m in made for s in m.samples]
        return Rollout(index, logp, mask, samples, states if len(states) > 1 else states[0], done)

    policy.rollout = rollout
    return policy
