"""``rlspeech convert``: weights, manifests, scores and adapters, from and to other people's formats."""

from __future__ import annotations

from typing import Annotated

import typer

from rlspeech.cli.common import Debug, Device, Json, Quiet, Shared, load, perform

__all__ = ["add_to", "app"]

app = typer.Typer(
    no_args_is_help=True, epilog="Example: rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi"
)

Place = Annotated[
    str | None, typer.Argument(metavar="OUT", help="What to write; nothing that is there is written over.")
]
Out = Annotated[str | None, typer.Option("--out", metavar="OUT", help="The same, as an option.")]


def add_to(parent: typer.Typer) -> None:
    """Register the commands."""
    for function, example in (
        (avse4, "avse4 pretrained.ckpt --out runs/avse4-baseline"),
        (manifest, "manifest data/train.jsonl --to kaldi data/kaldi"),
        (scores, "scores scores/scores.jsonl --to versa scores.versa.jsonl"),
        (lora, "lora runs/asr --to adapter runs/asr-adapter"),
    ):
        app.command(epilog=f"Example: rlspeech convert {example}")(function)
    parent.add_typer(
        app, name="convert", help="Weights, manifests, scores and adapters from and to other people's formats."
    )


def avse4(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="The published .ckpt, or a .safetensors with its names.")
    ],
    place: Place = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The baseline of the fourth AVSE challenge as a checkpoint; every tensor is accounted for, nothing in the file is run."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    perform(lambda: load("stages.convert:run")("avse4", source, out or place, json_mode=json_mode), shared)


def manifest(
    source: Annotated[str, typer.Argument(metavar="MANIFEST", help="A manifest, or a folder that holds one.")],
    to: Annotated[str, typer.Option(help="nemo (a file), kaldi (a data folder) or lhotse (cuts.jsonl.gz).")],
    place: Place = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A manifest for NeMo, Kaldi or lhotse; rlspeech prepare nemo | kaldi | lhotse is the way back."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    perform(lambda: load("stages.convert:manifest")(source, to, out or place, json_mode=json_mode), shared)


def scores(
    source: Annotated[str, typer.Argument(metavar="FILE", help="scores.jsonl, or what VERSA's scorer wrote.")],
    to: Annotated[str, typer.Option(help="versa or rlspeech.")],
    place: Place = None,
    system: Annotated[
        str | None, typer.Option(help="Which of several systems; of rows from VERSA, the label that they get.")
    ] = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score rows to and from VERSA's; names are translated, unknown ones kept."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    perform(lambda: load("stages.convert:scores")(source, to, out or place, system=system, json_mode=json_mode), shared)


def lora(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder of rlspeech rl, or one of its checkpoints.")],
    to: Annotated[
        str,
        typer.Option(help="adapter (a peft folder for the model it was trained on) or merged (a plain checkpoint)."),
    ],
    place: Place = None,
    device: Device = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What a run with LoRA has learned, as an adapter or folded into the weights."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    perform(
        lambda: load("stages.convert:run")(source, to, out or place, device=device or "cpu", json_mode=json_mode),
        shared,
    )
