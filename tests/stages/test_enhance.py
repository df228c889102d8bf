"""Enhancing files: names, lengths, and what may not be lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from rlspeech.data.audio import load_audio, save_audio
from rlspeech.stages import enhance as infer
from rlspeech.stages.enhance import Enhance
from rlspeech.types import UserError

RATE = 16000


class Half:
    """Halves its input; refuses clips whose key says so."""

    sample_rate, channels, uses_video = RATE, 1, False
    longest = 0

    def infer(self, wavs: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        self.longest = max(self.longest, *(len(w) for w in wavs))
        if any(k.startswith("boom") for k in keys):
            raise RuntimeError("out of memory")
        return [w * 0.5 for w in wavs]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Half:
    half = Half()

    class Task:
        uses_video = False

        def load(self, name: str, device: Any) -> tuple[str, dict[str, Any]]:
            return name, {}

        def enhancer(self, model: str, **options: Any) -> Half:
            return half

    monkeypatch.setattr(infer, "get_task", lambda name: Task())
    return half


def _tone(seconds: float = 0.5) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def _run(tmp_path: Path, *inputs: str | Path, **changes: Any) -> dict[str, Any]:
    return infer.run(
        Enhance(**{"inputs": [str(i) for i in inputs], "out": str(tmp_path / "out"), "device": "cpu", **changes})
    )


def test_files_folders_and_manifests(tmp_path: Path, model: Half, capsys: pytest.CaptureFixture[str]) -> None:
    save_audio(tmp_path / "one.wav", _tone(), RATE)
    save_audio(tmp_path / "in" / "a" / "two.flac", _tone(), RATE)
    sf.write(tmp_path / "in" / "three.ogg", _tone(), RATE)
    (tmp_path / "in" / "readme.txt").write_text("no audio")
    (tmp_path / "m.jsonl").write_text(
        '{"id": "seg", "audio_filepath": "one.wav", "offset": 0.1, "duration": 0.2, "sample_rate": 16000}\n'
    )
    result = _run(tmp_path, tmp_path / "one.wav", tmp_path / "in", tmp_path / "m.jsonl")
    assert (result["enhanced"], result["failed"]) == (4, 0)
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["a/two.flac", "one.wav", "seg.flac", "three.flac"]
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "one.wav"), 0.5 * _tone(), atol=1e-4)
    assert len(load_audio(tmp_path / "out" / "seg.flac")) == int(0.2 * RATE)
    out, err = capsys.readouterr()
    assert "enhanced" in out and "next: rlspeech reward" in err


def test_long_files_go_in_chunks_without_a_seam(tmp_path: Path, model: Half) -> None:
    long = _tone(25.0)
    save_audio(tmp_path / "long.wav", long, RATE)
    _run(tmp_path, tmp_path / "long.wav", chunk_s=4.0)
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "long.wav"), 0.5 * long, atol=1e-4)
    assert model.longest == 4 * RATE


def test_stereo_and_other_rates_are_said(tmp_path: Path, model: Half, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "s.wav", np.stack([_tone(), -_tone()], 1) * [1, 0.5], 44100)
    _run(tmp_path, tmp_path / "s.wav")
    info = sf.info(tmp_path / "out" / "s.wav")
    assert (info.channels, info.samplerate) == (1, RATE)
    err = capsys.readouterr().err
    assert "1 file had several channels" in err and "from 44100 to 16000 Hz" in err


def test_bad_files_cost_themselves(tmp_path: Path, model: Half) -> None:
    folder = tmp_path / "in"
    save_audio(folder / "good.wav", _tone(), RATE)
    save_audio(folder / "boom.wav", _tone(), RATE)
    save_audio(folder / "silent.wav", np.zeros(RATE, dtype=np.float32), RATE)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "torn.flac").write_bytes(b"fLaC")
    sf.write(folder / "nan.wav", np.full(100, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    sf.write(folder / "none.wav", np.zeros(0, dtype=np.float32), RATE)
    result = _run(tmp_path, folder, tmp_path / "gone.wav")
    assert (result["enhanced"], result["failed"]) == (2, 6)
    reasons = {Path(k).name: v for k, v in result["errors"].items()}
    assert "out of memory" in reasons["boom.wav"] and "NaN" in reasons["nan.wav"]
    assert reasons["gone.wav"] == "missing file"
    with pytest.raises(UserError, match="1 file"):
        _run(tmp_path, tmp_path / "gone.wav")


def test_results_are_skipped_unless_asked(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "a.wav", _tone(), RATE)
    _run(tmp_path, tmp_path / "a.wav")
    save_audio(tmp_path / "a.wav", 0.5 * _tone(), RATE)
    assert _run(tmp_path, tmp_path / "a.wav")["skipped"] == 1
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "a.wav"), 0.5 * _tone(), atol=1e-4)
    assert _run(tmp_path, tmp_path / "a.wav", overwrite=True)["enhanced"] == 1
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "a.wav"), 0.25 * _tone(), atol=1e-4)


def test_inputs_are_never_overwritten(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "in" / "a.wav", _tone(), RATE)
    before = (tmp_path / "in" / "a.wav").read_bytes()
    for inputs in ([tmp_path / "in"], [tmp_path / "in" / "a.wav"]):
        with pytest.raises(UserError, match="overwritten"):
            _run(tmp_path, *inputs, out=str(tmp_path / "in"), overwrite=True)
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "in" / "a.wav", tmp_path / "out" / "a.wav")
    with pytest.raises(UserError, match="overwritten"):
        _run(tmp_path, tmp_path / "in", overwrite=True)
    save_audio(tmp_path / "x" / "b.wav", _tone(), RATE)
    save_audio(tmp_path / "y" / "b.wav", _tone(), RATE)
    with pytest.raises(UserError, match="overwritten"):
        _run(tmp_path, tmp_path / "x" / "b.wav", tmp_path / "y", out=str(tmp_path / "y"), overwrite=True)
    assert (tmp_path / "in" / "a.wav").read_bytes() == before


def test_two_files_of_one_name_and_results_inside_the_input(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "x" / "a.wav", _tone(), RATE)
    save_audio(tmp_path / "y" / "a.wav", _tone(), RATE)
    result = _run(tmp_path, tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav")
    assert (result["enhanced"], result["failed"]) == (1, 1)
    assert "would have the name" in next(iter(result["errors"].values()))
    for expected in (1, 0):
        result = _run(tmp_path, tmp_path / "x", out=str(tmp_path / "x" / "enhanced"))
        assert (result["enhanced"], result["skipped"]) == (expected, 1 - expected)


@pytest.mark.parametrize(
    ("changes", "what"), [({"inputs": []}, "nothing to enhance"), ({"out": None}, "no output folder")]
)
def test_mistakes(tmp_path: Path, model: Half, changes: dict[str, Any], what: str) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=what):
        _run(tmp_path, tmp_path / "void", **changes)
    with pytest.raises(UserError, match=r"\.flac"):
        _run(tmp_path, tmp_path / "void")
