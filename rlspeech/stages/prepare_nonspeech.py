"""``rlspeech prepare nonspeech``: sound that tempts a recogniser to invent words; see ``corpora/nonspeech.py`` for what is in it."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import Field

from rlspeech import log
from rlspeech.config import Strict
from rlspeech.corpora import folder, nonspeech
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.stages.prepare_parts import make_folder, notes_of, shown, summary_of, write_set
from rlspeech.types import UserError

__all__ = ["Nonspeech", "run"]

RATE_HZ = 16000


class Nonspeech(Strict):
    """``rlspeech prepare nonspeech``."""

    noise: list[str] = Field([], description="folders or manifests of noise")
    clean: list[str] = Field([], description="manifests of speech with transcripts, for cut and looped")
    count: int = Field(40, ge=1, description="clips of each condition")
    conditions: list[Literal["silence", "noise", "music", "cut", "looped"]] = Field(
        [], description="which; none: all, cut and looped only with clean"
    )
    max_s: float = Field(20.0, ge=1, description="longest clip")
    seed: int = Field(0, ge=0)
    out: str | None = Field(None, description="folder; none: data/nonspeech")


def run(config: Nonspeech, *, json_mode: bool = False) -> dict[str, Any]:
    """Render the set.

    Returns:
        the keys of ``prepare.run``, and ``conditions`` (name -> clips, hours, words).

    Raises:
        UserError: a source is missing, no clip could be made, or the disk does not take the output.
    """
    start_s = time.monotonic()
    out = make_folder(config.out, "nonspeech")
    noise = [row.utt for source in config.noise for row in folder.find(source, skip=out)]
    clean = [utt for source in config.clean for utt in read_manifest(find_manifest(source, recipe=False))]
    wanted: list[str] = list(dict.fromkeys(config.conditions)) or list(nonspeech.CONDITIONS)
    if not any(utt.text for utt in clean) and nonspeech.SPEECH_CONDITIONS & set(wanted):
        if clean or config.conditions:
            raise UserError(
                "no speech with transcripts",
                "cut and looped speech need rows with a text",
                "--clean MANIFEST with transcripts, or other --condition",
            )
        wanted = [c for c in wanted if c not in nonspeech.SPEECH_CONDITIONS]
        log.warn("without --clean there is no cut and no looped speech in the set")
    rows, failed = nonspeech.render(
        noise,
        clean,
        out,
        count=config.count,
        conditions=wanted,
        seed=config.seed,
        max_s=config.max_s,
        sample_rate=RATE_HZ,
    )
    if not rows:
        raise UserError("no clip could be made", failed[0]["detail"], "other --noise or --clean")
    by_condition = {}
    for name in wanted:
        mine = [u for u in rows if u.extra["condition"] == name]
        hours = round(sum(u.duration for u in mine) / 3600, 6)
        by_condition[name] = {
            "rows": len(mine),
            "hours": hours,
            "words": sum(len((u.text or "").split()) for u in mine),
        }
    settings = config.model_dump(exclude={"out"})
    manifest = write_set(
        out / "manifest.jsonl", rows, {"source": "nonspeech", "seed": config.seed, "settings": settings}, len(failed)
    )
    following = f"rlspeech eval --task asr --data {shown(out)}/manifest.jsonl"
    summary = summary_of("nonspeech", out, {"manifest": manifest}, failed, following, start_s)
    table = [[name, m["rows"], round(m["hours"], 3), m["words"]] for name, m in by_condition.items()]
    log.table(f"prepared nonspeech in {out}", ["condition", "clips", "hours", "words"], table, notes_of(summary))
    log.say(f"next: {summary['next']}")
    return summary | {"conditions": by_condition}
