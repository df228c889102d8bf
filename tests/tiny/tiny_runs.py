"""Run folders as the stages leave them, made by hand: what a report reads without anything having been trained; how two differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from rlspeech.config import RL, Evaluate, GuardSpec, RewardSpec
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.rewards.rates import compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.scores import step_name
from rlspeech.stages import validation
from rlspeech.stats import interval_columns, mean_interval, paired_delta
from rlspeech.types import Sample, Score

RATE = 16000
EVIL = "<script>alert(1)</script>"
# keys whose values differ from run to run, files that hold such, and files that are removed in the end
OWN = re.compile(r"time|seconds|memory_mb|stamp|pid|started|path|rng")
TELLS = re.compile(r"env\.json|\.lock|logs/|tensorboard/|\.html$|wandb|README\.md")
LEFT = re.compile(r"\.part\d+|\.tmp|\.old-")


def tone(hz: float, seconds: float = 0.25) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def clips_of(count: int, shift: float = 0.0) -> list[Clip]:
    return [Clip(f"u{i}", tone(200 + 20 * i + shift), tone(100 + 20 * i), RATE, f"say {i}") for i in range(count)]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def rl_run(
    folder: Path,
    gain: float = 1.0,
    *,
    steps: Sequence[int] = (0, 10, 20),
    count: int = 8,
    shift: float = 0.0,
    words: str | None = None,
    **changes: Any,
) -> Path:
    """A run whose si_sdr rises by about ``gain``, in clips of different difficulty; ``shift`` makes the inputs others."""
    plain = {"data": "data.jsonl", "valid": "valid.jsonl", "out": str(folder), "steps": steps[-1], "seed": 1}
    plain |= {"rewards": [RewardSpec(name="si_sdr")], "guards": [GuardSpec(name="lsd", max_drop=1.0)]}
    config = RL(**{**plain, **changes})
    write_json(folder / "config.resolved.json", config.model_dump(mode="json"))
    directions = {m: {"higher_is_better": up, "version": "1"} for m, up in (("si_sdr", True), ("lsd", False))}
    env = {"stage": "rl", "argv": ["rlspeech", "rl", "--out", str(folder)], "versions": {"torch": "2.0"}}
    write_json(folder / "env.json", env | {"rewards": {**directions, "_input": {}}, "stopped": "all steps done"})
    clips, rng, start, rows = clips_of(count, shift), np.random.default_rng(0), dict[str, list[float]](), []
    for step in steps:
        share = step / max(1, steps[-1])
        moved = share * (gain + 0.3 * gain * rng.standard_normal(count))
        values = {"si_sdr": (np.arange(count) + moved).tolist(), "lsd": (10 + np.arange(count) - share).tolist()}
        samples = [Sample(c.key, c.noisy * (1 - 0.5 * share), RATE, c.target, c.text) for c in clips]
        detail = {"llm_text": words} if words else {}
        scores = {m: [Score(v, detail=detail) for v in column] for m, column in values.items()}
        if words:
            scores = {"llm": scores["si_sdr"], **scores}
        validation.keep(folder, step, clips, samples, scores, values["si_sdr"])
        columns = {**values, "reward": values["si_sdr"]}
        start = start or columns
        if step:
            policy = {"reward": gain * share, "kl": 0.01 * share}
            rows.append({"step": step, "time": 1.0, **policy, "seconds/rollout": 1.5})
        valid = interval_columns("valid", {k: mean_interval(v) for k, v in columns.items()})
        delta = interval_columns("delta", {k: paired_delta(v, start[k], seed=1) for k, v in columns.items()})
        rows.append({"step": step, **valid, **delta})
    write_rows(folder / "metrics.jsonl", rows)
    last = step_name(steps[-1])
    (folder / "checkpoints" / last).mkdir(parents=True, exist_ok=True)
    for name in ("best", "latest"):
        (folder / "checkpoints" / name).write_text(last + "\n", encoding="utf-8")
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def manifest(folder: Path, count: int, **columns: Any) -> Path:
    """Recordings u0, u1 ..., which are their own references."""
    rows = []
    for i in range(count):
        save_audio(folder / f"u{i}.flac", tone(200 + 20 * i), RATE)
        files = {"audio_filepath": f"u{i}.flac", "target_filepath": f"u{i}.flac", "duration": 0.25, "sample_rate": RATE}
        rows.append({"id": f"u{i}", "text": f"say {i}", **files, **columns})
    write_rows(folder / "test.jsonl", rows)
    return folder / "test.jsonl"


def pretrain_run(folder: Path, *, texts: Sequence[str] = ()) -> Path:
    """A run with a loss, two validations, and what was kept of them; ``texts`` are what a recogniser wrote."""
    write_json(folder / "env.json", {"stage": "pretrain", "versions": {"torch": "1.0"}})
    write_json(folder / "config.resolved.json", {"task": "flowse", "steps": 100, "ema": 0.9})
    rows = [{"step": s, "train/loss": 1.0 / (1 + s), "valid/si_sdr": float(s)} for s in (50, 100)]
    write_rows(folder / "metrics.jsonl", rows)
    for name in ("input", "step_000050", "step_000100", "reference"):
        save_audio(folder / "samples" / name / "u0.flac", tone(200), RATE)
    said = [{"id": f"t{i}", "text": f"say {i}", "hypothesis": text} for i, text in enumerate(texts)]
    write_rows(folder / "samples" / "step_000100" / "said.jsonl", said)
    return folder


def reward_run(folder: Path, values: Mapping[str, Sequence[float | None]], **metric: Any) -> Path:
    """Scores of lsd of several systems, whose files lie in ``folder/SYSTEM``."""
    systems, rows = {}, []
    for system, column in values.items():
        facts = {"version": "1", "higher_is_better": False, **metric}
        settings = {"path": str(folder / system), "seed": 0, "players": 3}
        systems[system] = {"metrics": {"lsd": facts}, "settings": settings}
        for i, value in enumerate(column):
            save_audio(folder / system / f"f{i}.flac", tone(300 + 50 * i), RATE)
            errors = {} if value is not None else {"lsd": "empty file"}
            rows.append({"key": f"f{i}", "system": system, "lsd": value, "stamp": f"{system}{i}", "errors": errors})
    write_json(folder / "scores.meta.json", {"systems": systems})
    write_rows(folder / "scores.jsonl", rows)
    return folder


def summarised(folder: Path, baseline: str, **facts: Any) -> Path:
    """Add the ``metrics.json`` of an evaluation that is done, with means and differences of its rows."""
    columns: dict[str, dict[str, float | None]] = {}
    for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        columns.setdefault(row["system"], {})[row["key"]] = row["si_sdr"]
    deltas = {s: paired_delta(c, columns[baseline]) for s, c in columns.items() if s != baseline}
    summary = {"n": len(columns[baseline]), "baseline": baseline, "higher_is_better": {"si_sdr": True}}
    summary["systems"] = {s: {"si_sdr": mean_interval(list(c.values())).as_dict()} for s, c in columns.items()}
    summary["deltas"] = {s: {"si_sdr": d.as_dict()} for s, d in deltas.items()}
    summary["seconds"] = {"total": 3.0, "si_sdr": 1.0}
    write_json(folder / "metrics.json", {**summary, **facts})
    write_json(folder / "scores.meta.json", {"metrics": {"si_sdr": {"version": "1"}}})
    return folder


def texts_run(folder: Path, systems: Mapping[str, Sequence[str]], data: Path, *, audio: bool = False) -> Path:
    """An evaluation by what was written of ``say 0``, ``say 1`` ... ; with ``audio`` of what was synthesised."""
    kind = {"task": "tts" if audio else "asr", "metrics": []}
    eval_run(folder, {s: [] for s in systems}, data=str(data), **kind)
    rules, rows, counts = TextRules("basic-2"), [], dict[str, list[dict[str, int]]]()
    for system, written in systems.items():
        for i, text in enumerate(written):
            judged = rules.judge(f"say {i}", text)
            counts.setdefault(system, []).append(counts_of(judged))
            facts = {"text": f"say {i}", "hypothesis": text, "counts": counts[system][-1], "errors": {}}
            rows.append({"key": f"u{i}", "system": system, **facts, **({"finished": i > 0} if audio else {})})
            if audio:
                save_audio(folder / "audio" / system / f"u{i}.flac", tone(300 + i), RATE)
    write_rows(folder / "scores.jsonl", rows)
    baseline = next(iter(systems))
    found = compare_rates(counts, baseline).as_dict()
    part = compare_rates({s: c[:2] for s, c in counts.items()}, baseline).as_dict()
    facts = {"baseline": baseline, "normaliser": "basic-2", "by_column": "place", "by": {"home": part}}
    facts |= {"notes": ["1 row has no text"], "seconds": {"total": 3.0}}
    write_json(folder / "metrics.json", {**found, **facts})
    return folder


def eval_run(folder: Path, systems: Mapping[str, Sequence[float | None]], **changes: Any) -> Path:
    """An evaluation that was not finished: scores of si_sdr, and what was enhanced; no ``metrics.json``."""
    names = [s for s in systems if s != "input"]
    plain = {"data": "test.jsonl", "models": {s: f"runs/{s}" for s in names}, "metrics": ["si_sdr"], "out": str(folder)}
    config = Evaluate(**{**plain, **changes})
    write_json(folder / "config.resolved.json", config.model_dump(mode="json"))
    write_json(folder / "env.json", {"stage": "eval", "versions": {"torch": "2.0"}})
    rows = []
    for n, (system, values) in enumerate(systems.items()):
        for i, value in enumerate(values):
            errors = {} if value is not None else {"si_sdr": "silent"}
            rows.append({"key": f"u{i}", "system": system, "si_sdr": value, "errors": errors})
            save_audio(folder / "audio" / system / f"u{i}.flac", tone(200 + 20 * i + 5 * n), RATE)
    write_rows(folder / "scores.jsonl", rows)
    return folder


def bare(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if not OWN.search(k)}
    return [bare(v) for v in value] if isinstance(value, list) else value


def content(out: Path) -> dict[str, Any]:
    """What a stage leaves, file by file, such that the same work gives the same."""
    found: dict[str, Any] = {}
    for path in (p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text("utf-8")
            found[name] = [bare(json.loads(t)) for t in (text.splitlines() if path.suffix == ".jsonl" else [text])]
        elif path.suffix == ".safetensors":
            found[name] = {k: v.tobytes() for k, v in load_file(path).items() if "rng" not in k}
        else:
            found[name] = path.read_bytes()
    return {name: what for name, what in found.items() if not TELLS.search(name)}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*ours, *theirs}):
        if LEFT.search(name):
            yield f"left half-written: {name}"
        elif name not in theirs or name not in ours:
            yield f"{name} is {'missing' if name in theirs else 'too much'}"
        elif ours[name] != theirs[name]:
            yield f"{name} differs from an uninterrupted run's"
