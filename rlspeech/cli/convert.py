"""``rlspeech convert``: other people's weights as a checkpoint of ours."""

from __future__ import annotations

from typing import Annotated

import typer

from rlspeech.cli.common import Debug, Json, Out, Quiet, Shared, load, perform

__all__ = ["add_to", "convert"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: rlspeech convert avse4 pretrained.ckpt --out runs/avse4-baseline")(convert)


def convert(
    layout: Annotated[str, typer.Argument(help="Whose weights: avse4 (the baseline of the fourth AVSE challenge).")],
    source: Annotated[str, typer.Argument(metavar="FILE", help="The published .ckpt, or a .safetensors with its names.")],
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn published weights into a checkpoint folder; every tensor is accounted for, nothing in the file is run."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    perform(lambda: load("stages.convert:run")(layout, source, out, json_mode=json_mode), shared)
