"""Codec language models as folders in transformers' layout, built, loaded and saved; the model itself is in ``codec_model``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlspeech.config import CodecLMModel
from rlspeech.data.text import get_normaliser
from rlspeech.models.audio_lm.generate import Drawn
from rlspeech.models.audio_lm.load import ABOUT, DTYPES, fold_adapter, quietly, write_net
from rlspeech.models.card import Card, md, write_card
from rlspeech.models.codec.codec import Codec, load_codec, start_alike
from rlspeech.models.codec.layout import SPEECH, STOP, TEXT, Layout, layout_of
from rlspeech.models.codec.lm import CodecLM, Line, Prompts
from rlspeech.models.hub import refuse_other, resolve
from rlspeech.types import UserError

__all__ = ["CodecLM", "Drawn", "Layout", "Line", "Prompts", "build_codec_lm", "load_codec_lm", "save_codec_lm"]

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
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=marks, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator((LEAD + t for t in texts), trainer)
    merges: Any = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    return Qwen2Tokenizer(
        vocab=inner.get_vocab(),
        merges=merges,
        unk_token=PAD,
        pad_token=PAD,
        eos_token=STOP,
        extra_special_tokens=[TEXT, SPEECH],
        clean_up_tokenization_spaces=False,
    )


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
        raise UserError(
            "no row of the data has a text", "a synthesiser learns from transcribed speech", "rlspeech prepare --help"
        )
    given, codec = codec, codec or load_codec(cfg.codec)
    tokenizer = make_text_tokenizer(spoken, cfg.vocabulary)
    stop, pad = (int(tokenizer.convert_tokens_to_ids(m)) for m in (STOP, PAD))
    layout = Layout(
        TEXT,
        SPEECH,
        len(tokenizer),
        codec.size,
        (stop,),
        cfg.codec,
        codec.sample_rate,
        codec.frame_s,
        WRITTEN,
        lead=LEAD,
        prompt_s=cfg.prompt_s,
        max_s=cfg.max_s,
    )
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
    name: str, device: torch.device | str = "cpu", dtype: Literal["fp32", "bf16"] = "fp32", codec: Codec | None = None
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
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    hub = not (
        Path(name).exists() or name in {"embedded", "tiny"} or name.count("/") != 1 or name.startswith((".", "/", "~"))
    )
    folder = None if hub else resolve(name, TASK)
    if folder is not None:
        refuse_other(folder, TASK)
    where, options = (name, {}) if folder is None else (str(folder), {"local_files_only": True})
    try:
        about = (
            json.loads((folder / ABOUT).read_text(encoding="utf-8")) if folder and (folder / ABOUT).is_file() else {}
        )
        if not isinstance(about, dict) or about.get("task", TASK) != TASK:
            raise ValueError(f"{ABOUT} is that of another task, or no object")
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        with quietly():
            net = _weights(where, DTYPES[dtype], options)
        layout = Layout.read(about["layout"]) if "layout" in about else layout_of(tokenizer)
        rows = min(net.get_input_embeddings().weight.shape[0], net.get_output_embeddings().weight.shape[0])
        if layout.first + layout.size > rows or max(layout.stops) >= rows:
            raise ValueError(f"the layout names ids of a vocabulary of {rows} that it does not have")
        model = CodecLM(net, tokenizer, layout, codec, CodecLMModel(**about["model"]) if about.get("model") else None)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        ImportError,
        AttributeError,
        SafetensorError,
    ) as error:
        why = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot load the synthesiser {name}",
            f"{type(error).__name__}: {why}",
            "a folder that `rlspeech pretrain --task tts` wrote, a Hub id with the network at hand, or 'embedded'",
        ) from error
    model.source = folder or _snapshot(where)
    return model.to(device).eval(), about or {"task": TASK, "facts": {"loaded from": name}}


def _snapshot(name: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    return Path(found).parent if found else None


def _weights(where: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """The transformers model with all its weights; an adapter that the checkpoint brings is folded in."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    net, found = loaded
    wrong = [str(k) for kind in ("missing_keys", "mismatched_keys") for k in found[kind]]
    if wrong:
        raise ValueError(f"weights do not fit the config: {wrong[:3]}")
    if getattr(net, "_hf_peft_config_loaded", False):
        fold_adapter(net)
    return net


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
    write_net(folder, model, weights, half)
    if model.source is None or model.source.resolve() == folder.resolve():
        model.tokenizer.save_pretrained(folder)
    about = {
        "task": TASK,
        "model_type": model.model_type,
        "layout": model.layout.as_dict(),
        "model": None if model.cfg is None else model.cfg.model_dump(),
        "facts": facts,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(folder, _card(model), facts)


def _card(model: CodecLM) -> Card:
    codec, rate = model.layout.codec or "of its own", 1 / model.layout.frame_s
    uses = [
        'speak "some words" --model THIS_FOLDER --out said.wav',
        "rl --task tts --model THIS_FOLDER",
        "eval --task tts --model this=THIS_FOLDER",
    ]
    details = [
        f"It writes {rate:g} ids a second of the codec {md(codec)}.",
        "transformers loads this folder's language model by itself.",
    ]
    return Card(
        f"codec language model ({model.model_type})",
        TASK,
        sum(p.numel() for p in model.net.parameters()),
        model.sample_rate,
        "transformers",
        "text-to-speech",
        (),
        uses,
        details,
    )
