"""``rlspeech prepare join``: several manifests as one.

    rlspeech prepare join data/test:condition=clean data/noisy.jsonl:condition=noisy,snr_db=5 data/nonspeech --out data/joined

Paths are written anew, relative to the result. An id that several manifests use gets the name of each one's folder in front (and of its
file, where the folders are the same), for all of them: what was scored under the bare id is then nobody's.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from rlspeech import log
from rlspeech.config import Strict
from rlspeech.corpora.base import make_folder, shown, summary_of, write_set
from rlspeech.data.manifest import PATH_KEYS, TEXT_KEYS, find_manifest, read_manifest
from rlspeech.files import safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["Join", "run"]

FIXED = {"id", "duration", "offset", "sample_rate", *PATH_KEYS}  # facts of the recording


class Join(Strict):
    """``rlspeech prepare join``."""

    manifests: list[str] = Field(
        [], description="manifests or folders that hold one; MANIFEST:condition=noisy sets a column of its rows"
    )
    sample: int | None = Field(None, ge=1, description="rows of the result, drawn at random, in their order; none: all")
    seed: int = Field(0, ge=0, description="of the sample")
    out: str | None = Field(None, description="folder; none: data/join")


class _Part(NamedTuple):
    """A manifest: where it lies, what it is called in ids, the columns that are set, its rows."""

    path: Path
    tag: str
    columns: dict[str, Any]
    rows: list[Utterance]


def run(config: Join, *, json_mode: bool = False) -> dict[str, Any]:
    """Join the manifests into ``OUT/manifest.jsonl``.

    Returns:
        the keys of ``prepare.run``, and ``joined`` (for each manifest path, rows, hours, columns) and ``renamed`` (rows).

    Raises:
        UserError: nothing to join, a manifest or a column that cannot be used, or the disk does not take the output.
    """
    start_s = time.monotonic()
    if not config.manifests:
        raise UserError(
            "prepare join needs manifests",
            "",
            "rlspeech prepare join a.jsonl b.jsonl:condition=noisy --out data/joined",
        )
    given = [_understood(text) for text in config.manifests]
    paths = [find_manifest(path, recipe=False) for path, _ in given]
    out = make_folder(config.out, "join")
    target = out / "manifest.jsonl"
    if any(os.path.realpath(p) == os.path.realpath(target) for p in paths):
        raise UserError(f"{target} would be overwritten", "it is one of the manifests", "--out with another folder")
    parts = [
        _Part(path, tag, columns, read_manifest(path))
        for path, tag, (_, columns) in zip(paths, _tags(paths), given, strict=True)
    ]
    for part in parts:
        for utt in part.rows:
            _set(utt, part.columns)
    renamed = _tell_apart(parts)
    rows = [(n, utt) for n, part in enumerate(parts) for utt in part.rows]
    if config.sample is not None and config.sample < len(rows):
        rows = [rows[i] for i in sorted(random.Random(config.seed).sample(range(len(rows)), config.sample))]
    elif config.sample is not None:
        log.warn(f"there are {len(rows)} rows, all of them are taken (--sample {config.sample})")
    joined = [_facts(part, [utt for m, utt in rows if m == n]) for n, part in enumerate(parts)]
    meta = {
        "source": "join",
        "seed": config.seed,
        "joined": joined,
        "renamed": renamed,
        "settings": config.model_dump(exclude={"out"}),
    }
    made = write_set(target, [utt for _, utt in rows], meta)
    summary = summary_of("join", out, {"manifest": made}, [], _following(out, [utt for _, utt in rows]), start_s)
    table = [
        [j["path"], j["rows"], round(j["hours"], 3), ", ".join(f"{k}={v}" for k, v in j["columns"].items())]
        for j in joined
    ]
    notes = (
        [f"{renamed} rows of several manifests had the same id; the name of their manifest is now in front of it"]
        if renamed
        else []
    )
    log.table(f"joined {made['rows']} rows in {target}", ["manifest", "rows", "hours", "set"], table, notes)
    log.say(f"next: {summary['next']}")
    return summary | {"joined": joined, "renamed": renamed}


def _understood(text: str) -> tuple[str, dict[str, Any]]:
    """Path and columns of ``PATH:COLUMN=VALUE,COLUMN=VALUE``; a path that is there is nothing else."""
    match = re.fullmatch(r"(.+?):(\w+=.*)", text, re.DOTALL)
    if match is None or os.path.exists(text):
        return text, {}
    columns: dict[str, Any] = {}
    for pair in re.split(r",(?=\w+=)", match[2]):
        name, _, value = pair.partition("=")
        if name in FIXED:
            raise UserError(
                f"the column {name} cannot be set",
                f"a fact of each recording ({text})",
                "another column, e.g. condition",
            )
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
    return {
        "path": str(part.path),
        "rows": len(rows),
        "hours": round(sum(u.duration for u in rows) / 3600, 6),
        "columns": part.columns,
    }


def _following(out: Path, rows: list[Utterance]) -> str:
    """The command that goes on from here."""
    if any(u.text is None or u.target_filepath for u in rows):
        return f"rlspeech check {shown(out)}"
    return f"rlspeech eval --task asr --data {shown(out)}/manifest.jsonl"
