"""Run a recogniser over a whole manifest, resumably: transcripts go to a journal as they come.

A row is recognised anew where its file or the recogniser's folder has changed. A row that cannot be read, or on which the recogniser
fails, is left out and retried by the next run; a silent one is not given to the recogniser and has an empty text.
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
from rlspeech.parallel import one_by_one
from rlspeech.rewards.recognisers import Transcribe, load_recogniser
from rlspeech.types import UserError, Utterance

__all__ = ["recognise", "recogniser"]

RATE_HZ = 16000
SILENT_DBFS = -80.0


def recogniser(name: str, device: str = "auto", language: str | None = None, batch: int = 8) -> Transcribe:
    """A recogniser by name, see ``rewards/rates.py``, on a device chosen as everywhere. Raises ``UserError`` where it cannot be loaded."""
    if name != "pocketsphinx" and ":" not in name:  # these know no devices, and need no torch
        from rlspeech.engine import Engine

        device = str(Engine(device, "fp32").device)
    return load_recogniser(name, device, language, batch)


def recognise(
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
        utts: what is transcribed.
        folder: for the journal ``NAME.jsonl``, continued where it is there.
        batch: recordings in one call.
        device: where it runs.
        language: handed to recognisers that take one.

    Raises:
        UserError: it cannot be loaded, or fails on every row.
    """
    with JsonlWriter(folder / f"{safe_name(name)}.jsonl", "key") as journal:
        state = f"{language or ''}|{_weights(name)}"
        keys = {utt.id: _key(utt, state) for utt in utts}
        texts = {key: str(journal.rows[keys[key]]["text"]) for key in keys if keys[key] in journal}
        todo = sorted((u for u in utts if u.id not in texts), key=lambda u: u.duration)  # like lengths together
        if not todo:
            return texts
        if texts:
            log.say(f"{name} has transcribed {len(texts)} of {len(utts)} rows before")
        run, problem = recogniser(name, device, language, batch), None
        with log.progress(len(utts), f"transcribing with {name}", "rows", start=len(texts)) as bar:
            for at in range(0, len(todo), batch):
                part = todo[at : at + batch]
                found, error = _transcribe(part, run)
                problem = error or problem
                for key in (u.id for u in part if u.id in found):
                    texts[key] = found[key]
                    journal.write({"key": keys[key], "id": key, "text": found[key]})
                bar.advance(len(part))
    if not texts:
        raise UserError(f"{name} has transcribed nothing", str(problem), "try it on one file") from problem
    if lost := len(utts) - len(texts):
        log.warn(f"{name}: {lost} of {len(utts)} rows could not be transcribed ({problem})")
    return texts


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


def _transcribe(utts: Sequence[Utterance], run: Transcribe) -> tuple[dict[str, str], Exception | None]:
    """Row id -> text, and the last failure; after a failed call every row is tried by itself."""
    texts: dict[str, str] = {}
    wavs: dict[str, np.ndarray] = {}
    problem: Exception | None = None
    for utt in utts:
        try:
            wav = read(utt, RATE_HZ)
        except AudioError as error:
            problem = error
            continue
        if rms_dbfs(wav) < SILENT_DBFS:
            texts[utt.id] = ""
        else:
            wavs[utt.id] = wav
    answers = one_by_one(lambda keys: run([wavs[k] for k in keys], RATE_HZ), list(wavs))
    for key, answer in zip(wavs, answers, strict=True):
        if isinstance(answer, Exception):
            problem = answer
        else:
            texts[key] = answer
    return texts, problem
