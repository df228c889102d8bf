"""Folders have one writer, half-written files of processes that died go, long names and read-only disks are no bug."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlspeech import files
from rlspeech.config import ScoreFolder
from rlspeech.data.audio import save_audio
from rlspeech.stages import reward
from rlspeech.stages.enhance import Enhance
from rlspeech.stages.enhance import run as enhance
from rlspeech.types import UserError


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    made = tmp_path / "new" / "folder"
    with files.held(made):
        assert made.is_dir()
        with pytest.raises(UserError, match="try: .*--out"), files.held(made):
            pass
    with files.held(made), files.held(None):
        assert not list(made.iterdir())
    with pytest.raises(UserError, match="try: .*--out"), files.held("/proc/1/no/folder"):
        pass


def test_stages_do_not_write_where_another_one_does(tmp_path: Path) -> None:
    wav = np.sin(np.arange(8000) / 5).astype(np.float32) / 3
    save_audio(tmp_path / "in" / "a.wav", wav, 16000)
    out = str(tmp_path / "out")
    with files.held(out):
        with pytest.raises(UserError, match="in use"):
            reward.run(ScoreFolder(rewards=["reward_plugins:loudness"], out=out, workers=0), tmp_path / "in")
        with pytest.raises(UserError, match="in use"):
            enhance(Enhance(inputs=[str(tmp_path / "in")], out=out))


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "below").mkdir()
    gone = [tmp_path / "below" / f".a.flac.part{dead.pid}.flac", tmp_path / f".b.jsonl.part{dead.pid}"]
    kept = [tmp_path / name for name in (f".a.part{os.getppid()}", "a.part1", f"b.part{dead.pid}", ".notes")]
    for path in gone + kept:
        path.write_text("half")
    with files.held(tmp_path):
        assert not any(p.exists() for p in gone) and all(p.exists() for p in kept)


@pytest.mark.parametrize("name", ["a" * 250, "ü" * 120, os.fsdecode(b"bad\xff.txt")])
def test_names_as_long_as_the_system_takes(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole" and os.listdir(tmp_path) == [name]
    assert files.PART.search(files.part_of(tmp_path / name).name)


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="why: .*Read-only"):
        files.write_text(tmp_path / "a.txt", "x")
