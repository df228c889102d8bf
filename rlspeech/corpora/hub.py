"""Data sets in parquet as ``datasets`` writes them, from a folder or the Hugging Face Hub: a column of {bytes, path} beside others.

    rlspeech prepare hub user/corpus --split train --text-column sentence --out data/corpus
    rlspeech prepare hub exported/ --subset en --limit 1000 --out data/en

Files are ``[SUBSET/][data/]SPLIT-00000-of-00002.parquet``, ``[SUBSET/]SPLIT/0000.parquet`` (the Hub's branch refs/convert/parquet) or
``SPLIT.parquet``. One row group is in memory at a time (``datasets`` writes 100 rows of audio), and no more files are fetched than
``--limit`` needs. The bytes of a row are written once, as they are, to ``OUT/audio``; a row without bytes has its file where its path
says, if that lies in the folder. Names that a data set gives are never paths of what is written. Other columns of numbers, truth values
and texts are kept.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, candidate
from rlspeech.corpora.folder import COLUMN_KEYS
from rlspeech.data.checks import file_stamp
from rlspeech.data.decode import AUDIO_SUFFIXES, first_line
from rlspeech.data.inputs import WORD_KEYS
from rlspeech.data.manifest import ASIDE_NAMES, FIELDS
from rlspeech.files import replacing, safe_name, write_error
from rlspeech.models.hub import hub_client
from rlspeech.types import UserError

ROWS = 16  # read at once
SHARD = re.compile(r"(.+?)(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?", re.DOTALL)
PLAIN = re.compile(r"(large_)?string|u?int\d+|float|double|bool")  # types, as pyarrow writes them
SOUND = re.compile(r"struct<.*\bbytes: (large_)?binary\b.*>")
MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}


class Shard(NamedTuple):
    """A parquet file by its path in the data set, what that says it holds, and where it lies (None: on the Hub)."""

    name: PurePosixPath
    subset: str
    split: str
    path: Path | None


class Hub(Layout):
    """``rlspeech prepare hub``."""

    name = "hub"
    judged = "noisy"
    splits: list[str] = conf([], "split to read; may be repeated (default: all)")
    subset: str | None = conf(None, "configuration of the data set, where it has several")
    revision: str | None = conf(None, "branch, tag or commit, on the Hub")
    audio_column: str | None = conf(None, "column with the audio (default: audio, or the only one)")
    text_column: str | None = conf(None, f"column with the transcript (default: the first of {', '.join(WORD_KEYS)})")
    speaker_column: str | None = conf(None, f"with the speaker (default: {', '.join(COLUMN_KEYS['speaker_id'])})")
    limit: int | None = conf(None, "read only the first N rows of each split", ge=1)

    def find(self, out: Path) -> Iterator[Candidate]:
        """Rows in their order, their audio below ``out``; a file that cannot be read is one row that says so."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UserError("pyarrow does not import", str(error), "pip install 'rlspeech[hub]'") from error
        taken = Counter[str]()
        with log.progress(None, "reading", "rows") as bar:
            for shard in self._shards():
                left = None if self.limit is None else self.limit - taken[shard.split]
                if left == 0:
                    continue
                path = shard.path
                if path is None:
                    with hub_client(f"cannot fetch {shard.name} of {self.root}") as hub:
                        where = {"repo_type": "dataset", "revision": self.revision}
                        path = Path(hub.hf_hub_download(self.root, str(shard.name), **where))
                try:
                    with pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=2**20) as file:
                        columns = self._columns({f.name: str(f.type) for f in file.schema_arrow}, shard.name)
                        # neither another file nor a later one of its name shares it
                        stamp = zlib.crc32(f"{file_stamp(str(path))}|{columns['audio']}".encode())
                        place = out / "audio" / shard.split / f"{safe_name(shard.name.stem)}-{stamp:08x}"
                        batches = file.iter_batches(ROWS, columns=list({*columns.values()}))
                        cells = ((batch, n) for batch in batches for n in range(batch.num_rows))
                        for number, (batch, n) in enumerate(islice(cells, left)):
                            taken[shard.split] += 1
                            yield _row(batch, n, columns, shard, place / f"{number:07d}", path)
                            bar.advance()
                except (pa.ArrowException, OSError) as error:
                    problem = f"unreadable file: {first_line(error)}"
                    yield candidate(shard.split, path, safe_name(shard.name.stem), problem)

    def _shards(self) -> list[Shard]:
        """The files that are asked for; of the Hub at the commit that is ``revision`` from now on. Raises ``UserError``: there is none."""
        name = self.root or ""
        if os.path.exists(name):
            path = Path(os.path.abspath(name))
            paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            folder = path if path.is_dir() else path.parent
            found = [_shard(PurePosixPath(p.relative_to(folder).as_posix()), p) for p in paths]
        elif name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise UserError(f"no data set at {name}", "there is no such folder or file", "check the path")
        else:
            with hub_client(f"cannot list the data set {name} of the Hub") as hub:
                info = hub.HfApi().dataset_info(name, revision=self.revision)
            self.revision = info.sha
            names = sorted(s.rfilename for s in info.siblings if s.rfilename.endswith(".parquet"))
            found = [_shard(PurePosixPath(n), None) for n in names]
        if not found:
            hint = "datasets writes such files with to_parquet and push_to_hub; on the Hub try --revision refs/convert/parquet"
            raise UserError(f"no data in {name}", "it has no .parquet file", hint)
        for what, wanted in (("subset", [self.subset] if self.subset else []), ("split", self.splits)):
            there = sorted({getattr(s, what) for s in found})
            if not {*wanted} <= {*there} or (what == "subset" and len(there) > 1 and not wanted):
                why = f"there are {', '.join(there)}"
                raise UserError(f"which {what} of {name}?", why, f"--{what} with one of them")
            found = [s for s in found if not wanted or getattr(s, what) in wanted]
        return found

    def _columns(self, kinds: dict[str, str], shard: PurePosixPath) -> dict[str, str]:
        """Field of a row -> column, of columns and their types. Raises ``UserError``: no audio, or no column of a name that was given."""
        plain = [n for n, kind in kinds.items() if PLAIN.fullmatch(kind)]
        sounds = [n for n, kind in kinds.items() if SOUND.fullmatch(kind)]
        guesses = {"text": WORD_KEYS, "id": ("id",), **COLUMN_KEYS}
        found = {field: n for field, names in guesses.items() if (n := next((n for n in names if n in plain), None))}
        given = {"audio": self.audio_column, "text": self.text_column, "speaker_id": self.speaker_column}
        found["audio"] = sounds[0] if len(sounds) == 1 else "audio"
        found |= {field: name for field, name in given.items() if name is not None}
        if lacking := [(field, name) for field, name in found.items() if name not in kinds]:
            (field, name), why = lacking[0], f"it has {', '.join(kinds)}"
            raise UserError(f"{shard} has no column {name!r}", why, f"--{field.removesuffix('_id')}-column NAME")
        return found | {n: n for n in plain if n not in FIELDS and n not in found and n not in found.values()}


def _shard(name: PurePosixPath, path: Path | None) -> Shard:
    folders, match = [p for p in name.parts[:-1] if p != "data"], SHARD.fullmatch(name.stem)
    split = match[1] if match else name.stem
    if split.isdigit() and folders:
        split = folders.pop()
    split = safe_name(split)
    split = f"{split}_rows" if f"{split}.jsonl" in ASIDE_NAMES else split
    return Shard(name, "/".join(folders) or "default", split, path)


def _row(batch: Any, n: int, columns: dict[str, str], shard: Shard, target: Path, path: Path) -> Candidate:
    """Row ``n`` of a batch of ``path``, its sound in ``target`` with a suffix. Raises ``UserError``: the disk does not take it."""
    name = f"{shard.name.stem}_{target.name}"
    try:
        row = {field: batch.column(column)[n].as_py() for field, column in columns.items()}
    except (ValueError, KeyError) as error:  # no UTF-8; two columns of one name
        return candidate(shard.split, path, safe_name(name), f"unreadable row: {first_line(error)}")
    cell, text = row.pop("audio"), row.pop("text", None)
    sound, given = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    given = str(given or "").replace("\\", "/").replace("\0", "_")
    name = str(row.pop("id", None) or PurePosixPath(given).stem or name)
    problem = "no transcript" if "text" in columns and not isinstance(text, str) else None
    place = Path(os.path.realpath(path.parent / given))
    if isinstance(sound, bytes):
        known = PurePosixPath(given).suffix.lower()
        usual = known if known in AUDIO_SUFFIXES else ".mp3"
        place = target.with_suffix(next((s for mark, s in MAGIC.items() if sound.startswith(mark)), usual))
        if not problem and not place.is_file():
            try:
                with replacing(place) as part:
                    part.write_bytes(sound)
            except OSError as error:
                raise write_error(place, error, "the same command goes on from there") from error
    elif not given or shard.path is None:
        problem = "no audio"
    elif not place.is_relative_to(os.path.realpath(shard.path.parents[len(shard.name.parts) - 1])):
        problem = "a path outside the folder"
    speaker, language = (None if (v := row.pop(k, None)) is None else str(v) for k in ("speaker_id", "language"))
    made = candidate(
        shard.split, path if problem else place, safe_name(name), problem, text=text, speaker=speaker, language=language
    )
    row |= {"original_id": name} if name != made.utt.id else {}
    made.utt.extra = {
        k: v for k, v in row.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))
    }
    return made
