"""Sentences carry their labels: what was said reads back as the grades that were meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rlspeech
from rlspeech.data.degrade import TRAITS
from rlspeech.tasks.aids.sentences import EFFORT, NOUNS, OVERALL, describe, grades_of, read_back, stars_of, vocabulary


def any_labels(rng: np.random.Generator) -> dict[str, float]:
    traits = {t: float(rng.uniform(0, 1)) if rng.random() < 0.4 else 0.0 for t in TRAITS}
    return {"quality": float(rng.uniform(1, 5)), **traits, "level_dbfs": float(rng.uniform(-45, -10))}


def test_what_is_said_reads_back() -> None:
    rng, named = np.random.default_rng(0), dict[str, int]()
    for _ in range(800):
        labels = any_labels(rng)
        text, meant = describe(labels, rng), grades_of(labels)
        for name, grade in read_back(text).items():
            assert grade == meant[name], (text, name)
            named[name] = named.get(name, 0) + 1
        assert "overall" in read_back(text)
        heard = sorted((t for t in NOUNS if meant[t]), key=lambda t: -labels[t])[:3]
        assert set(heard) <= set(read_back(text)), text  # the worst traits are never kept quiet
    assert set(named) == {"overall", "effort", "loudness", *NOUNS}
    assert min(named.values()) > 100


def test_same_seed_same_words_and_many_ways() -> None:
    labels = {"quality": 2.4, "noise": 0.5, "muffling": 0.8}
    assert describe(labels, np.random.default_rng(3)) == describe(labels, np.random.default_rng(3))
    assert len({describe(labels, np.random.default_rng(s)) for s in range(200)}) > 150


def test_more_grades_than_stars() -> None:
    found = [grades_of({"quality": q}) for q in np.linspace(1, 5, 400)]
    grades, pairs = [g["overall"] for g in found], {(g["overall"], g["effort"]) for g in found}
    assert grades == sorted(grades) and set(grades) == set(range(len(OVERALL)))
    assert len(pairs) > len(OVERALL) + 2  # both remarks together are finer than either
    assert len({len(row) for row in OVERALL}) == 1 and len({len(row) for row in EFFORT}) == 1
    words = [w for row in OVERALL for w in row]
    assert len(words) == len(set(words))


def test_stars_by_the_verdict() -> None:
    assert stars_of("The overall quality is terrible.") == 1.0
    assert stars_of("Overall, the quality of this recording is flawless. There is no noise.") == 5.0
    good, better = stars_of("The sound quality is good."), stars_of("The sound quality is very good.")
    assert good is not None and better is not None and good < better
    assert stars_of("I like it.") is None and read_back("") == {}


def test_unlabelled_is_not_spoken_of() -> None:
    said = {describe({"quality": 3.0}, np.random.default_rng(s)) for s in range(50)}
    assert all(set(read_back(text)) <= {"overall", "effort"} for text in said)


def test_the_vocabulary_is_small_and_whole() -> None:
    words, rng = set(vocabulary()), np.random.default_rng(1)
    assert len(words) < 300
    for _ in range(300):
        text = describe(any_labels(rng), rng)
        assert set(re.findall(r"\w+|[^\w\s]", text)) <= words


@pytest.mark.parametrize("quality", [-3.0, 0.0, 5.0, 9.0])
def test_labels_out_of_range_are_held(quality: float) -> None:
    assert grades_of({"quality": quality, "noise": 7.0, "level_dbfs": -200.0})["overall"] in (0, len(OVERALL) - 1)


# -- the embedded sentiment model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stars() -> Callable[[list[str]], list[float]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(rlspeech.__file__).parent / "assets" / "sentiment"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert [model.config.id2label[i] for i in range(5)] == ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3e6

    def rate(texts: list[str]) -> list[float]:
        with torch.no_grad():
            given = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
            return list((model(**given).logits.softmax(-1) * torch.arange(1.0, 6.0)).sum(-1).tolist())

    return rate


@pytest.mark.parametrize("form", ["{}", "The quality is {}.", "Overall, the speech quality of this clip is {}."])
def test_the_scale_of_opinion_is_in_order(stars: Callable[[list[str]], list[float]], form: str) -> None:
    rated = stars([form.format(w) for w in ("bad", "poor", "fair", "good", "excellent")])
    assert all(b > a + 0.2 for a, b in zip(rated, rated[1:], strict=False)), rated


def test_negations_and_words_of_the_field(stars: Callable[[list[str]], list[float]]) -> None:
    """What a lexicon gets wrong: negated faults, "strongly present", numbers."""
    praise = ["There is no noise and no distortion", "not muffled", "The noise is not intrusive"]
    praise += ["Quality score 5 out of 5", "clean and intelligible; the voice sounds excellent"]
    praise += ["Clear, natural and very pleasant to listen to, with no audible noise"]
    blame = ["not clear", "Quality score 1 out of 5", "muffled"]
    blame += ["heavily distorted and hard to understand, with loud noise"]
    blame += ["Background noise is strongly present and the speaker is barely intelligible"]
    blame += ["Terrible quality: muffled, robotic, annoying artifacts and unintelligible words"]
    assert min(stars(praise)) > 3.1 and max(stars(blame)) < 2.95
    pairs = [
        ("The speech is noisy.", "The speech is not noisy."),
        ("The voice is not clear.", "The voice is clear."),
        ("I hear loud background noise.", "I hear faint background noise."),
        ("slightly distorted", "not distorted"),
        ("extremely muffled", "slightly muffled"),
    ]
    for worse, better in pairs:
        low, high = stars([worse, better])
        assert low < high - 0.2, (worse, low, better, high)


def test_own_sentences_keep_their_order(stars: Callable[[list[str]], list[float]]) -> None:
    rng = np.random.default_rng(0)
    truth = np.linspace(1, 5, 60)
    rated = stars([describe({"quality": float(q)}, rng) for q in truth])
    assert np.corrcoef(truth, rated)[0, 1] > 0.95
    assert len({round(s, 2) for s in rated}) > 25
    assert all(1.0 <= s <= 5.0 for s in rated)
