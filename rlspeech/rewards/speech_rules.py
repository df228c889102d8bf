"""Rules for synthesised speech: is the text recognised in it, is it as long as its group, does it stop, loop, differ, and move in pitch.

Three families, by what they look at:

    tts           the waveform, through a recogniser (arXiv 2509.18569's R1; 2509.18798's NLL reward)
    token_rules   the codec's tokens alone, nothing is decoded: R2 duration against the group's median, half of R3, stop, loops
    speech_shape  the waveform's pitch and length: the other half of R3, and what content rewards are known to flatten

Rules of a group see it by the samples' ``key``: rollouts of one utterance are scored in one batch. An empty waveform or an empty token
sequence is an answer, the worst one: nothing was said, its transcript is empty, and an empty transcript is an error rate of 1. A public
recipe scores it as the reference, and its policy learns to be silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from rlspeech.data.text import align, get_normaliser, units
from rlspeech.rewards.base import wave_problem
from rlspeech.rewards.rates import character_errors
from rlspeech.rewards.recognisers import AUDIBLE_S, Recogniser, audible, load_recogniser
from rlspeech.rewards.recognisers import transcribe_audible as transcribe
from rlspeech.rewards.rules import TextRules
from rlspeech.types import Sample, Score, UserError

FORMS: dict[str, Callable[[float], float]] = {
    "linear": lambda rate: 1.0 - rate,
    "tanh": lambda rate: 1.0 - math.tanh(3.0 * rate),  # CosyVoice's recipe, GRPO-TTS
    "exp": lambda rate: math.exp(-2.5 * rate),  # GLM-TTS
}
TOKEN_S = 0.04  # of a token whose codec is unknown
HELD_S = 0.08  # what repeats faster is a sound that is held, or a pause
# bytes of UTF-8 a second of usual speech (English and Chinese alike), and of the slowest and fastest
PACE, PACES = 15.0, (7.5, 30.0)
PITCH_HOP_S = 0.01
LEAST_RATIO = 0.01  # of lengths, where a logarithm is taken: nothing was said
VOICED = 10  # frames, at least, for a spread of pitch


class TextScores:
    """What error rates and log-posteriors of a text are turned into; shared by the waveform's and the tokens' judge.

    Args:
        normaliser: of both texts, see ``rlspeech.data.text``.
        language: of the texts; None: the manifest's ``language`` column, else by script.
        form: of the accuracy, a name in ``FORMS``.
        low: lower bound of the accuracy; None: no bound.
        nll_scale: the posterior's score is exp(-NLL / nll_scale), NLL being a mean over the text's pieces in nats.

    Raises:
        UserError: an unknown form or normaliser, or a scale that is not above 0.
    """

    def __init__(
        self,
        normaliser: str = "basic-3",
        language: str | None = None,
        form: str = "linear",
        low: float | None = -1.0,
        nll_scale: float = 3.0,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"no form of the accuracy is called {form!r}", "", f"one of {', '.join(FORMS)}")
        if not nll_scale > 0:
            raise UserError(f"nll_scale is {nll_scale}", "the score is exp(-NLL / nll_scale)", "3, as published")
        self.normalise, self.name, self.form = lru_cache(4096)(get_normaliser(normaliser)), normaliser, form
        self._language, self._low, self._scale = language, low, nll_scale

    def rates(self, reference: str, hypothesis: str, language: Any = None) -> tuple[float, float]:
        """Character and word error rate of normalised texts, the reference not empty; of an empty hypothesis 1."""
        language = self._language or (language if isinstance(language, str) else None)
        wrong, length = character_errors(reference, hypothesis, language)
        return wrong / length, align(units(reference, language), units(hypothesis, language)).rate

    def row(
        self, sample: Sample, hypothesis: str | Exception | None, nll: float | None, prefix: str, columns: Sequence[str]
    ) -> dict[str, Score]:
        """The columns ``prefix``_cer, _wer, _accuracy, _nll and _posterior of one sample, of those that are asked for."""
        if isinstance(hypothesis, Exception):
            return dict.fromkeys(columns, Score(None, str(hypothesis)))
        reference = self.normalise(sample.text or "")
        detail: dict[str, Any] = {"hypothesis": hypothesis, "normaliser": self.name}
        if not reference:
            return dict.fromkeys(columns, Score(None, "the reference text is empty after normalisation", detail))
        values: dict[str, float] = {}
        if hypothesis is not None:
            cer, wer = self.rates(reference, self.normalise(hypothesis), sample.columns.get("language"))
            accuracy = FORMS[self.form](cer)
            accuracy = accuracy if self._low is None else max(self._low, accuracy)
            values |= {"cer": cer, "wer": wer, "accuracy": accuracy}
        if nll is not None:
            values |= {"nll": nll, "posterior": math.exp(-nll / self._scale)}
        names = {c: c.removeprefix(f"{prefix}_") for c in columns}
        return {c: Score(values[n], None, detail) for c, n in names.items() if n in values}


class SpokenText:
    """Family ``tts``: a recogniser on the synthesised waveform.

    Args:
        recogniser: see ``recognisers.load_recogniser``; the posterior needs an audio language model.
        batch: waveforms at once; they are sorted by length first.
        device: where the recogniser runs.
        text: of ``TextScores``; ``language`` goes to the recogniser too, ``beams`` to it alone.
    """

    def __init__(self, recogniser: str = "embedded", batch: int = 16, device: str = "cpu", **text: Any) -> None:
        more = {k: text.pop(k) for k in ("beams",) if k in text}
        self._scores, self._name = TextScores(**text), recogniser
        self._recognise = load_recogniser(recogniser, device, text.get("language"), batch, **more)
        how = f"text {self._scores.name}, form {self._scores.form}"
        self.version = f"speech-rules-1, recogniser {getattr(self._recognise, 'version', recogniser)}, {how}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Transcribe audible samples, and let the recogniser rate the text where that is asked for; ``detail``: the transcript."""
        texts: Sequence[str | Exception | None] = [None] * len(samples)
        nll: list[float | None] = [None] * len(samples)
        if set(columns) & {"tts_accuracy", "tts_cer", "tts_wer"}:
            texts = transcribe(self._recognise, samples)
        if set(columns) & {"tts_nll", "tts_posterior"}:
            rater, rows = self._rating(), audible(samples)
            nll = [rater.guess_nll] * len(samples)  # silence tells nothing of a text
            wanted = [self._scores.normalise(samples[i].text or "") for i in rows]
            rate = samples[0].sample_rate if samples else 0
            for i, value in zip(rows, rater.nll([samples[i].wav for i in rows], rate, wanted), strict=True):
                nll[i] = value
        return [self._scores.row(s, t, v, "tts", columns) for s, t, v in zip(samples, texts, nll, strict=True)]

    def _rating(self) -> Recogniser:
        if not isinstance(self._recognise, Recogniser):
            why, hint = "tts_posterior and tts_nll need an audio language model", "recogniser=embedded, or tts_accuracy"
            raise UserError(f"{self._name} gives no probability of a text", why, hint)
        return self._recognise


class RecognisedText:
    """Family ``asr`` where a recogniser is named: rows without a hypothesis get what it makes of the waveform.

    Args:
        recogniser: see ``recognisers.load_recogniser``, which also gets ``language``, ``batch``, ``device`` and ``beams``.
        normaliser: of both texts.
        rules: further options of ``rules.TextRules``, which judges.
    """

    def __init__(self, recogniser: str, normaliser: str = "basic-3", **rules: Any) -> None:
        how = {k: rules.pop(k) for k in ("batch", "device", "beams") if k in rules}
        self._rules = TextRules(normaliser, **rules)
        self._recognise = load_recogniser(recogniser, language=rules.get("language"), **how)
        self.version = f"{self._rules.version}, recogniser {getattr(self._recognise, 'version', recogniser)}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Transcribe and judge; a row of silence has an empty hypothesis."""
        new = iter(transcribe(self._recognise, [s for s in samples if s.hypothesis is None]))
        texts = [next(new) if s.hypothesis is None else s.hypothesis for s in samples]
        rows = [replace(s, hypothesis=str(t)) for s, t in zip(samples, texts, strict=True)]
        made = zip(self._rules.compute(rows, columns), texts, strict=True)
        return [dict.fromkeys(columns, Score(None, str(t))) if isinstance(t, Exception) else row for row, t in made]


class TokenRules:
    """Family ``token_rules``: what codec tokens and their group tell without a recogniser.

    ``loop``: of ``find_loop`` (``period_s``, ``repeats``, ``span_s``, ``share``, ``still_s``), whatever the codec's tokens a second.
    """

    version = "token-rules-2"

    def __init__(self, **loop: Any) -> None:
        find_loop(np.zeros(0, np.int64), **loop)  # refuses what cannot be
        self._loop = loop

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Score a batch; samples with one ``key`` and ``group`` are one group."""
        tokens = [np.asarray(s.tokens, dtype=np.int64).ravel() for s in samples]
        rows, loops = list(zip(samples, tokens, strict=True)), list[int | None]()
        if set(columns) & {"tts_loop", "tts_token_diversity"}:
            loops = [find_loop(t, s.token_s or TOKEN_S, **self._loop) for s, t in rows]
        groups: dict[Any, list[int]] = {}
        for i, s in enumerate(samples):
            groups.setdefault((s.key, s.group), []).append(i)
        rules: dict[str, Callable[[], list[Score]]] = {
            "tts_duration": lambda: self._durations(samples, tokens, groups.values()),
            "tts_token_diversity": lambda: self._diversity(samples, tokens, loops, groups.values()),
            "tts_stopped": lambda: [Score(float(s.finished), None, {"tokens": len(t)}) for s, t in rows],
            "tts_loop": lambda: [Score(float(x is not None), None, {"loop": x}) for x in loops],
        }
        made = {c: rules[c]() for c in columns}
        return [{c: made[c][i] for c in columns} for i in range(len(samples))]

    @staticmethod
    def _durations(samples: Sequence[Sample], tokens: list[np.ndarray], groups: Iterable[list[int]]) -> list[Score]:
        """R2 = -| |o| - T | / T, T the median of the group; of those that stopped, where any did: one that runs on is no measure."""
        out = [Score(None, "not scored")] * len(samples)
        for rows in groups:
            lengths = [len(tokens[i]) for i in rows if samples[i].finished] or [len(tokens[i]) for i in rows]
            median = max(float(np.median(lengths)), 1.0)
            for i in rows:
                size = len(tokens[i])
                out[i] = Score(-abs(size - median) / median, None, {"tokens": size, "median": median})
        return out

    @staticmethod
    def _diversity(
        samples: Sequence[Sample], tokens: list[np.ndarray], loops: list[int | None], groups: Iterable[list[int]]
    ) -> list[Score]:
        """Mean normalised edit distance to the others; a row that does not stop, loops or is empty gets 0 and is not compared with."""
        from rapidfuzz.distance import Levenshtein

        out = [Score(None, "nothing to compare with")] * len(tokens)
        for rows in groups:
            if len(rows) < 2:
                continue
            good = [i for i in rows if samples[i].finished and loops[i] is None and len(tokens[i])]
            written = {i: tokens[i].tolist() for i in good}
            sums = dict.fromkeys(rows, 0.0)
            for at, i in enumerate(good):
                for j in good[at + 1 :]:
                    far = float(Levenshtein.normalized_distance(written[i], written[j]))
                    sums[i], sums[j] = sums[i] + far, sums[j] + far
            for i in rows:
                out[i] = Score(sums[i] / max(len(good) - 1, 1))
        return out


def find_loop(
    tokens: np.ndarray,
    token_s: float = TOKEN_S,
    *,
    period_s: float = 2.4,
    repeats: int = 3,
    span_s: float = 1.6,
    share: float = 0.85,
    still_s: float = 2.4,
) -> int | None:
    """The period of a loop in codec tokens, in tokens, None where there is none.

    Sampling breaks an exact repetition now and then, so a loop is a stretch in which ``share`` of the tokens equal the one a period before.
    What is held, a vowel or a pause, repeats too: one token over and over, or the few of one frame in a codec of several codebooks.

    Args:
        tokens: (S,) ids.
        token_s: seconds of speech that one of them stands for.
        period_s: longest period, in seconds.
        repeats: times that the period comes, at least.
        span_s: shortest stretch of any loop.
        share: of equal tokens.
        still_s: shortest stretch of a held sound that is no pause any more.

    Raises:
        UserError: thresholds that cannot be.
    """
    if min(period_s, span_s, still_s) <= 0 or repeats < 2 or not 0 < share <= 1:
        what = "these thresholds would call every sequence a loop, or none"
        raise UserError(what, "", "seconds above 0, repeats >= 2, share <= 1")
    longest, span, still = (max(2, round(s / token_s)) for s in (period_s, span_s, still_s))
    fast = max(1, int(HELD_S / token_s + 1e-6))
    sums = dict[int, np.ndarray]()  # of the tokens that equal the one n before
    for n in range(1, min(longest, len(tokens) // 2) + 1):
        stretch = still if n <= fast else max(repeats * n, span)
        window = stretch - n
        if len(tokens) < stretch or window < 1:
            continue
        same = _in_windows(tokens, n, window, sums)
        looped = same >= share * window
        if n > fast and looped.any():  # a held sound has every period, and a pause is no loop
            for k in range(1, fast + 1):
                looped &= _in_windows(tokens, k, window, sums)[: len(looped)] < 0.5 * window
        if bool(looped.any()):
            return n
    return None


def _in_windows(tokens: np.ndarray, n: int, window: int, sums: dict[int, np.ndarray]) -> np.ndarray:
    """How many of the tokens in each window of a sequence equal the one ``n`` before."""
    if n not in sums:
        sums[n] = np.concatenate([[0], (tokens[n:] == tokens[:-n]).cumsum()])
    return np.asarray(sums[n][window:] - sums[n][:-window])


class SpeechShape:
    """Family ``speech_shape``: spread of the pitch, and length against the recording's.

    Rewards of content alone flatten prosody and slow speech down, unseen by every score of words; these two show it.
    """

    version = "speech-shape-2"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        rules = {"tts_duration_ratio": _ratio, "tts_duration_drift": _drift, "tts_pitch_std": _spread}
        return [{c: rules[c](s) for c in columns} for s in samples]


def _drift(sample: Sample) -> Score:
    ratio = _ratio(sample)
    return ratio if ratio.value is None else Score(abs(math.log(max(ratio.value, LEAST_RATIO))))


def _ratio(sample: Sample) -> Score:
    length, source = expected_s(sample)
    if length is None:
        return Score(None, "neither a recording nor a text to compare with")
    detail = {"expected_s": round(length, 3), "expected_by": source}
    return Score(len(sample.wav) / sample.sample_rate / length, None, detail)


def expected_s(sample: Sample) -> tuple[float | None, str]:
    """How long a text should take, in seconds, and by what: its recording, its prompt's pace, or that of usual speech; None: no text."""
    length = sample.columns.get("duration")
    if isinstance(length, int | float) and not isinstance(length, bool) and length > 0:
        return float(length), "recording"
    size, prompt = len((sample.text or "").encode()), sample.columns.get("prompt_text")
    if not size:
        return None, ""
    spoken = sample.columns.get("prompt_filepath") and isinstance(prompt, str)
    if spoken and prompt and sample.target is not None and len(sample.target):  # the target is the prompt's recording
        pace = len(prompt.encode()) * sample.sample_rate / len(sample.target)
        return size / min(max(pace, PACES[0]), PACES[1]), "prompt"
    return size / PACE, "text"


def _spread(sample: Sample) -> Score:
    silent = wave_problem(sample.wav, sample.sample_rate, AUDIBLE_S) is not None
    value = None if silent else pitch_spread(sample.wav, sample.sample_rate)
    return Score(None, "nothing voiced") if value is None else Score(value)


def pitch_spread(wav: np.ndarray, sample_rate: int) -> float | None:
    """Standard deviation of the natural logarithm of F0 over voiced frames of (T,), None where hardly any is voiced."""
    import torch

    from rlspeech.models.spectra import track_pitch

    hop = max(1, round(PITCH_HOP_S * sample_rate))
    signal = torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))[None]
    with torch.no_grad():
        found = track_pitch(signal, sample_rate, hop, max(1, len(wav) // hop), 4 * hop)[0].numpy()
    voiced = np.log(found[found > 0])
    return float(voiced.std()) if len(voiced) >= VOICED else None
