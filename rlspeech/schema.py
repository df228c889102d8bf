"""Looking at a config class: which keys it has, of which type, and which of them hold further config classes."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Key", "bounds", "item", "item_model", "keys", "model", "type_name"]


class Key(typing.NamedTuple):
    """One thing that can be set."""

    name: str
    type: str
    default: Any
    help: str
    bounds: str = ""


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """All settings of a stage, nested ones with dotted names."""
    for name, field in schema.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        inner = model(field.annotation)
        if inner is not None and isinstance(default, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, type_name(field.annotation), default, field.description or "", bounds(field))


def model(annotation: Any) -> type[BaseModel] | None:
    """The config class of a field, ``X`` or ``X | None``; None for anything else."""
    for kind in _branches(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def item(annotation: Any) -> Any:
    """What a list or tuple field holds; None for anything else."""
    for kind in _branches(annotation):
        if typing.get_origin(kind) in (list, tuple):
            return typing.get_args(kind)[0]
    return None


def item_model(annotation: Any) -> type[BaseModel] | None:
    """The config class that a list field holds; None for anything else."""
    return model(item(annotation))


def bounds(field: FieldInfo) -> str:
    """The range of a number as people write it: ``>= 1``, ``> 0``, ``0 to 1``; empty where there is none."""
    found = {
        sign: getattr(m, name)
        for m in field.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(m, name, None) is not None
    }
    if set(found) == {">=", "<="}:
        return f"{found['>=']:g} to {found['<=']:g}"
    return " and ".join(f"{sign} {value:g}" for sign, value in found.items())


def _branches(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


def type_name(annotation: Any) -> str:
    """A field's type as people write it."""
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return "|".join(type_name(a) for a in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (list, tuple, dict):
        return (
            f"{typing.get_origin(annotation).__name__}[{', '.join(type_name(a) for a in typing.get_args(annotation))}]"
        )
    return getattr(annotation, "__name__", str(annotation))
