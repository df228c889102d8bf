"""Paired clips for training and for evaluation, from a paired manifest or from mixtures made on the fly."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlspeech import log
from rlspeech.config import Video
from rlspeech.config_parts import Mixing
from rlspeech.data.audio import AudioError, load_audio, mono
from rlspeech.data.manifest import find_manifest, holds_rows, read_manifest, recordings
from rlspeech.data.mixing import MixtureSet, cut, mixture_rng
from rlspeech.data.video import frames_at, load_lips
from rlspeech.types import Sample, UserError, Utterance

Keys = Sequence[str] | None  # names of waveforms; None: their positions
Videos = Sequence[np.ndarray | None] | None  # (F, H, W) uint8 at 25 frames a second each, or None


@dataclass(slots=True)
class Clip:
    """One noisy input (T,) and its target (T,) float32, with what is known about it.

    Binaural clips are (2, T). ``lips`` are (F, H, W) uint8 at 25 frames a second, frame 0 at sample 0, or None. ``place`` numbers the
    clips of a batch, which may hold an utterance twice.
    """

    key: str
    noisy: np.ndarray
    target: np.ndarray
    sample_rate: int
    text: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    lips: np.ndarray | None = None
    place: int = 0

    @property
    def draw(self) -> str:
        """What the noise of its rollouts hangs on: place and utterance, so that no two prompts share it, whichever process has them."""
        return f"{self.place}:{self.key}"

    def sample(self, wav: np.ndarray, sample_rate: int) -> Sample:
        """An output (T,) or (C, T) for this clip as a sample to score."""
        return Sample(self.key, mono(wav), sample_rate, mono(self.target), self.text, self.columns)


# unpacked crops of a small corpus stay in memory: unpacking costs more than a training step's share of it
_lips = lru_cache(maxsize=256)(load_lips)
Place = tuple[int, int, int]  # position of the cursor, epoch, index of the utterance
Cut = Clip | AudioError


class ClipSource(Protocol):
    """Anything that numbers its utterances (``utts``) and cuts a clip of one of them, at ``sample_rate`` Hz, for an epoch."""

    utts: list[Utterance]
    sample_rate: int

    def clip(self, epoch: int, index: int, clip_s: float) -> Clip:
        """The clip of utterance ``index``; ``clip_s`` 0 keeps it whole. Raises ``AudioError``."""


@dataclass
class PairedClips:
    """Rows with ``audio_filepath`` (noisy) and ``target_filepath`` (clean); ``channels`` 2 reads both ears."""

    utts: list[Utterance]
    sample_rate: int
    seed: int = 0
    channels: int = 1

    def clip(self, epoch: int, index: int, clip_s: float) -> Clip:
        """Read a pair and cut the same stretch out of both."""
        utt = self.utts[index]
        stretch, paths = (self.sample_rate, utt.offset, utt.duration), (utt.audio_filepath, str(utt.target_filepath))
        noisy, target = (load_audio(path, *stretch, channels=self.channels) for path in paths)
        length, gap = min(noisy.shape[-1], target.shape[-1]), abs(noisy.shape[-1] - target.shape[-1])
        if gap > 0.1 * self.sample_rate:
            raise AudioError(f"noisy and target differ by {gap / self.sample_rate:.2f} s")
        size = min(length, int(clip_s * self.sample_rate) or length)
        start = cut(np.arange(length), size, mixture_rng(self.seed, epoch, utt.id))[1]
        noisy, target = (wav[..., start : start + size].copy() for wav in (noisy, target))
        lips = lips_of(utt, start / self.sample_rate, noisy.shape[-1] / self.sample_rate)
        return Clip(utt.id, noisy, target, self.sample_rate, utt.text, columns_of(utt), lips)


@dataclass
class UnpairedClips:
    """Rows with ``audio_filepath`` alone, for a recogniser: the input is its own target."""

    utts: list[Utterance]
    sample_rate: int

    def clip(self, epoch: int, index: int, clip_s: float) -> Clip:
        """Read a recording; ``clip_s`` must be 0, a transcript belongs to the whole of it."""
        utt = self.utts[index]
        wav = load_audio(utt.audio_filepath, self.sample_rate, utt.offset, utt.duration)
        return Clip(utt.id, wav, wav, self.sample_rate, utt.text, columns_of(utt))


@dataclass
class MixedClips:
    """A mixture recipe, a new mixture of every utterance in every epoch."""

    mixtures: MixtureSet

    def __post_init__(self) -> None:
        self.utts, self.sample_rate = self.mixtures.clean, self.mixtures.sample_rate

    def clip(self, epoch: int, index: int, clip_s: float) -> Clip:
        """Mix utterance ``index`` for ``epoch``."""
        utt, made = self.utts[index], self.mixtures.get(epoch, index, clip_s)
        lips = lips_of(utt, made.start_s, len(made.noisy) / self.sample_rate)
        columns = {**columns_of(utt), "snr_db": made.snr_db, "noise": made.noise_id}
        return Clip(utt.id, made.noisy, made.target, self.sample_rate, utt.text, columns, lips)


def columns_of(utt: Utterance) -> dict[str, Any]:
    """The columns that rewards get of an utterance beside its sound and its text."""
    names = ("snr_db", "duration", "language", "speaker_id", "prompt_filepath", "prompt_text")
    known = {name: getattr(utt, name) for name in names}
    if utt.prompt_filepath and utt.prompt_filepath == utt.audio_filepath:
        del known["duration"]  # a text without a recording is of unknown length
    return {**{k: v for k, v in known.items() if v is not None or k == "snr_db"}, **utt.extra}


def lips_of(utt: Utterance, start_s: float, duration_s: float) -> np.ndarray | None:
    """The mouth crops (F, H, W) of a stretch of an utterance, None where it has none. Raises ``LipsError``."""
    return frames_at(_lips(utt.lips_filepath), utt.offset + start_s, duration_s) if utt.lips_filepath else None


def open_clips(
    path: str | Path, rate: int, *, mixing: Mixing | None = None, seed: int = 0, channels: int = 1, paired: bool = True
) -> ClipSource:
    """Open a paired manifest, a mixture recipe, or a folder that holds one, at ``rate`` Hz; with ``paired`` False rows need no target.

    With ``channels`` 2 clips of a paired manifest are (2, T); mixtures made on the fly are always mono.

    Raises ``UserError``: no such thing, or rows without a target.
    """
    found = find_manifest(path)
    if found.suffix == ".json" and not holds_rows(found):
        return MixedClips(MixtureSet.from_recipe(found, mixing=mixing, sample_rate=rate, seed=seed))
    utts = read_manifest(found)
    if not paired:
        return UnpairedClips(utts, rate)
    lonely = [u.id for u in utts if not u.target_filepath]
    if lonely:
        what = f"{found}: {len(lonely)} of {len(utts)} rows have no target_filepath"
        raise UserError(what, f"the first is {lonely[0]!r}", "rlspeech prepare mix, or rlspeech prepare pairs")
    return PairedClips(utts, rate, seed, channels)


def seed_of(*parts: object) -> int:
    """A 31-bit seed from anything printable, the same on every machine."""
    return zlib.crc32(":".join(map(str, parts)).encode()) & 0x7FFFFFFF


def order(durations_s: list[float], epoch: int, seed: int, batch: int, bucketed: bool) -> np.ndarray:
    """The order of an epoch's utterances.

    ``bucketed`` sorts within stretches of 50 batches, so that whole utterances of like length share a batch and little is padding.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(durations_s))
    if not bucketed:
        return shuffled
    parts = np.array_split(shuffled, max(1, len(shuffled) // (50 * batch)))
    stretches = [part[np.argsort(np.asarray(durations_s)[part], kind="stable")] for part in parts]
    groups = [stretch[i : i + batch] for stretch in stretches for i in range(0, len(stretch), batch)]
    # a short group would shift those behind it
    full, rest = [g for g in groups if len(g) == batch], [g for g in groups if len(g) < batch]
    return np.concatenate([*(full[i] for i in rng.permutation(len(full))), *rest])


def batches(
    source: ClipSource,
    batch: int,
    clip_s: float,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    bucketed: bool = True,
) -> Iterator[tuple[list[Clip], int]]:
    """Endless batches, each with the cursor behind it; a run that starts from a cursor gets what it would have got.

    An utterance that cannot be used is passed over with the next one in its place; a whole epoch without one raises ``UserError``.

    Args:
        batch: clips a batch and process.
        start: cursor of this process: utterances already passed.
        rank, world: this process's share: every ``world``-th clip.
        workers: threads that load and mix ahead (decoding, resampling and convolution let go of Python's lock); the order stays.
        bucketed: whole utterances of like length share a batch.
    """
    failures, held = 0, list[Clip]()
    walk = _walk(source, batch * world, bucketed and clip_s <= 0, seed, start * world + rank, world)
    for position, made in _ahead(source, walk, clip_s, workers):
        if isinstance(made, Clip):
            held.append(replace(made, place=len(held)))
            failures = 0
        elif (failures := failures + 1) > len(source.utts):
            why, try_this = f"the last one: {made.reason}", "rlspeech check on the manifest"
            raise UserError("none of the utterances can be used", why, try_this)
        if len(held) == batch:
            yield held, (position + world) // world
            held = []


def _walk(source: ClipSource, batch: int, bucketed: bool, seed: int, position: int, step: int) -> Iterator[Place]:
    """Endless (position, epoch, index)."""
    durations = [u.duration for u in source.utts]
    epoch, sequence = -1, np.empty(0, dtype=int)
    while True:
        if position // len(durations) != epoch:
            epoch = position // len(durations)
            sequence = order(durations, epoch, seed, batch, bucketed)
        yield position, epoch, int(sequence[position % len(durations)])
        position += step


def _ahead(source: ClipSource, walk: Iterator[Place], clip_s: float, workers: int) -> Iterator[tuple[int, Cut]]:
    """Cut the clips of a walk, in its order, up to a few ahead of who asks."""

    def made(epoch: int, index: int) -> Cut:
        try:
            return source.clip(epoch, index, clip_s)
        except AudioError as error:
            return AudioError(f"{source.utts[index].id}: {error.reason}")

    if workers == 0:
        for position, epoch, index in walk:
            yield position, made(epoch, index)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[Cut]]] = deque()
        for position, epoch, index in walk:
            waiting.append((position, pool.submit(made, epoch, index)))
            if len(waiting) > 8 * workers:
                first, future = waiting.popleft()
                yield first, future.result()


def hold_back(source: ClipSource, items: int) -> tuple[ClipSource, ClipSource]:
    """Split by utterance id, so that the same utterances are held back however the data is ordered or grown.

    Returns the rest, and ``items`` utterances (at most a fifth of all).
    """
    ranked = sorted(source.utts, key=lambda u: seed_of("hold", u.id))
    held = {u.id for u in ranked[: min(items, len(ranked) // 5)]}
    kept, others = ([u for u in source.utts if (u.id in held) == back] for back in (False, True))
    return with_utts(source, kept), with_utts(source, others)


def bounded(lengths: Sequence[int], most: int | None) -> list[int]:
    """How many rows of these lengths go together, in order: at most ``most`` numbers when padded, or one row that has more."""
    if most is None:
        return [len(lengths)]
    counts, longest = [0], 0
    for length in lengths:
        longest = max(longest, length)
        if counts[-1] and longest * (counts[-1] + 1) > most:
            counts.append(0)
            longest = length
        counts[-1] += 1
    return counts


def with_utts(source: ClipSource, utts: list[Utterance]) -> ClipSource:
    """A copy of the source with these utterances alone."""
    if isinstance(source, MixedClips):
        return MixedClips(replace(source.mixtures, clean=utts))
    return replace(source, utts=utts)  # type: ignore[type-var]


def recorded_clips(source: ClipSource, name: str) -> ClipSource:
    """Return the rows that are recordings of their texts, and warn of those left out. Raises ``UserError`` where there are none."""
    kept = recordings(source.utts, name)
    if (left := len(source.utts) - len(kept)) == 0:
        return source
    log.warn(f"{name}: {left} of {len(source.utts)} rows are left out: their texts have not been recorded")
    return with_utts(source, kept)


def transcribed_clips(source: ClipSource, name: str, max_s: float | None) -> ClipSource:
    """The rows that have a text (an empty one stands for silence) and take at most ``max_s`` seconds; warns of those left out.

    Raises:
        UserError: there is none.
    """
    texts = [u for u in source.utts if u.text is not None]
    short = [u for u in texts if max_s is None or u.duration <= max_s]
    silent, long = len(source.utts) - len(texts), len(texts) - len(short)
    reasons = [f"{silent} have no text"] if silent else []
    why = "; ".join([*reasons, f"{long} are longer than the model's {max_s:g} s"] if long else reasons)
    if not short:
        what = f"none of the {len(source.utts)} rows of {name} can be used"
        raise UserError(what, why, "rlspeech check on the manifest")
    if why:
        log.warn(f"{name}: {len(source.utts) - len(short)} of {len(source.utts)} rows are left out: {why}")
    return with_utts(source, short)


def with_video(clips: list[Clip], video: Video) -> list[Clip]:
    """The clips with the videos that a run lets them have: their own, each the one before's in the list, or none.

    Raises:
        UserError: there is no other clip to take a video from.
    """
    if video == "right":
        return clips
    if video == "shuffled" and len(clips) < 2:
        why = "video=shuffled with a single prompt or validation clip"
        raise UserError("one clip cannot have another one's video", why, "--set prompts_per_step=2 --set valid_items=2")
    return [replace(c, lips=None if video == "none" else clips[i - 1].lips) for i, c in enumerate(clips)]


def whole_clips(source: ClipSource, items: int, max_s: float = 8.0) -> list[Clip]:
    """Up to ``items`` utterances spread over the source, at most ``max_s`` long; the same ones every time."""
    count = len(source.utts)
    if not count:
        return []
    clips = []
    for index in np.unique(np.linspace(0, count - 1, min(items, count)).astype(int)):
        try:
            long = source.utts[index].duration > max_s
            clips.append(source.clip(0, int(index), max_s if long else 0.0))
        except AudioError:
            continue  # reported by prepare and check; validation goes on without it
    return clips
