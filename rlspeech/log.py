"""What the terminal shows. stdout carries results only (tables, or one JSON object with ``--json``); all else goes to stderr.

On a terminal progress is a rich bar; elsewhere (files, CI, ``NO_COLOR``) it is a plain line about every 5 s. Bars nest: one inside another
is a further line of the same live display; without a display it is silent unless it takes long enough to be missed. Estimates leave out
what an earlier attempt has done. Tables have text to the left and numbers to the right; in a file or a pipe a row is one line, however
long, and where a window is too narrow the cells of a row stand one under the other. Under several processes only rank 0 prints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID


LINE_EVERY_S = 5.0  # between plain progress lines
NARROW = 66  # columns of a window that has no room for a bar
LEAST_TEXT = 24  # the narrowest last column of a table that can still be read
# a number, perhaps with a unit sign and an interval in brackets; None; an empty cell
_NUMBER = re.compile(r"([-+]?(\d[\d.,:]*|\.\d+|nan|inf)( ?%)?( ?[\[(].*)?|-?)\**$")

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}

quiet = False  # nothing but errors, and data that was asked for (JSON, transcripts)
json_mode = False  # stdout is one JSON object; tables move to stderr
speaks = False  # this process has an error that rank 0 does not know of
unread = False  # a table could not be shown: nothing reads stdout any more
# what asks a process to end: Ctrl-C, a scheduler, a terminal that is closed
SIGNALS = [s for s in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")) if s is not None]
ended_by = signal.SIGINT  # the signal that has asked this process to end
_file: TextIO | None = None
_took_s: dict[str, float] = {}  # how long ``waiting`` lasted the last time


def configure(*, quiet: bool = False, json_mode: bool = False) -> None:
    """Set the two switches for the process."""
    globals().update(quiet=quiet, json_mode=json_mode, unread=False)


def is_main() -> bool:
    """True in the process that prints: rank 0, or the only one."""
    rank = os.environ.get("RANK") or "0"
    return not rank.isdecimal() or int(rank) == 0  # the engine refuses what is no number


def fancy(stream: TextIO | None = None) -> bool:
    """True where bars and colours are wanted: a capable terminal, and ``NO_COLOR`` unset."""
    stream = stream or sys.stderr
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def to_file(path: Path | None) -> None:
    """Repeat every message in a file (appended), or stop doing so with None."""
    global _file
    if _file is not None:
        _file.close()
        _file = None
    if path is not None and is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        _file = path.open("a", encoding="utf-8")


def printable(text: str) -> str:
    """A text without what a terminal would obey: paths and ids may hold escape sequences. Tabs and line breaks stay."""
    return text.translate(_CONTROLS)


def json_line(value: Any) -> str:
    """One line of JSON that a terminal can show."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.translate({code: f"\\u{code:04x}" for code in range(127, 160)})


def several(count: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def say(message: str) -> None:
    """Print one message on stderr."""
    _write(message, show=not quiet)


def warn(message: str) -> None:
    """Print that something is not as it should be, though the work goes on."""
    _write(f"warning: {message}", show=not quiet, style="yellow")


def error(message: str) -> None:
    """Print what is wrong, also with ``quiet``."""
    _write(f"error: {message}", show=True, style="red")


def _write(message: str, show: bool, style: str | None = None) -> None:
    if not is_main():
        return
    message = printable(message)
    if _file is not None:
        try:
            _file.write(f"{time.strftime('%H:%M:%S')} {message}\n")
            _file.flush()
        except OSError:  # a full disk must not stop a run on its log; the next checkpoint reports it
            to_file(None)
    if not show:
        return
    try:
        if Bar.active is not None and Bar.active.rich is not None:  # above the live bar, not through it
            Bar.active.rich.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)
    except (BrokenPipeError, ValueError):  # a closed stderr (`2>&1 | head`) must not stop a run
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what is still written to a stream whose reader is gone nowhere, also when the interpreter exits."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # no file behind it
        os.dup2(nowhere.fileno(), stream.fileno())


def emit(summary: dict[str, Any]) -> None:
    """Print the machine-readable summary as one JSON object on stdout; does nothing without ``json_mode``."""
    if json_mode and is_main():
        print(json_line(plain(summary)), flush=True)


def plain(value: Any) -> Any:
    """The value as JSON knows it: arrays and tensors become lists or numbers, nan and infinities null, paths text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    convert = getattr(value, "as_dict", None) or getattr(value, "tolist", None)  # ours; numpy's and torch's
    return plain(convert()) if convert else str(value)


# ---- progress


@contextlib.contextmanager
def waiting(desc: str) -> Iterator[None]:
    """Something that cannot be counted (also a decorator): its time so far, and before, on a terminal; elsewhere a line after 5 s."""
    text = f"{desc} (took {_clock(_took_s[desc])} before)" if desc in _took_s else desc
    start_s, outer = time.monotonic(), Bar.active
    with contextlib.ExitStack() as stack:
        if not quiet and is_main():
            if fancy() if outer is None else outer.rich is not None:
                stack.enter_context(Bar(None, text, "", brief=True))
            else:
                timer = threading.Timer(LINE_EVERY_S, say, (f"{text} ...",))
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
        try:
            yield
        finally:
            _took_s[desc] = time.monotonic() - start_s


def _clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _live(brief: bool) -> Progress:
    """A display that fits the window: where it is narrow there is no bar and no rate."""
    from rich import progress as rp
    from rich.console import Console
    from rich.text import Text

    class Clock(rp.TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.finished:
                return Text(_clock(task.elapsed or 0.0))
            return Text("-:--" if task.time_remaining is None else _clock(task.time_remaining) + " left")

    class Count(rp.MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.total is not None or task.completed else Text("")

    console = Console(stderr=True)
    wide = console.width >= NARROW
    columns = [
        rp.TextColumn("{task.description}", markup=False),
        *([rp.BarColumn(min(40, max(8, console.width - 72)))] if wide else []),
        Count(),
        Clock(),
        *([rp.TextColumn("{task.fields[rate]}", markup=False)] if console.width >= NARROW + 12 else []),
        rp.TextColumn("{task.fields[postfix]}", markup=False),
    ]
    return rp.Progress(*columns, console=console, transient=brief)


class Bar:
    """A context manager that counts ``unit`` (a plural): a bar on a terminal, a line about every 5 s elsewhere, both on stderr.

    The ``total`` may be None; rate and estimate leave out what an earlier attempt has done, up to ``start``; ``brief``: nothing of it is
    shown in the end where it was soon done.
    """

    active: Bar | None = None

    def __init__(
        self, total: int | None, desc: str = "working", unit: str = "items", start: int = 0, *, brief: bool = False
    ) -> None:
        self.total, self.desc, self.unit, self.brief = total, desc, unit, brief
        self.start = self.done = start
        self.postfix = ""
        self.rich: Progress | None = None
        self._reported = -1  # count of the last plain line
        self._task: TaskID | None = None
        self._outer: Bar | None = None

    def __enter__(self) -> Bar:
        self.start_s = self._last_s = time.monotonic()
        self._last_tenth = 10 * self.start // self.total if self.total else 0
        self._outer, Bar.active = Bar.active, self
        if self._outer is not None:
            self.rich = self._outer.rich  # rich allows one live display
            self.brief = self.brief or self.rich is not None
        elif not quiet and is_main() and fancy():
            self.rich = _live(self.brief)
        if self.rich is not None:
            self._task = self.rich.add_task(self.desc, total=self.total, completed=self.done, rate="", postfix="")
            if self._outer is None:
                self.rich.start()
        return self

    def advance(self, n: int = 1, **postfix: Any) -> None:
        """Count ``n`` further items; keyword arguments are shown behind the bar (``reward=0.41``)."""
        self.done += n
        if postfix:
            shown = [f"{k} {_cell(v)}" for k, v in postfix.items()]
            self.postfix = " ".join(shown[:1] if self.rich is not None and self.rich.console.width < NARROW else shown)
        if self.rich is not None and self._task is not None:
            self.rich.update(self._task, completed=self.done, rate=self._rate(), postfix=self.postfix)
            return
        now = time.monotonic()
        tenth = 10 * self.done // self.total if self.total else 0
        waited_s = now - self._last_s
        if waited_s >= LINE_EVERY_S or (tenth > self._last_tenth and waited_s >= 1.0 and not self.brief):
            self._last_s, self._last_tenth, self._reported = now, tenth, self.done
            self._line()

    def _rate(self) -> str:
        rate = (self.done - self.start) / max(time.monotonic() - self.start_s, 1e-9)
        slow = 0 < rate < 1
        return f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}" if slow else f"{rate:.1f} {self.unit}/s"

    def _line(self) -> None:
        elapsed_s = time.monotonic() - self.start_s
        if self.total and self.start == self.done == self.total:
            say(f"{self.desc}: all {self.total} {self.unit} were done before")
            return
        count = f"{self.done}/{self.total} ({100 * self.done // self.total} %)" if self.total else f"{self.done}"
        left = f"{_clock(elapsed_s)} taken"
        if self.total and self.start < self.done < self.total:
            left = f"{_clock(elapsed_s * (self.total - self.done) / (self.done - self.start))} left"
        parts = [f"{self.desc}: {count} {self.unit}", self._rate(), left, self.postfix]
        say(", ".join(part for part in parts if part))

    def __exit__(self, *exc: object) -> None:
        Bar.active = self._outer
        if self.rich is not None and self._task is not None:
            if self.brief:
                self.rich.remove_task(self._task)
            if self._outer is None:
                self.rich.stop()
        elif (self._reported != self.done or not self.done) and (not self.brief or self._reported >= 0):
            self._line()


progress = Bar  # with log.progress(100, "scoring", "clips") as bar: bar.advance()


# ---- tables


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
    """Print one table on stdout (on stderr with ``json_mode``, nowhere with ``quiet``), notes under it.

    Numbers stand to the right; floats get three decimals, None is ``-``, the rest ``str``. A heading may be "".
    """
    if not is_main() or quiet:
        return
    stream = sys.stderr if json_mode else sys.stdout
    try:
        cells = [[_cell(v) for v in row] for row in rows]
        _draw(printable(title), [printable(c) for c in columns], cells, [printable(note) for note in notes], stream)
        stream.flush()
    except BrokenPipeError:  # what the table tells is written down as well, or still has to be
        discard(stream)
        globals().update(unread=stream is sys.stdout)


def _cell(value: Any) -> str:
    """A value as tables and progress lines show it: None as ``-``, floats with three decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def _draw(title: str, columns: Sequence[str], rows: list[list[str]], notes: Sequence[str], stream: TextIO) -> None:
    grid = [list(columns), *rows]
    right = [i > 0 and all(_NUMBER.match(row[i]) for row in rows) for i in range(len(columns))]
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    if width is not None:
        room = width - (3 * len(columns) + 1 if fancy(stream) else 2 * len(columns))
        if sum(_widths(grid)) > room:
            grid = _fit(grid, right, room)
        if sum(_widths(grid)) > room:
            _stack(title, [list(columns), *rows], notes, stream, width)
            return
    if fancy(stream):
        _boxes(title, grid, right, stream)
    else:
        _text(title, grid, right, stream)
    for note in notes:
        _wrapped(note, 2, stream, width)


def _wrapped(text: str, indent: int, stream: TextIO, width: int | None) -> None:
    """Print a text in lines that fit a window; without one as it is."""
    first, rest = " " * indent, " " * (indent + 2)
    lines = textwrap.wrap(text, max(width - 1, 16), initial_indent=first, subsequent_indent=rest) if width else None
    print(*(lines or [first + text]), sep="\n", file=stream)


def _widths(grid: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line) for text in column for line in text.split("\n")) for column in zip(*grid, strict=True)]


def _fit(grid: list[list[str]], right: Sequence[bool], room: int) -> list[list[str]]:
    """A table that is too wide, with intervals below their means and a last column of text in several lines."""
    grid = [
        [re.sub(r" (?=[\[(])", "\n", text, count=1) if r else text for text, r in zip(row, right, strict=True)]
        for row in grid
    ]
    left = room - sum(_widths(grid)[:-1])
    if not right[-1] and left >= LEAST_TEXT:
        grid = [grid[0], *([*row[:-1], "\n".join(textwrap.wrap(row[-1], left))] for row in grid[1:])]
    return grid


def _text(title: str, grid: list[list[str]], right: Sequence[bool], stream: TextIO) -> None:
    widths = _widths(grid)
    print(title, file=stream)
    for row in [grid[0], ["-" * w for w in widths], *grid[1:]]:
        for parts in itertools.zip_longest(*(text.split("\n") for text in row), fillvalue=""):
            line = "  ".join(c.rjust(w) if r else c.ljust(w) for c, r, w in zip(parts, right, widths, strict=True))
            print("  " + line.rstrip(), file=stream)


def _boxes(title: str, grid: list[list[str]], right: Sequence[bool], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), title_justify="left")
    for name, r in zip(grid[0], right, strict=True):
        shown.add_column(Text(name), justify="right" if r else "left", no_wrap=True)
    for row in grid[1:]:
        shown.add_row(*map(Text, row))
    Console(file=stream).print(shown)


def _stack(title: str, grid: list[list[str]], notes: Sequence[str], stream: TextIO, width: int) -> None:
    """Each row as a heading and its cells below: for windows that the table does not fit into."""
    lines = [(title, 0)]
    for row in grid[1:]:
        lines.append((row[0], 2))
        lines += [(f"{n}: {v}" if n else v, 4) for n, v in zip(grid[0][1:], row[1:], strict=True) if v]
    for text, indent in [*lines, *((note, 2) for note in notes)]:
        _wrapped(text, indent, stream, width)
