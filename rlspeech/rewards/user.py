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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlspeech.rewards.base import asks_for, get_reward, is_trls, load_function, resolve
from rlspeech.types import Reward, Sample, Score, UserError

__all__ = ["TrlReward", "UserReward", "as_trl_reward"]


class UserReward:
    """A function behind the reward interface.

    Args:
        name: ``package.module:function``.
        conversational: a function of TRL's gets lists of messages instead of strings.
        device: not looked at; a function knows its own.
    """

    def __init__(self, name: str, device: str = "cpu", conversational: bool = False) -> None:
        self.name, self.function, self.conversational = name, load_function(name), conversational
        self.version = str(getattr(self.function, "version", "unversioned"))
        self._texts, self._trl = asks_for(self.function, "hypotheses"), is_trls(self.function)
        if conversational and not self._trl:
            raise UserError(
                f"{name} takes no messages",
                "conversational is for functions of TRL's form, with a parameter completions",
                f"--reward {name}",
            )
        if self._trl:
            return  # what it asks for beyond the texts are columns of the data
        try:
            inspect.signature(self.function).bind(
                [], [], 16000, keys=[], targets=[], **({"hypotheses": []} if self._texts else {})
            )
        except TypeError as error:
            raise UserError(
                f"the reward {name} has the wrong signature",
                str(error),
                "def my_reward(wavs, texts, sample_rate, **columns) -> list[float | None]",
            ) from error
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
        if self._trl:
            answers = self._ask_as_trl(samples, extra)
        else:
            extra["keys"], extra["targets"] = [s.key for s in samples], [s.target for s in samples]
            answers = self.function(
                [s.wav for s in samples], [s.text for s in samples], samples[0].sample_rate, **extra
            )
        try:
            answers = list(answers)
        except TypeError:
            raise UserError(
                f"the reward {self.name} must return a list",
                f"it returned {type(answers).__name__}",
                "return one number or None per waveform",
            ) from None
        if len(answers) != len(samples):
            raise UserError(
                f"the reward {self.name} returned {len(answers)} scores for {len(samples)} waveforms",
                "",
                "return one number or None per waveform",
            )
        return answers

    def _ask_as_trl(self, samples: Sequence[Sample], columns: dict[str, Any]) -> Any:
        """Call the function as ``trl.GRPOTrainer`` would; one without ``**kwargs`` gets what it names."""
        prompts: list[Any] = [str(s.columns.get("prompt") or "") for s in samples]
        said: list[Any] = [s.hypothesis or "" for s in samples]
        if self.conversational:
            prompts = [[{"role": "user", "content": p}] for p in prompts]
            said = [[{"role": "assistant", "content": c}] for c in said]
        ids = [[] if s.tokens is None else s.tokens.tolist() for s in samples]
        given = {
            "completion_ids": ids,
            "trainer_state": None,
            "log_extra": _deaf,
            "log_metric": _deaf,
            "keys": [s.key for s in samples],
            **{k: v for k, v in columns.items() if k != "prompt"},
            "text": [s.text for s in samples],
            "prompts": prompts,
            "completions": said,
        }
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            given = {k: v for k, v in given.items() if k in parameters}
        answers = self.function(**given)
        return asyncio.run(answers) if inspect.iscoroutine(answers) else answers


def _deaf(*_: Any, **__: Any) -> None:
    """TRL lets rewards write to its log; here nobody listens."""


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


# Our rewards for TRL's trainers.
#
#     from rlspeech.rewards.user import as_trl_reward
#
#     trainer = trl.GRPOTrainer(model, reward_funcs=[as_trl_reward("asr_accuracy"), as_trl_reward("asr_hallucination")], ...)
#
# A completion is the text that is judged, the dataset's column ``text`` the reference, every other column reaches the reward as it would
# from a manifest. A reward of sound needs ``decode``, which makes waveforms of completions. The other direction, TRL's functions as
# rewards here, needs nothing: ``--reward package.module:function`` (``rewards/user.py``).


Decode = Callable[..., Sequence[np.ndarray]]
SILENCE = np.zeros(0, dtype=np.float32)


def as_trl_reward(name: str, **how: Any) -> TrlReward:
    """A reward of ours as a function that ``trl.GRPOTrainer`` and its relatives take. Arguments and errors are ``TrlReward``'s."""
    return TrlReward(name, **how)


class TrlReward:
    """A reward behind TRL's calling convention; it can be pickled, and its name is the reward's in TRL's log.

    Args:
        name: as for ``--reward``, options in brackets included.
        text: column with the reference text.
        target: column with the reference waveform (T,), for rewards that need one.
        decode: ``decode(completions=..., completion_ids=..., **columns)`` answers a waveform (T,) float32 for each, where sound is judged.
        sample_rate: of those waveforms and references, in Hz.
        raw: TRL makes every reward larger, so those that are better when lower change sign; True leaves it.
        device: where a model behind the reward runs.
        options: of the reward.

    Raises:
        UserError: unknown or unusable reward, or one of sound without ``decode``.
    """

    def __init__(
        self,
        name: str,
        *,
        text: str = "text",
        target: str = "target",
        decode: Decode | None = None,
        sample_rate: int = 16000,
        raw: bool = False,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        request = resolve(name, options)
        self.needs = request.entry.needs
        self.__name__ = name
        self._how: dict[str, Any] = {"device": device, **options}
        self._text, self._target, self._decode, self._rate = text, target, decode, sample_rate
        self._sign = 1.0 if raw or request.entry.columns[request.column].higher_is_better else -1.0
        self._reward: Reward | None = None
        if "tokens" in self.needs:
            why = "TRL knows completions by the ids of its own vocabulary"
            raise UserError(f"{name} judges a codec's tokens", why, "a reward of sound, with decode=function")
        if "hypothesis" not in self.needs and decode is None:
            raise UserError(
                f"{name} judges sound, and TRL's completions are texts",
                "nothing says how they become waveforms",
                "as_trl_reward(name, decode=function), or a reward of texts such as asr_accuracy",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reward": None}  # the other process builds its own

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score completions.

        Args:
            prompts: of each completion, strings or messages; the reward sees them as the column ``prompt``.
            completions: strings, or lists of messages whose last one is judged.
            completion_ids: handed to ``decode``.
            log_metric: TRL's; is told the share that could not be scored.
            columns: of the dataset, a list each; everything that is not one is left out.

        Returns:
            a number for each, or None where it cannot be scored.

        Raises:
            UserError: the dataset has no column that the reward needs.
        """
        count = len(completions)
        rows = {k: v for k, v in columns.items() if isinstance(v, list | tuple) and len(v) == count}
        for need, column in (("text", self._text), ("target", self._target)):
            if need in self.needs and column not in rows:
                raise UserError(
                    f"{self.__name__} needs the column {column!r}",
                    f"the dataset has {', '.join(sorted(rows)) or 'none'}",
                    f"as_trl_reward(name, {need}=COLUMN)",
                )
        if prompts is not None:
            rows["prompt"] = list(prompts)
        waves: Sequence[np.ndarray] = [SILENCE] * count
        if self._decode is not None:
            waves = self._decode(completions=completions, completion_ids=completion_ids, **rows)
        samples = [
            self._sample(i, said, wave, rows) for i, (said, wave) in enumerate(zip(completions, waves, strict=True))
        ]
        self._reward = self._reward or get_reward(self.__name__, **self._how)
        values = [s.value for s in self._reward.score(samples)]
        if log_metric is not None and count:
            log_metric(f"{self.__name__}/unscorable", sum(v is None for v in values) / count)
        return [None if v is None else self._sign * v for v in values]

    def _sample(self, index: int, said: Any, wave: np.ndarray, rows: dict[str, Any]) -> Sample:
        columns = {k: v[index] for k, v in rows.items() if k not in (self._text, self._target)}
        text = rows[self._text][index] if self._text in rows else None
        target = rows[self._target][index] if self._target in rows and "target" in self.needs else None
        return Sample(
            str(columns.get("id", columns.get("key", index))),
            np.asarray(wave, np.float32),
            self._rate,
            None if target is None else np.asarray(target, np.float32),
            None if text is None else str(text),
            columns,
            words_of(said),
        )


def words_of(completion: Any) -> str:
    """The text of a completion: a string, or the last message of a conversation, whose content may be in parts."""
    if isinstance(completion, str):
        return completion
    last = completion[-1] if isinstance(completion, list | tuple) and completion else completion
    content = last.get("content") if isinstance(last, dict) else last
    if isinstance(content, list | tuple):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
