"""The items that a page plays: their choice, sound as MP3, spectrograms as JPEG, and a fair share of the page for each.

As many losses as gains are chosen, the worst and the best, so that they flatter no system.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.decode import sound_info
from rlspeech.report import Clip
from rlspeech.report.compare import Comparison, System
from rlspeech.report.runs import Origin, Sound, find, number
from rlspeech.scores import step_name

MAX_CLIP_S = 20.0  # of one clip
MIN_CLIP_S = 4.0  # clips are cut down to this, then left out
RANGE_DB = 70.0
MARGIN = 0.97  # of the budget: a fallback encoder has no fixed rate
# Every browser of today plays MP3; Safari took Opus in Ogg only in 2025. At a fixed rate, so that a seek lands where it should: browsers
# guess places in files of varying rate, and two systems at one position have to be at one position.
MP3_LEVEL = {16000: 0.6, 24000: 0.6, 32000: 0.78, 44100: 0.78, 48000: 0.78}  # of libsndfile: 64 kbit/s, from 32 kHz 96


@dataclass(frozen=True, slots=True)
class Player:
    """One system's sound and picture, as data addresses; both empty where only its words are known."""

    system: str  # its name
    audio: str  # data address
    picture: str  # data address
    scores: dict[str, float | None]  # metric -> number or None
    ratings: dict[str, float | None]  # those of ``scores`` that a language model gave, shown beside its words
    text: str = ""  # its description of the clip
    level_db: float = 0.0  # of the speech as it is played, for the blind comparison at equal loudness
    remark: str = ""  # what was done to the sound


@dataclass(frozen=True, slots=True)
class Players:
    """One clip's players and texts."""

    clip: Clip
    seconds: float  # what is left of its length
    whole_s: float  # its length
    top_hz: float
    players: list[Player]
    fixed: int  # its bytes on the page without sound
    rate: float  # the bytes of a second of sound

    def size(self, limit_s: float) -> float:
        """Bytes on the page, cut to ``limit_s``."""
        return self.fixed + self.rate * min(self.seconds, limit_s)


def fit(clips: Iterable[Clip], budget: int) -> tuple[list[Players], list[str]]:
    """Choose as many clips, and as much of each, as the page has room for.

    Long clips are cut first, all to the same length; when that is down to ``MIN_CLIP_S``, clips are left out: one of every label stays, the
    rest is thinned evenly, so that what stays tells of best and worst as before.

    Args:
        clips: what to show, in order.
        budget: bytes.

    Returns:
        the clips in the same order, and remarks on what is missing or cut.
    """
    made: list[Players] = []
    notes = []
    for clip in clips:
        try:
            made.append(players(clip, MAX_CLIP_S))
        except (ValueError, RuntimeError) as error:  # libsndfile's error is a RuntimeError
            notes.append(f"{clip.key} has no player: {error}")
    room = MARGIN * budget
    kept = {index: made[index] for index in _thinned(made, room)}
    left_out = [one.clip.key for index, one in enumerate(made) if index not in kept]
    if left_out:
        shown = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
        notes.append(f"{len(left_out)} of {len(made)} clips were left out to keep this page small: {shown}")
    for _ in range(4):  # a shorter clip's picture is drawn finer and may be larger
        if sum(one.size(MAX_CLIP_S) for one in kept.values()) <= room:
            break
        limit = _longest(list(kept.values()), room)
        kept = {index: players(one.clip, limit) if one.seconds > limit else one for index, one in kept.items()}
    cut = [one.seconds for one in kept.values() if one.seconds < one.whole_s - 0.05]
    if cut:
        notes.append(f"{len(cut)} of {len(kept)} clips are longer and end after {max(cut):.1f} s here")
    return list(kept.values()), notes


def players(clip: Clip, max_s: float) -> Players:
    """Cut, encode and draw every system of a clip; the spectrograms share one scale and one length.

    Raises:
        ValueError: a waveform that is empty or not finite, or no sample rate.
    """
    if clip.audio and clip.sample_rate < 1:
        raise ValueError(f"{clip.sample_rate} Hz is no sample rate")
    full = {system: np.asarray(wav, dtype=np.float32) for system, wav in clip.audio.items()}
    cut = {system: wav[: max(1, int(max_s * clip.sample_rate))] for system, wav in full.items()}
    for system, wav in cut.items():
        if wav.ndim != 1 or len(wav) == 0 or not np.isfinite(wav).all():
            raise ValueError(f"the audio of {system} cannot be shown")
    longest = max((len(w) for w in cut.values()), default=0)
    pictures = {system: spectrogram_db(np.pad(wav, (0, longest - len(wav)))) for system, wav in cut.items()}
    top = max((float(p.max()) for p in pictures.values()), default=0.0)
    made = [_player(clip, s, cut.get(s), pictures.get(s), top) for s in dict.fromkeys([*cut, *clip.texts])]
    seconds = longest / clip.sample_rate if longest else 0.0
    rate = sum(len(p.audio) for p in made) / seconds if seconds else 0.0
    edited = [e for edits in clip.edits.values() for e in edits]
    words = sum(len(p.text) for p in made) + sum(len(e.reference) + len(e.hypothesis) for e in edited)
    fixed = sum(len(p.picture) for p in made) + 4 * (words + len(clip.note)) + 800 * (1 + len(made))
    whole = max((len(w) for w in full.values()), default=0) / max(1, clip.sample_rate)
    return Players(clip, seconds, whole, clip.sample_rate / 2, made, fixed, rate)


def _player(clip: Clip, system: str, wav: np.ndarray | None, picture: np.ndarray | None, top_db: float) -> Player:
    scores, text = clip.scores.get(system, {}), clip.texts.get(system, "")
    ratings = {k: v for k, v in scores.items() if text and k.startswith("llm")}
    if wav is None or picture is None:
        return Player(system, "", "", scores, ratings, text)
    peak = float(np.abs(wav).max())
    remark = f"played {20 * np.log10(peak):.1f} dB lower, else it would clip" if peak > 1 else ""
    played = wav / peak if peak > 1 else wav
    sound, image = _data(*encode(played, clip.sample_rate)), _data("image/jpeg", _jpeg(picture, top_db))
    return Player(system, sound, image, scores, ratings, text, _speech_level(played, clip.sample_rate), remark)


def encode(wav: np.ndarray, sample_rate: int) -> tuple[str, bytes]:
    """Compress a waveform, (T,) float32 within -1 and 1, for the page.

    Returns its media type and the file: MP3 where libsndfile can write it (since 1.1), else FLAC, larger and as widely played.
    """
    import soundfile as sf
    import soxr

    out = io.BytesIO()
    if not sf.check_format("MP3", "MPEG_LAYER_III"):
        sf.write(out, wav, sample_rate, format="FLAC", subtype="PCM_16")
        return "audio/flac", out.getvalue()
    # the encoder cuts off the top eighth of its band, where enhancers and vocoders hiss: give it a wider one
    rate = next((r for r in MP3_LEVEL if r >= 1.25 * sample_rate), max(MP3_LEVEL))
    sound = wav if rate == sample_rate else np.clip(soxr.resample(wav, sample_rate, rate), -1, 1)
    options: dict[str, Any] = {"compression_level": MP3_LEVEL[rate], "bitrate_mode": "CONSTANT"}
    sf.write(out, sound, rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    return "audio/mpeg", out.getvalue()


def spectrogram_db(wav: np.ndarray, n_fft: int = 512, hop: int = 128, max_frames: int = 480) -> np.ndarray:
    """Power spectrogram in dB, (n_fft / 2 + 1, at most ``max_frames``); long clips are averaged over time."""
    padded = np.pad(wav, (n_fft // 2, n_fft // 2 + max(0, n_fft - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft).astype(np.float32), axis=1)) ** 2
    if len(power) > max_frames:
        edges = np.linspace(0, len(power), max_frames + 1).astype(int)[:-1]
        power = np.add.reduceat(power, edges) / np.diff([*edges, len(power)])[:, None]
    return 10 * np.log10(power.T + 1e-10)


def _thinned(made: Sequence[Players], room: float) -> list[int]:
    """Clips that fit when cut to ``MIN_CLIP_S``, in order."""
    first = list({p.clip.label: index for index, p in reversed(list(enumerate(made))) if p.clip.label}.values())
    rest = [index for index in range(len(made)) if index not in first]
    kept, used = set(), 0.0
    for index in [*sorted(first), *_spread(rest)]:
        size = made[index].size(MIN_CLIP_S)
        if used + size <= room:
            kept.add(index)
            used += size
    return sorted(kept)


def _spread(items: Sequence[int]) -> list[int]:
    """First, last, middle, quarters ...: any beginning of it is spread over the whole."""
    if len(items) < 3:
        return list(items)
    order = [0, len(items) - 1]
    parts = [(0, len(items) - 1)]
    for lo, hi in parts:
        middle = (lo + hi) // 2
        if middle > lo:
            order.append(middle)
            parts += [(lo, middle), (middle, hi)]
    return [items[i] for i in order]


def _longest(clips: Sequence[Players], room: float) -> float:
    """The length to which all have to be cut."""
    low, high = 0.0, MAX_CLIP_S
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(c.size(middle) for c in clips) <= room else (low, middle)
    return max(low, 0.1)


def _speech_level(wav: np.ndarray, sample_rate: int) -> float:
    """Level in dB of the frames within 20 dB of the loudest: pauses, which enhancers empty, do not count."""
    width = max(1, min(len(wav), sample_rate // 50))
    power = (wav[: len(wav) // width * width].astype(np.float64).reshape(-1, width) ** 2).mean(1)
    return float(10 * np.log10(power[power >= 0.01 * power.max()].mean() + 1e-12))


def _jpeg(picture_db: np.ndarray, top_db: float) -> bytes:
    from matplotlib import image

    out = io.BytesIO()
    style: dict[str, Any] = {"cmap": "magma", "vmin": top_db - RANGE_DB, "vmax": top_db, "origin": "lower"}
    image.imsave(out, picture_db, format="jpeg", pil_kwargs={"quality": 68, "optimize": True}, **style)
    return out.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


# ----------------------------------------------------------------------------------------------------- choice of items

RATE_HZ = 16000  # of clips of which no system made a sound
SCORES = 6  # metrics beside a player
COUNTED = "words right"  # what texts are ranked by
Row = Mapping[str, float]  # item -> value


def beside(metrics: Sequence[str], count: int) -> list[str]:
    """Metrics whose values stand beside a player: the first ones, and those that have words to be shown with."""
    return [m for i, m in enumerate(metrics) if i < count or m.split("[")[0] == "llm"]


def choose_examples(level: Row, gain: Row, count: int, metric: str) -> list[tuple[str, str]]:
    """Choose items and say why: the largest losses and gains, the worst, the best, the rest evenly spaced in between.

    Args:
        level: item -> value, signed so that more is better.
        gain: item -> difference to a baseline, signed alike; empty where there is no baseline.
        count: most items.

    Returns:
        (item, label), losses first; fewer than ``count`` where there are not more.
    """
    by_gain, by_level = ([k for _, k in sorted((v, k) for k, v in values.items())] for values in (gain, level))
    share, chosen = max(1, count // 3), dict[str, str]()

    def take(keys: list[str], most: int, label: str) -> None:
        for key in [k for k in keys if k not in chosen][: max(0, min(most, count - len(chosen)))]:
            chosen[key] = label

    def change(value: float, below: str, above: str) -> str:
        return f"unchanged {metric}" if value == 0 else f"{below if value < 0 else above} {metric}"

    if by_gain:
        half = (len(by_gain) + 1) // 2  # one item is not both
        for key in by_gain[:half][:share]:
            take([key], 1, change(gain[key], "largest loss in", "smallest gain in"))
        for key in by_gain[half:][::-1][:share]:
            take([key], 1, change(-gain[key], "largest gain in", "smallest loss in"))
    take(by_level, 1 if by_gain else share, "worst")
    take(by_level[::-1], 1 if by_gain else share, "best")
    rest = [k for k in by_gain or by_level if k not in chosen]
    room = min(count - len(chosen), len(rest))
    take([rest[i] for i in ((np.arange(room) + 0.5) * len(rest) / max(1, room)).astype(int)], room, "in between")
    return list(chosen.items())


def ranked(made: Comparison, keys: Sequence[str]) -> tuple[str, dict[str, float], dict[str, float]]:
    """What items are ranked by, its value in the last system and the gain against the baseline, signed so that more is better."""
    base, last = _ends(made)
    pairing = made.pairing
    paired = pairing.deltas.get(last.label, {}) if pairing else base.means
    known = base.by_item()
    shared = [*(m for m in known if m not in base.means), *(m for m in paired if m in known)]
    if not base.sounds and base.counts and last.counts:  # of texts alone: by their errors
        wrong = {s.label: {k: c["errors"] + c["inserted"] for k, c in s.counts.items()} for s in (base, last)}
        some = [k for k in keys if all(k in wrong[s.label] for s in (base, last))]
        level = {k: -wrong[last.label][k] / max(1, last.counts[k]["words"]) for k in some}
        less = {k: float(wrong[base.label][k] - wrong[last.label][k]) for k in some}
        return COUNTED, level, less if last is not base else {}
    if not shared:
        return "", {}, {}
    stage = made.alone.stage if made.alone else ""
    first = {"rl": "reward", "reward": "llm"}.get(stage)
    lead = next((m for m in shared if m.split("[")[0] == first), shared[0])
    sign = 1 if last.run.higher_is_better(lead) else -1
    level, under = ({k: sign * v for k, v in s.column(lead, keys).items() if v is not None} for s in (last, base))
    return lead, level, {k: v - under[k] for k, v in level.items() if k in under} if last is not base else {}


def _ends(made: Comparison) -> tuple[System, System]:
    """The baseline, and the last system (``after`` of a run alone) that is not it; of a single system itself."""
    some = _compared(made)
    base = next((s for s in some if made.pairing and s.label == made.pairing.baseline), some[0])
    return base, next((s for s in reversed(some) if s is not base and s.label != "best"), base)


def _compared(made: Comparison) -> list[System]:
    """The systems that are paired, or those of the first stage that have audio or texts."""
    pairing = made.pairing
    stages = [s.run.stage for s in made.systems if s.kept or s.rows]
    stage = pairing.stage if pairing else stages[0] if stages else ""
    return [s for s in made.systems if s.run.stage == stage]


def clips_of(made: Comparison, players: int) -> tuple[list[Clip], list[str]]:
    """Players and texts of the items that lost and gained most, among those that have audio or texts, and a note on their choice."""
    some = _compared(made)
    if not some or not players:
        return [], []
    base, last = _ends(made)
    keys = made.pairing.keys if made.pairing else dict.fromkeys(k for s in some for k in s.keys)
    shown = [k for k in keys if any(k in s.sounds or s.texts(k) is not None for s in some)]
    lead, level, gain = ranked(made, shown)
    chosen = choose_examples(level, gain, players, lead)
    against = f" against {base.label}, as many losses as gains" if gain else ", worst and best"
    notes = [f"players: chosen by {lead} of {last.label}{against}"] if chosen else []
    chosen = chosen or [(k, "") for k in (shown or list(base.sounds))[:players]]
    clips = [_clip(made, some, base, key, label, lead) for key, label in chosen]
    return [c for c in clips if c.audio or c.texts or c.edits], notes


def _clip(made: Comparison, systems: Sequence[System], base: System, key: str, label: str, lead: str) -> Clip:
    """An item with what it was made from, what the systems made of it, and its reference."""
    origin = base.origins.get(key, Origin())
    own = {s.label: s.sounds[key] for s in systems if key in s.sounds}
    sounds = {**origin.before, **_before(made, systems, base, key), **own}
    sounds |= {"reference": origin.reference} if origin.reference else {}
    rate = max(map(_rate, own.values()), default=RATE_HZ)
    audio = {name: wav for name, sound in sounds.items() if (wav := _load(sound, rate, f"{name}, {key}")) is not None}
    edits = {s.label: found for s in systems if (found := s.edits(key)) is not None}
    count = len(base.means) if len(made.systems) == 1 and base.run.stage == "reward" else SCORES
    order = {s.label: sorted(s.by_item(), key=lambda m: m != lead) for s in systems}
    scored = [s for s in systems if key in s.rows]
    scores = {s.label: {m: number(s.rows[key].get(m)) for m in beside(order[s.label], count)} for s in scored}
    words = {s.label: text for s in systems if (text := s.judged(key))}
    note = _facts(systems, {**origin.columns, **base.rows.get(key, {})}, key, edits)
    if not audio and not words:  # values stand below the players
        note += [f"{m} {v:.3g}" for m, v in scores.get(base.label, {}).items() if v is not None]
    shown = {s: row for s, row in scores.items() if s in audio or s in words}
    return Clip(key, audio, rate, " · ".join(note), shown, words, edits, label)


def _before(made: Comparison, systems: Sequence[System], base: System, key: str) -> dict[str, Sound]:
    """What the models that several runs of ``rl`` started from made of an item, as the first run kept it."""
    start = step_name(0)
    if made.alone or base.run.stage != "rl" or base.name == start:
        return {}
    same = len({json.dumps(s.run.config.get("model")) for s in systems}) == 1
    path = find(base.run.kept("samples").get(start, {}), [key]).get(key)
    return {} if path is None else {"before" if same else f"{base.label} before": Sound(path)}


def _facts(systems: Sequence[System], columns: Mapping[str, Any], key: str, edits: Mapping[str, Any]) -> list[str]:
    """What is known of an item beside its sound: conditions, text, what went wrong with it."""
    facts = [str(columns["ladder"])] if columns.get("ladder") is not None else []
    conditions = ("rung", "condition", "set", "kind")
    facts += [f"{k} {columns[k]}" for k in conditions if isinstance(columns.get(k), str | int)]
    snr, text = number(columns.get("snr_db")), columns.get("text")
    facts += [f"{snr:.1f} dB SNR"] if snr is not None else []
    shown = not edits or any(key in s.sounds for s in systems)  # else the edits show the text
    facts += [text] if isinstance(text, str) and text and shown else []
    rows = {s.label: s.rows.get(key, {}) for s in systems}
    facts += [f"{s}: hallucination ({row['rules']})" for s, row in rows.items() if row.get("rules")]
    return facts + [f"{s}: did not stop" for s, row in rows.items() if row.get("finished") is False]


def _rate(sound: Sound) -> int:
    """Sampling rate of a file in Hz; a file that cannot be read has a warning when it is loaded."""
    try:
        return sound_info(sound.path).sample_rate
    except AudioError:
        return RATE_HZ


def _load(sound: Sound, rate: int, what: str) -> np.ndarray | None:
    try:
        return load_audio(sound.path, rate, sound.offset_s, sound.duration_s)
    except AudioError as error:
        log.warn(f"{what}: {error.reason}")
        return None
