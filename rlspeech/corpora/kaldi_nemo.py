"""Speech with transcripts in other people's formats: Kaldi data folders and NeMo manifests.

A wav.scp's commands are not run; where a command does nothing but decode one file (``flac -c -d -s x.flac |``), that file is read instead.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from rlspeech.corpora.base import Candidate, Layout, Sets, candidate, check_folder, located
from rlspeech.corpora.folder import COLUMN_KEYS, text_file
from rlspeech.data.inputs import AUDIO_SUFFIXES
from rlspeech.data.manifest import from_row
from rlspeech.files import numbered_lines, safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["Kaldi", "Nemo", "find_kaldi", "find_nemo"]

# program -> options with which it only decodes
DECODERS = {
    "cat": set[str](),
    "flac": {"-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "--decode", "--stdout", "--silent"},
    "sph2pipe": {"-f", "wav", "-p"},
    "sox": {"-t", "wav", "-"},
    "ffmpeg": {"-i", "-f", "wav", "-", "-v", "error", "-nostdin"},
}


class Kaldi(Layout):
    """``rlspeech prepare kaldi``."""

    name = "kaldi"

    def make(self, out: Path) -> Sets:
        """Return a set for each data folder."""
        return self.vetted(find_kaldi(self.root or ""), out, "noisy")


class Nemo(Layout):
    """``rlspeech prepare nemo``."""

    name = "nemo"

    def make(self, out: Path) -> Sets:
        """Return a set for each manifest."""
        return self.vetted(find_nemo(self.root or ""), out, "noisy")


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
        why, try_this = "neither there nor one level below", "name a data folder, or the one above several"
        raise UserError(f"no wav.scp in {root}", why, try_this)
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
    lines = text_file(path).split("\n") if path.is_file() else []  # not splitlines: texts hold other line ends
    pairs = (line.strip().split(maxsplit=1) for line in lines if line.strip())
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


def find_nemo(root: str | Path) -> Iterator[Candidate]:
    """Candidates of a NeMo manifest, or of every one in a folder (``*.json``, ``*.jsonl``); the file's name is the split.

    Lines that cannot be used are dropped one by one. ``lang`` and ``speaker`` are taken as language and speaker.

    Raises:
        UserError: no manifest there.
    """
    source = Path(os.path.abspath(root))
    files = [source] if source.is_file() else [p for s in ("*.json", "*.jsonl") for p in source.glob(s)]
    if not files:
        why = "no .json or .jsonl file" if source.is_dir() else "it does not exist"
        raise UserError(f"no manifest in {root}", why, "check the path")
    for path in sorted(files):
        name = safe_name(path.stem)
        split = name.removesuffix("_manifest").removesuffix("-manifest") or name
        uses: dict[str, int] = {}
        for number, line in numbered_lines(path):
            yield _nemo_row(split, path, number, line, uses)


def _nemo_row(split: str, path: Path, number: int, line: bytes, uses: dict[str, int]) -> Candidate:
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
    uses[utt.id] = uses.get(utt.id, 0) + 1
    if uses[utt.id] > 1:
        utt.id = f"{utt.id}_{number}"
    archived = "in a tar archive" if "_tar" in str(row.get("shard_id", "")) else None
    return Candidate(split, utt, "no transcript" if utt.text is None else archived)
