"""Table and ``report.html`` of an evaluation of synthesisers: rates, scores, differences, players, and what was understood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.report import Clip, Grid, Metric, ReportData, mark, render_report
from rlspeech.rewards import base
from rlspeech.rewards.rates import RATES, RateComparison
from rlspeech.stages.curves import curves_behind
from rlspeech.stages.past import past_of
from rlspeech.stages.picks import pick
from rlspeech.stages.recognition_page import edits_of
from rlspeech.stages.run_facts import commands_of, facts_of, versions_of
from rlspeech.types import Utterance

if TYPE_CHECKING:
    from rlspeech.stages.summary import Folder
    from rlspeech.stages.synthesis import Spoken

__all__ = ["direction", "print_table", "write_page"]

HELP = {r.name: r for r in RATES}
RATE_HZ = 16000
SCORES = 6  # metrics shown beside a player
BASIS = (
    "cer, wer and their parts: sums of errors over sums of characters or words of all texts, in %, of what the named recogniser "
    "understood. The rest: means over texts. Bootstrap 95 % intervals over texts; differences are paired."
)


def direction(name: str) -> bool:
    """Whether more of a rate or metric is better."""
    return HELP[name].higher_is_better if name in HELP else base.column_of(name).higher_is_better


def _metrics(made: RateComparison) -> list[Metric]:
    return [
        Metric(m, direction(m), HELP[m].help if m in HELP else base.column_of(m).help)
        for m in next(iter(made.systems.values()))
    ]


def print_table(made: Spoken, baseline: str | None, listener: str, notes: Sequence[str]) -> None:
    """The whole corpus on stdout: values, and the differences beside them."""
    whole, rows = made.whole, list[list[Any]]()
    for m in _metrics(whole):
        cells: list[Any] = [m.name if m.higher_is_better else f"{m.name} (lower is better)"]
        cells += [whole.systems[s][m.name].mean for s in whole.systems]
        rows.append([*cells, *(_difference(whole, s, m) for s in whole.deltas)])
    remarks = [f"{whole.items} texts; cer, wer, their parts and exact in %, as {listener} understands them", *notes]
    log.table("Synthesis", ["", *whole.systems, *(f"{s} - {baseline}" for s in whole.deltas)], rows, remarks)


def _difference(made: RateComparison, system: str, metric: Metric) -> str:
    """A paired difference with its interval, the relative one of a rate in brackets, and what it says."""
    delta, change = made.deltas[system].get(metric.name), made.relative[system].get(metric.name)
    if delta is None:
        return ""
    relative = f" ({change.text(1, sign=True)} %)" if change is not None and math.isfinite(change.mean) else ""
    return f"{delta.text(2 if metric.name in HELP else 3, sign=True)}{relative} {mark(metric, delta)}"


def write_page(
    folder: Folder,
    config: Evaluate,
    made: Spoken,
    summary: Mapping[str, Any],
    notes: Sequence[str],
    device: str,
    page: Path | None = None,
) -> Path:
    """Render ``report.html``, in the run's folder or as ``page``."""
    whole = made.whole
    grids = [_relative_grid(whole, made.baseline)] if whole.relative else []
    grids += [_part_grid(config.by, value, part, made.baseline) for value, part in made.parts.items()]
    run = past_of(folder.path, "eval", config)
    data = ReportData(
        title=f"Synthesis: {', '.join(whole.systems)}",
        subtitle=f"{whole.items} texts of {config.data or 'the embedded test set'}, heard by {summary['recogniser']}, "
        f"compared by {config.normaliser}",
        metrics=_metrics(whole),
        means=whole.systems,
        baseline=made.baseline,
        deltas=whole.deltas,
        grids=grids,
        curves=curves_behind(config.models, config.task),
        clips=_clips(config, made, folder.path),
        config=run.config,
        versions=versions_of(run),
        notes=notes,
        basis=BASIS,
        cost={"device": device, "time": f"{summary['seconds']['total']:.0f} s"},
        facts=facts_of(run),
        commands=commands_of(run),
    )
    return render_report(page or folder.path / "report.html", data)


def _relative_grid(made: RateComparison, baseline: str | None) -> Grid:
    names = list(next(iter(made.relative.values())))
    rows = [
        [
            m,
            *(
                f"{made.relative[s][m].text(1, sign=True)} {mark(Metric(m, direction(m)), made.relative[s][m])}"
                for s in made.relative
            ),
        ]
        for m in names
    ]
    return Grid(
        f"Relative change against {baseline}, in %",
        ["rate", *made.relative],
        rows,
        "In % of the baseline's rate; paired bootstrap over texts, 95 %.",
    )


def _part_grid(by: str, value: str, part: RateComparison, baseline: str | None) -> Grid:
    rows = [
        [
            m.name,
            *(part.systems[s][m.name].text(2) for s in part.systems),
            *(_difference(part, s, m) for s in part.deltas),
        ]
        for m in _metrics(part)
    ]
    return Grid(
        f"{by}: {value}", ["", *part.systems, *(f"{s} - {baseline}" for s in part.deltas)], rows, f"{part.items} texts"
    )


def _clips(config: Evaluate, made: Spoken, folder: Path) -> list[Clip]:
    """Players of the texts that the last system lost and gained most by, in its errors, as many of each, so that they flatter nobody."""
    last, under = made.names[-1], made.baseline if made.baseline != made.names[-1] else None
    by_id = {u.id: u for u in made.utts}
    right = {s: {k: -float(made.table.rows[s, k]["tts_cer"]) for k in by_id} for s in (last, under) if s is not None}
    gain = {k: v - right[under][k] for k, v in right[last].items()} if under is not None else {}
    return [
        _clip(by_id[key], made, folder, label)
        for key, label in pick(right[last], gain, config.players, "characters right")
    ]


def _clip(utt: Utterance, made: Spoken, folder: Path, label: str) -> Clip:
    audio: dict[str, np.ndarray] = {}
    systems = [*(s for s in made.anchors if utt.id in made.judged[s]), *made.names]
    for name, path in [
        ("prompt", utt.prompt_filepath),
        *((s, folder / "audio" / s / f"{utt.id}.flac") for s in systems),
    ]:
        try:
            if path:
                audio[name] = load_audio(path, RATE_HZ)
        except AudioError:
            pass  # its texts are shown all the same
    rows = {s: made.table.rows[s, utt.id] for s in systems}
    facts = [f"{s}: did not stop" for s, row in rows.items() if not row["finished"]]
    scores = {s: {m: row.get(m) for m in made.table.metrics[:SCORES]} for s, row in rows.items()}
    edits = {s: edits_of(made.judged[s][utt.id].found) for s in systems}
    return Clip(utt.id, audio, RATE_HZ, " · ".join([utt.text or "", *facts]), scores, edits=edits, label=label)
