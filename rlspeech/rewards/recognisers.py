"""Audio language models as recognisers for rewards: they transcribe waveforms, and say how likely a text is given one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import resample
from rlspeech.data.long import cut

__all__ = ["AudioRecogniser", "is_audio_lm"]

TOKENS_PER_S, LEAST_TOKENS = 12.0, 16  # bound on a transcript
OTHERWISE = frozenset(
    {"whisper"}
)  # of the families, what transformers' pipeline recognises with too, with its own care for long clips


def is_audio_lm(name: str, whisper: bool = False) -> bool:
    """Whether a recogniser's name is that of an audio language model: 'embedded', a folder or run folder of one, or a Hub id.

    Args:
        name: the recogniser's.
        whisper: count what transformers' pipeline takes too.
    """
    from rlspeech.models.audio_lm.families import FAMILIES

    if name in {"embedded", "tiny"}:
        return True
    path = Path(name)
    found = path / "config.json" if (path / "config.json").is_file() else None
    if found is None and path.is_dir():
        found = next(iter(sorted(path.glob("checkpoints/*/config.json"))), None)
    elif found is None and name.count("/") == 1:
        from transformers.utils import cached_file

        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        cached = cached_file(name, "config.json", **quiet)
        found = Path(cached) if cached else None
    try:
        kind = json.loads(found.read_text(encoding="utf-8")).get("model_type") if found else None
    except (OSError, ValueError, AttributeError):
        return False  # whoever loads it says what is wrong with it
    return kind in FAMILIES and (whisper or kind not in OTHERWISE)


class AudioRecogniser:
    """An ``AudioLM`` as a ``rewards.text.Recogniser``; called with waveforms and their rate it transcribes greedily.

    Args:
        name: as ``models.audio_lm.load_audio_lm`` takes it.
        device: where it runs.
        language: of all waveforms; None lets the model find out.
        batch: waveforms, or pieces of long ones, at once.

    Raises:
        UserError: no such model.
    """

    def __init__(self, name: str, device: str = "cpu", language: str | None = None, batch: int = 8) -> None:
        from rlspeech.models.audio_lm.load import load_audio_lm

        self.lm: Any = load_audio_lm(name, device)[0]
        self._language, self._batch = language, max(1, batch)

    @property
    def guess_nll(self) -> float:
        """NLL a piece of a text that nothing is known of: every piece as likely as any other."""
        return math.log(self.lm.net.get_output_embeddings().weight.shape[0])

    def __call__(self, wavs: Sequence[np.ndarray], rate: int) -> list[str]:
        """Transcripts, as the model writes them; what is longer than it hears at once is cut at pauses."""
        whole = [resample(w, rate, self.lm.sample_rate) for w in wavs]
        pieces = [(i, w[a:b]) for i, w in enumerate(whole) for a, b in cut(w, self.lm.sample_rate, self.lm.max_s)]
        said = [""] * len(pieces)
        for part in _by_length([len(p) for _, p in pieces], self._batch):
            heard = self.lm.encode([pieces[k][1] for k in part], language=self._language)
            longest = max(len(pieces[k][1]) for k in part) / self.lm.sample_rate
            drawn = self.lm.generate(heard, max_new_tokens=max(LEAST_TOKENS, math.ceil(TOKENS_PER_S * longest)))
            for k, text in zip(part, self.lm.text(drawn.ids, drawn.mask), strict=True):
                said[k] = text
        texts = [""] * len(wavs)
        for (i, _), text in zip(pieces, said, strict=True):
            texts[i] = f"{texts[i]} {text}".strip()
        return texts

    def nll(self, wavs: Sequence[np.ndarray], rate: int, texts: Sequence[str]) -> list[float]:
        """Mean NLL in nats of each text's pieces, the stop among them, given its waveform; of a long one, given what the model hears."""
        import torch

        out = [0.0] * len(wavs)
        whole = [resample(w, rate, self.lm.sample_rate) for w in wavs]
        for part in _by_length([len(w) for w in whole], self._batch):
            with torch.no_grad():
                heard = self.lm.encode([whole[k] for k in part], language=self._language)
                ids, mask = self.lm.references([texts[k] for k in part], self._language)
                logp = self.lm.forward_logits(heard, range(len(part)), ids).log_softmax(-1).cpu()
            picked = logp.gather(-1, ids[..., None])[..., 0].masked_fill(~mask, 0.0)
            for k, value in zip(part, (-picked.sum(1) / mask.sum(1)).tolist(), strict=True):
                out[k] = value
        return out


def _by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Batches of indices, like lengths together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i : i + batch] for i in range(0, len(order), batch)]
