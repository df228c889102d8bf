"""What the terminal sees. stdout carries results only (tables, or one JSON object with ``--json``); all else goes to stderr.

On a terminal progress is a rich bar; elsewhere (files, CI, ``NO_COLOR``) it is a plain line about every 5 s. Under several
processes only rank 0 speaks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlspeech.bars import Bar, Wait
from rlspeech.tables import draw

__all__ = [
    "configure",
    "discard",
    "emit",
    "error",
    "plain",
    "progress",
    "say",
    "several",
    "table",
    "to_file",
    "waiting",
    "warn",
]

quiet = False  # nothing but errors, and data that was asked for (JSON, transcripts)
json_mode = False  # stdout is one JSON object; tables move to stderr
unread = False  # a table could not be shown: nobody reads stdout any more
_file: TextIO | None = None


def configure(*, quiet: bool = False, json_mode: bool = False) -> None:
    """Set the two switches for the process."""
    globals().update(quiet=quiet, json_mode=json_mode, unread=False)


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


def several(count: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def say(message: str) -> None:
    """One message for the person, on stderr."""
    _write(message, show=not quiet)


def warn(message: str) -> None:
    """One message that something is not as it should be, though the work goes on."""
    _write(f"warning: {message}", show=not quiet, style="yellow")


def error(message: str) -> None:
    """One message that nothing silences: what is wrong."""
    _write(f"error: {message}", show=True, style="red")


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
    try:
        if Bar.active is not None and Bar.active.rich is not None:  # above the live bar, not through it
            Bar.active.rich.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)
    except (BrokenPipeError, ValueError):  # nobody reads on (`2>&1 | head`): that must not stop a run
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what is still written to a stream nowhere: its reader is gone, and so that the interpreter does not stumble on it at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no file behind it
        pass


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
    """Print one table on stdout (on stderr with ``json_mode``, nowhere with ``quiet``). Numbers to the right, None as ``-``.

    Args:
        title: above the table.
        columns: headings.
        rows: cells; floats get three decimals, the rest ``str``.
        notes: lines under the table.
    """
    if not is_main() or quiet:
        return
    stream = sys.stderr if json_mode else sys.stdout
    try:
        draw(title, columns, rows, notes, stream, fancy=fancy(stream))
        stream.flush()
    except BrokenPipeError:  # what the table tells is written down as well, or still has to be
        discard(stream)
        globals().update(unread=stream is sys.stdout)


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


def progress(
    total: int | None, desc: str = "working", unit: str = "items", start: int = 0, *, brief: bool = False
) -> Bar:
    """A context manager that counts: a bar on a terminal, a line about every 5 s elsewhere, both on stderr.

    Args:
        total: items to come, or None where that is not known.
        desc: what is being done.
        unit: what is counted, in the plural.
        start: items that an earlier attempt has done; rate and estimate leave them out.
        brief: nothing stays of it where it was soon done.
    """
    return Bar(total, desc, unit, start, brief=brief, say=say, show=not quiet and is_main(), fancy=fancy())


@contextlib.contextmanager
def waiting(desc: str) -> Iterator[None]:
    """Something that cannot be counted (also a decorator): a line of its own on a terminal, elsewhere a word once it has lasted 5 s."""
    with Wait(desc, say=say, show=not quiet and is_main(), fancy=fancy()):
        yield
