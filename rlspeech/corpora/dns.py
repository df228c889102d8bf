"""The Deep Noise Suppression challenge, from the flat layout of 2020 to the trees of 2021 and later.

    datasets/clean/*.wav                     2020: flat              2021+: clean/{read_speech,french_data,...}/**
    datasets/noise/*.wav
    datasets/impulse_responses/{SLR26,SLR28}/**                      2021+
    datasets/test_set/synthetic/{no_reverb,with_reverb}/{clean,noisy}/*fileid_N.wav
    datasets/test_set/real_recordings/*.wav
    datasets_fullband/{clean_fullband,noise_fullband,impulse_responses,dev_testset}                   2022+, 48 kHz
    training/{clean,noisy,noise}/*fileid_N.wav                       as the challenge's own mixing script writes it

Synthetic pairs are matched on the integer after ``fileid_``; SNR and level are read from the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rlspeech.corpora.base import Candidate, Layout, Sets, candidate, check_folder, file_id, numbered, pair
from rlspeech.data.inputs import audio_files
from rlspeech.files import safe_name
from rlspeech.types import UserError

BASES = ("", "datasets", "datasets_fullband", "training", "training_set", "pdns_training_set/raw")
PARTS = {"clean": ("clean", "clean_fullband"), "noise": ("noise", "noise_fullband"), "rir": ("impulse_responses",)}
TEST_FOLDER = re.compile(r"(?i)test_?set|blind")
# recordings of the target speaker for personalised systems, not material to enhance
ENROLMENT = re.compile(r"(?i)^enrol")
SNR = re.compile(r"_snr(-?\d+(?:\.\d+)?)(?=_|$)")
LEVEL = re.compile(r"_tl(-?\d+(?:\.\d+)?)(?=_|$)")
READER = re.compile(r"_reader_(\d+)")
LANGUAGES = {
    "french": "fr",
    "german": "de",
    "italian": "it",
    "mandarin": "zh",
    "russian": "ru",
    "spanish": "es",
    "read_speech": "en",
}


class Dns(Layout):
    """``rlspeech prepare dns``."""

    name = "dns"

    def make(self, out: Path) -> Sets:
        """Return clean speech, noise and rooms with a recipe, and the challenge's pairs."""
        return self.vetted(find(self.root or "", out), out)


def find(root: str | Path, skip: Path | None = None) -> Iterator[Candidate]:
    """Candidates of a checkout or of its ``datasets`` folder.

    Splits: ``clean``, ``noise``, ``rir``, ``train`` (mixed by the challenge's script), ``test_no_reverb``, ``test_with_reverb``
    and the like, ``real`` (no reference).

    Raises:
        UserError: none of the layouts is there.
    """
    top = check_folder(root, "the DNS corpus")
    empty = True
    for found in _tests(top) if TEST_FOLDER.search(top.name) else _tree(top, skip):
        empty = False
        yield found
    if empty:
        why = "none of clean/, noise/, impulse_responses/, test_set/ was found there or below datasets/ and datasets_fullband/"
        try_this = "name the folder that holds datasets/, or use `prepare mix` or `prepare folder`"
        raise UserError(f"no DNS material in {root}", why, try_this)


def _tree(top: Path, skip: Path | None) -> Iterator[Candidate]:
    for base in (top / name for name in BASES if (top / name).is_dir()):
        if (base / "noisy").is_dir() and (base / "clean").is_dir():
            yield from _pairs("train", base)
        else:
            yield from _material(base, skip)
        for folder in sorted(p for p in base.iterdir() if p.is_dir() and TEST_FOLDER.search(p.name)):
            yield from _tests(folder)


def _material(base: Path, skip: Path | None) -> Iterator[Candidate]:
    for split, names in PARTS.items():
        for folder in (base / name for name in names):
            if not folder.is_dir():
                continue
            for path in audio_files(folder, skip):
                inside = path.relative_to(folder).parts
                subset = inside[0] if len(inside) > 1 else None
                reader = READER.search(path.stem)
                language = next((code for word, code in LANGUAGES.items() if subset and word in subset.lower()), None)
                row = candidate(split, path, file_id(path, folder), subset=subset)
                if split == "clean":
                    row.utt.speaker_id, row.utt.language = reader[1] if reader else None, language
                yield row


def _tests(folder: Path) -> Iterator[Candidate]:
    paired = sorted(p for p in [folder, *folder.rglob("*")] if (p / "clean").is_dir() and (p / "noisy").is_dir())
    for place in paired:
        words = [part for part in place.relative_to(folder).parts if part != "synthetic"]
        yield from _pairs(safe_name("_".join(["test" if folder.name == "test_set" else folder.name, *words])), place)
    for path in audio_files(folder):
        inner = path.relative_to(folder).parts[:-1]
        if not any(place in path.parents for place in paired) and not any(ENROLMENT.match(part) for part in inner):
            where = path.parent.relative_to(folder.parent).as_posix()
            yield candidate("real", path, file_id(path, folder.parent), subset=where)


def _pairs(split: str, place: Path) -> Iterator[Candidate]:
    def number(pattern: re.Pattern[str], path: Path) -> float | None:
        found = pattern.search(path.stem)
        return float(found[1]) if found else None

    columns = {"snr_db": partial(number, SNR), "level_dbfs": partial(number, LEVEL)}
    yield from pair(split, place / "noisy", place / "clean", numbered, **columns)
