"""Codec language models as folders in transformers' layout: built, loaded and saved; the model itself is in ``lm.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlspeech.config_parts import CodecLMModel
from rlspeech.data.text import get_normaliser
from rlspeech.models.card import md
from rlspeech.models.codec.codec import Codec, load_codec, start_alike
from rlspeech.models.codec.lm import SPEECH, STOP, TEXT, CodecLM, Layout, layout_of
from rlspeech.models.folder import (
    Precision,
    dtype_of,
    load_net,
    loading,
    pretrained,
    read_about,
    save_net,
    snapshot,
    write_about,
)
from rlspeech.models.hub import card_of, find_checkpoint
from rlspeech.types import UserError

TASK = "tts"
WRITTEN = "basic-1"  # how texts are written for the embedded model
PAD, LEAD = "<|pad|>", " "  # a space before the first word: a word is the same pieces wherever it stands


def make_text_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE of ``size`` pieces with this module's marks, trained on normalised texts, as a ``Qwen2Tokenizer``.

    That class it has to be: whatever a folder's tokenizer is, for a Qwen2 model transformers loads one with Qwen2's rules for words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    marks = [PAD, TEXT, SPEECH, STOP]
    plain, inner = Qwen2Tokenizer().backend_tokenizer, Tokenizer(models.BPE())
    inner.normalizer, inner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    how: dict[str, Any] = {"show_progress": False, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=marks, **how)
    inner.train_from_iterator((LEAD + t for t in texts), trainer)
    merges: Any = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    special: dict[str, Any] = {
        "unk_token": PAD,
        "pad_token": PAD,
        "eos_token": STOP,
        "extra_special_tokens": [TEXT, SPEECH],
    }
    return Qwen2Tokenizer(vocab=inner.get_vocab(), merges=merges, clean_up_tokenization_spaces=False, **special)


def build_codec_lm(cfg: CodecLMModel, texts: Sequence[str], codec: Codec | None = None) -> CodecLM:
    """A fresh model: a tiny ``Qwen2ForCausalLM`` with a tokenizer trained on the texts.

    Args:
        cfg: sizes, and the name of the codec.
        texts: as they are in the manifest.
        codec: that codec, where it is already loaded.

    Raises:
        UserError: no text, or no such codec.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    spoken = [t for t in map(get_normaliser(WRITTEN), texts) if t]
    if not spoken:
        why = "a synthesiser learns from transcribed speech"
        raise UserError("no row of the data has a text", why, "rlspeech prepare --help")
    given, codec = codec, codec or load_codec(cfg.codec)
    tokenizer = make_text_tokenizer(spoken, cfg.vocabulary)
    stop, pad = (int(tokenizer.convert_tokens_to_ids(m)) for m in (STOP, PAD))
    speech = (len(tokenizer), codec.size, (stop,), cfg.codec, codec.sample_rate, codec.frame_s)
    layout = Layout(TEXT, SPEECH, *speech, WRITTEN, lead=LEAD, prompt_s=cfg.prompt_s, max_s=cfg.max_s)
    config: Any = Qwen2Config(
        vocab_size=len(tokenizer) + codec.size,
        hidden_size=cfg.dim,
        intermediate_size=cfg.ff,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        use_sliding_window=False,
    )
    config.pad_token_id, config.eos_token_id, config.bos_token_id = pad, stop, None
    net: Any = Qwen2ForCausalLM(config)
    net.generation_config.eos_token_id, net.generation_config.pad_token_id = stop, pad
    for table in (net.get_input_embeddings(), net.get_output_embeddings()):
        start_alike(table.weight.data[len(tokenizer) :], codec)
    return CodecLM(net, tokenizer, layout, given, cfg)  # one loaded here is not where the model will be


def load_codec_lm(
    name: str, device: torch.device | str = "cpu", dtype: Precision = "fp32", codec: Codec | None = None
) -> tuple[CodecLM, dict[str, Any]]:
    """Load a codec language model in evaluation mode.

    Args:
        name: Hub id, a folder in transformers' layout, a run folder, or 'embedded'.
        device: where to.
        dtype: precision of the weights.
        codec: where it is already loaded.

    Returns:
        the model and what its ``rlspeech.json`` says; of a folder without one, its name.

    Raises:
        UserError: missing, with a vocabulary that is not known here, or weights that do not fit the config.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_checkpoint(name, TASK)
    where, options = (name, {}) if folder is None else (str(folder), {"local_files_only": True})
    hint = "a folder that `rlspeech pretrain --task tts` wrote, a Hub id with the network at hand, or 'embedded'"
    with loading(f"the synthesiser {name}", hint):
        about = read_about(folder, TASK)
        tokenizer = pretrained(AutoTokenizer, where, **options)
        net = load_net(AutoModelForCausalLM, where, dtype=dtype_of(dtype, device), **options)
        layout = Layout.read(about["layout"]) if "layout" in about else layout_of(tokenizer)
        rows = min(net.get_input_embeddings().weight.shape[0], net.get_output_embeddings().weight.shape[0])
        if layout.first + layout.size > rows or max(layout.stops) >= rows:
            raise ValueError(f"the layout names ids of a vocabulary of {rows} that it does not have")
        model = CodecLM(net, tokenizer, layout, codec, CodecLMModel(**about["model"]) if about.get("model") else None)
    model.source = folder or snapshot(where)
    return model.to(device).eval(), about or {"task": TASK, "facts": {"loaded from": name}}


def save_codec_lm(
    folder: Path, model: CodecLM, *, facts: dict[str, Any], weights: dict[str, Tensor] | None = None, half: bool = False
) -> None:
    """Write a folder that transformers loads by itself, with ``rlspeech.json`` beside; the caller makes it atomic.

    Args:
        folder: where to.
        model: gives config, layout, tokenizer and, unless ``weights`` are given, the weights.
        facts: how it came to be (data, steps, reward, numbers).
        weights: other weights under the names of ``model.state_dict()``: an average, or adapters folded in.
        half: store fp16, half the size, for shipping; it is computed in single precision all the same.
    """
    save_net(folder, model, weights, half)
    if model.source is None or model.source.resolve() == folder.resolve():
        model.tokenizer.save_pretrained(folder)
    about = {
        "task": TASK,
        "model_type": model.model_type,
        "layout": model.layout.as_dict(),
        "model": None if model.cfg is None else model.cfg.model_dump(),
        "facts": facts,
    }
    parameters, title = sum(p.numel() for p in model.net.parameters()), f"codec language model ({model.model_type})"
    detail = (
        f"It writes {1 / model.layout.frame_s:g} ids a second of the codec {md(model.layout.codec or 'of its own')}."
    )
    write_about(folder, about, card_of(TASK, parameters, model.sample_rate, title=title, details=[detail]))
