"""The keys of a settings class: types and ranges, what was meant by a wrong one, and files with the line of each key.

Files are YAML or JSON, read by the safe loader so that mistakes have line numbers; ``2e-4`` is a number as in YAML 1.2 and JSON.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlspeech.types import UserError

_VALUES = 100_000  # of a config: aliases of aliases make billions
_PLAIN = (  # YAML 1.2's plain values: tag, form, and what they may begin with
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
    ("merge", "<<", ["<"]),
)
_FEW = 12  # names that can be listed without hiding the point


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
    branches = (b.__metadata__ for b in _branches(field.annotation) if typing.get_origin(b) is typing.Annotated)
    parts = [getattr(m, "metadata", [m]) for some in (field.metadata, *branches) for m in some]  # of a Field its own
    found = {
        sign: getattr(m, name)
        for m in itertools.chain(*parts)
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(m, name, None) is not None
    }
    if set(found) == {">=", "<="}:
        return f"{found['>=']:g} to {found['<=']:g}"
    return " and ".join(f"{sign} {value:g}" for sign, value in found.items())


def _branches(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if union else (annotation,)


def type_name(annotation: Any) -> str:
    """A field's type as people write it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, parts))
    if origin in (types.UnionType, typing.Union):
        return "|".join(map(type_name, parts))
    if origin is typing.Annotated:
        return type_name(parts[0])
    if origin in (list, tuple, dict):
        return f"{origin.__name__}[{', '.join(map(type_name, parts))}]"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def closest(name: str, names: Iterable[str], least: float = 0.6) -> str | None:
    """The name that was meant, or None."""
    near = difflib.get_close_matches(name, list(names), 1, least)
    return near[0] if near else None


def _alike(asked: str, key: str) -> float:
    """How near a key is to what was typed: as a whole, with dots and underscores alike, or by its last part."""
    forms = zip(*((name, name.replace("_", "."), name.split(".")[-1]) for name in (asked, key)), strict=True)
    whole, flat, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in forms)
    return max(whole, flat, 0.95 * last)


def unknown_key(
    name: str, where: str, schema: type[BaseModel], prefix: str = "", rest: str = "", stage: str = "STAGE"
) -> UserError:
    """The refusal of a key that does not exist.

    Args:
        name: the part of the dotted key that is not known in ``schema``; ``prefix`` (with its dot) and ``rest`` stand around it.
        where: the layer that has it.
    """
    valid = list(schema.model_fields)
    asked = f"{name}.{rest}" if rest else name
    every = dict.fromkeys([*valid, *(k.name for k in keys(schema))])
    ranked = sorted(((_alike(asked, key), key) for key in every), key=lambda pair: -pair[0])
    near = [key for ratio, key in ranked if ratio >= 0.6][:4]
    everything = f"rlspeech presets keys {stage}"
    why = f"valid{f' in {prefix[:-1]}' if prefix else ''}: {', '.join(valid)}"
    if near and len(valid) > _FEW:
        why = f"similar valid keys: {', '.join(prefix + key for key in near)}; all keys: {everything}"
    try_this = f"did you mean {prefix}{near[0]}?" if near else everything
    return UserError(f"unknown setting {prefix + name!r} ({where})", why, try_this)


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
        name: dotted key.
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
    if field is None:
        return f"{name} is {kind}"
    default = "" if field.is_required() else f", by default {field.get_default(call_default_factory=True)!r}"
    return f"{name} is {f'{kind} {bounds(field)}'.rstrip()}{default}"


@cache
def _loader() -> Any:
    """The safe loader with YAML 1.2's plain values: in 1.1 ``2e-4`` and dates are none, ``no`` is false and ``12:30`` is 750.

    Imported late: help needs no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    for kind, form, first in _PLAIN:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{form})$"), first)
    return Loader


def _built(text: str, name: str) -> tuple[Any, dict[str, int]]:
    """The value of a document, None where it is empty, and its lines. Raises ``yaml.YAMLError`` for whatever is wrong with it."""
    import yaml

    lines: dict[str, int] = {}
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, "", lines, name)
        return None if node is None else loader.construct_document(node), lines
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply or refers to itself") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # a tag that does not fit its value
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None


def parse_value(text: str) -> Any:
    """One value as YAML: number, true, null, ``[1, 3]``, ``{a: 1}``; what is not YAML stays text."""
    import yaml

    try:
        return _built(text, text)[0]
    except yaml.YAMLError:
        return text


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a file that holds one mapping; ``-`` is stdin.

    Returns the mapping, and dotted key (``a.b``, ``a[0].b``) -> line number.
    Raises ``UserError``: missing, not UTF-8, not YAML, not a mapping, or a key given twice.
    """
    import yaml

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except FileNotFoundError:
        try_this = "give a YAML or JSON file; rlspeech presets ls lists the packaged ones"
        raise UserError(f"no config file {path}", "", try_this) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", str(error)) from error
    try:
        value, lines = _built(text, str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        why = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{place} is not YAML", why, "look at that line" if mark else "") from None
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise UserError(f"{path} is not a config", "a config file holds keys and values", "steps: 100")
    return value, lines


def _note_lines(node: Any, prefix: str, lines: dict[str, int], path: str) -> None:
    if len(lines) > _VALUES:
        raise ValueError(f"more than {_VALUES} values, perhaps by aliases of aliases")
    if node.id == "mapping":
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            if name in lines:
                what = f"{path}, line {key.start_mark.line + 1}: duplicate key {name}"
                raise UserError(what, f"first in line {lines[name]}", "delete one of them")
            lines[name] = key.start_mark.line + 1
            _note_lines(value, name, lines, path)
    elif node.id == "sequence":
        for i, value in enumerate(node.value):
            lines[f"{prefix}[{i}]"] = value.start_mark.line + 1
            _note_lines(value, f"{prefix}[{i}]", lines, path)
