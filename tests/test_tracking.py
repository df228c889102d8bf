"""Trackers: what they are given, what happens where one is missing or breaks, and that a run never dies of one."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from rlspeech import tracking
from rlspeech.config import RL, Strict
from rlspeech.run import Run
from rlspeech.settings import resolve
from rlspeech.tracking import MetricsLog, check_trackers, read_metrics
from rlspeech.types import UserError


class Small(Strict):
    task: str = "toy"
    tracker: list[str] = ["none"]


class Fake(types.ModuleType):
    """A stand-in for the package wandb that keeps what it is given."""

    def __init__(self, trouble: str = "") -> None:
        super().__init__("wandb")
        self.trouble, self.finished = trouble, 0
        self.given, self.started = list[dict[str, Any]](), list[dict[str, Any]]()

    def Settings(self, **how: Any) -> dict[str, Any]:
        return how

    def Audio(self, path: str, caption: str) -> tuple[str, str]:
        return "sound", path

    def Table(self, columns: list[str], data: list[list[str]]) -> list[list[str]]:
        return data

    def init(self, **how: Any) -> Fake:
        if self.trouble == "start":
            raise RuntimeError("api_key not configured\nsecond line")
        self.started.append(how)
        return self

    def define_metric(self, name: str, step_metric: str) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        if self.trouble == "middle" and len(self.given) > 1:
            raise ConnectionError("server gone")
        self.given.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake, real = Fake(), importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: "there" if name == "wandb" else real(name, *a))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return fake


SOUNDS = [f"samples/clip{n}/{what}" for what in ("output", "input") for n in range(tracking.CLIPS)]


def samples(folder: Path, step: int = 0) -> None:
    """What a validation leaves: six outputs, their inputs, texts with a torn end."""
    for place in (f"step_{step:06d}", "input"):
        (folder / "samples" / place).mkdir(parents=True, exist_ok=True)
        for n in range(6):
            sf.write(folder / "samples" / place / f"clip{n}.flac", 0.1 * np.sin(np.arange(1600) / 5), 16000)
    said = [{"id": f"u{n}", "text": "one <b>two</b>", "hypothesis": None if n else "one too"} for n in range(20)]
    lines = "".join(json.dumps(r) + "\n" for r in said)
    (folder / "samples" / f"step_{step:06d}" / "said.jsonl").write_text(lines + '{"id')


def test_settings_take_one_name_or_several() -> None:
    assert resolve(RL)[0].tracker == ["auto"]
    assert resolve(RL, sets=["tracker=wandb"])[0].tracker == ["wandb"]
    assert resolve(RL, sets=["tracker=[wandb, tensorboard]"])[0].tracker == ["wandb", "tensorboard"]
    with pytest.raises(UserError, match="wandb"):
        resolve(RL, sets=["tracker=mlflow"])


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_tracker_is_said_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match=f"(?s){name}.*try: .*pip install {name}"):
        Run.create(tmp_path / "run", "rl", Small(tracker=[name]))
    assert not (tmp_path / "run").exists()
    check_trackers(["auto", "none"])  # nothing that was not asked for is missed


def test_wandb_gets_settings_numbers_sounds_and_texts(wandb: Fake, tmp_path: Path) -> None:
    with Run.create(tmp_path / "mine", "rl", Small(tracker=["wandb"])) as run:
        samples(run.path)
        run.log(0, **{"valid/estoi": 0.5, "note": "text", "ok": True, "bad": float("nan")})
        run.log(1, reward=0.25)
    (how,) = wandb.started
    assert (how["project"], how["name"], how["resume"], how["config"]["task"]) == ("rlspeech", "mine", "allow", "toy")
    assert wandb.given[0] == {"valid/estoi": 0.5, "step": 0} and wandb.given[-1] == {"reward": 0.25, "step": 1}
    sounds = [name for row in wandb.given for name, value in row.items() if isinstance(value, tuple)]
    assert sounds == SOUNDS
    (texts,) = [row["samples/said"] for row in wandb.given if "samples/said" in row]
    assert texts[0] == ["u0", "one <b>two</b>", "one too"] and len(texts) == tracking.ROWS and wandb.finished == 1


def test_a_resumed_folder_goes_on_with_the_same_wandb_run(wandb: Fake, tmp_path: Path) -> None:
    for step in range(2):
        with Run.create(tmp_path / "mine", "rl", Small(tracker=["wandb"])) as run:
            run.log(step, reward=0.5)
    with Run.create(tmp_path / "other", "rl", Small(tracker=["wandb"])) as run:
        run.log(0, reward=0.5)
    first, again, other = (how["id"] for how in wandb.started)
    assert first == again != other


def test_wandb_that_does_not_start_stops_before_training(wandb: Fake, tmp_path: Path) -> None:
    wandb.trouble = "start"
    words = "(?s)wandb.*why: RuntimeError: api_key not configured\n  try: .*WANDB_MODE=offline"
    with pytest.raises(UserError, match=words):
        Run.create(tmp_path / "run", "rl", Small(tracker=["wandb"]))
    # the folder was let go, and who is told does not change what is computed
    with Run.create(tmp_path / "run", "rl", Small()) as run:
        run.log(0, reward=0.0)


def test_wandb_that_breaks_costs_a_warning(wandb: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wandb.trouble = "middle"
    with Run.create(tmp_path / "run", "rl", Small(tracker=["wandb"])) as run:
        for step in range(5):
            run.log(step, reward=float(step))
    assert capsys.readouterr().err.count("the tracker wandb broke") == 1 and len(wandb.given) == 2
    assert [row["reward"] for row in read_metrics(run.path / "metrics.jsonl")] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_only_the_first_process_is_tracked(wandb: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Run.create(tmp_path / "run", "rl", Small(tracker=["wandb"])) as run:
        run.log(0, reward=0.0)
    assert wandb.started == wandb.given == [] and not (tmp_path / "run").exists()


@pytest.mark.slow  # starts a process of its own
def test_wandb_offline_writes_here_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Run.create(tmp_path / "run", "rl", Small(tracker=["wandb"])) as run:
        samples(run.path)
        run.log(0, **{"valid/estoi": 0.5})
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow  # its import takes seconds
def test_tensorboard_gets_the_same_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(tmp_path / "run", "rl", Small(tracker=["tensorboard"])) as run:
        samples(run.path)
        run.log(0, **{"valid/estoi": 0.5, "note": "text"})
        run.checkpoints.save(1, lambda path: None, {"x": torch.zeros(1)})
        run.log(1, reward=0.25)
        run.log(2, reward=99.0)  # behind the checkpoint: done again below
    with Run.create(tmp_path / "run", "rl", Small(tracker=["tensorboard"])) as run:
        run.log(2, reward=0.5)
    sizes = {"audio": 0, "scalars": 0, "tensors": 0}
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance=sizes)
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["audio"] == SOUNDS
    (clip,) = events.Audio("samples/clip0/output")
    assert (clip.sample_rate, clip.step) == (16000, 0) and clip.encoded_audio_string[:4] == b"RIFF"
    texts = events.Tags()["tensors"]
    assert any("config" in t for t in texts) and any("said" in t for t in texts)


@pytest.mark.slow
def test_a_tensorboard_that_breaks_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    import torch  # noqa: F401  where torch is not in use, nothing is tracked

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where its folder should be")
    with Run.create(tmp_path / "run", "rl", Small(tracker=["auto"])) as run:
        run.log(0, reward=1.0)
        run.log(1, reward=2.0)
    assert capsys.readouterr().err.count("the tracker tensorboard broke") == 1
    assert [row["reward"] for row in read_metrics(run.path / "metrics.jsonl")] == [1.0, 2.0]


def test_without_tensorboard_there_is_the_file_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    numbers = MetricsLog(tmp_path)
    numbers.log(1, {"a": 1.0})
    numbers.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2}\n[1]\n{"no": 1}\n{"step": 2, "a"')
    assert read_metrics(path) == [{"step": 1, "a": 2}]
    assert read_metrics(tmp_path / "absent.jsonl") == []
