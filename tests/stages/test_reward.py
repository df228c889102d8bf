"""``rlspeech reward``: rows, meta, resuming, and every kind of bad file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_audio_lms import tiny
from tiny_cli import called, refused, rows_of
from tiny_flow import voice
from tiny_runs import write_rows as write

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.data import inputs as files
from rlspeech.data.inputs import collect, read_texts
from rlspeech.models.audio_lm.model import save_audio_lm
from rlspeech.rewards.scorer import Scorer
from rlspeech.stages import reward
from rlspeech.types import UserError

RATE = 16000


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch):
    monkeypatch.setattr(log, "quiet", True)


@pytest.fixture
def folders(tmp_path):
    """Three outputs (one in a subfolder, one FLAC) and their references."""
    for i, name in enumerate(["a.wav", "sub/b.wav", "c.flac"]):
        clean = 3 * voice(i, 12800)
        noisy = clean + 0.02 * (i + 1) * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32)
        for folder, wav in (("out", noisy), ("ref", clean)):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path.with_suffix(".wav") if folder == "ref" else path, wav, RATE)
    return tmp_path


def config(folders: Path, rewards: list[str], **rest) -> ScoreFolder:
    own = {"rewards": rewards, "target": str(folders / "ref"), "out": str(folders / "scores"), "workers": 0}
    return ScoreFolder(**{**own, **rest})


def rows(folders: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folders / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len({(r["system"], r["key"]) for r in lines}) == len(lines)
    return {r["key"]: r for r in lines}


def meta(folders: Path) -> dict:
    return json.loads((folders / "scores" / "scores.meta.json").read_text())["systems"]


def test_scores_a_folder(folders, capsys, monkeypatch):
    monkeypatch.setattr(log, "quiet", False)
    summary = reward.run(config(folders, ["si_sdr", "lsd"], system="mine"), folders / "out")
    found = rows(folders)
    assert set(found) == {"a", "sub/b", "c"}
    assert found["a"]["si_sdr"] > found["sub/b"]["si_sdr"] > found["c"]["si_sdr"]
    assert all(r["system"] == "mine" and r["errors"] == {} and "lag_ms" in r for r in found.values())
    facts = meta(folders)["mine"]["metrics"]["si_sdr"]
    mean = np.mean([r["si_sdr"] for r in found.values()])
    assert facts["n_valid"] == 3 and facts["mean"] == pytest.approx(mean) and facts["version"]
    assert facts["lo"] < mean < facts["hi"]
    assert summary["metrics"]["si_sdr"]["mean"] == pytest.approx(mean) and summary["n"] == 3
    assert "lower is better" in capsys.readouterr().out
    json.dumps(summary)


def test_bad_files_have_a_row_with_the_reason(folders):
    out = folders / "out"
    (out / "empty.wav").touch()
    (out / "text.wav").write_text("not audio")
    sf.write(out / "none.wav", np.zeros(0), RATE)
    sf.write(out / "silent.wav", np.zeros(RATE), RATE)
    sf.write(out / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (out / "cut.wav").write_bytes((out / "a.wav").read_bytes()[:30])
    sf.write(out / "stereo48.wav", np.stack([np.repeat(voice(0, 12800), 3)] * 2, 1), 48000)
    sf.write(folders / "ref" / "stereo48.wav", voice(0, 12800), RATE)
    sf.write(folders / "ref" / "silent.wav", voice(0, RATE), RATE)
    (out / ".hidden.wav").touch()
    sf.write(out / "alone.wav", voice(0, 8000), RATE)
    sf.write(out / "badref.wav", voice(0, 8000), RATE)
    (folders / "ref" / "badref.wav").write_text("no")
    summary = reward.run(config(folders, ["si_sdr"]), out)
    found = rows(folders)
    reasons = {k: r["errors"].get("si_sdr", "") for k, r in found.items()}
    assert ".hidden" not in found and found["stereo48"]["si_sdr"] > 5
    expected = {"empty": "0 bytes", "text": "unreadable", "none": "no samples", "silent": "silent", "nan": "NaN"}
    expected |= {"cut": "audio: ", "alone": "no reference audio", "badref": "reference: unreadable"}
    for key, words in expected.items():
        assert found[key]["si_sdr"] is None and words in reasons[key], (key, reasons[key])
    assert summary["metrics"]["si_sdr"]["n_valid"] == 4 and summary["metrics"]["si_sdr"]["n_failed"] == 8
    assert meta(folders)["system"]["input"]["resampled"] == {}  # at the files' own rates
    assert sum(meta(folders)["system"]["metrics"]["si_sdr"]["reasons"].values()) == 8


def counting(monkeypatch):
    """Samples and rewards of every call of the scorer."""
    calls: list[tuple[list[str], list[str]]] = []
    real = Scorer.start

    def start(self, samples, only=None):
        calls.append((sorted(s.key for s in samples), sorted(only or [])))
        return real(self, samples, only)

    monkeypatch.setattr(Scorer, "start", start)
    return calls


def test_resumes_and_computes_only_what_is_new(folders, monkeypatch):
    calls = counting(monkeypatch)
    first = reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert len(calls) == 1
    again = reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert len(calls) == 1 and again["metrics"] == first["metrics"]
    path = folders / "scores" / "scores.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])  # as a killed run leaves it
    reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert calls.pop()[0] == ["sub/b"] and sorted(path.read_text().splitlines()) == sorted(whole.splitlines())
    reward.run(config(folders, ["si_sdr", "lsd"]), folders / "out")  # a further reward
    assert calls[1:] == [(["a", "c", "sub/b"], ["lsd"])]
    assert all({"si_sdr", "lsd"} <= set(r) for r in rows(folders).values())
    changed = folders / "out" / "a.wav"
    sf.write(changed, voice(7, 14400), RATE)  # a further file version
    reward.run(config(folders, ["si_sdr", "lsd"]), folders / "out")
    assert calls[2:] == [(["a"], ["lsd", "si_sdr"])]
    reward.run(config(folders, ["si_sdr"], system="other"), folders / "out")  # another system in the same file
    assert calls[-1][0] == ["a", "c", "sub/b"] and set(meta(folders)) == {"system", "other"}
    monkeypatch.setattr("rlspeech.rewards.intrusive.SiSdr.version", "si-sdr-2")
    reward.run(config(folders, ["si_sdr", "lsd"]), folders / "out")
    assert calls[-1][1] == ["si_sdr"] and meta(folders)["system"]["metrics"]["si_sdr"]["version"] == "si-sdr-2"


def test_interrupt_keeps_what_is_scored(folders, monkeypatch):
    calls, real = counting(monkeypatch), Scorer.start

    def start(self, samples, only=None):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, samples, only)

    monkeypatch.setattr(Scorer, "start", start)
    with pytest.raises(KeyboardInterrupt):
        reward.run(config(folders, ["si_sdr"], batch=1), folders / "out")
    kept = rows(folders)
    assert kept and all(math.isfinite(r["si_sdr"]) for r in kept.values())
    calls.clear()
    monkeypatch.setattr(Scorer, "start", real)
    reward.run(config(folders, ["si_sdr"], batch=1), folders / "out")
    assert sorted(k for c in calls for k in c[0]) == sorted(set(rows(folders)) - set(kept)) and len(rows(folders)) == 3


def test_manifest_and_its_columns_reach_user_functions(folders, monkeypatch):
    code = "def snr(wavs, texts, sample_rate, snr=None, **columns):\n    return list(snr)\n"
    (folders / "my_reward_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(folders))
    same = {"audio_filepath": "out/a.wav", "target_filepath": "ref/a.wav", "duration": 0.8, "sample_rate": RATE}
    lines = [{"id": f"u{i}", **same, "snr": i} for i in range(2)]
    (folders / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = "my_reward_module:snr"
    summary = reward.run(ScoreFolder(rewards=[name, "si_sdr"], workers=0), folders / "m.jsonl")
    assert summary["metrics"][name]["mean"] == 0.5 and Path(summary["scores"]).name == "m.scores.jsonl"


def test_mistakes_are_refused(folders, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    out = folders / "out"
    for changes, path, words in [
        ({}, empty, "empty"),
        ({}, folders / "nothing", "nothing"),
        ({"target": None}, out, "--target"),
        ({"target": str(empty)}, out, "empty"),
        ({"target": str(folders / "nowhere")}, out, "nowhere"),
        ({"rewards": ["wer"], "recogniser": "x:y"}, out, "--text"),
        ({"text": str(folders / "nowhere")}, out, "nowhere"),
        ({"rewards": ["si_sdrr"]}, out, "'si_sdr'"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            reward.run(config(folders, **{"rewards": ["si_sdr"], **changes}), path)
        assert error.value.try_this


def test_references_inside_the_folder_are_not_scored_and_one_file_may_be_one_files(folders):
    inside = folders / "out" / "clean"
    inside.mkdir()
    for path in (folders / "ref").rglob("*.wav"):
        sf.write(inside / path.name, *sf.read(path))
    reward.run(config(folders, ["si_sdr"], target=str(inside)), folders / "out")
    assert set(rows(folders)) == {"a", "sub/b", "c"}
    asked, path = config(folders, ["si_sdr"], target=str(folders / "ref" / "a.wav")), folders / "out" / "a.wav"
    assert reward.run(asked, path)["n"] == 1 and rows(folders)["a"]["si_sdr"] > 10  # one file against one
    beside = reward.run(asked.model_copy(update={"out": None}), path)
    assert beside["scores"] == str(folders / "out" / "a.scores.jsonl")


def test_files_named_one_by_one_score_as_their_folder_does(folders, monkeypatch):
    monkeypatch.chdir(folders)
    whole = reward.run(config(folders, ["si_sdr"]), folders / "out")
    named = ["out/a.wav", "./out/sub/b.wav", "out/c.flac", "out/a.wav", "out/gone.wav"]
    some = reward.run(config(folders, ["si_sdr"], out=None), named)
    assert some["scores"] == "scores.jsonl" and some["n"] == 4, "each once; a missing file has a row of its own"
    found = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    values = {r["key"]: r["si_sdr"] for r in found}
    assert values.pop("gone") is None and sorted(values.values()) == sorted(r["si_sdr"] for r in rows(folders).values())
    assert whole["n"] == 3
    Path("out/sub/a.wav").write_bytes(Path("out/c.flac").read_bytes())  # one name, two keys
    assert reward.run(config(folders, ["si_sdr"], out="two"), ["out/a.wav", "out/sub/a.wav"])["n"] == 2


ROWS = [
    {"id": "u/1", "text": "one two three four", "hypothesis": "one two free four"},
    {"id": "u2", "text": "five", "hypothesis": "five", "keywords": ["five"]},
    {"id": "quiet", "text": "", "hypothesis": "thank you"},
    {"id": "u4", "text": "six seven", "hypothesis": ""},
]


def listed(path: Path, kind: str, texts: dict[str, str]) -> Path:
    """Texts by id: under a key of JSONL, as Kaldi has them, or as files of a folder."""
    if kind == "folder":
        for key, text in texts.items():
            (path / f"{key}.txt").parent.mkdir(parents=True, exist_ok=True)
            (path / f"{key}.txt").write_text(text + "\n")
    elif kind == "kaldi":
        path.write_text("".join(f"{k}\t{v}\n" for k, v in texts.items()))
    else:
        write(path, [{"id": k, kind: v} for k, v in texts.items()])
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

    monkeypatch.setattr(files, "read_audio", fail)
    monkeypatch.setattr("rlspeech.data.manifest.sound_info", fail)


def test_texts_alone(tmp_path, monkeypatch):
    deaf(monkeypatch)
    path = write(tmp_path / "m.jsonl", ROWS)
    summary, rows = score(path, ["asr_accuracy", "asr_hallucination", "asr_keywords", "asr_wer"], report="never")
    assert [rows[k]["asr_accuracy"] for k in ("u_1", "u2", "quiet", "u4")] == [0.75, 1.0, -1.0, 0.0]
    assert rows["quiet"]["asr_hallucination"] == -1.0 and rows["quiet"]["hallucination"] == "nonspeech"
    assert rows["u2"]["asr_keywords"] == 1.0 and rows["u4"]["errors"] == {"asr_keywords": "no keywords"}
    expected = {"hypothesis": "one two free four", "normaliser": "basic-3", "units": 4}
    expected |= {"substitutions": 1, "deletions": 0, "insertions": 0}
    assert {k: rows["u_1"][k] for k in expected} == expected
    # sums over sums: 3 errors in 7 words, not the mean of 1/4, 0 and 1
    corpus = summary["corpus"]["all words together"]
    assert corpus["wer"] == pytest.approx(300 / 7) and corpus["units"] == 7 and corpus["n"] == 3
    assert summary["metrics"]["asr_wer"]["mean"] == pytest.approx(1.25 / 3)
    metrics = json.loads((tmp_path / "scores" / "scores.meta.json").read_text())["systems"]["system"]["metrics"]
    assert {m["normaliser"] for m in metrics.values()} == {"basic-3"}


def test_options_have_rates_and_details_of_their_own(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"id": "a", "text": "One, two.", "hypothesis": "one two"}])
    summary, rows = score(path, ["asr_wer", "asr_wer[normaliser=none-1]"], report="never")
    assert rows["a"]["asr_wer"] == 0.0 and rows["a"]["asr_wer[normaliser=none-1]"] == 1.0
    name, found = "all words together", {k: v["normaliser"] for k, v in summary["corpus"].items()}
    assert found == {name: "basic-3", f"{name}[normaliser=none-1]": "none-1"}


def test_nemos_manifest_and_audio_that_is_gone(tmp_path, monkeypatch):
    deaf(monkeypatch)
    texts = enumerate(["one", "two", None])
    rows = [{"audio_filepath": f"gone/{i}.wav", "duration": 1.0, "text": "one", "pred_text": p} for i, p in texts]
    path = write(tmp_path / "said.json", rows)
    summary, rows = score(path, ["asr_wer"], report="never")
    assert [rows[k]["asr_wer"] for k in "012"] == [0.0, 1.0, None]
    assert rows["2"]["errors"] == {"asr_wer": "no hypothesis"}
    assert summary["metrics"]["asr_wer"]["n_valid"] == 2


def test_rewards_that_listen_need_the_audio(tmp_path, monkeypatch):
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
    else:
        listed(given, kind, said)
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
    calls = counting(monkeypatch)
    _, rows = score(path, ["asr_edits"])
    assert [[k.split("-")[0] for k in keys] for keys, _ in calls] == [["u_1"]] and rows["u_1"]["asr_edits"] == 0.0


def test_a_recogniser_writes_the_hypotheses_that_rows_lack_and_does_not_take_the_others_place(tmp_path):
    sf.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    given = [{"id": "a", "text": "given", "hypothesis": "given"}, {"id": "b", "text": ""}]
    path = write(tmp_path / "m.jsonl", [{**row, "audio_filepath": "a.wav"} for row in given])
    _, rows = score(path, ["asr_hallucination", "wer"], recogniser="reward_plugins:recogniser")
    assert rows["a"]["hypothesis"] == "given" and rows["a"]["wer_hypothesis"] == "Hello,  WORLD!"
    assert [rows[k]["asr_hallucination"] for k in "ab"] == [0.0, -1.0] and rows["a"]["wer"] == 2.0


def test_a_run_as_recogniser_writes_what_transcribe_writes_and_that_is_matched_by_its_file(tmp_path):
    step, said = tmp_path / "run" / "checkpoints" / "step_000001", tmp_path / "said.jsonl"
    save_audio_lm(step, tiny("whisper", seed=4, spread=0.6), facts={})
    (step.parent / "latest").write_text("step_000001\n")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for n in (0, 1):
        wav = 0.1 * np.random.default_rng(n).standard_normal(9000) * np.linspace(1 - n, 1 + 2 * n, 9000)
        sf.write(tmp_path / "in" / "sub" / f"{n}.wav", wav, 16000)
    own = [{"id": f"u{n}", "audio_filepath": f"in/sub/{n}.wav", "text": "one", "duration": 0.5625} for n in (0, 1)]
    path, written = write(tmp_path / "m.jsonl", own), list[list[str]]()
    for beams in (1, 3):
        how = ("--model", tmp_path / "run", "--beams", beams, "--out", said, "--overwrite")
        called("transcribe", tmp_path / "in", *how)
        written.append([str(i.hypothesis).strip() for i in collect(path, hypotheses=str(said))])
        asked = [f"{name}[beams={beams}]" for name in ("wer", "asr_wer")]
        _, found = score(path, asked, recogniser=str(tmp_path / "run"), report="never")
        assert [found[k][f"hypothesis[beams={beams}]"] for k in ("u0", "u1")] == written[-1] != written[0][::-1]
    assert written[0] != written[1]
    write(said, [*rows_of(said), {**rows_of(said)[0], "id": "another", "text": "text"}])
    assert "u0" in refused("reward", path, "--reward", "asr_wer", "--hypotheses", said)


def test_the_page_shows_mistakes_without_a_player(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"id": "a", "text": "one two", "hypothesis": "one <b>three</b>"}])
    summary, _ = score(path, ["asr_wer"])
    page = Path(summary["report"]).read_text()
    assert '<del title="said">two</del>' in page and "<audio" not in page and "<b>three" not in page


def test_ids_of_before_that_two_rows_share_say_nothing(tmp_path):
    rows = [{"id": f"{k}_x", "original_id": "x", "text": "one"} for k in "ab"]
    path = write(tmp_path / "m.jsonl", [*rows, {"id": "y", "text": "one"}])
    texts = {"x": "one", "y": "one\u2028two", "z": None}  # an end of a line that is none; no text
    said = write(tmp_path / "said.jsonl", [{"id": k, "text": t} for k, t in texts.items()])
    assert read_texts(said) == {"x": "one", "y": texts["y"]}
    assert [i.hypothesis for i in collect(path, hypotheses=str(said), texts_only=True)] == [None, None, texts["y"]]


def test_mistakes_in_texts_are_refused(tmp_path):
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
