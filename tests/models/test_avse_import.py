"""The AVSEC-4 baseline's weights: converted, they compute what its network computes; anything else is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from avse4_layout import baseline, random_weights
from safetensors.torch import save_file

from rlspeech.models.avse_import import UNUSED, convert_avse4, read_avse4
from rlspeech.types import UserError


def _inputs(channels: int, samples: int, frames: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    wav = 0.1 * torch.randn(batch, channels, samples, generator=rng)
    return wav, torch.randint(0, 256, (batch, frames, 112, 112), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("channels", "samples", "frames"),
    [(1, 8000, 13), (2, 8000, 13), (2, 7991, 13), (1, 8013, 6), (2, 3200, 30), (1, 40, 1)],
)
@torch.no_grad()
def test_converted_weights_compute_what_the_baseline_computes(channels: int, samples: int, frames: int) -> None:
    """Samples that fill no window, a video that ends early (zeros behind it), and one longer than the audio among them."""
    weights = random_weights(channels)
    wav, video = _inputs(channels, samples, frames, batch=2)
    wanted, made = baseline(weights, wav, video), convert_avse4(weights).enhance(wav, video)
    assert float(wanted.abs().max()) > 0.01
    assert made.shape == wanted.shape
    assert float((made - wanted).abs().max()) < 1e-4 * max(1.0, float(wanted.abs().max()))
    # the video matters to both
    assert samples == 40 or float((baseline(weights, wav, 255 - video) - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "model.separator.tcn.1.2.net.3.net.2.beta",
        "visual_frontend.resnet.layer3.outbna.running_var",
        "model.separator.visual_conv.1.net.3.weight",
        "visual_frontend.resnet.layer2.downsample.weight",
    ],
)
@torch.no_grad()
def test_no_tensor_is_left_behind(name: str) -> None:
    weights = random_weights()
    wav, video = _inputs(1, 2000, 4)
    before = convert_avse4(weights).enhance(wav, video)
    weights[name] = weights[name] * 3 + 0.5
    after = convert_avse4(weights).enhance(wav, video)
    assert float((after - before).abs().max()) > 1e-5
    assert float((after - baseline(weights, wav, video)).abs().max()) < 1e-4 * max(1.0, float(after.abs().max()))


def test_sizes_are_read_off_the_shapes() -> None:
    weights = random_weights(2, width=8, hidden=6, blocks=4, repeats=3, stem=3, stages=(3, 4, 5, 6), visual=1)
    wanted = {"channels": 2, "filters": 8, "kernel": 40, "stride": 20, "bottleneck": 8, "hidden": 6, "conv_kernel": 3}
    wanted |= {"blocks": 4, "repeats": 3, "video_stem": 3, "video_channels": [3, 4, 5, 6], "visual_blocks": 1}
    wanted |= {"video_layers": [2, 2, 2, 2], "level_dbfs": None, "mask": "relu", "video_crop": 112, "video_size": 112}
    assert wanted.items() <= convert_avse4(weights).cfg.model_dump().items()


def test_missing_and_unexpected_names_are_told() -> None:
    weights = random_weights()
    del weights["model.separator.tcn.0.2.net.1.weight"]
    weights["model.attention.weight"] = torch.zeros(3)
    with pytest.raises(UserError) as caught:
        convert_avse4(weights)
    assert "missing: model.separator.tcn.0.2.net.1.weight" in caught.value.why
    assert "unexpected: model.attention.weight" in caught.value.why
    with pytest.raises(UserError, match="(?s)not the AVSEC-4.*why: .*model.encoder.conv1d_U.weight"):
        convert_avse4({"encoder.weight": torch.zeros(3)})
    lean = random_weights()
    del lean[UNUSED]  # never used by the baseline either
    convert_avse4(lean)


def test_shapes_that_do_not_fit_are_told() -> None:
    weights = random_weights()
    weights["model.separator.tcn.1.1.net.0.weight"] = torch.zeros(9, 12, 1)
    with pytest.raises(UserError, match=r"tcn\.1\.1\.net\.0\.weight .*\(9, 12, 1\)"):
        convert_avse4(weights)
    with pytest.raises(UserError, match=r"gamma .*\(10,\)"):
        convert_avse4({**random_weights(), "model.separator.tcn.0.1.net.2.gamma": torch.zeros(10)})
    wide = random_weights()
    wide["model.encoder.conv1d_U.weight"] = torch.zeros(12, 1, 16)
    with pytest.raises(UserError, match="of 16 samples"):
        convert_avse4(wide)
    far = {**random_weights(), "model.separator.tcn.99999999.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="not the AVSEC-4"):
        convert_avse4(far)


class Bomb:
    """Runs a command when a careless reader loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_lightning_file_is_read_without_running_it(tmp_path: Path) -> None:
    weights = random_weights()
    lightning = {"epoch": 3, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 1e-4, "loss": None}}
    lightning |= {"state_dict": weights, "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}]}
    lightning |= {"callbacks": {"best": torch.tensor(1.0)}}
    torch.save(lightning, tmp_path / "pretrained.ckpt")
    found = read_avse4(tmp_path / "pretrained.ckpt")
    assert found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in found)
    torch.save({**lightning, "extra": Bomb(tmp_path / "ran")}, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match="(?s)cannot read.*try: .*save_file"):
        read_avse4(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)  # it is a bomb: otherwise this proves nothing
    assert (tmp_path / "ran").exists()


def test_safetensors_and_half_precision_are_read(tmp_path: Path) -> None:
    weights = {k: v.half() if v.is_floating_point() else v for k, v in random_weights().items()}
    save_file(weights, tmp_path / "w.safetensors")
    found = read_avse4(tmp_path / "w.safetensors")
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}
    convert_avse4(found)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04truncated"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_files_that_are_none_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"bad{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot read"):
        read_avse4(tmp_path / f"bad{suffix}")
    with pytest.raises(UserError, match="no file"):
        read_avse4(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("content", [{}, {"state_dict": {"a": 1}}, [torch.zeros(1)], {"state_dict": {}}])
def test_files_without_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="no weights"):
        read_avse4(tmp_path / "bad.ckpt")
