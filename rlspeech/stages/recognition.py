"""Rows of recognisers under the rules, as the page of an evaluation shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlspeech.config import Evaluate
from rlspeech.data.batches import columns_of
from rlspeech.rewards.rates import RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import Judged, TextRules
from rlspeech.types import Sample, Utterance

__all__ = ["Judgements"]

NEUTRAL = ("models", "baseline", "metrics", "limit", "batch", "normaliser", "by")  # what a run that goes on may change
MOST_VALUES = 12  # of the column ``by`` that get a table
SAID = "hypotheses"


@dataclass(frozen=True, slots=True)
class _One:
    """A hypothesis under the rules."""

    sample: Sample
    judged: Judged
    counts: dict[str, int]
    row: dict[str, Any]


class Judgements:
    """Every hypothesis under the rules, and the corpus rates of all of them and of each value of a column.

    Args:
        config: ``by``, ``baseline`` and ``seed`` are used.
        rules: normaliser and detector.
        utts: with texts.
        said: system -> id -> row of ``hypotheses/``.
    """

    def __init__(
        self, config: Evaluate, rules: TextRules, utts: Sequence[Utterance], said: Mapping[str, Mapping[str, Any]]
    ) -> None:
        both = [u for u in utts if all(said[s].get(u.id, {}).get("hypothesis") is not None for s in said)]
        blank = {
            u.id
            for u in both
            if (u.text or "").strip() and not rules.judge(Sample(u.id, _NOTHING, 16000, None, u.text)).texts[0]
        }
        self.utts = [u for u in both if u.id not in blank]
        lost = len(utts) - len(both)
        self.notes = [f"{lost} recordings could not be recognised and are left out for all"] if lost else []
        if blank:
            self.notes.append(
                f"{len(blank)} texts are empty after {config.normaliser} and are left out: {', '.join(sorted(blank)[:3])}"
            )
        self.rows = {s: {u.id: self._one(rules, u, said[s][u.id]) for u in self.utts} for s in said}
        cut = {s: n for s in said if (n := sum(o.row.get("truncated", 0) > 0 for o in self.rows[s].values()))}
        self.notes += [
            f"{s}: {n} outputs ran into the limit of tokens and are scored as they are" for s, n in cut.items()
        ]
        if not self.utts:
            return
        baseline = config.baseline or (next(iter(said)) if len(said) > 1 else None)
        self.whole = self._compare([u.id for u in self.utts], baseline, config.seed)
        self.parts: dict[str, RateComparison] = {}
        values = {u.id: str(v) for u in self.utts if (v := columns_of(u).get(config.by)) is not None}
        kinds = sorted(set(values.values()))
        if len(kinds) > MOST_VALUES:
            self.notes.append(
                f"{config.by} has {len(kinds)} values, too many for tables of their own (at most {MOST_VALUES})"
            )
            return
        for kind in kinds:
            self.parts[kind] = self._compare([k for k, v in values.items() if v == kind], baseline, config.seed)

    def _one(self, rules: TextRules, utt: Utterance, row: dict[str, Any]) -> _One:
        sample = Sample(utt.id, _NOTHING, 16000, None, utt.text, columns_of(utt), row["hypothesis"])
        judged = rules.judge(sample)
        return _One(sample, judged, counts_of(judged), row)

    def _compare(self, keys: Sequence[str], baseline: str | None, seed: int) -> RateComparison:
        return compare_rates({s: [rows[k].counts for k in keys] for s, rows in self.rows.items()}, baseline, seed)


_NOTHING = np.zeros(0, dtype=np.float32)  # rules look at texts alone
