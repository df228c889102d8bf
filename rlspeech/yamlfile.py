"""YAML and JSON read so that mistakes have line numbers: safe loader, no key twice, ``2e-4`` is a number as in YAML 1.2 and JSON."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from rlspeech.types import UserError

__all__ = ["load_yaml", "parse_value"]


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's floats: 1.1 takes ``2e-4`` for a string."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_value(text: str) -> Any:
    """One value as YAML: number, true, null, ``[1, 3]``, ``{a: 1}``; what is not YAML stays text."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (derived from the safe loader)
    except yaml.YAMLError:
        return text


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a file that holds one mapping; ``-`` is stdin.

    Returns:
        the mapping, and dotted key (``a.b``, ``a[0].b``) -> line number.

    Raises:
        UserError: missing, not UTF-8, not YAML, not a mapping, or a key given twice.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"no config file {path}",
            "",
            "give a path to a YAML or JSON file; rlspeech presets ls lists the packaged ones",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", str(error)) from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is not None:
            _note_lines(node, "", lines, path)
        value = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{place} is not YAML", str(getattr(error, "problem", None) or error).splitlines()[0], "look at that line"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is not a config", "it is nested too deeply or refers to itself") from None
    finally:
        loader.dispose()
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise UserError(f"{path} is not a config", "it has to hold keys and values", "steps: 100")
    return value, lines


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            if name in lines:
                raise UserError(
                    f"{path}, line {key.start_mark.line + 1}: {name} is there twice",
                    f"first in line {lines[name]}",
                    "delete one of them",
                )
            lines[name] = key.start_mark.line + 1
            _note_lines(value, name, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[f"{prefix}[{i}]"] = value.start_mark.line + 1
            _note_lines(value, f"{prefix}[{i}]", lines, path)
