"""What GRPO does with rollouts that never stopped, with prompts without signal, and with the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import NAME, Judge
from torch import Tensor, nn

from rlspeech.algos import get_algorithm
from rlspeech.algos.math import group_advantage
from rlspeech.config import PPO, RL, RewardSpec
from rlspeech.engine import Phases
from rlspeech.types import LogProb, Rollout, Sample, Score, UserError

WORDS = 4


class Babbler:
    """Writes up to three words of four, 0 ends a row; theta are the logits, the reference is where it started."""

    sample_rate = 16000
    supports = frozenset({"sample", "critic", "join"})

    def __init__(self) -> None:
        self.theta = nn.Parameter(torch.zeros(WORDS))
        self.rolled: list[list[Any]] = []
        self.entered: list[str] = []
        self.announce: Callable[[str], None] = self.enter

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def enter(self, phase: str) -> None:
        self.entered.append(phase)

    def rollout(self, batch: list[Any], *, group: int, seed: int) -> Rollout:
        self.rolled.append(list(batch))
        self.announce("rollout")
        n = len(batch) * group
        p = self.theta.detach().softmax(0).expand(n, WORDS)
        ids = torch.multinomial(p, 3, replacement=True, generator=torch.Generator().manual_seed(seed))
        over = (ids == 0).cumsum(1)
        mask = over - (ids == 0).long() == 0
        index = torch.arange(len(batch)).repeat_interleave(group)
        wavs = ids.numpy().astype(np.float32)
        samples = [Sample(str(batch[i]), wav, 16000) for i, wav in zip(index.tolist(), wavs, strict=True)]
        return Rollout(index, self._logp(ids).detach(), mask, samples, ids, over[:, -1] > 0)

    def join(self, parts: Sequence[tuple[Rollout, Tensor]]) -> Rollout:
        rows = [torch.cat([(r.group == p).nonzero()[:, 0] for p in chosen]) for r, chosen in parts]
        chosen = [(r.state[i], r.mask[i], r.finished[i]) for (r, _), i in zip(parts, rows, strict=True)]
        ids, mask, done = (torch.cat(part) for part in zip(*chosen, strict=True))
        group = len(rows[0]) // len(parts[0][1])
        index = torch.arange(len(ids) // group).repeat_interleave(group)
        samples = [r.samples[i] for (r, _), mine in zip(parts, rows, strict=True) for i in mine.tolist()]
        return Rollout(index, self._logp(ids).detach(), mask, samples, ids, done)

    def _logp(self, ids: Tensor) -> Tensor:
        return self.theta.log_softmax(0)[ids]

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        logp = self._logp(rollout.state[rows])
        away = self.theta.log_softmax(0)
        kl = (away.exp() * (away - np.log(1 / WORDS))).sum().expand_as(logp) if with_kl else None
        return LogProb(logp, kl, torch.zeros_like(logp).detach(), torch.ones(3), torch.ones(3))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        return rollout.state[rows][..., None].float()


TWOS = Judge(lambda i, s: float((s.wav == 2).sum()))


def _make(policy: Babbler | None = None, rate: float = 0.1, by: Any = torch.optim.SGD, **changes: Any) -> Any:
    policy = policy or Babbler()
    sizes = {"prompts_per_step": 6, "group": 6, "micro_batch": 2}
    plain = {"rewards": [RewardSpec(name=NAME, scale="none")], "kl_beta": 0.0, "clip_range": 0.2}
    return get_algorithm(RL(**{**sizes, **plain, **changes}), policy, by(policy.parameters(), rate))


def _collect(algo: Any, judge: Judge | None = None, **more: Any) -> Any:
    return algo.collect(list(range(6)), judge or TWOS, **{"seed": 0, **more})


BY_ROW = [{"ratio_level": "sequence"}, {"loss_mean": "sequence"}]


@pytest.mark.parametrize("changes", [{}, *BY_ROW, {"clip_high": 0.28, "epochs": 2}], ids=str)
def test_it_learns_to_say_what_is_rewarded(changes: dict[str, Any]) -> None:
    algo = _make(rate=0.5, truncated="keep", **changes)
    for step in range(40):
        algo.update(_collect(algo, seed=step), lr=0.5)
    assert float(algo.policy.theta.softmax(0)[2]) > 0.7


def test_masked_rows_take_no_part() -> None:
    """Neither in the loss nor in their group's mean and spread."""
    algo = _make(truncated="mask")
    made = _collect(algo)
    done = made.rollout.finished
    assert 0 < int(done.sum()) < len(done)
    wanted = group_advantage(torch.where(done, torch.from_numpy(made.reward), torch.nan), made.rollout.group).value
    torch.testing.assert_close(made.advantage.value, wanted)
    assert not made.advantage.value[~done].any() and made.advantage.unscorable == 0
    grads, _ = algo.gradients(made, made.advantage.value, torch.arange(6))
    counts = made.rollout.mask & done[:, None]
    words, weight = made.rollout.state[counts], wanted[:, None].expand(counts.shape)[counts]
    loss = -(algo.policy._logp(words) * weight).sum() / counts.sum()
    torch.testing.assert_close(grads.total, torch.autograd.grad(loss, algo.policy.theta)[0])


def test_penalised_rows_get_their_own_reward_and_are_pushed_away() -> None:
    algo = _make(truncated="penalise", truncated_reward=-7.0)
    endless = Judge(lambda i, s: None if (s.wav != 0).all() else 1.0)  # what never stopped cannot even be scored
    made = _collect(algo, endless)
    done = made.rollout.finished.numpy()
    assert set(made.reward[~done]) == {-7.0} and set(made.reward[done]) == {1.0} and made.advantage.unscorable == 0
    assert (made.advantage.value.numpy()[~done] < 0).all()
    before = float(algo.policy.theta.softmax(0)[0])
    for step in range(30):
        algo.update(_collect(algo, endless, seed=step), lr=0.5)
    assert float(algo.policy.theta.softmax(0)[0]) > before + 0.2  # it learns to stop


LOOP = [0.9, 0.8, 0.7, -2.0]  # the last row never stopped
Z = 1.2247
CUT = {
    "keep": [0.6587, 0.5764, 0.4940, -1.7291],
    "mask": [Z, 0.0, -Z, 0.0],
    "penalise": [0.6761, 0.5759, 0.4757, -1.7277],  # its -1.5 is below every finished row
}


def _judged(scores: list[float], algo: Any) -> tuple[np.ndarray, list[float]]:
    done = torch.arange(4) < 3
    rollout = Rollout(torch.zeros(4).long(), torch.zeros(4, 3), torch.ones(4, 3).bool(), [], None, done)
    reward, advantage = algo.advantage_of(rollout, {NAME: np.array(scores)}, algo.config.rewards)
    return reward, advantage.value.tolist()


@pytest.mark.parametrize("how", CUT)
@pytest.mark.parametrize("advantage", ["sum_then_norm", "norm_then_sum"])
def test_what_a_row_that_loops_is_worth(how: str, advantage: str) -> None:
    """As published (keep), it is the worst of its group; masked, it is in no spread."""
    reward, value = _judged(LOOP, _make(truncated=how, truncated_reward=-1.5, advantage=advantage))
    if how != "penalise" or advantage == "sum_then_norm":  # the other pays -1.5 in spreads
        assert value == pytest.approx(CUT[how], abs=2e-4)
    assert (how == "mask") == bool(np.isnan(reward[3]))


@pytest.mark.parametrize("scale", ["batch", "group"])
def test_a_masked_row_is_in_no_scale(scale: str) -> None:
    named = [RewardSpec(name=NAME, scale=scale)]
    reward, value = _judged(LOOP, _make(truncated="mask", rewards=named))
    assert value == pytest.approx(CUT["mask"], abs=1e-3)
    z = np.array([0.9, 0.8, 0.7]) - (0.8 if scale == "group" else 0)
    np.testing.assert_allclose(reward[:3], z / np.std(LOOP[:3]), rtol=1e-4, atol=1e-6)


def test_running_on_never_pays_better_than_stopping() -> None:
    reward, value = _judged([0.9, -2.0, 0.7, 0.9], _make(truncated="penalise"))
    assert reward.tolist() == [0.9, -2.0, 0.7, -2.0] and value[1] == value[3] < 0
    assert _judged([0.9, 0.8, 0.7, 0.9], _make(truncated="penalise"))[0][3] == -1.0


@pytest.mark.parametrize("changes", [{}, {"algo": "ppo", "ppo": PPO(form="critic", kl_in="loss")}], ids=["grpo", "ppo"])
def test_the_kl_holds_every_row_that_takes_part(changes: dict[str, Any]) -> None:
    """Nothing differs in reward: what moves is the KL's, of all rows, or of those that stopped; it does not count as agreement."""
    policy = Babbler()
    policy.theta.data += torch.tensor([0.0, 0.0, 1.0, -1.0])
    for how in ("keep", "mask"):
        algo = _make(policy, kl_beta=0.5, truncated=how, **changes)
        made = _collect(algo, Judge(lambda i, s: 1.0))
        grads, stats = algo.gradients(made, torch.zeros_like(made.advantage.value), torch.arange(6))
        away = policy.theta.log_softmax(0)
        pull = torch.autograd.grad(0.5 * (away.exp() * (away - np.log(1 / WORDS))).sum(), policy.theta)[0]
        torch.testing.assert_close(grads.total, pull, rtol=1e-4, atol=1e-6)
        assert stats["kl"] > 0.05 and np.isnan(grads.agreement()) and grads.count == 3
    free = _make(policy, kl_beta=0.0, **changes)
    silent, _ = free.gradients(_collect(free), torch.zeros_like(made.advantage.value), torch.arange(6))
    assert not silent.total.any() and silent.count == 3


@pytest.mark.parametrize("how", ["mask", "penalise", "keep"])
def test_ppo_with_a_critic_treats_them_alike(how: str) -> None:
    algo = _make(algo="ppo", ppo=PPO(form="critic"), truncated=how, truncated_reward=-7.0, kl_beta=0.1)
    made = _collect(algo)
    assert "kl" in made.logged and "kl_other" not in made.logged  # a policy may leave that out
    done = made.rollout.finished
    assert bool(made.advantage.value[~done].any()) == (how != "mask")
    assert (set(made.reward[~done.numpy()]) == {-7.0}) == (how == "penalise")
    algo.update(made, lr=0.1)


def test_the_ratio_is_to_who_acted_and_not_to_the_reference() -> None:
    """Far from the reference nothing is clipped before the policy has moved; only the KL knows the reference (bug 4 of public code)."""
    policy = Babbler()
    policy.theta.data += torch.tensor([0.0, 0.0, 3.0, -3.0])
    algo = _make(policy, kl_beta=0.1, truncated="keep")
    made = _collect(algo)
    grads, stats = algo.gradients(made, made.advantage.value, torch.arange(6))
    assert stats["ratio_max_gap"] < 1e-6 and stats["clipped_positive"] == stats["clipped_negative"] == 0
    assert stats["kl"] > 0.3
    a, mask, away = made.advantage.value, made.rollout.mask, algo.policy.theta.log_softmax(0)
    loss = -(a[:, None] * algo.policy._logp(made.rollout.state) * mask).sum() / mask.sum()
    pull = (away.exp() * (away - np.log(1 / WORDS))).sum()
    assert (a == 0).any()  # the KL is that of every row
    wanted = torch.autograd.grad(loss + 0.1 * pull, algo.policy.theta)[0]
    torch.testing.assert_close(grads.total, wanted, rtol=1e-4, atol=1e-6)


# -- dynamic sampling ------------------------------------------------------------------------------------------------------


def _lucky(names: set[str]) -> Judge:
    """Only some prompts' rollouts differ in reward."""
    return Judge(lambda i, s: float(s.wav.sum()) if s.key in names else 1.0)


def test_prompts_without_signal_are_replaced() -> None:
    algo = _make(dynamic_sampling=2, truncated="keep")
    asked: list[int] = []

    def further(count: int) -> list[str]:
        asked.append(count)
        return [f"r{len(asked)}.{i}" for i in range(count)]

    judge = _lucky({"a", "d", "r1.1", "r2.0", "r2.1", "r2.2"})
    made = algo.collect(list("abcdef"), judge, seed=0, further=further)
    assert made.prompts == ["a", "d", "r1.1", "r2.0", "r2.1", "r2.2"] and asked == [4, 3]
    assert made.advantage.signal == 6 and made.rollout.group.tolist() == [i for i in range(6) for _ in range(6)]
    assert [s.key for s in made.rollout.samples[::6]] == made.prompts and len(made.reward) == 36
    assert made.logged["prompts_drawn"] == 13 and made.logged["constant_drawn"] == pytest.approx(7 / 13)
    assert made.logged["resampling_short"] == 0
    stats = algo.update(made, lr=0.1)
    assert stats["ratio_max_gap"] < 1e-3 and stats["grad_norm"] > 0


def test_what_is_missing_after_the_last_round_is_filled_up() -> None:
    algo = _make(dynamic_sampling=1, truncated="keep")
    made = algo.collect(list("abcdef"), _lucky({"c", "x1"}), seed=0, further=lambda n: [f"x{i}" for i in range(n)])
    assert len(made.prompts) == 6 and {"c", "x1"} <= set(made.prompts) and made.logged["resampling_short"] == 4
    assert made.advantage.signal == 2
    none_left = algo.collect(list("abcdef"), _lucky({"c"}), seed=0, further=lambda n: [])
    assert none_left.prompts == list("abcdef")
    full = algo.collect(list("abcdef"), _lucky(set("abcdef")), seed=0, further=lambda n: pytest.fail("asked"))
    assert full.advantage.signal == 6


def test_it_is_off_by_default_and_refused_where_it_means_nothing() -> None:
    assert RL().dynamic_sampling == 0
    _collect(_make(), Judge(lambda i, s: 1.0), further=lambda n: pytest.fail("asked"))
    with pytest.raises(UserError, match="dynamic_sampling"):
        _make(algo="ppo", ppo=PPO(form="critic"), dynamic_sampling=1)

    class Lone(Babbler):
        supports = frozenset({"sample"})

    with pytest.raises(UserError, match="dynamic_sampling"):
        _make(Lone(), dynamic_sampling=1)


def test_blind_draws_stop_the_run_though_they_would_be_replaced() -> None:
    algo = _make(dynamic_sampling=3)
    with pytest.raises(UserError, match="50 %"):
        _collect(algo, Judge(lambda i, s: None if s.key < "3" else 1.0), further=lambda n: list(range(10, 10 + n)))


# -- phases ----------------------------------------------------------------------------------------------------------------


def test_phases_are_timed_apart_and_the_policy_is_told() -> None:
    policy = Babbler()
    algo = _make(policy)

    class Slow(Judge):
        def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
            time.sleep(0.02)
            return super().score(samples)

    made = _collect(algo, Slow(TWOS.value))
    assert policy.entered == ["encode", "rollout", "reward", "update"]
    algo.update(made, lr=0.1)
    assert policy.entered[-1] == "update"
    assert {k for k in made.seconds if "/" not in k} == {"encode", "rollout", "reward", "update"}
    assert Path("/proc/self/clear_refs").exists() == ("memory_mb/update" in made.seconds)  # Linux keeps a peak
    assert made.seconds["reward"] >= 0.02 and made.seconds["encode"] < 0.02
    assert all(v >= 0 for v in made.seconds.values())
    policy.rollout([1], group=2, seed=0)  # nobody times this one
    assert made.seconds["rollout"] < 1


def test_moments_wait_in_the_hosts_memory_and_the_steps_are_the_same() -> None:
    ends = []
    for offload in ("none", "phase"):
        algo = _make(by=torch.optim.AdamW, offload=offload, truncated="keep")
        for step in range(3):
            algo.update(_collect(algo, seed=step), lr=0.1)
        ends.append(algo.policy.theta.detach())
        kept = [v for s in algo.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        assert kept and all(v.device.type == "cpu" for v in kept)
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.gpu
def test_moments_move_and_peaks_are_measured_on_a_gpu() -> None:
    weight = nn.Parameter(torch.zeros(1 << 20, device="cuda"))

    class Holder:
        def parameters(self) -> list[nn.Parameter]:
            return [weight]

    optimizer = torch.optim.AdamW([weight], 0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    phases, into = Phases(Holder(), optimizer, "phase"), dict[str, float]()
    with phases.record(into):
        phases.enter("rollout")
        assert optimizer.state[weight]["exp_avg"].device.type == "cpu"
        torch.zeros(64 << 18, device="cuda")
        phases.enter("update")
        assert optimizer.state[weight]["exp_avg"].device.type == "cuda"
    assert into["memory_mb/rollout"] >= 64 and optimizer.state[weight]["exp_avg"].device.type == "cpu"
