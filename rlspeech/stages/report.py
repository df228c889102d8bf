"""``rlspeech report``: the page of one run written again from its folder, or one page that compares several.

    rlspeech report runs/rl                                     # its own report.html
    rlspeech report base=runs/a rl=runs/b --out compare.html    # side by side
    rlspeech report scores/ --json                              # the numbers of the page

Nothing is computed that needs a model, nothing in a run folder is written but its page; runs of rl, eval, reward and pretrain may be mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlspeech import log
from rlspeech.report import render_report
from rlspeech.stages import compare_page, pretrain_report, rl_report
from rlspeech.stages.compare import compare
from rlspeech.stages.past import Past, open_pasts, shown_path
from rlspeech.types import UserError

__all__ = ["run", "write_page"]

SEVERAL = "compare.html"  # not report.html: the working directory may be a run's folder
PLAYERS = 6


def run(
    runs: Sequence[str], *, out: str | None = None, players: int | None = None, json_mode: bool = False
) -> dict[str, Any]:
    """Write a page.

    Args:
        runs: folders, PATH or NAME=PATH; the first is what the others are compared with.
        out: the page; none: ``report.html`` in the folder of a single run, ``compare.html`` here for several.
        players: items with players; none: as the run says, else 6.
        json_mode: the caller prints what is returned.

    Returns:
        the numbers of the page, and where it is.

    Raises:
        UserError: something that is no run folder; the page cannot be written.
    """
    if players is not None and players < 0:
        raise UserError(f"cannot show {players} players", "it is a count", "--players 6")
    pasts = open_pasts(runs)
    page = _page(pasts, out)
    count = PLAYERS if players is None else players
    if len(pasts) == 1 and (again := _own_page(pasts[0], page, players, True)) is not None:
        if pasts[0].stage == "eval":
            compare_page.print_comparison(compare(pasts))
        log.say(f"next: open {page} in a browser")
        return {**again, "report": str(page)}
    _write(page, pasts, count)
    made = compare(pasts)
    trained = {"rl": rl_report, "pretrain": pretrain_report}.get(pasts[0].stage) if len(pasts) == 1 else None
    if trained is not None:
        trained.print_run(pasts[0])
    else:
        compare_page.print_comparison(made)
    log.say(f"next: open {page} in a browser")
    return {**made.as_dict(), "report": str(page)}


def write_page(folder: Path) -> Path | None:
    """Write the page of a run that has written its folder: ``report.html`` there, ``NAME.report.html`` beside ``NAME.scores.jsonl``.

    The page is built from what lies in the folder, as by ``rlspeech report FOLDER``; a page that cannot be built never ends a run.

    Args:
        folder: of a run, or the scores file of ``rlspeech reward``.

    Returns:
        the page; None, with a warning, where it cannot be built.
    """
    try:
        pasts = open_pasts([str(folder)])
        page = _page(pasts, None)
        if _own_page(pasts[0], page, None) is None:
            _write(page, pasts, PLAYERS)
    except Exception as error:
        log.warn(f"no report of this run ({type(error).__name__}: {error}); try: rlspeech report {shown_path(folder)}")
        return None
    return page


def _write(page: Path, pasts: Sequence[Past], players: int) -> None:
    trained = {"rl": rl_report, "pretrain": pretrain_report}.get(pasts[0].stage) if len(pasts) == 1 else None
    render_report(
        page, trained.page_data(pasts[0], players) if trained else compare_page.page_data(compare(pasts), players)
    )


def _page(pasts: Sequence[Past], out: str | None) -> Path:
    if out is not None:
        path = Path(out)
        if path.is_dir():
            path = path / ("report.html" if len(pasts) == 1 else SEVERAL)
        if path.suffix.lower() not in (".html", ".htm"):
            raise UserError(
                f"{out} is no page", "its name does not end in .html, and there is no such folder", "--out compare.html"
            )
        return path
    if len(pasts) > 1:
        return Path(SEVERAL)
    if pasts[0].stage == "reward":
        from rlspeech.stages.reward_report import page_path

        return page_path(pasts[0].scores_path)
    return pasts[0].path / "report.html"


def _own_page(run: Past, page: Path, players: int | None, table: bool = False) -> dict[str, Any] | None:
    """The page that the stage itself writes, where the run is whole enough; None where it is not."""
    try:
        if run.stage == "reward" and len(run.scores) == 1 and run.config:
            from rlspeech.stages.reward_report import write_again

            return write_again(run, page, players, table)
        if run.stage == "eval" and run.summary and "without" not in run.state():
            from rlspeech.stages.eval_again import write_again as evaluation

            return evaluation(run, page, players)
    except (
        UserError,
        ValidationError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # torn, of another version, data gone
        what = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        run.notes.append(
            f"the stage's own page cannot be made from this folder ({what[:200]}); this one shows what there is"
        )
    return None
