"""Any folder of audio, with its transcripts where there are any; any manifest; and two folders whose files belong together.

A list of texts (``prepare folder --text FILE``) is one of

    JSONL       {"audio_filepath" | "audio" | "path" | "file" | "id": ..., "text" | "sentence" | "transcript" | ...: ...}
    csv, tsv    with a header of such names (Common Voice), or without: file, text, and perhaps text in a cleaner form (LJ Speech)
    Kaldi       "file text ...", the first white space parts them

and names files by their path below the folder, by name, or by name without suffix. A file that it does not name is dropped: a
transcript was asked for. An empty text is a text: nothing is said.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from rlspeech.config_parts import conf
from rlspeech.corpora.base import (
    Candidate,
    Layout,
    Sets,
    candidate,
    check_folder,
    file_id,
    numbered,
    pair,
    recordings_below,
)
from rlspeech.data.decode import AUDIO_SUFFIXES
from rlspeech.data.inputs import FILE_KEYS, WORD_KEYS, audio_files, read_list
from rlspeech.data.manifest import packed_rows, read_manifest
from rlspeech.data.tars import TAR
from rlspeech.names import nfc
from rlspeech.types import UserError

COLUMN_KEYS = {
    "speaker_id": ("speaker_id", "speaker", "client_id", "spk"),
    "language": ("language", "lang", "locale", "source_lang"),
}


class Folder(Layout):
    """``rlspeech prepare folder``."""

    name = "folder"
    text: str | None = conf(None, "list of transcripts: JSONL, csv, tsv or Kaldi's text; none: x.txt beside x.wav")
    kind: Literal["speech", "noisy", "noise", "rir"] = conf("speech", "checks that the files have to pass")

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of a folder or manifest, or of a folder with the texts of a list; files that it does not name have no transcript."""
        if not self.text:
            yield from find(self.root or "", skip=out)
            return
        folder, paths = recordings_below(self.root or "", out)
        entries = read_entries(self.text)
        stems = Counter(path.stem for path in paths)
        rows = []
        for path in paths:
            place = path.relative_to(folder)
            names = [str(path), place.as_posix(), place.with_suffix("").as_posix(), path.name, file_id(path, folder)]
            names += [path.stem] if stems[path.stem] == 1 else []  # a/1.wav and b/1.wav: the stem alone says nothing
            rows.append((path, next((entries[n] for n in map(nfc, names) if n in entries), None)))
        if not any(entry for _, entry in rows):
            why = f"its first entry is {next(iter(entries))!r}, the first file {paths[0].relative_to(folder)}"
            try_this = "entries are paths below the folder, file names, or names without suffix"
            raise UserError(f"{self.text} names no file of {self.root}", why, try_this)
        for path, entry in rows:
            text, columns = entry or (None, {})
            problem = "no transcript" if text is None else None
            speaker, language = columns.get("speaker_id"), columns.get("language")
            name = file_id(path, folder)
            yield candidate("manifest", path, name, problem, text=text, speaker=speaker, language=language)

    def make(self, out: Path) -> Sets:
        """Return the recordings in one set."""
        return self.vetted(self.find(out), out, self.kind)


class Pairs(Layout):
    """``rlspeech prepare pairs``."""

    name = "pairs"
    needed: ClassVar[tuple[str, ...]] = ("noisy", "clean")
    noisy: str | None = conf(None, "folder with the inputs")
    clean: list[str] = conf([], "folder with the references, named as the inputs")

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of two folders: matched by place and stem, else by stem alone, else by the integer after ``fileid_``."""
        if len(self.clean) > 1:
            why = f"{len(self.clean)} were given"
            raise UserError("prepare pairs takes one clean folder", why, "prepare each pair of folders by itself")
        left, right = check_folder(self.noisy, "the noisy folder"), check_folder(self.clean[0], "the clean folder")

        def place(path: Path) -> str:
            top = max((p for p in (left, right) if p in path.parents), key=lambda p: len(p.parts))
            return path.relative_to(top).with_suffix("").as_posix()

        for key in (place, lambda p: p.stem, numbered):
            rows = list(pair("manifest", left, right, key))
            if any(row.problem is None for row in rows):
                yield from rows
                return
        why = "files are matched by name without suffix, or by the number after fileid_"
        try_this = "give both files of a pair the same name"
        raise UserError(f"nothing in {self.noisy} matches {self.clean[0]}", why, try_this)


def find(source: str | Path, split: str = "manifest", skip: Path | None = None) -> Iterator[Candidate]:
    """Candidates of a folder (all audio below it; ``x.txt`` beside ``x.wav`` is its text) or of a manifest, for the manifest ``split``.

    A .tar is WebDataset's, or a folder of nothing else. The folder ``skip`` is left out: the output, where it lies inside the source.

    Raises ``UserError``: neither folder nor manifest, or no audio in it.
    """
    tars = [Path(source)] if str(source).endswith(TAR) else sorted(Path(source).glob(f"*{TAR}"))
    if tars and (Path(source).is_file() or not audio_files(Path(source), skip)):
        yield from (Candidate(split, utt) for tar in tars for utt in packed_rows(tar))
        return
    if Path(source).is_file():
        yield from (Candidate(split, utt) for utt in read_manifest(source))
        return
    folder, paths = recordings_below(source, skip)
    for path in paths:
        yield candidate(split, path, file_id(path, folder), text=path.with_suffix(".txt"))


# ------------------------------------------------------------------------------------------------------ lists of texts


class Entry(NamedTuple):
    """What a list says of one file."""

    text: str | None
    columns: dict[str, str]


def read_entries(path: str | Path) -> dict[str, Entry]:
    """A list of texts by file, see the module. Raises ``UserError`` where it or one of its lines cannot be read."""
    path = Path(path)
    entries: dict[str, Entry] = {}
    bare: dict[str, Entry] = {}  # names without suffix and places beside the list: after all names as they are written
    for number, row in read_list(path):
        name = next((str(row[k]) for k in FILE_KEYS if row.get(k)), None)
        if name is None:
            why, try_this = f"its columns are {', '.join(map(str, row))}", f"one of the columns {', '.join(FILE_KEYS)}"
            raise UserError(f"{path}: row {number} names no file", why, try_this)
        text = next((row[k] for k in WORD_KEYS if row.get(k) is not None), None)
        found = {key: next((row[n] for n in names if row.get(n)), None) for key, names in COLUMN_KEYS.items()}
        columns = {key: str(value) for key, value in found.items() if value}
        entry = Entry(str(text).strip() if text is not None else None, columns)
        place = nfc(os.path.normpath(name))
        entries.setdefault(place.replace("\\", "/"), entry)
        stem, suffix = os.path.splitext(place)
        if suffix.lower() in AUDIO_SUFFIXES:
            bare.setdefault(stem.replace("\\", "/"), entry)
        bare.setdefault(nfc(os.path.abspath(path.parent / place)), entry)
        if own := row.get("id"):
            bare.setdefault(nfc(str(own)), entry)
    if not entries:
        raise UserError(f"{path} is empty", "no file is named in it", "one line a file")
    return bare | entries
