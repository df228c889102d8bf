"""Sound that tempts a recogniser to invent words, with references that say what was really said: mostly nothing.

    silence   digital zeros, hiss, mains hum                                                    text ""
    noise     recorded noise; coloured noise where there is none                                text ""
    music     synthesised: pads, arpeggios, a beat                                              text ""
    cut       speech that breaks off; column ``how`` says by which of four ways                 text known or ""
    looped    one utterance 2 to 6 times, as a stuck player would                               its text as many times

Cut speech is only useful where the words that are left are known, and cutting at a drawn time would leave a guess. So: ``words`` cuts
between words where the row has their times (column ``words``: [[word, start_s, end_s], ...]); ``trail`` is a whole utterance and the
first 80 to 140 ms of a word of six letters or more, by the same speaker, which is too little to be that word: the text is the
utterance's; ``pause`` is a stretch in which nothing is said, found by level (``corpora/join.py``) and looped to a few seconds: the
text is empty; ``fragment`` is 60 to 120 ms of speech alone in room tone: no word is whole, the text is empty. Every row names its
``condition`` and its source. The same seed gives the same files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora import folder
from rlspeech.corpora.base import Rendered, Sets, Source, dropped_row, shown
from rlspeech.corpora.join import faded, join, onset, quiet_stretches, read, room_tone
from rlspeech.data.audio import AudioError, rms_dbfs, save_audio, to_level
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.data.mixing import coloured, crop, mixture_rng
from rlspeech.files import write_error
from rlspeech.types import UserError, Utterance

CONDITIONS = ("silence", "noise", "music", "cut", "looped")
SPEECH_CONDITIONS = frozenset({"cut", "looped"})  # those that need speech with transcripts
RATE_HZ = 16000
Rows = Sequence[Utterance]
MIN_S = 0.3
ATTEMPTS = 24  # sources tried for one clip
LEVEL_DBFS = (-45.0, -16.0)
LONG_WORD = 6  # letters; 140 ms of such a word are not the word
CHORDS = ((0, 4, 7), (7, 11, 14), (9, 12, 16), (5, 9, 12), (2, 5, 9), (0, 3, 7))  # semitones over the key
STYLES = ("pad", "arpeggio", "beat")


class Nonspeech(Source):
    """``rlspeech prepare nonspeech``."""

    name = "nonspeech"
    noise: list[str] = conf([], "folder or manifest of noise; may be repeated")
    clean: list[str] = conf([], "manifest of speech with transcripts, for cut and looped speech; may be repeated")
    count: int = conf(40, "clips of each condition", ge=1)
    conditions: list[Literal["silence", "noise", "music", "cut", "looped"]] = conf(
        [], "condition to make; may be repeated; none: all, cut and looped only with clean"
    )
    max_s: float = conf(20.0, "longest clip in seconds", ge=1)
    seed: int = Field(0, ge=0)

    def make(self, out: Path) -> Sets:
        """Return the clips of all conditions in one set."""
        noise = [row.utt for source in self.noise for row in folder.find(source, skip=out)]
        clean = [utt for source in self.clean for utt in read_manifest(find_manifest(source, recipe=False))]
        wanted: list[str] = list(dict.fromkeys(self.conditions)) or list(CONDITIONS)
        if not any(utt.text for utt in clean) and SPEECH_CONDITIONS & set(wanted):
            if clean or self.conditions:
                why = "cut and looped speech need rows with a text"
                raise UserError("no speech with transcripts", why, "--clean MANIFEST with them, or other --condition")
            wanted = [c for c in wanted if c not in SPEECH_CONDITIONS]
            log.warn("without --clean there is no cut and no looped speech in the set")
        rows, dropped = render(noise, clean, out, self.count, self.max_s, wanted, self.seed)
        if not rows:
            raise UserError("no clip could be made", dropped[0]["detail"], "other --noise or --clean")
        by_condition = {}
        for name in wanted:
            mine = [u for u in rows if u.extra["condition"] == name]
            words = sum(len((u.text or "").split()) for u in mine)
            hours = round(sum(u.duration for u in mine) / 3600, 6)
            by_condition[name] = {"rows": len(mine), "hours": hours, "words": words}
        sets = Sets({"manifest": rows}, dropped, facts={"conditions": by_condition})
        table = [[name, m["rows"], round(m["hours"], 3), m["words"]] for name, m in by_condition.items()]
        sets.table = (["condition", "clips", "hours", "words"], table)
        sets.following = f"rlspeech eval --task asr --data {shown(out)}/manifest.jsonl"
        return sets


class Made(NamedTuple):
    """A clip (T,), its reference, and what it was made of."""

    wav: np.ndarray
    text: str
    facts: dict[str, Any]
    source: Utterance | None = None


class Material(NamedTuple):
    """What clips are made of. ``clean`` are rows with texts; their language is handed on."""

    noise: Rows
    clean: Rows
    max_s: float

    def seconds(self, rng: np.random.Generator, low: float = MIN_S, high: float | None = None) -> float:
        """A length, short ones as often as long ones (log-uniform)."""
        high = min(high or self.max_s, self.max_s)
        return float(np.exp(rng.uniform(np.log(min(low, high)), np.log(high))))


def render(
    noise: Rows, clean: Rows, out: Path, count: int, max_s: float, conditions: Sequence[str] = CONDITIONS, seed: int = 0
) -> Rendered:
    """Write ``count`` clips of every condition below ``out/audio``, at 16 kHz.

    Args:
        noise: recordings of noise, may be empty.
        clean: speech with transcripts, for ``cut`` and ``looped``; without a usable one these conditions stay empty.
        max_s: longest clip, in seconds.
        conditions: subset of ``CONDITIONS``.

    Returns:
        rows, and for every clip that could not be made a row with its reason.

    Raises:
        UserError: the disk does not take it.
    """
    material = Material(noise, [u for u in clean if u.text and u.text.strip()], max_s)
    rows: list[Utterance] = []
    failed: list[dict[str, Any]] = []
    with log.progress(count * len(conditions), "making", "clips") as bar:
        for condition, number in itertools.product(conditions, range(count)):
            name = f"{condition}_{number:04d}"
            path = out / "audio" / f"{name}.flac"
            try:
                made = _attempt(condition, number, material, mixture_rng(seed, number, condition))
                save_audio(path, made.wav, RATE_HZ)
            except AudioError as error:
                failed.append(dropped_row("manifest", name, path, "cannot be made", error.reason))
                continue
            except OSError as error:
                raise write_error(out, error, f"{len(rows)} clips were kept") from error
            rows.append(_row(name, path, condition, made))
            bar.advance()
    return rows, failed


def _row(name: str, path: Path, condition: str, made: Made) -> Utterance:
    source = made.source
    extra = {"condition": condition} | made.facts | ({"clean_id": source.id} if source else {})
    if source and made.text and source.extra.get("keywords"):
        extra["keywords"] = source.extra["keywords"]
    utt = Utterance(name, str(path), len(made.wav) / RATE_HZ, RATE_HZ, text=made.text, extra=extra)
    if source:
        utt.language, utt.speaker_id = source.language, source.speaker_id
    return utt


def _attempt(condition: str, number: int, material: Material, rng: np.random.Generator) -> Made:
    """One clip; a source that does not serve is replaced by another."""
    makers = {"silence": _silence, "noise": _noise, "music": _music, "cut": _cut, "looped": _looped}
    problem = AudioError("nothing to make it of")
    for _ in range(ATTEMPTS):
        try:
            return makers[condition](material, rng, number)
        except AudioError as error:
            problem = error
            if condition in SPEECH_CONDITIONS and not material.clean:
                break
    raise problem


def _pick(items: Sequence[Utterance], rng: np.random.Generator) -> Utterance:
    if not items:
        raise AudioError("no speech with a transcript")
    return items[int(rng.integers(len(items)))]


# ----------------------------------------------------------------------------------------------------- nothing is said


def _silence(material: Material, rng: np.random.Generator, number: int) -> Made:
    n = round(material.seconds(rng) * RATE_HZ)
    how = ("digital", "hiss", "hum")[number % 3]
    if how == "digital":
        return Made(np.zeros(n, np.float32), "", {"how": how})
    if how == "hiss":
        hiss = coloured(n, float(rng.uniform(0, 0.5)), rng)
        return Made(to_level(hiss, float(rng.uniform(-80, -55))), "", {"how": how})
    time_s = np.arange(n) / RATE_HZ
    mains_hz = float(rng.choice([50.0, 60.0]))
    tones = [rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * (mains_hz * k * time_s + rng.random())) for k in range(1, 8)]
    return Made(to_level(np.sum(tones, axis=0).astype(np.float32), float(rng.uniform(-65, -40))), "", {"how": how})


def _noise(material: Material, rng: np.random.Generator, number: int) -> Made:
    n = round(material.seconds(rng) * RATE_HZ)
    level = float(rng.uniform(*LEVEL_DBFS))
    if not material.noise or number % 8 == 7:
        slope = float(rng.uniform(0, 1))
        return Made(to_level(coloured(n, slope, rng), level), "", {"how": f"coloured {slope:.2f}"})
    utt = _pick(material.noise, rng)
    wav = crop(read(utt, RATE_HZ), n, rng)
    if rms_dbfs(wav) < -70:
        raise AudioError("silent noise")
    return Made(_held(to_level(wav, level)), "", {"how": "recorded", "noise_id": utt.id})


def _music(material: Material, rng: np.random.Generator, number: int) -> Made:
    style = STYLES[number % len(STYLES)]
    wav = music(material.seconds(rng, 1.0), RATE_HZ, rng, style)
    return Made(_held(to_level(wav, float(rng.uniform(-35, -16)))), "", {"how": style})


def _held(wav: np.ndarray) -> np.ndarray:
    """Below full scale."""
    return (wav * min(1.0, 0.98 / max(float(np.abs(wav).max(initial=0.0)), 1e-9))).astype(np.float32)


def music(seconds: float, sample_rate: int, rng: np.random.Generator, style: str = "arpeggio") -> np.ndarray:
    """Something like music, (T,): a progression of four chords in a drawn key, tempo and timbre, by additive synthesis.

    The styles: ``pad`` (held chords), ``arpeggio`` (plucked, one note after the other), ``beat`` (both, with bursts of noise on the beat).
    """
    total, beat = round(seconds * sample_rate), max(1, round(60 / rng.uniform(70, 150) * sample_rate))
    key_hz, tilt = 110.0 * 2 ** (rng.integers(12) / 12), float(rng.uniform(1.0, 2.2))
    progression = [CHORDS[i] for i in rng.integers(len(CHORDS), size=4)]
    wav = np.zeros(total + 4 * beat)
    for bar, start in enumerate(range(0, total, 4 * beat)):
        notes = progression[bar % 4]
        if style in ("pad", "beat"):
            for note in notes:
                _add(wav, start, _tone(key_hz * 2 ** (note / 12), 4 * beat, sample_rate, tilt + 0.5, 0.4))
        if style in ("arpeggio", "beat"):
            for step in range(8):
                note = notes[step % 3] + 12 * (1 + step // 3 % 2)
                _add(wav, start + step * beat // 2, _tone(key_hz * 2 ** (note / 12), beat, sample_rate, tilt, 6.0))
        if style == "beat":
            for step in range(4):
                decay = np.exp(-np.arange(beat // 2) / (sample_rate * (0.08 if step % 2 == 0 else 0.03)))
                _add(wav, start + step * beat, 0.6 * rng.standard_normal(beat // 2) * decay)
    return to_level(wav[:total].astype(np.float32), -20.0)


def _add(wav: np.ndarray, start: int, part: np.ndarray) -> None:
    end = min(len(wav), start + len(part))
    wav[start:end] += part[: end - start]


def _tone(hz: float, length: int, sample_rate: int, tilt: float, decay: float) -> np.ndarray:
    """Harmonics that fall with order**tilt, struck and fading by ``decay`` nepers a second, (length,)."""
    time_s = np.arange(length) / sample_rate
    orders = [k for k in range(1, 13) if k * hz < 0.45 * sample_rate]
    tone = np.sum([np.sin(2 * np.pi * k * hz * time_s) / k**tilt for k in orders], axis=0)
    rise, fall = np.minimum(1, time_s / 0.01), np.minimum(1, time_s[::-1] / 0.02)
    return np.asarray(tone * np.exp(-decay * time_s) * rise * fall)


# ------------------------------------------------------------------------------------------------ speech, cut and looped


def word_times(utt: Utterance) -> list[tuple[str, float, float]]:
    """(word, start_s, end_s) of a row's column ``words`` (triples, or objects with ``word``, ``start``, ``end``); empty where unknown."""
    found: list[tuple[str, float, float]] = []
    rows = utt.extra.get("words")
    for row in rows if isinstance(rows, list) else ():
        try:
            word, start, end = (row["word"], row["start"], row["end"]) if isinstance(row, dict) else row
            found.append((str(word), float(start), float(end)))
        except (KeyError, TypeError, ValueError):
            return []
    return found


def _cut(material: Material, rng: np.random.Generator, number: int) -> Made:
    timed = [u for u in material.clean if len(word_times(u)) > 1]
    ways: list[Callable[[Material, np.random.Generator], Made]] = [_trail, _pause, _fragment]
    if timed and number % 4 == 3:
        return _words(_pick(timed, rng), rng)
    return ways[number % 3](material, rng)


def _words(utt: Utterance, rng: np.random.Generator) -> Made:
    """A run of an utterance's words, cut between them: in the middle of the gap to the next word."""
    words, wav = word_times(utt), read(utt, RATE_HZ)
    first = int(rng.integers(len(words)))
    last = int(rng.integers(first, len(words) - (first == 0)))  # something is cut off
    start = (words[first - 1][2] + words[first][1]) / 2 if first else 0.0
    end = (words[last][2] + words[last + 1][1]) / 2 if last + 1 < len(words) else len(wav) / RATE_HZ
    kept = wav[round(start * RATE_HZ) : round(end * RATE_HZ)]
    if len(kept) < 0.1 * RATE_HZ:
        raise AudioError("the cut leaves nothing")
    return Made(faded(kept, RATE_HZ), " ".join(w for w, _, _ in words[first : last + 1]), {"how": "words"}, utt)


def _trail(material: Material, rng: np.random.Generator) -> Made:
    utt = _pick(material.clean, rng)
    if utt.duration > material.max_s - 1:
        raise AudioError("speech longer than the clip")
    others = [u for u in material.clean if u.speaker_id == utt.speaker_id] if utt.speaker_id else [utt]
    other = _pick([u for u in others if len((u.text or "").split()[0]) >= LONG_WORD], rng)
    wav, tail = read(utt, RATE_HZ), read(other, RATE_HZ)
    begin = onset(tail, RATE_HZ)
    tail = tail[begin : begin + round(rng.uniform(0.08, 0.14) * RATE_HZ)]
    gap = room_tone(wav, round(rng.uniform(0.05, 0.2) * RATE_HZ), RATE_HZ, rng)
    return Made(np.concatenate([wav, gap, faded(tail, RATE_HZ)]), (utt.text or "").strip(), {"how": "trail"}, utt)


def _pause(material: Material, rng: np.random.Generator) -> Made:
    utt = _pick(material.clean, rng)
    wav = read(utt, RATE_HZ)
    stretches = quiet_stretches(wav, RATE_HZ)
    if not stretches:
        raise AudioError("no pause")
    start, end = stretches[int(rng.integers(len(stretches)))]
    part = faded(wav[start:end], RATE_HZ)
    n = round(material.seconds(rng, 0.5, 8.0) * RATE_HZ)
    return Made(np.tile(part, -(-n // len(part)))[:n], "", {"how": "pause"}, utt)


def _fragment(material: Material, rng: np.random.Generator) -> Made:
    utt = _pick(material.clean, rng)
    wav = read(utt, RATE_HZ)
    length = round(rng.uniform(0.06, 0.12) * RATE_HZ)
    start = int(rng.integers(max(1, len(wav) - length)))
    part = wav[start : start + length]
    if rms_dbfs(part) < rms_dbfs(wav) - 10:
        raise AudioError("no speech in the fragment")
    around = room_tone(wav, round(material.seconds(rng, 0.5, 3.0) * RATE_HZ), RATE_HZ, rng)
    at = int(rng.integers(len(around) + 1))
    return Made(np.concatenate([around[:at], faded(part, RATE_HZ), around[at:]]), "", {"how": "fragment"}, utt)


def _looped(material: Material, rng: np.random.Generator, number: int) -> Made:
    utt = _pick(material.clean, rng)
    times = min(2 + number % 5, int(material.max_s / (utt.duration + 0.3)))
    if times < 2:
        raise AudioError("speech longer than the clip")
    wav = join([read(utt, RATE_HZ)] * times, (0.05, 0.3), RATE_HZ, rng)
    return Made(wav, " ".join([(utt.text or "").strip()] * times), {"how": f"{times} times", "repeats": times}, utt)
