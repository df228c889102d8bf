"""Corpora as they are unpacked: the DNS challenge, VoiceBank-DEMAND and LibriSpeech.

The Deep Noise Suppression challenge, from the flat layout of 2020 to the trees of 2021 and later:

    datasets/clean/*.wav                     2020: flat              2021+: clean/{read_speech,french_data,...}/**
    datasets/noise/*.wav
    datasets/impulse_responses/{SLR26,SLR28}/**                      2021+
    datasets/test_set/synthetic/{no_reverb,with_reverb}/{clean,noisy}/*fileid_N.wav
    datasets/test_set/real_recordings/*.wav
    datasets_fullband/{clean_fullband,noise_fullband,impulse_responses,dev_testset}                   2022+, 48 kHz
    training/{clean,noisy,noise}/*fileid_N.wav                       as the challenge's own mixing script writes it

VoiceBank-DEMAND (Valentini-Botinhao et al.), the 28- and the 56-speaker training sets and the test set:

    {clean,noisy}_trainset_{28,56}spk_wav/pNNN_MMM.wav     {clean,noisy}_testset_wav/pNNN_MMM.wav
    trainset_{28,56}spk_txt/pNNN_MMM.txt  testset_txt/     log_trainset_{28,56}spk.txt  log_testset.txt: "pNNN_MMM noise snr"

LibriSpeech (Panayotov et al.), and corpora in its layout (mini LibriSpeech):

    {dev,test}-{clean,other}  train-{clean-100,clean-360,other-500}/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac
    SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt: "SPEAKER-CHAPTER-NNNN TRANSCRIPT"     SPEAKERS.TXT: "id | sex | subset | minutes | name"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, candidate, check_folder, file_id, numbered, pair
from rlspeech.data.inputs import audio_files, read_texts
from rlspeech.files import read_text, safe_name
from rlspeech.types import UserError

BASES = ("", "datasets", "datasets_fullband", "training", "training_set", "pdns_training_set/raw")
PARTS = {"clean": ("clean", "clean_fullband"), "noise": ("noise", "noise_fullband"), "rir": ("impulse_responses",)}
TEST_FOLDER = re.compile(r"(?i)test_?set|blind")
# recordings of the target speaker for personalised systems, not material to enhance
ENROLMENT = re.compile(r"(?i)^enrol")
SNR = re.compile(r"_snr(-?\d+(?:\.\d+)?)(?=_|$)")
LEVEL = re.compile(r"_tl(-?\d+(?:\.\d+)?)(?=_|$)")
READER = re.compile(r"_reader_(\d+)")
LANGUAGES = {"french": "fr", "german": "de", "italian": "it", "mandarin": "zh", "russian": "ru", "spanish": "es"}
LANGUAGES["read_speech"] = "en"


class Dns(Layout):
    """``rlspeech prepare dns``."""

    name = "dns"

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates of a checkout or of its ``datasets`` folder: clean speech, noise and rooms, and the challenge's pairs.

        Splits: ``clean``, ``noise``, ``rir``, ``train`` (mixed by the challenge's script), ``test_no_reverb``, ``test_with_reverb``
        and the like, ``real`` (no reference). Pairs are matched on the integer after ``fileid_``; SNR and level are read from the names.
        """
        top = check_folder(self.root, "the DNS corpus")
        empty = True
        for found in _tests(top) if TEST_FOLDER.search(top.name) else _tree(top, out):
            empty = False
            yield found
        if empty:
            why = "none of clean/, noise/, impulse_responses/, test_set/ was found there or below datasets/ and datasets_fullband/"
            try_this = "name the folder that holds datasets/, or use `prepare mix` or `prepare folder`"
            raise UserError(f"no DNS material in {self.root}", why, try_this)


def _tree(top: Path, skip: Path) -> Iterator[Candidate]:
    for base in (top / name for name in BASES if (top / name).is_dir()):
        if (base / "noisy").is_dir() and (base / "clean").is_dir():
            yield from _synthetic("train", base)
        else:
            yield from _material(base, skip)
        for folder in sorted(p for p in base.iterdir() if p.is_dir() and TEST_FOLDER.search(p.name)):
            yield from _tests(folder)


def _material(base: Path, skip: Path) -> Iterator[Candidate]:
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
        name = safe_name("_".join(["test" if folder.name == "test_set" else folder.name, *words]))
        yield from _synthetic(name, place)
    for path in audio_files(folder):
        inner = path.relative_to(folder).parts[:-1]
        if not any(place in path.parents for place in paired) and not any(ENROLMENT.match(part) for part in inner):
            where = path.parent.relative_to(folder.parent).as_posix()
            yield candidate("real", path, file_id(path, folder.parent), subset=where)


def _synthetic(split: str, place: Path) -> Iterator[Candidate]:
    def number(pattern: re.Pattern[str], path: Path) -> float | None:
        found = pattern.search(path.stem)
        return float(found[1]) if found else None

    columns = {"snr_db": partial(number, SNR), "level_dbfs": partial(number, LEVEL)}
    yield from pair(split, place / "noisy", place / "clean", numbered, **columns)


# ----------------------------------------------------------------------------------------------------- VoiceBank-DEMAND

PLACE = re.compile(r"(?i)^(clean|noisy|log)?_?(train|test)set(?:_(28|56)spk)?(_wav|_txt|\.txt$)")
ENDS = {"clean": "_wav", "noisy": "_wav", "text": "_txt", "log": ".txt"}


class VoiceBank(Layout):
    """``rlspeech prepare voicebank``."""

    name = "voicebank"
    speakers: Literal["auto", "28", "56", "all"] = conf("auto", "training set; auto: 28 where it is there, else 56")
    valid_speakers: list[str] = conf(["p226", "p287"], "speakers held back from training")  # the custom of the field

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates in the splits ``train``, ``valid`` and ``test``; the archives lie at most two levels down."""
        places = _places(check_folder(self.root, "the VoiceBank-DEMAND corpus"))
        pairs = sorted({(part, size) for kind, part, size in places if kind in {"clean", "noisy"}})
        whole = [p for p in pairs if ("clean", *p) in places and ("noisy", *p) in places]
        sizes = [size for part, size in whole if part == "train"]
        chosen = {"all": set(sizes), "auto": set(sizes[:1])}  # sorted: "" < "28" < "56"
        wanted = chosen.get(self.speakers, {self.speakers, ""})
        whole = [(part, size) for part, size in whole if part == "test" or size in wanted]
        if not whole:
            trainset = "clean_trainset_28spk_wav with noisy_trainset_28spk_wav (or 56spk)"
            why = f"{trainset}, or clean_testset_wav with noisy_testset_wav, are needed"
            try_this = "unpack the archives side by side and name their folder"
            raise UserError(f"no VoiceBank-DEMAND pairs in {self.root}", why, try_this)
        for part, size in whole:
            for row in _voices(part, size, places):
                held_back = part == "train" and row.utt.speaker_id in self.valid_speakers
                yield row._replace(split="valid") if held_back else row


def _voices(part: str, size: str, places: dict[tuple[str, str, str], Path]) -> Iterator[Candidate]:
    texts, log = places.get(("text", part, size)), _log(places.get(("log", part, size)))
    yield from pair(
        part,
        places["noisy", part, size],
        places["clean", part, size],
        lambda p: p.stem,
        text=lambda p: texts / f"{p.stem}.txt" if texts else None,
        speaker=lambda p: p.stem.split("_")[0],
        language=lambda _: "en",
        snr_db=lambda p: log.get(p.stem, (None, None))[1],
        noise_type=lambda p: log.get(p.stem, (None, None))[0],
    )


def _places(top: Path) -> dict[tuple[str, str, str], Path]:
    """(clean | noisy | text | log, train | test, 28 | 56 | "") -> path; the deepest of nested folders of one name."""
    found: dict[tuple[str, str, str], Path] = {}
    below = sorted(top.iterdir())
    for path in [top, *below, *(q for p in below if p.is_dir() for q in sorted(p.iterdir()))]:
        if match := PLACE.match(path.name):
            kind, part, size, end = (match[i] or "" for i in (1, 2, 3, 4))
            kind = kind.lower() or "text"
            if ENDS[kind] == end.lower() and path.is_file() == (kind == "log"):
                found[kind, part.lower(), size] = path
    return found


def _log(path: Path | None) -> dict[str, tuple[str, float]]:
    rows: dict[str, tuple[str, float]] = {}
    for line in read_text(path).splitlines() if path else ():
        parts = line.split()
        try:
            rows[parts[0]] = (parts[1], float(parts[2]))
        except (IndexError, ValueError):
            continue  # a heading or a comment
    return rows


# ---------------------------------------------------------------------------------------------------------- LibriSpeech

PREFIXES = ("train-", "dev-", "test-")
SEXES = {"F": "female", "M": "male"}


class LibriSpeech(Layout):
    """``rlspeech prepare librispeech``."""

    name = "librispeech"
    judged = "noisy"
    splits: list[str] = conf([], "split to take; may be repeated; none: all that are there")

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates in the corpus' own splits: of ``LibriSpeech`` or the folder above it, or of a split that is named itself.

        Transcripts come in capitals throughout, without punctuation; they are written in lower case, since a recogniser that is
        trained on them should not learn to shout.
        """
        top = check_folder(self.root, "the LibriSpeech corpus")
        inner = top / "LibriSpeech"
        top = inner if inner.is_dir() else top
        below = [top] if top.name.startswith(PREFIXES) else sorted(top.iterdir())
        here = [p for p in below if p.is_dir() and p.name.startswith(PREFIXES)]
        wanted = [p for p in here if not self.splits or p.name in self.splits]
        missing = sorted(set(self.splits) - {p.name for p in wanted})
        if missing or not wanted:
            there = ", ".join(p.name for p in here) or "no folder whose name begins with train-, dev- or test-"
            what = f"no {', '.join(missing)} in {self.root}" if missing else f"no LibriSpeech in {self.root}"
            try_this = "name the folder that holds dev-clean, test-clean, train-clean-100 ..."
            raise UserError(what, f"there is {there}", try_this)
        sexes = _sexes(wanted[0].parent / "SPEAKERS.TXT")
        for folder in wanted:
            lists = sorted(folder.rglob("*.trans.txt"))
            texts = {name: words.lower() for path in lists for name, words in read_texts(path).items()}
            for path in audio_files(folder):
                name, speaker, text = path.stem, path.stem.split("-")[0], texts.get(path.stem)
                problem, chapter = None if text else "no transcript", path.parent.name
                row = candidate(folder.name, path, name, problem, text=text, sex=sexes.get(speaker), chapter=chapter)
                row.utt.speaker_id, row.utt.language = speaker, "en"
                yield row


def _sexes(path: Path) -> dict[str, str]:
    """Speaker -> female or male; empty where the list is not there."""
    if not path.is_file():
        return {}
    lines = read_text(path).splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    return {row[0]: SEXES[row[1]] for row in rows if len(row) > 1 and row[1] in SEXES}
