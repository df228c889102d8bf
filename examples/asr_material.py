"""Material for the embedded recogniser: transcribed recordings sorted by speaker, digits strung together, sentences spoken by flite.

    python examples/asr_material.py --data FOLDER --out runs/asr/material [--spoken 6000 --strings 3000]

``--data`` holds ``manifest.jsonl`` and ``manifest_digits.jsonl`` (one row a clip: audio, text, speaker, corpus). Needs the program flite.
Held out, by voice: one speaker of the digits, every fifth speaker of read sentences, two speakers of GRID, flite's voice awb.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from asr_texts import KEYWORDS, WAKE, draw

from rlspeech.data.audio import load_audio, resample, save_audio, to_level
from rlspeech.data.manifest import write_manifest
from rlspeech.types import Utterance

RATE = 16000
VOICES = {"train": ["rms", "slt", "kal16", "kal"], "test": ["awb"]}
TEST_SPEAKERS = {"fsdd_jackson", "grid_a", "grid_b"}
VALID_SPEAKERS = {"fsdd_george"}  # only their last takes; the rest is trained on
READ = {
    "speechocean762",
    "Common Voice",
    "LibriSpeech test-other",
    "LJ Speech",
    "VCTK",
    "CMU ARCTIC",
    "LibriVox",
    "pocketsphinx test data",
}
ALONE = {"Picovoice wake-word benchmark", "Mycroft Precise Community Data"}


def plain_text(text: str) -> str:
    """Lower case words; what the corpora write as marks is not spoken."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("\u2019", "'").replace("-", " ")).split())


def part_of(speaker: str | None) -> str:
    """train, valid or test, by speaker."""
    if speaker is None:
        return "train"
    if speaker in TEST_SPEAKERS:
        return "test"
    turn = zlib.crc32(speaker.encode()) % 10
    return "test" if turn < 2 else "valid" if turn == 2 else "train"


def recordings(data: Path) -> dict[str, list[Utterance]]:
    """Every transcribed recording, by part."""
    parts: dict[str, list[Utterance]] = defaultdict(list)
    for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        text, corpus = plain_text(row.get("text") or ""), row["corpus"]
        kind = "grid" if corpus == "GRID" else "wake" if corpus in ALONE else "read" if corpus in READ else None
        if not text or kind is None or row["duration"] > 16 or re.search(r"\d", row["text"]):
            continue
        speaker = row.get("speaker")
        part = part_of(speaker) if kind != "grid" or speaker in TEST_SPEAKERS else "train"
        parts[part].append(
            Utterance(
                row["id"],
                str(data / row["audio"]),
                row["duration"],
                RATE,
                text=text,
                speaker_id=speaker,
                language="en",
                extra={"kind": kind, "corpus": corpus},
            )
        )
    return parts


def strings(data: Path, out: Path, count: int, part: str, rng: random.Random, most: int = 9) -> list[Utterance]:
    """Digits of one speaker strung together, with pauses and levels as they come."""
    takes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (data / "manifest_digits.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        mine = (
            "test"
            if row["speaker"] in TEST_SPEAKERS
            else "valid"
            if row["speaker"] in VALID_SPEAKERS and row["take"] >= 25
            else "train"
        )
        if mine == part:
            takes[row["speaker"]].append(row)
    loaded: dict[str, np.ndarray] = {}
    made = []
    for i in range(count):
        speaker = rng.choice(sorted(takes))
        picked = [rng.choice(takes[speaker]) for _ in range(rng.randint(1, most))]
        pieces = [np.zeros(int(rng.uniform(0.02, 0.3) * RATE), np.float32)]
        for row in picked:
            if row["id"] not in loaded:
                loaded[row["id"]] = load_audio(data / row["audio"], RATE)
            pieces += [to_level(loaded[row["id"]], -25.0), np.zeros(int(rng.uniform(0.0, 0.25) * RATE), np.float32)]
        wav, name = np.concatenate(pieces), f"string_{part}_{i:05d}"
        save_audio(out / "strings" / f"{name}.flac", wav, RATE)
        made.append(
            Utterance(
                name,
                str(out / "strings" / f"{name}.flac"),
                len(wav) / RATE,
                RATE,
                text=" ".join(r["text"] for r in picked),
                speaker_id=speaker,
                language="en",
                extra={"kind": "digits", "corpus": "digits"},
            )
        )
    return made


def flite(text: str, voice: str, **settings: str) -> np.ndarray:
    """A text (samples,) at 16 kHz and -25 dBFS, spoken by one of flite's voices; settings are flite's own features."""
    with tempfile.TemporaryDirectory() as scratch:
        wav = Path(scratch) / "speech.wav"
        options = [x for name, value in settings.items() for x in ("--setf", f"{name}={value}")]
        subprocess.run(
            ["flite", "-voice", voice, "-t", text, "-o", str(wav), *options], check=True, capture_output=True
        )
        raw, rate = sf.read(wav, dtype="float32")
    return to_level(resample(raw, rate, RATE), -25.0)


def spoken(out: Path, count: int, part: str, rng: random.Random, read: list[str]) -> list[Utterance]:
    """Sentences of the grammar, device names, and texts of the training recordings, spoken by flite's voices of this part."""
    made = []
    for i in range(count):
        kind, text = draw(rng)
        chance = rng.random()
        if read and chance < 0.15:
            kind, text = "read", rng.choice(read)
        elif chance < 0.2:
            kind, text = "wake", rng.choice(WAKE)
        voice, stretch = rng.choice(VOICES.get(part, VOICES["train"])), rng.uniform(0.8, 1.25)
        wav = flite(text, voice, duration_stretch=f"{stretch:.2f}", int_f0_target_mean=f"{rng.uniform(85, 210):.0f}")
        made.append(row_of(out / "flite" / f"flite_{part}_{i:05d}_{voice}.flac", wav, text, kind, voice))
    return made


def row_of(path: Path, wav: np.ndarray, text: str, kind: str, voice: str) -> Utterance:
    """A sentence that flite has spoken, written to its file."""
    save_audio(path, wav, RATE)
    return Utterance(
        path.stem,
        str(path),
        len(wav) / RATE,
        RATE,
        text=text,
        speaker_id=f"flite-{voice}",
        language="en",
        extra={"kind": kind, "corpus": "flite"},
    )


def with_keywords(utts: list[Utterance]) -> list[Utterance]:
    """Name the keywords of every row."""
    for utt in utts:
        words = f" {utt.text} "
        utt.extra["keywords"] = [k for k in KEYWORDS if f" {k} " in words]
    return utts


def main() -> None:
    """Write train, valid and test manifests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spoken", type=int, default=6000)
    parser.add_argument("--strings", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data, out = args.data.resolve(), args.out.resolve()
    parts = recordings(data)
    read = [u.text or "" for u in parts["train"] if u.extra["kind"] == "read" and u.duration < 8]
    for part, share in (("train", 1.0), ("valid", 0.03), ("test", 0.05)):
        rng = random.Random(f"{args.seed} {part}")
        parts[part] += strings(data, out, round(args.strings * share) + 1, part, rng)
        parts[part] += spoken(out, round(args.spoken * share) + 1, part, rng, read if part == "train" else [])
        write_manifest(out / f"{part}.jsonl", with_keywords(parts[part]))
        print(part, len(parts[part]), "utterances", round(sum(u.duration for u in parts[part]) / 60, 1), "minutes")


if __name__ == "__main__":
    main()
