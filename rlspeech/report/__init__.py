"""One self-contained ``report.html``: verdict, tables with intervals, curves, players with spectrograms, a blind comparison, what it cost.

Every string goes through jinja2's escaping; the only markup that is trusted is what ``figures`` draws. The page may not use the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rlspeech.stats import Interval


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the tables."""

    name: str
    higher_is_better: bool = True
    help: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A further table, as text: ``heading`` names the columns, ``note`` stands below."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """A run of words of an alignment: ``kind`` is equal, replace, delete or insert; the texts are someone else's, shown escaped."""

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Line:
    """One run's curve of one quantity.

    Args:
        run: its name; the same run has the same colour and dashes in every plot.
        steps: (K,) where it was measured.
        mean: (K,) values; what is not finite is a gap.
        lo: (K,) lower end of the 95 % interval, drawn as a band.
        hi: (K,) upper end.
    """

    run: str
    steps: Sequence[float]
    mean: Sequence[float]
    lo: Sequence[float] | None = None
    hi: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """One small picture, several runs in one.

    Args:
        title: the quantity.
        lines: one a run.
        kind: the group it stands in; ``spread`` is a histogram: ``steps`` are the middles of its bins, ``mean`` how many are in each.
        note: a sentence under it.
        start: value before training, a dashed line.
    """

    title: str
    lines: Sequence[Line]
    kind: Literal["reward", "guard", "valid", "train", "cost", "spread"] = "train"
    note: str = ""
    start: float | None = None


@dataclass(slots=True)
class Clip:
    """One utterance with a player for each system.

    Args:
        key: its id.
        audio: system -> (T,) float32.
        sample_rate: of all of them, in Hz.
        note: text or conditions, shown under the id.
        scores: system -> metric -> number or None.
        texts: system -> a model's description of it; someone else's text, shown escaped.
        edits: system -> what a recogniser wrote, against the reference.
        label: why it is shown, such as ``largest loss``; a chip and a filter.
    """

    key: str
    audio: dict[str, np.ndarray]
    sample_rate: int
    note: str = ""
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)
    label: str = ""


@dataclass(slots=True)
class ReportData:
    """Everything on the page; what is empty is left out.

    Args:
        title: heading.
        subtitle: one line under it.
        metrics: rows of the table, in order.
        means: system -> metric name -> mean and interval; the order of the systems is kept.
        baseline: the system that the others are compared with.
        deltas: system -> metric name -> paired difference to the baseline.
        clips: players.
        config: as resolved.
        versions: package -> version.
        cost: time and memory, label -> text.
        notes: remarks, such as metrics that were not available.
        grids: further tables, below the differences.
        basis: what the numbers and their intervals are.
        plots: curves with intervals, several runs in one picture.
        commands: what to run next, each with a button that copies it.
        facts: data, seed, checkpoint and the like, name -> text.
    """

    title: str
    subtitle: str = ""
    metrics: Sequence[Metric] = ()
    means: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    baseline: str | None = None
    deltas: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    clips: Sequence[Clip] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    basis: str = "Mean over utterances and its bootstrap 95 % interval."
    plots: Sequence[Plot] = ()
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def mark(metric: Metric, delta: Interval | None) -> str:
    """``better`` or ``worse`` where the interval excludes 0, ``unclear`` where it does not, nothing without a difference."""
    if delta is None or delta.n == 0:
        return ""
    if not delta.significant:
        return "unclear"
    return "better" if (delta.mean > 0) == metric.higher_is_better else "worse"


def verdict(data: ReportData) -> list[dict[str, Any]]:
    """For each compared system the metrics and differences that are ``better``, ``worse`` and ``unclear``."""
    made = []
    for system, deltas in data.deltas.items():
        parts: dict[str, list[tuple[Metric, Interval]]] = {"better": [], "worse": [], "unclear": []}
        for metric in data.metrics:
            if kind := mark(metric, deltas.get(metric.name)):
                parts[kind].append((metric, deltas[metric.name]))
        made.append({"system": system, "parts": parts})
    return made


def sentences(data: ReportData) -> list[str]:
    """The verdict in words, one sentence a compared system."""
    words = {"better": "better in", "worse": "worse in", "unclear": "no difference shown in"}
    lines = []
    for found in verdict(data):
        parts = []
        for kind, some in found["parts"].items():
            names = [m.name if kind == "unclear" else f"{m.name} {delta.mean:+.3g}" for m, delta in some]
            parts += [f"{words[kind]} {', '.join(names)}"] if names else []
        lines.append(f"{found['system']} against {data.baseline}: {'; '.join(parts) or 'nothing to compare'}.")
    return lines
