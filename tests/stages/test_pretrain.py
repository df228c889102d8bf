"""Pretraining: what it writes, that it learns, and that a run that was cut off ends where it would have ended."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tts
import torch
import warm
from safetensors.torch import load_file
from tiny_speech import MODEL, RATE, assert_same, interrupted, read_rows, state_at, write_pairs
from tiny_tts import CODEC, REWARD, write_tts

from rlspeech.config import CodecLMModel, FlowModel, Mixing, Pretrain, TokenRewardModel
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.engine import Ranks
from rlspeech.models.hub import load_model
from rlspeech.report.build import build, compared
from rlspeech.report.runs import open_runs
from rlspeech.stages import pretrain
from rlspeech.stages.finish import Ending
from rlspeech.tasks.flowse.task import FlowSE
from rlspeech.types import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def cheap_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowSE, "valid_metrics", ("si_sdr",))  # DNSMOS has its own tests


def _config(pairs: Path, out: Path, **changes: Any) -> Pretrain:
    sizes = {"steps": 4, "batch": 2, "warmup": 1, "valid_every": 0, "save_every": 2, "valid_items": 1, "seed": 3}
    return Pretrain(**{"data": str(pairs), "out": str(out), "model": MODEL, "device": "cpu", **sizes, **changes})


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowSE, "valid_metrics", ("si_sdr",))
        summary = pretrain.run(_config(pairs, out))
    assert summary["step"] == 4 and math.isfinite(summary["si_sdr"])
    return out


def test_what_a_run_leaves(whole: Path) -> None:
    model, config = load_model(str(whole), "flowse")
    assert model.cfg == MODEL and config["facts"]["steps"] == 4
    rows = read_rows(whole)
    assert any("train/loss" in r for r in rows) and any("valid/si_sdr" in r for r in rows)
    assert sorted(p.name for p in (whole / "checkpoints").glob("step_*")) == ["step_000002", "step_000004"]
    assert list((whole / "samples" / "step_000004").glob("*.flac"))
    averaged, raw = load_file(whole / "checkpoints" / "step_000004" / "model.safetensors"), state_at(whole)
    name = next(k for k in raw if k.endswith("weights.out.weight"))
    assert not torch.equal(averaged["out.weight"], raw[name])  # the average is for use, the weights for going on


def test_a_cut_run_has_a_page_and_ends_where_the_whole_one_did(pairs: Path, whole: Path, tmp_path: Path) -> None:
    interrupted(pretrain.run, _config(pairs, tmp_path / "cut"), 3)
    assert not (tmp_path / "cut" / "checkpoints" / "step_000004").exists()
    assert (tmp_path / "cut" / "report.html").is_file()
    assert open_runs([str(tmp_path / "cut")])[0].state() == "step 3 of 4: interrupted"
    assert pretrain.run(_config(pairs, tmp_path / "cut"))["step"] == 4
    assert_same(whole, tmp_path / "cut")


def test_ctrl_c_finishes_the_step_and_saves_it(
    pairs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pressed, before = pretrain.Trainer.update, [1, 2], signal.getsignal(signal.SIGINT)

    def update(self: pretrain.Trainer, clips: Any) -> dict[str, float]:
        for _ in range(pressed.pop(0) if self.step in (0, 1) and pressed else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, clips)

    monkeypatch.setattr(pretrain.Trainer, "update", update)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(_config(pairs, tmp_path / "cut", save_every=100))
        assert [p.name for p in (tmp_path / "cut" / "checkpoints").glob("step_*")] == ["step_000001"]
    assert signal.getsignal(signal.SIGINT) is before
    pretrain.run(_config(pairs, tmp_path / "cut", save_every=100))
    assert_same(whole, tmp_path / "cut")


def test_a_background_job_goes_on_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Ending(Ranks(), None) as ending:
            os.kill(os.getpid(), signal.SIGINT)
            ending.look()
            assert not ending.asked and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_looking_more_often_or_stopping_early_changes_nothing(pairs: Path, whole: Path, tmp_path: Path) -> None:
    pretrain.run(_config(pairs, tmp_path / "often", valid_every=1, save_every=1, workers=2))
    assert_same(whole, tmp_path / "often")
    for _ in range(4):
        summary = pretrain.run(_config(pairs, tmp_path / "late", max_minutes=1e-9))
    assert summary["step"] == 4  # one step a visit
    assert_same(whole, tmp_path / "late")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "plateau"])
def test_the_course_of_the_rate(schedule: Any) -> None:
    trainer: Any = object.__new__(pretrain.Trainer)
    trainer.config = Pretrain(steps=30, warmup=10, lr=1.0, lr_schedule=schedule)
    values = [1.0, 3.0, 2.0, 2.9, math.nan, 1.0, 3.1, 3.0, 3.0, 3.0, 3.0, 3.0]
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(plain, "max", factor=0.8, patience=3, threshold=0.0)
    stops = []
    for count in range(len(values) + 1 if schedule == "plateau" else 1):
        trainer.watched = values[:count]
        if count:
            other.step(values[count - 1])
        rates = []
        for trainer.step in (0, 9, 10, 20, 29):
            rates.append(trainer.rate())
        cosine = 0.5 * (1 + math.cos(0.95 * math.pi))
        later = {"cosine": [1, 0.5, cosine], "linear": [1, 0.5, 0.05], "constant": [1] * 3}
        assert rates == pytest.approx([0.1, 1.0, *later.get(schedule, [other.get_last_lr()[0]] * 3)])
        stops.append(trainer.plateaus()[1])
    assert not any(stops)
    if schedule == "plateau":
        assert other.get_last_lr()[0] == pytest.approx(0.64)
        trainer.watched = [*values, 3.1]  # as good is not better
        assert trainer.plateaus()[1]


def test_a_plateau_ends_a_run_for_good(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowSE, "validate", lambda self, model, clips, folder, step, *_: {"si_sdr": -float(step)})
    sizes = {"steps": 20, "warmup": 0, "valid_every": 1, "save_every": 20}
    config = _config(pairs, tmp_path / "run", lr_schedule="plateau", ema=0, **sizes)
    ends = [pretrain.run(config) for _ in range(2)]
    assert [e["step"] for e in ends] == [7, 7] and all(e["stopped"].startswith("stopped") for e in ends)
    rows = read_rows(tmp_path / "run")
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates[:5] == [config.lr] * 5 and rates[5:] == pytest.approx([0.8 * config.lr] * 2)
    state = state_at(tmp_path / "run", 7)
    raw = {key.partition("state.weights.")[2]: value for key, value in state.items()}
    del raw[""]
    assert len(raw) > 20 and all(torch.equal(value, state[name]) for name, value in raw.items())  # ema 0: as they are
    with pytest.raises(UserError, match="plateau"):
        pretrain.run(_config(pairs, tmp_path / "other", lr_schedule="plateau"))


def test_another_seed_is_another_model(pairs: Path, whole: Path, tmp_path: Path) -> None:
    pretrain.run(_config(pairs, tmp_path / "seed", seed=4))
    assert not torch.equal(state_at(whole)["out.weight"], state_at(tmp_path / "seed")["out.weight"])


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    pretrain.run(_config(pairs, out))
    weights = state_at(out)["out.weight"]
    capsys.readouterr()
    summary = pretrain.run(_config(pairs, out, steps=6))
    said = capsys.readouterr().err
    assert summary["step"] == 6 and summary["stopped"] == "all steps done" and "learning rate falls over all 6" in said
    assert not torch.equal(state_at(out, 6)["out.weight"], weights)
    rows = read_rows(out)
    assert [r["step"] for r in rows if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    stamps = [(out / "checkpoints" / "step_000006" / "model.safetensors").stat().st_mtime_ns]
    assert pretrain.run(_config(pairs, out, steps=6))["step"] == 6
    stamps.append((out / "checkpoints" / "step_000006" / "model.safetensors").stat().st_mtime_ns)
    assert stamps[0] == stamps[1] and "a larger --steps goes on" in capsys.readouterr().err
    with pytest.raises(UserError, match="at step 6 already"):
        pretrain.run(_config(pairs, out, steps=5))


def test_the_page_of_a_run_has_its_losses_its_validations_and_its_audio(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = pretrain.run(_config(pairs, out, valid_every=2, valid_items=3))
    assert summary["report"] == str(out / "report.html") and Path(summary["report"]).is_file()
    [record] = open_runs([str(out)])
    data = build(compared([record]))
    assert data.title == "pretrain flowse: run" and data.subtitle == "step 4 of 4: all steps done"
    assert list(data.means) == ["step 2", "step 4"]
    assert data.means["step 4"]["si_sdr"].mean == pytest.approx(summary["si_sdr"])
    assert data.baseline is None and not data.deltas  # two moments of one run are no comparison
    kinds = {p.title: p.kind for p in data.plots}
    assert kinds["valid/si_sdr"] == "valid" and kinds["train/loss"] == "train"
    assert data.clips and all(list(c.audio) == ["input", "step 2", "step 4", "reference"] for c in data.clips)
    assert data.config["steps"] == 4 and data.versions["torch"] and data.facts["data"] == str(pairs)


def test_it_learns(pairs: Path, tmp_path: Path) -> None:
    sizes = {"steps": 60, "save_every": 60, "warmup": 5}
    pretrain.run(_config(pairs, tmp_path / "run", lr=5e-3, mixing={"clip_s": 0.5}, **sizes))
    losses = [r["train/loss"] for r in read_rows(tmp_path / "run") if "train/loss" in r]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_init_goes_on_from_a_checkpoint(pairs: Path, whole: Path, tmp_path: Path) -> None:
    still = {"steps": 1, "lr": 1e-12, "warmup": 0, "ema": 0.0}
    pretrain.run(_config(pairs, tmp_path / "next", model=FlowModel(), init=str(whole), **still))
    start, end = (load_model(str(run), "flowse")[0].state_dict() for run in (whole, tmp_path / "next"))
    for name, value in start.items():
        torch.testing.assert_close(end[name], value, atol=1e-6, rtol=1e-6)


def test_a_loss_that_is_no_number_stops_with_advice(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FlowSE.pretrain_loss
    monkeypatch.setattr(FlowSE, "pretrain_loss", lambda *a: {k: v * float("nan") for k, v in real(*a).items()})
    with pytest.raises(UserError, match="nan") as error:
        pretrain.run(_config(pairs, tmp_path / "nan"))
    assert "lr" in error.value.try_this and not list((tmp_path / "nan" / "checkpoints").glob("step_*"))


def test_bad_files_are_left_out_and_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    manifest = write_pairs(tmp_path / "bad", count=6)
    noisy = tmp_path / "bad" / "noisy"
    (noisy / "0.flac").write_bytes(b"")
    (noisy / "1.flac").write_bytes((noisy / "1.flac").read_bytes()[:3000])
    (noisy / "2.flac").unlink()
    save_audio(noisy / "3.flac", np.zeros(RATE, np.float32), RATE)  # silent input is learnable, not an error
    assert pretrain.run(_config(manifest, tmp_path / "run"))["step"] == 4
    for i in range(3, 6):
        (noisy / f"{i}.flac").write_bytes(b"no audio")
    with pytest.raises(UserError, match="utterances"):
        pretrain.run(_config(manifest, tmp_path / "none"))


SCRIPT = """
import sys
from rlspeech.config import Pretrain
from rlspeech.stages import finish, pretrain
from rlspeech.tasks.flowse.task import FlowSE
FlowSE.valid_metrics = ("si_sdr",)
finish.write_page = lambda folder: None
if __name__ == "__main__":
    pretrain.run(Pretrain.model_validate_json(sys.argv[1]))
"""


def test_a_killed_process_is_taken_up_again(pairs: Path, tmp_path: Path) -> None:
    options = {"steps": 40, "save_every": 5, "batch": 1, "mixing": {"clip_s": 0.5}}
    config = _config(pairs, tmp_path / "cut", **options)
    (tmp_path / "go.py").write_text(SCRIPT)
    env, command = warm.environment(tmp_path), ["python", str(tmp_path / "go.py"), config.model_dump_json()]
    cut = tmp_path / "cut" / "checkpoints"
    for how, reached in ((signal.SIGINT, 5), (signal.SIGKILL, 20)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env)
        while max((int(p.name[5:]) for p in cut.glob("step_*")), default=0) < reached:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(int((tmp_path / "cut" / ".lock").read_text()), how)
        assert process.wait(60) != 0
        assert not (cut / "step_000040").exists()
    pretrain.run(config)
    pretrain.run(_config(pairs, tmp_path / "whole", **options))
    assert_same(tmp_path / "whole", tmp_path / "cut", 40)
    assert not list(cut.glob(".tmp*"))


def test_whole_utterances_of_unequal_length_are_trained_on(tmp_path: Path) -> None:
    made = [read_manifest(write_pairs(tmp_path / str(i), 1, 0.4 + 0.05 * i))[0] for i in range(10)]
    write_manifest(tmp_path / "pairs.jsonl", [replace(utt, id=f"u{i}") for i, utt in enumerate(made)])
    sizes = {"steps": 3, "batch": 3, "mixing": Mixing(clip_s=0)}
    summary = pretrain.run(_config(tmp_path / "pairs.jsonl", tmp_path / "run", **sizes))
    assert summary["step"] == 3 and math.isfinite(summary["si_sdr"])


@pytest.mark.parametrize("task", ["codec", "tts", "token-reward"])
def test_four_utterances_train_and_nothing_is_validated(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_tts(tmp_path)
    codec = {"codec": str(tmp_path / "codec")}
    parts = {
        "codec": CODEC,
        "tts": CodecLMModel(**codec, **tiny_tts.MODEL),
        "token_reward": TokenRewardModel(**codec, **REWARD),
    }
    places = {"data": given["data"], "out": str(tmp_path / "run")}
    part: dict[str, Any] = {name: parts[name] for name in [task.replace("-", "_")]}
    config = Pretrain(task=task, **places, **part, steps=2, batch=2, device="cpu")
    summary = pretrain.run(config)
    assert summary["step"] == 2 and Path(summary["report"]).is_file()
    assert "too few to hold any back: nothing is validated" in capsys.readouterr().err
