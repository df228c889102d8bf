"""The commands that train, measure and use models, and those that look at files and at the installation; all but ``prepare``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from rlspeech import log
from rlspeech.cli import common
from rlspeech.cli.common import LAYERS, PARTS, STAGE, Group, Texts, call, command, load, stage
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

PLACED = (*LAYERS, "seed", "device")  # of commands whose --out has a meaning of its own
File = Annotated[str | None, Option(metavar="FILE")]
Name = Annotated[str | None, Option(metavar="NAME")]
Overwrite = Annotated[bool | None, Option("--overwrite")]


def _choice(key: str, metavar: str | None = None) -> Any:
    """An option whose values are those of a setting."""
    return Option(metavar=metavar, autocompletion=common.one_of(key))


def _metric(flag: str, metavar: str = "NAME") -> Any:
    """An option that names rewards or metrics."""
    return Option(flag, metavar=metavar, autocompletion=common.offer_rewards)


Task = Annotated[str | None, _choice("task", "TASK")]
Preset = Annotated[str, Argument(help="Name of a preset.", autocompletion=common.offer_presets)]
Place = Annotated[str | None, Argument(metavar="OUT", help="File or folder to write; an existing one is refused.")]
Out = Annotated[str | None, Option(metavar="OUT", help="OUT as an option.")]


@command(app, "rlspeech pretrain --preset flowse-tiny --data data/mix/mix.json --out runs/base", *STAGE)
def pretrain(
    task: Task = None,
    data: str | None = None,
    valid: str | None = None,
    init: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    max_minutes: float | None = None,
    **shared: Any,
) -> None:
    """Train a model with supervision; an interrupted run continues where it stopped."""
    stage("config:Pretrain", "stages.pretrain:run", locals())


@command(app, "rlspeech sample --task tts --model runs/tts --data train.jsonl --draws 8 --out samples", *STAGE)
def sample(
    task: Task = None,
    model: str | None = None,
    data: str | None = None,
    draws: int | None = None,
    limit: int | None = None,
    **shared: Any,
) -> None:
    """Store outputs of each prompt, to be scored and learnt from with rl --algo dpo; goes on where it stopped."""
    stage("stages.sample:SampleSet", "stages.sample:run", locals())


@command(app, "rlspeech rl --algo grpo --task flowse --model runs/base --reward estoi=1 --out runs/rl", *STAGE)
def rl(
    algo: Annotated[str | None, _choice("algo", "ALGO")] = None,
    task: Task = None,
    model: str | None = None,
    data: str | None = None,
    valid: str | None = None,
    samples: Annotated[str | None, Option(metavar="FOLDER")] = None,
    rewards: Annotated[Texts, _metric("--reward", "NAME=WEIGHT")] = None,
    guards: Annotated[Texts, _metric("--guard", "NAME[=MAX_DROP[:hold]]")] = None,
    steps: int | None = None,
    group: int | None = None,
    prompts_per_step: int | None = None,
    lr: float | None = None,
    offload: Annotated[str | None, _choice("offload")] = None,
    max_minutes: float | None = None,
    probe: Annotated[bool, Option("--probe", help="Measure which exploration gives a gradient; no training.")] = False,
    **shared: Any,
) -> None:
    """Train a model on rewards. Without options: GRPO on the embedded enhancer and corpus."""
    stage("config:RL", "stages.probe:run" if probe else "stages.rl:run", locals(), without=["probe"])


@command(app, "rlspeech reward enhanced/ --target clean/ --reward dnsmos --reward pesq --reward estoi", *STAGE, *PARTS)
def reward(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Folder, audio, manifest or texts, .tar; - for stdin.")],
    rewards: Annotated[Texts, _metric("--reward")] = None,
    target: Annotated[str | None, Option(metavar="FOLDER")] = None,
    text: File = None,
    hypotheses: File = None,
    system: str | None = None,
    recogniser: str | None = None,
    llm: Annotated[str | None, Option(metavar="MODEL|URL")] = None,
    llm_model: Name = None,
    sentiment: Annotated[str | None, Option(metavar="MODEL")] = None,
    prompt: File = None,
    workers: int | None = None,
    **shared: Any,
) -> None:
    """Score audio files or transcripts: one row a file, and means with 95 % intervals."""
    options = locals()

    def found() -> str | list[str]:
        return paths[0] if len(paths) == 1 and paths != ["-"] else common.listed(paths)

    stage("config:ScoreFolder", "stages.reward:run", options, without=["paths"], path=found)


@command(app, "rlspeech serve --reward dnsmos --reward estoi --port 8000", *LAYERS, "device", "workers")
def serve(
    rewards: Annotated[Texts, _metric("--reward")] = None, host: Name = None, port: int | None = None, **shared: Any
) -> None:
    """Serve rewards over HTTP to trainers elsewhere, and to --reward http://HOST:PORT#NAME."""
    stage("stages.serve:Serve", "stages.serve:run", locals())


@command(app, "rlspeech eval --model base=runs/base --model rl=runs/rl --baseline base", *STAGE, *PARTS, name="eval")
def evaluate(
    task: Task = None,
    data: str | None = None,
    models: Annotated[Texts, Option("--model", metavar="NAME=PATH")] = None,
    systems: Annotated[Texts, Option("--system", metavar="NAME=PATH")] = None,
    baseline: Name = None,
    metrics: Annotated[Texts, _metric("--metric")] = None,
    normaliser: Name = None,
    recogniser: str | None = None,
    by: Annotated[str | None, Option(metavar="COLUMN")] = None,
    best_of: int | None = None,
    judge: Name = None,
    nfe: int | None = None,
    video: Annotated[str | None, _choice("video")] = None,
    shuffled: Annotated[Texts, Option(metavar="NAME")] = None,
    limit: int | None = None,
    workers: int | None = None,
    **shared: Any,
) -> None:
    """Compare systems on held-out data: paired differences with intervals, and an HTML report.

    Enhancers are also compared with the unprocessed input.
    """
    options = {**locals(), "models": (lambda: _models(models)) if models else None}
    options["systems"] = (lambda: _models(systems, "--system")) if systems else None
    stage("config:Evaluate", "stages.evaluate:run", options)


def _models(given: list[str], option: str = "--model") -> dict[str, str]:
    """Models or folders by name, of ``NAME=PATH``; a bare path is named by its last part."""
    models: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name, text
        if not name or not path or name in models:
            why = f"duplicate name {name}" if name in models else "a name or a path is missing"
            raise UserError(f"cannot use {option} {text}", why, f"{option} base=runs/base {option} rl=runs/rl")
        models[name] = path
    return models


@command(app, "rlspeech report runs/rl && rlspeech report first=runs/rl second=runs/rl-2 --out compare.html")
def report(
    runs: Annotated[list[str], Argument(metavar="RUN", help="Run folder, or NAME=PATH; the first is the baseline.")],
    out: Annotated[
        str | None, Option(metavar="FILE", help="Page (default: report.html in one run's folder, compare.html here).")
    ] = None,
    players: Annotated[int | None, Option(help="Show audio players for this many clips.")] = None,
    **shared: Any,
) -> None:
    """Rewrite the HTML report of a run, or write one page that compares several runs.

    A comparison shows settings, curves, paired differences and the same clips side by side.
    """
    call("stages.report:run", shared, runs, out=out, players=players)


@command(app, "rlspeech enhance noisy.wav more/ --model runs/rl --out enhanced", *STAGE, *PARTS)
def enhance(
    inputs: Annotated[list[str], Argument(metavar="PATH", help="Audio, video, folder, manifest, .tar; - for stdin.")],
    task: Task = None,
    video: Annotated[str | None, Option(metavar="PATH")] = None,
    model: str | None = None,
    nfe: int | None = None,
    guidance: float | None = None,
    overwrite: Overwrite = None,
    **shared: Any,
) -> None:
    """Enhance recordings of any length; inputs are never overwritten."""
    options = {**locals(), "inputs": lambda: common.listed(inputs)}
    stage("stages.enhance:Enhance", "stages.enhance:run", options)


@command(app, "rlspeech transcribe talk.wav && rlspeech transcribe talks/ --out texts.jsonl", *PLACED, *PARTS)
def transcribe(
    inputs: Annotated[list[str], Argument(metavar="PATH", help="Audio, folder, manifest, .tar; - for stdin.")],
    model: str | None = None,
    out: Annotated[str | None, Option(metavar="PATH")] = None,
    sampling__language: Annotated[str | None, Option("--language")] = None,
    sampling__prompt: Annotated[str | None, Option("--prompt")] = None,
    beams: int | None = None,
    batch: int | None = None,
    overwrite: Overwrite = None,
    **shared: Any,
) -> None:
    """Transcribe recordings of any length."""
    options = {**locals(), "inputs": lambda: common.listed(inputs)}
    stage("stages.transcribe:Transcribe", "stages.transcribe:run", options)


@command(app, 'rlspeech speak "some words" --out words.wav && rlspeech speak lines.txt --prompt voice.wav', *PLACED)
def speak(
    inputs: Annotated[list[str], Argument(metavar="TEXT", help="Texts; .txt files; manifests; - for lines on stdin.")],
    model: str | None = None,
    prompt: File = None,
    prompt_text: Annotated[str | None, Option(metavar="TEXT")] = None,
    out: Annotated[str | None, Option(metavar="PATH")] = None,
    sampling__temperature: Annotated[float | None, Option("--temperature")] = None,
    best_of: int | None = None,
    judge: Name = None,
    batch: int | None = None,
    overwrite: Overwrite = None,
    **shared: Any,
) -> None:
    """Synthesise texts of any length, in the voice of a recording."""
    stage("stages.speak:Speak", "stages.speak:run", locals())


@command(app, "rlspeech merge scores/ && rlspeech merge texts.jsonl")
def merge(out: Annotated[str, Argument(metavar="OUT", help="The --out of the shards.")], **shared: Any) -> None:
    """Join what the shards of a command wrote (--shard I/N); it may be done at any time, and once more.

    Exits with code 2 where shards are missing or not finished: the others are joined then.
    """
    if call("stages.shards:merge", shared, out)["missing"]:
        raise Exit(2)


@command(app, "rlspeech check data/mix/mix.json && rlspeech check runs/rl")
def check(
    path: Annotated[str, Argument(help="Manifest, mix.json, config file or run folder.")],
    stage: Annotated[str | None, Option(help="Stage of a config file without a stage line: rl, eval, ...")] = None,
    **shared: Any,
) -> None:
    """Find mistakes in a manifest, config file or run folder.

    Prints line numbers and exits with code 2 where there are mistakes.
    """
    if call("stages.check:run", shared, Path(path), stage=stage)["problems"]:
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
) -> dict[str, Any]:
    """List the packaged presets; with --quiet only their names."""
    from rlspeech.settings import preset_about, preset_names, preset_path, preset_stage

    names = [name for name in preset_names() if part in name]
    if not names:
        raise UserError(f"no preset has {part!r} in its name", "", "rlspeech presets ls")
    rows = [[name, preset_stage(preset_path(name)), preset_about(preset_path(name))] for name in names]
    log.table("Presets", ["name", "stage", "what it is"], rows)
    log.say("next: rlspeech presets show NAME, or rlspeech STAGE --preset NAME")
    _names_alone(names, shared)
    return {"presets": [{"name": n, "stage": s, "about": a} for n, s, a in rows]}


def _names_alone(names: list[str], shared: dict[str, Any]) -> None:
    if shared["quiet"] and not shared["json_mode"]:
        print(*names, sep="\n")


@command(presets, "rlspeech presets show flowse-grpo")
def show(name: Preset, **shared: Any) -> dict[str, Any]:
    """Print the file of a preset."""
    from rlspeech.settings import preset_about, preset_path, read_config

    path = preset_path(name)
    values, _ = read_config(path)
    text = path.read_text(encoding="utf-8")
    if not shared["json_mode"]:
        print(text, end="")
    stage = values.pop("stage", None)
    return {"name": name, "stage": stage, "about": preset_about(path), "settings": values, "text": text}


@command(presets, "rlspeech presets copy flowse-grpo mine.yaml && rlspeech rl --config mine.yaml")
def copy(
    name: Preset,
    to: Annotated[str | None, Argument(help="File or folder to write (default: NAME.yaml here).")] = None,
    **shared: Any,
) -> dict[str, Any]:
    """Copy a preset to a file that you can edit and give to --config."""
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


@command(presets, "rlspeech presets keys rl && rlspeech presets keys prepare rl-asr")
def keys(
    stage: Annotated[
        list[str], Argument(metavar="COMMAND", help=f"One of {', '.join(SCHEMAS)}.", autocompletion=common.offer_stages)
    ],
    **shared: Any,
) -> dict[str, Any]:
    """List every setting of a command with its default and what it does; with --quiet only the keys."""
    from rlspeech.schema import closest
    from rlspeech.schema import keys as keys_of

    name = " ".join(stage)
    if name not in SCHEMAS:
        near = f"rlspeech presets keys {closest(name, SCHEMAS) or 'rl'}"
        raise UserError(f"no command {name!r} has settings", f"commands with settings: {', '.join(SCHEMAS)}", near)
    facts, rows = [], []
    for key, kind, default, about, bounds in keys_of(load(SCHEMAS[name])):
        facts.append({"key": key, "type": kind, "range": bounds, "default": default, "help": about})
        value = log.plain(default)  # as it would be written behind the =
        value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append([key, f"{kind} {bounds}".strip(), value, about])
    log.table(f"rlspeech {name} --set KEY=VALUE", ["key", "type", "default", "what it is"], rows)
    _names_alone([row[0] for row in rows], shared)
    return {"stage": name, "keys": facts}


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
    call("stages.convert:avse4", shared, source, out or place)


@command(convert, "rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi")
def manifest(
    source: Annotated[str, Argument(metavar="MANIFEST", help="Manifest, or a folder that holds one.")],
    to: Annotated[str, Option(help="nemo or lhotse (a file); kaldi, webdataset or shar (a folder).")],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert a manifest for NeMo, Kaldi or lhotse, or pack it with its audio into tars: WebDataset's or lhotse's shar.

    rlspeech prepare nemo, kaldi, lhotse (also shar) and folder (also tars) read these formats.
    """
    call("stages.convert:manifest", shared, source, to, out or place)


@command(convert, "rlspeech convert scores scores/scores.jsonl --to versa scores.versa.jsonl")
def scores(
    source: Annotated[str, Argument(metavar="FILE", help="scores.jsonl, or the output of VERSA's scorer.")],
    to: Annotated[str, Option(help="Format: versa or rlspeech.")],
    place: Place = None,
    system: Annotated[str | None, Option(help="System to take of several; of VERSA's rows the label.")] = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert score rows to or from VERSA's names; unknown names are kept."""
    call("stages.convert:scores", shared, source, to, out or place, system=system)


@command(convert, "rlspeech convert hub runs/asr --push user/name")
def hub(
    source: Annotated[str, Argument(metavar="RUN", help="Run folder, checkpoint, or output of convert lora.")],
    push: Annotated[str, Option(metavar="USER/NAME", help="Repository of the Hub, made where there is none.")],
    public: Annotated[bool, Option("--public", help="Make a new repository public, not private.")] = False,
    **shared: Any,
) -> None:
    """Upload weights and model card to the Hugging Face Hub, with the token in HF_TOKEN or of `hf auth login`."""
    call("stages.convert:push", shared, source, push, public=public)


@command(convert, "rlspeech convert lora runs/asr --to adapter runs/asr-adapter", "device")
def lora(
    source: Annotated[str, Argument(metavar="RUN", help="Run folder of rlspeech rl, or one of its checkpoints.")],
    to: Annotated[str, Option(help="Format: adapter (a peft folder for its base) or merged (a plain checkpoint).")],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert the LoRA of a run to a peft adapter, or fold it into the weights."""
    call("stages.convert:merge_lora", shared, source, to, out or place, device=shared["device"] or "cpu")


@command(convert, "rlspeech convert ct2 faster-whisper-tiny.en whisper-tiny.en")
def ct2(
    source: Annotated[str, Argument(metavar="FOLDER", help="model.bin, config.json and tokenizer.json of a Whisper.")],
    place: Place = None,
    out: Out = None,
    **shared: Any,
) -> None:
    """Convert a Whisper of faster-whisper (CTranslate2; fp32, fp16, bf16, int8) for transformers."""
    call("stages.convert:ct2", shared, source, out or place)


@command(convert, "rlspeech convert average runs/seed0 runs/seed1 runs/seed2 --step 1.5 --out runs/mean")
def average(
    sources: Annotated[list[str], Argument(metavar="RUN", help="Runs or checkpoints that started from one model.")],
    out: Annotated[str, Option(metavar="OUT", help="Folder to write; an existing one is refused.")],
    step: Annotated[float, Option(help="How far to go from the base: 1 is the mean, 1.5 half as far beyond it.")] = 1.0,
    base: Annotated[str | None, Option(metavar="NAME", help="What they started from (default: as they say).")] = None,
    **shared: Any,
) -> None:
    """Average the weights of several runs into one checkpoint."""
    call("stages.convert:average", shared, sources, out, step=step, base=base)
