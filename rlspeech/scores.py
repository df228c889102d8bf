"""``scores.jsonl``: the one reader and the writers of score rows.

A row is flat: ``key``, ``system``, a column a metric (a number, or null with its reason in ``errors``) and further facts. Rows are appended
as they come. The last row of a (system, key) counts; where it carries the same ``stamp`` (of the scored file) as the one before it, it adds
its columns to that one. Lines that are torn are left out, and the next writer drops them.

``read_scores`` reads, ``append_rows`` and ``keep_rows`` are for plain rows. Of a ``ScoreFile`` (``reward``) rows are taken up while file
and metric are the same, of a ``ScoreTable`` (``eval``) while the fingerprint of their system is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.files import dumps, parse_json, read_object, write_error, write_text
from rlspeech.types import Score, UserError

Row = dict[str, Any]
FIXED = {"key", "system", "stamp", "errors"}
JUDGE_TEXT = "llm_text"  # columns of this beginning hold what a language model said
# failures of the machine, not of the file: tried again by the next run
TRANSIENT = ("took longer", "crashed", "worker", "endpoint", "out of memory")


def step_name(step: int) -> str:
    """The name of a training step's rows, samples and checkpoint, ``step_000020``."""
    return f"step_{step:06d}"


def judge_texts(details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Columns for what judges said, ``llm_text[OPTIONS]`` for the metric ``llm[OPTIONS]``, of metric -> ``Score.detail``."""
    return {m.replace("llm", JUDGE_TEXT, 1): d[JUDGE_TEXT] for m, d in details.items() if JUDGE_TEXT in d}


def read_scores(path: Path, notes: list[str] | None = None) -> dict[str, dict[str, Row]]:
    """Read a file as it lies on disk, system -> key -> row; a missing one has no rows. ``notes`` gets a remark on unreadable lines."""
    found: dict[str, dict[str, Row]] = {}
    for (system, key), row in _read(path, notes).items():
        found.setdefault(system, {})[key] = row
    return found


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows, all in one write. Raises ``UserError`` where the disk does not take them."""
    text = "".join(dumps(row) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise write_error(path, error, "the rows before it are kept") from error


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    """Rewrite a file, where there is one, without torn lines and without rows that ``keep`` refuses."""
    if path.exists():
        _write(path, filter(keep, _read(path).values()))


def write_json(path: Path, facts: Any) -> None:
    """Write facts as indented JSON, whole or not at all."""
    write_text(path, json.dumps(log.plain(facts), indent=2, ensure_ascii=False) + "\n")


def _read(path: Path, notes: list[str] | None = None) -> dict[tuple[str, str], Row]:
    """Rows by system and key, in the order in which they first come."""
    rows: dict[tuple[str, str], Row] = {}
    torn = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in filter(bytes.strip, lines):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            _merge(rows, row)
        else:
            torn += 1
    if torn and notes is not None:
        notes.append(f"{torn} lines of {path.name} cannot be read and are left out")
    return rows


def _merge(rows: dict[tuple[str, str], Row], row: Row) -> None:
    place = (str(row.get("system", "")), row["key"])
    old = rows.get(place, {})
    if "stamp" in old and old["stamp"] == row.get("stamp"):
        errors = {k: v for k, v in old.get("errors", {}).items() if k not in row}
        row = {**old, **row, "errors": {**errors, **row.get("errors", {})}}
    rows[place] = row


def _write(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, "".join(dumps(row) + "\n" for row in rows))


class _Rows:
    """Rows in memory, by system and key, and their file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, _read(path)

    def row(self, system: str, key: str) -> Row:
        """A row; empty where there is none."""
        return self.rows.get((system, key), {})

    def write(self) -> None:
        """Rewrite the file without torn and superseded rows: complete or not at all."""
        if self.rows or self.path.exists():
            _write(self.path, self.rows.values())


class ScoreFile(_Rows):
    """``scores.jsonl`` of files: appended while scoring, one row a (system, key) after ``write``.

    Args:
        path: the JSONL file; ``.meta.json`` stands beside it.
        system: label of the rows that are being written.
        metrics: name -> version and options of what is being computed.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, system: str, metrics: dict[str, Any]) -> None:
        super().__init__(path)
        self.system, self.metrics, self.meta_path = system, metrics, path.with_suffix(".meta.json")
        self.meta = read_object(self.meta_path)
        if not isinstance(self.meta.get("systems"), dict):
            self.meta = {"systems": {}}
        facts = self.meta["systems"].setdefault(system, {"metrics": {}})
        known, before = facts["metrics"], facts.get("input")
        moved = isinstance(before, dict) and bool(before.get("resampled"))  # then the rate of a metric matters too
        self.outdated = [
            n for n, m in metrics.items() if n in known and _identity(known[n], moved) != _identity(m, moved)
        ]
        stale = [n for n in metrics if n in self.outdated or n not in known]
        for row, name in ((r, n) for (owner, _), r in self.rows.items() if owner == system for n in stale):
            row.pop(name, None)
        known.update(metrics)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_meta({})
            self.write()
            path.touch()
        except OSError as error:
            raise UserError(f"cannot write {path}", str(error), "--out FILE or FOLDER") from error

    def missing(self, key: str, stamp: str) -> list[str]:
        """Metrics that this file's row does not hold yet."""
        row = self.row(self.system, key)
        if not row or row.get("stamp") != stamp:
            return list(self.metrics)
        errors = row.get("errors", {})
        return [n for n in self.metrics if n not in row or errors.get(n, "").startswith(TRANSIENT)]

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        append_rows(self.path, rows)
        for row in rows:
            _merge(self.rows, row)

    def values(self, name: str, keys: Sequence[str]) -> list[float | None]:
        """A column over the given keys."""
        return [self.row(self.system, k).get(name) for k in keys]

    def errors(self, name: str, keys: Sequence[str]) -> Counter[str]:
        """Reasons of the nulls of a column, counted."""
        reasons = (self.row(self.system, k).get("errors", {}) for k in keys)
        return Counter(r[name] for r in reasons if name in r)

    def write_meta(self, extra: dict[str, Any]) -> None:
        """Write ``.meta.json`` with further facts of this system."""
        self.meta["systems"][self.system].update(extra)
        write_json(self.meta_path, self.meta)


def _identity(facts: dict[str, Any], rate: bool) -> str:
    own = [facts.get("version"), facts.get("options"), facts.get("sample_rate") if rate else None]
    return json.dumps(log.plain(own), sort_keys=True)


class ScoreTable(_Rows):
    """``scores.jsonl`` of an evaluation: one row a (system, utterance), with all ``metrics``, be it as null; fingerprints beside it."""

    def __init__(self, folder: Path, metrics: Sequence[str]) -> None:
        super().__init__(folder / "scores.jsonl")
        self.folder, self.metrics = folder, list(metrics)

    def keep(self, fingerprints: Mapping[str, str]) -> dict[str, str]:
        """Drop the rows of systems whose fingerprint has changed, note the new ones, and return system -> fingerprint before."""
        path = self.folder / "systems.json"
        before = read_object(path)
        changed = {s: str(before[s]) for s, now in fingerprints.items() if before.get(s, now) != now}
        self.rows = {place: row for place, row in self.rows.items() if place[0] not in changed}
        self.write()
        write_json(path, {**before, **fingerprints})
        return changed

    def done(self, system: str, key: str) -> bool:
        """True where the row holds every metric; a row of nothing but nulls is tried again, its file may be mended."""
        row = self.row(system, key)
        return all(m in row for m in self.metrics) and any(row[m] is not None for m in self.metrics)

    def add(
        self, system: str, key: str, scores: Mapping[str, Score], facts: Row | None = None, drop: Sequence[str] = ()
    ) -> None:
        """Append a row: values or nulls with their reasons, what judges said, facts; earlier columns stay but for ``drop``."""
        old = {k: v for k, v in self.row(system, key).items() if k not in drop}
        row = {**old, **(facts or {}), "key": key, "system": system}
        row |= judge_texts({m: s.detail for m, s in scores.items()}) | {m: s.value for m, s in scores.items()}
        kept = {m: e for m, e in old.get("errors", {}).items() if m not in scores}
        row["errors"] = kept | {m: s.error for m, s in scores.items() if s.value is None}
        append_rows(self.path, [row])
        self.rows[system, key] = row

    def fail(self, system: str, key: str, reason: str) -> None:
        """A row of nulls for an utterance that has no output."""
        self.add(system, key, dict.fromkeys(self.metrics or ["hypothesis"], Score(None, reason)))

    def column(self, system: str, metric: str, keys: Iterable[str]) -> dict[str, float | None]:
        """Values by utterance."""
        return {k: self.row(system, k).get(metric) for k in keys}
