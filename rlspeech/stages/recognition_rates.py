"""Error rates of a corpus from counts by utterance: sums over sums, with intervals of the ratios, paired where systems are compared.

A mean of utterances' error rates is another number: it weighs a word in a short utterance more. The bootstrap resamples utterances and
adds up errors and words of each resample, the same utterances for every system.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlspeech.rewards.rules import Judged
from rlspeech.stats import Interval, draws_interval, resampled_sums

__all__ = ["COUNTS", "RATES", "Comparison", "Rate", "compare", "counts_of"]

COUNTS = (
    "spoken",
    "words",
    "substitutions",
    "deletions",
    "insertions",
    "errors",
    "characters",
    "character_errors",
    "exact",
    "keywords_said",
    "keywords_heard",
    "keywords_both",
    "judged",
    "hallucinated",
    "silent",
    "empty",
    "inserted",
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A ratio of sums over utterances: ``factor`` times the sum of the counts ``top`` over that of ``bottom``."""

    name: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    higher_is_better: bool
    help: str
    factor: float = 100.0


RATES = (
    Rate(
        "wer",
        ("errors",),
        ("words",),
        False,
        "word error rate in %: errors per 100 reference words (characters in writing without "
        "spaces), over utterances in which something is said",
    ),
    Rate("substitutions", ("substitutions",), ("words",), False, "per 100 reference words"),
    Rate("deletions", ("deletions",), ("words",), False, "per 100 reference words"),
    Rate("insertions", ("insertions",), ("words",), False, "per 100 reference words"),
    Rate("cer", ("character_errors",), ("characters",), False, "character error rate in %"),
    Rate("exact", ("exact",), ("spoken",), True, "% of utterances without an error"),
    Rate(
        "keyword_precision",
        ("keywords_both",),
        ("keywords_heard",),
        True,
        "% of the keywords in the outputs that were said",
    ),
    Rate(
        "keyword_recall",
        ("keywords_both",),
        ("keywords_said",),
        True,
        "% of the keywords that were said that are in the outputs",
    ),
    Rate(
        "keyword_f1",
        ("keywords_both", "keywords_both"),
        ("keywords_said", "keywords_heard"),
        True,
        "of all keywords together, in %",
    ),
    Rate("hallucinated", ("hallucinated",), ("judged",), False, "% of utterances that a rule calls a hallucination"),
    Rate("empty_output", ("empty",), ("silent",), True, "% of recordings without words for which nothing is written"),
    Rate("inserted_words", ("inserted",), ("silent",), False, "words written per recording without words", 1.0),
)


def counts_of(judged: Judged) -> dict[str, int]:
    """The counts of one utterance, by the names of ``COUNTS``."""
    from rapidfuzz.distance import Levenshtein

    from rlspeech.data.text import characters, written_in_characters

    found = judged.found
    row = dict.fromkeys(COUNTS, 0) | {"judged": 1, "hallucinated": int(bool(judged.fired))}
    if judged.keywords is not None:
        row |= dict(zip(("keywords_both", "keywords_said", "keywords_heard"), judged.keywords, strict=True))
    if not found.reference:
        return row | {"silent": 1, "empty": int(not found.hypothesis), "inserted": len(found.hypothesis)}
    language = judged.language or (
        "zh" if written_in_characters(judged.texts[0]) else "en"
    )  # both sides by the reference's writing
    reference, hypothesis = (characters(t, language) for t in judged.texts)
    return row | {
        "spoken": 1,
        "words": len(found.reference),
        "substitutions": found.substitutions,
        "deletions": found.deletions,
        "insertions": found.insertions,
        "errors": found.errors,
        "characters": len(reference),
        "character_errors": Levenshtein.distance(reference, hypothesis),
        "exact": int(not found.errors),
    }


@dataclass(slots=True)
class Comparison:
    """Systems on the same utterances.

    Args:
        items: utterances.
        systems: system -> rate -> value with interval.
        deltas: system -> rate -> difference to the baseline, in the rate's unit.
        relative: system -> rate -> change against the baseline, in % of the baseline's value.
    """

    items: int
    systems: dict[str, dict[str, Interval]]
    deltas: dict[str, dict[str, Interval]]
    relative: dict[str, dict[str, Interval]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

        def plain(part: Mapping[str, Mapping[str, Interval]], judge: bool) -> dict[str, Any]:
            return {
                s: {m: {**i.as_dict(), **({"significant": i.significant} if judge else {})} for m, i in row.items()}
                for s, row in part.items()
            }

        return {
            "n": self.items,
            "systems": plain(self.systems, False),
            "deltas": plain(self.deltas, True),
            "relative": plain(self.relative, True),
        }


def compare(counts: Mapping[str, Sequence[Mapping[str, int]]], baseline: str | None, seed: int = 0) -> Comparison:
    """Rates of systems, and of all but the baseline the difference and the relative change with paired bootstrap intervals.

    Args:
        counts: system -> counts by utterance, the same utterances in the same order.
        baseline: one of them, or None.
        seed: of the resampling.

    Returns:
        rates that no system has anything to count for are left out.
    """
    names, items = list(counts), len(next(iter(counts.values())))
    table = np.concatenate(
        [np.array([[row[c] for c in COUNTS] for row in counts[s]], np.float64).reshape(items, -1) for s in names], 1
    )
    sums = {"all": table.sum(0)[None], "draws": resampled_sums(table, seed)}
    values = {
        part: {s: _rates(x[:, i * len(COUNTS) : (i + 1) * len(COUNTS)]) for i, s in enumerate(names)}
        for part, x in sums.items()
    }
    kept = [r.name for r in RATES if any(math.isfinite(values["all"][s][r.name][0]) for s in names)]
    made = Comparison(items, {}, {}, {})
    for s in names:
        made.systems[s] = {m: draws_interval(float(values["all"][s][m][0]), values["draws"][s][m], items) for m in kept}
        if baseline is None or s == baseline:
            continue
        for target, change in ((made.deltas, np.subtract), (made.relative, _relative)):
            target[s] = {}
            for m in kept:
                one, many = (change(values[part][s][m], values[part][baseline][m]) for part in ("all", "draws"))
                target[s][m] = draws_interval(float(one[0]), many, items if math.isfinite(one[0]) else 0)
    return made


def _rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(n, counts) -> (n,) by name; nan where there is nothing to divide by."""
    column = {c: sums[:, i] for i, c in enumerate(COUNTS)}
    out = {}
    for r in RATES:
        top, bottom = sum(column[c] for c in r.top), np.asarray(sum(column[c] for c in r.bottom))
        out[r.name] = r.factor * np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)
    return out


def _relative(value: np.ndarray, base: np.ndarray) -> np.ndarray:
    return np.where(base > 0, 100.0 * (value / np.where(base > 0, base, 1) - 1), np.nan)
