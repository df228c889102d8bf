"""What a page shows: as many losses as gains, and labels that are true."""

from __future__ import annotations

import numpy as np
import pytest

from rlspeech.report.players import beside, choose_examples


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_true_and_no_item_comes_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, most = int(rng.integers(0, 30)), int(rng.integers(0, 12))
    level = {f"k{i}": float(v) for i, v in enumerate(rng.standard_normal(count))}
    gain = {k: float(v) for k, v in zip(level, rng.standard_normal(count) + rng.integers(-2, 3), strict=True)}
    found = choose_examples(level, gain, most, "m")
    assert len(dict(found)) == len(found) == min(count, most)
    for key, label in found:
        if label.endswith("loss in m"):
            assert gain[key] < 0
        if label.endswith("gain in m"):
            assert gain[key] > 0
    if count >= 6 and most >= 3:
        assert min(gain, key=lambda k: gain[k]) in dict(found) and max(gain, key=lambda k: gain[k]) in dict(found)
        changed = [k for k, label in found if label.endswith(" in m")]
        median = np.median(list(gain.values()))
        assert sum(gain[k] <= median for k in changed) == sum(gain[k] > median for k in changed)


def test_without_a_baseline_the_worst_and_the_best() -> None:
    level = {f"k{i}": float(i) for i in range(9)}
    found = dict(choose_examples(level, {}, 6, "m"))
    assert [found[k] for k in ("k0", "k1", "k8", "k7")] == ["worst", "worst", "best", "best"]
    assert sum(v == "in between" for v in found.values()) == 2


def test_what_did_not_change_is_said() -> None:
    still = choose_examples({"a": 1.0, "b": 2.0}, {"a": 0.0, "b": 0.0}, 2, "m")
    assert still == [("a", "unchanged m"), ("b", "unchanged m")]
    assert choose_examples({"a": 1.0}, {"a": 0.5}, 3, "m") == [("a", "smallest gain in m")]
    assert choose_examples({}, {}, 3, "m") == []


def test_a_rating_stands_beside_its_words() -> None:
    assert beside(["a", "b", "c", "llm", "llm[rating=gain]", "llmish"], 2) == ["a", "b", "llm", "llm[rating=gain]"]
