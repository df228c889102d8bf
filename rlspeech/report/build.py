"""One page, and one table, of any run or of several, from what their folders hold.

    verdict - players and texts - scores, differences, further tables - curves - the run, what to type next, notes

The page that a stage writes at its end and the one of ``rlspeech report RUN`` are the same call, ``write_page(folder)``.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.files import safe_name
from rlspeech.report import Grid, Metric, Plot, ReportData, mark
from rlspeech.report.calibrate import calibrated, calibration_grids
from rlspeech.report.compare import Comparison, Scores, System, compare, within
from rlspeech.report.figures import Kind, from_rows, plots_of, spreads_of
from rlspeech.report.players import clips_of, ranked
from rlspeech.report.render import render_report
from rlspeech.report.runs import INPUT, RunRecord, at, number, open_runs, shown_path
from rlspeech.stats import Interval
from rlspeech.tracking import read_metrics

PLAYERS = 6
TRAINED = ("rl", "pretrain")
LONGEST = 160  # of a value in a table
WIDE = 2  # differences that fit beside the means in the terminal
REASONS = 5  # of a metric
MOST = 20  # notes on rows
BEST = "the best was chosen on these clips, which flatters it; it is the one that --model takes for the run"
SAME = "Same items; better and worse where the bootstrap 95 % interval excludes 0."
PLAIN = "Mean over items and its bootstrap 95 % interval."
BASES = {
    "eval": PLAIN,
    "reward": PLAIN,
    "rl": "Mean over the validation clips, without exploration, and its bootstrap 95 % interval; differences are paired clip by clip.",
    "pretrain": "Means over the validation clips by the averaged weights, with a bootstrap 95 % interval where one is known. Two columns "
    "are two moments of one run, not a comparison: nothing is paired.",
    "several": "Means of what was scored last, with bootstrap 95 % intervals over items; of recognisers' texts, sums of errors over sums "
    "of words in %. Differences are paired, on the items that are the same in both.",
    "texts": "Error rates are in %. Sums of errors over sums of words (or characters) of all items that are in every system; the rest are "
    "means over items. Bootstrap 95 % intervals over items; differences are paired. inserted_words are words a recording.",
}
WHAT = {"rl": "{algo} on {task}", "pretrain": "pretrain {task}", "eval": "Evaluation of {task}", "reward": "Scores"}


def write_page(folder: Path) -> Path | None:
    """Write the page of a run that has written its folder; a page that cannot be built never ends a run.

    Args:
        folder: of a run, or the scores file of ``rlspeech reward``.

    Returns:
        the page: ``report.html`` there, ``NAME.report.html`` beside ``NAME.scores.jsonl``; None, with a warning, where it cannot be built.
    """
    try:
        [run] = open_runs([str(folder)])
        return render_report(run.page, build(within(run)))
    except Exception as error:
        log.warn(f"no report of this run ({type(error).__name__}: {error}); try: rlspeech report {shown_path(folder)}")
        return None


def compared(runs: Sequence[RunRecord]) -> Comparison:
    """What a page of these runs shows: one within itself, several side by side."""
    return within(runs[0]) if len(runs) == 1 else compare(runs)


@log.waiting("writing the report")
def build(made: Comparison, players: int | None = None) -> ReportData:
    """Put together what the page shows; of torn runs what there is.

    Args:
        made: the systems.
        players: items with players; None: as the run says, else 6.
    """
    runs, run = made.runs, made.alone
    given = run.config.get("players") if run else None
    count = players if players is not None else given if isinstance(given, int) else PLAYERS
    counted = any(s.counts for s in made.systems)
    pairing = made.pairing
    clips, how = clips_of(made, count)
    return ReportData(
        title=_title(made),
        subtitle=_subtitle(made),
        metrics=made.metrics,
        means={s: row for s, row in made.means.items() if row},
        baseline=pairing.baseline if pairing else None,
        deltas=pairing.deltas if pairing else {},
        plots=[*_curves(runs), *_spreads(made)],
        clips=clips,
        grids=_grids(made),
        config=run.config if run else {r.name: r.config for r in runs},
        versions=versions_of(run) if run else {r.name: v for r in runs if (v := versions_of(r))},
        notes=list(dict.fromkeys([*_notes(made), *(run.notes if run else ()), *how])),
        basis=BASES["several" if not run else "texts" if counted else run.stage],
        cost=cost_of(run) if run else {r.name: text for r in runs if (text := cost_of(r).get("all phases"))},
        facts=facts_of(made, run) if run else {r.name: str(shown_path(r.path)) for r in runs},
        commands=commands_of(run) if run else commands_of_several(runs),
    )


def print_table(made: Comparison) -> None:
    """Print means, and the differences where there are few, on stdout."""
    run, labels = made.alone, [s for s, row in made.means.items() if row]
    pairs = [(p.baseline, label, row) for p in made.pairings for label, row in p.deltas.items() if label != INPUT]
    shown = pairs if len(pairs) <= WIDE else []
    roles = _roles(made.runs) if run and run.stage == "rl" else {}

    def difference(m: Metric, label: str, row: Mapping[str, Interval]) -> str:
        return _difference(m, row.get(m.name), at(made.relative, label, m.name))

    rows = []
    for m in made.metrics:
        means = [made.means[s].get(m.name) for s in labels]
        cells: list[Any] = [_directed(m), *("-" if mean is None else mean.text() for mean in means)]
        cells += [difference(m, s, row) for _, s, row in shown]
        rows.append([*cells, *([roles.get(m.name, "guard")] if roles else [])])
    heading = ["metric", *labels, *(f"{label} - {base}" for base, label, _ in shown), *(["role"] if roles else [])]
    notes = [*made.notes, *_missing(made)]
    if pairs:
        notes.append("differences are paired, with bootstrap 95 % intervals; better and worse where they exclude 0")
    title, many = f"{run.name}: {run.state()}" if run else "Comparison", bool(pairs and not shown)
    log.table(title, heading, rows, [] if many else notes)
    if many:  # too many to stand beside the means
        some = [m for m in made.metrics if any(m.name in row for _, _, row in pairs)][:WIDE]
        table = [[f"{s} - {b}", *(difference(m, s, row) for m in some)] for b, s, row in pairs]
        notes.append("all of them are in the report and in --json")
        log.table("Differences", ["", *map(_directed, some)], table, notes)


def _title(made: Comparison) -> str:
    run = made.alone
    if run is None:
        return f"{' and '.join(dict.fromkeys(r.stage for r in made.runs))}: {', '.join(r.name for r in made.runs)}"
    names = {"algo": run.method, "task": str(run.config.get("task") or "")}
    what = WHAT[run.stage].format(**names).strip().removesuffix(" on").removesuffix(" of").removeprefix("on ")
    systems = [s.label for s in made.systems if run.stage == "reward" or s.name != INPUT]
    return f"{what or run.stage}: {run.name if run.stage in TRAINED else ', '.join(systems) or 'unprocessed input'}"


def _subtitle(made: Comparison) -> str:
    run = made.alone
    if run is None:
        return f"{len(made.runs)} runs"
    if run.stage != "eval" or made.items is None:
        return run.state()
    video = run.config.get("video", "right")
    parts = {"texts by": run.summary.get("normaliser"), "recognised by": run.summary.get("recogniser")}
    parts["video:"] = None if video == "right" else video
    found = f"{log.several(made.items, 'utterance')} of {run.config.get('data') or 'the embedded test set'}"
    return ", ".join([found, *(f"{k} {v}" for k, v in parts.items() if v)])


def _directed(metric: Metric) -> str:
    return metric.name if metric.higher_is_better else f"{metric.name} (lower is better)"


def _difference(metric: Metric, delta: Interval | None, relative: Interval | None = None, digits: int = 3) -> str:
    """A paired difference with its interval, the relative one in brackets, and what it says."""
    if delta is None:
        return ""
    change = f" ({relative.text(1, sign=True)} %)" if relative and math.isfinite(relative.mean) else ""
    return f"{delta.text(digits, sign=True)}{change} {mark(metric, delta)}".rstrip()


# Tables.


def _grids(made: Comparison) -> list[Grid]:
    """Tables beside means and differences."""
    run, pairing = made.alone, made.pairing
    grids = [] if run else [_runs_grid(made.runs)]
    grids += [_settings_grid(f"Settings that differ: {s}", found, made.runs) for s, found in made.settings.items()]
    for p in made.pairings:
        if p.deltas and p is not pairing:
            grids.append(_delta_grid(f"Paired difference to {p.baseline}: {p.stage}", made.metrics, p.deltas))
    grids += [_delta_grid("Paired difference to each run's own start", made.metrics, made.own)] if made.own else []
    grids += [_settings_grid("Versions that differ", made.versions, made.runs)] if made.versions else []
    if made.relative and pairing:
        note = "In % of the baseline's rate; paired bootstrap over items, 95 %."
        title = f"Relative change against {pairing.baseline}, in %"
        grids.append(_delta_grid(title, made.metrics, made.relative, 1, note))
    column = run.summary.get("by_column") if run else ""
    grids += [_part_grid(f"{column}: {value}", part) for value, part in made.parts.items()]
    if run and run.stage == "reward":
        grids += [*calibration_grids(_calibration(made)), *_lost(made)]
    return grids + (_extremes(made) if run and run.stage == "rl" else [])


def _delta_grid(title: str, metrics: Sequence[Metric], deltas: Scores, digits: int = 3, note: str = SAME) -> Grid:
    shown = [m for m in metrics if any(m.name in row for row in deltas.values())]
    rows = [[_directed(m), *(_difference(m, d.get(m.name), None, digits) for d in deltas.values())] for m in shown]
    return Grid(title, ["metric", *deltas], rows, note)


def _part_grid(title: str, part: Comparison) -> Grid:
    """Means and differences over the items that have one value in a column."""
    deltas = part.pairing.deltas if part.pairing else {}
    rows = []
    for m in part.metrics:
        cells = [row[m.name].text(2) if m.name in row else "-" for row in part.means.values()]
        cells += [_difference(m, row.get(m.name), at(part.relative, s, m.name), 2) for s, row in deltas.items()]
        rows.append([m.name, *cells])
    against = [f"{s} - {part.pairing.baseline}" for s in deltas] if part.pairing else []
    return Grid(title, ["metric", *part.means, *against], rows, log.several(part.items or 0, "item"))


def _runs_grid(runs: Sequence[RunRecord]) -> Grid:
    rows = [["stage", *(r.stage for r in runs)], ["state", *(r.state() for r in runs)]]
    for label, key in (("task", "task"), ("algorithm", "algo"), ("seed", "seed")):
        rows.append([label, *(r.method or "–" if key == "algo" else str(r.config.get(key, "–")) for r in runs)])
    rows.append(["started", *(str(r.env.get("started", "–")) for r in runs)])
    return Grid("Runs", ["", *(r.name for r in runs)], [row for row in rows if set(row[1:]) != {"–"}])


def _settings_grid(title: str, found: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRecord]) -> Grid:
    names = [r.name for r in runs if any(r.name in by_run for by_run in found.values())]

    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."

    rows = [[key, *(cell(by_run[n]) if n in by_run else "–" for n in names)] for key, by_run in found.items()]
    return Grid(title, ["key", *names], rows)


def _extremes(made: Comparison) -> list[Grid]:
    """The clips of an ``rl`` run that lost and gained most."""
    pairing = made.pairing
    lead, _, gain = ranked(made, pairing.keys) if pairing else ("", {}, {})
    if len(gain) < 2 or not any(gain.values()):
        return []
    order = sorted(gain, key=lambda k: (gain[k], k))
    keys = order if len(order) <= 6 else [*order[:3], *order[-3:]]
    values = [s.column(lead, keys) for s in made.systems if s.label in ("before", "after")]
    cells = [[k, *(f"{v[k]:.3f}" for v in values), f"{gain[k]:+.3f}"] for k in keys]
    better, worse = (sum(sign * v > 0 for v in gain.values()) for sign in (1, -1))
    note = f"{better} of {len(gain)} clips are better than before, {worse} worse."
    return [Grid(f"Clips that lost and gained most: {lead}", ["clip", "before", "after", "better by"], cells, note)]


def _calibration(made: Comparison) -> dict[str, Any] | None:
    """How the scores of one system follow a known order, where its rows carry one."""
    system = made.systems[0] if len(made.systems) == 1 else None
    if system is None or not made.runs[0].config:
        return None
    columns = {k: o.columns for k, o in system.origins.items() if k in system.rows}
    better = {m: bool(facts.get("higher_is_better", True)) for m, facts in made.runs[0].metas(system.name).items()}
    return calibrated(system.rows, columns, better, made.runs[0].seed)


def _lost(made: Comparison) -> list[Grid]:
    """Reasons of what could not be scored, counted."""
    rows = []
    for s in made.systems:
        for m in s.run.metas(s.name):
            reasons = Counter(str(e) for r in s.rows.values() if (e := at(r, "errors", m)))
            named = [m] if len(made.systems) == 1 else [s.label, m]
            rows += [[*named, str(count), reason] for reason, count in reasons.most_common(REASONS)]
    heading = ["metric", "files", "reason"] if len(made.systems) == 1 else ["system", "metric", "files", "reason"]
    return [Grid("Files without a score", heading, rows)] if rows else []


# --------------------------------------------------------------------------------------------------- curves and notes


def _roles(runs: Sequence[RunRecord]) -> dict[str, Kind]:
    """Metric -> rewarded or watched, by any of the runs."""
    kinds: tuple[tuple[Kind, str], ...] = (("guard", "guards"), ("reward", "rewards"))
    roles: dict[str, Kind] = {s["name"]: kind for kind, key in kinds for r in runs for s in _specs(r, key)}
    return {**roles, "reward": "reward"}


def _curves(runs: Sequence[RunRecord]) -> list[Plot]:
    """Curves of the runs that train, of each stage its own; of an evaluation alone those of the runs that its models come from."""
    found: list[Plot] = []
    stages = [s for s in TRAINED if any(r.stage == s and r.metrics for r in runs)]
    for stage, some in ((s, [r for r in runs if r.stage == s]) for s in stages):
        roles = _roles(some) if stage == "rl" else {}
        made = plots_of({r.name: r.metrics for r in some}, roles, "guard" if stage == "rl" else "valid")
        found += [replace(p, title=f"{stage}: {p.title}") for p in made] if len(stages) > 1 else made
    models = runs[0].config.get("models") if len(runs) == 1 and runs[0].stage == "eval" else None
    return found + from_rows(_behind(models)) if isinstance(models, dict) else found


def _behind(models: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the runs that checkpoints come from, by the name of the model; a model without a run, or one that is gone, has none."""
    paths = {name: Path(str(given)).absolute() for name, given in models.items()}
    folders = {name: p.parent.parent if p.parent.name == "checkpoints" else p for name, p in paths.items()}
    return {name: rows for name, folder in folders.items() if (rows := read_metrics(folder / "metrics.jsonl"))}


def _spreads(made: Comparison) -> list[Plot]:
    """How the scores of files are distributed."""
    some = [s for s in made.systems if s.run.stage == "reward"]
    names = dict.fromkeys(m for s in some for m in s.means)
    return spreads_of({m: {s.label: [*s.column(m, [*s.rows]).values()] for s in some if m in s.means} for m in names})


def _notes(made: Comparison) -> list[str]:
    """What a reader has to know of the numbers."""
    notes, run = list(made.notes), made.alone
    by_item = run and run.stage == "rl" and made.systems and made.systems[0].rows
    if run and run.stage in TRAINED and not run.metrics:
        notes.append("nothing has been logged yet")
    if any(s.label == "best" for s in made.systems) and run:
        notes.append(BEST)
    if by_item:
        last = [s for s in made.systems if s.label != "best"][-1]
        errors = Counter(f"{m}: {why}" for r in last.rows.values() for m, why in _errors(r).items())
        notes += [f"{count} clips without {why}" for why, count in errors.most_common(8)]
    return notes + _missing(made)


def _errors(row: Mapping[str, Any]) -> dict[str, Any]:
    reasons = row.get("errors")
    return reasons if isinstance(reasons, dict) else {}


def _missing(made: Comparison) -> list[str]:
    """Notes on what an evaluation could not score, and on what was enhanced without its video, a line a reason."""
    if made.alone and "notes" in made.alone.summary:  # the stage has noted them
        return []
    lost: dict[tuple[str, str], dict[str, set[str]]] = {}
    blind: dict[tuple[str, str], list[str]] = {}
    for s in made.systems if made.alone and made.alone.stage == "eval" else ():
        for key, row in s.rows.items():
            for metric, reason in _errors(row).items():
                lost.setdefault((s.label, str(reason)), {}).setdefault(key, set()).add(metric)
            if reason := row.get("video_error"):
                blind.setdefault((s.label, str(reason)), []).append(key)
    rows, notes = {s.label: len(s.rows) for s in made.systems}, []
    for (label, why), keys in blind.items():
        notes.append(f"{label}: {len(keys)} of {rows[label]} enhanced without video ({', '.join(keys[:3])}): {why}")
    for (label, why), where in lost.items():
        metrics = ", ".join(sorted(set().union(*where.values())))
        notes.append(f"{label}: {len(where)} without {metrics} ({', '.join(list(where)[:3])}): {why}")
    return notes[:MOST]


# ------------------------------------------------------------- where a run comes from, what it took, what is typed next


def _specs(run: RunRecord, key: str) -> list[dict[str, Any]]:
    """The rewards or guards of a config that have names."""
    specs = run.config.get(key)
    named = specs if isinstance(specs, list) else []
    return [s for s in named if isinstance(s, dict) and isinstance(s.get("name"), str)]


def facts_of(made: Comparison, run: RunRecord) -> dict[str, str]:
    """Where a run comes from: data, seed, checkpoints, command; what is not known is left out."""
    config, env = run.config, run.env
    found: dict[str, Any] = {s.label: f"step {int(s.name[5:])}" for s in made.systems if run.stage == "rl" and s.rows}
    if run.stage in TRAINED:
        found |= {"state": run.state(), "starts from": config.get("model" if run.stage == "rl" else "init")}
        found |= _trained_on(run)
        name = run.pointer("best") or run.pointer("latest")
        found["checkpoint"] = shown_path(run.path / "checkpoints") / Path(name).name if name else None
    elif run.stage == "eval":
        models = config.get("models")
        found |= {"data": config.get("data") or "the embedded test set"}
        found |= {k: run.summary.get(k) for k in ("normaliser", "recogniser")}
        found |= {f"model {name}": path for name, path in models.items()} if isinstance(models, dict) else {}
    else:
        path = config.get("path")
        found |= {"files": " ".join(map(str, path)) if isinstance(path, list) else path}
        found |= {label: config.get(k) for label, k in (("references", "target"), ("transcripts", "text"))}
        found |= {"hypotheses": config.get("hypotheses"), "scores": shown_path(run.scores_path)}
    found |= {"seed": config.get("seed"), "started": env.get("started"), "device": env.get("device")}
    found |= {"commit": env.get("git_commit"), "command": shlex.join(_command(run))}
    return {k: str(v) for k, v in found.items() if v not in (None, "")}


def _trained_on(run: RunRecord) -> dict[str, Any]:
    config = run.config
    if not config:
        return {}
    rewards = [s for s in _specs(run, "rewards") if number(s.get("weight", 1)) is not None]
    guards = [(s, number(s.get("max_drop"))) for s in _specs(run, "guards")]
    watched = [(s["name"], drop, "held within" if s.get("hold") else "may drop by") for s, drop in guards]
    held_out = "held back from the data" if config.get("data") else "of the embedded corpus"
    title = "measured" if run.method == "control" else "rewarded"
    return {
        "data": config.get("data") or "the embedded corpus",
        "validation": config.get("valid") or held_out,
        title: ", ".join(f"{s.get('weight', 1):g} x {s['name']}" for s in rewards),
        "watched": ", ".join(n if drop is None else f"{n} ({how} {drop:g})" for n, drop, how in watched),
    }


def _command(run: RunRecord) -> list[str]:
    """The command as it was typed."""
    argv = run.env.get("argv")
    return ["rlspeech", *map(str, argv[1:])] if isinstance(argv, list) and len(argv) > 1 else []


def _typed(run: RunRecord) -> Path:
    """What names the run to ``report``: its folder, or the scores file where it is one of several."""
    return run.scores_path if run.scores_path.name != "scores.jsonl" else run.path


def _quoted(path: Path) -> str:
    return shlex.quote(str(shown_path(path)))


def _option(run: RunRecord) -> str | None:
    """``--task`` as ``eval`` takes it; None of a task that is not evaluated."""
    task = str(run.config.get("task", Evaluate().task))
    try:
        Evaluate(task=task)
    except ValidationError:
        return None
    return "" if task == Evaluate().task else f" --task {shlex.quote(task)}"


def commands_of(run: RunRecord) -> list[str]:
    """Commands to type next."""
    found, option = [f"rlspeech report {_quoted(_typed(run))} OTHER_RUN"], _option(run)
    if run.stage == "reward":
        return found
    models, typed = run.config.get("models"), _command(run)
    last = shlex.quote(str([*models.values()][-1])) if isinstance(models, dict) and models else None
    model = last if run.stage == "eval" else _quoted(run.path)
    if option is not None and model and (verb := _use(run, option)):
        found.insert(0, f"rlspeech {verb} --model {model}")
    if option is not None and run.stage != "eval":
        start = shlex.quote(str(run.config.get("init" if run.stage == "pretrain" else "model") or "embedded"))
        found.insert(0, f"rlspeech eval{option} --model before={start} --model after={_quoted(run.path)}")
    steps = run.config.get("steps")
    if isinstance(steps, int) and run.step < steps and typed:
        found.insert(0, shlex.join(typed))  # the same command goes on
    return found


def _use(run: RunRecord, option: str) -> str | None:
    """The command that uses a model, by what its run kept: outputs of recordings, speech without an input, or texts."""
    kept = run.kept("audio" if run.stage == "eval" else "samples")
    if INPUT in kept:
        return f"enhance RECORDINGS{option}"
    if any(files for name, files in kept.items() if run.stage == "eval" or name.startswith("step_")):
        return "speak TEXT"
    written = any(System("", run, n, rows).texts(k) for n, rows in run.scores.items() for k in rows)
    return "transcribe RECORDINGS" if written or any((run.path / "samples").glob("step_*/said.jsonl")) else None


def commands_of_several(runs: Sequence[RunRecord]) -> list[str]:
    """Commands to type next for several runs."""

    def named(run: RunRecord, path: Path) -> str:
        """PATH, or NAME=PATH where that says more."""
        same = run.name == path.name or safe_name(run.name) != run.name
        return _quoted(path) if same else f"{run.name}={_quoted(path)}"

    found = [f"rlspeech report {' '.join(named(r, _typed(r)) for r in runs)}"]
    trained = [r for r in runs if r.stage in TRAINED and r.config.get("task") == runs[0].config.get("task")]
    if trained and (option := _option(trained[0])) is not None:
        found.insert(0, f"rlspeech eval{option} {' '.join(f'--model {named(r, r.path)}' for r in trained)}")
    return found


def cost_of(run: RunRecord) -> dict[str, str]:
    """Seconds and memory by phase: of a run that trains from its rows, of an evaluation as it noted them."""
    if run.stage == "eval":
        noted = {k: v for k, v in (at(run.summary, "seconds") or {}).items() if number(v) is not None}
        parts = ", ".join(f"{k} {v:.1f} s" for k, v in noted.items() if k != "total")
        found = {"device": str(run.env.get("device", "unknown"))}
        if "total" in noted:
            found["time"] = f"{noted['total']:.0f} s" + (f", of which scoring {parts}" if parts else "")
        return found
    logged: dict[str, dict[str, list[float]]] = {"seconds": {}, "memory_mb": {}}
    for name, value in (cell for row in run.metrics for cell in row.items()):
        head, _, phase = name.partition("/")
        if head in logged and phase and (v := number(value)) is not None:
            logged[head].setdefault(phase, []).append(v)
    seconds, found = {phase: sum(values) for phase, values in logged["seconds"].items()}, {}
    total = sum(seconds.values())
    if total > 0:
        found["all phases"] = f"{total:.1f} s" + (f", {total / run.step:.2f} s a step" if run.step else "")
        by_size = sorted(seconds.items(), key=lambda kv: -kv[1])
        found |= {phase: f"{s:.1f} s ({100 * s / total:.0f} %)" for phase, s in by_size}
    found |= {f"memory, {phase}": f"{max(mb):.0f} MB at most" for phase, mb in logged["memory_mb"].items()}
    earlier = run.env.get("earlier")
    if isinstance(earlier, list) and earlier:
        found["attempts"] = f"{len(earlier) + 1}: interrupted and gone on with"
    return found


def versions_of(run: RunRecord) -> dict[str, Any]:
    """Versions of packages and of what scored."""
    versions, rewards = run.env.get("versions"), run.env.get("rewards")
    found = dict(versions) if isinstance(versions, dict) else {}
    found |= {"python": run.env["python"]} if "python" in run.env else {}
    scorers = [run.metas(s) for s in run.scores] if run.stage == "reward" else []
    scorers = [rewards] if isinstance(rewards, dict) else scorers
    known = [(k, v) for part in scorers for k, v in part.items() if isinstance(v, dict)]
    return found | {k: v["version"] for k, v in known if "version" in v}
