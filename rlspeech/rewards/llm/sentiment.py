"""From a description to a rating: a classifier over ordered labels, read as an expectation, or a number that the text itself gives.

LR-AVSE names a "BERT" that rates the description from 1 to 5; its example rises by 1.79, so the score is continuous, an expectation over
the classes and not the likeliest one. Any sequence classifier whose labels have an order will do (the documented choice is the 5-star
multilingual BERT of nlptown); a lexicon will not, it ranks "fair" above "good". K labels are spread evenly over [1, 5]. A text
longer than the classifier reads is read in parts and the distributions are averaged by length. Some judges answer "4/5" themselves:
such a number is taken as it is, and thoughts (``<think>``) are not part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlspeech import log
from rlspeech.models.folder import loading, pretrained, quietly
from rlspeech.models.hub import embedded_path
from rlspeech.rewards.llm.audio_llm import weights_id
from rlspeech.rewards.llm.describe import EMBEDDED, without_thoughts
from rlspeech.types import Score, UserError

LOW, HIGH = 1.0, 5.0
BATCH = 32  # texts at once
MAX_TOKENS = 512  # where neither tokeniser nor config names a maximum
_STEPS = (
    ("terrible", "awful", "horrible", "very negative", "very bad"),
    ("bad",),
    ("negative", "poor", "neg"),
    ("slightly negative", "mediocre"),
    ("neutral", "fair", "average", "mixed", "ok", "okay", "neu"),
    ("slightly positive", "decent"),
    ("positive", "good", "pos"),
    ("very good", "great"),
    ("excellent", "very positive", "perfect", "outstanding"),
)
RANKS = {name: rank for rank, names in enumerate(_STEPS) for name in names}
# Repetitions are bounded: the text is someone else's, and is read in time that grows with its length only.
_NUMBER = r"(?<![\w.,/-])(-?\d{1,6}(?:[.,]\d{1,6})?)(?!\d|[.,]\d)"
_OF = r"\s?(?:stars?\s)?(?:/|out\sof)\s?(\d{1,4})(?![\w/]|[.,]\d)"
_LINK = r"[\s:=*_\"'-]{0,6}(?:(?:is|was|of|as|at|a|score|rating)\b[\s:=*_\"'-]{0,6}){0,3}"
_SCALED = re.compile(_NUMBER + _OF, re.IGNORECASE)
_OVERALL = re.compile(
    rf"\b(?:overall(?:\s\w{{1,20}}){{0,3}}|mos|(?:final|total)\s(?:score|rating|grade)){_LINK}{_NUMBER}(?:{_OF})?",
    re.IGNORECASE,
)
_LABELLED = re.compile(
    rf"\b(?:score|rating|quality|grade|rate[sd]?(?:\s(?:it|this|the\s\w{{1,20}}))?){_LINK}{_NUMBER}"
    rf"(?:{_OF}|(?!\s?(?:%|/|[a-z])))",
    re.IGNORECASE,
)
_STARS = re.compile(_NUMBER + r"[\s-]?stars?\b", re.IGNORECASE)
_BARE = re.compile(r"\W{0,9}?(-?\d{1,6}(?:[.,]\d{1,6})?)\W{0,9}")
_ASPECT = re.compile(
    r"\b(?:nois\w*|distort\w*|intelligib\w*|clarity|natural\w*|loudness|reverb\w*|echo\w*|continu\w*|dropouts?|background"
    r"|colou?r\w*|volume|muffl\w*|pronunciation|emotion\w*|effort|artefacts?|artifacts?|fluency|timbre)\b[^.;,\d]*$",
    re.IGNORECASE,
)


class Sentiment:
    """A sequence classifier with ordered labels.

    Args:
        name: 'embedded', Hub id or folder.
        order: worst first, joined by ``|``; or ``ascending`` / ``descending`` for labels that say nothing (``LABEL_0`` ...); None reads
            the labels.
        device: where it runs.

    Raises:
        UserError: not found, not loadable, or labels whose order is unknown.
    """

    def __init__(self, name: str = EMBEDDED, *, order: str | None = None, device: str = "cpu") -> None:
        import transformers

        path = str(embedded_path("sentiment")) if name == EMBEDDED else name
        hint = "a folder with a sequence classifier and its tokenizer, or a Hub id with the network at hand"
        with loading(f"the sentiment model {path!r}", hint), quietly(name == EMBEDDED or log.quiet):
            self._tokenizer: Any = pretrained(transformers.AutoTokenizer, path)
            model = pretrained(transformers.AutoModelForSequenceClassification, path, dtype=torch.float32)
        labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        ranks = order_labels(labels, order, name)
        self.labels, self._order = [labels[i] for i in ranks], torch.tensor(ranks)
        self._values = np.linspace(LOW, HIGH, len(labels))
        self._model, self._device = model.requires_grad_(False).eval().to(device), device
        self._reads = _reads(self._tokenizer, model.config)
        self._room = max(1, self._reads - int(self._tokenizer.num_special_tokens_to_add()))
        self.version = f"{name} {weights_id(path, model.config)}, expectation over {' < '.join(self.labels)}"

    def stars(self, texts: Sequence[str]) -> list[Score]:
        """Expected rating in [1, 5] of each text, in order; ``detail["distribution"]`` holds the probabilities, worst label first."""
        parts = [self._parts(without_thoughts(text)) for text in texts]
        found = iter(self._probabilities([part for own in parts for part, _ in own]))
        out = []
        for own in parts:
            if not own:
                out.append(Score(None, "no words to rate"))
                continue
            p = np.average([next(found) for _ in own], axis=0, weights=[length for _, length in own])
            if not np.isfinite(p).all():
                out.append(Score(None, "the sentiment model answers with NaN"))
                continue
            out.append(Score(float(p @ self._values), detail={"distribution": [round(float(x), 4) for x in p]}))
        return out

    def _parts(self, text: str) -> list[tuple[str, int]]:
        """Stretches of whole words that the model can read in one piece, with their length in tokens."""
        words = text.split()
        if not words:
            return []
        how = {"add_special_tokens": False, "truncation": False, "verbose": False}
        length = len(self._tokenizer(" ".join(words), **how)["input_ids"])
        if length <= self._room or len(words) == 1:  # one endless word is cut off
            return [(" ".join(words), min(length, self._room))] if length else []
        half = len(words) // 2
        return [*self._parts(" ".join(words[:half])), *self._parts(" ".join(words[half:]))]

    def _probabilities(self, texts: list[str]) -> np.ndarray:
        """(n, K), worst label first."""
        out = np.full((len(texts), len(self.labels)), np.nan)
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            how = {"padding": True, "truncation": True, "max_length": self._reads, "return_tensors": "pt"}
            inputs = self._tokenizer([texts[k] for k in rows], **how)
            ready = {k: v.to(self._device) for k, v in inputs.items()}
            with torch.inference_mode():
                p = self._model(**ready).logits.float().softmax(-1).cpu()
            out[rows] = p[:, self._order].numpy()
        return out


def order_labels(labels: Sequence[str], order: str | None, name: str) -> list[int]:
    """Indices of the labels, worst first. Raises ``UserError``: fewer than two labels, or no order in them and none given."""
    if len(labels) < 2:
        why, hint = f"it has {len(labels)} output", "a classifier with labels such as 1 star ... 5 stars"
        raise UserError(f"{name} is no classifier with ordered labels", why, hint)
    known = f"labels: {', '.join(labels)}"
    clean = [_plain(label) for label in labels]
    if order in ("ascending", "descending"):
        return list(range(len(labels)))[:: 1 if order == "ascending" else -1]
    if order:
        wanted = [_plain(w) for w in order.split("|")]
        if sorted(wanted) != sorted(clean):
            raise UserError(f"the given order does not name the labels of {name}", known, "worst first, joined by |")
        return [clean.index(w) for w in wanted]
    numbers = [re.fullmatch(r"(?:score |rating |class )?(\d+)(?: ?stars?)?", c) for c in clean]
    keys = [int(m[1]) for m in numbers if m] if all(numbers) else [RANKS[c] for c in clean if c in RANKS]
    if len(set(keys)) != len(labels):
        hint = "llm[sentiment_order=descending], or the labels, worst first, joined by |"
        raise UserError(f"the labels of {name} have no known order", known, hint)
    return sorted(range(len(labels)), key=lambda i: keys[i])


def _plain(label: str) -> str:
    return " ".join(re.sub(r"[_\-]+", " ", label).lower().split())


def read_rating(text: str, thoughts: bool = False) -> Score | None:
    """The one overall rating out of 5 that a text gives.

    Args:
        text: an answer.
        thoughts: where the answer has no rating, take an "overall" one out of its thoughts; some judges put their numbers there.

    Returns:
        the rating; a null where the number is outside 1 to 5; None where there is no rating, or more than one.
    """
    visible, everything = " ".join(without_thoughts(text).split()), " ".join(text.split())
    found = _ratings(visible)
    if not found and thoughts and visible != everything:
        found = _overall(everything)
    if len(found) != 1:
        return None
    (value,) = found
    return Score(value) if LOW <= value <= HIGH else Score(None, f"the rating {value:g} is outside 1 to 5")


def _ratings(text: str) -> set[float]:
    """Different overall ratings, by the clearest way in which the text states any."""
    if bare := _BARE.fullmatch(text.strip()):
        return {_value(bare[1])}
    if found := _overall(text):
        return found
    scaled = [m for m in _SCALED.finditer(text) if int(m[2]) == HIGH]
    if plain := {_value(m[1]) for m in scaled if not _ASPECT.search(text[: m.start()][-60:])}:
        return plain
    if scaled:
        return set()  # of single aspects only
    labelled = [m for m in _LABELLED.finditer(text) if m[2] in (None, "5")]
    if found := {_value(m[1]) for m in labelled if not _ASPECT.search(text[: m.start()][-60:])}:
        return found
    return {_value(m[1]) for m in _STARS.finditer(text)}


def _overall(text: str) -> set[float]:
    return {_value(m[1]) for m in _OVERALL.finditer(text) if m[2] in (None, "5")}


def _value(text: str) -> float:
    return float(text.replace(",", "."))


def _reads(tokenizer: Any, config: Any) -> int:
    """Tokens that the classifier reads at once, special ones included."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # theirs begin behind the padding index
    limits = [int(v) for v in (tokenizer.model_max_length, positions) if v and 0 < v < 1_000_000]
    return min(limits, default=MAX_TOKENS)
