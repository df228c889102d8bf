"""Drawing transcripts from an audio LLM: one prefill a prompt, its cache repeated for the group, every row its own random numbers.

transformers' ``generate`` does more than is wanted here. It runs the prompt once for every row of a group; it takes top-k, penalties and
suppressed tokens from the checkpoint's generation config, and what is then drawn is not the policy that is trained; and its noise is one
stream for the batch, so a row's draw hangs on its neighbours. Here a row's draw is given by its prompt's seed, its place in the group and
the model alone: uniform numbers drawn beforehand, and the distribution function inverted at them. Rows that have stopped leave the batch
once they have cost as much as one step of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import Sampling

__all__ = ["Drawn", "State", "draw", "left_padded", "pick", "prefill", "search", "uniforms"]


class Drawn(NamedTuple):
    """What was written: N rows, those of one prompt next to each other, on the host.

    Args:
        ids: (N, S) long, filled up with the padding token.
        mask: (N, S) bool, the tokens that were drawn, the stop token among them.
        finished: (N,) bool, False where the row had not stopped at its last allowed token.
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor


class State(NamedTuple):
    """A prompt batch after its prefill.

    Args:
        step: (ids (n, 1), rows (n,), mask (n, K), place (n, 1), cache) -> logits (n, V); ``rows`` are prompts.
        logits: (B, V) after the last prompt token.
        mask: (B, L) bool, which prompt positions are real.
        cache: transformers' cache of the B prompts.
    """

    step: Callable[[Tensor, Tensor, Tensor, Tensor, Any], Tensor]
    logits: Tensor
    mask: Tensor
    cache: Any


def uniforms(prompts: int, group: int, steps: int, seed: int | Sequence[int]) -> Tensor:
    """Numbers (B * G, S) in [0, 1), double: row (b, g) is the stream of (``seed``, b, g), or of (``seed[b]``, g)."""
    keys = [[abs(seed), b] for b in range(prompts)] if isinstance(seed, int) else [[abs(int(s))] for s in seed]
    rows = [np.random.default_rng([*key, g]).random(steps) for key in keys for g in range(group)]
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, steps)))


def pick(logits: Tensor, sampling: Sampling | None, u: Tensor | None) -> Tensor:
    """Tokens (n,) from logits (n, V): the likeliest, or the ones at which the distribution function passes ``u`` (n,)."""
    logits = logits.float()
    if sampling is None or u is None:
        return logits.argmax(-1)
    p = (logits / sampling.temperature).softmax(-1)
    if 0 < sampling.top_k < p.shape[-1]:
        p = p.where(p >= p.topk(sampling.top_k).values[:, -1:], 0.0)
    if sampling.top_p < 1:
        ordered, place = p.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        p = p.scatter(-1, place, ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0))
    cdf = p.double().cumsum(-1)  # single precision loses tokens rarer than 1e-7, of which a large vocabulary has many
    at = torch.searchsorted(cdf, (u.to(cdf.device) * cdf[:, -1])[:, None], right=True)[:, 0]
    return at.clamp_max(p.shape[-1] - 1)


@torch.no_grad()
def draw(
    state: State,
    *,
    group: int,
    steps: int | Sequence[int],
    sampling: Sampling | None,
    seed: int | Sequence[int],
    stops: Sequence[int],
    pad: int,
) -> Drawn:
    """Write up to ``steps`` tokens for each of the B prompts, ``group`` times.

    Args:
        state: the prompts after their prefill; its cache is used up.
        group: rows a prompt.
        steps: S at most, of all prompts or one a prompt.
        sampling: None takes the likeliest token.
        seed: see ``uniforms``.
        stops: ids that end a row.
        pad: id that fills up.
    """
    prompts, device = len(state.logits), state.logits.device
    n = prompts * group
    room = torch.tensor(
        [steps] * prompts if isinstance(steps, int) else [int(s) for s in steps], dtype=torch.long
    ).repeat_interleave(group)
    steps = int(room.max()) if n else 0
    noise = None if sampling is None else uniforms(prompts, group, steps, seed)
    ids, mask, finished = (
        torch.full((n, steps), pad),
        torch.zeros(n, steps, dtype=torch.bool),
        torch.zeros(n, dtype=torch.bool),
    )
    done, wasted = room <= 0, 0
    ends = torch.tensor(list(stops))
    cache = state.cache
    if group > 1:
        cache.batch_repeat_interleave(group)
    logits, seen = state.logits.repeat_interleave(group, 0), state.mask.repeat_interleave(group, 0)
    place = seen.sum(1, keepdim=True)
    live = torch.arange(n)  # rows that are in the batch, whether stopped or not
    for s in range(steps):
        token = pick(logits, sampling, None if noise is None else noise[live, s]).cpu()
        open_ = ~done[live]
        rows = live[open_]
        ids[rows, s], mask[rows, s] = token[open_], True
        finished[rows] = torch.isin(token[open_], ends)
        done[rows] = finished[rows] | (room[rows] == s + 1)
        open_ = ~done[live]
        going = int(open_.sum())
        if not going:
            break
        wasted += len(live) - going
        if wasted >= len(live):  # to copy the cache without them costs about that much
            keep = open_.nonzero()[:, 0].to(device)
            cache.batch_select_indices(keep)
            live, token, seen, place, wasted = live[open_], token[open_], seen[keep], place[keep], 0
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        logits = state.step(token[:, None].to(device), (live // group).to(device), seen, place, cache)
        place = place + 1
    longest = int(mask.any(0).sum()) if n else 0
    return Drawn(ids[:, :longest], mask[:, :longest], finished)


def prefill(lm: Any, heard: Any) -> State:
    """Run the B prompts of ``heard`` through the language model of an ``AudioLM`` or a ``CodecLM``."""
    return _prefill_seq2seq(lm, heard) if lm.seq2seq else _prefill(lm, heard)


def _prefill(lm: Any, heard: Any) -> State:
    from transformers import DynamicCache

    embeds, mask = left_padded(lm.embed(heard))
    cache = DynamicCache(config=lm.net.config.get_text_config())
    place = (mask.cumsum(1) - 1).clamp_min(0)
    hidden = lm.net.model(
        inputs_embeds=embeds, attention_mask=mask.long(), position_ids=place, past_key_values=cache, use_cache=True
    ).last_hidden_state
    table = getattr(lm, "look_up", lm.net.get_input_embeddings())  # whose ids may be a slice of the vocabulary

    def step(ids: Tensor, rows: Tensor, seen: Tensor, at: Tensor, cache: Any) -> Tensor:
        out = lm.net.model(
            inputs_embeds=table(ids), attention_mask=seen.long(), position_ids=at, past_key_values=cache, use_cache=True
        )
        return lm.head(out.last_hidden_state[:, -1])  # type: ignore[no-any-return]

    return State(step, lm.head(hidden[:, -1]), mask, cache)


def _prefill_seq2seq(lm: Any, heard: Any) -> State:
    from transformers import DynamicCache, EncoderDecoderCache

    ids, mask = left_padded([i.to(lm.device) for i in heard.ids])
    audio = torch.stack([a.to(lm.device) for a in heard.audio])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder = lm.net.model.decoder

    def step(ids: Tensor, rows: Tensor, seen: Tensor, at: Tensor, cache: Any) -> Tensor:
        out = decoder(
            input_ids=ids,
            attention_mask=seen.long(),
            position_ids=at,
            encoder_hidden_states=audio[rows],
            past_key_values=cache,
            use_cache=True,
        )
        return lm.head(out.last_hidden_state[:, -1])

    first = step(ids, torch.arange(len(ids)), mask, (mask.cumsum(1) - 1).clamp_min(0), cache)
    return State(step, first, mask, cache)


def search(lm: Any, heard: Any, beams: int, steps: int) -> Drawn:
    """transformers' beam search over the model's own distribution, one row a prompt."""
    from transformers import GenerationConfig, GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    plain = GenerationConfig(
        num_beams=beams, max_new_tokens=steps, do_sample=False, eos_token_id=lm.stops, pad_token_id=lm.pad
    )
    given: dict[str, Any] = {}
    if lm.seq2seq:
        plain.decoder_start_token_id = lm.pad  # asked for, not used: the prompt holds it
        given["encoder_outputs"] = BaseModelOutput(
            last_hidden_state=torch.stack([a.to(lm.device) for a in heard.audio])
        )
        given["decoder_input_ids"], given["decoder_attention_mask"] = left_padded([i.to(lm.device) for i in heard.ids])
    else:
        given["inputs_embeds"], given["attention_mask"] = left_padded(lm.embed(heard))
    kept, lm.net.generation_config = (
        lm.net.generation_config,
        plain,
    )  # unset options would be taken from the checkpoint's
    try:
        made: Any = GenerationMixin.generate(
            lm.net, generation_config=plain, **given
        )  # Granite's own would switch its adapter off
    finally:
        lm.net.generation_config = kept
    ids = made.cpu()[:, max(len(i) for i in heard.ids) :] if lm.seq2seq else made.cpu()
    stop = torch.isin(ids, torch.tensor(lm.stops))
    mask = (stop.cumsum(1) - stop.long()) == 0
    return Drawn(ids.masked_fill(~mask, lm.pad), mask, stop.any(1))


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (L_i, ...) padded on the left to (B, L, ...), and the mask (B, L) bool of what is real."""
    longest = max(len(r) for r in rows)
    mask = torch.stack([torch.arange(longest, device=r.device) >= longest - len(r) for r in rows])
    return torch.stack([torch.cat([r.new_zeros(longest - len(r), *r.shape[1:]), r]) for r in rows]), mask
