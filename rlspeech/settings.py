"""From layers to one typed config: defaults < ``--preset`` < ``--config FILE`` < flags < ``--set a.b=value``.

Every layer is checked against the schema as it is laid on, so that an unknown key is refused with the name of its layer, the closest
name and the list of valid ones. Which layer set which key is kept (``provenance``). Files are read with YAML's safe loader.
"""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlspeech.names import local_option
from rlspeech.plugins import SCHEMAS
from rlspeech.schema import allowed, closest, item, item_model, load_yaml, model, parse_value, unknown_key
from rlspeech.types import UserError

M = TypeVar("M", bound=BaseModel)
Provenance = dict[str, str]

Tree = dict[str, Any]
Values = Mapping[str, Any]
Schema = type[BaseModel]
Lines = Mapping[str, int]  # dotted key -> its line in a file
_FLAGS = {"rewards": "--reward", "guards": "--guard", "models": "--model", "metrics": "--metric"}
# A list of these is also written as strings "name=number", or as a mapping of name to number: field that takes the number.
_SHORTHAND = {"RewardSpec": "weight", "GuardSpec": "max_drop"}


def resolve(
    schema: type[M],
    preset: str | None = None,
    config_file: str | Path | Sequence[str | Path] | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> tuple[M, Provenance]:
    """Lay the layers over each other and check the result.

    Args:
        preset: name of a packaged preset, or a path to a file of that form.
        config_file: YAML or JSON files, later ones over earlier ones.
        flags: dotted key -> value as given on the command line; None means not given.
        sets: ``a.b=value`` or ``rewards[0].weight=2``, the value in YAML.

    Returns:
        the config, and dotted key -> the layer that set it; what is not in there has its default.

    Raises:
        UserError: unknown key, wrong type, unreadable file or unknown preset.
    """
    layers = _Layers(schema)
    if preset:
        layers.lay(*read_config(preset_path(preset), schema, f"--preset {preset}"), f"preset {preset}")
    for file in [config_file] if isinstance(config_file, str | Path) else config_file or ():
        layers.lay(*read_config(Path(file), schema), str(file))
    for key, value in (flags or {}).items():
        if value is not None:
            layers.put(_parse_path(key, key), value, _FLAGS.get(key, "--" + key.replace("_", "-")), {})
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"cannot read --set {text}", "it is not of the form key=value", "--set explore.noise=0.2")
        layers.put(_parse_path(name.strip(), f"--set {text}"), parse_value(value.strip()), f"--set {name.strip()}", {})
    return layers.build(), layers.provenance


def stage_of(schema: Schema) -> str:
    """Name of the subcommand that a config class belongs to."""
    name = schema.__name__
    return next((stage for stage, path in SCHEMAS.items() if path.endswith(f":{name}")), name.lower())


def read_config(path: Path, schema: Schema | None = None, given: str = "") -> tuple[Tree, Lines]:
    """Read a config or preset file, YAML or JSON: its values, and dotted key -> line number.

    Args:
        schema: where given, a ``stage:`` line in the file has to name its stage; the line is taken out.
        given: how it was named on the command line.

    Raises:
        UserError: missing, not YAML, not a mapping, a key twice, or for another stage.
    """
    values, lines = load_yaml(path)
    if schema is not None:
        stage = values.pop("stage", stage_of(schema))
        if stage != stage_of(schema):
            why = f"its stage line says {stage}"
            raise UserError(f"{path} is for `rlspeech {stage}`", why, f"rlspeech {stage} {given or f'--config {path}'}")
    return values, lines


def preset_names() -> list[str]:
    """Names of the packaged presets."""
    folder = resources.files("rlspeech") / "presets"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def preset_path(name: str) -> Path:
    """File of a preset: a packaged one by name, or any file by path. Raises ``UserError`` with the closest name."""
    if name.endswith((".yaml", ".yml", ".json")):
        return Path(name)
    names = preset_names()
    if name not in names:
        close = closest(name, names, 0.4)
        family = [n for n in names if n.split("-")[0] == name.split("-")[0]] or names
        try_this = f"--preset {close}; rlspeech presets ls lists all" if close else "rlspeech presets ls"
        raise UserError(f"no preset is called {name!r}", f"presets: {', '.join(family)}", try_this)
    return Path(str(resources.files("rlspeech") / "presets" / f"{name}.yaml"))


def preset_about(path: Path) -> str:
    """What a preset is, in one line: its first comment."""
    return (path.read_text(encoding="utf-8").splitlines() or [""])[0].lstrip("# ")


def preset_stage(path: Path) -> str | None:
    """The stage that a preset or config file says it is for."""
    try:
        line = re.search(r"^stage: *([\w-]+) *$", path.read_text(encoding="utf-8"), re.M)  # reading YAML takes time
    except (OSError, UnicodeDecodeError):
        line = None
    return line[1] if line else read_config(path)[0].get("stage")


class _Layers:
    """The tree of values that the layers have written so far."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.stage = schema, stage_of(schema)
        self.tree: Tree = {}
        self.provenance: Provenance = {}

    def lay(self, values: Values, lines: Lines, layer: str) -> None:
        """Lay a whole file on."""
        for key, value in values.items():
            self.put([key], value, layer, lines)

    def put(self, path: Sequence[str | int], value: Any, layer: str, lines: Lines) -> None:
        """Set one dotted key, which may go through list entries; a mapping of settings is laid over what is there."""
        tree: Any = self.tree
        annotation: Any = self.schema
        name = ""
        for i, part in enumerate(path):
            schema = model(annotation)
            if schema is None and isinstance(part, str) and part.isdigit() and item(annotation) is not None:
                part = int(part)  # rewards.0 is rewards[0]
            if isinstance(part, int):
                if not isinstance(tree, list) or part >= len(tree):
                    raise _no_entry(name, part, tree, layer)
                annotation, name = item(annotation), f"{name}[{part}]"
            elif schema is not None:
                prefix = f"{name}." if name else ""
                name = f"{prefix}{part}"
                if part not in schema.model_fields:
                    rest = ".".join(map(str, path[i + 1 :]))
                    raise unknown_key(part, _where(layer, lines, name), schema, prefix, rest, self.stage)
                annotation = schema.model_fields[part].annotation
            elif typing.get_origin(annotation) is dict and isinstance(tree, dict):
                annotation, name = typing.get_args(annotation)[1], f"{name}.{part}"
            else:
                what = f"{name} has no parts, so {name}.{part} cannot be set ({layer})"
                raise UserError(what, "", f"--set {name}=VALUE")
            if i < len(path) - 1:
                tree = tree[part] if isinstance(part, int) else self._enter(tree, part, schema)
        if model(annotation) is None or not isinstance(value, Mapping):
            self._assign(tree, part, value, annotation, name, _where(layer, lines, name))
            return
        if isinstance(part, str):
            self._enter(tree, part, schema)
        for key, inner in value.items():
            self.put([*path, str(key)], inner, layer, lines)

    def _assign(self, tree: Any, key: Any, value: Any, annotation: Any, name: str, where: str) -> None:
        value = local_option(_expand(value, annotation), where)
        entry_class = item_model(annotation)
        if entry_class is not None and isinstance(value, list):
            for i, entry in enumerate(value):
                for sub in entry if isinstance(entry, Mapping) else ():
                    if sub not in entry_class.model_fields:
                        raise unknown_key(str(sub), where, entry_class, f"{name}[{i}].", stage=self.stage)
        if isinstance(value, Mapping) and isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree[key] = {**tree[key], **value}
        else:
            for old in [k for k in self.provenance if k.startswith((f"{name}.", f"{name}["))]:
                del self.provenance[old]
            tree[key] = value
        self.provenance[name] = where

    @staticmethod
    def _enter(tree: Tree, key: str, schema: Schema | None) -> Any:
        """The sub-tree of a key; what the schema's default holds is put in first, so that setting a part keeps the rest."""
        if tree.get(key) is None:
            field = schema.model_fields[key] if schema else None
            default = None if field is None or field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                tree[key] = default.model_dump(exclude_unset=True)
            else:
                tree[key] = copy.deepcopy(default) if default else {}
        if isinstance(tree[key], tuple):
            tree[key] = list(tree[key])  # so that an entry can be set
        return tree[key]

    def build(self) -> Any:
        """The checked config."""
        try:
            return self.schema.model_validate(self.tree)
        except ValidationError as error:
            raise self._explain(error) from None

    def _explain(self, error: ValidationError) -> UserError:
        problems: dict[str, list[str]] = {}
        values: dict[str, Any] = {}
        for e in error.errors(include_url=False):
            name = self._name(e["loc"], e["type"] == "missing")
            problems.setdefault(name, []).append(e["msg"].removeprefix("Value error, "))
            if e["type"] != "missing":
                values[name] = e["input"]
        lines = []
        for name, messages in problems.items():
            got = f", got {shorten(repr(values[name]), 200, placeholder='...')}" if name in values else ""
            lines.append(f"{name}: {' / '.join(dict.fromkeys(messages))}{got} ({self._layer(name)})")
        first = next(iter(problems))
        flag = layer if (layer := self._layer(first)).startswith("--") and " " not in layer else ""
        try_this = allowed(self.schema, first, values.get(first), self.stage, flag)
        return UserError(lines[0], "; ".join(lines[1:6]), try_this)

    def _name(self, loc: tuple[str | int, ...], missing: bool) -> str:
        """Dotted key of a pydantic location, without the names of union branches that pydantic puts between."""
        node: Any = self.tree
        name = ""
        for i, part in enumerate(loc):
            if isinstance(node, Mapping) and (part in node or (missing and i == len(loc) - 1)):
                name, node = f"{name}.{part}" if name else str(part), node.get(part)
            elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
                name, node = f"{name}[{part}]", node[part]
        return name or ".".join(map(str, loc))

    def _layer(self, name: str) -> str:
        while name:
            if name in self.provenance:
                return self.provenance[name]
            name = re.sub(r"(\.[^.\[]*|\[[^\]]*\]|^[^.\[]*)$", "", name)
        return "default"


def _where(layer: str, lines: Lines, name: str) -> str:
    return f"{layer}, line {lines[name]}" if name in lines else layer


def _parse_path(text: str, shown: str) -> list[str | int]:
    parts: list[str | int] = []
    for word in text.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", word)
        if match is None:
            try_this = "--set explore.noise=0.2, or --set rewards[0].weight=2"
            raise UserError(f"cannot read the key in {shown}", "", try_this)
        parts += [match[1], *(int(n) for n in re.findall(r"\[(\d+)\]", match[2]))]
    return parts


def _no_entry(name: str, entry: int, tree: Any, layer: str) -> UserError:
    size = len(tree) if isinstance(tree, list) else 0
    why, try_this = "it is empty, or not a list", f"--set '{name}=[...]'"
    if size:
        why, try_this = f"it has {size}, counted from 0", f"--set '{name}[{size - 1}]...'"
    elif name in ("rewards", "guards"):
        why = "it is empty: the task's own list is put in later"
        try_this = f"{_FLAGS[name]} NAME=NUMBER beside it, or --set '{name}=[...]'"
    return UserError(f"{name} has no entry {entry} ({layer})", why, try_this)


def _expand(value: Any, annotation: Any) -> Any:
    """Shorthands of reward and guard lists: "name=number", and a mapping of names to numbers."""
    entry_class = item_model(annotation)
    if entry_class is None or entry_class.__name__ not in _SHORTHAND:
        return value
    number = _SHORTHAND[entry_class.__name__]
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        return [_entry(name, number, n) for name, n in value.items()]
    if not isinstance(value, list | tuple):
        return value
    return [_spec(entry, number) if isinstance(entry, str) else entry for entry in value]


def _spec(text: str, number: str) -> dict[str, Any]:
    """``pesq_wb=1.0``, a guard's ``pesq_wb=0.1:hold``, or a bare name; an "=" inside brackets belongs to the name."""
    match = re.fullmatch(r"(.+?)=([^=\[\]]*)", text.strip())
    if match is None or ("[" in match[1] and not match[1].endswith("]")):
        return {"name": text.strip()}
    return _entry(match[1].strip(), number, parse_value(match[2]))


def _entry(name: str, number: str, value: Any) -> dict[str, Any]:
    held = number == "max_drop" and isinstance(value, str) and value.endswith(":hold")
    return {"name": name, number: parse_value(value[:-5]), "hold": True} if held else {"name": name, number: value}
