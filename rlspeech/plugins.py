"""Objects by name, ``package.module:name``: the package's own tables, and people's rewards, recognisers, tasks and normalisers."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from rlspeech.types import UserError

SCHEMAS = {  # command -> module:Class of its settings
    "prepare": "stages.prepare:Prepare",
    "prepare rl-asr": "corpora.rl_asr:RlAsr",
    "prepare nonspeech": "corpora.nonspeech:Nonspeech",
    "prepare tts": "corpora.tts_texts:PrepareTts",
    "prepare join": "corpora.join:Join",
    "prepare hub": "corpora.hub:Hub",
    "pretrain": "config:Pretrain",
    "reward": "config:ScoreFolder",
    "sample": "stages.sample:SampleSet",
    "serve": "stages.serve:Serve",
    "rl": "config:RL",
    "eval": "config:Evaluate",
    "enhance": "stages.enhance:Enhance",
    "transcribe": "stages.transcribe:Transcribe",
    "speak": "stages.speak:Speak",
}


def load(path: str) -> Any:
    """Import ``package.module:name``. Raises ``ImportError``, ``AttributeError`` or ``ValueError`` where there is none."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def load_function(path: str, what: str = "reward", usage: str = "def f(wavs, texts, sample_rate, **columns)") -> Any:
    """Import a user's ``package.module:function``, also from the working directory.

    The error says what it is wanted as (``what``), and the signature that is expected (``usage``).

    Raises ``UserError``: it cannot be imported, or cannot be called.
    """
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())
    try:
        function = load(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module does while it is imported, sys.exit among it
        why = f"{type(error).__name__}: {error}"
        try_this = "run from the folder that holds the module, or install it"
        raise UserError(f"cannot import the {what} {path}", why, try_this) from error
    if not callable(function):
        raise UserError(f"{path} is not a function", f"it is a {type(function).__name__}", usage)
    return function
