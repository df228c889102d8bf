"""``rlspeech prepare``: from a corpus on disk, or from sets, to manifests that the other stages read.

A source (``corpora``) gives rows and reasons for what it leaves out; here they are written as ``OUT/NAME.jsonl`` with a ``.meta.json``
beside each, and ``OUT/dropped.jsonl``. Recordings are neither copied nor converted, except for what is rendered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.avsec import Avsec
from rlspeech.corpora.base import CHECKS, Layout, Sets, Source, counted, next_command
from rlspeech.corpora.demo import Demo
from rlspeech.corpora.folder import Folder, Pairs
from rlspeech.corpora.lips import Lips
from rlspeech.corpora.mix import Ladder, Mix
from rlspeech.corpora.published import Dns, LibriSpeech, VoiceBank
from rlspeech.corpora.toolkits import Kaldi, Lhotse, Nemo
from rlspeech.data.manifest import meta_path, write_manifest
from rlspeech.data.mixing import write_recipe
from rlspeech.files import held, join_rows
from rlspeech.scores import write_json
from rlspeech.types import UserError, Utterance

# These share the settings of their files and metas, as they did when there was one class for all; another source needs no place here:
# its command names its class.
LAYOUTS = (Dns, VoiceBank, Pairs, Mix, Ladder, Folder, LibriSpeech, Kaldi, Nemo, Lhotse, Avsec, Lips, Demo)
JOURNALS = (CHECKS, "rendered.jsonl", "lips/done.jsonl")  # of shards, taken over where they are joined
WHOLE = ("demo", "ladder")  # not made in shards
First = Literal["dns", "voicebank", "pairs", "mix", "ladder", "folder"]
Name = Literal[First, "librispeech", "kaldi", "nemo", "lhotse", "avsec4", "lips", "demo"]


class Prepare(Dns, VoiceBank, Mix, Ladder, Pairs, Folder, LibriSpeech, Kaldi, Nemo, Lhotse, Avsec, Lips, Demo):
    """``rlspeech prepare SOURCE`` for a corpus on disk: one settings file may hold the settings of several."""

    layouts: ClassVar[dict[str, type[Layout]]] = {layout.name: layout for layout in LAYOUTS}
    source: Name = conf("demo", "layout of what is there")

    def chosen(self) -> Source:
        """Return the settings of the layout that ``source`` names."""
        layout = self.layouts[self.source]
        return layout(**{name: getattr(self, name) for name in layout.model_fields})


def _name_owners() -> None:
    """Say in the description of a setting which layouts have it, where some have not."""
    for key, field in Prepare.model_fields.items():
        owners: dict[str | None, list[str]] = {}
        for layout in LAYOUTS:
            if key in layout.model_fields:
                owners.setdefault(layout.model_fields[key].description, []).append(layout.name)
        if owners and sum(map(len, owners.values())) < len(LAYOUTS):
            field.description = "; ".join(f"{', '.join(names)}: {text}" for text, names in owners.items())


_name_owners()


def run(config: Source, joined: Sequence[Path] = ()) -> dict[str, Any]:
    """Prepare one source; of a shard only the files are checked, cut or rendered, and journals kept of it.

    Args:
        joined: folders of shards, whose journals are taken over.

    Returns:
        ``source``, ``out``, ``manifests`` (name -> path, rows, hours, dropped), ``recipe``, ``dropped`` (reason -> count), ``next`` (a
        command), ``seconds``, and what the source adds; those whose files are checked: ``checked`` (files read), ``known`` (files that a
        former run had read), ``multichannel``.

    Raises:
        UserError: a source is missing, nothing is left, or the disk does not take the output.
    """
    start_s = time.monotonic()
    source = config.chosen()
    for name in source.needed:
        if not getattr(source, name):
            what = "a source" if name == "root" else name
            option = "" if name in ("root", "manifests") else f"--{name} PATH; "
            raise UserError(f"prepare {source.name} needs {what}", "", f"{option}rlspeech prepare {source.name} --help")
    if source.part.own and source.name in WHOLE:
        raise UserError(f"prepare {source.name} does not work in shards", "it is made as a whole", "leave out --shard")
    out = Path(os.path.abspath(config.out or os.path.join("data", source.name)))
    aside = source.part.place(out)
    with held(aside):
        for name in JOURNALS if joined else ():
            join_rows(out / name, [folder / name for folder in joined])
        sets = source.make(out)
        manifests, recipe = _write(config, source.name, sets, out, aside)
    summary: dict[str, Any] = {"source": source.name, "out": str(out), "manifests": manifests, "recipe": recipe}
    summary |= {"dropped": counted(sets.dropped + sets.failed)} | sets.facts
    if aside != out:
        log.say(f"{source.name}: {log.several(sets.facts.get('checked', 0), 'file')} checked for {out}")
        return summary
    summary["next"] = sets.following or next_command(out, sets.rows, recipe is not None)
    summary["seconds"] = round(time.monotonic() - start_s, 1)
    _report(summary, sets)
    return summary


def _write(config: Source, name: str, sets: Sets, out: Path, aside: Path) -> tuple[dict[str, Any], str | None]:
    """Write manifests, recipe and what is rendered; the manifests' entries of the summary, and the recipe's path.

    Of a shard (``aside`` is not ``out``) only what it renders, and what that is made of.
    """
    if aside != out and not sets.render:
        return {}, None
    place = aside / "sources" if sets.render else out
    written = partial(_write_set, config, name, sets)
    manifests = {split: written(place / f"{split}.jsonl", rows, sets.dropped) for split, rows in sets.rows.items()}
    recipe = None
    if sets.mixing is not None and {"clean", "noise"} <= sets.rows.keys():
        recipe = str(place / "mix.json")
        if not sets.written:
            write_recipe(place, sets.mixing, rir="rir" in sets.rows)
    if sets.render:
        rows, sets.failed = sets.render()
        if aside != out:
            return {"rendered": len(rows)}, None
        if not rows:
            raise UserError("no mixture could be made", sets.failed[0]["detail"], f"look at {place}")
        sets.rows["manifest"], recipe = rows, None
        manifests["manifest"] = written(out / "manifest.jsonl", rows, sets.failed)
    if not sets.written:
        sets.write_dropped(out)
    return manifests, recipe


def _write_set(
    config: Source, name: str, sets: Sets, path: Path, rows: Collection[Utterance], dropped: Any
) -> dict[str, Any]:
    """Write a manifest, unless it is there; its entry in the summary."""
    reasons = counted(dropped, path.stem)
    seconds = sum(u.duration for u in rows) if sets.written else write_manifest(path, rows)
    counts = {"rows": len(rows), "hours": round(seconds / 3600, 6), "dropped": sum(reasons.values())}
    if not sets.written:
        settings = config.record()
        meta = {"source": name} | counts | {"reasons": reasons, "seed": settings["seed"]} | sets.meta
        write_json(meta_path(path), meta | {"settings": settings})
    return {"path": str(path)} | counts


def _report(summary: dict[str, Any], sets: Sets) -> None:
    rows = [[name, m["rows"], round(m["hours"], 3), m["dropped"]] for name, m in summary["manifests"].items()]
    columns, rows = sets.table or (["manifest", "rows", "hours", "dropped"], rows)
    notes = [f"dropped: {n} {reason}" for reason, n in summary["dropped"].items()]
    if notes:
        notes.append(f"every dropped file with its reason: {os.path.join(summary['out'], 'dropped.jsonl')}")
    log.table(f"prepared {summary['source']} in {summary['out']}", columns, rows, notes + sets.notes)
    log.say(f"next: {summary['next']}")
