"""``enhance``, ``transcribe`` and ``speak`` with every kind of folder that holds a checkpoint, and with those of other tasks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny_corpora
from tiny_tuned import TASKS, Run
from typer.testing import CliRunner

from rlspeech.cli import app
from rlspeech.models.hub import KINDS as CHECKPOINTS
from rlspeech.models.hub import task_of
from rlspeech.stages import convert

KINDS = ("run", "checkpoint", "merged", "average", "hub", "base")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpora.sound(tmp_path_factory.mktemp("sound") / "a.wav", seconds=0.5)


def snapshot(folder: Path, out: Path) -> Path:
    """A folder as the Hub's client keeps it: links to files that are named after their content."""
    snap = out / "models--org--name" / "snapshots" / "0123abc"
    snap.mkdir(parents=True)
    (out / "models--org--name" / "blobs").mkdir()
    for path in folder.iterdir():
        if path.is_file():
            blob = out / "models--org--name" / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            (snap / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snap


def place(kind: str, run: Run, tmp_path: Path) -> Path:
    checkpoint = run.folder / "checkpoints" / "step_000003"
    if kind in ("merged", "average"):
        given = ([str(run.folder), str(checkpoint)],) if kind == "average" else (str(run.folder), "merged")
        getattr(convert, {"merged": "merge_lora"}.get(kind, kind))(*given, str(tmp_path / kind))
        return tmp_path / kind
    known = {"run": run.folder, "checkpoint": checkpoint, "base": run.base}
    return known.get(kind) or snapshot(checkpoint, tmp_path / "cache")


def command(task: str, model: Path, sound: Path, out: Path) -> list[str]:
    if task == "asr":
        return ["transcribe", str(sound), "--model", str(model), "--out", str(out / "said.jsonl"), "--quiet"]
    if task == "tts":
        return ["speak", "one two", "--model", str(model), "--out", str(out / "said.wav"), "--quiet"]
    return ["enhance", str(sound), "--task", task, "--model", str(model), "--out", str(out), "--quiet"]


def result(task: str, out: Path) -> str:
    if task == "asr":
        return str(json.loads((out / "said.jsonl").read_text())["text"])
    (path,) = out.glob("*.wav")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_folder_is_taken(task: str, runs: dict[str, Run], sound: Path, tmp_path: Path) -> None:
    made = {}
    for kind in KINDS:
        out = tmp_path / f"out-{kind}"
        out.mkdir()
        done = CliRunner().invoke(app, command(task, place(kind, runs[task], tmp_path), sound, out))
        assert done.exit_code == 0, f"{kind}: {done.output}"
        made[kind] = result(task, out)
    assert len({made[kind] for kind in KINDS if kind != "base"}) == 1, "the same model, the same result"
    if task in ("flowse", "avse"):
        assert made["base"] != made["run"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_another_tasks_checkpoint_is_refused_with_its_command(
    task: str, runs: dict[str, Run], sound: Path, tmp_path: Path
) -> None:
    others = {other: run.folder / "checkpoints" / "step_000003" for other, run in runs.items() if other != task}
    codec = runs["tts"].base.parent
    others |= {"codec": codec / "codec", "token-reward": codec / "reward"}
    for other, folder in others.items():
        assert task_of(folder) == other
        done = CliRunner().invoke(app, command(task, folder, sound, tmp_path))
        assert done.exit_code == 2 and CHECKPOINTS[other].use.format(folder) in done.stderr, f"{other}: {done.output}"
        assert "Traceback" not in done.output and not list(tmp_path.glob("*.wav"))


def test_a_folder_that_says_nothing_has_no_task(tmp_path: Path) -> None:
    assert task_of(tmp_path) is None
    for content in ("", "[]", '{"task": "flowse"}', '{"task": 3, "model_type": "rlspeech-flow"}', "\x00"):
        (tmp_path / "config.json").write_text(content)
        assert task_of(tmp_path) is None
    assert set(TASKS) <= set(CHECKPOINTS)
