"""The command line: one subcommand a stage. Nothing heavy is imported before a command has checked its settings."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import Any

import typer

from rlspeech import __version__, log
from rlspeech.cli import commands, prepare
from rlspeech.cli.common import CLOSED, Group, reader_left

# typer takes 50 columns for the least
NARROW = {"terminal_width": columns - 1} if (columns := shutil.get_terminal_size().columns) < 54 else {}

PANELS = {  # heading -> commands, as the help lists them
    "Data": ("prepare", "check", "merge"),
    "Training": ("pretrain", "sample", "rl"),
    "Measuring": ("reward", "eval", "report", "serve"),
    "Using": ("enhance", "transcribe", "speak"),
    "Project": ("presets", "convert", "doctor"),
}


class Root(Group):
    """The root: commands by what they are for, in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names as the help lists them."""
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, with the panel that lists it."""
        found: Any = super().get_command(ctx, cmd_name)
        if found is not None:
            found.rich_help_panel = next(panel for panel, names in PANELS.items() if cmd_name in names)
        return found


app = typer.Typer(
    name="rlspeech",
    no_args_is_help=True,
    cls=Root,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if log.fancy(sys.stdout) else None,  # panels cost 0.1 s and are of no use in a file
    context_settings={"help_option_names": ["-h", "--help"], **NARROW},
    help="Post-train speech models with reinforcement learning: prepare -> pretrain -> reward -> rl -> eval.",
    epilog="Example: rlspeech doctor && rlspeech rl --algo grpo --task flowse\n\n"
    "Every command has --help with an example. Exit codes: 0 done (also when a guard or --max-minutes stopped a run), 2 a "
    "mistake that you can fix (what, why, what to try), 130 Ctrl-C (143 SIGTERM, 129 SIGHUP; what was written is kept), 141 the output was "
    "closed (| head), 1 a bug or out of memory (--debug shows the traceback).",
)
app.add_typer(prepare.app, name="prepare", help="Make manifests from a corpus on disk and check every file.", cls=Group)
app.registered_commands += commands.app.registered_commands
app.registered_groups += commands.app.registered_groups


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
    """Read the command line and run the command."""
    # before torch is imported: waiting threads that spin slow every other process down, see parallel.calm_threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    code: Any = 0
    try:
        try:
            app()
        except SystemExit as end:
            code = end.code
        except OSError:  # help, on a disk that is full
            log.discard(sys.stdout)
            code = 2
        for number in log.SIGNALS:  # the work is done: who ends the process now needs no trace of it
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    except KeyboardInterrupt:  # before a command has begun, or when it is done
        code = 128 + log.ended_by
    sys.exit(CLOSED if reader_left() and code in (0, None, 1) else code)
