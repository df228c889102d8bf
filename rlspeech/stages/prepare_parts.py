"""What the stages that make sets share: their folder, their manifests, their summary."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rlspeech.data.jsonl import dumps, write_text
from rlspeech.data.manifest import write_manifest
from rlspeech.types import UserError, Utterance

__all__ = ["make_folder", "notes_of", "shown", "summary_of", "write_set"]


def make_folder(out: str | None, name: str) -> Path:
    """The output folder as an absolute path, ``data/NAME`` by default. Raises ``UserError`` where it cannot be made."""
    path = Path(os.path.abspath(out or os.path.join("data", name)))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path}", error.strerror or str(error), "name another folder with --out"
        ) from error
    return path


def shown(out: Path) -> str:
    """A folder as a person would type it."""
    return os.path.relpath(out) if out.is_relative_to(Path.cwd()) else str(out)


def write_set(path: Path, rows: list[Utterance], meta: dict[str, Any], dropped: int = 0) -> dict[str, Any]:
    """Write a manifest; its entry in the summary."""
    counts = {"rows": len(rows), "hours": round(sum(u.duration for u in rows) / 3600, 6), "dropped": dropped}
    write_manifest(path, rows, meta | counts)
    return {"path": str(path)} | counts


def summary_of(
    source: str, out: Path, manifests: dict[str, Any], failed: list[dict[str, Any]], following: str, start_s: float
) -> dict[str, Any]:
    """The summary with the keys of ``prepare.run``; rows that failed go to ``OUT/dropped.jsonl``."""
    write_text(out / "dropped.jsonl", "".join(dumps(row) + "\n" for row in failed))
    reasons: dict[str, int] = {}
    for row in failed:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return {
        "source": source,
        "out": str(out),
        "manifests": manifests,
        "recipe": None,
        "dropped": reasons,
        "next": following,
        "seconds": round(time.monotonic() - start_s, 1),
    }


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What was dropped, for the table."""
    return [
        f"dropped: {n} {reason}; see {os.path.join(summary['out'], 'dropped.jsonl')}"
        for reason, n in summary["dropped"].items()
    ]
