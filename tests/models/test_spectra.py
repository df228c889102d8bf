"""Front ends, mel filters, Kaldi features and pitch, against independent implementations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_flow import TINY
from transformers import audio_utils

from rlspeech.config import FlowModel
from rlspeech.models.flow import FlowEnhancer
from rlspeech.models.spectra import MelFrontEnd, StftFrontEnd, fbank, fbank_lfr, mel_filters, stack_frames, track_pitch
from rlspeech.types import UserError


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 256), (510, 128), (64, 32)])
@pytest.mark.parametrize("samples", [1, 255, 256, 257, 8000, 16001])
def test_the_stft_inverts(n_fft: int, hop: int, samples: int) -> None:
    front = StftFrontEnd(FlowModel(n_fft=n_fft, hop=hop))
    wav = 0.1 * torch.randn(2, samples)
    x = front.encode(wav)
    assert x.shape == (2, front.frames(samples), front.width)  # masks are made from frames()
    torch.testing.assert_close(front.decode(x, samples), wav, atol=1e-5, rtol=0)


def test_compression_keeps_phases_and_takes_a_power() -> None:
    wav = 0.1 * torch.randn(1, 4000)
    plain, packed = (StftFrontEnd(FlowModel(compress=p)) for p in (1.0, 0.5))
    a, b = plain.unpack(plain.encode(wav)), packed.unpack(packed.encode(wav))
    torch.testing.assert_close(b.abs(), a.abs().sqrt(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((a.conj() * b).imag, torch.zeros_like(a.real), atol=1e-5, rtol=0)
    assert float(packed.encode(torch.zeros(1, 4000)).abs().max()) == 0


def test_decoding_has_finite_gradients_at_silence() -> None:
    front = StftFrontEnd(FlowModel())
    x = torch.zeros(1, 10, front.width, requires_grad=True)
    front.decode(x, 2304).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("rate", "n_fft", "mels", "high", "low"),
    [(24000, 1920, 80, 8000.0, 0.0), (16000, 512, 64, 7600.0, 20.0), (16000, 321, 120, None, 0.0)],
)
def test_mel_filters_are_librosas(
    librosa: Any, rate: int, n_fft: int, mels: int, high: float | None, low: float
) -> None:
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=low, fmax=high)
    np.testing.assert_allclose(mel_filters(rate, n_fft, mels, high, low).numpy(), theirs, atol=1e-6)


MEL = TINY | dict(front_end="mel", head="linear", n_fft=64, hop=16, n_mels=12)


def test_log_mel_shapes_and_levels() -> None:
    front = MelFrontEnd(FlowModel(**MEL))
    wav = 0.1 * torch.randn(2, 1001)
    x = front.encode(wav)
    assert x.shape == (2, front.frames(1001), 12)
    torch.testing.assert_close(front.encode(10 * wav) - x, torch.full_like(x, np.log(10.0)), atol=1e-4, rtol=0)
    torch.testing.assert_close(front.encode(torch.zeros(1, 400)), torch.full((1, 25, 12), np.log(1e-5)))
    assert front.encode(wav[:, :1]).shape == (2, front.frames(1), 12)  # shorter than a window


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vocoder")
    up = {"upsample_initial_channel": 16, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]}
    block = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "normalize_before": False}
    config = SpeechT5HifiGanConfig(model_in_dim=12, sampling_rate=16000, **up, **block)
    SpeechT5HifiGan(config).save_pretrained(folder)
    return folder


def test_a_hifigan_folder_is_the_vocoder(vocoder: Path) -> None:
    from transformers import SpeechT5HifiGan

    model = FlowEnhancer(FlowModel(**MEL, vocoder=str(vocoder)))
    count = sum(p.numel() for p in model.parameters())
    x = torch.randn(2, 25, 12)
    wav = model.front.decode(x, 397)
    assert wav.shape == (2, 397) and 0 < float(wav.abs().max()) <= 1
    torch.testing.assert_close(wav, SpeechT5HifiGan.from_pretrained(vocoder)(x)[:, :397])
    assert sum(p.numel() for p in model.parameters()) == count  # frozen, and not in the checkpoint
    assert not any("vocoder" in k for k in model.state_dict())


def test_a_vocoder_that_is_missing_or_does_not_fit(vocoder: Path, tmp_path: Path) -> None:
    x = torch.randn(1, 25, 12)
    other = {"vocoder": str(vocoder), "hop": 32}
    cases = {"needs a vocoder": {}, "cannot load": {"vocoder": str(tmp_path / "none")}, "does not fit": other}
    for clue, changes in cases.items():
        with pytest.raises(UserError, match=clue):
            MelFrontEnd(FlowModel(**{**MEL, **changes})).decode(x, 300)
    with pytest.raises(UserError, match="12 mels"):
        MelFrontEnd(FlowModel(**{**MEL, "n_mels": 13, "vocoder": str(vocoder)})).decode(torch.randn(1, 5, 13), 60)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="cannot load"):
        MelFrontEnd(FlowModel(**{**MEL, "vocoder": str(tmp_path)})).decode(x, 300)


def test_kaldis_features_are_transformers() -> None:
    wav = (0.1 * np.random.default_rng(0).standard_normal(2100)).astype(np.float32)
    bank = audio_utils.mel_filter_bank(257, 80, 20, 8000, 16000, None, "kaldi", triangularize_in_mel_space=True)
    window = audio_utils.window_function(400, "hamming", periodic=False)
    how = {"power": 2.0, "center": False, "preemphasis": 0.97, "remove_dc_offset": True, "log_mel": "log"}
    wanted = audio_utils.spectrogram(wav, window, 400, 160, 512, mel_filters=bank, mel_floor=1.2e-7, **how).T
    made = fbank(torch.from_numpy(wav)).numpy()
    assert made.shape == wanted.shape == (1 + (2100 - 400) // 160, 80)
    np.testing.assert_allclose(made, wanted, atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 100, 399, 16000])
def test_silence_lies_at_the_floor_and_less_than_a_frame_is_one(samples: int) -> None:
    made = fbank(torch.zeros(samples))
    assert made.shape == (98 if samples == 16000 else 1, 80)
    assert torch.allclose(made, torch.tensor(torch.finfo(torch.float32).eps).log())
    assert fbank_lfr(torch.randn(16000)).shape == (17, 560)  # of 98 frames


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 12, 13, 50])
def test_stacking_takes_seven_frames_around_every_sixth(length: int) -> None:
    frames = torch.arange(length, dtype=torch.float32)[:, None]
    made = stack_frames(frames)
    assert made.shape == (math.ceil(length / 6), 7)
    for i, row in enumerate(made.tolist()):
        assert row == [float(min(max(6 * i + k, 0), length - 1)) for k in range(-3, 4)]


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
