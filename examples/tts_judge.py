"""A listener for the closed domain of the embedded synthesiser that no reward has ever used: pocketsphinx's acoustic model with a bigram
language model of the domain's texts (``asr_texts.py``).

    rlspeech eval --task tts --recogniser tts_judge:listen ...      (with examples/ on PYTHONPATH; needs pip install pocketsphinx)
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from asr_texts import WAKE, draw

from rlspeech.data.audio import resample, to_level

RATE = 16000
TEXTS = 20_000
KEEP = 0.9  # of a bigram's probability mass; the rest backs off to single words, so that nothing in the vocabulary is impossible


def arpa(texts: Sequence[str]) -> str:
    """A bigram language model with absolute back-off, as an ARPA file."""
    words, pairs, starts = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    for text in texts:
        line = ["<s>", *text.split(), "</s>"]
        words.update(line[1:])
        pairs.update(zip(line, line[1:], strict=False))
        starts.update(line[:-1])
    total = sum(words.values())
    back = math.log10(1 - KEEP)
    lines = ["\\data\\", f"ngram 1={len(words) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:", f"-99 <s> {back:.4f}"]
    lines += [f"{math.log10(n / total):.4f} {w} {back:.4f}" for w, n in sorted(words.items())]
    lines += ["", "\\2-grams:"]
    lines += [f"{math.log10(KEEP * n / starts[a]):.4f} {a} {b}" for (a, b), n in sorted(pairs.items())]
    lines += ["", "\\end\\", ""]
    return "\n".join(lines)


@lru_cache(1)
def decoder() -> Any:
    """Pocketsphinx with the domain's language model."""
    from pocketsphinx import Decoder

    rng = random.Random(7)
    texts = [draw(rng)[1] for _ in range(TEXTS)] + WAKE * 100
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "domain.lm"
        path.write_text(arpa(texts), encoding="utf-8")
        return Decoder(samprate=RATE, lm=str(path), loglevel="ERROR", lw=8.0)


def listen(wavs: Sequence[np.ndarray], sample_rate: int) -> list[str]:
    """What is heard in each of (samples_i,) float32."""
    out = []
    for wav in wavs:
        loud = to_level(resample(np.asarray(wav, np.float32), sample_rate, RATE), -20.0)
        padded = np.concatenate([np.zeros(RATE // 5, np.float32), loud, np.zeros(RATE // 5, np.float32)])
        pcm = (np.clip(padded, -1, 1) * 32767).astype(np.int16).tobytes()
        decoder().start_utt()
        decoder().process_raw(pcm, full_utt=True)
        decoder().end_utt()
        found = decoder().hyp()
        out.append(found.hypstr if found is not None else "")
    return out
