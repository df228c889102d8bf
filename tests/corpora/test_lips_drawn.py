"""The drawn mouth: it moves with the speech and nothing else, the same chances draw the same frames, bad audio is left out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, sosfilt
from tiny_corpora import sound

from rlspeech.corpora.demo import demo_folder
from rlspeech.corpora.lips import SIDE, draw_all, draw_mouth, movements
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.video import load_lips
from rlspeech.types import Utterance

RATE = 16000
CLEAN = demo_folder() / "clean"


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return [load_audio(p) for p in sorted(CLEAN.glob("valid*.flac"))[:4]]


def _level_db(wav: np.ndarray, frames: int) -> np.ndarray:
    """Level of the voice in the frames' 40 ms, in dB below the loudest, by a filter and not by a spectrum."""
    low = sosfilt(butter(4, [150, 1500], "bandpass", fs=RATE, output="sos"), wav)
    power = [np.mean(low[i * 640 : (i + 1) * 640] ** 2) + 1e-12 for i in range(frames)]
    return np.maximum(10 * np.log10(power / np.max(power)), -35)


def _dark_rows(frames: np.ndarray) -> np.ndarray:
    """(F,) how much of the middle of the picture is the dark of an open mouth."""
    return (frames[:, 24:84, 42:54].astype(float) < 55).mean((1, 2))


def test_the_jaw_follows_the_voice(speech: list[np.ndarray]) -> None:
    for wav in speech:
        moves = movements(wav, RATE)
        assert moves.min() >= 0 and moves.max() <= 1
        assert np.corrcoef(moves[:, 0], _level_db(wav, len(moves)))[0, 1] > 0.8
        other = movements(speech[0] if wav is not speech[0] else speech[1], RATE)
        n = min(len(moves), len(other))
        own = np.corrcoef(moves[:n, 0], _level_db(wav, len(moves))[:n])[0, 1]
        assert own > np.corrcoef(other[:n, 0], _level_db(wav, n))[0, 1] + 0.2


def test_what_is_drawn_opens_with_the_voice(speech: list[np.ndarray]) -> None:
    for i, wav in enumerate(speech):
        frames = draw_mouth(wav, RATE, np.random.default_rng(i))
        assert np.corrcoef(_dark_rows(frames), movements(wav, RATE)[:, 0])[0, 1] > 0.7


def test_a_lag_is_a_lag(speech: list[np.ndarray]) -> None:
    wav = speech[0]
    now, later = movements(wav, RATE)[:, 0], movements(wav, RATE, lag_s=0.08)[:, 0]  # two frames
    assert np.corrcoef(now[5:-5], later[7:-3])[0, 1] > 0.999 > np.corrcoef(now, later)[0, 1] + 0.05


def test_silence_is_shut_and_hiss_shows_teeth() -> None:
    t = np.arange(RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20)) * 0.1
    white = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    hiss = sosfilt(butter(4, 4500, "highpass", fs=RATE, output="sos"), white)
    moves = movements(np.concatenate([voice, np.zeros(RATE), hiss, voice]), RATE)
    spoken, silent, hissed = moves[3:22], moves[28:47], moves[53:72]
    assert spoken[:, 0].min() > 0.7 and silent[:, 0].max() < 0.02 and hissed[:, 0].max() < 0.3
    assert hissed[:, 2].min() > 0.3 and spoken[:, 2].max() < 0.1 and silent[:, 2].max() < 0.02
    frames = draw_mouth(np.concatenate([voice, np.zeros(RATE)]), RATE, np.random.default_rng(3))
    assert _dark_rows(frames)[3:22].min() > 3 * _dark_rows(frames)[28:].max()
    assert not movements(np.zeros(RATE), RATE)[:, [0, 2]].any()
    assert movements(1e-3 * voice, RATE)[3:22, 0].min() > 0.7  # faint speech is speech


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (640, 1), (641, 2), (RATE, 25), (RATE + 1, 26)])
def test_frames_cover_the_sound(samples: int, frames: int) -> None:
    wav = (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
    made = draw_mouth(wav, RATE, np.random.default_rng(0))
    assert made.shape == (frames, SIDE, SIDE) and made.dtype == np.uint8
    assert made.std() > 5


def test_the_same_chances_draw_the_same_frames(speech: list[np.ndarray]) -> None:
    wav = speech[0][:RATE]
    first, again, other = (draw_mouth(wav, RATE, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5  # another face
    louder = draw_mouth(wav * 0.25, RATE, np.random.default_rng(1))
    np.testing.assert_allclose(louder, first, atol=2)  # how loud the recording is does not show


def test_all_are_drawn_once_and_bad_ones_are_reported(tmp_path: Path) -> None:
    for i in range(2):
        sound(tmp_path / f"s{i}.flac", i)
    (tmp_path / "empty.flac").touch()
    rows = [Utterance(name, str(tmp_path / f"{name}.flac"), 1.0, RATE) for name in ("s0", "s1", "empty", "gone")]
    kept, dropped = draw_all(rows, tmp_path / "out", workers=0)
    assert [u.id for u in kept] == ["s0", "s1"]
    assert all(u.extra == {"face_rate": 1.0, "video": "drawn"} for u in kept)
    assert {d["id"]: d["detail"] for d in dropped} == {"empty": "empty file (0 bytes)", "gone": "missing file"}
    files = [Path(str(u.lips_filepath)) for u in kept]
    first = [load_lips(f) for f in files]
    assert not np.array_equal(first[0], first[1])
    os.utime(files[0], ns=(1, 1))
    files[1].write_bytes(b"PK")  # cut off in the middle
    again, _ = draw_all(rows, tmp_path / "out", workers=0)
    assert files[0].stat().st_mtime_ns == 1  # what is there stays
    assert [u.lips_filepath for u in again] == [str(f) for f in files]
    for file, frames in zip(files, first, strict=True):
        np.testing.assert_array_equal(load_lips(file), frames)
    other, _ = draw_all(rows[:1], tmp_path / "seed", seed=1, workers=0)
    assert not np.array_equal(load_lips(str(other[0].lips_filepath)), first[0])


def test_a_stretch_and_a_target_are_drawn_in_their_place(tmp_path: Path) -> None:
    """Frame 0 belongs to sample 0 of the file, and it is the target that speaks."""
    speech = load_audio(sorted(CLEAN.glob("valid*.flac"))[0])[: 2 * RATE]
    save_audio(tmp_path / "clean.flac", speech, RATE)
    noisy = str(sound(tmp_path / "noisy.flac", 0, 2.0))
    row = Utterance("x", noisy, 1.0, RATE, offset=0.8, target_filepath=str(tmp_path / "clean.flac"))
    kept, _ = draw_all([row], tmp_path / "out", workers=0)
    frames = load_lips(str(kept[0].lips_filepath))
    assert len(frames) == 45
    opened = movements(speech[int(0.8 * RATE) : int(1.8 * RATE)], RATE)[:, 0]
    assert np.corrcoef(_dark_rows(frames)[20:], opened)[0, 1] > 0.6
