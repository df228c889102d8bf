"""Shards: a command with ``--shard I/N`` does its part of the items, and ``rlspeech merge OUT`` joins what the parts wrote beside OUT.

Jobs on any number of machines share a disk and no lock: no file is written by two of them. What was asked of a shard, and whether it
came to its end, stands in its ``shard.json``. To join them the command is run once more, on what they have found: what comes of it is as if
there had been no shards, and nothing is computed but means and the page.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.config_parts import Shard
from rlspeech.files import read_object
from rlspeech.plugins import SCHEMAS, load
from rlspeech.scores import write_json
from rlspeech.types import UserError

Facts = dict[str, Any]
MARK = "shard.json"
APART = ("reward", "evaluate")  # write into a folder of their own; the others' results are files of their own in OUT
FREE = ("workers", "device", "batch")  # settings that shards need not share


def run(stage: Callable[..., Facts], config: Any, **inputs: Any) -> Facts:
    """Run a stage, ``run(config, **inputs)``, on a shard. Raises ``UserError`` as it does, and where there is no OUT."""
    if config.out in (None, "-"):
        raise UserError("a shard has to write somewhere", "no --out is given", "--out, the same one for all shards")
    shard, name = Shard.of(config.shard), stage.__module__.rpartition(".")[2]
    place = shard.place(config.out)
    folder = place.parent if place.suffix == ".jsonl" else place
    asked = config.model_dump(mode="json", exclude_unset=True, exclude={"shard", "out"})
    facts = {"stage": name, "settings": asked, "inputs": inputs, "cwd": os.getcwd(), "out": config.out}
    write_json(folder / MARK, {**facts, "complete": False})
    apart = name in APART or place.suffix == ".jsonl"
    summary = stage(config.model_copy(update={"out": str(place)}) if apart else config, **inputs)
    write_json(folder / MARK, {**facts, "complete": True})
    log.say(f"next: rlspeech merge {config.out}, once all {shard.total} shards are done")
    return summary


def merge(out: str) -> Facts:
    """Join shards; which of them are missing, or have left something undone, is said.

    Returns:
        the command's summary, and ``shards`` (their number), ``missing`` (what was left out, in words).

    Raises:
        UserError: there are none, or they do not belong together.
    """
    whole = Path(os.path.realpath(out).removesuffix(".jsonl"))
    places = [p.parent for p in whole.parent.glob(f"{glob.escape(whole.name)}.shard-*-of-*/{MARK}")]
    found = {(int(n), int(count)): p for p in places for _, n, _, count in [p.suffix.split("-")]}
    if len(counts := {count for _, count in found}) != 1:
        why = f"they are {sorted(counts)} to a whole" if counts else f"nothing is called {whole}.shard-I-of-N"
        hint = "delete those that are not meant" if counts else "OUT is what --out was, of a command with --shard I/N"
        raise UserError(f"{out} has no shards that make a whole", why, hint)
    (count,), folders = counts, {n: place for (n, _), place in found.items()}
    marks = {n: facts for n, folder in folders.items() if (facts := read_object(folder / MARK)).get("complete")}
    lacking = [n for n in range(1, count + 1) if n not in marks]
    missing = [f"shard {n}/{count} {'is not finished' if n in folders else 'was not run'}" for n in lacking]
    if not marks:
        raise UserError(f"not one shard of {out} is finished", "; ".join(missing[:3]), "run them, each to its end")
    numbers = sorted(marks)
    first = marks[numbers[0]]
    for n in numbers:
        old, new = ({"command": f["stage"], "inputs": f["inputs"], **f["settings"]} for f in (first, marks[n]))
        if other := [k for k in old | new if old.get(k) != new.get(k) and k not in FREE]:
            what = f"shards {numbers[0]} and {n} of {out} were not asked for the same"
            raise UserError(what, ", ".join(other), "run one of them once more, with the other's options")
    part, name = f"{','.join(map(str, numbers))},/{count}" if missing else None, first["stage"]
    settings = {k: v for k, v in first["settings"].items() if k != "overwrite"}
    config = load(f"rlspeech.{SCHEMAS['eval' if name == 'evaluate' else name]}")(**settings, out=first["out"])
    config = config.model_copy(update={"shard": part})
    with contextlib.chdir(first["cwd"]):
        stage = load(f"rlspeech.stages.{name}:run")
        summary: Facts = stage(config, **first["inputs"], joined=[folders[n] for n in numbers])
    if left := summary.pop("missing", 0):
        missing.append(f"{log.several(left, 'file')} to be done once more, by the same shards")
    for line in missing:
        log.warn(line)
    log.say(f"joined {len(numbers)} of {count} shards in {out}")
    return summary | {"shards": count, "missing": missing}
