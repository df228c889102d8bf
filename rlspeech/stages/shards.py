"""Shards: a command with ``--shard I/N`` does its part of the items and writes beside OUT; ``shard.json`` there says what was asked.

Jobs on any number of machines share a disk and no lock: no file is written by two of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from rlspeech import log
from rlspeech.config_parts import Shard
from rlspeech.scores import write_json
from rlspeech.types import UserError

MARK = "shard.json"
ASIDE = ("reward", "eval")  # others write straight into a folder, each item files of its own
Run = Callable[..., dict[str, Any]]


def sharded(command: str, out_of: Callable[..., Any]) -> Any:
    """Make a stage's ``run(config, *inputs)`` note in its shard's folder what it was asked, and whether it came to its end.

    Args:
        command: its name in ``plugins.SCHEMAS``.
        out_of: OUT, of what ``run`` is given. A list in it is not written by shards, nor a run's folder: ``config.out`` becomes a place of
            the shard's own.
    """

    def register(run: Run) -> Run:
        @functools.wraps(run)
        def called(config: Any, *inputs: Any, **given: Any) -> dict[str, Any]:
            shard = Shard.of(getattr(config, "shard", None))
            if not shard.own:
                return run(config, *inputs, **given)
            inputs += tuple(given.values())
            out = out_of(config, *inputs)
            if out in (None, "-"):
                raise UserError("a shard has to write somewhere", "no --out is given", "--out, the same for all shards")
            place, settings = shard.place(out), config.model_dump(mode="json", exclude_unset=True)
            folder = place.parent if place.suffix == ".jsonl" else place
            settings = {k: v for k, v in settings.items() if k not in ("shard", "out")}
            facts = {"command": command, "shard": config.shard, "cwd": os.getcwd(), "out": config.out}
            facts |= {"settings": settings, "inputs": inputs}
            write_json(folder / MARK, {**facts, "complete": False})
            aside = command in ASIDE or place.suffix == ".jsonl"
            summary = run(config.model_copy(update={"out": str(place if aside else out)}), *inputs)
            facts["summary"] = {k: v for k, v in summary.items() if not isinstance(v, list)}
            write_json(folder / MARK, {**facts, "complete": True})
            log.say(f"next: rlspeech merge {out}, once all {shard.count} shards are done")
            return summary

        return called

    return register
