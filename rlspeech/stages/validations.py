"""The validations of an ``rl`` run, clip by clip, as its folder holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlspeech.report import Edit
from rlspeech.scores import JUDGE_TEXT, step_name
from rlspeech.stages.past import Past, number
from rlspeech.stats import Interval, mean_interval, paired_delta

__all__ = ["Validations", "edits_between"]

FACTS = frozenset({"key", "system", "step", "item", "text", "hypothesis", "errors"})
ALIGNED_BY = "basic-2"


@dataclass(slots=True)
class Validations:
    """What was measured on the held-out clips, step by step.

    Args:
        run: where from.
        steps: of the validations, rising.
        keys: of the clips, in the order of the run.
        metrics: what was measured.
        rows: step -> key -> row.
        named: False where the run kept no names, and the keys are made up.
    """

    run: Past
    steps: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    rows: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    named: bool = True

    @classmethod
    def of(cls, run: Past) -> Validations:
        """From ``scores.jsonl``, or without it from the latest checkpoint, which has no names."""
        rows = {
            int(m[1]): part for system, part in run.scores.items() if (m := re.fullmatch(r"step_(\d{1,12})", system))
        }
        named = bool(rows)
        rows = rows or _history(run)
        steps = sorted(rows)
        keys = list(rows[steps[0]]) if steps else []
        names = dict.fromkeys(
            k
            for s in steps
            for row in rows[s].values()
            for k, v in row.items()
            if k not in FACTS and not k.startswith(JUDGE_TEXT) and (v is None or number(v) is not None)
        )
        return cls(run, steps, keys, list(names), rows, named)

    def column(self, step: int, metric: str) -> list[float | None]:
        """A metric of a step, in the order of ``keys``."""
        return [self.value(step, key, metric) for key in self.keys]

    def value(self, step: int, key: str, metric: str) -> float | None:
        """One clip's."""
        return number(self.rows.get(step, {}).get(key, {}).get(metric))

    def mean(self, step: int, metric: str) -> Interval:
        """Over the clips, with its interval."""
        return mean_interval(self.column(step, metric))

    def delta(self, step: int, metric: str) -> Interval:
        """Paired difference to the first validation."""
        return paired_delta(self.column(step, metric), self.column(self.steps[0], metric), seed=self.run.seed)

    def best(self) -> int | None:
        """The step of the checkpoint that is taken for the run, where it was validated."""
        try:
            name = (self.run.path / "checkpoints" / "best").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return next((s for s in self.steps if step_name(s) == name), None)

    def words(self, step: int, key: str) -> str:
        """What language models said of a clip, a line each."""
        found = {
            k: v
            for k, v in self.rows.get(step, {}).get(key, {}).items()
            if k.startswith(JUDGE_TEXT) and isinstance(v, str) and v
        }
        return "\n".join(v if len(found) == 1 else f"{k.replace(JUDGE_TEXT, 'llm', 1)}: {v}" for k, v in found.items())

    def texts(self, step: int, key: str) -> tuple[str | None, str | None]:
        """What was to be said or heard, and what a recogniser made of it."""
        row = self.rows.get(step, {}).get(key, {})
        text, heard = row.get("text"), row.get("hypothesis")
        return text if isinstance(text, str) else None, heard if isinstance(heard, str) else None

    def errors(self, step: int) -> dict[str, int]:
        """Reasons of what could not be measured, with the metric, counted."""
        counted: dict[str, int] = {}
        for row in self.rows.get(step, {}).values():
            reasons = row.get("errors")
            for metric, why in reasons.items() if isinstance(reasons, dict) else ():
                counted[f"{metric}: {why}"] = counted.get(f"{metric}: {why}", 0) + 1
        return counted


def _history(run: Past) -> dict[int, dict[str, dict[str, Any]]]:
    """Columns that the latest checkpoint carries along, for runs without ``scores.jsonl``."""
    try:
        name = (run.path / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
        if not re.fullmatch(r"step_\d+", name):
            return {}
        history = json.loads((run.path / "checkpoints" / name / "state.json").read_text(encoding="utf-8")).get(
            "history"
        )
    except (OSError, ValueError, AttributeError):
        return {}
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for part in history if isinstance(history, list) else ():
        if not (isinstance(part, dict) and isinstance(part.get("step"), int)):
            continue
        columns = {k: v for k, v in part.items() if isinstance(v, list)}
        count = max(map(len, columns.values()), default=0)
        found[part["step"]] = {f"clip {i}": {k: v[i] for k, v in columns.items() if i < len(v)} for i in range(count)}
    return found


def edits_between(reference: str, hypothesis: str) -> Sequence[Edit]:
    """What a recogniser wrote against what was said, for the page."""
    from rlspeech.data.text import align, get_normaliser, units
    from rlspeech.stages.recognition_page import edits_of

    normalise = get_normaliser(ALIGNED_BY)
    return edits_of(align(units(normalise(reference)), units(normalise(hypothesis))))
