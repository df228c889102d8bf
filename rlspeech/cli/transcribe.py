"""``rlspeech transcribe``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlspeech.cli.common import ConfigFiles, Debug, Device, Json, Preset, Quiet, Seed, Sets, Shared, run_stage

__all__ = ["add_to", "transcribe"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog="Example: rlspeech transcribe talk.wav && rlspeech transcribe talks/ --model runs/rl --out said.jsonl"
    )(transcribe)


def transcribe(
    inputs: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Audio files, folders or manifests; - for paths on stdin.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Hub id, checkpoint or run folder; none: the embedded checkpoint.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="x.jsonl, or a folder for .txt files; none or -: the text on stdout."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="For models that take one.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Instruction or context, for models that take one.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of the search; 1 is greedy.")] = None,
    batch: Annotated[int | None, typer.Option(help="Files or pieces at once.")] = None,
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
    """Write down what is said in recordings of any length."""
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "stages.transcribe:Transcribe",
        "stages.transcribe:run",
        {
            "inputs": inputs,
            "model": model,
            "out": out,
            "sampling.language": language,
            "sampling.prompt": prompt,
            "beams": beams,
            "batch": batch,
            "overwrite": overwrite,
            "seed": seed,
            "device": device,
        },
        paths="inputs",
    )
