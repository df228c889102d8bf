"""Mixtures of clean speech, noise and rooms, made on the fly from a seed per (epoch, utterance).

The random numbers of a mixture depend only on (seed, epoch, utterance id), drawn with numpy's Philox generator, so a mixture is
the same on every machine, with any number of workers and in any order. Rendering to disk calls the same function.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlspeech.config_parts import Mixing
from rlspeech.data.audio import SILENT_DBFS, AudioError, load_audio, rms_dbfs, to_level
from rlspeech.data.manifest import read_manifest
from rlspeech.files import parse_json
from rlspeech.types import UserError, Utterance

# decoded audio of a small corpus stays in memory: decoding costs more than mixing
_cached = lru_cache(maxsize=4096)(load_audio)
CLEAN_DB = 60.0  # ratio of mixtures without noise: what is left of it is inaudible
ATTEMPTS = 8  # draws before an utterance whose crops are all silent is given up


class Mixture(NamedTuple):
    """One made-up recording: ``noisy`` and ``target`` (T,) float32, the target starting at ``start_s`` of its utterance."""

    noisy: np.ndarray
    target: np.ndarray
    snr_db: float
    noise_id: str
    rir_id: str | None
    start_s: float = 0.0
    talker_id: str | None = None


def mixture_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Random numbers of one mixture, identical on every machine."""
    return np.random.Generator(np.random.Philox(key=[(seed << 32) + epoch, zlib.crc32(key.encode())]))


def reverberate(
    wav: np.ndarray, rir: np.ndarray, sample_rate: int, early_ms: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Put dry speech (T,) into a room by its impulse response (R,).

    Args:
        early_ms: the target keeps reflections up to this long after the direct sound (50 ms counts as helpful to
            intelligibility); None keeps the whole response in the target.

    Returns:
        reverberant speech and target, both (T,), aligned on the direct sound.
    """
    from scipy.signal import fftconvolve

    direct = int(np.argmax(np.abs(rir)))
    rir = rir[direct:] / (np.abs(rir[direct]) + 1e-9)  # cut the travel time: input and target stay aligned
    wet = fftconvolve(wav, rir)[: len(wav)].astype(np.float32)
    if early_ms is None:
        return wet, wet
    early = rir[: max(1, int(early_ms * sample_rate / 1000))]
    return wet, fftconvolve(wav, early)[: len(wav)].astype(np.float32)


def mix(
    clean: np.ndarray,
    noise: np.ndarray,
    rir: np.ndarray | None,
    snr_db: float,
    level_dbfs: float,
    early_ms: float | None = 50.0,
    sample_rate: int = 16000,
) -> tuple[np.ndarray, np.ndarray]:
    """Mix speech (T,), in the room of an impulse response (R,) where there is one, with noise (T,), and scale the mixture to a level.

    Args:
        snr_db: ratio of the (reverberant) speech's RMS to the noise's RMS, both about their means.
        level_dbfs: RMS of the mixture; lowered where it would clip, together with the target.

    Returns:
        noisy and target, (T,) float32, at the same gain.

    Raises:
        AudioError: silent speech or noise.
    """
    if (level := rms_dbfs(clean)) < SILENT_DBFS:
        raise AudioError(f"silent speech ({level:.0f} dBFS)")
    if (level := rms_dbfs(noise)) < SILENT_DBFS - 30:
        raise AudioError(f"silent noise ({level:.0f} dBFS)")
    speech, target = (clean, clean) if rir is None else reverberate(clean, rir, sample_rate, early_ms)
    if rms_dbfs(speech) < SILENT_DBFS - 60:
        raise AudioError("silent impulse response")
    noise = to_level(noise, rms_dbfs(speech) - snr_db)
    noisy = speech + noise
    gain = 10.0 ** ((level_dbfs - rms_dbfs(noisy)) / 20.0)
    gain = min(gain, 0.99 / float(max(np.abs(noisy).max(), np.abs(target).max())))
    return (noisy * gain).astype(np.float32), (target * gain).astype(np.float32)


@dataclass
class MixtureSet:
    """Clean utterances that become a new mixture in every epoch."""

    clean: list[Utterance]  # speech to enhance
    noise: list[Utterance]  # noise recordings, drawn at random, looped where shorter than the clip
    rirs: list[Utterance]  # impulse responses, may be empty
    mixing: Mixing  # ranges, see ``config.Mixing``
    sample_rate: int = 16000  # in Hz
    seed: int = 0  # of the whole set

    @classmethod
    def from_recipe(
        cls, path: str | Path, *, mixing: Mixing | None = None, sample_rate: int = 16000, seed: int = 0
    ) -> MixtureSet:
        """Read ``mix.json`` as ``prepare mix`` writes it. Raises ``UserError`` where it does not parse."""
        path = Path(path)
        try:
            recipe = parse_json(path.read_bytes())
            clean, noise = (read_manifest(path.parent / recipe[k]) for k in ("clean", "noise"))
            rirs = read_manifest(path.parent / recipe["rir"]) if recipe.get("rir") else []
            return cls(clean, noise, rirs, mixing or Mixing(**recipe.get("mixing", {})), sample_rate, seed)
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:  # ValueError: JSON, UTF-8, settings
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} is not a mixture recipe", why, "rlspeech prepare mix --help") from error

    def __len__(self) -> int:
        return len(self.clean)

    def get(self, epoch: int, index: int, clip_s: float | None = None) -> Mixture:
        """The mixture of utterance ``index`` in ``epoch``; ``clip_s`` overrides the length, 0 keeps the whole utterance.

        Raises:
            AudioError: the utterance cannot be used (unreadable, or silent wherever it was cut).
        """
        utt = self.clean[index]
        rng = mixture_rng(self.seed, epoch, utt.id)
        clip_s = self.mixing.clip_s if clip_s is None else clip_s
        problem = AudioError("silent speech")
        for _ in range(ATTEMPTS):
            try:
                return self._draw(utt, rng, clip_s)
            except AudioError as error:
                problem = error
        raise problem

    def _read(self, utt: Utterance) -> np.ndarray:
        return _cached(utt.audio_filepath, self.sample_rate, utt.offset, utt.duration)

    def _draw(self, utt: Utterance, rng: np.random.Generator, clip_s: float) -> Mixture:
        how, clean, start = self.mixing, self._read(utt), 0
        clean = clean if utt.lips_filepath else played(clean, how.speed, rng)
        if clip_s > 0:
            clean, start = cut(clean, int(clip_s * self.sample_rate), rng)
        clean = filtered(clean, how.eq_db, rng) if how.eq_db and rng.random() < 0.5 else clean
        noise, noise_id = self._noise(len(clean), rng)
        reverberant = bool(self.rirs) and rng.random() < self.mixing.reverb
        rir = self.rirs[int(rng.integers(len(self.rirs)))] if reverberant else None
        room = self._read(rir) if rir else None
        snr = float(rng.uniform(*self.mixing.snr_db))
        snr = CLEAN_DB if how.clean and rng.random() < how.clean else snr
        level = float(rng.uniform(*self.mixing.level_dbfs))
        talker, against, other = self._talker(utt, len(clean), rng)
        if talker is not None:
            noise = joined(clean, noise, snr, talker, against)
            snr = -10.0 * float(np.log10(10.0 ** (-snr / 10.0) + 10.0 ** (-against / 10.0)))
        noisy, target = mix(clean, noise, room, snr, level, self.mixing.early_ms, self.sample_rate)
        where = start / self.sample_rate
        return Mixture(noisy, target, snr, noise_id, rir.id if rir else None, where, other)

    def _noise(self, length: int, rng: np.random.Generator, beside: bool = True) -> tuple[np.ndarray, str]:
        """(length,) of noise and its name: of a recording, synthetic or of voices, perhaps two of them, through a filter."""
        how, made = self.mixing, np.zeros(length, np.float32)
        kind = rng.random() if how.coloured or how.babble else 1.0  # no draw where it is off, here and below
        if kind < how.coloured:
            name, swell = "coloured", np.interp(np.arange(length), np.linspace(0, length, 12), rng.normal(0, 6, 12))
            made = coloured(length, float(rng.uniform(0, 1)), rng) * 10 ** (swell / 20).astype(np.float32)
        elif kind < how.coloured + how.babble:
            name = "babble"
            for _ in range(int(rng.integers(3, 8))):
                voice = crop(self._read(self.clean[int(rng.integers(len(self.clean)))]), length, rng)
                made = made + to_level(voice, -25.0) if rms_dbfs(voice) > SILENT_DBFS else made
        else:
            utt = self.noise[int(rng.integers(len(self.noise)))]
            name, made = utt.id, crop(played(self._read(utt), how.speed, rng), length, rng)
        if beside and how.second and rng.random() < how.second:
            other = self._noise(length, rng, beside=False)[0]
            made = made + to_level(other, rms_dbfs(made) + float(rng.uniform(-12, 3)))
        return filtered(made, how.eq_db, rng) if beside and how.eq_db else made, name

    def _talker(
        self, utt: Utterance, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, float, str | None]:
        """(T,) of another speaker's utterance, the ratio to it in dB and its id; None for the share of mixtures without."""
        # no draw where it is off: older recipes stay what they were
        if not self.mixing.talker or rng.random() >= self.mixing.talker:
            return None, 0.0, None
        against = float(rng.uniform(*self.mixing.talker_snr_db))
        for _ in range(8 * ATTEMPTS):  # in a corpus of two voices most draws are of the same one
            other = self.clean[int(rng.integers(len(self.clean)))]
            if other.id != utt.id and (other.speaker_id is None or other.speaker_id != utt.speaker_id):
                wav = crop(self._read(other), length, rng)
                if rms_dbfs(wav) > SILENT_DBFS:
                    return wav, against, other.id
        return None, 0.0, None


def coloured(length: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise (length,) whose amplitude falls with frequency**slope: 0 white, 0.5 pink, 1 brown; RMS 0.1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** slope
    spectrum[0] = 0
    return to_level(np.fft.irfft(spectrum, length).astype(np.float32), -20.0)


def played(wav: np.ndarray, speeds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(T,) played at a speed from a range, pitch with it, by linear interpolation; no draw where the range is 1 to 1."""
    if tuple(speeds) == (1.0, 1.0):
        return wav
    places = np.arange(0, max(1, len(wav) - 1), float(rng.uniform(*speeds)))
    return np.asarray(np.interp(places, np.arange(len(wav)), wav), dtype=np.float32)


def filtered(wav: np.ndarray, deviation_db: float, rng: np.random.Generator) -> np.ndarray:
    """(T,) through a random smooth filter: gains of a deviation in dB at six random frequencies, lines between them."""
    spectrum = np.fft.rfft(wav)
    places = np.sort(np.concatenate([[0.0], rng.random(4), [1.0]]))
    gain_db = np.interp(np.linspace(0, 1, len(spectrum)), places, rng.normal(0, deviation_db, 6))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(wav)).astype(np.float32)


def joined(clean: np.ndarray, noise: np.ndarray, snr_db: float, talker: np.ndarray, talker_snr_db: float) -> np.ndarray:
    """Noise and a competing talker, each at its own ratio to the clean speech, (T,) float32."""
    level = rms_dbfs(clean)
    if rms_dbfs(noise) < SILENT_DBFS - 30:
        raise AudioError("silent noise")
    both: np.ndarray = to_level(noise, level - snr_db) + to_level(talker, level - talker_snr_db)
    return both


def cut(wav: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A random stretch of ``length`` samples, and where it starts; shorter input is padded with zeros behind."""
    if len(wav) <= length:
        return np.pad(wav, (0, length - len(wav))), 0
    start = int(rng.integers(len(wav) - length + 1))
    return wav[start : start + length], start


def crop(wav: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch of ``length`` samples; shorter input is looped."""
    if 0 < len(wav) < length:
        wav = np.tile(wav, -(-length // len(wav)))
    return cut(wav, length, rng)[0]


def write_recipe(folder: Path, mixing: Mixing, *, rir: bool) -> Path:
    """Write ``folder/mix.json`` next to its ``clean.jsonl``, ``noise.jsonl`` (and ``rir.jsonl``)."""
    path = folder / "mix.json"
    rooms = "rir.jsonl" if rir else None
    recipe = {"clean": "clean.jsonl", "noise": "noise.jsonl", "rir": rooms, "mixing": mixing.model_dump()}
    path.write_text(json.dumps(recipe, indent=2) + "\n")
    return path
