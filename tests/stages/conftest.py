"""Runs that train end with a page, whose drawing takes longer than the tiny run: only tests that ask for ``drawn`` get it drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_speech import write_model, write_pairs
from tiny_tts import write_tts
from tiny_tuned import TASKS, Run, tuned

from rlspeech.config import Lora
from rlspeech.report import ReportData, build
from rlspeech.report.compare import Comparison
from rlspeech.report.runs import open_runs
from rlspeech.stages import finish


@pytest.fixture
def drawn() -> None:
    """Asks for the page as it is."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page shows is put together for every run; a run survives a mistake there, its test does not."""
    failed: list[Exception] = []
    real = build.build

    def watched(made: Comparison, players: int | None = None) -> ReportData:
        try:
            return real(made, players)
        except Exception as error:
            failed.append(error)
            raise

    def undrawn(folder: Path) -> Path:
        [run] = open_runs([str(folder)])
        run.page.write_text(watched(build.compared([run])).title, encoding="utf-8")
        return run.page

    monkeypatch.setattr(build, "build", watched)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(finish, "write_page", undrawn)
    yield
    if failed:
        raise failed[0]


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pairs of clips, and an enhancer of random weights."""
    folder = tmp_path_factory.mktemp("flow")
    return {"data": str(write_pairs(folder / "pairs")), "model": str(write_model(folder / "model"))}


@pytest.fixture(scope="session")
def tts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Texts with recordings, a codec language model and a token reward."""
    return write_tts(tmp_path_factory.mktemp("tts"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run with an adapter, by task."""
    lora = {"avse": Lora(rank=2, alpha=4, targets="attention+ff"), "tts": Lora(rank=2, alpha=4, targets="all")}
    return {task: tuned(task, tmp_path_factory.mktemp(task), lora.get(task, Lora(rank=2, alpha=4))) for task in TASKS}
