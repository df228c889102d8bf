"""Describers: models that listen to a clip and say in words how it sounds; the first half of the reward ``llm``.

LR-AVSE (2025) lets an audio language model describe the quality of an enhanced clip and reads a rating out of the description. Here
a describer is anything that answers a fixed prompt about a waveform: the embedded listener, any audio language model of transformers
(``audio_llm``), or any OpenAI-compatible server (``endpoint``). What a model says is untrusted text: it is cleaned, shown escaped and
never interpreted beyond the rating, and an answer that is empty or a refusal is no answer, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rlspeech.files import read_text
from rlspeech.models.hub import embedded_path
from rlspeech.types import UserError

SAMPLE_RATE = 16000  # what every describer is given, in Hz
EMBEDDED = "embedded"
MAX_TEXT = 4000  # characters of an answer that are kept
MAX_PROMPT = 8000
_CANNOT = (
    r"(?:can't|can not|cannot|could not|couldn't|unable to|not able to|not (?:in a position|allowed|designed) to|won't"
    r"|do(?: not|n't) have the (?:ability|capability) to)"
)
_TASK = (
    r"(?:assist|help|process|access|listen|analy[sz]e|evaluate|assess|rate|judge|provide|comply|answer|play|open"
    r"|hear (?:the |any |your |this )?(?:audio|sound|recording|file|clip))"
)
_REFUSED = re.compile(rf"\b{_CANNOT} (?:\w+ )?{_TASK}", re.IGNORECASE)
_SPEAKS_OF_ITSELF = re.compile(r"\b(?:i|i'm|we|ai|assistant|language model)\b", re.IGNORECASE)
_NO_AUDIO = re.compile(
    r"\b(?:no|any) (?:audio|recording|sound file|speech sample)(?: file| clip)? (?:(?:was|is|has been|were|to be) )?"
    r"(?:provided|attached|found|given|included)|\b(?:provide|upload|attach|share) (?:me )?(?:with )?(?:the|an|your) "
    r"(?:audio|recording|sound|speech)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a describer answered about one waveform: a text, or None with the reason."""

    text: str | None
    error: str | None = None


@runtime_checkable
class Describer(Protocol):
    """Audio in, text out."""

    version: str  # model, weights, precision and decoding, as written beside the scores
    # longest stretch that it takes at once, in seconds; None where it takes any length. The caller cuts longer audio
    max_s: float | None

    def describe(self, wavs: Sequence[np.ndarray]) -> list[Description]:
        """Describe (T,) float32 waveforms at 16 kHz. One ``Description`` each, in order; a waveform fails alone."""
        ...


def read_prompts(path: str | Path | None = None) -> list[str]:
    """Prompts of a file, one a line; empty lines and lines that begin with ``#`` are left out. None: the list that is shipped.

    Raises:
        UserError: unreadable, or not one prompt in it.
    """
    file = embedded_path("prompts") / "quality.txt" if path is None else Path(path)
    lines = map(str.strip, read_text(file).splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"there is no prompt in {file}", "it has only empty lines and remarks", "one prompt a line")
    if any(len(p) > MAX_PROMPT for p in prompts):
        raise UserError(f"a prompt in {file} is longer than {MAX_PROMPT} characters", "", "one prompt a line")
    return prompts


def without_thoughts(text: str) -> str:
    """The answer behind ``<think>...</think>``; a thought that is never closed has no answer behind it."""
    text = re.sub(r"<think(?:ing)?>.*?</think(?:ing)?>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    # templates may open the thought in the prompt
    text = re.sub(r"^.*</think(?:ing)?>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"<think(?:ing)?>.*$", " ", text, flags=re.DOTALL | re.IGNORECASE).strip()


def clean_answer(raw: Any) -> Description:
    """Turn what a model returned into a text or a reason: not a string, empty, only thoughts, without a word, a refusal."""
    if not isinstance(raw, str):
        return Description(None, f"the answer is no text but {type(raw).__name__}")
    text = "".join(c for c in raw if c.isprintable() or c in "\n\t").strip()
    if not text:
        return Description(None, "empty answer")
    visible = without_thoughts(text)
    if not visible:
        return Description(None, "nothing but thoughts: raise max_new_tokens, or turn thinking off")
    if not re.search(r"\w", visible):
        return Description(None, "no word in the answer")
    opening = " ".join(visible[:400].replace("\u2019", "'").split())
    if _NO_AUDIO.search(opening) or (_REFUSED.search(opening) and _SPEAKS_OF_ITSELF.search(opening)):
        return Description(None, "the model refused")
    return Description(text[:MAX_TEXT])
