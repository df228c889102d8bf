"""Checkpoints in transformers' own layout: loaded with their faults named, saved so that transformers loads them by itself.

Beside transformers' files lies ``rlspeech.json``: task, facts, and what of the model the other files do not say.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlspeech.files import parse_json
from rlspeech.models.card import Card, write_card
from rlspeech.names import refuse_pointers
from rlspeech.types import UserError

ABOUT = "rlspeech.json"
Precision = Literal["auto", "fp32", "bf16"]
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
OWN = {"config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json"}
OWN |= {ABOUT, "README.md", ".gitattributes"}
INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"}  # as safetensors names them
MOST_LAYERS = 1024
UNKNOWN = re.compile(r"model type [`'\"]?(\w+)")  # in what transformers says of a model that it does not know
# the first transformers that knows a model, where it is later than the oldest that is allowed
SINCE = {"glmasr": "5.0", "audioflamingo3": "5.0", "granite_speech_plus": "5.8", "qwen3_asr": "5.13", "xcodec2": "5.13"}
SINCE |= {"fun_asr_nano": "5.17", "neucodec": "5.17"}


def sizes(width: int, layers: int, heads: int, feed_forward: int, **more: Any) -> dict[str, Any]:
    """A transformer's sizes under the names that configs of transformers have for them, and whatever ``more`` one has."""
    named = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**named, "intermediate_size": feed_forward, **more}


def dtype_of(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Type of a model's weights; "auto": bf16 on a GPU that has it, else fp32."""
    if precision == "auto" and torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(False):
        return torch.bfloat16
    return torch.bfloat16 if precision == "bf16" else torch.float32


@lru_cache(maxsize=1)
def torchaudio_problem() -> str:
    """Why an installed torchaudio does not import, which stops transformers' audio classes too; empty where it does, or where none is."""
    if importlib.util.find_spec("torchaudio") is None:
        return ""
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # the failure is a linker's, and its class differs by platform
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return f"torchaudio is installed and does not import beside torch {torch.__version__} ({first}): pip uninstall torchaudio"
    return ""


@contextmanager
def loading(what: str, try_this: str) -> Iterator[None]:
    """Turn what a damaged or foreign folder, an old transformers or a torchaudio raises into a ``UserError`` that says so of ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own, and tokenizers no kind at all
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        cause: BaseException | None = error
        while cause is not None:
            frames = (frame.f_code.co_filename for frame, _ in walk_tb(cause.__traceback__))
            if any("torchaudio" in Path(f).parts for f in frames) and (problem := torchaudio_problem()):
                why, try_this = problem, "pip uninstall torchaudio, which is not needed; rlspeech doctor says more"
            elif (unknown := UNKNOWN.search(str(cause))) and unknown[1] in SINCE:
                why = f"{unknown[1]} is not in transformers {version('transformers')}, which is installed"
                try_this = f"pip install -U 'transformers>={SINCE[unknown[1]]},!=5.24.*'"
            cause = cause.__cause__ or cause.__context__
        raise UserError(f"cannot load {what}", why, try_this) from error


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Work without transformers' progress bars and its reports of weights, where ``quiet``; what does not fit is an error of ours."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if quiet:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def pretrained(kind: Any, where: str | Path, **options: Any) -> Any:
    """What a class of transformers (of a config, a tokenizer, a processor or a model) loads from a folder or a Hub id.

    Code that lies there never runs, a pickle is never opened; ``options`` are those of ``from_pretrained``.

    Raises:
        ValueError: sizes beyond any model's, weights that are integers, or a model that comes as code.
        UserError: files that have not been fetched from Git LFS.
    """
    refuse_pointers(Path(where))
    if (config := Path(where) / "config.json").is_file():
        refuse_sizes(about := parse_json(config.read_bytes()))
        if (Path(where) / "model.bin").is_file() and "model_type" not in about:
            what, why = f"{where} is in CTranslate2's format", "faster-whisper loads it, transformers does not"
            raise UserError(what, why, f"rlspeech convert ct2 {where} NEW_FOLDER, and NEW_FOLDER in its place")
    if hasattr(kind, "forward") or hasattr(kind, "_model_mapping"):  # a model, or an auto class of models
        refuse_integers(Path(where))
        options["use_safetensors"] = True
    return kind.from_pretrained(where, trust_remote_code=False, **options)


def refuse_sizes(config: Any) -> None:
    """Stop at a config, or a part of one, that asks for more layers than any model has: to build it would take for ever."""
    for key, value in config.items() if isinstance(config, dict) else ():
        refuse_sizes(value)
        if isinstance(value, int) and value > MOST_LAYERS and re.search("layers|depth|blocks", key):
            raise ValueError(f"{key} is {value}; no model here has more than {MOST_LAYERS}")


def refuse_integers(folder: Path) -> None:
    """Stop at weights that are stored as integers, as a quantised model's are: read as numbers, they are noise."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if name.endswith((".weight", ".bias")) and file.get_slice(name).get_dtype() in INTEGERS:
                    raise ValueError(f"{name} in {path.name} holds integers (a quantised model?)")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A folder's ``model.safetensors`` in single precision, integers that count something as they are."""
    refuse_integers(folder)
    found = load_file(folder / "model.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in found.items()}


def read_about(folder: Path | None, task: str, *, must: bool = False) -> dict[str, Any]:
    """The folder's ``rlspeech.json``; {} where it has none and none ``must`` be. Raises ``ValueError`` where it is another task's."""
    if folder is None or not (must or (folder / ABOUT).is_file()):
        return {}
    about = parse_json((folder / ABOUT).read_bytes())
    if not isinstance(about, dict) or about.get("task", task) != task:
        raise ValueError(f"{ABOUT} is that of another task, or no object")
    return about


def write_about(folder: Path, about: dict[str, Any], card: Card) -> None:
    """Write ``rlspeech.json`` and the model card, which tells its ``facts``."""
    (folder / ABOUT).write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")
    write_card(folder, card, about["facts"])


def load_net(cls: Any, where: str | Path, *, strict: bool = False, **options: Any) -> Any:
    """A transformers model with all its weights; an adapter that the checkpoint brings is folded in. Arguments as in ``pretrained``.

    With ``strict`` weights that the model does not have are refused as well. Raises ``ValueError``: weights that do not fit the config.
    """
    with quietly():
        net, found = pretrained(cls, where, output_loading_info=True, **options)
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if strict else []))
    if wrong := [str(key) for kind in kinds for key in found[kind]]:
        raise ValueError(f"weights do not fit the config: {wrong[:3]}")
    if getattr(net, "_hf_peft_config_loaded", False):
        fold_adapter(net)
    return net


def merge_lora(net: Any) -> Any:
    """Fold every LoRA layer of a model into the layer that it adapts, in place; return the model."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(net.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, layer.get_base_layer())
    return net


def fold_adapter(net: Any) -> None:
    """Merge a checkpoint's own LoRA into its weights: switched off with a policy's adapter, it would be missing from the reference."""
    merge_lora(net)
    net._hf_peft_config_loaded = False
    # the second holds the adapter's names, and saving would use them
    for left in ("peft_config", "_weight_conversions"):
        if hasattr(net, left):
            delattr(net, left)
    if hasattr(net.config, "has_lora_adapter"):
        net.config.has_lora_adapter = False


def snapshot(name: str) -> Path | None:
    """The cache's folder of a Hub model; None where there is none."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name, "config.json", **quiet)
    return Path(found).parent if found else None


def save_net(
    folder: Path,
    model: Any,
    weights: dict[str, Tensor] | None = None,
    half: bool = False,
    leave_out: Collection[str] = (),
) -> int:
    """Write a model's part of a checkpoint folder: config, weights, and the files that lay beside them where it came from.

    Args:
        folder: where to; made where it is missing.
        model: with ``net`` (a transformers model); ``source`` (the folder that it was loaded from) and ``head`` (a layer that
            only training needs, kept in ``head.safetensors``) where it has them.
        weights: under the names of ``model.state_dict()``, or None for its own.
        half: store fp16, to be computed in single precision: a CPU has no fast half. The head is then left out.
        leave_out: weights of ``net`` that are not stored.

    Returns:
        how many numbers ``model.safetensors`` holds.
    """
    whole = {k: v.detach().cpu() for k, v in (model.state_dict() if weights is None else weights).items()}
    state = {k.removeprefix("net."): v for k, v in whole.items() if k.startswith("net.")}
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items() if k not in leave_out}
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        model.net.save_pretrained(folder, state_dict={k: v.contiguous() for k, v in state.items()})
    head = {k.removeprefix("head."): v.contiguous() for k, v in whole.items() if k.startswith("head.")}
    if head and not half:
        save_file(head, folder / "head.safetensors")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # transformers leaves it to its owner alone
    if half:
        path = folder / "config.json"
        path.write_text(json.dumps(parse_json(path.read_bytes()) | {"dtype": "float32"}, indent=2) + "\n")
    source = getattr(model, "source", None)
    if source is not None and source.resolve() != folder.resolve():
        # as the publisher wrote them: not every class that reads them is usable everywhere
        for file in source.iterdir():
            if file.is_file() and file.suffix not in WEIGHTS and file.name not in OWN:
                shutil.copyfile(file, folder / file.name)
    return sum(v.numel() for v in state.values())
