"""Trainer state on disk without pickle: tensors in ``state.safetensors``, everything else in ``state.json``."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlspeech.files import parse_json
from rlspeech.types import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


def save_state(path: Path, state: dict[Any, Any]) -> None:
    """Write dicts, lists and tuples of tensors, arrays, numbers, strings, booleans and None into a folder; keys may be integers.

    Raises:
        TypeError: another type, with its place in the tree.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path / "state.safetensors"))
    (path / "state.json").write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def load_state(path: Path) -> dict[Any, Any]:
    """Read what ``save_state`` wrote; tensors come back on the CPU. Raises OSError, ValueError or safetensors' error on damage."""
    from safetensors.torch import load_file

    tree = parse_json((path / "state.json").read_bytes())
    state = _decode(tree, load_file(str(path / "state.safetensors")))
    if not isinstance(state, dict):
        raise ValueError(f"{path}/state.json holds no dict")
    return state


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": repr(value)}
    name = f"{len(tensors)}:{place}"  # the place alone is ambiguous when keys hold dots
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(np.array(value))
        return {"__array__": name}
    if isinstance(value, list | tuple):
        items = [_encode(v, f"{place}.{i}", tensors) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("__") for k in value):
            return {k: _encode(v, f"{place}.{k}", tensors) for k, v in value.items()}
        if all(isinstance(k, str | int) and not isinstance(k, bool) for k in value):
            pairs = enumerate(value.items())
            return {"__dict__": [[k, _encode(v, f"{place}.{i}:{k}", tensors)] for i, (k, v) in pairs]}
    raise TypeError(f"{place} is of type {type(value).__name__}, which trainer state cannot hold")


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((tag, body),) = tree.items()
        if tag == "__tensor__":
            return tensors[body]
        if tag == "__array__":
            return tensors[body].numpy()
        if tag == "__float__":
            return float(body)
        if tag == "__tuple__":
            return tuple(_decode(v, tensors) for v in body)
        if tag == "__dict__":
            return {k: _decode(v, tensors) for k, v in body}
    return {k: _decode(v, tensors) for k, v in tree.items()}


def make_optimizer(config: Any, parameters: Sequence[Any]) -> Optimizer:
    """The optimiser of an ``RL`` config. Raises ``UserError``: one with 8-bit moments where bitsandbytes is missing."""
    import torch

    how: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":  # one parameter after the other: together they would need a further number each
        return torch.optim.AdamW(parameters, config.lr, **how, foreach=False)
    try:
        from bitsandbytes import optim  # type: ignore[import-not-found]
    except Exception as error:  # also where it is installed and finds no library for this machine
        why = f"bitsandbytes does not import: {error}".splitlines()[0]
        hint = "pip install bitsandbytes, or --set optimizer=adamw"
        raise UserError(f"optimizer={config.optimizer} cannot be had here", why, hint) from error
    kind = optim.AdamW8bit if config.optimizer == "adamw_8bit" else optim.PagedAdamW8bit
    return cast("Optimizer", kind(parameters, lr=config.lr, **how))


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put a state back. Raises ``UserError`` where it belongs to another set of parameters."""
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError("the optimiser's state does not fit this model", str(error), "start with --out NEW") from None


def rng_state() -> dict[str, Any]:
    """State of the generators of Python, numpy and torch (and of every CUDA device)."""
    import torch

    version, words, gauss = random.getstate()
    name, keys, *rest = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True))
    state = {
        "python": [version, np.array(words, dtype=np.int64), gauss],
        "numpy": [name, keys.astype(np.int64), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back; CUDA states are skipped where the number of devices differs."""
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(w) for w in words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys).astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    cuda = state.get("cuda", [])
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
