"""``rlspeech prepare join``: several manifests as one.

    rlspeech prepare join data/test:condition=clean data/noisy.jsonl:condition=noisy,snr_db=5 data/nonspeech --out data/joined

Paths are written anew, relative to the result. An id that several manifests use gets the name of each one's folder in front (and of its
file, where the folders are the same), for all of them: scores under the bare id then belong to no row.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from rlspeech import log
from rlspeech.corpora.base import Sets, Source, shown
from rlspeech.data.manifest import PATH_KEYS, TEXT_KEYS, find_manifest, read_manifest
from rlspeech.files import safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["Join"]

FIXED = {"id", "duration", "offset", "sample_rate", *PATH_KEYS}  # facts of the recording


class Join(Source):
    """``rlspeech prepare join``."""

    name = "join"
    needed = ("manifests",)
    manifests: list[str] = Field(
        [], description="manifests or folders that hold one; MANIFEST:condition=noisy sets a column of its rows"
    )
    sample: int | None = Field(
        None, ge=1, description="keep only this many rows, drawn at random, in their order; none: all"
    )
    seed: int = Field(0, ge=0, description="of the sample")

    def make(self, out: Path) -> Sets:
        """Return the rows of all manifests in one set."""
        given = [_understood(text) for text in self.manifests]
        paths = [find_manifest(path, recipe=False) for path, _ in given]
        target = out / "manifest.jsonl"
        if any(os.path.realpath(p) == os.path.realpath(target) for p in paths):
            raise UserError(f"{target} would be overwritten", "it is one of the manifests", "--out with another folder")
        columns = (columns for _, columns in given)
        parts = [_Part(*part, read_manifest(part[0])) for part in zip(paths, _tags(paths), columns, strict=True)]
        for part in parts:
            for utt in part.rows:
                _set(utt, part.columns)
        renamed = _tell_apart(parts)
        rows = [(n, utt) for n, part in enumerate(parts) for utt in part.rows]
        if self.sample is not None and self.sample < len(rows):
            rows = [rows[i] for i in sorted(random.Random(self.seed).sample(range(len(rows)), self.sample))]
        elif self.sample is not None:
            log.warn(f"there are {len(rows)} rows, all of them are taken (--sample {self.sample})")
        utts = [utt for _, utt in rows]
        joined = [_facts(p, [utt for m, utt in rows if m == n]) for n, p in enumerate(parts)]
        facts: dict[str, Any] = {"joined": joined, "renamed": renamed}
        table = [
            [j["path"], j["rows"], round(j["hours"], 3), ", ".join(f"{k}={v}" for k, v in j["columns"].items())]
            for j in joined
        ]
        note = f"{renamed} rows of several manifests had the same id; the name of their manifest is now in front of it"
        return Sets(
            {"manifest": utts},
            facts=facts,
            meta=facts,
            notes=[note] if renamed else [],
            table=(["manifest", "rows", "hours", "set"], table),
            following=_following(out, utts),
        )


class _Part(NamedTuple):
    """A manifest: where it lies, what it is called in ids, the columns that are set, its rows."""

    path: Path
    tag: str
    columns: dict[str, Any]
    rows: list[Utterance]


def _understood(text: str) -> tuple[str, dict[str, Any]]:
    """Path and columns of ``PATH:COLUMN=VALUE,COLUMN=VALUE``; a path that is there is nothing else."""
    match = re.fullmatch(r"(.+?):(\w+=.*)", text, re.DOTALL)
    if match is None or os.path.exists(text):
        return text, {}
    columns: dict[str, Any] = {}
    for pair in re.split(r",(?=\w+=)", match[2]):
        name, _, value = pair.partition("=")
        if name in FIXED:
            why = f"it is a fact of each recording ({text})"
            raise UserError(f"the column {name} cannot be set", why, "another column, e.g. condition")
        columns[name] = value if name in TEXT_KEYS else _value(value)
        if name == "snr_db" and not isinstance(columns[name], float | int):
            raise UserError(f"the column {name} is a number", f"not {value!r} ({text})", f"{match[1]}:{name}=5")
    return match[1], columns


def _value(text: str) -> Any:
    """A number where it is one, else text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # 1e999 is infinity, which a manifest cannot hold; 007 is no JSON and stays text
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else text


def _set(utt: Utterance, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        if name in Utterance.field_names():
            setattr(utt, name, value)
        else:
            utt.extra[name] = value


def _tags(paths: list[Path]) -> list[str]:
    """Names of the manifests: their folders; with the file where two folders have one name; numbered where even that is the same."""
    folders = [Path(os.path.abspath(p)).parent.name or "root" for p in paths]
    longer = [tag if folders.count(tag) == 1 else f"{tag}_{p.stem}" for tag, p in zip(folders, paths, strict=True)]
    return [tag if longer.count(tag) == 1 else f"{tag}_{1 + longer[:n].count(tag)}" for n, tag in enumerate(longer)]


def _tell_apart(parts: list[_Part]) -> int:
    """Give rows of several manifests that share an id one each; the number of rows that have another id now."""
    uses = Counter(utt.id for part in parts for utt in part.rows)
    taken, renamed = set(uses), 0
    for part in parts:
        for utt in part.rows:
            if uses[utt.id] == 1:
                continue
            name, number = safe_name(f"{part.tag}_{utt.id}"), 1
            while name in taken:
                number += 1
                name = safe_name(f"{part.tag}_{utt.id}_{number}")
            utt.id, renamed = name, renamed + 1
            taken.add(name)
    return renamed


def _facts(part: _Part, rows: list[Utterance]) -> dict[str, Any]:
    hours = round(sum(u.duration for u in rows) / 3600, 6)
    return {"path": str(part.path), "rows": len(rows), "hours": hours, "columns": part.columns}


def _following(out: Path, rows: list[Utterance]) -> str:
    """The command that goes on from here."""
    if any(u.text is None or u.target_filepath for u in rows):
        return f"rlspeech check {shown(out)}"
    return f"rlspeech eval --task asr --data {shown(out)}/manifest.jsonl"
