"""The hallucination set: references say what is in the clip and nothing else, and the same seed gives the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_corpora import manifest, sound

from rlspeech.corpora import join as splice
from rlspeech.corpora.nonspeech import CONDITIONS, STYLES, Nonspeech, music, render, word_times
from rlspeech.data.audio import load_audio, rms_dbfs, save_audio
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.files import read_jsonl
from rlspeech.stages.prepare import run
from rlspeech.types import UserError, Utterance

RATE = 16000
TEXT = "beautiful weather we have"


def speech(seed: int, words: int = 4) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Bursts (0.25 s) of noise between stretches of near silence, and where they are."""
    rng = np.random.default_rng(seed)
    parts, spans, at = [1e-4 * rng.standard_normal(6400)], [], 6400
    for n in range(words):
        parts.append(0.1 * rng.standard_normal(4000))
        spans.append((at, at + 4000))
        quiet = 9600 if n == 1 else 1600  # one pause that is long enough to be one
        parts.append(1e-4 * rng.standard_normal(quiet))
        at += 4000 + quiet
    return np.concatenate(parts).astype(np.float32), spans


def row(path: Path, seed: int, **more: object) -> Utterance:
    wav, spans = speech(seed)
    save_audio(path, wav, RATE)
    times = [[w, a / RATE, b / RATE] for w, (a, b) in zip(TEXT.split(), spans, strict=True)]
    extra = ({"words": times} if more.pop("timed", False) else {}) | more
    utt = Utterance(path.stem, str(path), len(wav) / RATE, RATE, text=TEXT, language="en", extra=extra)
    utt.speaker_id = f"s{seed % 2}"
    return utt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Utterance]]:
    folder = tmp_path_factory.mktemp("nonspeech")
    clean = [row(folder / f"c{i}.wav", i, timed=i == 2, keywords=["weather"]) for i in range(3)]
    save_audio(folder / "n.wav", 0.1 * np.random.default_rng(9).standard_normal(RATE).astype(np.float32), RATE)
    noise = [Utterance("n", str(folder / "n.wav"), 1.0, RATE)]
    rows, failed = render(noise, clean, folder / "out", count=8, seed=5, max_s=5.5)
    assert not failed
    return {c: [u for u in rows if u.extra["condition"] == c] for c in CONDITIONS}


def test_every_condition_is_there_and_within_its_length(made: dict[str, list[Utterance]]) -> None:
    for name, rows in made.items():
        assert len(rows) == 8, name
        for utt in rows:
            wav = load_audio(utt.audio_filepath)
            assert len(wav) / RATE == pytest.approx(utt.duration) and 0.1 <= utt.duration <= 6.5
            assert np.abs(wav).max() < 1


def test_nothing_is_said_where_nothing_can_be_heard(made: dict[str, list[Utterance]]) -> None:
    for name in ("silence", "noise", "music"):
        assert {u.text for u in made[name]} == {""}
    assert {u.extra["how"] for u in made["silence"]} == {"digital", "hiss", "hum"}
    digital = [u for u in made["silence"] if u.extra["how"] == "digital"]
    assert all(not load_audio(u.audio_filepath).any() for u in digital)
    assert {u.extra.get("noise_id") for u in made["noise"]} == {"n", None}
    assert {u.extra["how"] for u in made["music"]} == set(STYLES)


def test_cut_speech_keeps_the_words_that_are_left(made: dict[str, list[Utterance]]) -> None:
    rows = {how: [u for u in made["cut"] if u.extra["how"] == how] for how in ("words", "trail", "pause", "fragment")}
    assert all(rows.values())
    for utt in rows["words"]:
        assert utt.text and utt.text in TEXT and utt.text != TEXT
        level = splice.levels_db(load_audio(utt.audio_filepath), RATE)
        loud = np.concatenate([[False], level > -40, [False]])
        assert int((np.diff(loud.astype(int)) == 1).sum()) == len(utt.text.split()), "as many bursts as words"
    for utt in rows["trail"]:
        assert utt.text == TEXT and utt.extra["keywords"] == ["weather"] and utt.language == "en"
        tail = load_audio(utt.audio_filepath)[-int(0.07 * RATE) :]
        assert rms_dbfs(tail) > -30, "it ends inside a word"
    for utt in rows["pause"]:
        assert utt.text == "" and splice.levels_db(load_audio(utt.audio_filepath), RATE).max() < -55
    for utt in rows["fragment"]:
        assert utt.text == "" and (splice.levels_db(load_audio(utt.audio_filepath), RATE) > -40).sum() <= 13


def test_looped_speech_says_its_text_as_often(made: dict[str, list[Utterance]]) -> None:
    for utt in made["looped"]:
        assert utt.text == " ".join([TEXT] * utt.extra["repeats"]) and utt.extra["repeats"] >= 2


def test_the_same_seed_gives_the_same_clips_and_another_does_not(tmp_path: Path) -> None:
    clean = [row(tmp_path / "c.wav", 1)]
    sounds = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        conditions = ["silence", "noise", "cut"]
        rows, _ = render([], clean, tmp_path / name, count=3, seed=seed, max_s=3.0, conditions=conditions)
        sounds.append([load_audio(u.audio_filepath).tobytes() for u in rows])
    assert sounds[0] == sounds[1] and not set(sounds[0]) & set(sounds[2])


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    rows, failed = render([], [], tmp_path, count=2, conditions=["cut", "looped", "music"], max_s=2.0)
    assert len(rows) == 2 and {f["detail"] for f in failed} == {"no speech with a transcript"} and len(failed) == 4
    gone = [Utterance("g", str(tmp_path / "gone.wav"), 1.0, RATE, text="beautiful")]
    rows, failed = render(gone, gone, tmp_path, count=1, conditions=["noise", "cut", "looped"], max_s=9.0)
    assert not rows and {f["detail"] for f in failed} == {"missing file"}


def test_music_has_notes(tmp_path: Path) -> None:
    for style in STYLES:
        wav = music(2.0, RATE, np.random.default_rng(3), style)
        power = np.abs(np.fft.rfft(wav)) ** 2
        assert len(wav) == 2 * RATE and np.isfinite(wav).all()
        if style != "beat":
            assert np.sort(power)[-200:].sum() > 0.8 * power.sum(), "the power is in lines"


@pytest.mark.parametrize("words", [None, "x", [["a", 0]], [{"word": "a"}], [["a", "x", 1]], 3])
def test_odd_word_times_are_none(words: object) -> None:
    assert word_times(Utterance("a", "a", 1.0, 1, extra={"words": words})) == []
    known = {"words": [{"word": "a", "start": 0, "end": 1}]}
    assert word_times(Utterance("a", "a", 1.0, 1, extra=known)) == [("a", 0.0, 1.0)]


def test_joined_recordings_do_not_click_and_are_not_digitally_silent() -> None:
    wav, _ = speech(1)
    rng = np.random.default_rng(0)
    both = splice.join([wav, wav], (0.2, 0.2), RATE, rng)
    assert len(both) == 2 * len(wav) + 3200
    gap = both[len(wav) : len(wav) + 3200]
    assert gap.any() and rms_dbfs(gap) < -70 and abs(both[0]) < 1e-4
    start, end = splice.quiet_stretches(wav, RATE)[0]
    assert end > start and np.abs(wav[start:end]).max() < 1e-3
    assert abs(splice.onset(wav, RATE) - 6400) <= 160


@pytest.mark.parametrize("length", [0, 1, 5, 100])
def test_the_shortest_sounds_do_no_harm(length: int) -> None:
    wav = np.zeros(length, np.float32)
    assert len(splice.faded(wav, RATE)) == length
    assert splice.quiet_stretches(wav, RATE) == [] and splice.onset(wav, RATE) == 0


def test_the_hallucination_set(tmp_path: Path) -> None:
    text = "number one spoken clearly"
    files = [sound(tmp_path / f"{i}.wav", i, 0.6) for i in (0, 1)]
    rows = [{"audio_filepath": str(path), "duration": 0.6, "text": text} for path in files]
    data, noise = manifest(tmp_path / "train.jsonl", rows), sound(tmp_path / "noise" / "n.wav", 5).parent
    summary = run(Nonspeech(noise=[str(noise)], clean=[str(data)], count=3, max_s=4.0, out=str(tmp_path / "out")))
    rows = read_manifest(find_manifest(tmp_path / "out"))
    hours = sum(u.duration for u in rows[3:6]) / 3600
    assert summary["conditions"]["noise"] == {"rows": 3, "hours": pytest.approx(hours, abs=1e-6), "words": 0}
    assert summary["conditions"]["looped"]["words"] >= 3 * 2 * 4
    assert len(rows) == summary["manifests"]["manifest"]["rows"]
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == sum(summary["dropped"].values())
    json.dumps(summary)


def test_without_speech_the_set_is_smaller_or_refused(tmp_path: Path) -> None:
    summary = run(Nonspeech(count=1, max_s=1.0, out=str(tmp_path / "out")))
    assert set(summary["conditions"]) == {"silence", "noise", "music"}
    with pytest.raises(UserError, match="transcripts"):
        run(Nonspeech(count=1, conditions=["cut"], out=str(tmp_path / "out")))
