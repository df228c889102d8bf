"""Two processes that find each other by gloo are one process with the same batch: its losses, weights and rows of the log.

Also where each holds a part of the weights, and where it stopped in between.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
from safetensors.numpy import load_file
from tiny_recognisers import ROWS, write_corpus
from tiny_recognisers import write_model as write_recogniser
from tiny_speech import SMALL_RL, read_rows, write_model, write_pairs
from tiny_tts import write_tts

pytestmark = pytest.mark.slow
RTOL = 1e-5  # what differs is the order in which numbers are added
OWN = ("time", "seconds", "memory_mb")  # columns of a process, a machine, a moment
SMALL = {**SMALL_RL, "prompts_per_step": 4, "group": 2, "micro_batch": 1, "valid_items": 3, "steps": 2, "lr": 1e-3}


def flowse(folder: Path) -> dict[str, Any]:
    gain = {"kind": "gain", "noise": 0.3, "nfe": [2, 2], "bands": 4}
    places = {"data": str(write_pairs(folder / "pairs", count=8)), "model": str(write_model(folder / "model"))}
    what = {"rewards": [{"name": "si_sdr"}, {"name": "estoi", "weight": 0.5}], "guards": ["stoi=1e-4:hold"]}
    sizes = {"hold": {"every": 1}, "explore": gain, "clip_s": 0.8, "updates_per_collection": 2}
    return {"task": "flowse", "kl_beta": 0.1, "clip_range": "auto", **places, **what, **sizes}


def asr(folder: Path) -> dict[str, Any]:
    model, valid = write_recogniser(folder / "model"), write_corpus(folder / "valid", ROWS[:2])
    places = {"model": str(model), "data": str(write_corpus(folder / "data")), "valid": str(valid)}
    what = {"rewards": [{"name": "asr_edits", "scale": "none"}], "truncated": "keep", "reference_in_group": True}
    return {"task": "asr", "sampling": {"max_new_tokens": 8}, "dynamic_sampling": 1, "group": 6, **what, **places}


def tts(folder: Path) -> dict[str, Any]:
    made = write_tts(folder)
    brief: dict[str, Any] = {"name": "tts_duration_ratio", "weight": -1.0, "scale": "none"}
    what: dict[str, Any] = {"rewards": [brief], "guards": [{"name": "tts_stopped"}]}
    what |= {"algo": "grpo+diffro", "diffro": {"reward": made["reward"], "on": "all"}, "kl_beta": 0.05}
    return {"task": "tts", "model": made["model"], "data": made["data"], "valid": made["data"], **what}


def asr_sharded(folder: Path) -> dict[str, Any]:
    return {**asr(folder), "sharding": "fsdp", "lr_schedule": "constant", "valid_every": 1}


def tts_sharded(folder: Path) -> dict[str, Any]:
    what: dict[str, Any] = {"algo": "grpo", "diffro": {}, "lora": {"rank": 2, "alpha": 4.0}, "kl": "k3"}
    what |= {"supervised_weight": 0.1, "gradient_checkpointing": True, "kl_target": 1e-9}
    return {**tts(folder), **what, "sharding": "fsdp", "lr_schedule": "constant", "valid_every": 1}


def start(folder: Path, config: dict[str, Any], out: str, world: int, **env: str) -> list[subprocess.Popen[str]]:
    """``rl`` in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / f"{out}.json").write_text(json.dumps({**SMALL, **config}))
    command, place = ["rlspeech", "rl", "--config", f"{out}.json", "--out", out], {"WORLD_SIZE": str(world), **env}
    places = [{**place, "RANK": str(r), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for r in range(world)]
    how: dict[str, Any] = {"cwd": folder, "text": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return [subprocess.Popen(command, env={**warm.environment(folder), **p}, **how) for p in places]


def texts(processes: list[subprocess.Popen[str]]) -> list[str]:
    try:
        return [p.communicate(timeout=90)[1] for p in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # which ends what it stands for


def numbers(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith(OWN)} for r in read_rows(run)]


@pytest.mark.parametrize("task", [flowse, asr, tts, asr_sharded, tts_sharded])
def test_two_processes_are_one(task: Any, tmp_path: Path) -> None:
    config = task(tmp_path / "given")
    if "sharding" in config:
        texts(start(tmp_path, {**config, "steps": 1}, "two", 2))
    both, alone = start(tmp_path, config, "two", 2), start(tmp_path, config, "one", 1)
    said = texts(both) + texts(alone)
    assert [p.returncode for p in both + alone] == [0, 0, 0], said
    assert task is not flowse or "some are repeated" in said[0]
    assert (
        said[1] == ""
        and ("resumed at step 1" in said[0]) == ("sharding" in config)
        and "a step = 4 prompts x " in said[0]
    )
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert [r.keys() for r in one] == [r.keys() for r in two] and any("grad_norm" in r for r in one)
    one, two = (rows + read_rows(tmp_path / out, "scores.jsonl") for rows, out in ((one, "one"), (two, "two")))
    for ours, theirs in zip(two, one, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=RTOL, abs=1e-6) if isinstance(value, float) else value), name
    kept = [{p.relative_to(tmp_path / out) for p in (tmp_path / out / "samples").rglob("*")} for out in ("two", "one")]
    assert kept[0] == kept[1]
    for name in ("model.safetensors", "state.safetensors"):
        ours, theirs = (load_file(tmp_path / out / "checkpoints/step_000002" / name) for out in ("two", "one"))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if "rng" not in key:
                np.testing.assert_allclose(ours[key], value, rtol=RTOL, atol=1e-6 * max(1.0, np.abs(value).max()))


def test_a_process_that_dies_ends_the_others_and_ctrl_c_all_of_them(tmp_path: Path) -> None:
    config = {**flowse(tmp_path / "given"), "steps": 5000, "save_every": 1, "valid_every": 5000}
    latest, both = tmp_path / "run" / "checkpoints" / "latest", start(tmp_path, config, "run", 2)
    wait_for(latest)
    both[1].kill()
    began_s, (said, other) = time.monotonic(), texts(both)
    assert time.monotonic() - began_s < 60 and both[0].returncode == 2 and both[1].returncode != 0
    assert said.count("error:") == 1 and "another process of this run has ended" in said
    assert "Traceback" not in said + other
    step = int(latest.read_text().strip().removeprefix("step_"))
    assert step > 0 and (tmp_path / "run" / "report.html").is_file()

    again = start(tmp_path, config, "run", 2)  # the same command continues
    wait_for(tmp_path / "run" / "checkpoints" / f"step_{step + 2:06d}")
    again[1].send_signal(signal.SIGTERM)  # to any of them, as Ctrl-C
    said, other = texts(again)
    assert [p.returncode for p in again] == [143, 143] and f"resumed at step {step}" in said and other == ""
    rows = [r["step"] for r in read_rows(tmp_path / "run") if "reward" in r]
    assert latest.read_text().strip() == f"step_{rows[-1]:06d}" and rows == list(range(1, rows[-1] + 1))


def test_a_run_that_was_preempted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    config = {**flowse(tmp_path / "given"), "steps": 6, "save_every": 1}
    whole, both = start(tmp_path, config, "whole", 2), start(tmp_path, config, "run", 2)
    wait_for(latest := tmp_path / "run" / "checkpoints" / "latest")
    for process in both:
        process.send_signal(signal.SIGTERM)
    texts(both)
    stopped = int(latest.read_text().strip().removeprefix("step_"))
    said = texts(start(tmp_path, config, "run", 2)) + texts(whole)
    assert [p.returncode for p in both] == [143, 143] and 0 < stopped < 6 and f"resumed at step {stopped}" in said[0]
    for name in ("model.safetensors", "state.safetensors"):
        one, two = (load_file(tmp_path / at / "checkpoints/step_000006" / name) for at in ("whole", "run"))
        assert all((one[key] == two[key]).all() for key in one.keys() | two.keys() if ".rng." not in key)


def test_what_is_wrong_for_all_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    both = start(tmp_path, {"task": "flowse", "model": str(tmp_path / "empty")}, "run", 2)
    said, other = texts(both)
    assert [p.returncode for p in both] == [2, 2] and said.count("error:") == 1 and other == ""


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not appear")
