"""Commands called in this process, and the rows of what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from rlspeech.cli import app

RUN = CliRunner()


def called(*words: object) -> dict[str, Any]:
    """What a command prints with ``--json``."""
    done = RUN.invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def refused(*words: object) -> str:
    """What a command says that the user can put right."""
    done = RUN.invoke(app, [*map(str, words)])
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    return done.stderr


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, every line of which is whole."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
