"""Table and ``report.html`` of an evaluation of recognisers: rates, relative changes, conditions, and texts with their mistakes marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.text import Alignment
from rlspeech.report import Clip, Edit, Grid, Metric, ReportData, mark, render_report
from rlspeech.rewards.rates import RATES, RateComparison
from rlspeech.stages.curves import curves_behind
from rlspeech.stages.past import past_of
from rlspeech.stages.picks import pick
from rlspeech.stages.run_facts import commands_of, facts_of, versions_of
from rlspeech.stats import Interval
from rlspeech.types import Utterance

if TYPE_CHECKING:
    from rlspeech.stages.recognition import Judgements
    from rlspeech.stages.summary import Folder

__all__ = ["edits_of", "print_table", "write_page"]

HELP = {r.name: r for r in RATES}
RATE_HZ = 16000
BASIS = (
    "Sums of errors over sums of words of all utterances, with bootstrap 95 % intervals over utterances. Rates are in %, "
    "inserted_words in words a recording. wer and its parts count utterances in which something is said."
)


SHOWN = (
    "wer",
    "insertions",
    "hallucinated",
)  # of many systems the terminal shows these differences; all are in the report
WIDE = 2  # differences that fit beside the means


def print_table(made: RateComparison, baseline: str | None, notes: Sequence[str], config: Evaluate) -> None:
    """The whole corpus on stdout: means with the differences beside them, or below where there are many systems."""
    metrics = _metrics(made)
    beside = made.deltas if len(made.deltas) <= WIDE else {}
    rows = []
    for m in metrics:
        name = m.name if m.higher_is_better else f"{m.name} (lower is better)"
        cells: list[Any] = [name, *(made.systems[s][m.name].mean for s in made.systems)]
        rows.append([*cells, *(_difference(made, s, m) for s in beside)])
    heading = ["", *made.systems, *(f"{s} - {baseline} (relative)" for s in beside)]
    remarks = [f"% of {made.items} utterances' words, texts by {config.normaliser}", *notes]
    log.table("Recognition", heading, rows, [] if made.deltas and not beside else remarks)
    if made.deltas and not beside:
        some = [m for m in metrics if m.name in SHOWN]
        table = [[s, *(_difference(made, s, m) for m in some)] for s in made.deltas]
        log.table(
            f"Differences to {baseline} (relative), lower is better", ["", *(m.name for m in some)], table, remarks
        )


def _difference(made: RateComparison, system: str, metric: Metric) -> str:
    """A paired difference with its interval, the relative one in brackets, and what it says."""
    delta, change = made.deltas[system][metric.name], made.relative[system][metric.name]
    relative = f" ({change.text(1, sign=True)} %)" if math.isfinite(change.mean) else ""
    return f"{delta.text(2, sign=True)}{relative} {mark(metric, delta)}"


def write_page(
    folder: Folder,
    config: Evaluate,
    made: Judgements,
    summary: Mapping[str, Any],
    notes: Sequence[str],
    means: Mapping[str, Mapping[str, Any]],
    device: str,
    page: Path | None = None,
) -> Path:
    """Render ``report.html``, in the run's folder or as ``page``."""
    whole, baseline = made.whole, summary["baseline"]
    grids = [_relative_grid(whole, baseline)] if whole.relative else []
    grids += [_condition_grid(config.by, value, part, baseline) for value, part in made.parts.items()]
    if any(means.values()):
        names = list(next(iter(means.values())))
        grids.append(
            Grid(
                "Further metrics",
                ["metric", *means],
                [[m, *(means[s][m].text() for s in means)] for m in names],
                "Means over utterances with bootstrap 95 % intervals.",
            )
        )
    run = past_of(folder.path, "eval", config)
    data = ReportData(
        title=f"Recognition: {', '.join(whole.systems)}",
        subtitle=f"{whole.items} utterances of {config.data or 'the embedded test set'}, texts by {config.normaliser}",
        metrics=_metrics(whole),
        means=whole.systems,
        baseline=baseline,
        deltas=whole.deltas,
        grids=grids,
        curves=curves_behind(config.models, config.task),
        clips=_clips(config, made, baseline),
        config=run.config,
        versions=versions_of(run),
        notes=notes,
        basis=BASIS,
        cost={"device": device, "time": f"{summary['seconds']['total']:.0f} s"},
        facts=facts_of(run),
        commands=commands_of(run),
    )
    return render_report(page or folder.path / "report.html", data)


def _metrics(made: RateComparison) -> list[Metric]:
    return [Metric(name, HELP[name].higher_is_better, HELP[name].help) for name in next(iter(made.systems.values()))]


def _relative_grid(made: RateComparison, baseline: str) -> Grid:
    rows = [
        [m, *(_marked(m, made.relative[s][m], 1) for s in made.relative)] for m in next(iter(made.systems.values()))
    ]
    return Grid(
        f"Relative change against {baseline}, in %",
        ["rate", *made.relative],
        rows,
        "In % of the baseline's rate; paired bootstrap over utterances, 95 %.",
    )


def _condition_grid(by: str, value: str, part: RateComparison, baseline: str | None) -> Grid:
    names = list(next(iter(part.systems.values())))
    heading = [
        "rate",
        *part.systems,
        *(f"{s} - {baseline}" for s in part.deltas),
        *(f"{s}, relative %" for s in part.relative),
    ]
    rows = []
    for m in names:
        cells = [part.systems[s][m].text(2) for s in part.systems] + [
            _marked(m, part.deltas[s][m], 2) for s in part.deltas
        ]
        rows.append([m, *cells, *(part.relative[s][m].text(1, sign=True) for s in part.relative)])
    return Grid(f"{by}: {value}", heading, rows, f"{part.items} utterances")


def _marked(name: str, change: Interval, digits: int) -> str:
    return f"{change.text(digits, sign=True)} {mark(Metric(name, HELP[name].higher_is_better), change)}"


def _clips(config: Evaluate, made: Judgements, baseline: str | None) -> list[Clip]:
    """What the last system lost and gained most against the baseline, by errors; of a single system the worst and the best by rate."""
    systems = list(made.rows)
    last, under = made.rows[systems[-1]], made.rows[baseline] if baseline and baseline != systems[-1] else None
    by_id = {u.id: u for u in made.utts}

    def wrong(one: Any) -> float:
        return float(one.counts["errors"] + one.counts["inserted"])

    level = {k: -wrong(last[k]) / max(1, last[k].counts["words"]) for k in by_id}
    gain = {k: wrong(under[k]) - wrong(last[k]) for k in by_id} if under else {}
    return [_clip(by_id[key], made, systems, label) for key, label in pick(level, gain, config.players, "words right")]


def _clip(utt: Utterance, made: Judgements, systems: Sequence[str], label: str) -> Clip:
    audio: dict[str, np.ndarray] = {}
    try:
        audio["recording"] = load_audio(utt.audio_filepath, RATE_HZ, utt.offset, utt.duration or None)
    except AudioError:
        pass  # its texts are shown all the same
    facts = [f"{k} {v}" for k, v in {**utt.extra}.items() if k in ("condition", "set", "kind") and isinstance(v, str)]
    fired = {s: "+".join(made.rows[s][utt.id].judged.fired) for s in systems}
    facts += [f"{s}: hallucination ({rules})" for s, rules in fired.items() if rules]
    edits = {s: edits_of(made.rows[s][utt.id].judged.found) for s in systems}
    return Clip(utt.id, audio, RATE_HZ, " · ".join(facts), edits=edits, label=label)


def edits_of(found: Alignment) -> list[Edit]:
    """An alignment as runs of units for the page."""
    return [Edit(tag, " ".join(found.reference[a:b]), " ".join(found.hypothesis[c:d])) for tag, a, b, c, d in found.ops]
