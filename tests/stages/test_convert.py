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
from rlspeech.models.hub import load_model
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
    model, config = load_model(str(out), "avse")
    assert told["checkpoint"] == str(out) and told["parameters"] == sum(p.numel() for p in model.parameters())
    assert config["facts"] == {"stage": "convert", "layout": "avse4", "source": "pretrained.ckpt"}
    wav, video = 0.1 * torch.randn(1, 2, 4000), torch.randint(0, 256, (1, 7, 112, 112), dtype=torch.uint8)
    assert torch.equal(model.enhance(wav, video), convert_avse4(random_weights(2)).enhance(wav, video))
    assert sorted(p.name for p in out.parent.iterdir()) == ["baseline"]  # nothing half-made is left
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o644


def test_what_cannot_be_converted_leaves_nothing(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = random_weights()
    del weights["model.decoder.basis_signals.weight"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="not the AVSEC-4"):
        convert.run("avse4", str(tmp_path / "less.safetensors"), str(out))
    with pytest.raises(UserError, match="no layout"):
        convert.run("avse3", str(published), str(out))
    with pytest.raises(UserError, match="--out|output"):
        convert.run("avse4", str(published), None)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="exists"):
        convert.run("avse4", str(published), str(out))
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


# -- manifests and scores ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_manifest_goes_out_and_comes_back(tmp_path: Path) -> None:
    import numpy as np
    import soundfile as sf

    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for n in range(3):
        sf.write(data / f"{n}.wav", 0.1 * np.random.default_rng(n).standard_normal(32000), 16000)
        row = {"id": f"s{n}-u{n}", "audio_filepath": f"{n}.wav", "duration": 2.0, "sample_rate": 16000}
        rows.append(row | {"text": f"word {n}\nword", "speaker_id": f"s{n}", "language": "en"})
    (data / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"audio_filepath": 5}\n{"torn')
    for to, name in (("nemo", "m.json"), ("kaldi", "train"), ("lhotse", "cuts_train.jsonl.gz")):
        out = tmp_path / to / name
        result = CliRunner().invoke(app, ["convert", "manifest", str(data), "--to", to, str(out), "--json"])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert (told["out"], told["rows"], told["left_out"]) == (str(out), 3, {"bad line in the manifest": 2})
        assert [p.name for p in out.parent.iterdir()] == [name], "nothing half-made is left"
        again = tmp_path / "again" / to
        result = CliRunner().invoke(app, ["prepare", to, str(out), "--out", str(again), "--workers", "0", "--json"])
        assert result.exit_code == 0, result.output
        (made,) = json.loads(result.stdout)["manifests"].values()
        back = [json.loads(line) for line in Path(made["path"]).read_text().splitlines()]
        assert [
            (r["id"], " ".join(r["text"].split()), r["speaker_id"], r["language"], r["duration"]) for r in back
        ] == [(r["id"], " ".join(str(r["text"]).split()), r["speaker_id"], "en", 2.0) for r in rows]
        result = CliRunner().invoke(app, ["convert", "manifest", str(data), "--to", to, str(out)])
        assert result.exit_code == 2 and "exists" in result.stderr
    for arguments in (["--to", "esperanto", "x"], ["--to", "nemo"], ["--to", "kaldi", "x"]):
        (tmp_path / "none.jsonl").write_text('{"torn')
        result = CliRunner().invoke(app, ["convert", "manifest", str(tmp_path / "none.jsonl"), *arguments])
        assert result.exit_code == 2 and "Traceback" not in result.output and not Path("x").exists()


def test_scores_go_out_and_come_back(tmp_path: Path) -> None:
    source, out, again = (tmp_path / name for name in ("scores.jsonl", "versa.jsonl", "again.jsonl"))
    source.write_text('{"key": "a", "system": "m", "pesq_wb": 2.5, "stamp": "0", "errors": {}}\n')
    result = CliRunner().invoke(app, ["convert", "scores", str(source), "--to", "versa", "--out", str(out), "--json"])
    assert result.exit_code == 0 and json.loads(out.read_text()) == {"key": "a", "pesq": 2.5}
    assert json.loads(result.stdout)["metrics"] == [{"versa": "pesq", "rlspeech": "pesq_wb", "values": 1, "missing": 0}]
    result = CliRunner().invoke(
        app, ["convert", "scores", str(out), "--to", "rlspeech", str(again), "--system", "m", "--json"]
    )
    assert result.exit_code == 0 and json.loads(again.read_text())["pesq_wb"] == 2.5
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["again.jsonl", "again.meta.json", "scores.jsonl", "versa.jsonl"]
    again.unlink()
    result = CliRunner().invoke(app, ["convert", "scores", str(out), "--to", "rlspeech", str(again)])
    assert result.exit_code == 2
    assert "again.meta.json" in result.stderr, "what stands beside it is not written over either"
