"""The embedded corpus for recognisers: digit strings and commands spoken by free synthesisers, with what makes a recogniser stumble.

Shipped is clean speech only (``rlspeech/assets/demo_commands``, see its README); voices and texts of train, valid and test differ.
Noise is that of the embedded corpus. From both are rendered, the same everywhere:

    clean      as it was spoken (test only)              noisy      in noise at 0 to 20 dB
    long       sentences of one voice one after the other, or one of them over and over
    silence, noise, music, cut, looped                   sound that tempts to invent words (``corpora/nonspeech.py``)
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from rlspeech.config import Mixing
from rlspeech.corpora import nonspeech
from rlspeech.corpora.demo import cached, demo_folder
from rlspeech.corpora.mix import render_one
from rlspeech.corpora.splice import write_joined
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.data.mixing import MixtureSet, mixture_rng
from rlspeech.types import UserError, Utterance

__all__ = ["commands_folder", "demo_commands", "demo_commands_clean"]

RATE = 16000
MIXING = Mixing(snr_db=(0.0, 20.0), level_dbfs=(-30.0, -20.0), reverb=0.0, clip_s=0.0)
GAP_S = (0.1, 0.5)
REPEATS = (3, 5)


class Part(NamedTuple):
    """How many clips of what a part holds."""

    noise: str
    clean: int
    noisy: int
    long: int
    tempting: int
    seed: int


PARTS = {
    "train": Part("noise.jsonl", 0, 120, 24, 6, 20263),
    "valid": Part("noise.jsonl", 0, 16, 4, 2, 20264),
    "test": Part("test_noise.jsonl", 40, 40, 16, 8, 20265),
}


def commands_folder() -> Path:
    """Where the clean speech lies. Raises ``UserError`` where the package came without it."""
    folder = Path(__file__).resolve().parent.parent / "assets" / "demo_commands"
    if not (folder / "train.jsonl").is_file():
        why = f"{folder} holds no train.jsonl"
        try_this = "reinstall the package, or name data of your own"
        raise UserError("the embedded speech for recognisers is missing", why, try_this)
    return folder


def demo_commands_clean(part: str) -> Path:
    """The shipped manifest of clean speech of ``train``, ``valid`` or ``test``."""
    return commands_folder() / f"{part}.jsonl"


def demo_commands(part: str, out: str | Path | None = None) -> Path:
    """The manifest of a part with its conditions, rendered below ``out`` or, once, into the cache.

    Rows have ``text`` ("" where nothing is said), ``keywords`` and ``condition``.
    """
    if out is not None:
        return _render(part, Path(out))
    name = f"commands-{part}-{_version()}"
    return cached(name, partial(_render, part), Path(f"{part}.jsonl"), count=None)  # some cuts cannot be made


@lru_cache(maxsize=1)
def _version() -> str:
    """Changes with the shipped speech and with this file."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6)
    for path in sorted(commands_folder().glob("*.jsonl")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _render(part: str, out: Path) -> Path:
    what, rows = PARTS[part], list[Utterance]()
    clean, noise = read_manifest(demo_commands_clean(part)), read_manifest(demo_folder() / what.noise)
    rows += [_named(utt, utt.id, "clean") for utt in clean[: what.clean]]
    mixtures = MixtureSet(clean, noise, [], MIXING, RATE, what.seed)
    for n in range(what.noisy):
        made = render_one(mixtures, n, out / "audio" / part, f"{part}_noisy_{n:03d}")
        rows.append(_named(made, made.id, "noisy"))
    rows += _long(part, clean, out, what)
    folder = out / "audio" / part / "tempting"
    tempting, _ = nonspeech.render(noise, clean, folder, count=what.tempting, seed=what.seed, max_s=12.0)
    rows += [_named(u, f"{part}_{u.id}", str(u.extra["condition"])) for u in tempting]
    meta = {"source": "demo commands", "rows": len(rows), "hours": sum(u.duration for u in rows) / 3600}
    write_manifest(out / f"{part}.jsonl", rows, meta | {"seed": what.seed})
    return out / f"{part}.jsonl"


def _long(part: str, clean: list[Utterance], out: Path, what: Part) -> list[Utterance]:
    """Every other one repeats one utterance, the rest are different ones of one voice."""
    rows = []
    for n in range(what.long):
        rng = mixture_rng(what.seed, n, "long")
        first = clean[int(rng.integers(len(clean)))]
        times = int(rng.integers(REPEATS[0], REPEATS[1] + 1))
        others = [u for u in clean if u.speaker_id == first.speaker_id and u.id != first.id]
        if n % 2 == 0:
            parts = [first] * times
        else:
            parts = [first, *(others[i] for i in rng.permutation(len(others))[: times - 1])]
        keywords = list(dict.fromkeys(k for u in parts for k in u.extra.get("keywords", ())))
        extra = {"condition": "long", "kind": "long", "keywords": keywords}
        path = out / "audio" / part / f"{part}_long_{n:03d}.flac"
        rows.append(write_joined(parts, path, gap_s=GAP_S, sample_rate=RATE, rng=rng, extra=extra))
    return rows


def _named(utt: Utterance, name: str, condition: str) -> Utterance:
    return replace(utt, id=name, target_filepath=None, extra={**utt.extra, "condition": condition})
