"""``scores.jsonl``: the one reader and the writers of score rows.

A row is flat: ``key``, ``system``, a column a metric (a number, or null with its reason in ``errors``) and further facts. Rows are appended
as they come. The last row of a (system, key) counts; where it carries the same ``stamp`` (of the scored file) as the one before it, it adds
its columns to that one. Lines that are torn are left out, and the next writer drops them.

``read_scores`` reads, ``append_rows`` and ``keep_rows`` are for plain rows. Of a ``ScoreFile`` (``reward``) rows are taken up while file
and metric are the same, of a ``ScoreTable`` (``eval``) while the fingerprint of their system is.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.files import dumps, object_of, read_object, write_error, write_text
from rlspeech.types import Score, UserError

Row = dict[str, Any]
Place = tuple[str, str]  # system and key
VALUE = (float, int, type(None))
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


def objects(tree: Any) -> dict[str, dict[str, Any]]:
    """The values of an object that are objects: somebody may have edited the file."""
    return {k: v for k, v in tree.items() if isinstance(v, dict)} if isinstance(tree, dict) else {}


def system_facts(path: Path, system: str) -> dict[str, dict[str, Any]]:
    """What is known of a system's scores: ``metrics`` by name, and ``input``."""
    facts = objects(read_object(path.with_suffix(".meta.json")).get("systems")).get(system, {})
    return {"metrics": objects(facts.get("metrics")), "input": objects(facts).get("input", {})}


def append_rows(path: Path, rows: Iterable[Row]) -> Iterator[int]:
    """Append rows, all in one write, and say where each begins. Raises ``UserError`` where the disk does not take them."""
    lines = [(dumps(row) + "\n").encode() for row in rows]
    try:
        with path.open("ab") as file:
            start = file.tell()
            file.write(b"".join(lines))
    except OSError as error:
        raise write_error(path, error, "the rows before it are kept") from error
    return itertools.accumulate(map(len, lines), initial=start)


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    """Rewrite a file, where there is one, without torn lines and without rows that ``keep`` refuses."""
    if path.exists():
        _write(path, filter(keep, _read(path).values()))


def write_json(path: Path, facts: Any) -> None:
    """Write facts as indented JSON, whole or not at all."""
    write_text(path, json.dumps(log.plain(facts), indent=2, ensure_ascii=False) + "\n")


def _read(path: Path, notes: list[str] | None = None) -> dict[Place, Row]:
    """Rows by system and key, in the order in which they first come."""
    rows: dict[Place, Row] = {}
    torn = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in filter(bytes.strip, lines):
        if row := _row_of(line):
            rows[_place(row)] = _merged(rows.get(_place(row), {}), row)
        else:
            torn += 1
    if torn and notes is not None:
        notes.append(f"{torn} lines of {path.name} cannot be read and are left out")
    return rows


def _row_of(line: bytes) -> Row:
    """A line's row; empty where it is none."""
    row = object_of(line)
    return row if isinstance(row.get("key"), str) and isinstance(row.get("errors", {}), dict) else {}


def _place(row: Row) -> Place:
    return str(row.get("system", "")), row["key"]


def _merged(old: Row, row: Row) -> Row:
    """What a row and the one before it say together."""
    if "stamp" in old and old["stamp"] == row.get("stamp"):
        errors = {k: v for k, v in old.get("errors", {}).items() if k not in row}
        row = {**old, **row, "errors": {**errors, **row.get("errors", {})}}
    return row


def _write(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, (dumps(row) + "\n" for row in rows))


class ScoreFile:
    """``scores.jsonl`` of files: appended while scoring, one row a (system, key) after ``write``. In memory there is where rows begin.

    Args:
        path: the JSONL file; ``.meta.json`` stands beside it.
        system: label of the rows that are being written.
        metrics: name -> version and options of what is being computed.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, system: str, metrics: dict[str, Any]) -> None:
        self.path, self._size = path, -1
        self.system, self.metrics, self.meta_path = system, metrics, path.with_suffix(".meta.json")
        self.meta = read_object(self.meta_path)
        systems = self.meta["systems"] = objects(self.meta.get("systems"))
        facts = systems.setdefault(system, {})
        known, before = objects(facts.get("metrics")), facts.get("input")
        moved = isinstance(before, dict) and bool(before.get("resampled"))  # then the rate of a metric matters too
        kept = {n: m for n, m in metrics.items() if n in known}
        self.outdated = [n for n, m in kept.items() if _identity(known[n], moved) != _identity(m, moved)]
        stale = [n for n in metrics if n in self.outdated or n not in known]
        facts["metrics"] = known | metrics
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_meta({})
            self.write(stale)
        except OSError as error:
            raise UserError(f"cannot write {path}", str(error), "--out FILE or FOLDER") from error

    def write(self, stale: Collection[str] = ()) -> None:
        """Rewrite the file, complete or not at all, where rows are torn, superseded, out of order or hold ``stale`` columns."""
        self.path.touch()
        if self.path.stat().st_size != self._size and self._note(stale):
            _write(self.path, self._whole(stale))
            self._note()

    def _whole(self, stale: Collection[str]) -> Iterator[Row]:
        """The rows as they count: systems in the order in which they first come, and the keys of each sorted."""
        places = dict[str, list[str]]()
        for first in (n for n, before in enumerate(self._before) if before < 0):
            system, key = _place(self._at(first))
            places.setdefault(system, []).append(key)
        for system, keys in places.items():
            for row in (self.row(system, key) for key in sorted(keys)):
                yield {k: v for k, v in row.items() if system != self.system or k not in stale}
        self._file.close()  # another one takes its place

    def _note(self, stale: Collection[str] = ()) -> bool:
        """Note where rows begin; True where the file has others than ``write`` leaves."""
        self._starts, self._before, self._last = array("Q"), array("q"), dict[int, int]()
        self._file, self._size, odd = self.path.open("rb"), 0, False
        ranks, at = dict[str, int](), (0, "")
        for line in self._file:
            row = _row_of(line)
            old = row.get("system", "") == self.system and not row.keys().isdisjoint(stale)
            odd |= old or not row or not line.endswith(b"\n")
            if row:
                self._begins(row, self._size)
                system, key = _place(row)
                before, at = at, (ranks.setdefault(system, len(ranks)), key)
                odd |= at < before
            self._size += len(line)
        return odd or len(self._last) < len(self._starts)

    def _begins(self, row: Row, start: int) -> None:
        place = hash(_place(row))
        self._before.append(self._last.get(place, -1))
        self._last[place] = len(self._starts)
        self._starts.append(start)

    def _at(self, n: int) -> Row:
        self._file.seek(self._starts[n])
        return _row_of(self._file.readline())

    def row(self, system: str, key: str) -> Row:
        """A row; empty where there is none."""
        rows, n = list[Row](), self._last.get(hash((system, key)), -1)
        while n >= 0:
            rows.insert(0, self._at(n))
            n = self._before[n]
        return reduce(_merged, [r for r in rows if _place(r) == (system, key)], {})

    def missing(self, key: str, stamp: str) -> list[str]:
        """Metrics that this file's row does not hold yet."""
        row = self.row(self.system, key)
        if not row or row.get("stamp") != stamp:
            return list(self.metrics)
        failed = {n for n, why in row.get("errors", {}).items() if str(why).startswith(TRANSIENT)}
        return [n for n in self.metrics if n in failed or not isinstance(row.get(n, ""), VALUE)]

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row, start in zip(rows, append_rows(self.path, rows), strict=False):
            self._begins(row, start)

    def take(self, path: Path) -> dict[str, Any]:
        """Append the rows of another file, and return what it says of the input.

        Raises:
            UserError: its metrics are of other versions or options.
        """
        facts = system_facts(path, self.system)
        known = facts["metrics"]
        other = [n for n, m in self.metrics.items() if _identity(known.get(n, {}), True) != _identity(m, True)]
        if other:
            why = f"{', '.join(other)}: another version, or other options"
            raise UserError(f"{path} was not computed as the others", why, "compute it once more")
        with path.open("rb") as file:
            while lines := list(itertools.islice(file, 1000)):
                self.add([row for row in map(_row_of, lines) if row])
        return facts["input"]

    def columns(self, keys: Sequence[str]) -> dict[str, tuple[np.ndarray, Counter[str]]]:
        """Of every metric its values over the keys (K,), nan where there is none, and the reasons of its nulls, counted."""
        found = {name: (np.full(len(keys), np.nan), Counter[str]()) for name in self.metrics}
        for n, row in enumerate(self.row(self.system, key) for key in keys):
            for name, (values, reasons) in found.items():
                if isinstance(value := row.get(name), VALUE) and value is not None:
                    values[n] = value
                if name in (errors := row.get("errors", {})):
                    reasons[str(errors[name])] += 1
        return found

    def write_meta(self, extra: dict[str, Any]) -> None:
        """Write ``.meta.json`` with further facts of this system."""
        self.meta["systems"][self.system].update(extra)
        write_json(self.meta_path, self.meta)


def _identity(facts: dict[str, Any], rate: bool) -> str:
    own = [facts.get("version"), facts.get("options"), facts.get("sample_rate") if rate else None]
    return json.dumps(log.plain(own), sort_keys=True)


class ScoreTable:
    """``scores.jsonl`` of an evaluation: one row a (system, utterance), with all ``metrics``, be it as null; fingerprints beside it."""

    def __init__(self, folder: Path, metrics: Sequence[str]) -> None:
        self.folder, self.metrics, self.path = folder, list(metrics), folder / "scores.jsonl"
        self.rows = _read(self.path)

    def row(self, system: str, key: str) -> Row:
        """A row; empty where there is none."""
        return self.rows.get((system, key), {})

    def write(self, order: Iterable[Place] = ()) -> None:
        """Rewrite the file without torn and superseded rows, those of ``order`` first: complete or not at all."""
        if self.rows or self.path.exists():
            _write(self.path, ({place: self.rows[place] for place in order if place in self.rows} | self.rows).values())

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
