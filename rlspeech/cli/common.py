"""What the commands share: their common options, running a stage, and what a person sees when it fails."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer

from rlspeech.types import UserError

__all__ = [
    "ConfigFiles",
    "Debug",
    "Device",
    "Json",
    "Out",
    "Preset",
    "Quiet",
    "Seed",
    "Sets",
    "Shared",
    "guarded",
    "load",
    "perform",
    "run_stage",
]

_LAYERS = "Settings (preset < config < flags < set)"
_OUTPUT = "Output"

Preset = Annotated[
    str | None, typer.Option("--preset", help="Packaged settings by name (rlspeech presets ls), or a file.", rich_help_panel=_LAYERS)
]
ConfigFiles = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="FILE", help="YAML or JSON; may be repeated, later ones win.", rich_help_panel=_LAYERS),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other setting, e.g. explore.noise=0.2; see rlspeech presets keys.", rich_help_panel=_LAYERS
    ),
]
Out = Annotated[str | None, typer.Option("--out", metavar="FOLDER", help="Where results go.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.", rich_help_panel=_OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_OUTPUT)]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]


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


def run_stage(shared: Shared, schema: str, stage: str, flags: Mapping[str, Any], **given: Any) -> None:
    """Resolve a stage's settings, run it, print its summary with ``--json``.

    Args:
        shared: the common options.
        schema: ``module:Class`` of its config, without the package's name.
        stage: ``module:function``; it is imported after the settings are known to be right.
        flags: dotted key -> value, None where not given.
        given: further arguments of the function.
    """

    def work() -> dict[str, Any]:
        from rlspeech.settings import resolve

        config, _ = resolve(load(schema), shared.preset, shared.config, {**flags, **shared.flags}, shared.sets or ())
        return load(stage)(config, json_mode=shared.json_mode, **given)  # type: ignore[no-any-return]

    perform(work, shared)


def perform(work: Callable[[], dict[str, Any]], shared: Shared) -> dict[str, Any]:
    """Do the work of a command; print its result as JSON where that is asked for."""
    from rlspeech import log

    log.configure(quiet=shared.quiet, json_mode=shared.json_mode)
    with guarded(shared):
        if not shared.json_mode:
            return work()
        with contextlib.redirect_stdout(sys.stderr):  # a library that prints must not spoil the one object
            result = work()
        log.emit(result)
    return result


@contextlib.contextmanager
def guarded(shared: Shared) -> Iterator[None]:
    """Turn exceptions into a message and an exit code: 2 for what a person can put right, 130 for Ctrl-C, 1 for the rest."""
    try:
        yield
    except (typer.Exit, SystemExit):
        raise
    except KeyboardInterrupt:
        _fail(shared, 130, "interrupted; what was written is kept, the same command goes on where that is possible", "", "", None)
    except UserError as error:
        _fail(shared, 2, error.what, error.why, error.try_this, error)
    except BrokenPipeError:  # `rlspeech ... | head`
        with contextlib.suppress(OSError):
            sys.stderr.close()
        raise typer.Exit(1) from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            _fail(
                shared, 1, f"out of memory: {_first_line(error)}", "", "a smaller micro_batch, batch or clip_s (--set micro_batch=1)", error
            )
        _fail(
            shared,
            1,
            f"{type(error).__name__}: {_first_line(error)}",
            "this should not happen",
            "the same command with --debug shows where",
            error,
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _fail(shared: Shared, code: int, what: str, why: str, try_this: str, error: BaseException | None) -> NoReturn:
    from rlspeech import log

    if shared.debug and error is not None:
        import traceback

        traceback.print_exception(error)
    print(f"{'error: ' if code != 130 else ''}{UserError(what, why, try_this)}", file=sys.stderr)
    if shared.json_mode and log.is_main():
        print(json.dumps({"error": what, "why": why, "try": try_this, "exit": code}, ensure_ascii=False))
    raise typer.Exit(code) from error
