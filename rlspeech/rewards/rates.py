"""Error rates of texts: the rewards ``wer`` and ``cer``, and the rates of a whole corpus with their intervals.

Rates of a corpus are sums over sums. A mean of utterances' error rates is another number: it weighs a word in a short utterance more. The
bootstrap resamples utterances and adds up errors and words of each resample, the same utterances for every system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspeech.data.text import align, characters, get_normaliser, is_cased, only_symbols, units, written_in_characters
from rlspeech.rewards.recognisers import load_recogniser, transcribe_audible
from rlspeech.stats import Interval, as_dicts, draws_interval, resampled_sums
from rlspeech.types import Sample, Score, UserError

if TYPE_CHECKING:
    from rlspeech.rewards.rules import Judged

UNITS = ("units", "substitutions", "deletions", "insertions")  # of one text, as ``asr_*`` leaves them in a row


class ErrorRate:
    """``wer`` and ``cer``: word and character error rate of a recogniser that the user names.

    Error rates depend on how text is normalised, so the normaliser has a name and a version and stands in the score file. A silent clip
    is not given to the recogniser (many invent words): its hypothesis is empty, and an empty hypothesis is an error rate of 1.

    Args:
        recogniser: see ``recognisers.load_recogniser``.
        normaliser: name in ``rlspeech.data.text.NORMALISERS``, or ``package.module:function``.
        language: given to sequence-to-sequence recognisers that take one.
        how: ``batch``, ``beams``, ``device`` and what else ``load_recogniser`` takes; it is greedy by default.

    Raises:
        UserError: no recogniser named, or one that cannot be loaded.
    """

    def __init__(
        self, recogniser: str | None = None, normaliser: str = "basic-3", language: str | None = None, **how: Any
    ) -> None:
        if not recogniser:
            hint = "--recogniser embedded, FOLDER (or Hub id), or pocketsphinx after pip install pocketsphinx"
            raise UserError("wer needs a recogniser", "an error rate depends on it, so it is named", hint)
        self._normalise = get_normaliser(normaliser)
        self._recognise = load_recogniser(recogniser, language=language, **how)
        self.version = f"recogniser {getattr(self._recognise, 'version', recogniser)}, text {normaliser}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        import jiwer

        out = []
        for s, raw in zip(samples, transcribe_audible(self._recognise, samples), strict=True):
            if isinstance(raw, Exception):
                out.append(dict.fromkeys(columns, Score(None, str(raw))))
                continue
            reference, hypothesis = self._normalise(s.text or ""), self._normalise(raw)
            detail = {"hypothesis": raw}
            if not reference or not hypothesis:
                null = Score(None, "the reference text is empty after normalisation", detail)
                out.append(dict.fromkeys(columns, Score(1.0, detail=detail) if reference else null))
            else:
                rates = {"wer": jiwer.wer(reference, hypothesis), "cer": jiwer.cer(reference, hypothesis)}
                out.append({c: Score(float(rates[c]), detail=detail) for c in columns})
        return out


def corpus_interval(texts: Iterable[tuple[str, str, str | None]], normaliser: str, seed: int = 0) -> Interval:
    """Errors over reference units of (reference, hypothesis, language): sums over sums, not a mean of rates.

    Texts whose reference is empty are left out; nan without any. The bootstrap 95 % interval over texts takes two of them.
    """
    counts = error_counts(texts, normaliser)
    errors, wanted = counts.sum(0)
    sums = resampled_sums(counts, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return draws_interval(float(errors / wanted) if wanted else float("nan"), sums[:, 0] / sums[:, 1], len(counts))


def error_counts(texts: Iterable[tuple[str, str, str | None]], normaliser: str) -> np.ndarray:
    """(K, 2): errors and reference units of each text in which something is said."""
    normalise, rows = get_normaliser(normaliser), list[tuple[int, int]]()
    for reference, hypothesis, language in texts:
        if wanted := units(normalise(reference), language):
            rows.append((align(wanted, units(normalise(hypothesis), language)).errors, len(wanted)))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def units_rate(rows: Sequence[Mapping[str, int]], seed: int = 0) -> tuple[Interval, dict[str, float], int]:
    """Error rate of texts by their counts ``UNITS``.

    Returns the rate in % with its interval, its parts in %, and how many units were wanted.
    """
    counts = np.array([[row[k] for k in UNITS] for row in rows], np.float64)
    sums, draws = counts.sum(0), resampled_sums(counts, seed)
    rate = draws_interval(float(100 * sums[1:].sum() / sums[0]), 100 * draws[:, 1:].sum(1) / draws[:, 0], len(counts))
    return rate, dict(zip(UNITS[1:], (100 * sums[1:] / sums[0]).tolist(), strict=True)), int(sums[0])


COUNTS = (
    *("spoken", "words", "substitutions", "deletions", "insertions", "errors", "characters", "character_errors"),
    *("exact", "keywords_said", "keywords_heard", "keywords_both", "judged", "hallucinated", "silent", "empty"),
    *("inserted", "outputs", "symbols", "written", "cased"),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A ratio of sums over utterances: ``factor`` times the counts ``top`` over those of ``bottom``, names with spaces between."""

    name: str
    top: str
    bottom: str
    higher_is_better: bool
    help: str
    factor: float = 100.0


WER_HELP = "word error rate in %: errors per 100 reference words (characters in writing without spaces), "
WER_HELP += "over utterances in which something is said"
BOTH, SAID, HEARD = KEYWORDS = ("keywords_both", "keywords_said", "keywords_heard")
RATES = (
    Rate("wer", "errors", "words", False, WER_HELP),
    Rate("substitutions", "substitutions", "words", False, "per 100 reference words"),
    Rate("deletions", "deletions", "words", False, "per 100 reference words"),
    Rate("insertions", "insertions", "words", False, "per 100 reference words"),
    Rate("cer", "character_errors", "characters", False, "character error rate in %"),
    Rate("exact", "exact", "spoken", True, "% of utterances without an error"),
    Rate("keyword_precision", BOTH, HEARD, True, "% of the keywords in the outputs that were said"),
    Rate("keyword_recall", BOTH, SAID, True, "% of the keywords that were said that are in the outputs"),
    Rate("keyword_f1", f"{BOTH} {BOTH}", f"{SAID} {HEARD}", True, "of all keywords together, in %"),
    Rate("hallucinated", "hallucinated", "judged", False, "% of utterances that a rule calls a hallucination"),
    Rate("empty_output", "empty", "silent", True, "% of recordings without words for which nothing at all is written"),
    Rate("symbols", "symbols", "outputs", False, "% of outputs that hold signs or tags in brackets, but no word"),
    Rate("cased", "cased", "written", True, "% of outputs of speech with capitals among small letters, or punctuation"),
    Rate("inserted_words", "inserted", "silent", False, "words written per recording without words", 1.0),
)


UNDIRECTED = frozenset({"tts_duration_ratio"})  # best at 1: a difference is neither better nor worse


def character_errors(reference: str, hypothesis: str, language: str | None) -> tuple[int, int]:
    """Edit distance in characters, and length of the reference; without a language both are split as the reference is."""
    from rapidfuzz.distance import Levenshtein

    language = language or ("zh" if written_in_characters(reference) else "en")
    wanted = characters(reference, language)
    return int(Levenshtein.distance(wanted, characters(hypothesis, language))), len(wanted)


def counts_of(judged: Judged) -> dict[str, int]:
    """The counts of one utterance, by the names of ``COUNTS``."""
    found = judged.found
    row = dict.fromkeys(COUNTS, 0) | {"judged": 1, "hallucinated": int(bool(judged.fired)), "outputs": 1}
    row["symbols"] = int(only_symbols(judged.raw))
    if judged.keywords is not None:
        row |= dict(zip(KEYWORDS, judged.keywords, strict=True))
    if not found.reference:
        inserted = len(found.hypothesis) if judged.texts[1] else 0  # signs are no words
        return row | {"silent": 1, "empty": int(not found.hypothesis), "inserted": inserted}
    row["written"] = int(bool(judged.raw.strip()) and not row["symbols"])
    row["cased"] = int(row["written"] and is_cased(judged.raw))
    wrong, length = character_errors(*judged.texts, judged.language)
    row |= {name: getattr(found, name) for name in ("substitutions", "deletions", "insertions", "errors")}
    row |= {"characters": length, "character_errors": wrong}
    return row | {"spoken": 1, "words": len(found.reference), "exact": int(not found.errors)}


@dataclass(slots=True)
class RateComparison:
    """Systems on the same utterances."""

    items: int  # utterances
    systems: dict[str, dict[str, Interval]]  # system -> rate -> value with interval
    deltas: dict[str, dict[str, Interval]]  # system -> rate -> difference to the baseline, in the rate's unit
    # system -> rate -> change against the baseline, in % of the baseline's value
    relative: dict[str, dict[str, Interval]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        changes = {name: as_dicts(getattr(self, name), differences=True) for name in ("deltas", "relative")}
        return {"n": self.items, "systems": as_dicts(self.systems), **changes}


def compare_rates(
    counts: Mapping[str, Sequence[Mapping[str, int]]], baseline: str | None, seed: int = 0
) -> RateComparison:
    """Rates of systems, and of all but the baseline the difference and the relative change with paired bootstrap intervals.

    Args:
        counts: system -> counts by utterance, the same utterances in the same order; older rows may lack some.
        baseline: one of them, or None.
        seed: of the resampling.

    Returns:
        rates that no system has anything to count for are left out.
    """
    names, items = list(counts), len(next(iter(counts.values())))
    rows = [[[row.get(c, 0) for c in COUNTS] for row in counts[s]] for s in names]
    table = np.concatenate([np.array(r, np.float64).reshape(items, -1) for r in rows], 1)
    sums = {"all": table.sum(0)[None], "draws": resampled_sums(table, seed)}
    parts = {part: np.split(x, len(names), axis=1) for part, x in sums.items()}  # of each system its counts
    values = {part: dict(zip(names, map(_ratios, own), strict=True)) for part, own in parts.items()}
    kept = [r.name for r in RATES if any(math.isfinite(values["all"][s][r.name][0]) for s in names)]
    made = RateComparison(items, {}, {}, {})
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


def _ratios(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(n, counts) -> (n,) by name; nan where there is nothing to divide by."""
    column = {c: sums[:, i] for i, c in enumerate(COUNTS)}
    out = {}
    for r in RATES:
        top, bottom = sum(column[c] for c in r.top.split()), np.asarray(sum(column[c] for c in r.bottom.split()))
        out[r.name] = r.factor * np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)
    return out


def _relative(value: np.ndarray, base: np.ndarray) -> np.ndarray:
    return np.where(base > 0, 100.0 * (value / np.where(base > 0, base, 1) - 1), np.nan)
