"""The embedded corpora: synthetic speech and noise, and spoken digits and commands for recognisers; see the READMEs in their folders.

Nothing is written beside the package, which may be read-only. The recipe for training (``rlspeech/assets/demo``) is used where it lies;
test and validation mixtures are rendered into a folder of the caller's or into the cache, once, and are the same everywhere.

For recognisers (``rlspeech/assets/demo_commands``) clean speech of free synthesisers is shipped; voices and texts of train, valid and
test differ. From it and from the other corpus' noise are rendered:

    clean      as it was spoken (test only)              noisy      in noise at 0 to 20 dB
    long       sentences of one voice one after the other, or one of them over and over
    silence, noise, music, cut, looped                   sound that tempts to invent words (``corpora/nonspeech.py``)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from rlspeech.config_parts import Mixing, conf
from rlspeech.corpora import nonspeech
from rlspeech.corpora.base import Layout, Sets, shown
from rlspeech.corpora.join import write_joined
from rlspeech.corpora.lips import draw_all
from rlspeech.corpora.mix import MOUTHS, render_one
from rlspeech.data.manifest import read_manifest, scan_manifest, write_manifest
from rlspeech.data.mixing import MixtureSet, mixture_rng, write_recipe
from rlspeech.types import UserError, Utterance

ASSETS = Path(__file__).resolve().parent.parent / "assets"
RATE = 16000
COUNT = 24
SNR_DB = (-2.5, 12.5)
TRAIN = Mixing(snr_db=(-5.0, 15.0), level_dbfs=(-30.0, -20.0), reverb=0.0, clip_s=2.0)
FACES = {"snr_db": (0.0, 20.0), "talker": 0.7, "talker_snr_db": (-5.0, 5.0)}  # with a face: a voice among voices
PARTS = {"test": ("test_clean.jsonl", "test_noise.jsonl", 20261), "valid": ("valid_clean.jsonl", "noise.jsonl", 20262)}

COMMANDS_MIXING = Mixing(snr_db=(0.0, 20.0), level_dbfs=(-30.0, -20.0), reverb=0.0, clip_s=0.0)
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


COMMANDS = {
    "train": Part("noise.jsonl", 0, 120, 24, 6, 20263),
    "valid": Part("noise.jsonl", 0, 16, 4, 2, 20264),
    "test": Part("test_noise.jsonl", 40, 40, 16, 8, 20265),
}


class Demo(Layout):
    """``rlspeech prepare demo``."""

    name = "demo"
    needed: ClassVar[tuple[str, ...]] = ()
    mouths: bool = conf(False, MOUTHS)
    commands: bool = conf(False, "spoken digits and commands with transcripts, for recognition")

    def make(self, out: Path) -> Sets:
        """Return the embedded corpus, which is written as it is made."""
        following = None
        if self.commands:
            paths = [demo_commands(part, out) for part in ("train", "valid", "test")]
            following = f"rlspeech rl --task asr --data {shown(out)}/train.jsonl --valid {shown(out)}/valid.jsonl"
        else:
            demo_recipe(out, faces=self.mouths)
            rendered = (demo_valid(out, faces=self.mouths), demo_test(out, faces=self.mouths))
            paths = [out / "clean.jsonl", out / "noise.jsonl", *rendered]
        rows = {path.stem: read_manifest(path) for path in paths}
        facts = {"checked": 0, "known": 0, "multichannel": 0}
        mixing = None if self.commands else TRAIN
        return Sets(rows, facts=facts, following=following, mixing=mixing, written=True)


def demo_folder() -> Path:
    """Where the embedded corpus lies. Raises ``UserError`` where the package came without it."""
    return _asset("demo", "clean.jsonl")


def _asset(name: str, needed: str) -> Path:
    folder = ASSETS / name
    if not (folder / needed).is_file():
        try_this = "reinstall the package, or name data of your own"
        raise UserError("an embedded corpus is missing", f"{folder} holds no {needed}", try_this)
    return folder


def demo_recipe(out: str | Path | None = None, *, faces: bool = False) -> Path:
    """The training recipe over the embedded clips: ``mix.json`` of the package, or written to ``out`` with its manifests.

    Args:
        out: folder for the recipe; by default the package's, or the cache.
        faces: every utterance gets a drawn mouth that follows it (``corpora/lips.py``: synthetic, as the voices are), and most mixtures a
            competing talker, whom only the mouth tells from the target.
    """
    if out is None:
        return cached("faces", _faces, demo_folder() / "mix.json") if faces else demo_folder() / "mix.json"
    return _faces(Path(out)) if faces else _plain(Path(out))


def demo_test(out: str | Path | None = None, *, faces: bool = False) -> Path:
    """A paired manifest of test voices, texts and noises that are not in training: 24 mixtures, -2.5 to 12.5 dB; see ``demo_recipe``."""
    return _rendered("test", out, faces)


def demo_valid(out: str | Path | None = None, *, faces: bool = False) -> Path:
    """Render the validation set: voices and texts of neither training nor test, training's kinds of noise."""
    return _rendered("valid", out, faces)


def _plain(out: Path) -> Path:
    for name in ("clean", "noise"):
        rows = read_manifest(demo_folder() / f"{name}.jsonl")
        meta = {"source": "demo", "rows": len(rows), "hours": sum(u.duration for u in rows) / 3600}
        write_manifest(out / f"{name}.jsonl", rows, meta)
    return write_recipe(out, TRAIN, rir=False)


def _faces(out: Path) -> Path:
    _plain(out)
    rows, dropped = draw_all(read_manifest(out / "clean.jsonl"), out)
    meta = {"source": "demo", "video": "drawn", "rows": len(rows), "dropped": len(dropped)}
    write_manifest(out / "clean.jsonl", rows, meta)
    return write_recipe(out, TRAIN.model_copy(update=FACES), rir=False)


def cache_folder() -> Path:
    """A folder that can be written: ``RLSPEECH_CACHE``, else ``rlspeech`` in the user's cache, else a temporary one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for place in (os.environ.get("RLSPEECH_CACHE"), os.path.join(home, "rlspeech")):
        if not place:
            continue
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return Path(place).absolute()
        except OSError:
            continue
    return Path(_temporary().name)


@lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rlspeech-", ignore_cleanup_errors=True)  # removed when Python ends


def _rendered(part: str, out: str | Path | None, faces: bool) -> Path:
    render = partial(_render, part, faces=faces)
    if out is not None:
        return render(Path(out))
    return cached(f"{part}-faces" if faces else part, render, Path(f"{part}.jsonl"))


def cached(name: str, make: Callable[[Path], Path], result: Path, count: int | None = COUNT) -> Path:
    """What ``make`` writes into a folder, kept in the cache; ``result`` names its file."""
    place = cache_folder() / f"demo-{name}-{_version()}"
    made = place / result.name
    if not _whole(made, count):
        shutil.rmtree(place, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".demo-{name}-", dir=place.parent))
        try:
            make(work)
            os.replace(work, place)  # another process may have been faster; its folder holds the same
        except OSError:
            if not _whole(made, count):
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return made


def _whole(made: Path, count: int | None = COUNT) -> bool:
    """True where a manifest (of ``count`` rows, where that is known), or a recipe's speech, is complete with all its files."""
    recipe = made.suffix == ".json"
    manifest = made.parent / "clean.jsonl" if recipe else made
    if not made.is_file() or not manifest.is_file():
        return False
    utts, problems = scan_manifest(manifest)
    files = [p for u in utts for p in (u.audio_filepath, u.target_filepath, u.lips_filepath) if p]
    full = bool(utts) and (recipe or count in (None, len(utts)))
    return full and not problems and all(Path(p).is_file() for p in files)


@lru_cache(maxsize=1)
def _version() -> str:
    """Changes with the corpora and with this file, so that a cache made by an older version is not taken for this one."""
    digest = hashlib.blake2b(b"levels about the mean", digest_size=6)
    code = Path(__file__), Path(__file__).with_name("lips.py")
    for path in (*code, *sorted(ASSETS.glob("demo*/*.jsonl")), *sorted(demo_folder().glob("*/*.flac"))):
        content = path.read_bytes() if path.suffix != ".flac" else str(path.stat().st_size).encode()
        digest.update(path.name.encode() + content)
    return digest.hexdigest()


def _render(part: str, out: Path, faces: bool = False) -> Path:
    clean, noise, seed = PARTS[part]
    folder = demo_folder()
    mixing = Mixing(snr_db=SNR_DB, level_dbfs=(-28.0, -22.0), reverb=0.0)
    if faces:
        mixing = mixing.model_copy(update={**FACES, "talker": 1.0})
    mixtures = MixtureSet(read_manifest(folder / clean), read_manifest(folder / noise), [], mixing, RATE, seed)
    ratios = np.random.Generator(np.random.Philox(seed)).permutation(np.linspace(*mixing.snr_db, COUNT))
    snrs_db, place = [round(float(ratio), 2) for ratio in ratios], out / "audio" / part
    rows = [render_one(mixtures, n, place, f"{part}_{n:02d}", snr_db=snr) for n, snr in enumerate(snrs_db)]
    if faces:
        rows, _ = draw_all(rows, out, seed=seed)
    meta = {"source": "demo", "rows": len(rows), "hours": sum(u.duration for u in rows) / 3600, "seed": seed}
    meta |= {"mixing": mixing.model_dump()} | ({"video": "drawn"} if faces else {})
    write_manifest(out / f"{part}.jsonl", rows, meta)
    return out / f"{part}.jsonl"


# --------------------------------------------------------------------------------------------------- for recognisers


def demo_commands_clean(part: str) -> Path:
    """The shipped manifest of clean speech of ``train``, ``valid`` or ``test``."""
    return _asset("demo_commands", "train.jsonl") / f"{part}.jsonl"


def demo_commands(part: str, out: str | Path | None = None) -> Path:
    """The manifest of a part with its conditions, rendered below ``out`` or, once, into the cache.

    Rows have ``text`` ("" where nothing is said), ``keywords`` and ``condition``.
    """
    if out is not None:
        return _render_commands(part, Path(out))
    render = partial(_render_commands, part)
    return cached(f"commands-{part}", render, Path(f"{part}.jsonl"), count=None)  # some cuts cannot be made


def _render_commands(part: str, out: Path) -> Path:
    what, rows = COMMANDS[part], list[Utterance]()
    clean, noise = read_manifest(demo_commands_clean(part)), read_manifest(demo_folder() / what.noise)
    rows += [_named(utt, utt.id, "clean") for utt in clean[: what.clean]]
    mixtures = MixtureSet(clean, noise, [], COMMANDS_MIXING, RATE, what.seed)
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
