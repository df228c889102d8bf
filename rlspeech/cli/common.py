"""What the commands share: completion, common options, running a stage, help, and what is printed when a command fails."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from rlspeech import log, plugins
from rlspeech.names import local_option
from rlspeech.plugins import SCHEMAS
from rlspeech.types import UserError

CLOSED = 141  # as the shell says of a program that wrote into a pipe without a reader
_LAYERS = "Settings (preset < config < flags < set)"
_OUTPUT = "Output"
_PARTS = "Parts"

LAYERS = ("preset", "config", "sets")
STAGE = (*LAYERS, "out", "seed", "device")
PARTS = ("shard", "engine", "shards", "ray_address")  # of commands that work in shards
SWITCHES = ("json_mode", "quiet", "debug")
_TYPES = ("int", "float", "str", "bool", "null")
Names = list[tuple[str, str]]  # what is offered, with a word of help
Texts = list[str] | None  # of an option that may be repeated


# What the shell offers on Tab, once ``rlspeech --install-completion`` has switched it on. Nothing of it imports torch. Paths are the
# shell's own business: where nothing is offered it offers files.


def choices(type_text: str) -> list[str]:
    """The values that a field may have, from its type as ``rlspeech.schema`` writes it; empty where they are not listed."""
    return [v for v in type_text.split("|") if re.fullmatch(r"[a-z][\w+-]*", v) and v not in _TYPES]


def one_of(key: str) -> Callable[[typer.Context, str], list[str]]:
    """A completion of the values of a setting."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return [c for c in choices(_keys(ctx)[key].type) if c.startswith(incomplete)]

    return complete


def offer_devices(incomplete: str) -> list[str]:
    """Devices as torch names them."""
    return [d for d in ("auto", "cpu", "cuda", "cuda:0", "mps") if d.startswith(incomplete)]


def offer_presets(ctx: typer.Context, incomplete: str) -> Names:
    """Packaged presets; for a stage's own command those of that stage."""
    from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

    paths = [preset_path(name) for name in preset_names() if name.startswith(incomplete)]
    every = ctx.info_name not in SCHEMAS
    return [(p.stem, preset_about(p)) for p in paths if every or preset_stage(p) == ctx.info_name]


def offer_rewards(incomplete: str) -> Names:
    """Rewards and metrics."""
    from rlspeech.rewards.base import available

    mains = [(e.columns, next(iter(e.columns.values())).help.split(";")[0]) for e, _ in available()]
    return [(c, about) for columns, about in mains for c in columns if c.startswith(incomplete)]


def offer_settings(ctx: typer.Context, incomplete: str) -> Names:
    """Settings of the stage, up to the ``=``; behind it the values, where they are listed."""
    found = _keys(ctx)
    key, equals, _ = incomplete.partition("=")
    if equals:
        values = choices(found[key].type) if key in found else []
        return [(f"{key}={v}", "") for v in values if f"{key}={v}".startswith(incomplete)]
    return [(f"{k.name}=", k.help) for k in found.values() if k.name.startswith(incomplete)]


def _keys(ctx: typer.Context) -> dict[str, Any]:
    """The settings of the command that is being typed or explained, by name; empty where it has none."""
    from rlspeech.schema import keys

    group, last = ("", *ctx.command_path.split())[-2:]
    name = next((n for n in (f"{group} {last}", last, group) if n in SCHEMAS), None)
    if name is None:
        return {}
    schema = load(SCHEMAS[name])
    schema = getattr(schema, "layouts", {}).get(last, schema)  # of a class that stands for several: the one meant
    return {k.name: k for k in keys(schema)}


def describe(ctx: typer.Context, parameters: Sequence[Any]) -> None:
    """Complete the help texts of a command: an option without one has the description and the choices of its setting."""
    bare = [p for p in parameters if not getattr(p, "help", None)]
    found = _keys(ctx) if bare else {}
    for parameter in bare if found else ():
        key = found[str(parameter.name).replace("__", ".")]
        text, names = key.help, choices(key.type.removeprefix("list[").removesuffix("]"))
        if set(names) - set(re.findall(r"[\w+-]+", text)):
            text = f"One of {', '.join(names)}{': ' if text else ''}{text}"
        parameter.help = sentence(text)


def sentence(text: str) -> str:
    """A description as a sentence; names and prefixes (``x.wav``, ``asr: ...``) stay as they are."""
    return f"{text[:1].upper() + text[1:] if re.match(r'[a-z]+[ ;]', text) else text}." if text else ""


def offer_stages(incomplete: str) -> list[str]:
    """Commands that have settings."""
    return [s for s in SCHEMAS if s.startswith(incomplete) and " " not in s]


def _shared(
    kind: Any, names: str, panel: str | None, text: str | None, metavar: str | None = None, complete: Any = None
) -> tuple[Any, Any]:
    option = typer.Option(*names.split(), help=text, rich_help_panel=panel, metavar=metavar, autocompletion=complete)
    return Annotated[kind, option], False if kind is bool else None


# name of the parameter -> its annotation and default; every command has the last three
SHARED: dict[str, tuple[Any, Any]] = {
    "preset": _shared(str | None, "--preset", _LAYERS, "Packaged settings, or a file.", None, offer_presets),
    "config": _shared(Texts, "--config", _LAYERS, "YAML or JSON files, - for stdin; later files win.", "FILE"),
    "sets": _shared(
        Texts, "--set", _LAYERS, "Any setting: explore.noise=0.2 (rlspeech presets keys).", "KEY=VALUE", offer_settings
    ),
    "out": _shared(str | None, "--out", _OUTPUT, "Folder for the results.", "FOLDER"),
    "shard": _shared(str | None, "--shard", _PARTS, None, "I/N"),
    "engine": _shared(str | None, "--engine", _PARTS, "ray: do all parts on a Ray cluster, and join them.", "ray"),
    "shards": _shared(int | None, "--shards", _PARTS, "Parts that --engine makes; none: as many as it does at once."),
    "ray_address": _shared(
        str | None, "--ray-address", _PARTS, "The cluster; none: RAY_ADDRESS, or this machine alone.", "HOST:PORT"
    ),
    "seed": _shared(int | None, "--seed", None, "Random seed; the same seed gives the same result."),
    "workers": _shared(int | None, "--workers", None, "Worker processes; none: one a core; 0: none besides this one."),
    "device": _shared(str | None, "--device", None, "auto, cpu, cuda, cuda:1 or mps.", None, offer_devices),
    "json_mode": _shared(bool, "--json", _OUTPUT, "Print one JSON object on stdout, everything else on stderr."),
    "quiet": _shared(bool, "--quiet -q", _OUTPUT, "Print only errors, and data on stdout."),
    "debug": _shared(bool, "--debug", _OUTPUT, "Show tracebacks."),
}


def command(
    app: typer.Typer, example: str, *shared: str, name: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Register a function as a command: its own options, and behind them the shared ones.

    The function declares its own options as typer wants them and takes the shared ones as ``**shared``::

        @command(app, "rlspeech prepare dns /data/DNS --out data/dns", *LAYERS, "out", "seed", "workers")
        def dns(root: Root, mixing__snr_db: Snr = None, **shared: Any) -> None:
            \"\"\"DNS-Challenge: the flat layout of 2020 and the trees since 2021.\"\"\"
            stage("corpora.published:Dns", "stages.prepare:run", locals())

    A parameter has the name of the setting that it sets, ``__`` for a dot; where the option is called otherwise, its
    declaration says so (``typer.Option("--snr")``). So ``locals()``, taken first, is all that ``stage`` needs. An option without
    a help text has the description of its setting (``plugins.SCHEMAS`` says whose). A function that returns a summary is the work itself.

    Args:
        app: where it is registered.
        example: a command line for the end of the help.
        shared: further names from ``SHARED``; ``--json``, ``--quiet`` and ``--debug`` need not be named.
        name: of the command; none: the function's.
    """

    def register(function: Callable[..., Any]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for key, (annotation, default) in SHARED.items():
            if key in shared or key in SWITCHES:
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(key, kind, default=default, annotation=annotation))

        @functools.wraps(function)
        def called(**given: Any) -> None:
            if own.return_annotation in (None, own.empty):
                function(**given)
            else:
                perform(lambda: function(**given), given)

        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        app.command(name, cls=Command, epilog=f"Example: {example}")(called)
        return called

    return register


def stage(
    schema: str | type, run: str, options: Mapping[str, Any], *, without: Sequence[str] = (), **given: Any
) -> None:
    """Resolve a stage's settings, run it, print its summary with ``--json``.

    Args:
        schema: ``module:Class`` of its settings, without the package's name; or the class, where it is imported already.
        run: ``module:function``; it is imported after the settings are known to be right.
        options: the command's ``locals()``: its own options by setting, and ``shared``. A function stands for what it returns: it is
            called where its errors are reported.
        without: options that are no settings.
        given: further arguments of the function, or functions that return them.
    """
    shared: Mapping[str, Any] = options["shared"]
    own = {key: value for key, value in options.items() if key not in ("shared", *without)}
    flags = own | {key: value for key, value in shared.items() if key not in (*LAYERS, *SWITCHES, *PARTS[1:])}
    engine = shared.get("engine")

    def work() -> dict[str, Any]:
        from rlspeech.settings import resolve

        values = {key.replace("__", "."): _value(value) for key, value in flags.items()}
        cls = load(schema) if isinstance(schema, str) else schema
        config, _ = resolve(cls, shared["preset"], shared["config"], values, shared["sets"] or ())
        present(config)
        with log.waiting("loading"):
            function = load(run)
        if engine:
            how = {"engine": engine, "count": shared["shards"], "address": shared["ray_address"]}
            function = functools.partial(load("stages.shards:spread"), function, **how)
        elif getattr(config, "shard", None):
            function = functools.partial(load("stages.shards:run"), function)
        late = {name: local_option(_value(value), name) for name, value in given.items()}
        return function(config, **late)  # type: ignore[no-any-return]

    if perform(work, shared).get("missing") and engine:
        raise typer.Exit(2)


def call(run: str, shared: Mapping[str, Any], *args: Any, **given: Any) -> dict[str, Any]:
    """Run a stage that has no settings, ``module:function``, with these arguments; print and return its result."""
    return perform(lambda: load(run)(*(local_option(a, "a path") for a in args), **given), shared)  # type: ignore[no-any-return]


def _value(value: Any) -> Any:
    return value() if callable(value) else value


def load(path: str) -> Any:
    """Import ``module:name`` of this package, when it is needed and not before."""
    return plugins.load(f"rlspeech.{path}")


def perform(work: Callable[[], dict[str, Any]], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of a command; print its result as JSON where that is asked for.

    Args:
        work: what is done.
        shared: the command's shared options, at least ``SWITCHES``.
    """
    log.configure(quiet=shared["quiet"], json_mode=shared["json_mode"])
    with guarded(shared), _hushed(shared["quiet"]):
        # a library that prints must not spoil the one object
        with contextlib.redirect_stdout(sys.stderr) if shared["json_mode"] else contextlib.nullcontext():
            result = work()
        log.emit(result)
        if log.unread:
            raise typer.Exit(CLOSED)
    return result


def present(config: Any) -> None:
    """Look for the data before anything heavy is imported: a mistyped path is reported at once."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the working directory does not exist", "it was deleted", "cd to another one") from error
    for name in ("data", "valid", "samples"):
        given = getattr(config, name, None)
        if not isinstance(given, str) or os.path.exists(given):
            continue
        from rlspeech.schema import closest

        folder, wanted = os.path.split(given.rstrip("/"))
        here = os.path.isdir(folder or ".")
        near = closest(wanted, os.listdir(folder or ".")) if here else None
        why = "no such file or folder" if here else f"there is no folder {folder}"
        try_this = f"--{name} {os.path.join(folder, near)}" if near else "rlspeech prepare --help"
        raise UserError(f"{given} does not exist", why, try_this)


@contextlib.contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Silence the warnings of libraries as well."""
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
            log.say("reading paths from the keyboard, one a line; Ctrl-D ends the list")
        data = sys.stdin.buffer.read()
        names = data.split(b"\0") if b"\0" in data else data.splitlines()
        found += [os.fsdecode(name) for name in names if name.strip()]
        if not found:
            try_this = "find FOLDER -name '*.wav' | rlspeech ... -"
            raise UserError("no paths on stdin", "- reads paths from stdin", try_this)
    return found


@contextlib.contextmanager
def guarded(shared: Mapping[str, Any]) -> Iterator[None]:
    """Turn exceptions into a message and an exit code.

    2 for what the user can put right, 128 and the signal's number for a signal (130 for Ctrl-C, 143 for SIGTERM), 141 where nothing reads
    the output any more, 1 for the rest.
    """
    log.ended_by = signal.SIGINT
    for number in log.SIGNALS[1:]:
        if signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, _as_ctrl_c)
    try:
        yield
    except (typer.Exit, SystemExit):
        raise
    except KeyboardInterrupt:
        kept = "interrupted; what was written is kept, and the same command continues where that is possible"
        _fail(shared, 128 + log.ended_by, UserError(kept), None)
    except UserError as error:
        _fail(shared, 2, error, error)
    except BrokenPipeError as error:
        if reader_left():
            raise typer.Exit(CLOSED) from None
        what = f"BrokenPipeError: {_first_line(error)}"  # of another pipe, to a worker
        _fail(shared, 1, UserError(what, "a worker process has ended", "run the same command again to continue"), error)
    except OSError as error:
        # a path, a disk or a limit that no check foresaw: still nothing that a bug could be blamed for
        what, why = str(error.filename or "the system refused"), error.strerror or _first_line(error)
        hint = "look at the path, its permissions and the disk"
        _fail(shared, 2, UserError(f"cannot read or write: {what}", why, hint), error)
    except Exception as error:
        kind, line = type(error).__name__, _first_line(error)
        shown = UserError(f"{kind}: {line}", "this is a bug", "run the command with --debug for a traceback")
        if kind in ("OutOfMemoryError", "MemoryError"):
            hint = "a smaller micro_batch, batch or clip_s (--set micro_batch=1)"
            shown = UserError(f"out of memory: {line}", "", hint)
        _fail(shared, 1, shown, error)


def _as_ctrl_c(number: int, *_: object) -> NoReturn:
    log.ended_by = signal.Signals(number)
    raise KeyboardInterrupt


def reader_left() -> bool:
    """Whether stdout is a pipe that nothing reads from any more, as in ``rlspeech ... | head``; what is left of it is thrown away."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            gone = any(event & select.POLLERR for _, event in poll.poll(0))
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


def _fail(shared: Mapping[str, Any], code: int, shown: UserError, error: BaseException | None) -> NoReturn:
    if shared["debug"] and error is not None:
        import traceback

        traceback.print_exception(error)
    if not (log.is_main() or log.speaks):
        raise typer.Exit(code) from error
    with contextlib.suppress(OSError):  # nothing reads it, or it is a full disk
        print(log.printable(f"{'error: ' if code < 128 else ''}{shown}"), file=sys.stderr)
        if shared["json_mode"] and log.is_main():
            _print_error(shown.what, shown.why, shown.try_this, code)
    raise typer.Exit(code) from error


def _print_error(what: str, why: str, try_this: str, code: int) -> None:
    print(log.json_line({"error": what, "why": why, "try": try_this, "exit": code}), flush=True)


class Command(TyperCommand):
    """A command whose options are described by its settings where they have no help of their own."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the help text."""
        describe(ctx, self.params)
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands: whole sentences in its help, in panels, and a wrong command line as JSON with ``--json``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands under their headings; typer does so itself where there is a capable terminal."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            below: Any = self.get_command(ctx, name)
            heading = getattr(below, "rich_help_panel", None)
            first = " ".join((below.help or "").split("\n\n")[0].split())
            panels.setdefault(heading if isinstance(heading, str) else "Commands", []).append((name, first))
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the group's own options."""
        if ctx.parent is None:
            ctx.meta["rlspeech.json"] = "--json" in args
        with _usage(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's options and run it."""
        with _usage(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _usage(ctx: Any) -> Iterator[None]:
    """Print a wrong command line as JSON where that is asked for."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "format_message", None)  # click's errors; their class moves between versions of typer
        asked = ctx.parent is None and ctx.meta.get("rlspeech.json")
        if asked and callable(message) and getattr(error, "exit_code", 1):
            inner = getattr(error, "ctx", None) or ctx
            _print_error((message().splitlines() or [""])[0], "", f"{inner.command_path} --help", 2)
        raise
