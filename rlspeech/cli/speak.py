"""``rlspeech speak``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlspeech.cli.common import ConfigFiles, Debug, Device, Json, Preset, Quiet, Seed, Sets, Shared, run_stage

__all__ = ["add_to", "speak"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog='Example: rlspeech speak "some words" --out said.wav && rlspeech speak lines.txt --prompt voice.wav'
    )(speak)


def speak(
    inputs: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Texts; .txt files (a line a text); manifests; - for stdin.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Hub id, checkpoint or run folder; none: the embedded checkpoint.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="FILE", help="Recording of the voice, a few seconds.")] = None,
    prompt_text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is said in it; none: it lends its voice alone.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="x.wav, or a folder for several; none: speech.wav or speech/.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the tokens that are drawn; lower is steadier.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pieces of text at once.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Redo results that are there.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    seed: Seed = None,
    device: Device = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say texts of any length, in the voice of a recording."""
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "stages.speak:Speak",
        "stages.speak:run",
        {
            "inputs": inputs,
            "model": model,
            "prompt": prompt,
            "prompt_text": prompt_text,
            "out": out,
            "sampling.temperature": temperature,
            "batch": batch,
            "overwrite": overwrite,
            "seed": seed,
            "device": device,
        },
    )
