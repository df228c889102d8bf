"""A codec language model as a policy: the decisions of a rollout are the codec ids of an utterance, and its stop.

The textbook version (GRPO on CosyVoice2's language model, arXiv 2509.18569): several utterances of every text are sampled, decoded,
recognised and scored. Nothing is left out. What is changed, beside what ``token_policy`` says:

- Only codes and the stop can be drawn (``models/codec/lm.py``).
- Waveforms are made where a reward needs_audio them, in batches of like length; rewards of tokens need none.
- A row that does not stop is cut off at three times what its text usually takes, or at the model's ``max_s``; it is not ``finished``.
- An empty text is answered with nothing, and nothing is decided in its rows.

It can be relaxed (DiffRO, arXiv 2507.05911). The published way draws fresh Gumbel noise at every step of the sampled history, so that
what the reward reads is no sequence that the policy would write: each id was drawn as if the ones before it had not been. Here the noise is
drawn given the ids that were sampled: the reward reads the rollout itself, and the filter on advantages judges what
is trained. ``diffro.noise`` "fresh" is the published way. ``diffro.mode`` "free" decodes anew, every step seeing the relaxed ids before it,
with the gradient through all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config_parts import Sampling
from rlspeech.data.batches import Clip, seed_of
from rlspeech.models.audio_lm.generate import EncodedPrompts
from rlspeech.models.codec.lm import CodecLM
from rlspeech.rewards.base import resolve
from rlspeech.tasks.token_policy import TokenPolicy, TokenRollout
from rlspeech.types import Relaxed, Rollout, Sample

SLOWEST, LEAST_S = 5.0, 2.0  # bytes of text a second: a third of usual speech; seconds that any text may take
SILENT = frozenset({"tokens", "hypothesis"})  # needs of rewards that take no audio


def longest(text: str | None, model: CodecLM, sampling: Sampling) -> int:
    """Most tokens that a text may take, the stop included: three times what usual speech takes, at most the model's ``max_s``."""
    if sampling.max_new_tokens is not None:
        return sampling.max_new_tokens
    seconds = min(model.max_s, LEAST_S + len((text or "").encode()) / SLOWEST)
    return int(seconds / model.layout.frame_s) + 1


def needs_audio(names: Sequence[str]) -> bool:
    """Whether one of the rewards needs waveforms."""
    return any(not (resolve(name).entry.needs & SILENT) for name in names)


class TtsPolicy(TokenPolicy):
    """Acts with the current weights of ``adapted``, a ``CodecLM``; see ``token_policy``, ``types.Policy`` and ``types.RelaxPolicy``."""

    supports: frozenset[str] = frozenset({"sample", "relax", "base", "critic", "supervised", "join", "fit"})

    def __init__(self, task: Any, adapted: Any, config: Any) -> None:
        super().__init__(task, adapted, config)
        self._warned.add("warm")  # it is validated and used at this temperature too
        # diffro alone scores no rollout
        self.decodes = config.algo != "diffro" and needs_audio([r.name for r in config.rewards])

    # -- acting --------------------------------------------------------------------------------------------------------

    def _room(self, clips: Sequence[Clip]) -> list[int]:
        return [longest(c.text, self.model, self.sampling) for c in clips]

    def _is_empty(self, clip: Clip) -> bool:
        return not self.model.pieces(clip.text or "")

    def _samples(self, clips: list[Clip], ids: Tensor, mask: Tensor, finished: Tensor) -> list[Sample]:
        codes = self.model.codes(ids, mask)
        return self.task.samples(self.model, clips, codes, finished, wavs=self.decodes)  # type: ignore[no-any-return]

    def _answers(self, model: Any, clips: list[Clip]) -> list[Sample]:
        """One draw a text: the likeliest ids would run in loops."""
        how = {"sampling": self.sampling, "seed": self.seed, "wavs": self.decodes}
        return self.task.synthesise(model, clips, **how)  # type: ignore[no-any-return]

    def _encode(self, clips: Sequence[Clip], *, model: CodecLM | None = None, grad: bool = False) -> EncodedPrompts:
        return self.model.encode([self.task.line(c, self.model) for c in clips])  # type: ignore[no-any-return]

    # -- relaxed -------------------------------------------------------------------------------------------------------

    def relax(
        self, rollout: Rollout, rows: Tensor, *, tau: float, hard: bool, seed: int, with_kl: bool = False
    ) -> Relaxed:
        """The ids of ``rows`` (n,) as a differentiable function of the current weights; see ``types.RelaxPolicy``."""
        state: TokenRollout = rollout.state
        width = max(1, int(state.mask[rows].sum(1).max()))
        ids, mask = (x[rows, :width].to(self.device) for x in (state.ids, state.mask))
        owners = state.prompts[rows]
        members = rows - torch.searchsorted(state.prompts, owners)
        pairs = zip(owners.tolist(), members.tolist(), strict=True)
        seeds = [seed_of(seed, state.clips[p].draw, member) for p, member in pairs]
        if self.config.diffro.mode == "free":
            return self._free(state, rows, width, tau, hard, seeds)
        states = self._forward(self.model, state, rows)
        logits = self._logits(self.model, states) / self.sampling.temperature
        slice_, codes = logits[..., :-1], mask & (ids < self.model.size)
        noise, sampled = gumbel_noise(codes.sum(1).tolist(), self.model.size, seeds, self.device), None
        noise = pad(noise, (0, 0, 0, width - noise.shape[1]))
        if self.config.diffro.noise == "given":
            sampled = ids.masked_fill(~codes, 0)
            noise = noise_given(slice_, sampled, noise)
        full = with_kl and self.config.kl == "full"
        kl = self._logp_kl(rollout, rows, states, True)[1] if full else None
        return Relaxed(relaxed_tokens(slice_, noise, tau, hard, sampled), codes, slice_, kl, seed)

    def _free(self, state: TokenRollout, rows: Tensor, width: int, tau: float, hard: bool, seeds: list[int]) -> Relaxed:
        """Decoded anew: a row ends where its stop wins, at the latest where the longest of the rows did."""
        model, n, warmth = self.model, len(rows), self.sampling.temperature
        noise = gumbel_noise([width] * n, model.size + 1, seeds, self.device)
        nothing = ~state.mask[rows].any(1).to(self.device)  # rows that were asked nothing
        soft, keep, ended = list[Tensor](), list[Tensor](), nothing

        def choose(logits: Tensor, s: int) -> tuple[Tensor, bool]:
            nonlocal ended
            here = logits / warmth
            ended = ended | ((here.detach() + noise[:, s]).argmax(-1) == model.stop)
            soft.append(relaxed_tokens(here[:, :-1], noise[:, s, :-1], tau, hard))
            keep.append(~ended)
            return soft[-1], s == width - 1 or bool(ended.all())

        with self._cast():
            logits = model.unroll(state.encoded, state.prompts[rows], width, choose) / warmth
        return Relaxed(torch.stack(soft, 1), torch.stack(keep, 1), logits[..., :-1])

    # -- the control ---------------------------------------------------------------------------------------------------

    def _has_reference(self, clip: Clip) -> bool:
        return bool(clip.text) and len(clip.target) > 0 and clip.columns.get("recorded") is not False

    def _references(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        return self.model.references(self.task.recorded(clips, self.model))  # type: ignore[no-any-return]


# Gumbel-softmax (arXiv 1611.01144, 1611.00712): a drawn token as a differentiable function of the logits that it was drawn from.
#
#     mu = softmax((logits + g) / tau),   g ~ Gumbel(0, 1),   argmax mu ~ softmax(logits) at every tau.
#
# Straight-through, what is handed on is the one-hot of the argmax, and the gradient is that of mu. Added: the noise may be drawn given
# which token won (the truncated Gumbels of arXiv 1411.0030), so that a sequence that was sampled before is relaxed as itself; and a row's
# noise is a function of its seed and its own length alone, whatever batch it stands in.


def gumbel_noise(lengths: Sequence[int], size: int, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise (n, T, V) float32, 0 behind the end of a row.

    Args:
        lengths: n rows' tokens, T the most of them.
        size: V.
        seeds: n of them.
        device: where it is drawn and stays; another kind of device draws other numbers.
    """
    rows = []
    for length, seed in zip(lengths, seeds, strict=True):
        sampled = torch.empty(length, size, device=device)
        sampled.exponential_(generator=torch.Generator(device).manual_seed(seed))
        rows.append(-sampled.clamp_min(torch.finfo(sampled.dtype).tiny).log())
    return pad_sequence(rows, batch_first=True)


def noise_given(logits: Tensor, ids: Tensor, noise: Tensor) -> Tensor:
    """Gumbel noise (n, T, V) under which ``ids`` win: the noise of a draw, its law given what was drawn.

    Args:
        logits: (n, T, V); no gradient goes through the noise.
        ids: (n, T) long.
        noise: (n, T, V) independent, of ``gumbel_noise``.
    """
    logits = logits.detach().float()
    # the largest sum, whichever token has it
    top = logits.logsumexp(-1, keepdim=True) + noise.gather(-1, ids[..., None])
    below = -torch.logaddexp(-top, -(logits + noise))  # the others, cut off there
    made = torch.where(one_hot(ids, logits.shape[-1]).bool(), top, torch.minimum(below, top)) - logits
    return torch.where(logits == -torch.inf, noise, made)  # a token that cannot be drawn has any noise


def relaxed_tokens(logits: Tensor, noise: Tensor, tau: float, hard: bool, ids: Tensor | None = None) -> Tensor:
    """Distributions (n, T, V) float32 over tokens, one-hot where ``hard``, with the soft ones' gradient either way.

    Args:
        logits: (n, T, V).
        noise: (n, T, V), see ``gumbel_noise``.
        tau: temperature, above 0.
        hard: straight-through.
        ids: (n, T) long, the tokens that the noise was drawn for (``noise_given``): they win, whatever rounding says.
    """
    soft = ((logits.float() + noise) / tau).softmax(-1)
    if not hard:
        return soft
    chosen = one_hot(soft.argmax(-1) if ids is None else ids, soft.shape[-1]).to(soft.dtype)
    return chosen + (soft - soft.detach())  # chosen exactly: the bracket is 0
