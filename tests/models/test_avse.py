"""The audio-visual enhancer: shapes, independence of rows and padding, video in its place, the loss against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlspeech.config import AvseModel
from rlspeech.models.avse import AvseEnhancer, si_snr

RATE = 16000
SOUND = {"filters": 24, "kernel": 40, "stride": 20, "bottleneck": 16, "hidden": 20, "blocks": 3, "repeats": 2}
VIDEO = {"video_crop": 32, "video_size": 32, "video_stem": 4, "video_channels": [4, 6], "visual_blocks": 2}


def _cfg(**changes: Any) -> AvseModel:
    layers = [2, 2] if changes.get("variant") == "avse4" else [1, 1]
    return AvseModel(**{**SOUND, **VIDEO, "video_layers": layers, **changes})


def _model(seed: int = 0, **changes: Any) -> AvseEnhancer:
    """Random weights; norms hold statistics as after training, so that nothing is the identity."""
    torch.manual_seed(seed)
    model = AvseEnhancer(_cfg(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 1.5)
    for name, p in model.named_parameters():
        if "norm" in name and name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def _wav(batch: int = 1, channels: int = 1, samples: int = 8000, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(seed))


def _video(batch: int = 1, frames: int = 13, side: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, side, side), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("samples", [1, 39, 40, 41, 60, 999, 8000])
@pytest.mark.parametrize("variant", ["own", "avse4"])
@torch.no_grad()
def test_any_length_comes_out_as_it_went_in(samples: int, variant: str) -> None:
    model = _model(channels=2, variant=variant)
    wav, video = _wav(2, 2, samples), _video(2, max(1, -(-samples // 640)))
    made = model(wav, video)
    assert made.latent.shape == (2, 24, model.frames(samples)) and made.mask.shape == (2, 2, 24, model.frames(samples))
    assert made.real is None
    assert float(made.mask.min()) >= 0 and float(made.latent.min()) >= 0
    assert model.enhance(wav, video).shape == wav.shape


@pytest.mark.parametrize("kind", ["relu", "softplus"])
@torch.no_grad()
def test_masks_are_not_negative(kind: str) -> None:
    mask = _model(mask=kind)(_wav(), _video()).mask
    assert float(mask.min()) >= 0 and float(mask.std()) > 1e-3
    assert bool((mask == 0).any()) == (kind == "relu")


@pytest.mark.parametrize("variant", ["own", "avse4"])
@pytest.mark.parametrize("short", [5120, 5011, 41, 7999])
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch_or_its_padding(variant: str, short: int) -> None:
    model = _model(variant=variant)
    wav, video = _wav(3), _video(3)
    wav[1, :, short:] = 0
    samples = torch.tensor([8000, short, 8000])
    together = model.enhance(wav, video, None, samples)
    frames = -(-short // 640)
    alone = model.enhance(wav[1:2, :, :short], video[1:2, :frames])
    scale = float(alone.abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(together[1:2, :, :short], alone, atol=1e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(together[:1], model.enhance(wav[:1], video[:1]), atol=1e-5 * scale, rtol=1e-4)
    other = video.clone()
    other[1, frames:] = 255 - other[1, frames:]  # what the padding shows is not seen
    assert torch.equal(model.enhance(wav, other, None, samples)[1, :, :short], together[1, :, :short])


@torch.no_grad()
def test_no_video_is_features_of_zero() -> None:
    model = _model()
    wav, video = _wav(3), _video(3)
    mixed = model.enhance(wav, video, torch.tensor([True, False, True]))
    without, seen = model.enhance(wav), model.enhance(wav, video)
    torch.testing.assert_close(mixed[1], without[1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mixed[[0, 2]], seen[[0, 2]], atol=1e-6, rtol=1e-4)
    assert float((seen[1] - without[1]).abs().max()) > 1e-3  # and a video changes something
    features = model.encode_video(video, torch.tensor([True, False, True]))
    assert features is not None and not features[1].any() and features[0].any()


@pytest.mark.parametrize("variant", ["own", "avse4"])
@pytest.mark.parametrize("frame", [3, 12, 20])
def test_a_frame_reaches_the_sound_that_it_belongs_to(variant: str, frame: int) -> None:
    """The frames that a moment of sound listens to lie around the one that was shown then; norms over the clip are taken out first."""
    torch.manual_seed(0)
    model = AvseEnhancer(_cfg(variant=variant, visual_blocks=0)).eval()
    seen = torch.zeros(1, model.video.width, 25)
    seen[0, :, frame] = 1.0
    carried = model._at_latent_rate(seen, model.frames(RATE), None)[0, 0]
    centres = (torch.arange(len(carried)) * 20 + 20) / RATE
    middle = float((centres * carried).sum() / carried.sum())
    assert middle == pytest.approx((frame + 0.5) / 25, abs=0.001)  # seconds: the middle of the frame's 40 ms
    assert centres[carried > 0].min() > (frame - 0.5) / 25 - 0.002
    assert centres[carried > 0].max() < (frame + 1.5) / 25 + 0.002


def test_videos_of_other_sizes_are_cropped_or_padded() -> None:
    model = _model()
    base = _video(1, 5, 32)
    wide = torch.randint(0, 256, (1, 5, 48, 40), dtype=torch.uint8)
    wide[:, :, 8:40, 4:36] = base
    assert torch.equal(model.video.prepare(wide), model.video.prepare(base))  # the centre is what counts
    small = model.video.prepare(base[:, :, :20, :25])
    assert small.shape == (1, 5, 32, 32)
    grey = (base[:, :, :20, :25].float() / 255 - model.cfg.video_mean) / model.cfg.video_std
    torch.testing.assert_close(small[:, :, 6:26, 3:28], grey)
    torch.testing.assert_close(small[:, :, 0, 3:28], grey[:, :, 0])  # edges are repeated
    half = AvseEnhancer(_cfg(video_crop=32, video_size=16)).video.prepare(base)
    by_area = base.float().reshape(1, 5, 16, 2, 16, 2).mean((3, 5)) / 255
    torch.testing.assert_close(half, (by_area - model.cfg.video_mean) / model.cfg.video_std)


def _si_snr_numpy(output: np.ndarray, target: np.ndarray) -> float:
    """By projection, in double precision."""
    output, target = (np.asarray(x, float) - np.mean(x, dtype=float) for x in (output, target))
    along = np.dot(output, target) / np.dot(target, target) * target
    return float(10 * np.log10(np.sum(along**2) / np.sum((output - along) ** 2)))


def test_si_snr_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    target = rng.standard_normal((2, 2, 5000)).astype(np.float32) + 0.3
    output = (0.4 * target + 0.2 * rng.standard_normal(target.shape) - 0.1).astype(np.float32)
    found = si_snr(torch.from_numpy(output), torch.from_numpy(target))
    wanted = [[_si_snr_numpy(o, t) for o, t in zip(*pair, strict=True)] for pair in zip(output, target, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-3)
    moved = si_snr(torch.from_numpy(7 * output + 3), torch.from_numpy(0.1 * target))
    np.testing.assert_allclose(moved.numpy(), wanted, atol=2e-3)


def test_si_snr_of_padded_rows_is_that_of_their_samples() -> None:
    rng = np.random.default_rng(1)
    output, target = rng.standard_normal((2, 3, 1, 4000)).astype(np.float32)
    counts = [4000, 1234, 3999]
    for row, count in enumerate(counts):
        target[row, :, count:] = 0  # the model's output there is anything
    found = si_snr(torch.from_numpy(output), torch.from_numpy(target), torch.tensor(counts))
    wanted = [_si_snr_numpy(o[0, :n], t[0, :n]) for o, t, n in zip(output, target, counts, strict=True)]
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=1e-3)


def test_gradients_reach_every_part() -> None:
    model = _model().train()
    wav = _wav(2)
    (-si_snr(model.enhance(wav, _video(2)), 0.5 * wav + 0.1 * _wav(2, seed=5))).mean().backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0]
    assert [n for n in lacking if not n.endswith("bias")] == []
    assert model.video.stem.weight.grad is not None and float(model.video.stem.weight.grad.norm()) > 0


@torch.no_grad()
def test_centres_follow_the_filters_pitch() -> None:
    model = _model()
    t = torch.arange(40) / RATE
    hz = torch.linspace(600, 7000, 24)
    model.encoder.weight.copy_((torch.sin(2 * torch.pi * hz[:, None] * t) * torch.hann_window(40))[:, None])
    found = model.centres_hz()
    assert bool((found.diff() > 0).all())
    torch.testing.assert_close(found[4:20], hz[4:20], atol=250, rtol=0.0)
