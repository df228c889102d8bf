"""The page and the table of a comparison: what differs, who is better in what, and the same item from every run, to be heard blind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.files import safe_name
from rlspeech.report import Clip, Grid, Metric, Plot, ReportData, mark
from rlspeech.stages.compare import Comparison, Pairing, Scores
from rlspeech.stages.curves import plots_of, spreads_of
from rlspeech.stages.past import Past, find_sound, shown_path
from rlspeech.stages.picks import beside, pick
from rlspeech.stages.run_facts import cost_of, facts_of, quoted, roles_of, versions_of
from rlspeech.stages.sides import INPUT, RATE_HZ, Side
from rlspeech.stats import Interval
from rlspeech.types import UserError, Utterance

__all__ = ["page_data", "print_comparison"]

SCORES = 4  # metrics beside a player
LONGEST = 160  # of a value in a table
WIDE = 2  # differences that fit beside the means in the terminal
TRAINED = ("rl", "pretrain")
BASIS = (
    "Means of what was scored last, with bootstrap 95 % intervals over items; of recognisers' texts, sums of errors over sums of "
    "words in %. Differences are paired, on the items that are the same in both."
)


def page_data(made: Comparison, players: int) -> ReportData:
    """What the page shows."""
    runs, alone = made.runs, len(made.runs) == 1
    first = next((p for p in made.pairings if p.deltas), None)
    grids = [] if alone else [_runs_grid(runs)]
    grids += [_settings_grid(f"Settings that differ: {stage}", found, runs) for stage, found in made.settings.items()]
    grids += [
        _delta_grid(f"Paired difference to {p.baseline}: {p.stage}", made.metrics, p.deltas)
        for p in made.pairings
        if p.deltas and p is not first
    ]
    if made.own:
        grids.append(_delta_grid("Paired difference to each run's own start", made.metrics, made.own))
    grids += [_settings_grid("Versions that differ", made.versions, runs)] if made.versions else []
    kinds = {r.stage: r.stage for r in runs}
    return ReportData(
        title=f"{' and '.join(kinds)}: {', '.join(r.name for r in runs)}",
        subtitle=runs[0].state() if alone else f"{len(runs)} runs",
        metrics=made.metrics,
        means={s: row for s, row in made.means.items() if row},
        baseline=first.baseline if first else None,
        deltas=first.deltas if first else {},
        plots=[*_plots(runs), *_spreads(made)],
        clips=_clips(made, first, players),
        grids=grids,
        config=runs[0].config if alone else {r.name: r.config for r in runs},
        versions=_versions(runs),
        notes=made.notes,
        basis=BASIS,
        cost=cost_of(runs[0]) if alone else {r.name: text for r in runs if (text := cost_of(r).get("all phases"))},
        facts=facts_of(runs[0]) if alone else {r.name: str(shown_path(r.path)) for r in runs},
        commands=_commands(runs),
    )


def print_comparison(made: Comparison) -> None:
    """One table on stdout: the means, and the differences where there are few."""
    labels = [s for s, row in made.means.items() if row]
    pairs = [(p.baseline, label, row) for p in made.pairings for label, row in p.deltas.items() if label != INPUT]
    beside = pairs if len(pairs) <= WIDE else []
    rows = []
    for m in made.metrics:
        cells: list[Any] = [m.name if m.higher_is_better else f"{m.name} (lower is better)"]
        cells += [_text(made.means[s].get(m.name)) for s in labels]
        rows.append([*cells, *(_marked(m, row.get(m.name)) for _, _, row in beside)])
    notes = list(made.notes)
    if beside:
        notes.append("differences are paired, with bootstrap 95 % intervals; better and worse where they exclude 0")
    elif pairs:
        notes.append(f"{len(pairs)} paired differences are in the report and in --json")
    log.table("Comparison", ["metric", *labels, *(f"{label} - {base}" for base, label, _ in beside)], rows, notes)


def _text(found: Interval | None) -> str:
    return "-" if found is None else found.text()


def _marked(metric: Metric, delta: Interval | None) -> str:
    return "" if delta is None else f"{delta.text(sign=True)} {mark(metric, delta)}".rstrip()


def _delta_grid(title: str, metrics: Sequence[Metric], deltas: Scores) -> Grid:
    shown = [m for m in metrics if any(m.name in row for row in deltas.values())]
    rows = [
        [
            m.name if m.higher_is_better else f"{m.name} (lower is better)",
            *(_marked(m, row.get(m.name)) for row in deltas.values()),
        ]
        for m in shown
    ]
    return Grid(
        title, ["metric", *deltas], rows, "Same items; better and worse where the bootstrap 95 % interval excludes 0."
    )


def _runs_grid(runs: Sequence[Past]) -> Grid:
    rows = [["stage", *(r.stage for r in runs)], ["state", *(r.state() for r in runs)]]
    for label, key in (("task", "task"), ("algorithm", "algo"), ("seed", "seed")):
        rows.append([label, *(str(r.config.get(key, "–")) for r in runs)])
    rows.append(["started", *(str(r.env.get("started", "–")) for r in runs)])
    return Grid("Runs", ["", *(r.name for r in runs)], [row for row in rows if set(row[1:]) != {"–"}])


def _settings_grid(title: str, found: Mapping[str, Mapping[str, Any]], runs: Sequence[Past]) -> Grid:
    names = [r.name for r in runs if any(r.name in by_run for by_run in found.values())]
    rows = [[key, *(_value(by_run[n]) if n in by_run else "–" for n in names)] for key, by_run in found.items()]
    return Grid(title, ["key", *names], rows)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _plots(runs: Sequence[Past]) -> list[Plot]:
    """Steps of one stage are not those of another: each has plots of its own."""
    found: list[Plot] = []
    stages = [s for s in TRAINED if any(r.stage == s and r.metrics for r in runs)]
    for stage in stages:
        some = [r for r in runs if r.stage == stage]
        made = plots_of({r.name: r.metrics for r in some}, roles_of(some), "guard" if stage == "rl" else "valid")
        found += [replace(p, title=f"{stage}: {p.title}") for p in made] if len(stages) > 1 else made
    return found


def _spreads(made: Comparison) -> list[Plot]:
    """How the scores of files are distributed."""
    sides = [s for s in made.sides if s.run.stage == "reward"]
    names = dict.fromkeys(m for s in sides for m in s.means)
    return spreads_of(
        {m: {s.label: list(s.column(m, list(s.rows)).values()) for s in sides if m in s.means} for m in names}
    )


def _versions(runs: Sequence[Past]) -> dict[str, Any]:
    found = {r.name: versions_of(r) for r in runs if versions_of(r)}
    return next(iter(found.values()), {}) if len(runs) == 1 else found


def _commands(runs: Sequence[Past]) -> list[str]:
    found = [
        f"rlspeech report {' '.join(_named(r, r.scores_path if r.scores_path.name != 'scores.jsonl' else r.path) for r in runs)}"
    ]
    task = str(runs[0].config.get("task", ""))
    trained = [r for r in runs if r.stage in TRAINED and r.config.get("task") == task]
    if trained and task in ("flowse", "avse", "asr", "tts"):
        models = " ".join(f"--model {_named(r, r.path)}" for r in trained)
        found.insert(0, f"rlspeech eval{'' if task == 'flowse' else f' --task {task}'} {models}")
    return found


def _named(run: Past, path: Path) -> str:
    """PATH, or NAME=PATH where that says more."""
    return quoted(path) if run.name == path.name or safe_name(run.name) != run.name else f"{run.name}={quoted(path)}"


def _clips(made: Comparison, pairing: Pairing | None, players: int) -> list[Clip]:
    """The same items from every system of the pairing, or of the first stage that can be heard."""
    stage = pairing.stage if pairing else next((s.run.stage for s in made.sides if s.files or s.items or s.rows), "")
    sides = [s for s in made.sides if s.run.stage == stage]
    if not sides or not players:
        return []
    base = next((s for s in sides if pairing and s.label == pairing.baseline), sides[0])
    last = next((s for s in reversed(sides) if s is not base), base)
    shown = [k for k in (pairing.keys if pairing else base.rows) if any(s.heard(k) or s.edits(k) for s in sides)]
    lead = next(
        (m for m in (pairing.deltas.get(last.label, {}) if pairing else base.means) if m in _by_item(base)), None
    )
    if lead is None:
        picked = [(k, "") for k in (shown or list(base.files))[:players]]
    else:
        level, under = (_signed(s, lead, shown) for s in (last, base))
        gain = {k: v - under[k] for k, v in level.items() if k in under} if last is not base else {}
        picked = pick(level, gain, players, lead)
    ends, start = _ends(base.run), {json.dumps(s.run.config.get("model")) for s in sides}
    before = "before" if len(start) == 1 else f"{base.label} before"
    return [_clip(key, label, sides, base, ends, before) for key, label in picked]


def _by_item(side: Side) -> list[str]:
    """Metrics that are known item by item; error rates of a corpus are not."""
    return [m for m in side.means if any(m in row for row in side.rows.values())]


def _signed(side: Side, metric: str, keys: Sequence[str]) -> dict[str, float]:
    sign = 1 if side.run.higher_is_better(metric) else -1
    return {k: sign * v for k, v in side.column(metric, keys).items() if v is not None}


def _clip(key: str, label: str, sides: Sequence[Side], base: Side, ends: Mapping[str, Utterance], before: str) -> Clip:
    audio: dict[str, np.ndarray] = {}
    kept = base.run.sounds("samples") if base.run.stage == "rl" else {}
    for name, folder in ((INPUT, INPUT), ("recording", "recording"), (before, "step_000000")):
        path = find_sound(kept.get(folder, {}), key)
        if path is not None and folder != base.system:
            _load(audio, name, path)
    for side in sides:
        wav = side.sound(key)
        if wav is not None:
            audio[side.label] = wav
    path = find_sound(kept.get("reference", {}), key)
    if path is not None:
        _load(audio, "reference", path)
    elif key in ends and ends[key].target_filepath:
        _load(audio, "reference", str(ends[key].target_filepath), ends[key].offset, ends[key].duration or None)
    elif key in base.items and base.items[key].target:
        _load(audio, "reference", base.items[key].target, base.items[key].offset_s, base.items[key].duration_s)
    edits = {s.label: found for s in sides if (found := s.edits(key))}
    text = base.rows.get(key, {}).get("text")
    scores = {
        s.label: {m: s.column(m, [key])[key] for m in beside(_by_item(s), SCORES)}
        for s in sides
        if s.label in audio and key in s.rows
    }
    words = {s.label: said for s in sides if (said := s.words(key))}
    return Clip(key, audio, RATE_HZ, text if isinstance(text, str) and not edits else "", scores, words, edits, label)


def _load(
    audio: dict[str, np.ndarray], name: str, path: Any, offset_s: float = 0.0, duration_s: float | None = None
) -> None:
    try:
        audio[name] = load_audio(path, RATE_HZ, offset_s, duration_s)
    except AudioError:
        pass  # the other players are there


def _ends(run: Past) -> dict[str, Utterance]:
    """Rows of an evaluation's manifest, for the references; none where it is not to be found."""
    data = run.config.get("data")
    if run.stage != "eval" or not isinstance(data, str) or run.config.get("task") not in ("flowse", "avse"):
        return {}
    try:
        return {u.id: u for u in read_manifest(find_manifest(data, recipe=False))}
    except UserError:
        return {}
