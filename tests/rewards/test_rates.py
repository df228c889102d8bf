"""Error rates: normalisation, the silence gate, recognisers by function and by folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reward_signals import sample, scored, voice

from rlspeech.rewards.rates import compare_rates, corpus_interval, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.rewards.scorer import Scorer
from rlspeech.types import UserError

RECOGNISER = "reward_plugins:recogniser"


def score(name, wav, text):
    return scored([sample(wav, text=text)], name, recogniser=RECOGNISER)[name][0]


def test_rates_of_known_texts_silence_is_an_empty_one_and_what_cannot_be_scored_is_null():
    rates = {("wer", "hello world"): 0.0, ("wer", "hello there world"): 1 / 3, ("wer", "world"): 1.0}
    for (name, text), rate in (rates | {("cer", "hello worlds"): 1 / 12}).items():
        assert score(name, voice(0.5), text).value == pytest.approx(rate)
    assert score("wer", voice(0.5), "hello world").detail["hypothesis"] == "Hello,  WORLD!"
    for wav in (np.zeros(16000, np.float32), np.full(16000, 1e-6, np.float32)):
        answer = score("wer", wav, "hello world")
        assert answer.value == 1.0 and answer.detail["hypothesis"] == ""
    assert score("wer", voice(0.5), None).error == "no reference text"
    assert "empty after" in score("wer", voice(0.5), "?!").error
    assert "NaN" in score("wer", np.full(16000, np.nan, np.float32), "hello").error


def test_wer_and_cer_share_a_pass_and_name_their_normaliser():
    options = {"wer": {"recogniser": RECOGNISER, "normaliser": "none-1"}}
    with Scorer(["wer", "cer"], workers=0, options=options) as scorer:
        table = scorer.score([sample(voice(0.5), text="Hello, WORLD!")])
        assert table["wer"][0].value == table["cer"][0].value == 0.0
        assert scorer.meta()["cer"]["version"] == f"recogniser {RECOGNISER}, text none-1"


def test_mistakes_are_told():
    unknown, missing = {"recogniser": RECOGNISER, "normaliser": "basic-99"}, {"recogniser": "/no/such/folder"}
    for options, word in (({}, "--recogniser"), (unknown, "normaliser"), (missing, "/no/such/folder")):
        with pytest.raises(UserError, match=word):
            scored([sample(voice(0.5), text="hello")], "wer", **options)


@pytest.mark.slow
def test_pocketsphinx_hears_words_or_nothing():
    pytest.importorskip("pocketsphinx")
    (answer,) = scored([sample(voice(1.0), text="hello")], "wer", recogniser="pocketsphinx")["wer"]
    assert answer.value is not None and answer.value >= 0


@pytest.mark.slow
def test_transformers_recogniser_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(**small, vocab_size=6, pad_token_id=0)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4, "C": 5}))
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **special).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    table = scored([sample(voice(s), text="a b c") for s in (1.0, 0.5)], "cer", recogniser=str(tmp_path))
    assert all(s.value is not None and s.value >= 0 and isinstance(s.detail["hypothesis"], str) for s in table["cer"])


NORMALISERS = ("none-1", "english-2")


def test_a_corpus_rate_weighs_texts_by_their_words_and_leaves_out_silence():
    texts = [("a b c", "a x c", None), ("a b c d", "a b", None), ("", "noise", None)]
    found, silent = corpus_interval(texts, "basic-1"), corpus_interval(texts[2:], "basic-1")
    assert found.mean == 3 / 7 and found.n == 2 and silent.mean != silent.mean  # nan: no words
    same = corpus_interval([("a b", "a x", None)] * 9, "basic-1")
    assert (same.lo, same.mean, same.hi) == (0.5, 0.5, 0.5)  # nothing varies


def counts(pairs):
    rules = TextRules("none-1")
    return [counts_of(rules.judge(*pair)) for pair in pairs]


def test_intervals_are_of_the_ratio_and_paired() -> None:
    rng = np.random.default_rng(0)
    words = [str(w) for w in rng.integers(0, 9, 40)]
    texts = [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(60)]

    def noisy(text: str, share: float) -> str:
        return " ".join("x" if rng.random() < share else w for w in text.split())

    said = [noisy(t, 0.3) for t in texts]
    given = {"base": said, "same": said, "better": texts}
    made = compare_rates({s: counts(list(zip(texts, found, strict=True))) for s, found in given.items()}, "base")
    one, delta = made.systems["base"]["wer"], made.deltas["same"]["wer"]
    assert one.lo < one.mean < one.hi
    assert (delta.lo, delta.mean, delta.hi) == (0, 0, 0)  # paired: the same utterances in every draw
    assert made.relative["same"]["wer"].mean == 0 and made.relative["better"]["wer"].mean == -100
    assert made.deltas["better"]["wer"].hi < 0 and made.deltas["better"]["wer"].significant
    errors = np.array([c["errors"] for c in counts(list(zip(texts, said, strict=True)))])
    sizes = np.array([len(t.split()) for t in texts])
    draws = np.random.default_rng(1).integers(0, 60, (4000, 60))
    lo, hi = np.quantile(100 * errors[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    assert one.lo == pytest.approx(lo, abs=1) and one.hi == pytest.approx(hi, abs=1)


def test_what_holds_no_word_and_how_words_look():
    said = "|>>|(gentle music)|*sigh* \u266a|[a|Hello world|hello.|HELLO|3.5 don't|\u4f60\u3002".split("|")
    pairs = [*(("hello world", h) for h in said), ("", " >>"), ("", "You."), ("", "")]
    rows = [counts_of(TextRules(n).judge(*pair)) for n in NORMALISERS for pair in pairs]
    both = [rows[: len(pairs)], rows[len(pairs) :]]
    expected = {"symbols": {1, 2, 3, 10}, "written": set(range(4, 10)), "cased": {5, 6, 9}, "empty": {12}}
    for name, found in expected.items():
        assert [{i for i, row in enumerate(part) if row[name]} for part in both] == [found] * 2, name
    for row in both[0]:
        del row["outputs"], row["symbols"], row["written"], row["cased"]  # as older runs counted
    made = compare_rates({"old": both[0], "new": both[1]}, "old")
    assert np.isnan(made.systems["old"]["symbols"].mean) and np.isnan(made.deltas["new"]["cased"].mean)
    assert made.systems["new"]["symbols"].mean == pytest.approx(400 / 13) and made.systems["new"]["cased"].mean == 50


def test_one_utterance_has_no_interval_and_a_perfect_baseline_no_relative_change() -> None:
    made = compare_rates({"base": counts([("a b", "a b")]), "other": counts([("a b", "a")])}, "base")
    assert made.systems["other"]["wer"].mean == 50 and np.isnan(made.systems["other"]["wer"].lo)
    assert np.isnan(made.relative["other"]["wer"].mean) and made.deltas["other"]["wer"].mean == 50
    json.dumps(made.as_dict(), allow_nan=False)
