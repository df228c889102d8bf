"""Plots for the pages: of rows of ``metrics.jsonl`` what was rewarded, what was watched, how it was trained, what it took, several runs in
one; of scores how they are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from rlspeech.report import Line, Plot, figures
from rlspeech.stats import Interval
from rlspeech.tracking import read_metrics
from rlspeech.types import UserError

__all__ = ["Kind", "columns_of", "curves_behind", "plots_of", "spreads_of"]

Kind = Literal["reward", "guard", "valid", "train", "cost"]
MOST = {"train": 15, "cost": 9}  # plots of a kind; those of rewards and guards are all shown
# what tells most about a run comes first; the rest in the order of the log
FIRST = (
    "kl",
    "grad_agreement",
    "groups_with_signal",
    "constant_groups",
    "unscorable",
    "grad_norm",
    "train/loss",
    "supervised_loss",
    "clipped_positive",
    "clipped_negative",
    "wer",
    "finished",
    "tokens",
    "lr",
)
GROUPS = ("reward", "guard", "valid", "train", "cost")
BINS = (6, 24)
HEADS = ("delta", "valid", "reward")
NOTES = {"delta": "paired difference to the start, the same clips", "valid": "on the validation clips"}


def columns_of(prefix: str, found: Mapping[str, Interval]) -> dict[str, float]:
    """Means as flat columns of ``metrics.jsonl``: ``prefix/x``, and ``prefix/x_lo`` and ``prefix/x_hi`` where there is an interval."""
    return {
        f"{prefix}/{name}{end}": value
        for name, i in found.items()
        for end, value in (("", i.mean), ("_lo", i.lo), ("_hi", i.hi))
        if not end or math.isfinite(value)
    }


def plots_of(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], roles: Mapping[str, Kind], other: Kind = "guard"
) -> list[Plot]:
    """One plot a quantity with a line a run; constant ones and clocks are left out.

    Args:
        runs: name -> rows with ``step``.
        roles: metric -> what it is to the runs.
        other: what a metric is that was validated and is not in there.

    Returns:
        changes on validation first, then values there, rewards of the rollouts, training, cost.
    """
    paired = {
        run: [{k: v for k, v in row.items() if k == "step" or k.startswith("delta/")} for row in rows]
        for run, rows in runs.items()
    }
    plain = {
        run: [{k: v for k, v in row.items() if not k.startswith("delta/")} for row in rows]
        for run, rows in runs.items()
    }
    made = [_told(p, roles, other) for part in (paired, plain) for p in figures.from_rows(part)]
    made.sort(key=_place)  # stable: within a place as in the log
    return [p for kind in GROUPS for p in [q for q in made if q.kind == kind][: MOST.get(kind)]]


def _told(plot: Plot, roles: Mapping[str, Kind], other: Kind) -> Plot:
    """With its kind, what it is, and the value before training where the runs share it."""
    head, _, metric = plot.title.partition("/")
    starts = {line.mean[0] if line.steps[0] == 0 else None for line in plot.lines} if head in NOTES else {None}
    start = starts.pop() if len(starts) == 1 else None
    return replace(
        plot, kind=roles.get(metric, other) if head in NOTES else plot.kind, note=NOTES.get(head, ""), start=start
    )


def _place(plot: Plot) -> tuple[int, int, int]:
    head = plot.title.partition("/")[0]
    if plot.kind == "train":
        return GROUPS.index(plot.kind), 0, FIRST.index(plot.title) if plot.title in FIRST else len(FIRST)
    return (
        GROUPS.index(plot.kind),
        HEADS.index(head) if head in HEADS else len(HEADS),
        int(not plot.title.endswith("reward")),
    )


def curves_behind(models: Mapping[str, str], task: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of the runs that checkpoints come from, by the name of the model; a model without a run, or one that is gone, has none."""
    from rlspeech.models.hub import resolve

    found = {}
    for name, checkpoint in models.items():
        try:
            folder = resolve(checkpoint, task)
        except UserError:  # of the Hub, or gone
            continue
        rows = read_metrics(folder.parent.parent / "metrics.jsonl") if folder.parent.name == "checkpoints" else []
        if rows:
            found[name] = rows
    return found


def spreads_of(scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> list[Plot]:
    """One histogram a metric, several systems over the same bins; a metric with fewer than two values is left out.

    Args:
        scores: metric -> system -> values, None where there is none.
    """
    plots = []
    for metric, systems in scores.items():
        columns = {
            s: np.array([v for v in values if v is not None and math.isfinite(v)]) for s, values in systems.items()
        }
        known = np.concatenate(list(columns.values())) if columns else np.empty(0)
        if len(known) < 2:
            continue
        size = min(BINS[1], max(BINS[0], round(math.sqrt(max(map(len, columns.values()))))))
        edges = np.histogram_bin_edges(known, size)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        lines = [
            Line(s, middles, np.histogram(x, edges)[0].astype(float).tolist()) for s, x in columns.items() if len(x)
        ]
        lost = sum(map(len, systems.values())) - len(known)
        plots.append(Plot(metric, lines, "spread", f"{lost} without a value" if lost else ""))
    return plots
