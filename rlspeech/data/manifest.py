"""Manifests: one JSON object a line, NeMo's key names, paths relative to the file.

Reading is strict where a mistake would go unnoticed (duplicate ids, wrong types: ``UserError`` with line numbers) and lenient where
other people's manifests merely know less (no ``id``, no ``sample_rate``: taken from the file). Writing is all or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlspeech.data.decode import AUDIO_SUFFIXES, AudioError, sound_info
from rlspeech.data.tars import packed, tar_members
from rlspeech.files import dumps, numbered_rows, object_of, read_object, safe_name, write_text
from rlspeech.log import several
from rlspeech.names import decoded, local_path
from rlspeech.scores import write_json
from rlspeech.types import UserError, Utterance

FIELDS = Utterance.field_names()
PATH_KEYS = ("audio_filepath", "target_filepath", "video_filepath", "lips_filepath", "prompt_filepath")
TEXT_KEYS = ("text", "prompt_text", "speaker_id", "language")
RECIPE_NAME = "mix.json"
SAMPLE_SET, PROMPTS = "samples.json", "prompts.jsonl"  # in a folder of stored samples, beside its manifest
ROWS = {".jsonl", ".json", ".ndjson"}  # one row a line
BESIDE = (".target", ".prompt")  # key.target.flac beside key.flac in a tar
MAIN_NAMES = ("manifest.jsonl", "train.jsonl", "test.jsonl")  # looked for in a folder, in this order
# in the same folders, but no manifests
ASIDE_NAMES = {"dropped.jsonl", "checks.jsonl", "rendered.jsonl", "scores.jsonl", "metrics.jsonl"}
_real_folder = lru_cache(maxsize=4096)(os.path.realpath)


def meta_path(path: str | Path) -> Path:
    """Where the settings and counts of a JSONL file are kept: ``x.jsonl`` -> ``x.meta.json``."""
    return Path(path).with_suffix(".meta.json")


def from_row(row: dict[str, Any], base: Path, texts_only: bool = False) -> Utterance:
    """Make an utterance of a manifest's parsed row; relative paths start from ``base``, an absolute folder.

    With ``texts_only`` no audio is read, and a row with an id, which may be called key, need not name any.

    Raises ``ValueError``: a key is missing or has the wrong type; the message says which.
    """
    if texts_only and row.get("id") is None and "key" in row:
        row["id"] = row["key"]
    folder, known, extra = str(base), dict[str, Any](), dict[str, Any]()
    for key, value in row.items():
        if (read := READERS.get(key)) is None:
            extra[key] = value
        elif value is not None:
            known[key] = read(key, value, folder)
    if texts_only:
        known = {"duration": 0.0, "sample_rate": 1} | ({"audio_filepath": ""} if "id" in known else {}) | known
    if "audio_filepath" not in known:
        raise ValueError("audio_filepath is missing")
    if known.get("offset") == 0 and "duration" in known:  # whoever writes an offset has cut files into pieces
        extra["segment"] = True
    if not known.get("id"):
        stem, offset = Path(known["audio_filepath"]).stem or "id", known.get("offset", 0.0)
        known["id"] = f"{stem}_{round(offset * 1000)}ms" if offset else stem
    name = safe_name(known["id"])
    if name != known["id"]:
        extra.setdefault("original_id", known["id"])
        known["id"] = name
    if "duration" not in known or "sample_rate" not in known:
        try:
            seconds, rate = sound_info(known["audio_filepath"])[:2]
        except AudioError:  # whoever opens it will report the file, not the row
            seconds, rate = 0.0, 0
        known.setdefault("duration", max(0.0, seconds - known.get("offset", 0.0)))
        known.setdefault("sample_rate", rate)
    return Utterance(**known, extra=extra)


def _path(key: str, value: Any, base: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{key} is not a path")
    try:
        return local_path(value, base)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _text(key: str, value: Any, _: str) -> str:
    if not isinstance(value, str) and type(value) is not int:  # True is no number
        raise ValueError(f"{key} is not text")
    return str(value)


def _number(key: str, value: Any, _: str) -> float | int:
    if type(value) not in (int, float) or not abs(value) < 1e12:  # NaN fails the comparison too
        raise ValueError(f"{key} is not a number: {value!r}")
    if key != "snr_db" and value < 0:
        raise ValueError(f"{key} is negative: {value}")
    if key == "sample_rate":
        if value != int(value) or value == 0:
            raise ValueError(f"sample_rate is not a whole number of Hz: {value}")
        return int(value)
    return float(value)


READERS: dict[str, Callable[[str, Any, str], Any]] = dict.fromkeys(FIELDS, _number)  # by key, and for paths their base
READERS |= dict.fromkeys(PATH_KEYS, _path) | dict.fromkeys((*TEXT_KEYS, "id"), _text)


def to_row(utt: Utterance, base: Path) -> dict[str, Any]:
    """The manifest row of an utterance, paths relative to ``base``; empty fields are left out, ``extra`` is written beside the rest."""
    row = {k: v for k in FIELDS if (v := getattr(utt, k)) is not None}
    if utt.offset == 0:
        del row["offset"]
    for key in PATH_KEYS:
        if key in row:
            folder, name = os.path.split(os.path.abspath(row[key]))
            row[key] = _way(folder, str(base)) + name
    return row | {k: v for k, v in utt.extra.items() if k not in row}


@lru_cache(maxsize=4096)
def _way(folder: str, base: str) -> str:
    """The way to an absolute folder from another one, links followed; with a slash behind it where it is no empty one."""
    try:
        way = os.path.relpath(_real_folder(folder), _real_folder(base))
    except ValueError:  # another drive on Windows
        return os.path.join(_real_folder(folder), "")
    return "" if way == "." else Path(way).as_posix() + "/"


def scan(path: str | Path, texts_only: bool = False) -> Iterator[tuple[int, Utterance | str]]:
    """Every row with its line number, one at a time: the utterance, or what is wrong with it. Raises ``UserError``: it cannot be opened."""
    path = Path(path)
    base = Path(_real_folder(os.path.dirname(os.path.abspath(path))))
    lines = dict[int, int]()  # hash of an id -> its line: a million ids would weigh as much as all else
    for number, row in numbered_rows(path):
        if isinstance(row, str):
            yield number, row
            continue
        try:
            utt = from_row(row, base, texts_only)
        except ValueError as error:
            yield number, str(error)
            continue
        # an id that is made here may be told apart, a given one may not
        if hash(utt.id) in lines and not row.get("id"):
            utt.id = f"{utt.id}_{number}"
        first = lines.setdefault(hash(utt.id), number)
        yield number, utt if first == number else f"duplicate id {utt.id!r}, first on line {first}"


def scan_manifest(path: str | Path) -> tuple[list[Utterance], list[tuple[int, str]]]:
    """The rows that can be read, and of the others the line and what is wrong. Raises ``UserError``: the file cannot be opened."""
    rows = list(scan(path))
    problems = [(number, found) for number, found in rows if isinstance(found, str)]
    return [found for _, found in rows if not isinstance(found, str)], problems


def usable_rows(path: str | Path, texts_only: bool = False) -> Iterator[tuple[int, Utterance]]:
    """Rows with their line numbers, one at a time. Raises ``UserError`` behind the last of them, as ``read_manifest`` does."""
    rows, bad = 0, list[str]()
    for number, found in scan(path, texts_only):
        if isinstance(found, str):
            bad.append(f"line {number}: {found}")
        else:
            rows += 1
            yield number, found
    if bad:
        listed = bad[:8] + ([f"and {len(bad) - 8} more"] if len(bad) > 8 else [])
        raise UserError(f"{path} has {several(len(bad), 'bad line')}", "; ".join(listed), f"rlspeech check {path}")
    if not rows:
        try_this = "run the prepare step again and look at its dropped.jsonl"
        raise UserError(f"{path} is empty", "a manifest needs at least one row", try_this)


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest; relative paths are resolved against its folder, unknown keys go to ``extra``.

    An id that is no safe file name is replaced by ``safe_name`` (the original stays in ``extra["original_id"]``), so that outputs
    named after ids stay inside their folder. Raises ``UserError``: unreadable, empty, or with bad lines, which are listed by number.
    """
    return [utt for _, utt in usable_rows(path)]


def recordings(utts: Sequence[Utterance], name: str | Path) -> list[Utterance]:
    """The rows whose sound says their text; one without a recording (``recorded`` is false) has its prompt's, which says another.

    Raises:
        UserError: there are rows, and none is recorded.
    """
    kept = [u for u in utts if u.extra.get("recorded") is not False]
    if utts and not kept:
        what, hint = f"none of the {len(utts)} rows of {name} can be learned from", "transcribed recordings; such texts"
        raise UserError(what, "no row is a recording (recorded: false)", f"{hint} are for rl, eval and speak")
    return kept


def write_manifest(path: str | Path, utts: Iterable[Utterance], meta: dict[str, Any] | None = None) -> float:
    """Write a manifest, complete or not at all, and return its seconds of sound; ``meta`` goes to ``meta_path(path)``.

    Raises:
        UserError: duplicate ids, or the disk does not take it.
    """
    path = Path(path)
    base = Path(os.path.dirname(os.path.abspath(path)))
    ids, seconds = set[int](), 0.0

    def lines() -> Iterator[str]:
        nonlocal seconds
        for utt in utts:
            if hash(utt.id) in ids:
                why = "two rows would overwrite each other's output"
                raise UserError(f"{path}: duplicate id {utt.id!r}", why, "give one of them another id")
            ids.add(hash(utt.id))
            seconds += utt.duration
            yield dumps(to_row(utt, base)) + "\n"

    write_text(path, lines())
    if meta is not None:
        write_json(meta_path(path), meta)
    return seconds


def draws_of(path: str | Path | Sequence[str]) -> int:
    """Outputs of a prompt in a folder of ``rlspeech sample``; 1 elsewhere."""
    draws = read_object(Path(path) / SAMPLE_SET).get("draws") if isinstance(path, str | Path) else 1
    return draws if isinstance(draws, int) and draws > 0 else 1


def is_stored(columns: Mapping[str, Any]) -> bool:
    """Whether a row with these columns is an output of ``rlspeech sample``."""
    tokens = all(isinstance(t, int) and t >= 0 for t in columns.get("tokens") or ())
    return tokens and isinstance(columns.get("prompt"), str) and isinstance(columns.get("draw"), int)


def holds_rows(path: Path) -> bool:
    """Whether a file is a manifest by its name, or where that ends in .json, as NeMo's and as configs do, by its first line."""
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in ROWS
    try:
        row = next(numbered_rows(path))[1]
    except (StopIteration, UserError):
        return False
    return isinstance(row, dict) and not row.keys().isdisjoint(("audio_filepath", "hypothesis", "pred_text"))


def find_manifest(path: str | Path, *, recipe: bool = True) -> Path:
    """The manifest or mixture recipe that a path stands for: a file is itself, a folder is searched.

    With ``recipe`` a folder's ``mix.json`` counts, and goes before its manifests.

    Raises ``UserError``: nothing there, or more than one candidate.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist", "neither a manifest nor a folder", "rlspeech prepare --help")
    for name in ((RECIPE_NAME,) if recipe else ()) + MAIN_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.glob("*.json*") if p.name not in ASIDE_NAMES and holds_rows(p))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found)
        raise UserError(f"{path} holds {len(found)} manifests", names, f"name one of them, e.g. {found[0]}")
    try_this = f"rlspeech prepare folder {path} --out {path}-manifest"
    raise UserError(f"no manifest in {path}", "it holds no mix.json and no .jsonl file", try_this)


def packed_rows(path: Path) -> Iterator[Utterance]:
    """The recordings in a tar as WebDataset has them: key.flac with what key.json and key.txt say of it. Raises ``UserError``."""
    groups, base = dict[str, dict[str, str]](), Path(os.path.realpath(path.parent))
    try:
        for name in tar_members(path):
            folder, (stem, dot, kind) = os.path.dirname(name), os.path.basename(name).partition(".")
            groups.setdefault(os.path.join(folder, stem), {})[dot + kind.lower()] = f"{os.path.abspath(path)}/{name}"
        for key, files in groups.items():
            if sound := next((file for kind, file in files.items() if kind in AUDIO_SUFFIXES), None):
                row = object_of(packed(files.get(".json", "")))
                row |= {"text": decoded(packed(files[".txt"])).strip()} if ".txt" in files else {}
                sides = ((os.path.splitext(kind), file) for kind, file in files.items())
                row |= {f"{k[1:]}_filepath": f for (k, s), f in sides if k in BESIDE and s in AUDIO_SUFFIXES}
                utt = from_row({**row, "id": key, "audio_filepath": sound}, base, texts_only=True)
                utt.sample_rate = utt.sample_rate if "sample_rate" in row else 0  # only the file knows it
                yield utt
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}", str(error), "a tar, not compressed, of key.flac and key.json") from error
