"""``rlspeech report``: the page of one run from its folder, or one page that compares several.

    rlspeech report runs/rl                                     # its own report.html
    rlspeech report base=runs/a rl=runs/b --out compare.html    # side by side
    rlspeech report scores/ --json                              # the numbers of the page

Nothing is computed that needs a model, nothing in a run folder is written but its page; runs of rl, eval, reward and pretrain may be mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.report.build import build, compared, print_table
from rlspeech.report.compare import Comparison, compare
from rlspeech.report.render import render_report
from rlspeech.report.runs import RunRecord, open_runs
from rlspeech.types import UserError

SEVERAL = "compare.html"  # not report.html: the working directory may be a run's folder


def run(runs: Sequence[str], *, out: str | None = None, players: int | None = None) -> dict[str, Any]:
    """Write a page.

    Args:
        runs: folders, PATH or NAME=PATH; the first is what the others are compared with.
        out: the page; none: ``report.html`` in the folder of a single run, ``compare.html`` here for several.
        players: items with players; none: as the run says, else 6.

    Returns:
        the numbers of the page, and where it is.

    Raises:
        UserError: something that is no run folder; the page cannot be written.
    """
    if players is not None and players < 0:
        raise UserError(f"cannot show {players} players", "it is a count", "--players 6")
    records = open_runs(runs)
    for record in records:
        _find_manifest(record)
    page = _page(records, out)
    made = compared(records)
    render_report(page, build(made, players))
    print_table(made)
    log.say(f"next: open {page} in a browser")
    return {**_numbers(made), "report": str(page)}


def _find_manifest(run: RunRecord) -> None:
    """The embedded test set of an evaluation that did not yet note which manifest it read."""
    if run.stage == "eval" and not run.config.get("data") and "manifest" not in run.env:
        from rlspeech.tasks import get_task

        with suppress(UserError):  # a task that is not here
            run.env["manifest"] = str(get_task(str(run.config.get("task"))).demo("test"))


def _numbers(made: Comparison) -> dict[str, Any]:
    """Numbers for ``--json``: of an evaluation its ``metrics.json``, of one system's scores their means, else the comparison."""
    run = made.alone
    if run and made.items is not None:
        return {**run.summary, "run": str(run.path), "scores": str(run.scores_path)}
    if run and run.stage == "reward" and len(made.systems) == 1 and run.config:
        [system] = made.systems
        found = {m: {**i.as_dict(), "n_valid": i.n, "n_failed": i.dropped} for m, i in system.means.items()}
        facts = {"stage": "reward", "system": system.name, "n": len(system.rows), "scores": str(run.scores_path)}
        return {**facts, "metrics": found}
    return compare(made.runs).as_dict() if run else made.as_dict()


def _page(runs: Sequence[RunRecord], out: str | None) -> Path:
    if out is None:
        return Path(SEVERAL) if len(runs) > 1 else runs[0].page
    path = Path(out)
    if path.is_dir():
        path = path / ("report.html" if len(runs) == 1 else SEVERAL)
    if path.suffix.lower() not in (".html", ".htm"):
        what = f"cannot write a page to {out}"
        raise UserError(what, "its name does not end in .html, and there is no such folder", "--out compare.html")
    return path
