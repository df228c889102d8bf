"""Texts with the voices they are to be spoken in, each row with a prompt of its own that is chosen once, here.

rlspeech prepare tts /data/LibriTTS --out data/libritts      # a manifest a split, prompts from the same speaker
rlspeech prepare tts data/train.jsonl --out data/tts         # the same for any manifest with speakers
rlspeech prepare tts seedtts/en/meta.lst --out data/seed     # utt|prompt_text|prompt_wav|text[|recording]
rlspeech prepare tts lines.txt --prompts data/voices --out data/lines

    LibriTTS        SPLIT/SPEAKER/CHAPTER/x.wav with x.normalized.txt or x.original.txt beside it
    seed-tts-eval   a list: utt|prompt_text|prompt_wav|text[|recording], paths from the list's folder
    lines           a text a line, spoken in the voices of a manifest, in turn

A text without a recording has its prompt as ``audio_filepath``, and ``recorded`` is false: its length is not known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlspeech.config_parts import NonNegative, conf
from rlspeech.corpora.base import Candidate, Rendered, Sets, Source, candidate, recordings_below, shown, vet
from rlspeech.data.checks import Limits
from rlspeech.data.decode import AudioError, sound_info
from rlspeech.data.manifest import find_manifest, holds_rows, read_manifest
from rlspeech.files import read_text, safe_name
from rlspeech.parallel import physical_cores
from rlspeech.types import UserError, Utterance

TRAINING = ("train", "manifest")
LISTS = (".lst", ".txt", ".text")
BESIDE = (".normalized.txt", ".original.txt", ".txt")
SPLITS = ("train", "dev", "test")


class PrepareTts(Source):
    """``rlspeech prepare tts``."""

    name = "tts"
    needed = ("root",)
    root: str | None = conf(None, "LibriTTS-like folder, manifest, list as in seed-tts-eval, or .txt, a text a line")
    prompts: str | None = conf(None, "voices for a .txt of lines: manifest of speech with transcripts")
    prompt_s: tuple[NonNegative, NonNegative] = conf((1.0, 10.0), "shortest and longest prompt, in seconds")
    limits: Limits = conf(Limits(), "what is dropped of a folder")
    seed: int = conf(0, "of the choice of prompts", ge=0)
    workers: int | None = conf(None, "worker processes; none: one a core; 0: none besides this one", ge=0)

    def make(self, out: Path) -> Sets:
        """Return a set for each split, with a prompt for every row whose speaker has another recording."""
        sets = self._found(Path(self.root or ""), out)
        (low, high), found = self.prompt_s, sets.rows
        sets.rows = {name: with_prompts(rows, low, high, seed=self.seed) for name, rows in found.items() if rows}
        sets.require(out)
        prompted = {name: sum(bool(u.prompt_filepath) for u in rows) for name, rows in sets.rows.items()}
        sets.facts["prompted"] = prompted
        if n := sum(map(len, sets.rows.values())) - sum(prompted.values()):
            short = f"no other recording of the speaker lasts {low:g} to {high:g} s"
            sets.notes.append(f"{n} rows have no prompt: {short}")
        hours = {name: round(sum(u.duration for u in rows) / 3600, 3) for name, rows in sets.rows.items()}
        table = [[name, len(rows), hours[name], prompted[name]] for name, rows in sets.rows.items()]
        sets.table = (["manifest", "rows", "hours", "with prompt"], table)
        some = next((n for n in sets.rows if n.startswith(TRAINING)), next(iter(sets.rows)))
        learn = some.startswith(TRAINING) and all(u.extra.get("recorded", True) for u in sets.rows[some])
        stage = "pretrain" if learn else "eval"
        sets.following = f"rlspeech {stage} --task tts --data {shown(out)}/{some}.jsonl"
        return sets

    def _found(self, root: Path, out: Path) -> Sets:
        """Rows by split, and what was dropped."""
        if root.suffix.lower() in LISTS and root.is_file():
            lines = read_text(root).splitlines()
            if next((line for line in lines if line.strip()), "").count("|") >= 3:
                rows, dropped = from_list(root)
                return Sets({"test": rows}, dropped)
            if not self.prompts:
                why = "a list has utt|prompt_text|prompt_wav|text"
                raise UserError(f"{root} has texts and no voices", why, "--prompts MANIFEST")
            low, high = self.prompt_s
            voices = read_manifest(find_manifest(self.prompts, recipe=False))
            given = [u for u in voices if not (u.offset or u.extra.get("segment"))]
            speakers = [u for u in given if low <= u.duration <= high]
            if not speakers:
                why = f"none of {len(given)} recordings lasts {low:g} to {high:g} s"
                raise UserError(f"{self.prompts} has no prompt", why, "--prompt-s LOW HIGH")
            return Sets({"test": from_lines(root, speakers)})
        if root.is_file() and holds_rows(root):
            rows = read_manifest(root)
            mute = [u for u in rows if not u.text]
            dropped = [{"id": u.id, "path": u.audio_filepath, "reason": "no transcript", "detail": ""} for u in mute]
            return Sets({root.stem: [u for u in rows if u.text]}, dropped)
        workers = physical_cores() if self.workers is None else self.workers
        return vet(list(find_beside(root, skip=out)), out, self.limits, workers, "noisy")


def find_beside(root: str | Path, skip: Path | None = None) -> Iterator[Candidate]:
    """Candidates of a folder of speakers' folders, split by the corpus' own names (``dev-clean``) where there are such.

    Raises:
        UserError: no folder, or no audio in it.
    """
    folder, paths = recordings_below(root, skip)
    for path in paths:
        parts = path.relative_to(folder).parts
        named = next((i for i, p in enumerate(parts[:-1]) if p.lower().startswith(SPLITS)), None)
        outer = folder.name if folder.name.lower().startswith(SPLITS) else "manifest"
        split = outer if named is None else parts[named]
        below = parts[0 if named is None else named + 1 : -1]
        found = next((t for s in BESIDE if (t := path.with_suffix("").with_name(path.stem + s)).is_file()), None)
        speaker = below[0] if below else None
        row = candidate(split, path, safe_name(path.stem), text=found, speaker=speaker)
        text = " ".join((row.utt.text or "").split())
        row.utt.text = text or None
        yield row if text else row._replace(problem=row.problem or "no transcript")


def from_list(path: Path) -> Rendered:
    """Rows of a list as in seed-tts-eval, and those that are dropped, with reasons. Raises ``UserError``: it cannot be read."""
    rows, dropped = list[Utterance](), list[dict[str, Any]]()
    for number, line in enumerate(filter(str.strip, read_text(path).splitlines()), 1):
        parts = [p.strip() for p in line.split("|")]
        if len(parts) < 4 or not all(parts[i] for i in (0, 2, 3)):
            dropped.append({"id": f"line_{number}", "path": str(path), "reason": "bad line", "detail": line[:200]})
            continue
        prompt, recorded = path.parent / parts[2], path.parent / parts[4] if len(parts) > 4 and parts[4] else None
        missing = [str(p) for p in (prompt, recorded) if p is not None and not p.is_file()]
        if missing:
            dropped.append({"id": parts[0], "path": missing[0], "reason": "missing file", "detail": missing[0]})
            continue
        rows.append(_row(Path(parts[0]).stem or f"line_{number}", parts[3], prompt, parts[1] or None, recorded))
    return _unique(rows), dropped


def from_lines(path: Path, voices: Sequence[Utterance]) -> list[Utterance]:
    """A row a line, in the voices in turn. Raises ``UserError``: it cannot be read."""
    texts, rows = [line.strip() for line in read_text(path).splitlines() if line.strip()], []
    for i, text in enumerate(texts):
        voice = voices[i % len(voices)]
        made = _row(f"{safe_name(path.stem)}_{i + 1:04d}", text, Path(voice.audio_filepath), voice.text, None)
        rows.append(replace(made, speaker_id=voice.speaker_id, language=voice.language))
    return rows


def _row(key: str, text: str, prompt: Path, prompt_text: str | None, recorded: Path | None) -> Utterance:
    try:
        info = sound_info(recorded or prompt)
        seconds, rate = round(info.seconds, 6), info.sample_rate
    except AudioError:
        seconds, rate = 0.0, 0
    utt = Utterance(safe_name(key), str((recorded or prompt).absolute()), seconds, rate, text=text)
    utt.prompt_text, utt.prompt_filepath = prompt_text, str(prompt.absolute())
    utt.extra = {} if recorded else {"recorded": False}
    return utt


def _unique(rows: Sequence[Utterance]) -> list[Utterance]:
    taken: dict[str, int] = {}
    made = []
    for row in rows:
        taken[row.id] = taken.get(row.id, 0) + 1
        made.append(row if taken[row.id] == 1 else replace(row, id=f"{row.id}-{taken[row.id]}"))
    return made


def with_prompts(rows: Sequence[Utterance], low_s: float, high_s: float, seed: int = 0) -> list[Utterance]:
    """Every row with another recording of its speaker as its prompt; a row that has a prompt keeps it, one without a choice has none.

    Args:
        rows: with ``speaker_id`` and ``text``.
        low_s, high_s: length of prompts, in seconds; whole files alone, a stretch of one cannot be named.
        seed: of the choice, which is a function of the row's id alone: other rows change nothing but the choice there is.
    """
    by: dict[str, list[Utterance]] = {}
    for u in rows:
        if u.speaker_id and u.text and low_s <= u.duration <= high_s and not u.offset and not u.extra.get("segment"):
            by.setdefault(u.speaker_id, []).append(u)
    made = []
    for u in rows:
        mine = by.get(u.speaker_id or "", ())
        others = [o for o in mine if o.audio_filepath != u.audio_filepath and o.text != u.text]
        if others and not u.prompt_filepath:
            prompt = min(others, key=lambda o: zlib.crc32(f"{seed} {u.id} {o.id}".encode()))
            u = replace(u, prompt_filepath=prompt.audio_filepath, prompt_text=prompt.text)
        made.append(u)
    return made
