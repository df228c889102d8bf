"""Texts with voices: LibriTTS-like folders, lists of texts to be said in the voice of a prompt, and prompts for whatever has speakers.

    LibriTTS        SPLIT/SPEAKER/CHAPTER/x.wav with x.normalized.txt or x.original.txt beside it
    seed-tts-eval   a list: utt|prompt_text|prompt_wav|text[|recording], paths from the list's folder
    lines           a text a line, said in the voices of a manifest, in turn

A text that nobody has recorded has its prompt as ``audio_filepath``, and ``recorded`` is false: its length is not known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlspeech.corpora.base import Candidate, audio_files, candidate, check_folder
from rlspeech.files import safe_name
from rlspeech.types import UserError, Utterance

__all__ = ["find_beside", "from_lines", "from_list", "with_prompts"]

BESIDE = (".normalized.txt", ".original.txt", ".txt")
SPLITS = ("train", "dev", "test")


def find_beside(root: str | Path, skip: Path | None = None) -> Iterator[Candidate]:
    """Candidates of a folder of speakers' folders, split by the corpus' own names (``dev-clean``) where there are such.

    Raises:
        UserError: no folder, or no audio in it.
    """
    folder = check_folder(root, "the corpus")
    paths = audio_files(folder, skip)
    if not paths:
        raise UserError(f"no audio in {root}", "no file with a known suffix below it", "check the path")
    for path in paths:
        parts = path.relative_to(folder).parts
        named = next((i for i, p in enumerate(parts[:-1]) if p.lower().startswith(SPLITS)), None)
        split = (
            parts[named] if named is not None else folder.name if folder.name.lower().startswith(SPLITS) else "manifest"
        )
        below = parts[0 if named is None else named + 1 : -1]
        found = next((t for s in BESIDE if (t := path.with_suffix("").with_name(path.stem + s)).is_file()), None)
        text = " ".join(found.read_text(encoding="utf-8", errors="replace").split()) if found else None
        speaker = below[0] if below else None
        yield candidate(
            split, path, safe_name(path.stem), None if text else "no transcript", text=text, speaker=speaker
        )


def from_list(path: Path) -> tuple[list[Utterance], list[dict[str, Any]]]:
    """Rows of a list as in seed-tts-eval, and those that are dropped, with reasons. Raises ``UserError``: it cannot be read."""
    rows, dropped = list[Utterance](), list[dict[str, Any]]()
    for number, line in enumerate(_lines(path), 1):
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
    texts, rows = [line.strip() for line in _lines(path) if line.strip()], []
    for i, text in enumerate(texts):
        voice = voices[i % len(voices)]
        made = _row(f"{safe_name(path.stem)}_{i + 1:04d}", text, Path(voice.audio_filepath), voice.text, None)
        rows.append(replace(made, speaker_id=voice.speaker_id, language=voice.language))
    return rows


def _row(key: str, text: str, prompt: Path, prompt_text: str | None, recorded: Path | None) -> Utterance:
    import soundfile as sf

    try:
        info = sf.info(str(recorded or prompt))
        seconds, rate = round(info.frames / info.samplerate, 6), int(info.samplerate)
    except (sf.LibsndfileError, RuntimeError, OSError):
        seconds, rate = 0.0, 0
    return Utterance(
        safe_name(key),
        str((recorded or prompt).absolute()),
        seconds,
        rate,
        text=text,
        prompt_text=prompt_text,
        prompt_filepath=str(prompt.absolute()),
        extra={} if recorded else {"recorded": False},
    )


def _unique(rows: Sequence[Utterance]) -> list[Utterance]:
    taken: dict[str, int] = {}
    made = []
    for row in rows:
        taken[row.id] = taken.get(row.id, 0) + 1
        made.append(row if taken[row.id] == 1 else replace(row, id=f"{row.id}-{taken[row.id]}"))
    return made


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", str(error), "a text file, UTF-8") from error


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
        others = [
            o for o in by.get(u.speaker_id or "", ()) if o.audio_filepath != u.audio_filepath and o.text != u.text
        ]
        if u.prompt_filepath or not others:
            made.append(u)
            continue
        pick = min(others, key=lambda o: zlib.crc32(f"{seed} {u.id} {o.id}".encode()))
        made.append(replace(u, prompt_filepath=pick.audio_filepath, prompt_text=pick.text))
    return made
