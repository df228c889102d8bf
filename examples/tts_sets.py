"""Sets for the embedded synthesiser: a closed domain of digit strings, orders to devices and short sentences.

    python examples/tts_sets.py --material runs/asr/material --out runs/tts/sets      (needs the program flite)

train   sentences of the domain by two of flite's voices at their own pace: what is said when; whose voice it is comes from the prompt
rl      further texts, nothing has been trained on them, with recordings, so that supervised training on the same rows is a fair control
reward  what the token-to-text reward learns from: train, and real speakers' digits and flite's four voices at many paces
valid   texts held back, voices that the codec was trained on; a few rows, for the course of a run
test    texts that are in no other set; ``condition``: voices that the codec was trained on, and voices that it was not (flite's awb)

``asr_material.py`` makes the material. Rows get a prompt afterwards, where a voice is asked for: ``rlspeech prepare tts SET.jsonl``.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from asr_material import flite, row_of
from asr_texts import draw

from rlspeech.corpora.demo import demo_commands_clean
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.types import Utterance

KINDS = ("digits", "grid", "command", "plain")
VOICES = ("slt", "rms")
LONGEST_S = 7.0


def domain(path: Path) -> list[Utterance]:
    """Rows of the domain: digits of real speakers, sentences of flite."""
    return [
        u
        for u in read_manifest(path)
        if u.extra.get("corpus") in ("flite", "digits") and u.extra.get("kind") in KINDS and u.duration <= LONGEST_S
    ]


def some(rows: list[Utterance], each: int, condition: str, without: set[str], rng: random.Random) -> list[Utterance]:
    """Up to ``each`` rows of every kind whose text is new, spoken by flite: a listener trained on clean English hears those well."""
    groups = defaultdict(list)
    for row in rows:
        if row.text not in without and row.extra["corpus"] == "flite":
            groups[row.extra["kind"]].append(row)
    picked = [u for _, group in sorted(groups.items()) for u in rng.sample(group, min(each, len(group)))]
    return [replace(u, extra={**u.extra, "condition": condition}) for u in picked]


def sentences(
    out: Path, name: str, count: int, without: set[str], rng: random.Random
) -> list[tuple[Path, str, str, str]]:
    """Files, texts, kinds and voices of sentences of the domain that are in none of ``without``."""
    drawn: list[tuple[Path, str, str, str]] = []
    while len(drawn) < count:
        kind, text = draw(rng)
        if text not in without:
            voice = rng.choice(VOICES)
            drawn.append((out / "spoken" / f"{name}_{len(drawn):05d}_{voice}.flac", text, kind, voice))
    return drawn


def spoken(drawn: list[tuple[Path, str, str, str]], jobs: int) -> list[Utterance]:
    """The sentences, spoken at the voice's own pace and pitch."""
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(speak, drawn, chunksize=50))


def speak(what: tuple[Path, str, str, str]) -> Utterance:
    """One of them."""
    path, text, kind, voice = what
    return row_of(path, flite(text, voice), text, kind, voice)


def main() -> None:
    """Write the five sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=48000, help="sentences that rl leaves out")
    parser.add_argument("--say", type=int, help="speak only so many of them (default: all)")
    parser.add_argument("--rl", type=int, default=640)
    parser.add_argument("--jobs", type=int, default=2, help="processes that speak")
    parser.add_argument("--each", type=int, default=12, help="test rows of every kind and condition")
    args = parser.parse_args()
    out, rng = args.out.resolve(), random.Random(5)
    known = {part: domain(args.material / f"{part}.jsonl") for part in ("train", "valid", "test")}
    heard = {str(u.text) for u in known["train"]}  # by the reward: what it has read before is no test
    valid = some(known["valid"], max(1, args.each // 2), "known voice", heard, rng)
    used = heard | {str(u.text) for u in valid}
    test = some(known["valid"], args.each, "known voice", used, rng) + some(
        known["test"], args.each, "new voice", used, rng
    )
    kept = {str(u.text) for u in [*valid, *test]}
    for part in ("train", "valid", "test"):  # the demo's texts are for the demo
        kept |= {str(u.text) for u in read_manifest(demo_commands_clean(part))}
    texts = sentences(out, "train", args.train, kept, random.Random(123))
    new = sentences(out, "rl", args.rl, kept | {text for _, text, _, _ in texts}, random.Random(99))
    train, rl = spoken(texts[: args.say], args.jobs), spoken(new, args.jobs)
    reward = [u for u in known["train"] if u.text not in kept] + train
    for name, rows in {"train": train, "rl": rl, "reward": reward, "valid": valid, "test": test}.items():
        write_manifest(out / f"{name}.jsonl", rows)
        print(name, len(rows), "utterances", round(sum(u.duration for u in rows) / 60, 1), "minutes")


if __name__ == "__main__":
    main()
