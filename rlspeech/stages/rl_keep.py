"""What a validation of ``rlspeech rl`` leaves for people: a row a clip in ``scores.jsonl``, and audio under ``samples/``.

Rows have the step as their system (``step_000020``, the name that samples and checkpoints have), so that clips can be compared one by one
within a run and between runs; ``item`` is a checksum of the input, because a name alone does not say that two runs heard the same.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.files import dumps, read_jsonl, safe_name, write_error, write_text
from rlspeech.stages.past import find_sound
from rlspeech.types import Sample, Score

__all__ = ["AUDIBLE", "keep", "keep_inputs", "system_of", "trim"]

AUDIBLE = 24  # clips that can be heard before and after
ON_THE_WAY = 4  # and at the validations in between
WORDS = "llm_text"


def system_of(step: int) -> str:
    """The name of a step's rows, samples and checkpoint."""
    return f"step_{step:06d}"


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
    lines = []
    for i, (clip, sample) in enumerate(zip(clips, samples, strict=True)):
        values = {name: column[i].value for name, column in scores.items()}
        errors = {name: scores[name][i].error or "no reason given" for name, value in values.items() if value is None}
        errors |= {} if reward[i] is not None else {"reward": "a part of it is not known"}
        facts: dict[str, Any] = {"key": clip.key, "system": system_of(step), "step": step, "item": _item(clip)}
        words = _words(clip, sample, {name: column[i].detail for name, column in scores.items()})
        lines.append(dumps({**facts, **words, **values, "reward": reward[i], "errors": errors}) + "\n")
    path = folder / "scores.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        if step == 0:
            keep_inputs(folder / "samples", clips[:AUDIBLE])
        _thin(folder / "samples", step, [c.key for c in clips[:ON_THE_WAY]])
    except OSError as error:
        raise write_error(path, error, "what was validated before is kept") from error


def trim(folder: Path, step: int) -> None:
    """Drop torn rows and those after a step: what a resumed run is going to do again; -1 drops all."""
    path = folder / "scores.jsonl"
    if path.exists():
        rows = [r for r in read_jsonl(path) if isinstance(r.get("step"), int) and r["step"] <= step]
        write_text(path, "".join(dumps(r) + "\n" for r in rows))


def _item(clip: Clip) -> str:
    """A checksum of what was put in."""
    wav = np.ascontiguousarray(clip.noisy, dtype=np.float32)
    return f"{zlib.crc32((clip.text or '').encode(errors='surrogatepass'), zlib.crc32(wav.tobytes())):08x}"


def _words(clip: Clip, sample: Sample, details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What was to be said, what a recogniser understood, what a judge said of it."""
    heard = next((d["hypothesis"] for d in details.values() if "hypothesis" in d), None)
    found = {"text": clip.text, "hypothesis": heard if sample.hypothesis is None else sample.hypothesis}
    found |= {name.replace("llm", WORDS, 1): d.get(WORDS) for name, d in details.items() if name.startswith("llm")}
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
