"""PPO in two forms: one decision judged against the frozen base's output (LR-AVSE), or a critic and GAE for many decisions.

The textbook version (arXiv 1707.06347): clipped surrogate, value network, GAE, several passes over a collection. ``critic`` is that,
with the reward at a rollout's last decision and, as in RLHF, beta KL taken off the reward of every decision (or a KL term in the
loss). What is left out: the entropy bonus, for the policies here have a fixed spread. What is changed: the critic and what
``algos/update.py`` adds for every algorithm.

The textbook critic shares a trunk with the policy, or is a second model as large as it. Here it is a small network on pooled numbers that
the policy keeps from its rollout, detached: it costs no forward pass and cannot bend the policy. Features and returns are expressed in
the mean and spread of the first collection (kept from then on, in the checkpoint too), so that learning rate, value clip and initial
value 0 mean the same for every reward; and one update of the policy is several steps of the critic, which is far smaller.

``relative`` is what the audio-visual paper publishes: A = r(y) - r(y_base) - beta KL(pi || pi_base), one decision, no critic, no
group. The KL there is a number, measured by the policy's second look at the collection: it lowers the advantage of rows whose
distribution has moved, but as a term without gradient it is *not* what pulls the policy back; ``ppo.kl_in=loss`` puts beta KL in the
loss instead, where it does. Rows that cannot be scored, or whose base cannot, get advantage 0 and are counted.

Launch: ``rlspeech rl --algo ppo --task avse`` (one process), ``torchrun --nproc-per-node 8 -m rlspeech rl ...`` (several).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.algos.math import (
    Advantage,
    decision_rewards,
    explained_variance,
    gae,
    relative_advantage,
    value_loss,
    whitened,
)
from rlspeech.algos.math import divergence as distances
from rlspeech.algos.update import Columns, Experience, JointScorer, Judged, PolicyUpdate, Scored, Specs, rows_of
from rlspeech.config import RL
from rlspeech.engine import Ranks
from rlspeech.rewards.encoders import Cache
from rlspeech.rewards.mix import compose, divisor, unit_of
from rlspeech.state import load_optimizer_state
from rlspeech.types import BasePolicy, CriticPolicy, LogProb, Rollout, UserError

Estimate = tuple[Advantage, Tensor]  # advantages and returns, both (N, S)
STEPS = 8  # of the critic's optimiser, for one of the policy's
TINY = 1e-6


class PPO(PolicyUpdate):
    """What the two forms share: every row that could be scored counts, and the KL may be a number of the collection.

    Raises:
        UserError: a composition that only groups can have.
    """

    name = "ppo"

    def check(self, config: RL) -> None:
        if config.advantage != "sum_then_norm":
            why = "only grpo normalises rewards inside groups"
            raise UserError(f"ppo has no advantage={config.advantage}", why, "--set advantage=sum_then_norm")
        scales = {spec.scale for spec in config.rewards if spec.weight}
        sizes = {"group": config.group, "batch": config.group * config.prompts_per_step, "none": math.inf}
        if config.policy_weight and any(sizes[scale] < 2 for scale in scales):
            what = "one rollout has no spread to divide its reward by"
            why = f"scale {', '.join(sorted(scales))}, group {config.group}, {config.prompts_per_step} prompt(s) a step"
            raise UserError(what, why, "in a preset or config file: rewards: [{name: NAME, scale: none}]")

    @property
    def loss_beta(self) -> float:
        return self.config.kl_beta if self.config.ppo.kl_in == "loss" else 0.0

    @torch.no_grad()
    def divergence(self, experience: Experience, rollout: Rollout) -> Tensor | None:
        """KL to the base (N, S) at collection, logged; None unless the advantage carries it."""
        cfg = self.config
        if cfg.ppo.kl_in != "advantage" or cfg.kl_beta == 0:
            return None
        evaluations = [self.policy.log_prob(rollout, rows, with_kl=True) for rows in self.parts(rollout)]
        own, away = dict[str, float](), torch.zeros(0, rollout.mask.shape[1])
        if evaluations:
            joined: Any = [None if p[0] is None else torch.cat(p) for p in zip(*evaluations, strict=True)]
            whole = LogProb(*joined)
            own, away = distances(whole, rollout.mask), torch.where(rollout.mask, cast(Tensor, whole.kl), 0.0).cpu()
        parts = self.ranks.gather((own, rollout.mask.sum().item()))
        for name in dict.fromkeys(k for found, _ in parts for k in found):
            total = sum(found[name] * count for found, count in parts if name in found)
            experience.logged[name] = total / max(1, sum(count for _, count in parts))
        return away


class RelativePPO(PPO):
    """``ppo.form=relative``: the advantage is the reward relative to the frozen base's output, minus beta KL."""

    requires = frozenset({"sample", "base"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # of a clip's base; a costly judge scores it once. Training clips are random crops and fresh mixtures: another crop is another clip
        self.known, self._hits = Cache[tuple[str, str, int], dict[str, float]](100_000), 0.0

    def score(self, rollout: Rollout, prompts: list[Any], scorer: JointScorer, *, seed: int) -> Scored:
        """The rollouts' scores and, behind them, those of the base's outputs that were not known; and the base's by row."""
        policy, seeded = cast(BasePolicy, self.policy), "latent" in self.policy.supports
        # with latents of its own, the same clip at another place is another one
        names = [(*clip_name(clip), getattr(clip, "place", 0) * seeded) for clip in prompts]
        found = {n: hit for n in names if (hit := self.known.get(n)) is not None}
        new = {n: clip for n, clip in zip(names, prompts, strict=True) if n not in found}
        clips = list(new.values())
        made = (policy.base(clips, seed=seed) if seeded else policy.base(clips)) if clips else []
        for sample, name in zip(made, new, strict=True):
            sample.group = names.index(name)  # beside the rollouts, for rewards that compare
        columns = scorer.score([*rollout.samples, *made])
        for i, name in enumerate(new, start=len(rollout.samples)):
            values = [(column, scores[i].value) for column, scores in columns.items()]
            found[name] = {column: np.nan if value is None else float(value) for column, value in values}
            # what hangs on the collection's seed is nothing to keep, and what was null is asked again
            if not seeded and all(np.isfinite(v) for v in found[name].values()):
                self.known.put(name, found[name])
        self._hits = 1.0 - len(new) / len(set(names))
        rows = rollout.group.tolist()
        return columns, {column: np.array([found[names[p]].get(column, np.nan) for p in rows]) for column in columns}

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        assert base is not None
        made = relative_reward(self.counted(scores, rollout.finished), base, rollout.group.numpy(), specs)
        difference = self.with_truncation(made.difference, rollout.finished)
        return difference, self._advantage(difference, rollout)

    def _advantage(self, difference: np.ndarray, rollout: Rollout, kl: Tensor | None = None) -> Advantage:
        cfg, relative = self.config, torch.from_numpy(difference)
        whiten, clip = cfg.ppo.whiten, cfg.advantage_clip
        made = relative_advantage(relative, rollout.group, kl, cfg.kl_beta, whiten=whiten, clip=clip)
        return made._replace(unscorable=self.unscorable(difference, rollout.finished))

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        """A = R - beta KL. A row's KL is the sum over its decisions."""
        kl = self.divergence(experience, rollout)
        columns = {} if kl is None else {"kl": kl.sum(1).numpy()}
        rows, mine, (scores, base, away) = self.rows(experience, rollout, columns)
        made = relative_reward(self.counted(scores, rows.finished), base, rows.group.numpy(), self.specs)
        reward, difference = (self.with_truncation(x, rows.finished) for x in (made.reward, made.difference))
        advantage = self._advantage(difference, rows, torch.from_numpy(away["kl"]) if away else None)
        experience.take(mine, np.where(np.isfinite(difference), reward, np.nan), advantage)
        known = np.isfinite(made.difference)  # also where a row that never stopped got its own number
        for name, values in (("reward_base", made.base), ("reward_relative", made.difference)):
            experience.logged[name] = float(values[known].mean()) if known.any() else float("nan")
        experience.logged["base_cached"] = self._hits


def pooled_moments(rows: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
    """Mean and (population) standard deviation, each (D,), of the rows (k, D) of all processes together; None where there are none."""
    exact = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)  # Apple's has no double
    sums = torch.cat([exact.new_tensor([len(rows)]), exact.sum(0), exact.square().sum(0)])
    ranks.add_up(sums)
    if not sums[0]:
        return None
    mean, square = (sums[1:] / sums[0]).chunk(2)
    return mean.float(), (square - mean.square()).clamp_min(0).sqrt().float()


class Critic:
    """V(s). It takes its size from the first features it sees; its last layer starts at 0, so that V starts as the mean return.

    The seed of the initial weights is the run's, the same in every process.
    """

    optimizer: torch.optim.Optimizer  # where there is a ``net``

    def __init__(self, config: RL, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.net: nn.Sequential | None = None
        self.settled = False
        self.units: dict[str, Tensor] = {}  # feature mean and spread (D,), return mean and spread ()

    def _build(self, width: int, device: torch.device | str) -> nn.Sequential:
        if self.net is None:
            ppo = self.config.ppo
            sizes = (width, ppo.value_hidden, ppo.value_hidden, 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                first, second, last = (nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
                self.net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)
            for p in self.net[-1].parameters():
                nn.init.zeros_(p)
            self.net.to(device)
            self.optimizer = torch.optim.AdamW(self.net.parameters(), ppo.value_lr, weight_decay=0.0)
        return self.net

    def measure(self, features: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Take the units from the first collection whose returns vary; later calls change nothing.

        Features are (N, S, D); returns (N, S), such as the sum of what is still to come, on any device; ``mask`` is (N, S) bool, decisions
        that count.
        """
        if self.settled:
            return
        for name, rows in (("feature", features[mask]), ("return", returns.to(features.device)[mask][:, None])):
            if (moments := pooled_moments(rows, self.ranks)) is None:
                return
            mean, spread = moments
            varies = spread > TINY * (1 + mean.abs())
            self.settled = bool(varies.any())  # the last word is the returns'
            self.units |= {f"{name}_mean": mean, f"{name}_spread": torch.where(varies, spread, 1.0)}

    def _normal(self, features: Tensor) -> Tensor:
        """Values (n, S) in units of the returns' spread, with gradient."""
        net = self._build(features.shape[-1], features.device)
        if self.units:
            features = ((features - self.units["feature_mean"]) / self.units["feature_spread"]).clamp(-10, 10)
        return net(features)[..., 0]

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """V (n, S) in the reward's units for features (n, S, D)."""
        value = self._normal(features)
        return value * self.units["return_spread"] + self.units["return_mean"] if self.units else value

    def fit(self, features: Tensor, old: Tensor, returns: Tensor, mask: Tensor) -> float:
        """Learn the returns of some rows in ``STEPS`` steps. Returns the loss before the first of them, in units of the spread.

        Features are (n, S, D), values at collection (``old``) and returns (n, S) in the reward's units, ``mask`` (n, S) bool.
        """
        if self.units:
            old, returns = ((v - self.units["return_mean"]) / self.units["return_spread"] for v in (old, returns))
        first, whole = float("nan"), max(1, sum(self.ranks.gather(int(mask.sum()))))
        net = self._build(features.shape[-1], features.device)
        for i in range(STEPS):
            loss = value_loss(self._normal(features), old, returns, mask, self.config.ppo.value_clip, whole)
            first = sum(self.ranks.gather(loss.item())) if i == 0 else first
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.ranks.add_up(*(p.grad for p in net.parameters() if p.grad is not None))
            if torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), self.config.grad_clip)):
                self.optimizer.step()
        return first

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers for a checkpoint."""
        if self.net is None:
            return {}
        made = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**made, "settled": self.settled, "units": self.units}

    def load_state(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Put back what ``state`` gave."""
        if not state:
            return
        net = self._build(int(state["net"]["0.weight"].shape[1]), device)
        net.load_state_dict({k: v.to(device) for k, v in state["net"].items()})
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.units, self.settled = {k: v.to(device) for k, v in state["units"].items()}, bool(state["settled"])


class CriticPPO(PPO):
    """``ppo.form=critic``: the reward comes at the last decision, a value network says what was to be expected, GAE shares it out."""

    requires = frozenset({"sample", "critic"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.critic = Critic(self.config, self.ranks)
        self.spread: dict[str, float] = {}  # by reward, of the first collection that had any

    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        """Composed reward (N,) and advantage (N, S) under any composition of the scores, with its mean for a value.

        The critic knows the configured composition only, so that it is not asked here.
        """
        done = rollout.finished
        reward = compose(self.counted(scores, done), rollout.group.numpy(), specs).reward
        reward = self.with_truncation(reward, done)
        known = torch.from_numpy(np.isfinite(reward))
        mean = float(reward[known.numpy()].mean()) if known.any() else 0.0
        mask = rollout.mask.cpu()
        paid = decision_rewards(torch.from_numpy(np.where(known.numpy(), reward - mean, np.nan)), mask)
        advantage, _ = self._estimate(paid, torch.zeros_like(paid), mask, rollout.group, known)
        return reward, advantage._replace(unscorable=self.unscorable(reward, done))

    def composed(self, scores: Columns, group: np.ndarray) -> np.ndarray:
        """The configured composition (N,), its scale "batch" a division by the spread over the *first* collection.

        A value function must know what a reward is worth: divided by every collection's own spread, the same score would be another
        reward each time. GRPO and the relative form only compare within a collection.
        """
        specs = self.specs
        scaled = [i for i, spec in enumerate(specs) if spec.scale == "batch"]
        if any(specs[i].name not in self.spread for i in scaled):
            plain = [1.0 if spec.scale == "batch" else None for spec in specs]
            parts = compose(scores, group, specs, spread=plain).parts
            for i in scaled:
                known = parts[np.isfinite(parts[:, i]), i]
                if len(known) and np.isfinite(unit_of(known.std(), float(np.square(known).mean()))):
                    self.spread.setdefault(specs[i].name, float(known.std()))
        units = [self.spread.get(s.name, np.inf) if s.scale == "batch" else None for s in specs]  # none yet: adds 0
        return compose(scores, group, specs, spread=units).reward

    def _estimate(self, paid: Tensor, values: Tensor, mask: Tensor, group: Tensor, known: Tensor) -> Estimate:
        ppo = self.config.ppo
        advantage, returns = gae(paid, values, mask, group, discount=ppo.discount, lam=ppo.gae_lambda, known=known)
        if ppo.whiten:
            value = whitened(advantage.value.double(), mask & known[:, None], self.config.advantage_clip).float()
            advantage = advantage._replace(value=value)
        return advantage, returns

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        """Values, GAE and returns of a collection; all (N, S) on the CPU."""
        cfg, policy = self.config, cast(CriticPolicy, self.policy)
        rows, mine, (scores, _) = self.rows(experience, rollout)
        done, mask = rows.finished, rollout.mask.cpu()
        reward = self.with_truncation(self.composed(self.counted(scores, done), rows.group.numpy()), done)
        own = torch.from_numpy(reward)[mine]
        paid = decision_rewards(own, mask, self.divergence(experience, rollout), cfg.kl_beta)
        found = [policy.features(rollout, rows).detach().float() for rows in self.parts(rollout)]
        width = max(self.ranks.gather(found[0].shape[-1] if found else 0))
        features = torch.cat(found) if found else policy.parameters()[0].new_zeros(0, 1, width, dtype=torch.float)
        counts = mask & own.isfinite()[:, None]
        self.critic.measure(features, paid.flip(1).cumsum(1).flip(1).float(), counts.to(features.device))
        values = self.critic.values(features).cpu()
        # the estimate is a row's own, what it is whitened by is all rows'
        columns = {"paid": paid.numpy(), "values": values.numpy()}
        _, _, (judged,) = self.ranks.rows(rollout, experience.prompts, columns)
        every, known, seen = torch.from_numpy(judged["values"]), torch.from_numpy(np.isfinite(reward)), rows.mask.cpu()
        advantage, returns = self._estimate(torch.from_numpy(judged["paid"]), every, seen, rows.group, known)
        experience.take(mine, reward, advantage._replace(unscorable=self.unscorable(reward, done)))
        own_returns, seen = returns[mine, : mask.shape[1]], seen & known[:, None]
        experience.extra = {"features": features, "values": values, "returns": own_returns, "counts": counts}
        experience.logged["explained_variance"] = explained_variance(every, returns, seen)
        experience.logged["value_mean"] = float(every[seen].mean()) if seen.any() else float("nan")

    def step(self, experience: Experience, share: Tensor) -> dict[str, float]:
        stats = super().step(experience, share)
        if experience.rollout is None:
            return stats
        rows = rows_of(experience.rollout, share)
        features = experience.extra["features"][rows.to(experience.extra["features"].device)]
        old, returns, counts = (experience.extra[k][rows].to(features.device) for k in ("values", "returns", "counts"))
        return {**stats, "value_loss": self.critic.fit(features, old, returns, counts)}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "critic": self.critic.state(), "spread": dict(self.spread)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.critic.load_state(state.get("critic") or {}, self.policy.parameters()[0].device)
        self.spread = {str(k): float(v) for k, v in (state.get("spread") or {}).items()}


def clip_name(clip: Any) -> tuple[str, str]:
    """Key of a clip and digest of what it holds: the input, the target that it is judged against, the video."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (clip.noisy, clip.target, getattr(clip, "lips", None)):
        array = None if part is None else np.ascontiguousarray(part)
        digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return clip.key, digest.hexdigest()


class Relative(NamedTuple):
    """Composed rewards (N,) of the rollouts and of the base in the same units, and their difference; NaN where one is missing."""

    reward: np.ndarray
    base: np.ndarray
    difference: np.ndarray


def relative_reward(scores: Columns, base: Columns, group: np.ndarray, specs: Specs) -> Relative:
    """Sum over the rewards of weight x (rollout - base) / spread, both clamped and signed as the specs say.

    The spread is the *rollouts'*: over the batch, inside the group (N,), or 1, by the spec's scale; a reward without spread adds 0. With
    one reward of weight 1 and scale "none" the difference is exactly r(y) - r(y_base). Scores of the rollouts and of every row's base are
    (N,) by name, nan where unscorable.
    """
    ours, theirs = (compose(values, group, specs, spread=[1.0] * len(specs)) for values in (scores, base))
    unit = np.stack([divisor(ours.parts[:, i], group, spec.scale) for i, spec in enumerate(specs)], 1)
    active = ours.weights != 0
    weights = ours.weights[active]

    def total(parts: np.ndarray) -> np.ndarray:
        return (parts / unit)[:, active] @ weights

    return Relative(total(ours.parts), total(theirs.parts), total(ours.parts - theirs.parts))
