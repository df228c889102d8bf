"""Speech with transcripts in other people's formats: Kaldi data folders, NeMo manifests, and lists of texts beside a folder of audio.

A list of texts (``prepare folder --text FILE``) is one of

    JSONL       {"audio_filepath" | "audio" | "path" | "file" | "id": ..., "text" | "sentence" | "transcript" | ...: ...}
    csv, tsv    with a header of such names (Common Voice), or without: file, text, and perhaps text in a cleaner form (LJ Speech)
    Kaldi       "file text ..."

and names files by their path below the folder, by name, or by name without suffix. A file that it does not name is dropped: a
transcript was asked for. An empty text is a text: nothing is said. A wav.scp's commands are not run; where a command does nothing but
decode one file (``flac -c -d -s x.flac |``), that file is read instead.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlspeech.corpora.base import Candidate, candidate, check_folder, file_id
from rlspeech.data.inputs import AUDIO_SUFFIXES, audio_files
from rlspeech.data.manifest import from_row
from rlspeech.files import numbered_lines, safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["find_kaldi", "find_listed", "find_nemo", "read_texts"]

FILE_KEYS = (
    "audio_filepath",
    "audio",
    "audio_path",
    "wav",
    "path",
    "file",
    "filename",
    "file_name",
    "id",
    "key",
    "utt_id",
)
WORD_KEYS = ("text", "sentence", "transcript", "transcription", "normalized_text", "words")
COLUMN_KEYS = {
    "speaker_id": ("speaker_id", "speaker", "client_id", "spk"),
    "language": ("language", "lang", "locale", "source_lang"),
}
EXAMPLE = 'one object a line: {"audio": "a.wav", "text": "what is said"}'


class Entry(NamedTuple):
    """What a list says of one file."""

    text: str | None
    columns: dict[str, str]


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"cannot read {path}", why, "check the path; text has to be UTF-8") from error


# ------------------------------------------------------------------------------------------------- a folder and a list


def find_listed(
    root: str | Path, texts: str | Path, split: str = "manifest", skip: Path | None = None
) -> Iterator[Candidate]:
    """Candidates of a folder's audio with the texts of a list; files that the list does not name have no transcript.

    Raises:
        UserError: no audio, an unreadable list, or a list that names none of the files.
    """
    folder = check_folder(root, "the source")
    paths = audio_files(folder, skip)
    if not paths:
        raise UserError(
            f"no audio in {root}", "no file with a known suffix (.wav .flac .ogg .mp3 ...) below it", "check the path"
        )
    entries = read_texts(texts)
    stems: dict[str, int] = {}
    for path in paths:
        stems[path.stem] = stems.get(path.stem, 0) + 1
    rows = []
    for path in paths:
        place = path.relative_to(folder)
        names = [str(path), place.as_posix(), place.with_suffix("").as_posix(), path.name, file_id(path, folder)]
        names += [path.stem] if stems[path.stem] == 1 else []  # a/1.wav and b/1.wav: the stem alone says nothing
        entry = next((entries[n] for n in names if n in entries), None)
        rows.append((path, entry))
    if not any(entry for _, entry in rows):
        first = next(iter(entries), "nothing")
        raise UserError(
            f"{texts} names no file of {root}",
            f"its first entry is {first!r}, the first file {paths[0].relative_to(folder)}",
            "entries are paths below the folder, file names, or names without suffix",
        )
    for path, entry in rows:
        found = candidate(
            split,
            path,
            file_id(path, folder),
            None if entry and entry.text is not None else "no transcript",
            text=entry.text if entry else None,
            speaker=entry.columns.get("speaker_id") if entry else None,
            language=entry.columns.get("language") if entry else None,
        )
        yield found


def read_texts(path: str | Path) -> dict[str, Entry]:
    """A list of texts by file, see the module. Raises ``UserError`` where it cannot be read or a line of it cannot."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json", ".ndjson"):
        rows = _json_rows(path)
    elif suffix in (".csv", ".tsv") or any(mark in _decoded(path).split("\n", 1)[0] for mark in "\t|"):
        rows = _table_rows(path)
    else:
        rows = [
            {"id": line.split(maxsplit=1)[0], "text": line.strip().partition(" ")[2].strip()}
            for line in _decoded(path).split("\n")
            if line.strip()
        ]
    entries: dict[str, Entry] = {}
    bare: dict[str, Entry] = {}  # names without suffix and places beside the list: after all names as they are written
    for number, row in enumerate(rows, 1):
        name = next((str(row[k]) for k in FILE_KEYS if row.get(k)), None)
        if name is None:
            raise UserError(
                f"{path}: row {number} names no file",
                f"its columns are {', '.join(map(str, row))}",
                f"one of the columns {', '.join(FILE_KEYS)}",
            )
        text = next((row[k] for k in WORD_KEYS if row.get(k) is not None), None)
        columns = {
            key: str(value)
            for key, names in COLUMN_KEYS.items()
            if (value := next((row[n] for n in names if row.get(n)), None))
        }
        entry = Entry(str(text).strip() if text is not None else None, columns)
        place = os.path.normpath(name)
        entries.setdefault(place.replace(os.sep, "/"), entry)
        stem, suffix = os.path.splitext(place)
        if suffix.lower() in AUDIO_SUFFIXES:
            bare.setdefault(stem.replace(os.sep, "/"), entry)
        bare.setdefault(os.path.abspath(path.parent / place), entry)
        if own := row.get("id"):
            bare.setdefault(str(own), entry)
    entries = bare | entries
    if not entries:
        raise UserError(f"{path} is empty", "no file is named in it", "one line a file")
    return entries


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON", str(error), EXAMPLE) from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is no object", type(row).__name__, EXAMPLE)
        rows.append(row)
    return rows


def _table_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table with or without a header; quotes are quotes only in csv proper, elsewhere they are part of a sentence."""
    content = _decoded(path)
    mark = next((m for m in "\t|;," if m in content.split("\n", 1)[0]), ",")
    try:
        cells = list(
            csv.reader(
                io.StringIO(content, newline=""),
                delimiter=mark,
                quoting=csv.QUOTE_MINIMAL if mark in ",;" else csv.QUOTE_NONE,
            )
        )
    except csv.Error as error:
        raise UserError(
            f"cannot read {path}", str(error), "one row a line, columns parted by commas or tabs"
        ) from error
    names = [c.strip().lower() for c in cells[0]] if cells else []
    if set(names) & set(FILE_KEYS) and set(names) & set(WORD_KEYS):
        return [dict(zip(names, row, strict=False)) for row in cells[1:] if row]
    return [{"file": row[0].strip(), "text": row[-1] if mark == "|" else row[1]} for row in cells if len(row) > 1]


# ---------------------------------------------------------------------------------------------------------------- Kaldi


def find_kaldi(root: str | Path) -> Iterator[Candidate]:
    """Candidates of a data folder, or of every data folder right below one; the folder's name is the split.

    Raises:
        UserError: no ``wav.scp``.
    """
    top = check_folder(root, "the Kaldi data folder")
    inner = [p for p in sorted(top.iterdir()) if (p / "wav.scp").is_file()]
    folders = [top] if (top / "wav.scp").is_file() else inner
    if not folders:
        raise UserError(
            f"no wav.scp in {root}", "neither there nor one level below", "name a data folder, or the one above several"
        )
    for folder in folders:
        yield from _kaldi_folder(folder, top if folder is top else top.parent)


def _kaldi_folder(folder: Path, base: Path) -> Iterator[Candidate]:
    split = safe_name(folder.name)
    recordings = _table(folder / "wav.scp")
    speakers, languages = _table(folder / "utt2spk"), _table(folder / "utt2lang")
    texts = _table(folder / "text") if (folder / "text").is_file() else None
    segments = _table(folder / "segments")
    for utt, piece in (segments or {name: name for name in recordings}).items():
        recording, start, end, problem = (utt, 0.0, 0.0, None) if not segments else _segment(piece)
        source = recordings.get(recording)
        path = None
        if source is None:
            problem = problem or "recording not in wav.scp"
        else:
            path, wrong = _kaldi_file(source, folder, base)
            problem = problem or wrong
        if texts is not None and utt not in texts:
            problem = problem or "no transcript"
        row = candidate(
            split,
            path or folder / "wav.scp",
            safe_name(utt),
            problem,
            text=texts.get(utt) if texts is not None else None,
            speaker=speakers.get(utt) if speakers.get(utt) != utt else None,  # so Kaldi writes that nobody knows
            language=languages.get(utt),
            original_id=utt if safe_name(utt) != utt else None,
            recording_id=recording if segments and path and recording != path.stem else None,
        )
        row.utt.offset, row.utt.duration = start, max(0.0, end - start)
        if segments and not start:
            row.utt.extra["segment"] = True
        yield row


def _table(path: Path) -> dict[str, str]:
    """First word of a line -> the rest of it; a missing file is an empty table."""
    if not path.is_file():
        return {}
    pairs = (
        line.strip().split(maxsplit=1) for line in _decoded(path).split("\n") if line.strip()
    )  # not splitlines: texts hold other ends
    return {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}


def _segment(piece: str) -> tuple[str, float, float, str | None]:
    """Recording, start and end in seconds, and what is wrong; an end below 0 is the end of the file."""
    parts = piece.split()
    try:
        recording, start, end = parts[0], float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        return parts[0] if parts else "", 0.0, 0.0, "bad line in segments"
    if start < 0 or 0 <= end <= start:
        return recording, 0.0, 0.0, "segment ends before it begins"
    return recording, start, end if end > 0 else start, None


def _kaldi_file(source: str, folder: Path, base: Path) -> tuple[Path | None, str | None]:
    """The file that an entry of wav.scp stands for, or why there is none."""
    name = source
    if source.endswith("|"):
        found = _decoding_only(source)
        if found is None:
            return None, "a command, not a file"
        name = found
    elif name.rpartition(":")[2].isdigit() and ".ark" in name:
        return None, "an archive, not a file"
    places = (
        [Path(name)] if os.path.isabs(name) else [folder / name, base / name, base.parent / name, Path(name).absolute()]
    )
    return next((Path(os.path.abspath(p)) for p in places if p.is_file()), Path(os.path.abspath(places[0]))), None


def _decoding_only(command: str) -> str | None:
    """The one file that a command decodes and does nothing else to; None for anything more."""
    try:
        words = shlex.split(command.rstrip("| "))
    except ValueError:
        return None
    files = [w for w in words[1:] if os.path.splitext(w)[1].lower() in AUDIO_SUFFIXES]
    if not words or len(files) != 1 or any(mark in command.rstrip("| ") for mark in "|<>;&`$"):
        return None
    options = {w for w in words[1:] if w != files[0]}
    allowed = {
        "cat": set[str](),
        "flac": {"-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "--decode", "--stdout", "--silent"},
        "sph2pipe": {"-f", "wav", "-p"},
        "sox": {"-t", "wav", "-"},
        "ffmpeg": {"-i", "-f", "wav", "-", "-v", "error", "-nostdin"},
    }
    return (
        files[0]
        if options <= allowed.get(os.path.basename(words[0]), {"?"}) and os.path.basename(words[0]) in allowed
        else None
    )


# ----------------------------------------------------------------------------------------------------------------- NeMo


def find_nemo(root: str | Path) -> Iterator[Candidate]:
    """Candidates of a NeMo manifest, or of every one in a folder (``*.json``, ``*.jsonl``); the file's name is the split.

    Lines that cannot be used cost themselves. ``lang`` and ``speaker`` are taken as language and speaker.

    Raises:
        UserError: no manifest there.
    """
    source = Path(os.path.abspath(root))
    files = (
        [source]
        if source.is_file()
        else sorted(p for s in ("*.json", "*.jsonl") for p in source.glob(s))
        if source.is_dir()
        else []
    )
    if not files:
        raise UserError(
            f"no manifest in {root}",
            "no .json or .jsonl file" if source.is_dir() else "it does not exist",
            "check the path",
        )
    for path in files:
        name = safe_name(path.stem)
        split = name.removesuffix("_manifest").removesuffix("-manifest") or name
        seen: dict[str, int] = {}
        for number, line in numbered_lines(path):
            yield _nemo_row(split, path, number, line, seen)


def _nemo_row(split: str, path: Path, number: int, line: bytes, seen: dict[str, int]) -> Candidate:
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        for key, names in COLUMN_KEYS.items():
            if row.get(key) is None and (value := next((row[n] for n in names if isinstance(row.get(n), str)), None)):
                row[key] = value
        utt = from_row(
            {k: v for k, v in row.items() if k != "sample_rate"} | {"sample_rate": row.get("sample_rate") or 1},
            path.parent,
        )
        utt.sample_rate = int(row.get("sample_rate") or 0)
        if row.get("offset") == 0:  # whoever writes an offset has cut files into pieces
            utt.extra["segment"] = True
    except (ValueError, RecursionError) as error:
        return Candidate(split, Utterance(f"line_{number}", str(path), 0.0, 0), f"bad line in the manifest: {error}")
    seen[utt.id] = seen.get(utt.id, 0) + 1
    if seen[utt.id] > 1:
        utt.id = f"{utt.id}_{number}"
    problem = (
        "no transcript" if utt.text is None else "in a tar archive" if "_tar" in str(row.get("shard_id", "")) else None
    )
    return Candidate(split, utt, problem)
