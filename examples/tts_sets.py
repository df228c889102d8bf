"""Sets for the embedded synthesiser out of what ``asr_material.py`` wrote: a closed domain of digit strings, commands and short sentences.

    python examples/tts_sets.py --data FOLDER --material runs/asr/material --out runs/tts/sets

train   recordings of digits strung together, and flite's sentences in four voices (nothing else: read speech has too many words)
rl      further texts, nobody has trained on them, with recordings, so that supervised training on the same rows is a fair control
valid   known voices, texts held back; a few rows, for the course of a run
test    texts that are in no other set; ``condition``: voices that were trained on, and voices that were not (flite's awb, one real speaker)

Every row has a prompt afterwards: ``rlspeech prepare tts SET.jsonl``.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from asr_material import spoken, strings

from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.types import Utterance

KINDS = ("digits", "grid", "command", "plain")
LONGEST_S = 7.0


def domain(path: Path) -> list[Utterance]:
    """Rows of the domain: digits of real speakers, sentences of flite."""
    return [u for u in read_manifest(path) if u.extra.get("corpus") in ("flite", "digits") and u.extra.get("kind") in KINDS
            and u.duration <= LONGEST_S]


def some(rows: list[Utterance], each: int, condition: str, without: set[str], rng: random.Random) -> list[Utterance]:
    """Up to ``each`` rows of every kind and source whose text is new."""
    groups = defaultdict(list)
    for row in rows:
        if row.text not in without:
            groups[row.extra["kind"], row.extra["corpus"]].append(row)
    picked = [u for _, group in sorted(groups.items()) for u in rng.sample(group, min(each, len(group)))]
    return [replace(u, extra={**u.extra, "condition": condition}) for u in picked]


def main() -> None:
    """Write the four sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rl", type=int, default=600, help="sentences for rl; a quarter as many digit strings beside them")
    parser.add_argument("--each", type=int, default=12, help="test rows of every kind and condition")
    args = parser.parse_args()
    out, rng = args.out.resolve(), random.Random(5)
    sets = {part: domain(args.material / f"{part}.jsonl") for part in ("train", "valid", "test")}
    fresh = spoken(out, args.rl, "rl", random.Random("rl texts"), []) + strings(args.data.resolve(), out, args.rl // 4, "train", random.Random(99))
    used = {str(u.text) for u in [*sets["train"], *fresh]}
    valid = some(sets["valid"], max(2, args.each // 2), "known voice", used, rng)
    used |= {str(u.text) for u in valid}
    test = some(sets["valid"], args.each, "known voice", used, rng) + some(sets["test"], args.each, "new voice", used, rng)
    rl = [u for u in fresh if u.extra["kind"] in KINDS and u.duration <= LONGEST_S]
    for name, rows in {"train": sets["train"], "rl": rl, "valid": valid, "test": test}.items():
        write_manifest(out / f"{name}.jsonl", rows)
        print(name, len(rows), "utterances", round(sum(u.duration for u in rows) / 60, 1), "minutes")


if __name__ == "__main__":
    main()
