"""Paths and data of the reward tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_rows(realdata: Path) -> list[dict[str, object]]:
    """Rows of the real-data manifest, with absolute paths under ``path``."""
    rows = map(json.loads, (realdata / "manifest.jsonl").open())
    return [{**r, "path": str(realdata / r["audio"])} for r in rows]
