from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_corpora import sound

from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.settings import preset_names, preset_path
from rlspeech.stages import check
from rlspeech.types import UserError


def look(path: Path, **given: Any) -> dict[str, Any]:
    summary = check.run(path, **given)
    json.dumps(summary)
    return summary


def lines(summary: dict[str, Any]) -> dict[int | None, str]:
    return {p["line"]: p["message"] for p in summary["problems"]}


def row(**values: Any) -> dict[str, Any]:
    return {"audio_filepath": "a.wav", "duration": 1.0, "sample_rate": 16000, **values}


def manifest(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_a_good_manifest_has_no_problems(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    summary = look(manifest(tmp_path / "m.jsonl", [row(id="x", target_filepath="a.wav"), row(id="y", text="hello")]))
    assert summary["kind"] == "manifest" and summary["problems"] == []
    assert summary["facts"]["rows"] == 2 and summary["facts"]["with a reference"] == 1
    assert summary["facts"]["sample rates (Hz)"] == "16000"
    assert "no rows" in lines(look(manifest(tmp_path / "empty.jsonl", [])))[None]


def test_every_mistake_in_a_manifest_has_its_line(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    sound(tmp_path / "short.wav", seconds=0.5)
    sound(tmp_path / "slow.wav", rate=8000)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio")
    given: list[tuple[Any, str]] = [
        ("[" * 99_999, "too deeply"),
        (row(id="good"), ""),
        ("{broken", "not JSON"),
        ("", ""),
        (row(id="missing", audio_filepath="none.wav"), "audio_filepath is missing"),
        (row(id="good"), "duplicate id 'good', first on line 2"),
        (row(id="long", duration=2.0), "the file has 1.00"),
        (row(id="rate", audio_filepath="slow.wav"), "the file has 8000"),
        (row(id="empty", audio_filepath="empty.wav"), "0 bytes"),
        (row(id="text", audio_filepath="text.wav"), "cannot be read"),
        (row(id="target", target_filepath="short.wav"), "the reference has 0.50 s"),
        (row(id="negative", duration=-1), "negative"),
        (row(id="cut", offset=0.5), "offset + duration is 1.50 s"),
        ("[1]", "not a JSON object"),
        (row(id="lips", lips_filepath="none.npy"), "lips_filepath is missing"),
        (row(id="last"), ""),
    ]
    found = lines(look(manifest(tmp_path / "m.jsonl", [r for r, _ in given])))
    said = {line: words for line, (_, words) in enumerate(given, 1) if words}
    assert set(found) == set(said)
    for line, words in said.items():
        assert words in found[line], (line, found[line])


def recipe(folder: Path, **changes: Any) -> Path:
    sound(folder / "a.wav")
    for name in ("clean", "noise"):
        manifest(folder / f"{name}.jsonl", [row(id=name)])
    path = folder / "mix.json"
    plain = {"clean": "clean.jsonl", "noise": "noise.jsonl", "rir": None, "mixing": {"reverb": 0.0}}
    path.write_text(json.dumps(plain | changes, indent=1))
    return path


@pytest.mark.parametrize(
    ("changes", "line", "said"),
    [
        ({"mixing": {"reverb": 2.0}}, 6, "mixing.reverb"),
        ({"mixing": {"revreb": 0.1}}, 6, "mixing.revreb"),
        ({"noise": "none.jsonl"}, 3, "no manifest none.jsonl"),
        ({"wet": True}, 8, "unknown key 'wet'"),
        ({"rir": "rooms.jsonl"}, 4, "rir: no manifest"),
    ],
)
def test_mistakes_in_a_recipe_have_their_line(tmp_path: Path, changes: dict[str, Any], line: int, said: str) -> None:
    found = lines(look(recipe(tmp_path, **changes)))
    assert said in found[line]


def test_nemos_manifests_are_known_under_their_own_suffix(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    path = manifest(tmp_path / "train_manifest.json", [row(id="a"), row(id="b", offset=0.0, duration=0.5)])
    assert find_manifest(tmp_path) == path
    for place in (path, tmp_path):
        assert look(place)["problems"] == [] and look(path)["facts"]["rows"] == 2
    assert [u.extra.get("segment") for u in read_manifest(path)] == [None, True]  # an offset, be it 0, makes a piece


def test_the_manifests_of_a_recipe_are_checked(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    summary = look(path)
    assert summary["kind"] == "mixture recipe" and summary["problems"] == [] and summary["facts"]["clean: rows"] == 1
    manifest(tmp_path / "noise.jsonl", [row(id="n"), row(id="gone", audio_filepath="gone.wav")])
    for target in (path, tmp_path):  # a folder stands for what is in it, once
        problems = look(target)["problems"]
        assert [(Path(p["path"]).name, p["line"]) for p in problems] == [("noise.jsonl", 2)]


@pytest.mark.parametrize("name", preset_names())
def test_presets_pass(name: str) -> None:
    assert look(preset_path(name))["problems"] == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("stage: rl\nsteps: 3\nexplore:\n  nosie: 1\n", 4, "did you mean explore.noise"),
        ("stage: rl\nsteps: many\n", 2, "steps"),
        ("stage: r\n", 1, "no stage is called"),
        ("steps: 3\nmodel: {dim: 3}\nwarmpu: 1\n", 3, "as rlspeech pretrain"),
        ("group: 3\nkl_beta: x\n", 2, "kl_beta"),
        ("stage: rl\nlora:\n  rank: 0\n", 3, "lora.rank"),
    ],
)
def test_mistakes_in_a_config_have_their_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = lines(look(path))
    assert set(found) == {line} and said in found[line]


def test_a_config_without_stage_is_recognised_or_given_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("group: 4\nkl_beta: 0.1\n")
    assert look(path)["facts"]["stage"] == "rl"
    assert look(path, stage="pretrain")["problems"]


def test_what_is_not_yaml_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [1\nb: 2\n")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "nothing").mkdir()
    refused = {"c.yaml": "line 2", "x.txt": ".txt", "none.jsonl": "none", "nothing": "nothing"}
    for name, said in refused.items():
        with pytest.raises(UserError, match=said):
            look(tmp_path / name)


def test_scores(tmp_path: Path) -> None:
    rows = [
        {"key": "a", "system": "s", "pesq_wb": 1.0},
        {"key": "b", "system": "s", "pesq_wb": None, "errors": {"pesq_wb": "silent"}},
        {"key": "a", "system": "s", "pesq_wb": 1.0},
        {"key": "c", "system": "s", "pesq_wb": None, "errors": {}},
        '{"key": "d", "system": "s", "pesq_wb": NaN}',
        "{",
    ]
    summary = look(manifest(tmp_path / "scores.jsonl", rows))
    found = lines(summary)
    assert summary["kind"] == "scores" and set(found) == {3, 4, 5, 6}
    assert "second row" in found[3] and "without a reason: pesq_wb" in found[4] and "not a number: pesq_wb" in found[5]
    assert "not JSON" in found[6]
    assert summary["facts"]["nulls with a reason"] == 2


def test_metrics(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 1, "loss": 0.5}, {"loss": 1.0}]
    path = manifest(tmp_path / "metrics.jsonl", [*rows, '{"step": 3, "loss": NaN}'])
    path.write_text(path.read_text() + '{"step": 4, "lo')
    found = lines(look(path))
    assert set(found) == {2, 3, 4, 5, 6} and "torn line" in found[6] and "after step 2" in found[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run as ``pretrain`` leaves it, made by the code that makes runs, with a model of one layer."""
    import torch
    from safetensors.torch import save_file

    from rlspeech.config import Pretrain
    from rlspeech.run import Run

    def write(where: Path) -> None:
        save_file({"w": torch.zeros(3)}, where / "model.safetensors")
        (where / "config.json").write_text(json.dumps({"model_type": "rlspeech-flow", "task": "flowse"}))

    with Run.create(tmp_path / "run", "pretrain", Pretrain(steps=4)) as run:
        for step in (1, 2):
            run.log(step, loss=1.0 / step)
            run.checkpoints.save(step, write, {"w": torch.zeros(2)})
    return tmp_path / "run"


def test_a_whole_run_has_no_problems(folder: Path) -> None:
    summary = look(folder)
    assert summary["kind"] == "run folder" and summary["problems"] == []
    assert summary["facts"]["goes on from"] == "step 2 of 4" and summary["facts"]["last step"] == 2
    assert summary["facts"]["parameters"] == 3 and look(folder / LAST)["kind"] == "checkpoint"


def damage_weights(folder: Path) -> None:
    path = folder / LAST / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def damage_numbers(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.tensor([float("nan")])}, folder / LAST / "model.safetensors")


LAST = "checkpoints/step_000002"


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def holds(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no metrics of a step": (holds("metrics.jsonl", '{"loss": 1}\n'), "no step"),
    "no config": (gone("config.resolved.json"), "config.resolved.json is missing"),
    "config of another version": (holds("config.resolved.json", '{"stpes": 1}'), "did you mean steps"),
    "env.json torn": (holds("env.json", '{"stage": "pre'), "cannot be read"),
    "pointer": (holds("checkpoints/latest", "step_000009\n"), "names step_000009"),
    "no pointer": (gone("checkpoints/latest"), "no file 'latest'"),
    "no state": (gone(f"{LAST}/state.json"), "cannot go on from here"),
    "no weights": (gone(f"{LAST}/model.safetensors"), "model.safetensors is missing"),
    "weights torn": (damage_weights, "cannot be read"),
    "weights not finite": (damage_numbers, "NaN or infinite weights in w"),
    "no checkpoint": (lambda f: shutil.rmtree(f / "checkpoints"), "no checkpoint"),
    "half a checkpoint": (lambda f: (f / "checkpoints" / ".tmp-step_000003-1").mkdir(), "never finished"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_a_run_is_found(folder: Path, name: str) -> None:
    damage, said = DAMAGE[name]
    damage(folder)
    found = [p["message"] for p in look(folder)["problems"]]
    assert any(said in message for message in found), found


def test_texts_that_would_teach_nonsense_are_found(tmp_path: Path) -> None:
    texts: list[Any] = ["fine", "", "na\ufffdve", "two\tcolumns", "x" * 200, "fine"]
    files = [sound(tmp_path / f"{i}.wav", seconds=2.0).name for i in range(len(texts))]
    rows = [row(id=f, text=t, audio_filepath=f, duration=2.0) for f, t in zip(files, texts, strict=True)]
    rows[0]["keywords"], rows[5]["keywords"] = ["fine"], [1, 2]
    summary = look(manifest(tmp_path / "m.jsonl", rows))
    found = lines(summary)
    assert found.keys() == {3, 4, 5, 6} and "encoding" in found[3] and "tabs" in found[4]
    assert "200 characters" in found[5]
    assert "keywords" in found[6] and summary["facts"]["in which nothing is said"] == 1
    assert summary["facts"]["with keywords"] == 2


def test_a_checkpoint_in_transformers_layout_and_in_shards(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for i in (1, 2):
        save_file({f"w{i}": torch.ones(3)}, tmp_path / f"model-0000{i}-of-00002.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_asr"}')
    (tmp_path / "rlspeech.json").write_text('{"task": "asr"}')
    summary = look(tmp_path)
    assert summary["problems"] == [] and summary["facts"] == {"model type": "qwen3_asr", "task": "asr", "parameters": 6}
    save_file({"w": torch.tensor([float("nan")])}, tmp_path / "model-00002-of-00002.safetensors")
    assert "NaN" in look(tmp_path)["problems"][0]["message"]
