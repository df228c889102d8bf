"""Encoders by Hub id or folder through transformers, and what both encoder rewards share: equal-length batches and a cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlspeech.types import UserError

__all__ = ["Cache", "batched", "load_pretrained"]

MAX_SAMPLES = 16 * 160000  # of one batch: 16 clips of 10 s


class Cache:
    """The last ``size`` results by the content of the waveform: the G rollouts of a group share one reference."""

    def __init__(self, size: int = 512) -> None:
        self.size, self._items = size, OrderedDict[bytes, Tensor]()

    @staticmethod
    def key(wav: np.ndarray) -> bytes:
        """Digest of (T,) float32."""
        return hashlib.blake2b(np.ascontiguousarray(wav).data, digest_size=16).digest()

    def get(self, key: bytes) -> Tensor | None:
        """The stored result, or None."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: bytes, value: Tensor) -> None:
        """Store a result and drop the oldest beyond the size."""
        self._items[key] = value
        while len(self._items) > self.size:
            self._items.popitem(last=False)


def batched(
    wavs: Sequence[np.ndarray], encode: Callable[[Tensor], Tensor], device: str, cache: Cache | None = None
) -> list[Tensor]:
    """Encode waveforms in batches of equal length, equal waveforms once.

    Padding changes the features of encoders with normalisation over time, so nothing is padded: an item's result does not depend on
    its neighbours.

    Args:
        wavs: (T_i,) float32 each, 16 kHz.
        encode: (n, T) -> tensor whose first axis is n.
        device: where ``encode`` computes.
        cache: remembers results between calls.

    Returns:
        one tensor a waveform, in order, on ``device``.
    """
    keys = [Cache.key(w) for w in wavs]
    known: dict[bytes, Tensor] = {}
    if cache is not None:
        known = {k: v for k in set(keys) if (v := cache.get(k)) is not None}
    lengths: dict[int, dict[bytes, np.ndarray]] = {}
    for k, w in zip(keys, wavs, strict=True):
        if k not in known:
            lengths.setdefault(len(w), {})[k] = w
    with torch.inference_mode():
        for length, group in lengths.items():
            items, size = list(group.items()), max(1, MAX_SAMPLES // length)
            for i in range(0, len(items), size):
                part = items[i : i + size]
                out = encode(torch.from_numpy(np.stack([w for _, w in part]).astype(np.float32)).to(device))
                known.update(zip((k for k, _ in part), out, strict=True))
    if cache is not None:
        for k in dict.fromkeys(keys):
            cache.put(k, known[k])
    return [known[k] for k in keys]


def load_pretrained(name: str, classes: Sequence[str], device: str, what: str) -> tuple[Any, Any]:
    """A transformers model in evaluation mode and its feature extractor (None where the folder has none).

    Args:
        name: Hub id or folder.
        classes: names of transformers classes; the one that the config names is taken, else the first.
        device: where it runs.
        what: for the error message.

    Raises:
        UserError: not found, not loadable, or no network for a Hub id.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        named = [c for c in config.architectures or [] if c in classes]
        cls = getattr(transformers, named[0] if named else classes[0])
        model = cls.from_pretrained(name, config=config)
        try:
            extractor: Any = cast(Any, transformers.AutoFeatureExtractor).from_pretrained(name)
        except (OSError, ValueError):
            extractor = None
    except (OSError, ValueError, ImportError, KeyError) as error:
        hint = "give a folder that holds config.json and the weights, or a Hub id with the network at hand"
        raise UserError(
            f"cannot load the {what} {name!r}", f"{type(error).__name__}: {str(error).splitlines()[0]}", hint
        ) from error
    model.requires_grad_(False)
    return model.eval().to(device), extractor


def digest(path: Path) -> str:
    """First 8 hex digits of a file's SHA-256, for version strings."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def standardise(wavs: Tensor, extractor: Any) -> Tensor:
    """Zero mean and unit variance per clip where the model's feature extractor says ``do_normalize``."""
    if extractor is not None and getattr(extractor, "do_normalize", False):
        return (wavs - wavs.mean(-1, keepdim=True)) / (wavs.var(-1, keepdim=True, unbiased=False) + 1e-7).sqrt()
    return wavs
