"""What a validation of ``rlspeech rl`` leaves for people: a row a clip in ``scores.jsonl``, and audio under ``samples/``.

Rows have the step as their system (``step_000020``, the name that samples and checkpoints have), so that clips can be compared one by one
within a run and between runs; ``item`` is a checksum of the input, because a name alone does not say that two runs heard the same.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import __version__
from rlspeech.config import RL, RewardSpec
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.files import safe_name, write_error
from rlspeech.rewards.base import column_of
from rlspeech.rewards.mix import compose
from rlspeech.scores import append_rows, judge_texts, keep_rows, step_name
from rlspeech.stages.past import find_sound
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.types import Sample, Score, UserError, Utterance

__all__ = ["AUDIBLE", "change_told", "keep", "keep_inputs", "reward_of", "shown_name", "trim", "tuned_facts"]


AUDIBLE = 24  # clips that can be heard before and after
ON_THE_WAY = 4  # and at the validations in between


def keep(
    folder: Path,
    step: int,
    clips: Sequence[Clip],
    samples: Sequence[Sample],
    scores: Mapping[str, Sequence[Score]],
    reward: Sequence[float | None],
) -> None:
    """Append a validation's rows; keep the inputs at the first one, and thin out the audio of those before this one.

    Args:
        folder: of the run.
        step: of the validation.
        clips: what was put in.
        samples: what came out, saved under ``samples/step_...`` already, in the order of the clips.
        scores: metric -> a score a clip.
        reward: all rewards together, as the run weighs them.

    Raises:
        UserError: the disk is full.
    """
    rows = []
    for i, (clip, sample) in enumerate(zip(clips, samples, strict=True)):
        values = {name: column[i].value for name, column in scores.items()}
        errors = {name: scores[name][i].error or "no reason given" for name, value in values.items() if value is None}
        errors |= {} if reward[i] is not None else {"reward": "a part of it is not known"}
        facts: dict[str, Any] = {"key": clip.key, "system": step_name(step), "step": step, "item": _item(clip)}
        words = _words(clip, sample, {name: column[i].detail for name, column in scores.items()})
        rows.append({**facts, **words, **values, "reward": reward[i], "errors": errors})
    append_rows(folder / "scores.jsonl", rows)
    try:
        if step == 0:
            keep_inputs(folder / "samples", clips[:AUDIBLE])
        _thin(folder / "samples", step, [c.key for c in clips[:ON_THE_WAY]])
    except OSError as error:
        raise write_error(folder / "samples", error, "what was validated before is kept") from error


def trim(folder: Path, step: int) -> None:
    """Drop torn rows and those after a step: what a resumed run is going to do again; -1 drops all."""
    keep_rows(folder / "scores.jsonl", lambda row: isinstance(row.get("step"), int) and row["step"] <= step)


def _item(clip: Clip) -> str:
    """A checksum of what was put in."""
    wav = np.ascontiguousarray(clip.noisy, dtype=np.float32)
    return f"{zlib.crc32((clip.text or '').encode(errors='surrogatepass'), zlib.crc32(wav.tobytes())):08x}"


def _words(clip: Clip, sample: Sample, details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What was to be said, what a recogniser understood, what a judge said of it."""
    heard = next((d["hypothesis"] for d in details.values() if "hypothesis" in d), None)
    found = {"text": clip.text, "hypothesis": heard if sample.hypothesis is None else sample.hypothesis}
    found |= judge_texts(details)
    return {k: v for k, v in found.items() if isinstance(v, str)}


def keep_inputs(folder: Path, clips: Sequence[Clip]) -> None:
    """Save the inputs and references under ``folder``; where they are the same, as for a recogniser, the recording."""
    for clip in clips:
        same = clip.noisy is clip.target
        for name, wav in (("recording", clip.noisy),) if same else (("input", clip.noisy), ("reference", clip.target)):
            mono = wav if wav.ndim == 1 else wav.mean(0)
            if mono.size:
                save_audio(folder / name / f"{safe_name(clip.key)}.flac", mono, clip.sample_rate)


def _thin(folder: Path, step: int, keys: Sequence[str]) -> None:
    """Of validations before ``step``, but for the first, keep the audio of ``keys``."""
    for place in folder.glob("step_*"):
        number = re.fullmatch(r"step_(\d+)", place.name)
        if number is None or not 0 < int(number[1]) < step:
            continue
        files = {p.stem: p for p in place.glob("*.flac")}
        kept = {find_sound(files, key) for key in keys}
        for path in files.values():
            if path not in kept:
                path.unlink(missing_ok=True)


# What a checkpoint of ``rlspeech rl`` says of itself: data, settings, rewards, guards, and its numbers against the start.


PACKAGES = ("torch", "transformers", "peft")
ALTOGETHER = "reward"  # the validation's column of all rewards together
OF_THE_MODEL = frozenset({"flowse", "avse"})  # tasks whose supervised loss and exploration are settings of their own


def tuned_facts(
    config: RL,
    before: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    step: int,
    utts: Sequence[Utterance],
    judged: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts of a checkpoint.

    Args:
        config: the run's.
        before: the facts of the checkpoint that it started from.
        history: validation columns, {"step": ..., metric: [a value a clip]}, the first before training.
        step: of the checkpoint.
        utts: what prompts are drawn from.
        judged: what the judge says of its metrics (``Scorer.meta``).
    """
    kept = {k: v for k, v in before.items() if k not in ("rl", "validation", "earlier", "languages")}
    if isinstance(before.get("rl"), Mapping):
        past = {k: before["rl"].get(k) for k in ("algo", "step", "from", "rewards", "guards")}
        kept["earlier"] = [*(before.get("earlier") or []), past]
    if languages := _languages(utts):
        kept["languages"] = languages
    explored = (
        {"explore": config.explore.model_dump()}
        if config.task in OF_THE_MODEL
        else {"sampling": config.sampling.model_dump()}
    )
    rl = {
        "algo": config.algo,
        "step": step,
        "steps": config.steps,
        "from": config.model,
        "seed": config.seed,
        "data": config.data,
        "valid": config.valid,
        "rows": len(utts),
        "rewards": {r.name: r.weight for r in config.rewards},
        "guards": [g.name for g in config.guards],
        "reward_specs": [
            {"name": r.name, "weight": r.weight, "scale": r.scale, "help": _help(r.name)} for r in config.rewards
        ],
        "guard_specs": [{"name": g.name, "max_drop": g.max_drop, "help": _help(g.name)} for g in config.guards],
        **config.model_dump(
            include={"prompts_per_step", "group", "lr", "kl_beta", "clip_range", "policy_weight", "supervised_weight"}
        ),
        "lora": None if config.lora is None else config.lora.model_dump(),
        **explored,
        "versions": {
            **_versions(),
            **{k: v["version"] for k, v in judged.items() if isinstance(v, Mapping) and "version" in v},
        },
    }
    if history:
        rl["results"] = _results(config, history)
        kept["validation"] = {k: mean_interval(v).mean for k, v in history[-1].items() if k != "step"}
    return {**kept, "rl": rl}


def _results(config: RL, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per metric the start, the last validation and their paired difference, each with its interval."""
    first, last = history[0], history[-1]
    rewarded = {r.name for r in config.rewards}
    found = {}
    for name in (k for k in first if k != "step" and k in last):
        role = "" if name == ALTOGETHER else "rewarded" if name in rewarded else "guard"
        found[name] = {
            "role": role,
            "higher_is_better": name == ALTOGETHER or _up(name),
            "start": mean_interval(first[name]).as_dict(),
            "now": mean_interval(last[name]).as_dict(),
            "difference": paired_delta(last[name], first[name], seed=config.seed).as_dict(),
        }
    clips = max((len(v) for k, v in first.items() if k != "step"), default=0)
    return {"step": last["step"], "clips": clips, "metrics": found}


def shown_name(name: str) -> str:
    """A metric as tables name it, with its direction where that is down."""
    return name if name == ALTOGETHER or _up(name) else f"{name} (lower is better)"


def change_told(deltas: Mapping[str, Interval]) -> str:
    """What a validation found against the first one, for the terminal: means, sorted by whether their intervals say better or worse."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, found in deltas.items():
        if not math.isfinite(found.mean):
            continue
        up = name == ALTOGETHER or _up(name)
        verdict = "undecided" if not found.significant else "better" if (found.mean > 0) == up else "worse"
        told[verdict].append(f"{'all rewards together' if name == ALTOGETHER else name} {found.mean:+.3g}")
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in told.items() if names)


def _help(name: str) -> str:
    try:
        return column_of(name).help
    except UserError:
        return ""


def _up(name: str) -> bool:
    try:
        return column_of(name).higher_is_better
    except UserError:
        return True


def _languages(utts: Iterable[Utterance]) -> list[str]:
    """Languages of the data, where every row says its own and there are few."""
    found = {u.language for u in utts}
    return sorted(str(x) for x in found) if None not in found and 0 < len(found) <= 8 else []


def _versions() -> dict[str, str]:
    found = {"rlspeech": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def reward_of(
    specs: Sequence[RewardSpec], row: Mapping[str, Sequence[float | None]], first: Mapping[str, Sequence[float | None]]
) -> list[float | None]:
    """The rewards of every validation clip in one number, as the run weighs them but for their bounds.

    Rewards with a scale count in units of their spread over the clips at step 0, so that the number means the same at every step.

    Args:
        specs: the run's.
        row: name -> values (K,) by clip.
        first: the same at step 0.
    """
    values = {s.name: np.array([np.nan if v is None else v for v in row[s.name]], np.float64) for s in specs}
    unbounded = [s.model_copy(update={"bounds": (None, None)}) for s in specs]
    count = len(row[specs[0].name])
    made = compose(values, np.zeros(count), unbounded, spread=[1.0] * len(specs))
    units = [1.0 if s.scale == "none" else _spread(first[s.name]) for s in specs]
    weighed = zip(made.weights, made.parts.T, units, strict=True)
    total = sum((weight * part / unit for weight, part, unit in weighed if weight), np.zeros(count))
    return [float(v) if np.isfinite(v) else None for v in total]


def _spread(values: Sequence[float | None]) -> float:
    """Standard deviation of what could be scored; 1 where there is none to divide by."""
    known = np.array([v for v in values if v is not None])
    return float(known.std()) or 1.0 if len(known) else 1.0
