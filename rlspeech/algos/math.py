"""The only place that computes an advantage, a KL penalty or a clipped loss; gradients, summed and compared.

Notation: N rollouts in groups of G, S decisions; A advantage, rho = exp(logp - logp_old) the ratio, eps the clip range, V a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad

from rlspeech.engine import Ranks
from rlspeech.models.sharding import is_sharded, whole
from rlspeech.rewards.mix import centred, unit_of
from rlspeech.types import LogProb

EPS = 1e-8
BUCKETS = 16_381  # of a gradient's projection: a prime, so that columns of a layer do not fall together
RATIO_LIMIT = 20.0  # nats: a log-ratio beyond it is held there, as in verl, so that no ratio is infinite
Divisor = Literal["group", "batch", "none"]
Mean = Literal["token", "sequence"]


class Advantage(NamedTuple):
    """``value`` (N,) or (N, S) with 0 for rows without signal; shares of rows that could not be scored and of groups without any.

    A group is a prompt's rollouts; ``signal`` counts those from which something can be learnt (GRPO: their rewards differ).
    """

    value: Tensor
    unscorable: float
    constant_groups: float
    groups: int
    signal: int


def group_advantage(reward: Tensor, group: Tensor, std: Divisor = "group", clip: float = 5.0) -> Advantage:
    """A_i = (R_i - mean of its group) / sqrt(std^2 + floor^2), the statistics over the rows that could be scored.

    Rows (N,) that could not be scored or take no part (NaN) and groups whose spread is not above the floor get 0. Population standard
    deviation, as in FlowSE-GRPO (Eq. 8); the floor is 1e-4 of the rewards' size (``rewards.mix.unit_of``). ``std``: divide by the group's
    spread, by the root mean square of all centred rewards, or by nothing (Dr. GRPO); ``clip`` bounds the absolute advantage.
    """
    reward, known = reward.double(), reward.isfinite()
    away, unit = map(torch.from_numpy, centred(torch.where(known, reward, torch.nan).numpy(), group.numpy()))
    counts = known & unit.isfinite()
    if std == "batch":
        unit = _unit(away[counts].square().mean().sqrt(), reward[known])
    value = torch.where(counts, away if std == "none" else away / unit, 0.0)
    return _by_prompt(value.clamp(-clip, clip), known, group)


def relative_advantage(
    reward: Tensor, group: Tensor, kl: Tensor | None = None, beta: float = 0, *, whiten: bool = False, clip: float = 5.0
) -> Advantage:
    """A = R - beta KL, R the reward relative to the frozen base's output; no critic, no other rollout takes part (LR-AVSE).

    R is (N,), NaN where the row or its base could not be scored; ``kl`` (N,) that of every row to the base, a number without gradient.
    ``whiten``: to mean 0 and spread 1 over the collection, bounded by ``clip``; in units of the reward they are used as they are.
    """
    known = reward.isfinite()
    value = reward.double() if kl is None else reward.double() - beta * kl.double()
    value = torch.where(known, value, torch.zeros_like(value))
    return _by_prompt(whitened(value, known, clip) if whiten else value, known, group)


def whitened(value: Tensor, known: Tensor, clip: float) -> Tensor:
    """To mean 0 and (population) spread 1 over the entries that are known, bounded by ``clip``; 0 elsewhere and without spread."""
    if not known.any():
        return torch.zeros_like(value)
    unit = _unit(value[known].std(correction=0), value[known])
    return torch.where(known, (value - value[known].mean()) / unit, torch.zeros_like(value)).clamp(-clip, clip)


def _unit(spread: Tensor, values: Tensor) -> Tensor:
    """``rewards.mix.unit_of`` for spreads of any shape among values (K,)."""
    return torch.as_tensor(unit_of(spread.numpy(), float(values.square().mean().nan_to_num())))


def _by_prompt(value: Tensor, known: Tensor, group: Tensor) -> Advantage:
    """Count the prompts from which something can be learnt. ``known`` (N,): could be scored."""
    alive, groups = value.reshape(len(group), -1).abs().amax(1) > 0, len(torch.unique(group))
    signal = len(torch.unique(group[alive]))
    return Advantage(value.float(), 1.0 - known.double().mean().item(), 1.0 - signal / max(1, groups), groups, signal)


def decision_rewards(reward: Tensor, mask: Tensor, kl: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """(N, S): a rollout's reward (N,) at its last decision, minus beta KL (N, S) at every one; 0 where it is masked or NaN."""
    steps = torch.arange(mask.shape[1])
    last = torch.where(mask, steps, -1).amax(1, keepdim=True)
    known = reward.isfinite()
    paid = torch.where(known, reward.double(), 0.0)[:, None] * (steps == last)
    paid = paid if kl is None else paid - beta * kl.double()
    return torch.where(mask & known[:, None], paid, torch.zeros_like(paid))


def gae(
    paid: Tensor, values: Tensor, mask: Tensor, group: Tensor, discount: float, lam: float, known: Tensor | None = None
) -> tuple[Advantage, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438) over each row's own decisions, those that its mask leaves.

    delta_s = r_s + discount V_(s+1) - V_s,  A_s = delta_s + discount lam A_(s+1),  both 0 behind the last decision; return = A + V.
    Decisions that are masked are not there: their neighbours follow each other. Rewards r (``paid``) and values V are (N, S); rows (N,)
    that are not ``known`` could not be scored and get 0. Returns the advantage, its value (N, S), and the returns (N, S).
    """
    known = torch.ones(len(mask), dtype=torch.bool) if known is None else known
    paid, values, mask = paid.double(), values.double(), mask & known[:, None]
    out = torch.zeros_like(paid)
    next_value = next_advantage = torch.zeros(len(paid), dtype=torch.double)
    for s in reversed(range(paid.shape[1])):
        on = mask[:, s]
        made = paid[:, s] + discount * next_value - values[:, s] + discount * lam * next_advantage
        out[on, s] = made[on]
        next_value, next_advantage = torch.where(on, values[:, s], next_value), torch.where(on, made, next_advantage)
    returns = torch.where(mask, out + values, torch.zeros_like(out))
    return _by_prompt(out, known, group), returns.float()


def value_loss(
    new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None, count: float | None = None
) -> Tensor:
    """Half the mean squared error, the larger one of the value's and of the value held within ``clip`` of the old one (PPO).

    All are (n, S), ``new`` with gradient; ``mask`` bool, decisions that count; ``clip`` in units of the values, or None; ``count`` is how
    many of them the mean is over, none: all of these.
    """
    error = (new - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old + (new - old).clamp(-clip, clip) - returns).square())
    return 0.5 * torch.where(mask, error, torch.zeros_like(error)).sum() / (count or mask.sum().clamp_min(1))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the decisions that count; NaN where the returns do not vary."""
    wanted, error = returns[mask].double(), (returns - values)[mask].double()
    spread = wanted.var(correction=0).item() if len(wanted) > 1 else 0.0
    return 1.0 - error.var(correction=0).item() / spread if spread > EPS**2 else float("nan")


def soft_loss(
    reward: Tensor,
    rows: float,
    kl: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    kl_beta: float = 0.0,
    normaliser: float = 1.0,
    mean: Mean = "token",
) -> Tensor:
    """DiffRO's loss, -R + beta KL, as its mean over an update's rows; R by its own gradient (arXiv 2507.05911).

    Args:
        reward: (n,) with gradient, nan where a row could not be scored.
        rows: in the whole update, those that were left out among them: a filter that keeps less asks for less.
        kl: (n, S) with gradient, or None where another loss has it.
        mask: (n, S) bool, decisions that count.
        kl_beta, normaliser, mean: as in ``policy_loss``.
    """
    known = reward.isfinite()
    loss = -torch.where(known, reward, torch.zeros_like(reward)).sum() / rows
    if kl is None or mask is None:
        return loss
    return loss + kl_beta * _summed(kl, mask & known[:, None], mean) / normaliser


def _summed(values: Tensor, mask: Tensor, mean: Mean) -> Tensor:
    """Sum of values (n, S) over the decisions that count, or ("sequence") over rows of each row's mean."""
    share = 1.0 / mask.sum(1, keepdim=True).clamp_min(1) if mean == "sequence" else 1.0
    return (torch.where(mask, values, 0.0) * share).sum()


class Surrogate(NamedTuple):
    """Loss (to minimise, summed over rows and divided by ``normaliser``) and what it was made of."""

    loss: Tensor
    stats: dict[str, float]
    log_ratio: Tensor


def policy_loss(
    new: LogProb,
    old: Tensor,
    mask: Tensor,
    advantage: Tensor,
    *,
    measured: Tensor | None = None,
    clip_range: float,
    kl_beta: float,
    normaliser: float,
    ratio: Literal["plain", "rationorm"] = "plain",
    clip_high: float | None = None,
    level: Mean = "token",
    mean: Mean = "token",
    change_weight: float = 0.0,
    importance: Tensor | None = None,
) -> Surrogate:
    """PPO's clipped surrogate plus beta times the KL to the reference. ``kl_old`` is the k3 estimate of the KL to who acted.

    loss = sum over decisions of w [-min(rho A, clip(rho, 1 - low, 1 + high) A) + beta KL] / normaliser.
    RatioNorm (GRPO-Guard, arXiv 2510.22319) takes log rho = (logp - logp_old + drift) * scale and divides by the step length,
    because the plain log-ratio of a Gaussian has a negative mean, so that positive samples would hardly ever be clipped.

    Args:
        new: (n, S) the policy's second look, with gradient.
        old: (n, S) log-probabilities of the policy that acted, which need not be the reference.
        mask: (n, S) bool, decisions that count.
        advantage: (n,) or (n, S).
        measured: (n, S) bool, those of them that statistics are of; None: all.
        clip_range: low, and high too where ``clip_high`` is None; ``inf`` leaves the ratio alone.
        normaliser: decisions (``mean`` "sequence": rollouts) in the whole update, so that micro-batches add up to its mean.
        clip_high: bound above 1 (DAPO, arXiv 2503.14476: a rare token needs more room to become likelier than to become rarer).
        level: "sequence": one ratio a rollout, the geometric mean of its decisions' (GSPO, arXiv 2507.18071).
        change_weight: of the output's change (``types.LogProb``), added as the KL is.
        importance: (n, S) numbers that the surrogate of each decision is multiplied with (``Rollout.weight``).
        mean: w is 1, or "sequence": 1 / the rollout's decisions (GRPO, arXiv 2402.03300: long rollouts weigh no more than short ones).
    """
    log_ratio = torch.where(mask, new.logp - old, 0.0)  # a masked decision may hold anything
    moved = log_ratio.detach().clamp(-RATIO_LIMIT, RATIO_LIMIT)
    if ratio == "rationorm":
        log_ratio = torch.where(mask, (log_ratio + new.drift) * new.scale, 0.0)
    if level == "sequence":
        log_ratio = mask * (log_ratio.sum(1) / mask.sum(1).clamp_min(1))[:, None]
    log_ratio = log_ratio.clamp(-RATIO_LIMIT, RATIO_LIMIT)  # infinite times an advantage of 0 is not a number
    rho, a = log_ratio.exp(), advantage if advantage.dim() == 2 else advantage[:, None]
    clipped = rho.clamp(1 - clip_range, 1 + (clip_range if clip_high is None else clip_high))
    weight: Tensor | float = 1.0 / new.dt if ratio == "rationorm" else 1.0
    weight = weight if importance is None else weight * importance
    loss = _summed(-torch.minimum(rho * a, clipped * a) * weight, mask, mean) / normaliser
    known = mask if measured is None else measured
    count = known.sum().clamp_min(1)
    stats = {"ratio_mean": float((rho.detach() * known).sum() / count)}
    stats["ratio_max_gap"] = float(((rho.detach() - 1).abs() * known).max())
    stats |= {"kl_old": float(((moved.exp() - 1 - moved) * known).sum() / count)}
    for name, sign in (("positive", a > 0), ("negative", a < 0)):
        cut, all_ = (rho != clipped) & (rho * a > clipped * a) & sign & known, (sign & known).sum().item()
        stats[f"clipped_{name}"] = cut.sum().item() / all_ if all_ else 0.0
    if new.kl is not None:
        loss = loss + kl_beta * _summed(new.kl, mask, mean) / normaliser
    if new.change is not None and change_weight:
        loss = loss + change_weight * _summed(new.change, mask, mean) / normaliser
    return Surrogate(loss, stats | divergence(new, known), log_ratio.detach()[known])


def divergence(new: LogProb, mask: Tensor) -> dict[str, float]:
    """Distances to the reference, means over decisions (n, S) that count: both KLs in nats, the change in dB, each -100 at least."""
    change = None if new.change is None else 10 * new.change.clamp_min(1e-10).log10()
    found = {"kl": new.kl, "kl_other": new.kl_other, "change_db": change}
    count = mask.sum().clamp_min(1)
    return {k: float(torch.where(mask, v.detach(), 0.0).sum() / count) for k, v in found.items() if v is not None}


def micro_batches(prompts: Tensor, size: int) -> list[Tensor]:
    """Prompts (K,) in parts of ``size``; none of no prompts."""
    return list(prompts.split(size)) if len(prompts) else []


def critical_batch(cosine: float, batch: float) -> float:
    """Prompts at which a gradient is half signal, half noise, given the mean cosine of gradients of ``batch`` prompts each.

    With gradient = signal + noise / sqrt(batch), cosine = s / (s + n / batch), so n / s = batch (1 - cosine) / cosine
    (the noise scale of McCandlish et al., arXiv 1812.06162). Infinite where the cosine is not above 0.
    """
    return batch * (1 - cosine) / cosine if cosine > 0 else float("inf")


class GradientSum:
    """The sum of K gradients of micro-batches, in the parameters' ``grad`` and nowhere else, and how well they agree, as an estimate.

    The cosines are those of projections: every number of a gradient gets a fixed random sign and goes into one of 16,381 buckets (the count
    sketch of Charikar, Chen and Farach-Colton, 2002), which keeps inner products in expectation, each cosine within 1 / sqrt(16381) or .008
    (a standard deviation), and exactly where there are no more parameters than buckets. What was summed up before is forgotten.

    Of weights that are sharded (``sharded``) every process has its part of the sum over all of them; a micro-batch's own gradient is
    projected on its way there, a weight at a time.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters, self.sharded = parameters, is_sharded(parameters[0])
        for i, p in enumerate(parameters):
            p.grad = torch.zeros_like(p)
            if self.sharded:
                p.look = partial(self._look, i)  # type: ignore[attr-defined]
        self._units = self._before = torch.zeros(BUCKETS, dtype=torch.double)
        self._own: Tensor | None = None
        self.count = self._nonzero = 0

    def _look(self, number: int, gradient: Tensor) -> None:
        if self._own is not None:
            state, at = _starts(tuple(p.numel() for p in self.parameters), gradient.device)[number]
            draw = torch.Generator(gradient.device)
            draw.set_state(state)
            _project(self._own, gradient, draw, at)

    @property
    def gradients(self) -> list[Tensor]:
        """One a parameter."""
        return [cast(Tensor, p.grad) for p in self.parameters]

    @property
    def total(self) -> Tensor:
        """The sum (P,), a copy."""
        return torch.cat([g.flatten() for g in self.gradients])

    def add(self, loss: Tensor, *, agrees: bool = True) -> None:
        """Add a loss's gradient; ``agrees``: it counts in the agreement, being more than the KL's."""
        self.count += 1
        self._own = torch.zeros(BUCKETS, device=loss.device) if self.sharded else None
        loss.backward()  # type: ignore[no-untyped-call]
        if self._own is not None:
            gradient, self._own = self._own.double().cpu(), None
        else:
            before, self._before = self._before, projection(self.gradients)
            gradient = self._before - before
        norm = gradient.norm()
        if agrees and norm > 0:
            self._nonzero += 1
            self._units = self._units + gradient / norm

    def idle(self, loss: Tensor) -> None:
        """Take part in other processes' ``add`` with a loss that is 0."""
        loss.backward()  # type: ignore[no-untyped-call]

    def join(self, ranks: Ranks) -> None:
        """Take the gradients of all processes together."""
        if ranks.world > 1:
            ranks.add_up(*(() if self.sharded else self.gradients))
            found = ranks.gather((self.count, self._nonzero, self._units))
            self.count, self._nonzero, self._units = (sum(x) for x in zip(*found, strict=True))

    def agreement(self) -> float:
        """Mean pairwise cosine: |sum of units|^2 = K + sum of cosines; NaN with fewer than two that are not zero."""
        k = self._nonzero
        return float((self._units.square().sum() - k) / (k * (k - 1))) if k > 1 else float("nan")

    def norm(self) -> float:
        """Length of the sum."""
        return float(total_norm(self.gradients))

    def scale(self, factor: float) -> None:
        """Multiply the sum."""
        if factor != 1:
            torch._foreach_mul_(self.gradients, factor)

    def set_aside(self) -> list[Tensor]:
        """The sum, one gradient a parameter, for ``join_with``; the parameters are free for another."""
        aside = self.gradients
        for p in self.parameters:
            p.grad = None
        return aside

    def join_with(self, aside: list[Tensor]) -> tuple[float, float]:
        """Add another sum; its length, and the cosine with it (NaN where one is zero)."""
        size, dot = float(total_norm(aside)), 0.0
        for mine, other in zip(self.gradients, aside, strict=True):
            dot += float(whole((mine * other).sum(dtype=torch.float)))
        both = size * self.norm()
        torch._foreach_add_(self.gradients, aside)
        return size, dot / both if both else float("nan")


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Length () of gradients as one vector, in all their shards."""
    return cast(Tensor, whole(torch.nn.utils.get_total_norm(gradients)))


def projection(gradients: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector (16381,) double of sums under fixed random signs; see ``GradientSum``."""
    device, at = gradients[0].device, 0
    found, draw = torch.zeros(BUCKETS, device=device), torch.Generator(device).manual_seed(0)
    for g in gradients:
        _project(found, g, draw, at)
        at += g.numel()
    return found.double().cpu()


def _project(into: Tensor, gradient: Tensor, draw: torch.Generator, at: int) -> None:
    """Add a gradient to the buckets under the signs that come next; ``at`` numbers are before it."""
    for part in gradient.detach().flatten().split(BUCKETS * 256):
        sign = torch.randint(0, 2, part.shape, generator=draw, device=part.device, dtype=torch.int8)
        signed = torch.where(sign.bool(), part, -part).float()
        before, at = at % BUCKETS, at + len(part)
        into += pad(signed, (before, -at % BUCKETS)).view(-1, BUCKETS).sum(0)


@lru_cache(maxsize=2)
def _starts(sizes: tuple[int, ...], device: torch.device) -> list[tuple[Tensor, int]]:
    """Where ``projection`` of gradients of these sizes begins each: the state of its signs, and the numbers before."""
    draw, at, found = torch.Generator(device).manual_seed(0), 0, list[tuple[Tensor, int]]()
    for size in sizes:
        found.append((draw.get_state(), at))
        for part in torch.empty(size, device="meta").split(BUCKETS * 256):
            torch.randint(0, 2, part.shape, generator=draw, device=device, dtype=torch.int8)
        at += size
    return found


def agreement(gradients: Sequence[Tensor]) -> float:
    """Mean pairwise cosine of K gradients (each (P,)); NaN with fewer than two that are not zero."""
    units = [g / norm for g in gradients if (norm := g.norm()) > 0]
    k = len(units)
    return float((sum(units, torch.zeros(())).square().sum() - k) / (k * (k - 1))) if k > 1 else float("nan")


def flat_gradient(loss: Tensor, parameters: Sequence[Parameter], *, keep_graph: bool = False) -> Tensor:
    """Flat gradient (P,) of a scalar; 0 for parameters that it does not depend on. ``keep_graph``: others are taken through it."""
    found = torch.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
