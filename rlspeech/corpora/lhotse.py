"""Lhotse manifests without lhotse: cuts, or recordings with supervisions, as ``.jsonl`` or ``.jsonl.gz``.

One cut is one row, its supervisions' texts in order; of recordings with supervisions, one supervision is one row. What would need
lhotse to compute is left out with its reason: mixed and padded cuts, transforms (speed, volume ...), audio behind commands, URLs or
in memory, some channels of several (our files are averaged over channels), a supervision that a cut cuts through.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlspeech.corpora.base import Candidate, Layout, Sets, candidate, located
from rlspeech.files import safe_name
from rlspeech.types import UserError

__all__ = ["Lhotse", "find"]

SUFFIXES = (".jsonl", ".jsonl.gz")
TOLERANCE_S = 0.05
KINDS = re.compile(r"(?i)(?:^|[_\-.])(cuts?|recordings?|supervisions?)(?=$|[_\-.])")
Row = dict[str, Any]


class Lhotse(Layout):
    """``rlspeech prepare lhotse``."""

    name = "lhotse"

    def make(self, out: Path) -> Sets:
        """Return a set for each file of cuts, or pair of recordings and supervisions."""
        return self.vetted(find(self.root or ""), out, "noisy")


def find(root: str | Path) -> Iterator[Candidate]:
    """Candidates of a cuts file or of a folder; splits are named by the files (``cuts_train.jsonl.gz`` -> ``train``).

    Args:
        root: file of cuts, or a folder with files of cuts, or of recordings and supervisions whose names agree otherwise.

    Raises:
        UserError: nothing of the kind, or a file that cannot be read.
    """
    source = Path(os.path.abspath(root))
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.name.endswith(SUFFIXES))
    cuts: list[tuple[str, Path]] = []
    pairs: dict[str, dict[str, Path]] = {}
    for path in files:
        kind, split = _kind(path)
        if kind == "cut" or source.is_file():
            cuts.append((split, path))
        elif kind:
            pairs.setdefault(split, {})[kind] = path
    whole = {split: pair for split, pair in pairs.items() if len(pair) == 2}
    if not cuts and not whole:
        none = "no .jsonl or .jsonl.gz file" if source.exists() else "it does not exist"
        try_this = "cuts.jsonl.gz, or recordings.jsonl.gz with supervisions.jsonl.gz"
        raise UserError(f"no lhotse manifests in {root}", ", ".join(p.name for p in files[:6]) or none, try_this)
    for split, path in cuts:
        for number, row in _rows(path):
            yield _guarded(split, path, number, row, _cut)
    for split, pair in whole.items():
        if not any(split == name for name, _ in cuts):  # cuts are made of the other two: they say more
            recordings = {str(row.get("id")): row for _, row in _rows(pair["recording"]) if row}
            for number, row in _rows(pair["supervision"]):
                whole_row = row and row | {"recording": recordings.get(str(row.get("recording_id")))}
                yield _guarded(split, pair["supervision"], number, whole_row, _supervision)


def _kind(path: Path) -> tuple[str, str]:
    """cut, recording, supervision or nothing; and what is left of the name."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    found = KINDS.search(stem)
    rest = KINDS.sub("", stem, count=1).strip("_-.") if found else stem
    return (found[1].lower().rstrip("s") if found else ""), safe_name(rest or "manifest")


def _rows(path: Path) -> Iterator[tuple[int, Row | None]]:
    """Lines with their numbers; None for one that is no JSON object."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield number, row if isinstance(row, dict) else None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}", str(error), "is the file whole?") from error


def _guarded(split: str, path: Path, number: int, row: Row | None, make: Any) -> Candidate:
    try:
        if row is None:
            raise ValueError("not a JSON object")
        found: Candidate = make(split, path, row)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return candidate(split, path, f"line_{number}", f"bad line in the manifest: {type(error).__name__} {error}")


def _cut(split: str, path: Path, row: Row) -> Candidate:
    kind = row.get("type", "MonoCut")
    whole = kind == "MultiCut" and all(s.get("channel") == row.get("channel") for s in row.get("supervisions") or [])
    if kind not in ("MonoCut", "Cut") and not whole:
        tracks = row.get("tracks") or []
        if kind == "MixedCut" and len(tracks) == 1 and not row.get("transforms"):
            return _cut(split, path, tracks[0]["cut"] | {"id": row["id"]})
        why = "several channels" if kind == "MultiCut" else f"a {kind}, which lhotse would have to compute"
        return candidate(split, path, safe_name(str(row["id"])), why)
    length = float(row["duration"])
    spoken = sorted(row.get("supervisions") or [], key=lambda s: float(s["start"]))
    spans = [(float(s["start"]), float(s["start"]) + float(s["duration"])) for s in spoken]
    outside = any(start < -TOLERANCE_S or end > length + TOLERANCE_S for start, end in spans)
    problem = "a supervision reaches beyond its cut" if outside else None
    return _row(split, path, row, row.get("recording"), spoken, float(row.get("start", 0.0)), length, problem)


def _supervision(split: str, path: Path, row: Row) -> Candidate:
    return _row(split, path, row, row["recording"], [row], float(row["start"]), float(row["duration"]), None)


def _row(
    split: str,
    path: Path,
    row: Row,
    recording: Row | None,
    spoken: list[Row],
    start: float,
    length: float,
    problem: str | None,
) -> Candidate:
    """One candidate; ``spoken`` are its supervisions in order, columns are taken from the cut and from them."""
    cut = row if spoken != [row] else {}
    name = str(row["id"])
    file, wrong = _file(recording, row.get("channel", 0), path)
    texts = [s["text"] for s in spoken if s.get("text") is not None]
    text = " ".join(t.strip() for t in texts).strip() if texts else None
    if text is None:
        wrong = wrong or "no transcript"
    custom = [pair for s in [cut, *spoken] for pair in (s.get("custom") or {}).items()]
    extra = {k: v for k, v in custom if isinstance(v, str | int | float | bool | list)}
    speakers, languages = {s.get("speaker") for s in spoken}, {s.get("language") for s in spoken}
    found = candidate(
        split,
        file or path,
        safe_name(name),
        problem or wrong,
        text=text,
        speaker=str(next(iter(speakers))) if len(speakers) == 1 and None not in speakers else None,
        language=next(iter(languages)) if len(languages) == 1 else None,
        original_id=name if safe_name(name) != name else None,
    )
    found.utt.extra.update({k: v for k, v in extra.items() if k not in found.utt.extra})
    found.utt.offset, found.utt.duration = start, length
    if not start and recording and float(recording.get("duration", length)) - length > TOLERANCE_S:
        found.utt.extra["segment"] = True  # the row ends before its file does
    return found


def _file(recording: Row | None, channel: Any, path: Path) -> tuple[Path | None, str | None]:
    """The file behind a recording, or why there is none."""
    if not recording:
        return None, "no recording"
    sources = recording["sources"]
    if recording.get("transforms"):
        return None, "a transformed recording"
    if len(sources) != 1 or sources[0]["type"] != "file":
        return None, "several files" if len(sources) != 1 else f"audio in a {sources[0]['type']}, not a file"
    channels = sources[0].get("channels") or [0]
    if len(channels) > 1 and channel != channels:
        return None, "one channel of several"
    return located(str(sources[0]["source"]), path.parent), None
