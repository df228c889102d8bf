"""Families and functions that misbehave in every way, and functions of TRL's users; imported by name from tests and their processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import numpy as np

from rlspeech.types import Score


class Mean:
    """Mean of the waveform, so that order can be checked."""

    version = "test"

    def compute(self, samples, columns):
        return [{c: Score(float(np.mean(s.wav)), detail={"pid": os.getpid()}) for c in columns} for s in samples]


class Trouble:
    """Crashes, hangs or raises where the first sample of the waveform says so: 0.9 segfault, 0.8 hang, 0.7 exception."""

    version = "test"

    def compute(self, samples, columns):
        mark = round(float(samples[0].wav[0]), 1)
        if mark == 0.9:
            os.kill(os.getpid(), signal.SIGSEGV)
        if mark == 0.8:
            time.sleep(60)
        if mark == 0.7:
            raise RuntimeError("broken on purpose")
        print("a library that prints")
        return [{c: Score(1.0) for c in columns} for _ in samples]


class CannotStart:
    """Fails while it is built."""

    def __init__(self):
        raise ImportError("no such library")


def zeroes(wavs, texts, sample_rate, targets=(), **columns):
    """Changes what it is given."""
    for wav in (*wavs, *targets):
        wav[:] = 0
    return [1.0] * len(wavs)


def sleeps(wavs, texts, sample_rate, **columns):
    time.sleep(20)


def leaves(wavs, texts, sample_rate, **columns):
    raise SystemExit(3)


def endless(wavs, texts, sample_rate, **columns):
    """Answers with more than a float holds."""
    return [10**400] * len(wavs)


def loudness(wavs, texts, sample_rate, **columns):
    return [float(np.sqrt(np.mean(w**2))) for w in wavs]


def everything(wavs, texts, sample_rate, hypotheses, targets, **columns):
    each = zip(wavs, hypotheses, targets, strict=True)
    return [len(h) + float(np.abs(w).sum() + np.abs(t).sum()) for w, h, t in each]


def picky(wavs, texts, sample_rate, snr=None, **columns):
    """Raises on one item, refuses one, forgets one, answers nonsense for one and no list where one is among them."""
    out = []
    for s in [s for s in snr if s != "few"]:
        if s == "raise":
            raise ValueError("this one")
        if s == "number":
            return 3.0
        out.append({"none": None, "text": "5", "nan": float("nan")}.get(s, 1.5))
    return out


picky.higher_is_better = False


def wrong_signature(wavs):
    return [0.0 for _ in wavs]


def recogniser(wavs, sample_rate):
    """A recogniser that would invent words on anything, silence too."""
    return ["Hello,  WORLD!" if np.abs(w).max() > 0.01 else "thank you for watching" for w in wavs]


def deaf(wavs, sample_rate):
    """A recogniser that hears nothing."""
    return [""] * len(wavs)


def letters(wavs, texts, sample_rate, hypotheses, condition=None, **columns):
    """Length of the transcript; nothing to judge where the reference is unknown."""
    assert "hypotheses" not in columns and len(condition) == len(hypotheses)
    return [None if t is None else len(h) for t, h in zip(texts, hypotheses, strict=True)]


letters.optional = True


NOT_CALLABLE = 3


# -- as users of TRL write them --------------------------------------------------------------------------------------------


def longer(completions: list[str], **kwargs: Any) -> list[float]:
    """Length of the completion; checks what else it is given."""
    assert {"prompts", "completion_ids", "trainer_state", "text", "keys"} <= set(kwargs)
    kwargs["log_extra"]("column", completions)
    kwargs["log_metric"]("longest", max(map(len, completions)))
    return [float(len(c)) for c in completions]


def matches(prompts: list[str], completions: list[str], text: list[str], topic: list[str]) -> list[float | None]:
    """Takes nothing that it does not name; None where it does not apply."""
    assert prompts == [f"say {t}" if t == "digits" else "" for t in topic]
    return [None if t == "other" else float(c == x) for c, x, t in zip(completions, text, topic, strict=True)]


async def slow(completions: list[str], **kwargs: Any) -> list[float]:
    """As for services that are asked over the network."""
    await asyncio.sleep(0)
    return [1.0] * len(completions)


def messages(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """Of a dataset of conversations."""
    return [float(len(c[0]["content"])) for c in completions]


def misses(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    """Wants a column that there is not."""
    return [1.0] * len(completions)
