"""``rlspeech doctor``, ``check`` and ``presets``: looking at an installation and at files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from rlspeech.cli.common import Debug, Json, Quiet, Shared, load, perform
from rlspeech.types import UserError

__all__ = ["add_to", "check", "doctor", "presets_app"]

presets_app = typer.Typer(no_args_is_help=True)
SCHEMAS = {
    "prepare": "stages.prepare:Prepare",
    "pretrain": "config:Pretrain",
    "reward": "config:ScoreFolder",
    "rl": "config:RL",
    "eval": "config:Evaluate",
    "enhance": "stages.infer:Enhance",
    "transcribe": "stages.transcribe:Transcribe",
}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: rlspeech doctor --json")(doctor)
    app.command(epilog="Example: rlspeech check data/mix/mix.json && rlspeech check runs/rl")(check)


def doctor(json_mode: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """What is installed, which devices and rewards are usable here, and why not."""
    perform(lambda: load("stages.doctor:run")(json_mode=json_mode), Shared(json_mode=json_mode, quiet=quiet, debug=debug))


def check(
    path: Annotated[str, typer.Argument(help="Manifest, mix.json, config file or run folder.")],
    stage: Annotated[str | None, typer.Option(help="Stage of a config file without a stage line: pretrain, rl, eval, ...")] = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look for mistakes in a file or run folder; exit code 2 and line numbers where there are some."""
    shared = Shared(json_mode=json_mode, quiet=quiet, debug=debug)
    result = perform(lambda: load("stages.check:run")(Path(path), SCHEMAS, stage=stage, json_mode=json_mode), shared)
    if result["problems"]:
        raise typer.Exit(2)


@presets_app.command("ls")
def ls(json_mode: Json = False, debug: Debug = False) -> None:
    """List the packaged presets."""

    def work() -> dict[str, Any]:
        from rlspeech import log
        from rlspeech.settings import preset_names, preset_path, preset_stage

        rows = [[name, preset_stage(preset_path(name)), _first_comment(preset_path(name))] for name in preset_names()]
        log.table("Presets", ["name", "stage", "what it is"], rows)
        return {"presets": [{"name": n, "stage": s, "about": a} for n, s, a in rows]}

    perform(work, Shared(json_mode=json_mode, debug=debug))


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


@presets_app.command(epilog="Example: rlspeech presets show flowse-grpo")
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")], debug: Debug = False) -> None:
    """Print a preset's file."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_path

        print(preset_path(name).read_text(encoding="utf-8"), end="")
        return {}

    perform(work, Shared(debug=debug))


@presets_app.command(epilog="Example: rlspeech presets copy flowse-grpo mine.yaml && rlspeech rl --config mine.yaml")
def copy(
    name: Annotated[str, typer.Argument(help="Name of a preset.")],
    to: Annotated[str | None, typer.Argument(help="File to write; none: NAME.yaml here.")] = None,
    debug: Debug = False,
) -> None:
    """Copy a preset to a file of your own, to be changed and given to --config."""

    def work() -> dict[str, Any]:
        from rlspeech import log
        from rlspeech.settings import preset_path, preset_stage

        target = Path(to or f"{name}.yaml")
        if target.exists():
            raise UserError(f"{target} is there already", "", "name another file")
        source = preset_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        log.say(f"wrote {target}; next: rlspeech {preset_stage(source)} --config {target}")
        return {"path": str(target)}

    perform(work, Shared(debug=debug))


@presets_app.command(epilog="Example: rlspeech presets keys rl")
def keys(
    stage: Annotated[str, typer.Argument(help="prepare, pretrain, reward, rl, eval, enhance or transcribe.")],
    json_mode: Json = False,
    debug: Debug = False,
) -> None:
    """List everything that can be set in a stage, with defaults and reasons."""

    def work() -> dict[str, Any]:
        from rlspeech import log
        from rlspeech.schema import keys as keys_of

        if stage not in SCHEMAS:
            raise UserError(f"no stage is called {stage!r}", f"there are: {', '.join(SCHEMAS)}", "rlspeech presets keys rl")
        found = list(keys_of(load(SCHEMAS[stage])))
        log.table(
            f"rlspeech {stage} --set KEY=VALUE",
            ["key", "type", "default", "what it is"],
            [[k.name, k.type, str(log.plain(k.default)), k.help] for k in found],
        )
        return {"stage": stage, "keys": [{"key": k.name, "type": k.type, "default": k.default, "help": k.help} for k in found]}

    perform(work, Shared(json_mode=json_mode, debug=debug))
