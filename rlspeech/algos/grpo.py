"""GRPO: sample a group of rollouts for every prompt, reward each, and push towards those above their group's mean.

The textbook version (DeepSeekMath; for flows Flow-GRPO and FlowSE-GRPO): PPO's clipped ratio, no critic, the advantage is the
reward normalised inside its group, a KL to the reference policy in the loss. Nothing is left out. What is changed:
rows that cannot be scored get advantage 0 and do not enter their group's statistics; groups without spread are skipped and
counted; rows that never stopped are kept, or penalised, or left out of every statistic (``truncated``); prompts without signal may be
replaced by others (``algos/resample.py``); and what ``algos/update.py`` adds for every algorithm, among it the variants of the loss
that go by names of their own (DAPO, GSPO, Dr. GRPO).

Launch: ``rlspeech rl --algo grpo --task flowse`` (one process), ``torchrun --nproc-per-node 8 -m rlspeech rl ...`` (several).
"""

from __future__ import annotations

import torch

from rlspeech.algos.math import group_advantage
from rlspeech.algos.update import Columns, Judged, PolicyUpdate, Specs
from rlspeech.config import RL
from rlspeech.rewards.mix import compose
from rlspeech.types import Rollout, UserError


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
