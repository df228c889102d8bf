"""Rows for whisper-real.sh out of a corpus' manifest, and plain ``transformers.generate`` on a checkpoint that it tuned.

python examples/whisper_real.py rows DATA --part test --out runs/whisper/test.jsonl --count 50
python examples/whisper_real.py generate runs/whisper/grpo-0/checkpoints/latest runs/whisper/test/all --out plain.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

TRAIN, TEST = ("speechocean762", "Common Voice", "LJ Speech", "VCTK"), ("LibriSpeech test-other", "speechocean762")
LONGEST_S, SHORTEST_S = 12.0, 1.5


def rows(data: Path, part: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Up to ``count`` recordings of every corpus; one speaker in four of a corpus that is in both parts is kept for the test."""
    found = defaultdict(list)
    for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        corpus, held = row.get("corpus", ""), zlib.crc32(str(row.get("speaker")).encode()) % 4 == 0
        both = corpus in TRAIN and corpus in TEST
        wanted = (held == (part == "test")) if both else corpus in (TEST if part == "test" else TRAIN)
        if wanted and corpus in TRAIN + TEST and row.get("text") and SHORTEST_S < row["duration"] < LONGEST_S:
            audio = {"id": row["id"], "audio_filepath": str((data / row["audio"]).resolve())}
            facts = {"duration": row["duration"], "text": row["text"], "speaker_id": row["speaker"], "corpus": corpus}
            found[corpus].append(audio | facts)
    rng = random.Random(seed)
    return [r for corpus in sorted(found) for r in rng.sample(found[corpus], min(count, len(found[corpus])))]


def generate(checkpoint: Path, manifest: Path, batch: int = 8) -> list[dict[str, Any]]:
    """What someone gets who loads a checkpoint in transformers and calls ``generate`` without an option."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from rlspeech.data.audio import load_audio
    from rlspeech.data.manifest import find_manifest, read_manifest

    processor = WhisperProcessor.from_pretrained(checkpoint)
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    utts, made = read_manifest(find_manifest(manifest)), []
    for at in range(0, len(utts), batch):
        part = utts[at : at + batch]
        wavs = [load_audio(u.audio_filepath, 16000, u.offset, u.duration) for u in part]
        features = processor(wavs, sampling_rate=16000, return_tensors="pt").input_features
        with torch.no_grad():
            texts = processor.batch_decode(model.generate(features), skip_special_tokens=True)
        made += [{"id": u.id, "hypothesis": text} for u, text in zip(part, texts, strict=True)]
    return made


def main() -> None:
    """Write what is asked for as JSONL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rows", "generate"])
    parser.add_argument("source", type=Path, help="folder with manifest.jsonl, or a checkpoint")
    parser.add_argument("others", type=Path, nargs="*", metavar="MANIFEST")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=["train", "test"], default="train")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "rows":
        made = rows(args.source, args.part, args.count, args.seed)
    else:
        made = generate(args.source, args.others[0])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made), encoding="utf-8")


if __name__ == "__main__":
    main()
