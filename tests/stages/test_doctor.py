from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest

from rlspeech import log
from rlspeech.rewards import _torchaudio
from rlspeech.stages import doctor


def look(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    summary = doctor.run()
    json.dumps(log.plain(summary))
    return summary


def test_it_says_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summary = look(monkeypatch)
    assert summary["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert summary["packages"]["torch"] == metadata.version("torch") == summary["torch"]["version"]
    assert summary["devices"][0]["name"] == "cpu" and summary["devices"][0]["usable"]
    assert summary["threads"]["cores"] >= 1
    assert {"dnsmos", "stoi", "pesq_wb", "squim"} <= {r["name"] for r in summary["rewards"]}
    assert {a["name"] for a in summary["assets"]} == set(doctor.ASSETS)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("torch", "cpu", "estoi", "Embedded", "torchaudio"))


def test_every_unusable_thing_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = look(monkeypatch)
    for part in ("devices", "rewards", "assets"):
        for entry in summary[part]:
            assert entry["usable"] == (entry["why_not"] == ""), entry


def test_it_survives_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises
    summary = look(monkeypatch)
    assert "error" in summary["torch"] and "error" in summary["devices"]
    assert not summary["ok"] and any("torch" in p for p in summary["problems"])
    assert summary["python"] and isinstance(summary["assets"], list)


def test_it_survives_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    def broken() -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(metadata, "version", missing)
    for part in ("_torch", "_devices", "_threads", "_rewards", "_torchaudio", "_compiler", "_assets"):
        monkeypatch.setattr(doctor, part, broken)
    summary = look(monkeypatch)
    assert set(summary["packages"].values()) == {None}
    assert summary["rewards"] == {"error": "OSError: libcudart.so.13: cannot open shared object file"}
    assert any("numpy is not installed" in p for p in summary["problems"]) and not summary["ok"]


def test_missing_assets_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "assets" / "flowse").mkdir(parents=True)
    (tmp_path / "assets" / "flowse" / "config.json").write_text("{}")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    found = {a["name"]: a for a in doctor._assets()}
    assert "model.safetensors" in found["flowse"]["why_not"] and "config.json" not in found["flowse"]["why_not"].split(" missing")[0]
    assert found["flowse"]["bytes"] == 2 and not found["demo"]["usable"]


def test_a_torchaudio_that_does_not_import_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    importlib.invalidate_caches()
    _torchaudio.why_not.cache_clear()
    try:
        summary = look(monkeypatch)
    finally:
        _torchaudio.why_not.cache_clear()
    assert summary["torchaudio"]["installed"] and not summary["torchaudio"]["usable"]
    assert "libcudart" in summary["torchaudio"]["why_not"] and "transformers" in summary["torchaudio"]["why_not"]
    assert "uninstall torchaudio" in " ".join(summary["problems"])
    assert not next(r for r in summary["rewards"] if r["name"] == "squim")["usable"]


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert "C compiler" in doctor._compiler()["why_not"]


def test_it_lists_recognisers_and_normalisers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summary = look(monkeypatch)
    assert {"fun_asr_nano", "qwen2_audio", "voxtral", "whisper"} <= {r["name"] for r in summary["recognisers"] if r["usable"]}
    assert {"basic-1", "english-1", "none-1"} <= set(summary["normalisers"])
    shown = capsys.readouterr().out
    assert "voxtral" in shown and "basic-1" in shown
    names = [line.strip() for line in shown.splitlines() if line.strip().startswith("asr_")]
    assert len(names) > 1 and all(len(line.split("  ")[0]) <= 60 for line in names)  # a dozen columns are wrapped
