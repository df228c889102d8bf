"""Rules for a recogniser's hypothesis: accuracy, hallucination, keywords, exact match, edits; all from one alignment with the reference.

After arXiv 2509.18569 (section 4.1: R1 = 1 - WER, R2 = -1 on a hallucination, R3 = mean of keyword precision and recall) and
arXiv 2509.01939 (exact match, negative edit distance). What the first does not publish, the hallucination detector and its
thresholds, is ours; every threshold is an option with a name. What is judged is the raw decode: some processors remove repetitions
from what they return, and a loop that was cleaned away cannot be punished.

The rules of a hallucination, each on its own (``detail`` names those that fired):

    loop       an n-gram comes ``repeats`` times in a row, at least ``loop_excess`` of them unmatched, and the reference has no
               such loop of its own: sentences that are said again and again are no mistake
    stutter    up to four letters come ``character_repeats`` times in a row inside a word, and not so in the reference
    run        a stretch of inserted units
    length     more than ``length_ratio`` x reference + ``length_constant`` units
    script     most of it is written in a script that the reference hardly uses (a translation)
    nonspeech  anything written where nothing is said

A translation into the same script, or as many words as were said and all of them others, is caught by the error rate only. An empty
hypothesis of words that were said is error rate 1; an empty hypothesis of silence is right.

R2 is flat: a loop of ten words costs what one of a thousand does, and a group of loops has nothing to learn from. ``graded``, ours:

    R2 = r / (1 + x^2) - 1,    x the largest of the sizes and r the script's share, both of the rules that are on:

    run, loop  units of the longest insertion, and of a repetition (unmatched, beyond the reference's own), over ``insertion_run``
    length     units more than the reference's, over those that the rule above leaves
    stutter    repetitions over ``character_repeats``, from that many on: letters come twice in many a word
    nonspeech  1 + (units - 1) / ``insertion_run``: the first unit is as bad as a run
    script     r = o / ``script_share``, at most 1; o adds up over scripts the smaller of its shares of both texts

0 for none, -1/2 where the rule of a run begins to fire, falling with every further unit, above -1; the square leaves single words to the
error rate. The right script earns a little even in a loop, a text wholly in another one nothing: -1.

Empty is what holds nothing but white space as it was written. A normaliser that erases ``>>``, ``♪`` or ``[BLANK_AUDIO]`` would make
silence of them, and a policy finds that out. So where nothing is said, a hypothesis that normalises to nothing is judged by its raw words,
one insertion each. Where something is said, tags and signs are what the normaliser makes of them: no words for ``english-2``, words for
``basic-3`` if they have letters. ``empty="normalised"`` is the older rule (rules-1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import eq, truediv
from typing import Any

from rlspeech.data.text import Alignment, align, get_normaliser, script_of, units, written_in_characters
from rlspeech.rewards.rates import character_errors
from rlspeech.types import Sample, Score, UserError

RULES = ("loop", "stutter", "run", "length", "script", "nonspeech")
EMPTY = {"raw": 2, "normalised": 1}  # rule -> version of the rules
NONE: Mapping[str, Any] = {}
CACHE = 8192  # texts: the rollouts of a group share their reference, and often each other's words


@dataclass(frozen=True, slots=True)
class Hallucinations:
    """The detector; see the module.

    Args:
        rules: names of ``RULES`` joined by "+", or "all" or "none".
        ngram: longest period of a loop, in units.
        repeats: repetitions of a period of two units or more that make a loop.
        repeats_one: of a period of one unit ("no no no no no").
        loop_excess: repetitions that have to be unmatched by the reference.
        character_repeats: of letters inside a word ("aaaaaaaa", "hahaha...").
        insertion_run: consecutive inserted units, counted in words.
        insertion_run_characters: the same where units are characters.
        length_ratio, length_constant: longest hypothesis, in units of the reference.
        script_share: of the hypothesis's units in the foreign script.
        empty: which hypothesis is: "raw" (rules-2) or "normalised" (rules-1), see the module.
        graded: R2 by length instead of flat, see the module.
    """

    rules: str = "all"
    ngram: int = 24
    repeats: int = 3
    repeats_one: int = 5
    loop_excess: int = 2
    character_repeats: int = 8
    insertion_run: int = 6
    insertion_run_characters: int = 10
    length_ratio: float = 1.5
    length_constant: int = 5
    script_share: float = 0.7
    empty: str = "raw"
    graded: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.rules.split("+")) - {*RULES, "all", "none"}:
            what, hint = f"unknown hallucination rule {', '.join(sorted(unknown))}", f"{'+'.join(RULES)}, all or none"
            raise UserError(what, "", hint)
        for name, known in (("empty", list(EMPTY)), ("graded", [False, True])):
            if getattr(self, name) not in known:
                hint = f"{name}={' or '.join(map(str, known)).lower()}"
                raise UserError(f"{name}={getattr(self, name)} is no rule", "", hint)
        repeats = min(self.repeats, self.repeats_one, self.character_repeats)
        if repeats < 2 or min(self.ngram, self.insertion_run, self.insertion_run_characters, self.loop_excess) < 1:
            what = "these thresholds would call every text a hallucination"
            raise UserError(what, "a repetition takes two, a run one", "larger ones")

    def fired(self, found: Alignment, in_characters: bool) -> list[str]:
        """Names of the rules that an alignment breaks, in the order of ``RULES``."""
        if not found.hypothesis or (not found.errors and found.reference):
            return []  # nothing is there, or it is what was said
        on = RULES if self.rules == "all" else self.rules.split("+")
        inserted, run, longest = self._lengths(found, in_characters)
        checks: dict[str, Callable[[], bool]] = {
            "loop": lambda: self._loop(found),
            "stutter": lambda: self._stutter(found) > 0,
            "run": lambda: inserted >= run,
            "length": lambda: len(found.hypothesis) > longest,
            "script": lambda: self._script(found),
            "nonspeech": lambda: not found.reference,
        }
        return [name for name in RULES if name in on and checks[name]()]

    def grade(self, found: Alignment, in_characters: bool) -> float:
        """R2 by length, in [-1, 0]; see the module."""
        if not found.hypothesis or (not found.errors and found.reference):
            return 0.0
        inserted, run, longest = self._lengths(found, in_characters)
        on, said, written = self.rules.split("+"), len(found.reference), len(found.hypothesis)
        sizes = {
            "loop": self._repeated(found) / run,
            "stutter": self._stutter(found) / self.character_repeats,
            "run": inserted / run,
            "length": (written - said) / max(1.0, longest - said),
            "nonspeech": 0.0 if said else 1 + (written - 1) / run,
        }
        x = max([0.0, *(size for name, size in sizes.items() if {name, "all"} & {*on})])
        return (self._right_script(found) if {"script", "all"} & {*on} else 1.0) / (1 + x * x) - 1

    def _lengths(self, found: Alignment, in_characters: bool) -> tuple[int, int, float]:
        """The longest run of inserted units, the shortest that the rule forbids, and the longest hypothesis that is allowed."""
        inserted = max((end - start for tag, _, _, start, end in found.ops if tag == "insert"), default=0)
        run = self.insertion_run_characters if in_characters else self.insertion_run
        return inserted, run, self.length_ratio * len(found.reference) + self.length_constant

    def _loop(self, found: Alignment) -> bool:
        hyp = found.hypothesis
        if found.insertions + found.substitutions < self.loop_excess or len(set(hyp)) == len(hyp):
            return False
        of_reference = max(((end - start) // n for n, start, end in self._loops(found.reference)), default=0)
        for n, start, end in self._loops(hyp):
            enough = (end - start) // n >= of_reference + self.loop_excess
            if enough and _unmatched(found, start, end) >= self.loop_excess * n:
                return True
        return False

    def _loops(self, units: Sequence[str]) -> list[tuple[int, int, int]]:
        """(period, start, end) of the stretches that come often enough to be a loop."""
        least = {1: self.repeats_one}
        return [s for s in _repetitions(units, self.ngram) if (s[2] - s[1]) // s[0] >= least.get(s[0], self.repeats)]

    def _repeated(self, found: Alignment) -> int:
        """Unmatched units of the largest repetition, those left out that the reference's own repetitions allow."""
        times = max(((end - start) // n for n, start, end in _repetitions(found.reference, self.ngram)), default=1)
        all_ = _repetitions(found.hypothesis, self.ngram)
        return max((min(_unmatched(found, a, b), b - a - times * n) for n, a, b in all_), default=0)

    def _stutter(self, found: Alignment) -> int:
        """How often letters come in a row inside a word, from ``character_repeats`` times on; 0 where the reference has such a word."""
        letters = re.compile(rf"([^\W\d]{{1,4}}?)\1{{{self.character_repeats - 1},}}")  # 10000000 is a number
        both = (found.reference, found.hypothesis)
        ours, theirs = [max((len(m[0]) // len(m[1]) for u in t for m in letters.finditer(u)), default=0) for t in both]
        return 0 if ours else theirs

    def _script(self, found: Alignment) -> bool:
        """The script of most units: a Chinese character weighs as much as a word; kana count as Han, which Japanese mixes freely."""
        theirs, ours = _scripts(found)
        if not theirs or not ours:
            return False
        main = max(sorted(set(theirs)), key=theirs.count)
        foreign = theirs.count(main) >= self.script_share * len(theirs)
        return foreign and ours.count(main) <= (1 - self.script_share) * len(ours)

    def _right_script(self, found: Alignment) -> float:
        theirs, ours = _scripts(found)
        if not theirs or not ours:
            return 1.0
        alike = sum(min(theirs.count(s) / len(theirs), ours.count(s) / len(ours)) for s in set(theirs))
        return min(1.0, alike / max(self.script_share, 1e-9))


def _scripts(found: Alignment) -> list[list[str]]:
    """Scripts of the units of hypothesis and reference, of those that have one; none where all is ASCII."""
    both = (found.hypothesis, found.reference)
    if all(u.isascii() for units in both for u in units):
        return [[], []]
    return [[{"kana": "han"}.get(s, s) for u in units if (s := script_of(u))] for units in both]


def _unmatched(found: Alignment, start: int, end: int) -> int:
    """Wrong units of a stretch of the hypothesis."""
    wrong = [(o[3], o[4]) for o in found.ops if o[0] in ("replace", "insert")]
    return sum(max(0, min(end, b) - max(start, a)) for a, b in wrong)


def _repetitions(sequence: Sequence[str], longest: int) -> Iterator[tuple[int, int, int]]:
    """(period, start, end) of every maximal stretch, two periods at least, in which each unit equals the one ``period`` before it.

    A stretch that has a shorter period is yielded once, with that one.
    """
    found: list[tuple[int, int, int]] = []
    for n in range(1, min(longest, len(sequence) // 2) + 1):
        start = None
        for i, same in enumerate([*map(eq, sequence, sequence[n:]), False]):
            if same and start is None:
                start = i
            elif not same and start is not None:
                first, last, start = start, i + n, None
                known = any(n % m == 0 and a <= first and last <= b for m, a, b in found)
                if last - first >= 2 * n and not known:
                    found.append((n, first, last))
                    yield found[-1]


def keywords_of(columns: Mapping[str, Any]) -> list[str]:
    """The keywords of a manifest row: ``columns["keywords"]`` as a list, or as one text with commas between them."""
    given = columns.get("keywords") or []
    parts = given.split(",") if isinstance(given, str) else given
    return [k for k in (str(p).strip() for p in parts) if k]


def count_keywords(keywords: Sequence[Sequence[str]], found: Alignment) -> tuple[int, int, int]:
    """(found and said, said, found): occurrences of keywords (as units), whole units only, each keyword counted on its own."""
    both = wanted = written = 0
    for keyword in {tuple(k) for k in keywords if k}:
        in_reference, in_hypothesis = _occurrences(keyword, found.reference), _occurrences(keyword, found.hypothesis)
        both, wanted = both + min(in_reference, in_hypothesis), wanted + in_reference
        written += in_hypothesis
    return both, wanted, written


def _occurrences(keyword: tuple[str, ...], text: list[str]) -> int:
    count = i = 0
    while i <= len(text) - len(keyword):
        hit = text[i] == keyword[0] and tuple(text[i : i + len(keyword)]) == keyword
        count, i = count + hit, i + (len(keyword) if hit else 1)
    return count


@dataclass(slots=True)
class Judged:
    """One hypothesis: its alignment, the rules it broke, R2, its keywords (found and said, said, found; None where the row has none).

    ``texts`` are normalised, ``raw`` is the hypothesis as it was written.
    """

    found: Alignment
    fired: list[str]
    penalty: float
    keywords: tuple[int, int, int] | None
    texts: tuple[str, str]
    language: str | None
    raw: str


class TextRules:
    """Family ``asr``; see the module.

    Args:
        normaliser: of both texts, see ``rlspeech.data.text``.
        language: of the texts; None: the manifest's ``language`` column, else by script.
        low: lower bound of the accuracy, and the accuracy of anything written where nothing is said; None: no bound.
        thresholds: of ``Hallucinations``.
    """

    def __init__(
        self, normaliser: str = "basic-3", language: str | None = None, low: float | None = -1.0, **thresholds: Any
    ) -> None:
        self._normaliser, self._language, self._low = normaliser, language, low
        self._normalise = lru_cache(CACHE)(get_normaliser(normaliser))
        self._rules = Hallucinations(**thresholds)
        graded = " graded" if self._rules.graded else ""
        self.version = f"rules-{EMPTY[self._rules.empty]}{graded}, text {normaliser}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """One alignment a sample, then the columns; ``detail`` holds the texts, the counts and the rules that fired."""
        return [self._row(s, columns) for s in samples]

    def judge(self, text: str | None, hypothesis: str | None, columns: Mapping[str, Any] = NONE) -> Judged:
        """Normalise, align and look for hallucinations and keywords in one hypothesis; ``columns`` of the row."""
        raw = hypothesis or ""
        texts = self._normalise(text or ""), self._normalise(raw)
        language = self._language or columns.get("language")
        language = language if isinstance(language, str) else None
        judged = raw if self._rules.empty == "raw" and not any(texts) else texts[1]
        found = align(units(texts[0], language), units(judged, language))
        how = found, written_in_characters(texts[0] or texts[1], language)
        fired = self._rules.fired(*how)
        penalty = self._rules.grade(*how) if self._rules.graded else -1.0 if fired else 0.0
        keywords = [units(self._normalise(k), language) for k in keywords_of(columns)]
        counts = count_keywords(keywords, found) if any(keywords) else None
        return Judged(found, fired, penalty, counts, texts, language, raw)

    def _row(self, sample: Sample, columns: Sequence[str]) -> dict[str, Score]:
        judged = self.judge(sample.text, sample.hypothesis, sample.columns)
        found = judged.found
        texts = dict(zip(("reference_text", "hypothesis_text"), judged.texts, strict=True))
        detail: dict[str, Any] = {"hypothesis": sample.hypothesis, **texts, "normaliser": self._normaliser}
        detail |= {"hallucination": "+".join(judged.fired), "units": len(found.reference)}
        detail |= {part: getattr(found, part) for part in ("substitutions", "deletions", "insertions")}
        detail["keywords"] = judged.keywords
        if (sample.text or "").strip() and not judged.texts[0]:
            return dict.fromkeys(columns, Score(None, "the reference text is empty after normalisation", detail))
        return {c: self._score(c, judged, detail) for c in columns}

    def _score(self, column: str, judged: Judged, detail: dict[str, Any]) -> Score:
        found, name = judged.found, column.removeprefix("asr_")
        if name in ("keywords", "keyword_f1"):
            return _keyword_score(name, judged.keywords, detail)
        if name in ("wer", "cer", "insertions", "deletions", "substitutions") and not found.reference:
            return Score(None, "nothing is said: no reference to divide by", detail)
        values: dict[str, Callable[[], float]] = {
            "accuracy": lambda: self._accuracy(found),
            "hallucination": lambda: judged.penalty,
            "hallucinated": lambda: 1.0 if judged.fired else 0.0,
            "exact": lambda: 0.0 if found.errors else 1.0,
            "edits": lambda: float(-found.errors),
            "wer": lambda: found.rate,
            "cer": lambda: truediv(*character_errors(*judged.texts, judged.language)),
        }
        if name in ("insertions", "deletions", "substitutions"):
            return Score(getattr(found, name) / len(found.reference), None, detail)
        return Score(values[name](), None, detail)

    def _accuracy(self, found: Alignment) -> float:
        if not found.reference and found.hypothesis:
            return 1.0 - len(found.hypothesis) if self._low is None else self._low
        return 1.0 - found.rate if self._low is None else max(self._low, 1.0 - found.rate)


def _keyword_score(name: str, counts: tuple[int, int, int] | None, detail: dict[str, Any]) -> Score:
    if counts is None:
        return Score(None, "no keywords", detail)
    both, wanted, written = counts
    if not wanted and not written:
        return Score(1.0, None, detail)  # listed, not said, not claimed
    mean, f1 = (both / max(written, 1) + both / max(wanted, 1)) / 2, 2 * both / (wanted + written)
    return Score(mean if name == "keywords" else f1, None, detail)
