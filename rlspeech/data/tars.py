"""WebDataset's tars: a file in an uncompressed tar has a path, ``x.tar/key.flac``, and is found by its place there."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

TAR = ".tar"


def in_tar(path: str | Path) -> tuple[str, int, int] | None:
    """The tar into which a path leads (x.tar/a.wav), where the file begins there, and its size in bytes; None for any other path."""
    start, found, name = str(path).partition(f"{TAR}/")
    with suppress(OSError, ValueError):
        if found and (place := tar_members(start + TAR).get(name)):
            return start + TAR, *place
    return None


def packed(path: str | Path) -> bytes:
    """The content of a file in a tar; empty of any other path."""
    if (found := in_tar(path)) is None:
        return b""
    with open(found[0], "rb") as tar:
        tar.seek(found[1])
        return tar.read(found[2])


def tar_members(tar: str | Path) -> Mapping[str, tuple[int, int]]:
    """The files in a tar, in its order: name -> where it begins, and its size in bytes. Raises ``OSError`` or ``ValueError``."""
    return _members(str(tar), os.stat(tar).st_mtime_ns)


@lru_cache(64)
def _members(tar: str, _changed: int) -> Mapping[str, tuple[int, int]]:
    try:
        with tarfile.open(tar, "r:") as file:  # not compressed: its files are read where they stand
            return {os.path.normpath(m.name): (m.offset_data, m.size) for m in file if m.isfile()}
    except tarfile.TarError as error:
        raise ValueError(f"no tar, or a compressed one: {error}") from error


def state_of(path: str | Path) -> tuple[int, int]:
    """Size and time of change of a file, or of the tar that it is in. Raises ``OSError`` or ``ValueError``."""
    found = in_tar(path)
    status = os.stat(found[0] if found else path)
    return status.st_size, status.st_mtime_ns


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar that is being written; the same content makes the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
