"""Paths and data of the reward tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_rows() -> list[dict[str, object]]:
    """Rows of the real-data manifest, with absolute paths under ``path``."""
    root = os.environ.get("RLSPEECH_REALDATA")
    if not root or not (Path(root) / "manifest.jsonl").is_file():
        pytest.skip("RLSPEECH_REALDATA is not set")
    rows = [json.loads(line) for line in (Path(root) / "manifest.jsonl").open()]
    return [{**r, "path": str(Path(root) / r["audio"])} for r in rows]
