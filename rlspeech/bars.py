"""Progress: a live bar on a terminal, elsewhere a plain line about every 5 s. ``log.progress`` and ``log.waiting`` are the way in.

Bars nest: one inside another is a further line of the same live display while it lasts; without a live display it is silent unless it
takes long enough to be missed. Estimates leave out what an earlier attempt has done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlspeech.tables import cell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID

__all__ = ["Bar", "Wait", "clock"]

LINE_EVERY_S = 5.0
NARROW = 66  # columns


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _live(console: Console, brief: bool) -> RichProgress:
    """A display that fits the window: where it is narrow there is no bar and no rate."""
    from rich import progress as rp
    from rich.text import Text

    class Clock(rp.ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.finished:
                return Text(clock(task.elapsed or 0.0))
            return Text("-:--" if task.time_remaining is None else clock(task.time_remaining) + " left")

    class Count(rp.ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.total is None and not task.completed else str(rp.MofNCompleteColumn().render(task)))

    width = console.width
    columns: list[rp.ProgressColumn] = [rp.TextColumn("{task.description}", markup=False)]
    if width >= NARROW:
        columns.append(rp.BarColumn(min(40, max(8, width - 72))))
    columns += [Count(), Clock()]
    if width >= NARROW + 12:
        columns.append(rp.TextColumn("{task.fields[rate]}", markup=False))
    columns.append(rp.TextColumn("{task.fields[postfix]}", markup=False))
    return rp.Progress(*columns, console=console, transient=brief)


class Bar:
    """Counts, as a context manager.

    Args:
        total: items to come, or None where that is not known.
        desc: what is being done.
        unit: what is counted, in the plural.
        start: items that an earlier attempt has done.
        brief: nothing stays of it where it was soon done.
        say: writes a plain line.
        show: somebody wants to see progress.
        fancy: bars are wanted.
    """

    active: Bar | None = None

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str,
        start: int = 0,
        *,
        brief: bool = False,
        say: Callable[[str], None],
        show: bool = True,
        fancy: bool = False,
    ) -> None:
        self.total, self.desc, self.unit, self.brief = total, desc, unit, brief
        self.start = self.done = start
        self.postfix = ""
        self.rich: RichProgress | None = None
        self._say, self._show, self._fancy = say, show, fancy
        self._said = -1
        self._task: TaskID | None = None
        self._outer: Bar | None = None
        self._owner = False

    def __enter__(self) -> Bar:
        self.start_s = self._last_s = time.monotonic()
        self._last_tenth = 10 * self.start // self.total if self.total else 0
        self._outer, Bar.active = Bar.active, self
        if self._outer is not None:
            self.rich = self._outer.rich  # rich allows one live display
            self.brief = self.brief or self.rich is not None
        elif self._show and self._fancy:
            from rich.console import Console

            self.rich, self._owner = _live(Console(stderr=True), self.brief), True
        if self.rich is not None:
            self._task = self.rich.add_task(self.desc, total=self.total, completed=self.done, rate="", postfix="")
            if self._owner:
                self.rich.start()
        return self

    def advance(self, n: int = 1, **postfix: Any) -> None:
        """Count ``n`` further items; keyword arguments are shown behind the bar (``reward=0.41``)."""
        self.done += n
        if postfix:
            shown = [f"{k} {cell(v)}" for k, v in postfix.items()]
            self.postfix = " ".join(shown[:1] if self.rich is not None and self.rich.console.width < NARROW else shown)
        if self.rich is not None and self._task is not None:
            self.rich.update(self._task, completed=self.done, rate=self._rate(), postfix=self.postfix)
            return
        now = time.monotonic()
        tenth = 10 * self.done // self.total if self.total else 0
        waited_s = now - self._last_s
        if waited_s >= LINE_EVERY_S or (tenth > self._last_tenth and waited_s >= 1.0 and not self.brief):
            self._last_s, self._last_tenth = now, tenth
            self._line()
            self._said = self.done

    def _rate(self) -> str:
        rate = (self.done - self.start) / max(time.monotonic() - self.start_s, 1e-9)
        return (
            f"{rate:.1f} {self.unit}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
        )

    def _line(self) -> None:
        elapsed_s = time.monotonic() - self.start_s
        if self.total and self.start == self.done == self.total:
            self._say(f"{self.desc}: all {self.total} {self.unit} were done before")
            return
        count = f"{self.done}/{self.total} ({100 * self.done // self.total} %)" if self.total else f"{self.done}"
        parts = [f"{self.desc}: {count} {self.unit}", self._rate()]
        if self.total and self.start < self.done < self.total:
            parts.append(f"{clock(elapsed_s * (self.total - self.done) / (self.done - self.start))} left")
        else:
            parts.append(f"{clock(elapsed_s)} taken")
        self._say(", ".join([*parts, *([self.postfix] if self.postfix else [])]))

    def __exit__(self, *exc: object) -> None:
        Bar.active = self._outer
        if self.rich is not None and self._task is not None:
            if self.brief:
                self.rich.remove_task(self._task)
            if self._owner:
                self.rich.stop()
        elif (self._said != self.done or not self.done) and (not self.brief or self._said >= 0):
            self._line()


class Wait:
    """Something that takes a while and cannot be counted: its time so far, beside the time that it took before.

    Args:
        desc: what is being done.
        say: writes a plain line, once it has lasted 5 s.
        show: somebody wants to see progress.
        fancy: bars are wanted.
    """

    took: dict[str, float] = {}  # the last time, in seconds

    def __init__(self, desc: str, *, say: Callable[[str], None], show: bool = True, fancy: bool = False) -> None:
        before = f" (took {clock(self.took[desc])} before)" if desc in self.took else ""
        self.desc, self._text, self._say, self._show, self._fancy = desc, desc + before, say, show, fancy
        self._bar: Bar | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Wait:
        self._start_s = time.monotonic()
        outer = Bar.active
        if self._show and (self._fancy if outer is None else outer.rich is not None):
            self._bar = Bar(None, self._text, "", brief=True, say=self._say, fancy=True).__enter__()
        elif self._show:
            self._timer = threading.Timer(LINE_EVERY_S, self._say, (f"{self._text} ...",))
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.took[self.desc] = time.monotonic() - self._start_s
        if self._timer is not None:
            self._timer.cancel()
        if self._bar is not None:
            self._bar.__exit__(*exc)
