"""``rlspeech doctor``, ``check`` and ``presets``: looking at an installation and at files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from rlspeech import log
from rlspeech.cli import complete
from rlspeech.cli.common import Debug, Json, Quiet, Shared, load, perform
from rlspeech.cli.complete import SCHEMAS
from rlspeech.types import UserError

__all__ = ["SCHEMAS", "add_to", "check", "doctor", "presets_app"]

presets_app = typer.Typer(
    no_args_is_help=True, epilog="Example: rlspeech presets ls && rlspeech presets show flowse-grpo"
)
Name = Annotated[str, typer.Argument(help="Name of a preset.", autocompletion=complete.presets)]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: rlspeech doctor --json")(doctor)
    app.command(epilog="Example: rlspeech check data/mix/mix.json && rlspeech check runs/rl")(check)


def doctor(json_mode: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """What is installed, what can be used here, and what is missing for what; exit code 2 where the main job cannot run."""
    result = perform(
        lambda: load("stages.doctor:run")(json_mode=json_mode), Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    )
    if result["problems"]:
        raise typer.Exit(2)


def check(
    path: Annotated[str, typer.Argument(help="Manifest, mix.json, config file or run folder.")],
    stage: Annotated[
        str | None, typer.Option(help="Stage of a config file without a stage line: pretrain, rl, eval, ...")
    ] = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look for mistakes in a file or run folder; exit code 2 and line numbers where there are some."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    result = perform(lambda: load("stages.check:run")(Path(path), SCHEMAS, stage=stage, json_mode=json_mode), shared)
    if result["problems"]:
        raise typer.Exit(2)


@presets_app.command("ls", epilog="Example: rlspeech presets ls && rlspeech presets ls avse --quiet")
def ls(
    part: Annotated[str, typer.Argument(metavar="[PART]", help="Only those whose name holds this.")] = "",
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the packaged presets; with --quiet their names alone."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

        names = [name for name in preset_names() if part in name]
        if not names:
            raise UserError(f"no preset has {part!r} in its name", "", "rlspeech presets ls")
        rows = [[name, preset_stage(preset_path(name)), preset_about(preset_path(name))] for name in names]
        log.table("Presets", ["name", "stage", "what it is"], rows)
        log.say("next: rlspeech presets show NAME, or rlspeech STAGE --preset NAME")
        _names_alone(names, quiet and not json_mode)
        return {"presets": [{"name": n, "stage": s, "about": a} for n, s, a in rows]}

    perform(work, Shared(json_mode=json_mode, quiet=quiet, debug=debug))


def _names_alone(names: list[str], wanted: bool) -> None:
    if wanted:
        print(*names, sep="\n")


@presets_app.command(epilog="Example: rlspeech presets show flowse-grpo")
def show(name: Name, json_mode: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Print a preset's file as it is."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_about, preset_path, read_config

        path = preset_path(name)
        values, _ = read_config(path)
        text = path.read_text(encoding="utf-8")
        if not json_mode:
            print(text, end="")
        return {
            "name": name,
            "stage": values.pop("stage", None),
            "about": preset_about(path),
            "settings": values,
            "text": text,
        }

    perform(work, Shared(json_mode=json_mode, quiet=quiet, debug=debug))


@presets_app.command(epilog="Example: rlspeech presets copy flowse-grpo mine.yaml && rlspeech rl --config mine.yaml")
def copy(
    name: Name,
    to: Annotated[str | None, typer.Argument(help="File or folder to write; none: NAME.yaml here.")] = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a preset to a file of your own, to be changed and given to --config."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_path, preset_stage

        source = preset_path(name)
        target = Path(to or source.name)
        target = target / source.name if target.is_dir() else target
        if target.exists():
            raise UserError(f"{target} is there already", "it may hold changes of yours", "name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        log.say(f"wrote {target}; next: rlspeech {preset_stage(source)} --config {target}")
        return {"path": str(target), "stage": preset_stage(source)}

    perform(work, Shared(json_mode=json_mode, quiet=quiet, debug=debug))


@presets_app.command(epilog="Example: rlspeech presets keys rl && rlspeech presets keys prepare rl-asr")
def keys(
    stage: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help=f"One of {', '.join(SCHEMAS)}.", autocompletion=complete.stages),
    ],
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List everything that can be set in a command, with defaults and reasons; with --quiet the keys alone."""

    def work() -> dict[str, Any]:
        from rlspeech.schema import closest
        from rlspeech.schema import keys as keys_of

        name = " ".join(stage)
        if name not in SCHEMAS:
            near = closest(name, SCHEMAS) or "rl"
            raise UserError(
                f"no command {name!r} has settings", f"there are: {', '.join(SCHEMAS)}", f"rlspeech presets keys {near}"
            )
        found = list(keys_of(load(SCHEMAS[name])))
        log.table(
            f"rlspeech {name} --set KEY=VALUE",
            ["key", "type", "default", "what it is"],
            [[k.name, f"{k.type} {k.bounds}".strip(), _default(log.plain(k.default)), k.help] for k in found],
        )
        _names_alone([k.name for k in found], quiet and not json_mode)
        told = [{"key": k.name, "type": k.type, "range": k.bounds, "default": k.default, "help": k.help} for k in found]
        return {"stage": name, "keys": told}

    perform(work, Shared(json_mode=json_mode, quiet=quiet, debug=debug))


def _default(value: Any) -> str:
    """As it would be written behind the ``=``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
