"""Systems: what runs have to compare, with scores by item, means, sounds and texts.

A run of ``rl`` counts as its last validation, one of ``pretrain`` as the means that it logged, one of ``eval`` or ``reward`` as each of its
systems; alone, a run that trains is its first validation, its last and its best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rlspeech.data.text import align, get_normaliser, units
from rlspeech.report import Edit
from rlspeech.report.runs import Origin, RunRecord, Sound, at, find, number
from rlspeech.rewards.rates import COUNTS, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.scores import JUDGE_TEXT, step_name
from rlspeech.stats import Interval, mean_interval
from rlspeech.types import Sample, UserError

__all__ = ["BESIDE", "System", "moments_of", "systems_of", "validation"]

NORMALISER = "basic-2"  # of texts that are shown against each other
FACTS = frozenset({"key", "system", "step", "item", "text", "hypothesis", "errors"})
COUNTED = ("units", "substitutions", "deletions", "insertions")
BESIDE = FACTS.union(
    {"stamp", "seconds", "samples", "finished", "normaliser"}, COUNTED
)  # columns of a row that are no scores


@dataclass
class System:
    """One system of one run.

    Args:
        label: what it is called on the page.
        run: where from.
        name: its name there.
        rows: key -> row of scores; empty where only means are known.
        means: metric -> mean with its interval.
        kept: stem -> kept audio.
    """

    label: str
    run: RunRecord
    name: str
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    means: dict[str, Interval] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

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
        return {k: c for k, c in found.items() if c and all(isinstance(c.get(n), int) for n in COUNTS)}

    def _counted(self, key: str, row: Mapping[str, Any]) -> dict[str, int] | None:
        """Counts of a row that holds the texts alone."""
        text, hypothesis = row.get("text"), row.get("hypothesis")
        if not (isinstance(text, str) and isinstance(hypothesis, str)):
            return None
        try:
            rules = TextRules(self._normaliser)
        except UserError:  # a function that is not here
            return None
        return counts_of(rules.judge(Sample(key, np.zeros(0, np.float32), 16000, None, text, {}, hypothesis)))

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
        if _are_texts(normalised):
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
        blocks = align(reference, hypothesis).ops
        return [Edit(tag, " ".join(reference[a:b]), " ".join(hypothesis[c:d])) for tag, a, b, c, d in blocks]

    @property
    def _normaliser(self) -> str:
        return str(self.run.config.get("normaliser", NORMALISER)) if self.run.stage == "eval" else NORMALISER


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, list) and len(texts) == 2 and all(isinstance(t, str) for t in texts)


def systems_of(run: RunRecord, alone: bool) -> list[System]:
    """Everything of a run that can be compared; ``alone`` leaves the run's own name out of the labels."""
    if run.stage in ("rl", "pretrain"):
        return [validation(run, next(reversed(run.steps()), None) if run.named else None, run.name)]
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
    best = _best(run)
    places |= {"best": best} if best in steps and best not in places.values() else {}
    return [validation(run, step, label) for label, step in places.items()]


def _best(run: RunRecord) -> int | None:
    """The step of the checkpoint that is taken for the run."""
    try:
        name = (run.path / "checkpoints" / "best").read_text(encoding="utf-8").strip()
        return int(name.removeprefix("step_"))
    except (OSError, ValueError):
        return None


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
