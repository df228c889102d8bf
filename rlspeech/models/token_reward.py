"""The token-to-text reward of DiffRO (arXiv 2507.05911): codec tokens in, the text's posterior and attributes of speaker and sound out.

The published one is SenseVoice with a table of token embeddings for a front end, a text decoder, and one attention-pooling layer an
attribute. This is its small form: table, two convolutions, transformer blocks with rotary positions, a causal text decoder that
attends to them, and the heads. Tokens may be ids (n, T) or distributions over ids (n, T, V): ``mu @ table`` is what makes the reward
differentiable in a policy's choices. As a reward it is frozen and in evaluation mode, with a gradient to its input alone.

A learned vector stands before the tokens, so that no tokens at all is an input too. The CTC head is there to train with: without it a
model of this size takes several times as long to find out that the text is in the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.config_parts import TokenRewardModel
from rlspeech.models.audio_lm.generate import right_padded
from rlspeech.models.flow import Attention, rotary, rotate
from rlspeech.models.folder import pretrained
from rlspeech.models.hub import load_model, save_model
from rlspeech.models.recogniser import END, PAD, START

TASK = "token-reward"
IGNORED = -100  # class of a label that is not known
KERNEL = 5
Pair = tuple[Tensor, Tensor]


class TextLayer(nn.Module):
    """One layer, for a whole text at once or a piece at a time; both attentions have ``heads``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.own_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.source, self.source_out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def sources(self, states: Tensor) -> Pair:
        """Keys and values (n, H, L, D / H) of the sound (n, L, D), computed once a sound."""
        key, value = self.source(states).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(
        self, x: Tensor, sound: Pair, keep: Tensor, rope: Pair, cache: Pair | None = None
    ) -> tuple[Tensor, Pair]:
        """Args: x (n, S, D); sound of ``sources``; keep (n, 1, 1, L) bool; rope of these S positions; cache what was returned before."""
        q, k, v = (self._split(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        x = x + self.own_out(self._join(F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)))
        attended = F.scaled_dot_product_attention(self._split(self.query(self.norm2(x))), *sound, attn_mask=keep)
        x = x + self.source_out(self._join(attended))
        return x + self.ff(self.norm3(x)), (k, v)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class EncodedTokens(NamedTuple):
    """Encoded tokens: states (n, 1 + T, D), and keep (n, 1 + T) bool, where they are real."""

    states: Tensor
    keep: Tensor


class Layer(nn.Module):
    """Pre-norm transformer block of the encoder."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, keep: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Args: x (n, L, D); keep (n, 1, 1, L) bool."""
        x = x + self.attention(self.norm1(x), keep, rope)
        return x + self.ff(self.norm2(x))


class Pool(nn.Module):
    """Attention pooling with one learned query, and a linear map to classes: (n, L, D) -> (n, K)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(dim, 1), nn.Linear(dim, classes)

    def forward(self, encoded: EncodedTokens) -> Tensor:
        """Logits of the classes."""
        weight = self.score(encoded.states)[..., 0].masked_fill(~encoded.keep, -torch.inf).softmax(-1)
        return self.out((weight[..., None] * encoded.states).sum(1))


class TokenReward(nn.Module):
    """The reward network.

    Args:
        cfg: sizes.
        codes: V, ids of the codec.
        tokenizer: of ``make_tokenizer``.
        labels: attribute -> names of its classes; of "quality" they are levels from worst to best.
        sample_rate: of the codec, in Hz.
    """

    max_s = 30.0  # longer recordings are left out of its training

    def __init__(
        self, cfg: TokenRewardModel, codes: int, tokenizer: Any, labels: Mapping[str, Sequence[str]], sample_rate: int
    ) -> None:
        super().__init__()
        self.cfg, self.codes, self.tokenizer, self.sample_rate = cfg, codes, tokenizer, sample_rate
        self.labels = {name: list(classes) for name, classes in labels.items()}
        token = tokenizer.convert_tokens_to_ids
        self.pad, self.start, self.end = (int(token(m)) for m in (PAD, START, END))
        dim, pieces = cfg.dim, len(tokenizer)
        self.table = nn.Embedding(codes, dim)
        self.before = nn.Parameter(torch.randn(dim))
        self.unknown = nn.Parameter(torch.zeros(dim))  # takes the place of hidden tokens in training
        self.front = nn.ModuleList(nn.Conv1d(dim, dim, KERNEL, padding=KERNEL // 2) for _ in range(2))
        self.layers = nn.ModuleList(Layer(dim, cfg.heads) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(dim)
        self.words = nn.Embedding(pieces, dim)
        self.text_layers = nn.ModuleList(TextLayer(dim, cfg.heads) for _ in range(cfg.text_layers))
        self.text_norm, self.text_out, self.ctc = nn.LayerNorm(dim), nn.Linear(dim, pieces), nn.Linear(dim, pieces)
        self.pools = nn.ModuleDict({name: Pool(dim, len(classes)) for name, classes in self.labels.items()})

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.before.device

    def frozen(self) -> TokenReward:
        """Itself, as a reward: evaluation mode, no weight wants a gradient."""
        return self.eval().requires_grad_(False)

    # -- encoding ------------------------------------------------------------------------------------------------------------

    def vectors(self, tokens: Tensor) -> Tensor:
        """(n, T, D) of ids (n, T) long, or of distributions (n, T, V)."""
        if tokens.is_floating_point():
            return tokens.to(self.table.weight.dtype) @ self.table.weight
        return self.table(tokens)  # type: ignore[no-any-return]

    def encode(self, tokens: Tensor, mask: Tensor) -> EncodedTokens:
        """Encode ids (n, T) or distributions (n, T, V), real where mask (n, T) bool says so; what it hides has no influence."""
        if not tokens.is_floating_point():
            tokens = tokens.masked_fill(~mask, 0)  # a padding or stop id may lie outside the table
        return self.encode_vectors(self.vectors(tokens), mask)

    def encode_vectors(self, x: Tensor, mask: Tensor) -> EncodedTokens:
        """Encode embedded tokens (n, T, D) instead of ids."""
        n, real = len(x), mask[..., None]
        x = x.masked_fill(~real, 0.0)  # not a product: NaN behind the end of a row would survive it
        for conv in self.front if x.shape[1] else ():
            x = (x + F.gelu(conv(x.transpose(1, 2)).transpose(1, 2))).masked_fill(~real, 0.0)
        x = torch.cat([self.before.to(x.dtype).expand(n, 1, -1), x], 1)
        keep = torch.cat([mask.new_ones(n, 1), mask], 1)
        rope = rotary(x.shape[1], self.cfg.dim // self.cfg.heads, x.device)
        for layer in self.layers:
            x = layer(x, keep[:, None, None], rope)
        return EncodedTokens(self.norm(x), keep)

    # -- judging -------------------------------------------------------------------------------------------------------------

    def pieces(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (n, S) long of normalised texts with the end mark behind, and mask (n, S); what looks like a mark in a text is spelt out."""
        how = {"add_special_tokens": False, "split_special_tokens": True}
        rows = [torch.tensor([*self.tokenizer(t, **how).input_ids, self.end]) for t in texts]
        ids, mask = right_padded(rows, self.pad)
        return ids.to(self.device), mask.to(self.device)

    def text_logits(self, encoded: EncodedTokens, ids: Tensor) -> Tensor:
        """Logits (n, S, P), float32 at least, before each piece of texts (n, S), teacher-forced."""
        before = torch.cat([ids.new_full((len(ids), 1), self.start), ids[:, :-1]], 1)
        x, rope = self.words(before), rotary(ids.shape[1], self.cfg.dim // self.cfg.heads, ids.device)
        for layer in self.text_layers:
            x = layer(x, layer.sources(encoded.states), encoded.keep[:, None, None], rope)[0]  # type: ignore[operator]
        out: Tensor = self.text_out(self.text_norm(x))
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out

    def text_logp(self, encoded: EncodedTokens, texts: Sequence[str]) -> Tensor:
        """Log-posterior (n,) of normalised texts: the mean over their pieces, the end mark among them, in nats, with gradient."""
        ids, mask = self.pieces(texts)
        logp = self.text_logits(encoded, ids).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return logp.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)

    def attributes(self, encoded: EncodedTokens) -> dict[str, Tensor]:
        """Logits (n, K) of every attribute's classes."""
        return {name: pool(encoded) for name, pool in self.pools.items()}

    def classes(self, name: str, values: Sequence[Any]) -> Tensor:
        """(n,) long, the classes of an attribute's values; ``IGNORED`` where one is None or none of them."""
        at = {label: k for k, label in enumerate(self.labels[name])}
        return torch.tensor([IGNORED if v is None else at.get(str(v), IGNORED) for v in values], device=self.device)

    # -- reading -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def transcribe(self, tokens: Sequence[Tensor], batch: int = 64) -> list[str]:
        """Greedy texts of token rows (T_i,) long; of a row without tokens "". A row's text is no longer than it has tokens, and eight."""
        order = sorted((i for i, t in enumerate(tokens) if len(t)), key=lambda i: len(tokens[i]))
        texts = [""] * len(tokens)
        for part in (order[i : i + batch] for i in range(0, len(order), batch)):
            encoded = self.encode(*right_padded([tokens[i].to(self.device) for i in part], 0))
            for i, ids in zip(part, self._greedy(encoded), strict=True):
                texts[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return texts

    def _greedy(self, encoded: EncodedTokens) -> list[list[int]]:
        n, steps = len(encoded.keep), encoded.keep.shape[1] + 7
        rope = rotary(steps, self.cfg.dim // self.cfg.heads, self.device)
        bound = encoded.keep.sum(1) + 7
        written: list[list[int]] = [[] for _ in range(n)]
        live, last = torch.arange(n, device=self.device), torch.full((n,), self.start, device=self.device)
        sources: list[Any] = [layer.sources(encoded.states) for layer in self.text_layers]  # type: ignore[operator]
        cache: list[Any] = [None] * len(sources)
        for s in range(steps):
            x, here = self.words(last)[:, None], (rope[0][s : s + 1], rope[1][s : s + 1])
            for k, layer in enumerate(self.text_layers):
                x, cache[k] = layer(x, sources[k], encoded.keep[live][:, None, None], here, cache[k])
            last = self.text_out(self.text_norm(x[:, 0])).argmax(-1)
            going = (last != self.end) & (s < bound[live])
            for row, piece, goes in zip(live.tolist(), last.tolist(), going.tolist(), strict=True):
                if goes:
                    written[row].append(piece)
            if not bool(going.any()):
                break
            if not bool(going.all()):
                live, last = live[going], last[going]
                sources = [(a[going], b[going]) for a, b in sources]
                cache = [(a[going], b[going]) for a, b in cache]
        return written


def save_token_reward(folder: Path, model: TokenReward, **how: Any) -> None:
    """Write a checkpoint folder; arguments as in ``hub.save_model``."""
    save_model(folder, model, TASK, more={"codes": model.codes, "labels": model.labels}, **how)
    model.tokenizer.save_pretrained(folder)


def load_token_reward(name: str, device: torch.device | str = "cpu") -> tuple[TokenReward, dict[str, Any]]:
    """A reward network in fp32 and evaluation mode, and its ``config.json``; arguments as in ``hub.load_model``."""
    from transformers import PreTrainedTokenizerFast

    def make(folder: Path, config: dict[str, Any]) -> TokenReward:
        tokenizer = pretrained(PreTrainedTokenizerFast, folder, local_files_only=True)
        cfg = TokenRewardModel(**config["model"])
        return TokenReward(cfg, int(config["codes"]), tokenizer, config["labels"], int(config["sample_rate"]))

    return load_model(name, TASK, device, make)
