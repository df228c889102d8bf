"""What a file says of itself, measured in one pass over its samples, and the limits that it is judged by.

``measure`` reads and never judges; ``judge`` judges and never reads. So measurements can be kept in a journal, and other limits can be
tried without touching the audio again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlspeech.config_parts import Decibels, Positive, Strict, Whole, conf
from rlspeech.data.audio import NOTHING_DBFS, loudest_dbfs, silence
from rlspeech.data.decode import AudioError, Reader, open_audio
from rlspeech.data.tars import state_of
from rlspeech.types import Utterance

BLOCK_S = 60  # long recordings are read in pieces of this length
FULL_SCALE = 0.999  # samples from here on count as clipped
FLAT_RUN = 3  # so do equal samples at the block's peak, this many in a row: clipped first, scaled down later
SPECTRUM_S = 0.032
PCM16_NOISE_DB = -101.1  # power of 16-bit rounding noise: 10 log10(2 ** -30 / 12), 0 dB being a full-scale square wave
CLIFF_DB, CLIFF_GAP = 40.0, 1.2  # height of the cliff, and how far above its edge the empty side begins


class Limits(Strict):
    """What is dropped. Speech is held to more than noise and rooms, which may be short, clipped or narrow by nature."""

    min_s: float = conf(0.3, "shorter recordings are dropped (impulse responses excepted)", ge=0)
    max_s: Positive | None = conf(None, "longer recordings are dropped; null keeps all")
    min_rate_hz: Whole = conf(16000, "recordings at a lower rate are dropped")
    length_tolerance_s: float = conf(0.1, "between header, manifest and samples, and between the files of a pair", ge=0)
    silence_speech_dbfs: Decibels = conf(NOTHING_DBFS, "speech whose loudest 0.1 s lies below this is silent")
    silence_other_dbfs: Decibels = conf(NOTHING_DBFS, "the same for noise, noisy recordings and impulse responses")
    clipped_speech: float = conf(0.001, "largest share of clipped samples in clean speech", ge=0, le=1)
    clipped_other: float = conf(0.02, "the same in noise, noisy recordings and impulse responses", ge=0, le=1)
    bandwidth: float = conf(
        0.6,
        "clean speech must fill this share of the band that its rate claims: "
        "half, and the width of a filter's edge; a 48 kHz file with 16 kHz speech inside fills a third",
        ge=0,
        le=1,
    )
    pause_db: float = conf(
        0.0,
        "clean speech whose pauses lie less than this below its loud parts is dropped: a noisy target; 0: none",
        ge=0,
    )
    bandwidth_floor_db: Decibels = conf(
        -75.0, "a frequency is filled when its power lies above this, relative to the strongest"
    )


@dataclass(slots=True)
class FileFacts:
    """Measurements of one file. ``error`` is set where it could not be read to its end; the others are then partial."""

    error: str | None = None
    duration: float = 0.0
    header_s: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    active_dbfs: float = -200.0
    peak: float = 0.0
    clipped: float = 0.0
    bandwidth_hz: float = 0.0
    pause_db: float = 0.0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a file is dropped: a word to count by, and the figures."""

    reason: str
    detail: str


def file_stamp(path: str) -> str | None:
    """A file's path, size and time of change, for what is measured once; None where it is missing."""
    try:
        size, changed = state_of(path)
    except (OSError, ValueError):
        return None
    return f"{path}|{size}|{changed}"


def measure(path: str | Path, floor_db: float = -75.0) -> FileFacts:
    """Read a file once and measure it; never raises for a bad file.

    ``floor_db`` is the power, relative to the strongest frequency, above which a frequency counts as filled.
    """
    facts = FileFacts()
    try:
        with open_audio(path) as file:
            facts.sample_rate, facts.channels = file.samplerate, file.channels
            _measure_samples(facts, _blocks(file), floor_db)
            facts.header_s = file.promised_s
            if not facts.error and (remark := file.remark()) and facts.header_s <= facts.duration:
                facts.error = remark
    except AudioError as error:
        facts.error = error.reason
    except MemoryError:
        facts.error = "unreadable: its header asks for more memory than there is"
    return facts


def _blocks(file: Reader) -> Iterator[np.ndarray]:
    samples = max(file.samplerate, min(BLOCK_S * file.samplerate, 2**23 // file.channels))
    while len(block := file.read(samples)):
        yield block


def _measure_samples(facts: FileFacts, blocks: Iterator[np.ndarray], floor_db: float) -> None:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(struct.pack("<II", facts.sample_rate, facts.channels))
    rate, frames, clipped = facts.sample_rate, 0, 0
    width = max(16, int(SPECTRUM_S * rate))
    spectrum, windows, levels = np.zeros(width // 2 + 1), 0, [np.zeros(0, np.float32)]
    for block in blocks:
        digest.update(np.ascontiguousarray(block).tobytes())
        mono = block.mean(axis=1)
        frames += len(mono)
        facts.duration = frames / rate
        if not np.isfinite(mono).all():
            facts.error = "NaN or infinite samples"
            return
        facts.peak = max(facts.peak, float(np.abs(block).max()))
        clipped += int(_clipped(block).sum())
        facts.active_dbfs = max(facts.active_dbfs, loudest_dbfs(mono, rate))
        power, count = _spectrum(mono, width)
        spectrum, windows = spectrum + power, windows + count
        levels.append(_frame_dbfs(mono, rate))
    if frames == 0:
        facts.error = "no samples"
        return
    facts.clipped = clipped / (frames * max(1, facts.channels))
    facts.bandwidth_hz = _bandwidth(spectrum / max(1, windows), rate, floor_db)
    facts.pause_db = float(np.subtract(*np.percentile(np.concatenate(levels), (90, 5))))
    facts.digest = digest.hexdigest()


def _frame_dbfs(mono: np.ndarray, rate: int) -> np.ndarray:
    """Levels of frames of 20 ms, about each frame's mean; what is shorter than one is one."""
    length = max(1, min(len(mono), rate // 50))
    power = mono[: len(mono) // length * length].reshape(-1, length).var(axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, 1e-12)), dtype=np.float32)


def _clipped(block: np.ndarray) -> np.ndarray:
    """Which samples of (T, C) are clipped: at full scale, or on a plateau at the block's own peak."""
    size = np.abs(block)
    peak = float(size.max(initial=0.0))
    clipped: np.ndarray = size >= FULL_SCALE
    if peak < 0.05 or len(block) < FLAT_RUN:
        return clipped
    flat = (size[1:] >= 0.9999 * peak) & (block[1:] == block[:-1])
    run = flat[1:] & flat[:-1]  # run[i]: samples i, i + 1, i + 2 are equal
    for shift in range(FLAT_RUN):
        clipped[shift : len(run) + shift] |= run
    return clipped


def _spectrum(mono: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Summed power spectrum of Hann windows, scaled so that white noise of power p has p in every bin."""
    usable = len(mono) // width * width
    parts = mono[:usable].reshape(-1, width) if usable else np.pad(mono, (0, width - len(mono)))[None]
    window = np.hanning(width).astype(np.float32)
    power = np.abs(np.fft.rfft(parts * window, axis=1)) ** 2 / float(np.square(window).sum())
    return power.sum(axis=0, dtype=np.float64), len(parts)


def _bandwidth(power: np.ndarray, rate: int, floor_db: float) -> float:
    """The frequency, in Hz, above which there is nothing: no power to speak of, or only what a resampler's filter let through.

    The first rule asks for power above ``floor_db`` relative to the strongest frequency and above 16-bit rounding noise. The second
    looks for a cliff: everything above lies ``CLIFF_DB`` under the band just below. Natural speech has no such cliff; a weak
    resampler's images and dither, which fool the first rule, stand on the far side of one.
    """
    smooth = np.convolve(power, np.ones(5) / 5, mode="same")
    level_db = 10 * np.log10(np.maximum(smooth, 1e-30))
    last = len(power) - 1
    filled = np.flatnonzero(level_db > max(level_db.max() + floor_db, PCM16_NOISE_DB + 6))
    top = int(filled[-1]) if len(filled) else 0
    highest_above = np.maximum.accumulate(level_db[::-1])[::-1]
    for edge in range(max(10, last // 8), min(top, int(last / CLIFF_GAP)) + 1):
        below_db = level_db[int(0.75 * edge) : int(0.95 * edge)].mean()
        if below_db - highest_above[min(last, int(CLIFF_GAP * edge))] > CLIFF_DB:
            top = min(top, round(CLIFF_GAP * edge))
            break
    return float(top * rate / 2 / last)


def judge(facts: FileFacts, limits: Limits, *, kind: str = "speech", utt: Utterance | None = None) -> Verdict | None:
    """Say why a file is not good enough, or None where it is.

    Args:
        facts: from ``measure``.
        limits: what to hold it to.
        kind: ``speech`` (clean), ``noisy``, ``noise`` or ``rir``.
        utt: the manifest row that named it; its offset, duration and rate are compared with the file where they are not 0.
    """
    if facts.error:
        return Verdict(facts.error.split(":")[0].split(" (")[0].split(",")[0], facts.error)
    tolerance, length = limits.length_tolerance_s, facts.duration
    if facts.header_s - length > tolerance:
        return Verdict("truncated", f"the header promises {facts.header_s:.2f} s, the file holds {length:.2f} s")
    if utt is not None:
        length = utt.duration or facts.duration - utt.offset
        there = f"{facts.duration:.2f} s there"
        if utt.offset + length - facts.duration > tolerance:
            return Verdict("shorter than the manifest says", f"{utt.offset + length:.2f} s claimed, {there}")
        part = utt.offset or utt.extra.get("segment")  # column of rows that begin at 0 and are meant to end early
        if utt.duration and not part and facts.duration - utt.duration > tolerance:
            return Verdict("longer than the manifest says", f"{utt.duration:.2f} s claimed, {there}")
        if utt.sample_rate not in (0, facts.sample_rate):
            claimed = f"{utt.sample_rate} Hz claimed, {facts.sample_rate} Hz there"
            return Verdict("rate differs from the manifest", claimed)
    if facts.sample_rate < limits.min_rate_hz:
        return Verdict("rate too low", f"{facts.sample_rate} Hz, below {limits.min_rate_hz} Hz")
    if length < limits.min_s and kind != "rir":
        return Verdict("too short", f"{length:.2f} s, below {limits.min_s:g} s")
    if limits.max_s is not None and length > limits.max_s:
        return Verdict("too long", f"{length:.2f} s, above {limits.max_s:g} s")
    if facts.active_dbfs < (limits.silence_speech_dbfs if kind == "speech" else limits.silence_other_dbfs):
        return Verdict("silent", silence(facts.active_dbfs))
    share = limits.clipped_speech if kind == "speech" else limits.clipped_other
    if facts.clipped > share:
        return Verdict("clipped", f"{100 * facts.clipped:.2f} % of the samples, above {100 * share:g} %")
    if kind == "speech" and facts.pause_db < limits.pause_db:
        return Verdict("noisy", f"its pauses lie {facts.pause_db:.0f} dB below its loud parts, not {limits.pause_db:g}")
    if kind == "speech" and facts.bandwidth_hz < limits.bandwidth * facts.sample_rate / 2:
        why = f"nothing above {facts.bandwidth_hz:.0f} Hz in a {facts.sample_rate} Hz file"
        return Verdict("bandwidth below the rate", why)
    return None


def judge_pair(noisy: FileFacts, target: FileFacts, limits: Limits) -> Verdict | None:
    """Say why two files that are each good enough cannot be a pair, or None."""
    if abs(noisy.duration - target.duration) > limits.length_tolerance_s:
        return Verdict("pair of different lengths", f"noisy {noisy.duration:.2f} s, target {target.duration:.2f} s")
    return None
