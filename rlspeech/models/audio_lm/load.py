"""Recognisers as folders in transformers' layout, loaded and saved; the model itself is in ``model.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlspeech.models.audio_lm.families import family_of
from rlspeech.models.audio_lm.model import AudioLM
from rlspeech.models.folder import DTYPES, load_net, loading, read_about, save_net, snapshot, write_about
from rlspeech.models.hub import card_of, find_checkpoint

__all__ = ["load_audio_lm", "save_audio_lm"]

TASK = "asr"


def load_audio_lm(
    name: str, device: torch.device | str = "cpu", dtype: Literal["fp32", "bf16"] = "fp32", train_encoder: bool = False
) -> tuple[AudioLM, dict[str, Any]]:
    """Load a recogniser in evaluation mode.

    Args:
        name: Hub id, a folder in transformers' layout, a run folder, or 'embedded'.
        device: where to.
        dtype: precision of the weights.
        train_encoder: see ``AudioLM``.

    Returns:
        the model and what its ``rlspeech.json`` says; of a folder without one, its name.

    Raises:
        UserError: missing, of a kind not known here, or weights that do not fit the config.
    """
    import transformers

    folder = find_checkpoint(name, TASK)
    where, options = (name, {}) if folder is None else (str(folder), {"local_files_only": True})
    hint = "a folder in transformers' layout, a Hub id with the network at hand, or 'embedded'"
    with loading(f"the recogniser {name}", hint):
        config = transformers.AutoConfig.from_pretrained(where, **options)
        cls = getattr(transformers, family_of(str(config.model_type)).architecture or config.architectures[0])
        net = load_net(cls, where, config=config, dtype=DTYPES[dtype], **options)
        tokenizer, processor, extractor = _words(where, options)
        about = read_about(folder, TASK)
        model = AudioLM(net, tokenizer, processor, extractor, max_s=about.get("max_s"), train_encoder=train_encoder)
        if (
            tokenizer.convert_ids_to_tokens(model.stops[0]) is None
        ):  # where there is no file, transformers makes up an empty one
            raise ValueError("the tokenizer does not know the stop token: its files are missing or another model's")
    model.source = folder or snapshot(where)
    return model.to(device).eval(), about or {"task": TASK, "facts": {"loaded from": name}}


def _words(where: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Tokenizer, and processor and feature extractor where they load; some ask for packages that are not everywhere."""
    from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

    processor, extractor = None, None
    try:
        processor = AutoProcessor.from_pretrained(where, **options)
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError):
        pass
    if processor is None or not hasattr(processor, "tokenizer"):
        processor = None
        try:
            extractor = AutoFeatureExtractor.from_pretrained(where, **options)
        except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError):
            pass
    tokenizer = processor.tokenizer if processor is not None else AutoTokenizer.from_pretrained(where, **options)
    return tokenizer, processor, extractor


def save_audio_lm(
    folder: Path, model: AudioLM, *, facts: dict[str, Any], weights: dict[str, Tensor] | None = None, half: bool = False
) -> None:
    """Write a folder that transformers loads by itself, with ``rlspeech.json`` beside; the caller makes it atomic.

    Args:
        folder: where to.
        model: gives config, processor files and, unless ``weights`` are given, the weights.
        facts: how it came to be (data, steps, reward, numbers).
        weights: other weights under the names of ``model.state_dict()``: an average, or adapters folded in.
        half: store fp16, half the size, for shipping; it is computed in single precision all the same.
    """
    save_net(folder, model, weights, half)
    if model.source is None:
        for part in (model.processor, model.extractor, model.tokenizer):
            if part is not None:
                part.save_pretrained(folder)
    about = {
        "task": TASK,
        "model_type": model.model_type,
        "sample_rate": model.sample_rate,
        "max_s": model.max_s,
        "facts": facts,
    }
    parameters, title = sum(p.numel() for p in model.net.parameters()), f"recogniser ({model.model_type})"
    write_about(folder, about, card_of(TASK, parameters, model.sample_rate, title=title))
