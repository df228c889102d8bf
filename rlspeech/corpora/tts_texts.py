"""``rlspeech prepare tts``: texts with the voices they are to be said in; the prompt is a row's own, never drawn when it is scored.

rlspeech prepare tts /data/LibriTTS --out data/libritts      # a manifest a split, prompts from the same speaker
rlspeech prepare tts data/train.jsonl --out data/tts         # the same for any manifest with speakers
rlspeech prepare tts seedtts/en/meta.lst --out data/seed     # utt|prompt_text|prompt_wav|text[|recording]
rlspeech prepare tts lines.txt --prompts data/voices --out data/lines
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from rlspeech import log
from rlspeech.config import Strict
from rlspeech.corpora import voices
from rlspeech.corpora.base import make_folder, notes_of, shown, summary_of, vet, write_set
from rlspeech.data.checks import Limits
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.parallel import physical_cores
from rlspeech.types import UserError, Utterance

__all__ = ["PrepareTts", "run"]

TRAINING = ("train", "manifest")
LISTS = (".lst", ".txt", ".text")


class PrepareTts(Strict):
    """``rlspeech prepare tts``."""

    root: str | None = Field(
        None, description="LibriTTS-like folder, manifest, list as in seed-tts-eval, or a .txt with a text a line"
    )
    prompts: str | None = Field(None, description="for a .txt: manifest of the voices, with transcripts")
    prompt_s: tuple[float, float] = Field((1.0, 10.0), description="shortest and longest prompt, in seconds")
    limits: Limits = Field(Limits(), description="what is dropped of a folder")
    seed: int = Field(0, ge=0, description="of the choice of prompts")
    workers: int | None = Field(None, ge=0, description="processes; none: one a core; 0: in this process")
    out: str | None = Field(None, description="folder; none: data/tts")


def run(config: PrepareTts, *, json_mode: bool = False) -> dict[str, Any]:
    """Prepare texts with voices.

    Returns:
        the keys of ``prepare.run``, and ``prompted``: rows with a prompt.

    Raises:
        UserError: a source is missing or is none of those above, nothing is left, or the disk does not take the output.
    """
    start_s = time.monotonic()
    if not config.root:
        raise UserError("prepare tts needs a source", "", "rlspeech prepare tts --help")
    out = make_folder(config.out, "tts")
    splits, failed = _found(config, Path(config.root), out)
    splits = {
        name: voices.with_prompts(rows, *config.prompt_s, seed=config.seed) for name, rows in splits.items() if rows
    }
    if not splits:
        reasons = ", ".join(sorted({str(row["reason"]) for row in failed})) or "no rows were found"
        raise UserError("nothing is left", f"dropped: {reasons}", f"look at {config.root}")
    settings = config.model_dump(exclude={"out", "workers"})
    meta = {"source": "tts", "seed": config.seed, "settings": settings}
    counts = {name: sum(row.get("split", name) == name for row in failed) for name in splits}
    manifests = {name: write_set(out / f"{name}.jsonl", rows, meta, counts[name]) for name, rows in splits.items()}
    some = next((n for n in splits if n.startswith(TRAINING)), next(iter(splits)))
    stage = (
        "pretrain" if all(u.extra.get("recorded", True) for u in splits[some]) and some.startswith(TRAINING) else "eval"
    )
    summary = summary_of(
        "tts", out, manifests, failed, f"rlspeech {stage} --task tts --data {shown(out)}/{some}.jsonl", start_s
    )
    prompted = {name: sum(bool(u.prompt_filepath) for u in rows) for name, rows in splits.items()}
    notes = (
        [
            f"{n} rows have no prompt: no other recording of the speaker lasts {config.prompt_s[0]:g} to {config.prompt_s[1]:g} s"
        ]
        if (n := sum(map(len, splits.values())) - sum(prompted.values()))
        else []
    )
    table = [[name, m["rows"], round(m["hours"], 3), prompted[name]] for name, m in manifests.items()]
    log.table(f"prepared tts in {out}", ["set", "rows", "hours", "with prompt"], table, [*notes, *notes_of(summary)])
    log.say(f"next: {summary['next']}")
    return summary | {"prompted": prompted}


def _found(config: PrepareTts, root: Path, out: Path) -> tuple[dict[str, list[Utterance]], list[dict[str, Any]]]:
    """Rows by split, and what was dropped."""
    if root.suffix.lower() in LISTS and root.is_file():
        first = next(
            (line for line in root.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()), ""
        )
        if first.count("|") >= 3:
            rows, failed = voices.from_list(root)
            return {"test": rows}, failed
        if not config.prompts:
            raise UserError(
                f"{root} has texts and no voices", "a list has utt|prompt_text|prompt_wav|text", "--prompts MANIFEST"
            )
        low, high = config.prompt_s
        given = [u for u in read_manifest(find_manifest(config.prompts, recipe=False)) if not u.offset]
        speakers = [u for u in given if low <= u.duration <= high]
        if not speakers:
            why = f"none of {len(given)} recordings lasts {low:g} to {high:g} s"
            raise UserError(f"{config.prompts} has no prompt", why, "--prompt-s LOW HIGH")
        return {"test": voices.from_lines(root, speakers)}, []
    if root.suffix == ".jsonl":
        rows = read_manifest(root)
        mute = [
            {"id": u.id, "path": u.audio_filepath, "reason": "no transcript", "detail": ""} for u in rows if not u.text
        ]
        return {root.stem: [u for u in rows if u.text]}, mute
    candidates = list(voices.find_beside(root, skip=out))
    done = vet(
        candidates,
        out / "checks.jsonl",
        config.limits,
        physical_cores() if config.workers is None else config.workers,
        "noisy",
    )
    return done.kept, done.dropped
