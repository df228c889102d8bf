"""Several runs side by side: settings that differ, final scores with intervals, paired differences where the items are the same.

The first system of a stage is what its others are compared with, unless an evaluation names its own baseline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from rlspeech.report import Metric
from rlspeech.stages.past import Past, flat
from rlspeech.stages.run_facts import help_of
from rlspeech.stages.sides import INPUT, Side, shared, sides_of
from rlspeech.stages.validations import Validations
from rlspeech.stats import Interval, paired_delta

__all__ = ["Comparison", "Pairing", "compare"]

SCHEMAS = {"rl": "RL", "eval": "Evaluate", "reward": "ScoreFolder", "pretrain": "Pretrain"}
ASIDE = frozenset({"out", "path"})  # differ by their nature
PLACES = ("git_commit", "python", "device")
Scores = dict[str, dict[str, Interval]]


@dataclass(slots=True)
class Pairing:
    """Systems of one stage against one of them, item by item.

    Args:
        stage: whose.
        baseline: label of that one.
        deltas: label -> metric -> paired difference.
        keys: items that every system was heard on.
    """

    stage: str
    baseline: str
    deltas: Scores = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """What the runs have in common and what not.

    Args:
        runs: in the order that they were given.
        sides: their systems.
        metrics: of all, in the order of their appearance.
        means: label -> metric -> mean.
        pairings: one a stage.
        own: rl run -> metric -> paired difference to its own start.
        settings: stage -> dotted key -> run -> value, where they differ.
        versions: package -> run -> version, where they differ.
        notes: what is missing, and what could not be paired.
    """

    runs: Sequence[Past]
    sides: list[Side] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    means: Scores = field(default_factory=dict)
    pairings: list[Pairing] = field(default_factory=list)
    own: Scores = field(default_factory=dict)
    settings: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers of the page."""

        def plain(scores: Scores, judge: bool) -> dict[str, Any]:
            return {
                s: {m: {**i.as_dict(), **({"significant": i.significant} if judge else {})} for m, i in row.items()}
                for s, row in scores.items()
            }

        return {
            "runs": [
                {"name": r.name, "path": str(r.path), "stage": r.stage, "state": r.state(), "step": r.step}
                for r in self.runs
            ],
            "higher_is_better": {m.name: m.higher_is_better for m in self.metrics},
            "systems": plain(self.means, False),
            "differences": [
                {"stage": p.stage, "baseline": p.baseline, "n": len(p.keys), "deltas": plain(p.deltas, True)}
                for p in self.pairings
                if p.deltas
            ],
            "against_own_start": plain(self.own, True),
            "settings": self.settings,
            "versions": self.versions,
            "notes": self.notes,
        }


def compare(runs: Sequence[Past]) -> Comparison:
    """Compare runs of any stages; one alone is compared with nothing but its own baseline and start."""
    made = Comparison(runs, sides=_sides(runs))
    made.notes = [f"{r.name}: {note}" if len(runs) > 1 else note for r in runs for note in r.notes]
    for stage in dict.fromkeys(s.run.stage for s in made.sides):
        _pair(made, stage, [s for s in made.sides if s.run.stage == stage])
    if len({r.stage for r in runs}) > 1:
        made.notes.append("stages score clips of their own: compare means within a stage")
    for run in (r for r in runs if r.stage == "rl"):
        checks = Validations.of(run)
        if len(checks.steps) > 1:
            made.own[run.name] = {m: checks.delta(checks.steps[-1], m) for m in checks.metrics}
    directions = {m: side.run for side in reversed(made.sides) for m in made.means[side.label]}
    names = dict.fromkeys(m for row in made.means.values() for m in row)
    made.metrics = [_metric(m, directions[m]) for m in names]
    for stage in SCHEMAS:
        settings = {r.name: _settings(r) for r in runs if r.stage == stage and r.config}
        if len(settings) > 1 and (found := _differing(settings)):
            made.settings[stage] = found
    made.versions = _differing(
        {r.name: {**_part(r.env, "versions"), **{k: r.env[k] for k in PLACES if k in r.env}} for r in runs if r.env}
    )
    return made


def _sides(runs: Sequence[Past]) -> list[Side]:
    """The systems of all runs; an unprocessed input that was scored before is the same one again."""
    sides = [s for r in runs for s in sides_of(r, alone=len(runs) == 1)]
    first: dict[str, Side] = {}
    kept = []
    for side in sides:
        if side.run.stage == "eval" and side.system == INPUT:
            known = first.setdefault("", side)
            if known is not side and len(shared(side, known)[0]) == len(side.rows):
                continue
        kept.append(side)
    inputs = [s for s in kept if s.system == INPUT and s.run.stage == "eval"]
    if len(inputs) == 1 and INPUT not in [s.label for s in kept]:
        inputs[0].label = INPUT
    return kept


def _pair(made: Comparison, stage: str, sides: list[Side]) -> None:
    """Means and paired differences of one stage's systems."""
    base = _baseline(sides)
    pairing = Pairing(stage, base.label)
    together: list[str] | None = None
    for side in sides:
        made.means[side.label] = dict(side.means)
        if side is base:
            continue
        keys, why = shared(side, base)
        together = keys if together is None else [k for k in together if k in set(keys)]
        if why:
            made.notes.append(f"{side.label} and {base.label}: {why}")
        if len(keys) < 2:
            continue
        left_out = _incomparable(side, base)
        pairing.deltas[side.label] = {
            m: paired_delta(side.column(m, keys), base.column(m, keys), seed=base.run.seed)
            for m in side.means
            if m in base.means and m not in left_out
        }
        if "reward" in left_out:
            made.notes.append(
                f"{side.label} and {base.label} weigh their rewards differently: their sums are not compared"
            )
    pairing.keys = together if together is not None else list(base.rows)
    _rates(made, pairing, sides, base)
    made.pairings.append(pairing)


def _baseline(sides: Sequence[Side]) -> Side:
    """What an evaluation calls so, else the unprocessed input of a single system, else the first that is none."""
    named = [
        s
        for s in sides
        if s.run.stage == "eval" and s.system == (s.run.summary.get("baseline") or s.run.config.get("baseline"))
    ]
    others = [s for s in sides if s.system != INPUT]
    return next(iter(named), None) or (sides[0] if len(others) < 2 else others[0])


def _incomparable(side: Side, base: Side) -> set[str]:
    """Columns whose difference says nothing."""
    found = set()
    if side.run.stage == "rl" and side.run.config.get("rewards") != base.run.config.get("rewards"):
        found.add("reward")
    if side.run.config.get("task") == "tts":
        from rlspeech.rewards.rates import UNDIRECTED

        found |= UNDIRECTED
    return found


def _rates(made: Comparison, pairing: Pairing, sides: Sequence[Side], base: Side) -> None:
    """Error rates of texts in the places of their means: sums of errors over sums of words, on the items that all systems have."""
    from rlspeech.rewards.rates import compare_rates

    counted = [s for s in sides if s.counts]
    keys = [k for k in pairing.keys if all(k in s.counts for s in counted)]
    if not counted or base not in counted:
        return
    if not keys:
        for side in counted:
            found = compare_rates({side.label: list(side.counts.values())}, None, base.run.seed)
            made.means[side.label] = {**found.systems[side.label], **made.means[side.label]}
        return
    found = compare_rates({s.label: [s.counts[k] for k in keys] for s in counted}, base.label, base.run.seed)
    for side in counted:
        made.means[side.label] = {**found.systems[side.label], **made.means[side.label]}
        if side is not base:
            pairing.deltas[side.label] = {**found.deltas[side.label], **pairing.deltas.get(side.label, {})}


def _metric(name: str, run: Past) -> Metric:
    from rlspeech.rewards.rates import RATES

    rate = next((r for r in RATES if r.name == name), None)
    return (
        Metric(name, rate.higher_is_better, rate.help)
        if rate
        else Metric(name, run.higher_is_better(name), help_of(name))
    )


def _settings(run: Past) -> dict[str, Any]:
    """As resolved; what is younger than the run has its default."""
    from rlspeech import config

    given = {k: v for k, v in run.config.items() if k != "path"}
    try:
        tree = getattr(config, SCHEMAS[run.stage]).model_validate(given).model_dump(mode="json")
    except ValidationError:
        tree = run.config
    return {k: v for k, v in flat(tree).items() if k.split(".")[0] not in ASIDE}


def _part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = tree.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _differing(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> run -> value, of keys whose values are not the same everywhere; a run without the key is left out."""
    names = dict.fromkeys(k for tree in trees.values() for k in tree)
    texts = {k: {r: json.dumps(t[k], sort_keys=True, default=str) for r, t in trees.items() if k in t} for k in names}
    return {
        k: {r: t[k] for r, t in trees.items() if k in t}
        for k, by_run in texts.items()
        if len(set(by_run.values())) > 1 or len(by_run) < len(trees)
    }
