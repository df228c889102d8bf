"""The one-liners of ``examples/pipelines.sh``, at tiny size, and what they rely on: a pipe is a pipe."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_pipeline_runs(tmp_path: Path) -> None:
    env = warm.environment(tmp_path) | {"TINY": "1", "OUT": "out"}
    call = ["bash", str(ROOT / "examples" / "pipelines.sh")]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("== ")]
    assert said == [], "quiet is quiet"
    lines = done.stdout.splitlines()
    assert "the test set has no mistakes" in lines and "avse-lr-no-sisnr: supervised_weight: 0.0" in lines
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(1 <= r["dnsmos_fast_ovrl"] <= 5 for r in rows)
    mean = sum(r["dnsmos_fast_ovrl"] for r in rows) / 2
    assert any(line.replace(".", "").isdigit() and abs(float(line) - mean) < 1e-3 for line in lines)
    assert len(list((tmp_path / "out" / "enhanced").glob("*.flac"))) == 2
