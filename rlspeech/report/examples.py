"""The items that a page plays and shows: as many losses as gains, the worst and the best, so that they flatter no system."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.report import Clip
from rlspeech.report.compare import Comparison
from rlspeech.report.runs import Origin, Sound, find, number
from rlspeech.report.systems import System
from rlspeech.scores import step_name

__all__ = ["beside", "choose_examples", "clips_of"]

RATE_HZ = 16000  # of clips of which no system made a sound
SCORES = 6  # metrics beside a player
COUNTED = "words right"  # what texts are ranked by


def beside(metrics: Sequence[str], count: int) -> list[str]:
    """Metrics whose values stand beside a player: the first ones, and those that have words to be shown with."""
    return [m for i, m in enumerate(metrics) if i < count or m.split("[")[0] == "llm"]


def choose_examples(
    level: Mapping[str, float], gain: Mapping[str, float], count: int, metric: str
) -> list[tuple[str, str]]:
    """Choose items and say why: the largest losses and gains, the worst, the best, the rest evenly spaced in between.

    Args:
        level: item -> value, signed so that more is better.
        gain: item -> difference to a baseline, signed alike; empty where there is no baseline.
        count: most items.
        metric: its name, for the labels.

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
        return (
            COUNTED,
            level,
            {k: float(wrong[base.label][k] - wrong[last.label][k]) for k in some} if last is not base else {},
        )
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
    some = compared(made)
    base = next((s for s in some if made.pairing and s.label == made.pairing.baseline), some[0])
    return base, next((s for s in reversed(some) if s is not base and s.label != "best"), base)


def compared(made: Comparison) -> list[System]:
    """The systems that are paired, or those of the first stage that have audio or texts."""
    pairing = made.pairing
    stages = [s.run.stage for s in made.systems if s.kept or s.rows]
    stage = pairing.stage if pairing else stages[0] if stages else ""
    return [s for s in made.systems if s.run.stage == stage]


def clips_of(made: Comparison, players: int) -> tuple[list[Clip], list[str]]:
    """Players and texts of the items that lost and gained most, among those that have audio or texts, and a note on their choice."""
    some = compared(made)
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
    sounds = {
        **origin.before,
        **_before(made, systems, base, key),
        **{s.label: s.sounds[key] for s in systems if key in s.sounds},
    }
    sounds |= {"reference": origin.reference} if origin.reference else {}
    rate = max((_rate(s.sounds[key]) for s in systems if key in s.sounds), default=RATE_HZ)
    audio = {name: wav for name, sound in sounds.items() if (wav := _load(sound, rate, f"{name}, {key}")) is not None}
    edits = {s.label: found for s in systems if (found := s.edits(key)) is not None}
    count = len(base.means) if len(made.systems) == 1 and base.run.stage == "reward" else SCORES
    order = {s.label: sorted(s.by_item(), key=lambda m: m != lead) for s in systems}
    scored = [s for s in systems if key in s.rows and s.run.named]
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
    import soundfile as sf  # type: ignore[import-untyped]

    try:
        return int(sf.info(str(sound.path)).samplerate)
    except (sf.LibsndfileError, RuntimeError, OSError):
        return RATE_HZ


def _load(sound: Sound, rate: int, what: str) -> np.ndarray | None:
    try:
        return load_audio(sound.path, rate, sound.offset_s, sound.duration_s)
    except AudioError as error:
        log.warn(f"{what}: {error.reason}")
        return None
