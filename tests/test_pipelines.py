"""The one-liners of ``examples/pipelines.sh``, at tiny size, and what they rely on: a pipe is a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Environment with ``rlspeech`` on PATH."""
    path = os.pathsep.join([str(warm.shim(tmp_path / "bin")), str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = os.environ.get("RLSPEECH_CACHE", str(tmp_path / "cache"))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "RLSPEECH_CACHE": cache}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_pipeline_runs(tmp_path: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "pipelines.sh")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**env, "TINY": "1", "OUT": "out"},
    )
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
