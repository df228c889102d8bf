"""What PPO and GRPO share: collect, check, and train on a collection in micro-batches. They differ in the advantage (``assign_credit``).

The textbook version (PPO, arXiv 1707.06347): one clipped surrogate for every mini-batch of a collection. Nothing is left out. What
is added: the first update checks that the policy's second look agrees with its first (ratio 1 within 1e-3); every update logs
``grad_agreement``, the mean pairwise cosine of its micro-batches' policy gradients, which tells a setting that learns from one that
wanders; the clip range may be measured instead of guessed, because its useful size depends on how log-probabilities are reduced
(papers use 0.2 and 1e-5 for the same thing); and a task's supervised loss may be added, its gradient taken apart from the
policy's, so that the agreement stays that of the reward. With no weight on the policy's loss nothing is sampled and nothing is
scored: the control without RL, on the same data with the same steps. The ratio is always to the policy that acted, never to the
reference, which only the KL knows: clipped against the reference, no policy would get further from it than the clip range. The KL is
that of every decision of every rollout that takes part, also where there is no advantage: what is solved, or hopeless, has its anchor.
Rollouts that ``truncated: mask`` leaves out take part in nothing: no statistic of rewards, no loss, no KL, no mean.

A weight of the KL that adapts comes late under Adam, whose steps are as long however steep the loss is. So a step whose KL was above
``kl_target`` draws the weights themselves back towards the reference's, by the root of target over KL (a KL goes with the square of the
way): what was learned keeps its direction, and what no KL sees is drawn back too.

Several processes (``engine.Ranks``) each roll out a share of the step's prompts and do together what one does with all: rows are judged
in the order of the whole batch, and counts, spreads and gradients are sums over all of them. A process may have no prompt; it takes part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rlspeech.algos.math import (
    Advantage,
    GradientSum,
    Surrogate,
    agreement,
    critical_batch,
    flat_gradient,
    micro_batches,
    policy_loss,
    total_norm,
)
from rlspeech.config import RL, RewardSpec
from rlspeech.data.batches import ClipSource, bounded
from rlspeech.engine import Columns, Phases, Ranks, sampled_rows
from rlspeech.rewards.mix import to_arrays
from rlspeech.types import LogProb, Policy, Rollout, Sample, Score, SupervisedPolicy, UserError

RATIO_TOLERANCE = 1e-3
# logged as nan where no micro-batch had anything to learn
NOT_EVALUATED = ("ratio_mean", "ratio_max_gap", "kl_old", "clipped_positive", "clipped_negative", "kl")
WORST = frozenset({"ratio_max_gap"})  # logged as the largest of the updates, the rest as means
ROUND = 1_000_003  # between the seeds of a collection's further draws
Further = Callable[[int], list[Any]]
Specs = Sequence[RewardSpec]
Logged = dict[str, float]
Judged = tuple[np.ndarray, Advantage]  # composed rewards (N,) and what they are worth
Scored = tuple[dict[str, list[Score]], Columns | None]  # a rollout's scores by column, and its base's by row


class Draw(NamedTuple):
    """Prompts, their rollouts, and the scores of those by column; those of the base by row where the algorithm needs them."""

    prompts: list[Any]
    rollout: Rollout
    columns: dict[str, list[Score]]
    base: Columns | None = None


class JointScorer(Protocol):
    """Scores samples with every reward and guard at once (``rewards.scorer.Scorer``)."""

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        """Column by column, in the samples' order."""
        ...


@dataclass
class Experience:
    """A collection."""

    rollout: Rollout | None  # None where the policy's loss has no weight: then there are only prompts
    scores: Columns  # (N,) by name with NaN for null
    reward: np.ndarray  # (N,) composed
    advantage: Advantage  # with ``value`` (N,), or (N, S)
    seconds: dict[str, float]  # by phase; ``memory_mb/PHASE`` beside them where the device tells
    prompts: list[Any]  # the B prompts
    base: Columns | None = None  # (N,) by name, of the base's output for every row's prompt, where that is needed
    logged: Logged = field(default_factory=dict)  # further numbers; ``update`` returns them with its own
    extra: dict[str, Tensor] = field(default_factory=dict)  # what the algorithm keeps for its updates
    updates: int = 0  # of the optimiser so far; before the first one the ratio is 1
    seed: int = 0  # of its noise

    def take(self, mine: Tensor, reward: np.ndarray, advantage: Advantage) -> None:
        """Keep the own rows (n,) of all processes' rewards (N,) and advantages, and log what those are like."""
        value = advantage.value[torch.from_numpy(np.isfinite(reward))].double()
        self.logged["advantage_mean"] = float(value.mean()) if len(value) else float("nan")
        self.logged["advantage_std"] = float(value.std(correction=0)) if len(value) else float("nan")
        own, width = advantage.value[mine], 0 if self.rollout is None else self.rollout.mask.shape[1]
        self.reward = reward[mine.numpy()]
        self.advantage = advantage._replace(value=own[:, :width] if own.dim() == 2 else own)


def rows_of(rollout: Rollout, prompts: Tensor) -> Tensor:
    """Indices (n,) of the rows of some prompts, in order."""
    return torch.isin(rollout.group, prompts).nonzero()[:, 0]


def no_rows() -> Rollout:
    """The rollout of no prompt."""
    none = torch.zeros(0, dtype=torch.bool)
    return Rollout(none.long(), torch.zeros(0, 1), none[:, None], [], None, none)


class PolicyUpdate(ABC):
    """Collect and update; see the top of the file.

    ``optimizer`` is over ``policy.parameters()``; ``ranks`` are the processes among which prompts are shared out.

    Raises ``UserError``: the policy does not support what this needs, or nothing is to be trained.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"sample"})  # of ``policy.supports``
    compares: ClassVar[bool] = False  # a prompt's rollouts with each other

    def __init__(self, config: RL, policy: Policy, optimizer: Optimizer, ranks: Ranks | None = None) -> None:
        self.check(config)
        if not config.policy_weight and not config.supervised_weight:
            why = "policy_weight and supervised_weight are both 0"
            raise UserError("nothing to train", why, "--set supervised_weight=1")
        needed, sampled = set(self.requires) if config.policy_weight else set(), config.supervised_on == "sample"
        if config.supervised_weight:
            needed |= {"supervised", "supervised_sample", "sample"} if sampled else {"supervised"}
        if not needed <= policy.supports:
            why = f"it does not support {sorted(needed - policy.supports)}"
            raise UserError(f"this policy cannot be trained with {self.name}", why)
        if config.supervised_weight and sampled and not config.policy_weight:
            why = "with policy_weight 0 nothing is sampled"
            raise UserError("a supervised loss of sampled outputs needs a policy loss", why, "--set supervised_on=mean")
        if config.dynamic_sampling and not (self.compares and "join" in policy.supports):
            alone, whole = f"{self.name} does not compare a prompt's rollouts", "this policy cannot join collections"
            what, why = "prompts without signal cannot be replaced here", whole if self.compares else alone
            raise UserError(what, why, "--set dynamic_sampling=0")
        self.config, self.policy, self.optimizer, self.ranks = config, policy, optimizer, ranks or Ranks()
        self.clip_range = float("inf") if config.clip_range == "auto" else float(config.clip_range)
        self.checked, self.collections = False, 0
        self.factors: dict[str, float] = {}  # of the weights of further rewards (``weights`` agreement)
        self.held: Mapping[str, float] = {g.name: 0.0 for g in config.guards if g.hold}  # multipliers
        if config.kl_target is not None and not (config.kl_beta and hasattr(policy, "adapted")):
            why = "with kl_beta 0 no KL is measured" if hasattr(policy, "adapted") else "it has no attribute adapted"
            raise UserError("this policy cannot be held to a kl_target", why, "--set kl_beta=0.01")
        self.phases = Phases(policy, optimizer, config.offload)

    def check(self, config: RL) -> None:
        """Refuse settings that the algorithm cannot use. Raises ``UserError``."""
        return

    def select(self, source: ClipSource) -> ClipSource:
        """The prompts from which something can be learnt, where that is known before."""
        return source

    # -- what an algorithm says ----------------------------------------------------------------------------------------

    @property
    def specs(self) -> Specs:
        """This step's composition: (rewards + sum lambda_i guard_i) / (1 + sum lambda_i), as in arXiv 2007.03964, which keeps its size.

        Held guards are scaled by their spread in the group, which is what can be chosen from; lambda 1 weighs as all rewards together.
        """
        size, whole = 1 + sum(self.held.values()), sum(abs(spec.weight) for spec in self.config.rewards)
        factors, rewards = self.factors, self.config.rewards
        own = [s.model_copy(update={"weight": s.weight * factors.get(s.name, 1) / size}) for s in rewards]
        return own + [RewardSpec(name=n, weight=whole * by / size, scale="group") for n, by in self.held.items()]

    @abstractmethod
    def advantage_of(self, rollout: Rollout, scores: Columns, specs: Specs, base: Columns | None = None) -> Judged:
        """Composed reward (N,) and advantage of one collection under any composition of its scores, without any KL."""

    def assign_credit(self, experience: Experience, rollout: Rollout) -> None:
        """Fill in the reward, the advantage and what is logged of a scored collection."""
        rows, mine, (scores, base) = self.rows(experience, rollout)
        experience.take(mine, *self.advantage_of(rows, scores, self.specs, base))

    def rows(self, experience: Experience, rollout: Rollout, *columns: Columns) -> Any:
        """``Ranks.rows`` with the scores, the base's scores, and further columns."""
        return self.ranks.rows(rollout, experience.prompts, experience.scores, experience.base or {}, *columns)

    def total(self, value: float) -> float:
        """Sum of a number over all processes."""
        return float(sum(self.ranks.gather(value)))

    def participating(self, finished: Tensor) -> Tensor:
        """(N,) bool: rows that take part, given (N,) which of them stopped by themselves."""
        return finished if self.config.truncated == "mask" else torch.ones_like(finished)

    def counted(self, scores: Columns, finished: Tensor) -> Columns:
        """Scores (N,) by name for ``compose``: nan in rows that take no part or get a reward of their own, so that no spread knows them."""
        keep = self.config.truncated == "keep"
        return scores if keep else {k: np.where(finished.numpy(), v, np.nan) for k, v in scores.items()}

    def with_truncation(self, reward: np.ndarray, finished: Tensor) -> np.ndarray:
        """Composed rewards (N,) of ``counted`` scores, where rows that never stopped are penalised with theirs, whatever they would score.

        Theirs is ``truncated_reward`` or the lowest of the rows that stopped, if that is less: running on for ever never pays better.
        """
        if self.config.truncated != "penalise":
            return reward
        known = reward[finished.numpy() & np.isfinite(reward)]
        return np.where(finished.numpy(), reward, min([self.config.truncated_reward, *known]))

    def unscorable(self, reward: np.ndarray, finished: Tensor) -> float:
        """Share of the rows that take part which have no reward (N,)."""
        missing = np.isnan(reward[self.participating(finished).numpy()])
        return float(missing.mean()) if len(missing) else 0.0

    def score(self, rollout: Rollout, prompts: list[Any], scorer: JointScorer, *, seed: int) -> Scored:
        """Every column's scores of the rollouts (and of whatever else was scored, behind them), and the base's by row if needed."""
        return scorer.score(rollout.samples), None

    @property
    def loss_beta(self) -> float:
        """Weight of the KL inside the loss."""
        return self.config.kl_beta

    def steer(self, logged: Mapping[str, float]) -> dict[str, float]:
        """Draw the weights back where what a step logged, of all processes, is above ``kl_target``. Returns the share of the way left."""
        target = self.config.kl_target
        if target is None:
            return {}
        left = (target / kl) ** 0.5 if (kl := logged.get("kl", math.nan)) > target else 1.0
        if left < 1:
            cast(Any, self.policy).adapted.draw_back(left)
        return {"kl_kept": left}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers and tensors."""
        made = {"clip_range": None if self.clip_range == float("inf") else self.clip_range, "checked": self.checked}
        return {**made, "collections": self.collections, "factors": dict(self.factors)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.clip_range = float("inf") if state["clip_range"] is None else float(state["clip_range"])
        self.checked, self.collections = bool(state.get("checked", False)), int(state.get("collections", 0))
        self.factors = {str(k): float(v) for k, v in (state.get("factors") or {}).items()}

    # -- collecting ----------------------------------------------------------------------------------------------------

    def collect(self, prompts: list[Any], scorer: JointScorer, seed: int, further: Further | None = None) -> Experience:
        """Roll out the group of every prompt and score it; without a weight on the policy's loss, keep the prompts only.

        ``seed`` is that of the noise; ``further`` gives so many prompts more, for dynamic sampling.

        Raises ``UserError``: more rows without a score than ``max_unscorable``.
        """
        nothing, seconds = Advantage(torch.zeros(0), 0.0, 0.0, 0, 0), {"rollout": 0.0, "reward": 0.0}
        if not self.config.policy_weight:
            return Experience(None, {}, np.zeros(0), nothing, seconds, prompts)
        with self.phases.record(seconds):
            made, logged = self._draw(prompts, scorer, seed), Logged()
            if self.config.dynamic_sampling and further is not None:
                made, logged = self.refill(made, lambda p, n: self._draw(p, scorer, seed + n * ROUND), further)
            self.phases.enter("update")  # what follows may ask the policy again
            given = made.rollout, self.values(made), np.zeros(0), nothing, seconds, made.prompts, made.base, logged
            experience = Experience(*given, seed=seed)
            if self.config.weights == "agreement":
                self.weigh(experience, made.rollout)
            self.assign_credit(experience, made.rollout)
        self.check_scorable(made.columns, experience.advantage.unscorable)
        experience.logged.update(getattr(self.policy, "notes", {}) if prompts else {})
        return experience

    def refill(self, first: Draw, again: Callable[[list[Any], int], Draw], further: Further) -> tuple[Draw, Logged]:
        """Replace prompts without signal, where rollouts are compared (``GRPO.refill``)."""
        raise NotImplementedError

    def _draw(self, prompts: list[Any], scorer: JointScorer, seed: int) -> Draw:
        if not prompts:
            return Draw([], no_rows(), {spec.name: [] for spec in self.specs})
        self.phases.enter(self.phases.first)
        rollout = self.policy.rollout(prompts, group=self.config.group, seed=seed)
        for sample, prompt in zip(rollout.samples, rollout.group.tolist(), strict=True):
            sample.group = prompt  # an utterance may stand twice in a batch
        self.phases.enter("reward")
        return Draw(prompts, rollout, *self.score(rollout, prompts, scorer, seed=seed))

    def values(self, made: Draw) -> Columns:
        """Scores of the rollouts (N,) by name, NaN for null."""
        return {name: values[: len(made.rollout.samples)] for name, values in to_arrays(made.columns).items()}

    def check_scorable(self, columns: dict[str, list[Score]], unscorable: float) -> None:
        """A run that cannot see its reward says why and ends."""
        cfg = self.config
        if unscorable <= cfg.max_unscorable:
            return
        own = [s.error for spec in self.specs for s in columns[spec.name] if s.error]
        reasons = [error for part in self.ranks.gather(own) for error in part]
        common = max(set(reasons), key=reasons.count) if reasons else "unknown"
        what = f"{100 * unscorable:.0f} % of the rollouts could not be scored (limit {100 * cfg.max_unscorable:.0f} %)"
        raise UserError(what, f"most often: {common}", "rlspeech doctor, or rlspeech reward on the run's samples/")

    # -- weights -------------------------------------------------------------------------------------------------------

    def weigh(self, experience: Experience, rollout: Rollout) -> None:
        """Measure, every ``weights_every`` collections, the factors of further rewards' weights; log what they give.

        A factor is max(0, cosine of the gradients of a reward alone and of the first alone), an exponential mean: the gate of GA-AF
        (github.com/spzhang7/GA-AF-FlowSE), whose cap is the configured weight. A reward without a gradient keeps its factor.
        """
        if self.collections % self.config.weights_every == 0:
            rows, mine, (scores, base) = self.rows(experience, rollout)
            alone = {s.name: s.model_copy(update={"weight": math.copysign(1.0, s.weight)}) for s in self.config.rewards}
            worth = {n: self.advantage_of(rows, scores, [s], base)[1].value[mine] for n, s in alone.items()}
            (_, first), *others = self.reward_gradients(experience, worth).items()
            for name, gradient in others:
                cosine = experience.logged[f"agreement/{name}"] = agreement([first, gradient])
                if not math.isnan(cosine):
                    before = self.factors.get(name, max(0.0, cosine))
                    self.factors[name] = 0.7 * before + 0.3 * max(0.0, cosine)  # as there
        experience.logged.update({f"weight/{spec.name}": spec.weight for spec in self.specs})

    def reward_gradients(self, experience: Experience, advantages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradient (P,) of all processes' surrogate at the weights that acted, without KL, by column of advantages (N,) or (N, S)."""
        rollout, totals = cast(Rollout, experience.rollout), {name: self.zero() for name in advantages}
        mask, parameters = self.counting(rollout), self.policy.parameters()
        count = max(1.0, self.total(float(mask.sum())))
        for rows in self.parts(rollout):
            logp = self.evaluate(experience, rows)[0].logp
            for name, advantage in advantages.items():
                mine = advantage.view(len(advantage), -1)[rows, : logp.shape[1]].to(logp.device)
                loss = -(logp * mask[rows.to(mask.device)] * mine).sum() / count
                totals[name] += flat_gradient(loss, parameters, keep_graph=True)
        self.ranks.add_up(*totals.values())
        return totals

    # -- updating ------------------------------------------------------------------------------------------------------

    def update(self, experience: Experience, *, lr: float) -> dict[str, float]:
        """Train on a collection: ``epochs`` passes of ``updates_per_collection`` optimiser steps, each on its own share of the prompts.

        Returns what is logged: numbers of the collection, and of the updates (means; the largest gap of the ratio).
        """
        rows, prompts, cfg = list[Logged](), torch.arange(len(experience.prompts)), self.config
        count = min(cfg.updates_per_collection, int(self.total(len(prompts))))
        shares = prompts.tensor_split(cfg.updates_per_collection)[:count]  # a share may lie with other processes alone
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.phases.record(experience.seconds):
            self.phases.enter("update")
            for share in shares * cfg.epochs:
                rows.append(self.step(experience, share))
                experience.updates += 1
        self.collections += 1
        out = dict(experience.logged)
        for name in dict.fromkeys(k for row in rows for k in row):
            values = [row[name] for row in rows if name in row and not np.isnan(row[name])]
            out[name] = float((max if name in WORST else np.mean)(values)) if values else float("nan")
        return out

    def step(self, experience: Experience, share: Tensor) -> dict[str, float]:
        """One optimiser step on some prompts (K,). Returns what is logged of it."""
        cfg, stats, aside = self.config, {"grad_agreement": math.nan}, list[Tensor]()
        if cfg.policy_weight:
            grads, stats = self.gradients(experience, experience.advantage.value, share)
            # "auto" is frozen where the ratio has moved by more than rounding, which no collection's first update shows
            spread = stats["log_ratio_std"] if experience.updates else 0.0
            if cfg.clip_range == "auto" and self.clip_range == float("inf") and spread > 1e-9:
                self.clip_range = cfg.clip_std * spread
            cosine, size = grads.agreement(), self.total(len(share)) / max(1, grads.count)
            stats.update(grad_agreement=cosine, critical_prompts=critical_batch(cosine, size))
            grads.scale(cfg.policy_weight)
        if cfg.supervised_weight:
            aside = grads.set_aside() if cfg.policy_weight else []
            grads, loss = self.supervised_gradients(experience, share)
            grads.scale(cfg.supervised_weight)
            stats.update(supervised_loss=loss, supervised_agreement=grads.agreement())
            stats["supervised_grad_norm"] = grads.norm()
            if aside:  # do reward and supervision pull the same way?
                stats["policy_grad_norm"], stats["supervised_cosine"] = grads.join_with(aside)
        return {**stats, **self._apply(), "clip_range": self.clip_range}

    def gradients(self, experience: Experience, advantage: Tensor, prompts: Tensor) -> tuple[GradientSum, Logged]:
        """The policy gradient of the prompts with these indices, under an advantage (N,) or (N, S), micro-batch by micro-batch.

        Returns:
            the sum of one gradient a micro-batch of every process, which is that of the update's mean loss, and statistics. The mean
            is over all decisions (or rollouts) of these prompts that take part, those without signal included.
        """
        cfg, rollout = self.config, experience.rollout
        assert rollout is not None
        mask = self.counting(rollout)
        measured = mask & sampled_rows(rollout.samples).to(mask.device)[:, None]  # others do not show how it moved
        whole = rows_of(rollout, prompts).to(mask.device)
        normaliser, grads, own = self.decisions(mask[whole]), GradientSum(self.policy.parameters()), list[Logged]()
        form: dict[str, Any] = {"ratio": cfg.ratio, "level": cfg.ratio_level, "mean": cfg.loss_mean}
        form |= {"clip_range": self.clip_range, "clip_high": cfg.clip_high, "kl_beta": self.loss_beta}
        form["change_weight"], with_kl = cfg.change_weight, self.loss_beta > 0 or cfg.change_weight > 0
        for rows in self.passes(self.parts(rollout, prompts), grads, with_kl):
            device_rows = rows.to(rollout.logp.device)
            signal = bool(advantage[rows].any())  # not where every rollout is right, or every one as wrong
            if not mask[device_rows].any() or not (signal or with_kl):
                grads.count += 1
                self.idle(grads, with_kl)
                continue
            new, old = self.evaluate(experience, rows, with_kl=with_kl)
            worth = advantage[rows].to(new.logp.device)
            form["measured"] = measured[device_rows]
            form["importance"] = None if rollout.weight is None else rollout.weight[device_rows]
            made = policy_loss(new, old, mask[device_rows], worth, normaliser=normaliser, **form)
            if not experience.updates:
                self._check(made)
            grads.add(made.loss, agrees=signal)
            if not (moved := made.log_ratio.double()).numel():
                continue
            sizes = {"size": float(moved.numel()), "mean": moved.mean().item(), "square": moved.square().mean().item()}
            own.append({**made.stats, **sizes})
        grads.join(self.ranks)
        stats = [found for part in self.ranks.gather(own) for found in part]
        if not stats:
            return grads, {**dict.fromkeys(NOT_EVALUATED, float("nan")), "log_ratio_std": 0.0}
        weights = [found.pop("size") for found in stats]
        merged = {k: float(np.average([s[k] for s in stats], weights=weights)) for k in stats[0]}
        merged["log_ratio_std"] = max(0.0, merged.pop("square") - merged.pop("mean") ** 2) ** 0.5
        return grads, {**merged, "ratio_max_gap": max(s["ratio_max_gap"] for s in stats)}

    def evaluate(self, experience: Experience, rows: Tensor, *, with_kl: bool = False) -> tuple[LogProb, Tensor]:
        """What is made likelier of some rows (n,), now, and its log-probabilities (n, S) when they were made."""
        rollout = cast(Rollout, experience.rollout)
        return self.policy.log_prob(rollout, rows, with_kl=with_kl), rollout.logp[rows.to(rollout.logp.device)]

    def parts(self, rollout: Rollout, prompts: Tensor | None = None) -> list[Tensor]:
        """Rows (n,) of every micro-batch, in order: of some prompts (K,), or of all."""
        cfg, prompts = self.config, torch.unique(rollout.group) if prompts is None else prompts
        found = [rows_of(rollout, part) for part in micro_batches(prompts, cfg.micro_batch)]
        lengths = rollout.mask.sum(1).cpu()
        return [part for rows in found for part in rows.split(bounded(lengths[rows].tolist(), cfg.micro_tokens))]

    def passes(self, parts: list[Tensor], grads: GradientSum, with_kl: bool = False) -> Iterator[Tensor]:
        """The parts, one after the other. Where weights are sharded, idle passes follow until no process makes another one."""
        most = max(self.ranks.gather(len(parts))) if grads.sharded else 0
        yield from parts
        for _ in range(most - len(parts)):
            self.idle(grads, with_kl)

    def idle(self, grads: GradientSum, with_kl: bool) -> None:
        """Make a pass that changes nothing, where weights are sharded and others need it."""
        if grads.sharded:
            grads.idle(cast(Any, self.policy).idle(with_kl=with_kl))

    def zero(self) -> Tensor:
        """A gradient (P,) of nothing."""
        return torch.cat([torch.zeros_like(p).flatten() for p in self.policy.parameters()])

    def counting(self, rollout: Rollout) -> Tensor:
        """(N, S) bool: the decisions of rows that take part."""
        return rollout.mask & self.participating(rollout.finished).to(rollout.mask.device)[:, None]

    def decisions(self, mask: Tensor) -> float:
        """What a mean over an update's rows is divided by: decisions that count, mask (n, S), or rows (``loss_mean`` "sequence")."""
        return max(1.0, self.total((mask.any(1) if self.config.loss_mean == "sequence" else mask).sum().item()))

    def supervised_gradients(self, experience: Experience, prompts: Tensor) -> tuple[GradientSum, float]:
        """Gradients of the task's supervised loss, one a micro-batch, whose sum is that of the prompts' mean; and that mean."""
        policy, grads, total = cast(SupervisedPolicy, self.policy), GradientSum(self.policy.parameters()), 0.0
        whole = self.total(len(prompts))
        for part in self.passes(micro_batches(prompts, self.config.micro_batch), grads):
            clips, options = [experience.prompts[i] for i in part.tolist()], dict[str, Any]()
            if self.config.supervised_on == "sample":
                assert experience.rollout is not None
                options = {"rollout": experience.rollout, "rows": rows_of(experience.rollout, part)}
            loss = policy.supervised(clips, **options) * (len(part) / whole)
            grads.add(loss)
            total += loss.item()
        grads.join(self.ranks)
        return grads, self.total(total)

    def _check(self, made: Surrogate) -> None:
        """The first look at a collection must repeat the policy that acted; said once, at the first decisions that count."""
        if self.checked or not made.log_ratio.numel():
            return
        gap = made.stats["ratio_max_gap"]
        if not gap <= RATIO_TOLERANCE:
            what = f"the ratio is off by {gap:.2e} before the first update (limit {RATIO_TOLERANCE:g})"
            hint = "a policy of your own: compare its log_prob with its rollout; else report this with the run folder"
            raise UserError(what, "the training pass does not repeat the sampling pass", hint)
        self.checked = True

    def _apply(self) -> dict[str, float]:
        """One optimiser step along the gradient that the parameters hold."""
        parameters = self.policy.parameters()
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        finite = bool(torch.isfinite(norm))
        if finite and norm > 0:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm.item(), "skipped_updates": float(not finite)}
