"""How a codec language model's rows are written: marks around the text, the slice of the vocabulary that is the codec's, the stops.

A row is ``before`` text ``after`` codes stop. The embedded policy's marks are its own; of public checkpoints three ways are known, told
from their vocabularies: Llasa (arXiv 2502.04128: a chat whose answer is speech, XCodec2), NeuTTS (NeuCodec; it reads phonemes, so its
rows must hold them), and CosyVoice2's language model as its repository exports it (whose codec is not in transformers). Any other one is
described by the same fields in the ``rlspeech.json`` of its folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from rlspeech.types import UserError

__all__ = ["SPEECH", "STOP", "TEXT", "Layout", "layout_of"]

TEXT, SPEECH, STOP = "<|text|>", "<|speech|>", "<|stop|>"
HOLE = "\u2045text\u2046"  # where the text goes in a chat; no template writes it


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one checkpoint.

    Args:
        before, after: what stands around the text; marks in them are special tokens, marks in a text are not.
        first, size: the codec's ids are ``first`` to ``first + size - 1`` of the vocabulary, in order.
        stops: ids that end a row; more than one are one decision, their probabilities add up.
        codec: its name, see ``models.codec``; "" where there is none to be had.
        sample_rate: of the speech, in Hz.
        frame_s: seconds of speech that an id stands for.
        normaliser: how texts are written for it, see ``data.text``.
        lead: before the text.
        joint: between the prompt's text and the text.
        prompt_s: longest prompt speech that is put before the answer; a longer one lends its voice only.
        max_s: longest speech, in seconds.
    """

    before: str
    after: str
    first: int
    size: int
    stops: tuple[int, ...]
    codec: str
    sample_rate: int
    frame_s: float
    normaliser: str = "none-1"
    lead: str = ""
    joint: str = " "
    prompt_s: float = 15.0
    max_s: float = 30.0

    @classmethod
    def read(cls, given: dict[str, Any]) -> Layout:
        """Of what ``as_dict`` gave; keys of later versions are passed over. Raises ``TypeError`` where one is missing."""
        known = {f.name for f in fields(cls)}
        made = cls(**{k: v for k, v in given.items() if k in known})
        return cls(**{**asdict(made), "stops": tuple(int(i) for i in made.stops)})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"stops": list(self.stops)}


class Known(NamedTuple):
    """A way of writing rows: name, pattern of the codec's tokens, stops, marks around the text, codec, its rate in Hz and frame."""

    name: str
    code: str
    stops: tuple[str, ...]
    around: tuple[str, str]
    codec: str
    sample_rate: int
    frame_s: float
    chat: bool = False


REQUEST, END = "Convert the text to speech:", "<|SPEECH_GENERATION_END|>"
LLASA = f"{REQUEST}<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
NEUTTS = f"user: {REQUEST}<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>\nassistant:<|SPEECH_GENERATION_START|>"
KNOWN = (
    Known("Llasa", "<|s_{}|>", (END,), LLASA, "xcodec2", 16000, 0.02, chat=True),
    Known("NeuTTS", "<|speech_{}|>", (END,), NEUTTS, "neucodec", 24000, 0.02),
    Known("CosyVoice2", "<|s_{}|>", ("<|eos1|>", "<|eos2|>", "<|eos3|>"), ("<|sos|>", "<|task_id|>"), "", 24000, 0.04),
)
ANSWER = "<|SPEECH_GENERATION_START|>"  # what a chat's answer begins with


def layout_of(tokenizer: Any) -> Layout:
    """The layout of a checkpoint without ``rlspeech.json``, by its vocabulary.

    Raises:
        UserError: none that is known here.
    """
    vocabulary = tokenizer.get_vocab()
    for known in KNOWN:
        marks = [known.code.format(0), *known.stops]
        if all(m in vocabulary for m in marks):
            return _layout(known, tokenizer, vocabulary)
    raise UserError(
        "this language model's vocabulary holds no codec that is known here",
        "looked for the marks of " + ", ".join(k.name for k in KNOWN),
        "a folder with a rlspeech.json that says its layout (before, after, first, size, stops, codec, sample_rate, frame_s)",
    )


def _layout(known: Known, tokenizer: Any, vocabulary: dict[str, int]) -> Layout:
    first, size = vocabulary[known.code.format(0)], 0
    while vocabulary.get(known.code.format(size)) == first + size:
        size += 1
    if known.code.format(size) in vocabulary:
        why = f"{known.code.format(size)} stands apart"
        raise UserError("the codec's ids do not follow each other in the vocabulary", why)
    before, after = _chat(tokenizer, *known.around) if known.chat else known.around
    stops = tuple(vocabulary[s] for s in known.stops)
    return Layout(before, after, first, size, stops, known.codec, known.sample_rate, known.frame_s)


def _chat(tokenizer: Any, before: str, after: str) -> tuple[str, str]:
    """The marks inside a chat of the tokenizer's template; without a template, the plain marks."""
    if not getattr(tokenizer, "chat_template", None):
        return before, after + ANSWER
    turns = [{"role": "user", "content": before + HOLE + after}, {"role": "assistant", "content": ANSWER}]
    how = {"tokenize": False, "continue_final_message": True, "date_string": "26 Jul 2024"}
    head, _, tail = str(tokenizer.apply_chat_template(turns, **how)).partition(HOLE)
    return head, tail
