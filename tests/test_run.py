"""The run folder: ownership, resume, and checkpoints that survive a kill at any moment."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from pydantic import BaseModel

from rlspeech import files
from rlspeech import run as run_module
from rlspeech.config import RL
from rlspeech.run import Run
from rlspeech.state import load_optimizer_state, load_state, make_optimizer, rng_state, save_state, set_rng_state
from rlspeech.tracking import read_metrics
from rlspeech.types import UserError

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


class Inner(BaseModel):
    dim: int = 4


class Config(BaseModel):
    task: str = "flowse"
    algo: str = "grpo"
    lr: float = 1e-3
    seed: int = 0
    workers: int = 2
    model: Inner = Inner()
    device: str = "auto"


def _write(folder: Path) -> None:
    (folder / "model.txt").write_text("weights")


def _kept(run: Run) -> dict[str, Any]:
    """The state of the checkpoint that a run goes on from."""
    found = run.latest()
    assert found is not None
    return found[1]


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_folder_holds_what_was_asked(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "rl", Config(lr=0.5, model=Inner(dim=8))) as run:
        run.note(device="cpu")
    assert (run.path / "config.yaml").read_text() == "lr: 0.5\nmodel:\n  dim: 8\n"
    assert json.loads((run.path / "config.resolved.json").read_text())["seed"] == 0
    env = json.loads((run.path / "env.json").read_text())
    assert env["stage"] == "rl" and env["device"] == "cpu" and env["versions"]["torch"] and env["argv"] == sys.argv


def test_default_name_depends_on_what_changes_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for config in (Config(), Config(workers=7, device="cpu"), Config(lr=0.5)):
        with Run.create(None, "rl", config) as run:
            names.append(run.path.name)
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("rl-flowse-grpo-") and run.path.parent == tmp_path / "runs"


def begun(folder: Path) -> None:
    """A run with a first result."""
    with Run.create(folder, "rl", Config()) as run:
        run.checkpoints.save(1, lambda path: (path / "x").write_text("1"), {})


def test_a_run_that_never_began_is_no_obstacle(tmp_path: Path) -> None:
    Run.create(tmp_path, "rl", Config()).close()
    with Run.create(
        tmp_path, "rl", Config(lr=0.5)
    ) as run:  # the first one failed before a step, say for a misspelt reward
        assert not run.resumed
    assert json.loads((tmp_path / "config.resolved.json").read_text())["lr"] == 0.5


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(UserError) as caught:
        Run.create(tmp_path, "rl", Config(lr=0.5, model=Inner(dim=8), workers=0))
    assert "lr: 0.001 then, 0.5 now" in caught.value.why and "model.dim" in caught.value.why
    assert "workers" not in caught.value.why
    assert "--out NEW" in caught.value.try_this
    with pytest.raises(UserError, match="another stage"):
        Run.create(tmp_path, "eval", Config())
    Run.create(tmp_path, "rl", Config(seed=3), neutral=["seed"]).close()
    (tmp_path / "env.json").write_text("null")
    with Run.create(tmp_path, "rl", Config(seed=3)) as run:  # none of the refusals has kept the lock
        assert run.resumed


def test_a_run_may_be_made_longer_and_not_shorter_than_it_is(tmp_path: Path) -> None:
    class Counted(Config):
        steps: int = 2

    with Run.create(tmp_path, "rl", Counted()) as run:
        run.checkpoints.save(2, _write, {})
    with pytest.raises(UserError, match="other settings"):  # only where the stage says that it can go on
        Run.create(tmp_path, "rl", Counted(steps=3))
    with pytest.raises(UserError, match="other settings") as both:
        Run.create(tmp_path, "rl", Counted(steps=3, lr=0.5), growing={"steps"})
    assert "lr:" in both.value.why and "steps:" in both.value.why
    with Run.create(tmp_path, "rl", Counted(steps=5), growing={"steps"}) as run:
        assert run.grown == {"steps": 2} and _kept(run)["step"] == 2
    assert json.loads((tmp_path / "config.resolved.json").read_text())["steps"] == 5
    with Run.create(tmp_path, "rl", Counted(steps=3), growing={"steps"}) as run:  # not reached yet: it may end earlier
        assert run.grown == {"steps": 5}
    with pytest.raises(UserError, match="(?s)step 2.*try: .*--steps 2"):
        Run.create(tmp_path, "rl", Counted(steps=1), growing={"steps"})


def test_a_key_younger_than_the_run_takes_its_default(tmp_path: Path) -> None:
    begun(tmp_path)
    resolved = tmp_path / "config.resolved.json"
    old = json.loads(resolved.read_text())
    del old["lr"]
    resolved.write_text(json.dumps(old))
    Run.create(tmp_path, "rl", Config()).close()
    resolved.write_text("{torn")
    with pytest.raises(UserError, match="config.resolved.json"):
        Run.create(tmp_path, "rl", Config())


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        for step in range(1, 6):
            run.log(step, loss=1 / step, bad=float("nan"), t=torch.tensor(2.0))
            if step == 3:
                run.checkpoints.save(step, _write, {"n": 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Run.create(tmp_path, "rl", Config()) as run:
        assert _kept(run) == {"n": 3, "step": 3}
        run.log(4, loss=9.0)
        rows = read_metrics(run.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["bad"] is None and rows[0]["t"] == 2.0 and rows[-1]["loss"] == 9.0
    assert (tmp_path / "metrics.jsonl").read_text().endswith("\n")


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Run.create(tmp_path / "r", "rl", Config()) as run:
        run.log(1, a=1)
        run.checkpoints.save(1, _write, {})
        run.note(a=1)
    assert not (tmp_path / "r").exists()


START = """
import os, sys, time
sys.path[:0] = [{here!r}, {here!r} + "/tiny"]
from test_run import Config
from rlspeech.run import Run
run = Run.create({path!r}, "rl", Config())
"""


def script(folder: Path, code: str) -> subprocess.Popen[str]:
    """Start a script with a run of its own in the folder ``run``, which says its process's number first."""
    env = warm.environment(folder)
    (folder / "script.py").write_text((START + code).format(here=str(Path(__file__).parent), path=str(folder / "run")))
    call = ["python", str(folder / "script.py")]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
def test_second_process_is_told_the_pid_and_a_dead_lock_is_taken_over(tmp_path: Path) -> None:
    with script(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(60)\n") as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        with pytest.raises(UserError, match=f"(?s)in use.*why: .*{pid}"):
            Run.create(tmp_path / "run", "rl", Config())
        os.kill(pid, signal.SIGKILL)
    with Run.create(tmp_path / "run", "rl", Config()), pytest.raises(UserError, match="in use"):
        Run.create(tmp_path / "run", "rl", Config())
    assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Run.create(tmp_path / "file" / "run", "rl", Config())


def _steps(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir() if p.is_dir())


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        for step in (10, 20, 30, 40):
            path = run.checkpoints.save(step, _write, {}, best=step == 10)
        assert _steps(tmp_path) == ["step_000010", "step_000030", "step_000040"]
        assert run.checkpoints.pointed("best") == tmp_path / "checkpoints" / "step_000010"
        assert (path / "model.txt").read_text() == "weights"


@pytest.mark.parametrize("dies", ["best", "latest"])
def test_a_kill_between_checkpoint_and_pointers_loses_no_best(
    tmp_path: Path, dies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, text: str) -> None:
        if path.name == dies:
            raise KeyboardInterrupt
        files.write_text(path, text)

    with Run.create(tmp_path, "rl", Config()) as run:
        run.checkpoints.save(1, _write, {"best": None})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("rlspeech.run.write_text", write)
            run.checkpoints.save(2, _write, {"best": 0.5}, best=True)
        assert _kept(run)["step"] == 1  # step 2 is done once more, and says again that it is the best
        for step in (2, 3, 4, 5):
            run.checkpoints.save(step, _write, {"best": 0.5}, best=step == 2)
        best = run.checkpoints.pointed("best")
        assert best is not None and best.name == "step_000002"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        run.checkpoints.save(1, _write, {"trained": {"a.weight": torch.ones(3)}})
        with pytest.raises(UserError, match="why: .*trained.a.weight"):
            run.checkpoints.save(2, _write, {"trained": {"a.weight": torch.tensor([1.0, value])}})
        assert _kept(run)["step"] == 1 and _steps(tmp_path) == ["step_000001"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        for n in (1, 2):
            run.checkpoints.save(5, _write, {"n": n})
        assert _kept(run)["n"] == 2 and _steps(tmp_path) == ["step_000005"]


def test_half_written_folders_are_cleaned_and_a_parked_one_comes_back(tmp_path: Path) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        run.checkpoints.save(5, _write, {"n": 1})
    folder = tmp_path / "checkpoints"
    (folder / ".tmp-step_000009-1").mkdir()
    (folder / "step_000005").rename(folder / ".old-step_000005")  # died between the two renames
    with Run.create(tmp_path, "rl", Config()) as run:
        assert _kept(run)["n"] == 1 and _steps(tmp_path) == ["step_000005"]


@pytest.mark.parametrize("damage", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.create(tmp_path, "rl", Config()) as run:
        for step in (1, 2):
            run.checkpoints.save(step, _write, {"w": torch.ones(100)})
            run.log(step, a=1)
    broken = tmp_path / "checkpoints" / "step_000002" / damage
    broken.write_bytes(broken.read_bytes()[:20])
    with Run.create(tmp_path, "rl", Config()) as run:
        assert _kept(run)["step"] == 1
        assert [r["step"] for r in read_metrics(run.path / "metrics.jsonl")] == [1]
    assert "step_000002 cannot be read" in capsys.readouterr().err


def test_full_disk_is_said_and_costs_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        _write(folder)
        with open("/dev/full", "w") as file:
            file.write("x" * 10)

    with Run.create(tmp_path, "rl", Config()) as run:
        run.checkpoints.save(1, _write, {"n": 1})
        with pytest.raises(UserError, match="(?s)cannot write.*why: .*full"):
            run.checkpoints.save(2, full, {"n": 2})
        with pytest.raises(ZeroDivisionError):
            run.checkpoints.save(2, lambda folder: 1 / 0, {"n": 2})
        assert _kept(run)["n"] == 1
    assert os.listdir(tmp_path / "checkpoints") and not list((tmp_path / "checkpoints").glob(".tmp*"))


KILL = """
import torch
found = run.latest()
step = found[1]["step"] if found else 0
if found:
    assert bool((found[1]["w"] == step).all()), "torn state"
    assert (found[0] / "model.bin").read_bytes() == bytes([step % 256]) * 200_000, "torn model"
print(os.getpid(), step, flush=True)
while True:
    step += 1
    run.log(step, loss=1.0)
    run.checkpoints.save(step, lambda p: (p / "model.bin").write_bytes(bytes([step % 256]) * 200_000), {{"w": torch.full((50_000,), step)}})
"""


@pytest.mark.slow
def test_killed_while_writing_checkpoints_it_goes_on_from_a_whole_one(tmp_path: Path) -> None:
    rng, seen = random.Random(1), []
    for _ in range(8):
        with script(tmp_path, KILL) as child:
            assert child.stdout is not None and child.stderr is not None
            line = child.stdout.readline()
            assert line, child.stderr.read()
            pid, step = map(int, line.split())
            seen.append(step)
            time.sleep(rng.uniform(0.02, 0.25))
            os.kill(pid, signal.SIGKILL)
            assert "cannot be read" not in child.stderr.read()
    assert seen == sorted(seen) and seen[-1] > 0
    with Run.create(tmp_path / "run", "rl", Config()) as run:
        found = _kept(run)
        assert bool((found["w"] == found["step"]).all())
        steps = [row["step"] for row in read_metrics(run.path / "metrics.jsonl")]
    assert steps == list(range(1, found["step"] + 1))


def test_state_comes_back_with_its_types(tmp_path: Path) -> None:
    state: dict[Any, Any] = {
        "t": torch.randn(3, 4).to(torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "view": torch.arange(10)[::2],
        "a": np.arange(5, dtype=np.uint32),
        "flag": np.array([True]),
        "n": np.float64(2.5),
        "i": 7,
        "f": float("inf"),
        "s": "é",
        "none": None,
        "list": [1, {"x": torch.ones(2)}, (1, "a")],
        3: {0: torch.ones(1), 1: {}},
        "deep.er": {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}},
    }
    save_state(tmp_path, {"all": state})
    back = load_state(tmp_path)["all"]
    assert list(back) == list(state)
    for key in ("t", "scalar", "empty", "view"):
        assert torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype
    assert back["a"].dtype == np.uint32 and (back["a"] == state["a"]).all() and back["flag"][0]
    assert (back["n"], back["i"], back["f"], back["s"], back["none"]) == (2.5, 7, float("inf"), "é", None)
    assert back["list"][2] == (1, "a") and torch.equal(back["list"][1]["x"], torch.ones(2)) and back[3][1] == {}
    assert back["deep.er"]["a.b"] == 0 and back["deep.er"]["a"]["b"] == 1
    assert not [p for p in tmp_path.iterdir() if p.suffix not in {".json", ".safetensors"}]


def test_tied_tensors_and_tags_in_keys(tmp_path: Path) -> None:
    w = torch.ones(3)
    save_state(tmp_path, {"a": w, "b": w, "c": {"__tensor__": "not one"}})
    back = load_state(tmp_path)
    assert torch.equal(back["a"], back["b"]) and back["c"] == {"__tensor__": "not one"}


def test_objects_are_refused_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="state.a.1"):
        save_state(tmp_path, {"a": [1, object()]})
    with pytest.raises(TypeError, match="ndarray"):
        save_state(tmp_path, {"a": np.array([object()])})


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(8, 4) * random.random() * np.random.rand()
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()


def test_two_and_two_steps_equal_four_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = torch.nn.Linear(4, 4)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    whole, optimizer = fresh()
    _train(whole, optimizer, 4)
    model, optimizer = fresh()
    _train(model, optimizer, 2)
    save_state(tmp_path, {"opt": optimizer.state_dict(), "rng": rng_state(), "model": dict(model.state_dict())})
    model, optimizer = fresh()
    state = load_state(tmp_path)
    model.load_state_dict(state["model"])
    load_optimizer_state(optimizer, state["opt"])
    set_rng_state(state["rng"])
    _train(model, optimizer, 2)
    assert torch.equal(model.weight, whole.weight)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match="optimiser"):
        load_optimizer_state(other, state["opt"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="adamw_8bit"):
        make_optimizer(RL(optimizer="adamw_8bit"), list(model.parameters()))


def test_importing_run_does_not_import_torch() -> None:
    code = "import sys, rlspeech.run, rlspeech.log, rlspeech.stats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENV, check=False).returncode == 0
    assert run_module.NEUTRAL.isdisjoint({"lr", "seed", "steps"})
