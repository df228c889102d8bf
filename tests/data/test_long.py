"""Chunks: nothing lost, nothing doubled, one failure costs one item."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlspeech.data.audio import load_audio
from rlspeech.data.long import apply, cut, join, spans, stream

HOP = 8
Videos = Sequence[np.ndarray | None]


def test_the_seam_is_a_fade() -> None:
    cut = spans(190, 100, 10)
    assert cut == [(0, 100), (90, 190)]
    out = join([np.zeros(100), np.ones(100)], cut, 190)
    assert (np.diff(out) >= 0).all() and out[89] == 0 and out[100] == 1 and 0.4 < out[95] < 0.6


@pytest.mark.parametrize(("overlap", "grid"), [(50, 1), (60, 1), (-1, 1), (40, 61)])
def test_overlap_and_grid_that_do_not_fit(overlap: int, grid: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        spans(500, 100, overlap, grid)


def test_batches_ids_and_failures() -> None:
    seen: list[list[str]] = []

    def infer(wavs: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        seen.append(list(keys))
        if any("bad" in k for k in keys):
            raise RuntimeError("out of memory")
        return [w[:-1] if k == "short" else w * (np.nan if k == "nan" else 2) for w, k in zip(wavs, keys, strict=True)]

    names = ["a", "bad", "long", "short", "nan", "b"]
    wavs = [np.ones(n, dtype=np.float32) for n in (10, 12, 250, 14, 16, 18)]
    out = apply(infer, wavs, names, batch=3, size=100, overlap=10)
    assert max(map(len, seen)) == 3 and {"long#0", "long#1", "long#2"} <= {k for s in seen for k in s}
    for i in (0, 2, 5):
        np.testing.assert_allclose(out[i], 2 * wavs[i], rtol=1e-6)
    assert "out of memory" in str(out[1]) and "(13,)" in str(out[3]) and "NaN" in str(out[4])


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(3, 700), st.integers(1, 16), st.data())
def test_identity_comes_back_whole(samples: int, size: int, grid: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, max(0, min((size - 1) // 2, size - grid))))
    assume((size - overlap) >= grid)
    cut = spans(samples, size, overlap, grid)
    assert cut[0][0] == 0 and cut[-1][1] == samples and all(a % grid == 0 and b - a <= size for a, b in cut)
    assert all(before[1] - after[0] >= overlap for before, after in zip(cut, cut[1:], strict=False))
    assert len(cut) == 1 or all(size - grid < b - a for a, b in cut)
    wav = np.random.default_rng(1).normal(size=(2, samples)).astype(np.float32)
    np.testing.assert_allclose(join([wav[:, a:b] for a, b in cut], cut, samples), wav, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    *(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(40, 120)),
    *(st.integers(0, 19), st.integers(1, 5), st.data()),
)
def test_sound_and_video_stay_together(lengths: list[int], size: int, overlap: int, batch: int, data: Any) -> None:
    """Every sample and every frame knows its own time, so that a chunk whose frames are not those of its samples is seen at once."""
    missing = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    short = data.draw(st.integers(0, 3))
    wavs = [np.arange(n, dtype=np.float32) for n in lengths]
    counts = [max(1, -(-n // HOP) - short) for n in lengths]
    films = [np.arange(n, dtype=np.uint8)[:, None, None].repeat(2, 1) for n in counts]
    lips = [None if gone else film for film, gone in zip(films, missing, strict=True)]

    def infer(pieces: Sequence[np.ndarray], names: Sequence[str], videos: Videos) -> list[np.ndarray]:
        out = []
        for piece, video in zip(pieces, videos, strict=True):
            shown = np.full(-(-len(piece) // HOP), -1, np.float32) if video is None else video[:, 0, 0]
            assert len(shown) == -(-len(piece) // HOP)
            out.append(shown.astype(np.float32).repeat(HOP)[: len(piece)])
        return out

    names, chunks = [str(i) for i in range(len(wavs))], {"batch": batch, "size": size, "overlap": overlap}
    got = apply(infer, wavs, names, **chunks, lips=lips, hop=HOP)
    for out, wav, count, gone in zip(got, wavs, counts, missing, strict=True):
        assert isinstance(out, np.ndarray)
        wanted = np.full(len(wav), -1.0) if gone else np.minimum(wav // HOP, count - 1)
        np.testing.assert_allclose(out, wanted, atol=1e-3)


def test_two_ears_and_a_failure_beside_a_video() -> None:
    def infer(pieces: Sequence[np.ndarray], names: Sequence[str], videos: Videos) -> list[np.ndarray]:
        if any(v is not None and v.max() == 9 for v in videos):
            raise RuntimeError("no such video")
        return [-p for p in pieces]

    wavs = [np.random.default_rng(i).normal(size=(2, n)).astype(np.float32) for i, n in enumerate((60, 330, 70))]
    lips = [np.full((8, 2, 2), 9, np.uint8), None, np.zeros((9, 2, 2), np.uint8)]
    out = apply(infer, wavs, ["a", "b", "c"], batch=4, size=100, overlap=20, lips=lips, hop=HOP)
    assert "no such video" in str(out[0])
    np.testing.assert_allclose(out[1], -wavs[1], atol=1e-6)
    np.testing.assert_allclose(out[2], -wavs[2], atol=1e-6)


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
    wav = (not silent) * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    found = cut(wav, RATE, max_s)
    assert found[0][0] == 0 and found[-1][1] == samples
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
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
