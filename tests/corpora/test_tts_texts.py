"""``prepare tts``: folders with texts beside, lists of prompts and texts, lines, manifests; prompts belong to rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_corpora import manifest, sound

from rlspeech.corpora.tts_texts import PrepareTts
from rlspeech.data.batches import columns_of
from rlspeech.data.manifest import read_manifest
from rlspeech.stages import prepare
from rlspeech.types import UserError


def ask(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return prepare.run(PrepareTts(root=str(root), out=str(out), workers=0, **changes))


def test_a_folder_of_speakers(tmp_path: Path) -> None:
    root = tmp_path / "LibriTTS"
    spoken = [("1", "One."), ("1", "Two."), ("2", "Three."), ("1", None), ("3", "Four.")]
    for i, (speaker, text) in enumerate(spoken):
        split = "dev-clean" if speaker == "3" else "train-clean"
        path = sound(root / split / speaker / "7" / f"{speaker}_7_{i}.wav", i, 1.5)
        if text:
            path.with_name(f"{path.stem}.normalized.txt").write_text(f"{text}\n")
            path.with_name(f"{path.stem}.original.txt").write_text("another\n")
    made = ask(root, tmp_path / "out")
    assert set(made["manifests"]) == {"train-clean", "dev-clean"} and made["dropped"] == {"no transcript": 1}
    assert made["prompted"] == {"train-clean": 2, "dev-clean": 0} and "pretrain --task tts" in made["next"]
    rows = {u.id: u for u in read_manifest(tmp_path / "out" / "train-clean.jsonl")}
    assert rows["1_7_0"].text == "One." and rows["1_7_0"].prompt_text == "Two." and rows["1_7_0"].speaker_id == "1"
    assert Path(rows["1_7_0"].prompt_filepath or "").samefile(rows["1_7_1"].audio_filepath)
    assert rows["2_7_2"].prompt_filepath is None
    again = ask(tmp_path / "out" / "train-clean.jsonl", tmp_path / "more", prompt_s=(2.0, 3.0))
    assert again["prompted"] == {"train-clean": 2}  # a row's own prompt stays


def test_a_list_of_prompts_and_texts(tmp_path: Path) -> None:
    sound(tmp_path / "prompts" / "p.wav", 0, 1.0)
    sound(tmp_path / "wavs" / "r.wav", 1, 2.0)
    lines = ["a|said in it|prompts/p.wav|to be said", "b|said in it|prompts/p.wav|another|wavs/r.wav"]
    lines += ["c|x|prompts/none.wav|text", "nonsense|x", "a|said in it|prompts/p.wav|third"]
    (tmp_path / "meta.lst").write_text("\n".join(lines) + "\n")
    made = ask(tmp_path / "meta.lst", tmp_path / "out")
    assert made["dropped"] == {"missing file": 1, "bad line": 1} and made["prompted"] == {"test": 3}
    assert "eval --task tts" in made["next"]
    rows = {u.id: u for u in read_manifest(tmp_path / "out" / "test.jsonl")}
    assert set(rows) == {"a", "b", "a-2"}
    assert rows["a"].prompt_text == "said in it" and rows["a"].extra["recorded"] is False
    assert columns_of(rows["b"])["duration"] == 2.0 and "duration" not in columns_of(rows["a"])


def test_lines_in_the_voices_of_a_manifest(tmp_path: Path) -> None:
    rows = []
    for i, seconds in enumerate((1.5, 2.5, 0.5)):
        path = sound(tmp_path / f"v{i}.wav", i, seconds)
        facts = {"id": f"v{i}", "audio_filepath": path.name, "duration": seconds}
        rows.append(facts | {"text": f"voice {i}", "speaker_id": str(i)})
    manifest(tmp_path / "voices.jsonl", rows)
    (tmp_path / "lines.txt").write_text("one\n\ntwo\nthree\n")
    made = ask(tmp_path / "lines.txt", tmp_path / "out", prompts=str(tmp_path / "voices.jsonl"))
    found = read_manifest(tmp_path / "out" / "test.jsonl")
    expected = [("one", "0", "voice 0"), ("two", "1", "voice 1"), ("three", "0", "voice 0")]
    assert [(u.text, u.speaker_id, u.prompt_text) for u in found] == expected and made["dropped"] == {}
    with pytest.raises(UserError, match="lines.txt"):
        ask(tmp_path / "lines.txt", tmp_path / "out")
    with pytest.raises(UserError, match="voices.jsonl"):
        ask(tmp_path / "lines.txt", tmp_path / "out", prompts=str(tmp_path / "voices.jsonl"), prompt_s=(5.0, 6.0))
    with pytest.raises(UserError, match="none"):
        ask(tmp_path / "none", tmp_path / "out")
