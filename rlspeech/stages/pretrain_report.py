"""``report.html`` of a ``pretrain`` run, from what its folder holds: curves of loss and validation, samples to hear or read, and cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.files import read_jsonl
from rlspeech.report import Clip, Edit, Metric, ReportData
from rlspeech.stages.curves import plots_of
from rlspeech.stages.past import Past, find_sound
from rlspeech.stages.run_facts import commands_of, cost_of, facts_of, help_of, last_means, validated, versions_of
from rlspeech.stages.validations import edits_between
from rlspeech.stats import Interval

__all__ = ["page_data", "print_run"]

PLAYERS = 6
RATE_HZ = 16000
INPUTS = ("input", "recording", "original", "reference")
BASIS = (
    "Means over the validation clips by the averaged weights, with a bootstrap 95 % interval where one is known. Two columns are two "
    "moments of one run, not a comparison: nothing is paired."
)
Said = dict[str, tuple[str, str]]


def page_data(run: Past, players: int = PLAYERS) -> ReportData:
    """What the page of a run shows; of a torn one what there is."""
    means = _means(run)
    metrics = [
        Metric(m, run.higher_is_better(m), help_of(m)) for m in dict.fromkeys(m for row in means.values() for m in row)
    ]
    notes = run.notes if run.metrics else [*run.notes, "nothing has been logged yet"]
    return ReportData(
        title=f"pretrain {run.config.get('task', '')}: {run.name}".replace(" :", ":"),
        subtitle=run.state(),
        metrics=metrics,
        means=means,
        plots=plots_of({run.name: run.metrics}, {}, "valid"),
        clips=_clips(run, players),
        config=run.config,
        versions=versions_of(run),
        cost=cost_of(run),
        notes=notes,
        basis=BASIS,
        commands=commands_of(run),
        facts=facts_of(run),
    )


def print_run(run: Past) -> None:
    """The table that the run ends with, on stdout."""
    means = _means(run)
    names = dict.fromkeys(m for row in means.values() for m in row)
    rows = [[m, *(row[m].text() if m in row else "-" for row in means.values())] for m in names]
    log.table(f"pretrain: {run.config.get('task', run.name)}, {run.state()}", ["metric", *means], rows, run.notes)


def _means(run: Past) -> dict[str, dict[str, Interval]]:
    """The first validation and the last, by their steps."""
    steps = validated(run)
    return {f"step {step}": last_means(run, step) for step in dict.fromkeys([*steps[:1], *steps[-1:]])}


def _clips(run: Past, players: int) -> list[Clip]:
    """Players, or texts, of what was kept at the first validation and the last."""
    kept = run.sounds("samples")
    said = {
        name: _said(run.path / "samples" / name)
        for name in sorted(p.name for p in (run.path / "samples").glob("step_*"))
    }
    steps = sorted({*(n for n in kept if n.startswith("step_") and kept[n]), *(n for n, rows in said.items() if rows)})
    if not steps:
        return []
    places = {_step(n): n for n in dict.fromkeys([steps[0], steps[-1]])}
    last = steps[-1]
    keys = list(dict.fromkeys([*kept.get(last, {}), *said.get(last, {})]))[:players]
    return [_clip(kept, said, places, key) for key in keys]


def _step(name: str) -> str:
    return f"step {int(name.removeprefix('step_'))}" if name.removeprefix("step_").isdecimal() else name


def _clip(
    kept: Mapping[str, Mapping[str, Path]], said: Mapping[str, Said], places: Mapping[str, str], key: str
) -> Clip:
    audio: dict[str, np.ndarray] = {}
    ends = [(name, name) for name in INPUTS]
    for shown, name in [*ends[:-1], *places.items(), *ends[-1:]]:
        path = find_sound(kept.get(name, {}), key)
        if path is not None:
            try:
                audio[shown] = load_audio(path, RATE_HZ)
            except AudioError as error:
                log.warn(f"{path}: {error.reason}")
    edits: dict[str, list[Edit]] = {}
    for shown, name in places.items():
        if key in said.get(name, {}):
            edits[shown] = list(edits_between(*said[name][key]))
    return Clip(key, audio, RATE_HZ, edits=edits)


def _said(folder: Path) -> Said:
    """Transcripts that a validation kept: key -> text and hypothesis."""
    path = folder / "said.jsonl"
    rows = read_jsonl(path) if path.is_file() else []
    return {
        str(r["id"]): (r["text"], r["hypothesis"])
        for r in rows
        if "id" in r and isinstance(r.get("text"), str) and isinstance(r.get("hypothesis"), str)
    }
