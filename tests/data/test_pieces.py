from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.long import cut, stream

RATE = 8000


def speech(seconds: float, gaps: list[float], rate: int = RATE) -> np.ndarray:
    """Noise with 0.4 s of near silence around each of the given times."""
    wav = 0.2 * np.random.default_rng(0).standard_normal(int(seconds * rate)).astype(np.float32)
    for gap in gaps:
        wav[int((gap - 0.2) * rate) : int((gap + 0.2) * rate)] *= 1e-3
    return wav


def test_cuts_lie_in_pauses() -> None:
    found = cut(speech(20, [6.0, 13.0]), RATE, 9.0)
    assert [round(end / RATE) for _, end in found] == [6, 13, 20]
    assert all(abs(end / RATE - want) < 0.15 for (_, end), want in zip(found, (6.0, 13.0), strict=False))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60000), st.floats(0.3, 4.0), st.booleans())
def test_pieces_cover_everything_and_fit(samples: int, max_s: float, silent: bool) -> None:
    wav = (
        np.zeros(samples, np.float32)
        if silent
        else np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    )
    found = cut(wav, RATE, max_s)
    assert (
        found[0][0] == 0
        and found[-1][1] == samples
        and all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    )
    assert all(0 < end - start <= max_s * RATE for start, end in found) or samples == 0


@pytest.mark.parametrize(("native", "rate"), [(8000, 8000), (11025, 8000), (8000, 16000)])
def test_a_stream_gives_the_pieces_of_the_whole(tmp_path: Path, native: int, rate: int) -> None:
    wav = speech(31.0, [5, 11, 17, 23], native)
    sf.write(tmp_path / "a.wav", np.stack([wav, wav], 1), native, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav", rate, 1.0, 28.5)
    made = list(stream(tmp_path / "a.wav", rate, 7.0, 1.0, 28.5))
    joined = np.concatenate([w for _, w in made])
    assert len(joined) == len(whole) and np.abs(joined - whole).max() < 1e-3
    starts = [start for start, _ in cut(whole, rate, 7.0)]
    assert [round(s * rate) for s, _ in made] == pytest.approx(starts, abs=0.02 * rate)


def test_a_long_file_is_never_held_whole(tmp_path: Path) -> None:
    seconds = 600
    with sf.SoundFile(tmp_path / "long.wav", "w", RATE, 1) as file:
        for i in range(seconds // 10):
            file.write(speech(10, [3, 7]) * (1 + i % 2))
    tracemalloc.start()
    count = sum(1 for _ in stream(tmp_path / "long.wav", RATE, 10.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 60 and peak < 4 * seconds * RATE / 4  # a quarter of its float32 samples


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no audio" * 100)
    sf.write(tmp_path / "none.wav", np.zeros(0), RATE)
    sf.write(tmp_path / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    reasons = {
        "gone.wav": "missing",
        "empty.wav": "empty",
        "text.wav": "unreadable",
        "none.wav": "no samples",
        "nan.wav": "NaN",
    }
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=reason):
            list(stream(tmp_path / name, RATE, 5.0))
