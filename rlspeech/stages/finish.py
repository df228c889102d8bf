"""How a run that trains ends: why it stopped is noted, and its page is written, whether it came to its end or was ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.report.build import write_page
from rlspeech.run import Run
from rlspeech.types import UserError

DONE = "all steps done"


@dataclass(slots=True)
class End:
    """How a run ended, and the page that tells."""

    reason: str = ""
    page: Path | None = None


class Interrupt:
    """Ctrl-C in a loop of steps: the step at hand is finished and saved first, a second Ctrl-C ends at once.

    Several processes cannot agree on the step that is the last, so they end at once, as does a loop outside the main thread.
    """

    def __init__(self, world: int) -> None:
        self.asked, self._alone = False, world == 1
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        # a background job ignores Ctrl-C, and goes on to
        if self._alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):  # not the main thread
                self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.say("interrupted; finishing this step and saving it (Ctrl-C again: at once)")

    def check(self) -> None:
        """End the loop between two steps by a ``KeyboardInterrupt`` if that was asked for; the step before has been saved."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def at_the_end(folder: Run) -> Iterator[End]:
    """Note why a run stopped, and write its page; a page that fails never costs the run."""
    end = End()
    try:
        yield end
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            log.say("interrupted; writing the report (Ctrl-C again: without it)")
        known = {KeyboardInterrupt: "interrupted", UserError: getattr(error, "what", "")}
        end.reason = str(known.get(type(error), type(error).__name__))
        _finish(folder, end)
        if end.page:
            log.say(f"report: {end.page}")
        raise
    _finish(folder, end)


def _finish(folder: Run, end: End) -> None:
    if not folder.main:
        return
    with suppress(UserError, OSError):  # a disk that is full has had its error
        folder.note(stopped=end.reason)
    end.page = write_page(folder.path)


def longer(folder: Run, step: int, steps: int, falls: bool) -> str:
    """A remark on a run that goes on to another number of steps than it had, or that could; empty where there is none.

    Args:
        folder: of the run.
        step, steps: that it has come to, and is to come to now.
        falls: the learning rate falls over the steps.
    """
    if "steps" in folder.grown:
        rate = f": the learning rate falls over all {steps}, and is now that of step {step} of them" if falls else ""
        return f"{folder.grown['steps']} steps were asked for before, now {steps}{rate}"
    done = folder.resumed and step >= steps
    return f"all {steps} steps are done; a larger --steps goes on from there" if done else ""
