"""What typer's commands do here beyond typer: choices in help texts come from the config classes, usage errors are JSON with ``--json``.

Help texts name a field as ``{RL.task}`` and get its choices when the help is shown, not before: the config classes cost time to import.
"""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rlspeech.cli.complete import choices

__all__ = ["Command", "Group", "shape"]


def shape(app: typer.Typer) -> None:
    """Make all commands and groups below an app ones of this module."""
    for info in app.registered_commands:
        info.cls = Command
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            shape(group.typer_instance)


def filled(text: str | None) -> str | None:
    """A help text with the choices of the fields that it names."""
    return re.sub(r"\{(\w+)\.(\w+)\}", lambda m: ", ".join(choices(f"config:{m[1]}", m[2])), text) if text else text


class Command(TyperCommand):
    """A command whose help names the choices of its settings."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the help text."""
        for parameter in self.params:
            known = typing.cast(Any, parameter)
            known.help = filled(getattr(known, "help", None))
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands that tells a wrong command line as JSON where that is asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the group's own options."""
        words = list(args)
        if ctx.parent is None:
            ctx.meta["rlspeech.json"] = "--json" in words
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            _tell(ctx, error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Read the command's options and run it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            _tell(ctx, error)
            raise


def _tell(ctx: Any, error: Exception) -> None:
    message = getattr(
        error, "format_message", None
    )  # click's errors; their class is not in the same place in every typer
    if ctx.parent is None and callable(message) and ctx.meta.get("rlspeech.json") and getattr(error, "exit_code", 1):
        what = (message().splitlines() or [""])[0]
        inner = getattr(error, "ctx", None) or ctx
        print(
            json.dumps(
                {"error": what, "why": "", "try": f"{inner.command_path} --help", "exit": 2}, ensure_ascii=False
            ),
            flush=True,
        )
