"""``rlspeech check PATH``: mistakes in manifests, mixture recipes, config files, score files, checkpoints and run folders, by line.

What a path is follows from its name and its first row. Nothing is decoded beyond its header and nothing is changed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlspeech import log
from rlspeech.data.decode import TOLERANCE_S, AudioError, SoundInfo, regular_file, sound_info
from rlspeech.data.manifest import ASIDE_NAMES, MAIN_NAMES, PATH_KEYS, PROMPTS, RECIPE_NAME, draws_of, holds_rows, scan
from rlspeech.files import numbered_rows, object_or_reason, read_object
from rlspeech.plugins import SCHEMAS, load
from rlspeech.schema import load_yaml
from rlspeech.scores import read_scores
from rlspeech.settings import resolve
from rlspeech.types import UserError, Utterance

SHOWN, MOST = 50, 100_000  # problems that are printed, and kept
MAX_CHARACTERS_PER_S = 40  # faster than anyone reads


def run(path: Path, *, stage: str | None = None) -> dict[str, Any]:
    """Check one path.

    Args:
        path: file or folder.
        stage: of a config file that does not say its own.

    Returns:
        ``path``, ``kind``, ``problems`` (path, line or None, message), ``facts``.

    Raises:
        UserError: nothing there, or nothing that this project knows.
    """
    with log.waiting(f"checking {path}"):
        found = _check(path, stage)
    summary = {"path": str(path), "kind": found.kind, "problems": found.problems, "facts": found.facts}
    if found.problems:
        for p in found.problems[:SHOWN]:
            log.error(f"{p['path']}{':' + str(p['line']) if p['line'] else ''}: {p['message']}")
        if len(found.problems) > SHOWN:
            log.error(f"and {len(found.problems) - SHOWN} more (all of them with --json)")
        log.say(f"{log.several(len(found.problems), 'problem')} in {path} ({found.kind})")
    else:
        rows = [[k, f"{v:.6g}" if isinstance(v, float) else str(v)] for k, v in found.facts.items()]
        log.table(f"{path}: {found.kind}, no problems", ["", ""], rows)
    return summary


def _check(path: Path, stage: str | None) -> Findings:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist", "", "rlspeech check MANIFEST, CONFIG or RUN_FOLDER")
    if holds_rows(path):
        return check_jsonl(path)
    if path.suffix == ".json":
        content = read_object(path)  # the config check says what is wrong, and where
        if {"clean", "noise"} <= set(content):
            return check_recipe(path, content)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return check_config(path, stage)
    why = f"its name ends in {path.suffix or 'nothing'}"
    try_this = "a manifest (.jsonl), mix.json, a config (.yaml, .json) or a run folder"
    raise UserError(f"{path} is nothing that can be checked", why, try_this)


def _folder(path: Path) -> Findings:
    if any((path / name).exists() for name in ("config.resolved.json", "env.json", "checkpoints")):
        return check_run(path)
    if (path / "model.safetensors").is_file() or (path / "config.json").is_file():
        found = Findings("checkpoint")
        check_checkpoint(path, found)
        return found
    inside = [p for p in sorted(path.glob("*.json*")) if p.name not in ASIDE_NAMES and holds_rows(p)]
    inside += sorted(path.glob(RECIPE_NAME))
    if not inside:
        why = "it holds neither a run, a checkpoint, nor manifests"
        raise UserError(f"{path} is nothing that can be checked", why, "rlspeech check MANIFEST, CONFIG or RUN_FOLDER")
    found = Findings("data folder")
    named: set[str] = set()  # manifests that the recipe reads are checked with it
    for file in reversed(inside):
        if file.name in named:
            continue
        part = _check(file, None)
        named |= {Path(str(n)).name for n in part.facts.pop("manifests", [])}
        found.problems += part.problems
        found.facts |= {f"{file.name}: {k}": v for k, v in part.facts.items()}
    return found


@dataclass(slots=True)
class Findings:
    """Problems and facts of a path and of what lies below it."""

    kind: str
    problems: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    more: int = 0

    def add(self, path: Path, line: int | None, message: str) -> None:
        """Note a problem; ``line`` is None where it is about the whole file. Those behind ``MOST`` are counted."""
        if len(self.problems) > MOST:
            self.more += 1
            self.problems.pop()
            line, message = None, f"and {self.more + 1} further problems"
        self.problems.append({"path": str(path), "line": line, "message": message})

    def read(self, path: Path, *, needed: bool = False) -> dict[str, Any]:
        """Return an object in a JSON file, empty where there is none; a file that cannot be read is a problem."""
        content, why = object_or_reason(path)
        if why:
            self.add(path, None, f"cannot be read: {why}")
        elif needed and not path.exists():
            self.add(path.parent, None, f"{path.name} is missing")
        return content


def check_jsonl(path: Path) -> Findings:
    """A JSONL file: metrics, scores or a manifest, by its name and its first row that can be read."""
    keys = next((row.keys() for _, row in _rows(path, Findings("rows"))), set[str]())
    if path.name.startswith("metrics") or ("step" in keys and "audio_filepath" not in keys):
        return check_metrics(path, Findings("metrics"))
    if path.name.startswith("scores") or {"key", "system"} <= keys:
        return check_scores(path, Findings("scores"))
    return _manifest(path)


def _manifest(path: Path) -> Findings:
    """A manifest, row by row: what it weighs in memory does not grow with it."""
    found, seconds, rates, counts = Findings("manifest"), 0.0, set(), Counter[str]()
    for number, utt in scan(path):
        if isinstance(utt, str):
            found.add(path, number, utt)
            continue
        for message in (*_audio_problems(utt), *_text_problems(utt)):
            found.add(path, number, f"{utt.id}: {message}")
        seconds += utt.duration
        rates.add(utt.sample_rate)
        counts["rows"] += 1
        counts["with a reference"] += utt.target_filepath is not None
        counts["with a text"] += utt.text is not None
        if utt.text == "":
            counts["in which nothing is said"] += 1
        if utt.extra.get("keywords"):
            counts["with keywords"] += 1
    if not counts["rows"] and not found.problems:
        found.add(path, None, "no rows")
    found.facts = {"rows": counts["rows"], "hours": round(seconds / 3600, 4)}
    found.facts |= {"sample rates (Hz)": ", ".join(map(str, sorted(rates)))} | counts
    return found


def _text_problems(utt: Utterance) -> Iterator[str]:
    """Faults of a transcript that no error would show in training."""
    text, keywords = utt.text, utt.extra.get("keywords")
    if text is not None:
        if not text.isascii() and re.search("[\ufffd\ud800-\udfff]", text):
            yield "text holds characters that could not be decoded: it was read with another encoding"
        if "\t" in text or "\n" in text:
            yield "text holds tabs or line breaks: several columns or lines in one"
        if utt.duration > 1 and len(text) > MAX_CHARACTERS_PER_S * utt.duration:
            yield f"text has {len(text)} characters for {utt.duration:.2f} s: of another recording?"
    listed = isinstance(keywords, list) and all(isinstance(k, str) for k in keywords)
    if not listed and not isinstance(keywords, str | None):
        yield "keywords is not a list of texts"


def _audio_problems(utt: Utterance) -> Iterator[str]:
    for key in PATH_KEYS:
        value = getattr(utt, key)
        if value is None or (key == "audio_filepath" and utt.extra.get("tokens") == []):
            continue
        try:
            info = (sound_info if key in {"audio_filepath", "target_filepath"} else regular_file)(value)
        except AudioError as error:
            what = "is missing" if "missing" in error.reason else f"cannot be read: {error.reason}"
            yield f"{key} {what}: {value}"
            continue
        if isinstance(info, SoundInfo):
            there, claimed = info.seconds, utt.offset + utt.duration
            if info.promised_s > there + TOLERANCE_S:
                yield f"{key} is truncated: its header promises {info.promised_s:.2f} s, it holds {there:.2f}"
            if key == "target_filepath":
                if claimed > there + TOLERANCE_S and "draw" not in utt.extra:
                    yield f"the reference has {there:.2f} s, the row {claimed:.2f}"
                continue
            if info.sample_rate != utt.sample_rate:
                yield f"sample_rate is {utt.sample_rate} Hz, the file has {info.sample_rate}"
            if claimed > there + TOLERANCE_S:
                yield f"offset + duration is {claimed:.2f} s, the file has {there:.2f}"
            elif utt.duration <= 0:
                yield "duration is 0"


def _rows(path: Path, found: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in numbered_rows(path):
        if isinstance(row, dict):
            yield number, row
        else:
            found.add(path, number, row)


def _not_finite(row: Mapping[str, Any]) -> list[str]:
    return [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]


def check_metrics(path: Path, found: Findings) -> Findings:
    """The metrics of a run: every line parses, steps rise, loss and gradient are numbers."""
    rows, last, nulls = 0, -1, 0
    for number, row in _rows(path, found):
        rows += 1
        if not isinstance(row.get("step"), int):
            found.add(path, number, "no step")
            continue
        if row["step"] < last:
            found.add(path, number, f"step {row['step']} after step {last}")
        last = max(last, row["step"])
        if bad := _not_finite(row) + [k for k in ("loss", "grad_norm") if k in row and row[k] is None]:
            found.add(path, number, f"not a number: {', '.join(bad)}")
        nulls += sum(v is None for v in row.values())
    found.facts |= {"rows of metrics": rows, "last step": last, "nulls in metrics": nulls}
    return found


def check_scores(path: Path, found: Findings) -> Findings:
    """Score rows: no pair of system and key twice, no null without a reason."""
    first_lines: dict[int, int] = {}  # by the hash of system and key
    nulls = 0
    for number, row in _rows(path, found):
        key = (str(row.get("system")), str(row.get("key")))
        if row.get("key") is None:
            found.add(path, number, "no key")
        elif (first := first_lines.setdefault(hash(key), number)) != number:
            found.add(path, number, f"a second row of {key[1]} by {key[0]}, first on line {first}")
        if bad := _not_finite(row):
            found.add(path, number, f"not a number: {', '.join(bad)}")
        empty = [k for k, v in row.items() if v is None]
        errors = row.get("errors") or {}
        nulls += len(empty)
        if unexplained := [k for k in empty if isinstance(errors, dict) and k not in errors and k != "text"]:
            found.add(path, number, f"null without a reason: {', '.join(unexplained)}")
    found.facts |= {"scored files": len(first_lines), "nulls with a reason": nulls}
    return found


def check_recipe(path: Path, content: Mapping[str, Any]) -> Findings:
    """A mixture recipe: its keys, its ranges, and the manifests that it names."""
    from rlspeech.config_parts import Mixing

    found = Findings("mixture recipe")
    try:
        _, lines = load_yaml(path)
    except UserError:
        lines = {}
    for key in set(content) - {"clean", "noise", "rir", "mixing"}:
        found.add(path, lines.get(key), f"unknown key {key!r}; known: clean, noise, rir, mixing")
    try:
        Mixing.model_validate(content.get("mixing") or {})
    except ValidationError as error:
        for e in error.errors(include_url=False):
            name = ".".join(["mixing", *(str(p) for p in e["loc"])])
            line = next((lines[n] for n in (name, name.rsplit(".", 1)[0], "mixing") if n in lines), None)
            found.add(path, line, f"{name}: {e['msg']}")
    names = []
    for key in ("clean", "noise", "rir"):
        named = content.get(key)
        if named is None and key == "rir":
            continue
        if not isinstance(named, str) or not (path.parent / named).is_file():
            found.add(path, lines.get(key), f"{key}: no manifest {named}")
            continue
        names.append(named)
        part = _manifest(path.parent / named)
        found.problems += part.problems
        found.facts |= {f"{key}: {k}": v for k, v in part.facts.items() if k in {"rows", "hours"}}
    found.facts["manifests"] = names
    return found


def check_config(path: Path, stage: str | None) -> Findings:
    """A config file: every key, every type; without a stage line the stage that it fits."""
    found = Findings("config")
    values, lines = load_yaml(path)  # its own message has the line where the file is not YAML at all
    named_stage = stage or values.get("stage")
    if named_stage is not None and named_stage not in SCHEMAS:
        found.add(path, lines.get("stage"), f"no stage is called {named_stage!r}; there are: {', '.join(SCHEMAS)}")
        return found
    schemas = {name: load(f"rlspeech.{SCHEMAS[name]}") for name in ([named_stage] if named_stage else SCHEMAS)}
    tried: dict[str, UserError | None] = {}
    for name, schema in schemas.items():
        try:
            resolve(schema, config_file=path)
            tried[name] = None
        except UserError as error:
            tried[name] = error
    fitting = [name for name, error in tried.items() if error is None]
    if fitting:
        found.facts = {"stage": ", ".join(fitting), "keys": len(lines)}
        return found
    # without a stage line: the stage whose keys the file shares most of is what was meant
    best = max(schemas, key=lambda name: len({*values} & {*schemas[name].model_fields}))
    if (wrong := tried[best]) is not None:
        named = [k for k in lines if f"'{k}'" in wrong.what or wrong.what.startswith(f"{k}:")]
        message = "; ".join(filter(None, (f"as rlspeech {best}: {wrong.what}", wrong.why, wrong.try_this)))
        found.add(path, lines[max(named, key=len)] if named else None, message)
    return found


def check_checkpoint(path: Path, found: Findings) -> None:
    """A checkpoint folder: both files there and readable, every weight finite."""
    weights = path / "model.safetensors"
    shards = sorted(path.glob("model-*-of-*.safetensors"))
    if config := found.read(path / "config.json", needed=True):
        about = found.read(path / "rlspeech.json") or config  # of models in transformers' layout
        found.facts |= {"model type": config.get("model_type"), "task": about.get("task")}
    if not weights.is_file() and not shards:
        found.add(path, None, "model.safetensors is missing")
    found.facts.pop("parameters", None)  # of another checkpoint of the same run
    for file in [weights] if weights.is_file() else shards:
        _tensors(file, found)


def _tensors(path: Path, found: Findings) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        count, bad = 0, []
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                count += tensor.numel()
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    bad.append(name)
        found.facts["parameters"] = found.facts.get("parameters", 0) + count
        if bad:
            found.add(path, None, f"NaN or infinite weights in {', '.join(bad[:4])}{' ...' if len(bad) > 4 else ''}")
    except (SafetensorError, OSError, ValueError) as error:
        found.add(path, None, f"cannot be read: {str(error).splitlines()[0]}")


def check_run(path: Path) -> Findings:
    """A run folder: complete, numbers that are numbers, and something to go on from."""
    found = Findings("run folder")
    for name in ("config.yaml", "config.resolved.json", "env.json"):
        if not (path / name).is_file():
            found.add(path, None, f"{name} is missing")
    stage, resolved, steps = found.read(path / "env.json").get("stage"), path / "config.resolved.json", None
    found.facts["stage"] = stage
    if stage in SCHEMAS and resolved.is_file():
        try:
            found.problems += check_config(resolved, stage).problems
            steps = Findings("config").read(resolved).get("steps")
        except UserError as error:
            found.add(resolved, None, str(error))
    for name, check in (("metrics.jsonl", check_metrics), ("scores.jsonl", check_scores)):
        if (path / name).is_file():
            check(path / name, found)
    if stage == "sample":
        _samples(path, found)
    if stage in {"pretrain", "rl"}:
        _checkpoints(path / "checkpoints", found, steps)
    return found


def _samples(path: Path, found: Findings) -> None:
    """Stored samples: every prompt and output there, as many outputs as said, and all scored where any is."""
    rows, draws = dict[str, list[Utterance]](), draws_of(path)
    for name in (PROMPTS, MAIN_NAMES[0]):
        if not (path / name).is_file():
            return found.add(path, None, f"{name} is missing")
        part = _manifest(path / name)
        found.problems += part.problems
        found.facts |= {f"{name}: {k}": part.facts[k] for k in ("rows", "hours")}
        rows[name] = [u for _, u in scan(path / name) if not isinstance(u, str)]
    known, made = (rows[name] for name in (PROMPTS, MAIN_NAMES[0]))
    count, prompts = Counter(str(u.extra.get("prompt")) for u in made), [u.id for u in known]
    wrong = [f"{p}, of {n} outputs, is not in {PROMPTS}" for p, n in count.items() if p not in set(prompts)]
    wrong += [f"{p} has {count[p]} of {draws} outputs: sample goes on" for p in prompts if count[p] < draws]
    scored = {key for of in read_scores(path / "scores.jsonl").values() for key in of}
    lacking = [u.id for u in made if u.id not in scored]
    wrong += [f"{len(lacking)} outputs have no scores, {lacking[0]} is one"] if scored and lacking else []
    for message in wrong:
        found.add(path / MAIN_NAMES[0], None, message)
    found.facts["outputs with scores"] = len(made) - len(lacking)


def _checkpoints(folder: Path, found: Findings, steps: int | None) -> None:
    """Check that there is something to go on from, and that it is whole."""
    kept = sorted(p for p in folder.glob("step_*") if p.is_dir())
    if not kept:
        found.add(folder, None, "no checkpoint: the run starts from the beginning")
        return
    for name in ("latest", "best"):
        pointer = folder / name
        if pointer.is_file():
            target = folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
            if not target.is_dir():
                found.add(pointer, 1, f"names {target.name}, which is not there")
        elif name == "latest":
            found.add(folder, None, "no file 'latest'")
    for half in folder.glob(".tmp-*"):
        found.add(half, None, "a checkpoint that was never finished; the next start removes it")
    for checkpoint in kept:
        check_checkpoint(checkpoint, found)
        for name in ("state.json", "state.safetensors"):
            if not (checkpoint / name).is_file():
                found.add(checkpoint, None, f"{name} is missing: the run cannot go on from here")
    last = kept[-1].name.removeprefix("step_")
    step = f"step {int(last) if last.isdigit() else 0}" + (f" of {steps}" if steps else "")
    found.facts |= {"checkpoints": len(kept), "last checkpoint": kept[-1].name, "goes on from": step}
