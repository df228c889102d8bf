"""Kaldi's filter bank against an implementation that shares nothing with it, and the stacking against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlspeech.models.spectra import fbank, fbank_lfr, stack_frames


def kaldi_by_hand(wav: np.ndarray, mels: int = 80) -> np.ndarray:
    """Frame by frame, filter by filter, in double precision, from Kaldi's description."""
    window = np.array([0.54 - 0.46 * math.cos(2 * math.pi * i / 399) for i in range(400)])
    edges = np.linspace(1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 8000 / 700), mels + 2)
    rows = []
    for start in range(0, len(wav) - 400 + 1, 160):
        frame = wav[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        emphasised = frame.copy()
        emphasised[1:] -= 0.97 * frame[:-1]
        emphasised[0] -= 0.97 * frame[0]
        power = np.abs(np.fft.fft(emphasised * window, 512)[:257]) ** 2
        row = []
        for m in range(mels):
            total = 0.0
            for k in range(256):
                at = 1127 * math.log(1 + k * 16000 / 512 / 700)
                if edges[m] < at < edges[m + 2]:
                    up, down = (
                        (at - edges[m]) / (edges[m + 1] - edges[m]),
                        (edges[m + 2] - at) / (edges[m + 2] - edges[m + 1]),
                    )
                    total += power[k] * min(up, down)
            row.append(math.log(max(total, 1.1920929e-07)))
        rows.append(row)
    return np.array(rows)


def test_agrees_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    wav = (0.1 * rng.standard_normal(2100)).astype(np.float32)
    made = fbank(torch.from_numpy(wav)).numpy()
    wanted = kaldi_by_hand(wav)
    assert made.shape == wanted.shape == (1 + (2100 - 400) // 160, 80)
    np.testing.assert_allclose(made, wanted, atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 100, 399])
def test_shorter_than_a_frame_is_one_frame(samples: int) -> None:
    made = fbank(torch.zeros(samples))
    assert made.shape == (1, 80) and torch.isfinite(made).all()


def test_silence_stays_at_the_floor() -> None:
    assert torch.allclose(fbank(torch.zeros(16000)), torch.tensor(torch.finfo(torch.float32).eps).log())


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 12, 13, 50])
def test_stacking_takes_seven_frames_around_every_sixth(length: int) -> None:
    frames = torch.arange(length, dtype=torch.float32)[:, None]
    made = stack_frames(frames)
    assert made.shape == (math.ceil(length / 6), 7)
    for i, row in enumerate(made.tolist()):
        assert row == [float(min(max(6 * i + k, 0), length - 1)) for k in range(-3, 4)]


def test_both_together() -> None:
    assert fbank_lfr(torch.randn(16000)).shape == (17, 560)  # 98 frames
