"""Plots: bands where there are intervals, the start where there is one, histograms that lose nothing."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from rlspeech.report import Line, figures
from rlspeech.report.figures import plots_of, spreads_of
from rlspeech.stats import Interval, interval_columns


def _rows(scale: float = 1.0) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for step in (0, 5, 10):
        middle, alone = scale * step, Interval(3.0 + step, math.nan, math.nan, 1)
        found = {"a": Interval(middle, middle - 1, middle + 1, 8), "g": alone}
        odd = {"constant": 1.0, "time": step, "odd": "x", "flag": True, "none": math.nan}
        said = dict.fromkeys(("reward", "lr", "seconds/update", "memory_mb/update"), 1.0 + step)
        rows.append({"step": step, "kl": 0.1 * step, **said, **odd})
        rows.append({"step": step, **interval_columns("valid", found), **interval_columns("delta", found)})
    return rows


def test_intervals_roles_and_starts() -> None:
    plots = {p.title: p for p in plots_of({"one": _rows()}, {"a": "reward"})}
    assert [p for p in plots if p.startswith(("delta", "valid"))] == ["delta/a", "valid/a", "delta/g", "valid/g"]
    assert plots["valid/a"].kind == "reward" and plots["valid/g"].kind == "guard"
    assert plots["seconds/update"].kind == "cost"
    (line,) = plots["valid/a"].lines
    assert list(line.steps) == [0, 5, 10] and list(line.lo or ()) == [-1, 4, 9] and list(line.hi or ()) == [1, 6, 11]
    assert plots["valid/g"].lines[0].lo is None and plots["valid/g"].start == 3.0 and plots["kl"].start is None
    assert not {"constant", "time", "odd", "flag", "none", "valid/a_lo"} & set(plots)
    kinds = dict.fromkeys(("valid/a", "valid/g", "reward"), "reward") | {"kl": "train", "lr": "train"}
    kinds |= {"seconds/update": "cost", "memory_mb/update": "cost"}
    assert {p.title: p.kind for p in figures.from_rows({"one": _rows()})} == kinds


def test_runs_share_a_plot_and_a_start_only_where_it_is_the_same() -> None:
    plots = {p.title: p for p in plots_of({"one": _rows(), "two": [{**r, "valid/g": 9.0} for r in _rows(2.0)]}, {})}
    assert [line.run for line in plots["valid/a"].lines] == ["one", "two"] and plots["valid/a"].start == 0.0
    assert plots["valid/g"].start is None


@pytest.mark.parametrize("count", [2, 50, 1000])
def test_histograms_count_every_value(count: int) -> None:
    values = np.random.default_rng(0).standard_normal(count)
    (plot,) = spreads_of({"m": {"s": [*values.tolist(), None, math.nan], "t": (values + 3).tolist()}})
    assert [sum(line.mean) for line in plot.lines] == [count, count] and "2 without a value" in plot.note
    assert list(plot.lines[0].steps) == list(plot.lines[1].steps) and 6 <= len(plot.lines[0].steps) <= 24
    middle = np.average(plot.lines[0].steps, weights=plot.lines[0].mean)
    assert middle == pytest.approx(values.mean(), abs=np.ptp(values) / 4 + 0.6)


def test_nothing_to_draw() -> None:
    assert (
        plots_of({}, {}) == []
        and plots_of({"a": [], "b": _rows()[:2]}, {}) == []
        and spreads_of({"m": {"s": [1.0, None]}}) == []
    )
    assert spreads_of({"m": {"s": [2.0, 2.0, 2.0]}})[0].lines[0].mean  # a constant has a bin too


def test_histograms_are_drawn_in_a_group_of_their_own() -> None:
    values = {"s": [0.1 * i for i in range(30)], "t": [0.2 * i for i in range(30)]}
    (plot,) = spreads_of({"m": values})
    (group,) = figures.groups([replace(plot, lines=[*plot.lines, Line("torn", [1.0, 2.0], [1.0])])])
    assert group.title == "Distributions" and [run for _, run in group.runs] == ["s", "t", "torn"]
    (drawing,) = group.drawings
    assert "how many have which value" in drawing.says and ET.fromstring(str(drawing.svg)).tag.endswith("svg")
    assert str(drawing.svg).count('class="run1"') == 2 and len(drawing.ends) == 2
    assert drawing.ends[0].first == pytest.approx(0.0) and drawing.ends[0].last == pytest.approx(5.8)
