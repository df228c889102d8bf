"""A codec language model as a policy: the decisions of a rollout are the codec ids of an utterance, and its stop.

The textbook version (GRPO on CosyVoice2's language model, arXiv 2509.18569): several utterances of every text are sampled, decoded,
recognised and scored. Nothing is left out. What is changed, beside what ``token_policy`` says:

- Only codes and the stop can be drawn (``models/codec/lm.py``).
- Waveforms are made where a reward hears them, in batches of like length; rewards of tokens need none.
- A row that does not stop is cut off at three times what its text usually takes, or at the model's ``max_s``; it is not ``finished``.
- An empty text is answered with nothing, and nothing is decided in its rows.

It can be relaxed (DiffRO, arXiv 2507.05911). The published way draws fresh Gumbel noise at every step of the sampled history, so that
what the reward reads is no sequence that anyone would say: each id was drawn as if the ones before it had not been. Here the noise is
drawn given the ids that were sampled (``models/gumbel.py``): the reward reads the rollout itself, and the filter on advantages judges what
is trained. ``diffro.noise`` "fresh" is the published way. ``diffro.mode`` "free" decodes anew, every step seeing the relaxed ids before it,
with the gradient through all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlspeech.data.batches import Clip, seed_of
from rlspeech.models.gumbel import gumbel_noise, noise_given, relaxed_tokens
from rlspeech.rewards.base import resolve
from rlspeech.tasks.token_policy import Said, TokenPolicy, token_kl
from rlspeech.tasks.tts.task import longest
from rlspeech.types import Relaxed, Rollout, Sample

if TYPE_CHECKING:
    from rlspeech.models.codec.lm import CodecLM, Prompts

__all__ = ["TtsPolicy", "hears"]

SILENT = frozenset({"tokens", "hypothesis"})  # needs of rewards that do not hear


def hears(names: Sequence[str]) -> bool:
    """Whether one of the rewards needs waveforms."""
    return any(not (resolve(name).entry.needs & SILENT) for name in names)


class TtsPolicy(TokenPolicy):
    """Acts with the current weights of ``adapted``, a ``CodecLM``; see ``token_policy``, ``types.Policy`` and ``types.RelaxPolicy``."""

    supports: frozenset[str] = frozenset({"sample", "relax", "base", "critic", "supervised", "join"})

    def __init__(self, task: Any, adapted: Any, config: Any) -> None:
        super().__init__(task, adapted, config)
        self.loud = config.algo != "diffro" and hears(
            [r.name for r in config.rewards]
        )  # diffro alone scores no rollout

    # -- acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, batch: list[Clip], *, group: int, seed: int) -> Rollout:
        """Sample ``group`` utterances for each of B texts. Returns N = B*G rows of S tokens, the stop one of them."""
        self.announce("encode")
        asked = self._hear(batch)
        self.announce("rollout")
        room = [longest(c.text, self.model, self.sampling) for c in batch]
        with self._cast():
            ids, mask, finished, prompts = self._write(asked, batch, group, seed, room)
        empty = torch.tensor([not self.model.pieces(c.text or "") for c in batch])[
            prompts
        ]  # nothing to say: nothing was decided
        mask, finished = mask & ~empty[:, None], finished | empty
        samples = self._samples(self.model, [batch[p] for p in prompts.tolist()], ids, mask, finished)
        return self._pack(Said(batch, asked, ids, mask, prompts), samples, finished)

    @torch.no_grad()
    def base(self, batch: list[Clip], *, seed: int | None = None) -> list[Sample]:
        """What the reference weights say, one draw a text, the same every time: the likeliest ids would run in loops."""
        with self.adapted.reference() as model:
            if self.config.offload == "phase":
                self._phase = ""  # the reference needs the device too
                model.park("all", self.device)
            with self._cast():
                said: list[Sample] = self.task.say(model, batch, sampling=self.sampling, seed=self.seed, wavs=self.loud)
        return said

    def _hear(self, clips: Sequence[Clip], *, model: CodecLM | None = None, grad: bool = False) -> Prompts:
        return self.model.read([self.task.line(c, self.model) for c in clips])  # type: ignore[no-any-return]

    def _samples(
        self, model: CodecLM, clips: Sequence[Clip], ids: Tensor, mask: Tensor, finished: Tensor
    ) -> list[Sample]:
        made: list[Sample] = self.task.samples(model, clips, model.codes(ids, mask), finished, wavs=self.loud)
        return made

    # -- relaxed -------------------------------------------------------------------------------------------------------

    def relax(
        self, rollout: Rollout, rows: Tensor, *, tau: float, hard: bool, seed: int, with_kl: bool = False
    ) -> Relaxed:
        """The ids of ``rows`` (n,) as a differentiable function of the current weights; see ``types.RelaxPolicy``."""
        said: Said = rollout.state
        width = max(1, int(said.mask[rows].sum(1).max()))
        ids, mask = (x[rows, :width].to(self.device) for x in (said.ids, said.mask))
        seeds = [seed_of(seed, int(r)) for r in rows]
        if self.config.diffro.mode == "free":
            return self._free(said, rows, width, tau, hard, seeds)
        logits, codes = self._look(self.model, said, rows) / self.sampling.temperature, mask & (ids < self.model.size)
        slice_, stop = logits[..., :-1], logits[..., -1]
        noise, drawn = pad_to(gumbel_noise(codes.sum(1).tolist(), self.model.size, seeds, self.device), width), None
        if self.config.diffro.noise == "given":
            drawn = ids.masked_fill(~codes, 0)
            noise = noise_given(slice_, drawn, noise)
        kl = None
        if with_kl and self.config.kl == "full":
            with torch.no_grad(), self.adapted.reference() as other:
                there = self._look(other, said, rows) / self.sampling.temperature
            kl = pad(token_kl(logits, there), (0, said.ids.shape[1] - width))
        return Relaxed(relaxed_tokens(slice_, noise, tau, hard, drawn), codes, slice_, stop, kl, seed)

    def _free(self, said: Said, rows: Tensor, width: int, tau: float, hard: bool, seeds: list[int]) -> Relaxed:
        """Decoded anew: a row ends where its stop wins, at the latest where the longest of the rows did."""
        model, n, warmth = self.model, len(rows), self.sampling.temperature
        noise = gumbel_noise([width] * n, model.size + 1, seeds, self.device)
        nothing = ~said.mask[rows].any(1).to(self.device)  # rows that were asked nothing
        soft, keep, ended = list[Tensor](), list[Tensor](), nothing

        def choose(logits: Tensor, s: int) -> tuple[Tensor, bool]:
            nonlocal ended
            here = logits / warmth
            ended = ended | ((here.detach() + noise[:, s]).argmax(-1) == model.stop)
            soft.append(relaxed_tokens(here[:, :-1], noise[:, s, :-1], tau, hard))
            keep.append(~ended)
            return soft[-1], s == width - 1 or bool(ended.all())

        with self._cast():
            logits = model.unroll(said.heard, said.prompts[rows], width, choose) / warmth
        return Relaxed(torch.stack(soft, 1), torch.stack(keep, 1), logits[..., :-1], logits[..., -1])

    # -- the control ---------------------------------------------------------------------------------------------------

    def supervised(self, prompts: list[Clip], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        """Cross-entropy of the recordings' ids in nats an id, its mean over the clips; one without text or recording counts as 0."""
        known = [c for c in prompts if c.text and len(c.target) and c.columns.get("recorded") is not False]
        if not known:
            return 0.0 * self.parameters()[0].sum()
        ids, mask = self.model.references(self.task.recorded(known, self.model))
        with self._cast():
            logits = self.model.logits(self._hear(known), torch.arange(len(known)), ids, mask)
        return self._cross_entropy(logits, ids, mask, len(prompts))


def pad_to(x: Tensor, width: int) -> Tensor:
    """(n, T, V) with zeros behind, to (n, width, V)."""
    return pad(x, (0, 0, 0, width - x.shape[1]))
