"""The command line: one subcommand a stage. Nothing heavy is imported before a command has checked its settings."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import typer

from rlspeech import __version__, log
from rlspeech.cli import convert, files, judge, prepare, speak, train, transcribe
from rlspeech.cli.common import CLOSED, reader_left
from rlspeech.cli.shape import Group, shape

__all__ = ["app", "main"]

# typer takes 50 columns for the least
NARROW = {"terminal_width": columns - 1} if (columns := shutil.get_terminal_size().columns) < 54 else {}

ORDER = (
    "prepare",
    "pretrain",
    "reward",
    "rl",
    "eval",
    "report",
    "enhance",
    "transcribe",
    "speak",
    "convert",
    "presets",
    "check",
    "doctor",
)


class Root(Group):
    """The stages first, in the order in which they follow each other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names as the help lists them."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="rlspeech",
    no_args_is_help=True,
    cls=Root,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if log.fancy(sys.stdout) else None,  # panels cost 0.1 s and help nobody in a file
    context_settings={"help_option_names": ["-h", "--help"], **NARROW},
    help="Post-train speech models with reinforcement learning: prepare -> pretrain -> reward -> rl -> eval.",
    epilog="Example: rlspeech doctor && rlspeech rl --algo grpo --task flowse\n\n"
    "Every command has --help with an example. Exit codes: 0 done (also when a guard or --max-minutes stopped a run), 2 something that you "
    "can mend (what, why, what to try), 130 Ctrl-C (what was written is kept), 141 nobody read the output any more (| head), 1 a bug "
    "or out of memory (--debug shows the traceback).",
)
app.add_typer(prepare.app, name="prepare", help="Make manifests from a corpus on disk; every file is checked.")
app.registered_commands += train.app.registered_commands
for _module in (judge, transcribe, speak, files, convert):
    _module.add_to(app)
app.add_typer(
    files.presets_app, name="presets", help="Packaged settings: list, read, copy; and every key that can be set."
)
shape(app)


def _version(value: bool) -> None:
    if value:
        print(f"rlspeech {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script and of ``python -m rlspeech``."""
    # before torch is imported: waiting threads that spin slow every other process down, see parallel.calm_threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    code: Any = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before a command has begun
        code = 130
    sys.exit(CLOSED if reader_left() and code in (0, None, 1) else code)
