"""Run folders as the stages leave them, made by hand: what a report reads without anything having been trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.config import RL, Evaluate, GuardSpec, RewardSpec
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.scores import step_name
from rlspeech.stages import validation
from rlspeech.stages.curves import columns_of
from rlspeech.stats import mean_interval, paired_delta
from rlspeech.types import Sample, Score

RATE = 16000
EVIL = "<script>alert(1)</script>"


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
    config = RL(
        **{
            "rewards": [RewardSpec(name="si_sdr")],
            "guards": [GuardSpec(name="lsd", max_drop=1.0)],
            "steps": steps[-1],
            "seed": 1,
            "data": "data.jsonl",
            "valid": "valid.jsonl",
            "out": str(folder),
            **changes,
        }
    )
    write_json(folder / "config.resolved.json", config.model_dump(mode="json"))
    directions = {
        "si_sdr": {"higher_is_better": True, "version": "1"},
        "lsd": {"higher_is_better": False, "version": "1"},
    }
    write_json(
        folder / "env.json",
        {
            "stage": "rl",
            "argv": ["rlspeech", "rl", "--out", str(folder)],
            "versions": {"torch": "2.0"},
            "rewards": {**directions, "_input": {}},
            "stopped": "all steps done",
        },
    )
    clips, rng, start, rows = clips_of(count, shift), np.random.default_rng(0), dict[str, list[float]](), []
    for step in steps:
        share = step / max(1, steps[-1])
        moved = share * (gain + 0.3 * gain * rng.standard_normal(count))
        values = {"si_sdr": (np.arange(count) + moved).tolist(), "lsd": (10 + np.arange(count) - share).tolist()}
        samples = [Sample(c.key, c.noisy * (1 - 0.5 * share), RATE, c.target, c.text) for c in clips]
        scores = {
            m: [Score(v, detail={"llm_text": words} if words else {}) for v in column] for m, column in values.items()
        }
        validation.keep(
            folder, step, clips, samples, scores if not words else {"llm": scores["si_sdr"], **scores}, values["si_sdr"]
        )
        columns = {**values, "reward": values["si_sdr"]}
        start = start or columns
        rows += (
            [{"step": step, "time": 1.0, "reward": gain * share, "kl": 0.01 * share, "seconds/rollout": 1.5}]
            if step
            else []
        )
        rows += [
            {
                "step": step,
                **columns_of("valid", {k: mean_interval(v) for k, v in columns.items()}),
                **columns_of("delta", {k: paired_delta(v, start[k], seed=1) for k, v in columns.items()}),
            }
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    last = step_name(steps[-1])
    (folder / "checkpoints" / last).mkdir(parents=True, exist_ok=True)
    for name in ("best", "latest"):
        (folder / "checkpoints" / name).write_text(last + "\n", encoding="utf-8")
    return folder


def eval_run(
    folder: Path, systems: Mapping[str, Sequence[float | None]], *, audio: bool = True, **changes: Any
) -> Path:
    """An evaluation that was not finished: scores of si_sdr and, of the input, estoi; no ``metrics.json``."""
    names = [s for s in systems if s != "input"]
    config = Evaluate(
        **{
            "data": "test.jsonl",
            "models": {s: f"runs/{s}" for s in names},
            "metrics": ["si_sdr"],
            "out": str(folder),
            **changes,
        }
    )
    write_json(folder / "config.resolved.json", config.model_dump(mode="json"))
    write_json(folder / "env.json", {"stage": "eval", "versions": {"torch": "2.0"}})
    lines = []
    for n, (system, values) in enumerate(systems.items()):
        for i, value in enumerate(values):
            errors = {} if value is not None else {"si_sdr": "silent"}
            lines.append(json.dumps({"key": f"u{i}", "system": system, "si_sdr": value, "errors": errors}) + "\n")
            if audio:
                save_audio(folder / "audio" / system / f"u{i}.flac", tone(200 + 20 * i + 5 * n), RATE)
    (folder / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
