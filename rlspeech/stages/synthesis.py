"""``rlspeech eval --task tts``: synthesisers on the same held-out texts, judged by a recogniser that is named, and by how they sound.

    rlspeech eval --task tts --data test.jsonl --model base=runs/base --model rl=runs/rl --recogniser pocketsphinx --out runs/eval

What a system says goes to ``said/NAME.jsonl`` (tokens) and ``audio/NAME/`` as it comes, its scores to ``scores.jsonl``; what is there is
not made again. Error rates are of the whole corpus: sums of errors over sums of units, with intervals that are paired between systems.
A model that was rewarded by a recogniser has learned to be understood by that one: who listens here should be another, and where it is
the same that is said. A text that one system could not be scored on is left out for all of them.

Two rows say how much could be had (``anchors``): the recordings themselves, of which the recogniser misunderstands some, and their copies
through the codec, which no language model over its ids can be better than.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.batches import columns_of
from rlspeech.data.text import get_normaliser
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import safe_name, write_text
from rlspeech.log import several
from rlspeech.models.hub import fingerprint, resolve
from rlspeech.rewards import base
from rlspeech.rewards.rates import RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import Judged, TextRules
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run
from rlspeech.stages.summary import Table, default_metrics
from rlspeech.stages.synthesis_job import ANCHORS, WORDS, Job, anchors_of
from rlspeech.stages.synthesis_page import direction, print_table, write_page
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.tasks import get_task
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["Spoken", "run"]

NEUTRAL = (
    "models",
    "baseline",
    "metrics",
    "limit",
    "batch",
    "by",
    "players",
    "anchors",
)  # what a run that goes on may change
ENHANCERS = ("nfe", "guidance", "video", "shuffled", "beams")
RATES = ("cer", "wer", "substitutions", "deletions", "insertions", "exact")
UNDIRECTED = frozenset({"tts_duration_ratio"})  # 1 is right: a difference is neither better nor worse
LISTENED = re.compile(r"^tts_(?:accuracy|cer|wer|posterior|nll)\b(?:\[(.*)\])?$")
EMBEDDED = "embedded"
TAKEN = ("prompt", *ANCHORS)
MOST_VALUES = 12  # of the column ``by`` that get a table


def run(config: Evaluate, utts: Sequence[Utterance], *, json_mode: bool = False) -> dict[str, Any]:
    """Synthesise, score and compare.

    Args:
        config: the evaluation's.
        utts: rows with texts, the limit not yet applied.
        json_mode: tables go to stderr.

    Returns:
        what ``metrics.json`` holds, and the paths of the report and the rows.

    Raises:
        UserError: data, checkpoint, recogniser, metric or baseline that cannot be used; no text that could be scored.
    """
    models = _models(config)
    names, listener = list(models), config.recogniser or EMBEDDED
    baseline = config.baseline or (names[0] if len(names) > 1 else None)
    rows, notes = _texts(config, utts)
    notes += _partial(models, listener)
    metrics, missing = (
        (list(config.metrics), list[str]()) if config.metrics else default_metrics(get_task("tts").default_metrics)
    )
    metrics = [WORDS[0], *(m for m in metrics if m != WORDS[0])]
    engine = Engine(config.device, "fp32", config.seed)
    if not engine.is_main:  # one process evaluates; the others have nothing to add
        return {}
    began_s = time.monotonic()
    options = {"tts": {"recogniser": listener, "normaliser": config.normaliser, "language": config.sampling.language}}
    with Run.create(config.out, "eval", config, neutral=NEUTRAL) as folder, Watchdog() as dog:
        folder.note(device=engine.reason)
        engine.say(
            f"{several(len(rows), 'text')}, {several(len(names), 'synthesiser')}, heard by {listener}, {engine.reason}"
        )
        for note in [*notes, *missing]:
            engine.say(note)
        table = Table(folder.path, metrics)
        weights = {s: fingerprint(c, "tts") for s, c in models.items()}
        anchored = dict.fromkeys(ANCHORS, weights[names[0]]) if config.anchors else {}
        facts = config.model_dump(mode="json", include={"data", "normaliser", "recogniser", "sampling", "seed"})
        table.keep({**weights, **anchored}, facts)
        with Scorer(metrics, device=str(engine.device), workers=config.workers, options=options) as scorer:
            scorer.dry_run()
            for name in names:
                job = Job(config, engine, folder.path, table, scorer, dog, name, models[name], weights[name])
                job.run(rows)
                for anchor in anchors_of(job) if config.anchors and name == names[0] else ():
                    notes += anchor.run_all(rows)
                job.model = None
            meta = scorer.meta()
        table.write()
        made = Spoken(config, table, rows, [*anchored, *names], baseline)
        summary = _summary(config, made, baseline, listener, meta, folder.path)
        summary["seconds"] = {"total": round(time.monotonic() - began_s, 1)}
        write_text(folder.path / "metrics.json", json.dumps(log.plain(summary), indent=2, ensure_ascii=False) + "\n")
        notes += [*missing, *made.notes]
        print_table(made, baseline, listener, notes)
        page = write_page(folder, config, made, summary, notes, engine.reason)
        summary |= {"run": str(folder.path), "report": str(page), "scores": str(table.path)}
    log.say(f"next: open {page} in a browser")
    return summary


def _models(config: Evaluate) -> dict[str, str]:
    """Systems by name; settings are looked at before anything is computed."""
    for name in ENHANCERS:
        if getattr(config, name) != Evaluate.model_fields[name].get_default(call_default_factory=True):
            raise UserError(f"a synthesiser has no setting {name!r}", "it belongs to another task", "leave it out")
    get_normaliser(config.normaliser)
    models = config.models or {EMBEDDED: EMBEDDED}
    for name in models:
        if safe_name(name) != name or name in TAKEN:
            raise UserError(
                f"a model cannot be called {name!r}",
                f"the name becomes a folder; {', '.join(TAKEN)} are taken",
                "--model NAME=PATH",
            )
    if config.baseline is not None and config.baseline not in models:
        raise UserError(
            f"no system is called {config.baseline!r}", f"there are {', '.join(models)}", "--baseline with one of them"
        )
    return models


def _texts(config: Evaluate, utts: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
    """Rows whose text can be said and compared, and a remark on the others."""
    normalise, some = get_normaliser(config.normaliser), utts[: config.limit]
    rows = [u for u in some if normalise(u.text or "")]
    if not rows:
        raise UserError(
            "no row has a text",
            f"{len(some)} rows of {config.data}, after {config.normaliser}",
            "rlspeech prepare tts --help",
        )
    return rows, [f"{n} rows have no text and are left out"] if (n := len(some) - len(rows)) else []


def _partial(models: Mapping[str, str], listener: str) -> list[str]:
    """A remark for each system whose reward listened with the recogniser that judges here."""
    found = []
    for name, checkpoint in models.items():
        try:
            folder = resolve(checkpoint, "tts")
            settings = json.loads((folder.parent.parent / "config.resolved.json").read_text(encoding="utf-8"))
            rewards = [str(r["name"]) for r in settings.get("rewards", [])]
        except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # not of a run: nothing is known of its reward
        asked = [
            dict(p.partition("=")[::2] for p in (m[1] or "").split(",")) for r in rewards if (m := LISTENED.match(r))
        ]
        if listener in {o.get("recogniser", EMBEDDED) for o in asked}:
            found.append(
                f"{name} was trained on what {listener} hears, which judges here too: name another with --recogniser"
            )
    return found


class Spoken:
    """Corpus rates, means and paired differences of what was said, of everything and of each value of a column.

    Args:
        config: ``by``, ``normaliser`` and ``seed`` are used.
        table: rows with hypotheses and scores.
        utts: with texts.
        names: of the systems, anchors among them; these are told by their names, have the rows that they have, and no differences.
        baseline: a system, or None.

    Raises:
        UserError: there is no text that every system could be scored on.
    """

    def __init__(
        self, config: Evaluate, table: Table, utts: Sequence[Utterance], names: Sequence[str], baseline: str | None
    ) -> None:
        self.table, self.baseline, self.seed = table, baseline, config.seed
        given, names = names, [s for s in names if s not in ANCHORS]
        self.names = names
        self.utts = [u for u in utts if all(self._heard(s, u) for s in names)]
        self.notes = (
            [f"{n} texts could not be scored and are left out for all"] if (n := len(utts) - len(self.utts)) else []
        )
        if not self.utts:
            first = next((e for r in table.rows.values() for e in r["errors"].values()), "")
            raise UserError("not one text could be scored", first, f"look at the errors in {table.path}")
        rules = TextRules(config.normaliser, config.sampling.language)
        self.judged = {s: {u.id: self._judge(rules, s, u) for u in self.utts} for s in names}
        self.anchors = [s for s in ANCHORS if s in given and any(self._heard(s, u) for u in self.utts)]
        for s in self.anchors:
            self.judged[s] = {u.id: self._judge(rules, s, u) for u in self.utts if self._heard(s, u)}
            if n := len(self.utts) - len(self.judged[s]):
                self.notes.append(f"{s}: of {len(self.judged[s])} texts; the other {n} have none that can be used")
        mute = {s: n for s in names if (n := sum(not table.rows[s, u.id]["seconds"] for u in self.utts))}
        self.notes += [
            f"{s}: says nothing at all to {n} texts; without_audio, and missing from scores of sound"
            for s, n in mute.items()
        ]
        values = {u.id: str(v) for u in self.utts if (v := columns_of(u).get(config.by)) is not None}
        kinds = sorted(set(values.values()))
        if len(kinds) > MOST_VALUES:
            self.notes.append(
                f"{config.by} has {len(kinds)} values, too many for tables of their own (at most {MOST_VALUES})"
            )
            kinds = []
        self.whole = self._compare([u.id for u in self.utts])
        self.parts = {kind: self._compare([k for k, v in values.items() if v == kind]) for kind in kinds}

    def _judge(self, rules: TextRules, system: str, utt: Utterance) -> Judged:
        hypothesis = self.table.rows[system, utt.id]["hypothesis"]
        return rules.judge(Sample(utt.id, np.zeros(0, np.float32), 16000, None, utt.text, columns_of(utt), hypothesis))

    def _compare(self, keys: Sequence[str]) -> RateComparison:
        """Rates of the texts first, then means of the other metrics; differences of both, relative changes of rates."""
        made = compare_rates(
            {s: [counts_of(self.judged[s][k]) for k in keys] for s in self.names}, self.baseline, self.seed
        )
        for part in (made.systems, made.deltas, made.relative):
            for s, row in part.items():
                part[s] = {m: row[m] for m in RATES if m in row}
        for m in (m for m in self.table.metrics if m not in WORDS):
            columns = {s: self.table.column(s, m, keys) for s in self.names}
            for s in self.names:
                made.systems[s][m] = mean_interval(list(columns[s].values()), self.seed)
            for s in made.deltas if m not in UNDIRECTED and self.baseline else ():
                made.deltas[s][m] = paired_delta(columns[s], columns[self.baseline or s], self.seed)
        made.systems = {
            **{s: self._anchor(s, keys, list(made.systems[self.names[0]])) for s in self.anchors},
            **made.systems,
        }
        return made

    def _anchor(self, name: str, keys: Sequence[str], metrics: Sequence[str]) -> dict[str, Interval]:
        """Rates and means of an anchor, over those of the texts that it has."""
        some = [k for k in keys if k in self.judged[name]]
        rates = (
            compare_rates({name: [counts_of(self.judged[name][k]) for k in some]}, None, self.seed).systems[name]
            if some
            else {}
        )
        return {
            m: rates[m] if m in rates else mean_interval(list(self.table.column(name, m, some).values()), self.seed)
            for m in metrics
        }

    def _heard(self, system: str, utt: Utterance) -> bool:
        return self.table.rows.get((system, utt.id), {}).get("hypothesis") is not None


def _summary(
    config: Evaluate, made: Spoken, baseline: str | None, listener: str, meta: dict[str, Any], folder: Path
) -> dict[str, Any]:
    write_text(
        folder / "scores.meta.json",
        json.dumps(log.plain({"metrics": meta, "settings": made.table.facts}), indent=2, ensure_ascii=False) + "\n",
    )
    names = list(made.whole.systems[made.names[0]])
    units = {m: "%" if m in RATES else base.column_of(m).help for m in names}
    return {
        "task": "tts",
        "recogniser": listener,
        "normaliser": config.normaliser,
        "baseline": baseline,
        "by_column": config.by,
        **made.whole.as_dict(),
        "units": units,
        "higher_is_better": {m: direction(m) for m in names},
        "by": {value: part.as_dict() for value, part in made.parts.items()},
        "interval": "bootstrap over texts, 95 %; rates are ratios of sums, the rest means; differences are paired",
    }
