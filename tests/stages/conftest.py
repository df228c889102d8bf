"""Runs of ``rl`` end with a page, whose drawing takes longer than the tiny run: only tests that ask for ``drawn`` get it drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlspeech.report import ReportData
from rlspeech.stages import rl_report


@pytest.fixture
def drawn() -> None:
    """Asks for the page as it is."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page shows is put together for every run; a run survives a mistake there, its test does not."""
    failed: list[Exception] = []
    real = rl_report.page_data

    def watched(*args: Any, **options: Any) -> ReportData:
        try:
            return real(*args, **options)
        except Exception as error:
            failed.append(error)
            raise

    def title(path: Path, data: ReportData) -> Path:
        path.write_text(data.title, encoding="utf-8")
        return path

    monkeypatch.setattr(rl_report, "page_data", watched)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(rl_report, "render_report", title)
    yield
    if failed:
        raise failed[0]
