"""Tables for the terminal: text to the left, numbers to the right, and rows one under the other where the window is too narrow.

In a file or a pipe a row is one line, however long; a terminal's width is only asked where there is a terminal.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

__all__ = ["cell", "draw"]

# a number, perhaps with a unit sign and an interval in brackets; None; an empty cell
_NUMBER = re.compile(r"([-+]?(\d[\d.,:]*|\.\d+|nan|inf)( ?%)?( ?[\[(].*)?|-?)\**$")
_LEAST_TEXT = 24  # the narrowest last column that can still be read


def cell(value: Any) -> str:
    """A value as tables and progress lines show it: None as ``-``, floats with three decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def draw(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    notes: Sequence[str],
    stream: TextIO,
    *,
    fancy: bool,
) -> None:
    """Write one table.

    Args:
        title: above the table.
        columns: headings; "" for a column that needs none.
        rows: cells, see ``cell``.
        notes: lines under the table.
        stream: where to.
        fancy: boxes and colours are wanted.
    """
    head, cells = list(columns), [[cell(v) for v in row] for row in rows]
    right = [i > 0 and all(_NUMBER.match(row[i]) for row in cells) for i in range(len(columns))]
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    if width is not None:
        room = width - (3 * len(columns) + 1 if fancy else 2 * len(columns))
        if sum(_widths([head, *cells])) > room:
            head, cells = _fit(head, cells, right, room)
        if sum(_widths([head, *cells])) > room:
            _stack(title, columns, [[cell(v) for v in row] for row in rows], notes, stream, width)
            return
    if fancy:
        _boxes(title, head, cells, right, stream)
    else:
        _plain(title, head, cells, right, stream)
    for note in notes:
        print(
            *(
                textwrap.wrap(note, width - 1, initial_indent="  ", subsequent_indent="    ")
                if width
                else [f"  {note}"]
            ),
            sep="\n",
            file=stream,
        )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line) for text in column for line in text.split("\n")) for column in zip(*rows, strict=True)]


def _fit(
    head: list[str], cells: list[list[str]], right: Sequence[bool], room: int
) -> tuple[list[str], list[list[str]]]:
    """A table that is too wide, with intervals below their means and a last column of text in several lines."""

    def below(text: str) -> str:
        return re.sub(r" (?=[\[(])", "\n", text, count=1)

    rows = [[below(text) if r else text for text, r in zip(row, right, strict=True)] for row in (head, *cells)]
    left = room - sum(_widths(rows)[:-1])
    if not right[-1] and left >= _LEAST_TEXT:
        rows = [[*row[:-1], "\n".join(textwrap.wrap(row[-1], left))] for row in rows]
    return rows[0], rows[1:]


def _plain(
    title: str, head: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], stream: TextIO
) -> None:
    widths = _widths([head, *cells])
    print(title, file=stream)
    for row in [head, ["-" * w for w in widths], *cells]:
        for parts in itertools.zip_longest(*(text.split("\n") for text in row), fillvalue=""):
            line = "  ".join(c.rjust(w) if r else c.ljust(w) for c, r, w in zip(parts, right, widths, strict=True))
            print("  " + line.rstrip(), file=stream)


def _boxes(
    title: str, head: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], stream: TextIO
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title), title_justify="left")
    for name, r in zip(head, right, strict=True):
        grid.add_column(Text(name), justify="right" if r else "left", no_wrap=True)
    for row in cells:
        grid.add_row(*(Text(c) for c in row))
    Console(file=stream).print(grid)


def _stack(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str], stream: TextIO, width: int
) -> None:
    """Each row as a heading and its cells below: for windows that the table does not fit into."""

    def put(text: str, indent: int) -> None:
        lines = textwrap.wrap(
            text, max(width - 1, 16), initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)
        )
        print(*lines, sep="\n", file=stream)

    put(title, 0)
    for row in cells:
        put(row[0], 2)
        for name, value in zip(columns[1:], row[1:], strict=True):
            if value:
                put(f"{name}: {value}" if name else value, 4)
    for note in notes:
        put(note, 2)
