"""Where output goes, and what a progress line says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rlspeech import log, tracking


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("RANK", raising=False)
    yield
    log.configure()
    log.to_file(None)


def test_stdout_holds_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.say("working")
    log.warn("careful")
    with log.progress(2, "scoring", "clips") as bar:
        bar.advance(2)
    log.table("Scores", ["system", "pesq"], [["input", 1.23456], ["[bold]x[/bold]", None]], notes=["n = 2"])
    out, err = capsys.readouterr()
    assert "working" in err and "careful" in err and "scoring" in err
    assert "working" not in out and "scoring" not in out
    assert "1.235" in out and "[bold]x[/bold]" in out and "n = 2" in out


def test_json_mode_leaves_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(json_mode=True)
    log.table("Scores", ["system"], [["input"]])
    log.emit({"mean": math.nan, "n": np.int64(3), "x": np.array([1.0, np.inf]), "path": Path("a"), "names": {"b", "a"}})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"mean": None, "n": 3, "x": [1.0, None], "path": "a", "names": ["a", "b"]}
    assert "input" in err


def test_emit_is_silent_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.emit({"a": 1})
    assert capsys.readouterr().out == ""


def test_quiet_keeps_warnings_and_the_file_keeps_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(quiet=True)
    log.to_file(tmp_path / "logs" / "run.log")
    log.say("one")
    log.warn("two")
    assert capsys.readouterr().err == "warning: two\n"
    text = (tmp_path / "logs" / "run.log").read_text()
    assert "one" in text and "two" in text


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    log.say("x")
    log.table("t", ["a"], [[1]])
    log.configure(json_mode=True)
    log.emit({"a": 1})
    assert capsys.readouterr() == ("", "")


def test_plain_progress_is_sparse_and_says_rate_estimate_and_postfix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with log.progress(1000, "rollouts", "clips") as bar:
        for i in range(1000):
            now[0] += 0.02  # 20 s in all
            bar.advance(1, reward=i / 1000)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 14
    assert "rollouts: 100/1000 (10 %) clips, 50.0 clips/s, 0:18 left, reward 0.099" in lines
    assert lines[-1].startswith("rollouts: 1000/1000 (100 %)") and "0:20 taken" in lines[-1]


def test_progress_of_unknown_length_and_slow_items(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with log.progress(None, "reading", "files") as bar:
        now[0] += 8
        bar.advance(2)
    assert "reading: 2 files, 4.0 s/files" in capsys.readouterr().err


def test_a_full_log_disk_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(log, "_file", Full())
    log.say("still alive")
    assert log._file is None


def test_metrics_sink_without_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sink = tracking.metrics_sink(tmp_path / "tb")
    sink.log(1, {"a": 1.0})
    sink.close()
    assert not (tmp_path / "tb").exists()


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2}\n[1]\n{"no": 1}\n{"step": 2, "a"')
    assert tracking.read_metrics(path) == [{"step": 1, "a": 2}]
    assert tracking.read_metrics(tmp_path / "absent.jsonl") == []
