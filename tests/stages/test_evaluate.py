"""Evaluation: the input first, paired differences, resume, and rows that fail alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_speech import read_rows

from rlspeech.config import Evaluate, ScoreFolder
from rlspeech.data.audio import save_audio
from rlspeech.rewards import base
from rlspeech.stages import evaluate, reward
from rlspeech.tasks.base import Task
from rlspeech.tasks.evaluation import usable
from rlspeech.types import Score, UserError

RATE = 16000
CLIPS = 6


class Fake:
    """Keeps ``keep`` of the noise by subtracting the right part of it; knows the clean speech."""

    sample_rate, channels, uses_video = RATE, 1, False

    def __init__(self, name: str, clean: dict[str, np.ndarray]) -> None:
        self.keep, self.clean, self.seen = {"half": 0.5, "tenth": 0.1, "fails": 0.5, "same": 1.0}[name], clean, []
        self.fails = name == "fails"

    def infer(self, wavs: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        self.seen += keys
        if self.fails and "u3" in keys:
            raise RuntimeError("boom")
        pairs = zip(wavs, (self.clean[k] for k in keys), strict=True)
        return [(clean + self.keep * (noisy - clean)).astype(np.float32) for noisy, clean in pairs]


class FakeTask(Task):
    default_metrics = ("si_sdr", "lsd", "squim_pesq")
    settings = frozenset({"systems"})

    def __init__(self, clean: dict[str, np.ndarray]) -> None:
        self.clean = clean
        self.made: list[Fake] = []

    def load(self, name: str, device: Any) -> tuple[str, dict[str, Any]]:
        return Path(name).name, {}

    def enhancer(self, model: str, *, seed: int, config: Evaluate) -> Fake:
        self.made.append(Fake(model, self.clean))
        return self.made[-1]


World = tuple[Path, FakeTask]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A paired test set of tones in noise, and checkpoints whose folder name says what they do."""
    rng, clean, rows = np.random.default_rng(0), {}, []
    for i in range(CLIPS):
        t = np.arange(RATE // 2 + 400 * i) / RATE
        wav = 0.2 * np.sin(2 * np.pi * (200 + 40 * i) * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
        noise = 0.05 * (1 + i / 5) * rng.standard_normal(len(t))
        wav, noisy = wav.astype(np.float32), (wav + noise).astype(np.float32)
        save_audio(tmp_path / "clean" / f"u{i}.wav", wav, RATE)
        save_audio(tmp_path / "noisy" / f"u{i}.wav", noisy, RATE)
        clean[f"u{i}"] = wav
        row = {"id": f"u{i}", "audio_filepath": f"noisy/u{i}.wav", "target_filepath": f"clean/u{i}.wav"}
        row |= {"duration": len(t) / RATE, "sample_rate": RATE, "text": "<b>hello</b>", "snr_db": 5.0}
        rows.append(row)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("half", "tenth", "fails", "same"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "rlspeech-flow"}')
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    task = FakeTask(clean)
    monkeypatch.setattr(evaluate, "get_task", lambda name: task)
    return tmp_path, task


def _config(folder: Path, *models: str, **changes: Any) -> Evaluate:
    settings = {"data": str(folder / "test.jsonl"), "models": {m: str(folder / m) for m in models}, "batch": 2}
    settings |= {"metrics": ["si_sdr", "lsd"], "out": str(folder / "out"), "device": "cpu", "workers": 0}
    return Evaluate(**{**settings, "players": 2, **changes})


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["system"], r["key"]): r for r in read_rows(folder / "out", "scores.jsonl")}


def test_everything_is_scored_compared_and_written(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = world
    result = evaluate.run(_config(folder, "half", "tenth"))
    assert list(result["systems"]) == ["input", "half", "tenth"] and result["baseline"] == "half"
    assert result["n"] == CLIPS
    rows = _rows(folder)
    assert len(rows) == 3 * CLIPS and all(r["errors"] == {} for r in rows.values())
    assert list(rows)[0][0] == "input"
    # noise at half amplitude is 6 dB, at a tenth of it 20 dB (SI-SDR by definition)
    gains = [rows["half", f"u{i}"]["si_sdr"] - rows["input", f"u{i}"]["si_sdr"] for i in range(CLIPS)]
    assert np.allclose(gains, 6.02, atol=0.1)
    delta = result["deltas"]["tenth"]["si_sdr"]
    assert delta["significant"] and delta["n"] == CLIPS and delta["mean"] == pytest.approx(13.98, abs=0.3)
    assert delta["hi"] - delta["lo"] < 1.0 < np.std([rows["half", f"u{i}"]["si_sdr"] for i in range(CLIPS)]) * 2
    assert result["deltas"]["tenth"]["lsd"]["mean"] < 0 and result["higher_is_better"] == {"si_sdr": True, "lsd": False}
    out, _ = capsys.readouterr()
    assert "lsd (lower is better)" in out and out.count("better\n") == 2
    assert json.loads((folder / "out" / "metrics.json").read_text())["systems"]["tenth"]["si_sdr"]["n"] == CLIPS
    meta = json.loads((folder / "out" / "scores.meta.json").read_text())
    assert meta["metrics"]["si_sdr"]["version"] and meta["systems"]["input"]["lsd"]["n_valid"] == CLIPS
    html = (folder / "out" / "report.html").read_text()
    assert html.count("<audio") == 2 * 4 and "<b>hello</b>" not in html
    assert "tenth against half: better in si_sdr" in html
    assert len(list((folder / "out" / "audio" / "tenth").glob("*.flac"))) == CLIPS


def test_outputs_of_another_program_are_a_system(world: World) -> None:
    folder, task = world
    for i in range(CLIPS - 1):
        wav = task.clean[f"u{i}"]
        save_audio(folder / "other" / "deep" / f"u{i}.flac", wav[: len(wav) - 40 if i else RATE // 4], RATE)
    made = evaluate.run(_config(folder, "half", systems={"theirs": str(folder / "other")}, metrics=["si_sdr"]))
    rows = _rows(folder)
    assert list(made["systems"]) == ["input", "half", "theirs"] and made["baseline"] == "half"
    assert made["deltas"]["theirs"]["si_sdr"]["n"] == CLIPS - 2
    assert made["deltas"]["theirs"]["si_sdr"]["lo"] > 10 and rows["theirs", "u2"]["si_sdr"] > 20
    why = [rows["theirs", key]["errors"]["si_sdr"] for key in ("u0", "u5")]
    assert "0.25 s" in why[0] and "no file" in why[1]
    save_audio(folder / "other" / "u5.wav", task.clean["u5"], RATE)  # what is changed is scored anew
    made = evaluate.run(_config(folder, systems={"theirs": str(folder / "other")}, metrics=["si_sdr"]))
    assert made["deltas"]["theirs"]["si_sdr"]["n"] == CLIPS - 1 and made["baseline"] == "input"
    for systems in ({"half": str(folder / "other")}, {"input": str(folder / "other")}, {"x": str(folder / "half")}):
        with pytest.raises(UserError, match="half|input"):
            evaluate.run(_config(folder, "half", systems=systems))


def test_a_second_run_computes_nothing_and_a_new_metric_no_audio(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, task = world
    first = evaluate.run(_config(folder, "half", metrics=["si_sdr"]))
    before = (folder / "out" / "scores.jsonl").read_text()
    assert first["baseline"] == "input" and len(task.made) == 1
    second = evaluate.run(_config(folder, "half", metrics=["si_sdr"]))
    assert len(task.made) == 1 and (folder / "out" / "scores.jsonl").read_text() == before
    assert second["systems"] == first["systems"] and second["deltas"] == first["deltas"]
    third = evaluate.run(_config(folder, "half", "tenth", metrics=["si_sdr", "lsd"]))
    assert [m.seen for m in task.made[1:-1]] == [[]] and len(task.made[-1].seen) == CLIPS
    assert third["systems"]["half"]["si_sdr"] == first["systems"]["half"]["si_sdr"]
    assert third["systems"]["input"]["lsd"]["n"] == CLIPS


def test_a_killed_run_goes_on(world: World) -> None:
    folder, task = world
    whole = evaluate.run(_config(folder, "half"))
    path = folder / "out" / "scores.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:8]) + "\n" + lines[8][:40])  # torn while writing
    (folder / "out" / "audio" / "half" / "u5.flac").write_bytes(b"fLaC torn")
    again = evaluate.run(_config(folder, "half"))
    assert again["systems"] == whole["systems"] and task.made[-1].seen == ["u5"] and len(_rows(folder)) == 2 * CLIPS


def test_other_weights_under_the_same_name_are_noticed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder, task = world
    evaluate.run(_config(folder, "half"))
    (folder / "half" / "model.safetensors").write_bytes(b"other")
    evaluate.run(_config(folder, "half"))
    assert "the checkpoint has changed" in capsys.readouterr().err and len(task.made[-1].seen) == CLIPS


def test_one_bad_item_fails_alone(world: World) -> None:
    folder, _ = world
    rows = (folder / "test.jsonl").read_text().splitlines()
    (folder / "empty.wav").write_bytes(b"")
    save_audio(folder / "silent.wav", np.zeros(RATE, dtype=np.float32), RATE)
    (folder / "torn.wav").write_bytes((folder / "noisy" / "u0.wav").read_bytes()[:30])
    bad = {"empty": "empty.wav", "gone": "gone.wav", "silent": "silent.wav", "torn": "torn.wav"}
    common = {"duration": 1.0, "sample_rate": RATE}
    target = {"target_filepath": "clean/u0.wav", **common}
    rows += [json.dumps({"id": k, "audio_filepath": v, **target}) for k, v in bad.items()]
    rows += [json.dumps({"id": "lonely", "audio_filepath": "noisy/u1.wav", **common})]
    (folder / "test.jsonl").write_text("\n".join(rows) + "\n")
    result = evaluate.run(_config(folder, "fails"))
    got = _rows(folder)
    assert result["systems"]["fails"]["si_sdr"]["n"] == CLIPS - 1 and result["systems"]["input"]["si_sdr"]["n"] == CLIPS
    assert "boom" in got["fails", "u3"]["errors"]["si_sdr"] and got["fails", "u3"]["si_sdr"] is None
    assert got["fails", "u2"]["si_sdr"]
    for key in bad:
        assert got["input", key]["si_sdr"] is None and got["input", key]["errors"]["si_sdr"]
    assert "reference" in got["input", "lonely"]["errors"]["si_sdr"]
    assert result["rows_with_errors"] == 11 and "boom" in (folder / "out" / "report.html").read_text()


def test_default_metrics_leave_out_what_is_not_installed() -> None:
    names, notes = usable(["si_sdr", "no_such_metric"])
    assert names == ["si_sdr"] and "no_such_metric is left out" in notes[0]
    with pytest.raises(UserError, match="no_such_metric"):
        usable(["no_such_metric"])


def test_a_request_has_the_same_columns_in_eval_and_reward(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Score(3.0, None, {"dnsmos_bak": 2.0, "dnsmos_bak_raw": 1.5})
    scores = {f"dnsmos_{c}": score for c in ("ovrl", "sig", "bak")}
    monkeypatch.setattr("rlspeech.rewards.dnsmos.Dnsmos.compute", lambda _, samples, columns: [scores] * len(samples))
    folder, asked = world[0], ["dnsmos[level_dbfs=-25]", "dnsmos_sig", "dnsmos_sig"]
    names = ["dnsmos_ovrl[level_dbfs=-25]", "dnsmos_sig[level_dbfs=-25]", "dnsmos_bak[level_dbfs=-25]", "dnsmos_sig"]
    assert base.named(asked) == names and base.named([*names, " p808", "a:b"]) == [*names, "dnsmos_p808", "a:b"]
    evaluated = evaluate.run(_config(folder, "half", metrics=asked))["systems"]["half"]
    scored = reward.run(ScoreFolder(rewards=asked, workers=0, out=str(folder / "scores")), folder / "noisy")["metrics"]
    assert list(evaluated) == list(scored) == names
    rows = [*_rows(folder).values(), *read_rows(folder / "scores", "scores.jsonl")]
    assert all({k for k in r if k.startswith("dnsmos") and "_raw" not in k} == set(names) for r in rows)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"baseline": "other"}, "other"),
        ({"models": {"input": "half"}}, "'input'"),
        ({"models": {"a/b": "half"}}, "a/b"),
        ({"models": {"x": "nowhere"}}, "nowhere"),
        ({"metrics": ["pesqq"]}, "pesqq"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_mistakes_are_found_before_any_work(world: World, changes: dict[str, Any], what: str) -> None:
    folder, task = world
    with pytest.raises(UserError, match=what):
        evaluate.run(_config(folder, **changes))
    assert not task.made and not list((folder / "out").glob("audio/*/*"))


def test_nothing_that_can_be_scored_is_an_error(world: World) -> None:
    folder, _ = world
    row = '{"id": "a", "audio_filepath": "gone.wav", "duration": 1.0, "sample_rate": 16000}'
    (folder / "test.jsonl").write_text(f"{row}\n")
    with pytest.raises(UserError, match="scores.jsonl") as caught:
        evaluate.run(_config(folder))
    assert "missing file" in caught.value.why


def test_the_input_alone_and_a_limit(world: World) -> None:
    folder, _ = world
    result = evaluate.run(_config(folder, limit=2))
    assert result["baseline"] is None and result["deltas"] == {} and result["n"] == 2
    assert evaluate.run(_config(folder))["n"] == CLIPS


def test_scores_do_not_depend_on_the_batch(world: World) -> None:
    folder, _ = world
    one = evaluate.run(_config(folder, "half", batch=1))
    all_at_once = evaluate.run(_config(folder, "half", batch=6, out=str(folder / "other")))
    assert one["systems"] == all_at_once["systems"]
