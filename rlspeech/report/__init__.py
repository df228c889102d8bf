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
    """One run's curve of one quantity."""

    run: str  # its name; the same run has the same colour and dashes in every plot
    steps: Sequence[float]  # (K,) where it was measured
    mean: Sequence[float]  # (K,) values; what is not finite is a gap
    lo: Sequence[float] | None = None  # (K,) lower end of the 95 % interval, drawn as a band
    hi: Sequence[float] | None = None  # (K,) upper end


@dataclass(frozen=True, slots=True)
class Plot:
    """One small picture, several runs in one."""

    title: str  # the quantity
    lines: Sequence[Line]  # one a run
    # the group it stands in; ``spread`` is a histogram: ``steps`` are the middles of its bins, ``mean`` how many are in each
    kind: Literal["reward", "guard", "valid", "train", "cost", "spread"] = "train"
    note: str = ""  # a sentence under it
    start: float | None = None  # value before training, a dashed line


@dataclass(slots=True)
class Clip:
    """One utterance with a player for each system."""

    key: str  # its id
    audio: dict[str, np.ndarray]  # system -> (T,) float32
    sample_rate: int  # of all of them, in Hz
    note: str = ""  # text or conditions, shown under the id
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)  # system -> metric -> number or None
    # system -> a model's description of it; someone else's text, shown escaped
    texts: dict[str, str] = field(default_factory=dict)
    # system -> what a recogniser wrote, against the reference
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)
    label: str = ""  # why it is shown, such as ``largest loss``; a chip and a filter


@dataclass(slots=True)
class ReportData:
    """Everything on the page; what is empty is left out."""

    title: str  # heading
    subtitle: str = ""  # one line under it
    metrics: Sequence[Metric] = ()  # rows of the table, in order
    # system -> metric name -> mean and interval; the order of the systems is kept
    means: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    baseline: str | None = None  # the system that the others are compared with
    # system -> metric name -> paired difference to the baseline
    deltas: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    clips: Sequence[Clip] = ()  # players
    config: Mapping[str, Any] = field(default_factory=dict)  # as resolved
    versions: Mapping[str, Any] = field(default_factory=dict)  # package -> version
    cost: Mapping[str, str] = field(default_factory=dict)  # time and memory, label -> text
    notes: Sequence[str] = ()  # remarks, such as metrics that were not available
    grids: Sequence[Grid] = ()  # further tables, below the differences
    basis: str = "Mean over utterances and its bootstrap 95 % interval."  # what the numbers and their intervals are
    plots: Sequence[Plot] = ()  # curves with intervals, several runs in one picture
    commands: Sequence[str] = ()  # what to run next, each with a button that copies it
    facts: Mapping[str, str] = field(default_factory=dict)  # data, seed, checkpoint and the like, name -> text


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
