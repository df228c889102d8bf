from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest
import torch

from rlspeech import log
from rlspeech.models.folder import loading, torchaudio_problem
from rlspeech.models.hub import KINDS
from rlspeech.rewards.squim import Squim
from rlspeech.stages import doctor
from rlspeech.types import UserError


def look() -> dict[str, Any]:
    summary = doctor.run()
    json.dumps(log.plain(summary))
    return summary


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, Any], str]:
    """What it says of this installation as it is, and what it prints; looking takes a while."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        return look(), shown.getvalue()


def test_it_says_what_is_here_and_why_the_rest_is_not(plain: tuple[dict[str, Any], str]) -> None:
    summary, shown = plain
    assert summary["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert summary["packages"]["torch"] == metadata.version("torch") == summary["torch"]["version"]
    assert summary["devices"][0]["name"] == "cpu" and summary["devices"][0]["usable"]
    assert summary["threads"]["cores"] >= 1
    assert {"dnsmos", "stoi", "pesq_wb", "squim"} <= {r["name"] for r in summary["rewards"]}
    assert {a["name"] for a in summary["assets"]} == {*doctor.ASSETS, *KINDS}
    assert all(word in shown for word in ("torch", "cpu", "estoi", "Embedded", "torchaudio"))
    for part in ("devices", "rewards", "assets", "features"):
        for entry in summary[part]:
            assert entry["usable"] == (entry["why_not"] == ""), entry


def test_it_survives_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    def broken() -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises
    for part in ("_threads", "_rewards", "_torchaudio", "_compiler", "_assets"):
        monkeypatch.setattr(doctor, part, broken)
    summary = look()
    assert set(summary["packages"].values()) == {None} and summary["python"]
    assert "error" in summary["devices"] and any(p.startswith("torch could not") for p in summary["problems"])
    assert summary["rewards"] == {"error": "OSError: libcudart.so.13: cannot open shared object file"}
    assert any("numpy is not installed" in p for p in summary["problems"]) and not summary["ok"]


def test_missing_assets_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "assets" / "flowse").mkdir(parents=True)
    (tmp_path / "assets" / "flowse" / "config.json").write_text("{}")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    found = {a["name"]: a for a in doctor._assets()}
    assert "model.safetensors" in found["flowse"]["why_not"]
    assert "config.json" not in found["flowse"]["why_not"].split(" missing")[0]
    assert found["flowse"]["bytes"] == 2 and not found["demo"]["usable"]
    why = {f["name"]: f["why_not"] for f in doctor.usable_features()}["recognition"]
    assert "no embedded asr" in why and "--model FOLDER" in why


def test_a_torchaudio_that_does_not_import_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open it')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    importlib.invalidate_caches()
    torchaudio_problem.cache_clear()
    try:
        summary = look()
        for load, cause in ((lambda: importlib.import_module("torchaudio"), "uninstall"), (lambda: 1 / 0, "another")):
            with pytest.raises(UserError) as caught, loading("a recogniser", "another one"):
                load()
            assert cause in caught.value.try_this
        with pytest.raises(UserError, match=re.escape(f"beside torch {torch.__version__} (libcudart")):
            Squim()
    finally:
        torchaudio_problem.cache_clear()
    assert summary["torchaudio"]["installed"] and not summary["torchaudio"]["usable"]
    assert "libcudart" in summary["torchaudio"]["why_not"] and "transformers" in summary["torchaudio"]["why_not"]
    assert "uninstall torchaudio" in " ".join(summary["problems"])
    assert not next(r for r in summary["rewards"] if r["name"] == "squim")["usable"]


def test_it_lists_recognisers_and_normalisers(plain: tuple[dict[str, Any], str]) -> None:
    summary, shown = plain
    usable = {r["name"] for r in summary["recognisers"] if r["usable"]}
    assert {"fun_asr_nano", "qwen2_audio", "voxtral", "whisper"} <= usable
    assert {"basic-1", "english-1", "none-1"} <= set(summary["normalisers"])
    licences = {c["name"]: c["what"].partition("licence ")[2] for c in summary["codecs"]}
    assert licences["xcodec2"].startswith("CC BY-NC 4.0") and licences["neucodec"] == "Apache-2.0" and "BY-NC" in shown
    assert "voxtral" in shown and "basic-1" in shown
    names = [line.strip() for line in shown.splitlines() if line.strip().startswith("asr_")]
    assert len(names) > 1 and all(len(line.split("  ")[0]) <= 60 for line in names)  # a dozen columns are wrapped


def test_it_says_what_is_missing_for_what(monkeypatch: pytest.MonkeyPatch, plain: tuple[dict[str, Any], str]) -> None:
    there = doctor._there
    monkeypatch.setattr(doctor, "_there", lambda module: module not in ("wandb", "cv2") and there(module))
    found = {f["name"]: f for f in doctor.usable_features(plain[0]["rewards"])}
    assert not found["curves in Weights & Biases"]["usable"]
    assert "pip install wandb" in found["curves in Weights & Biases"]["why_not"]
    assert "opencv" in found["audio-visual enhancement"]["why_not"] and found["enhancement"]["usable"]
    assert found["recognition"]["usable"]
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert "C compiler" in doctor._compiler()["why_not"]
    no_compiler = [{"name": "pesq_wb", "why_not": "it was not compiled"}]
    assert {f["name"]: f["why_not"] for f in doctor.usable_features(no_compiler)}["PESQ"] == "it was not compiled"
    assert "What can be done here" in plain[1] and "--task flowse" in plain[1]


def test_options_that_features_name_exist() -> None:
    import typer

    from rlspeech.cli import app
    from rlspeech.config import RL

    root: Any = typer.main.get_command(app)
    known = {o for c in root.commands.values() for p in c.params for o in p.opts}
    for feature in doctor.FEATURES:
        word, *rest = feature.how.split()
        if word == "--set":
            assert rest[0].split("=")[0].split(".")[0] in RL.model_fields
        elif word.startswith("--"):
            assert word in known, feature.how
        else:
            assert word in root.commands and (not rest or rest[0] in root.commands[word].commands)
