"""DiffRO on a chain of five codes: its gradient against finite differences, who is kept, and what joining it with GRPO does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_diffro import CODES, LONGEST, STOP, Chain, Likes, config, judge
from tiny_ppo import NAME
from torch import Tensor

from rlspeech.algos import get_algorithm
from rlspeech.algos.diffro import sound_rows
from rlspeech.algos.grpo import GRPO
from rlspeech.algos.math import soft_loss
from rlspeech.config import RewardSpec
from rlspeech.types import UserError

PROMPTS = list(range(4))


def algorithm(algo: str, policy: Chain | None = None, soft: Likes | None = None, **changes: Any) -> Any:
    policy = policy or Chain()
    optimizer = torch.optim.SGD(policy.parameters(), 1.0)
    return get_algorithm(config(algo, **changes), policy, optimizer, soft=soft or Likes())


def gradient(algo: Any, experience: Any) -> Tensor:
    grads, _ = algo.gradients(experience, experience.advantage.value, torch.arange(4))
    return grads.total


def alone(algo: Any, experience: Any) -> Tensor:
    """The gradient of GRPO from the same rollouts."""
    return gradient(GRPO(algo.config, algo.policy, algo.optimizer), experience).clone()


def assign(algo: Any, experience: Any, *unfinished: int) -> None:
    """Assign credit as if all other rows had stopped."""
    experience.rollout.finished[:] = True
    experience.rollout.finished[list(unfinished)] = False
    algo.assign_credit(experience, experience.rollout)


@pytest.mark.parametrize("own_kl", [True, False], ids=["kl of relax", "kl of log_prob"])
@pytest.mark.parametrize("mean", ["token", "sequence", "sum"])
def test_the_gradient_is_that_of_finite_differences(mean: str, own_kl: bool) -> None:
    policy = Chain(dtype=torch.float64, own_kl=own_kl)
    how = {"diffro": {"hard": False, "tau": 0.7, "reduction": "sum"}}
    how = how if mean == "sum" else {"loss_mean": mean, "diffro": {**how["diffro"], "reduction": "mean"}}
    algo = algorithm("diffro", policy, kl_beta=0.3, **how)
    g = torch.Generator().manual_seed(4)
    policy.table.data += 0.3 * torch.randn(policy.table.shape, dtype=torch.float64, generator=g)
    experience = algo.collect(PROMPTS, judge(), seed=3)
    rollout, kept = experience.rollout, experience.extra["kept"]
    assert 0 < int(kept.sum()) < len(kept)  # some never stopped

    def loss() -> float:  # written out anew: -mean R + beta mean KL
        rows = kept.nonzero()[:, 0]
        with torch.no_grad():
            made = policy.relax(rollout, rows, tau=0.7, hard=False, seed=1_000_003, with_kl=False)
            reward = Likes().score_soft(made, [rollout.samples[i] for i in rows.tolist()]).sum() / len(kept)
            kl, mask = policy._kl(rollout.state[rows]), rollout.mask[rows]
            if mean == "token":
                away = (kl * mask).sum() / mask.sum() * len(rows) / len(kept)
            elif mean == "sum":
                away = (kl * mask).sum() / len(kept)
            else:
                away = ((kl * mask).sum(1) / mask.sum(1)).sum() / len(kept)
        return float(-reward + 0.3 * away)

    found, step = gradient(algo, experience).view_as(policy.table), 1e-5
    for i, j in [(0, 0), (1, 3), (2, STOP), (STOP, 2), (4, 4), (3, 1)]:
        before = policy.table.data[i, j].item()
        policy.table.data[i, j] = before + step
        up = loss()
        policy.table.data[i, j] = before - step
        down = loss()
        policy.table.data[i, j] = before
        assert float(found[i, j]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-9)
    assert float(found.abs().max()) > 1e-3


def test_straight_through_shows_one_hot_tokens_and_has_the_soft_gradient() -> None:
    policy = Chain()
    rollout = policy.rollout(PROMPTS, group=2, seed=0)
    rows, taste = torch.arange(8), torch.randn(CODES, generator=torch.Generator().manual_seed(0))
    made, soft = (policy.relax(rollout, rows, tau=0.5, hard=h, seed=2) for h in (True, False))
    assert torch.equal(made.soft.detach().sum(-1), torch.ones(8, LONGEST))
    assert set(made.soft.detach().unique().tolist()) == {0.0, 1.0}
    hard, smooth = (torch.autograd.grad((m.soft @ taste * m.mask).sum(), policy.table)[0] for m in (made, soft))
    torch.testing.assert_close(hard, smooth)  # a linear reward does not see the difference
    shown = [policy.relax(rollout, rows, tau=t, hard=True, seed=2).soft @ taste for t in (2.0, 1.0, 0.5)]
    norms = [float(torch.autograd.grad(s.sum(), policy.table)[0].norm()) for s in shown]
    assert norms == sorted(norms)


def test_it_climbs_and_the_kl_holds_it_back() -> None:
    def trained(beta: float) -> tuple[float, float]:
        policy, likes = Chain(), Likes()
        algo = algorithm("diffro", policy, likes, kl_beta=beta, steps=60, prompts_per_step=16, micro_batch=16, group=2)
        rows = [algo.update(algo.collect(list(range(16)), judge(), seed=k), lr=2.0) for k in range(60)]
        away = policy._kl(torch.arange(6)[None]).detach().mean()
        return float(np.mean([r["diffro/taste"] for r in rows[-5:]])), float(away)

    (free, far), (held, near) = trained(0.0), trained(3.0)
    assert free > 1.5 and free > held + 0.3 and far > 5 * near  # 2 is the best there is


def test_rewards_are_not_computed_and_the_log_has_what_was_climbed() -> None:
    rewards, likes = judge(), Likes()
    algo = algorithm("diffro", soft=likes, kl_beta=0.1)
    experience = algo.collect(PROMPTS, rewards, seed=0)
    assert rewards.sizes == [] and experience.scores == {} and np.isnan(experience.reward).all()
    logged = algo.update(experience, lr=0.1)
    kept = experience.extra["kept"].numpy()
    assert likes.rows == kept.sum() and np.isfinite(experience.reward[kept]).all()
    assert np.isnan(experience.reward[~kept]).all()
    assert logged["diffro/reward"] == pytest.approx(float(experience.reward[kept].mean()), abs=1e-5)
    assert logged["kl"] == pytest.approx(0, abs=1e-6)
    assert logged["diffro/kept"] == pytest.approx(kept.mean())
    assert logged["diffro/unfinished"] == pytest.approx(1 - kept.mean())
    assert logged["diffro/tau"] == 1.0 and logged["grad_norm"] > 0


@pytest.mark.parametrize("algo", ["diffro", "grpo+diffro"])
def test_micro_batches_change_memory_only(algo: str) -> None:
    found = []
    for micro in (1, 4):
        made = algorithm(algo, kl_beta=0.1, micro_batch=micro)
        found.append(gradient(made, made.collect(PROMPTS, judge(), seed=5)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_rows_that_never_stopped_or_loop_are_dropped() -> None:
    policy = Chain()
    algo = algorithm("diffro", policy)
    experience = algo.collect(PROMPTS, judge(), seed=1)
    assign(algo, experience, 3)
    experience.rollout.samples[5].tokens = np.tile([1, 2, 3, 4], 40)
    experience.rollout.samples[6].tokens = np.zeros(0, np.int64)  # nothing said: no loop
    finished, straight = sound_rows(experience.rollout)
    assert (~finished).nonzero().tolist() == [[3]] and (~straight).nonzero().tolist() == [[5]]
    algo.assign_credit(experience, experience.rollout)
    assert (~experience.extra["kept"]).nonzero()[:, 0].tolist() == [3, 5]
    assert experience.logged["diffro/unfinished"] == experience.logged["diffro/looping"] == 1 / 16
    gradient(algo, experience)
    assert sorted(torch.cat(policy.relaxed).tolist()) == [i for i in range(16) if i not in {3, 5}]


def collected(on: str, values: Any, **changes: Any) -> tuple[Any, Any, Chain]:
    policy = Chain()
    algo = algorithm("grpo+diffro", policy, diffro={"on": on, **changes})
    experience = algo.collect(PROMPTS, judge(values), seed=2)
    assign(algo, experience, 15)
    return algo, experience, policy


# groups of 4; the paper's own first three
VALUES: list[float | None] = [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, None, 1, 2]


KEPT = {"positive": [5, 6, 7, 11], "nonnegative": [0, 1, 2, 3, 5, 6, 7, 11, 14], "all": list(range(16))}


@pytest.mark.parametrize(("on", "kept"), KEPT.items())
def test_the_filter(on: str, kept: list[int]) -> None:
    algo, experience, policy = collected(on, VALUES)
    assert experience.extra["kept"].nonzero()[:, 0].tolist() == kept
    logged = algo.update(experience, lr=0.1)
    assert logged["diffro/kept"] == len(kept) / 16 and logged["diffro/weight"] == 1.0
    assert sorted(torch.cat(policy.relaxed).tolist()) == kept
    assert -1 <= logged["diffro/cosine"] <= 1 and logged["diffro/grpo_grad_norm"] > 0 < logged["diffro/grad_norm"]


def test_both_is_the_sum_of_both() -> None:
    algo, experience, policy = collected("positive", VALUES, weight=0.7)
    both, grpo = gradient(algo, experience), alone(algo, experience)
    rows = experience.extra["kept"].nonzero()[:, 0]
    made = policy.relax(experience.rollout, rows, tau=1.0, hard=True, seed=1_000_003)
    loss = -Likes().score_soft(made, [experience.rollout.samples[i] for i in rows.tolist()]).sum() / 16
    torch.testing.assert_close(both, grpo + 0.7 * torch.autograd.grad(loss, policy.table)[0].flatten())
    assert float((both - grpo).norm()) > 1e-3


def test_without_a_kept_row_it_is_grpo() -> None:
    algo, experience, policy = collected("positive", [1.0] * 16)
    assert not experience.extra["kept"].any() and float(gradient(algo, experience).norm()) == 0 and policy.relaxed == []
    logged = algo.update(experience, lr=0.1)
    assert logged["diffro/kept"] == 0 and np.isnan(logged["diffro/cosine"])


def test_one_kl() -> None:
    """Both look at the same KL once: DiffRO's part does not change with beta."""
    parts = []
    for beta in (0.0, 5.0):
        policy = Chain()
        algo = algorithm("grpo+diffro", policy, kl_beta=beta)
        policy.table.data[:, 0] += 0.5
        experience = algo.collect(PROMPTS, judge(VALUES), seed=2)
        grpo = alone(algo, experience)
        parts.append((grpo, gradient(algo, experience) - grpo))
    torch.testing.assert_close(parts[0][1], parts[1][1], atol=1e-6, rtol=1e-4)
    assert float((parts[0][0] - parts[1][0]).norm()) > 1e-3


def test_a_mix_is_divided_by_what_all_rollouts_differ_by_and_keeps_its_rewards_from_grpo() -> None:
    specs, settled = [RewardSpec(name=n) for n in (NAME, "estoi")], list[Any]()
    soft = Likes()
    vars(soft).update(divides=True, settle=settled.append, measure=lambda s: {"x": np.arange(len(s))}, specs=specs[1:])
    made = algorithm("grpo+diffro", soft=soft)
    experience = made.collect(PROMPTS, judge(VALUES), seed=2)
    assert [s["x"].tolist() for s in settled] == [list(range(16))]
    scores = {**experience.scores, "estoi": np.arange(16.0)}
    wanted = GRPO.advantage_of(made, experience.rollout, scores, specs[:1])[0]
    np.testing.assert_array_equal(made.advantage_of(experience.rollout, scores, specs)[0], wanted)


def test_rows_without_a_score_are_left_out_and_too_many_stop_the_run() -> None:
    policy = Chain()
    algo = algorithm("diffro", policy, Likes(blind=frozenset({"2"})), max_unscorable=0.5)
    experience = algo.collect(PROMPTS, judge(), seed=1)
    assign(algo, experience)
    grads = gradient(algo, experience)
    assert torch.isfinite(grads).all() and np.isnan(experience.reward[8:12]).all()
    assert np.isfinite(experience.reward[:8]).all()
    made = algorithm("diffro", policy, Likes(blind=frozenset({"0", "1", "2"})), max_unscorable=0.5)
    experience = made.collect(PROMPTS, judge(), seed=1)
    with pytest.raises(UserError, match="relaxed"):
        made.update(experience, lr=0.1)


def test_the_temperature_follows_its_course_and_survives_a_checkpoint() -> None:
    algo = algorithm("diffro", diffro={"tau": 2.0, "tau_end": 0.5}, steps=5)
    seen = []
    for k in range(5):
        seen.append(algo.tau)
        algo.update(algo.collect(PROMPTS, judge(), seed=k), lr=0.01)
    np.testing.assert_allclose(seen, [2.0, 2**0.5, 1.0, 0.5**0.5, 0.5])
    again = algorithm("diffro", diffro={"tau": 2.0, "tau_end": 0.5}, steps=5)
    again.load_state(algo.state())
    assert again.tau == 0.5 and again.collections == 5


def test_every_collection_and_epoch_draws_its_own_noise() -> None:
    policy = Chain()
    algo = algorithm("diffro", policy, micro_batch=4, epochs=2, updates_per_collection=2)
    for k in range(2):
        algo.update(algo.collect(PROMPTS, judge(), seed=k), lr=0.01)
    seeds = policy.seeds  # shares of one pass have rows of their own
    assert len(seeds) == 8 and len(set(seeds)) == 4 and seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("algo", ["diffro", "grpo+diffro"])
def test_what_it_needs_is_said(algo: str) -> None:
    with pytest.raises(UserError, match="relax"):
        algorithm(algo, Chain(supports=frozenset({"sample"})))
    policy = Chain()
    with pytest.raises(UserError, match="change_weight"):  # its KL is that already
        algorithm("diffro", change_weight=1.0)
    with pytest.raises(UserError, match="--algo grpo"):
        get_algorithm(config(algo), policy, torch.optim.SGD(policy.parameters(), 1.0))


def test_the_loss_on_numbers() -> None:
    reward = torch.tensor([1.0, 3.0, torch.nan, torch.nan])
    kl, mask = torch.full((4, 2), 0.5), torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    assert float(soft_loss(reward, 4.0)) == -1.0
    by_token = soft_loss(reward, 4.0, kl, mask, kl_beta=2.0, normaliser=3.0)
    by_row = soft_loss(reward, 4.0, kl, mask, kl_beta=2.0, normaliser=2.0, mean="sequence")
    assert float(by_token) == pytest.approx(-1.0 + 2 * 1.5 / 3) and float(by_row) == pytest.approx(-1.0 + 2 * 1.0 / 2)
