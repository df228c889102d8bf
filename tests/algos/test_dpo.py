"""DPO on a toy of tokens and stored samples: which pairs it takes, its gradient against the formula, and its controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import clips, config
from tiny_ranks import placed, together
from torch import Tensor, nn

from rlspeech.algos import get_algorithm
from rlspeech.config import DPO, RewardSpec
from rlspeech.data.batches import Clip, PairedClips
from rlspeech.engine import Ranks
from rlspeech.types import Fit, Sample, UserError, Utterance

HIGH, LOW = "si_sdr", "lsd"  # more is better, less is better
VALUES = [[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.5, 5.25]]  # of HIGH, prompt by prompt
TOKENS = [[0, 1], [2], [1, 1, 2], [0]]


class Unigram:
    """Tokens of three kinds, drawn alike at the reference."""

    sample_rate, supports = 16000, frozenset({"fit"})

    def __init__(self) -> None:
        self.theta = nn.Parameter(torch.zeros(3))

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def fit(self, prompts: list[Clip], samples: list[Sample], *, seed: int, reference: bool = True) -> Fit:
        assert [p.key for p in prompts] == [s.key for s in samples]
        logp = torch.stack([self.theta.log_softmax(0)[torch.as_tensor(s.tokens)].sum() for s in samples])
        size = torch.tensor([float(len(s.tokens)) for s in samples if s.tokens is not None])
        return Fit(logp, -size * float(np.log(3)) if reference else None, None, size)

    def references(self, prompts: list[Clip]) -> list[Sample]:
        return [Sample(c.key, c.target, 16000, tokens=np.array([2, 2])) for c in prompts]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of samples: scores of HIGH and LOW by prompt, None for null; ``unfinished`` are indices of draws."""

    def write(high: Sequence[Sequence[float | None]] = VALUES, low: Any = None, unfinished: Sequence[int] = ()) -> Path:
        low, rows, scores = low or [[0.0] * 4] * len(high), [], []
        for p, d in np.ndindex(len(high), 4):
            key = f"u{p}-{d:02d}"
            own = {"prompt": f"u{p}", "draw": d, "finished": d not in unfinished, "tokens": TOKENS[d]}
            rows.append({"id": key, "audio_filepath": "a.flac", "duration": 1.0, "sample_rate": 16000, **own})
            row = {"key": key, "system": "system", HIGH: high[p][d], LOW: low[p][d], "asr_keywords": None}
            scores.append(row | {"errors": {HIGH: "too quiet"} if high[p][d] is None else {}})
        (tmp_path / "samples.json").write_text('{"draws": 4}')
        for name, lines in (("manifest", rows), ("scores", scores)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write


def make(folder: Path, ranks: Ranks | None = None, rewards: Any = None, dpo: Any = None, **changes: Any) -> Any:
    policy = Unigram()
    rewards = rewards or [RewardSpec(name=HIGH, scale="none")]
    own: dict[str, Any] = {"samples": str(folder), "dpo": DPO(**{"margin": 0.0, **(dpo or {})}), "micro_batch": 1}
    cfg = config(algo="dpo", rewards=rewards, **own, **changes)
    return get_algorithm(cfg, policy, torch.optim.SGD(policy.parameters(), 0.5), ranks)  # type: ignore[arg-type]


# rows of the set, four a prompt; nothing differs in the second prompt
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "best": ({}, {"u0": [(1, 0)], "u2": [(10, 9)]}),
    "ranked": ({"pairs": "ranked"}, {"u0": [(1, 0), (3, 2)], "u2": [(10, 9), (11, 8)]}),
    "margin": ({"pairs": "ranked", "margin": 2.0}, {"u0": [(1, 0)]}),  # of spreads of 0.66
    "reference": ({"winner": "reference"}, {"u0": [(None, 0)], "u2": [(None, 9)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_pairs(stored: Any, case: str) -> None:
    made = make(stored(), dpo=CASES[case][0])
    assert made.pairs == CASES[case][1]
    source = PairedClips([Utterance(f"u{i}", "a.flac", 1.0, 16000) for i in range(3)], 16000)
    assert [u.id for u in made.select(source).utts] == list(CASES[case][1])
    assert made.kept == pytest.approx(len(CASES[case][1]) / 3)


def test_random_pairs_are_of_the_same_prompts_and_in_both_directions(stored: Any) -> None:
    folder = stored([VALUES[0]] * 40 + [VALUES[1]])
    pairs = make(folder, dpo={"pairs": "random", "margin": 2.0}).pairs
    assert pairs.keys() == make(folder, dpo={"margin": 2.0}).pairs.keys() and len(pairs) == 40
    better = [VALUES[0][w % 4] > VALUES[0][x % 4] for [(w, x)] in pairs.values()]
    assert 8 < sum(better) < 32  # a fair coin falls outside once in 10^4
    assert pairs == make(folder, dpo={"pairs": "random", "margin": 2.0}).pairs


def test_fronts_of_two_rewards_go_before_their_sum_and_each_in_its_direction(stored: Any) -> None:
    # draw 1 has the largest sum of both, 3 is beaten by all in both, 0 beats nothing in LOW
    folder = stored([[3.0, 2.9, 1.0, 0.5]], [[1.0, 0.5, 0.0, 2.0]])
    rewards = [RewardSpec(name=HIGH, scale="none"), RewardSpec(name=LOW, scale="none")]
    made = make(folder, rewards=rewards, dpo={"order": "pareto", "pairs": "ranked"})
    assert made.pairs == {"u0": [(1, 3)]}  # 0 and 2 are on the same front
    assert make(folder, rewards=rewards, dpo={"pairs": "ranked"}).pairs == {"u0": [(1, 3), (0, 2)]}


def test_unfinished_and_unscored_draws_take_no_part(stored: Any) -> None:
    assert make(stored([VALUES[0]], unfinished=[1]), truncated="mask").pairs == {"u0": [(3, 0)]}
    assert make(stored([[None, 3.0, 1.0, 2.0]]), max_unscorable=0.25).pairs == {"u0": [(1, 2)]}
    both = [RewardSpec(name=n, scale="none") for n in (HIGH, "asr_keywords")]  # null in every row: nothing to judge
    for order in ("reward", "pareto"):
        assert make(stored(), rewards=both, dpo={"order": order}).pairs == CASES["best"][1]
    with pytest.raises(UserError, match="25 %"):
        make(stored([[None, 3.0, 1.0, 2.0]]))


def test_what_is_missing_is_named(stored: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--samples"):
        get_algorithm(config(algo="dpo"), Unigram(), torch.optim.SGD([torch.zeros(1)], 0.1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rlspeech sample"):
        make(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"rlspeech reward {tmp_path} --reward estoi"):
        make(stored(), rewards=[RewardSpec(name="estoi")])
    with pytest.raises(UserError, match=r"dpo\.margin"):
        make(stored([VALUES[1]]))


FORMS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.5},
    "normalised": {"beta": 2.0, "length_normalised": True},
    "with sft": {"sft_weight": 0.3},
    "sft": {"loss": "sft"},
    "reference": {"winner": "reference"},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_formula(stored: Any, form: str) -> None:
    cfg, algo, theta0 = DPO(**FORMS[form]), make(stored(), dpo=FORMS[form]), torch.tensor([0.3, -0.2, 0.5])
    algo.policy.theta.data.copy_(theta0)
    experience = algo.collect(clips(3), None, 7)
    found = algo.gradients(experience, torch.zeros(0), torch.arange(3))[0].total
    theta = theta0.clone().requires_grad_()

    def worth(tokens: list[int]) -> tuple[Tensor, Tensor]:
        each = theta.log_softmax(0)[torch.tensor(tokens)]
        shift = (each - torch.tensor(1 / 3).log()).sum()
        return each.mean(), shift / len(tokens) if cfg.length_normalised else shift

    total = torch.zeros(())
    for winner, loser in ([1, 0], [2, 1]):  # of draws: the first and the third prompt have pairs
        mean, shift = worth([2, 2] if cfg.winner == "reference" else TOKENS[winner])
        if cfg.loss == "sft":
            total = total - mean
        else:
            chance = 1 / (1 + torch.exp(-cfg.beta * (shift - worth(TOKENS[loser])[1])))
            total = total - chance.log() - cfg.sft_weight * mean
    expected = torch.autograd.grad(total / 2, theta)[0]
    torch.testing.assert_close(found, expected)


def test_it_learns_the_preference_and_says_so(stored: Any) -> None:
    algo, rows = make(stored(), dpo={"beta": 1.0}), []
    for step in range(12):
        rows.append(algo.update(algo.collect(clips(3), None, step + 1), lr=0.5))
    assert rows[0]["dpo/accuracy"] == 0.5 and rows[0]["dpo/loss"] == pytest.approx(np.log(2))
    assert rows[-1]["dpo/accuracy"] == 1.0 and rows[-1]["dpo/margin"] > 1 > rows[-1]["dpo/loss"] * 2
    assert rows[0]["dpo/pairs"] == 2 and rows[0]["dpo/kept"] == pytest.approx(2 / 3)
    assert int(algo.policy.theta.argmin()) == 0  # what only losers have


@pytest.mark.parametrize("form", ["dpo", "sft"])
def test_processes_learn_what_one_does(stored: Any, form: str) -> None:
    folder = stored([VALUES[0]] * 4)

    def learn(ranks: Ranks) -> tuple[Tensor, dict[str, float]]:
        algo = make(folder, ranks, dpo={**FORMS[form], "pairs": "ranked"})
        for step in range(2):
            row = algo.update(algo.collect(ranks.share(placed(4)), None, step + 1), lr=0.5)
        return algo.policy.theta.detach(), {k: v for k, v in row.items() if "dpo/" in k}

    weights, row = learn(Ranks())
    for world in (2, 5):
        for found, logged in together(world, learn):
            torch.testing.assert_close(found, weights)
            assert logged == pytest.approx(row)
