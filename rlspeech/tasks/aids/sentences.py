"""English sentences about how a recording sounds, as a listening model would answer, made from labels and read back into grades.

The textbook version has one template for each label. Here an answer is put together from a graded verdict (13 grades), a graded remark on
how tiring it is to listen (8 grades with other borders, so that both together are finer than either),
noun phrases ("slight background noise") and adjectives ("very muffled") for the traits (none and five grades), and sometimes the level.
The words are drawn from an rng; synonyms of one grade come equally often, so that the likeliest word of a model is that of its likeliest
grade. The verdict stands first four times out of five: a model then says it with nothing but the recording before it. What is left out:
words outside this list (130), and reasons ("because of the traffic").
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

OVERALL: tuple[tuple[str, ...], ...] = (
    ("terrible", "awful", "horrible"),
    ("very bad", "really bad", "dreadful"),
    ("bad", "quite bad", "clearly bad"),
    ("very poor", "really poor", "quite poor"),
    ("poor", "clearly poor", "below average"),
    ("rather poor", "somewhat poor", "mediocre"),
    ("fair", "acceptable", "average"),
    ("decent", "fairly good", "above average"),
    ("good", "clearly good", "quite good"),
    ("very good", "really good", "very nice"),
    ("great", "remarkably good", "extremely good"),
    ("excellent", "superb", "outstanding"),
    ("perfect", "flawless", "pristine"),
)
OVERALL_FORMS = (
    "The overall quality is {}.",
    "Overall, the quality of this recording is {}.",
    "The sound quality is {}.",
)
EFFORT: tuple[tuple[str, ...], ...] = (
    ("unbearable", "painful"),
    ("exhausting", "very annoying"),
    ("very tiring", "annoying"),
    ("tiring", "unpleasant"),
    ("rather tiring", "slightly unpleasant"),
    ("fairly comfortable", "fairly easy"),
    ("comfortable", "easy"),
    ("effortless", "pleasant"),
)
EFFORT_FORMS = ("It is {} to listen to.", "The speech is {} to listen to.")
NOUNS: dict[str, tuple[str, ...]] = {
    "noise": ("background noise", "noise"),
    "talker": ("speech from another talker", "interference from a second voice"),
    "reverb": ("reverberation", "room echo"),
    "distortion": ("distortion", "clipping"),
    "muffling": ("muffling", "loss of high frequencies"),
    "dropouts": ("dropouts", "gaps in the speech"),
    "artefacts": ("processing artefacts", "watery artefacts"),
}
AMOUNTS: tuple[tuple[str, ...], ...] = (
    ("no", "no audible", "hardly any"),
    ("very slight", "very faint", "barely audible"),
    ("slight", "mild", "faint"),
    ("moderate", "noticeable", "some"),
    ("strong", "heavy", "considerable"),
    ("extreme", "overwhelming", "severe"),
)
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "noise": ("noisy",),
    "reverb": ("reverberant", "echoing"),
    "distortion": ("distorted",),
    "muffling": ("muffled", "dull"),
    "dropouts": ("interrupted", "choppy"),
    "artefacts": ("artificial", "robotic"),
}
ADVERBS: tuple[tuple[str, ...], ...] = (
    ("not", "not at all"),
    ("hardly", "barely"),
    ("slightly", "mildly"),
    ("somewhat", "moderately"),
    ("very", "strongly"),
    ("extremely", "terribly"),
)
NOUN_FORMS = ("There is {}.", "I can hear {}.", "The recording has {}.")
ADJECTIVE_FORMS = ("The voice is {}.", "The speech sounds {}.")
LEVELS: tuple[tuple[str, ...], ...] = (
    ("very quiet", "far too quiet"),
    ("quiet", "rather quiet"),
    ("normal", "moderate in level"),
    ("loud", "rather loud"),
    ("very loud", "far too loud"),
)
LEVEL_FORMS = ("The volume is {}.",)
LEVEL_EDGES_DBFS = (-37.0, -31.0, -22.0, -17.0)
MOST_TRAITS = 4


def grades_of(labels: Mapping[str, float]) -> dict[str, int]:
    """Labels to grades: ``overall`` 0..12, ``effort`` 0..7, the traits 0..5, ``loudness`` 0..4; what is absent stays so."""
    grades = {}
    if "quality" in labels:
        place = float(np.clip((labels["quality"] - 1.0) / 4.0, 0.0, 1.0))
        grades["overall"] = round(place * (len(OVERALL) - 1))
        grades["effort"] = min(len(EFFORT) - 1, int(place * len(EFFORT)))
    for trait in NOUNS:
        if trait in labels:
            severity = float(np.clip(labels[trait], 0.0, 1.0))
            grades[trait] = 0 if severity < 0.04 else 1 + min(4, int((severity - 0.04) / 0.96 * 5))
    if "level_dbfs" in labels:
        grades["loudness"] = int(np.searchsorted(LEVEL_EDGES_DBFS, labels["level_dbfs"]))
    return grades


def describe(labels: Mapping[str, float], rng: np.random.Generator) -> str:
    """An answer of one to five sentences.

    Args:
        labels: ``quality`` 1..5, severities 0..1 by trait, ``level_dbfs``; any may be missing, and is then not spoken of.
        rng: decides words, order, and which sound traits are mentioned.
    """
    grades, parts = grades_of(labels), list[str]()
    if "effort" in grades and rng.random() < 0.75:
        parts.append(_fill(EFFORT_FORMS, _one(EFFORT[grades["effort"]], rng), rng))
    parts += _traits(grades, labels, rng)
    if "loudness" in grades and rng.random() < 0.35:
        parts.append(_fill(LEVEL_FORMS, _one(LEVELS[grades["loudness"]], rng), rng))
    if rng.random() < 0.2:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    if "overall" in grades:
        verdict = _fill(OVERALL_FORMS, _one(OVERALL[grades["overall"]], rng), rng)
        parts = [verdict, *parts] if rng.random() < 0.8 else [*parts, verdict]
    return " ".join(parts)


def _traits(grades: Mapping[str, int], labels: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    present = sorted((t for t in NOUNS if grades.get(t)), key=lambda t: -labels[t])[:MOST_TRAITS]
    absent = [t for t in NOUNS if grades.get(t) == 0]
    extra = int(rng.integers(3)) if present else int(rng.integers(1, 4))
    named = present + [absent[i] for i in rng.permutation(len(absent))[:extra]]
    if not named:
        return []
    cut = len(named) if rng.random() < 0.6 else int(rng.integers(len(named) + 1))
    as_noun = {t: t not in ADJECTIVES or i < cut for i, t in enumerate(named)}
    nouns = [f"{_one(AMOUNTS[grades[t]], rng)} {_one(NOUNS[t], rng)}" for t in named if as_noun[t]]
    adjectives = [f"{_one(ADVERBS[grades[t]], rng)} {_one(ADJECTIVES[t], rng)}" for t in named if not as_noun[t]]
    made = []
    if nouns:
        made.append(_fill(NOUN_FORMS, _list(nouns), rng))
    if adjectives:
        made.append(_fill(ADJECTIVE_FORMS, _list(adjectives), rng))
    return made


def read_back(text: str) -> dict[str, int]:
    """The grades that an answer in these words names; what it does not name is absent."""
    low, found = text.lower(), dict[str, int]()
    for name, forms, table in (
        ("overall", OVERALL_FORMS, OVERALL),
        ("effort", EFFORT_FORMS, EFFORT),
        ("loudness", LEVEL_FORMS, LEVELS),
    ):
        heads = "|".join(re.escape(f.lower()).replace(r"\{\}", f"({_any(table)})") for f in forms)
        match = re.search(heads, low)
        if match:
            found[name] = _grade(table, next(g for g in match.groups() if g))
    for table, words in ((AMOUNTS, NOUNS), (ADVERBS, ADJECTIVES)):
        for trait, names in words.items():
            match = re.search(rf"\b({_any(table)}) ({'|'.join(map(re.escape, names))})\b", low)
            if match:
                found.setdefault(trait, _grade(table, match.group(1)))
    return found


def stars_of(text: str) -> float | None:
    """1..5 by the verdict's grade word alone, or None where an answer in these words gives none."""
    grade = read_back(text).get("overall")
    return None if grade is None else 1.0 + 4.0 * grade / (len(OVERALL) - 1)


def vocabulary() -> list[str]:
    """Every word and mark that ``describe`` can say, sorted."""
    tables = (OVERALL, EFFORT, AMOUNTS, ADVERBS, LEVELS, tuple(NOUNS.values()), tuple(ADJECTIVES.values()))
    phrases = [p for table in tables for row in table for p in row]
    forms = [*OVERALL_FORMS, *EFFORT_FORMS, *NOUN_FORMS, *ADJECTIVE_FORMS, *LEVEL_FORMS, "and ,"]
    texts = (*phrases, *(f.replace("{}", "") for f in forms))
    return sorted({w for text in texts for w in re.findall(r"\w+|[^\w\s]", text)})


def _one(items: tuple[str, ...], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _fill(forms: tuple[str, ...], words: str, rng: np.random.Generator) -> str:
    return _one(forms, rng).replace("{}", words)


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _any(table: tuple[tuple[str, ...], ...]) -> str:
    """An alternation of all phrases, longer ones first, so that "very good" is not read as "good"."""
    return "|".join(re.escape(p) for p in sorted((p for row in table for p in row), key=len, reverse=True))


def _grade(table: tuple[tuple[str, ...], ...], phrase: str) -> int:
    return next(i for i, row in enumerate(table) if phrase in row)
