"""Several rewards at once: in worker processes trouble costs one metric of one item, and the numbers are those of this process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from reward_signals import voice, with_noise

from rlspeech.rewards import base
from rlspeech.rewards.catalogue import Column, Entry
from rlspeech.rewards.scorer import Scorer
from rlspeech.types import Sample, UserError


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The families of ``reward_plugins`` as rewards that run in worker processes."""
    for table in ("_entries", "_columns", "_aliases"):
        monkeypatch.setattr(base, table, dict(getattr(base, table)))
    for name, cls in (("mean", "Mean"), ("trouble", "Trouble"), ("cannot", "CannotStart")):
        base.register(Entry(name, f"reward_plugins:{cls}", {name: Column("")}, where="cpu", min_s=0.0, silence="score"))
    yield


def levels(marks: list[float]) -> list[Sample]:
    return [Sample(str(i), np.full(100, m, np.float32), 16000) for i, m in enumerate(marks)]


@pytest.mark.usefixtures("plugins")
def test_trouble_costs_one_metric_of_one_item() -> None:
    marks = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.9, 0.5]
    with Scorer(["mean", "trouble"], workers=2, timeout_s=1.0) as scorer:
        first, second = scorer.start(levels(marks)), scorer.start(levels([0.2] * 5))  # batches overlap
        assert [s.value for s in second.result()["trouble"]] == [1.0] * 5
        table = first.result()
        assert scorer.score(levels([0.9]), only=["mean"])["mean"][0].error is None
    assert [round(s.value or 0, 3) for s in table["mean"]] == marks  # order kept, and the neighbour metric unharmed
    trouble = table["trouble"]
    assert [s.value is None for s in trouble] == [False, True, False, True, False, True, False, True, False]
    for at, words in ((1, "crashed (signal 11)"), (3, "longer than 1 s"), (5, "RuntimeError: broken on purpose")):
        assert words in str(trouble[at].error)


@pytest.mark.usefixtures("plugins")
def test_a_family_that_cannot_be_built_is_an_error_not_a_hang() -> None:
    with Scorer(["cannot"], workers=1) as scorer, pytest.raises(UserError, match="ImportError"):
        scorer.score(levels([0.1]))


def test_pool_and_inline_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = voice(1.0)
    samples = [Sample(str(i), with_noise(clean, snr, i), 16000, clean) for i, snr in enumerate((15, 5, -5))]
    samples[1].wav = np.zeros_like(clean)
    names = ["estoi", "si_sdr", "stoi", "lsd"]
    with Scorer(names, workers=2) as scorer, Scorer(names, workers=0) as inline:
        a, b = scorer.score(samples), inline.score(samples)
        monkeypatch.setattr("rlspeech.rewards.scorer.SENDING_S", np.inf)  # what was measured is cheap enough to do here
        assert not scorer.start(samples).jobs and scorer.score(samples) == a
    assert a == b and [(s.error or "fine")[:6] for s in a["lsd"]] == ["fine", "silent", "fine"]
    assert scorer.seconds["estoi"] > 0
