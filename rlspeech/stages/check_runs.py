"""What ``rlspeech check`` finds in config files, checkpoints and run folders."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from rlspeech.settings import resolve
from rlspeech.stages.check_rows import Findings, check_metrics, check_scores
from rlspeech.types import UserError
from rlspeech.yamlfile import load_yaml

__all__ = ["check_checkpoint", "check_config", "check_run"]


def check_config(path: Path, schemas: Mapping[str, str], stage: str | None) -> Findings:
    """A config file: every key, every type; without a stage line the stage that it fits."""
    found = Findings("config")
    values, lines = load_yaml(path)  # its own message has the line where the file is not YAML at all
    said = stage or values.get("stage")
    if said is not None and said not in schemas:
        found.add(path, lines.get("stage"), f"no stage is called {said!r}; there are: {', '.join(schemas)}")
        return found
    tried: dict[str, UserError | None] = {}
    for name in [said] if said else schemas:
        tried[name] = _attempt(path, _load(schemas[name]))
    fitting = [name for name, error in tried.items() if error is None]
    if fitting:
        found.facts = {"stage": ", ".join(fitting), "keys": len(lines)}
        return found
    # without a stage line: the stage whose keys the file shares most of is what was meant
    best = said or max(tried, key=lambda name: len(set(values) & set(_load(schemas[name]).model_fields)))
    error = tried[best]
    if error is not None:
        line = next(
            (
                n
                for k, n in sorted(lines.items(), key=lambda kv: -len(kv[0]))
                if f"'{k}'" in error.what or error.what.startswith(f"{k}:")
            ),
            None,
        )
        found.add(
            path,
            line,
            "; ".join(part for part in (f"as rlspeech {best}: {error.what}", error.why, error.try_this) if part),
        )
    return found


def _attempt(path: Path, schema: type[BaseModel]) -> UserError | None:
    try:
        resolve(schema, config_file=path)
    except UserError as error:
        return error
    return None


def _load(target: str) -> type[BaseModel]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(f"rlspeech.{module}"), name)  # type: ignore[no-any-return]


def check_checkpoint(path: Path, found: Findings) -> None:
    """A checkpoint folder: both files there and readable, every weight finite."""
    weights = path / "model.safetensors"
    shards = sorted(path.glob("model-*-of-*.safetensors"))
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        beside = path / "rlspeech.json"  # of models in transformers' layout
        about = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else config
        found.facts |= {"model type": config.get("model_type"), "task": about.get("task")}
    except FileNotFoundError:
        found.add(path, None, "config.json is missing")
    except (OSError, ValueError) as error:
        found.add(path / "config.json", getattr(error, "lineno", None), f"cannot be read: {error}")
    if not weights.is_file() and not shards:
        found.add(path, None, "model.safetensors is missing")
    found.facts.pop("parameters", None)  # of another checkpoint of the same run
    for file in [weights] if weights.is_file() else shards:
        _tensors(file, found)


def _tensors(path: Path, found: Findings) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        count, bad = 0, []
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                count += tensor.numel()
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    bad.append(name)
        found.facts["parameters"] = found.facts.get("parameters", 0) + count
        if bad:
            found.add(path, None, f"NaN or infinite weights in {', '.join(bad[:4])}{' ...' if len(bad) > 4 else ''}")
    except (SafetensorError, OSError, ValueError) as error:
        found.add(path, None, f"cannot be read: {str(error).splitlines()[0]}")


def check_run(path: Path, schemas: Mapping[str, str]) -> Findings:
    """A run folder: complete, numbers that are numbers, and something to go on from."""
    found = Findings("run folder")
    stage = None
    for name in ("config.yaml", "config.resolved.json", "env.json"):
        if not (path / name).is_file():
            found.add(path, None, f"{name} is missing")
    try:
        stage = json.loads((path / "env.json").read_text(encoding="utf-8")).get("stage")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError) as error:
        found.add(path / "env.json", getattr(error, "lineno", None), f"cannot be read: {error}")
    found.facts["stage"] = stage
    resolved = path / "config.resolved.json"
    steps = None
    if stage in schemas and resolved.is_file():
        part = _guard(lambda: check_config(resolved, schemas, stage), resolved)
        found.problems += part.problems
        try:
            steps = json.loads(resolved.read_text(encoding="utf-8")).get("steps")
        except (OSError, ValueError, AttributeError):
            pass
    for name, check in (("metrics.jsonl", check_metrics), ("scores.jsonl", check_scores)):
        if (path / name).is_file():
            check(path / name, found)
    if stage in {"pretrain", "rl"}:
        _checkpoints(path / "checkpoints", found, steps)
    return found


def _guard(check: Callable[[], Findings], path: Path) -> Findings:
    try:
        return check()
    except UserError as error:
        part = Findings("config")
        part.add(path, None, str(error))
        return part


def _checkpoints(folder: Path, found: Findings, steps: int | None) -> None:
    """Is there something to go on from, and is it whole?"""
    kept = sorted(p for p in folder.glob("step_*") if p.is_dir())
    if not kept:
        found.add(folder, None, "no checkpoint: the run starts from the beginning")
        return
    for name in ("latest", "best"):
        pointer = folder / name
        if pointer.is_file():
            target = folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
            if not target.is_dir():
                found.add(pointer, 1, f"names {target.name}, which is not there")
        elif name == "latest":
            found.add(folder, None, "no file 'latest'")
    for half in folder.glob(".tmp-*"):
        found.add(half, None, "a checkpoint that was never finished; the next start removes it")
    for checkpoint in kept:
        check_checkpoint(checkpoint, found)
        for name in ("state.json", "state.safetensors"):
            if not (checkpoint / name).is_file():
                found.add(checkpoint, None, f"{name} is missing: the run cannot go on from here")
    last = int(kept[-1].name.removeprefix("step_") or 0) if kept[-1].name.removeprefix("step_").isdigit() else 0
    found.facts |= {
        "checkpoints": len(kept),
        "last checkpoint": kept[-1].name,
        "goes on from": f"step {last}" + (f" of {steps}" if steps else ""),
    }
