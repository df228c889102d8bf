"""Clean speech, noise and impulse responses, and what is rendered of them: mixtures, and ladders of speech that gets worse.

Mixtures on disk are the same ones however often rendering is interrupted. Ladders are what a judge of quality is calibrated on: every
utterance goes down every ladder of ``data.degrade.ladders``. A row says which (``ladder``), how far (``rung``, 0 is untouched) and,
where noise was added, the ``snr_db``; ``clean_id`` names the utterance, ``target_filepath`` its untouched form. Rungs that sound the
same share a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rlspeech import log
from rlspeech.config_parts import ALL, Shard, conf
from rlspeech.corpora import folder
from rlspeech.corpora.base import Candidate, Layout, Rendered, Sets, dropped_row
from rlspeech.corpora.lips import draw_all
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.degrade import ladders
from rlspeech.data.manifest import from_row, to_row
from rlspeech.data.mixing import MixtureSet, mixture_rng
from rlspeech.files import JsonlWriter, safe_name, write_error
from rlspeech.parallel import parallel_map
from rlspeech.types import Utterance

MOUTHS = "draw a mouth that follows the speech: synthetic video"
Rows = Sequence[Utterance]
RATE_HZ = 16000  # of what is rendered
NAME = "mix_{:06d}"  # of a mixture
MIN_S = 1.0  # shorter utterances make no ladder


class Material(Layout):
    """Speech and noise that something is made of."""

    needed: ClassVar[tuple[str, ...]] = ("clean", "noise")
    clean: list[str] = conf([], "folder or manifest of clean speech; may be repeated")
    noise: list[str] = conf([], "folder or manifest of noise; may be repeated")
    rir: list[str] = conf([], "folder or manifest of impulse responses; may be repeated")
    render: int = conf(0, "write this many mixtures to disk; 0 writes a recipe that mixes on the fly", ge=0)
    render_s: float = conf(0.0, "length of rendered mixtures in seconds; 0 keeps whole utterances", ge=0)

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates in the splits ``clean``, ``noise`` and ``rir``, each from any number of folders and manifests."""
        for split, sources in (("clean", self.clean), ("noise", self.noise), ("rir", self.rir)):
            for source in sources:
                yield from folder.find(source, split, out)

    def mine(self, row: Candidate) -> bool:
        """Every shard that renders needs all of the material; ``prepare mix`` without ``--render`` may have checked it in shards."""
        return bool(self.render) or super().mine(row)

    def material(self, out: Path) -> Sets:
        """Return clean speech, noise and rooms. Raises ``UserError`` where no speech or no noise is left."""
        return self.vetted(self.find(out), out, splits=("clean", "noise"))


class Mix(Material):
    """``rlspeech prepare mix``."""

    name = "mix"
    mouths: bool = conf(False, MOUTHS)

    def make(self, out: Path) -> Sets:
        """Return speech, noise and rooms with a recipe, or the mixtures that are rendered of them."""
        sets = self.material(out)
        draw = partial(draw_all, out=out, seed=self.seed, workers=self.processes())

        def mixtures() -> Rendered:
            recipe = self.part.place(out) / "sources" / "mix.json"
            rows, failed = render(recipe, out, self.render, self.seed, self.render_s, self.processes(), self.part)
            rows, undrawn = draw(rows) if mouths else (rows, [])
            return rows, failed + undrawn

        mouths = self.mouths and not self.part.own  # they are drawn when shards are joined
        if self.render:
            sets.render = mixtures
        elif mouths:
            sets.rows["clean"], sets.failed = draw(sets.rows["clean"])
        return sets


class Ladder(Material):
    """``rlspeech prepare ladder``."""

    name = "ladder"
    render: int = conf(0, "number of utterances; 0 takes all", ge=0)
    render_s: float = conf(0.0, "longest stretch of an utterance in seconds; 0 keeps whole utterances", ge=0)

    def make(self, out: Path) -> Sets:
        """Return the speech and noise of the ladders, which are rendered of them."""
        sets = self.material(out)
        options: dict[str, Any] = {"count": self.render, "clip_s": self.render_s, "seed": self.seed}
        sets.render = partial(render_ladders, sets.rows["clean"], sets.rows["noise"], out, **options)
        return sets


def render_one(
    mixtures: MixtureSet, number: int, out: Path, name: str, clip_s: float = 0.0, snr_db: float | None = None
) -> Utterance:
    """Write mixture ``number`` as ``out/noisy/NAME.flac`` and ``out/clean/NAME.flac``; the same number is the same mixture everywhere.

    Args:
        number: which one; mixture ``n`` takes utterance ``n % len`` in epoch ``n // len``.
        name: stem of both files and id of the row.
        clip_s: length; 0 keeps whole utterances.
        snr_db: fixes the ratio instead of drawing it.

    Raises:
        AudioError: this utterance cannot be mixed.
    """
    epoch, index = divmod(number, len(mixtures))
    if snr_db is not None:
        mixtures = replace(mixtures, mixing=mixtures.mixing.model_copy(update={"snr_db": (snr_db, snr_db)}))
    made = mixtures.get(epoch, index, clip_s)
    utt = mixtures.clean[index]
    noisy, target = out / "noisy" / f"{name}.flac", out / "clean" / f"{name}.flac"
    save_audio(target, made.target, mixtures.sample_rate)
    save_audio(noisy, made.noisy, mixtures.sample_rate)
    whole = clip_s == 0  # a cut clip does not say the whole text, nor all of its keywords
    extra: dict[str, Any] = {**(utt.extra if whole else {}), "clean_id": utt.id, "noise_id": made.noise_id}
    if made.rir_id:
        extra["rir_id"] = made.rir_id
    if made.talker_id:
        extra["talker"] = True
    return Utterance(
        name,
        str(noisy),
        len(made.noisy) / mixtures.sample_rate,
        mixtures.sample_rate,
        text=utt.text if whole else None,
        target_filepath=str(target),
        lips_filepath=utt.lips_filepath if whole and not utt.offset else None,  # a stretch's would begin elsewhere
        speaker_id=utt.speaker_id,
        language=utt.language,
        snr_db=round(made.snr_db, 3),
        extra=extra,
    )


def render(recipe: Path, out: Path, count: int, seed: int, clip_s: float, workers: int, part: Shard = ALL) -> Rendered:
    """Write ``count`` mixtures of a recipe, or a shard's of them, below ``out/audio``; those finished by a former call are not made again.

    Returns rows, and for every mixture that could not be made a row with its reason.
    Raises ``UserError``: the disk does not take it; what was written stays and is continued by the same call.
    """
    stamp = _fingerprint(recipe, seed, clip_s)
    rows: dict[int, Utterance] = {}
    failed: list[dict[str, Any]] = []
    numbers = [n for n in range(count) if part.has(NAME.format(n))]
    with JsonlWriter(part.place(out) / "rendered.jsonl", "key") as journal:
        for number in numbers:
            old = journal.rows.get(f"{stamp}:{number}")
            if old and all((out / old[k]).is_file() for k in ("audio_filepath", "target_filepath")):
                rows[number] = from_row({k: v for k, v in old.items() if k != "key"}, out)
        if rows:
            log.say(f"{len(rows)} of {len(numbers)} mixtures were written before")
        work = partial(_render_number, recipe=str(recipe), out=out / "audio", seed=seed, clip_s=clip_s)
        todo = [n for n in numbers if n not in rows]
        try:
            for number, result in parallel_map(work, todo, workers, 300.0, "mixing" if todo else None, "mixtures"):
                if isinstance(result, OSError):
                    raise write_error(out, result, f"{len(rows)} of {len(numbers)} mixtures were kept") from result
                if isinstance(result, Exception):
                    detail = str(result) or type(result).__name__
                    failed.append(dropped_row("manifest", NAME.format(number), recipe, "cannot be mixed", detail))
                    continue
                rows[number] = result
                journal.write({"key": f"{stamp}:{number}"} | to_row(result, out))
        except KeyboardInterrupt:
            log.say(f"stopped: {len(rows)} of {len(numbers)} mixtures are written; the same command goes on from there")
            raise
    return [rows[n] for n in sorted(rows)], failed


def _fingerprint(recipe: Path, seed: int, clip_s: float) -> str:
    digest = hashlib.blake2b(f"{seed} {clip_s} {RATE_HZ}".encode(), digest_size=8)
    for name in (recipe.name, "clean.jsonl", "noise.jsonl", "rir.jsonl"):
        path = recipe.with_name(name)
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _mixtures(recipe: str, seed: int) -> MixtureSet:
    return MixtureSet.from_recipe(recipe, seed=seed, sample_rate=RATE_HZ)


def _render_number(number: int, recipe: str, out: Path, seed: int, clip_s: float) -> Utterance:
    return render_one(_mixtures(recipe, seed), number, out, NAME.format(number), clip_s)


# ------------------------------------------------------------------------------------------------------------- ladders


def render_ladders(clean: Rows, noise: Rows, out: Path, count: int = 0, clip_s: float = 0.0, seed: int = 0) -> Rendered:
    """Write the rungs below ``out/audio``; which speech and noise are taken, and all else, follows from the seed.

    Args:
        clean, noise: untouched speech, and recordings of noise, one of which is drawn for each utterance.
        count: utterances; 0 takes all.
        clip_s: longest stretch of an utterance; 0 keeps it whole.

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
                rows += _rungs(utt, noise, out, clip_s, seed)
            except AudioError as error:  # the next one takes its place
                path, reason = utt.audio_filepath, "cannot be degraded"
                failed.append(dropped_row("manifest", utt.id, path, reason, error.reason))
                continue
            except OSError as error:
                raise write_error(out, error, f"{used} of {count} utterances were kept") from error
            used += 1
            bar.advance()
    return rows, failed


def _rungs(utt: Utterance, noise: Rows, out: Path, clip_s: float, seed: int) -> list[Utterance]:
    """All rungs of one utterance."""
    rng = mixture_rng(seed, 0, utt.id)
    wav = load_audio(utt.audio_filepath, RATE_HZ, utt.offset, utt.duration)
    if len(wav) < MIN_S * RATE_HZ:
        raise AudioError(f"shorter than {MIN_S:g} s")
    whole = clip_s <= 0 or len(wav) <= clip_s * RATE_HZ
    if not whole:
        start = int(rng.integers(len(wav) - int(clip_s * RATE_HZ) + 1))
        wav = wav[start : start + int(clip_s * RATE_HZ)]
    source = noise[int(rng.integers(len(noise)))]
    sound = load_audio(source.audio_filepath, RATE_HZ, source.offset, source.duration)
    rungs = ladders(wav, sound, RATE_HZ, rng)
    sounds = {(r.ladder, r.rung): r.wav.tobytes() for r in rungs}
    files: dict[bytes, Path] = {}
    rows = []
    for rung in rungs:
        own, best = sounds[rung.ladder, rung.rung], sounds[rung.ladder, 0]
        name = safe_name(f"{utt.id}_{rung.ladder}_{rung.rung}")
        if own not in files:
            files[own] = out / "audio" / f"{name}.flac"
            save_audio(files[own], rung.wav, RATE_HZ)
        row = Utterance(name, str(files[own]), len(rung.wav) / RATE_HZ, RATE_HZ)
        row.text, row.target_filepath = utt.text if whole else None, str(files[best])
        row.speaker_id, row.language = utt.speaker_id, utt.language
        row.snr_db = None if rung.snr_db is None else round(float(rung.snr_db), 3)
        row.extra = {"ladder": rung.ladder, "rung": rung.rung, "clean_id": utt.id, "noise_id": source.id}
        rows.append(row)
    return rows
