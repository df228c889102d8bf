"""The embedded corpus: synthetic speech and noise in ``rlspeech/assets/demo``; see its README.

Nothing is written beside the package, which may be read-only. The recipe for training is used where it lies; test and validation
mixtures are rendered into a folder of the caller's or into the cache, once, and are the same everywhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from rlspeech.config import Mixing
from rlspeech.corpora.mix import render_one
from rlspeech.data.manifest import read_manifest, scan_manifest, write_manifest
from rlspeech.data.mixing import MixtureSet, write_recipe
from rlspeech.types import UserError

__all__ = ["cache_folder", "demo_folder", "demo_recipe", "demo_test", "demo_valid"]

COUNT = 24
SNR_DB = (-2.5, 12.5)
TRAIN = Mixing(snr_db=(-5.0, 15.0), level_dbfs=(-30.0, -20.0), reverb=0.0, clip_s=2.0)
PARTS = {"test": ("test_clean.jsonl", "test_noise.jsonl", 20261), "valid": ("valid_clean.jsonl", "noise.jsonl", 20262)}


def demo_folder() -> Path:
    """Where the embedded corpus lies. Raises ``UserError`` where the package came without it."""
    folder = Path(__file__).resolve().parent.parent / "assets" / "demo"
    if not (folder / "clean.jsonl").is_file():
        why = f"{folder} holds no clean.jsonl"
        raise UserError("the embedded corpus is missing", why, "install the package again, or name data of your own")
    return folder


def demo_recipe(out: str | Path | None = None) -> Path:
    """The training recipe over the embedded clips: ``mix.json`` of the package, or written to ``out`` with its manifests."""
    folder = demo_folder()
    if out is None:
        return folder / "mix.json"
    for name in ("clean", "noise"):
        rows = read_manifest(folder / f"{name}.jsonl")
        meta = {"source": "demo", "rows": len(rows), "hours": sum(u.duration for u in rows) / 3600}
        write_manifest(Path(out) / f"{name}.jsonl", rows, meta)
    return write_recipe(Path(out), TRAIN, rir=False)


def demo_test(out: str | Path | None = None) -> Path:
    """A paired manifest of test voices, texts and noises that training never hears: 24 mixtures, -2.5 to 12.5 dB.

    Args:
        out: folder for ``test.jsonl`` and its audio; by default the cache.
    """
    return _rendered("test", out)


def demo_valid(out: str | Path | None = None) -> Path:
    """The same for validation: voices and texts of neither training nor test, training's kinds of noise."""
    return _rendered("valid", out)


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
    return _temporary()


@lru_cache(maxsize=1)
def _temporary() -> Path:
    import atexit

    folder = tempfile.mkdtemp(prefix="rlspeech-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _rendered(part: str, out: str | Path | None) -> Path:
    if out is not None:
        return _render(part, Path(out))
    place = cache_folder() / f"demo-{part}-{_version()}"
    manifest = place / f"{part}.jsonl"
    if not _whole(manifest):
        shutil.rmtree(place, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".demo-{part}-", dir=place.parent))
        try:
            _render(part, work)
            os.replace(work, place)  # another process may have been faster; its folder holds the same
        except OSError:
            if not _whole(manifest):
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return manifest


def _whole(manifest: Path) -> bool:
    if not manifest.is_file():
        return False
    utts, problems = scan_manifest(manifest)
    return not problems and len(utts) == COUNT and all(Path(p).is_file() for u in utts for p in (u.audio_filepath, u.target_filepath or ""))


@lru_cache(maxsize=1)
def _version() -> str:
    """Changes with the corpus and with this file, so that a cache made by an older version is not taken for this one."""
    digest = hashlib.blake2b(digest_size=6)
    for path in (Path(__file__), *sorted(demo_folder().glob("*.jsonl")), *sorted(demo_folder().glob("*/*.flac"))):
        digest.update(path.name.encode() + (path.read_bytes() if path.suffix != ".flac" else str(path.stat().st_size).encode()))
    return digest.hexdigest()


def _render(part: str, out: Path) -> Path:
    clean, noise, seed = PARTS[part]
    folder = demo_folder()
    mixing = Mixing(snr_db=SNR_DB, level_dbfs=(-28.0, -22.0), reverb=0.0)
    mixtures = MixtureSet(read_manifest(folder / clean), read_manifest(folder / noise), [], mixing, 16000, seed)
    ratios = np.random.Generator(np.random.Philox(seed)).permutation(np.linspace(*SNR_DB, COUNT))  # even spread, in no order
    rows = [render_one(mixtures, n, out / "audio" / part, f"{part}_{n:02d}", snr_db=round(float(snr), 2)) for n, snr in enumerate(ratios)]
    meta = {"source": "demo", "rows": len(rows), "hours": sum(u.duration for u in rows) / 3600, "seed": seed, "mixing": mixing.model_dump()}
    write_manifest(out / f"{part}.jsonl", rows, meta)
    return out / f"{part}.jsonl"
