"""A transcribed corpus of a few short clips and recognisers of random weights, for the stages of the task asr."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_audio_lms import tiny as tiny  # noqa: E402
from tiny_corpora import manifest

from rlspeech.data.audio import save_audio
from rlspeech.models.audio_lm.model import save_audio_lm

RATE = 16000
ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "one two three four", "condition": "clean", "keywords": ["two"]},
    {"id": "b", "text": "five six seven", "condition": "clean"},
    {"id": "c", "text": "eight nine ten", "condition": "noisy", "keywords": ["nine", "absent"]},
    {"id": "d", "text": "", "condition": "nonspeech"},
    {"id": "e", "text": "Müller's <b>naïve</b> café", "condition": "noisy"},
    {"id": "f", "text": "the end", "condition": "clean"},
]


def write_model(folder: Path, seed: int = 0, max_s: float = 4.0) -> Path:
    """A Fun-ASR-Nano of random weights."""
    torch.manual_seed(seed)
    save_audio_lm(folder, tiny("fun_asr_nano", seed=seed, max_s=max_s), facts={"stage": "made up"})
    return folder


def write_corpus(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Noise with texts, of half a second where a row has no duration, and its manifest."""
    given = ROWS if rows is None else rows
    corpus = [{"audio_filepath": f"{row['id']}.flac", "duration": 0.5} | row for row in given]
    for i, row in enumerate(corpus):
        wav = 0.05 * np.random.default_rng(i).standard_normal(int(row["duration"] * RATE)).astype(np.float32)
        save_audio(folder / row["audio_filepath"], wav, RATE)
    return manifest(folder / "manifest.jsonl", corpus)


class Counting:
    """Writes down the length of what it hears, in tenths of a second; never takes more than ``max_s``."""

    sample_rate, max_s = RATE, 2.0
    batches: list[int] = []  # noqa: RUF012
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def encode(self, wavs: list[np.ndarray], **given: Any) -> list[str]:
        assert all(0.1 * RATE <= len(w) <= self.max_s * RATE for w in wavs)
        if len(wavs) > 1 and any(np.abs(w).max() > 0.9 for w in wavs):
            raise torch.OutOfMemoryError("too much at once")
        if any(0.6 < np.abs(w).max() < 0.7 for w in wavs):
            raise ValueError("a bad one")
        self.batches.append(len(wavs))
        self.asked.append(given)
        return [str(round(10 * len(w) / RATE)) for w in wavs]

    def generate(self, texts: list[str], *, max_new_tokens: int, **_: Any) -> SimpleNamespace:
        assert max_new_tokens >= 16
        return SimpleNamespace(ids=texts, mask=None, finished=torch.ones(len(texts), dtype=torch.bool))

    def text(self, ids: list[str], mask: None) -> list[str]:
        return ids
