"""The reward ``llm``: a describer says how a clip sounds, a classifier (or the text itself) makes a rating of it.

LR-AVSE's chain is one greedy description and the expectation over five classes. Added here: several sampled descriptions whose ratings are
averaged (``samples``), because a single description takes few different forms and so quantises the reward; audio that is longer than the
model takes is described piece by piece and rated as the mean by duration; and the same waveform is described once, however often
it is asked for (the frozen model's output comes back at every update of PPO). Every score keeps the text it came from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlspeech.data.audio import NOTHING_DBFS
from rlspeech.rewards.base import wave_problem
from rlspeech.rewards.encoders import Cache
from rlspeech.rewards.llm.describe import EMBEDDED, SAMPLE_RATE, Describer, Description, read_prompts
from rlspeech.rewards.llm.sentiment import Sentiment, read_rating
from rlspeech.scores import JUDGE_TEXT
from rlspeech.types import Sample, Score, UserError

RATINGS = ("auto", "sentiment", "number")


def get_describer(
    name: str, /, *, prompt: str | None = None, device: str = "cpu", temperature: float = 0.0, **options: Any
) -> Describer:
    """A describer by name.

    Args:
        name: 'embedded', the Hub id or folder of an audio language model of transformers, or ``http(s)://host/v1``.
        prompt: what the model is asked; None takes the model's own (the embedded listener has one), else the first of the shipped list.
        device: where a local model runs.
        temperature: 0 always takes the likeliest word.
        options: of ``audio_llm.AudioLlm`` or ``endpoint.Endpoint``.

    Raises:
        UserError: not found, not loadable, or no describer.
    """
    if re.match(r"https?://", name, re.IGNORECASE):
        from rlspeech.rewards.llm.endpoint import Endpoint

        return Endpoint(name, prompt=prompt or read_prompts()[0], temperature=temperature, **options)
    if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        why, hint = "an address begins with http:// or https://", "--llm http://HOST:PORT/v1"
        raise UserError(f"cannot use {name!r} as a describer", why, hint)
    from rlspeech.rewards.llm.audio_llm import AudioLlm

    return AudioLlm(name, prompt=prompt, device=device, temperature=temperature, **options)


class _Piece(NamedTuple):
    """A stretch of a clip to be described: which clip, how long, the waveform (T,)."""

    clip: int
    seconds: float
    wav: np.ndarray


class LlmJudge:
    """``llm``.

    Args:
        model: describer: 'embedded', Hub id or folder of an audio language model, or ``http(s)://host/v1``.
        sentiment: 'embedded', or Hub id or folder of a classifier with ordered labels.
        prompt: file with prompts, one a line; None: the describer's own, else the shipped list.
        prompt_number: which of them, from 1.
        rating: sentiment, number (the text gives n/5 itself), or auto (a number where the text has exactly one clear overall rating).
        sentiment_order: order of labels that do not say it, see ``Sentiment``.
        samples: descriptions a piece, their ratings are averaged; more than one needs a temperature.
        temperature: of the description; 0 is greedy. None: 0, and 0.7 for several samples.
        cache: waveforms whose rating is remembered.
        device: where local models run.
        options: of the describer (``dtype``, ``device_map``, ``max_new_tokens``, ``batch``, ``max_s``, ``seed``; ``name``, ``concurrency``,
            ``timeout_s``, ``retries``, ``audio`` for an address).

    Raises:
        UserError: something that cannot be loaded or does not fit together.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        sentiment: str = EMBEDDED,
        prompt: str | None = None,
        prompt_number: int | None = None,
        rating: str = "auto",
        sentiment_order: str | None = None,
        samples: int = 1,
        temperature: float | None = None,
        cache: int = 4096,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        if rating not in RATINGS:
            raise UserError(f"no way of rating is called {rating!r}", "", f"rating={', '.join(RATINGS)}")
        temperature = (0.0 if samples == 1 else 0.7) if temperature is None else float(temperature)
        if samples < 1 or (samples > 1 and temperature <= 0):
            what = f"samples={samples} cannot be used with temperature={temperature:g}"
            raise UserError(what, "greedy descriptions are all the same", "llm[samples=4,temperature=0.7]")
        asked = _prompt(prompt, prompt_number)
        self._describer = get_describer(str(model), prompt=asked, device=device, temperature=temperature, **options)
        self._sentiment = None
        if rating != "number":
            self._sentiment = Sentiment(str(sentiment), order=sentiment_order, device=device)
        self._rating, self._samples, self._known = rating, int(samples), Cache[bytes, Score](int(cache))
        classifier = self._sentiment.version if self._sentiment else "none"
        self.version = f"llm 1: {self._describer.version}; rating {rating}, samples {samples}; sentiment {classifier}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Rate a batch; ``detail`` holds ``llm_text`` (a line a description) and ``llm_stars`` (probabilities, worst label first)."""
        keys = [Cache.key(s.wav) for s in samples]
        scores = {k: score for k in keys if (score := self._known.get(k)) is not None}
        new = {k: s.wav for k, s in zip(keys, samples, strict=True) if k not in scores}
        scores |= zip(new, self._rate(list(new.values())), strict=True)
        for key in dict.fromkeys(keys):
            if not (scores[key].error or "").startswith("endpoint"):  # a server that was away may be back
                self._known.put(key, scores[key])
        return [dict.fromkeys(columns, scores[k]) for k in keys]

    def _rate(self, wavs: list[np.ndarray]) -> list[Score]:
        pieces = [p for i, wav in enumerate(wavs) for p in self._pieces(i, wav)]
        answers = self._describer.describe([p.wav for p in pieces for _ in range(self._samples)])
        scores = self._read(answers)
        out = []
        for i in range(len(wavs)):
            mine = [(p, n * self._samples, (n + 1) * self._samples) for n, p in enumerate(pieces) if p.clip == i]
            texts = [s.text for _, a, b in mine for s in answers[a:b] if s.text]
            out.append(_combine([(p, scores[a:b]) for p, a, b in mine], texts))
        return out

    def _pieces(self, clip: int, wav: np.ndarray) -> list[_Piece]:
        """Equal stretches that the describer takes; silent ones have no quality and are left out."""
        limit = self._describer.max_s
        count = 1 if limit is None else max(1, -(-len(wav) // max(1, int(limit * SAMPLE_RATE))))
        parts = np.array_split(wav, count)
        if count > 1:
            parts = [p for p in parts if wave_problem(p, SAMPLE_RATE, 0.0) is None]
        return [_Piece(clip, len(p) / SAMPLE_RATE, p) for p in parts]

    def _read(self, answers: Sequence[Description]) -> list[Score]:
        """The rating of every answer: its own number, else the classifier's."""

        def own(answer: Description) -> Score | None:
            if answer.text is None:
                return Score(None, answer.error or "no answer")
            return None if self._rating == "sentiment" else read_rating(answer.text, self._rating == "number")

        scores = [own(a) for a in answers]
        left = [a.text or "" for a, s in zip(answers, scores, strict=True) if s is None]
        missing = [Score(None, "no single rating out of 5 in the answer")] * len(left)
        rated = iter(self._sentiment.stars(left) if self._sentiment else missing)
        return [next(rated) if s is None else s for s in scores]


def _combine(rows: list[tuple[_Piece, list[Score]]], texts: list[str]) -> Score:
    """One score of a clip: mean over samples, then over pieces by duration. A piece without any rating leaves the clip without one."""
    detail: dict[str, Any] = {JUDGE_TEXT: "\n".join(texts) or None, "llm_stars": None}
    if not rows:
        return Score(None, f"silent (below {NOTHING_DBFS:g} dBFS) in every piece", detail)
    values, stars = [], []
    for number, (_, scores) in enumerate(rows, 1):
        good = [s for s in scores if s.value is not None]
        if not good:
            reason = scores[0].error or "no answer"
            whole = len(rows) == 1 or reason.startswith("endpoint")
            return Score(None, reason if whole else f"piece {number} of {len(rows)}: {reason}", detail)
        values.append(float(np.mean([s.value for s in good])))
        stars.append([s.detail["distribution"] for s in good if "distribution" in s.detail])
    weights = [p.seconds for p, _ in rows]
    plain = any(s.value is not None and "distribution" not in s.detail for _, scores in rows for s in scores)
    if all(stars) and not plain:
        means = [np.mean(s, axis=0) for s in stars]
        detail["llm_stars"] = [round(float(x), 4) for x in np.average(means, axis=0, weights=weights)]
    return Score(float(np.average(values, weights=weights)), detail=detail)


def _prompt(path: str | None, number: int | None) -> str | None:
    if path is None and number is None:
        return None
    prompts = read_prompts(path)
    number = 1 if number is None else number
    if not 1 <= number <= len(prompts):
        why = f"{path or 'the shipped list'} holds {len(prompts)}"
        raise UserError(f"there is no prompt number {number}", why, "prompt_number=1")
    return prompts[number - 1]
