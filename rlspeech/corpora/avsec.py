"""The Audio-Visual Speech Enhancement Challenge: AVSEC-4 as shipped, and AVSEC-1 to 3.

    {train,dev,eval}/scenes/SXXXXX_silent.mp4                                            the speaker's video
        AVSEC-4   SXXXXX_{mix,target,target_anechoic,interferer}.wav                      binaural
                  SXXXXX_{mono_mix,target_mono,target_mono_anechoic,interferer_mono}.wav  (L + R) / 2
        AVSEC-1-3 SXXXXX_{mixed,target,interferer}.wav                                    mono
    {train,dev,eval}/lips/SXXXXX_silent.mp4                                               AVSEC-3: the organisers' mouth crops
    metadata/scenes.{train,dev}.json                                                      SNR, room, interferers

Splits: ``train``, ``valid`` (the challenge's dev) and ``test`` (its eval). Eval scenes come without references: they can be enhanced and
judged by rewards that need none. The anechoic reference has its own peak norm, so its gain differs from the mixture's: losses and metrics
have to be blind to scale. The interferers are not needed, and a scene without them is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, candidate, check_folder
from rlspeech.data.decode import AudioError, sound_info
from rlspeech.data.video import LipsError, check_video
from rlspeech.files import parse_json
from rlspeech.parallel import parallel_map
from rlspeech.types import UserError

SPLITS = {"train": "train", "dev": "valid", "eval": "test"}  # folder -> split
MEMBER = re.compile(r"^(S\d+)_([a-z_]+)\.(?:wav|mp4)$")
PROBE_TIMEOUT_S = 120.0


class Avsec(Layout):
    """``rlspeech prepare avsec4``."""

    name = "avsec4"
    channels: Literal["mono", "binaural"] = conf("mono", "recordings to use")
    target: Literal["anechoic", "reverberant"] = conf("anechoic", "reference to use")
    given_lips: bool = conf(False, "name the organisers' lip videos (lips/) where they are there")

    judged = "noisy"

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates in the splits that are there: of a folder that holds ``train``, ``dev`` or ``eval``, or of the one above it."""
        top = check_folder(self.root, "the AVSEC corpus")
        places = list(_places(top))
        if not places:
            why = "train/scenes, dev/scenes or eval/scenes with files like S00001_silent.mp4 are needed"
            raise UserError(f"no AVSEC scenes in {self.root}", why, "name the folder that holds them")
        scenes = [scene for place in places for scene in self._scenes(*place)]
        whole = [scene for scene in scenes if not scene.problem]
        bare = sum(scene.target is None for scene in whole)
        if bare:
            log.say(f"evaluation scenes without reference, for enhance and for rewards that need none: {bare}")
        problems: dict[tuple[str, str], str | None] = {}
        for scene, found in parallel_map(_probe, whole, self.processes(), PROBE_TIMEOUT_S, "opening", "scenes"):
            problems[scene.split, scene.name] = f"unreadable: {found}" if isinstance(found, Exception) else found
        for scene in scenes:
            problem = scene.problem or problems[scene.split, scene.name]
            row = candidate(scene.split, scene.mix, scene.name, problem, target=scene.target, **scene.facts)
            row.utt.video_filepath = str(scene.video)
            yield row

    def _scenes(self, split: str, place: Path, base: Path) -> Iterator[Scene]:
        members: dict[str, set[str]] = {}
        for name in os.listdir(place):
            if match := MEMBER.match(name):
                members.setdefault(match[1], set()).add(match[2])
        metadata = _metadata(base, place, split)
        lips = (place.parent if place.name == "scenes" else place) / "lips"
        for name in sorted(members.keys() | metadata.keys()):
            there = members.get(name, set())
            old, mono = "mixed" in there, self.channels == "mono"
            mix = "mixed" if old else "mono_mix" if mono else "mix"
            wanted = "target" if old else "target" + "_mono" * mono + "_anechoic" * (self.target == "anechoic")
            bare = split == "test" and not any(member.startswith("target") for member in there)
            needed = [mix, "silent"] + ([] if bare else [wanted])
            missing = [member for member in needed if member not in there]
            problem = "no files of the scene" if not there else f"missing {' and '.join(missing)}" if missing else None
            video = lips / f"{name}_silent.mp4"
            if not (self.given_lips and video.is_file()):
                video = place / f"{name}_silent.mp4"
            target_file = None if bare else place / f"{name}_{wanted}.wav"
            facts = _facts(metadata.get(name, {}))
            yield Scene(split, name, place / f"{name}_{mix}.wav", target_file, video, facts, problem)


class Scene(NamedTuple):
    """A scene's files and what the metadata say of it."""

    split: str
    name: str
    mix: Path
    target: Path | None
    video: Path
    facts: dict[str, Any]
    problem: str | None


def _places(top: Path) -> Iterator[tuple[str, Path, Path]]:
    """(split, folder with the scenes, folder that holds the split) for every split, at most one level down."""
    if top.name in SPLITS or (top.name == "scenes" and top.parent.name in SPLITS):  # one split was named
        top = top.parent if top.name in SPLITS else top.parent.parent
        named = [top]
    else:
        named = [top, *sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))]
    for base in named:
        there = False
        for folder, split in SPLITS.items():
            for place in (base / folder / "scenes", base / folder):
                if place.is_dir() and any(MEMBER.match(name) for name in os.listdir(place)):
                    yield split, place, base
                    there = True
                    break
        if there:
            return


def _metadata(base: Path, place: Path, split: str) -> dict[str, dict[str, Any]]:
    """What ``scenes.json`` says of each scene; nothing where it is missing, and a warning where it cannot be read."""
    folder = next(name for name, other in SPLITS.items() if other == split)
    own, shared = f"scenes.{folder}.json", "scenes.json"
    files = [base / "metadata" / own, base / own, base / folder / "metadata" / shared, base / folder / shared]
    file = next((f for f in [*files, place / shared, base / folder / own] if f.is_file()), None)
    try:
        rows = parse_json(file.read_bytes()) if file else []
        return {row["scene"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("scene"), str)}
    except (ValueError, TypeError, OSError, RecursionError) as error:
        log.warn(f"{file} cannot be read ({type(error).__name__}): no SNR and no scene columns for {split}")
        return {}


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """Columns of the manifest from a scene's metadata; what has another type than it should is left out."""
    single = row.get("interferer")
    several = row.get("interferers")
    listed = several if isinstance(several, list) else [single]
    kinds = [item["type"] for item in listed if isinstance(item, dict) and isinstance(item.get("type"), str)]
    speech = row.get("target")
    name = speech.get("name") if isinstance(speech, dict) else None
    snr, room = row.get("SNR"), row.get("room")
    return {
        "snr_db": float(snr) if isinstance(snr, int | float) and not isinstance(snr, bool) and abs(snr) < 1e3 else None,
        "scene": row.get("scene"),
        "room": room if isinstance(room, str | int) else None,
        "interferers": "+".join(kinds) or None,
        "target_name": name if isinstance(name, str) else None,
    }


def _probe(scene: Scene) -> str | None:
    """What is wrong with a scene's video, or with its rates; audio content is checked later, with all the others."""
    try:
        check_video(scene.video)
    except LipsError as error:
        return f"video: {error.reason.split(':')[0].split(' (')[0]}"
    if scene.target is None:
        return None
    try:
        rates = [sound_info(path).sample_rate for path in (scene.mix, scene.target)]
    except AudioError:
        return None  # the check of the audio says what it is
    return "mixture and target of different rates" if rates[0] != rates[1] else None
