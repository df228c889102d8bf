"""Make the embedded speech for recognisers (rlspeech/assets/demo_commands): digit strings and commands spoken by flite's voices.

python examples/make_demo_commands.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import soundfile as sf
from asr_material import flite
from asr_texts import KEYWORDS, command, digits, grid

from rlspeech.corpora.tts_texts import with_prompts
from rlspeech.data.manifest import write_manifest
from rlspeech.types import Utterance

RATE = 16000
PARTS = {"train": (["rms", "slt", "kal16"], 120), "valid": (["kal"], 20), "test": (["awb"], 48)}


def main() -> None:
    """Speak and write the three parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "rlspeech" / "assets" / "demo_commands"
    )
    out: Path = parser.parse_args().out
    said: set[str] = set()
    for part, (voices, count) in PARTS.items():
        rng, rows = random.Random(f"demo commands {part}"), []
        (out / part).mkdir(parents=True, exist_ok=True)
        while len(rows) < count:
            kind = rng.choices(["command", "digits", "grid"], [0.6, 0.25, 0.15])[0]
            text = {"command": command, "digits": digits, "grid": grid}[kind](rng)
            if text in said:
                continue
            said.add(text)
            voice, name = voices[len(rows) % len(voices)], f"{part}_{len(rows):03d}"
            path = out / part / f"{name}.ogg"
            stretch, pitch_hz = rng.uniform(0.9, 1.15), rng.uniform(90, 190)
            speech = flite(text, voice, duration_stretch=f"{stretch:.2f}", int_f0_target_mean=f"{pitch_hz:.0f}")
            sf.write(path, speech, RATE, format="OGG", subtype="OPUS")
            keywords = [k for k in KEYWORDS if f" {k} " in f" {text} "]
            rows.append(
                Utterance(
                    name,
                    str(path),
                    sf.info(path).frames / RATE,
                    RATE,
                    text=text,
                    speaker_id=f"flite-{voice}",
                    language="en",
                    extra={"kind": kind, "keywords": keywords},
                )
            )
        write_manifest(out / f"{part}.jsonl", with_prompts(rows, 0.8, 3.0))  # whose voice, for the task tts
        print(part, len(rows), "utterances", round(sum(u.duration for u in rows)), "s")


if __name__ == "__main__":
    main()
