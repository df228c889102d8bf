"""Waveform to spectrum and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlspeech.config import FlowModel
from rlspeech.models.flow import FlowEnhancer
from rlspeech.models.spectra import MelFrontEnd, StftFrontEnd, build_front_end, mel_filters
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
def test_mel_filters_are_librosas(rate: int, n_fft: int, mels: int, high: float | None, low: float) -> None:
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=low, fmax=high)
    np.testing.assert_allclose(mel_filters(rate, n_fft, mels, high, low).numpy(), theirs, atol=1e-6)


MEL = dict(
    front_end="mel",
    head="linear",
    n_fft=64,
    hop=16,
    n_mels=12,
    dim=32,
    depth=1,
    heads=2,
    conv_pos_kernel=7,
    conv_pos_groups=4,
)


def test_log_mel_shapes_and_levels() -> None:
    front = build_front_end(FlowModel(**MEL))
    assert isinstance(front, MelFrontEnd)
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
    SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=12,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            normalize_before=False,
        )
    ).save_pretrained(folder)
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
    for changes, clue in (
        ({}, "needs a vocoder"),
        ({"vocoder": str(tmp_path / "none")}, "cannot load"),
        ({"vocoder": str(vocoder), "hop": 32}, "does not fit"),
    ):
        with pytest.raises(UserError, match=clue):
            build_front_end(FlowModel(**{**MEL, **changes})).decode(x, 300)
    with pytest.raises(UserError, match="12 mels"):
        build_front_end(FlowModel(**{**MEL, "n_mels": 13, "vocoder": str(vocoder)})).decode(torch.randn(1, 5, 13), 60)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="cannot load"):
        build_front_end(FlowModel(**{**MEL, "vocoder": str(tmp_path)})).decode(x, 300)
