"""What the commands share: their common options, running a stage, and what a person sees when it fails."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer

from rlspeech import log
from rlspeech.cli import complete
from rlspeech.cli.shape import Command
from rlspeech.types import UserError

__all__ = [
    "ConfigFiles",
    "LAYERS",
    "SHARED",
    "Debug",
    "Device",
    "Json",
    "Out",
    "Preset",
    "Quiet",
    "Seed",
    "Sets",
    "Shared",
    "command",
    "guarded",
    "listed",
    "load",
    "perform",
    "present",
    "reader_left",
    "run_stage",
    "stage",
    "task_option",
]

CLOSED = 141  # as the shell says of a program that wrote into a pipe without a reader
_LAYERS = "Settings (preset < config < flags < set)"
_OUTPUT = "Output"

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Packaged settings by name (rlspeech presets ls), or a file.",
        rich_help_panel=_LAYERS,
        autocompletion=complete.presets,
    ),
]
ConfigFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or JSON, - for stdin; may be repeated, later ones win.",
        rich_help_panel=_LAYERS,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, e.g. explore.noise=0.2; see rlspeech presets keys.",
        rich_help_panel=_LAYERS,
        autocompletion=complete.settings,
    ),
]
Out = Annotated[str | None, typer.Option("--out", metavar="FOLDER", help="Where results go.", rich_help_panel=_OUTPUT)]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.", rich_help_panel=_OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but errors, and data on stdout.", rich_help_panel=_OUTPUT)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_OUTPUT)]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", autocompletion=complete.devices)
]


def task_option(schema: str) -> Any:
    """The option ``--task`` of a command whose settings are this class of ``rlspeech.config``."""
    help_text = f"One of {{{schema}.task}}, or package.module:Class."
    return typer.Option(
        "--task", metavar="TASK", help=help_text, autocompletion=complete.one_of(f"config:{schema}", "task")
    )


@dataclass(slots=True)
class Shared:
    """The options that every stage has."""

    preset: str | None = None
    config: list[str] | None = None
    sets: list[str] | None = None
    json_mode: bool = False
    quiet: bool = False
    debug: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


def load(path: str) -> Any:
    """Import ``module:name`` of this package, when it is needed and not before."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"rlspeech.{module}"), name)


# name of the parameter -> its annotation and default; every command has the last three
SHARED: dict[str, tuple[Any, Any]] = {
    "preset": (Preset, None),
    "config": (ConfigFiles, None),
    "sets": (Sets, None),
    "out": (Out, None),
    "seed": (Seed, None),
    "device": (Device, None),
    "json_mode": (Json, False),
    "quiet": (Quiet, False),
    "debug": (Debug, False),
}
LAYERS = ("preset", "config", "sets")
SWITCHES = ("json_mode", "quiet", "debug")


def command(
    app: typer.Typer, example: str, *shared: str, name: str | None = None, panel: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command: its own options, and behind them the shared ones.

    The function declares its own options as typer wants them and takes the shared ones as ``**shared``::

        @command(app, "rlspeech prepare dns /data/DNS --out data/dns", *LAYERS, "out", "seed")
        def dns(root: Root, mixing__snr_db: Snr = None, workers: Workers = None, **shared: Any) -> None:
            \"\"\"DNS-Challenge: the flat layout of 2020 and the trees since 2021.\"\"\"
            stage("corpora.dns:Dns", "stages.prepare:run", locals())

    A parameter has the name of the setting that it sets, ``__`` for a dot; where the option is called otherwise, its
    declaration says so (``typer.Option("--snr")``). So ``locals()``, taken first, is all that ``stage`` needs.

    Args:
        app: where it is registered.
        example: a command line for the end of the help.
        shared: further names from ``SHARED``; ``--json``, ``--quiet`` and ``--debug`` need not be named.
        name: of the command; none: the function's.
        panel: heading under which the help of the group lists it.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for key in (k for k in SHARED if k in shared or k in SWITCHES):
            annotation, default = SHARED[key]
            parameters.append(
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

        @functools.wraps(function)
        def called(**given: Any) -> None:
            function(**given)

        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        app.command(name, cls=Command, epilog=f"Example: {example}", rich_help_panel=panel)(called)
        return called

    return register


def stage(schema: str, run: str, options: Mapping[str, Any], *, without: Sequence[str] = (), **given: Any) -> None:
    """Resolve a stage's settings, run it, print its summary with ``--json``.

    Args:
        schema: ``module:Class`` of its settings, without the package's name.
        run: ``module:function``; it is imported after the settings are known to be right.
        options: the command's ``locals()``: its own options by setting, and ``shared``. A function stands for what it returns: it is
            called where its errors are reported.
        without: options that are no settings.
        given: further arguments of the function, or functions that return them.
    """
    own = {key: value for key, value in options.items() if key not in ("shared", *without)}
    flags = own | options["shared"]
    switches = {key: flags.pop(key) for key in SWITCHES}
    layers = {key: flags.pop(key, None) for key in LAYERS}

    def work() -> dict[str, Any]:
        from rlspeech.settings import resolve

        values = {key.replace("__", "."): _value(value) for key, value in flags.items()}
        config, _ = resolve(load(schema), layers["preset"], layers["config"], values, layers["sets"] or ())
        present(config)
        with log.waiting("loading"):
            function = load(run)
        late = {name: _value(value) for name, value in given.items()}
        return function(config, json_mode=switches["json_mode"], **late)  # type: ignore[no-any-return]

    perform(work, Shared(**switches))


def _value(value: Any) -> Any:
    return value() if callable(value) else value


def run_stage(
    shared: Shared, schema: str, stage: str, flags: Mapping[str, Any], *, paths: str = "", **given: Any
) -> None:
    """Resolve a stage's settings, run it, print its summary with ``--json``.

    Args:
        shared: the common options.
        schema: ``module:Class`` of its config, without the package's name.
        stage: ``module:function``; it is imported after the settings are known to be right.
        flags: dotted key -> value, None where not given.
        paths: the flag in which ``-`` stands for the paths on stdin.
        given: further arguments of the function, or what computes them.
    """

    def work() -> dict[str, Any]:
        from rlspeech.settings import resolve

        read = {paths: listed(flags[paths])} if paths else {}
        config, _ = resolve(
            load(schema), shared.preset, shared.config, {**flags, **read, **shared.flags}, shared.sets or ()
        )
        present(config)
        with log.waiting("loading"):
            run = load(stage)
        late = {name: value() if callable(value) else value for name, value in given.items()}
        return run(config, json_mode=shared.json_mode, **late)  # type: ignore[no-any-return]

    perform(work, shared)


def perform(work: Callable[[], dict[str, Any]], shared: Shared) -> dict[str, Any]:
    """Do the work of a command; print its result as JSON where that is asked for."""
    log.configure(quiet=shared.quiet, json_mode=shared.json_mode)
    with guarded(shared), _hushed(shared.quiet):
        # a library that prints must not spoil the one object
        with contextlib.redirect_stdout(sys.stderr) if shared.json_mode else contextlib.nullcontext():
            result = work()
        log.emit(result)
        if log.unread:
            raise typer.Exit(CLOSED)
    return result


def present(config: Any) -> None:
    """Look for the data before anything heavy is imported: a mistyped path is told at once."""
    for name in ("data", "valid"):
        given = getattr(config, name, None)
        if not isinstance(given, str) or os.path.exists(given):
            continue
        from rlspeech.schema import closest

        folder, wanted = os.path.split(given.rstrip("/"))
        here = os.path.isdir(folder or ".")
        near = closest(wanted, os.listdir(folder or ".")) if here else None
        why = "there is no such file or folder" if here else f"there is no folder {folder}"
        raise UserError(
            f"{given} does not exist",
            why,
            f"--{name} {os.path.join(folder, near)}" if near else "rlspeech prepare --help",
        )


@contextlib.contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Libraries' warnings are remarks as well."""
    if not quiet:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def listed(inputs: Sequence[str]) -> list[str]:
    """Inputs in which ``-`` stands for the paths on stdin: one a line, or as ``find -print0`` writes them."""
    found: list[str] = []
    for given in inputs:
        if given != "-":
            found.append(given)
            continue
        if sys.stdin.isatty():
            log.say("paths are read from the keyboard, one a line; Ctrl-D ends them")
        data = sys.stdin.buffer.read()
        names = data.split(b"\0") if b"\0" in data else data.splitlines()
        found += [os.fsdecode(name) for name in names if name.strip()]
        if not found:
            raise UserError(
                "no paths on stdin", "- reads them from there", "find FOLDER -name '*.wav' | rlspeech ... -"
            )
    return found


@contextlib.contextmanager
def guarded(shared: Shared) -> Iterator[None]:
    """Turn exceptions into a message and an exit code.

    2 for what a person can put right, 130 for Ctrl-C, 141 where nobody reads the output any more, 1 for the rest.
    """
    try:
        yield
    except (typer.Exit, SystemExit):
        raise
    except KeyboardInterrupt:
        _fail(
            shared,
            130,
            "interrupted; what was written is kept, the same command goes on where that is possible",
            "",
            "",
            None,
        )
    except UserError as error:
        _fail(shared, 2, error.what, error.why, error.try_this, error)
    except BrokenPipeError as error:
        if not reader_left():  # of another pipe, to a worker
            _fail(
                shared,
                1,
                f"BrokenPipeError: {_first_line(error)}",
                "a worker process has ended",
                "the same command goes on",
                error,
            )
        raise typer.Exit(CLOSED) from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            _fail(
                shared,
                1,
                f"out of memory: {_first_line(error)}",
                "",
                "a smaller micro_batch, batch or clip_s (--set micro_batch=1)",
                error,
            )
        _fail(
            shared,
            1,
            f"{type(error).__name__}: {_first_line(error)}",
            "this should not happen",
            "the same command with --debug shows where",
            error,
        )


def reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads from any more, as in ``rlspeech ... | head``; what is left of it is thrown away."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            ears = select.poll()
            ears.register(stream.fileno(), select.POLLOUT)
            gone = any(event & select.POLLERR for _, event in ears.poll(0))
        except BrokenPipeError:
            gone = True
        except (AttributeError, OSError, ValueError):  # no poll on this system, or no file behind the stream
            gone = False
        if gone:
            log.discard(stream)
        left = left or gone
    return left


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _fail(shared: Shared, code: int, what: str, why: str, try_this: str, error: BaseException | None) -> NoReturn:
    if shared.debug and error is not None:
        import traceback

        traceback.print_exception(error)
    with contextlib.suppress(BrokenPipeError):
        print(f"{'error: ' if code != 130 else ''}{UserError(what, why, try_this)}", file=sys.stderr)
        if shared.json_mode and log.is_main():
            print(
                json.dumps({"error": what, "why": why, "try": try_this, "exit": code}, ensure_ascii=False), flush=True
            )
    raise typer.Exit(code) from error
