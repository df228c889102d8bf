"""``prepare tts``: folders with texts beside, lists of prompts and texts, lines, manifests; prompts belong to rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspeech.corpora.tts_texts import PrepareTts
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import columns_of
from rlspeech.data.manifest import read_manifest
from rlspeech.stages import prepare
from rlspeech.types import UserError

RATE = 16000


def sound(path: Path, seconds: float, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_audio(path, 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32), RATE)
    return path


def ask(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return prepare.run(PrepareTts(root=str(root), out=str(out), workers=0, **changes))


def test_a_folder_of_speakers(tmp_path: Path) -> None:
    root = tmp_path / "LibriTTS"
    for i, (split, speaker, text) in enumerate(
        [
            ("train-clean", "1", "One."),
            ("train-clean", "1", "Two."),
            ("train-clean", "2", "Three."),
            ("train-clean", "1", None),
            ("dev-clean", "3", "Four."),
        ]
    ):
        path = sound(root / split / speaker / "7" / f"{speaker}_7_{i}.wav", 1.5, i)
        if text:
            path.with_name(f"{path.stem}.normalized.txt").write_text(f"{text}\n")
            path.with_name(f"{path.stem}.original.txt").write_text("another\n")
    made = ask(root, tmp_path / "out")
    assert set(made["manifests"]) == {"train-clean", "dev-clean"} and made["dropped"] == {"no transcript": 1}
    assert made["prompted"] == {"train-clean": 2, "dev-clean": 0} and "pretrain --task tts" in made["next"]
    rows = {u.id: u for u in read_manifest(tmp_path / "out" / "train-clean.jsonl")}
    assert rows["1_7_0"].text == "One." and rows["1_7_0"].prompt_text == "Two." and rows["1_7_0"].speaker_id == "1"
    assert (
        Path(rows["1_7_0"].prompt_filepath or "").samefile(rows["1_7_1"].audio_filepath)
        and rows["2_7_2"].prompt_filepath is None
    )
    again = ask(tmp_path / "out" / "train-clean.jsonl", tmp_path / "more", prompt_s=(2.0, 3.0))
    assert again["prompted"] == {"train-clean": 2}  # a row's own prompt stays


def test_a_list_of_prompts_and_texts(tmp_path: Path) -> None:
    sound(tmp_path / "prompts" / "p.wav", 1.0, 0)
    sound(tmp_path / "wavs" / "r.wav", 2.0, 1)
    lines = [
        "a|said in it|prompts/p.wav|to be said",
        "b|said in it|prompts/p.wav|another|wavs/r.wav",
        "c|x|prompts/none.wav|text",
        "nonsense|x",
        "a|said in it|prompts/p.wav|third",
    ]
    (tmp_path / "meta.lst").write_text("\n".join(lines) + "\n")
    made = ask(tmp_path / "meta.lst", tmp_path / "out")
    assert (
        made["dropped"] == {"missing file": 1, "bad line": 1}
        and made["prompted"] == {"test": 3}
        and "eval --task tts" in made["next"]
    )
    rows = {u.id: u for u in read_manifest(tmp_path / "out" / "test.jsonl")}
    assert (
        set(rows) == {"a", "b", "a-2"}
        and rows["a"].prompt_text == "said in it"
        and rows["a"].extra["recorded"] is False
    )
    assert columns_of(rows["b"])["duration"] == 2.0 and "duration" not in columns_of(rows["a"])


def test_lines_in_the_voices_of_a_manifest(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"v{i}",
            "audio_filepath": str(sound(tmp_path / f"v{i}.wav", s, i)),
            "text": f"voice {i}",
            "speaker_id": str(i),
        }
        for i, s in enumerate((1.5, 2.5, 0.5))
    ]
    (tmp_path / "voices.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "lines.txt").write_text("one\n\ntwo\nthree\n")
    made = ask(tmp_path / "lines.txt", tmp_path / "out", prompts=str(tmp_path / "voices.jsonl"))
    found = read_manifest(tmp_path / "out" / "test.jsonl")
    assert [(u.text, u.speaker_id, u.prompt_text) for u in found] == [
        ("one", "0", "voice 0"),
        ("two", "1", "voice 1"),
        ("three", "0", "voice 0"),
    ] and made["dropped"] == {}
    with pytest.raises(UserError, match="no voices"):
        ask(tmp_path / "lines.txt", tmp_path / "out")
    with pytest.raises(UserError, match="has no prompt"):
        ask(tmp_path / "lines.txt", tmp_path / "out", prompts=str(tmp_path / "voices.jsonl"), prompt_s=(5.0, 6.0))
    with pytest.raises(UserError, match="not a folder"):
        ask(tmp_path / "none", tmp_path / "out")
