"""``rlspeech pretrain`` and ``rlspeech rl``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rlspeech.cli import complete
from rlspeech.cli.common import LAYERS, command, stage, task_option

__all__ = ["app", "pretrain", "rl"]

app = typer.Typer()
STAGE = (*LAYERS, "out", "seed", "device")


@command(app, "rlspeech pretrain --preset flowse-tiny --data data/mix/mix.json --out runs/base", *STAGE)
def pretrain(
    task: Annotated[str | None, task_option("Pretrain")] = None,
    data: Annotated[
        str | None, typer.Option(help="Paired manifest, mix.json or a folder; none: the embedded corpus.")
    ] = None,
    valid: Annotated[str | None, typer.Option(help="Paired manifest to validate on.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Checkpoint to start from, or 'embedded'; none: random weights.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop, validate and save after this long.")] = None,
    **shared: Any,
) -> None:
    """Train a task's model with supervision; it can be interrupted and goes on where it was."""
    stage("config:Pretrain", "stages.pretrain:run", locals())


@command(
    app,
    "rlspeech rl --algo grpo --task flowse --model runs/base --reward estoi=1 --reward pesq_wb=0.5 "
    "--guard speaker_similarity=0.02 --out runs/rl",
    *STAGE,
)
def rl(
    algo: Annotated[
        str | None,
        typer.Option(metavar="ALGO", help="One of {RL.algo}.", autocompletion=complete.one_of("config:RL", "algo")),
    ] = None,
    task: Annotated[str | None, task_option("RL")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint or run folder; none: the embedded checkpoint.")] = None,
    data: Annotated[str | None, typer.Option(help="Manifest or mix.json; none: the embedded corpus.")] = None,
    valid: Annotated[str | None, typer.Option(help="Paired manifest, scored before, during and after.")] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="NAME=WEIGHT",
            help="What to raise, e.g. estoi=1 (rlspeech doctor lists them); may be repeated.",
            autocompletion=complete.rewards,
        ),
    ] = None,
    guards: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="NAME[=MAX_DROP]",
            help="Watch a metric; stop when it falls by more than MAX_DROP. May be repeated.",
            autocompletion=complete.rewards,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Collections of rollouts.")] = None,
    group: Annotated[int | None, typer.Option(help="Rollouts a prompt.")] = None,
    prompts_per_step: Annotated[int | None, typer.Option(help="Prompts in one collection.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    offload: Annotated[
        str | None,
        typer.Option(
            help="none, or phase: what a phase (encode, rollout, reward, update) does not need waits in host memory.",
            autocompletion=complete.one_of("config:RL", "offload"),
        ),
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop, validate and save after this long.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Train nothing: measure which exploration gives the gradient a direction.")
    ] = False,
    **shared: Any,
) -> None:
    """Train a model on rewards. With no options: GRPO on the embedded enhancer and corpus."""
    stage("config:RL", "stages.probe:run" if probe else "stages.rl:run", locals(), without=["probe"])
