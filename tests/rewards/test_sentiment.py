"""Orders of labels, expectations, long texts, and ratings that a text gives itself."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from tiny_judges import save_sentiment

from rlspeech.rewards.llm.sentiment import Sentiment, order_labels, read_rating
from rlspeech.types import UserError

STARS, THREE = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], ["neutral", "positive", "negative"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Sentiment(str(save_sentiment(tmp_path_factory.mktemp("s") / "stars")))


ORDERED = [(STARS, "5 stars"), (STARS[::-1], "5 stars"), (["5", "1", "3"], "5"), (["POS", "NEU", "NEG"], "POS")]
ORDERED += [(["Negative", "Neutral", "Positive"], "Positive"), (["positive", "negative"], "positive")]
ORDERED += [(["fair", "excellent", "bad", "poor", "good"], "excellent")]
ORDERED += [(["Very Positive", "Very Negative", "Neutral", "Negative", "Positive"], "Very Positive")]
ORDERED += [(["very_negative", "positive", "neutral", "very_positive", "negative"], "very_positive")]


@pytest.mark.parametrize(("labels", "best"), ORDERED)
def test_labels_are_put_in_order(labels, best):
    order = order_labels(labels, None, "x")
    assert sorted(order) == list(range(len(labels))) and labels[order[-1]] == best
    assert order_labels(labels[::-1], None, "x") == [len(labels) - 1 - i for i in order]


def test_mos_words_are_in_their_order_and_labels_without_an_order_need_one():
    labels = ["good", "bad", "excellent", "poor", "fair"]
    assert [labels[i] for i in order_labels(labels, None, "x")] == ["bad", "poor", "fair", "good", "excellent"]
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    with pytest.raises(UserError, match="sentiment_order"):
        order_labels(labels, None, "x")
    assert order_labels(labels, "ascending", "x") == [0, 1, 2] and order_labels(labels, "descending", "x") == [2, 1, 0]
    assert order_labels(labels, "LABEL_2|LABEL_0|LABEL_1", "x") == [2, 0, 1]
    for bad in ("LABEL_2|LABEL_0", "a|b|c", "LABEL_0|LABEL_0|LABEL_1"):
        with pytest.raises(UserError, match="LABEL_0"):
            order_labels(labels, bad, "x")
    for bad in (["good", "good"], ["LABEL_0"]):
        with pytest.raises(UserError):
            order_labels(bad, None, "x")


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        *((STARS, [0.0] * 5, 3.0), (STARS, [0, 0, 0, 0, 50.0], 5.0), (STARS[::-1], [0, 0, 0, 0, 50.0], 1.0)),
        *((THREE, [0.0, 50.0, 0.0], 5.0), (THREE, [50.0, 0.0, 0.0], 3.0)),
        (["positive", "negative"], [math.log(3), 0.0], 4.0),
        (STARS, [0, 0, 0, math.log(0.25), math.log(0.75)], None),
    ],
)
def test_the_score_is_an_expectation(tmp_path, labels, logits, expected):
    made = Sentiment(str(save_sentiment(tmp_path / "m", labels, bias=logits)))
    (score,) = made.stars(["the speech is good"])
    if expected is None:
        weights = np.exp(logits)
        expected = float(np.dot(np.arange(1, 6), weights / weights.sum()))
    assert score.value == pytest.approx(expected, abs=1e-3)
    assert sum(score.detail["distribution"]) == pytest.approx(1, abs=1e-3)


def test_a_batch_says_what_single_texts_say(model):
    texts = ["good", "the speech is very noisy and distorted", "some background hiss", "a b c"]
    together = [s.value for s in model.stars(texts)]
    assert together == pytest.approx([model.stars([t])[0].value for t in texts], abs=1e-5)
    assert len({round(v, 3) for v in together}) > 1 and all(1 <= v <= 5 for v in together)


def test_long_texts_are_read_to_their_end(model):
    head = "the speech is clean and clear " * 20
    scores = model.stars([head, head + "very bad noisy muffled distorted " * 40, "word" * 5000])
    assert all(s.value is not None for s in scores) and abs(scores[0].value - scores[1].value) > 1e-3
    # like parts: a text said twice as often is the same text
    once, often = model.stars(["good clear " * 12, "good clear " * 12 * 8])
    assert often.value == pytest.approx(once.value, abs=0.05)


def test_nothing_to_rate_is_null_and_thoughts_do_not_count(model):
    scores = model.stars(["", "  ", "<think>good</think>", "good"])
    assert [s.value is None for s in scores] == [True, True, True, False] and all(s.error for s in scores[:3])
    assert model.stars([]) == []
    plain, thought = model.stars(["good quality", "<think>bad noisy muffled</think> good quality"])
    assert plain.value == pytest.approx(thought.value)


def test_folders_that_are_no_classifiers(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        Sentiment(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="LABEL_0"):
        Sentiment(str(save_sentiment(tmp_path / "m", ["LABEL_0", "LABEL_1"])))
    assert Sentiment(str(tmp_path / "m"), order="descending").labels == ["LABEL_1", "LABEL_0"]


THERE = {"4/5": 4, "4 / 5": 4, "3.5/5": 3.5, "3,5 / 5": 3.5, "4": 4, "**4**": 4, "Rating: 4": 4, "score: 4 out of 5": 4}
THERE |= {"overall quality: 3.5 / 5": 3.5, "Overall: 2": 2}
THERE |= {"I would rate this 3 out of 5.": 3, "The overall score is 4.": 4}
THERE |= {"4 stars": 4, "MOS: 2.8": 2.8, "4 stars out of 5": 4, "Noise 2/5, distortion 4/5, overall quality 3/5.": 3}
THERE |= {"It sounds fine. 4/5 overall.": 4, "Final rating: **2/5**": 2, "<think>maybe 2/5</think>4/5": 4}
OWN = "<think>intelligibility 4/5, distortion 2/5, overall quality 3/5</think> The speech is acceptable."
THERE |= {"4/5. Yes, 4/5.": 4, "<think>Overall: 1/5": None, OWN: None}


@pytest.mark.parametrize(("text", "expected"), THERE.items())
def test_ratings_that_are_there(text, expected):
    score = read_rating(text)
    assert (score.value if score else None) == expected
    assert text != OWN or read_rating(text, thoughts=True).value == 3  # some judges rate in thoughts


NONE = ["The speech is good.", "There are 3 speakers and 2 dogs.", "noise: 2/5, distortion: 4/5", "Intelligibility 4/5"]
NONE += ["between 2/5 and 4/5", "", "at 16000 Hz", "rated 8/10", "recorded on 4/5/2021", "a 5 dB SNR", "quality 80%"]
NONE += ["1 2 3", "the last 2 seconds are muffled"]
OUTSIDE = ["7/5", "0/5", "overall quality: 9", "-1", "Rating: 100", "6 stars"]


@pytest.mark.parametrize("text", [*NONE, *OUTSIDE])
def test_ratings_that_are_not_there_and_those_out_of_range(text):
    score = read_rating(text)
    assert score is None if text in NONE else score.value is None and "outside" in (score.error or "")


def test_odd_texts_are_read_quickly():
    began = time.process_time()
    repeated = {"overall ": 2000, "4": 4000, "rating:": 600, "1/5 ": 1000, "quality is is is ": 300, "-": 4000}
    for text in ("rate " + " " * 4000 + "x", *(word * times for word, times in repeated.items())):
        read_rating(text)
    assert time.process_time() - began < 5.0
