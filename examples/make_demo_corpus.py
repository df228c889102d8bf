"""Build the embedded demo corpus: sentences spoken by free synthesisers, and noise made of numbers.

Needs the programs ``flite`` and ``espeak-ng``. Everything else is seeded: the noise is the same on every machine, the speech as far
as the synthesisers' versions are. Voices and texts of the three splits (train, valid, test) do not overlap.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
from demo_noise import KINDS, make_noise

from rlspeech.corpora.demo import TRAIN
from rlspeech.data.audio import resample, rms_dbfs, save_audio, to_level
from rlspeech.data.manifest import write_manifest
from rlspeech.data.mixing import write_recipe
from rlspeech.types import Utterance

RATE_HZ = 16000
SPEECH_DBFS, NOISE_DBFS = -25.0, -32.0  # noise is levelled again when it is mixed; quiet noise makes small files
VOICES = {  # speaker -> (program, voice, playback speed: other than 1 shifts pitch and formants together, as another vocal tract would)
    "train": {
        "rms": ("flite", "rms", 1.0),
        "slt": ("flite", "slt", 1.0),
        "rms-long": ("flite", "rms", 0.93),
        "slt-short": ("flite", "slt", 1.07),
        "us-m3": ("espeak-ng", "en-us+m3", 1.0),
        "gb-f2": ("espeak-ng", "en-gb+f2", 1.0),
        "scot-m4": ("espeak-ng", "en-gb-scotland+m4", 1.0),
    },
    "valid": {"kal": ("flite", "kal16", 1.0), "nyc-f1": ("espeak-ng", "en-us-nyc+f1", 1.0)},
    "test": {"awb": ("flite", "awb", 1.0), "rp-f4": ("espeak-ng", "en-gb-x-rp+f4", 1.0)},
}
SHARE = {"rms": 3, "slt": 3, "rms-long": 2, "slt-short": 2, "kal": 2, "awb": 2}  # turns in the round; 1 unless named


def speak(program: str, voice: str, text: str, folder: Path) -> tuple[np.ndarray, int]:
    """Synthesise one sentence; the waveform and its rate."""
    wav = folder / "speech.wav"
    if program == "flite":
        command = [program, "-voice", voice, "-t", text, "-o", str(wav)]
    else:
        command = [program, "-v", voice, "-s", "150", "-w", str(wav), text]
    subprocess.run(command, check=True, capture_output=True)
    return sf.read(wav, dtype="float32")


def trim(wav: np.ndarray, below_peak_db: float = 45.0, keep_s: float = 0.08) -> np.ndarray:
    """Cut silence at both ends of (T,), except for ``keep_s``."""
    frame = RATE_HZ // 100
    level = np.array([rms_dbfs(wav[i : i + frame]) for i in range(0, len(wav) - frame, frame)])
    loud = np.flatnonzero(level > level.max() - below_peak_db)
    keep = int(keep_s * RATE_HZ)
    return wav[max(0, loud[0] * frame - keep) : (loud[-1] + 1) * frame + keep]


def make_speech(out: Path, sentences: dict[str, list[str]]) -> dict[str, list[Utterance]]:
    """Speak every sentence once, voices in turn."""
    rows: dict[str, list[Utterance]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for split, voices in VOICES.items():
            turns = [name for turn in range(3) for name in voices if turn < SHARE.get(name, 1)]
            rows[split] = []
            for i, text in enumerate(sentences[split]):
                speaker = turns[i % len(turns)]
                program, voice, speed = voices[speaker]
                raw, rate = speak(program, voice, text, Path(scratch))
                wav = to_level(trim(resample(raw, round(rate * speed), RATE_HZ)), SPEECH_DBFS)
                name = f"{split}_{i:02d}_{speaker}"
                save_audio(out / "clean" / f"{name}.flac", wav, RATE_HZ)
                rows[split].append(
                    Utterance(
                        name,
                        str(out / "clean" / f"{name}.flac"),
                        len(wav) / RATE_HZ,
                        RATE_HZ,
                        text=text,
                        speaker_id=speaker,
                        language="en",
                        extra={"synthesiser": program},
                    )
                )
    return rows


def make_noises(out: Path) -> dict[str, list[Utterance]]:
    """Write every kind of noise of both splits."""
    rows: dict[str, list[Utterance]] = {}
    for split, kinds in KINDS.items():
        rows[split] = []
        for i, kind in enumerate(kinds):
            seconds = 4.0 + (i % 3) * 0.75
            wav = to_level(make_noise(kind, seconds, RATE_HZ, seed=1000 * (split == "test") + i), NOISE_DBFS)
            name = f"{split}_{i:02d}_{kind}"
            save_audio(out / "noise" / f"{name}.flac", wav, RATE_HZ)
            rows[split].append(
                Utterance(name, str(out / "noise" / f"{name}.flac"), len(wav) / RATE_HZ, RATE_HZ, extra={"kind": kind})
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, default=Path(__file__).with_name("demo-sentences.tsv"))
    args = parser.parse_args()
    missing = [p for p in ("flite", "espeak-ng") if not shutil.which(p)]
    if missing:
        sys.exit(f"missing programs: {', '.join(missing)} (on Debian: apt-get install flite espeak-ng)")
    for name in ("clean", "noise"):
        shutil.rmtree(args.out / name, ignore_errors=True)
    sentences: dict[str, list[str]] = {}
    for line in args.sentences.read_text(encoding="utf-8").splitlines():
        split, text = line.split("\t")
        sentences.setdefault(split, []).append(text)
    speech, noise = make_speech(args.out, sentences), make_noises(args.out)
    for name, rows in (
        ("clean", speech["train"]),
        ("valid_clean", speech["valid"]),
        ("test_clean", speech["test"]),
        ("noise", noise["train"]),
        ("test_noise", noise["test"]),
    ):
        write_manifest(args.out / f"{name}.jsonl", rows)
        print(f"{name:12s} {len(rows):3d} files, {sum(u.duration for u in rows):6.1f} s")
    write_recipe(args.out, TRAIN, rir=False)


if __name__ == "__main__":
    main()
