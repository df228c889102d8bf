"""What a run's folder tells beside its scores: where it comes from, what it took, which metric is what to it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlspeech.stages.curves import Kind
from rlspeech.stages.past import Past, number, shown_path
from rlspeech.stats import Interval
from rlspeech.types import UserError

__all__ = [
    "commands_of",
    "cost_of",
    "facts_of",
    "help_of",
    "last_means",
    "quoted",
    "roles_of",
    "validated",
    "versions_of",
]

TOGETHER = "all rewards together, as the run weighs them"


def validated(run: Past) -> list[int]:
    """The steps at which something was validated, rising."""
    return sorted({int(row["step"]) for row in run.metrics if any(name.startswith("valid/") for name in row)})


def last_means(run: Past, step: int | None = None) -> dict[str, Interval]:
    """Means of the last validation, or of that at ``step``, as ``metrics.jsonl`` has them."""
    found: dict[str, Interval] = {}
    for row in run.metrics:
        if step is not None and row["step"] != step:
            continue
        for name, value in row.items():
            head, _, metric = name.partition("/")
            if (
                head == "valid"
                and (mean := number(value)) is not None
                and not (name[-3:] in ("_lo", "_hi") and name[:-3] in row)
            ):
                lo, hi = (math.nan if (end := number(row.get(name + e))) is None else end for e in ("_lo", "_hi"))
                found[metric] = Interval(mean, lo, hi, 2 if math.isfinite(lo) else 1)
    return found


def roles_of(runs: Sequence[Past]) -> dict[str, Kind]:
    """Metric -> rewarded or watched, by any of the runs."""
    roles: dict[str, Kind] = {}
    for kind, key in (("guard", "guards"), ("reward", "rewards")):
        for run in runs:
            for spec in _named(run.config.get(key)):
                roles[spec["name"]] = kind  # type: ignore[assignment]
    return {**roles, "reward": "reward"}


def _named(specs: Any) -> list[dict[str, Any]]:
    return (
        [s for s in specs if isinstance(s, dict) and isinstance(s.get("name"), str)] if isinstance(specs, list) else []
    )


def help_of(metric: str) -> str:
    """What a metric is, where the registry knows it."""
    from rlspeech.rewards.base import column_of

    try:
        return TOGETHER if metric == "reward" else column_of(metric).help
    except UserError:
        return ""


def facts_of(run: Past) -> dict[str, str]:
    """Where a run comes from: data, seed, checkpoints, command; what is not known is left out."""
    config, env, argv = run.config, run.env, _command(run)
    found: dict[str, Any] = {}
    if run.stage in ("rl", "pretrain"):
        found = {
            "state": run.state(),
            "starts from": config.get("model") if run.stage == "rl" else config.get("init"),
            **_trained_on(run),
        }
        kept = next((n for n in ("best", "latest") if (run.path / "checkpoints" / n).is_file()), None)
        found["checkpoint"] = (
            shown_path(run.path / "checkpoints") / _pointed(run.path / "checkpoints" / kept) if kept else None
        )
    elif run.stage == "eval":
        models = config.get("models")
        found = {
            "data": config.get("data") or "the embedded test set",
            **{k: config.get(k) for k in ("normaliser", "recogniser") if config.get("task") in ("asr", "tts")},
        }
        found |= {f"model {name}": path for name, path in models.items()} if isinstance(models, dict) else {}
    else:
        path = config.get("path")
        found = {
            "files": " ".join(map(str, path)) if isinstance(path, list) else path,
            "references": config.get("target"),
            "transcripts": config.get("text"),
            "hypotheses": config.get("hypotheses"),
            "scores": shown_path(run.scores_path),
        }
    found |= {
        "seed": config.get("seed"),
        "started": env.get("started"),
        "device": env.get("device"),
        "commit": env.get("git_commit"),
        "command": shlex.join(argv) if argv else None,
    }
    return {k: str(v) for k, v in found.items() if v not in (None, "")}


def _trained_on(run: Past) -> dict[str, Any]:
    config = run.config
    if not config:
        return {}
    weights = [
        f"{s.get('weight', 1):g} x {s['name']}"
        for s in _named(config.get("rewards"))
        if number(s.get("weight", 1)) is not None
    ]
    drops = [
        s["name"] + ("" if number(s.get("max_drop")) is None else f" (may drop by {s['max_drop']:g})")
        for s in _named(config.get("guards"))
    ]
    held = "held back from the data" if config.get("data") else "of the embedded corpus"
    return {
        "data": config.get("data") or "the embedded corpus",
        "validation": config.get("valid") or held,
        "rewarded": ", ".join(weights),
        "watched": ", ".join(drops),
    }


def _command(run: Past) -> list[str]:
    """As it was typed."""
    argv = run.env.get("argv")
    return ["rlspeech", *map(str, argv[1:])] if isinstance(argv, list) and len(argv) > 1 else []


def commands_of(run: Past) -> list[str]:
    """What is typed next."""
    task, here, again = str(run.config.get("task", "flowse")), quoted(run.path), _command(run)
    which = "" if task == "flowse" else f" --task {shlex.quote(task)}"
    if run.stage == "eval":
        models = run.config.get("models")
        last = shlex.quote(str(list(models.values())[-1])) if isinstance(models, dict) and models else None
        return [*([_use(task, which, last)] if last else []), f"rlspeech report {here} OTHER_RUN"]
    model = shlex.quote(str(run.config.get("model", "embedded")))
    found = [
        f"rlspeech eval{which} --model before={model} --model after={here}",
        _use(task, which, here),
        f"rlspeech report {here} OTHER_RUN",
    ]
    steps = run.config.get("steps")
    if isinstance(steps, int) and run.step < steps and again:
        found.insert(0, shlex.join(again))  # the same command goes on
    return found


def _use(task: str, which: str, model: str) -> str:
    verb = {"asr": "transcribe RECORDINGS", "tts": "speak TEXT"}.get(task, f"enhance RECORDINGS{which}")
    return f"rlspeech {verb} --model {model}"


def _pointed(path: Path) -> str:
    try:
        return Path(path.read_text(encoding="utf-8").strip()).name or path.name
    except (OSError, UnicodeDecodeError):
        return path.name


def cost_of(run: Past) -> dict[str, str]:
    """Seconds and memory by phase, from the rows."""
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    for row in run.metrics:
        for name, value in row.items():
            head, _, phase = name.partition("/")
            if (v := number(value)) is None or not phase:
                continue
            if head == "seconds":
                seconds[phase] = seconds.get(phase, 0.0) + v
            elif head == "memory_mb":
                memory[phase] = max(memory.get(phase, 0.0), v)
    total = sum(seconds.values())
    found = {}
    if total > 0:
        found["all phases"] = f"{total:.1f} s" + (f", {total / run.step:.2f} s a step" if run.step else "")
        found |= {
            phase: f"{s:.1f} s ({100 * s / total:.0f} %)" for phase, s in sorted(seconds.items(), key=lambda kv: -kv[1])
        }
    found |= {f"memory, {phase}": f"{mb:.0f} MB at most" for phase, mb in memory.items()}
    earlier = run.env.get("earlier")
    if isinstance(earlier, list) and earlier:
        found["attempts"] = f"{len(earlier) + 1}: interrupted and gone on with"
    return found


def versions_of(run: Past) -> dict[str, Any]:
    """Of packages and of what scored."""
    versions, rewards = run.env.get("versions"), run.env.get("rewards")
    scorers = (
        {k: v["version"] for k, v in rewards.items() if isinstance(v, dict) and "version" in v}
        if isinstance(rewards, dict)
        else {}
    )
    return {
        **(versions if isinstance(versions, dict) else {}),
        **({"python": run.env["python"]} if "python" in run.env else {}),
        **scorers,
    }


def quoted(path: Path) -> str:
    """A path as it is typed."""
    return shlex.quote(str(shown_path(path)))
