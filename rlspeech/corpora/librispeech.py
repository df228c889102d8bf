"""LibriSpeech (Panayotov et al.) as unpacked, and corpora in its layout (mini LibriSpeech).

    {dev,test}-{clean,other}  train-{clean-100,clean-360,other-500}/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac
    SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt: "SPEAKER-CHAPTER-NNNN TRANSCRIPT"     SPEAKERS.TXT: "id | sex | subset | minutes | name"

Transcripts come in capitals throughout, without punctuation; they are written in lower case, since a recogniser that is trained on
them should not learn to shout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, Sets, candidate, check_folder
from rlspeech.data.inputs import audio_files, read_texts
from rlspeech.files import read_text
from rlspeech.types import UserError

PREFIXES = ("train-", "dev-", "test-")
SEXES = {"F": "female", "M": "male"}


class LibriSpeech(Layout):
    """``rlspeech prepare librispeech``."""

    name = "librispeech"
    splits: list[str] = conf([], "split to take; may be repeated; none: all that are there")

    def make(self, out: Path) -> Sets:
        """Return a set for each split."""
        return self.vetted(find(self.root or "", self.splits), out, "noisy")


def find(root: str | Path, splits: Sequence[str] = ()) -> Iterator[Candidate]:
    """Candidates in the splits that are there, named as the corpus names them.

    Args:
        root: folder that holds ``dev-clean`` and the like, the one above it (``LibriSpeech``), or one of the splits itself.
        splits: only these; none takes all.

    Raises:
        UserError: none of them is there.
    """
    top = check_folder(root, "the LibriSpeech corpus")
    inner = top / "LibriSpeech"
    top = inner if inner.is_dir() else top
    below = [top] if top.name.startswith(PREFIXES) else sorted(top.iterdir())
    here = [p for p in below if p.is_dir() and p.name.startswith(PREFIXES)]
    wanted = [p for p in here if not splits or p.name in splits]
    missing = sorted(set(splits) - {p.name for p in wanted})
    if missing or not wanted:
        there = ", ".join(p.name for p in here) or "no folder whose name begins with train-, dev- or test-"
        what = f"no {', '.join(missing)} in {root}" if missing else f"no LibriSpeech in {root}"
        try_this = "name the folder that holds dev-clean, test-clean, train-clean-100 ..."
        raise UserError(what, f"there is {there}", try_this)
    sexes = _sexes(wanted[0].parent / "SPEAKERS.TXT")
    for folder in wanted:
        texts: dict[str, str] = {}
        for path in sorted(folder.rglob("*.trans.txt")):
            for name, words in read_texts(path).items():
                texts[name] = words.lower()
        for path in audio_files(folder):
            name, speaker, text = path.stem, path.stem.split("-")[0], texts.get(path.stem)
            columns: dict[str, Any] = {
                "speaker": speaker,
                "language": "en",
                "sex": sexes.get(speaker),
                "chapter": path.parent.name,
            }
            yield candidate(folder.name, path, name, None if text else "no transcript", text=text, **columns)


def _sexes(path: Path) -> dict[str, str]:
    """Speaker -> female or male; empty where the list is not there."""
    if not path.is_file():
        return {}
    lines = read_text(path).splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    return {row[0]: SEXES[row[1]] for row in rows if len(row) > 1 and row[1] in SEXES}
