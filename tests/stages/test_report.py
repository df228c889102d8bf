"""``rlspeech report``: where the page goes, what is printed, and that nothing is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cli import RUN, called, refused
from tiny_runs import eval_run, pretrain_run, rl_run, summarised, tone

from rlspeech.cli import app
from rlspeech.config import ScoreFolder
from rlspeech.data.audio import save_audio
from rlspeech.report import ReportData, build
from rlspeech.stages import report, reward
from rlspeech.types import UserError

Pages = list[tuple[Path, ReportData]]


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pages:
    """Pages as data, not drawn."""
    pages: Pages = []

    def caught(path: Path, data: ReportData) -> Path:
        pages.append((path, data))
        return path

    for module in (report, build):
        monkeypatch.setattr(module, "render_report", caught)
    monkeypatch.chdir(tmp_path)
    return pages


def test_scores_are_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Pages) -> None:
    for i in range(5):
        save_audio(tmp_path / "out" / f"f{i}.flac", tone(200 + 60 * i) * (1 + i / 10), 16000)
        save_audio(tmp_path / "clean" / f"f{i}.flac", tone(200 + 60 * i + i), 16000)
    (tmp_path / "out" / "f9.flac").write_bytes(b"")
    config = ScoreFolder(rewards=["si_sdr"], target="clean", report="always", workers=0, device="cpu", out="scores")
    first = reward.run(config, "out")
    own = shown.pop()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(reward, "Scorer", None)
    monkeypatch.chdir("/")  # where it was called from does not matter
    result = report.run([str(tmp_path / "scores")])
    ((path, data),) = shown
    assert {p: p.read_bytes() for p in before} == before and path == own[0] == tmp_path / "scores" / "report.html"
    assert data.means == own[1].means and [c.key for c in data.clips] == [c.key for c in own[1].clips]
    (lost,) = [g for g in data.grids if g.title == "Files without a score"]
    assert list(lost.rows[0][:2]) == ["si_sdr", "1"] and "empty" in lost.rows[0][2]
    assert result["metrics"]["si_sdr"]["mean"] == first["metrics"]["si_sdr"]["mean"]
    assert result["metrics"]["si_sdr"]["n_failed"] == 1 and data.facts["files"] == str(tmp_path / "out")


def test_where_the_page_goes(tmp_path: Path) -> None:
    a, b = rl_run(tmp_path / "runs" / "a", count=2), rl_run(tmp_path / "runs" / "b", count=2)
    (tmp_path / "pages").mkdir()
    alone = {None: str(a / "report.html"), "x.html": "x.html", "pages": "pages/report.html"}
    several = {None: "compare.html", "pages": "pages/compare.html", "y.htm": "y.htm"}
    for runs, places in ((["runs/a"], alone), ([str(a), str(b)], several)):
        assert [report.run(runs, out=out)["report"] for out in places] == list(places.values())
    for options in ({"out": "runs/a/scores.jsonl"}, {"out": "nowhere/deep"}, {"players": -1}):
        with pytest.raises(UserError):
            report.run(["runs/a"], **options)


def test_what_is_returned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = summarised(eval_run(tmp_path / "eval", {"input": [1.0, 2.0, 3.0], "m": [2.0, 4.0, 5.0]}), "input")
    found = report.run([str(evaluated)])
    assert found["deltas"]["m"]["si_sdr"]["mean"] == pytest.approx(5 / 3) and found["scores"].endswith("scores.jsonl")
    assert "m - input" in capsys.readouterr().out
    found = report.run([str(pretrain_run(tmp_path / "base"))])
    assert found["systems"]["base"]["si_sdr"]["mean"] == 100.0 and found["runs"][0]["stage"] == "pretrain"
    found = report.run([str(rl_run(tmp_path / "rl", count=3))])
    assert list(found["systems"]) == ["rl"] and found["against_own_start"]["rl"]["si_sdr"]["n"] == 3
    assert "before" in (out := capsys.readouterr().out) and "guard" in out and "step 50" in out


def test_the_command(tmp_path: Path) -> None:
    rl_run(tmp_path / "runs" / "a", count=2)
    rl_run(tmp_path / "runs" / "b", 2.0, count=2)
    found = called("report", "runs/a", "second=runs/b")
    assert [r["name"] for r in found["runs"]] == ["a", "second"]
    assert found["differences"][0]["deltas"]["second"]["si_sdr"]["n"] == 2
    done = RUN.invoke(app, ["report", "runs/a"])
    assert done.exit_code == 0 and "before" in done.stdout and "next: open" in done.stderr
    for wrong in (["report"], ["report", "runs"], ["report", "nowhere"], ["report", "runs/a", "runs/a"]):
        assert refused(*wrong)
