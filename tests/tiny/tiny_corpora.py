"""Corpora of a few short files, and what is found in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from rlspeech.corpora.base import Candidate, Layout
from rlspeech.data.audio import save_audio

RATE = 16000


def touch(root: Path, *names: str) -> None:
    """Make files that nothing reads; a string may name several."""
    for name in " ".join(names).split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def find(layout: type[Layout], root: Path | None = None, **settings: Any) -> list[Candidate]:
    """What a layout finds below ``root``, apart from the folder ``out``."""
    given = settings if root is None else {"root": str(root)} | settings
    return list(layout(**given).find(Path(str(root), "out")))


def table(found: Iterable[Candidate]) -> dict[str, dict[str, Candidate]]:
    """Split -> id -> candidate; no id twice in a split."""
    splits: dict[str, dict[str, Candidate]] = {}
    for row in found:
        rows = splits.setdefault(row.split, {})
        assert row.utt.id not in rows
        rows[row.utt.id] = row
    return splits


def voice(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """(T,) noise in syllables, which passes for clean speech."""
    n = int(seconds * rate)
    wav = np.random.default_rng(seed).standard_normal(n) * (0.2 + np.abs(np.sin(np.arange(n) / rate * 9)))
    return (0.3 * wav / np.abs(wav).max()).astype(np.float32)


def write(path: Path, wav: np.ndarray, rate: int = RATE, **options: str) -> Path:
    """Write a sound file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wav, rate, **options)
    return path


def sound(path: Path, seed: int = 0, seconds: float = 1.0, rate: int = RATE) -> Path:
    return write(path, voice(seed, seconds, rate), rate)


def recorded(folder: Path, wavs: Sequence[np.ndarray], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Write recordings (T,) and their manifest ``m.jsonl``, with further columns; return its rows."""
    rows = []
    for i, wav in enumerate(wavs):
        save_audio(folder / f"{i}.wav", wav, RATE)
        row = {"id": f"u{i}", "audio_filepath": f"{i}.wav", "duration": len(wav) / RATE, "sample_rate": RATE}
        rows.append(row | {key: values[i] for key, values in columns.items()})
    manifest(folder / "m.jsonl", rows)
    return rows


def manifest(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSONL; a second and a rate where a row has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"duration": 1.0, "sample_rate": RATE} | row) + "\n" for row in rows))
    return path
