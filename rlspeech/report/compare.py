"""Systems of one or several runs: settings that differ, scores with intervals, paired differences where the items are the same.

Among runs, one of ``rl`` counts as its last validation, one of ``pretrain`` as the means that it logged, one of ``eval`` or ``reward`` as
each of its systems; the first system of a stage is what its others are compared with, unless an evaluation names its baseline. Two
systems are paired only where their items are the same: by a checksum of the input (``rl``), by the scores of the unprocessed input or by
the reference text (``eval``), by name (``reward``, which is asked of files). Names alone prove nothing elsewhere.

A run alone is compared within itself: its start, its end and its best, or what its ``metrics.json`` holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from rlspeech.data.text import align, get_normaliser, units
from rlspeech.plugins import SCHEMAS, load
from rlspeech.report import Edit, Metric
from rlspeech.report.runs import INPUT, STAGES, Origin, RunRecord, Sound, at, find, number
from rlspeech.rewards.base import column_of
from rlspeech.rewards.rates import COUNTS, RATES, UNDIRECTED, UNITS, compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.run import flat
from rlspeech.scores import JUDGE_TEXT, step_name
from rlspeech.stats import Interval, as_dicts, mean_interval, paired_delta
from rlspeech.types import UserError

NORMALISER = "basic-3"  # of texts that are shown against each other
FACTS = frozenset({"key", "system", "step", "item", "text", "hypothesis", "errors"})
# columns of a row that are no scores
BESIDE = FACTS.union({"stamp", "seconds", "samples", "finished", "normaliser"}, UNITS)


@dataclass
class System:
    """One system of one run."""

    label: str  # what it is called on the page
    run: RunRecord  # where from
    name: str  # its name there
    # key -> row of scores; empty where only means are known
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    means: dict[str, Interval] = field(default_factory=dict)  # metric -> mean with its interval
    kept: Mapping[str, Any] = field(default_factory=dict)  # stem -> kept audio

    @property
    def keys(self) -> list[str]:
        """Items that have a row; where a run has none but transcripts, those of the kept audio as well."""
        return [*self.rows, *(self.kept if not self.rows or self.run.stage == "pretrain" else ())]

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """Key -> what the item was made from."""
        return find(self.run.origins(self.name), self.keys)

    @cached_property
    def sounds(self) -> dict[str, Sound]:
        """Key -> its output, kept by the run or scored by it."""
        files = find(self.kept, self.keys)
        scored = {k: o.own for k, o in self.origins.items() if o.own is not None} if self.run.stage == "reward" else {}
        return {**scored, **{k: Sound(p) for k, p in files.items()}}

    @cached_property
    def counts(self) -> dict[str, Mapping[str, int]]:
        """Key -> counts of errors, where an evaluation compared texts: its rates are sums of these."""
        rows = self.rows if self.run.stage == "eval" else {}
        found = {k: r["counts"] if isinstance(r.get("counts"), dict) else self._counted(k, r) for k, r in rows.items()}
        return {k: c for k, c in found.items() if c and all(isinstance(c.get(n, 0), int) for n in COUNTS)}

    def _counted(self, key: str, row: Mapping[str, Any]) -> dict[str, int] | None:
        """Counts of a row that holds the texts alone."""
        text, hypothesis = row.get("text"), row.get("hypothesis")
        if not (isinstance(text, str) and isinstance(hypothesis, str)):
            return None
        try:
            rules = TextRules(self._normaliser)
        except UserError:  # a function that is not here
            return None
        return counts_of(rules.judge(text, hypothesis))

    def column(self, metric: str, keys: Sequence[str]) -> dict[str, float | None]:
        """Values by item."""
        return {k: number(self.rows.get(k, {}).get(metric)) for k in keys}

    def by_item(self) -> list[str]:
        """Metrics that are known item by item, as they were asked for; error rates of a corpus are not."""
        names = dict.fromkeys([*self.run.metas(self.name), *self.means])
        return [m for m in names if m[0] != "_" and any(m in row for row in self.rows.values())]

    def judged(self, key: str) -> str:
        """Descriptions of an item by language models, a line each."""
        row = self.rows.get(key, {})
        found = {k: v for k, v in row.items() if k.startswith(JUDGE_TEXT) and isinstance(v, str) and v}
        return "\n".join(v if len(found) == 1 else f"{k.replace(JUDGE_TEXT, 'llm', 1)}: {v}" for k, v in found.items())

    def texts(self, key: str) -> tuple[str, str] | None:
        """Reference and hypothesis of an item, normalised; None where no texts were compared."""
        row = self.rows.get(key, {})
        own = next((k.removeprefix("reference_text") for k in row if k.startswith("reference_text")), "")
        normalised = row.get("normalised") or [row.get(f"{k}_text{own}") for k in ("reference", "hypothesis")]
        if isinstance(normalised, list) and len(normalised) == 2 and all(isinstance(t, str) for t in normalised):
            return normalised[0], normalised[1]
        reference, hypothesis = (row.get(k) for k in ("text", "hypothesis"))
        if not (isinstance(reference, str) and isinstance(hypothesis, str)):
            return None
        try:
            normalise = get_normaliser(self._normaliser)
        except UserError:  # a function that is not here
            normalise = get_normaliser(NORMALISER)
        return normalise(reference), normalise(hypothesis)

    def edits(self, key: str) -> list[Edit] | None:
        """The hypothesis of an item as edits of its reference."""
        texts = self.texts(key)
        if texts is None:
            return None
        columns = self.origins[key].columns if key in self.origins else {}
        language = at(self.run.config, "sampling", "language") or columns.get("language")
        reference, hypothesis = (units(t, language if isinstance(language, str) else None) for t in texts)
        if not reference and not hypothesis:  # what a normaliser erases is still written
            hypothesis = str(self.rows.get(key, {}).get("hypothesis") or "").split()
        blocks = align(reference, hypothesis).ops
        return [Edit(tag, " ".join(reference[a:b]), " ".join(hypothesis[c:d])) for tag, a, b, c, d in blocks]

    @property
    def _normaliser(self) -> str:
        return str(self.run.config.get("normaliser", NORMALISER)) if self.run.stage == "eval" else NORMALISER


def systems_of(run: RunRecord, alone: bool) -> list[System]:
    """Everything of a run that can be compared; ``alone`` leaves the run's own name out of the labels."""
    if run.stage in ("rl", "pretrain"):
        return [validation(run, next(reversed(run.steps()), None), run.name)]
    kept, found = run.kept("audio"), []
    for name, rows in run.scores.items():
        label = name if alone else run.name if len(run.scores) == 1 else f"{run.name}: {name}"
        system = System(label, run, name, rows, kept=kept.get(name, {}))
        if run.stage == "reward":  # in the order of the files, as the stage itself took their mean
            system.rows = {**{k: rows[k] for k in system.origins if k in rows}, **rows}
        known = dict.fromkeys(k for row in rows.values() for k, v in row.items() if number(v) is not None)
        noted = [m for m in system.by_item() if m in known or run.stage == "reward"]
        metrics = noted or [k for k in known if k not in BESIDE and not k.startswith(JUDGE_TEXT)]
        system.means = {m: mean_interval([number(r.get(m)) for r in system.rows.values()], run.seed) for m in metrics}
        found.append(system)
    return found


def moments_of(run: RunRecord) -> list[System]:
    """The validations of a run that trains which its own page compares."""
    kept = run.kept("samples")
    if run.stage == "pretrain":
        steps = sorted({int(r["step"]) for r in run.metrics if any(name.startswith("valid/") for name in r)})
        ends = [(n, step_name(n)) for n in dict.fromkeys([*steps[:1], *steps[-1:]])]
        return [System(f"step {n}", run, s, run.transcripts(s), run.means(n), kept.get(s, {})) for n, s in ends]
    steps = run.steps()
    if run.stage != "rl" or not steps:
        return [validation(run, None, "after")] if run.stage == "rl" else []
    places = dict(zip(("before", "after"), dict.fromkeys([steps[0], steps[-1]]), strict=False))
    best = [n for n in steps if step_name(n) == run.pointer("best") and n not in places.values()]
    places |= {"best": best[0]} if best else {}
    return [validation(run, step, label) for label, step in places.items()]


def validation(run: RunRecord, step: int | None, label: str) -> System:
    """A validation of ``rl``; without scores by item the means of the last one, and the audio that was kept last."""
    kept = {name: files for name, files in run.kept("samples").items() if name.startswith("step_")}
    if step is None:
        last = max(kept, default="")
        return System(label, run, last, means=run.means(), kept=kept.get(last, {}))
    name, every = step_name(step), [row for rows in run.scores.values() for row in rows.values()]
    known = dict.fromkeys(k for row in every for k, v in row.items() if v is None or number(v) is not None)
    metrics = [k for k in known if k not in FACTS and not k.startswith(JUDGE_TEXT)]
    rows, keys = run.scores[name], list(next(iter(run.scores.values())))  # in the order of the run, as in its log
    means = {m: mean_interval([number(rows.get(k, {}).get(m)) for k in keys]) for m in metrics}
    return System(label, run, name, rows, means, kept.get(name, {}))


# --------------------------------------------------------------------------------------------------------- comparisons

ASIDE = frozenset({"out", "path"})  # differ by their nature
PLACES = ("git_commit", "python", "device")
TOGETHER = "all rewards together, as the run weighs them"
Scores = dict[str, dict[str, Interval]]  # system -> metric


@dataclass(slots=True)
class Pairing:
    """Systems of one stage against one of them, item by item."""

    stage: str  # whose
    baseline: str  # label of that one
    deltas: Scores = field(default_factory=dict)  # label -> metric -> paired difference
    keys: list[str] = field(default_factory=list)  # items that every system has


@dataclass
class Comparison:
    """What systems have in common and what not."""

    runs: Sequence[RunRecord]  # in the order that they were given
    systems: list[System] = field(default_factory=list)  # of all of them
    means: Scores = field(default_factory=dict)  # label -> metric -> mean
    pairings: list[Pairing] = field(default_factory=list)  # one a stage
    own: Scores = field(default_factory=dict)  # rl run -> metric -> paired difference to its own start
    # stage -> dotted key -> run -> value, where they differ
    settings: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)  # package -> run -> version, where they differ
    notes: list[str] = field(default_factory=list)  # what is missing, and what could not be paired
    # label -> rate -> change against the baseline in %, of an evaluation alone
    relative: Scores = field(default_factory=dict)
    # value of a column -> the same of its items, of an evaluation alone
    parts: dict[str, Comparison] = field(default_factory=dict)
    items: int | None = None  # how many were compared, where the run says it

    @property
    def alone(self) -> RunRecord | None:
        """The run, where it is the only one."""
        return self.runs[0] if len(self.runs) == 1 else None

    @property
    def pairing(self) -> Pairing | None:
        """The first that has differences."""
        return next((p for p in self.pairings if p.deltas), None)

    @cached_property
    def metrics(self) -> list[Metric]:
        """Everything that has a mean, in the order of its appearance, with its direction and description."""
        rates, known, found = {r.name: r for r in RATES}, dict[str, System](), []
        for system in self.systems:
            for name in self.means[system.label]:
                known.setdefault(name, system)
        for name, system in known.items():
            rate = rates.get(name) if system.counts else None
            try:
                text = rate.help if rate else TOGETHER if name == "reward" else column_of(name).help
            except UserError:  # a function that is not here
                text = ""
            found.append(Metric(name, rate.higher_is_better if rate else system.run.higher_is_better(name), text))
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers of the page."""
        runs = [
            {"name": r.name, "path": str(r.path), "stage": r.stage, "state": r.state(), "step": r.step}
            for r in self.runs
        ]
        pairs = [(p, {"stage": p.stage, "baseline": p.baseline, "n": len(p.keys)}) for p in self.pairings if p.deltas]
        return {
            "runs": runs,
            "higher_is_better": {m.name: m.higher_is_better for m in self.metrics},
            "systems": as_dicts(self.means),
            "differences": [{**facts, "deltas": as_dicts(p.deltas, differences=True)} for p, facts in pairs],
            "against_own_start": as_dicts(self.own, differences=True),
            "settings": self.settings,
            "versions": self.versions,
            "notes": self.notes,
        }


def within(run: RunRecord) -> Comparison:
    """A run alone: its first validation, its last and its best, or the systems of an evaluation as its ``metrics.json`` has them."""
    if run.stage == "eval" and run.summary and "without" not in run.state():
        try:
            return _summarised(run, run.summary)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # torn, or of another version
            why = f"{type(error).__name__}: {error}"
            run.notes.append(f"metrics.json cannot be used ({why}); these are means of the rows")
    moments = moments_of(run)
    if not moments:
        return compare([run])
    made = Comparison([run], moments, notes=run.notes)
    made.means = {s.label: s.means for s in moments}
    if run.stage == "rl" and run.steps():
        keys = list(moments[0].rows)
        deltas = {s.label: {m: _delta(s, moments[0], m, keys) for m in s.means} for s in moments[1:]}
        made.pairings = [Pairing("rl", moments[0].label, deltas, keys)]
    return made


def _delta(system: System, base: System, metric: str, keys: Sequence[str]) -> Interval:
    """Paired difference over items; of one run's validations in the order of the run, as in its log."""
    one, two = (s.column(metric, keys) for s in (system, base))
    if system.run is base.run and base.run.stage == "rl":
        return paired_delta(list(one.values()), list(two.values()), base.run.seed)
    return paired_delta(one, two, base.run.seed)


def _summarised(run: RunRecord, summary: Mapping[str, Any]) -> Comparison:
    """An evaluation as its ``metrics.json`` has it: what it compared, over the items that all of its systems have.

    Raises:
        KeyError: a system without rows, a number that is missing.
        ValueError: numbers of another version.
    """
    kept, means = run.kept("audio"), _intervals(summary["systems"])
    for s, row in _intervals(summary.get("metrics", {})).items():
        means[s] |= row
    systems = [System(s, run, s, run.scores[s], row, kept.get(s, {})) for s, row in means.items()]
    deltas, base = _intervals(summary["deltas"]), summary["baseline"]
    notes = [*run.notes, *(n for n in summary.get("notes", ()) if isinstance(n, str))]
    made = Comparison([run], systems, means=means, notes=notes, items=summary["n"])
    keys = [k for k in systems[-1].rows if base is None or k in run.scores[base]]
    made.pairings = [Pairing("eval", base, deltas, keys)] if base is not None else []
    made.relative = _intervals(summary.get("relative", {}))
    for value, part in summary.get("by", {}).items():
        made.parts[value] = _summarised(run, {**part, "baseline": base})
    return made


def _intervals(tree: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Scores:
    def interval(v: Mapping[str, Any]) -> Interval:
        mean, lo, hi = (math.nan if v[k] is None else float(v[k]) for k in ("mean", "lo", "hi"))
        return Interval(mean, lo, hi, int(v["n"]), int(v.get("dropped", 0)))

    return {s: {m: interval(v) for m, v in row.items()} for s, row in tree.items()}


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Compare runs of any stages; one alone is compared with nothing but its own baseline and start."""
    made = Comparison(runs, _systems(runs))
    made.notes = [f"{r.name}: {note}" if len(runs) > 1 else note for r in runs for note in r.notes]
    for stage in dict.fromkeys(s.run.stage for s in made.systems):
        _pair(made, stage, [s for s in made.systems if s.run.stage == stage])
    if len({r.stage for r in runs}) > 1:
        made.notes.append("stages score clips of their own: compare means within a stage")
    for run in (r for r in runs if len(r.steps()) > 1):
        first, last = (validation(run, run.steps()[i], run.name) for i in (0, -1))
        made.own[run.name] = {m: _delta(last, first, m, list(first.rows)) for m in last.means}
    for stage in STAGES:
        found = {r.name: _settings(r) for r in runs if r.stage == stage and r.config}
        if len(found) > 1 and (differing := _differing(found)):
            made.settings[stage] = differing
    places = {r.name: {k: r.env[k] for k in PLACES if k in r.env} for r in runs if r.env}
    packages = {r.name: v for r in runs if isinstance(v := r.env.get("versions"), dict)}
    made.versions = _differing({n: {**packages.get(n, {}), **v} for n, v in places.items()})
    return made


def _systems(runs: Sequence[RunRecord]) -> list[System]:
    """The systems of all runs; an unprocessed input that another evaluation scored is left out."""
    systems = [s for r in runs for s in systems_of(r, len(runs) == 1)]
    first: System | None = None
    kept = []
    for system in systems:
        if system.run.stage == "eval" and system.name == INPUT:
            first = first or system
            if first is not system and len(_shared(system, first)[0]) == len(system.rows):
                continue
        kept.append(system)
    inputs = [s for s in kept if s.name == INPUT and s.run.stage == "eval"]
    if len(inputs) == 1 and INPUT not in [s.label for s in kept]:
        inputs[0].label = INPUT
    return kept


def _shared(a: System, b: System) -> tuple[list[str], str]:
    """Keys of the items that both systems have.

    Returns the keys, in the order of ``b``, and why they are fewer than the names that both have.
    """
    both = [k for k in b.rows if k in a.rows]
    if not both:
        return [], "they have no item in common" if a.rows and b.rows else "one of them has no scores by item"
    if a.run is b.run or a.run.stage == b.run.stage == "reward":
        return both, ""
    known = {k: _same(a, b, k) for k in both}
    noted = {v for v in known.values() if v is not None}
    same_data = a.run.config.get("data") == b.run.config.get("data")
    # items that the rows say nothing of are the same where the others are, else where the data are of one name
    others = a.run.stage != "rl" and (noted == {True} or (not noted and same_data))
    same = [k for k, v in known.items() if v or (v is None and others)]
    lost = len(both) - len(same)
    return same, f"{lost} of {len(both)} items of the same name are not the same" if lost else ""


def _same(a: System, b: System, key: str) -> bool | None:
    """Whether what went in was the same, by what the rows know of it; None where they know nothing."""
    one, two = a.rows[key], b.rows[key]
    if a.run.stage == "rl":
        return isinstance(one.get("item"), str) and one["item"] == two.get("item")
    texts = [r["text"] for r in (one, two) if isinstance(r.get("text"), str)]
    if len(texts) == 2 and texts[0] != texts[1]:
        return False
    first, second = (s.run.scores.get(INPUT, {}).get(key, {}) for s in (a, b))
    values = [(number(first[m]), number(second.get(m))) for m in first if m not in BESIDE]
    scored = [(x, y) for x, y in values if x is not None and y is not None]
    if scored:
        return all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-4) for x, y in scored)
    return True if len(texts) == 2 else None


def _pair(made: Comparison, stage: str, systems: list[System]) -> None:
    """Means and paired differences of one stage's systems."""
    base = _baseline(systems)
    pairing = Pairing(stage, base.label)
    together: list[str] | None = None
    for system in systems:
        made.means[system.label] = dict(system.means)
        if system is base:
            continue
        keys, why = _shared(system, base)
        together = keys if together is None else [k for k in together if k in set(keys)]
        if why:
            made.notes.append(f"{system.label} and {base.label}: {why}")
        if len(keys) < 2:
            continue
        left_out = set(UNDIRECTED)
        if stage == "rl" and system.run.config.get("rewards") != base.run.config.get("rewards"):
            left_out.add("reward")
            who = f"{system.label} and {base.label}"
            made.notes.append(f"{who} weigh their rewards differently: their sums are not compared")
        shown = [m for m in system.means if m in base.means and m not in left_out]
        pairing.deltas[system.label] = {m: _delta(system, base, m, keys) for m in shown}
    pairing.keys = together if together is not None else list(base.rows)
    _rates(made, pairing, systems, base)
    made.pairings.append(pairing)


def _baseline(systems: Sequence[System]) -> System:
    """What an evaluation calls so, else the unprocessed input of a single system, else the first that is none."""
    for s in systems:
        if s.run.stage == "eval" and s.name == (s.run.summary.get("baseline") or s.run.config.get("baseline")):
            return s
    others = [s for s in systems if s.name != INPUT]
    return systems[0] if len(others) < 2 else others[0]


def _rates(made: Comparison, pairing: Pairing, systems: Sequence[System], base: System) -> None:
    """Error rates of texts before the means: sums of errors over sums of words, on the items that all systems have."""
    counted = [s for s in systems if s.counts]
    keys = [k for k in pairing.keys if all(k in s.counts for s in counted)]
    if not counted or base not in counted:
        return
    groups = [counted] if keys else [[s] for s in counted]
    for group in groups:
        counts = {s.label: [s.counts[k] for k in keys or s.counts] for s in group}
        found = compare_rates(counts, base.label if keys else None, base.run.seed)
        for s in group:
            made.means[s.label] = {**found.systems[s.label], **made.means[s.label]}
            if s.label in found.deltas:
                pairing.deltas[s.label] = {**found.deltas[s.label], **pairing.deltas.get(s.label, {})}


def _settings(run: RunRecord) -> dict[str, Any]:
    """Settings as resolved; what is younger than the run has its default."""
    given = {k: v for k, v in run.config.items() if k != "path"}
    try:
        tree = load(f"rlspeech.{SCHEMAS[run.stage]}").model_validate(given).model_dump(mode="json")
    except ValidationError:
        tree = run.config
    return {k: v for k, v in flat(tree, by_name=True).items() if k.split(".")[0] not in ASIDE}


def _differing(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> run -> value, of keys whose values are not the same everywhere; a run without the key is left out."""
    found = {}
    for key in dict.fromkeys(k for tree in trees.values() for k in tree):
        by_run = {r: t[key] for r, t in trees.items() if key in t}
        if len({json.dumps(v, sort_keys=True, default=str) for v in by_run.values()}) > 1 or len(by_run) < len(trees):
            found[key] = by_run
    return found
