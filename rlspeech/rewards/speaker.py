"""Speaker similarity: the cosine between the speaker embeddings of a waveform and of its reference.

The encoder is the embedded one (``assets/speaker``), or any transformers x-vector model by Hub id or folder
(``speaker_similarity[encoder=microsoft/wavlm-base-plus-sv]``). Every clip enters at -25 dBFS, so level is no part of the voice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlspeech.rewards.encoders import Cache, batched, digest, load_pretrained, standardise
from rlspeech.rewards.mel import level_normalise
from rlspeech.types import Sample, Score

__all__ = ["SpeakerSimilarity"]

XVECTOR = (
    "WavLMForXVector",
    "Wav2Vec2ForXVector",
    "UniSpeechSatForXVector",
    "Data2VecAudioForXVector",
    "Wav2Vec2ConformerForXVector",
)


class SpeakerSimilarity:
    """``speaker_similarity``.

    Args:
        encoder: Hub id or folder of a transformers x-vector model; None or "embedded" is the embedded encoder.
        device: where it runs.

    Raises:
        UserError: the encoder cannot be loaded.
    """

    def __init__(self, encoder: str | None = None, device: str = "cpu") -> None:
        self.device, self._cache = device, Cache()
        if encoder in (None, "embedded"):
            from rlspeech.rewards.nets import asset_folder, load_embedded

            folder = asset_folder("speaker")
            self._net, self._extractor = load_embedded(folder, device), None
            self.version = f"embedded-{digest(folder / 'model.safetensors')}"
        else:
            self._net, self._extractor = load_pretrained(str(encoder), XVECTOR, device, "speaker encoder")
            self.version = f"{encoder} ({type(self._net).__name__})"

    def embed(self, wavs: Tensor) -> Tensor:
        """Embeddings of length 1: (N, T) at 16 kHz -> (N, D)."""
        wavs = level_normalise(wavs, -25.0)
        out = self._net(standardise(wavs, self._extractor))
        return F.normalize(out if isinstance(out, Tensor) else out.embeddings, dim=-1)

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Cosine similarity of each sample with its target."""
        ours = batched([s.wav for s in samples], self.embed, self.device)
        theirs = batched([s.target for s in samples if s.target is not None], self.embed, self.device, self._cache)
        with torch.inference_mode():
            cosine = (torch.stack(ours) * torch.stack(theirs)).sum(-1).float().cpu()
        return [{columns[0]: Score(float(c))} for c in cosine]
