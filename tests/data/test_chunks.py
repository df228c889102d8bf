"""Chunks: nothing lost, nothing doubled, one failure costs one item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.data.chunks import apply, join, spans


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(3, 700), st.data())
def test_identity_comes_back_whole(samples: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, (size - 1) // 2))
    wav = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    cut = spans(samples, size, overlap)
    assert all(0 < b - a <= size for a, b in cut) or samples == 0
    assert len(cut) == 1 or all(b - a == size for a, b in cut)
    np.testing.assert_allclose(join([wav[a:b] for a, b in cut], cut, samples), wav, atol=1e-5)


def test_the_seam_is_a_fade() -> None:
    cut = spans(190, 100, 10)
    assert cut == [(0, 100), (90, 190)]
    out = join([np.zeros(100), np.ones(100)], cut, 190)
    assert (np.diff(out) >= 0).all() and out[89] == 0 and out[100] == 1 and 0.4 < out[95] < 0.6


@pytest.mark.parametrize("overlap", [50, 60, -1])
def test_overlap_that_does_not_fit(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        spans(500, 100, overlap)


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
