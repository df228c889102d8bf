"""An audio language model as a policy: the decisions of a rollout are the tokens of a transcript.

The textbook version (GRPO on a recogniser, arXiv 2509.18569 and 2509.01939): several transcripts of every clip are sampled, rules score
them, and the log-probabilities of their tokens go into the ratio. Nothing is left out. What is changed:

- A clip is encoded once, for its whole group and for every later pass (``models/audio_lm/model.py``).
- The old log-probabilities are not the sampler's: the training pass computes them, over the very micro-batches of the update. Sampler
  and training pass round differently (a cache here, a plain forward there), which in bf16 alone would move the ratio by per cents.
- Log-probabilities are those at the sampling temperature, as in TRL and verl: what acts is what is trained. A truncated sampler (top-p,
  top-k) has no such excuse, its rows are not the policy's own: the mean |log ratio| to what is trained is measured and logged.
- The KL is summed over the whole vocabulary (``kl`` "full"), or k3 from the sampled token alone, noisier, lighter on memory.
- Weights that are trained whole in bf16 are kept in fp32 and computed with in bf16: a step of 1e-5 is lost in bf16's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.data.batches import Clip
from rlspeech.tasks.token_policy import TokenPolicy
from rlspeech.types import Sample

if TYPE_CHECKING:
    from rlspeech.models.audio_lm.model import AudioLM, EncodedPrompts

LEAST_TOKENS = 16


class AsrPolicy(TokenPolicy):
    """Acts with the current weights of ``adapted``, an ``AudioLM``; see ``token_policy`` and ``types.Policy``."""

    supports: frozenset[str] = frozenset({"sample", "base", "critic", "supervised", "join", "fit"})

    @property
    def bucketed(self) -> bool:
        """True where clips of like length save padding; where every clip is a whole window they only make steps of one kind."""
        return not self.model.family.fixed_window

    # -- acting --------------------------------------------------------------------------------------------------------

    def _samples(self, clips: list[Clip], ids: Tensor, mask: Tensor, finished: Tensor) -> list[Sample]:
        shut = {*self.model.suppress_tokens, *self.model.begin_suppress_tokens}
        if self.model.stops[0] in shut and any(c.text is not None and not c.text.strip() for c in clips):
            why = "some texts are empty, and its lists of suppressed tokens do not let the model write nothing"
            self._once("empty", f"{why}: --set suppress=allow_empty lets it, in training and in what is saved")
        rows = zip(clips, self.model.text(ids, mask), finished.tolist(), strict=True)
        return [self._sample(c, text, done) for c, text, done in rows]

    def _answers(self, model: Any, clips: list[Clip]) -> list[Sample]:
        """The likeliest transcripts."""
        texts = self._greedy(model, self._encode(clips, model=model), clips)
        return [self._sample(c, text) for c, text in zip(clips, texts, strict=True)]

    @torch.no_grad()
    def transcribe(self, clips: Sequence[Clip]) -> list[str]:
        """The current weights' likeliest transcripts, token by token; "" for a clip without a sample. All clips are one batch."""
        self.enter("encode")
        with self._cast():
            encoded = self._encode(clips)
            self.enter("rollout")
            return self._greedy(self.model, encoded, clips)

    def _greedy(self, model: AudioLM, encoded: EncodedPrompts, clips: Sequence[Clip]) -> list[str]:
        if not clips:
            return []
        generated = model.generate(encoded, max_new_tokens=self._room(clips))
        texts = model.text(generated.ids, generated.mask)
        return [text if c.noisy.shape[-1] else "" for c, text in zip(clips, texts, strict=True)]

    def _encode(self, clips: Sequence[Clip], *, model: AudioLM | None = None, grad: bool = False) -> EncodedPrompts:
        long = [c.key for c in clips if c.noisy.shape[-1] > self.model.max_s * self.sample_rate]
        if long:
            most = f"the {self.model.max_s:g} s that the model takes"
            self._once("long", f"{long[0]} is longer than {most}: its end is cut off, its text is not")
        wavs = [np.asarray(c.noisy, np.float32) for c in clips]
        asked = {"language": self.sampling.language, "prompt": self.sampling.prompt}
        again = [c.noisy is c.target for c in clips]  # a recording; what is mixed is mixed anew
        return (model or self.model).encode(wavs, **asked, grad=grad, keep=again)

    def _room(self, clips: Sequence[Clip]) -> list[int]:
        """Longest transcript of each in tokens, whatever batch it stands in."""
        cfg, lengths = self.sampling, [c.noisy.shape[-1] / self.sample_rate for c in clips]
        return [cfg.max_new_tokens or max(LEAST_TOKENS, int(np.ceil(s * cfg.tokens_per_s))) for s in lengths]

    def _sample(self, clip: Clip, text: str, finished: bool = True) -> Sample:
        how: dict[str, Any] = {"hypothesis": text, "finished": finished}
        return Sample(clip.key, clip.noisy, self.sample_rate, None, clip.text, clip.columns, **how)

    # -- the control ---------------------------------------------------------------------------------------------------

    def _is_empty(self, clip: Clip) -> bool:
        return clip.noisy.shape[-1] == 0

    def _has_reference(self, clip: Clip) -> bool:
        return clip.text is not None and not self._is_empty(clip)

    def _references(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        return self.model.references([c.text or "" for c in clips], self.sampling.language)  # type: ignore[no-any-return]
