"""VoiceBank-DEMAND (Valentini-Botinhao et al.), the 28- and the 56-speaker training sets and the test set, as unpacked.

    {clean,noisy}_trainset_{28,56}spk_wav/pNNN_MMM.wav     {clean,noisy}_testset_wav/pNNN_MMM.wav
    trainset_{28,56}spk_txt/pNNN_MMM.txt  testset_txt/     log_trainset_{28,56}spk.txt  log_testset.txt: "pNNN_MMM noise snr"

Two speakers of the 28-speaker set are held back for validation, by the custom of the field p226 and p287.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, Sets, check_folder, pair
from rlspeech.files import read_text
from rlspeech.types import UserError

FOLDER = re.compile(r"(?i)^(clean|noisy)_(train|test)set(?:_(28|56)spk)?_wav")
TEXTS = re.compile(r"(?i)^(train|test)set(?:_(28|56)spk)?_txt")
LOGS = re.compile(r"(?i)^log_?(train|test)set(?:_(28|56)spk)?\.txt$")
VALID_SPEAKERS = ("p226", "p287")


class VoiceBank(Layout):
    """``rlspeech prepare voicebank``."""

    name = "voicebank"
    speakers: Literal["auto", "28", "56", "all"] = conf("auto", "training set; auto: 28 where it is there, else 56")
    valid_speakers: list[str] = conf(list(VALID_SPEAKERS), "speakers held back from training")

    def make(self, out: Path) -> Sets:
        """Return the pairs for training, validation and test."""
        return self.vetted(find(self.root or "", self.speakers, self.valid_speakers), out)


def find(
    root: str | Path, speakers: str = "auto", valid_speakers: Sequence[str] = VALID_SPEAKERS
) -> Iterator[Candidate]:
    """Candidates in the splits ``train``, ``valid`` and ``test``.

    Args:
        root: folder with the unpacked archives, at most two levels down.
        speakers: ``28``, ``56``, ``all``, or ``auto``: 28 where it is there, else 56.
        valid_speakers: training speakers that go to ``valid``.

    Raises:
        UserError: no pair of folders is there.
    """
    top = check_folder(root, "the VoiceBank-DEMAND corpus")
    places = _places(top)
    pairs = sorted({(part, size) for kind, part, size in places if kind in {"clean", "noisy"}})
    whole = [p for p in pairs if ("clean", *p) in places and ("noisy", *p) in places]
    sizes = [size for part, size in whole if part == "train"]
    wanted = {"all": set(sizes), "auto": set(sizes[:1])}.get(speakers, {speakers, ""})  # sorted: "" < "28" < "56"
    whole = [(part, size) for part, size in whole if part == "test" or size in wanted]
    if not whole:
        trainset = "clean_trainset_28spk_wav with noisy_trainset_28spk_wav (or 56spk)"
        why = f"{trainset}, or clean_testset_wav with noisy_testset_wav, are needed"
        try_this = "unpack the archives side by side and name their folder"
        raise UserError(f"no VoiceBank-DEMAND pairs in {root}", why, try_this)
    for part, size in whole:
        yield from _pairs(part, size, places, valid_speakers)


def _places(top: Path) -> dict[tuple[str, str, str], Path]:
    """(clean | noisy | text | log, train | test, 28 | 56 | "") -> path; the deepest of nested folders of one name."""
    found: dict[tuple[str, str, str], Path] = {}
    levels = [top, *sorted(top.iterdir())]
    for path in [top, *levels[1:], *(q for p in levels[1:] if p.is_dir() for q in sorted(p.iterdir()))]:
        if path.is_dir() and (match := FOLDER.match(path.name)):
            found[match[1].lower(), match[2].lower(), match[3] or ""] = path
        elif path.is_dir() and (match := TEXTS.match(path.name)):
            found["text", match[1].lower(), match[2] or ""] = path
        elif path.is_file() and (match := LOGS.match(path.name)):
            found["log", match[1].lower(), match[2] or ""] = path
    return found


def _pairs(
    part: str, size: str, places: dict[tuple[str, str, str], Path], valid_speakers: Sequence[str]
) -> Iterator[Candidate]:
    texts, log = places.get(("text", part, size)), _log(places.get(("log", part, size)))
    found = pair(
        part,
        places["noisy", part, size],
        places["clean", part, size],
        lambda p: p.stem,
        text=lambda p: texts / f"{p.stem}.txt" if texts else None,
        speaker=_speaker,
        language=lambda _: "en",
        snr_db=lambda p: log.get(p.stem, (None, None))[1],
        noise_type=lambda p: log.get(p.stem, (None, None))[0],
    )
    for row in found:
        held_back = part == "train" and _speaker(Path(row.utt.audio_filepath)) in valid_speakers
        yield row._replace(split="valid") if held_back else row


def _speaker(path: Path) -> str:
    return path.stem.split("_")[0]


def _log(path: Path | None) -> dict[str, tuple[str, float]]:
    rows: dict[str, tuple[str, float]] = {}
    for line in read_text(path).splitlines() if path else ():
        parts = line.split()
        try:
            rows[parts[0]] = (parts[1], float(parts[2]))
        except (IndexError, ValueError):
            continue  # a heading or a comment
    return rows
