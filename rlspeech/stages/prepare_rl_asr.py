"""``rlspeech prepare rl-asr``: which utterances a recogniser should be trained on with rewards.

Recognisers listen (or what they made of the corpus is read), every transcript is kept in ``OUT/heard/NAME.jsonl`` as it comes, and the
texts go to ``corpora/rl_asr.py``, which chooses; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rlspeech import log
from rlspeech.corpora import rl_asr
from rlspeech.corpora.rl_asr import Built, Rules
from rlspeech.data.jsonl import numbered_lines
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.data.text import get_normaliser, units
from rlspeech.stages.prepare_heard import hear_all
from rlspeech.stages.prepare_parts import make_folder, notes_of, shown, summary_of, write_set
from rlspeech.types import UserError, Utterance

__all__ = ["RlAsr", "run"]

ID_KEYS = ("id", "key", "audio_filepath")
TEXT_KEYS = ("texts", "hypotheses", "hypothesis", "text", "pred_text")
RATE_HZ = 16000


class RlAsr(Rules):
    """``rlspeech prepare rl-asr``."""

    data: str | None = Field(None, description="manifest with transcripts, or a folder that holds one")
    recognisers: list[str] = Field(
        [], description="two or more: embedded, Hub id, folder, pocketsphinx or package.module:function"
    )
    hypotheses: list[str] = Field(
        [], description="in their place or beside them: JSONL with id and text, one file a recogniser, or id and texts"
    )
    keywords: str | None = Field(
        None, description="text file with one keyword or phrase a line; none: rare words of the corpus"
    )
    normaliser: str = Field("basic-1", description="of texts before they are compared")
    language: str | None = Field(None, description="of rows that do not say theirs, and for recognisers that take one")
    batch: int = Field(8, ge=1, description="recordings in one call of a recogniser")
    device: str = "auto"
    out: str | None = Field(None, description="folder; none: data/rl-asr")


def run(config: RlAsr, *, json_mode: bool = False) -> dict[str, Any]:
    """Build the sets.

    Returns:
        the keys of ``prepare.run``, and ``recognisers`` (name -> rows), ``facts`` (rows in the band, with keywords ...).

    Raises:
        UserError: no data or no transcripts, an unreadable list, one recogniser only, or the disk does not take the output.
    """
    start_s = time.monotonic()
    if not config.data:
        raise UserError("prepare rl-asr needs data", "", "--data MANIFEST with transcripts")
    normalise = get_normaliser(config.normaliser)
    keywords = _lines(config.keywords) if config.keywords else []
    source = find_manifest(config.data, recipe=False)
    utts = read_manifest(source)
    if not any(u.text for u in utts):
        raise UserError(
            f"{source} has no transcripts",
            f"no row of {len(utts)} has a text",
            "rlspeech prepare folder --text FILE adds them",
        )
    out = make_folder(config.out, "rl-asr")
    heard = _hypotheses(config, utts, out)
    built = rl_asr.build(
        utts,
        {u.id: [texts[u.id] for texts in heard.values() if u.id in texts] for u in utts},
        keywords,
        config,
        lambda text, language: units(normalise(text), language or config.language),
        out,
        sample_rate=RATE_HZ,
    )
    settings = config.model_dump(exclude={"out", "device", "batch"})
    meta = {
        "source": "rl-asr",
        "seed": config.seed,
        "normaliser": config.normaliser,
        "recognisers": list(heard),
        "settings": settings,
    }
    manifests = {name: write_set(out / f"{name}.jsonl", rows, meta) for name, rows in built.sets.items() if rows}
    summary = summary_of(
        "rl-asr", out, manifests, built.failed, f"rlspeech rl --task asr --data {shown(out)}/d123.jsonl", start_s
    )
    summary |= {"recognisers": {name: len(texts) for name, texts in heard.items()}, "facts": built.facts}
    table = [[name, m["rows"], round(m["hours"], 3)] for name, m in manifests.items()]
    log.table(f"prepared rl-asr in {out}", ["set", "rows", "hours"], table, [*_told(built, config), *notes_of(summary)])
    log.say(f"next: {summary['next']}")
    return summary


def _told(built: Built, config: RlAsr) -> list[str]:
    facts = built.facts
    return [
        f"recognisers disagree by {config.band[0]:g} to {config.band[1]:g} WER on {facts['in_band']} of {facts['rows']} rows",
        f"{facts['with_keywords']} rows hold one of {facts['keywords']} keywords"
        + ("" if config.keywords else " (rare words)"),
    ]


def _hypotheses(config: RlAsr, utts: Sequence[Utterance], out: Path) -> dict[str, dict[str, str]]:
    """Recogniser -> row id -> text, from files and from recognisers that listen now."""
    found: dict[str, dict[str, str]] = {}
    for path in config.hypotheses:
        for name, texts in _read_hypotheses(Path(path), utts).items():
            found[name if name not in found else f"{path}:{name}"] = texts
    if len(found) + len(set(config.recognisers)) == 1:
        raise UserError(
            "one recogniser cannot disagree",
            "hard cases are those on which two or more differ",
            "name another one with --recogniser, or give its transcripts with --hypotheses",
        )
    for name in dict.fromkeys(config.recognisers):
        found[name] = hear_all(
            name, utts, out / "heard", batch=config.batch, device=config.device, language=config.language
        )
    if not found:
        log.warn("without recognisers or hypotheses no row is known to be hard: d1 holds long speech alone")
    return found


def _read_hypotheses(path: Path, utts: Sequence[Utterance]) -> dict[str, dict[str, str]]:
    """A file's recognisers: one, named by the file, or one for every place of its lists."""
    known = {u.id for u in utts} | {str(u.extra["original_id"]) for u in utts if "original_id" in u.extra}
    by_name = {os.path.basename(u.audio_filepath): u.id for u in utts} | {
        str(u.extra.get("original_id", u.id)): u.id for u in utts
    }
    found: dict[str, dict[str, str]] = {}
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
            key = next(str(row[k]) for k in ID_KEYS if row.get(k) is not None)
            said = next(row[k] for k in TEXT_KEYS if row.get(k) is not None)
        except (ValueError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(
                f"{path} line {number} is no hypothesis",
                "an object with id and text (or texts) is expected",
                '{"id": "utt1", "texts": ["the first one\'s", "the second one\'s"]}',
            ) from error
        key = key if key in known else os.path.basename(key)
        texts = list(map(str, said)) if isinstance(said, list) else [str(said)]
        for place, text in enumerate(texts):
            found.setdefault(f"{path.stem}:{place}" if len(texts) > 1 else path.stem, {})[by_name.get(key, key)] = text
    if not any(key in known for texts in found.values() for key in texts):
        raise UserError(
            f"{path} knows none of the rows",
            "its ids are not the manifest's",
            "check id, or the name of the audio file",
        )
    return found


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", str(error), "a text file with one keyword a line, UTF-8") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not found:
        raise UserError(f"{path} is empty", "no keyword in it", "one keyword or phrase a line")
    return found
