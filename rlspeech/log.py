"""What the terminal sees. stdout carries results only (tables, or one JSON object with ``--json``); all else goes to stderr.

On a terminal progress is a rich bar; elsewhere (files, CI, ``NO_COLOR``) it is a plain line about every 5 s. Under several
processes only rank 0 speaks.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["configure", "emit", "plain", "progress", "say", "table", "to_file", "warn"]

quiet = False  # no say, no progress; warnings and results stay
json_mode = False  # stdout is one JSON object; tables move to stderr
_file: TextIO | None = None
_LINE_EVERY_S = 5.0


def configure(*, quiet: bool = False, json_mode: bool = False) -> None:
    """Set the two switches for the process."""
    globals().update(quiet=quiet, json_mode=json_mode)


def is_main() -> bool:
    """True in the process that speaks: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0") or 0) == 0


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


def say(message: str) -> None:
    """One message for the person, on stderr."""
    _write(message, show=not quiet)


def warn(message: str) -> None:
    """One message that ``quiet`` does not silence."""
    _write(f"warning: {message}", show=True, style="yellow")


def _write(message: str, show: bool, style: str | None = None) -> None:
    if not is_main():
        return
    if _file is not None:
        try:
            _file.write(f"{time.strftime('%H:%M:%S')} {message}\n")
            _file.flush()
        except OSError:  # a full disk must not stop a run on its log; the next checkpoint says so properly
            to_file(None)
    if not show:
        return
    if _Bar.active is not None and _Bar.active.rich is not None:  # above the live bar, not through it
        _Bar.active.rich.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
    else:
        print(message, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
    """Print one table on stdout (on stderr with ``json_mode``). Numbers to the right, None as ``-``.

    Args:
        title: above the table.
        columns: headings.
        rows: cells; floats get three decimals, the rest ``str``.
        notes: lines under the table.
    """
    if not is_main():
        return
    cells = [[_cell(v) for v in row] for row in rows]
    stream = sys.stderr if json_mode else sys.stdout
    if fancy(stream):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table(title=Text(title), title_justify="left")
        for i, name in enumerate(columns):
            grid.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
        for row in cells:
            grid.add_row(*(Text(c) for c in row))
        Console(file=stream).print(grid)
    else:
        widths = [max([len(str(name)), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
        print(title, file=stream)
        for row in [list(columns), ["-" * w for w in widths], *cells]:
            line = "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            print("  " + line.rstrip(), file=stream)
    for note in notes:
        print(f"  {note}", file=stream)
    stream.flush()


def emit(summary: dict[str, Any]) -> None:
    """Print the machine-readable summary as one JSON object on stdout; does nothing without ``json_mode``."""
    if json_mode and is_main():
        print(json.dumps(plain(summary), ensure_ascii=False, allow_nan=False), flush=True)


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
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return str(value)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class _Bar:
    """What ``progress`` returns; see there."""

    active: _Bar | None = None

    def __init__(self, total: int | None, desc: str, unit: str, start: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.start = self.done = start
        self._said = -1
        self.postfix = ""
        self.rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._outer: _Bar | None = None

    def __enter__(self) -> _Bar:
        self.start_s = self._last_s = time.monotonic()
        self._last_tenth = 10 * self.start // self.total if self.total else 0
        self._outer, _Bar.active = _Bar.active, self
        nested = self._outer is not None and self._outer.rich is not None
        if not quiet and is_main() and fancy() and not nested:  # rich allows one live display
            from rich import progress as rp
            from rich.console import Console

            columns = (rp.TextColumn("{task.description}", markup=False), rp.BarColumn(), rp.MofNCompleteColumn(),
                       rp.TextColumn("{task.fields[rate]}", markup=False), rp.TimeRemainingColumn(),
                       rp.TextColumn("{task.fields[postfix]}", markup=False))
            self.rich = rp.Progress(*columns, console=Console(stderr=True), transient=False)
            self._task = self.rich.add_task(self.desc, total=self.total, completed=self.done, rate="", postfix="")
            self.rich.start()
        return self

    def advance(self, n: int = 1, **postfix: Any) -> None:
        """Count ``n`` further items; keyword arguments are shown behind the bar (``reward=0.41``)."""
        self.done += n
        if postfix:
            self.postfix = " ".join(f"{k} {_cell(v)}" for k, v in postfix.items())
        if self.rich is not None and self._task is not None:
            self.rich.update(self._task, completed=self.done, rate=self._rate(), postfix=self.postfix)
            return
        now = time.monotonic()
        tenth = 10 * self.done // self.total if self.total else 0
        waited_s = now - self._last_s
        if waited_s >= _LINE_EVERY_S or (tenth > self._last_tenth and waited_s >= 1.0):
            self._last_s, self._last_tenth = now, tenth
            self._line()
            self._said = self.done

    def _rate(self) -> str:
        rate = (self.done - self.start) / max(time.monotonic() - self.start_s, 1e-9)
        return f"{rate:.1f} {self.unit}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{self.unit}"

    def _line(self) -> None:
        elapsed_s = time.monotonic() - self.start_s
        count = f"{self.done}/{self.total} ({100 * self.done // self.total} %)" if self.total else f"{self.done}"
        parts = [f"{self.desc}: {count} {self.unit}", self._rate()]
        if self.total and self.start < self.done < self.total:
            parts.append(f"{_clock(elapsed_s * (self.total - self.done) / (self.done - self.start))} left")
        else:
            parts.append(f"{_clock(elapsed_s)} taken")
        say(", ".join([*parts, *([self.postfix] if self.postfix else [])]))

    def __exit__(self, *exc: object) -> None:
        _Bar.active = self._outer
        if self.rich is not None:
            self.rich.stop()
        elif self._said != self.done or not self.done:
            self._line()


def progress(total: int | None, desc: str = "working", unit: str = "items", start: int = 0) -> _Bar:
    """A context manager that counts: a bar on a terminal, a line about every 5 s elsewhere, both on stderr.

    Args:
        total: items to come, or None where that is not known.
        desc: what is being done.
        unit: what is counted.
        start: items that an earlier attempt has done; rate and estimate leave them out.
    """
    return _Bar(total, desc, unit, start)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
