"""``rlspeech reward``, ``eval``, ``enhance`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlspeech.cli.common import ConfigFiles, Debug, Device, Json, Out, Preset, Quiet, Seed, Sets, Shared, load, perform, run_stage
from rlspeech.types import UserError

__all__ = ["add_to", "enhance", "evaluate", "report", "reward"]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: rlspeech reward enhanced/ --target clean/ --reward dnsmos --reward pesq --reward estoi")(reward)
    app.command("eval", epilog="Example: rlspeech eval --data test.jsonl --model base=runs/base --model rl=runs/rl --baseline base")(
        evaluate
    )
    app.command(epilog="Example: rlspeech enhance noisy.wav more/ --model runs/rl --out enhanced")(enhance)
    app.command(epilog="Example: rlspeech report runs/eval")(report)


def reward(
    path: Annotated[str, typer.Argument(metavar="WAVS", help="Folder of audio files, or a manifest; JSONL with texts for asr_*.")],
    rewards: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME", help="dnsmos, pesq, asr_wer, ..., or package.module:function; may be repeated."),
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="FOLDER", help="References with the same names.")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="Transcripts: JSONL with id and text, Kaldi text, or a folder of .txt.")
    ] = None,
    hypotheses: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For asr_*: a recogniser's texts, as --text; none: the manifest's hypothesis or pred_text."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="Label written into every row.")] = None,
    recogniser: Annotated[str | None, typer.Option(help="For wer: Hub id, folder, or pocketsphinx.")] = None,
    llm: Annotated[
        str | None,
        typer.Option(metavar="MODEL|URL", help="For llm: Hub id or folder of an audio language model, or http://host/v1; none: embedded."),
    ] = None,
    llm_model: Annotated[str | None, typer.Option(metavar="NAME", help="For llm at an address: the model's name there.")] = None,
    sentiment: Annotated[
        str | None, typer.Option(metavar="MODEL", help="For llm: classifier with ordered labels, Hub id or folder; none: embedded.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="FILE", help="For llm: prompts, one a line; the first is asked.")] = None,
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
        path=path,
    )


def evaluate(
    task: Annotated[str | None, typer.Option(help="flowse, avse, asr, tts")] = None,
    data: Annotated[str | None, typer.Option(help="Paired manifest; none: the embedded test set.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="System to score, e.g. rl=runs/rl or base=embedded; may be repeated.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="System that the others are paired against; none: the first.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Metric; none: the task's own list. May be repeated.")] = None,
    normaliser: Annotated[
        str | None, typer.Option(metavar="NAME", help="asr: how texts are made comparable, e.g. basic-2 or english-1.")
    ] = None,
    recogniser: Annotated[
        str | None, typer.Option(help="tts: who listens, best not the one of the reward: embedded, Hub id, folder, pocketsphinx.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="asr, tts: a table for each value of this manifest column.")] = None,
    nfe: Annotated[int | None, typer.Option(help="Euler steps; none: the model's own.")] = None,
    video: Annotated[str | None, typer.Option(help="avse: right, shuffled or none, for all models.")] = None,
    shuffled: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="avse: score this model again on other videos, as NAME-shuffled. May be repeated."),
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
    inputs: Annotated[list[str], typer.Argument(help="Audio files, videos, folders or manifests.")],
    task: Annotated[str | None, typer.Option(help="flowse, avse")] = None,
    video: Annotated[
        str | None, typer.Option(metavar="PATH", help="avse: the input's video or mouth crops, or a folder of them; none: those beside it.")
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
        "stages.infer:Enhance",
        "stages.infer:run",
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
    )


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder that rlspeech eval has written.")],
    players: Annotated[int | None, typer.Option(help="Clips with players.")] = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write an evaluation's report again; what was scored is not scored again."""

    def work() -> dict[str, Any]:
        from rlspeech.settings import read_config, resolve

        path = Path(run) / "config.resolved.json"
        if not path.is_file():
            raise UserError(f"{run} is not a run folder", "it has no config.resolved.json", "rlspeech eval --out FOLDER writes one")
        asked, _ = read_config(path)
        if "metrics" not in asked:
            raise UserError(f"{run} is not an evaluation", "it holds a training run", f"rlspeech eval --model trained={run}")
        config, _ = resolve(load("config:Evaluate"), None, path, {"out": run, "players": players})
        return load("stages.evaluate:run")(config, json_mode=json_mode)  # type: ignore[no-any-return]

    perform(work, Shared(json_mode=json_mode, quiet=quiet, debug=debug))
