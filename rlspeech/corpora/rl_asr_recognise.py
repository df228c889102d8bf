"""Let a recogniser listen to a whole manifest, resumably: transcripts go to a journal as they come.

A row is heard again where its file or the recogniser's folder has changed. A row that cannot be read, or on which the recogniser
fails, costs itself and is tried again by the next run; a silent one is not shown to the recogniser and counts as heard, with an empty
text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlspeech import log
from rlspeech.corpora.splice import read
from rlspeech.data.audio import AudioError, rms_dbfs
from rlspeech.files import JsonlWriter, digest_of, safe_name
from rlspeech.models.hub import embedded_path
from rlspeech.rewards.rates import Recogniser, load_recogniser
from rlspeech.types import UserError, Utterance

__all__ = ["hear_all", "recogniser"]

RATE_HZ = 16000
SILENT_DBFS = -80.0


def recogniser(name: str, device: str = "auto", language: str | None = None, batch: int = 8) -> Recogniser:
    """A recogniser by name, see ``rewards/rates.py``, on a device chosen as everywhere. Raises ``UserError`` where it cannot be loaded."""
    if name != "pocketsphinx" and ":" not in name:  # these know no devices, and need no torch
        from rlspeech.engine import Engine

        device = str(Engine(device, "fp32").device)
    return load_recogniser(name, device, language, batch)


def hear_all(
    name: str,
    utts: Sequence[Utterance],
    folder: Path,
    *,
    batch: int = 8,
    device: str = "auto",
    language: str | None = None,
) -> dict[str, str]:
    """Row id -> transcript by the recogniser ``name``.

    Args:
        name: see ``recogniser``.
        utts: what it listens to.
        folder: for the journal ``NAME.jsonl``, continued where it is there.
        batch: recordings in one call.
        device: where it runs.
        language: handed to recognisers that take one.

    Raises:
        UserError: it cannot be loaded, or fails on every row.
    """
    heard: dict[str, str] = {}
    with JsonlWriter(folder / f"{safe_name(name)}.jsonl", "key") as journal:
        state = f"{language or ''}|{_weights(name)}"
        keys = {utt.id: _key(utt, state) for utt in utts}
        todo = []
        for utt in utts:
            if keys[utt.id] in journal:
                heard[utt.id] = str(journal.rows[keys[utt.id]]["text"])
            else:
                todo.append(utt)
        if not todo:
            return heard
        if heard:
            log.say(f"{name} has heard {len(heard)} of {len(utts)} rows before")
        problem = _listen(name, recogniser(name, device, language, batch), todo, keys, heard, journal, batch)
    if lost := len(utts) - len(heard):
        if not heard:
            raise UserError(f"{name} has heard nothing", str(problem), "try it on one file") from problem
        log.warn(f"{name}: {lost} of {len(utts)} rows could not be heard ({problem})")
    return heard


def _listen(
    name: str,
    recognise: Recogniser,
    todo: list[Utterance],
    keys: dict[str, str],
    heard: dict[str, str],
    journal: JsonlWriter,
    batch: int,
) -> Exception | None:
    """Fill ``heard`` and the journal; what went wrong last."""
    todo = sorted(todo, key=lambda u: u.duration)  # like lengths together: less padding
    problem: Exception | None = None
    with log.progress(len(heard) + len(todo), f"{name} listens", "rows", start=len(heard)) as bar:
        for at in range(0, len(todo), batch):
            part = todo[at : at + batch]
            said, error = _hear(part, recognise)
            problem = error or problem
            for utt in part:
                if utt.id in said:
                    heard[utt.id] = said[utt.id]
                    journal.write({"key": keys[utt.id], "id": utt.id, "text": said[utt.id]})
            bar.advance(len(part))
    return problem


def _weights(name: str) -> str:
    """Changes with the files of a recogniser in a folder; empty for others."""
    folder = embedded_path("asr") if name == "embedded" else Path(name)
    return digest_of(folder, ends=1 << 20) if folder.is_dir() else ""


def _key(utt: Utterance, state: str) -> str:
    try:
        stat = os.stat(utt.audio_filepath)
        stamp = f"{stat.st_size}|{stat.st_mtime_ns}"
    except OSError:
        stamp = "missing"
    return f"{utt.id}|{utt.audio_filepath}|{stamp}|{utt.offset:g}|{utt.duration:g}|{state}"


def _hear(utts: Sequence[Utterance], recognise: Recogniser) -> tuple[dict[str, str], Exception | None]:
    """Row id -> text, and what went wrong last; after a failed call every row is tried by itself."""
    said: dict[str, str] = {}
    wavs: dict[str, np.ndarray] = {}
    problem: Exception | None = None
    for utt in utts:
        try:
            wav = read(utt, RATE_HZ)
        except AudioError as error:
            problem = error
            continue
        if rms_dbfs(wav) < SILENT_DBFS:
            said[utt.id] = ""
        else:
            wavs[utt.id] = wav
    groups = [list(wavs)] if wavs else []
    while groups:
        ids = groups.pop()
        try:
            said |= dict(zip(ids, recognise([wavs[i] for i in ids], RATE_HZ), strict=True))
        except UserError:
            raise
        except (
            Exception
        ) as error:  # whatever a recogniser of other people raises: one recording at a time says which it is
            problem = error
            if len(ids) > 1:
                groups += [[i] for i in ids]
    return said, problem
