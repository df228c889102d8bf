"""``rl`` on several processes: the log is of all of them, and a validation says what one process would."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_speech import SMALL_RL, read_rows, write_model, write_pairs

from rlspeech.config import RL, Exploration, GuardSpec, RewardSpec
from rlspeech.stages import rl

SCRIPT = """
import json, os, sys
from pathlib import Path
from rlspeech.config import RL
from rlspeech.stages import rl

real, seen = rl.merged, []

def merged(parts):
    seen.append([{**row, "": counts[""]} for row, counts in parts])
    return real(parts)

if __name__ == "__main__":
    rl.merged = merged
    summary = rl.run(RL.model_validate_json(sys.argv[1]))
    Path(sys.argv[2] + os.environ["RANK"]).write_text(json.dumps([seen, summary["stopped"], summary["after"]]))
"""


def validations(run: Path) -> list[dict[str, Any]]:
    found = [r for r in read_rows(run) if "valid/reward" in r]
    return [{k: v for k, v in r.items() if k.startswith("valid/")} for r in found]


def test_rows_of_processes_become_one() -> None:
    one = {"reward": 1.0, "groups": 2, "ratio_max_gap": 1e-6, "grad_norm": 0.1, "seconds/reward": 2.0, "wer": math.nan}
    two = {**one, "reward": 2.0, "groups": 3, "ratio_max_gap": 1e-5, "seconds/reward": 1.0, "wer": 0.5, "kl": 0.25}
    made = rl.merged([(one, {"": 8, "reward": 6, "wer": 0}), (two, {"": 8, "reward": 2, "wer": 4})])
    # the reward of those that could be scored
    assert made == {**one, "reward": 1.25, "groups": 5, "ratio_max_gap": 1e-5, "wer": 0.5, "kl": 0.25}
    assert rl.merged([(one, {"": 8})]) is one


@pytest.mark.slow
def test_two_processes_log_what_both_did_and_validate_as_one_would(tmp_path: Path) -> None:
    data, script = str(write_pairs(tmp_path / "pairs")), tmp_path / "two.py"
    script.write_text(SCRIPT)

    what = {"data": data, "valid": data, "model": str(write_model(tmp_path / "model")), "clip_s": 0.8, "lora": None}
    what |= {"rewards": [RewardSpec(name=n, scale="none") for n in ("si_sdr", "estoi")], "valid_items": 5}
    what |= {"explore": Exploration(noise=0.3, nfe=(2, 2), bands=4), "guards": [GuardSpec(name="stoi")]}

    def config(out: str, **changes: Any) -> RL:
        return RL(**{**SMALL_RL, **what, "max_minutes": 60, "out": str(tmp_path / out), **changes})

    root = Path(rl.__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command = [sys.executable, *launch, config("two").model_dump_json(exclude_unset=True), str(tmp_path / "rank")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (steps, stopped, after), other = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert steps == other[0] and stopped == other[1] == "all steps done" and after == other[2]

    logged = [r for r in read_rows(tmp_path / "two") if "lr" in r]
    assert [r["step"] for r in logged] == [1, 2] == list(range(1, len(steps) + 1))
    for row, (a, b) in zip(logged, steps, strict=True):
        assert a["reward"] != b["reward"] and row["reward"] == pytest.approx((a["reward"] + b["reward"]) / 2)
        assert row["groups"] == a["groups"] + b["groups"] == 4 and row["grad_norm"] == a["grad_norm"] == b["grad_norm"]
        assert row["seconds/reward"] == max(a["seconds/reward"], b["seconds/reward"])

    rl.run(config("one", steps=1, valid_every=1))
    rl.run(config("after", steps=1, valid_every=1, model=str(tmp_path / "two" / "checkpoints" / "step_000002")))
    made = validations(tmp_path / "two")
    assert made[0] == validations(tmp_path / "one")[0] and made[1] == validations(tmp_path / "after")[0] != made[0]
    scored = [json.loads(line) for line in (tmp_path / "two" / "scores.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (tmp_path / "one" / "scores.jsonl").read_text().splitlines()]
    assert scored[:5] == alone[:5] and len(scored) == 10
    assert len(list((tmp_path / "two" / "samples" / "step_000002").glob("*.flac"))) == 5
