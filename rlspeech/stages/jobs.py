"""One job an input, for commands that make a result of each (enhance, transcribe, speak): a bad one is named and stops nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.data.audio import AudioError
from rlspeech.data.inputs import Item
from rlspeech.types import UserError


@dataclass(slots=True, kw_only=True)
class Job:
    """One input and what became of it: seconds of audio, or the reason why there is no result."""

    seconds: float = 0.0
    error: str | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """What the input is called in messages and in the summary."""
        raise NotImplementedError

    def fail(self, error: str | Exception = "its shard has no result of it") -> None:
        """Leave the input out, for the first reason that is given."""
        if self.error is not None:
            return
        if isinstance(error, MemoryError):
            self.error = "too long for this machine's memory"
        elif isinstance(error, AudioError | str):
            self.error = str(error)
        else:
            self.error = f"{type(error).__name__}: {error}"[:200]
        log.say(f"left out: {self.name}: {self.error}")


@dataclass(slots=True)
class FileJob(Job):
    """A recording: a file, or the stretch of one that a manifest's row names."""

    item: Item

    @property
    def source(self) -> Path:
        """The absolute path of the file."""
        assert self.item.audio is not None  # rows of a manifest name their audio
        return Path(self.item.audio).absolute()

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self.source)


def summarise(
    verb: str, unit: str, jobs: Sequence[Job], todo: Sequence[Job], began_s: float, out: str | None, try_this: str
) -> dict[str, Any]:
    """Return and print how many results were made, how many existed, and the reason of each failure.

    Args:
        verb, unit: what was done, "enhanced", and what a job is, "file".
        jobs, todo: all inputs, and those that had no result before.
        began_s: on the monotonic clock.
        try_this: where not one result could be made; empty: that is no error.

    Raises:
        UserError: there are failures and not one result.
    """
    good, failed = [j for j in todo if j.error is None], {j.name: j.error for j in jobs if j.error is not None}
    skipped = sum(j.error is None for j in jobs) - len(good)
    if failed and try_this and not good and not skipped:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        raise UserError(f"not one of {log.several(len(failed), unit)} could be {verb}", why, try_this)
    audio_s, wall_s = sum(j.seconds for j in good), time.monotonic() - began_s
    counts = f"{log.several(len(good), unit)} {verb}, {skipped} exist already, {len(failed)} left out"
    log.say(f"{counts}; {audio_s:.1f} s of audio in {wall_s:.1f} s{f': {out}' if out else ''}")
    return {
        verb: len(good),
        "skipped": skipped,
        "failed": len(failed),
        "errors": failed,
        "audio_s": round(audio_s, 2),
        "seconds": round(wall_s, 2),
        "out": out,
    }
