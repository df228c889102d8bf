"""Devices, processes, the local map and the watchdog."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rlspeech import processes
from rlspeech.engine import Engine, Watchdog, seed_all
from rlspeech.parallel import physical_cores
from rlspeech.types import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_auto_picks_and_says_why() -> None:
    engine = Engine()
    assert engine.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert engine.device.type in engine.reason and "\n" not in engine.reason
    if engine.device.type == "cpu":
        assert engine.precision == "fp32"


@pytest.mark.parametrize(
    ("device", "precision"), [("cuda:99", "auto"), ("gpu", "auto"), ("meta", "auto"), ("cpu", "fp16")]
)
def test_what_is_not_there_is_a_user_error(device: str, precision: str) -> None:
    with pytest.raises(UserError, match="try: "):
        Engine(device, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_follows_the_precision(precision: str) -> None:
    engine = Engine("cpu", precision)
    with engine.autocast():
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == kind


def test_threads_follow_the_user_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_alone_nothing_is_gathered_or_added() -> None:
    x, weight = {"x": torch.arange(3)}, torch.ones(2)
    with Engine("cpu", shared=True) as engine:
        engine.add_up(weight)
        assert torch.equal(weight, torch.ones(2)) and engine.is_main and engine.world == 1
        assert engine.gather(x)[0] is x and engine.agree(x) is x and engine.share([1, 2, 3], 2) == [1, 2, 3]


TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        *(({"RANK": "x"}, "RANK=x"), ({"RANK": "1"}, "RANK=1")),
        *(({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"), ({"RANK": "2", "WORLD_SIZE": "2"}, "WORLD_SIZE=2")),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", **TWO}, "DeepSpeed"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision"),
        (TWO, "one process"),
    ],
)
def test_processes_that_cannot_be_used_are_refused(
    found: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"(?s){said}.*try: "):
        Engine("cpu")


def test_a_config_that_asks_for_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MIXED_PRECISION": "no", "USE_FSDP": "false", "DYNAMO_BACKEND": "NO"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert Engine("cpu").world == 1


class Store(dict[str, int]):
    """Counters, as of a store in which processes meet."""

    def add(self, name: str, count: int) -> int:
        self[name] = self.get(name, 0) + count
        return self[name]


def test_a_process_without_a_sign_of_life_ends_the_one_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def end(code: int) -> None:
        ended.set()
        raise SystemExit(code)

    monkeypatch.setattr(processes, "BEAT_S", 0.01)
    monkeypatch.setattr(processes, "SILENT_S", 0.1)
    monkeypatch.setattr(os, "_exit", end)
    store = Store()
    beats = [processes.Heartbeat(store, rank, 2) for rank in range(2)]
    for beat in beats:
        beat.start()
    assert not ended.wait(0.4)  # both live
    beats[1]._end()
    assert ended.wait(5) and "number 1" in capsys.readouterr().err


def test_an_error_is_printed_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.0)
    store, own, lost = Store(), UserError("no such model"), processes.LostProcess("closed")
    first, second, third = (processes.Heartbeat(store, rank, 3) for rank in range(3))
    assert first._speaks(own) and not second._speaks(own) and not third._speaks(lost)
    alone = [processes.Heartbeat(Store(), rank, 3) for rank in (1, 2)]
    alone[1].store = alone[0].store
    assert [beat._speaks(lost) for beat in alone] == [True, False]  # of a process that was killed, one tells


def test_seed_all_repeats() -> None:
    seed_all(5)
    a = torch.rand(3)
    seed_all(5)
    assert torch.equal(a, torch.rand(3))


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
