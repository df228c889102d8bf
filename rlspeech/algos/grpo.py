"""GRPO: sample a group of rollouts for every prompt, reward each, and push towards those above their group's mean.

The textbook version (DeepSeekMath; for flows Flow-GRPO and FlowSE-GRPO): PPO's clipped ratio, no critic, the advantage is the
reward normalised inside its group, a KL to the reference policy in the loss. Nothing is left out. What is changed:
rows that cannot be scored get advantage 0 and do not enter their group's statistics; groups without spread are skipped and
counted; rows that never stopped are kept, or penalised, or left out of every statistic (``truncated``); and what ``algos/update.py``
adds for every algorithm, among it the variants of the loss that go by names of their own (DAPO, GSPO, Dr. GRPO).

Dynamic sampling (DAPO, arXiv 2503.14476): prompts whose rollouts all got the same reward are replaced, so that every update is full.
The textbook version samples until the batch is full. What is changed: the number of rounds is bounded, and what is missing then is
filled with prompts without signal, so that an update keeps its size and its mean its meaning. What it costs is logged: the prompts
drawn, and the share of them without signal, which the collection itself no longer shows.

Launch: ``rlspeech rl --algo grpo --task flowse`` (one process), ``torchrun --nproc-per-node 8 -m rlspeech rl ...`` (several).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from rlspeech.algos.math import group_advantage
from rlspeech.algos.update import Columns, Draw, Further, Judged, Logged, PolicyUpdate, Specs, no_rows, rows_of
from rlspeech.config import RL
from rlspeech.rewards.mix import compose
from rlspeech.types import Policy, Rollout, Score, UserError


class JoiningPolicy(Policy, Protocol):
    """A policy that can make one collection of several; it says so by supporting "join"."""

    def join(self, parts: Sequence[tuple[Rollout, Tensor]]) -> Rollout:
        """Some prompts (indices (K,)) of several rollouts as one rollout, numbered anew in this order, ``logp`` by the training pass."""
        ...


class GRPO(PolicyUpdate):
    """The advantage of a row is its reward against those of its prompt's other rows; see ``PolicyUpdate``.

    Raises:
        UserError: groups of one.
    """

    name = "grpo"
    compares = True

    def check(self, config: RL) -> None:
        if config.policy_weight and config.group < 2:
            why = "a rollout is compared with the others of its group"
            raise UserError("grpo needs at least 2 rollouts a prompt", why, "--set group=8, or --algo ppo")

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        cfg, done = self.config, rollout.finished
        composed = compose(self.counted(scores, done), rollout.group.numpy(), specs, cfg.advantage).reward
        reward = self.with_truncation(composed, done)
        # norm_then_sum has divided each reward by its own spread already
        std = "none" if cfg.advantage == "norm_then_sum" else cfg.advantage_std
        made = group_advantage(torch.from_numpy(reward), rollout.group, std, cfg.advantage_clip)
        return reward, made._replace(unscorable=self.unscorable(reward, done))

    def refill(self, first: Draw, again: Callable[[list[Any], int], Draw], further: Further) -> tuple[Draw, Logged]:
        """Replace prompts without signal, up to ``dynamic_sampling`` times. Returns a draw of as many as the first, and what is logged.

        ``again`` rolls out and scores prompts, its number tells the rounds' noise apart; ``further`` gives so many prompts (or fewer) that
        were not drawn yet. Several processes choose from all their prompts together and keep what each has drawn, so that shares may
        become unequal.
        """
        rounds = self.config.dynamic_sampling
        wanted, current, draws = int(self.total(len(first.prompts))), first, list[tuple[Draw, Tensor, Tensor]]()
        drawn = alive = found = 0
        for number in range(rounds + 1):
            signal, mine = self._has_signal(current)
            draws.append((current, signal, mine))
            drawn, alive = drawn + len(signal), alive + int(signal.sum())
            found = min(wanted, alive)
            if found == wanted or number == rounds:
                break
            prompts = further(wanted - found)
            if not self.total(len(prompts)):
                break
            current = again(prompts, number + 1)
        logged = {"prompts_drawn": float(drawn), "constant_drawn": 1.0 - alive / drawn}
        logged["resampling_short"] = float(wanted - found)
        if len(draws) == 1:
            return first, logged
        parts, missing, spare = list[tuple[Rollout, Tensor]](), wanted, wanted - found
        prompts, columns = list[Any](), {name: list[Score]() for name in first.columns}
        for made, signal, mine in draws:
            keep = signal.clone()
            keep[(~signal).nonzero()[:spare, 0]] = True  # the first draw's own fill the batch where too few were found
            chosen = keep.nonzero()[:missing, 0]
            spare, missing = spare - int((keep & ~signal).sum()), missing - len(chosen)
            if len(own := torch.isin(mine, chosen).nonzero()[:, 0]):
                parts.append((made.rollout, own))
                prompts += [made.prompts[p] for p in own.tolist()]
                for name, scores in columns.items():
                    scores += [made.columns[name][i] for i in rows_of(made.rollout, own).tolist()]
        return Draw(prompts, cast(JoiningPolicy, self.policy).join(parts) if parts else no_rows(), columns), logged

    def _has_signal(self, made: Draw) -> tuple[Tensor, Tensor]:
        """(B,) bool of all processes: prompts from whose rollouts something can be learnt; and which of them are this process's.

        A draw that cannot be scored stops the run, whatever follows.
        """
        rows, mine, (scores,) = self.ranks.rows(made.rollout, made.prompts, self.values(made))
        _, advantage = self.advantage_of(rows, scores, self.specs)
        self.check_scorable(made.columns, advantage.unscorable)
        alive = torch.zeros(int(rows.group.max()) + 1).index_add_(0, rows.group, advantage.value.abs())
        return alive > 0, torch.unique(rows.group[mine])
