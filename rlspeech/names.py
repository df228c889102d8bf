"""Bytes that are text, and names that are files: the one rule of each that every reader goes by.

Text is UTF-8, or UTF-16 and UTF-32 by their byte order mark; nothing is ever guessed or replaced. Names that are equal to the eye are
equal (NFC), while a file is opened by the name that the disk has.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rlspeech.types import UserError

LFS, PULL = b"version https://git-lfs.github.com/spec/", "git lfs pull"
POINTER = "it is a Git LFS pointer: the file itself has not been fetched"
_MARKS = (
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
_PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)  # a relative path that stands for itself
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/?/")


def encoding_of(start: bytes) -> str:
    """The encoding that a byte order mark stands for; UTF-8 without one."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decoded(data: bytes) -> str:
    r"""The text of a file, ends of lines as ``\\n``, without its byte order mark. Raises ``ValueError`` with the reason."""
    if data.startswith(LFS):
        raise ValueError(f"{POINTER} ({PULL})")
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        shown = f"byte 0x{data[error.start]:02x} at {error.start}" if error.start < len(data) else "it ends too early"
        raise ValueError(f"not {encoding.removesuffix('-sig').upper()} ({shown})") from error
    if "\0" in text:
        raise ValueError("it holds NUL characters: UTF-16 without a byte order mark, or no text at all")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removeprefix("\ufeff").replace("\n\ufeff", "\n")  # files that were put one behind the other


def is_pointer(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a Git LFS pointer in place of what it is called."""
    try:
        with open(path, "rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False


def refuse_pointers(folder: Path) -> None:
    """Raise ``UserError`` where weights or settings in a folder have not been fetched from Git LFS."""
    lacking = sorted(p.name for p in folder.glob("*") if p.is_file() and p.stat().st_size < 1024 and is_pointer(p))
    if lacking:
        why = f"{', '.join(lacking[:4])}: {POINTER}"
        raise UserError(f"{folder} is not complete", why, f"{PULL} in its repository")


def nfc(name: str) -> str:
    """The form of a name by which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def on_disk(path: str) -> str:
    """A path by the name that the disk has for it, which may be composed otherwise; as it is where there is none."""
    if path.isascii() or os.path.lexists(path):
        return path
    place = ""
    for part in path.split(os.sep):
        there = os.path.join(place, part) if place or part else os.sep
        if not part.isascii() and not os.path.lexists(there):
            there = os.path.join(place, _entries(place or ".").get(nfc(part), part))
        place = there
    return place


@lru_cache(64)
def _entries(folder: str) -> Mapping[str, str]:
    try:
        return {nfc(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def local_path(name: str, base: str = "") -> str:
    """The path that a name stands for, below ``base`` where it is relative: ``~`` is the home, ``file:`` is left out, ``\\`` parts folders
    where no file has it in its name.

    Raises ``ValueError``: an address of another machine, or of a store.
    """
    if base[1:] and _PLAIN.fullmatch(name):
        return f"{base}/{name}"
    if name.startswith("~") or ":" in name or "\\" in name:
        name = _understood(name, base)
    return on_disk(os.path.normpath(os.path.join(base, name)))


def _understood(name: str, base: str) -> str:
    if os.path.lexists(os.path.join(base, name)):
        return name
    if name[:2] in ("~", "~/"):
        return os.path.expanduser(name)
    if re.match(r"(?i)file:", name):
        return unquote(re.sub(r"(?i)^file:(//(localhost)?(?=/))?", "", name))
    if found := _ADDRESS.match(name):
        raise ValueError(f"{found[0]} is an address: only files on a disk are read, copy it to one first")
    slashed = name.replace("\\", "/")
    return slashed if os.path.lexists(on_disk(os.path.join(base, slashed))) else name


def local_option(value: Any, where: str) -> Any:
    """An option's value (text, path, or a list of them) in which ``~`` and ``file:`` are paths. Raises ``UserError``: a path in a store."""
    if isinstance(value, list | tuple):
        return type(value)([local_option(v, where) for v in value])
    if isinstance(value, Path):
        return Path(local_option(str(value), where))
    if not isinstance(value, str):
        return value
    if re.match(r"(?i)(s3|gs|gcs|az|abfss?|hdfs|wasbs?|oss|ftp)://?", value):
        why, hint = "only files on a disk are read", "copy it to a folder first, and name that"
        raise UserError(f"{value} is no path on this machine ({where})", why, hint)
    return _understood(value, "") if re.match(r"(?i)~/|~$|file:/", value) else value
