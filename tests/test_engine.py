"""Devices, processes, the local map and the watchdog."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlspeech.engine import Engine, Watchdog, seed_all
from rlspeech.parallel import physical_cores
from rlspeech.types import UserError

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


# ---- engine (torch is imported late: the workers of the map below import this file)


def test_auto_picks_and_says_why() -> None:
    import torch

    engine = Engine()
    assert engine.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert engine.device.type in engine.reason and "\n" not in engine.reason
    if engine.device.type == "cpu":
        assert engine.precision == "fp32"


@pytest.mark.parametrize(
    ("device", "precision"), [("cuda:99", "auto"), ("gpu", "auto"), ("meta", "auto"), ("cpu", "fp16")]
)
def test_what_is_not_there_is_a_user_error(device: str, precision: str) -> None:
    with pytest.raises(UserError) as caught:
        Engine(device, precision)
    assert caught.value.try_this


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_follows_the_precision(precision: str) -> None:
    import torch

    engine = Engine("cpu", precision)
    with engine.autocast():
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == (
            torch.bfloat16 if precision == "bf16" else torch.float32
        )


def test_threads_follow_the_user_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        Engine("cpu")
        assert torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        Engine("cpu")
        assert torch.get_num_threads() == physical_cores() <= (os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


def test_alone_nothing_is_gathered_or_averaged() -> None:
    import torch

    engine, x, weight = Engine("cpu"), {"x": torch.arange(3)}, torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    engine.average_gradients([weight])
    assert torch.equal(weight.grad, torch.ones(2)) and engine.is_main and engine.world == 1
    assert engine.gather(x)[0] is x and engine.agree(x) is x
    code = "import sys; from rlspeech.engine import Engine; Engine('cpu'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True)
    assert "accelerate" not in done.stdout.split()


def test_seed_all_repeats() -> None:
    import torch

    seed_all(5)
    a = torch.rand(3)
    seed_all(5)
    assert torch.equal(a, torch.rand(3))


# the last line: gloo's threads now and then abort a process while its interpreter ends, after all work is done
TWO = """
import json, os, sys, torch
from rlspeech.engine import Engine
e = Engine("cpu")
e.say("from rank 0")
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.arange(12.0).view(4, 3)
for _ in range(3):
    opt.zero_grad()
    (model(data[e.rank * 2 : e.rank * 2 + 2]).pow(2).mean() / 100).backward()
    e.average_gradients(model.parameters())
    opt.step()
found = e.gather({"rank": e.rank, "weight": model.weight.tolist(), "agreed": e.agree(e.rank + 5)})
if e.is_main:
    with open(sys.argv[1], "w") as file:
        json.dump(found, file)
e.gather(0)
sys.stderr.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    import torch

    script, out = tmp_path / "two.py", tmp_path / "out.json"
    script.write_text(TWO)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(out)]
    done = subprocess.run([sys.executable, *command], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("from rank 0") == 1
    got = json.loads(out.read_text())
    assert [g["rank"] for g in got] == [0, 1] and [g["agreed"] for g in got] == [5, 5]
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        opt.zero_grad()
        (model(torch.arange(12.0).view(4, 3)).pow(2).mean() / 100).backward()
        opt.step()
    for g in got:
        torch.testing.assert_close(torch.tensor(g["weight"]), model.weight.detach())


# ---- watchdog


def test_watchdog_speaks_once_a_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stderr, Watchdog(minutes=0.1 / 60) as dog:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        for _ in range(5):
            time.sleep(0.04)
            dog.beat()
        assert dog.dumps == 0
        time.sleep(0.4)
        assert dog.dumps == 1
    assert "test_watchdog_speaks" in (tmp_path / "stderr").read_text()
    assert "no progress" in capsys.readouterr().err
