"""The commands that train, measure and use models: ``pretrain rl reward eval report enhance transcribe speak``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer

from rlspeech.cli import common
from rlspeech.cli.common import LAYERS, STAGE, call, command, stage
from rlspeech.types import UserError

app = Typer()

Texts = list[str] | None
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


@command(
    app,
    "rlspeech rl --algo grpo --task flowse --model runs/base --reward estoi=1 --reward pesq_wb=0.5 "
    "--guard speaker_similarity=0.02 --out runs/rl",
    *STAGE,
)
def rl(
    algo: Annotated[str | None, _choice("algo", "ALGO")] = None,
    task: Task = None,
    model: str | None = None,
    data: str | None = None,
    valid: str | None = None,
    rewards: Annotated[Texts, _metric("--reward", "NAME=WEIGHT")] = None,
    guards: Annotated[Texts, _metric("--guard", "NAME[=MAX_DROP]")] = None,
    steps: int | None = None,
    group: int | None = None,
    prompts_per_step: int | None = None,
    lr: float | None = None,
    offload: Annotated[str | None, _choice("offload")] = None,
    max_minutes: float | None = None,
    probe: Annotated[
        bool, Option("--probe", help="Do not train; measure which exploration gives the gradient a direction.")
    ] = False,
    **shared: Any,
) -> None:
    """Train a model on rewards. Without options: GRPO on the embedded enhancer and corpus."""
    stage("config:RL", "stages.probe:run" if probe else "stages.rl:run", locals(), without=["probe"])


@command(app, "rlspeech reward enhanced/ --target clean/ --reward dnsmos --reward pesq --reward estoi", *STAGE)
def reward(
    paths: Annotated[
        list[str],
        Argument(
            metavar="PATH", help="Folder, audio files or manifest; for asr_* JSONL with texts; - for paths on stdin."
        ),
    ],
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


@command(
    app,
    "rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base",
    *STAGE,
    name="eval",
)
def evaluate(
    task: Task = None,
    data: str | None = None,
    models: Annotated[Texts, Option("--model", metavar="NAME=PATH")] = None,
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
    stage("config:Evaluate", "stages.evaluate:run", options)


def _models(given: list[str]) -> dict[str, str]:
    """Models by name, of ``NAME=PATH``; a bare path is named by its last part."""
    models: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name, text
        if not name or not path or name in models:
            why = f"duplicate name {name}" if name in models else "a name or a path is missing"
            raise UserError(f"cannot use --model {text}", why, "--model base=runs/base --model rl=runs/rl")
        models[name] = path
    return models


@command(app, "rlspeech report runs/rl && rlspeech report first=runs/rl second=runs/rl-2 --out compare.html")
def report(
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN", help="Folders of rl, eval, reward or pretrain, or NAME=PATH; the first is the baseline."
        ),
    ],
    out: Annotated[
        str | None,
        Option(
            metavar="FILE", help="Page (default: report.html in the folder of one run, compare.html here for several)."
        ),
    ] = None,
    players: Annotated[int | None, Option(help="Show audio players for this many clips.")] = None,
    **shared: Any,
) -> None:
    """Rewrite the HTML report of a run, or write one page that compares several runs.

    A comparison shows settings, curves, paired differences and the same clips side by side.
    """
    call("stages.report:run", shared, runs, out=out, players=players)


@command(app, "rlspeech enhance noisy.wav more/ --model runs/rl --out enhanced", *STAGE)
def enhance(
    inputs: Annotated[
        list[str], Argument(metavar="PATH", help="Audio files, videos, folders or manifests; - for paths on stdin.")
    ],
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


@command(
    app,
    "rlspeech transcribe talk.wav && rlspeech transcribe talks/ --model runs/rl --out texts.jsonl",
    *LAYERS,
    "seed",
    "device",
)
def transcribe(
    inputs: Annotated[
        list[str], Argument(metavar="PATH", help="Audio files, folders or manifests; - for paths on stdin.")
    ],
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


@command(
    app,
    'rlspeech speak "some words" --out words.wav && rlspeech speak lines.txt --prompt voice.wav',
    *LAYERS,
    "seed",
    "device",
)
def speak(
    inputs: Annotated[
        list[str], Argument(metavar="TEXT", help="Texts; .txt files (a line a text); manifests; - for lines on stdin.")
    ],
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
