"""What ``rlspeech check`` finds in files of rows: manifests, mixture recipes, metrics and scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlspeech.data.jsonl import numbered_lines
from rlspeech.data.manifest import PATH_KEYS, scan_manifest
from rlspeech.types import UserError, Utterance
from rlspeech.yamlfile import load_yaml

__all__ = ["Findings", "check_jsonl", "check_metrics", "check_recipe", "check_scores"]

TOLERANCE_S = 0.1  # between a manifest's duration and the file's header
MAX_CHARACTERS_PER_S = 40  # nobody reads faster


@dataclass(slots=True)
class Findings:
    """What was found in one place and below it."""

    kind: str
    problems: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, path: Path, line: int | None, message: str) -> None:
        """Note a problem; ``line`` is None where it is about the whole file."""
        self.problems.append({"path": str(path), "line": line, "message": message})


def check_jsonl(path: Path) -> Findings:
    """A JSONL file: metrics, scores or a manifest, by its name and its first row."""
    first: Any = None
    for _, line in numbered_lines(path):
        try:
            first = json.loads(line)
        except ValueError:
            pass
        break
    if path.name.startswith("metrics") or (
        isinstance(first, dict) and "step" in first and "audio_filepath" not in first
    ):
        found = Findings("metrics")
        check_metrics(path, found)
        return found
    if path.name.startswith("scores") or (isinstance(first, dict) and {"key", "system"} <= set(first)):
        found = Findings("scores")
        check_scores(path, found)
        return found
    return _manifest(path)


def _manifest(path: Path) -> Findings:
    found = Findings("manifest")
    utts, problems = scan_manifest(path)
    for p in problems:
        found.add(path, p.line, p.message)
    bad = {p.line for p in problems}
    good = [number for number, _ in numbered_lines(path) if number not in bad]  # rows come in the order of the file
    seconds, rates = 0.0, set()
    for utt, number in zip(utts, good, strict=True):
        for message in (*_audio_problems(utt), *_text_problems(utt)):
            found.add(path, number, f"{utt.id}: {message}")
        seconds += utt.duration
        rates.add(utt.sample_rate)
    if not utts and not problems:
        found.add(path, None, "no rows")
    found.problems.sort(key=lambda p: p["line"] or 0)
    paired = sum(u.target_filepath is not None for u in utts)
    found.facts = {
        "rows": len(utts),
        "hours": round(seconds / 3600, 4),
        "sample rates (Hz)": ", ".join(map(str, sorted(rates))),
        "with a reference": paired,
        "with a text": sum(u.text is not None for u in utts),
    }
    silent, keywords = sum(u.text == "" for u in utts), sum(bool(u.extra.get("keywords")) for u in utts)
    if silent:
        found.facts["in which nothing is said"] = silent
    if keywords:
        found.facts["with keywords"] = keywords
    return found


def _text_problems(utt: Utterance) -> Iterator[str]:
    """What makes a transcript useless to a recogniser without anybody noticing."""
    text, keywords = utt.text, utt.extra.get("keywords")
    if text is not None:
        if "\ufffd" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
            yield "text holds characters that could not be decoded: it was read with another encoding"
        if "\t" in text or "\n" in text:
            yield "text holds tabs or line breaks: several columns or lines in one"
        if utt.duration > 1 and len(text) > MAX_CHARACTERS_PER_S * utt.duration:
            yield f"text has {len(text)} characters for {utt.duration:.2f} s: of another recording?"
    good = isinstance(keywords, str | None) or (
        isinstance(keywords, list) and all(isinstance(k, str) for k in keywords)
    )
    if not good:
        yield "keywords is not a list of texts"


def _audio_problems(utt: Utterance) -> Iterator[str]:
    import soundfile as sf

    for key in PATH_KEYS:
        value = getattr(utt, key)
        if value is None:
            continue
        file = Path(value)
        if not file.is_file():
            yield f"{key} is missing: {file}"
        elif file.stat().st_size == 0:
            yield f"{key} is empty (0 bytes): {file}"
        elif key in {"audio_filepath", "target_filepath"}:
            try:
                info = sf.info(file)
            except (sf.LibsndfileError, RuntimeError) as error:
                yield f"{key} cannot be read: {file}: {str(error).splitlines()[0][:100]}"
                continue
            there = info.frames / info.samplerate
            if key == "audio_filepath" and info.samplerate != utt.sample_rate:
                yield f"sample_rate is {utt.sample_rate} Hz, the file has {info.samplerate}"
            if key == "audio_filepath" and utt.offset + utt.duration > there + TOLERANCE_S:
                yield f"offset + duration is {utt.offset + utt.duration:.2f} s, the file has {there:.2f}"
            elif key == "audio_filepath" and utt.duration <= 0:
                yield "duration is 0"
            elif key == "target_filepath" and utt.offset + utt.duration > there + TOLERANCE_S:
                yield f"the reference has {there:.2f} s, the row {utt.offset + utt.duration:.2f}"


def _rows(path: Path, found: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            torn = "torn line: the process ended while writing it; the next start cuts it off"
            found.add(path, number, f"not JSON: {error}" if line.endswith(b"\n") else torn)
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            found.add(path, number, f"not a JSON object but {type(row).__name__}")


def _not_finite(row: Mapping[str, Any]) -> list[str]:
    return [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]


def check_metrics(path: Path, found: Findings) -> None:
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
        if bad := [k for k in _not_finite(row)] + [
            k for k, v in row.items() if v is None and k in {"loss", "grad_norm"}
        ]:
            found.add(path, number, f"not a number: {', '.join(bad)}")
        nulls += sum(v is None for v in row.values())
    found.facts |= {"rows of metrics": rows, "last step": last, "nulls in metrics": nulls}


def check_scores(path: Path, found: Findings) -> None:
    """Score rows: no pair of system and key twice, no null without a reason."""
    seen: dict[tuple[str, str], int] = {}
    nulls = 0
    for number, row in _rows(path, found):
        key = (str(row.get("system")), str(row.get("key")))
        if row.get("key") is None:
            found.add(path, number, "no key")
        elif key in seen:
            found.add(path, number, f"a second row of {key[1]} by {key[0]}, first on line {seen[key]}")
        seen.setdefault(key, number)
        if bad := _not_finite(row):
            found.add(path, number, f"not a number: {', '.join(bad)}")
        empty = [k for k, v in row.items() if v is None]
        errors = row.get("errors") or {}
        nulls += len(empty)
        if unexplained := [k for k in empty if isinstance(errors, dict) and k not in errors and k != "text"]:
            found.add(path, number, f"null without a reason: {', '.join(unexplained)}")
    found.facts |= {"scored files": len(seen), "nulls with a reason": nulls}


def check_recipe(path: Path, content: Mapping[str, Any]) -> Findings:
    """A mixture recipe: its keys, its ranges, and the manifests that it names."""
    from rlspeech.config import Mixing

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
