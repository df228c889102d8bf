"""SpeechBERTScore (Saeki et al., Interspeech 2024): how well each frame of the output is found again in the reference.

With frame features a_i of the output and b_j of the reference: precision = mean_i max_j cos(a_i, b_j), recall = mean_j max_i
cos(a_i, b_j), F1 their harmonic mean. The paper's score, and ``speech_bert_score`` here, is the precision. Features come from the
embedded encoder (``assets/speech_encoder``) or from a hidden layer of any transformers speech encoder by Hub id or folder, e.g.
``speech_bert_score[encoder=microsoft/wavlm-large,layer=14]``, the paper's choice. Every clip enters at -25 dBFS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from rlspeech.rewards.encoders import Cache, batched, digest, load_pretrained, standardise
from rlspeech.rewards.mel import level_normalise
from rlspeech.types import Sample, Score

__all__ = ["SpeechBertScore", "bert_score"]


def bert_score(output: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of frame features.

    Args:
        output: (L, D).
        reference: (L', D).
    """
    similarity = F.normalize(output.float(), dim=-1) @ F.normalize(reference.float(), dim=-1).T
    precision, recall = float(similarity.amax(1).mean()), float(similarity.amax(0).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


class SpeechBertScore:
    """``speech_bert_score`` (precision), ``speech_bert_recall``, ``speech_bert_f1``.

    Args:
        encoder: Hub id or folder; None or "embedded" is the embedded encoder.
        layer: hidden layer of a transformers encoder (0 is the input of the first block); None takes 14 of 24, 8 of 12, or 60 %.
        device: where it runs.

    Raises:
        UserError: the encoder cannot be loaded.
    """

    def __init__(self, encoder: str | None = None, layer: int | None = None, device: str = "cpu") -> None:
        self.device, self._cache = device, Cache(128)
        self._net: Any
        self._layer: int | None
        if encoder in (None, "embedded"):
            from rlspeech.rewards.nets import asset_folder, load_embedded

            folder = asset_folder("speech_encoder")
            self._net, self._extractor, self._layer = load_embedded(folder, device), None, None
            self.version = f"embedded-{digest(folder / 'model.safetensors')}"
        else:
            self._net, self._extractor = load_pretrained(str(encoder), ("AutoModel",), device, "speech encoder")
            depth = self._net.config.num_hidden_layers
            self._layer = min(depth, round(0.6 * depth) if layer is None else layer)
            self.version = f"{encoder} layer {self._layer}"

    def features(self, wavs: Tensor) -> Tensor:
        """Frame features: (N, T) at 16 kHz -> (N, L, D)."""
        wavs = level_normalise(wavs, -25.0)
        if self._layer is None:
            return cast(Tensor, self._net(wavs))
        return cast(
            Tensor, self._net(standardise(wavs, self._extractor), output_hidden_states=True).hidden_states[self._layer]
        )

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Precision, recall and F1 of each sample against its target."""
        ours = batched([s.wav for s in samples], self.features, self.device)
        theirs = batched([s.target for s in samples if s.target is not None], self.features, self.device, self._cache)
        out = []
        with torch.inference_mode():
            for a, b in zip(ours, theirs, strict=True):
                values = dict(
                    zip(("speech_bert_score", "speech_bert_recall", "speech_bert_f1"), bert_score(a, b), strict=True)
                )
                out.append({c: Score(values[c], detail={k: v for k, v in values.items() if k != c}) for c in columns})
        return out
