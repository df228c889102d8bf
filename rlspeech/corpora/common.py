"""What every layout shares: candidates, finding audio files, ids and pairing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlspeech.data.jsonl import safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["AUDIO_SUFFIXES", "Candidate", "audio_files", "candidate", "check_folder", "file_id", "pair", "pair_by"]

AUDIO_SUFFIXES = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aiff",
        ".aif",
        ".au",
        ".w64",
        ".rf64",
        ".caf",
        ".sph",
        ".m4a",
        ".aac",
        ".wma",
        ".webm",
    }
)  # the last four cannot be read; they are found so that they are counted
FILE_ID = re.compile(r"fileid_(\d+)")


class Candidate(NamedTuple):
    """A row that may enter a manifest.

    Args:
        split: name of the manifest it belongs to (``clean``, ``noise``, ``test`` ...).
        utt: the row; ``duration`` and ``sample_rate`` are 0 where only the file knows them.
        problem: why it cannot be used, where that is known without opening it.
    """

    split: str
    utt: Utterance
    problem: str | None = None


def check_folder(path: str | Path, what: str) -> Path:
    """The folder as an absolute path. Raises ``UserError`` where it is none."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "it does not exist"
        raise UserError(f"{what} {path} is not a folder", why, "check the path")
    return folder


def audio_files(folder: Path, skip: Path | None = None) -> list[Path]:
    """Every audio file below a folder, sorted; links are followed once, hidden files and the folder ``skip`` are left out."""
    found: list[Path] = []
    visited: set[str] = set()
    barred = os.path.realpath(skip) if skip else None
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited or real == barred:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            Path(root, n) for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in AUDIO_SUFFIXES
        ]
    return sorted(found)


def file_id(path: Path, root: Path) -> str:
    """An id from a file's place below ``root``: folders and stem joined by underscores."""
    return safe_name("_".join(path.relative_to(root).with_suffix("").parts))


def candidate(
    split: str,
    path: Path,
    name: str,
    problem: str | None = None,
    *,
    target: Path | None = None,
    snr_db: float | None = None,
    text: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
    **extra: Any,
) -> Candidate:
    """A candidate whose duration and rate are still to be measured; ``extra`` columns that are None are left out."""
    utt = Utterance(
        name,
        str(path),
        0.0,
        0,
        text=text,
        target_filepath=str(target) if target else None,
        speaker_id=speaker,
        language=language,
        snr_db=snr_db,
        extra={k: v for k, v in extra.items() if v is not None},
    )
    return Candidate(split, utt, problem)


def numbered(path: Path) -> str | None:
    """The integer behind ``fileid_`` in a name, without leading zeros; None where there is none."""
    found = FILE_ID.findall(path.stem)
    return str(int(found[-1])) if found else None


def pair_by(
    noisy: Iterable[Path], clean: Iterable[Path], key: Callable[[Path], str | None]
) -> Iterator[tuple[Path | None, Path | None, str | None]]:
    """Match two lists of files by a key.

    Returns:
        (noisy, clean, problem) for every noisy file, then for every clean file that no noisy file asked for; ``problem`` is None
        where the match is unique.
    """
    targets: dict[str, list[Path]] = {}
    for path in clean:
        targets.setdefault(key(path) or f"?{path}", []).append(path)
    used: set[str] = set()
    for path in noisy:
        name = key(path)
        if name is None:
            yield path, None, "no number after fileid_ in the name"
        elif name not in targets:
            yield path, None, "no clean partner"
        elif len(targets[name]) > 1:
            yield path, None, f"{len(targets[name])} clean partners"
            used.add(name)
        else:
            yield path, targets[name][0], None
            used.add(name)
    for name, paths in targets.items():
        if name not in used:
            for path in paths:
                yield None, path, "no noisy partner"


def pair(
    split: str, noisy: Path, clean: Path, key: Callable[[Path], str | None], **columns: Callable[[Path], Any]
) -> Iterator[Candidate]:
    """Candidates of two folders; ``columns`` are functions of the noisy file's path (``snr_db``, ``text``, ``speaker`` or any other)."""
    nested = [
        inner for inner, outer in ((clean, noisy), (noisy, clean)) if outer in inner.parents
    ]  # noisy/clean inside noisy/
    skip = nested[0] if nested else None
    left = audio_files(noisy, skip if skip != noisy else None)
    right = audio_files(clean, skip if skip != clean else None)
    for source, target, problem in pair_by(left, right, key):
        path = source or target
        assert path is not None
        name = file_id(path, noisy if source else clean)
        values = {k: f(path) for k, f in columns.items()} if source and target else {}
        yield candidate(split, path, name, problem, target=target if source else None, **values)
