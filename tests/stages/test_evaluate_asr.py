"""``eval --task asr``: the counting against other implementations, and the stage on a recogniser with a script."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from tiny_recognisers import RATE, ROWS, write_corpus
from tiny_speech import read_rows

from rlspeech.config import Evaluate
from rlspeech.stages import evaluate
from rlspeech.tasks.asr.task import Asr
from rlspeech.types import UserError

BASE = ["one two tree", "five six seven", "eight nine ten", "hello", "mullers naive cafe", "the the end"]
GOOD = ["one two three four", "five six seven", "eight nine ten", "", "Müller's <b>naïve</b> café", ""]
SAID = {name: dict(zip("abcdef", texts, strict=True)) for name, texts in (("base", BASE), ("good", GOOD))}


class Scripted:
    """Writes the text that is scripted for a recording, which it knows by its length."""

    sample_rate, max_s, clips = RATE, 30.0, 0

    def __init__(self, said: dict[int, str]) -> None:
        self.said = said

    def encode(self, wavs: list[np.ndarray], **_: Any) -> list[str]:
        type(self).clips += len(wavs)
        if any(self.said.get(len(w)) == "crash" for w in wavs):
            raise RuntimeError("this one again")
        return [self.said[len(w)] for w in wavs]

    def generate(self, texts: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(ids=texts, mask=None, finished=torch.tensor([len(t) < 24 for t in texts]))

    def text(self, ids: list[str], mask: None) -> list[str]:
        return ids


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{**row, "duration": 0.5 + 0.1 * i} for i, row in enumerate(ROWS)]
    lengths = {r["id"]: int(r["duration"] * RATE) for r in rows}

    def load(self: Asr, name: str, device: Any = "cpu", **_: Any) -> tuple[Any, dict[str, Any]]:
        return Scripted({lengths[k]: text for k, text in SAID[name.removeprefix("hub/")].items()}), {}

    monkeypatch.setattr(Asr, "load", load)
    monkeypatch.setattr(Scripted, "clips", 0)
    return write_corpus(tmp_path / "data", rows)


def ask(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings = {"models": {"base": "hub/base", "good": "hub/good"}, "device": "cpu", "batch": 4, "players": 0}
    return evaluate.run(Evaluate(task="asr", data=str(data), out=str(out), **{**settings, **changes}))


def test_rates_are_those_of_jiwer_over_the_whole_corpus(data: Path, tmp_path: Path) -> None:
    made = ask(data, tmp_path / "out", normaliser="none-1")
    spoken = [r for r in ROWS if r["text"]]
    for system, said in SAID.items():
        truth = jiwer.process_words([r["text"] for r in spoken], [said[r["id"]] for r in spoken])
        words, rates = truth.hits + truth.substitutions + truth.deletions, made["systems"][system]
        assert rates["wer"]["mean"] == pytest.approx(100 * truth.wer)
        for name in ("substitutions", "deletions", "insertions"):
            assert rates[name]["mean"] == pytest.approx(100 * getattr(truth, name) / words)
        cer = jiwer.cer([r["text"] for r in spoken], [said[r["id"]] for r in spoken])
        assert rates["cer"]["mean"] == pytest.approx(100 * cer)
    base, good = made["systems"]["base"], made["systems"]["good"]
    assert (base["empty_output"]["mean"], good["empty_output"]["mean"], base["inserted_words"]["mean"]) == (0, 100, 1)
    assert base["exact"]["mean"] == 40 and good["exact"]["mean"] == 80
    assert good["keyword_f1"]["mean"] == good["keyword_recall"]["mean"] == 100
    relative = made["relative"]["good"]["wer"]["mean"]
    assert relative == pytest.approx(100 * (good["wer"]["mean"] / base["wer"]["mean"] - 1)) and relative < 0
    silent = {"hallucinated", "empty_output", "symbols", "inserted_words"}
    assert made["by"]["nonspeech"]["systems"]["good"].keys() == silent
    assert made["by"]["clean"]["n"] == 3 and made["baseline"] == "base" and made["normaliser"] == "none-1"
    json.dumps(made, allow_nan=False)


def test_a_run_goes_on_and_recounts_without_hearing_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ask(data, out)
    assert Scripted.clips == 12
    lines = (out / "hypotheses" / "base.jsonl").read_text().splitlines(keepends=True)
    (out / "hypotheses" / "base.jsonl").write_text("".join(lines[:4]) + lines[4][:20])  # killed while writing
    ask(data, out, normaliser="none-1", baseline="good")
    assert Scripted.clips == 14
    scores = read_rows(out, "scores.jsonl")
    assert len(scores) == 12 and {r["normaliser"] for r in scores} == {"none-1"}
    meta = json.loads((out / "scores.meta.json").read_text())
    assert meta["normaliser"] == "none-1"
    assert json.loads((out / "hypotheses" / "base.meta.json").read_text())["model"] == "hub/base"
    ask(data, out, models={"base": "hub/good"}, baseline=None)  # another checkpoint under the same name
    assert Scripted.clips == 20


def test_a_bad_recording_is_left_out_for_every_system_and_is_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAID, "base", {**SAID["base"], "b": "crash"})
    (data.parent / "f.flac").write_bytes(b"")
    made = ask(data, tmp_path / "out")
    assert made["n"] == 4
    rows = {r["key"]: r for r in read_rows(tmp_path / "out" / "hypotheses", "base.jsonl")}
    assert "this one again" in rows["b"]["errors"]["hypothesis"] and "empty file" in rows["f"]["errors"]["hypothesis"]
    monkeypatch.setitem(SAID, "base", {**SAID["base"], "b": "five"})
    assert ask(data, tmp_path / "out")["n"] == 5


def test_texts_of_another_recogniser_are_a_system(data: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("".join(json.dumps({"id": k, "hypothesis": t}) + "\n" for k, t in SAID["good"].items()))
    asked = {"systems": {"theirs": str(theirs)}}
    made = ask(data, tmp_path / "out", **asked)
    assert made["systems"]["theirs"] == made["systems"]["good"] and Scripted.clips == 12
    theirs.write_text("a\tone two three four\n".replace("\t", " "))
    theirs = theirs.rename(tmp_path / "theirs.txt")  # another list under the name: Kaldi's
    made = ask(data, tmp_path / "out", systems={"theirs": str(theirs)})
    assert made["n"] == 1 and made["systems"]["theirs"]["wer"]["mean"] == 0 and Scripted.clips == 12
    with pytest.raises(UserError, match="no hypothesis"):
        theirs.write_text("nobody says this\n")
        ask(data, tmp_path / "out", systems={"theirs": str(theirs)})


def test_the_page_is_escaped_and_shows_the_mistakes(data: Path, tmp_path: Path) -> None:
    made = ask(data, tmp_path / "out", normaliser="none-1", players=12)
    page = Path(made["report"]).read_text()
    assert "<b>naïve</b>" not in page and "&lt;b&gt;naïve&lt;/b&gt;" in page
    assert '<del title="said">three four</del>' in page or '<del title="said">' in page
    assert '<ins class="extra" title="not said">the</ins>' in page and "nothing said, nothing written" in page
    assert "condition: noisy" in page and "Relative change against base" in page
    assert "Sums of errors over sums of words" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nfe": 4}, "nfe"),
        ({"normaliser": "klingon-1"}, "klingon"),
        ({"baseline": "who"}, "who"),
        ({"video": "shuffled"}, "video"),
        ({"models": {"a/b": "hub/base"}}, "a/b"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_recognised(
    data: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        ask(data, tmp_path / "out", **changes)
    assert Scripted.clips == 0


def test_rows_without_a_text_are_left_out_and_said(data: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    del lines[0]["text"]
    lines[1]["text"] = "..."
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    made = ask(data, tmp_path / "out", normaliser="basic-1")
    page = Path(made["report"]).read_text()
    assert made["n"] == 4 and "1 recordings have no text" in page and "1 texts are empty after basic-1" in page
    for line in lines:
        line.pop("text", None)
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(UserError, match="transcribe"):
        ask(data, tmp_path / "none")


def test_too_many_values_get_no_tables(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MOST_VALUES", 2)
    assert ask(data, tmp_path / "out")["by"] == {}
