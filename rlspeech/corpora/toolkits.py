"""Speech with transcripts in other people's formats: Kaldi data folders, NeMo manifests, lhotse manifests. Needs none of them.

A wav.scp's commands are not run; where a command does nothing but decode one file (``flac -c -d -s x.flac |``), that file is read instead.

Of lhotse's cuts one is one row, its supervisions' texts in order; of recordings with supervisions, one supervision is one row. What
would need lhotse to compute is left out with its reason: mixed and padded cuts, transforms (speed, volume ...), audio behind commands,
URLs or in memory, some channels of several (our files are averaged over channels), a supervision that a cut cuts through.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlspeech.corpora.base import Candidate, Layout, candidate, check_folder, located
from rlspeech.corpora.folder import COLUMN_KEYS
from rlspeech.data.decode import AUDIO_SUFFIXES
from rlspeech.data.inputs import first_words
from rlspeech.data.manifest import from_row
from rlspeech.data.tars import TAR, tar_members
from rlspeech.files import numbered_rows, object_of, read_text, safe_name
from rlspeech.types import UserError, Utterance

# program -> options with which it only decodes
DECODERS = {
    "cat": set[str](),
    "flac": {"-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "--decode", "--stdout", "--silent"},
    "sph2pipe": {"-f", "wav", "-p"},
    "sox": {"-t", "wav", "-"},
    "ffmpeg": {"-i", "-f", "wav", "-", "-v", "error", "-nostdin"},
}


# ---------------------------------------------------------------------------------------------------------------- Kaldi


class Kaldi(Layout):
    """``rlspeech prepare kaldi``."""

    name = "kaldi"
    judged = "noisy"

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of a data folder, or of every data folder right below one; the folder's name is the split."""
        top = check_folder(self.root, "the Kaldi data folder")
        inner = [p for p in sorted(top.iterdir()) if (p / "wav.scp").is_file()]
        folders = [top] if (top / "wav.scp").is_file() else inner
        if not folders:
            why, try_this = "neither there nor one level below", "name a data folder, or the one above several"
            raise UserError(f"no wav.scp in {self.root}", why, try_this)
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
        path, wrong = (None, "recording not in wav.scp") if source is None else _kaldi_file(source, folder, base)
        problem = problem or wrong
        if texts is not None and utt not in texts:
            problem = problem or "no transcript"
        row = candidate(
            split,
            path or folder / "wav.scp",
            safe_name(utt),
            problem,
            text=texts.get(utt) if texts is not None else None,
            speaker=speakers.get(utt) if speakers.get(utt) != utt else None,  # how Kaldi writes an unknown speaker
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
    return {name: rest for _, name, rest in first_words(read_text(path))} if path.is_file() else {}


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
    name: str | None = source
    if source.endswith("|"):
        name = _decoding_only(source)
        if name is None:
            return None, "a command, not a file"
    elif source.rpartition(":")[2].isdigit() and ".ark" in source:
        return None, "an archive, not a file"
    return located(name or "", folder, base, base.parent), None


def _decoding_only(command: str) -> str | None:
    """The one file that a command decodes and does nothing else to; None for anything more."""
    try:
        words = shlex.split(command.rstrip("| "))
    except ValueError:
        return None
    files = [w for w in words[1:] if os.path.splitext(w)[1].lower() in AUDIO_SUFFIXES]
    if not words or len(files) != 1 or any(mark in command.rstrip("| ") for mark in "|<>;&`$"):
        return None
    allowed = DECODERS.get(os.path.basename(words[0]))
    return files[0] if allowed is not None and set(words[1:]) - {files[0]} <= allowed else None


# ----------------------------------------------------------------------------------------------------------------- NeMo


class Nemo(Layout):
    """``rlspeech prepare nemo``."""

    name = "nemo"
    judged = "noisy"

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of a NeMo manifest, or of every one in a folder (``*.json``, ``*.jsonl``); the file's name is the split.

        Lines that cannot be used are dropped one by one. ``lang`` and ``speaker`` are taken as language and speaker.
        """
        source = Path(os.path.abspath(self.root or ""))
        files = [source] if source.is_file() else [p for s in ("*.json", "*.jsonl") for p in source.glob(s)]
        if not files:
            why = "no .json or .jsonl file" if source.is_dir() else "it does not exist"
            raise UserError(f"no manifest in {self.root}", why, "check the path")
        for path in sorted(files):
            name = safe_name(path.stem)
            split = name.removesuffix("_manifest").removesuffix("-manifest") or name
            uses: dict[str, int] = {}
            for number, row in numbered_rows(path):
                yield _nemo_row(split, path, number, row, uses)


def _nemo_row(split: str, path: Path, number: int, row: Row | str, uses: dict[str, int]) -> Candidate:
    try:
        if isinstance(row, str):
            raise ValueError(row)
        for key, names in COLUMN_KEYS.items():
            if row.get(key) is None and (value := next((row[n] for n in names if isinstance(row.get(n), str)), None)):
                row[key] = value
        utt = from_row(row | {"sample_rate": row.get("sample_rate") or 1}, path.parent)
        utt.sample_rate = int(row.get("sample_rate") or 0)
    except ValueError as error:
        return Candidate(split, Utterance(f"line_{number}", str(path), 0.0, 0), f"bad line in the manifest: {error}")
    uses[utt.id] = uses.get(utt.id, 0) + 1
    if uses[utt.id] > 1:
        utt.id = f"{utt.id}_{number}"
    archived = "in a tar archive" if "_tar" in str(row.get("shard_id", "")) else None
    return Candidate(split, utt, "no transcript" if utt.text is None else archived)


# --------------------------------------------------------------------------------------------------------------- lhotse


SUFFIXES = (".jsonl", ".jsonl.gz")
TOLERANCE_S = 0.05
KINDS = re.compile(r"(?i)(?:^|[_\-.])(cuts?|recordings?|supervisions?)(?=$|[_\-.])")
Row = dict[str, Any]


class Lhotse(Layout):
    """``rlspeech prepare lhotse``."""

    name = "lhotse"
    judged = "noisy"

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of a file of cuts, or of a folder with such files, or with recordings and supervisions whose names agree otherwise.

        Splits are named by the files (``cuts_train.jsonl.gz`` -> ``train``).
        """
        source = Path(os.path.abspath(self.root or ""))
        files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.name.endswith(SUFFIXES))
        cuts: list[tuple[str, Path]] = []
        pairs: dict[str, dict[str, Path]] = {}
        for path in files:
            kind, split = _lhotse_kind(path)
            if kind == "cut" or source.is_file():
                cuts.append((split, path))
            elif kind:
                pairs.setdefault(split, {})[kind] = path
        whole = {split: pair for split, pair in pairs.items() if len(pair) == 2}
        if not cuts and not whole:
            none = "no .jsonl or .jsonl.gz file" if source.exists() else "it does not exist"
            why = ", ".join(p.name for p in files[:6]) or none
            try_this = "cuts.jsonl.gz, or recordings.jsonl.gz with supervisions.jsonl.gz"
            raise UserError(f"no lhotse manifests in {self.root}", why, try_this)
        for split, path in cuts:
            for number, row in _lhotse_rows(path):
                yield _guarded(split, path, number, row, _cut)
        for split, pair in whole.items():
            if not any(split == name for name, _ in cuts):  # cuts are made of the other two: they say more
                recordings = {str(row.get("id")): row for _, row in _lhotse_rows(pair["recording"]) if row}
                for number, row in _lhotse_rows(pair["supervision"]):
                    whole_row = row and row | {"recording": recordings.get(str(row.get("recording_id")))}
                    yield _guarded(split, pair["supervision"], number, whole_row, _supervision)


def _lhotse_kind(path: Path) -> tuple[str, str]:
    """cut, recording, supervision or nothing; and what is left of the name."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    found = KINDS.search(stem)
    rest = KINDS.sub("", stem, count=1).strip("_-.") if found else stem
    rest = "" if rest.isdigit() else rest  # the parts of a shar are one set
    return (found[1].lower().rstrip("s") if found else ""), safe_name(rest or "manifest")


def _lhotse_rows(path: Path) -> Iterator[tuple[int, Row | None]]:
    """Lines with their numbers; None for one that is no JSON object."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, object_of(line) or None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}", str(error), "is the file whole?") from error


def _guarded(split: str, path: Path, number: int, row: Row | None, make: Any) -> Candidate:
    try:
        if row is None:
            raise ValueError("not a JSON object")
        found: Candidate = make(split, path, row)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return candidate(split, path, f"line_{number}", f"bad line in the manifest: {type(error).__name__} {error}")


def _cut(split: str, path: Path, row: Row) -> Candidate:
    """One candidate; its text is that of its supervisions in order, columns are taken from the cut and from them."""
    kind = row.get("type", "MonoCut")
    whole = kind == "MultiCut" and all(s.get("channel") == row.get("channel") for s in row.get("supervisions") or [])
    if kind not in ("MonoCut", "Cut") and not whole:
        tracks = row.get("tracks") or []
        if kind == "MixedCut" and len(tracks) == 1 and not row.get("transforms"):
            return _cut(split, path, tracks[0]["cut"] | {"id": row["id"]})
        why = "several channels" if kind == "MultiCut" else f"a {kind}, which lhotse would have to compute"
        return candidate(split, path, safe_name(str(row["id"])), why)
    start, length, name = float(row.get("start", 0.0)), float(row["duration"]), str(row["id"])
    spoken = sorted(row.get("supervisions") or [], key=lambda s: float(s["start"]))
    spans = [(float(s["start"]), float(s["start"]) + float(s["duration"])) for s in spoken]
    outside = any(first < -TOLERANCE_S or last > length + TOLERANCE_S for first, last in spans)
    problem = "a supervision reaches beyond its cut" if outside else None
    recording = row.get("recording")
    file, wrong = _file(recording, row.get("channel", 0), path, name)
    texts = [s["text"] for s in spoken if s.get("text") is not None]
    text = " ".join(t.strip() for t in texts).strip() if texts else None
    if text is None:
        wrong = wrong or "no transcript"
    custom = [pair for s in [row, *spoken] for pair in (s.get("custom") or {}).items()]
    extra = {k: v for k, v in custom if isinstance(v, str | int | float | bool | list)}
    speakers, languages = {s.get("speaker") for s in spoken}, {s.get("language") for s in spoken}
    found = candidate(
        split,
        file or path,
        safe_name(name),
        problem or wrong,
        text=text,
        speaker=str(next(iter(speakers))) if len(speakers) == 1 and None not in speakers else None,
        language=next(iter(languages)) if len(languages) == 1 else None,
        original_id=name if safe_name(name) != name else None,
    )
    found.utt.extra.update({k: v for k, v in extra.items() if k not in found.utt.extra})
    for key in ("target", "prompt"):
        if isinstance(beside := (row.get("custom") or {}).get(f"{key}_recording"), dict):
            there, lacks = _file(beside, None, path, name, f"{key}_recording")
            setattr(found.utt, f"{key}_filepath", there and str(there))
            found = found._replace(problem=found.problem or (lacks and f"{key}: {lacks}"))
    found.utt.offset, found.utt.duration = start, length
    if not start and recording and float(recording.get("duration", length)) - length > TOLERANCE_S:
        found.utt.extra["segment"] = True  # the row ends before its file does
    return found


def _supervision(split: str, path: Path, row: Row) -> Candidate:
    """The cut that a supervision makes of its recording."""
    cut = {key: row[key] for key in ("id", "start", "duration", "recording")} | {"channel": row.get("channel", 0)}
    return _cut(split, path, cut | {"supervisions": [row | {"start": 0.0}]})


def _file(
    recording: Row | None, channel: Any, path: Path, cut: str, field: str = "recording"
) -> tuple[Path | None, str | None]:
    """The file behind a recording of a cut, or why there is none; ``channel`` None: all of them. In a shar the file has the cut's name."""
    if not recording:
        return None, "no recording"
    sources = recording["sources"]
    if recording.get("transforms"):
        return None, "a transformed recording"
    kind = sources[0]["type"] if len(sources) == 1 else ""
    if kind not in ("file", "shar"):
        return None, f"audio in a {kind}, not a file" if kind else "several files"
    channels = sources[0].get("channels") or [0]
    if len(channels) > 1 and channel not in (None, channels):
        return None, "one channel of several"
    if kind == "file":
        return located(str(sources[0]["source"]), path.parent), None
    tar = path.with_name(f"{field}{path.name.removeprefix('cuts').removesuffix('.gz').removesuffix('.jsonl')}{TAR}")
    try:
        there = tar_members(tar)
    except (OSError, ValueError) as error:
        return None, f"{tar.name} cannot be read: {getattr(error, 'strerror', None) or error}"
    name = next((f"{cut}{s}" for s in sorted(AUDIO_SUFFIXES) if f"{cut}{s}" in there), None)
    return (Path(f"{tar}/{name}"), None) if name else (None, f"not in {tar.name}")
