"""Several processes, as threads, do what one does with the same batch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from test_grpo_options import TWOS, Babbler
from tiny_ppo import NAME, Judge, Toy, config
from tiny_ranks import by_place, placed, together

from rlspeech.algos import get_algorithm
from rlspeech.config import RewardSpec
from rlspeech.engine import Ranks
from rlspeech.types import UserError

BATCH = [RewardSpec(name=NAME, scale="batch")]
CRITIC = {"form": "critic", "whiten": True, "gae_lambda": 0.9}
SEED = threading.Lock()  # threads have one generator for initial weights, processes their own
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"algo": "grpo", "group": 4, "rewards": BATCH, "kl_beta": 0.01, "clip_range": "auto"},
    "batch": {"algo": "grpo", "group": 4, "rewards": BATCH, "advantage_std": "batch", "loss_mean": "sequence"},
    "relative": {"ppo": {"whiten": True, "kl_in": "advantage"}, "rewards": BATCH, "kl_beta": 0.1, "group": 2},
    "critic": {"ppo": CRITIC, "rewards": BATCH, "kl_beta": 0.1, "group": 2, "epochs": 2},
    "awr": {"algo": "awr", "group": 4, "rewards": BATCH, "kl_beta": 0.01, "clip_range": "auto"},
    "weights": {"algo": "grpo", "group": 4, "weights": "agreement", "weights_every": 2},
    "supervised": {"algo": "grpo", "group": 4, "supervised_weight": 0.1},
}


def blind(i: int, s: Any) -> float | None:
    """Not every row can be scored."""
    return None if s.wav[0] > 0.9 else -float(np.square(s.wav[:3] - 1).sum())


def learn(ranks: Ranks, case: dict[str, Any]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Three collections of 4 prompts in 2 updates each: the weights, and what is logged."""
    policy = by_place(Toy(steps=3))
    policy.ragged = True
    changes = {"micro_batch": 1, "updates_per_collection": 2, "max_unscorable": 1.0, "prompts_per_step": 4, **case}
    cfg, rows = config(**changes), []
    algo: Any = get_algorithm(cfg, policy, torch.optim.SGD(policy.parameters(), 0.05), ranks)
    if hasattr(algo, "critic"):
        with SEED:
            algo.critic._build(2, "cpu")
    for step in range(3):
        mine = ranks.share(placed(4), cfg.updates_per_collection)
        rows.append(algo.update(algo.collect(mine, Judge(blind), seed=step), lr=0.05))
    return policy.theta.detach(), rows


@pytest.mark.parametrize("case", CASES)
def test_processes_learn_and_log_what_one_does(case: str) -> None:
    weights, rows = learn(Ranks(), CASES[case])
    assert float(weights.abs().max()) > 0.01
    for world in (2, 5):  # 5: one of them has no prompt
        for found, logged in together(world, lambda ranks: learn(ranks, CASES[case])):
            torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-7)
            for ours, theirs in zip(logged, rows, strict=True):
                alike = [k for k in theirs if k != "base_cached" and k in ours]  # each process knows its own
                assert set(theirs) == set(ours)
                np.testing.assert_allclose([ours[k] for k in alike], [theirs[k] for k in alike], rtol=1e-4, atol=1e-6)


def test_prompts_without_signal_are_replaced_as_by_one() -> None:
    def resample(ranks: Ranks) -> tuple[torch.Tensor, list[Any], dict[str, float]]:
        policy, batches = by_place(Babbler()), iter([placed(12)[4:8], placed(12)[8:]])
        changes = {"algo": "grpo", "group": 2, "dynamic_sampling": 2, "micro_batch": 1, "prompts_per_step": 4}
        algo = get_algorithm(config(**changes), policy, torch.optim.SGD(policy.parameters(), 0.1), ranks)
        made = algo.collect(ranks.share(placed(4)), TWOS, 3, lambda n: ranks.share(next(batches)[:n]))
        logged = algo.update(made, lr=0.1)
        return policy.theta.detach(), [p.place for part in ranks.gather(made.prompts) for p in part], logged

    weights, places, logged = resample(Ranks())
    assert max(places) > 3 and len(places) == 4  # some were replaced
    for world in (2, 5):
        for found, chosen, row in together(world, resample):
            assert sorted(chosen) == places
            torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-7)
            assert row["prompts_drawn"] == logged["prompts_drawn"]
            assert row["grad_norm"] == pytest.approx(logged["grad_norm"])


def test_the_limit_of_rows_without_a_score_is_that_of_all() -> None:
    def collect(ranks: Ranks, limit: float) -> None:
        policy = by_place(Toy())
        algo = get_algorithm(config(max_unscorable=limit), policy, torch.optim.SGD(policy.parameters(), 0.1), ranks)
        judge = Judge(lambda i, s: None if s.key in {"u0", "u1"} else 1.0)  # half of the first's, none of the other's
        algo.collect(ranks.share(placed(8)), judge, seed=0)

    together(2, lambda ranks: collect(ranks, 0.25))
    with pytest.raises(UserError) as caught:
        together(2, lambda ranks: collect(ranks, 0.2))
    assert "too quiet" in caught.value.why


def test_shares_are_stretches_of_every_update() -> None:
    for count, parts, world in ((8, 2, 2), (9, 2, 2), (7, 3, 2), (5, 3, 4), (3, 1, 5)):
        shares = together(world, lambda ranks, n=count, k=parts: ranks.share(range(n), k))
        assert sorted(x for share in shares for x in share) == list(range(count))
        for number, whole in enumerate(np.array_split(np.arange(count), parts)):
            cut = [x for share in shares for x in np.array_split(share, parts)[number].astype(int)]
            assert cut == whole.tolist()  # what a process cuts itself is its share of that update
        assert max(map(len, shares)) - min(map(len, shares)) <= parts
