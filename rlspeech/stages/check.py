"""``rlspeech check PATH``: mistakes in manifests, mixture recipes, config files, score files, checkpoints and run folders, by line.

What a path is follows from its name and its first row. Nothing is decoded beyond its header and nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.data.manifest import ASIDE_NAMES
from rlspeech.stages.check_rows import Findings, check_jsonl, check_recipe
from rlspeech.stages.check_runs import check_checkpoint, check_config, check_run
from rlspeech.types import UserError

__all__ = ["run"]

SHOWN = 50


def run(path: Path, schemas: Mapping[str, str], *, stage: str | None = None, json_mode: bool = False) -> dict[str, Any]:
    """Check one path.

    Args:
        path: file or folder.
        schemas: stage -> ``module:Class`` of its config, for config files.
        stage: of a config file that does not say its own.
        json_mode: tables go to stderr.

    Returns:
        ``path``, ``kind``, ``problems`` (path, line or None, message), ``facts``.

    Raises:
        UserError: nothing there, or nothing that this project knows.
    """
    with log.waiting(f"checking {path}"):
        found = _look(path, schemas, stage)
    summary = {"path": str(path), "kind": found.kind, "problems": found.problems, "facts": found.facts}
    if found.problems:
        for p in found.problems[:SHOWN]:
            log.error(f"{p['path']}{':' + str(p['line']) if p['line'] else ''}: {p['message']}")
        if len(found.problems) > SHOWN:
            log.error(f"and {len(found.problems) - SHOWN} more (all of them with --json)")
        log.say(f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)} in {path} ({found.kind})")
    else:
        log.table(f"{path}: {found.kind}, no problems", ["", ""], [[k, _short(v)] for k, v in found.facts.items()])
    return summary


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _look(path: Path, schemas: Mapping[str, str], stage: str | None) -> Findings:
    if path.is_dir():
        return _folder(path, schemas)
    if not path.is_file():
        raise UserError(f"{path} does not exist", "", "rlspeech check MANIFEST, CONFIG or RUN_FOLDER")
    if path.suffix == ".jsonl":
        return check_jsonl(path)
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None  # the config check says what is wrong, and where
        if isinstance(content, dict) and {"clean", "noise"} <= set(content):
            return check_recipe(path, content)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return check_config(path, schemas, stage)
    raise UserError(
        f"{path} is nothing that can be checked",
        f"its name ends in {path.suffix or 'nothing'}",
        "a manifest (.jsonl), mix.json, a config (.yaml, .json) or a run folder",
    )


def _folder(path: Path, schemas: Mapping[str, str]) -> Findings:
    if any((path / name).exists() for name in ("config.resolved.json", "env.json", "checkpoints")):
        return check_run(path, schemas)
    if (path / "model.safetensors").is_file() or (path / "config.json").is_file():
        found = Findings("checkpoint")
        check_checkpoint(path, found)
        return found
    inside = [p for p in sorted(path.glob("*.jsonl")) if p.name not in ASIDE_NAMES] + sorted(path.glob("mix.json"))
    if not inside:
        raise UserError(
            f"{path} is nothing that can be checked",
            "it holds neither a run, a checkpoint, nor manifests",
            "rlspeech check MANIFEST, CONFIG or RUN_FOLDER",
        )
    found = Findings("data folder")
    named: set[str] = set()  # manifests that the recipe reads are checked with it
    for file in reversed(inside):
        if file.name in named:
            continue
        part = _look(file, schemas, None)
        named |= {Path(str(n)).name for n in part.facts.pop("manifests", [])}
        found.problems += part.problems
        found.facts |= {f"{file.name}: {k}": v for k, v in part.facts.items()}
    return found
