"""Rules for synthesised speech: bug 3 of public recipes, groups, loops, pitch; families by name through the scorer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_signals import NOTHING, sample, voice
from reward_signals import scored as scores

from rlspeech.rewards.base import gate, resolve
from rlspeech.rewards.scorer import Scorer
from rlspeech.rewards.speech_rules import FORMS, TextScores, expected_s, find_loop, pitch_spread
from rlspeech.types import UserError


def spoken(key="a", wav=None, text="hello world", **rest):
    return sample(voice(0.5) if wav is None else wav, key, text=text, **rest)


def test_forms_of_the_accuracy():
    assert [f(0.0) for f in FORMS.values()] == [1.0, 1.0, 1.0]
    found = [FORMS["linear"](0.3), FORMS["tanh"](0.2), FORMS["exp"](0.4)]
    assert found == pytest.approx([0.7, 1 - math.tanh(0.6), math.exp(-1)])
    for f in FORMS:
        table = scores([spoken(text="hello worlds")], "tts_accuracy", recogniser="reward_plugins:recogniser", form=f)
        assert table["tts_accuracy"][0].value == pytest.approx(FORMS[f](1 / 12))
    with pytest.raises(UserError, match="form"):
        scores([spoken()], "tts_accuracy", recogniser="reward_plugins:recogniser", form="cubic")


@pytest.mark.parametrize("wav", [NOTHING, np.zeros(16000, np.float32), np.full(200, 0.1, np.float32)])
def test_an_empty_transcript_is_an_error_rate_of_one_and_never_the_reference(wav):
    """Bug 3 of public recipes: silence is scored as if it were right. And it is a number, so that such a row has an advantage."""
    names = ("tts_cer", "tts_wer", "tts_accuracy")
    table = scores([spoken(wav=wav), spoken()], *names, recogniser="reward_plugins:recogniser")
    assert [table[n][0].value for n in names] == [1.0, 1.0, 0.0]
    assert [table[n][1].value for n in names] == [0.0, 0.0, 1.0]
    assert [s.detail["hypothesis"] for s in table["tts_cer"]] == ["", "Hello,  WORLD!"]


def test_what_is_no_answer_is_null():
    rows = [spoken(wav=np.full(16000, np.nan, np.float32)), *(spoken(text=t) for t in ("", None, "?!"))]
    table = scores(rows, "tts_cer", recogniser="reward_plugins:recogniser")
    assert [s.value for s in table["tts_cer"]] == [None] * 4
    for s, word in zip(table["tts_cer"], ("NaN", "no reference", "no reference", "empty after"), strict=True):
        assert word in s.error


def test_chinese_counts_characters_whatever_the_spaces():
    scorer = TextScores("basic-2", None, "linear", -1.0, 3.0)
    assert scorer.rates("\u4f60 \u597d", "\u4f60\u597d") == (0.0, 0.0)
    assert scorer.rates("\u4f60\u597d", "\u4f60")[0] == 0.5
    wrong = scorer.row(spoken(text="\u4f60\u597d"), "no" * 8, None, "tts", ["tts_accuracy"])
    assert wrong["tts_accuracy"].value == -1.0  # the lower bound


def test_the_posterior_is_an_audio_language_models_and_silence_tells_nothing(monkeypatch):
    with pytest.raises(UserError, match="recogniser=embedded"):
        scores([spoken()], "tts_posterior", recogniser="reward_plugins:recogniser")
    from tiny_audio_lms import tiny

    from rlspeech.models.audio_lm import model as audio_lm

    lm = tiny("fun_asr_nano")
    monkeypatch.setattr(audio_lm, "load_audio_lm", lambda name, device="cpu", **_: (lm, {}))
    rows = [spoken(wav=voice(0.9)), spoken(wav=NOTHING), spoken(wav=voice(0.4), text="one")]
    table = scores(rows, "tts_nll", "tts_posterior", "tts_cer")
    values = [s.value for s in table["tts_nll"]]
    assert values[1] == pytest.approx(math.log(len(lm.tokenizer)), rel=0.2) and table["tts_cer"][1].value == 1.0
    assert [s.value for s in table["tts_posterior"]] == pytest.approx([math.exp(-v / 3) for v in values])
    heard = lm.encode([rows[2].wav])
    ids, mask = lm.references(["one"])
    logp = lm.forward_logits(heard, [0], ids).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert values[2] == pytest.approx(-float(logp.mean().detach()), rel=1e-3)
    assert scores(rows[:1], "wer", recogniser="embedded")["wer"][0].value is not None  # the older family takes it too


def test_duration_is_the_distance_from_the_groups_median_of_rows_that_stopped():
    entry = resolve("tts_duration").entry  # of tokens, without a waveform
    assert gate(spoken(wav=NOTHING, text=None, tokens=[]), entry) is None and gate(spoken(), entry) == "no codec tokens"
    rows = [spoken("a", tokens=range(n)) for n in (10, 12, 20)] + [spoken("b", tokens=range(30))]
    rows += [spoken("a", tokens=[]), spoken("a", tokens=range(200), finished=False)]
    values = [s.value for s in scores(rows, "tts_duration")["tts_duration"]]
    assert values == pytest.approx([-1 / 11, -1 / 11, -9 / 11, 0.0, -1.0, -189 / 11])  # of 0, 10, 12, 20
    for row, prompt in zip(rows, (0, 0, 1, 1, 1, 1), strict=True):
        row.group = prompt  # the same text twice in a batch
    values = [s.value for s in scores(rows, "tts_duration")["tts_duration"]]
    assert values == pytest.approx([-1 / 11, -1 / 11, -1.0, 0.0, -1.0, -19.0])  # of 10, 12; of 0, 20
    never = scores([spoken("a", tokens=range(n), finished=False) for n in (10, 20)], "tts_duration")["tts_duration"]
    assert [s.value for s in never] == pytest.approx([-1 / 3, -1 / 3])
    empty = scores([spoken("a", tokens=[]), spoken("a", tokens=[])], "tts_duration")["tts_duration"]
    assert empty[0].value == -1.0  # nothing is not good


@given(st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=2, max_size=5), st.randoms())
def test_diversity_is_symmetric_bounded_and_blind_to_order(group, rng):
    rows = [spoken("a", wav=NOTHING, tokens=t) for t in group]
    values = [s.value for s in scores(rows, "tts_token_diversity")["tts_token_diversity"]]
    assert all(0 <= v <= 1 for v in values) and all(v == 0 for v, t in zip(values, group, strict=True) if not t)
    order = list(range(len(group)))
    rng.shuffle(order)
    again = scores([rows[i] for i in order], "tts_token_diversity")["tts_token_diversity"]
    assert [s.value for s in again] == pytest.approx([values[i] for i in order])


def test_equal_rows_have_no_diversity_and_a_loop_does_not_buy_any():
    plain, other, loop = list(range(60)), list(range(100, 160)), [1, 2, 3, 4] * 20
    rows = [spoken("a", tokens=t) for t in (plain, plain, loop, other)]
    rows.append(spoken("a", tokens=range(500, 900), finished=False))
    values = [s.value for s in scores(rows, "tts_token_diversity")["tts_token_diversity"]]
    assert values == pytest.approx([0.5, 0.5, 0.0, 1.0, 0.0])
    alone = scores([spoken("z", tokens=plain)], "tts_token_diversity")["tts_token_diversity"][0]
    assert alone.value is None and resolve("tts_token_diversity").entry.columns["tts_token_diversity"].optional


def test_loops_are_found_and_pauses_and_speech_are_none():
    rng = np.random.default_rng(0)
    speech = rng.integers(0, 1000, 300)
    assert find_loop(speech) is None and find_loop(np.zeros(0, np.int64)) is None and find_loop(speech[:1]) is None
    for period in (3, 7, 31, 60):
        looped = np.concatenate([speech[:20], np.tile(speech[20 : 20 + period], 1 + max(3, 40 // period + 1))])
        assert find_loop(looped) == period, period
        broken = looped.copy()
        broken[rng.choice(np.arange(20, len(looped)), len(looped) // 40, replace=False)] = -1
        assert find_loop(broken) == period, period
        assert find_loop(looped[: 20 + int(1.9 * period)]) is None
    assert find_loop(np.concatenate([speech[:30], np.full(50, 7), speech[30:60]])) is None  # two seconds of silence
    assert find_loop(np.concatenate([speech[:30], np.full(80, 7)])) == 1
    held = speech[:2]  # 80 ms: held rather than said again
    assert find_loop(np.tile(held, 25)) is None and find_loop(np.tile(held, 40)) == 2
    rows = [spoken(tokens=speech), spoken(tokens=np.tile(speech[:9], 9), finished=False)]
    table = scores(rows, "tts_loop", "tts_stopped")
    assert [s.value for s in table["tts_loop"]] == [0.0, 1.0] and [s.value for s in table["tts_stopped"]] == [1.0, 0.0]


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0, 100.0])
def test_loops_are_measured_in_seconds_whatever_the_codecs_rate(rate):
    """A word of 0.8 s four times over, a pause of 2 s and one of 4 s, and in a codec of 8 codebooks the same pause."""
    rng, n = np.random.default_rng(0), round(0.8 * rate)
    speech = rng.integers(0, 1000, round(6 * rate))
    looped = np.concatenate([speech[:n], np.tile(speech[n : 2 * n], 4)])
    assert find_loop(looped, 1 / rate) == n and find_loop(looped[: 2 * n + n // 2], 1 / rate) is None
    for seconds, found in ((2.0, None), (4.0, 1)):
        pause = np.full(round(seconds * rate), 7)
        assert find_loop(np.concatenate([speech[:n], pause, speech[n : 2 * n]]), 1 / rate) == found
    if rate == 100.0:
        frame = np.arange(8) * 100 + 3
        assert find_loop(np.concatenate([speech[:n], np.tile(frame, 25), speech[n : 2 * n]]), 0.01) is None
        assert find_loop(np.concatenate([speech[:n], np.tile(frame, 50)]), 0.01) == 8
    quick = spoken(tokens=np.tile(speech[: round(2 * rate)], 3)[: round(5.9 * rate)])  # 2 s, not quite three times
    quick.token_s = 1 / rate
    assert scores([quick], "tts_loop")["tts_loop"][0].value == 0.0
    quick.tokens = np.tile(speech[: round(2 * rate)], 4)
    assert scores([quick], "tts_loop")["tts_loop"][0].detail["loop"] == round(2 * rate)


def test_a_loop_is_that_of_its_definition():
    """Against the definition written out, window by window."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        length, period = int(rng.integers(20, 90)), int(rng.integers(1, 12))
        tokens = np.concatenate([rng.integers(0, 5, 12), np.tile(rng.integers(0, 4, period), length // period + 1)])
        tokens[rng.random(len(tokens)) < 0.03] = 9
        found = find_loop(tokens, 0.04, period_s=0.4, span_s=0.8, still_s=1.2)

        def is_loop(n, tokens=tokens):
            stretch = 30 if n <= 2 else max(3 * n, 20)
            for at in range(len(tokens) - stretch + 1):
                part = tokens[at : at + stretch]
                same = (part[n:] == part[:-n]).sum()
                held = max((part[k:] == part[:-k])[: stretch - n].sum() for k in (1, 2)) if n > 2 else 0
                if same >= 0.85 * (stretch - n) and held < 0.5 * (stretch - n):
                    return True
            return False

        assert found == next((n for n in range(1, min(10, len(tokens) // 2) + 1) if is_loop(n)), None)


def sung(f0):
    """A harmonic tone whose pitch follows (T,) in Hz."""
    phase = 2 * np.pi * np.cumsum(f0) / 16000
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)


def test_pitch_spread_of_known_melodies():
    t = np.arange(24000) / 16000
    assert pitch_spread(sung(np.full(24000, 130.0)), 16000) < 0.02
    melody = 150 * np.exp(0.2 * np.sqrt(2) * np.sin(2 * np.pi * 2 * t))
    assert pitch_spread(sung(melody), 16000) == pytest.approx(0.2, rel=0.1)
    assert pitch_spread(np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1, 16000) is None


def test_shape_through_the_scorer():
    rows = [spoken(wav=w, duration=2.0) for w in (voice(1.0), NOTHING)] + [spoken(wav=np.zeros(16000, np.float32))]
    table = scores(rows, "tts_duration_ratio", "tts_pitch_std", "tts_duration_drift")
    drifts = [s.value for s in table["tts_duration_drift"]]
    assert drifts == pytest.approx([math.log(v) for v in (2, 100, 15 / 11)])
    assert [s.value for s in table["tts_duration_ratio"]] == [0.5, 0.0, pytest.approx(15 / 11)]
    assert table["tts_pitch_std"][0].value is not None and [s.value for s in table["tts_pitch_std"][1:]] == [None, None]


def test_a_text_without_a_recording_is_measured_by_its_prompts_pace_else_by_usual_speech():
    slow = {"prompt_text": "ten bytes.", "prompt_filepath": "p.wav"}
    assert expected_s(spoken(duration=2.0, **slow)) == (2.0, "recording")
    prompted = spoken(text="five.", **slow)
    assert expected_s(prompted) == (pytest.approx(5 / 15), "text")  # the prompt could not be read
    prompted.target = np.zeros(16000, np.float32)
    assert expected_s(prompted) == (pytest.approx(0.5), "prompt")
    prompted.target = np.zeros(160000, np.float32)  # ten seconds for ten bytes is no pace
    assert expected_s(prompted) == (pytest.approx(5 / 7.5), "prompt")
    prompted.columns.pop("prompt_filepath")  # its target is no prompt
    assert expected_s(prompted)[1] == "text" and expected_s(spoken(text="\u4f60\u597d")) == (pytest.approx(0.4), "text")
    for nothing in (None, ""):
        for columns in ({}, {"duration": True}):
            assert expected_s(spoken(text=nothing, **columns)) == (None, "")
    table = scores([spoken(text="", wav=voice(1.0))], "tts_duration_ratio")
    assert table["tts_duration_ratio"][0].value is None and "neither" in table["tts_duration_ratio"][0].error


def test_workers_see_the_rows_columns_and_the_dry_run_takes_every_rule():
    names = ["tts_duration", "tts_token_diversity", "tts_stopped", "tts_loop", "tts_pitch_std", "tts_duration_ratio"]
    with Scorer(names, workers=1) as scorer:
        scorer.dry_run()
        (found,) = scorer.score([spoken(wav=voice(1.0), duration=2.0)], only=["tts_duration_ratio"])[names[-1]]
    assert found.value == 0.5 and found.detail["expected_by"] == "recording"
