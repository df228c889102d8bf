"""``rlspeech reward`` with rewards that judge a recogniser's texts: where they come from, and what no audio is needed for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.data import inputs as files
from rlspeech.data.inputs import collect, read_texts
from rlspeech.stages import reward
from rlspeech.types import UserError

ROWS = [
    {"id": "u/1", "text": "one two three four", "hypothesis": "one two free four"},
    {"id": "u2", "text": "five", "hypothesis": "five", "keywords": ["five"]},
    {"id": "quiet", "text": "", "hypothesis": "thank you"},
    {"id": "u4", "text": "six seven", "hypothesis": ""},
]


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch):
    monkeypatch.setattr(log, "quiet", True)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def score(path: Path, rewards: list[str], **rest: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    out = path.parent / "scores"
    settings = {"rewards": rewards, "out": str(out), "workers": 0, "device": "cpu", **rest}
    summary = reward.run(ScoreFolder(**settings), path)
    rows = map(json.loads, (out / "scores.jsonl").read_text().splitlines())
    return summary, {r["key"].split("-")[0]: r for r in rows}


def deaf(monkeypatch):
    """Opening audio is an error."""

    def fail(*arguments: Any, **rest: Any) -> None:
        raise AssertionError("audio was opened")

    monkeypatch.setattr(files, "load_audio", fail)
    monkeypatch.setattr("rlspeech.data.manifest._header", fail)


def test_texts_alone(tmp_path, monkeypatch):
    deaf(monkeypatch)
    path = write(tmp_path / "m.jsonl", ROWS)
    summary, rows = score(path, ["asr_accuracy", "asr_hallucination", "asr_keywords", "asr_wer"], report="never")
    assert [rows[k]["asr_accuracy"] for k in ("u_1", "u2", "quiet", "u4")] == [0.75, 1.0, -1.0, 0.0]
    assert rows["quiet"]["asr_hallucination"] == -1.0 and rows["quiet"]["hallucination"] == "nonspeech"
    assert rows["u2"]["asr_keywords"] == 1.0 and rows["u4"]["errors"] == {"asr_keywords": "no keywords"}
    expected = {"hypothesis": "one two free four", "normaliser": "basic-2", "units": 4}
    expected |= {"substitutions": 1, "deletions": 0, "insertions": 0}
    assert {k: rows["u_1"][k] for k in expected} == expected
    # sums over sums: 3 errors in 7 words, not the mean of 1/4, 0 and 1
    corpus = summary["corpus"]["all words together"]
    assert corpus["wer"] == pytest.approx(300 / 7) and corpus["units"] == 7 and corpus["n"] == 3
    assert summary["metrics"]["asr_wer"]["mean"] == pytest.approx(1.25 / 3)
    metrics = json.loads((tmp_path / "scores" / "scores.meta.json").read_text())["systems"]["system"]["metrics"]
    assert {m["normaliser"] for m in metrics.values()} == {"basic-2"}


def test_options_have_rates_and_details_of_their_own(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"id": "a", "text": "One, two.", "hypothesis": "one two"}])
    summary, rows = score(path, ["asr_wer", "asr_wer[normaliser=none-1]"], report="never")
    assert rows["a"]["asr_wer"] == 0.0 and rows["a"]["asr_wer[normaliser=none-1]"] == 1.0
    assert {k: v["normaliser"] for k, v in summary["corpus"].items()} == {
        "all words together": "basic-2",
        "all words together[normaliser=none-1]": "none-1",
    }


def test_nemos_manifest_and_audio_that_is_gone(tmp_path, monkeypatch):
    deaf(monkeypatch)
    texts = enumerate(["one", "two", None])
    rows = [{"audio_filepath": f"gone/{i}.wav", "duration": 1.0, "text": "one", "pred_text": p} for i, p in texts]
    path = write(tmp_path / "said.json", rows)
    summary, rows = score(path, ["asr_wer"], report="never")
    assert [rows[k]["asr_wer"] for k in "012"] == [0.0, 1.0, None]
    assert rows["2"]["errors"] == {"asr_wer": "no hypothesis"}
    assert summary["metrics"]["asr_wer"]["n_valid"] == 2


def test_audio_that_is_gone_costs_the_rewards_that_listen(tmp_path, monkeypatch):
    (tmp_path / "listens.py").write_text(
        "def words(wavs, texts, sample_rate, hypotheses, **c):\n    return [len(h) for h in hypotheses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sf.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    same = {"target_filepath": "a.wav", "duration": 1.0, "sample_rate": 16000, "text": "one", "hypothesis": "one"}
    path = write(tmp_path / "m.jsonl", [{"id": k, "audio_filepath": f"{k}.wav", **same} for k in "ab"])
    _, rows = score(path, ["asr_wer", "si_sdr", "listens:words"])
    assert [rows[k]["asr_wer"] for k in "ab"] == [0.0, 0.0] and [rows[k]["listens:words"] for k in "ab"] == [3, 3]
    assert rows["a"]["si_sdr"] is not None and rows["b"]["si_sdr"] is None
    assert rows["b"]["errors"]["si_sdr"].startswith("audio: ")


@pytest.mark.parametrize("kind", ["eval", "text", "pred_text", "kaldi", "folder"])
def test_hypotheses_of_their_own(tmp_path, kind, monkeypatch):
    deaf(monkeypatch)
    said = {"u/1": "one two three four", "u2": "five five", "quiet": ""}
    path = write(tmp_path / "m.jsonl", ROWS)
    given = tmp_path / {"kaldi": "hyp", "folder": "texts"}.get(kind, "NAME.jsonl")
    if kind == "eval":  # as rlspeech eval writes them: safe ids under "key", null where it failed
        keys = {i.columns.get("original_id", i.key): i.key for i in collect(path, texts_only=True)}
        same = {"system": "base", "text": "the reference", "errors": {}}
        failed = {"key": "u4", "hypothesis": None, **same, "errors": {"hypothesis": "audio: gone"}}
        write(given, [*({"key": keys[k], "hypothesis": v, **same} for k, v in said.items()), failed])
    elif kind in ("text", "pred_text"):
        write(given, [{"id": k, kind: v} for k, v in said.items()])
    elif kind == "kaldi":
        given.write_text("".join(f"{k}\t{v}\n" for k, v in said.items()))
    else:
        for k, v in said.items():
            (given / f"{k}.txt").parent.mkdir(parents=True, exist_ok=True)
            (given / f"{k}.txt").write_text(v + "\n")
    _, rows = score(path, ["asr_accuracy"], hypotheses=str(given), report="never")
    assert [rows[k]["asr_accuracy"] for k in ("u_1", "u2", "quiet", "u4")] == [1.0, 0.0, 1.0, None]
    assert rows["u4"]["errors"] == {"asr_accuracy": "no hypothesis"}  # not the manifest's, which is another system's


def test_hypotheses_and_texts_of_a_folder_of_audio(tmp_path):
    (tmp_path / "wavs" / "sub").mkdir(parents=True)
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / "wavs" / name).write_text("not audio")
    texts, said = write(tmp_path / "t.jsonl", [{"id": "a", "text": "x y"}, {"id": "b", "text": "z"}]), tmp_path / "hyp"
    said.write_text("a x y\nb\n")
    asked = ScoreFolder(rewards=["asr_accuracy"], text=str(texts), hypotheses=str(said), out=str(tmp_path))
    found = reward.run(asked, tmp_path / "wavs")["metrics"]["asr_accuracy"]
    assert found["mean"] == 0.5 and found["n_valid"] == 2


def test_another_hypothesis_is_scored_again_and_the_same_is_not(tmp_path, monkeypatch):
    path = write(tmp_path / "m.jsonl", ROWS)
    score(path, ["asr_edits"])
    write(path, [{**ROWS[0], "hypothesis": "one two three four"}, *ROWS[1:]])
    judged: list[str] = []
    real = reward.Scorer.start
    monkeypatch.setattr(
        reward.Scorer,
        "start",
        lambda self, samples, only=None: (judged.extend(s.key for s in samples), real(self, samples, only))[1],
    )
    _, rows = score(path, ["asr_edits"])
    assert len(judged) == 1 and judged[0].startswith("u_1") and rows["u_1"]["asr_edits"] == 0.0


def test_a_recogniser_that_listened_itself_does_not_take_the_hypothesis_place(tmp_path, monkeypatch):
    (tmp_path / "hears.py").write_text("def hear(wavs, rate):\n    return ['heard'] * len(wavs)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sf.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    path = write(tmp_path / "m.jsonl", [{"id": "a", "audio_filepath": "a.wav", "text": "given", "hypothesis": "given"}])
    _, rows = score(path, ["asr_wer", "wer"], recogniser="hears:hear")
    assert rows["a"]["hypothesis"] == "given" and rows["a"]["wer_hypothesis"] == "heard"
    assert (rows["a"]["asr_wer"], rows["a"]["wer"]) == (0.0, 1.0)


def test_the_page_shows_mistakes_without_a_player(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"id": "a", "text": "one two", "hypothesis": "one <b>three</b>"}])
    summary, _ = score(path, ["asr_wer"])
    page = Path(summary["report"]).read_text()
    assert '<del title="said">two</del>' in page and "<audio" not in page and "<b>three" not in page


def test_texts_may_hold_other_ends_of_lines(tmp_path):
    said = write(tmp_path / "said.jsonl", [{"id": "a", "text": "one\u2028two"}, {"id": "b", "text": None}])
    assert read_texts(said) == {"a": "one\u2028two"}


def test_ids_of_before_that_two_rows_share_say_nothing(tmp_path):
    rows = [{"id": f"{k}_x", "original_id": "x", "text": "one"} for k in "ab"]
    path = write(tmp_path / "m.jsonl", [*rows, {"id": "y", "text": "one"}])
    said = write(tmp_path / "said.jsonl", [{"id": "x", "text": "one"}, {"id": "y", "text": "one"}])
    assert [i.hypothesis for i in collect(path, hypotheses=str(said), texts_only=True)] == [None, None, "one"]


def test_mistakes_are_told(tmp_path):
    path, bare = write(tmp_path / "m.jsonl", ROWS), write(tmp_path / "bare.jsonl", [{"id": "u2", "text": "five"}])
    for data, rest, words in [
        (bare, {}, "--hypotheses"),
        (write(tmp_path / "no.jsonl", [{"id": "a", "hypothesis": "x"}]), {}, "--text"),
        (path, {"hypotheses": str(tmp_path / "nowhere")}, "nowhere"),
        (path, {"hypotheses": str(write(tmp_path / "h1.jsonl", [{"id": "other", "text": "x"}]))}, "h1.jsonl"),
        (path, {"hypotheses": str(write(tmp_path / "h2.jsonl", [{"key": "u2", "hypothesis": x} for x in "ab"]))}, "u2"),
        (write(tmp_path / "x.jsonl", [{"text": "a", "hypothesis": "a"}]), {}, "x.jsonl"),
        (write(tmp_path / "y.jsonl", [ROWS[1], ROWS[1]]), {}, "u2"),
        (write(tmp_path / "z.jsonl", []), {}, "z.jsonl"),
        (path, {"rewards": ["asr_wer", "si_sdr"], "target": str(tmp_path)}, "audio_filepath|bad line"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            score(data, **{"rewards": ["asr_wer"], **rest})
        assert error.value.try_this
