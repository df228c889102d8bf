"""``rlspeech eval``: systems on the same held-out rows, their scores, means, corpus rates and paired differences.

    rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base --out runs/eval

What systems there are, which rows count and how a system answers is the task's (``tasks/evaluation.py``). Outputs and rows are kept as they
come, and what is there is not made again. The folder is complete before the page is built from it.

Differences are paired by utterance. Where a recogniser judges texts, error rates are of the whole corpus (sums of errors over sums of
units), of the utterances that every system could be scored on; a bound (``recordings``, ``resynthesis``) has the rows that it has.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.config_parts import Shard
from rlspeech.data.batches import columns_of
from rlspeech.data.manifest import find_manifest, holds_rows, read_manifest
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import join_rows, read_object
from rlspeech.models.hub import fingerprint
from rlspeech.report.build import compared, print_table, write_page
from rlspeech.report.runs import open_runs
from rlspeech.rewards import base
from rlspeech.rewards.rates import RATES, UNDIRECTED, RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.rewards.scorer import Pending, Scorer
from rlspeech.run import Run, settings_of
from rlspeech.scores import ScoreTable, write_json
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.tasks import get_task
from rlspeech.tasks.evaluation import Answers, Evaluation, System, grouped, reason_of
from rlspeech.tasks.owners import check_owners
from rlspeech.types import Sample, UserError, Utterance

# what a run that goes on may change
NEUTRAL = ("models", "systems", "shuffled", "baseline", "metrics", "limit", "batch", "by", "players", "anchors")
OWN = ("logs", "checkpoints", "tensorboard", "wandb")  # folders of a run that hold no outputs
Rows = Sequence[Utterance]
MOST_VALUES = 12  # of the column ``by`` that get a table
UNITS = {r.name: "%" if r.factor == 100 else "words" for r in RATES}
DIRECTIONS = {r.name: r.higher_is_better for r in RATES}


def run(config: Evaluate, joined: Sequence[Path] = ()) -> dict[str, Any]:
    """Answer, score and compare.

    Args:
        joined: folders of shards, whose outputs and rows are taken over; no system answers then.

    Returns:
        what ``metrics.json`` holds, and the paths of the run, the report and the rows; of a shard only how many rows it has.

    Raises:
        UserError: data, checkpoint, metric or baseline that cannot be used; no utterance that could be scored.
    """
    began_s, task = time.monotonic(), get_task(config.task)
    check_owners(config, task, own=":" in config.task)
    evaluation: Evaluation = task.evaluation(_as_begun(config))
    config = evaluation.config
    manifest = task.demo("test") if config.data is None else find_manifest(config.data, recipe=False)
    if manifest.suffix == ".json" and not holds_rows(manifest):
        why, try_this = "an evaluation needs fixed files", "render it: rlspeech prepare mix --help"
        raise UserError(f"{manifest} is a mixture recipe", why, try_this)
    every = read_manifest(manifest)
    utts, remarks = evaluation.rows(every[: config.limit])
    shard = Shard.of(config.shard)
    utts = [u for u in utts if shard.has(u.id)]
    systems = evaluation.systems(every)
    baseline = _baseline(config, systems)
    prints = {s.name: _fingerprint(s, config.task) for s in systems}
    metrics, notes = evaluation.metrics()
    notes += remarks
    engine = Engine(config.device, "fp32", config.seed)
    if not engine.is_main:  # one process evaluates; the others have nothing to add
        return {}
    with Run.create(config.out, "eval", config, neutral=(*NEUTRAL, *evaluation.neutral)) as folder, Watchdog() as dog:
        folder.note(device=engine.reason, manifest=str(manifest))
        counts = {"utterance": len(utts), "system": len(systems), "metric": len(metrics)}
        log.say(", ".join([*(log.several(count, what) for what, count in counts.items()), engine.reason]))
        for note in notes:
            log.say(note)
        evaluation.device, table = engine.device, ScoreTable(folder.path, metrics)
        if evaluation.recounted:
            table.rows.clear()
        for name, before in table.keep(prints).items():
            _forget(table, name, before, prints[name])
        for part in joined:
            _take(table, part, prints)
        options, workers = evaluation.scoring(), 0 if evaluation.recounted or joined else config.workers
        with Scorer(metrics, device=str(engine.device), workers=workers, options=options) as scorer:
            if not joined:
                scorer.dry_run()
            for system in systems:
                try:
                    with evaluation.answers(system, table, prints[system.name]) as answers:
                        if not joined:
                            _score(answers, utts, scorer, engine, dog)
                except UserError as error:
                    if system.compared:
                        raise
                    notes.append(f"no {system.name}: {error.what}")  # a bound that is not to be had
            meta, seconds = scorer.meta(), {k: round(v, 2) for k, v in scorer.seconds.items()}
        table.write((s.name, u.id) for s in systems for u in utts)
        if shard.own:
            return {"run": str(folder.path), "scores": str(table.path), "n": len(utts)}
        result = Result(evaluation, table, utts, systems, baseline)
        summary = result.summary([*notes, *result.notes])
        summary["seconds"] = {"total": round(time.monotonic() - began_s, 1), **seconds}
        write_json(folder.path / "metrics.json", summary)
        write_json(folder.path / "scores.meta.json", result.meta(meta))
        print_table(compared(open_runs([str(folder.path)])))
        page = write_page(folder.path)
        summary |= {"run": str(folder.path), "report": str(page) if page else None, "scores": str(table.path)}
        if joined:
            summary["missing"] = sum(not table.row(s, u.id) for s in result.names for u in utts)
    if page is not None:
        log.say(f"next: open {page} in a browser")
    return summary


def _baseline(config: Evaluate, systems: Sequence[System]) -> str | None:
    """The system that the others are paired with: by name, else the first of several models, else the input of one."""
    names = [s.name for s in systems if s.compared]
    if config.baseline is not None and config.baseline not in names:
        why = f"there are {', '.join(names)}"
        raise UserError(f"no system is called {config.baseline!r}", why, "--baseline with one of them")
    models = [s.name for s in systems if s.compared and (s.checkpoint is not None or s.folder)]
    if not models:
        return None
    return config.baseline or (models[0] if len(models) > 1 else next((n for n in names if n not in models), None))


def _as_begun(config: Evaluate) -> Evaluate:
    """The settings with the normaliser by which the folder's evaluation was begun, where none is given: the default may be younger."""
    begun = settings_of(config.out).get("normaliser") if config.out else None
    given = begun is None or "normaliser" in config.model_fields_set
    return config if given else config.model_copy(update={"normaliser": begun})


def _fingerprint(system: System, task: str) -> str:
    """What tells a system's outputs from those of others under its name."""
    weights = "" if system.checkpoint is None else fingerprint(system.checkpoint, task)
    return weights + (f" {system.variant}" if system.variant else "")


def _forget(table: ScoreTable, name: str, before: str, now: str) -> None:
    """Delete the outputs of a system whose fingerprint has changed."""
    (old, _, was), (new, _, is_) = before.partition(" "), now.partition(" ")
    what = f"{was or 'plain'} before, {is_ or 'plain'} now"
    if old != new or was.startswith("files "):
        what = f"{'the checkpoint has' if old != new else 'its files have'} changed"
    log.say(f"{name}: {what}; its results are computed again")
    for pattern in (f"audio/{name}/*.flac", f"hypotheses/{name}.jsonl"):
        for path in table.folder.glob(pattern):
            path.unlink()


def _take(table: ScoreTable, part: Path, prints: Mapping[str, str]) -> None:
    """Take over a shard's rows and outputs. Raises ``UserError`` where they are of other weights."""
    found = read_object(part / "systems.json")
    if other := [name for name, now in prints.items() if found.get(name) != now]:
        raise UserError(f"{part} was not made by the others' models", ", ".join(other), "run that shard once more")
    table.rows |= ScoreTable(part, table.metrics).rows
    for path in (p for p in sorted(part.glob("*/**/*")) if p.is_file()):
        way = path.relative_to(part)
        if way.suffix == ".jsonl":
            join_rows(table.folder / way, [path])
        elif way.parts[0] not in OWN:
            target = table.folder / way
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:  # a million files take no room twice
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)


def _score(answers: Answers, utts: Rows, scorer: Scorer, engine: Engine, dog: Watchdog) -> None:
    """Answer and score what has no row yet; the CPU metrics of one batch run while the next one is answered."""
    todo, name, table, size = answers.todo(utts), answers.name, answers.table, answers.config.batch
    if not todo:
        log.say(f"{name}: all {len(utts)} utterances are scored already")
        return
    waiting: tuple[Pending, list[Sample]] | None = None
    with log.progress(len(utts), name, "utterances", start=len(utts) - len(todo)) as bar:
        for at in range(0, len(todo), size):
            batch, samples = todo[at : at + size], list[Sample]()
            for utt, made in zip(batch, answers.of(batch), strict=True):
                if isinstance(made, Exception):
                    table.fail(name, utt.id, reason_of(made))
                else:
                    samples.append(made)
            started = (scorer.start(samples), samples) if samples else None
            _collect(answers, waiting)
            waiting = started
            bar.advance(len(batch))
            dog.beat()
        _collect(answers, waiting)


def _collect(answers: Answers, waiting: tuple[Pending, list[Sample]] | None) -> None:
    """Write the rows of a batch."""
    if waiting is None:
        return
    columns = waiting[0].result()
    for i, sample in enumerate(waiting[1]):
        scores = {metric: column[i] for metric, column in columns.items()}
        facts = answers.facts(sample, scores)
        answers.table.add(answers.name, sample.key, scores, facts, answers.replaced if facts else ())


class Result:
    """Means, rates and paired differences, of all utterances and of each value of a column.

    The systems are in the order in which they answered; ``baseline`` is a compared one, or None. ``notes`` are remarks, and the reasons of
    what could not be scored. Raises ``UserError``: there is not one score.
    """

    def __init__(
        self, evaluation: Evaluation, table: ScoreTable, utts: Rows, systems: Sequence[System], baseline: str | None
    ) -> None:
        self.evaluation, self.config, self.table, self.baseline = evaluation, evaluation.config, table, baseline
        self.names = [s.name for s in systems if s.compared]
        self.inputs = [s.name for s in systems if s.checkpoint is None]
        self.means = [] if evaluation.recounted else [m for m in table.metrics if m not in evaluation.rated]
        self.rated, self.seed = set(evaluation.rates), self.config.seed if evaluation.rates else 0
        keys = [u.id for u in utts if not self.rated or all(self._answered(s, u.id) for s in self.names)]
        bounds = [s.name for s in systems if not s.compared]
        self.bounds = [s for s in bounds if any(self._answered(s, k) for k in keys)]
        columns = ["hypothesis"] if self.rated else table.metrics
        if not any(table.row(s, k).get(m) is not None for s in self.names for k in keys for m in columns):
            why = next((e for row in table.rows.values() for e in row["errors"].values()), "")
            raise UserError("not one utterance could be scored", why, f"look at the errors in {table.path}")
        self.utts = [u for u in utts if u.id in set(keys)]
        self.counts = self._counts() if self.rated else {}
        lost = len(utts) - len(keys)
        self.notes = [f"{lost} utterances could not be scored and are left out for all"] if lost else []
        short = {s: n for s in self.bounds if (n := len(keys) - len(self.counts[s]))}
        self.notes += [f"{s}: of {len(keys) - n} utterances; the other {n} have none" for s, n in short.items()]
        self.notes += evaluation.remarks(table, self.names, keys)
        self.whole = self._compare(keys)
        self.parts = {value: self._compare(part) for value, part in self._values().items()}
        self.notes += self._errors({u.id for u in utts})
        if evaluation.recounted:
            table.rows = {(s, k): table.rows[s, k] for s in self.names for k in keys}

    def _answered(self, system: str, key: str) -> bool:
        return self.table.row(system, key).get("hypothesis") is not None

    def _errors(self, keys: set[str]) -> list[str]:
        """A remark for each reason why compared systems have no score."""
        found: dict[tuple[str, str], list[str]] = {}
        for (system, key), row in self.table.rows.items():
            columns: dict[str, list[str]] = {}
            for metric, reason in row["errors"].items() if key in keys and system in self.names else ():
                columns.setdefault(reason, []).append(metric)
            for reason, metrics in columns.items():
                found.setdefault((system, f"{', '.join(metrics)}: {reason}"), []).append(key)
        return grouped(found, "not scored")

    def _counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """System -> key -> counts of what was understood, of the rows that there are."""
        rules = TextRules(self.config.normaliser, self.config.sampling.language)
        made: dict[str, dict[str, dict[str, int]]] = {s: {} for s in (*self.bounds, *self.names)}
        for system, utt in ((s, u) for s in made for u in self.utts if self._answered(s, u.id)):
            row = self.table.row(system, utt.id)
            judged = rules.judge(utt.text, row["hypothesis"], columns_of(utt))
            made[system][utt.id] = row.get("counts") or counts_of(judged)
        return made

    def _values(self) -> dict[str, list[str]]:
        """Keys by the value of the column ``by``."""
        if not self.rated:
            return {}
        found: dict[str, list[str]] = {}
        for u in self.utts:
            if (value := columns_of(u).get(self.config.by)) is not None:
                found.setdefault(str(value), []).append(u.id)
        if len(found) > MOST_VALUES:
            many = f"{self.config.by} has {len(found)} values, too many for tables of their own (at most {MOST_VALUES})"
            self.notes.append(many)
            return {}
        return dict(sorted(found.items()))

    def _compare(self, keys: Sequence[str]) -> RateComparison:
        """Rates first, then means of the other metrics; differences of both, relative changes of rates."""
        others = sorted((s for s in self.names if s != self.baseline), key=lambda s: s in self.inputs)
        made = RateComparison(len(keys), {s: {} for s in self.names}, {s: {} for s in others if self.baseline}, {})
        if self.rated:
            counts = {s: [self.counts[s][k] for k in keys] for s in self.names}
            made = compare_rates(counts, self.baseline, self.seed)
            for part in (made.systems, made.deltas, made.relative):
                part.update({s: {m: row[m] for m in self.evaluation.rates if m in row} for s, row in part.items()})
        for m in self.means:
            for s in self.names:
                made.systems[s][m] = self._mean(s, m, keys)
            for s in made.deltas if m not in UNDIRECTED else ():
                both = [self.table.column(name, m, keys) for name in (s, self.baseline or s)]
                made.deltas[s][m] = paired_delta(both[0], both[1], self.seed)
        bounds = {s: self._bound(s, keys, list(made.systems[self.names[0]])) for s in self.bounds}
        made.systems = {**bounds, **made.systems}
        return made

    def _bound(self, name: str, keys: Sequence[str], metrics: Sequence[str]) -> dict[str, Interval]:
        """Rates and means of a bound, over the rows that it has."""
        some = [k for k in keys if k in self.counts[name]]
        counts = [self.counts[name][k] for k in some]
        rates = compare_rates({name: counts}, None, self.seed).systems[name] if some else {}
        return {m: rates[m] if m in rates else self._mean(name, m, some) for m in metrics}

    def _mean(self, system: str, metric: str, keys: Sequence[str]) -> Interval:
        return mean_interval(list(self.table.column(system, metric, keys).values()), self.seed)

    def summary(self, notes: Sequence[str]) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        evaluation, table, config = self.evaluation, self.table, self.config
        keys = [u.id for u in self.utts]
        names = list(self.whole.systems[self.names[0]])
        made: dict[str, Any] = {"task": config.task, **self.whole.as_dict(), "baseline": self.baseline}
        made["rows_with_errors"] = sum(bool(table.row(s, k).get("errors")) for s in self.names for k in keys)
        up = {m: DIRECTIONS[m] if m in DIRECTIONS else base.column_of(m).higher_is_better for m in names}
        made["higher_is_better"] = up
        without = {s: sum("video_error" in table.row(s, k) for k in keys) for s in self.names}
        if any(without.values()):
            made["without_video"] = {s: n for s, n in without.items() if n}
        if self.rated:
            made |= {"normaliser": config.normaliser, "by_column": config.by, "interval": evaluation.interval}
            made["units"] = {m: UNITS[m] if m in UNITS else base.column_of(m).help for m in names}
            made["by"] = {value: part.as_dict() for value, part in self.parts.items()}
        else:
            del made["relative"]
        if evaluation.recounted and table.metrics:
            made["metrics"] = {s: {m: self._mean(s, m, keys).as_dict() for m in table.metrics} for s in self.names}
        return {**made, **evaluation.summary, "notes": list(notes)}

    def meta(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What ``scores.meta.json`` holds."""
        evaluation = self.evaluation
        made: dict[str, Any] = {"metrics": metrics, **evaluation.meta}
        if evaluation.noted:
            made["settings"] = self.config.model_dump(mode="json", include=set(evaluation.noted))
        if not self.rated:
            made["systems"] = {
                s: {m: {"n_valid": i.n, "n_failed": i.dropped, **i.as_dict()} for m, i in row.items()}
                for s, row in self.whole.systems.items()
            }
            made["interval"] = evaluation.interval
        return made
