"""The commands that look at an installation and at files: ``check doctor presets convert``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from rlspeech import log
from rlspeech.cli.common import Group, call, command, load, offer_presets, offer_stages, perform
from rlspeech.plugins import SCHEMAS
from rlspeech.types import UserError

app = Typer()
presets = Typer(
    cls=Group,
    no_args_is_help=True,
    epilog="Example: rlspeech presets ls && rlspeech presets show flowse-grpo",
    help="List, show and copy packaged settings, and list every key that can be set.",
)
convert = Typer(
    cls=Group,
    no_args_is_help=True,
    epilog="Example: rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi",
    help="Convert weights, manifests, scores and adapters from and to the formats of other tools.",
)
app.add_typer(presets, name="presets")
app.add_typer(convert, name="convert")

Preset = Annotated[str, Argument(help="Name of a preset.", autocompletion=offer_presets)]
Place = Annotated[str | None, Argument(metavar="OUT", help="File or folder to write; an existing one is refused.")]
Out = Annotated[str | None, Option(metavar="OUT", help="OUT as an option.")]


@command(app, "rlspeech check data/mix/mix.json && rlspeech check runs/rl")
def check(
    path: Annotated[str, Argument(help="Manifest, mix.json, config file or run folder.")],
    stage: Annotated[
        str | None, Option(help="Stage of a config file that has no stage line: pretrain, rl, eval, ...")
    ] = None,
    **shared: Any,
) -> None:
    """Find mistakes in a manifest, config file or run folder.

    Prints line numbers and exits with code 2 where there are mistakes.
    """
    if call("stages.check:run", shared, Path(path), SCHEMAS, stage=stage)["problems"]:
        raise Exit(2)


@command(app, "rlspeech doctor --json")
def doctor(**shared: Any) -> None:
    """Show what is installed, what works here, and what is missing.

    Exits with code 2 where the main job cannot run.
    """
    if call("stages.doctor:run", shared)["problems"]:
        raise Exit(2)


@command(presets, "rlspeech presets ls && rlspeech presets ls avse --quiet")
def ls(
    part: Annotated[str, Argument(metavar="[PART]", help="List only presets whose name contains this.")] = "",
    **shared: Any,
) -> None:
    """List the packaged presets; with --quiet only their names."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

        names = [name for name in preset_names() if part in name]
        if not names:
            raise UserError(f"no preset has {part!r} in its name", "", "rlspeech presets ls")
        rows = [[name, preset_stage(preset_path(name)), preset_about(preset_path(name))] for name in names]
        log.table("Presets", ["name", "stage", "what it is"], rows)
        log.say("next: rlspeech presets show NAME, or rlspeech STAGE --preset NAME")
        _names_alone(names, shared)
        return {"presets": [{"name": n, "stage": s, "about": a} for n, s, a in rows]}

    perform(work, shared)


def _names_alone(names: list[str], shared: dict[str, Any]) -> None:
    if shared["quiet"] and not shared["json_mode"]:
        print(*names, sep="\n")


@command(presets, "rlspeech presets show flowse-grpo")
def show(name: Preset, **shared: Any) -> None:
    """Print the file of a preset."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_about, preset_path, read_config

        path = preset_path(name)
        values, _ = read_config(path)
        text = path.read_text(encoding="utf-8")
        if not shared["json_mode"]:
            print(text, end="")
        stage = values.pop("stage", None)
        return {"name": name, "stage": stage, "about": preset_about(path), "settings": values, "text": text}

    perform(work, shared)


@command(presets, "rlspeech presets copy flowse-grpo mine.yaml && rlspeech rl --config mine.yaml")
def copy(
    name: Preset,
    to: Annotated[str | None, Argument(help="File or folder to write (default: NAME.yaml here).")] = None,
    **shared: Any,
) -> None:
    """Copy a preset to a file that you can edit and give to --config."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import preset_path, preset_stage

        source = preset_path(name)
        target = Path(to or source.name)
        target = target / source.name if target.is_dir() else target
        if target.exists():
            raise UserError(f"{target} already exists", "it may have been edited", "name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        log.say(f"wrote {target}; next: rlspeech {preset_stage(source)} --config {target}")
        return {"path": str(target), "stage": preset_stage(source)}

    perform(work, shared)


@command(presets, "rlspeech presets keys rl && rlspeech presets keys prepare rl-asr")
def keys(
    stage: Annotated[
        list[str], Argument(metavar="COMMAND", help=f"One of {', '.join(SCHEMAS)}.", autocompletion=offer_stages)
    ],
    **shared: Any,
) -> None:
    """List every setting of a command with its default and what it does; with --quiet only the keys."""

    def work() -> dict[str, Any]:
        from rlspeech.schema import closest
        from rlspeech.schema import keys as keys_of

        name = " ".join(stage)
        if name not in SCHEMAS:
            near = f"rlspeech presets keys {closest(name, SCHEMAS) or 'rl'}"
            raise UserError(f"no command {name!r} has settings", f"commands with settings: {', '.join(SCHEMAS)}", near)
        found = list(keys_of(load(SCHEMAS[name])))
        rows = [[k.name, f"{k.type} {k.bounds}".strip(), _default(log.plain(k.default)), k.help] for k in found]
        log.table(f"rlspeech {name} --set KEY=VALUE", ["key", "type", "default", "what it is"], rows)
        _names_alone([k.name for k in found], shared)
        facts = [
            {"key": k.name, "type": k.type, "range": k.bounds, "default": k.default, "help": k.help} for k in found
        ]
        return {"stage": name, "keys": facts}

    perform(work, shared)


def _default(value: Any) -> str:
    """A default as it would be written behind the ``=``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@command(convert, "rlspeech convert avse4 pretrained.ckpt --out runs/avse4-baseline")
def avse4(
    source: Annotated[str, Argument(metavar="FILE", help="Published .ckpt file, or a .safetensors with its names.")],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert the baseline of the fourth AVSE challenge to a checkpoint.

    Every tensor is accounted for, and no code of the file is run.
    """
    call("stages.convert:run", shared, "avse4", source, out or place)


@command(convert, "rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi")
def manifest(
    source: Annotated[str, Argument(metavar="MANIFEST", help="Manifest, or a folder that holds one.")],
    to: Annotated[str, Option(help="Format: nemo (a file), kaldi (a data folder) or lhotse (cuts.jsonl.gz).")],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert a manifest for NeMo, Kaldi or lhotse.

    rlspeech prepare nemo, kaldi and lhotse read these formats.
    """
    call("stages.convert:manifest", shared, source, to, out or place)


@command(convert, "rlspeech convert scores scores/scores.jsonl --to versa scores.versa.jsonl")
def scores(
    source: Annotated[str, Argument(metavar="FILE", help="scores.jsonl, or the output of VERSA's scorer.")],
    to: Annotated[str, Option(help="Format: versa or rlspeech.")],
    place: Place = None,
    system: Annotated[
        str | None, Option(help="System to take of several; for rows from VERSA the label that they get.")
    ] = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert score rows to or from VERSA's names; unknown names are kept."""
    call("stages.convert:scores", shared, source, to, out or place, system=system)


@command(convert, "rlspeech convert lora runs/asr --to adapter runs/asr-adapter", "device")
def lora(
    source: Annotated[str, Argument(metavar="RUN", help="Run folder of rlspeech rl, or one of its checkpoints.")],
    to: Annotated[
        str, Option(help="adapter (a peft folder for the model it was trained on) or merged (a plain checkpoint).")
    ],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert the LoRA of a run to a peft adapter, or fold it into the weights."""
    call("stages.convert:merge_lora", shared, source, to, out or place, device=shared["device"] or "cpu")
