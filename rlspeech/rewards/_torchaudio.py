"""The one place that imports torchaudio.

Its wheels link CUDA libraries and fail to import beside a CPU-only torch; transformers' audio classes then fail too, because they
import torchaudio when they find it. It is therefore an extra, looked at only when a reward of it is asked for.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from rlspeech.types import UserError

__all__ = ["load", "why_not"]


@lru_cache(maxsize=1)
def why_not() -> str:
    """Empty where torchaudio imports, else one line with the reason."""
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # the failure is a linker's, and its class differs by platform
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"torchaudio is installed and does not import beside this torch ({first[:120]}): pip uninstall torchaudio"
        )
    return ""


def load() -> Any:
    """The torchaudio module. Raises ``UserError`` where it does not import."""
    if reason := why_not():
        raise UserError("torchaudio cannot be used here", reason, "rlspeech doctor")
    return importlib.import_module("torchaudio")
