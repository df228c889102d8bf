"""The command line: one subcommand a stage. Nothing heavy is imported before a command has checked its settings."""

from __future__ import annotations

import os
import sys

import typer

from rlspeech import __version__
from rlspeech.cli import convert, files, judge, prepare, speak, train, transcribe

__all__ = ["app", "main"]

app = typer.Typer(
    name="rlspeech",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,  # panels cost 0.1 s and help nobody in a file
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Post-train speech models with reinforcement learning: prepare -> pretrain -> reward -> rl -> eval.",
    epilog="Start here: rlspeech doctor, then rlspeech rl --algo grpo --task flowse. Every command has --help with an example.",
)
app.add_typer(prepare.app, name="prepare", help="Make manifests from a corpus on disk; every file is checked.")
for _module in (train, judge, transcribe, speak, files, convert):
    _module.add_to(app)
app.add_typer(files.presets_app, name="presets", help="Packaged settings: list, read, copy; and every key that can be set.")


def _version(value: bool) -> None:
    if value:
        print(f"rlspeech {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    pass


def main() -> None:
    """Entry point of the console script and of ``python -m rlspeech``."""
    # before torch is imported: waiting threads that spin slow every other process down, see parallel.calm_threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    app()
