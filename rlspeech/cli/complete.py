"""What the shell offers on Tab: tasks, algorithms, presets, rewards and settings by name. Nothing here imports torch.

``rlspeech --install-completion`` switches it on. Paths are the shell's own business: where nothing is offered it offers files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import typer

from rlspeech import plugins
from rlspeech.plugins import SCHEMAS

_TYPES = ("int", "float", "str", "bool", "null")
Names = list[tuple[str, str]]  # what is offered, with a word of help


def choices(type_text: str) -> list[str]:
    """The values that a field may have, from its type as ``rlspeech.schema`` writes it; empty where they are not listed."""
    return [v for v in type_text.split("|") if re.fullmatch(r"[a-z][\w+-]*", v) and v not in _TYPES]


def one_of(key: str) -> Callable[[typer.Context, str], list[str]]:
    """A completion of the values of a setting."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return [c for c in choices(_keys(ctx)[key].type) if c.startswith(incomplete)]

    return complete


def devices(incomplete: str) -> list[str]:
    """Devices as torch names them."""
    return [d for d in ("auto", "cpu", "cuda", "cuda:0", "mps") if d.startswith(incomplete)]


def presets(ctx: typer.Context, incomplete: str) -> Names:
    """Packaged presets; for a stage's own command those of that stage."""
    from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

    paths = [preset_path(name) for name in preset_names() if name.startswith(incomplete)]
    every = ctx.info_name not in SCHEMAS
    return [(p.stem, preset_about(p)) for p in paths if every or preset_stage(p) == ctx.info_name]


def rewards(incomplete: str) -> Names:
    """Rewards and metrics."""
    from rlspeech.rewards.base import available

    return [(c, f.help.split(";")[0]) for f in available() for c in f.columns if c.startswith(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> Names:
    """Settings of the stage, up to the ``=``; behind it the values, where they are listed."""
    found = _keys(ctx)
    key, equals, _ = incomplete.partition("=")
    if equals:
        values = choices(found[key].type) if key in found else []
        return [(f"{key}={v}", "") for v in values if f"{key}={v}".startswith(incomplete)]
    return [(f"{k.name}=", k.help) for k in found.values() if k.name.startswith(incomplete)]


def _keys(ctx: typer.Context) -> dict[str, Any]:
    """The settings of the command that is being typed or explained, by name; empty where it has none."""
    from rlspeech.schema import keys

    group, last = ("", *ctx.command_path.split())[-2:]
    name = next((n for n in (f"{group} {last}", last, group) if n in SCHEMAS), None)
    if name is None:
        return {}
    schema = plugins.load(f"rlspeech.{SCHEMAS[name]}")
    schema = getattr(schema, "layouts", {}).get(last, schema)  # of a class that stands for several: the one meant
    return {k.name: k for k in keys(schema)}


def describe(ctx: typer.Context, parameters: Sequence[Any]) -> None:
    """Complete the help texts of a command: an option without one has the description and the choices of its setting."""
    bare = [p for p in parameters if not getattr(p, "help", None)]
    found = _keys(ctx) if bare else {}
    for parameter in bare if found else ():
        key = found[str(parameter.name).replace("__", ".")]
        text, names = key.help, choices(key.type.removeprefix("list[").removesuffix("]"))
        if set(names) - set(re.findall(r"[\w+-]+", text)):
            text = f"One of {', '.join(names)}{': ' if text else ''}{text}"
        parameter.help = sentence(text)


def sentence(text: str) -> str:
    """A description as a sentence; names and prefixes (``x.wav``, ``asr: ...``) stay as they are."""
    return f"{text[:1].upper() + text[1:] if re.match(r'[a-z]+[ ;]', text) else text}." if text else ""


def stages(incomplete: str) -> list[str]:
    """Commands that have settings."""
    return [s for s in SCHEMAS if s.startswith(incomplete) and " " not in s]
