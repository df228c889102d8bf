"""Recognisers as folders in transformers' layout, loaded and saved; the model itself is in ``audio_model``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlspeech.models.audio_lm.families import family_of
from rlspeech.models.audio_lm.generate import Drawn
from rlspeech.models.audio_lm.model import AudioLM, Heard
from rlspeech.models.card import recogniser_card, write_card
from rlspeech.models.hub import refuse_other, resolve
from rlspeech.types import UserError

__all__ = ["AudioLM", "Drawn", "Heard", "load_audio_lm", "save_audio_lm", "write_net"]

ABOUT = "rlspeech.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
OWN = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    ABOUT,
    "README.md",
    "adapter_config.json",
    ".gitattributes",
)


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
    from safetensors import SafetensorError
    from transformers import AutoConfig

    where, folder = _find(name)
    if folder is not None:
        refuse_other(folder, "asr")
    options: dict[str, Any] = {"local_files_only": True} if folder else {}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        family = family_of(str(config.model_type))
        with quietly():
            net = _weights(where, config, family.architecture, DTYPES[dtype], options)
        tokenizer, processor, extractor = _words(where, options)
        about = (
            json.loads((folder / ABOUT).read_text(encoding="utf-8")) if folder and (folder / ABOUT).is_file() else {}
        )
        if not isinstance(about, dict):
            raise ValueError(f"{ABOUT} holds no object")
        model = AudioLM(net, tokenizer, processor, extractor, max_s=about.get("max_s"), train_encoder=train_encoder)
        if (
            tokenizer.convert_ids_to_tokens(model.stops[0]) is None
        ):  # transformers makes up an empty tokenizer where there is no file
            raise ValueError("the tokenizer does not know the stop token: its files are missing or another model's")
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
            f"cannot load the recogniser {name}",
            f"{type(error).__name__}: {why}",
            "a folder in transformers' layout, a Hub id with the network at hand, or 'embedded'",
        ) from error
    model.source = folder or _snapshot(where)
    return model.to(device).eval(), about or {"task": "asr", "facts": {"loaded from": name}}


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _find(name: str) -> tuple[str, Path | None]:
    """What transformers is given, and the folder where it is one."""
    if Path(name).exists() or name in {"embedded", "tiny"} or name.count("/") != 1 or name.startswith((".", "/", "~")):
        folder = resolve(name, "asr")
        return str(folder), folder
    return name, None


def _snapshot(name: str) -> Path | None:
    """The cache's folder of a Hub model."""
    from transformers.utils import cached_file

    found = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    return Path(found).parent if found else None


def _weights(where: str, config: Any, architecture: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """The transformers model with all its weights; an adapter that the checkpoint brings is folded in."""
    import transformers

    cls = getattr(transformers, architecture or config.architectures[0])
    net, found = cls.from_pretrained(
        where, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    wrong = [str(k) for kind in ("missing_keys", "mismatched_keys") for k in found[kind]]
    if wrong:
        raise ValueError(f"weights do not fit the config: {wrong[:3]}")
    if getattr(net, "_hf_peft_config_loaded", False):
        fold_adapter(net)
    return net


def fold_adapter(net: Any) -> None:
    """Merge a checkpoint's own LoRA into its weights: switched off with a policy's adapter, it would be missing from the reference."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(net.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            setattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.get_base_layer())
    net._hf_peft_config_loaded = False
    for left in (
        "peft_config",
        "_weight_conversions",
    ):  # the second now holds the adapter's names, and saving would use them
        if hasattr(net, left):
            delattr(net, left)
    if hasattr(net.config, "has_lora_adapter"):
        net.config.has_lora_adapter = False


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
    write_net(folder, model, weights, half)
    if model.source is None:
        for part in (model.processor, model.extractor, model.tokenizer):
            if part is not None:
                part.save_pretrained(folder)
    about = {
        "task": "asr",
        "model_type": model.model_type,
        "sample_rate": model.sample_rate,
        "max_s": model.max_s,
        "facts": facts,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2, default=str) + "\n")
    write_card(
        folder,
        recogniser_card(model.model_type, sum(p.numel() for p in model.net.parameters()), model.sample_rate),
        facts,
    )


def write_net(folder: Path, model: Any, weights: dict[str, Tensor] | None, half: bool) -> None:
    """A language model's part of a checkpoint folder: config, weights, and the files that lay beside them where it came from.

    Args:
        folder: where to; made where it is missing.
        model: with ``net`` (a transformers model) and ``source`` (the folder that it was loaded from, or None).
        weights: under the names of ``model.state_dict()``, or None for its own.
        half: store fp16, to be computed in single precision.
    """
    state = {
        k.removeprefix("net."): v.detach().cpu()
        for k, v in (model.state_dict() if weights is None else weights).items()
    }
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        model.net.save_pretrained(folder, state_dict={k: v.contiguous() for k, v in state.items()})
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # transformers leaves it to its owner alone
    if half:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    if model.source is not None and model.source.resolve() != folder.resolve():
        for file in (
            model.source.iterdir()
        ):  # as the publisher wrote them: not every class that reads them is usable everywhere
            if file.is_file() and file.suffix not in WEIGHTS and file.name not in OWN:
                shutil.copyfile(file, folder / file.name)
