"""Decoding from a cache: B prompts behind one prefill, and the rows of their groups a token at a time.

A token's keys and values are written into storage with room ahead, where transformers copies all that there is. Where prompts are long the
rows of a group are the queries of one sequence, so that nothing of the prompt is copied; Whisper's share the audio in any case. No step
asks a device for a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

SHARED = 2**14  # prompt tokens that would be copied for groups, from which on they are not
AHEAD = 16  # tokens that storage has room for at least, when it grows


@cache
def growing_layer() -> type[Any]:
    """A layer of transformers' cache with room ahead; for use without gradient: what it returned is written behind."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values (N, H, K, D), the first K tokens of ``stored`` unless rows were chosen since."""

        stored: tuple[Tensor, Tensor] | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
            if not (at := self.get_seq_length()):
                return super().update(key_states, value_states)
            end, stored, keys, values = at + key_states.shape[2], self.stored, self.keys, self.values
            assert keys is not None and values is not None
            if stored is None or stored[0].data_ptr() != keys.data_ptr() or end > stored[0].shape[2]:
                spare = (0, 0, 0, end - at + max(AHEAD, at // 4))
                stored = self.stored = pad(keys, spare), pad(values, spare)
            for held, states in zip(stored, (key_states, value_states), strict=True):
                held[:, :, at:end] = states
            self.keys, self.values = (x[:, :, :end] for x in stored)
            return self.keys, self.values

    return GrowingLayer


class State:
    """B prompts behind their prefill, and from ``start`` on the rows that go on from them.

    Args:
        lm: the model.
        prompts: B of them.

    ``logits`` (B, V) are those behind the last prompt token, ``prompt`` (B, L) bool its real positions. ``plain``: every layer of the cache
    keeps all tokens, and attention takes any mask.
    """

    packing: Packing | None = None

    def __init__(self, lm: Any, prompts: Any) -> None:
        from transformers import DynamicCache, EncoderDecoderCache
        from transformers.cache_utils import DynamicLayer

        self.lm, config, grows = lm, lm.net.config.get_text_config(), not torch.is_grad_enabled()
        self.own = DynamicCache() if lm.seq2seq else DynamicCache(config=config)
        kinds = {self.own.layer_class_to_replicate, *map(type, self.own.layers)} - {None}
        if grows and kinds == {DynamicLayer}:
            if lm.seq2seq:
                self.own.layer_class_to_replicate = growing_layer()
            self.own.layers = [growing_layer()() for _ in self.own.layers]
        if lm.seq2seq:
            given, self.prompt = left_padded([i.to(lm.device) for i in prompts.ids])
            self.audio = torch.stack([a.to(lm.device) for a in prompts.audio or ()])
            self.cache: Any = EncoderDecoderCache(self.own, DynamicCache())
        else:
            given, self.prompt = left_padded(lm.embed(prompts))
            self.cache = self.own
        decoder = lm.net.get_decoder() or lm.net
        self.plain = grows and kinds == {DynamicLayer} and decoder.config._attn_implementation == "sdpa"
        last = self.states(given, self.prompt.long(), (self.prompt.cumsum(1) - 1).clamp_min(0))[:, -1]
        self.logits = lm.restrict(lm.head(last), torch.ones(len(last), dtype=torch.bool, device=last.device))

    def start(self, group: int, unit: int, steps: int) -> None:
        """Make ``group`` rows of each prompt, of up to ``steps`` tokens; ``unit`` of them share its keys and values, 1: each has a copy.

        A unit's rows are the queries of one sequence, in which a token sees the prompt and its own row.
        """
        copies, device = group // unit, self.prompt.device
        if copies > 1:
            self.own.batch_repeat_interleave(copies)
        prompt = self.prompt.repeat_interleave(copies, 0)
        self.place = prompt.sum(1, keepdim=True).expand(-1, unit)
        answers = torch.eye(unit, dtype=torch.bool, device=device).repeat(1, steps)
        self.visible = torch.cat([x.expand(len(prompt), unit, -1) for x in (prompt[:, None], answers)], 2)
        self._arrange(torch.arange(len(self.prompt)).repeat_interleave(copies))

    def _arrange(self, owner: Tensor) -> None:
        """Note what holds until rows leave: whose audio each of the units attends to, (n,), and whether anything is masked."""
        self.owner = owner
        self.packing = Packing.of(owner, self.place.device) if self.lm.seq2seq else None
        self.masked = not self.plain or not bool(self.visible.all())

    def select(self, units: Tensor) -> None:
        """Keep some of the units (n,), in order."""
        self.own.batch_select_indices(units)
        used, owner = self.owner[units.cpu()].unique(return_inverse=True)
        if self.lm.seq2seq:
            self.cache.cross_attention_cache.batch_select_indices(used.to(units.device))
        self.place, self.visible = self.place[units], self.visible[units]
        self._arrange(owner)

    def step(self, given: Tensor, s: int) -> Tensor:
        """Logits (n, V) behind each row's token ``s``: ids (n / unit, unit), or embeddings (n / unit, unit, D)."""
        mask = None
        if self.masked:
            mask = self.visible[..., : self.prompt.shape[1] + (s + 1) * given.shape[1]]
            mask = mask[:, None] if self.plain else mask[:, 0].long()
        states = self.states(given, mask, self.place + s).flatten(0, 1)
        return self.lm.restrict(self.lm.head(states), None)  # type: ignore[no-any-return]

    def states(self, given: Tensor, mask: Tensor | None, place: Tensor) -> Tensor:
        """What the head sees (n, S, D) of ids (n, S) or embeddings (n, S, D) at positions ``place`` (n, S)."""
        net, how = self.lm.net, {"past_key_values": self.cache, "use_cache": True}
        how |= {"attention_mask": mask, "position_ids": place}
        if self.lm.seq2seq:
            with shared_audio(net.model.decoder, self.packing):
                out = net.model.decoder(input_ids=given, encoder_hidden_states=self.audio, **how)
        else:
            out = net.model(inputs_embeds=given if given.is_floating_point() else self.lm.embed_ids(given), **how)
        return out.last_hidden_state  # type: ignore[no-any-return]


class Packing(NamedTuple):
    """Rows (n,) of prompts as the queries of one sequence a prompt, of which there are as many as the most that one has.

    Args:
        place: (n,) long, each row's among all of them.
        prompts: B.
        most: rows of a prompt.
    """

    place: Tensor
    prompts: int
    most: int

    @classmethod
    def of(cls, owner: Tensor, device: torch.device) -> Packing | None:
        """Of the prompts that rows belong to, (n,) long on the host; None where each has one, in order."""
        number, counts = torch.arange(len(owner)), owner.bincount()
        if torch.equal(owner, number):
            return None
        most, (prompt, order) = int(counts.max()), owner.sort(stable=True)
        place = torch.empty_like(owner)
        place[order] = most * prompt + number - (counts.cumsum(0) - counts)[prompt]
        return cls(place.to(device), len(counts), most)


@contextmanager
def shared_audio(decoder: Any, packing: Packing | None) -> Iterator[None]:
    """Let the rows of a clip share its audio in a decoder's cross-attention: its keys and values are made, and cached, once.

    Queries of cross-attention do not see each other, so that those of a clip's rows may stand one behind the other as those of one row.

    Args:
        decoder: Whisper's.
        packing: of its rows, by the B clips that it is given as ``encoder_hidden_states``; None: each has its own.
    """
    if packing is None:
        yield
        return
    place, prompts, most = packing

    def pack(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else given["hidden_states"]
        packed = x.new_zeros(most * prompts, *x.shape[1:]).index_copy(0, place, x)
        return (), {**given, "hidden_states": packed.reshape(prompts, -1, x.shape[-1])}

    def unpack(_: nn.Module, args: Any, out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return out[0].reshape(most * prompts, -1, out[0].shape[-1])[place], out[1]

    attend: list[nn.Module] = [layer.encoder_attn for layer in decoder.layers]
    hooks = [m.register_forward_pre_hook(pack, with_kwargs=True) for m in attend]
    hooks += [m.register_forward_hook(unpack) for m in attend]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def shares(prompts: int, length: int, group: int, steps: int) -> bool:
    """Whether rows of up to ``steps`` tokens share their prompt's keys and values.

    Copies cost ``length`` tokens a row; without them each token is compared with those of its whole group, most of which are masked.
    """
    return (group - 1) * prompts * length >= SHARED and (group - 2) * length >= group * steps


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (L_i, ...) padded on the left to (B, L, ...), and the mask (B, L) bool of what is real."""
    longest = max(len(r) for r in rows)
    mask = torch.stack([torch.arange(longest, device=r.device) >= longest - len(r) for r in rows])
    return torch.stack([torch.cat([r.new_zeros(longest - len(r), *r.shape[1:]), r]) for r in rows]), mask
