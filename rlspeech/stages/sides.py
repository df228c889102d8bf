"""What is compared when runs are: systems with their scores item by item, and whether two of them were heard on the same items.

A run of ``rl`` counts as its last validation, one of ``pretrain`` as the means that it logged, one of ``eval`` or ``reward`` as each of its
systems. Two systems are paired only where their items are the same: by a checksum of the input (``rl``), by what the unprocessed input
scores or by the reference text (``eval``), by name (``reward``, which is asked of files). Names alone prove nothing elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.inputs import Item, collect
from rlspeech.report import Edit
from rlspeech.scores import JUDGE_TEXT, step_name
from rlspeech.stages.past import Past, find_sound, number
from rlspeech.stages.run_facts import last_means
from rlspeech.stages.validations import FACTS, Validations, edits_between
from rlspeech.stats import Interval, mean_interval
from rlspeech.types import Sample, UserError

__all__ = ["INPUT", "RATE_HZ", "Side", "shared", "sides_of"]

INPUT = "input"
RATE_HZ = 16000
BESIDE = FACTS | {
    "stamp",
    "seconds",
    "samples",
    "finished",
    "normaliser",
    "units",
    "substitutions",
    "deletions",
    "insertions",
}


@dataclass(slots=True)
class Side:
    """One system of one run.

    Args:
        label: what it is called on the page.
        run: where from.
        system: its name there.
        rows: key -> row of scores; empty where only means are known.
        means: metric -> mean with its interval.
        files: stem -> kept audio.
        items: key -> what was scored, for files that were not kept but are where they were.
        counts: key -> counts of errors in a text, where texts were compared.
    """

    label: str
    run: Past
    system: str
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    means: dict[str, Interval] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    items: Mapping[str, Item] = field(default_factory=dict)
    counts: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def column(self, metric: str, keys: Sequence[str]) -> dict[str, float | None]:
        """Values by item."""
        return {k: number(self.rows.get(k, {}).get(metric)) for k in keys}

    def heard(self, key: str) -> bool:
        """Whether there is audio of an item."""
        return find_sound(self.files, key) is not None or (key in self.items and self.items[key].audio is not None)

    def sound(self, key: str) -> np.ndarray | None:
        """(T,) at ``RATE_HZ``; None where there is none, or it cannot be read."""
        path, item = find_sound(self.files, key), self.items.get(key)
        try:
            if path is not None:
                return load_audio(path, RATE_HZ)
            if item is not None and item.audio is not None:
                return load_audio(item.audio, RATE_HZ, item.offset_s, item.duration_s)
        except AudioError as error:
            log.warn(f"{self.label}, {key}: {error.reason}")
        return None

    def words(self, key: str) -> str:
        """What language models said of an item."""
        return "\n".join(
            str(v) for k, v in self.rows.get(key, {}).items() if k.startswith(JUDGE_TEXT) and isinstance(v, str) and v
        )

    def edits(self, key: str) -> Sequence[Edit]:
        """What a recogniser wrote of an item against what was said; nothing where no texts were compared."""
        texts = _texts(self.rows.get(key, {}))
        return edits_between(*texts) if texts else ()


def _texts(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for names in (("text", "hypothesis"), ("reference_text", "hypothesis_text")):
        text, heard = (row.get(n) for n in names)
        if isinstance(text, str) and isinstance(heard, str):
            return text, heard
    return None


def sides_of(run: Past, *, alone: bool = False) -> list[Side]:
    """Everything of a run that can be compared; ``alone`` leaves the run's own name out of the labels."""
    if run.stage == "rl":
        checks = Validations.of(run)
        if not checks.steps:
            return [Side(run.name, run, "", means=last_means(run))]
        last = checks.steps[-1]
        rows = checks.rows[last] if checks.named else {}
        return [
            Side(
                run.name,
                run,
                step_name(last),
                rows,
                {m: checks.mean(last, m) for m in checks.metrics},
                run.sounds("samples").get(step_name(last), {}),
            )
        ]
    if run.stage == "pretrain":
        kept = {name: files for name, files in run.sounds("samples").items() if name.startswith("step_")}
        last_name = max(kept, default="")
        return [Side(run.name, run, last_name, means=last_means(run), files=kept.get(last_name, {}))]
    heard, made = run.sounds("audio"), []
    for system, rows in run.scores.items():
        own = system if alone else run.name if len(run.scores) == 1 else f"{run.name}: {system}"
        metrics = _metrics(run, rows)
        means = {m: mean_interval([number(r.get(m)) for r in rows.values()], run.seed) for m in metrics}
        made.append(Side(own, run, system, rows, means, heard.get(system, {}), _items(run, system), _counts(run, rows)))
    return made


def _items(run: Past, system: str) -> dict[str, Item]:
    """Where the scored files of ``reward`` are, if they still are."""
    systems = run.meta.get("systems")
    mine = systems.get(system) if run.stage == "reward" and isinstance(systems, dict) else None
    settings = mine.get("settings") if isinstance(mine, dict) else None
    path, target = (settings.get(k) for k in ("path", "target")) if isinstance(settings, dict) else (None, None)
    if not (isinstance(path, str) or isinstance(path, list) and path and all(isinstance(p, str) for p in path)):
        return {}
    try:
        return {i.key: i for i in collect(path, target if isinstance(target, str) else None, texts_only=True)}
    except UserError as error:
        run.notes.append(f"no players: {error.what}")
        return {}


def _metrics(run: Past, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Columns that are scores: those that the run calls so, else all numbers that are no counts."""
    systems = run.meta.get("systems")
    parts = systems.values() if run.stage == "reward" and isinstance(systems, dict) else [run.meta]
    said = [
        m for part in parts if isinstance(part, dict) and isinstance(part.get("metrics"), dict) for m in part["metrics"]
    ]
    names = dict.fromkeys(k for row in rows.values() for k, v in row.items() if number(v) is not None)
    if said:
        return [m for m in dict.fromkeys(said) if m in names]
    return [k for k in names if k not in BESIDE and not k.startswith(JUDGE_TEXT)]


def _counts(run: Past, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, int]]:
    """Of an evaluation that compared texts, the counts that its rates are sums of."""
    from rlspeech.rewards.rates import COUNTS

    if run.stage != "eval" or run.config.get("task") not in ("asr", "tts"):
        return {}
    found: dict[str, Mapping[str, int]] = {}
    for key, row in rows.items():
        counts = row.get("counts")
        if not isinstance(counts, dict):
            counts = _counted(run, key, row)
        if isinstance(counts, dict) and all(isinstance(counts.get(c), int) for c in COUNTS):
            found[key] = counts
    return found


def _counted(run: Past, key: str, row: Mapping[str, Any]) -> dict[str, int] | None:
    """The same for rows that hold the texts alone."""
    from rlspeech.rewards.rates import counts_of
    from rlspeech.rewards.rules import TextRules

    texts = _texts(row)
    if texts is None:
        return None
    try:
        rules = TextRules(str(run.config.get("normaliser", "basic-2")))
    except UserError:  # a function that is not here
        return None
    return counts_of(rules.judge(Sample(key, np.zeros(0, np.float32), 16000, None, texts[0], {}, texts[1])))


def shared(a: Side, b: Side) -> tuple[list[str], str]:
    """Keys of the items that both systems were heard on.

    Returns:
        the keys, in the order of ``b``, and why they are fewer than the names that both have.
    """
    both = [k for k in b.rows if k in a.rows]
    if not both:
        return [], "they have no item in common" if a.rows and b.rows else "one of them has no scores by item"
    if a.run is b.run or a.run.stage == b.run.stage == "reward":
        return both, ""
    if a.run.stage != b.run.stage:
        return [], f"one is of {a.run.stage}, the other of {b.run.stage}"
    known = {k: _same(a, b, k) for k in both}
    others = _trusted(a, b, list(known.values()))
    same = [k for k, v in known.items() if v or (v is None and others)]
    return same, f"{len(both) - len(same)} of {len(both)} items of the same name are not the same" if len(same) < len(
        both
    ) else ""


def _trusted(a: Side, b: Side, known: Sequence[bool | None]) -> bool:
    """Whether items that the rows say nothing of are the same: as the others are, else where the data are of one name."""
    if a.run.stage == "rl":
        return False
    found = {v for v in known if v is not None}
    return found == {True} or (not found and a.run.config.get("data") == b.run.config.get("data"))


def _same(a: Side, b: Side, key: str) -> bool | None:
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
