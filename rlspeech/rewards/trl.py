"""Our rewards for TRL's trainers.

    from rlspeech.rewards.trl import as_trl_reward

    trainer = trl.GRPOTrainer(model, reward_funcs=[as_trl_reward("asr_accuracy"), as_trl_reward("asr_hallucination")], ...)

A completion is the text that is judged, the dataset's column ``text`` the reference, every other column reaches the reward as it would
from a manifest. A reward of sound needs ``decode``, which makes waveforms of completions. The other direction, TRL's functions as
rewards here, needs nothing: ``--reward package.module:function`` (``rewards/user.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlspeech.rewards.base import resolve
from rlspeech.rewards.scorer import get_reward
from rlspeech.types import Reward, Sample, UserError

Decode = Callable[..., Sequence[np.ndarray]]
SILENCE = np.zeros(0, dtype=np.float32)


class TrlReward:
    """A reward of ours as a function that ``trl.GRPOTrainer`` takes; it can be pickled, and its name is the reward's in TRL's log.

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
            what, why = f"{name} judges sound, and TRL's completions are texts", "nothing turns them into waveforms"
            hint = "as_trl_reward(name, decode=function), or a reward of texts such as asr_accuracy"
            raise UserError(what, why, hint)

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
            log_metric: TRL's; gets the share that could not be scored.
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
                what, there = f"{self.__name__} needs the column {column!r}", ", ".join(sorted(rows)) or "none"
                raise UserError(what, f"the dataset has {there}", f"as_trl_reward(name, {need}=COLUMN)")
        if prompts is not None:
            rows["prompt"] = list(prompts)
        wavs: Sequence[np.ndarray] = [SILENCE] * count
        if self._decode is not None:
            wavs = self._decode(completions=completions, completion_ids=completion_ids, **rows)
        samples = [self._sample(i, c, w, rows) for i, (c, w) in enumerate(zip(completions, wavs, strict=True))]
        self._reward = self._reward or get_reward(self.__name__, **self._how)
        values = [s.value for s in self._reward.score(samples)]
        if log_metric is not None and count:
            log_metric(f"{self.__name__}/unscorable", sum(v is None for v in values) / count)
        return [None if v is None else self._sign * v for v in values]

    def _sample(self, index: int, completion: Any, wav: np.ndarray, rows: dict[str, Any]) -> Sample:
        columns = {k: v[index] for k, v in rows.items() if k not in (self._text, self._target)}
        text, target = (rows[c][index] if c in rows else None for c in (self._text, self._target))
        target = None if target is None or "target" not in self.needs else np.asarray(target, np.float32)
        key, text = str(columns.get("id", columns.get("key", index))), None if text is None else str(text)
        return Sample(key, np.asarray(wav, np.float32), self._rate, target, text, columns, words_of(completion))


as_trl_reward = TrlReward


def words_of(completion: Any) -> str:
    """The text of a completion: a string, or the last message of a conversation, whose content may be in parts."""
    if isinstance(completion, str):
        return completion
    last = completion[-1] if isinstance(completion, list | tuple) and completion else completion
    content = last.get("content") if isinstance(last, dict) else last
    if isinstance(content, list | tuple):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
