"""Shards: a command with ``--shard I/N`` does its part of the items, and ``rlspeech merge OUT`` joins what the parts wrote beside OUT.

Jobs on any number of machines share a disk and no lock: no file is written by two of them. What was asked of a shard, and whether it
came to its end, stands in its ``shard.json``. To join them the command is run once more, on what they have found: what comes of it is as if
there had been no shards, and nothing is computed but means and the page.

With ``--engine ray`` one command does all of it: its shards are tasks of a Ray cluster, whose nodes see the disk and have this package.
Paths, settings and, of what fails, the reason go between them as text. What runs on a node that dies is run again on another one, where
it goes on from what the disk has.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlspeech import __version__, log
from rlspeech.config_parts import Shard
from rlspeech.files import dumps, object_of, read_object
from rlspeech.plugins import SCHEMAS, load
from rlspeech.scores import write_json
from rlspeech.types import UserError

Facts = dict[str, Any]
MARK = "shard.json"
APART = ("reward", "evaluate")  # write into a folder of their own; the others' results are files of their own in OUT
FREE = ("workers", "device", "batch")  # settings that shards need not share
RETRIES = 3  # of a shard whose process or node ends


def run(stage: Callable[..., Facts], config: Any, **inputs: Any) -> Facts:
    """Run a stage, ``run(config, **inputs)``, on a shard. Raises ``UserError`` as it does, and where there is no OUT."""
    if config.out in (None, "-"):
        raise UserError("a shard has to write somewhere", "no --out is given", "--out, the same one for all shards")
    shard, name = Shard.of(config.shard), stage.__module__.rpartition(".")[2]
    place = shard.place(config.out)
    folder = place.parent if place.suffix == ".jsonl" else place
    facts = _asked(name, config, inputs)
    write_json(folder / MARK, {**facts, "complete": False})
    apart = name in APART or place.suffix == ".jsonl"
    summary = stage(config.model_copy(update={"out": str(place)}) if apart else config, **inputs)
    write_json(folder / MARK, {**facts, "complete": True})
    log.say(f"next: rlspeech merge {config.out}, once all {shard.total} shards are done")
    return summary


def merge(out: str) -> Facts:
    """Join shards; which of them are missing, or have left something undone, is said.

    Returns the command's summary, and ``shards`` (their number), ``missing`` (what was left out, in words).
    Raises ``UserError``: there are none, or they do not belong together.
    """
    found = _found(out)
    if len(counts := {count for _, count in found}) != 1:
        name = os.path.realpath(out).removesuffix(".jsonl")
        why = f"they are {sorted(counts)} to a whole" if counts else f"nothing is called {name}.shard-I-of-N"
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
    first["settings"].pop("overwrite", None)
    config = _config(first).model_copy(update={"shard": part})
    with contextlib.chdir(first["cwd"]):
        stage = load(f"rlspeech.stages.{name}:run")
        summary: Facts = stage(config, **first["inputs"], joined=[folders[n] for n in numbers])
    if left := summary.pop("missing", 0):
        missing.append(f"{log.several(left, 'file')} to be done once more, by the same shards")
    for line in missing:
        log.warn(line)
    log.say(f"joined {len(numbers)} of {count} shards in {out}")
    return summary | {"shards": count, "missing": missing}


def _found(out: str) -> dict[tuple[int, int], Path]:
    """The folders of what shards there are: number and count -> folder."""
    whole = Path(os.path.realpath(out).removesuffix(".jsonl"))
    places = [p.parent for p in whole.parent.glob(f"{glob.escape(whole.name)}.shard-*-of-*/{MARK}")]
    return {(int(n), int(count)): p for p in places for _, n, _, count in [p.suffix.split("-")]}


def _asked(name: str, config: Any, inputs: Facts) -> Facts:
    """What is asked of a shard, but for its number."""
    asked = config.model_dump(mode="json", exclude_unset=True, exclude={"shard", "out"})
    return {"stage": name, "settings": asked, "inputs": inputs, "cwd": os.getcwd(), "out": config.out}


def _config(facts: Facts) -> Any:
    """The settings of what was asked."""
    schema = SCHEMAS["eval" if facts["stage"] == "evaluate" else facts["stage"]]
    return load(f"rlspeech.{schema}")(**facts["settings"], out=facts["out"])


# ------------------------------------------------------------------------------------------------------------------ Ray


def spread(
    stage: Callable[..., Facts], config: Any, engine: str, count: int | None, address: str | None, **inputs: Any
) -> Facts:
    """Run all shards of a stage on a cluster and join them; each takes ``workers`` cores, and a GPU where ``device`` is not cpu.

    Args:
        engine: "ray".
        count: shards; None: as many as there are beside OUT, else as many as the cluster runs at once.
        address: of the cluster (HOST:PORT, auto); None: RAY_ADDRESS, one that runs here, or one of this machine alone for the time.

    Returns:
        what ``merge`` does; shards that failed are named with the reason, and the others joined.

    Raises:
        UserError: no cluster, or not one shard was done.
    """
    if engine != "ray" or config.shard or config.out in (None, "-"):
        why = "there is: ray" if engine != "ray" else "it makes the shards" if config.shard else "no --out is given"
        raise UserError(f"--engine {engine} cannot be used", why, "--engine ray --out FOLDER, without --shard")
    ray, failed = _ray(address), list[str]()
    try:
        room, gpus = ray.cluster_resources(), int(getattr(config, "device", "cpu") != "cpu")
        gpus, asked = min(gpus, int(room.get("GPU", 0))), "workers" in config.model_fields_set
        cores = max(1, (asked and config.workers) or 1)
        places = min(int(room.get("CPU", 0) // cores), *([int(room["GPU"])] if gpus else []), 10**6)
        if not places:
            log.warn(f"no node of the cluster has {log.several(cores, 'core')}: waiting for one")
        count = count or next((n for _, n in _found(config.out)), max(1, places))
        facts = _asked(stage.__module__.rpartition(".")[2], config, inputs)
        if not asked and "workers" in type(config).model_fields:
            facts["settings"]["workers"] = cores  # a node's cores are shared
        task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(_shard)
        tasks = {task.remote(dumps(facts).encode(), f"{n}/{count}", __version__): n for n in range(1, count + 1)}
        log.say(f"{log.several(count, 'shard')}, up to {places} at once, on {log.several(len(ray.nodes()), 'node')}")
        with log.progress(count, facts["stage"], "shards") as bar:
            while tasks:
                for done in ray.wait(list(tasks), timeout=1)[0]:
                    n = tasks.pop(done)
                    try:
                        reason = ray.get(done)
                    except ray.exceptions.RayError as error:
                        reason = f"{type(error).__name__}: {log.printable(str(error).strip().splitlines()[0])}"
                    if reason:
                        failed.append(f"shard {n}/{count} failed: {reason}")
                        log.warn(failed[-1])
                    bar.advance()
    finally:
        ray.shutdown()
    summary = merge(config.out)
    return summary | {"missing": summary["missing"] or failed}


def _ray(address: str | None) -> Any:
    """Ray, joined to a cluster. Raises ``UserError``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    before = signal.getsignal(signal.SIGTERM)
    try:
        import ray

        with log.waiting("joining the cluster"):
            ray.init(address, log_to_driver=False, logging_level="error")
    except ImportError as error:
        raise UserError("--engine ray needs Ray", str(error), "pip install 'rlspeech[ray]'") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        why, hint = str(error).strip().splitlines()[0], "ray start --head; --ray-address HOST:PORT, or RAY_ADDRESS"
        raise UserError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS', 'this machine')}", why, hint
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray takes it
    return ray


def _shard(order: bytes, number: str, version: str) -> str:
    """Do one shard on the node that Ray has chosen; empty, or why it was not done."""
    try:
        if version != __version__:
            raise UserError(f"rlspeech is {__version__} there, and {version} where it was started")
        facts = object_of(order)
        with contextlib.chdir(facts["cwd"]):
            config = _config(facts).model_copy(update={"shard": number})
            run(load(f"rlspeech.stages.{facts['stage']}:run"), config, **facts["inputs"])
    except Exception as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return f"{what}\n  on: {platform.node()}"
    return ""
