"""The reward ``llm`` as a whole: chain, gates, pieces, cache; and what ``rlspeech reward`` writes of it."""

from __future__ import annotations

import html
import json
import re
from collections import Counter

import numpy as np
import pytest
import soundfile as sf
from reward_signals import sample, voice
from tiny_judges import said, save_listener, save_sentiment, serving

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.rewards.base import column_of
from rlspeech.rewards.llm import judge as judging
from rlspeech.rewards.llm.describe import Description
from rlspeech.rewards.llm.judge import LlmJudge
from rlspeech.rewards.scorer import Scorer, get_reward
from rlspeech.scores import ScoreTable
from rlspeech.stages import reward
from rlspeech.types import Score, UserError


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch):
    monkeypatch.setattr(log, "quiet", True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("RLSPEECH_API_KEY", "sk-never-shown")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    return str(save_listener(folder / "listener")), str(save_sentiment(folder / "stars"))


class Told:
    """A describer that answers by the waveform's length in tenths of a second."""

    version, max_s = "told", None

    def __init__(self, answers=None, max_s=None):
        self.answers, self.max_s, self.heard = answers or {}, max_s, []

    def describe(self, wavs):
        self.heard += [len(w) / 16000 for w in wavs]
        found = [self.answers.get(round(len(w) / 1600), "3/5") for w in wavs]
        found = [f.pop(0) if isinstance(f, list) else f for f in found]
        return [f if isinstance(f, Description) else Description(f) for f in found]


def told(monkeypatch, describer, **options) -> LlmJudge:
    monkeypatch.setattr(judging, "get_describer", lambda *a, **k: describer)
    return LlmJudge("told", **{"rating": "number", **options})


def rate(judge, *wavs):
    return [row["llm"] for row in judge.compute([sample(w) for w in wavs], ["llm"])]


def test_the_chain_keeps_text_and_distribution(models):
    listener, stars = models
    judge = get_reward("llm", model=listener, sentiment=stars, max_new_tokens=8)
    scores = judge.score([sample(voice(0.8)), sample(voice(1.5, seed=2))])
    assert judge.bounds == (1.0, 5.0) == column_of("llm").bounds and judge.higher_is_better and judge.where == "device"
    for s in scores:
        p = s.detail["llm_stars"]
        assert 1 <= s.value <= 5 and s.detail["llm_text"]
        assert s.value == pytest.approx(np.dot(p, [1, 2, 3, 4, 5]), abs=1e-3) and sum(p) == pytest.approx(1, abs=1e-3)
    assert listener in judge.version and stars in judge.version and "prompt: " in judge.version


def test_bad_audio_costs_itself_and_other_rates_are_resampled(models):
    listener, stars = models
    nan = np.where(np.arange(12800) == 5, np.nan, voice(0.8))
    bad = [np.zeros(16000), nan, voice(0.1), np.zeros(0), voice(1.0) * 1e-4]
    judge = get_reward("llm", model=listener, sentiment=stars, max_new_tokens=4)
    scores = judge.score([*map(sample, bad), sample(voice(0.8)), sample(voice(1.0), rate=32000)])
    assert [s.value is None for s in scores] == [True] * 5 + [False] * 2
    assert [s.error.split()[0] for s in scores[:5]] == ["silent", "NaN", "too", "no", "silent"]


def test_equal_waveforms_are_described_once_by_a_cache_that_is_small_and_forgets_trouble(monkeypatch):
    describer = Told()
    judge = told(monkeypatch, describer)
    a, b = voice(0.5), voice(0.7)
    scores = rate(judge, a, b, a, a.copy())
    assert len(describer.heard) == 2 and scores[0] == scores[2] == scores[3]
    rate(judge, b, a)
    assert len(describer.heard) == 2
    rate(judge, voice(0.5, seed=1))  # as long, but not the same
    assert len(describer.heard) == 3
    describer = Told({5: [Description(None, "endpoint: no reply in time"), "4/5"]})
    judge = told(monkeypatch, describer, cache=2)
    first, second = rate(judge, a)[0], rate(judge, a)[0]
    assert first.value is None and first.error.startswith("endpoint") and second.value == 4
    for _ in range(2):
        rate(judge, voice(0.6), b)
    assert len(describer.heard) == 4
    describer.answers[5] = "2/5"
    assert rate(judge, a)[0].value == 2  # driven out


def test_long_audio_is_a_mean_by_duration_silent_pieces_are_left_out_and_a_mute_one_leaves_no_score(monkeypatch):
    describer = Told(max_s=1.0)
    judge = told(monkeypatch, describer)
    rate(judge, voice(0.9), voice(2.5))
    assert describer.heard == pytest.approx([0.9, 2.5 / 3, 2.5 / 3, 2.5 / 3], abs=1e-3)
    sequence = iter(["5/5", "2/5", "2/5"])
    describer.describe = lambda wavs: [Description(next(sequence)) for _ in wavs]
    (score,) = rate(judge, voice(2.6))
    assert score.value == pytest.approx(3.0, abs=1e-3) and score.detail["llm_text"] == "5/5\n2/5\n2/5"
    describer = Told({10: ["4/5", "2/5"]}, max_s=1.0)
    judge = told(monkeypatch, describer)
    wav = np.concatenate([voice(1.0), np.zeros(16000, np.float32), voice(1.0, seed=1)])
    assert rate(judge, wav)[0].value == pytest.approx(3.0) and len(describer.heard) == 2
    describer.answers[10] = ["4/5", Description(None, "the model refused")]
    (score,) = rate(judge, voice(2.0))
    assert score.value is None and score.error == "piece 2 of 2: the model refused"
    assert score.detail["llm_text"] == "4/5"


def test_samples_are_averaged(monkeypatch):
    describer = Told({5: ["4/5", "5/5", "it is fine", "3/5"]})
    judge = told(monkeypatch, describer, samples=4)
    (score,) = rate(judge, voice(0.5))
    assert score.value == pytest.approx(4.0) and len(describer.heard) == 4  # the one without a number is left out
    assert score.detail["llm_text"].count("\n") == 3
    with pytest.raises(UserError, match="samples"):
        told(monkeypatch, describer, samples=4, temperature=0.0)


def test_ways_of_rating(models, monkeypatch):
    _, stars = models
    answers = {5: "Overall 4/5", 6: "the speech is good", 7: "9/5", 9: "noise 2/5, distortion 4/5"}
    answers = dict(sorted({**answers, 8: Description(None, "empty answer")}.items()))
    wavs = [voice(n / 10) for n in answers]
    number = rate(told(monkeypatch, Told(dict(answers))), *wavs)
    auto = rate(told(monkeypatch, Told(dict(answers)), rating="auto", sentiment=stars), *wavs)
    feeling = rate(told(monkeypatch, Told(dict(answers)), rating="sentiment", sentiment=stars), *wavs)
    assert [s.value for s in number] == [4.0, None, None, None, None]
    assert auto[0].value == 4.0 and auto[2].value is None
    assert [auto[i].value for i in (1, 4)] == pytest.approx([feeling[i].value for i in (1, 4)], abs=1e-4)
    assert feeling[0].value != 4.0 and feeling[2].value is not None
    assert {s[3].error for s in (number, auto, feeling)} == {"empty answer"}
    assert number[1].error and auto[0].detail["llm_stars"] is None and auto[1].detail["llm_stars"]
    with pytest.raises(UserError, match="rating"):
        told(monkeypatch, Told(), rating="guess")


def test_options_in_the_name_and_unknown_ones(models):
    listener, stars = models
    with Scorer([f"llm[model={listener},sentiment={stars},max_new_tokens=4,prompt_number=2]"]) as scorer:
        (name,) = scorer.meta().keys() - {"_input"}
        assert scorer.score([sample(voice(0.6))])[name][0].value is not None
        assert "bad, poor, fair, good or excellent" in scorer.meta()[name]["version"]
    with pytest.raises(UserError, match="colour"):
        Scorer([f"llm[model={listener},sentiment={stars},colour=red]"]).score([sample(voice(0.6))])
    with pytest.raises(UserError, match="prompt number 99"):
        LlmJudge(listener, stars, prompt_number=99)


EVIL = "Overall 2/5 <script>alert('x')</script> & {{ 7*7 }} \"quoted\""


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate("abc"):
        sf.write(tmp_path / f"{name}.wav", voice(0.5 + 0.1 * i, seed=i), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    return tmp_path


def run(folder, server, **rest):
    settings = {"rewards": ["llm"], "sentiment": str(folder / "stars"), "out": str(folder / "out"), **rest}
    return reward.run(ScoreFolder(llm=server.url, llm_model="m", workers=0, **settings), folder)


def rows(folder):
    return {r["key"]: r for r in map(json.loads, (folder / "out" / "scores.jsonl").read_text().splitlines())}


def test_words_and_scores_are_written_and_shown_escaped(folder):
    save_sentiment(folder / "stars")
    (folder / "p.txt").write_text("Is it good?\n")
    with serving(lambda r: said(EVIL)) as server:
        summary = run(folder, server, prompt=str(folder / "p.txt"))
        questions = [r["json"]["messages"][0]["content"][1]["text"] for r in server.seen]
        assert questions == ["Is it good?"] * 3
    found = rows(folder)
    assert all(found[k]["llm"] == 2.0 and found[k]["llm_text"] == EVIL for k in "abc")
    assert found["broken"]["llm"] is None and found["broken"]["errors"]["llm"].startswith("audio")
    text = (folder / "out" / "report.html").read_text()
    assert summary["report"] == str(folder / "out" / "report.html")
    count = Counter(re.findall(r"<(\w+)", text))
    shown = html.escape(EVIL, quote=False)
    assert count["script"] == 2 and text.replace("&#39;", "'").replace("&#34;", '"').count(f">{shown}<") == 3
    assert count["blockquote"] == count["audio"] == 3 and not re.search(r"<[^>]*\son\w+=", text)
    written = "".join(p.read_text() for p in (folder / "out").iterdir())
    assert "sk-never-shown" not in written and "Is it good?" in written
    json.dumps(summary)


def test_trouble_of_the_server_is_tried_again_by_the_next_run(folder):
    save_sentiment(folder / "stars")
    with serving(lambda r: (400, {}, {})) as server:
        first = run(folder, server)
        assert first["metrics"]["llm"]["n_valid"] == 0
        assert all("HTTP 400" in rows(folder)[k]["errors"]["llm"] for k in "abc")
        server.reply = lambda r: said("refused", refusal="no") if len(server.seen) == 4 else said("4/5")
        second = run(folder, server)
        assert second["metrics"]["llm"]["n_valid"] == 2 and len(server.seen) == 6
        third = run(folder, server)  # a refusal is an answer: it is kept
        assert third["metrics"]["llm"]["n_valid"] == 2 and len(server.seen) == 6


def test_an_evaluation_keeps_the_words_too(tmp_path):
    table = ScoreTable(tmp_path, ["llm", "llm[samples=2]", "si_sdr"])
    scores = {"llm": Score(2.0, detail={"llm_text": EVIL, "llm_stars": None})}
    scores |= {"llm[samples=2]": Score(None, "refused", {"llm_text": "no"})}
    table.add("base", "a", scores | {"si_sdr": Score(1.0, detail={"lag_ms": 0.0})})
    row = json.loads((tmp_path / "scores.jsonl").read_text())
    assert row["llm_text"] == EVIL and row["llm_text[samples=2]"] == "no" and row["llm"] == 2.0 and "lag_ms" not in row


def test_no_page_where_nothing_was_said_or_none_is_wanted(folder):
    config = ScoreFolder(rewards=["si_sdr"], target=str(folder), out=str(folder / "out"), workers=0)
    assert reward.run(config, folder)["report"] is None and not (folder / "out" / "report.html").exists()
    assert reward.run(config.model_copy(update={"report": "always"}), folder)["report"]
    save_sentiment(folder / "stars")
    (folder / "out" / "report.html").unlink()
    with serving(lambda r: said("good speech")) as server:
        assert run(folder, server, report="never")["report"] is None
        assert not (folder / "out" / "report.html").exists()
        asked = ["llm", f"llm[model={server.url},name=other,rating=number]"]
        summary = run(folder, server, rewards=asked, out=str(folder / "two"))
    found = [json.loads(line) for line in (folder / "two" / "scores.jsonl").read_text().splitlines()]
    texts = [{k for k in row if k.startswith("llm_text")} for row in found if row["key"] != "broken"]
    assert all(len(t) == 2 for t in texts) and summary["metrics"]["llm"]["n_valid"] == 3


def test_the_embedded_judge_hears_noise():
    """Clean demo speech against the same speech under loud noise: a difference that nobody misses."""
    from rlspeech.corpora.demo import demo_test
    from rlspeech.data.audio import load_audio
    from rlspeech.data.manifest import read_manifest

    rng = np.random.default_rng(0)
    clean = [load_audio(u.target_filepath or "")[:32000] for u in read_manifest(demo_test())[:6]]
    noisy = [w + (np.std(w) * 1.8 * rng.standard_normal(len(w))).astype(np.float32) for w in clean]
    with Scorer(["llm"]) as scorer:
        scorer.dry_run()
        scores = scorer.score([sample(w, str(i)) for i, w in enumerate(clean + noisy)])["llm"]
        (alone,) = scorer.score([sample(np.tile(noisy[0], 5))])["llm"]  # longer than it hears at once
    values = [s.value for s in scores]
    assert None not in values and np.mean(values[:6]) > np.mean(values[6:]) + 1.0
    assert all(s.detail["llm_text"].strip().endswith(".") for s in scores)
    assert alone.detail["llm_text"].count("\n") >= 1 and abs(alone.value - values[6]) < 1.5
