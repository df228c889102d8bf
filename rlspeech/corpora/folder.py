"""Any folder of audio, any manifest, and two folders whose files belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlspeech.corpora.base import Candidate, audio_files, candidate, check_folder, file_id, numbered, pair
from rlspeech.data.manifest import read_manifest
from rlspeech.types import UserError

__all__ = ["find", "find_pairs"]


def find(source: str | Path, split: str = "manifest", skip: Path | None = None) -> Iterator[Candidate]:
    """Candidates of a folder (all audio below it; ``x.txt`` beside ``x.wav`` is its text) or of a manifest.

    Args:
        source: folder or ``.jsonl`` file.
        split: name of the manifest that they go to.
        skip: folder that is left out (the output, where it lies inside the source).

    Raises:
        UserError: neither folder nor manifest, or no audio in it.
    """
    if Path(source).is_file():
        yield from (Candidate(split, utt) for utt in read_manifest(source))
        return
    folder = check_folder(source, "the source")
    paths = audio_files(folder, skip)
    if not paths:
        raise UserError(
            f"no audio in {source}", "no file with a known suffix (.wav .flac .ogg .mp3 ...) below it", "check the path"
        )
    for path in paths:
        words = path.with_suffix(".txt")
        text = words.read_text(encoding="utf-8", errors="replace").strip() or None if words.is_file() else None
        yield candidate(split, path, file_id(path, folder), text=text)


def find_pairs(noisy: str | Path, clean: str | Path, split: str = "manifest") -> Iterator[Candidate]:
    """Candidates of two folders: matched by place and stem, else by stem alone, else by the integer after ``fileid_``.

    Raises:
        UserError: no two files match.
    """
    left, right = check_folder(noisy, "the noisy folder"), check_folder(clean, "the clean folder")

    def place(path: Path) -> str:
        top = max((p for p in (left, right) if p in path.parents), key=lambda p: len(p.parts))
        return path.relative_to(top).with_suffix("").as_posix()

    for key in (place, lambda p: p.stem, numbered):
        rows = list(pair(split, left, right, key))
        if any(row.problem is None for row in rows):
            yield from rows
            return
    raise UserError(
        f"nothing in {noisy} matches {clean}",
        "files are matched by name without suffix, or by the number after fileid_",
        "give both files of a pair the same name",
    )
