"""Tokens from a language model behind encoded prompts: drawn with one prefill a prompt, and their logits by one plain forward.

transformers' ``generate`` does more than is wanted here. It runs the prompt once for every row of a group; it takes top-k and penalties
from the checkpoint's generation config, and what is then drawn is not the policy that is trained; and its noise is one stream for the
batch, so a row's draw hangs on its neighbours. Here a row's draw is given by its prompt's seed, its place in the group and the model
alone: uniform numbers drawn beforehand, and the distribution function inverted at them. What the model's lists suppress has probability 0
in sampling and in the training path alike. Rows that have stopped leave the batch once they have cost as much as one step of all. Where
audio is attended to (Whisper), its keys and values are made once a clip, whatever the group.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from rlspeech.config_parts import Sampling
from rlspeech.models.audio_lm.decode import Packing, State, left_padded, shared_audio, shares
from rlspeech.models.folder import loading, read_about, save_net, snapshot, write_about
from rlspeech.models.hub import card_of, find_checkpoint
from rlspeech.types import UserError

ATTENTION = set("q_proj k_proj v_proj o_proj out_proj qkv_proj to_q to_kv to_out query key value".split())
CHECK = (1, 8)  # tokens between looks at which rows have stopped, on the host and on a device, for which each is a wait
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2"}


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Prompts as a model takes them.

    Args:
        ids: (L_i,) long a prompt: its token ids, on the host.
        audio: (A_i, D) a prompt: the vectors that take the audio tokens' places (of Whisper, what the decoder attends to); None: no audio.
    """

    ids: list[Tensor]
    audio: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> EncodedPrompts:
        """A copy on another device; "cpu" parks it."""
        return self if self.audio is None else replace(self, audio=[a.to(device) for a in self.audio])

    def select(self, rows: Sequence[int] | Tensor) -> EncodedPrompts:
        """Some of the prompts, in the order asked for; repeats are allowed and share memory."""
        at = [int(r) for r in rows]
        return EncodedPrompts([self.ids[i] for i in at], None if self.audio is None else [self.audio[i] for i in at])

    @classmethod
    def joined(cls, parts: Sequence[EncodedPrompts]) -> EncodedPrompts:
        """Several one after the other, all with audio or all without."""
        audio = None if any(p.audio is None for p in parts) else [a for p in parts for a in p.audio or ()]
        return cls([i for p in parts for i in p.ids], audio)


class Generation(NamedTuple):
    """Tokens that were sampled: N rows, those of one prompt next to each other, on the host.

    Args:
        ids: (N, S) long, filled up with the padding token.
        mask: (N, S) bool, the tokens that were drawn, the stop token among them.
        finished: (N,) bool, False where the row had not stopped at its last allowed token.
        logp: (N, S) float32 log-probabilities by the engine that sampled, nan where it does not know; None: the model itself sampled.
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor
    logp: Tensor | None = None


class LanguageModel(nn.Module):
    """What a policy over tokens asks of an ``AudioLM`` or a ``CodecLM``, whatever is in their prompts.

    A subclass gives ``shared`` (what copies of the model have in common) and ``embed``, and may give its own table and head.
    """

    seq2seq = False
    net: Any
    stops: list[int]  # ids that end a row
    pad: int  # id that fills a row up
    suppress_tokens: Sequence[int] = ()  # ids that are never written
    begin_suppress_tokens: Sequence[int] = ()  # and those that no row begins with
    source: Path | None = None  # folder that it was loaded from
    recomputes = False  # what is inside a layer is computed anew for the backward pass of ``forward_states``

    def shared(self) -> Sequence[Any]:
        """What copies of the model share: tokenizers, frozen parts."""
        raise NotImplementedError

    def embed(self, prompts: EncodedPrompts) -> list[Tensor]:
        """Prompt embeddings (L_i, D)."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """What is not trained, whatever is, and shared by copies of the model."""
        return []

    def idle(self) -> Tensor:
        """0, by a pass over one token in which every weight takes part."""
        nothing = torch.zeros(int(self.seq2seq), self.net.get_input_embeddings().weight.shape[1])
        prompt = EncodedPrompts([torch.zeros(1, dtype=torch.long)], [nothing])
        return 0 * self.head(self.forward_states(prompt, [0], torch.zeros(1, 1, dtype=torch.long))).sum()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with its own language model."""
        for part in self.shared():
            memo[id(part)] = part
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return twin

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.net.get_output_embeddings().weight.device  # type: ignore[no-any-return]

    def lora_patterns(self, parts: Sequence[str], whole: Sequence[str] = ()) -> dict[str, str]:
        """Patterns of module names by ``Lora.targets``: in parts of ``net``, and all of ``whole``; the head is never adapted."""
        head = self.net.get_output_embeddings()
        linear = [name for name, m in self.net.named_modules() if isinstance(m, nn.Linear) and m is not head]
        patterns: dict[str, str] = {}
        for kind, wanted in {"attention": ATTENTION, "attention+ff": ATTENTION | FEED_FORWARD, "all": None}.items():
            found = []
            for top in (*parts, *whole):
                leaves = {n.rpartition(".")[2] for n in linear if n.startswith(f"{top}.")}
                if leaves := leaves if wanted is None or top in whole else leaves & wanted:
                    found.append(rf"{re.escape(top)}\.(.*\.)?({'|'.join(sorted(leaves))})")
            patterns[kind] = rf"net\.({'|'.join(found)})"
        return patterns

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of ids (...) that the model writes."""
        return self.net.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def head(self, states: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self.net.get_output_embeddings()(states)  # type: ignore[no-any-return]

    def open_head(self) -> Callable[[Tensor], Tensor]:
        """The head for many calls: what it takes of the weights is taken once, and so is its gradient."""
        return self.head

    def written(self) -> tuple[Tensor, Tensor]:
        """Rows of the embedding table that are tokens it may write, (K,) long, and those tokens in the count of its ids, (K,) long."""
        ids = torch.arange(len(self.net.get_output_embeddings().weight))
        ids = ids[~torch.isin(ids, torch.tensor(self.suppress_tokens).long())]
        return ids, ids

    def restrict(self, logits: Tensor, first: Tensor | None) -> Tensor:
        """Set what is suppressed in logits (..., V) to -inf, in place, and where they are a row's ``first`` (...) what may not begin it."""
        for ids, at in ((self.suppress_tokens, None), (() if first is None else self.begin_suppress_tokens, first)):
            if ids:
                shut = marked(tuple(ids), logits.shape[-1], logits.device)
                logits.masked_fill_(shut if at is None else shut & at[..., None], -torch.inf)
        return logits

    def forward_states(self, prompts: EncodedPrompts, rows: Sequence[int] | Tensor, ids: Tensor) -> Tensor:
        """What the head sees before each token, (n, S, D), by one plain forward; arguments as in ``forward_logits``."""
        some, written = prompts.select(rows), ids.to(self.device)
        lengths = torch.tensor([len(i) for i in some.ids], device=self.device)
        if self.seq2seq:
            joined = [torch.cat([p.to(self.device), w[:-1]]) for p, w in zip(some.ids, written, strict=True)]
            used, owner = torch.as_tensor(rows).unique(return_inverse=True)
            audio = torch.stack([a.to(self.device) for a in prompts.select(used).audio or ()])
            tokens = pad_sequence(joined, batch_first=True)
            decoder = self.net.model.decoder
            again = partial(shared_audio, decoder, Packing.of(owner, self.device))
            with again(), recomputed(decoder, again) if self.recomputes else nullcontext():
                out = decoder(input_ids=tokens, encoder_hidden_states=audio, use_cache=False)
        else:
            answers = self.embed_ids(written[:, :-1])
            whole = [torch.cat([p, w]) for p, w in zip(self.embed(some), answers, strict=True)]
            with recomputed(self.net.model) if self.recomputes else nullcontext():
                out = self.net.model(inputs_embeds=pad_sequence(whole, batch_first=True), use_cache=False)
        at = lengths[:, None] - 1 + torch.arange(ids.shape[1], device=self.device)
        states = out.last_hidden_state
        return states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))  # type: ignore[no-any-return]

    def forward_logits(
        self, prompts: EncodedPrompts, rows: Sequence[int] | Tensor, ids: Tensor, *, restricted: bool = True
    ) -> Tensor:
        """Logits (n, S, V) float32 before each token of answers, by one plain forward, with gradient.

        Args:
            prompts: B of them.
            rows: (n,) which prompt each answer belongs to.
            ids: (n, S) long, padded on the right; logits at the padding mean nothing.
            restricted: suppressed tokens are at -inf.
        """
        logits = self.head(self.forward_states(prompts, rows, ids)).float()
        return self.restrict(logits, torch.arange(logits.shape[1], device=logits.device) == 0) if restricted else logits

    def room(self, prompts: EncodedPrompts, most: int | Sequence[int]) -> list[int]:
        """Longest answer to each prompt, the stop included: ``most``, or what a table of positions leaves."""
        each = [most] * len(prompts) if isinstance(most, int) else list(map(int, most))
        left = self.net.config.max_target_positions - max(len(i) for i in prompts.ids) if self.seq2seq else max(each)
        return [min(n, max(1, left)) for n in each]

    @torch.no_grad()
    def generate(
        self,
        prompts: EncodedPrompts,
        *,
        group: int = 1,
        sampling: Sampling | None = None,
        max_new_tokens: int | Sequence[int],
        seed: int | Sequence[int] = 0,
        beams: int = 1,
    ) -> Generation:
        """Write answers, ``group`` rows for each of the B prompts, from the model's own distribution without its suppressed tokens.

        Args:
            prompts: B of them.
            group: rows a prompt; they stand next to each other.
            sampling: None: the likeliest token.
            max_new_tokens: longest answer, the stop included, of all prompts or one a prompt.
            seed: of the batch, or one a prompt; a row's draw depends on its prompt's seed and its place in the group.
            beams: more than 1: transformers' beam search, one row a prompt, as long as the longest may be.
        """
        if not len(prompts):
            return Generation(torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0).bool(), torch.zeros(0).bool())
        each = self.room(prompts, max_new_tokens)
        if beams > 1:
            return beam_search(self, prompts, beams, max(each))
        state, n, steps = State(self, prompts), len(prompts) * group, max(each)
        unit = group if state.plain and shares(len(prompts), state.prompt.shape[1], group, steps) else 1
        state.start(group, unit, steps)
        logits, device = state.logits.repeat_interleave(group, 0), state.logits.device
        noise = None if sampling is None else uniforms(len(prompts), group, steps, seed).to(device)
        room, ends = (torch.tensor(x, device=device) for x in (each, self.stops))
        room = room.repeat_interleave(group)
        ids = torch.full((n, steps), self.pad, device=device)
        mask = torch.zeros(n, steps, dtype=torch.bool, device=device)
        live, going = torch.arange(n, device=device), room > 0  # rows in the batch, and which of them have not stopped
        every, wasted = CHECK[device.type != "cpu"], 0
        for s in range(steps):
            token = sample_tokens(logits, sampling, None if noise is None else noise[live, s])
            ids[live, s], mask[live, s] = torch.where(going, token, self.pad), going
            going = going & ~torch.isin(token, ends) & (room[live] > s + 1)
            if s + 1 == steps:
                break
            if (s + 1) % every == 0:  # a device waits for the host here alone
                open_ = going.view(-1, unit).any(1)
                count = int(open_.sum()) * unit
                if not count:
                    break
                wasted += (len(live) - count) * every
                if wasted >= len(live):  # to copy the cache without them costs about that much
                    state.select(open_.nonzero()[:, 0])
                    live, token, going = (x.view(-1, unit)[open_].flatten() for x in (live, token, going))
                    wasted = 0
            logits = state.step(token.view(-1, unit), s)
        longest = int(mask.any(0).sum())
        finished = (mask & torch.isin(ids, ends)).any(1)
        return Generation(ids[:, :longest].cpu(), mask[:, :longest].cpu(), finished.cpu())


def load_lm(
    name: str,
    task: str,
    noun: str,
    device: torch.device | str,
    make: Callable[[str, dict[str, Any], dict[str, Any]], Any],
) -> tuple[Any, dict[str, Any]]:
    """Load a model in evaluation mode, by ``make``(where, options of ``from_pretrained``, what its ``rlspeech.json`` says).

    Returns the model and what its ``rlspeech.json`` says; of a folder without one, its name.
    Raises ``UserError``: missing, of a kind not known here, or weights that do not fit the config.
    """
    folder = find_checkpoint(name, task)
    where, options = (name, {}) if folder is None else (str(folder), {"local_files_only": True})
    hint = "a folder in transformers' layout, a Hub id with the network at hand, or 'embedded'"
    with loading(f"the {noun} {name}", hint):
        model = make(where, options, about := read_about(folder, task))
    model.source = folder or snapshot(where)
    return model.to(device).eval(), about or {"task": task, "facts": {"loaded from": name}}


def save_lm(
    folder: Path, model: Any, task: str, noun: str, about: dict[str, Any], details: Sequence[str] = (), **how: Any
) -> None:
    """Write a folder that transformers loads by itself; ``how`` as in ``folder.save_net``, ``about`` for ``rlspeech.json``."""
    save_net(folder, model, **how)
    about = {"task": task, "model_type": model.model_type, **about}
    parameters, title = sum(p.numel() for p in model.net.parameters()), f"{noun} ({model.model_type})"
    write_about(folder, about, card_of(task, parameters, model.sample_rate, title=title, details=details))


# ---------------------------------------------------------------------------------------------------------------- drawing


@lru_cache(8)
def marked(ids: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """(V,) bool, True at some ids; kept, for to bring them to a device is to wait for it."""
    return torch.isin(torch.arange(size), torch.tensor(ids)).to(device)


def uniforms(prompts: int, group: int, steps: int, seed: int | Sequence[int]) -> Tensor:
    """Numbers (B * G, S) in [0, 1), double: row (b, g) is the stream of (``seed``, b, g), or of (``seed[b]``, g)."""
    keys = [[abs(seed), b] for b in range(prompts)] if isinstance(seed, int) else [[abs(int(s))] for s in seed]
    rows = [np.random.default_rng([*key, g]).random(steps) for key in keys for g in range(group)]
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, steps)))


def sample_tokens(logits: Tensor, sampling: Sampling | None, u: Tensor | None) -> Tensor:
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


def set_attention(net: Any, how: str) -> None:
    """Choose how a transformers model computes attention. Raises ``UserError``: not so here."""
    try:
        (net.get_decoder() or net).set_attn_implementation(how)
    except (ImportError, ValueError) as error:
        what = f"this model's attention cannot be {how} here"
        raise UserError(what, str(error).splitlines()[0], "--set attn_implementation=auto") from error


@contextmanager
def recomputed(net: nn.Module, again: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """Let a model's layers keep what they are given and nothing else, and compute the rest for the backward pass, ``again`` around it.

    transformers' own switch works in training mode alone, which here means dropout.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in net.modules() if isinstance(m, GradientCheckpointingLayer)] if torch.is_grad_enabled() else []
    how: dict[str, Any] = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), again())}
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, preserve_rng_state=False, **how)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def beam_search(lm: Any, prompts: EncodedPrompts, beams: int, steps: int) -> Generation:
    """transformers' beam search over the policy's distribution, one row a prompt."""
    from transformers import GenerationConfig, GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    ends: dict[str, Any] = {"eos_token_id": lm.stops, "pad_token_id": lm.pad}
    ends |= {k: list(getattr(lm, k)) or None for k in ("suppress_tokens", "begin_suppress_tokens")}
    plain = GenerationConfig(num_beams=beams, max_new_tokens=steps, do_sample=False, **ends)
    given: dict[str, Any] = {}
    if lm.seq2seq:
        plain.decoder_start_token_id = lm.pad  # asked for, not used: the prompt holds it
        audio: Any = torch.stack([a.to(lm.device) for a in prompts.audio or ()])
        given["encoder_outputs"] = BaseModelOutput(last_hidden_state=audio)
        ids = [i.to(lm.device) for i in prompts.ids]
        given["decoder_input_ids"], given["decoder_attention_mask"] = left_padded(ids)
    else:
        given["inputs_embeds"], given["attention_mask"] = left_padded(lm.embed(prompts))
    kept = lm.net.generation_config
    lm.net.generation_config = plain  # unset options would be taken from the checkpoint's
    try:  # Granite's own would switch its adapter off
        made: Any = GenerationMixin.generate(lm.net, generation_config=plain, **given)
    finally:
        lm.net.generation_config = kept
    written = made.cpu()[:, max(len(i) for i in prompts.ids) :] if lm.seq2seq else made.cpu()
    stop = torch.isin(written, torch.tensor(lm.stops))
    mask = (stop.cumsum(1) - stop.long()) == 0
    return Generation(written.masked_fill(~mask, lm.pad), mask, stop.any(1))


def right_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows (S_i,) long padded on the right to (B, S) with ``pad``, and the mask (B, S) bool of what is real."""
    mask = [torch.ones(len(r), dtype=torch.bool, device=r.device) for r in rows]
    return pad_sequence(list(rows), batch_first=True, padding_value=pad), pad_sequence(mask, batch_first=True)


def with_answers(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask (B, S) long of prompts with their answers behind, padded on the right, and answer marks (B, S) bool."""
    ids, mask = right_padded([torch.tensor(prompt + answer) for prompt, answer in rows], pad)
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    return ids, mask.long(), mask & (torch.arange(ids.shape[1]) >= starts[:, None])


def widened(rows: Sequence[Tensor], value: float) -> Tensor:
    """Parts (n, S) as one, as wide as the widest, filled up with a value."""
    longest = max(x.shape[1] for x in rows)
    return torch.cat([pad(x, (0, longest - x.shape[1]), value=value) for x in rows])


def like_lengths(lengths: Tensor, spare: int) -> list[Tensor]:
    """Rows (n,) of lengths (n,) in parts of like length, each padded to its longest: what one row that never stops costs its neighbours.

    Args:
        lengths: in tokens.
        spare: padded tokens that a further part has to save.
    """
    ordered, order = lengths.sort(descending=True, stable=True)
    saved = (ordered[:1] - ordered) * torch.arange(len(ordered), 0, -1)  # by a cut before each row
    if not len(saved) or int(saved.max()) <= spare:
        return [order.sort().values]
    at = int(saved.argmax())
    return [rows for part in (order[:at], order[at:]) for rows in (part[i] for i in like_lengths(lengths[part], spare))]
