"""``report.html`` of an ``rl`` run, from what its folder holds: curves, gains against the start, players before and after, what it took.

The page is written however the run ends (``finish.py``), and again by ``rlspeech report RUN``, while it goes on or long after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.report import Clip, Grid, Metric, ReportData
from rlspeech.scores import step_name
from rlspeech.stages.curves import plots_of
from rlspeech.stages.past import Past, find_sound
from rlspeech.stages.picks import beside, pick
from rlspeech.stages.run_facts import commands_of, cost_of, facts_of, help_of, last_means, roles_of, versions_of
from rlspeech.stages.validations import Validations, edits_between

__all__ = ["PLAYERS", "RATE_HZ", "page_data", "print_run"]

PLAYERS = 6
SCORES = 6  # metrics beside a player
RATE_HZ = 16000
BASIS = "Mean over the validation clips, without exploration, and its bootstrap 95 % interval; differences are paired clip by clip."


def page_data(run: Past, players: int = PLAYERS) -> ReportData:
    """What the page of a run shows; of a torn one what there is."""
    checks = Validations.of(run)
    places = _places(checks)
    metrics = [Metric(m, run.higher_is_better(m), help_of(m)) for m in checks.metrics]
    means = {name: {m.name: checks.mean(step, m.name) for m in metrics} for name, step in places.items()}
    deltas = {
        name: {m.name: checks.delta(step, m.name) for m in metrics} for name, step in places.items() if name != "before"
    }
    if not means and (last := last_means(run)):
        metrics, means = [Metric(m, run.higher_is_better(m), help_of(m)) for m in last], {"after": last}
    config = run.config
    what = [str(config[k]) for k in ("algo", "task") if config.get(k)]
    return ReportData(
        title=f"{' on '.join(what) or 'rl'}: {run.name}",
        subtitle=run.state(),
        metrics=metrics,
        means=means,
        baseline="before" if deltas else None,
        deltas=deltas,
        plots=plots_of({run.name: run.metrics}, roles_of([run])),
        clips=_clips(checks, places, players),
        grids=_extremes(checks, places),
        config=config,
        versions=versions_of(run),
        cost=cost_of(run),
        notes=_notes(run, checks, places),
        basis=BASIS,
        commands=commands_of(run),
        facts={**{name: f"step {step}" for name, step in places.items()}, **facts_of(run)},
    )


def _places(checks: Validations) -> dict[str, int]:
    """What is compared -> its step."""
    if not checks.steps:
        return {}
    places = {"before": checks.steps[0]}
    if len(checks.steps) > 1:
        places["after"] = checks.steps[-1]
    best = checks.best()
    return places if best is None or best in places.values() else {**places, "best": best}


def print_run(run: Past) -> None:
    """The table that the run ended with, on stdout."""
    checks = Validations.of(run)
    places, roles = _places(checks), roles_of([run])
    if not checks.steps:
        rows = [[m, "-", i.text(), "-", roles.get(m, "guard")] for m, i in last_means(run).items()]
    else:
        last = places.get("after", places["before"])
        rows = [
            [
                m,
                checks.mean(places["before"], m).text(),
                checks.mean(last, m).text(),
                checks.delta(last, m).text(sign=True),
                "all together" if m == "reward" else roles.get(m, "guard"),
            ]
            for m in checks.metrics
        ]
    log.table(f"{run.name}: {run.state()}", ["metric", "before", "after", "difference (95 %)", "role"], rows, run.notes)


def _notes(run: Past, checks: Validations, places: Mapping[str, int]) -> list[str]:
    notes = list(run.notes)
    if not run.metrics:
        notes.append("nothing has been logged yet")
    if not checks.named:
        notes.append(
            "this run kept no names of its validation clips: they can be counted, but not compared with another run's"
        )
    if "best" in places:
        notes.append(
            "the best was chosen on these clips, which flatters it; it is the one that --model takes for the run"
        )
    last = checks.steps[-1] if checks.steps else 0
    return notes + [f"{count} clips without {why}" for why, count in list(checks.errors(last).items())[:8]]


def _lead(checks: Validations) -> str | None:
    return "reward" if "reward" in checks.metrics else next(iter(checks.metrics), None)


def _changes(checks: Validations, places: Mapping[str, int]) -> tuple[str, dict[str, float], dict[str, float]]:
    """The metric that clips are ranked by, its value after and its gain by clip, signed so that more is better."""
    lead = _lead(checks)
    if lead is None or "before" not in places:
        return "", {}, {}
    last, sign = places.get("after", places["before"]), 1 if checks.run.higher_is_better(lead) else -1
    level = {k: sign * v for k in checks.keys if (v := checks.value(last, k, lead)) is not None}
    under = {k: sign * v for k in checks.keys if (v := checks.value(places["before"], k, lead)) is not None}
    return lead, level, {k: v - under[k] for k, v in level.items() if k in under} if "after" in places else {}


def _extremes(checks: Validations, places: Mapping[str, int]) -> list[Grid]:
    lead, _, gain = _changes(checks, places)
    if len(gain) < 2 or not any(gain.values()) or not checks.named:
        return []
    ranked = sorted(gain, key=lambda k: (gain[k], k))
    shown = ranked if len(ranked) <= 6 else [*ranked[:3], *ranked[-3:]]
    cells = [
        [k, *(f"{checks.value(places[p], k, lead):.3f}" for p in ("before", "after")), f"{gain[k]:+.3f}"] for k in shown
    ]
    note = f"{sum(v > 0 for v in gain.values())} of {len(gain)} clips are better than before, {sum(v < 0 for v in gain.values())} worse."
    return [Grid(f"Clips that lost and gained most: {lead}", ["clip", "before", "after", "better by"], cells, note)]


def _clips(checks: Validations, places: Mapping[str, int], players: int) -> list[Clip]:
    """Players of the clips that lost and gained most, among those that can be heard or read."""
    kept = checks.run.sounds("samples")
    files = {name: kept.get(step_name(step), {}) for name, step in places.items()}
    lead, level, gain = _changes(checks, places)

    def shown(key: str) -> bool:
        return all(find_sound(files[n], key) is not None for n in ("before", "after") if n in places) or any(
            checks.texts(s, key)[1] is not None for s in places.values()
        )

    picked = pick(
        {k: v for k, v in level.items() if shown(k)}, {k: v for k, v in gain.items() if shown(k)}, players, lead
    )
    if not picked:  # a run that kept audio and no scores
        last = next((kept[name] for name in sorted(kept, reverse=True) if name.startswith("step_")), {})
        files = files or {"after": last}
        picked = [(stem, "") for stem in list(last)[:players]]
    return [_clip(checks, places, {**_inputs(kept), **files}, key, label) for key, label in picked]


def _inputs(kept: Mapping[str, Mapping[str, Path]]) -> dict[str, Mapping[str, Path]]:
    return {name: kept[name] for name in ("input", "recording", "reference") if name in kept}


def _clip(
    checks: Validations, places: Mapping[str, int], files: Mapping[str, Mapping[str, Path]], key: str, label: str
) -> Clip:
    audio: dict[str, np.ndarray] = {}
    for name in ("input", "recording", "before", "after", "best", "reference"):
        path = find_sound(files.get(name, {}), key)
        if path is not None:
            try:
                audio[name] = load_audio(path, RATE_HZ)
            except AudioError as error:
                log.warn(f"{path}: {error.reason}")
    edits, said = {}, None
    for name, step in places.items():
        said, heard = checks.texts(step, key)
        if said is not None and heard is not None:
            edits[name] = edits_between(said, heard)
    shown = (
        beside([*checks.metrics[-1:], *checks.metrics[:-1]], SCORES) if checks.named else []
    )  # the last is all rewards together
    scores = {
        name: {m: checks.value(step, key, m) for m in shown} for name, step in places.items() if shown and name in audio
    }
    words = {name: text for name, step in places.items() if (text := checks.words(step, key))}
    return Clip(key, audio, RATE_HZ, said or "" if not edits else "", scores, words, edits, label)
