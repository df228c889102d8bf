"""``rlspeech merge OUT``: join what the shards of a command wrote beside OUT; what comes of it is as if there had been no shards.

Nothing is computed but means and the page. The command itself is run once more, on what the shards have found; where shards are missing,
on the items of the others.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.files import read_object
from rlspeech.plugins import SCHEMAS, load
from rlspeech.stages import evaluate, prepare, reward, transcribe
from rlspeech.stages.shards import MARK
from rlspeech.types import UserError

Facts = dict[str, Any]
FREE = ("workers", "device", "batch")  # settings that shards need not share


def _counts(config: Any, joined: Sequence[Path]) -> Facts:
    """The sum of the shards' summaries: each result is a file in OUT already, or a row of a list."""
    if str(config.out).endswith(".jsonl"):
        transcribe.join(config, joined)
    total: Facts = {}
    for found in (read_object(folder / MARK)["summary"] for folder in joined):
        for key in ("enhanced", "transcribed", "skipped", "failed", "audio_s"):
            total |= {key: total.get(key, 0) + found[key]} if key in found else {}
        total["errors"] = total.get("errors", {}) | found.get("errors", {})
    return total | {"out": config.out}


JOIN: dict[str, Callable[..., Facts]] = {  # settings, positional arguments of the stage, folders -> summary
    "prepare": prepare.run,
    "reward": reward.run,
    "eval": evaluate.run,
    "transcribe": _counts,
    "enhance": _counts,
}


def run(out: str) -> Facts:
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
    first, numbers = marks[min(marks)], sorted(marks)
    for n, facts in marks.items():
        old, new = ({"command": f["command"], "inputs": f["inputs"], **f["settings"]} for f in (first, facts))
        if other := [k for k in old | new if old.get(k) != new.get(k) and k not in FREE]:
            what = f"shards {numbers[0]} and {n} of {out} were not asked for the same"
            raise UserError(what, ", ".join(other), "run one of them once more, with the other's options")
    part = f"{','.join(map(str, numbers))}{',' * (len(numbers) == 1)}/{count}" if missing else None
    settings = load(f"rlspeech.{SCHEMAS[first['command']]}")(**first["settings"])
    config = settings.model_copy(update={"out": first["out"], "shard": part})
    with contextlib.chdir(first["cwd"]):
        summary = JOIN[first["command"]](config, *first["inputs"], joined=[folders[n] for n in numbers])
    if left := summary.pop("missing", 0):
        missing.append(f"{log.several(left, 'file')} to be done once more, by the same shards")
    for line in missing:
        log.warn(line)
    log.say(f"joined {len(numbers)} of {count} shards in {out}")
    return summary | {"shards": count, "missing": missing}
