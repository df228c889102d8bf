"""The embedded speech for recognisers: whole, transcribed, its parts apart, and its conditions rendered the same every time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import soundfile as sf

from rlspeech.corpora.demo_commands import demo_commands, demo_commands_clean
from rlspeech.data.audio import load_audio
from rlspeech.data.manifest import read_manifest


def test_parts_share_neither_voices_nor_texts() -> None:
    parts = {p: read_manifest(demo_commands_clean(p)) for p in ("train", "valid", "test")}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {u.speaker_id for u in parts[a]} & {u.speaker_id for u in parts[b]}
        assert not {u.text for u in parts[a]} & {u.text for u in parts[b]}
    for utt in (u for rows in parts.values() for u in rows):
        assert utt.text and sf.info(utt.audio_filepath).samplerate == 16000
        assert len(load_audio(utt.audio_filepath, 16000)) == pytest.approx(16000 * utt.duration, abs=2)
        assert all(f" {k} " in f" {utt.text} " for k in utt.extra["keywords"])


def test_every_condition_is_rendered_the_same_way_twice(tmp_path: Path) -> None:
    first, second = (read_manifest(demo_commands("valid", tmp_path / name)) for name in "ab")
    conditions = Counter(str(u.extra["condition"]) for u in first)
    assert {"noisy", "long", "silence", "noise", "music", "looped"} <= set(conditions)
    assert [(u.id, u.text, u.duration) for u in first] == [(u.id, u.text, u.duration) for u in second]
    sounds = [[load_audio(u.audio_filepath, 16000) for u in rows] for rows in (first, second)]
    assert all((a == b).all() for a, b in zip(*sounds, strict=True))
    assert all(u.text == "" for u in first if u.extra["condition"] in {"silence", "noise", "music"})
    assert all(u.text for u in first if u.extra["condition"] in {"noisy", "long", "looped"})
