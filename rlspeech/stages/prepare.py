"""``rlspeech prepare``: from a corpus on disk to manifests that the other stages read.

A layout names candidates (``corpora``), every file is checked (``data/checks.py``), bad ones are dropped with a reason, the rest is
written as ``OUT/SPLIT.jsonl`` with a ``.meta.json`` beside it. Nothing is copied or converted, except for mixtures that are asked for
on disk (``render``).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlspeech import log
from rlspeech.config import Mixing, Strict
from rlspeech.corpora import avsec, demo, dns, folder, ladder, lhotse, librispeech, lips, mix, voicebank
from rlspeech.corpora import kaldi_nemo as transcripts
from rlspeech.corpora.base import Candidate, Vetted, shown, vet
from rlspeech.corpora.demo_commands import demo_commands
from rlspeech.corpora.drawn import draw_all
from rlspeech.corpora.lips import contact_sheet
from rlspeech.data.checks import Limits
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.data.mixing import write_recipe
from rlspeech.files import dumps, write_text
from rlspeech.parallel import physical_cores
from rlspeech.types import UserError, Utterance

__all__ = ["Prepare", "run"]

TRANSCRIBED = ("librispeech", "kaldi", "nemo", "lhotse")
LENIENT = ("lips", "avsec4", *TRANSCRIBED)  # a recogniser may hear clipped and narrow speech


class Prepare(Strict):
    """``rlspeech prepare SOURCE``."""

    source: Literal[
        "dns",
        "voicebank",
        "pairs",
        "mix",
        "ladder",
        "folder",
        "librispeech",
        "kaldi",
        "nemo",
        "lhotse",
        "avsec4",
        "lips",
        "demo",
    ] = Field("demo", description="layout of what is there")
    root: str | None = Field(None, description="the corpus, or a file of it; lips: manifest, or folder of videos")
    text: str | None = Field(
        None, description="folder: list of transcripts (JSONL, csv, tsv, Kaldi's text); none: x.txt beside x.wav"
    )
    splits: list[str] = Field([], description="librispeech: only these; none: all that are there")
    noisy: str | None = Field(None, description="pairs: folder with the inputs")
    clean: list[str] = Field(
        [], description="pairs: folder with the references; mix, ladder: folders or manifests of speech"
    )
    noise: list[str] = Field([], description="mix, ladder: folders or manifests of noise")
    rir: list[str] = Field([], description="mix: folders or manifests of impulse responses")
    out: str | None = Field(None, description="folder for manifests; none: data/SOURCE")
    mixing: Mixing = Field(Mixing(), description="mix, dns: how mixtures are made")
    render: int = Field(
        0,
        ge=0,
        description="mix: write this many mixtures to disk; 0 writes a recipe that mixes on the fly; "
        "ladder: utterances, 0 takes all",
    )
    render_s: float = Field(0.0, ge=0, description="mix, ladder: length of what is rendered; 0 keeps whole utterances")
    speakers: Literal["auto", "28", "56", "all"] = Field(
        "auto", description="voicebank: training set; auto: 28 where it is there, else 56"
    )
    valid_speakers: list[str] = Field(list(voicebank.VALID_SPEAKERS), description="voicebank: held back from training")
    kind: Literal["speech", "noisy", "noise", "rir"] = Field(
        "speech", description="folder: what the recordings are held to"
    )
    mouths: bool = Field(
        False, description="mix, demo: draw a mouth that follows the speech, as synthetic video for the task avse"
    )
    channels: Literal["mono", "binaural"] = Field("mono", description="avsec4: which files")
    target: Literal["anechoic", "reverberant"] = Field("anechoic", description="avsec4: reference")
    given_lips: bool = Field(False, description="avsec4: name the organisers' lip videos (lips/), where they are")
    commands: bool = Field(False, description="demo: spoken digits and commands with transcripts, for the task asr")
    crop: Literal["mouth96", "centre112", "whole96"] = Field(
        "mouth96", description="lips: tracked mouth; fixed centre; videos of mouths"
    )
    landmarks: str | None = Field(
        None, description="lips: face-landmarker model (MediaPipe .task) in place of the embedded detector"
    )
    keep_faceless: bool = Field(
        False, description="lips: cut the centre of clips without any face instead of dropping them"
    )
    limits: Limits = Field(Limits(), description="what is dropped")
    seed: int = Field(0, ge=0, description="of rendered mixtures")
    workers: int | None = Field(None, ge=0, description="processes; none: one a core; 0: in this process")


def run(config: Prepare, *, json_mode: bool = False) -> dict[str, Any]:
    """Prepare one source.

    Args:
        config: what and where.
        json_mode: tables go to stderr (the caller prints the summary).

    Returns:
        ``source``, ``out``, ``manifests`` (split -> path, rows, hours, dropped), ``recipe``, ``dropped`` (reason -> count), ``checked``
        (files read), ``known`` (files that a former run had read), ``next`` (a command), ``seconds``.

    Raises:
        UserError: a source is missing, nothing is left, or the disk does not take the output.
    """
    start_s = time.monotonic()
    out = Path(os.path.abspath(config.out or os.path.join("data", config.source)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}", error.strerror or str(error), "name another folder with --out") from error
    if config.source == "demo":
        summary = _demo(out, config.mouths, config.commands)
    else:
        candidates = list(_candidates(config, out))
        workers = physical_cores() if config.workers is None else config.workers
        kind = config.kind if config.source == "folder" else "noisy" if config.source in LENIENT else None
        done = vet(candidates, out / "checks.jsonl", config.limits, workers, kind)
        _refuse_nothing(config, done, out)
        facts = _lips(config, done, out, workers) if config.source == "lips" else {}
        summary = _write(config, done, out, workers) | facts
    summary["seconds"] = round(time.monotonic() - start_s, 1)
    _report(summary)
    return summary


def _candidates(config: Prepare, out: Path) -> Iterable[Candidate]:
    needed = {"pairs": ("noisy", "clean"), "mix": ("clean", "noise"), "ladder": ("clean", "noise")}
    for name in needed.get(config.source, ("root",)):
        if not getattr(config, name):
            raise UserError(
                f"prepare {config.source} needs {name}", "", f"--{name} FOLDER; rlspeech prepare {config.source} --help"
            )
    if config.source == "dns":
        return dns.find(config.root or "", out)
    if config.source == "voicebank":
        return voicebank.find(config.root or "", config.speakers, config.valid_speakers)
    if config.source == "folder":
        root = config.root or ""
        return transcripts.find_listed(root, config.text, skip=out) if config.text else folder.find(root, skip=out)
    if config.source == "librispeech":
        return librispeech.find(config.root or "", config.splits)
    if config.source in TRANSCRIBED:
        find = {"kaldi": transcripts.find_kaldi, "nemo": transcripts.find_nemo, "lhotse": lhotse.find}[config.source]
        return find(config.root or "")
    if config.source == "avsec4":
        workers = physical_cores() if config.workers is None else config.workers
        return avsec.find(
            config.root or "", config.channels, config.target, given_lips=config.given_lips, workers=workers
        )
    if config.source == "lips":
        return lips.find(config.root or "", out)
    if config.source == "pairs":
        if len(config.clean) > 1:
            why = f"{len(config.clean)} were given"
            raise UserError("prepare pairs takes one clean folder", why, "prepare each pair of folders by itself")
        return folder.find_pairs(config.noisy or "", config.clean[0])
    return mix.find(config.clean, config.noise, config.rir, out)


def _lips(config: Prepare, done: Vetted, out: Path, workers: int) -> dict[str, Any]:
    """Cut the crops of what is left, and say how it went; rows whose video is of no use are dropped."""
    how = lips.Cropping(config.crop, config.landmarks, config.keep_faceless)
    cropped = lips.crop_rows(done.kept, out, how, workers)
    done.kept = cropped.kept
    done.dropped += cropped.dropped
    _refuse_nothing(config, done, out)
    rows = [utt for utts in done.kept.values() for utt in utts]
    contact_sheet(rows, out / "contact.png")
    rates = [utt.extra["face_rate"] for utt in rows if "face_rate" in utt.extra]
    return {
        "cut": cropped.cut,
        "cut_before": cropped.known,
        "short_videos": cropped.short,
        "several_faces": cropped.several,
        "contact": str(out / "contact.png"),
        "face_rate": round(sum(rates) / len(rates), 4) if rates else None,
    }


def _refuse_nothing(config: Prepare, done: Vetted, out: Path) -> None:
    """Nothing left to train or test with is the person's business, not an empty file's."""
    needed = ("clean", "noise") if config.source in ("mix", "ladder") else ()
    lacking = [split for split in needed if not done.kept.get(split)]
    if not done.kept or lacking:
        _write_dropped(done.dropped, out)
        what = f"nothing is left of {' and '.join(lacking)}" if lacking and done.kept else "nothing is left"
        reasons = ", ".join(f"{n} {reason}" for reason, n in done.reasons().items()) or "no files were found"
        raise UserError(
            what, f"dropped: {reasons}", f"see {out / 'dropped.jsonl'}; limits can be changed (rlspeech prepare --help)"
        )


def _write(config: Prepare, done: Vetted, out: Path, workers: int) -> dict[str, Any]:
    rendered = config.source == "ladder" or (config.source == "mix" and config.render > 0)
    problem = "cannot be degraded" if config.source == "ladder" else "cannot be mixed"
    place = out / "sources" if rendered else out
    drawn = config.source == "mix" and config.mouths
    dropped = list(done.dropped)
    manifests: dict[str, Any] = {}
    if drawn and not rendered:
        done.kept["clean"], failed = draw_all(done.kept["clean"], place, seed=config.seed, workers=workers)
        dropped += failed
    for split, utts in done.kept.items():
        manifests[split] = _write_split(config, place / f"{split}.jsonl", utts, done.reasons(split))
    recipe = None
    if "clean" in done.kept and "noise" in done.kept:
        recipe = write_recipe(place, config.mixing, rir="rir" in done.kept)
    if rendered and recipe:
        if config.source == "ladder":
            utts, failed = ladder.render(
                done.kept["clean"],
                done.kept["noise"],
                out,
                count=config.render,
                clip_s=config.render_s,
                seed=config.seed,
            )
        else:
            utts, failed = mix.render(
                recipe, out, config.render, seed=config.seed, clip_s=config.render_s, workers=workers
            )
        if drawn:
            utts, undrawn = draw_all(utts, out, seed=config.seed, workers=workers)
            failed = failed + undrawn
        dropped += failed
        if not utts:
            raise UserError("no mixture could be made", failed[0]["detail"], f"look at {place}")
        counts = {problem: len(failed)} if failed else {}
        manifests["manifest"] = _write_split(config, out / "manifest.jsonl", utts, counts)
    _write_dropped(dropped, out)
    reasons = done.reasons() | ({problem: n} if (n := len(dropped) - len(done.dropped)) else {})
    return {
        "source": config.source,
        "out": str(out),
        "manifests": manifests,
        "recipe": str(recipe) if recipe and not rendered else None,
        "dropped": reasons,
        "checked": done.read,
        "known": done.known,
        "multichannel": done.multichannel,
        "next": _next(out, manifests, recipe is not None and not rendered),
    }


def _write_split(config: Prepare, path: Path, utts: list[Utterance], dropped: dict[str, int]) -> dict[str, Any]:
    hours = sum(u.duration for u in utts) / 3600
    row = {"rows": len(utts), "hours": round(hours, 6), "dropped": sum(dropped.values())}
    settings = config.model_dump(exclude={"out", "workers"})
    write_manifest(
        path, utts, {"source": config.source} | row | {"reasons": dropped, "seed": config.seed, "settings": settings}
    )
    return {"path": str(path)} | row


def _write_dropped(dropped: list[dict[str, Any]], out: Path) -> None:
    write_text(out / "dropped.jsonl", "".join(dumps(row) + "\n" for row in dropped))


def _demo(out: Path, faces: bool, commands: bool) -> dict[str, Any]:
    recipe = None
    if commands:
        paths = [demo_commands(part, out) for part in ("train", "valid", "test")]
    else:
        recipe = demo.demo_recipe(out, faces=faces)
        paths = [
            out / "clean.jsonl",
            out / "noise.jsonl",
            demo.demo_valid(out, faces=faces),
            demo.demo_test(out, faces=faces),
        ]
    manifests = {}
    for path in paths:
        utts = read_manifest(path)
        manifests[path.stem] = {
            "path": str(path),
            "rows": len(utts),
            "hours": round(sum(u.duration for u in utts) / 3600, 6),
            "dropped": 0,
        }
    command = f"rlspeech rl --task asr --data {shown(out)}/train.jsonl --valid {shown(out)}/valid.jsonl"
    return {
        "source": "demo",
        "out": str(out),
        "manifests": manifests,
        "recipe": str(recipe) if recipe else None,
        "dropped": {},
        "checked": 0,
        "known": 0,
        "multichannel": 0,
        "next": command if commands else _next(out, manifests, True),
    }


def _next(out: Path, manifests: dict[str, Any], recipe: bool) -> str:
    """The command that goes on from here."""
    folder = shown(out)
    valid = f" --valid {folder}/valid.jsonl" if "valid" in manifests else ""
    if recipe:
        speech = json.loads(Path(manifests["clean"]["path"]).read_text(encoding="utf-8").split("\n", 1)[0])
        task = " --task avse" if "lips_filepath" in speech else ""
        return f"rlspeech pretrain{task} --data {folder}/mix.json{valid}"
    train = next((s for s in ("train", "manifest") if s in manifests), None)
    some = train or str(next(iter(manifests)))
    first = json.loads(Path(manifests[some]["path"]).read_text(encoding="utf-8").split("\n", 1)[0])
    if "video_filepath" in first and "lips_filepath" not in first:
        return f"rlspeech prepare lips {folder} --out {folder}-lips"
    if "text" in first and not {"target_filepath", "lips_filepath", "rung"} & set(first):
        task = "eval" if some.startswith(("test", "dev", "valid")) else "rl"
        return f"rlspeech {task} --task asr --data {folder}/{some}.jsonl"
    if train:
        if "lips_filepath" in first and "target_filepath" in first:
            return f"rlspeech pretrain --task avse --data {folder}/{train}.jsonl{valid}"
        if "rung" in first:
            return f"rlspeech reward {folder}/{train}.jsonl --reward llm --reward dnsmos --reward pesq"
        if "target_filepath" in first:
            return f"rlspeech pretrain --data {folder}/{train}.jsonl{valid}"
        return f"rlspeech reward {folder}/{train}.jsonl --reward dnsmos"
    split = next(iter(manifests))
    if split.startswith("test"):
        return f"rlspeech eval --data {folder}/{split}.jsonl"
    return f"rlspeech reward {folder}/{split}.jsonl --reward dnsmos"


def _report(summary: dict[str, Any]) -> None:
    rows = [[split, m["rows"], round(m["hours"], 3), m["dropped"]] for split, m in summary["manifests"].items()]
    notes = [f"dropped: {n} {reason}" for reason, n in summary["dropped"].items()]
    if summary["dropped"]:
        notes.append(f"every dropped file with its reason: {os.path.join(summary['out'], 'dropped.jsonl')}")
    if summary["multichannel"]:
        notes.append(
            f"{summary['multichannel']} recordings have several channels; they are averaged when they are read"
        )
    if "contact" in summary:
        rate = summary["face_rate"]
        notes.append(
            f"look at {summary['contact']}: crops of some clips, the worst first"
            + (f"; a face is in {100 * rate:.1f} % of the frames" if rate is not None else "")
        )
    for key, what in (
        ("short_videos", "video ends before its audio, the last frame is held (column video_short_s)"),
        ("several_faces", "several faces, the largest and longest one is followed (column other_faces)"),
    ):
        if summary.get(key):
            notes.append(f"{what}: {summary[key]} of {sum(m['rows'] for m in summary['manifests'].values())} clips")
    log.table(
        f"prepared {summary['source']} in {summary['out']}", ["manifest", "rows", "hours", "dropped"], rows, notes
    )
    log.say(f"next: {summary['next']}")
