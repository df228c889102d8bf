"""A recogniser at work for ``eval`` and ``transcribe``: recordings of any length in, raw decodes out, a bad one costs itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspeech.config import Sampling
from rlspeech.data import long as pieces
from rlspeech.data.text import written_in_characters

if TYPE_CHECKING:
    from rlspeech.models.audio_lm.model import AudioLM

__all__ = ["Heard", "Recogniser", "join_texts"]

SHORTEST_S = 0.1  # shorter input is padded with silence: a front end needs a few frames
FEWEST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of one recording: the raw decode, and how many of its pieces ran into the limit of tokens."""

    text: str
    pieces: int = 1
    truncated: int = 0


class Recogniser:
    """Greedy or beam decoding with an audio language model.

    Args:
        model: as ``load_audio_lm`` gives it.
        sampling: language, prompt and length; temperature and truncation are not used.
        beams: of the search; 1 is greedy.
        batch: pieces at once.
    """

    def __init__(self, model: AudioLM, *, sampling: Sampling, beams: int = 1, batch: int = 8) -> None:
        self.model, self.sampling, self.beams, self.batch = model, sampling, beams, batch
        self.sample_rate, self.max_s = int(model.sample_rate), float(model.max_s)

    def whole(self, wavs: Sequence[np.ndarray]) -> list[Heard | Exception]:
        """Recordings (T_i,) float32 at ``sample_rate``; those longer than the model's limit are cut at pauses and joined."""
        cuts = [pieces.cut(w, self.sample_rate, self.max_s) for w in wavs]
        parts = self.short([w[a:b] for w, cut in zip(wavs, cuts, strict=True) for a, b in cut])
        made, at = list[Heard | Exception](), 0
        for cut in cuts:
            own, at = parts[at : at + len(cut)], at + len(cut)
            failed = next((p for p in own if isinstance(p, Exception)), None)
            good = [p for p in own if isinstance(p, Heard)]
            made.append(failed or Heard(join_texts([p.text for p in good]), len(own), sum(p.truncated for p in good)))
        return made

    def short(self, wavs: Sequence[np.ndarray]) -> list[Heard | Exception]:
        """Pieces that are no longer than the model's limit, like lengths together, in their order."""
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
        made: dict[int, Heard | Exception] = {}
        for at in range(0, len(order), self.batch):
            part = order[at : at + self.batch]
            made.update(zip(part, self._guarded([wavs[i] for i in part]), strict=True))
        return [made[i] for i in range(len(wavs))]

    def _guarded(self, wavs: Sequence[np.ndarray]) -> list[Heard | Exception]:
        """A batch; where that fails, its items one by one."""
        try:
            return list(self._decode(wavs))
        except Exception as error:
            if len(wavs) == 1:
                return [error]
        _free_memory()
        return [self._guarded([w])[0] for w in wavs]

    def _decode(self, wavs: Sequence[np.ndarray]) -> list[Heard]:
        import torch

        how, shortest = self.sampling, int(SHORTEST_S * self.sample_rate)
        padded = [np.pad(w, (0, max(0, shortest - len(w)))) for w in wavs]
        seconds = max(len(w) for w in padded) / self.sample_rate
        tokens = how.max_new_tokens or max(FEWEST_TOKENS, math.ceil(how.tokens_per_s * seconds))
        given: dict[str, Any] = {k: v for k, v in (("language", how.language), ("prompt", how.prompt)) if v is not None}
        with torch.no_grad():
            heard = self.model.encode(padded, **given)
            drawn = self.model.generate(heard, max_new_tokens=tokens, beams=self.beams)
            texts = self.model.text(drawn.ids, drawn.mask)
        return [Heard(t, 1, int(not f)) for t, f in zip(texts, drawn.finished.tolist(), strict=True)]


def join_texts(texts: Sequence[str]) -> str:
    """Texts of neighbouring pieces as one: with a space between them where their writing has spaces. A single one comes back as it is."""
    if len(texts) == 1:
        return texts[0]
    joined = ""
    for text in (t.strip() for t in texts):
        gap = (
            " "
            if joined and text and not (written_in_characters(joined[-1]) and written_in_characters(text[0]))
            else ""
        )
        joined += gap + text
    return joined


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
