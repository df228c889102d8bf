"""Tiny codec language models of the real classes, and a codec that anyone can follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import CodecLMModel, TokenRewardModel
from rlspeech.models.codec.lm import CodecLM, build_codec_lm, layout_of
from rlspeech.models.recogniser import make_tokenizer
from rlspeech.models.token_reward import TokenReward

V, RATE, FRAME = 24, 16000, 640
TEXTS = ["one two three", "four", "seven eight nine zero"]
SMALL = CodecLMModel(dim=16, layers=2, heads=2, ff=32, vocabulary=280, prompt_s=1.0, max_s=4.0)
CHAT = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] }}"
    "{% if not loop.last %}{{ '<|end|>' }}{% endif %}{% endfor %}"
)


class LevelCodec:
    """An id for every 40 ms, by the level of its sound; decoded to that level."""

    sample_rate, frame_s, size, name, wants_prompt = RATE, FRAME / RATE, V, "levels", True

    def __init__(self) -> None:
        self.encoded, self.decoded, self.voices = 0, 0, list[Any]()

    def encode(self, wavs: Any) -> list[Tensor]:
        self.encoded += len(wavs)
        frames = [np.pad(w, (0, -len(w) % FRAME)).reshape(-1, FRAME) for w in wavs]
        return [torch.from_numpy(np.clip((np.abs(f).mean(1) * V).round().astype(np.int64), 0, V - 1)) for f in frames]

    def decode(self, ids: Any, prompts: Any = None) -> list[np.ndarray]:
        self.decoded += len(ids)
        self.voices += list(prompts or [])
        assert all(int(i.max()) < V for i in ids if len(i))
        return [speech(i.tolist()) for i in ids]


def speech(ids: Any) -> np.ndarray:
    """What the codec makes of ids: (T,) at 16 kHz."""
    return np.repeat(np.asarray(ids, np.float32) / V, FRAME)


def tiny(seed: int = 0, **changes: Any) -> CodecLM:
    """An embedded model; nothing it writes is likelier than the rest, and one token in ten stops."""
    torch.manual_seed(seed)
    lm = build_codec_lm(SMALL.model_copy(update=changes), TEXTS, LevelCodec()).eval()
    for p in lm.net.parameters():
        p.data *= 3.0  # what stands before a token matters
    return lm


def token_reward(layers: int = 2) -> TokenReward:
    """A token reward of random weights, for the ids of ``LevelCodec``."""
    torch.manual_seed(0)
    cfg = TokenRewardModel(dim=16, layers=layers, text_layers=layers, heads=2, vocabulary=280)
    labels = {"sex": ["f", "m"], "quality": ["1", "2", "3"]}
    return TokenReward(cfg, V, make_tokenizer(TEXTS, 280), labels, RATE).frozen()


def public(kind: str, size: int = V, apart: bool = False, **options: Any) -> tuple[Any, Any]:
    """A model and a tokenizer with the vocabulary of a public checkpoint: "llasa", "neutts", "cosyvoice2"."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(TEXTS, 280)
    tokenizer.chat_template = CHAT if kind == "llasa" else None
    code = "<|speech_{}|>" if kind == "neutts" else "<|s_{}|>"
    marks = {
        "llasa": ["TEXT_UNDERSTANDING_START", "TEXT_UNDERSTANDING_END", "bos", "turn", "end"],
        "neutts": ["TEXT_PROMPT_START", "TEXT_PROMPT_END"],
        "cosyvoice2": [],
    }[kind]
    marks += ["SPEECH_GENERATION_START", "SPEECH_GENERATION_END"] if marks else []
    codes = [code.format(i) for i in range(size)]
    if apart:
        codes.insert(size // 2, "<|odd|>")
    after = ["<|eos1|>", "<|eos2|>", "<|eos3|>", "<|sos|>", "<|task_id|>"] if kind == "cosyvoice2" else []
    tokenizer.add_tokens([*(f"<|{m}|>" for m in marks), *codes, *after], special_tokens=True)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer) + 3}
    shape |= dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id")) | options
    torch.manual_seed(1)
    net: Any = LlamaForCausalLM(LlamaConfig(**shape)) if kind == "llasa" else Qwen2ForCausalLM(Qwen2Config(**shape))
    for p in net.parameters():
        p.data *= 3.0
    return net.eval(), tokenizer


def adapted_public(kind: str, **options: Any) -> CodecLM:
    """The same as a ``CodecLM``."""
    net, tokenizer = public(kind, **options)
    return CodecLM(net, tokenizer, layout_of(tokenizer), LevelCodec())
