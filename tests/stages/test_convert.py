"""``rlspeech convert``: a folder that every stage can load, or a message and nothing on disk."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from avse4_layout import random_weights
from safetensors.torch import load_file, save_file
from tiny_cli import called, refused, rows_of
from tiny_tuned import TASKS, Run, answer, language, tuned

from rlspeech.config import Lora
from rlspeech.data.audio import save_audio
from rlspeech.models.avse_import import convert_avse4
from rlspeech.models.hub import load_model
from rlspeech.stages import convert
from rlspeech.tasks import get_task
from rlspeech.types import UserError


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.save({"state_dict": random_weights(2)}, tmp_path / "pretrained.ckpt")
    return tmp_path / "pretrained.ckpt"


@torch.no_grad()
def test_the_folder_loads_as_any_checkpoint(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "baseline"
    summary = called("convert", "avse4", published, "--out", out)
    model, config = load_model(str(out), "avse")
    assert summary["checkpoint"] == str(out) and summary["parameters"] == sum(p.numel() for p in model.parameters())
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
        convert.avse4(str(tmp_path / "less.safetensors"), str(out))
    with pytest.raises(UserError, match="--out|output"):
        convert.avse4(str(published), None)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="exists"):
        convert.avse4(str(published), str(out))
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_manifest_goes_out_and_comes_back(tmp_path: Path) -> None:
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
        summary = called("convert", "manifest", data, "--to", to, out)
        assert (summary["out"], summary["rows"], summary["left_out"]) == (str(out), 3, {"bad line in the manifest": 2})
        assert [p.name for p in out.parent.iterdir()] == [name], "nothing half-made is left"
        prepared = called("prepare", to, out, "--out", tmp_path / "again" / to, "--workers", "0")
        (made,) = prepared["manifests"].values()
        for row, back in zip(rows, rows_of(made["path"]), strict=True):
            assert {k: back[k] for k in ("id", "speaker_id", "language", "duration")}.items() <= row.items()
            assert back["text"].split() == str(row["text"]).split()
        assert "exists" in refused("convert", "manifest", data, "--to", to, out)
    for arguments in (["--to", "esperanto", "x"], ["--to", "nemo"], ["--to", "kaldi", "x"]):
        (tmp_path / "none.jsonl").write_text('{"torn')
        assert refused("convert", "manifest", tmp_path / "none.jsonl", *arguments) and not Path("x").exists()


def test_scores_go_out_and_come_back(tmp_path: Path) -> None:
    source, out, again = (tmp_path / name for name in ("scores.jsonl", "versa.jsonl", "again.jsonl"))
    source.write_text('{"key": "a", "system": "m", "pesq_wb": 2.5, "stamp": "0", "errors": {}}\n')
    summary = called("convert", "scores", source, "--to", "versa", "--out", out)
    assert json.loads(out.read_text()) == {"key": "a", "pesq": 2.5}
    assert summary["metrics"] == [{"versa": "pesq", "rlspeech": "pesq_wb", "values": 1, "missing": 0}]
    called("convert", "scores", out, "--to", "rlspeech", again, "--system", "m")
    assert json.loads(again.read_text())["pesq_wb"] == 2.5
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["again.jsonl", "again.meta.json", "scores.jsonl", "versa.jsonl"]
    again.unlink()
    shown = refused("convert", "scores", out, "--to", "rlspeech", again)
    assert "again.meta.json" in shown, "what stands beside it is not written over either"


def test_of_a_checkpoint_weights_and_card_are_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, **options: bool) -> None:
            sent.update(name=name, **options)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            if repo_id == "user/down":
                raise TimeoutError("no answer\nin 10 s")
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))
    folder = tmp_path / "run" / "checkpoints" / "step_000002"
    shutil.copytree(Path(__file__).parents[1] / "fixtures/pretrain/checkpoints/step_000002", folder)
    (folder.parent / "latest").write_text(folder.name)
    card = (folder / "README.md").read_text() + "- **data**: /home/me/speech/train.jsonl, https://a.b/c/d, a/b/c\n"
    (folder / "README.md").write_text(card)
    (folder / "metrics.jsonl").write_text("{}")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for name, hint in (("user", "USER/NAME"), ("user/down", "HF_TOKEN")):
        assert hint in refused("convert", "hub", tmp_path / "run", "--push", name)
    summary = called("convert", "hub", tmp_path / "run", "--push", "user/name")
    assert summary["url"].endswith("user/name") and summary["shortened"] == ["README.md"]
    assert summary["left_out"] == ["metrics.jsonl", "state.json", "state.safetensors"]
    assert sent.pop("name") == "user/name" and sent.pop("private") and sent.pop("exist_ok")
    assert sorted(sent) == summary["files"] == ["README.md", "config.json", "model.safetensors"]
    assert sent["README.md"].decode() == card.replace("/home/me/speech", "speech")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    called("convert", "hub", folder, "--push", "user/name", "--public")
    assert sent["private"] is False


# -- adapters and merged checkpoints: three ways to the same answers


def near(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_run_adapter_and_merged_answer_the_same(task: str, runs: dict[str, Run], tmp_path: Path) -> None:
    from peft import AutoPeftModel, PeftModel

    run, work = runs[task], get_task(task)
    assert near(run.answer, run.before) > 1e-3, "the adapter changes something"
    summary = convert.merge_lora(str(run.folder), "merged", str(tmp_path / "merged"))
    assert near(answer(task, work.load(str(tmp_path / "merged"))[0]), run.answer) < 1e-5
    assert summary["task"] == task
    assert not [p.name for p in (tmp_path / "merged").iterdir() if p.name.startswith(("state", "adapter"))]

    adapter = tmp_path / "adapter"
    summary = convert.merge_lora(str(run.folder / "checkpoints" / "step_000003"), "adapter", str(adapter))
    assert summary["base"] == str(run.base) and summary["parameters"] > 0
    sizes = [sum(p.stat().st_size for p in folder.glob("*.safetensors")) for folder in (adapter, tmp_path / "merged")]
    assert sizes[0] < 0.9 * sizes[1]
    model, _ = work.load(str(run.base))
    inner = model.net if task in ("asr", "tts") else model
    PeftModel.from_pretrained(inner, str(adapter))  # changes the layers of ``inner`` in place
    assert near(answer(task, model), run.answer) < 1e-5

    if task in ("asr", "tts"):  # transformers and peft load base and adapter by themselves
        loaded: Any = AutoPeftModel.from_pretrained(str(adapter))
        assert near(language(task, loaded.get_base_model().eval()), run.answer) < 1e-5

    convert.merge_lora(str(adapter), "merged", str(tmp_path / "again"))
    assert near(answer(task, work.load(str(tmp_path / "again"))[0]), run.answer) < 1e-5
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run.base)


@pytest.mark.slow
def test_the_command(runs: dict[str, Run], tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    assert called("convert", "lora", runs["flowse"].folder, "--to", "adapter", out)["out"] == str(out)
    hub = pytest.importorskip("huggingface_hub")
    head = hub.metadata_load(out / "README.md")
    assert head["library_name"] == "peft" and "lora" in head["tags"]
    assert "PeftModel.from_pretrained" in (out / "README.md").read_text()
    there = str(tmp_path / "x")
    for arguments in (["--to", "adapter", there], ["--to", "both", there], ["--to", "merged", str(out)]):
        assert refused("convert", "lora", out, *arguments) and not (tmp_path / "x").exists()
    save_audio(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000)
    shown = refused("enhance", tmp_path / "a.wav", "--model", out, "--out", tmp_path / "x")
    assert f"rlspeech convert lora {out} --to merged" in shown, "an adapter is no model"


@pytest.mark.slow
def test_a_base_that_has_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned("flowse", tmp_path, Lora(rank=2, alpha=4))
    other = tuned("flowse", tmp_path / "other", Lora(rank=2, alpha=4))
    convert.merge_lora(str(run.folder), "adapter", str(tmp_path / "a"))
    assert "does not fit" not in capsys.readouterr().err
    shutil.copyfile(other.folder / "checkpoints" / "step_000003" / "model.safetensors", run.base / "model.safetensors")
    convert.merge_lora(str(run.folder), "adapter", str(tmp_path / "b"))
    assert "is not what the run started from any more" in capsys.readouterr().err
    shutil.rmtree(run.base)
    convert.merge_lora(str(run.folder), "adapter", str(tmp_path / "c"))
    assert "is not there any more" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_converted(runs: dict[str, Run], tmp_path: Path) -> None:
    whole = tuned("flowse", tmp_path / "whole", None)
    for to in ("adapter", "merged"):
        with pytest.raises(UserError, match="adapter") as error:
            convert.merge_lora(str(whole.folder), to, str(tmp_path / "out"))
        assert "rlspeech enhance" in error.value.try_this
    for source, why in ((runs["flowse"].base, "was not tuned"), (tmp_path / "gone", "no checkpoint")):
        with pytest.raises(UserError, match=why):
            convert.merge_lora(str(source), "merged", str(tmp_path / "out"))
    spoilt = tmp_path / "spoilt"
    shutil.copytree(runs["flowse"].folder / "checkpoints" / "step_000003", spoilt)
    (spoilt / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        convert.merge_lora(str(spoilt), "adapter", str(tmp_path / "out"))
    convert.merge_lora(str(runs["flowse"].folder), "adapter", str(tmp_path / "adapter"))
    about = json.loads((tmp_path / "adapter" / "rlspeech.json").read_text())
    other = {"task": "asr", "base": str(runs["asr"].base)}
    for change, why in ((other, "does not fit"), ({"task": None}, "does not say")):
        (tmp_path / "adapter" / "rlspeech.json").write_text(json.dumps(about | change))
        config = tmp_path / "adapter" / "adapter_config.json"
        base = {"base_model_name_or_path": change.get("base", about["base"])}
        config.write_text(json.dumps(json.loads(config.read_text()) | base))
        with pytest.raises(UserError, match=why):
            convert.merge_lora(str(tmp_path / "adapter"), "merged", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- averages


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [p for p in folder.glob("*.safetensors") if p.stem != "state"]
    return {f"{p.name}:{k}": v for p in files for k, v in load_file(p).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    same = [one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one]
    return set(one) == set(other) and all(same)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_the_mean_of_runs_and_steps_along_it(task: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run, work = runs[task], get_task(task)
    one, start, half = run.folder / "checkpoints" / "step_000003", tmp_path / "start", tmp_path / "half"
    work.save(start, work.load(str(run.base))[0], facts={})
    shutil.copytree(one, half, ignore=shutil.ignore_patterns("state*", "adapter"))
    save_file({k: v.half() for k, v in load_file(one / "model.safetensors").items()}, half / "model.safetensors")
    made = {}
    for name, parts, step in (
        *(("1", [run.folder], 1), ("3", [one, one, run.folder], 1), ("0", [one, one], 0), ("2", [one], 2)),
        *(("mid", [one, start, "--base", run.base], 1), ("fp16", [half, half], 1), ("near", [one], 0.5)),
    ):
        summary = called("convert", "average", *parts, "--step", step, "--out", tmp_path / name)
        made[name] = weights_of(tmp_path / name)
    assert summary["base"] == str(run.base) and summary["parts"] == [str(one)] and summary["task"] == task
    whole, old = weights_of(one), weights_of(start)
    assert not equal(whole, old) and equal(made["1"], whole) and equal(made["3"], whole) and equal(made["0"], old)
    assert equal(made["mid"], made["near"]) and equal(made["fp16"], weights_of(half))
    for name, two in made["2"].items():
        torch.testing.assert_close(two, 2 * whole[name] - old[name])
    assert near(answer(task, work.load(str(tmp_path / "3"))[0]), run.answer) < 1e-5
    card = (tmp_path / "near" / "README.md").read_text()
    assert "000003" in card and "0.5 times" in card and not (tmp_path / "near" / "state.json").exists()


@pytest.mark.slow
def test_checkpoints_without_a_mean(runs: dict[str, Run], tmp_path: Path) -> None:
    flow, out = runs["flowse"], tmp_path / "out"
    copy, other = (tmp_path / name for name in ("copy", "other"))
    for folder in (copy, other):
        shutil.copytree(flow.folder / "checkpoints" / "step_000003", folder)
    config = json.loads((copy / "config.json").read_text())
    config["facts"]["rl"]["from"] = "elsewhere"
    (copy / "config.json").write_text(json.dumps(config))
    (other / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"sigma_max": 0.9}}))
    for wrong, why in (
        *(([runs["avse"].folder], "avse"), ([copy], "--base"), ([other], "model"), ([tmp_path / "none"], "none")),
        ([flow.folder, "--step", "nan"], "nan"),
    ):
        assert why in refused("convert", "average", flow.folder, *wrong, "--out", out) and not out.exists()
    assert "elsewhere" in refused("convert", "average", copy, "--step", "0.5", "--out", out) and not out.exists()
    save_file({"x": torch.zeros(1)}, copy / "model.safetensors")
    assert "model.safetensors" in refused("convert", "average", flow.folder, copy, "--base", flow.base, "--out", out)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
