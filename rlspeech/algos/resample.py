"""Dynamic sampling (DAPO, arXiv 2503.14476): prompts whose rollouts all got the same reward are replaced, so that every update is full.

The textbook version samples until the batch is full. What is changed: the number of rounds is bounded, and what is missing then is
filled with prompts without signal, so that an update keeps its size and its mean its meaning. What it costs is logged: the prompts
drawn, and the share of them without signal, which the collection itself no longer shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rlspeech.types import Policy, Rollout, Score


class JoiningPolicy(Policy, Protocol):
    """A policy that can make one collection of several; it says so by supporting "join"."""

    def join(self, parts: Sequence[tuple[Rollout, Tensor]]) -> Rollout:
        """Some prompts (indices (K,)) of several rollouts as one rollout, numbered anew in this order, ``logp`` by the training pass."""
        ...


class Draw(NamedTuple):
    """Prompts, their rollouts, and the scores of those by column."""

    prompts: list[Any]
    rollout: Rollout
    columns: dict[str, list[Score]]


def no_rows() -> Rollout:
    """The rollout of no prompt."""
    none = torch.zeros(0, dtype=torch.bool)
    return Rollout(none.long(), torch.zeros(0, 1), none[:, None], [], None, none)


def refill(
    first: Draw,
    draw: Callable[[list[Any], int], Draw],
    further: Callable[[int], list[Any]],
    has_signal: Callable[[Draw], tuple[Tensor, Tensor]],
    join: Callable[[Sequence[tuple[Rollout, Tensor]]], Rollout],
    rounds: int,
    total: Callable[[float], float] = lambda own: own,
) -> tuple[Draw, dict[str, float]]:
    """Replace prompts without signal, up to ``rounds`` times. Returns a draw of as many prompts as the first, and what is logged.

    ``draw`` rolls out and scores prompts, its number tells the rounds' noise apart; ``further`` gives so many prompts (or fewer) that were
    not drawn yet; ``has_signal`` says which prompts of a draw have signal, (B,) bool; ``join`` is the policy's. Several processes choose
    from all their prompts together and keep what each has drawn, so that shares may become unequal: ``first`` and ``further`` are this
    one's, ``has_signal`` is of all and also says which of them those are, indices (b,), and ``total`` sums a number over all.
    """
    wanted, current, draws = int(total(len(first.prompts))), first, list[tuple[Draw, Tensor, Tensor]]()
    drawn = alive = found = 0
    for number in range(rounds + 1):
        signal, mine = has_signal(current)
        draws.append((current, signal, mine))
        drawn, alive = drawn + len(signal), alive + int(signal.sum())
        found = min(wanted, alive)
        if found == wanted or number == rounds:
            break
        prompts = further(wanted - found)
        if not total(len(prompts)):
            break
        current = draw(prompts, number + 1)
    logged = {"prompts_drawn": float(drawn), "constant_drawn": 1.0 - alive / drawn}
    logged["resampling_short"] = float(wanted - found)
    if len(draws) == 1:
        return first, logged
    parts, missing, spare = list[tuple[Draw, Tensor]](), wanted, wanted - found
    for made, signal, mine in draws:
        keep = signal.clone()
        keep[(~signal).nonzero()[:spare, 0]] = True  # the first draw's own fill the batch where too few were found
        chosen = keep.nonzero()[:missing, 0]
        spare, missing = spare - int((keep & ~signal).sum()), missing - len(chosen)
        parts.append((made, torch.isin(mine, chosen).nonzero()[:, 0]))
    parts = [(made, chosen) for made, chosen in parts if len(chosen)]
    prompts, columns = list[Any](), {name: list[Score]() for name in first.columns}
    for made, chosen in parts:
        prompts += [made.prompts[p] for p in chosen.tolist()]
        rows = torch.cat([(made.rollout.group == p).nonzero()[:, 0] for p in chosen.tolist()])
        for name, scores in columns.items():
            scores += [made.columns[name][i] for i in rows.tolist()]
    whole = join([(made.rollout, chosen) for made, chosen in parts]) if parts else no_rows()
    return Draw(prompts, whole, columns), logged
