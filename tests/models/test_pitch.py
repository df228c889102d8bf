"""The pitch tracker against tones and glides of known pitch; padding decides nothing."""

from __future__ import annotations

import math

import pytest
import torch

from rlspeech.models.spectra import track_pitch

RATE, HOP = 16000, 160


def voice(hertz: torch.Tensor) -> torch.Tensor:
    """Harmonics of a pitch (T,) in Hz, falling by 6 dB an octave."""
    phase = 2 * math.pi * (hertz.double() / RATE).cumsum(0)
    return (0.1 * sum(torch.sin(k * phase) / k for k in range(1, 12))).float()  # type: ignore[union-attr]


@pytest.mark.parametrize("hertz", [75.0, 110.0, 163.0, 247.0, 390.0])
def test_a_tone_has_its_pitch(hertz: float) -> None:
    pitch = track_pitch(voice(torch.full((8000,), hertz))[None], RATE, HOP, 50)[0, 4:46]
    assert ((pitch / hertz).log2().abs() * 1200 < 10).all()


def test_a_glide_is_followed_and_lands_on_the_right_frames() -> None:
    hertz = torch.linspace(100, 220, 16000)
    pitch = track_pitch(voice(hertz)[None], RATE, HOP, 100)[0]
    truth = hertz[HOP // 2 :: HOP]
    assert ((pitch / truth).log2().abs() * 1200)[5:95].max() < 25


def test_noise_and_silence_have_no_pitch() -> None:
    torch.manual_seed(0)
    quiet = torch.cat([torch.zeros(1, 8000), torch.randn(1, 8000) * 0.1])
    assert (track_pitch(quiet, RATE, HOP, 50) == 0).all()


def test_padding_and_neighbours_decide_nothing() -> None:
    torch.manual_seed(0)
    short, long = voice(torch.full((4000,), 130.0)), voice(torch.full((8000,), 210.0)) + 0.02 * torch.randn(8000)
    both = torch.stack([torch.nn.functional.pad(short, (0, 4000)), long])
    real = torch.tensor([25, 50])
    made = track_pitch(both, RATE, HOP, 50, real=real)
    assert torch.equal(made[0, :25], track_pitch(short[None], RATE, HOP, 25)[0]) and (made[0, 25:] == 0).all()
    assert torch.equal(made[1], track_pitch(long[None], RATE, HOP, 50)[0])


def test_a_waveform_shorter_than_a_frame() -> None:
    assert track_pitch(torch.zeros(2, 3), RATE, HOP, 1).shape == (2, 1)
