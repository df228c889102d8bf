"""``scores.jsonl``: rows that are appended while scoring, taken over by the next run, and told apart by metric version."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.files import dumps, read_jsonl, write_text
from rlspeech.types import UserError

__all__ = ["FIXED", "ScoreFile"]

FIXED = {"key", "system", "stamp", "errors"}
# failures of the machine, not of the file: tried again by the next run
TRANSIENT = ("took longer", "crashed", "worker", "endpoint", "out of memory")


class ScoreFile:
    """``scores.jsonl`` of one or several systems: appended while scoring, one row a (system, key) after ``finish``.

    Args:
        path: the JSONL file; ``.meta.json`` stands beside it.
        system: label of the rows that are being written.
        metrics: name -> version and options of what is being computed.
    """

    def __init__(self, path: Path, system: str, metrics: dict[str, Any]) -> None:
        self.path, self.system, self.metrics = path, system, metrics
        self.meta_path = path.with_suffix(".meta.json")
        self.meta = _read_meta(self.meta_path)
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        for row in read_jsonl(path):
            self._merge(row)
        mine = self.meta["systems"].setdefault(system, {"metrics": {}})
        self.outdated = [
            n for n, m in metrics.items() if n in mine["metrics"] and _identity(mine["metrics"][n]) != _identity(m)
        ]
        for name in [n for n in metrics if n in self.outdated or n not in mine["metrics"]]:
            for (owner, _), row in self.rows.items():
                if owner == system:
                    row.pop(name, None)
        mine["metrics"].update(metrics)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_meta({})
            self._rewrite()
            self._file = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(f"cannot write {path}", str(error), "--out FILE or FOLDER") from error

    @classmethod
    def read(cls, path: Path, system: str) -> ScoreFile:
        """A file as it lies on disk, to look at: nothing is opened for writing, ``add`` and ``close`` are not for it."""
        file = cls.__new__(cls)
        file.path, file.system, file.meta_path = path, system, path.with_suffix(".meta.json")
        file.meta, file.rows, file.outdated = _read_meta(file.meta_path), {}, []
        file.metrics = dict(file.meta["systems"].get(system, {}).get("metrics", {}))
        for row in read_jsonl(path):
            file._merge(row)
        return file

    def _merge(self, row: dict[str, Any]) -> None:
        """A later row of the same file adds to the earlier one, or replaces it where the file has changed."""
        key = (str(row.get("system", "")), str(row.get("key", "")))
        old = self.rows.get(key)
        if old is None or old.get("stamp") != row.get("stamp"):
            self.rows[key] = row
            return
        errors = {k: v for k, v in old.get("errors", {}).items() if k not in row}
        self.rows[key] = {**old, **row, "errors": {**errors, **row.get("errors", {})}}

    def missing(self, key: str, stamp: str) -> list[str]:
        """Metrics that this file's row does not hold yet."""
        row = self.rows.get((self.system, key))
        if row is None or row.get("stamp") != stamp:
            return list(self.metrics)
        errors = row.get("errors", {})
        return [n for n in self.metrics if n not in row or errors.get(n, "").startswith(TRANSIENT)]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        line = dumps(row)
        self._merge(json.loads(line))
        self._file.write(line + "\n")

    def flush(self) -> None:
        """Hand the appended rows to the system."""
        self._file.flush()

    def values(self, name: str, keys: Sequence[str]) -> list[float | None]:
        """A column over the given keys."""
        return [self.rows.get((self.system, k), {}).get(name) for k in keys]

    def errors(self, name: str, keys: Sequence[str]) -> Counter[str]:
        """Reasons of the nulls of a column, counted."""
        rows = (self.rows.get((self.system, k), {}) for k in keys)
        return Counter(r["errors"][name] for r in rows if name in r.get("errors", {}))

    def write_meta(self, extra: dict[str, Any]) -> None:
        """Write ``.meta.json`` with further facts of this system."""
        self.meta["systems"][self.system].update(extra)
        write_text(self.meta_path, json.dumps(log.plain(self.meta), indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """One row a file, complete or not at all."""
        self._file.close()
        self._rewrite()

    def _rewrite(self) -> None:
        if self.rows or self.path.exists():
            write_text(self.path, "".join(dumps(r) + "\n" for r in self.rows.values()))


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return meta if isinstance(meta.get("systems"), dict) else {"systems": {}}
    except (OSError, ValueError, AttributeError):
        return {"systems": {}}


def _identity(facts: dict[str, Any]) -> str:
    return json.dumps(log.plain([facts.get("version"), facts.get("options")]), sort_keys=True)
