"""What is to be scored: the audio files of a folder or the rows of a manifest, with their references and transcripts.

A recogniser's hypothesis is the manifest's column ``hypothesis`` (or NeMo's ``pred_text``), or stands in a file of its own, matched by
id, else by the audio file that both rows name. Where texts alone are judged no audio is opened, and rows need not name any.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config_parts import ALL, Shard
from rlspeech.data.audio import resample
from rlspeech.data.decode import AUDIO_SUFFIXES, VIDEO_SUFFIXES, AudioError, read_audio
from rlspeech.data.manifest import ROWS, SAMPLE_SET, from_row, is_stored, packed_rows, usable_rows
from rlspeech.data.tars import TAR, state_of
from rlspeech.files import numbered_rows, open_lines, parse_json, read_text
from rlspeech.names import local_path, nfc, on_disk
from rlspeech.types import Sample, UserError, Utterance

SOUND = AUDIO_SUFFIXES | VIDEO_SUFFIXES
BESIDE = frozenset(".txt .json .jsonl .npz .csv .tsv .md .html .png .tar".split())  # beside recordings, and results
FILE_KEYS = tuple("audio_filepath audio audio_path wav path file filename file_name id key utt_id".split())
WORD_KEYS = ("text", "sentence", "transcript", "transcription", "normalized_text", "words")
SPACE = " \t\r\f\v"  # what C calls white space: other spaces may be part of a name
EXAMPLE = '{"id": "...", "text": "...", "hypothesis": "..."}'
HYPOTHESES = ("hypothesis", "pred_text")  # columns of a manifest
WRITTEN = (*HYPOTHESES, "text")  # of a file of hypotheses alone
ROUNDED_S = 0.01  # what durations lose in manifests
SILENCE = np.zeros(0, dtype=np.float32)
GIVEN = ("target", "text", "hypothesis")


@dataclass(slots=True)
class Item:
    """One file or row to work on."""

    key: str  # path inside the named folder without the suffix, or the manifest's id
    audio: str | None  # the file; None where a row names none
    target: str | None = None
    text: str | None = None
    offset_s: float = 0.0  # the stretch that a manifest names, in seconds; None reads to the end
    duration_s: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    hypothesis: str | None = None  # a recogniser's text that a manifest holds
    video: str | None = None  # video or mouth crops that a manifest names

    def stamp(self) -> str:
        """Changes when the audio, the reference or the texts do: a score of an older file is then not taken for this one's."""
        piece = self.offset_s or self.columns.get("segment")
        facts = [self.text, self.offset_s, self.duration_s if piece else None]
        if self.hypothesis is not None:
            facts += [self.hypothesis, *(self.columns.get(k) for k in ("language", "keywords"))]
        for path in (self.audio, self.target):
            try:
                facts += state_of(path) if path else [None]
            except (OSError, ValueError):
                facts.append(-1)
        return f"{zlib.crc32(repr(facts).encode()):08x}"


class Items(Sequence[Item]):
    """Items by their keys, in order.

    Args:
        items: in any order; ``keys`` and ``stamps`` (checksums) are kept of them, and the names of their ``columns``. ``given`` says
            which references and texts there are at all: (name, whether it is not empty).
        again: gives the item of an index once more, and none is kept; None keeps them.
        shard: only these, but ``columns`` and ``given`` are of all.
    """

    def __init__(self, items: Iterable[Item], again: Callable[[int], Item] | None = None, shard: Shard = ALL) -> None:
        kept, keys, stamps, self.columns = dict[int, Item](), list[str](), array("I"), set[str]()
        places, self.given = array("L"), set[tuple[str, bool]]()
        for place, item in enumerate(items):
            self.columns.update(item.columns)
            self.given.update((n, bool(v)) for n in GIVEN if (v := getattr(item, n)) is not None)
            if shard.has(item.columns["prompt"] if is_stored(item.columns) else item.key):  # draws are compared
                keys.append(item.key)
                places.append(place)
                stamps.append(int(item.stamp(), 16))
                if again is None:
                    kept[place] = item
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys, self.stamps = [keys[n] for n in order], array("I", (stamps[n] for n in order))
        self._order, self._item = array("L", (places[n] for n in order)), again or kept.__getitem__

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: Any) -> Any:
        item = self._item(self._order[at])
        item.key = self.keys[at]  # one that the manifest does not give is told apart from others there
        return item


def _rows(path: Path, texts_only: bool, shard: Shard) -> Items:
    """The rows of a manifest; in memory there is where they begin. Raises as ``read_manifest`` does."""
    numbers, base = array("L"), Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))

    def numbered() -> Iterator[Item]:
        for number, utt in usable_rows(path, texts_only):
            numbers.append(number)
            yield item_of(utt)

    def again(n: int) -> Item:
        file.seek(starts[numbers[n] - 1])
        return item_of(from_row(parse_json(file.readline()), base, texts_only))

    items = Items(numbered(), again, shard)
    file = open_lines(path)
    starts = array("Q", itertools.accumulate(map(len, file), initial=file.tell()))
    return items


def collect(
    path: str | Path | Sequence[str],
    target: str | None = None,
    text: str | None = None,
    hypotheses: str | None = None,
    *,
    texts_only: bool = False,
    shard: Shard = ALL,
) -> Items:
    """List what there is to score, sorted by key; rows of a manifest to which nothing is added stay on the disk.

    Args:
        path: folder (searched to any depth), manifest or audio file; or several of them.
        target: folder with references of the same names, whatever their suffixes.
        text: transcripts, see ``read_texts``.
        hypotheses: what a recogniser made of the files, in the same forms; a file's answers are then the only ones.
        texts_only: no reward asks for audio; rows of a manifest need an id and texts only.
        shard: only its items, of which there may be none.

    Raises:
        UserError: nothing to score, or references, transcripts or hypotheses that match nothing.
    """
    if isinstance(path, str | Path):
        path = _stored(Path(path))
        if Path(path).suffix in ROWS and not (target or text or hypotheses or os.path.isdir(path)):
            return _rows(Path(path), texts_only, shard)
        path = Path(path)
        if not (path.is_dir() or path.suffix in {*ROWS, TAR} or path.is_file() and path.suffix.lower() in SOUND):
            why, example = "" if path.exists() else "there is no such path", "rlspeech reward FOLDER --reward dnsmos"
            raise UserError(f"{path} is no folder, manifest or audio file", why, example)
        items = expand(path, skip=Path(target) if target else None, texts_only=texts_only)
    else:
        items = _several([Path(p) for p in path], target, texts_only)
    if not items:
        looked = f"looked for {', '.join(sorted(SOUND))}, at any depth"
        raise UserError(f"no audio in {path}", looked, "check the path")
    if target:
        _match_targets(items, Path(target))
    if text:
        known = any(item.text is not None for item in items)
        for item, found in zip(items, _matched(items, read_texts(text), "transcript", text, known), strict=True):
            item.text = item.text if found is None else found
    if hypotheses:
        for item, found in zip(items, _hypotheses(items, hypotheses), strict=True):
            item.hypothesis = found
    return Items(items, shard=shard)


def _stored(path: Path) -> Path:
    """The manifest of a folder of stored samples, which holds other sound too; any other path as it is."""
    return path / "manifest.jsonl" if (path / SAMPLE_SET).is_file() else path


def expand(path: Path, *, skip: Path | None = None, texts_only: bool = False) -> list[Item]:
    """Return what a name on the command line stands for: the recordings and videos of a folder, the rows of a manifest, or the file itself.

    Args:
        path: folder, manifest (``ROWS``) or file. A file that is missing or no sound is an item all the same: reading it says why.
        skip: folder that is left out where it lies below ``path``: results or references.
        texts_only: rows of a manifest need an id and texts only.

    Raises:
        UserError: a manifest that cannot be read.
    """
    path = _stored(Path(on_disk(str(path))))
    if path.is_dir():
        return _folder(path, skip)
    if path.suffix in ROWS:
        return [item_of(utt) for _, utt in usable_rows(path, texts_only)]
    if path.suffix == TAR:
        return [item_of(utt) for utt in packed_rows(path)]
    return [Item(nfc(path.stem), str(path))]


def _several(paths: Sequence[Path], target: str | None, texts_only: bool) -> list[Item]:
    """What several paths hold; a missing file is one failed item, and two of one name are told apart by their folders."""
    found: dict[str, Item] = {}
    for path in dict.fromkeys(paths):
        for item in expand(path, skip=Path(target) if target else None, texts_only=texts_only):
            if item.key in found and item.audio is not None:
                place = nfc(Path(item.audio).as_posix().lstrip("./"))
                item.key = next((k for k in (os.path.splitext(place)[0], place) if k not in found), place)
            found[item.key] = item
    return list(found.values())


def _matched(
    items: list[Item], texts: dict[str, str], what: str, path: str, optional: bool = False
) -> list[str | None]:
    """Each item's text: by its key, by the id that the manifest gave it, by its name alone, by its file; the last three where no other
    item has the same one and could be meant. A hypothesis may also be that of the audio that both rows name, where they begin alike.
    Raises ``UserError`` where no text is any item's, unless that is ``optional``, or where it cannot be known which.
    """
    stems = [Path(i.audio or "").stem for i in items]
    alone = Counter(stems)
    given = Counter(i.columns.get("original_id") for i in items)
    found = []
    for item, stem in zip(items, stems, strict=True):
        stem = stem if stem and alone[stem] == 1 else item.key
        original = item.columns.get("original_id")
        names = (item.key, str(original) if given[original] == 1 else item.key, Path(item.key).name, stem)
        found.append(next((texts[n] for n in map(nfc, names) if n in texts), None))
    if what == "hypothesis" and None in found and Path(path).suffix in ROWS:
        by_file = _texts_by_file(path)
        found = [_of_file(i, by_file, path) if t is None else t for i, t in zip(items, found, strict=True)]
    if not optional and all(text is None for text in found):
        firsts = f"first file: {items[0].key}; first {what}: {next(iter(texts), '-')}"
        try_this = "the ids must be the manifest's, or the files' names without suffix, or audio_filepath the same file"
        raise UserError(f"no {what} in {path} matches a file", firsts, try_this)
    return found


def _hypotheses(items: list[Item], path: str) -> list[str | None]:
    return _matched(items, read_texts(path, WRITTEN), "hypothesis", path)


def _texts_by_file(path: str) -> dict[str, set[tuple[float, str]]]:
    """Hypotheses whose rows name their audio: real path (NFC) -> offset in seconds and text."""
    found = dict[str, set[tuple[float, str]]]()
    for _, row in read_list(path):
        audio, words = row.get("audio_filepath"), next((row[k] for k in WRITTEN if k in row), None)
        with suppress(ValueError, TypeError):  # an address; no number
            if isinstance(audio, str) and isinstance(words, str):
                real = os.path.realpath(local_path(audio, os.path.dirname(os.path.abspath(path))))
                found.setdefault(nfc(real), set()).add((float(row.get("offset") or 0.0), words))
    return found


def _of_file(item: Item, texts: Mapping[str, set[tuple[float, str]]], path: str) -> str | None:
    """The text of an item's stretch of its file; None where no text is of that file. Raises ``UserError``: not one is of the stretch."""
    known = texts.get(nfc(os.path.realpath(item.audio)), set()) if item.audio else set()
    mine = [text for offset_s, text in known if abs(offset_s - item.offset_s) < ROUNDED_S]
    if known and len(mine) != 1:
        why = f"{len(mine)} of its {len(known)} texts there begin at {item.offset_s:g} s, and its id is in none of the rows"
        raise UserError(f"which text in {path} belongs to {item.key} cannot be known", why, "give both the same id")
    return mine[0] if mine else None


def audio_files(folder: Path, skip: Path | None = None) -> list[Path]:
    """Every recording below a folder, sorted, and every video without a recording of its name beside it, for its sound track.

    Links are followed once; hidden files and the folder ``skip`` are left out. Files of other kinds are counted and named.
    """
    sounds, videos, others = list[Path](), list[Path](), list[Path]()
    visited: set[str] = set()
    barred = os.path.realpath(skip) if skip else None
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited or (real == barred and root != str(folder)):
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for path in (Path(root, n) for n in names if not n.startswith(".")):
            kind = path.suffix.lower()
            (sounds if kind in AUDIO_SUFFIXES else videos if kind in VIDEO_SUFFIXES else others).append(path)
    recorded = {path.with_suffix("") for path in sounds}
    if strange := sorted(p for p in others if p.suffix.lower() not in BESIDE):
        counts = Counter(p.suffix or "without a suffix" for p in strange)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        log.say(f"{folder}: passed over, no sound: {kinds} ({strange[0].name}{' ...' if len(strange) > 1 else ''})")
    return sorted(sounds + [path for path in videos if path.with_suffix("") not in recorded])


def _folder(folder: Path, skip: Path | None) -> list[Item]:
    items: dict[str, Item] = {}
    for file in audio_files(folder, skip):
        key = nfc(file.relative_to(folder).with_suffix("").as_posix())
        if key in items:
            key = nfc(file.relative_to(folder).as_posix())
        items[key] = Item(key, str(file))
    return list(items.values())


def item_of(utt: Utterance) -> Item:
    """A manifest's row as an item."""
    known = {k: v for k in ("speaker_id", "language", "snr_db") if (v := getattr(utt, k)) is not None}
    said = next((utt.extra[k] for k in HYPOTHESES if isinstance(utt.extra.get(k), str)), None) if utt.extra else None
    audio, video, given = utt.audio_filepath or None, utt.lips_filepath or utt.video_filepath, {**known, **utt.extra}
    seconds = None if is_stored(utt.extra) else utt.duration  # the whole file is the output, and the reference
    return Item(utt.id, audio, utt.target_filepath, utt.text, utt.offset, seconds, given, said, video)


def files_of(folder: Path, names: Mapping[str, str | None]) -> dict[str, str]:
    """The files in a folder that have the names of rows: key -> path, for those that have one.

    Args:
        folder: of recordings; their names may be composed otherwise (NFC), below other folders, and of other kinds.
        names: keys of rows, and the path of each one's own recording.

    Raises:
        UserError: no such folder, or not one file of such a name.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist", "", "a folder of recordings of the same names")
    by_key, by_name = dict[str, str | None](), dict[str, str | None]()
    for file in audio_files(folder):
        key = nfc(file.relative_to(folder).with_suffix("").as_posix())
        for table, name in ((by_key, key), (by_name, nfc(file.stem))):
            table[name] = None if name in table else str(file)  # a name that occurs twice says nothing
        by_key[nfc(file.relative_to(folder).as_posix())] = str(file)
    found = dict[str, str]()
    for key, own in names.items():
        places = (by_key, key), (by_key, key + Path(own or "").suffix), (by_name, Path(key).name)
        same = next((f for t, n in (*places, (by_name, Path(own or "").stem)) if (f := t.get(nfc(n)))), None)
        found |= {key: same} if same else {}
    if twice := ", ".join([k for k, file in by_key.items() if file is None][:4]):
        log.warn(f"{folder} holds several files called {twice}: which is meant cannot be known by the name alone")
    if not found:
        firsts = f"first row: {next(iter(names), '-')}; first file: {next(iter(by_key), '-')}"
        raise UserError(f"no file in {folder} has the name of a row", firsts, "its files need the same names")
    return found


def _match_targets(items: list[Item], folder: Path) -> None:
    if folder.is_file() and len(items) == 1:
        items[0].target = str(folder)
        return
    found = files_of(folder, {i.key: i.audio for i in items})
    for item in items:
        item.target = found.get(item.key)


def texts_of(path: str, utts: Sequence[Utterance]) -> dict[str, str]:
    """A recogniser's texts of rows, from a list: id -> hypothesis, for those that have one. Raises ``UserError`` where none has."""
    items = [item_of(u) for u in utts]
    return {i.key: text for i, text in zip(items, _hypotheses(items, path), strict=True) if text is not None}


# ------------------------------------------------------------------------------------------------------ lists of texts


def read_list(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a list of texts with their line numbers: the objects of JSONL, or ``file`` and ``text``, or a table's own columns.

    A table (.csv, .tsv, a first line with a known heading, or one with "|" before any space) goes by the rules of Python's csv module;
    where its quotes do not close they are part of the sentences, as "|" tables have them always. Everything else goes by Kaldi's rule:
    the name is what stands before the first white space; or before a tab, where it ends as sound does.

    Raises ``UserError``: it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() in ROWS:
        for number, row in numbered_rows(path):
            if isinstance(row, str):
                raise UserError(f"{path} line {number} is no row", row, EXAMPLE)
            yield number, row
        return
    content = read_text(path)
    first = next(filter(str.strip, content.split("\n")), "")
    mark = {".csv": "", ".tsv": "\t"}.get(path.suffix.lower())
    if mark is None and (_is_heading(first.split("\t")) or re.match(r"\S+\|", first)):
        mark = "\t" if "\t" in first else "|"
    if mark is None:
        yield from ((number, {"file": name, "text": words}) for number, name, words in first_words(content))
        return
    try:
        mark = mark or _delimiter(content, first)
        table = _table(content, mark)
    except csv.Error as error:
        try_this = "one row a line, columns separated by commas or tabs"
        raise UserError(f"cannot read {path}", str(error), try_this) from error
    names = [c.strip().lower() for c in table[0]] if table else []
    headed = _is_heading(names)
    for number, cells in enumerate(table[headed:], 1 + headed):
        if headed and cells:
            yield number, dict(zip(names, cells, strict=False))
        elif len(cells) > 1:
            yield number, {"file": cells[0].strip(), "text": cells[-1] if mark == "|" else cells[1]}


def first_words(content: str) -> Iterator[tuple[int, str, str]]:
    """Number, first word and rest of every line that is not blank: Kaldi's tables."""
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: a text may hold other ends of lines
        if line := line.strip(SPACE):
            name, tab, words = line.partition("\t")  # which parts the name of a file that has spaces
            if not tab or os.path.splitext(name)[1].lower() not in AUDIO_SUFFIXES:
                name, *rest = re.split(f"[{SPACE}]+", line, maxsplit=1)
                words = "".join(rest)
            yield number, name.strip(), words.strip()


def _is_heading(names: Sequence[str]) -> bool:
    found = {n.strip().strip('"').lower() for n in names}
    return bool(found & set(FILE_KEYS) and found & set(WORD_KEYS))


def _delimiter(content: str, first: str) -> str:
    """What parts the columns of a .csv: what stands first in its first line, quotes left out, and parts all lines alike where one does."""
    bare = re.sub(r'"[^"]*"?', "", first)
    marks = sorted((m for m in "\t|;," if m in bare), key=bare.index) or [","]
    return next((m for m in marks if len({len(row) for row in _table(content, m)}) == 1), marks[0])


def _table(content: str, mark: str) -> list[list[str]]:
    def read(**how: Any) -> list[list[str]]:
        return [row for row in csv.reader(io.StringIO(content, newline=""), delimiter=mark, **how) if any(row)]

    plain = read(quoting=csv.QUOTE_NONE)
    if mark == "|" or '"' not in content:
        return plain
    try:
        quoted = read(strict=True)
    except csv.Error:
        return plain if mark == "\t" else read()
    even = len({len(row) for row in plain}) == 1
    return plain if mark == "\t" and even and len(quoted) < len(plain) else quoted


def read_texts(path: str | Path, keys: tuple[str, ...] = ("text",)) -> dict[str, str]:
    """Texts by id (NFC): a list (``read_list``), or a folder of .txt files.

    A JSONL row has its text in the first of ``keys`` that it has, whose null is no text.

    Raises ``UserError``: unreadable, a line that is neither, or two texts for one id.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        return {nfc(p.relative_to(path).with_suffix("").as_posix()): read_text(p).strip() for p in files}
    texts: dict[str, str] = {}
    for number, row in read_list(path):
        try:
            key = row.get("id") or row.get("key") or _bare(next(row[k] for k in FILE_KEYS if row.get(k)))
            words = row[next((k for k in (*keys, *WORD_KEYS) if k in row), keys[-1])]
        except (KeyError, AttributeError, TypeError, StopIteration) as error:
            example = f'{{"id": "...", "{keys[0]}": "..."}}'
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} line {number} is no transcript", why, example) from error
        key = nfc(str(key))
        if words is not None and texts.setdefault(key, str(words)) != str(words):
            why = "which one is meant cannot be known"
            raise UserError(f"{path} line {number}: a second text for {key!r}", why, "one file a system, each id once")
    return texts


def _bare(name: str) -> str:
    """An id as it is, a file's name without folder and suffix."""
    stem, suffix = os.path.splitext(name)
    return os.path.basename(stem) if suffix.lower() in AUDIO_SUFFIXES else name


def load(item: Item) -> Sample | AudioError:
    """Read an item's audio at its own rate (the rewards resample, and say so); the reference is brought to the same rate.

    Returns the sample, or what is wrong with the file. A reference that cannot be read is named in the columns as ``_target_error``.
    """
    if item.audio is None:
        return AudioError("the row names no audio")
    target, columns = None, dict(item.columns)
    try:
        wav, rate = (SILENCE, 16000) if columns.get("tokens") == [] else _read(item.audio, item)
    except AudioError as error:
        return error
    if item.target is not None:
        try:
            target, native = _read(item.target, item)
            target = resample(target, native, rate)
        except AudioError as error:
            columns["_target_error"] = error.reason
    return _sample(item, wav, rate, target, columns)


def without_audio(item: Item, reason: str = "") -> Sample:
    """An item without its audio, for rewards that judge its texts; ``reason`` goes to the columns as ``_audio_error``."""
    columns = {**item.columns, **({"_audio_error": reason} if reason else {})}
    return _sample(item, SILENCE, 16000, None, columns)


def _sample(item: Item, wav: np.ndarray, rate: int, target: np.ndarray | None, columns: dict[str, Any]) -> Sample:
    """An item as a sample; one of stored samples has its tokens, and its prompt's name for a key: it is compared with the other draws."""
    made = Sample(item.key, wav, rate, target, item.text, columns, item.hypothesis)
    if is_stored(columns):
        tokens, made.key = columns.pop("tokens", None), columns["prompt"]
        made.finished, made.token_s = columns.get("finished") is not False, columns.pop("token_s", None)
        made.tokens = None if tokens is None else np.array(tokens, np.int64)
    return made


def _read(path: str, item: Item) -> tuple[np.ndarray, int]:
    """The item's stretch of a file at its own rate, and the rate. A piece is a piece where it begins at 0, too."""
    return read_audio(path, item.offset_s, item.duration_s, slack_s=ROUNDED_S)
