"""Clean speech, noise and impulse responses for mixtures; and mixtures written to disk, the same ones however often it is interrupted."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from rlspeech import log
from rlspeech.corpora import folder
from rlspeech.corpora.base import Candidate, Layout, Sets, dropped_row
from rlspeech.corpora.drawn import draw_all
from rlspeech.data.audio import AudioError, save_audio
from rlspeech.data.manifest import from_row, to_row
from rlspeech.data.mixing import MixtureSet
from rlspeech.files import JsonlWriter, write_error
from rlspeech.parallel import parallel_map
from rlspeech.types import Utterance

__all__ = ["MOUTHS", "Material", "Mix", "find", "render", "render_one"]

MOUTHS = "draw a mouth that follows the speech: synthetic video"
Rendered = tuple[list[Utterance], list[dict[str, Any]]]  # rows, and what could not be made


class Material(Layout):
    """Speech and noise that something is made of."""

    needed: ClassVar[tuple[str, ...]] = ("clean", "noise")
    clean: list[str] = Field([], description="folder or manifest of clean speech; may be repeated")
    noise: list[str] = Field([], description="folder or manifest of noise; may be repeated")
    rir: list[str] = Field([], description="folder or manifest of impulse responses; may be repeated")
    render: int = Field(
        0, ge=0, description="write this many mixtures to disk; 0 writes a recipe that mixes on the fly"
    )
    render_s: float = Field(0.0, ge=0, description="length of rendered mixtures in seconds; 0 keeps whole utterances")

    def material(self, out: Path) -> Sets:
        """Return clean speech, noise and rooms. Raises ``UserError`` where no speech or no noise is left."""
        rows = find(self.clean, self.noise, self.rir, out)
        return self.vetted(rows, out, splits=("clean", "noise"))


class Mix(Material):
    """``rlspeech prepare mix``."""

    name = "mix"
    mouths: bool = Field(False, description=MOUTHS)

    def make(self, out: Path) -> Sets:
        """Return speech, noise and rooms with a recipe, or the mixtures that are rendered of them."""
        sets = self.material(out)
        draw = partial(draw_all, out=out, seed=self.seed, workers=self.processes())

        def mixtures() -> Rendered:
            options: dict[str, Any] = {"seed": self.seed, "clip_s": self.render_s, "workers": self.processes()}
            rows, failed = render(out / "sources" / "mix.json", out, self.render, **options)
            rows, undrawn = draw(rows) if self.mouths else (rows, [])
            return rows, failed + undrawn

        if self.render:
            sets.render = mixtures
        elif self.mouths:
            sets.rows["clean"], sets.failed = draw(sets.rows["clean"])
        return sets


def find(
    clean: Sequence[str | Path], noise: Sequence[str | Path], rir: Sequence[str | Path] = (), skip: Path | None = None
) -> Iterator[Candidate]:
    """Candidates in the splits ``clean``, ``noise`` and ``rir``, each from any number of folders and manifests."""
    for split, sources in (("clean", clean), ("noise", noise), ("rir", rir)):
        for source in sources:
            yield from folder.find(source, split, skip)


def render_one(
    mixtures: MixtureSet, number: int, out: Path, name: str, clip_s: float = 0.0, snr_db: float | None = None
) -> Utterance:
    """Write mixture ``number`` as ``out/noisy/NAME.flac`` and ``out/clean/NAME.flac``; the same number is the same mixture everywhere.

    Args:
        mixtures: what to mix; mixture ``n`` takes utterance ``n % len`` in epoch ``n // len``.
        number: which one.
        out: folder for audio.
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


def render(
    recipe: Path,
    out: Path,
    count: int,
    *,
    seed: int = 0,
    clip_s: float = 0.0,
    workers: int = 0,
    sample_rate: int = 16000,
) -> Rendered:
    """Write ``count`` mixtures of a recipe below ``out/audio``; those finished by a former call are not made again.

    Returns:
        rows, and for every mixture that could not be made a row with its reason.

    Raises:
        UserError: the disk does not take it; what was written stays and is continued by the same call.
    """
    stamp = _fingerprint(recipe, seed, clip_s, sample_rate)
    rows: dict[int, Utterance] = {}
    failed: list[dict[str, Any]] = []
    with JsonlWriter(out / "rendered.jsonl", "key") as journal:
        for number in range(count):
            old = journal.rows.get(f"{stamp}:{number}")
            if old and all((out / old[k]).is_file() for k in ("audio_filepath", "target_filepath")):
                rows[number] = from_row({k: v for k, v in old.items() if k != "key"}, out)
        if rows:
            log.say(f"{len(rows)} of {count} mixtures were written before")
        options: dict[str, Any] = {"seed": seed, "clip_s": clip_s, "sample_rate": sample_rate}
        work = partial(_render_number, recipe=str(recipe), out=str(out / "audio"), **options)
        todo = [n for n in range(count) if n not in rows]
        try:
            for number, result in parallel_map(work, todo, workers, 300.0, "mixing" if todo else None, "mixtures"):
                if isinstance(result, OSError):
                    raise write_error(out, result, f"{len(rows)} of {count} mixtures were kept") from result
                if isinstance(result, Exception):
                    detail = str(result) or type(result).__name__
                    failed.append(dropped_row("manifest", _name(number), recipe, "cannot be mixed", detail))
                    continue
                rows[number] = result
                journal.write({"key": f"{stamp}:{number}"} | to_row(result, out))
        except KeyboardInterrupt:
            log.say(f"stopped: {len(rows)} of {count} mixtures are written; the same command goes on from there")
            raise
    return [rows[n] for n in sorted(rows)], failed


def _name(number: int) -> str:
    return f"mix_{number:06d}"


def _fingerprint(recipe: Path, seed: int, clip_s: float, sample_rate: int) -> str:
    digest = hashlib.blake2b(f"{seed} {clip_s} {sample_rate}".encode(), digest_size=8)
    for name in (recipe.name, "clean.jsonl", "noise.jsonl", "rir.jsonl"):
        path = recipe.with_name(name)
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _mixtures(recipe: str, seed: int, sample_rate: int) -> MixtureSet:
    return MixtureSet.from_recipe(recipe, seed=seed, sample_rate=sample_rate)


def _render_number(number: int, recipe: str, out: str, seed: int, clip_s: float, sample_rate: int) -> Utterance:
    import soundfile as sf

    try:
        return render_one(_mixtures(recipe, seed, sample_rate), number, Path(out), _name(number), clip_s)
    except AudioError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error)) from None
    except (
        sf.LibsndfileError,
        AssertionError,
    ):  # it does not pass the reason on; reading errors are AudioErrors by now
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
