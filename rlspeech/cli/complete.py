"""What the shell offers on Tab: tasks, algorithms, presets, rewards and settings by name. Nothing here imports torch.

``rlspeech --install-completion`` switches it on. Paths are the shell's own business: where nothing is offered it offers files.
"""

from __future__ import annotations

import importlib
import re
import typing
from collections.abc import Callable, Iterator

import typer

__all__ = ["SCHEMAS", "choices", "devices", "one_of", "presets", "rewards", "settings", "stages"]

SCHEMAS = {  # command -> module:Class of its settings
    "prepare": "stages.prepare:Prepare",
    "prepare rl-asr": "corpora.rl_asr:RlAsr",
    "prepare nonspeech": "corpora.nonspeech:Nonspeech",
    "prepare tts": "corpora.tts_texts:PrepareTts",
    "prepare join": "corpora.join:Join",
    "pretrain": "config:Pretrain",
    "reward": "config:ScoreFolder",
    "rl": "config:RL",
    "eval": "config:Evaluate",
    "enhance": "stages.enhance:Enhance",
    "transcribe": "stages.transcribe:Transcribe",
    "speak": "stages.speak:Speak",
}
Names = list[tuple[str, str]]  # what is offered, and a word on it


def choices(schema: str, field: str) -> list[str]:
    """The values that a field may have; empty where they are not listed.

    Args:
        schema: ``module:Class`` without the package's name.
        field: its name.
    """
    module, _, name = schema.partition(":")
    cls = getattr(importlib.import_module(f"rlspeech.{module}"), name)
    return list(dict.fromkeys(_literals(cls.model_fields[field].annotation)))


def _literals(annotation: typing.Any) -> Iterator[str]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from map(str, typing.get_args(annotation))
    else:
        for part in typing.get_args(annotation):
            yield from _literals(part)


def one_of(schema: str, field: str) -> Callable[[str], list[str]]:
    """A completion of a field's values."""

    def complete(incomplete: str) -> list[str]:
        return [c for c in choices(schema, field) if c.startswith(incomplete)]

    return complete


def devices(incomplete: str) -> list[str]:
    """Devices as torch names them."""
    return [d for d in ("auto", "cpu", "cuda", "cuda:0", "mps") if d.startswith(incomplete)]


def presets(ctx: typer.Context, incomplete: str) -> Names:
    """Packaged presets; for a stage's own command those of that stage."""
    from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

    paths = {name: preset_path(name) for name in preset_names() if name.startswith(incomplete)}
    return [
        (n, preset_about(p))
        for n, p in paths.items()
        if ctx.info_name not in SCHEMAS or preset_stage(p) == ctx.info_name
    ]


def rewards(incomplete: str) -> Names:
    """Rewards and metrics."""
    from rlspeech.rewards.base import available

    return [(c, f.help.split(";")[0]) for f in available() for c in f.columns if c.startswith(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> Names:
    """Settings of the stage, up to the ``=``; behind it the values, where they are listed."""
    from rlspeech.schema import keys

    above = f"{ctx.parent.info_name} " if ctx.parent is not None and ctx.parent.info_name == "prepare" else ""
    command = next((c for c in (f"{above}{ctx.info_name}", above.strip(), str(ctx.info_name)) if c in SCHEMAS), None)
    if command is None:
        return []
    module, _, name = SCHEMAS[command].partition(":")
    found = list(keys(getattr(importlib.import_module(f"rlspeech.{module}"), name)))
    key, equals, _ = incomplete.partition("=")
    if equals:
        values = next((k.type.split("|") for k in found if k.name == key), [])
        return [
            (f"{key}={v}", "")
            for v in values
            if f"{key}={v}".startswith(incomplete)
            and re.fullmatch(r"[a-z][\w+-]*", v)
            and v not in ("int", "float", "str", "bool")
        ]
    return [(f"{k.name}=", k.help) for k in found if k.name.startswith(incomplete)]


def stages(incomplete: str) -> list[str]:
    """Commands that have settings."""
    return [s for s in SCHEMAS if s.startswith(incomplete) and " " not in s]
