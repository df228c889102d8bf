"""Python functions as rewards: the project's own calling convention, or TRL's.

    def my_reward(wavs, texts, sample_rate, **columns) -> list[float | None]
    def my_reward(prompts, completions, **columns) -> list[float | None]

``wavs`` are (T,) float32 arrays, ``texts`` strings or None; ``columns`` holds one list for each further manifest key, and
``targets`` and ``keys``. A function that names a parameter ``hypotheses`` is handed the texts that a recogniser made, and is asked
only where there is one, whatever the waveform. Attributes of the function change how it is called: ``sample_rate`` (in Hz),
``needs`` ({"target"}, {"text"}), ``higher_is_better``, ``optional`` (None may mean that there is nothing to judge), ``version``.

A function that names ``completions`` and no ``wavs`` is one of TRL's: completions are a recogniser's texts, prompts the column
``prompt`` (else empty), the reference is the column ``text``, and it may be ``async``. ``pkg.mod:f[conversational=true]`` hands it
messages, as TRL does where the dataset is made of them.
"""

from __future__ import annotations

import asyncio
import inspect
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rlspeech.parallel import one_by_one, within
from rlspeech.plugins import load_function
from rlspeech.rewards.catalogue import ANY, Column, Entry
from rlspeech.types import Sample, Score, UserError

MOST = 10  # waveforms of a call for which time is given
GIVE_UP_AFTER = 3  # calls in a row that do not return


def asks_for(function: Any, parameter: str) -> bool:
    """Whether a function names a parameter in its signature."""
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in C
        return False


def is_trls(function: Any) -> bool:
    """Whether a function has the form of TRL's rewards: it judges ``completions`` and takes no waveforms."""
    return asks_for(function, "completions") and not asks_for(function, "wavs")


def entry_of(path: str) -> Entry:
    """What a Python function says of itself; one with a parameter ``hypotheses``, or of TRL's form, judges texts."""
    function, factory = load_function(path), "rlspeech.rewards.user:UserReward"
    up, optional = bool(getattr(function, "higher_is_better", True)), bool(getattr(function, "optional", False))
    texts = {"hypothesis"} if asks_for(function, "hypotheses") or is_trls(function) else set()
    columns, needs = {path: Column("Python function", up, optional=optional)}, {*getattr(function, "needs", ()), *texts}
    how: dict[str, Any] = {**ANY, "sample_rate": getattr(function, "sample_rate", None)}
    return Entry(path, factory, columns, frozenset(needs), **how)


class UserReward:
    """A function behind the reward interface.

    Args:
        name: ``package.module:function``.
        conversational: a function of TRL's gets lists of messages instead of strings.
        device: ignored; a function knows its own.
    """

    timeout_s = 60.0  # longest time of a call, for each of its first waveforms (``MOST``)

    def __init__(self, name: str, device: str = "cpu", conversational: bool = False) -> None:
        self._late = 0  # calls in a row that did not return in time
        self.name, self.function, self.conversational = name, load_function(name), conversational
        self.version = str(getattr(self.function, "version", "unversioned"))
        self._texts, self._trl = asks_for(self.function, "hypotheses"), is_trls(self.function)
        if conversational and not self._trl:
            why = "conversational is for functions of TRL's form, with a parameter completions"
            raise UserError(f"{name} takes no messages", why, f"--reward {name}")
        if self._trl:
            return  # what it asks for beyond the texts are columns of the data
        given: dict[str, Any] = {"keys": [], "targets": [], **({"hypotheses": []} if self._texts else {})}
        try:
            inspect.signature(self.function).bind([], [], 16000, **given)
        except TypeError as error:
            usage = "def my_reward(wavs, texts, sample_rate, **columns) -> list[float | None]"
            raise UserError(f"the reward {name} has the wrong signature", str(error), usage) from error
        except ValueError:  # built in C: no signature to look at
            pass

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Call the function once a sample rate; where it raises, once a sample, so that only the culprit is unscorable."""
        rates = [s.sample_rate for s in samples]
        if len(set(rates)) > 1:
            parts = {r: iter(self.compute([s for s in samples if s.sample_rate == r], columns)) for r in set(rates)}
            return [next(parts[r]) for r in rates]
        return [{self.name: _to_score(a)} for a in one_by_one(self._call, samples)]

    def _call(self, samples: Sequence[Sample]) -> list[Any]:
        names = sorted({k for s in samples for k in s.columns} - {"wavs", "texts", "sample_rate"})
        extra: dict[str, Any] = {k: [s.columns.get(k) for s in samples] for k in names}
        extra["keys"] = [s.key for s in samples]
        if self._texts:
            extra["hypotheses"] = [s.hypothesis for s in samples]
        texts = [s.text for s in samples]
        if self._trl:
            answers = self._call_as_trl(samples, {**extra, "text": texts})
        else:
            wavs = [s.wav.copy() for s in samples]  # what a function changes in place must not reach the other rewards
            extra["targets"] = [None if s.target is None else s.target.copy() for s in samples]
            answers = self._in_time(len(samples), lambda: self.function(wavs, texts, samples[0].sample_rate, **extra))
        # the culprit's alone where it is asked item by item
        made = [*answers] if isinstance(answers, Iterable) else None
        if made is None or len(made) != len(samples):
            count = type(answers).__name__ if made is None else len(made)
            raise ValueError(f"returned {count} for {len(samples)} waveforms; one number or None each is needed")
        return made

    def _call_as_trl(self, samples: Sequence[Sample], columns: dict[str, Any]) -> Any:
        """Call the function as ``trl.GRPOTrainer`` would; one without ``**kwargs`` gets the parameters that it names."""
        prompts: list[Any] = [str(p or "") for p in columns.pop("prompt", [None] * len(samples))]
        completions: list[Any] = [s.hypothesis or "" for s in samples]
        if self.conversational:
            prompts = [[{"role": "user", "content": p}] for p in prompts]
            completions = [[{"role": "assistant", "content": c}] for c in completions]
        ids = [[] if s.tokens is None else s.tokens.tolist() for s in samples]
        given = {"completion_ids": ids, "trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        given |= {**columns, "prompts": prompts, "completions": completions}
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            given = {k: v for k, v in given.items() if k in parameters}

        def call() -> Any:
            answers = self.function(**given)
            return asyncio.run(answers) if inspect.iscoroutine(answers) else answers

        return self._in_time(len(samples), call)

    def _in_time(self, count: int, call: Callable[[], Any]) -> Any:
        """What a call on ``count`` waveforms answers. One that has not returned several times is not called any more."""

        def listed() -> Any:
            answers = call()  # a generator computes as it is read
            return list(answers) if inspect.isgenerator(answers) else answers

        if self._late >= GIVE_UP_AFTER:
            raise TimeoutError(f"not called: {self._late} calls in a row did not return in time")
        try:
            answers = within(self.timeout_s * min(count, MOST), listed)
        except TimeoutError:
            self._late += 1
            raise
        self._late = 0
        return answers


def _ignore(*_: Any, **__: Any) -> None:
    """Take what a reward writes to TRL's log; there is none here."""


def _to_score(answer: Any) -> Score:
    if isinstance(answer, Score):
        return answer
    if isinstance(answer, Exception):
        return Score(None, f"{type(answer).__name__}: {answer}"[:200])
    if answer is None:
        return Score(None, "the function returned None")
    if hasattr(answer, "item") and np.size(answer) == 1:
        answer = answer.item()
    if not isinstance(answer, numbers.Real):
        return Score(None, f"the function returned {type(answer).__name__}, not a number")
    try:
        value = float(answer)
    except OverflowError:
        return Score(None, "the function returned a number beyond any float")
    return Score(value) if np.isfinite(value) else Score(None, f"the function returned {value}")
