"""Ladders of held-out speech that gets worse in a known order, on disk: what a judge of quality is calibrated on.

Every utterance goes down every ladder of ``data.degrade.ladders``. A row says which (``ladder``), how far (``rung``, 0 is untouched) and,
where noise was added, the ``snr_db``; ``clean_id`` names the utterance, ``target_filepath`` its untouched form. Rungs that sound the same
share a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rlspeech import log
from rlspeech.corpora.base import Sets, dropped_row
from rlspeech.corpora.mix import Material, Rendered
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.degrade import ladders
from rlspeech.data.mixing import mixture_rng
from rlspeech.files import safe_name, write_error
from rlspeech.types import UserError, Utterance

__all__ = ["Ladder", "render"]

MIN_S = 1.0


class Ladder(Material):
    """``rlspeech prepare ladder``."""

    name = "ladder"
    render: int = Field(0, ge=0, description="number of utterances; 0 takes all")
    render_s: float = Field(
        0.0, ge=0, description="longest stretch of an utterance in seconds; 0 keeps whole utterances"
    )

    def make(self, out: Path) -> Sets:
        """Return the speech and noise of the ladders, which are rendered of them."""
        sets = self.material(out)
        clean, noise = sets.rows["clean"], sets.rows["noise"]
        options: dict[str, Any] = {"count": self.render, "clip_s": self.render_s, "seed": self.seed}
        sets.render = partial(render, clean, noise, out, **options)
        return sets


def render(
    clean: Sequence[Utterance],
    noise: Sequence[Utterance],
    out: Path,
    *,
    count: int = 0,
    clip_s: float = 0.0,
    seed: int = 0,
    sample_rate: int = 16000,
) -> Rendered:
    """Write the rungs below ``out/audio``; the same seed gives the same files.

    Args:
        clean: untouched speech; which of it is taken, and in which order, follows from the seed.
        noise: recordings of noise, one is drawn for each utterance.
        out: folder.
        count: utterances; 0 takes all.
        clip_s: longest stretch of an utterance; 0 keeps it whole.
        seed: decides everything.
        sample_rate: of the files, in Hz.

    Returns:
        rows, and for every utterance that could not be used a row with its reason.

    Raises:
        UserError: the disk does not take it.
    """
    shuffled = [clean[i] for i in np.random.default_rng(seed).permutation(len(clean))]
    count = count or len(shuffled)
    rows: list[Utterance] = []
    failed: list[dict[str, Any]] = []
    used = 0
    with log.progress(min(count, len(shuffled)), "degrading", "utterances") as bar:
        for utt in shuffled:
            if used == count:
                break
            try:
                rows += _one(utt, noise, out, clip_s, seed, sample_rate)
            except AudioError as error:  # the next one takes its place
                path, reason = utt.audio_filepath, "cannot be degraded"
                failed.append(dropped_row("manifest", utt.id, path, reason, error.reason))
                continue
            except OSError as error:
                raise write_error(out, error, f"{used} of {count} utterances were kept") from error
            used += 1
            bar.advance()
    return rows, failed


def _one(
    utt: Utterance, noise: Sequence[Utterance], out: Path, clip_s: float, seed: int, sample_rate: int
) -> list[Utterance]:
    """All rungs of one utterance."""
    rng = mixture_rng(seed, 0, utt.id)
    wav = load_audio(utt.audio_filepath, sample_rate, utt.offset, utt.duration or None)
    if len(wav) < MIN_S * sample_rate:
        raise AudioError(f"shorter than {MIN_S:g} s")
    whole = clip_s <= 0 or len(wav) <= clip_s * sample_rate
    if not whole:
        start = int(rng.integers(len(wav) - int(clip_s * sample_rate) + 1))
        wav = wav[start : start + int(clip_s * sample_rate)]
    source = noise[int(rng.integers(len(noise)))]
    sound = load_audio(source.audio_filepath, sample_rate, source.offset, source.duration or None)
    rungs = ladders(wav, sound, sample_rate, rng)
    digests = {(r.ladder, r.rung): _digest(r.wav) for r in rungs}
    if len(digests) != len(rungs) or any((r.ladder, 0) not in digests for r in rungs):
        raise UserError("the ladders are not in order", "a rung is missing or doubled")
    files: dict[str, Path] = {}
    rows = []
    for rung in rungs:
        digest, best = digests[rung.ladder, rung.rung], digests[rung.ladder, 0]
        name = safe_name(f"{utt.id}_{rung.ladder}_{rung.rung}")
        if digest not in files:
            files[digest] = out / "audio" / f"{name}.flac"
            save_audio(files[digest], rung.wav, sample_rate)
        row = Utterance(name, str(files[digest]), len(rung.wav) / sample_rate, sample_rate)
        row.text, row.target_filepath = utt.text if whole else None, str(files[best])
        row.speaker_id, row.language = utt.speaker_id, utt.language
        row.snr_db = None if rung.snr_db is None else round(float(rung.snr_db), 3)
        row.extra = {"ladder": rung.ladder, "rung": rung.rung, "clean_id": utt.id, "noise_id": source.id}
        rows.append(row)
    return rows


def _digest(wav: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(wav).data, digest_size=16).hexdigest()
