"""Runs that train end with a page, whose drawing takes longer than the tiny run: only tests that ask for ``drawn`` get it drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlspeech.report import ReportData
from rlspeech.stages import finish, pretrain_report, rl_report


@pytest.fixture
def drawn() -> None:
    """Asks for the page as it is."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page shows is put together for every run; a run survives a mistake there, its test does not."""
    failed: list[Exception] = []

    def watched(real: Callable[..., ReportData]) -> Callable[..., ReportData]:
        def watch(*args: Any, **options: Any) -> ReportData:
            try:
                return real(*args, **options)
            except Exception as error:
                failed.append(error)
                raise

        return watch

    def title(path: Path, data: ReportData) -> Path:
        path.write_text(data.title, encoding="utf-8")
        return path

    for module in (rl_report, pretrain_report):
        monkeypatch.setattr(module, "page_data", watched(module.page_data))
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(finish, "render_report", title)
    yield
    if failed:
        raise failed[0]
