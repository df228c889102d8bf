"""What is said of settings that cannot be used: which key was meant, what a value may be."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlspeech.schema import bounds, item, item_model, keys, model, type_name
from rlspeech.types import UserError

__all__ = ["allowed", "closest", "unknown_key"]

_FEW = 12  # names that can be listed without hiding the point


def closest(name: str, names: Iterable[str], least: float = 0.6) -> str | None:
    """The name that was meant, or None."""
    near = difflib.get_close_matches(name, list(names), 1, least)
    return near[0] if near else None


def _alike(asked: str, key: str) -> float:
    """How near a key is to what was typed: as a whole, with dots and underscores alike, or by its last part."""
    ratio = difflib.SequenceMatcher(None, asked, key).ratio()
    flat = difflib.SequenceMatcher(None, asked.replace("_", "."), key.replace("_", ".")).ratio()
    last = difflib.SequenceMatcher(None, asked.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1]).ratio()
    return max(ratio, flat, 0.95 * last)


def unknown_key(
    name: str, where: str, schema: type[BaseModel], prefix: str = "", rest: str = "", stage: str = "STAGE"
) -> UserError:
    """The refusal of a key that does not exist.

    Args:
        name: the part of the dotted key that is not known.
        where: the layer that has it.
        schema: the config class in which it was looked for.
        prefix: what stands before it, with the dot.
        rest: what stands behind it.
        stage: whose keys these are.
    """
    valid = list(schema.model_fields)
    asked = f"{name}.{rest}" if rest else name
    every = dict.fromkeys([*valid, *(k.name for k in keys(schema))])
    ranked = sorted(((_alike(asked, key), key) for key in every), key=lambda pair: -pair[0])
    near = [key for ratio, key in ranked if ratio >= 0.6][:4]
    everything = f"rlspeech presets keys {stage}"
    inside = f" in {prefix.rstrip('.')}" if prefix else ""
    if len(valid) <= _FEW:
        why = f"valid{inside}: {', '.join(valid)}"
    elif near:
        why = f"similar valid keys: {', '.join(prefix + key for key in near)}; all of them: {everything}"
    else:
        why = f"valid{inside}: {', '.join(valid)}"
    return UserError(
        f"unknown setting {prefix + name!r} ({where})", why, f"did you mean {prefix}{near[0]}?" if near else everything
    )


def _find(schema: type[BaseModel], name: str) -> tuple[Any, FieldInfo | None]:
    """The annotation that a dotted name leads to, through lists and mappings, and its field; (None, None) where it leads nowhere."""
    annotation: Any = schema
    field: FieldInfo | None = None
    for part in name.replace("[", ".").replace("]", "").split("."):
        inner = model(annotation)
        if part.isdigit():
            annotation, field = item(annotation), None
        elif inner is not None and part in inner.model_fields:
            field = inner.model_fields[part]
            annotation = field.annotation
        elif typing.get_origin(annotation) is dict:
            annotation, field = typing.get_args(annotation)[1], None
        else:
            return None, None
    return annotation, field


def allowed(schema: type[BaseModel], name: str, value: Any, stage: str, flag: str = "") -> str:
    """What a setting may be, and which of its choices a wrong value was meant to be.

    Args:
        schema: the stage's config class.
        name: dotted key.
        value: what it was given.
        stage: whose setting it is.
        flag: the option that set it, with its dashes; none where a file or ``--set`` did.
    """
    annotation, field = _find(schema, name)
    if annotation is None:
        return f"rlspeech presets keys {stage}"
    kind, inner, entry = type_name(annotation), model(annotation), item_model(annotation)
    choices = [c for c in kind.split("|") if c not in {"int", "float", "str", "bool", "null"}]
    near = closest(value, choices, 0.5) if isinstance(value, str) else None
    if near:
        return f"did you mean {f'{flag} ' if flag else f'{name}='}{near}? {name} is {'|'.join(choices)}"
    if inner is not None:
        return f"{name} has parts: {', '.join(inner.model_fields)}; --set {name}.{next(iter(inner.model_fields))}=VALUE"
    if entry is not None:
        parts = list(entry.model_fields)
        return f"{name} is a list whose entries have {', '.join(parts)}; --set '{name}=[{{{parts[0]}: VALUE}}]'"
    default = (
        "" if field is None or field.is_required() else f", by default {field.get_default(call_default_factory=True)!r}"
    )
    return f"{name} is {kind}{f' {limits}' if field is not None and (limits := bounds(field)) else ''}{default}"
