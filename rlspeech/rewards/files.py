"""What is to be scored: the audio files of a folder or the rows of a manifest, with their references and transcripts."""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import AudioError, load_audio, resample
from rlspeech.data.manifest import read_manifest
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["SUFFIXES", "Item", "collect", "load", "read_texts"]

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg"}


@dataclass(slots=True)
class Item:
    """One file to score; ``key`` is its path inside the folder without the suffix, or the manifest's id."""

    key: str
    audio: Path
    target: Path | None = None
    text: str | None = None
    offset_s: float = 0.0
    duration_s: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def stamp(self) -> str:
        """Changes when the audio, the reference or the transcript does: a score of an older file is then not taken for this one's."""
        facts = [self.text, self.offset_s, self.duration_s]
        for path in (self.audio, self.target):
            try:
                facts += [path.stat().st_size, path.stat().st_mtime_ns] if path else [None]
            except OSError:
                facts.append(-1)
        return f"{zlib.crc32(repr(facts).encode()):08x}"


def collect(path: str | Path, target: str | None = None, text: str | None = None) -> list[Item]:
    """List what there is to score, sorted by key.

    Args:
        path: folder (searched to any depth) or manifest.
        target: folder with references of the same names, whatever their suffixes.
        text: transcripts, see ``read_texts``.

    Raises:
        UserError: nothing to score, or references or transcripts that match nothing.
    """
    path = Path(path)
    if path.is_dir():
        items = _folder(path, Path(target) if target else None)
    elif path.suffix == ".jsonl":
        items = [_from_utterance(u) for u in read_manifest(path)]
    else:
        raise UserError(f"{path} is neither a folder nor a manifest", "" if path.exists() else "there is no such path",
                        "rlspeech reward FOLDER --reward dnsmos")
    if not items:
        raise UserError(f"no audio in {path}", f"looked for {', '.join(sorted(SUFFIXES))}, at any depth", "check the path")
    if target:
        _match_targets(items, Path(target))
    if text:
        texts = read_texts(text)
        for item in items:
            item.text = texts.get(item.key, texts.get(Path(item.key).name, item.text))
        if not any(i.text for i in items):
            firsts = f"first file: {items[0].key}; first transcript: {next(iter(texts), '-')}"
            raise UserError(f"no transcript in {text} matches a file", firsts, "the ids must be the files' names without suffix")
    return sorted(items, key=lambda i: i.key)


def _audio_files(folder: Path) -> list[Path]:
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(base) / n for n in sorted(names) if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    return found


def _folder(folder: Path, target: Path | None) -> list[Item]:
    inside = target.resolve() if target else None
    items: dict[str, Item] = {}
    for file in _audio_files(folder):
        if inside is not None and inside != folder.resolve() and inside in file.resolve().parents:
            continue  # references that lie inside the folder are not outputs
        key = file.relative_to(folder).with_suffix("").as_posix()
        if key in items:
            key = file.relative_to(folder).as_posix()
        items[key] = Item(key, file)
    return list(items.values())


def _from_utterance(utt: Utterance) -> Item:
    known = {k: getattr(utt, k) for k in ("speaker_id", "language", "snr_db") if getattr(utt, k) is not None}
    return Item(utt.id, Path(utt.audio_filepath), Path(utt.target_filepath) if utt.target_filepath else None, utt.text, utt.offset,
                utt.duration if utt.offset else None, {**known, **utt.extra})


def _match_targets(items: list[Item], folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"the reference folder {folder} does not exist", "", "--target FOLDER")
    by_key = {f.relative_to(folder).with_suffix("").as_posix(): f for f in _audio_files(folder)}
    by_name: dict[str, Path | None] = {}
    for key, file in by_key.items():
        name = Path(key).name
        by_name[name] = None if name in by_name else file  # a name that occurs twice says nothing
    for item in items:
        item.target = by_key.get(item.key) or by_name.get(Path(item.key).name)
    if not any(i.target for i in items):
        firsts = f"first file: {items[0].key}; first reference: {next(iter(by_key), '-')}"
        raise UserError(f"no file in {folder} has the name of a file to score", firsts, "references need the same names")


def read_texts(path: str | Path) -> dict[str, str]:
    """Transcripts by id: JSONL with ``id`` (or ``key``, ``audio_filepath``) and ``text``, Kaldi's ``text``, or a folder of .txt files.

    Raises:
        UserError: unreadable, or a line that is neither.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = sorted(path.rglob("*.txt"))
            return {p.relative_to(path).with_suffix("").as_posix(): p.read_text(encoding="utf-8").strip() for p in found}
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = "JSONL with id and text, Kaldi text, or a folder of .txt"
        raise UserError(f"cannot read the transcripts {path}", str(error), hint) from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            key, _, words = line.strip().partition(" ")
            texts[key] = words.strip()
            continue
        try:
            row = json.loads(line)
            key = row.get("id") or row.get("key") or Path(row["audio_filepath"]).stem
            texts[str(key)] = str(row["text"] or "")
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            example = '{"id": "...", "text": "..."}'
            raise UserError(f"{path} line {number} is no transcript", f"{type(error).__name__}: {error}", example) from error
    return texts


def load(item: Item) -> Sample | AudioError:
    """Read an item's audio at its own rate (the rewards resample, and say so); the reference is brought to the same rate.

    Returns:
        the sample, or what is wrong with the file. A reference that cannot be read is named in the columns as ``_target_error``.
    """
    try:
        wav, rate = _read(item.audio, item)
    except AudioError as error:
        return error
    target, columns = None, dict(item.columns)
    if item.target is not None:
        try:
            target, native = _read(item.target, item)
            target = resample(target, native, rate)
        except AudioError as error:
            columns["_target_error"] = error.reason
    return Sample(item.key, wav, rate, target, item.text, columns)


def _read(path: Path, item: Item) -> tuple[np.ndarray, int]:
    """Audio at its own rate, and the rate. The path is taken out of the reason: the row names it, and equal reasons are counted."""
    import soundfile as sf  # type: ignore[import-untyped]

    try:
        rate = int(sf.info(str(path)).samplerate)
    except (sf.LibsndfileError, RuntimeError, OSError):
        rate = 16000  # load_audio says what is wrong
    try:
        return load_audio(path, rate, item.offset_s, item.duration_s), rate
    except AudioError as error:
        raise AudioError(re.sub(r"Error opening ('.*?'|\".*?\"): ", "", error.reason)) from error
