"""Rows in text files: appended one by one, or written as a whole and atomically; names that are safe for files.

``JsonlWriter`` survives being killed: a torn last line is cut off when the file is opened again.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from rlspeech.names import LFS, POINTER, PULL, decoded, encoding_of, nfc, on_disk
from rlspeech.types import UserError

MAX_ID = 120
UNSAFE = re.compile(r"[^\w.\-+=@]+")  # \w keeps letters of every script
PART = re.compile(r"\.part(\d+)(\.\w+)?$")
SHARD_FOLDER = re.compile(r"\.shard-\d+-of-\d+$")  # folders that others write into, perhaps on other machines
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")  # device names on Windows


def safe_name(name: str) -> str:
    """A name that can be a file name anywhere: composed (NFC), no separators, no leading dot, at most ``MAX_ID`` characters.

    Safe names come back unchanged; changed ones carry a checksum of the original, so different names stay different.
    """
    name = nfc(name)
    clean = UNSAFE.sub("_", name).lstrip(".").rstrip(". ")
    if clean == name and len(clean.encode()) <= MAX_ID and not RESERVED.match(clean):
        return name
    short = ("_" if RESERVED.match(clean) else "") + clean.encode()[: MAX_ID - 10].decode(errors="ignore")
    return f"{short or 'id'}-{zlib.crc32(name.encode(errors='surrogatepass')):08x}"


def parse_json(line: bytes) -> Any:
    """What a line of JSON holds, as ``json.loads`` has it. Raises ``ValueError`` with the reason."""
    if len(line) > 300 and re.search(rb"(?<![\d.])\d{300}", line):
        raise ValueError("not JSON that can be used: it holds a number of more than 300 digits")
    try:
        return from_json(line, cache_strings="keys")
    except ValueError:
        try:
            return json.loads(decoded(line))  # what the fast parser does not take, or the better message
        except json.JSONDecodeError as error:
            line_of = f" of line {error.lineno}" if error.lineno > 1 else ""
            raise ValueError(f"not JSON: {error.msg} at character {error.colno}{line_of}") from error
        except RecursionError as error:
            raise ValueError("not JSON: nested too deeply") from error


def object_of(data: bytes) -> dict[str, Any]:
    """The object that JSON holds; empty where it holds none."""
    try:
        found = parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or no such file that can be read."""
    return object_or_reason(path)[0]


def object_or_reason(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and why it cannot be read; both are empty where there is no file."""
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, str(error)
    return (found, "") if isinstance(found, dict) else ({}, "not a JSON object")


def open_lines(path: str | Path) -> BinaryIO:
    """Open a file for its lines in UTF-8; one in UTF-16 or UTF-32 is read at once. Raises ``OSError`` or ``ValueError``."""
    file = open(on_disk(str(path)), "rb")  # noqa: SIM115  # for the caller to close
    start = file.peek(len(LFS))
    if not start.startswith(LFS) and encoding_of(start) in ("utf-8", "utf-8-sig"):
        file.seek(len(codecs.BOM_UTF8) * start.startswith(codecs.BOM_UTF8))
        return file
    with file:
        return io.BytesIO(decoded(file.read()).encode())


def named_by(pointer: Path) -> Path | None:
    """The folder beside a file whose name that file holds; None where there is none."""
    try:
        found = pointer.with_name(Path(pointer.read_text(encoding="utf-8").strip()).name)
        return found if found.is_dir() else None
    except (OSError, ValueError):
        return None


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Lines in UTF-8 that are not blank, with their numbers from 1. Raises ``UserError`` where the file cannot be read."""
    try:
        with open_lines(path) as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, line
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "check the path; `rlspeech prepare --help` makes manifests") from error


def numbered_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Lines that are not blank with their numbers: the object that each holds, or as text what is wrong with it. Raises ``UserError``."""
    for number, line in numbered_lines(path):
        try:
            row = parse_json(line)
            yield number, row if isinstance(row, dict) else f"not a JSON object but {type(row).__name__}"
        except ValueError as error:
            yield number, str(error) if line.endswith(b"\n") else f"torn line: {error}"


def read_text(path: str | Path) -> str:
    r"""Return the content of a text file, ends of lines as ``\n`` (``names.decoded``). Raises ``UserError`` where it cannot be read."""
    try:
        return decoded(Path(on_disk(str(path))).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "check the path; text has to be UTF-8, or UTF-16 with its mark") from error


def _unreadable(path: str | Path, error: OSError | ValueError, hint: str) -> UserError:
    why = str(error)
    return UserError(f"cannot read {path}", getattr(error, "strerror", None) or why, PULL if POINTER in why else hint)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def dumps(row: dict[str, Any]) -> str:
    """One line of JSON; ``UserError`` for NaN and infinity, which are not JSON."""
    try:
        line = _ENCODER.encode(row)
        line.encode()
        return line
    except UnicodeEncodeError:  # names that are not UTF-8 arrive as lone surrogates, and survive the round trip escaped
        return json.dumps(row, ensure_ascii=True, allow_nan=False)
    except ValueError as error:
        what = f"row {row.get('id', '')!r} cannot be written"
        raise UserError(what, f"NaN or infinity is not JSON ({error})", "write null instead") from error


def write_text(path: str | Path, text: str | Iterable[str]) -> None:
    """Replace a file's content (a text, or its parts), complete or not at all. Raises ``UserError``; the old content stays then."""
    path = Path(path)
    try:
        # half a surrogate pair is escaped, as JSON has it
        with replacing(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as f:
            f.writelines([text] if isinstance(text, str) else text)
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        raise write_error(path, error) from error
    sync(path.parent)


def too_long(path: Path) -> bool:
    """Whether a file's name is longer than most systems take."""
    return len(os.fsencode(path.name)) > 255


def part_of(path: Path) -> Path:
    """Where a file is written before it takes the place of ``path``; ``remove_parts`` knows it."""
    return path.with_name(f".{os.fsencode(path.name)[:200].decode(errors='ignore')}.part{os.getpid()}{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` where nothing is raised, and is removed where something is."""
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    finally:
        with suppress(OSError):  # on a read-only disk even what is not there cannot be deleted
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes that are no more left half-written below a folder."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not SHARD_FOLDER.search(name)]
        for name in names:
            found = PART.search(name)
            if found and name.startswith(".") and not _alive(int(found[1])):
                with suppress(OSError):
                    os.unlink(os.path.join(place, name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return pid != os.getpid()


@contextmanager
def held(folder: str | Path | None) -> Iterator[None]:
    """Keep other processes from writing into a folder, which is made where it is missing, and clear it of half-written files.

    None holds nothing. Raises ``UserError``: another process writes there, or it cannot be made.
    """
    if folder is None:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}", error.strerror or str(error), "name another --out") from error
    handle = None
    try:
        with suppress(ImportError, OSError):  # not POSIX; a disk that cannot lock
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            try:  # the folder itself: nothing is left in it, and the lock dies with the process
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                why, try_this = "another process is writing there", "wait for it, end it, or --out NEW"
                raise UserError(f"{folder} is in use", why, try_this) from error
        remove_parts(Path(folder))
        yield
    finally:
        if handle is not None:
            os.close(handle)


def write_error(path: Path, error: BaseException, kept: str = "the file was left as it was") -> UserError:
    """The error to raise where a write to ``path`` failed; ``kept`` says what is still on the disk."""
    if isinstance(error, UserError):
        return error
    full = is_full(error)
    why = "the disk is full" if full else (getattr(error, "strerror", None) or str(error))
    try_this = "free some space and run the same command again" if full else "check the folder's permissions"
    return UserError(f"cannot write {path}", f"{why}; {kept}", try_this)


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota that is full was the cause."""
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and libsndfile have exceptions of their own
    return known or any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EFBIG))


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync). Raises ``OSError``."""
    if os.name == "nt" and path.is_dir():  # cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some filesystems have no fsync for folders
            raise
    finally:
        os.close(handle)


def digest_of(folder: Path, ends: int | None = None) -> str:
    """Return 16 hex digits that change with the weights and settings in a checkpoint's folder; a trainer's state does not count.

    With ``ends`` only so many bytes at either end of the weights are read: many gigabytes are told apart at once.
    """
    digest = hashlib.sha256()  # of the same bytes in every version: scores and outputs on disk remember it
    if ends is not None:
        for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(ends))
                file.seek(max(0, size - ends))
                digest.update(file.read(ends))
        return digest.hexdigest()[:16]
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")]):
        if path.name not in ("state.safetensors", "state.json"):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:16]


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file that may end in a torn line (its writer was killed); a missing file has no rows."""
    rows = (row for _, row in numbered_rows(path)) if Path(path).exists() else ()
    # nothing behind a torn line can be trusted to be whole
    return list(takewhile(lambda row: isinstance(row, dict), rows))


def join_rows(path: Path, parts: Iterable[Path], key: str = "key", order: Iterable[str] = ()) -> None:
    """Add the rows of JSONL files to those of ``path``, of each key the last one, and write them, the keys of ``order`` first."""
    rows = {row[key]: row for file in (path, *parts) for row in read_jsonl(file)}
    if rows:
        write_text(path, (dumps(row) + "\n" for row in ({k: rows[k] for k in order if k in rows} | rows).values()))


class JsonlWriter(AbstractContextManager["JsonlWriter"]):
    """Append rows to a JSONL file, one write a row; opening an old file continues it.

    ``rows`` holds what was there already by the column ``key``; a row whose key is known is not written again.
    """

    def __init__(self, path: str | Path, key: str = "id") -> None:
        self.path, self.key = Path(path), key
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {}
        self._file, whole = self.path.open("ab", buffering=0), 0
        with self.path.open("rb") as f:
            for line in f:
                row = object_of(line)
                if not row or not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.rows[str(row.get(key))] = row
        self._file.truncate(whole)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def write(self, row: dict[str, Any]) -> bool:
        """Append a row unless its key is there; True when it was written. Raises ``UserError`` where the disk is full."""
        name = str(row[self.key])
        if name in self.rows:
            return False
        line = (dumps(row) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self.path, error, f"{len(self.rows)} rows were kept") from error
        self.rows[name] = row
        return True

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __exit__(self, *exc: object) -> None:
        self.close()
