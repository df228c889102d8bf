"""Curves as inline SVG: one small picture a quantity, several runs in one, in groups.

Colours are classes of the style sheet, so that a drawing follows light and dark; names stand in the page, outside of the drawings.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

import numpy as np

from rlspeech.report import Line, Plot
from rlspeech.report.runs import number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

INK = "#123456"  # replaced by CSS currentColor
RUNS = tuple(f"#0a0b{n:02x}" for n in range(8))  # replaced by the classes s0 ... (stroke) and f0 ... (fill) of page.css
# a second sign beside the colour
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKS = "osD^vPX*"
SIZE = (245, 126)  # of a drawing in points
MAX_PLOTS = 24  # of one group
MAX_POINTS = 400
SMOOTH_FROM = 60
_TITLES = ("Rewards", "Guards", "Validation", "Training", "Cost", "Distributions")
GROUPS = dict(zip("reward guard valid train cost spread".split(), _TITLES, strict=True))
CLOCKS = ("step", "time", "seconds")
NUMBER = re.compile(r"-?\d+\.\d{3,}")
ATTRIBUTES = ("fill", "stroke", "opacity", "clip-path", "text-anchor")  # and all that begin with fill- or stroke-

Kind = Literal["reward", "guard", "valid", "train", "cost"]
MOST = {"train": 15, "cost": 9}  # plots of a kind; those of rewards and guards are all shown
# what tells most about a run comes first; the rest in the order of the log
FIRST = (
    *("kl", "grad_agreement", "groups_with_signal", "constant_groups", "unscorable", "grad_norm", "train/loss"),
    *("supervised_loss", "clipped_positive", "clipped_negative", "wer", "finished", "tokens", "lr"),
)
BINS = (6, 24)
HEADS = ("delta", "valid", "reward")
NOTES = {"delta": "paired difference to the start, the same clips", "valid": "on the validation clips"}


@dataclass(frozen=True, slots=True)
class End:
    """Where a run's curve begins and ends, with the interval at the end."""

    colour: int
    run: str
    first: float
    last: float
    lo: float | None
    hi: float | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot that is drawn; ``says`` is read out in its place."""

    title: str
    note: str
    svg: Markup
    ends: list[End]
    says: str


@dataclass(frozen=True, slots=True)
class Group:
    """Plots of one kind; ``runs`` are (colour, name), ``bands`` and ``starts`` tell what its legend has to explain."""

    kind: str
    title: str
    runs: list[tuple[int, str]]
    drawings: list[Drawing]
    bands: bool
    starts: bool
    left_out: int


def from_rows(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, deltas: bool = False) -> list[Plot]:
    """A plot for every number in ``metrics.jsonl`` over the steps; constant ones and clocks are left out.

    Args:
        runs: name of a run -> dicts with ``step``; ``x_lo`` and ``x_hi`` beside ``x`` become its band.
        deltas: draw ``delta/x`` where ``valid/x`` is drawn, too.
    """
    columns: dict[str, dict[str, dict[int, float]]] = {}
    for run, rows in runs.items():
        for name, values in _columns(rows).items():
            columns.setdefault(name, {})[run] = values
    plots = []
    for name, by_run in columns.items():
        part, _, rest = name.partition("/")
        if part == "delta" and f"valid/{rest}" in columns and not deltas:
            continue
        if name.endswith(("_lo", "_hi")) and name[:-3] in columns:
            continue
        low, high = (columns.get(f"{name}{end}", {}) for end in ("_lo", "_hi"))
        known = {run: values for run, values in by_run.items() if len(values) > 1}
        if known and len({v for values in by_run.values() for v in values.values()}) > 1:
            lines = [_line(run, values, low.get(run, {}), high.get(run, {})) for run, values in known.items()]
            plots.append(Plot(name, lines, _kind(part)))
    return plots


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
    made = [_placed(p, roles, other) for p in from_rows(runs, deltas=True)]
    made.sort(key=_place)  # stable: within a place as in the log
    return [p for kind in GROUPS for p in [q for q in made if q.kind == kind][: MOST.get(kind)]]


def _placed(plot: Plot, roles: Mapping[str, Kind], other: Kind) -> Plot:
    """A validation's plot with its kind, what it is, and the value before training where the runs share it."""
    head, _, metric = plot.title.partition("/")
    if head not in NOTES:
        return plot
    starts = {line.mean[0] if line.steps[0] == 0 else None for line in plot.lines}
    start = starts.pop() if len(starts) == 1 else None
    return replace(plot, kind=roles.get(metric, other), note=NOTES[head], start=start)


def _place(plot: Plot) -> tuple[int, int, int]:
    group, head = [*GROUPS].index(plot.kind), plot.title.partition("/")[0]
    if plot.kind == "train":
        return group, 0, FIRST.index(plot.title) if plot.title in FIRST else len(FIRST)
    return group, HEADS.index(head) if head in HEADS else len(HEADS), int(not plot.title.endswith("reward"))


def spreads_of(scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> list[Plot]:
    """One histogram a metric, several systems over the same bins; a metric with fewer than two values is left out.

    ``scores``: metric -> system -> values, None where there is none.
    """
    plots = []
    for metric, systems in scores.items():
        columns = {s: _floats(values) for s, values in systems.items()}
        columns = {s: x[np.isfinite(x)] for s, x in columns.items()}
        known = np.concatenate(list(columns.values())) if columns else np.empty(0)
        if len(known) < 2:
            continue
        size = min(BINS[1], max(BINS[0], round(math.sqrt(max(map(len, columns.values()))))))
        edges = np.histogram_bin_edges(known, size)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        counts = {s: np.histogram(x, edges)[0].astype(float).tolist() for s, x in columns.items() if len(x)}
        lost = sum(map(len, systems.values())) - len(known)
        lines = [Line(s, middles, c) for s, c in counts.items()]
        plots.append(Plot(metric, lines, "spread", f"{lost} without a value" if lost else ""))
    return plots


def groups(plots: Sequence[Plot]) -> list[Group]:
    """The plots drawn and sorted into groups: rewards, guards, training, cost; what has no two values is left out."""
    colours: dict[str, int] = {}
    for plot in plots:
        for line in plot.lines:
            colours.setdefault(line.run, len(colours))
    made = []
    for kind, title in GROUPS.items():
        mine = [p for p in plots if p.kind == kind]
        useful = [p for p in mine if any(np.isfinite(_floats(line.mean)).sum() > 1 for line in p.lines)]
        shown = useful[:MAX_PLOTS]
        if shown:
            lines = [line for p in shown for line in p.lines]
            runs = sorted({(colours[line.run], line.run) for line in lines})
            drawings = [_draw(p, colours, f"{kind}{n}") for n, p in enumerate(shown)]
            bands, starts = any(line.lo is not None for line in lines), any(p.start is not None for p in shown)
            made.append(Group(kind, title, runs, drawings, bands, starts, len(useful) - len(shown)))
    return made


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Column -> step -> value; a step that was run again counts as it went the last time."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        step = number(row.get("step")) if isinstance(row, Mapping) else None
        if step is None:
            continue
        for name, value in row.items():
            if name not in CLOCKS and (v := number(value)) is not None:
                found.setdefault(name, {})[int(step)] = v
    return found


def _kind(part: str) -> Kind:
    if part in ("seconds", "memory_mb", "hold"):
        return "guard" if part == "hold" else "cost"
    return "reward" if part in ("valid", "delta") or part.startswith("reward") else "train"


def _line(run: str, values: Mapping[int, float], low: Mapping[int, float], high: Mapping[int, float]) -> Line:
    steps = sorted(values)
    ends = [[part.get(s, math.nan) for s in steps] for part in (low, high)] if low and high else [None, None]
    return Line(run, steps, [values[s] for s in steps], ends[0], ends[1])


def _draw(plot: Plot, colours: Mapping[str, int], salt: str) -> Drawing:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(inked, INK),
        **{"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 8, "font.family": "sans-serif"},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
        **{"text.parse_math": False, "axes.formatter.useoffset": False},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.locator_params(nbins=5)
        axes.grid(alpha=0.15, color=INK, linewidth=0.5)
        axes.margins(x=0.02)
        if plot.start is not None and math.isfinite(plot.start):
            axes.axhline(plot.start, color=INK, alpha=0.65, linewidth=0.9, dashes=(4, 2.5))
        trace = _bars if plot.kind == "spread" else _trace
        ends = [end for line in plot.lines if (end := trace(axes, line, colours[line.run])) is not None]
        # the power of ten belongs to each label: above the axis it is overlooked
        if not 1e-4 < max(abs(v) for v in axes.get_ylim()) < 1e5:
            axes.yaxis.set_major_formatter(lambda value, _: _with_power(value))
        # a layout engine would take half the time
        labels = max((len(label.get_text()) for label in axes.get_yticklabels()), default=1)
        figure.subplots_adjust(left=(8 + 4.9 * labels) / SIZE[0], right=0.99, bottom=18 / SIZE[1], top=0.96)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    says = "; ".join(f"{e.run} from {e.first:.4g} to {e.last:.4g}" for e in ends)
    how = "how many have which value" if plot.kind == "spread" else "over the steps"
    return Drawing(plot.title, plot.note, _inline(out.getvalue()), ends, f"{plot.title}, {how}: {says}")


def _signs(colour: int) -> tuple[str, Any, str]:
    """Colour, dashes and marker of a run; a ninth run has the first colour, dashed."""
    turn = colour + colour // len(RUNS)
    return RUNS[colour % len(RUNS)], DASHES[turn % len(DASHES)], MARKS[turn % len(MARKS)]


def _bars(axes: Axes, line: Line, colour: int) -> End | None:
    """One system's histogram; its ends are those of the values. None where nothing is counted."""
    middles, counts = _floats(line.steps), _floats(line.mean)
    whole = len(middles) == len(counts) > 1 and np.isfinite([*middles, *counts]).all()
    if not whole or not counts.any():
        return None
    (ink, dashes, _), half = _signs(colour), (middles[1] - middles[0]) / 2
    edges = [*(middles - half), middles[-1] + half]
    axes.stairs(counts, edges, fill=True, color=ink, alpha=0.3, linewidth=0, gid=f"run{colour}")
    axes.stairs(counts, edges, color=ink, linewidth=1.2, linestyle=dashes, gid=f"run{colour}")
    return End(colour, line.run, float(edges[0]), float(edges[-1]), None, None)


def _trace(axes: Axes, line: Line, colour: int) -> End | None:
    """One run's band and line; None where it has no value."""
    count = min(len(line.steps), len(line.mean))
    steps, mean = _floats(line.steps[:count]), _floats(line.mean[:count])
    good = np.isfinite(mean) & np.isfinite(steps)
    if not good.any():
        return None
    (ink, dashes, mark), gid = _signs(colour), f"run{colour}"
    ends = (p if p is not None and len(p) >= count else [math.nan] * count for p in (line.lo, line.hi))
    low, high = (_floats(p[:count]) for p in ends)
    banded = good & np.isfinite(low) & np.isfinite(high)
    if banded.any():
        axes.fill_between(steps, low, high, where=banded.tolist(), color=ink, alpha=0.18, linewidth=0).set_gid(gid)
    x, y = _thin(steps, mean)
    many = len(x) > SMOOTH_FROM and not banded.any()
    style: dict[str, Any] = {"color": ink, "gid": gid, "marker": mark if len(x) <= 25 else None, "markersize": 3.2}
    axes.plot(x, y, linewidth=1.4, alpha=0.3 if many else 1, linestyle="-" if many else dashes, **style)
    if many:
        axes.plot(x, _smooth(y), color=ink, linewidth=1.5, linestyle=dashes, gid=gid)
    last = int(np.flatnonzero(good)[-1])
    interval = (float(low[last]), float(high[last])) if banded[last] else (None, None)
    return End(colour, line.run, float(mean[good][0]), float(mean[last]), *interval)


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([v if isinstance(v, int | float | np.number) else np.nan for v in values], dtype=np.float64)


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(steps)])
    return steps[edges], np.add.reduceat(values, edges) / counts


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over a twentieth; gaps stay gaps."""
    kernel = np.ones(max(3, len(values) // 20))
    good = np.isfinite(values)
    total, weight = (np.convolve(part, kernel, "same") for part in (np.where(good, values, 0), good.astype(float)))
    return np.where(good, total / np.maximum(weight, 1), np.nan)


def _inline(svg: str) -> Markup:
    """Fit for a page that allows no style attribute: attributes and classes in its place, no ids but those that are referred to.

    What comes in was drawn here and holds numbers only, so that nothing of it can be someone else's markup.
    """
    from markupsafe import Markup

    root = ET.fromstring(svg[svg.index("<svg") :])
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("style", "metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        old = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        styles = dict(part.split(":", 1) for part in old.pop("style", "").split(";") if ":" in part)
        new = {k: v for k, v in old.items() if k != "id" and (element is not root or k == "viewBox")}
        for k, v in ((k.strip(), v.strip()) for k, v in styles.items()):
            if k in ATTRIBUTES or k[:5] in ("fill-", "strok"):
                new[k] = v
        # places need no more digits; what is written at an axis keeps its own
        new = {k: NUMBER.sub(_short, v) for k, v in new.items()}
        if re.match(r"run\d+$", old.get("id", "")):
            new["class"] = old["id"]
        elif element.tag in ("path", "clipPath") and "id" in old:
            new["id"] = old["id"]
        _classes(new)
        element.attrib.clear()
        element.attrib.update(new)
    root.attrib.update({"aria-hidden": "true", "focusable": "false"})
    text = ET.tostring(root, encoding="unicode")
    return Markup(re.sub(r">\s+<", "><", text))


def _with_power(value: float) -> str:
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e").replace("-", "\N{MINUS SIGN}")


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _classes(attributes: dict[str, str]) -> None:
    """Placeholder colours become classes, in place."""
    names = [attributes["class"]] if "class" in attributes else []
    for kind in ("stroke", "fill"):
        value = attributes.get(kind, "")
        if value in RUNS:
            names.append(f"{kind[0]}{RUNS.index(value)}")
            del attributes[kind]
        elif value == INK:
            attributes[kind] = "currentColor"
    if names:
        attributes["class"] = " ".join(names)
