"""Error rates of a corpus against jiwer's, and their intervals."""

from __future__ import annotations

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.rewards.rates import corpus_interval, corpus_rate

WORDS = st.lists(st.sampled_from("the a cat sat on mat x".split()), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=5))
def test_the_rate_is_that_of_jiwer(pairs):
    corpus = jiwer.process_words([" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    texts = [(" ".join(r), " ".join(h), "en") for r, h in pairs]
    assert corpus_rate(texts, "basic-1") == pytest.approx(corpus.wer)
    found = corpus_interval(texts, "basic-1")
    assert found.mean == pytest.approx(corpus.wer) and found.n == len(pairs)
    assert found.lo != found.lo if len(pairs) < 2 else found.lo <= found.mean <= found.hi


def test_a_corpus_rate_weighs_texts_by_their_words_and_leaves_out_silence():
    texts = [("a b c", "a x c", None), ("a b c d", "a b", None), ("", "noise", None)]
    assert corpus_rate(texts, "basic-1") == 3 / 7 and corpus_interval(texts, "basic-1").n == 2
    assert corpus_rate(texts[2:], "basic-1") != corpus_rate(texts[2:], "basic-1")  # nan: no words
    same = corpus_interval([("a b", "a x", None)] * 9, "basic-1")
    assert (same.lo, same.mean, same.hi) == (0.5, 0.5, 0.5)  # nothing varies
