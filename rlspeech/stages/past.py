"""Runs as their folders tell them: settings, curves, scores by item and kept audio, whole or torn, read and never written.

What ``rlspeech report`` knows of a run is what lies on disk: no lock is taken, nothing is computed again, a run may still be going on. A
file that is missing or torn leaves its part empty and a remark; what is read is someone else's text.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlspeech.files import safe_name
from rlspeech.log import several
from rlspeech.tracking import read_metrics
from rlspeech.types import UserError

__all__ = ["Past", "find_sound", "flat", "number", "open_pasts", "past_of", "shown_path"]

STAGES = ("rl", "eval", "reward", "pretrain")
MARKS = (
    "config.resolved.json",
    "metrics.jsonl",
    "scores.jsonl",
    "env.json",
)  # a folder with one of them holds, or held, a run
Row = dict[str, Any]


@dataclass(slots=True)
class Past:
    """One run.

    Args:
        name: what it is called beside others.
        path: its folder.
        stage: rl, eval, reward or pretrain.
        config: as resolved; of ``reward`` the settings that it noted.
        env: versions, device, when it started.
        metrics: rows of ``metrics.jsonl``.
        scores: system -> key -> row of ``scores.jsonl``.
        meta: ``scores.meta.json``.
        summary: ``metrics.json`` of an evaluation.
        notes: what is missing or torn.
        scores_path: the file that ``scores`` come from.
    """

    name: str
    path: Path
    stage: str
    config: Row = field(default_factory=dict)
    env: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    scores: dict[str, dict[str, Row]] = field(default_factory=dict)
    meta: Row = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scores_path: Path = Path("scores.jsonl")

    @property
    def seed(self) -> int:
        """Of the run, for resampling."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) and seed >= 0 else 0

    @property
    def step(self) -> int:
        """The last one that left a row."""
        return max((int(r["step"]) for r in self.metrics), default=0)

    def state(self) -> str:
        """How far it came, in words."""
        if self.stage == "reward":
            return f"{several(sum(map(len, self.scores.values())), 'file')} scored"
        if self.stage == "eval":
            models = self.config.get("models")
            missing = [m for m in models if m not in self.scores] if isinstance(models, dict) else []
            return f"without {', '.join(missing)}" if missing else "done" if self.summary else "not finished"
        steps, why = self.config.get("steps"), self.env.get("stopped")
        reached = f"step {self.step} of {steps}" if isinstance(steps, int) else f"step {self.step}"
        return f"{reached}: {why}" if isinstance(why, str) and why else reached

    def sounds(self, folder: str) -> dict[str, dict[str, Path]]:
        """Kept audio: name of a folder under ``samples`` or ``audio`` -> stem -> file."""
        try:
            places = sorted(p for p in (self.path / folder).iterdir() if p.is_dir() and not p.is_symlink())
        except OSError:
            return {}
        return {p.name: {f.stem: f for f in sorted(p.glob("[!.]*.flac")) if not f.is_symlink()} for p in places}

    def higher_is_better(self, metric: str) -> bool:
        """Direction of a metric: as the run noted it, else the registry's, else up."""
        said: Any = None
        if self.stage == "eval":
            said = _at(self.summary, "higher_is_better", metric)
        elif self.stage == "reward":
            noted = (_at(self.meta, "systems", s, "metrics", metric, "higher_is_better") for s in self.scores)
            said = next((v for v in noted if v is not None), None)
        elif self.stage == "rl":
            said = _at(self.env, "rewards", metric, "higher_is_better")
        if isinstance(said, bool):
            return said
        from rlspeech.rewards.base import column_of

        try:
            return column_of(metric).higher_is_better
        except UserError:  # a function that is not here, or a name of the run's own
            return True


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def open_pasts(given: Sequence[str]) -> list[Past]:
    """Read run folders, each as PATH or NAME=PATH.

    Returns:
        one a folder, with names that differ.

    Raises:
        UserError: something that is no run folder, or the same one twice.
    """
    runs = [_open(text) for text in given]
    places = [p.scores_path if p.stage == "reward" else p.path for p in runs]
    twice = next((str(p) for i, p in enumerate(places) if p in places[:i]), None)
    if twice:
        raise UserError(f"{twice} is there twice", "a run cannot be compared with itself", "leave one out")
    for depth in range(2, 5):  # runs/a/rl and runs/b/rl are a/rl and b/rl
        names = [p.name for p in runs]
        for p in runs:
            if names.count(p.name) > 1 and f"={p.path}" not in given:
                p.name = "/".join(p.path.parts[-depth:])
    for i, p in enumerate(runs):
        if p.name in [q.name for q in runs[:i]]:
            p.name = f"{p.name} ({i + 1})"
    return runs


def past_of(path: Path, stage: str, config: BaseModel) -> Past:
    """A run that is about to be shown by its own stage: its settings and its environment."""
    return Past(path.name, path, stage, config.model_dump(mode="json"), _json_file(path / "env.json", []))


def _open(text: str) -> Past:
    label, equals, rest = text.partition("=")
    named = equals == "=" and bool(label and rest) and not Path(text).exists()
    path = Path(os.path.abspath(rest if named else text))
    single = path.is_file() and path.name.endswith("scores.jsonl")
    folder = path.parent if single else path
    scores = path if single else folder / "scores.jsonl"
    if not single and not (folder.is_dir() and any((folder / n).is_file() for n in MARKS)):
        raise UserError(f"{text} is not a run folder", *_why_not(path))
    notes: list[str] = []
    run = Past(
        "",
        folder,
        "",
        _json_file(folder / "config.resolved.json", notes),
        _json_file(folder / "env.json", notes),
        notes=notes,
    )
    run.metrics = [] if single else read_metrics(folder / "metrics.jsonl")
    run.scores_path, run.scores = scores, _score_rows(scores, notes)
    run.meta = _json_file(scores.with_suffix(".meta.json"), notes)
    run.summary = {} if single else _json_file(folder / "metrics.json", notes)
    run.stage = "reward" if single else _stage(run, text)
    if run.stage == "reward":
        run.config = next(
            (dict(s) for name in run.scores if isinstance(s := _at(run.meta, "systems", name, "settings"), dict)), {}
        )
    elif not run.config:
        notes.append("config.resolved.json is missing or torn: its settings are not known")
    own = scores.name.removesuffix("scores.jsonl").rstrip(".") if single else ""
    run.name = label if named else own or folder.name
    return run


def _why_not(path: Path) -> tuple[str, str]:
    """The reason, and what may have been meant."""
    if not path.exists():
        return "there is nothing there", "check the path"
    if path.is_file():
        return "it is a file", "the folder that --out named"
    if path.parent.name == "checkpoints":
        return "it is a checkpoint", f"rlspeech report {shown_path(path.parent.parent)}"
    if (path / "probe.json").is_file():
        return (
            "it holds a probe, whose table was printed and is in probe.json",
            "rlspeech rl without --probe makes a run",
        )
    inside = sorted(p for p in path.iterdir() if p.is_dir() and any((p / n).is_file() for n in MARKS))
    if inside:
        some = " ".join(str(shown_path(p)) for p in inside[:3])
        return f"but it holds {len(inside)} of them", f"rlspeech report {some}{' ...' if len(inside) > 3 else ''}"
    return f"it has none of {', '.join(MARKS)}", "a folder that rlspeech pretrain, rl, eval or reward has written"


def _stage(run: Past, text: str) -> str:
    """As the run says, or by the settings that only one stage has."""
    said = run.env.get("stage")
    if said in STAGES:
        return str(said)
    if isinstance(said, str):
        raise UserError(
            f"{text} cannot be reported on", f"it holds a run of {said}", f"runs of {', '.join(STAGES)} can"
        )
    for key, stage in (("algo", "rl"), ("models", "eval"), ("ema", "pretrain")):
        if key in run.config:
            return stage
    if run.meta.get("systems") is not None and not run.metrics or not (run.config or run.metrics):
        return "reward"
    return "rl" if any("reward" in r or any(k.startswith("delta/") for k in r) for r in run.metrics) else "pretrain"


def _json_file(path: Path, notes: list[str]) -> Row:
    """An object of a JSON file; empty where it is missing, with a remark where it is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: {str(error)[:200]}")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{path.name} cannot be read: it holds no object")
        return {}
    return found


def _score_rows(path: Path, notes: list[str]) -> dict[str, dict[str, Row]]:
    """System -> key -> row, the last of each; lines that are torn are counted in a remark."""
    found: dict[str, dict[str, Row]] = {}
    torn = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            torn += bool(line.strip())
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            system = str(row.get("system", ""))
            found.setdefault(system, {})[row["key"]] = {**found.get(system, {}).get(row["key"], {}), **row}
        else:
            torn += 1
    if torn:
        notes.append(f"{torn} lines of {path.name} cannot be read and are left out")
    return found


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; entries of a list that have names are found by them, so that their order does not matter."""
    if isinstance(tree, list) and tree and all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in tree):
        if len({v["name"] for v in tree}) == len(tree):
            tree = {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in tree}
    if isinstance(tree, dict) and tree:
        return {
            k: v
            for name, sub in tree.items()
            for k, v in flat(sub, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    return {prefix: tree}


def find_sound(files: Mapping[str, Path], key: str) -> Path | None:
    """The file that holds an item's audio; file names are keys made safe."""
    for stem in (key, safe_name(key)):
        if stem in files:
            return files[stem]
    wanted = _folded(key)
    return next((path for stem, path in files.items() if _folded(stem) == wanted), None)


def _folded(name: str) -> str:
    return re.sub(r"\W", "_", name)[:110]


def shown_path(path: Path) -> Path:
    """As a person here would write it: relative below the working directory."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path
