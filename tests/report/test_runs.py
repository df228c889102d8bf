"""Run folders as they lie on disk: whole, torn, or none at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny_runs import eval_run, rl_run, write_json

from rlspeech.report.runs import find, number, open_runs
from rlspeech.run import flat
from rlspeech.types import UserError


def test_what_is_no_run_folder_is_refused_with_what_may_be_meant(tmp_path: Path) -> None:
    run = rl_run(tmp_path / "runs" / "a", count=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "probe.json").write_text("{}")
    write_json(tmp_path / "enhanced" / "env.json", {"stage": "enhance"})
    for path, words in (
        ("nowhere", "no such path"),
        ("empty", "none of"),
        ("probe", "probe"),
        ("runs", "runs/a"),
        ("runs/a/config.resolved.json", "a file"),
        ("runs/a/checkpoints/step_000020", "a checkpoint"),
        ("enhanced", "enhance"),
    ):
        with pytest.raises(UserError) as error:
            open_runs([str(tmp_path / path)])
        assert words in str(error.value), str(error.value)
    with pytest.raises(UserError, match="twice"):
        open_runs([str(run), f"other={run}/"])


def test_names_differ(tmp_path: Path) -> None:
    paths = [rl_run(tmp_path / part / "rl", count=2) for part in ("a", "b")] + [rl_run(tmp_path / "a=b", count=2)]
    names = [p.name for p in open_runs([str(paths[0]), str(paths[1]), str(paths[2])])]
    assert names == ["a/rl", "b/rl", "a=b"]
    assert [p.name for p in open_runs([f"mine={paths[0]}", str(paths[1])])] == ["mine", "rl"]


def test_the_stage_is_known_without_the_environment(tmp_path: Path) -> None:
    run, evaluated = rl_run(tmp_path / "rl", count=2), eval_run(tmp_path / "eval", {"input": [1.0], "a": [2.0]})
    for path, stage in ((run, "rl"), (evaluated, "eval")):
        (path / "env.json").unlink()
        assert open_runs([str(path)])[0].stage == stage
    (run / "config.resolved.json").unlink()
    (torn,) = open_runs([str(run)])
    assert torn.stage == "rl" and any("settings are not known" in n for n in torn.notes)


def test_torn_files_leave_a_remark_and_the_rest(tmp_path: Path) -> None:
    run = rl_run(tmp_path / "rl", count=3)
    whole = open_runs([str(run)])[0]
    with (run / "scores.jsonl").open("ab") as file:
        file.write(b'{"key": "u9"\n\xff\xfe\n[1]\n' + b"[" * 5000 + b"\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "valid/si')
    (run / "config.resolved.json").write_text('{"algo": ')
    (run / "env.json").write_text("[]")
    (torn,) = open_runs([str(run)])
    assert torn.scores == whole.scores and torn.metrics == whole.metrics and torn.stage == "rl" and torn.seed == 0
    said = " ".join(torn.notes)
    assert "4 lines of scores.jsonl" in said and "config.resolved.json cannot be read" in said
    assert "env.json cannot be read" in said


def test_kept_audio_stays_in_its_folder(tmp_path: Path) -> None:
    run = rl_run(tmp_path / "rl", count=2)
    secret = tmp_path / "secret.flac"
    secret.write_bytes(b"x")
    (run / "samples" / "step_000020" / "link.flac").symlink_to(secret)
    (run / "samples" / "away").symlink_to(tmp_path)
    found = open_runs([str(run)])[0].kept("samples")
    assert set(found["step_000020"]) == {"u0", "u1"} and "away" not in found
    assert list(find(found["step_000020"], ["../secret", "u1"])) == ["u1"]
    assert find({"a_b": Path("x")}, ["a/b"]) == {"a/b": Path("x")}  # a key that was made safe


def test_numbers_and_settings() -> None:
    assert number(1) == 1.0 and number(2.5) == 2.5
    assert all(number(v) is None for v in (True, None, "3", math.nan, math.inf, 10**400))
    rewards = [{"name": "b", "weight": 1}, {"name": "a", "weight": 2}]
    settings = {"rewards": rewards, "x": {"y": [1, 2]}, "none": {}}
    assert flat(settings, by_name=True) == {"rewards.b.weight": 1, "rewards.a.weight": 2, "x.y": [1, 2], "none": {}}
    assert flat({"r": rewards}, by_name=True) == flat(json.loads(json.dumps({"r": rewards[::-1]})), by_name=True)
