"""``rlspeech reward``, ``eval``, ``enhance`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlspeech.cli import complete
from rlspeech.cli.common import (
    ConfigFiles,
    Debug,
    Device,
    Json,
    Out,
    Preset,
    Quiet,
    Seed,
    Sets,
    Shared,
    listed,
    load,
    perform,
    present,
    run_stage,
    task_option,
)
from rlspeech.types import UserError

__all__ = ["add_to", "enhance", "evaluate", "report", "reward"]

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Metric; none: the task's own list. May be repeated.", autocompletion=complete.rewards
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        epilog="Example: rlspeech reward enhanced/ --target clean/ --reward dnsmos --reward pesq --reward estoi"
    )(reward)
    app.command(
        "eval",
        epilog="Example: rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base",
    )(evaluate)
    app.command(epilog="Example: rlspeech enhance noisy.wav more/ --model runs/rl --out enhanced")(enhance)
    app.command(
        epilog="Example: rlspeech report runs/rl && rlspeech report first=runs/rl second=runs/rl-2 --out compare.html"
    )(report)


def reward(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH", help="Folder, audio files, or a manifest; JSONL with texts for asr_*; - for paths on stdin."
        ),
    ],
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="NAME",
            help="dnsmos, pesq, asr_wer, ..., or package.module:function; may be repeated.",
            autocompletion=complete.rewards,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="References with the same names; a file for a single file.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Transcripts: JSONL with id and text, Kaldi text, or a folder of .txt."),
    ] = None,
    hypotheses: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For asr_*: a recogniser's texts, as --text; none: the manifest's hypothesis or pred_text.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="Label written into every row.")] = None,
    recogniser: Annotated[str | None, typer.Option(help="For wer: Hub id, folder, or pocketsphinx.")] = None,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL",
            help="For llm: Hub id or folder of an audio language model, or http://host/v1; none: embedded.",
        ),
    ] = None,
    llm_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For llm at an address: the model's name there.")
    ] = None,
    sentiment: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="For llm: classifier with ordered labels, Hub id or folder; none: embedded."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="FILE", help="For llm: prompts, one a line; the first is asked.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes for CPU metrics.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score audio files or transcripts: one row a file, means with 95 % intervals."""
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "config:ScoreFolder",
        "stages.reward:run",
        {
            "rewards": rewards,
            "target": target,
            "text": text,
            "hypotheses": hypotheses,
            "system": system,
            "recogniser": recogniser,
            "llm": llm,
            "llm_model": llm_model,
            "sentiment": sentiment,
            "prompt": prompt,
            "workers": workers,
            "out": out,
            "seed": seed,
            "device": device,
        },
        path=lambda: paths[0] if len(paths) == 1 and paths != ["-"] else listed(paths),
    )


def evaluate(
    task: Annotated[str | None, task_option("Evaluate")] = None,
    data: Annotated[str | None, typer.Option(help="Paired manifest; none: the embedded test set.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="System to score, e.g. rl=runs/rl or base=embedded; may be repeated."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="System that the others are paired against; none: the first.")
    ] = None,
    metric: Metrics = None,
    normaliser: Annotated[
        str | None, typer.Option(metavar="NAME", help="asr: how texts are made comparable, e.g. basic-2 or english-1.")
    ] = None,
    recogniser: Annotated[
        str | None,
        typer.Option(help="tts: who listens, best not the one of the reward: embedded, Hub id, folder, pocketsphinx."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="asr, tts: a table for each value of this manifest column.")
    ] = None,
    nfe: Annotated[int | None, typer.Option(help="Euler steps; none: the model's own.")] = None,
    video: Annotated[
        str | None,
        typer.Option(
            help="avse: right, shuffled or none, for all models.",
            autocompletion=complete.one_of("config:Evaluate", "video"),
        ),
    ] = None,
    shuffled: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="avse: score this model again on other videos, as NAME-shuffled. May be repeated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first utterances.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes for CPU metrics.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare systems on held-out data: paired differences with intervals, an HTML report; enhancers also with the unprocessed input."""
    shared = Shared(preset, config, sets, json_mode, quiet, debug)
    flags: dict[str, Any] = {
        "task": task,
        "data": data,
        "baseline": baseline,
        "metrics": metric,
        "normaliser": normaliser,
        "recogniser": recogniser,
        "by": by,
        "nfe": nfe,
        "video": video,
        "shuffled": shuffled,
        "limit": limit,
        "workers": workers,
        "out": out,
        "seed": seed,
        "device": device,
    }

    def work() -> dict[str, Any]:
        from rlspeech.settings import resolve

        flags["models"] = _models(model) if model else None
        resolved, _ = resolve(load("config:Evaluate"), preset, config, flags, sets or ())
        present(resolved)
        return load("stages.evaluate:run")(resolved, json_mode=json_mode)  # type: ignore[no-any-return]

    perform(work, shared)


def _models(given: list[str]) -> dict[str, str]:
    """``NAME=PATH``; a bare path is named by its last part."""
    models: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name, text
        if not name or not path or name in models:
            raise UserError(
                f"cannot use --model {text}",
                f"{name} is there twice" if name in models else "a name or a path is missing",
                "--model base=runs/base --model rl=runs/rl",
            )
        models[name] = path
    return models


def enhance(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Audio files, videos, folders or manifests; - for paths on stdin."),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="flowse or avse.", autocompletion=complete.one_of("stages.enhance:Enhance", "task")
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="avse: the input's video or mouth crops, or a folder of them; none: those beside it."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint or run folder; none: the embedded checkpoint.")] = None,
    nfe: Annotated[int | None, typer.Option(help="Euler steps; none: the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; none: the model's own.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Redo results that are there.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Clean recordings of any length with a model; inputs are never overwritten."""
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "stages.enhance:Enhance",
        "stages.enhance:run",
        {
            "inputs": inputs,
            "task": task,
            "video": video,
            "model": model,
            "nfe": nfe,
            "guidance": guidance,
            "overwrite": overwrite,
            "out": out,
            "seed": seed,
            "device": device,
        },
        paths="inputs",
    )


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Folders of rl, eval, reward or pretrain, PATH or NAME=PATH; the first is the baseline."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The page; none: report.html in one run's folder, compare.html here for several."
        ),
    ] = None,
    players: Annotated[int | None, typer.Option(help="Clips with players.")] = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run's report again, or one page that compares several: settings, curves, paired differences, the same clips side by side."""
    perform(
        lambda: load("stages.report:run")(runs, out=out, players=players, json_mode=json_mode),
        Shared(json_mode=json_mode, quiet=quiet, debug=debug),
    )
