"""Sets for the experiment of asr-real.sh out of manifests: ``pick`` a number of rows of every kind, string rows together to ``long`` ones.

python examples/asr_sets.py pick runs/asr/material/test.jsonl --out runs/picked/test.jsonl --most 40 [--real 60]
python examples/asr_sets.py long noisy/manifest.jsonl --out long --count 40 --seed 3
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

from rlspeech.corpora.join import write_joined
from rlspeech.data.manifest import find_manifest, read_manifest, write_manifest
from rlspeech.data.mixing import mixture_rng
from rlspeech.types import Utterance

RATE = 16000


def pick(utts: list[Utterance], most: int, real: int, seed: int, without: list[str]) -> list[Utterance]:
    """Up to ``real`` recordings and ``most`` synthesised utterances of every kind but those in ``without``, shorter than 12 s."""
    rng, kinds = random.Random(seed), defaultdict(list)
    for utt in utts:
        if utt.duration < 12 and utt.extra.get("kind") not in without:
            kinds[utt.extra.get("kind"), utt.extra.get("corpus") == "flite"].append(utt)
    return [
        u
        for (_, made), rows in sorted(kinds.items(), key=str)
        for u in rng.sample(rows, min(len(rows), most if made else real))
    ]


def long(utts: list[Utterance], out: Path, count: int, seed: int, low: int = 3, high: int = 6) -> list[Utterance]:
    """Rows of three to six utterances of one speaker; every other one says the same again and again."""
    made = []
    for n in range(count):
        rng = mixture_rng(seed, n, "long")
        first = utts[int(rng.integers(len(utts)))]
        times = int(rng.integers(low, high + 1))
        others = [u for u in utts if u.speaker_id == first.speaker_id and u.id != first.id and u.duration < 5]
        parts = [first, *(others[i] for i in rng.permutation(len(others))[: times - 1])]
        parts = [first] * times if n % 2 == 0 or len(others) < times else parts
        while len(parts) > 2 and sum(p.duration + 0.5 for p in parts) > 19:
            parts = parts[:-1]
        keywords = list(dict.fromkeys(k for u in parts for k in u.extra.get("keywords", ())))
        made.append(
            write_joined(
                parts,
                out / "audio" / f"long_{seed}_{n:03d}.flac",
                gap_s=(0.1, 0.5),
                sample_rate=RATE,
                rng=rng,
                extra={"condition": "long", "kind": "long", "keywords": keywords},
            )
        )
    return made


def main() -> None:
    """Write the set that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["pick", "long"])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--real", type=int, default=60)
    parser.add_argument("--without", action="append", default=[], help="a kind to leave out")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    utts, out = read_manifest(find_manifest(args.manifest)), args.out.resolve()
    if args.what == "pick":
        rows, path = pick(utts, args.most, args.real, args.seed, args.without), out
    else:
        rows, path = (
            long([u for u in utts if u.text and u.duration < 7], out, args.count, args.seed),
            out / "manifest.jsonl",
        )
    write_manifest(path, rows)
    minutes, words = sum(u.duration for u in rows) / 60, sum(len((u.text or "").split()) for u in rows)
    print(f"{args.what}: {len(rows)} rows, {minutes:.1f} minutes, {words} words")


if __name__ == "__main__":
    main()
