"""``rlspeech convert``: other people's files as ours, and ours as theirs.

    rlspeech convert avse4 pretrained.ckpt --out runs/avse4-baseline      # weights of the fourth AVSE challenge's baseline
    rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi      # or nemo, lhotse; prepare kaldi | nemo | lhotse reads them
    rlspeech convert scores scores/scores.jsonl --to versa scores.versa   # and back: --to rlspeech
    rlspeech convert lora runs/asr --to adapter runs/asr-adapter          # or merged

What is written is there whole or not at all, and nothing that is there is written over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.types import UserError

__all__ = ["LAYOUTS", "manifest", "new_place", "run", "scores"]

LAYOUTS = ("avse4",)


@contextmanager
def new_place(out: str | None, *, folder: bool = True, suffix: str = "") -> Iterator[tuple[Path, Path]]:
    """A place to write to that takes its name when everything is there.

    Args:
        out: its name.
        folder: a folder, else a file.
        suffix: that a file to write to ends in, where that matters to its writer.

    Yields:
        where to write, and the name that it will have.

    Raises:
        UserError: no name, something of that name that is not an empty folder, or a disk that does not take it.
    """
    if not out:
        raise UserError(f"no output {'folder' if folder else 'file'}", "", f"--out {'FOLDER' if folder else 'FILE'}")
    final = Path(out).absolute()
    if final.exists() and not (folder and final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{final} is there already", "", f"name another {'folder' if folder else 'file'}")
    work: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        place = work if folder else work / f"new{suffix}"
        yield place, final
        if folder:
            work.chmod(0o755)  # what is made is as readable as any folder
        os.replace(place, final)
    except OSError as error:
        raise UserError(f"cannot write {final}", error.strerror or str(error)) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def run(layout: str, source: str, out: str | None, *, json_mode: bool = False) -> dict[str, Any]:
    """Read a file of weights, write a checkpoint folder.

    Args:
        layout: whose names the weights have; one of ``LAYOUTS``.
        source: file of weights.
        out: folder to write.

    Returns:
        the folder, the number of parameters and the inferred settings.

    Raises:
        UserError: an unknown layout, a file that cannot be read or does not fit, a folder that is there already.
    """
    if layout not in LAYOUTS:
        raise UserError(
            f"no layout is called {layout!r}",
            f"there are: {', '.join(LAYOUTS)}",
            "rlspeech convert avse4 FILE --out FOLDER",
        )
    from rlspeech.models.avse_import import convert_avse4, read_avse4
    from rlspeech.models.hub import save_avse

    with new_place(out) as (place, folder):
        model = convert_avse4(read_avse4(source))
        save_avse(place, model, facts={"stage": "convert", "layout": layout, "source": Path(source).name})
    parameters, cfg = sum(p.numel() for p in model.parameters()), model.cfg
    log.say(f"{parameters / 1e6:.2f} M parameters, {cfg.channels} channel{'s' if cfg.channels > 1 else ''}, {folder}")
    log.say(f"next: rlspeech eval --task avse --model {folder} --data test.jsonl")
    return {"checkpoint": str(folder), "parameters": parameters, "model": cfg.model_dump()}


def manifest(source: str, to: str, out: str | None, *, json_mode: bool = False) -> dict[str, Any]:
    """Write a manifest in another toolkit's format.

    Args:
        source: manifest, or a folder that holds one.
        to: "nemo", "kaldi" or "lhotse".
        out: file to write; for kaldi a folder.

    Returns:
        where, how many rows, and how many were left out for which reason.

    Raises:
        UserError: an unknown format, a manifest of which no row can be written, a place that is taken.
    """
    from rlspeech.data.exports import FORMATS, write_manifest_as
    from rlspeech.data.manifest import find_manifest, scan_manifest

    if to not in FORMATS:
        raise UserError(f"no manifests are called {to!r}", f"there are: {', '.join(FORMATS)}", "--to nemo")
    utts, problems = scan_manifest(find_manifest(source, recipe=False))
    suffix = ".gz" if to == "lhotse" and str(out).endswith(".gz") else ""
    with new_place(out, folder=to == "kaldi", suffix=suffix) as (place, final):
        done = write_manifest_as(utts, to, place, final)
        why = Counter([reason for _, reason in done.left_out] + ["bad line in the manifest"] * len(problems))
        if not done.rows:
            reasons = "; ".join(f"{reason}: {n}" for reason, n in why.most_common(3)) or "it is empty"
            raise UserError(f"no row of {source} can be written for {to}", reasons, f"rlspeech check {source}")
    for name, reason in [(f"line {p.line}", p.message) for p in problems] + done.left_out:
        log.say(f"left out: {name}: {reason}")
    notes = [*(f"left out: {reason}: {n}" for reason, n in why.most_common()), *done.notes]
    log.table(f"{to}: {final}", ["", "rows"], [["written", done.rows], ["left out", sum(why.values())]], notes)
    if to != "nemo":
        log.say(f"back: rlspeech prepare {to} {final} --out data/again")
    return {"out": str(final), "to": to, "rows": done.rows, "left_out": dict(why), "notes": done.notes}


def scores(
    source: str, to: str, out: str | None, *, system: str | None = None, json_mode: bool = False
) -> dict[str, Any]:
    """Rows of scores in VERSA's form, or VERSA's rows in ours.

    Args:
        source: ``scores.jsonl``, or a file that VERSA's scorer wrote.
        to: "versa" or "rlspeech".
        out: file to write; ours gets its ``.meta.json`` beside it.
        system: which system of a file with several; of rows from VERSA, the label that they get.

    Returns:
        where, how many rows, the names of the metrics on both sides, how many values are missing.

    Raises:
        UserError: an unknown direction, nothing that can be read, several systems and none named, a place that is taken.
    """
    from rlspeech.rewards import versa

    if to not in ("versa", "rlspeech"):
        raise UserError(f"no scores are called {to!r}", "there are: versa, rlspeech", "--to versa")
    with new_place(out, folder=False) as (place, final):
        if to == "versa":
            done = versa.export(Path(source), place, system)
        else:
            done = versa.take(Path(source), place, system or "system")
            aside = final.with_suffix(".meta.json")
            if aside.exists():
                raise UserError(f"{aside} is there already", "", "name another file")
            os.replace(place.with_suffix(".meta.json"), aside)
    rows = [[theirs, ours, count, missing] for theirs, ours, count, missing in done.metrics]
    log.table(f"{done.rows} rows: {final}", ["VERSA's name", "our name", "values", "missing"], rows, done.notes)
    if to == "rlspeech":
        log.say(f"next: rlspeech check {final}")
    return {
        "out": str(final),
        "to": to,
        "rows": done.rows,
        "bad_lines": done.bad_lines,
        "notes": done.notes,
        "metrics": [{"versa": t, "rlspeech": o, "values": n, "missing": m} for t, o, n, m in done.metrics],
    }
