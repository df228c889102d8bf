"""Python functions as rewards, with the calling convention that users of TRL know.

    def my_reward(wavs, texts, sample_rate, **columns) -> list[float | None]

``wavs`` are (T,) float32 arrays, ``texts`` strings or None; ``columns`` holds one list for each further manifest key, and
``targets`` and ``keys``. A function that names a parameter ``hypotheses`` is handed the texts that a recogniser made, and is asked
only where there is one, whatever the waveform. Attributes of the function change how it is called: ``sample_rate`` (in Hz),
``needs`` ({"target"}, {"text"}), ``higher_is_better``, ``optional`` (None may mean that there is nothing to judge), ``version``.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlspeech.rewards.base import asks_for, load_function
from rlspeech.types import Sample, Score, UserError

__all__ = ["UserReward"]


class UserReward:
    """A function behind the reward interface. Args: name ``package.module:function``."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name, self.function = name, load_function(name)
        self.version = str(getattr(self.function, "version", "unversioned"))
        self._texts = asks_for(self.function, "hypotheses")
        try:
            inspect.signature(self.function).bind([], [], 16000, keys=[], targets=[], **({"hypotheses": []} if self._texts else {}))
        except TypeError as error:
            raise UserError(f"the reward {name} has the wrong signature", str(error),
                            "def my_reward(wavs, texts, sample_rate, **columns) -> list[float | None]") from error
        except ValueError:  # built in C: no signature to look at
            pass

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Call the function once a sample rate; where it raises, once a sample, so that only the culprit is unscorable."""
        rates = [s.sample_rate for s in samples]
        if len(set(rates)) > 1:
            parts = {r: iter(self.compute([s for s in samples if s.sample_rate == r], columns)) for r in set(rates)}
            return [next(parts[r]) for r in rates]
        try:
            answers = self._call(samples)
        except UserError:
            raise
        except Exception as error:
            if len(samples) == 1:
                answers = [error]
            else:
                return [self.compute([s], columns)[0] for s in samples]
        return [{self.name: _to_score(a)} for a in answers]

    def _call(self, samples: Sequence[Sample]) -> list[Any]:
        names = sorted({k for s in samples for k in s.columns} - {"wavs", "texts", "sample_rate"})
        extra: dict[str, Any] = {k: [s.columns.get(k) for s in samples] for k in names}
        if self._texts:
            extra["hypotheses"] = [s.hypothesis for s in samples]
        extra["keys"], extra["targets"] = [s.key for s in samples], [s.target for s in samples]
        answers = self.function([s.wav for s in samples], [s.text for s in samples], samples[0].sample_rate, **extra)
        try:
            answers = list(answers)
        except TypeError:
            raise UserError(f"the reward {self.name} must return a list", f"it returned {type(answers).__name__}",
                            "return one number or None per waveform") from None
        if len(answers) != len(samples):
            raise UserError(f"the reward {self.name} returned {len(answers)} scores for {len(samples)} waveforms", "",
                            "return one number or None per waveform")
        return answers


def _to_score(answer: Any) -> Score:
    if isinstance(answer, Score):
        return answer
    if answer is None:
        return Score(None, "the function returned None")
    if isinstance(answer, Exception):
        return Score(None, f"{type(answer).__name__}: {answer}"[:200])
    if hasattr(answer, "item") and np.size(answer) == 1:
        answer = answer.item()
    if not isinstance(answer, numbers.Real):
        return Score(None, f"the function returned {type(answer).__name__}, not a number")
    value = float(answer)
    return Score(value) if np.isfinite(value) else Score(None, f"the function returned {value}")
