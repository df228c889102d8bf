"""Rows of synthesisers, as the page of an evaluation shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlspeech.config import Evaluate
from rlspeech.data.batches import columns_of
from rlspeech.rewards.rates import UNDIRECTED, RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import Judged, TextRules
from rlspeech.stages.summary import Table
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["Spoken"]

WORDS, ANCHORS = ("tts_cer", "tts_wer"), ("recordings", "resynthesis")
RATES = ("cer", "wer", "substitutions", "deletions", "insertions", "exact")
MOST_VALUES = 12  # of the column ``by`` that get a table


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
