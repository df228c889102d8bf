"""``rlspeech convert``: a folder that every stage can load, or a message and nothing on disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from avse4_layout import random_weights
from safetensors.torch import save_file
from typer.testing import CliRunner

from rlspeech.cli import app
from rlspeech.models.avse_import import convert_avse4
from rlspeech.models.hub import load_avse
from rlspeech.stages import convert
from rlspeech.types import UserError


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.save({"state_dict": random_weights(2)}, tmp_path / "pretrained.ckpt")
    return tmp_path / "pretrained.ckpt"


@torch.no_grad()
def test_the_folder_loads_as_any_checkpoint(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "baseline"
    result = CliRunner().invoke(app, ["convert", "avse4", str(published), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    model, config = load_avse(str(out))
    assert told["checkpoint"] == str(out) and told["parameters"] == sum(p.numel() for p in model.parameters())
    assert config["facts"] == {"stage": "convert", "layout": "avse4", "source": "pretrained.ckpt"}
    wav, video = 0.1 * torch.randn(1, 2, 4000), torch.randint(0, 256, (1, 7, 112, 112), dtype=torch.uint8)
    assert torch.equal(model.enhance(wav, video), convert_avse4(random_weights(2)).enhance(wav, video))
    assert sorted(p.name for p in out.parent.iterdir()) == ["baseline"]  # nothing half-made is left
    assert stat.S_IMODE(out.stat().st_mode) == 0o755 and stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o644


def test_what_cannot_be_converted_leaves_nothing(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = random_weights()
    del weights["model.decoder.basis_signals.weight"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="not the AVSEC-4"):
        convert.run("avse4", str(tmp_path / "less.safetensors"), str(out))
    with pytest.raises(UserError, match="no layout"):
        convert.run("avse3", str(published), str(out))
    with pytest.raises(UserError, match="no output folder"):
        convert.run("avse4", str(published), None)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="there already"):
        convert.run("avse4", str(published), str(out))
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
