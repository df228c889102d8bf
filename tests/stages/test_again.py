"""``rlspeech report``: the stage's own page again without its models, or one page of several runs; what lies there stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import eval_run, rl_run, tone
from typer.testing import CliRunner

from rlspeech.cli import app
from rlspeech.config import Evaluate, ScoreFolder
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import read_manifest
from rlspeech.report import ReportData
from rlspeech.scores import ScoreTable, write_json
from rlspeech.stages import eval_again, reward, reward_report, summary
from rlspeech.stages import report as again
from rlspeech.stages.evaluate import Result
from rlspeech.tasks import get_task
from rlspeech.types import Score, UserError

SHOWN: list[tuple[Path, ReportData]] = []


@pytest.fixture(autouse=True)
def _caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages are looked at as data, not drawn."""
    SHOWN.clear()

    def caught(path: Path, data: ReportData) -> Path:
        SHOWN.append((path, data))
        return path

    for module in (again, summary, reward_report):
        monkeypatch.setattr(module, "render_report", caught)
    monkeypatch.chdir(tmp_path)


def _lying(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def _evaluation(folder: Path) -> Path:
    """A whole one, whose model is gone."""
    (folder / "data").mkdir(parents=True)
    rows = []
    for i in range(4):
        save_audio(folder / "data" / f"u{i}.flac", tone(200 + 20 * i), 16000)
        rows.append(
            {
                "id": f"u{i}",
                "audio_filepath": f"u{i}.flac",
                "target_filepath": f"u{i}.flac",
                "duration": 0.25,
                "sample_rate": 16000,
            }
        )
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = str(folder / "data" / "test.jsonl")
    run = eval_run(
        folder / "eval",
        {"input": [1.0, 2.0, 3.0, 4.0], "m": [2.0, 2.5, 5.0, 4.5]},
        data=data,
        models={"m": str(folder / "gone")},
    )
    table = ScoreTable(run, ["si_sdr"])
    table.add("m", "u0", {"si_sdr": Score(2.0)})
    config = Evaluate(data=data, models={"m": str(folder / "gone")})
    evaluation, utts = get_task("flowse").evaluation(config), read_manifest(data)
    result = Result(evaluation, table, utts, evaluation.systems(utts), "input")
    table.write()
    write_json(run / "metrics.json", result.summary([]))
    write_json(run / "scores.meta.json", result.meta({"si_sdr": {"version": "1"}}))
    return run


def test_an_evaluation_is_shown_again_without_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _evaluation(tmp_path)
    before = _lying(run)
    result = again.run([str(run)], players=3)
    assert _lying(run) == before
    ((path, data),) = SHOWN
    assert path == run / "report.html" and data.title == "Evaluation: m" and data.baseline == "input"
    assert [c.label for c in data.clips] == ["smallest gain in si_sdr", "largest gain in si_sdr", "worst"]
    assert all(list(c.audio) == ["input", "m", "reference"] for c in data.clips)
    assert result["deltas"]["m"]["si_sdr"]["mean"] == pytest.approx((1 + 0.5 + 2 + 0.5) / 4) and result[
        "report"
    ] == str(path)
    assert data.facts["model m"] == str(tmp_path / "gone") and any("--model" in c for c in data.commands)
    assert "si_sdr" in capsys.readouterr().out


@pytest.mark.parametrize("torn", ["metrics.json", "data"])
def test_an_evaluation_that_is_torn_is_shown_as_far_as_it_goes(tmp_path: Path, torn: str) -> None:
    run = _evaluation(tmp_path)
    if torn == "data":
        (tmp_path / "data" / "test.jsonl").unlink()
    else:
        (run / torn).write_text('{"systems": ')
    result = again.run([str(run)])
    ((_, data),) = SHOWN
    assert data.baseline == "input" and data.means["m"]["si_sdr"].n == 4 and data.notes and len(data.clips) == 4
    assert result["differences"] and all({"input", "m"} <= set(c.audio) for c in data.clips)


def test_scores_are_shown_again_without_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        save_audio(tmp_path / "out" / f"f{i}.flac", tone(200 + 60 * i) * (1 + i / 10), 16000)
        save_audio(tmp_path / "clean" / f"f{i}.flac", tone(200 + 60 * i + i), 16000)
    (tmp_path / "out" / "f9.flac").write_bytes(b"")
    config = ScoreFolder(rewards=["si_sdr"], target="clean", report="always", workers=0, device="cpu", out="scores")
    first = reward.run(config, "out")
    shown = SHOWN.pop()[1]
    before = _lying(tmp_path)
    monkeypatch.setattr(reward, "Scorer", None)
    monkeypatch.chdir("/")  # where it was called from does not matter
    result = again.run([str(tmp_path / "scores")])
    ((path, data),) = SHOWN
    assert _lying(tmp_path) == before and path == tmp_path / "scores" / "report.html"
    assert data.means == shown.means and [c.key for c in data.clips] == [c.key for c in shown.clips]
    assert {c.label for c in data.clips} == {"worst", "best", "in between"}
    assert [(p.kind, sum(p.lines[0].mean)) for p in data.plots] == [("spread", 5.0)]
    (lost,) = [g for g in data.grids if g.title == "Files without a score"]
    assert list(lost.rows[0][:2]) == ["si_sdr", "1"] and "empty" in lost.rows[0][2]
    assert result["metrics"]["si_sdr"]["mean"] == pytest.approx(first["metrics"]["si_sdr"]["mean"]) and data.facts[
        "files"
    ] == str(tmp_path / "out")


def test_scores_whose_files_are_gone_keep_their_numbers(tmp_path: Path) -> None:
    for i in range(3):
        save_audio(tmp_path / "out" / f"f{i}.flac", tone(200 + 60 * i), 16000)
    reward.run(ScoreFolder(rewards=["si_sdr"], target="out", report="never", workers=0, device="cpu", out="s"), "out")
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    again.run(["s"])
    data = SHOWN[-1][1]
    assert data.means["system"]["si_sdr"].n == 3 and not data.clips and any("no players" in n for n in data.notes)


def test_where_the_page_goes(tmp_path: Path) -> None:
    a, b = rl_run(tmp_path / "runs" / "a", count=2), rl_run(tmp_path / "runs" / "b", count=2)
    (tmp_path / "pages").mkdir()
    given: list[tuple[list[str], dict[str, Any]]] = [
        (["runs/a"], {}),
        (["runs/a"], {"out": "x.html"}),
        (["runs/a"], {"out": "pages"}),
        ([str(a), str(b)], {}),
        ([str(a), str(b)], {"out": "pages"}),
        ([str(a), str(b)], {"out": "y.htm"}),
    ]
    found = [again.run(runs, **options)["report"] for runs, options in given]
    assert found == [
        str(a / "report.html"),
        "x.html",
        "pages/report.html",
        "compare.html",
        "pages/compare.html",
        "y.htm",
    ]
    for options in ({"out": "runs/a/scores.jsonl"}, {"out": "nowhere/deep"}, {"players": -1}):
        with pytest.raises(UserError):
            again.run(["runs/a"], **options)


def test_the_command(tmp_path: Path) -> None:
    rl_run(tmp_path / "runs" / "a", count=2)
    rl_run(tmp_path / "runs" / "b", 2.0, count=2)
    run = CliRunner()
    done = run.invoke(app, ["report", "runs/a", "second=runs/b", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [r["name"] for r in found["runs"]] == ["a", "second"] and found["differences"][0]["deltas"]["second"][
        "si_sdr"
    ]["n"] == 2
    done = run.invoke(app, ["report", "runs/a"])
    assert done.exit_code == 0 and "before" in done.stdout and "next: open" in done.stderr
    for wrong in (["report"], ["report", "runs"], ["report", "nowhere"], ["report", "runs/a", "runs/a"]):
        done = run.invoke(app, wrong)
        assert done.exit_code == 2 and "Traceback" not in done.stderr


def test_an_evaluations_numbers_of_another_version_are_no_reason_to_fail(tmp_path: Path) -> None:
    run = _evaluation(tmp_path)
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**content, "systems": {"../m": content["systems"]["m"]}}))
    again.run([str(run)])
    assert any("own page cannot be made" in n for n in SHOWN[-1][1].notes)
    assert eval_again.Evaluate is Evaluate
