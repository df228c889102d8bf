"""How a run that trains ends: the reason is noted, and there is a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlspeech.config import RL
from rlspeech.report import build
from rlspeech.report.runs import open_runs
from rlspeech.run import Run
from rlspeech.stages.finish import at_the_end
from rlspeech.types import UserError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (UserError("nothing can be scored"), "nothing can be scored"),
        (RuntimeError("x"), "RuntimeError"),
        (None, "all steps done"),
    ],
)
def test_there_is_a_page_however_a_run_ends(tmp_path: Path, error: BaseException | None, reason: str) -> None:
    with Run.create(tmp_path / "run", "rl", RL()) as folder:
        folder.log(1, reward=0.5)
        try:
            with at_the_end(folder) as end:
                end.reason = "all steps done"
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
    assert end.page == folder.path / "report.html" and end.page.is_file()
    assert json.loads((folder.path / "env.json").read_text())["stopped"] == reason
    assert open_runs([str(folder.path)])[0].state() == f"step 1 of 60: {reason}"


def test_a_page_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: None
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(build, "render_report", broken)
    with Run.create(tmp_path / "run", "rl", RL()) as folder, at_the_end(folder) as end:
        end.reason = "all steps done"
    assert end.page is None and "no ink" in capsys.readouterr().err
