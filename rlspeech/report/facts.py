"""What a run's folder tells beside its scores: where it comes from, what it took, what is typed next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlspeech.config import Evaluate
from rlspeech.files import safe_name
from rlspeech.report.compare import Comparison
from rlspeech.report.runs import INPUT, RunRecord, at, number, shown_path
from rlspeech.report.systems import System

__all__ = ["commands_of", "commands_of_several", "cost_of", "facts_of", "specs_of", "versions_of"]

TRAINED = ("rl", "pretrain")


def specs_of(specs: Any) -> list[dict[str, Any]]:
    """The rewards or guards of a config that have names."""
    return (
        [s for s in specs if isinstance(s, dict) and isinstance(s.get("name"), str)] if isinstance(specs, list) else []
    )


def facts_of(made: Comparison, run: RunRecord) -> dict[str, str]:
    """Where a run comes from: data, seed, checkpoints, command; what is not known is left out."""
    config, env = run.config, run.env
    found: dict[str, Any] = {s.label: f"step {int(s.name[5:])}" for s in made.systems if run.stage == "rl" and s.rows}
    if run.stage in TRAINED:
        found |= {
            "state": run.state(),
            "starts from": config.get("model" if run.stage == "rl" else "init"),
            **_trained_on(run),
        }
        folder = run.path / "checkpoints"
        pointer = next((folder / n for n in ("best", "latest") if (folder / n).is_file()), None)
        found["checkpoint"] = shown_path(folder) / _pointed(pointer) if pointer else None
    elif run.stage == "eval":
        models = config.get("models")
        found |= {"data": config.get("data") or "the embedded test set"}
        found |= {k: run.summary.get(k) for k in ("normaliser", "recogniser")}
        found |= {f"model {name}": path for name, path in models.items()} if isinstance(models, dict) else {}
    else:
        path = config.get("path")
        found |= {"files": " ".join(map(str, path)) if isinstance(path, list) else path}
        found |= {label: config.get(k) for label, k in (("references", "target"), ("transcripts", "text"))}
        found |= {"hypotheses": config.get("hypotheses"), "scores": shown_path(run.scores_path)}
    found |= {"seed": config.get("seed"), "started": env.get("started"), "device": env.get("device")}
    found |= {"commit": env.get("git_commit"), "command": shlex.join(_command(run))}
    return {k: str(v) for k, v in found.items() if v not in (None, "")}


def _trained_on(run: RunRecord) -> dict[str, Any]:
    config = run.config
    if not config:
        return {}
    rewards = [s for s in specs_of(config.get("rewards")) if number(s.get("weight", 1)) is not None]
    guards = {s["name"]: number(s.get("max_drop")) for s in specs_of(config.get("guards"))}
    return {
        "data": config.get("data") or "the embedded corpus",
        "validation": config.get("valid")
        or ("held back from the data" if config.get("data") else "of the embedded corpus"),
        "rewarded": ", ".join(f"{s.get('weight', 1):g} x {s['name']}" for s in rewards),
        "watched": ", ".join(n if drop is None else f"{n} (may drop by {drop:g})" for n, drop in guards.items()),
    }


def _pointed(path: Path) -> str:
    try:
        return Path(path.read_text(encoding="utf-8").strip()).name or path.name
    except (OSError, UnicodeDecodeError):
        return path.name


def _command(run: RunRecord) -> list[str]:
    """The command as it was typed."""
    argv = run.env.get("argv")
    return ["rlspeech", *map(str, argv[1:])] if isinstance(argv, list) and len(argv) > 1 else []


def _quoted(path: Path) -> str:
    return shlex.quote(str(shown_path(path)))


def _option(run: RunRecord) -> str | None:
    """``--task`` as ``eval`` takes it; None of a task that is not evaluated."""
    task = str(run.config.get("task", Evaluate().task))
    try:
        Evaluate(task=task)
    except ValidationError:
        return None
    return "" if task == Evaluate().task else f" --task {shlex.quote(task)}"


def commands_of(run: RunRecord) -> list[str]:
    """What is typed next."""
    beside = run.scores_path if run.scores_path.name != "scores.jsonl" else run.path
    found, option = [f"rlspeech report {_quoted(beside)} OTHER_RUN"], _option(run)
    if run.stage == "reward":
        return found
    models, typed = run.config.get("models"), _command(run)
    last = shlex.quote(str([*models.values()][-1])) if isinstance(models, dict) and models else None
    model = last if run.stage == "eval" else _quoted(run.path)
    if option is not None and model and (verb := _use(run, option)):
        found.insert(0, f"rlspeech {verb} --model {model}")
    if option is not None and run.stage != "eval":
        start = shlex.quote(str(run.config.get("init" if run.stage == "pretrain" else "model") or "embedded"))
        found.insert(0, f"rlspeech eval{option} --model before={start} --model after={_quoted(run.path)}")
    steps = run.config.get("steps")
    if isinstance(steps, int) and run.step < steps and typed:
        found.insert(0, shlex.join(typed))  # the same command goes on
    return found


def _use(run: RunRecord, option: str) -> str | None:
    """The command that uses a model, by what its run kept: outputs of recordings, speech without an input, or texts."""
    kept = run.kept("audio" if run.stage == "eval" else "samples")
    if INPUT in kept:
        return f"enhance RECORDINGS{option}"
    if any(files for name, files in kept.items() if run.stage == "eval" or name.startswith("step_")):
        return "speak TEXT"
    written = any(System("", run, n, rows).texts(k) for n, rows in run.scores.items() for k in rows)
    return "transcribe RECORDINGS" if written or any((run.path / "samples").glob("step_*/said.jsonl")) else None


def commands_of_several(runs: Sequence[RunRecord]) -> list[str]:
    """What is typed next of several runs."""

    def named(run: RunRecord, path: Path) -> str:
        """PATH, or NAME=PATH where that says more."""
        same = run.name == path.name or safe_name(run.name) != run.name
        return _quoted(path) if same else f"{run.name}={_quoted(path)}"

    places = [(r, r.scores_path if r.scores_path.name != "scores.jsonl" else r.path) for r in runs]
    found = [f"rlspeech report {' '.join(named(r, path) for r, path in places)}"]
    trained = [r for r in runs if r.stage in TRAINED and r.config.get("task") == runs[0].config.get("task")]
    if trained and (option := _option(trained[0])) is not None:
        found.insert(0, f"rlspeech eval{option} {' '.join(f'--model {named(r, r.path)}' for r in trained)}")
    return found


def cost_of(run: RunRecord) -> dict[str, str]:
    """Seconds and memory by phase: of a run that trains from its rows, of an evaluation as it noted them."""
    if run.stage == "eval":
        noted = {k: v for k, v in (at(run.summary, "seconds") or {}).items() if number(v) is not None}
        parts = ", ".join(f"{k} {v:.1f} s" for k, v in noted.items() if k != "total")
        found = {"device": str(run.env.get("device", "unknown"))}
        if "total" in noted:
            found["time"] = f"{noted['total']:.0f} s" + (f", of which scoring {parts}" if parts else "")
        return found
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
        by_size = sorted(seconds.items(), key=lambda kv: -kv[1])
        found |= {phase: f"{s:.1f} s ({100 * s / total:.0f} %)" for phase, s in by_size}
    found |= {f"memory, {phase}": f"{mb:.0f} MB at most" for phase, mb in memory.items()}
    earlier = run.env.get("earlier")
    if isinstance(earlier, list) and earlier:
        found["attempts"] = f"{len(earlier) + 1}: interrupted and gone on with"
    return found


def versions_of(run: RunRecord) -> dict[str, Any]:
    """Versions of packages and of what scored."""
    versions, rewards = run.env.get("versions"), run.env.get("rewards")
    found = dict(versions) if isinstance(versions, dict) else {}
    found |= {"python": run.env["python"]} if "python" in run.env else {}
    scorers = (
        [rewards] if isinstance(rewards, dict) else [run.metas(s) for s in run.scores] if run.stage == "reward" else []
    )
    return found | {
        k: v["version"] for part in scorers for k, v in part.items() if isinstance(v, dict) and "version" in v
    }
