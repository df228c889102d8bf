"""One self-contained ``report.html``: verdict, tables with intervals, curves, players with spectrograms, what it cost.

Every string goes through jinja2's escaping; the only markup that is trusted is what ``figures`` draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.checkpoints import write_text
from rlspeech.stats import Interval

__all__ = ["Clip", "Edit", "Grid", "Metric", "ReportData", "render_report", "verdict"]

MAX_BYTES = 14_000_000  # of one report; clips beyond it are left out
MAX_CLIP_S = 10.0


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


@dataclass(slots=True)
class Clip:
    """One utterance with a player for each system.

    Args:
        key: its id.
        audio: system -> (T,) float32.
        sample_rate: of all of them, in Hz.
        note: text or conditions, shown under the id.
        scores: system -> metric -> number or None.
        texts: system -> what a model said of it; someone else's text, shown escaped.
        edits: system -> what a recogniser wrote, against the reference.
    """

    key: str
    audio: dict[str, np.ndarray]
    sample_rate: int
    note: str = ""
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)


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
        curves: name of a run -> rows of its ``metrics.jsonl``.
        clips: players.
        config: as resolved.
        versions: package -> version.
        cost: what was spent, label -> text.
        notes: remarks, such as metrics that were not available.
        grids: further tables, below the differences.
        basis: what the numbers and their intervals are.
    """

    title: str
    subtitle: str = ""
    metrics: Sequence[Metric] = ()
    means: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    baseline: str | None = None
    deltas: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    clips: Sequence[Clip] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    basis: str = "Mean over utterances and its bootstrap 95 % interval."


def mark(metric: Metric, delta: Interval | None) -> str:
    """``better`` or ``worse`` where the interval excludes 0, ``unclear`` where it does not, nothing without a difference."""
    if delta is None or delta.n == 0:
        return ""
    if not delta.significant:
        return "unclear"
    return "better" if (delta.mean > 0) == metric.higher_is_better else "worse"


def verdict(data: ReportData) -> list[str]:
    """One sentence a compared system: what got better, what got worse, what did not change beyond its interval."""
    lines = []
    for system, deltas in data.deltas.items():
        groups: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
        for metric in data.metrics:
            kind = mark(metric, deltas.get(metric.name))
            if kind:
                groups[kind].append(metric.name if kind == "unclear" else f"{metric.name} {deltas[metric.name].mean:+.3g}")
        words = {"better": "better in", "worse": "worse in", "unclear": "no difference shown in"}
        parts = [f"{words[kind]} {', '.join(names)}" for kind, names in groups.items() if names]
        lines.append(f"{system} against {data.baseline}: {'; '.join(parts) or 'nothing to compare'}.")
    return lines


def render_report(path: Path, data: ReportData) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: of the file.
        data: what to show.

    Returns:
        ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    import jinja2

    from rlspeech.report import figures

    template = resources.files("rlspeech.report").joinpath("template.html").read_text(encoding="utf-8")
    notes, used = list(data.notes), 0
    clips: list[figures.Players] = []
    for clip in data.clips:
        try:
            drawn = figures.players(clip, MAX_CLIP_S)
        except (ValueError, RuntimeError) as error:
            notes.append(f"{clip.key} has no player: {error}")
            continue
        used += drawn.size
        if used > MAX_BYTES:
            notes.append(f"{len(data.clips) - len(clips)} clips were left out to keep this page small")
            break
        clips.append(drawn)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(log.plain(value), indent=2, ensure_ascii=False)
    html = environment.from_string(template).render(
        data=data, verdict=verdict(data), mark=mark, clips=clips, notes=notes, max_clip_s=MAX_CLIP_S,
        curves={name: figures.curves(rows, salt=name) for name, rows in data.curves.items() if rows})
    write_text(path, html)
    return path
