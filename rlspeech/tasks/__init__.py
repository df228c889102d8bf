"""The tasks by name. A task knows its data, its model, its default rewards and metrics; it knows no algorithm (``tasks/base.py``)."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlspeech.plugins import load, load_function
from rlspeech.types import UserError

TASKS = {
    "flowse": "rlspeech.tasks.flowse.task:FlowSE",
    "avse": "rlspeech.tasks.avse.task:Avse",
    "listener": "rlspeech.tasks.aids.listener:ListenerTask",
    "asr": "rlspeech.tasks.asr.task:Asr",
    "codec": "rlspeech.tasks.aids.codec:CodecTask",
    "token-reward": "rlspeech.tasks.aids.token_reward:TokenRewardTask",
    "tts": "rlspeech.tasks.tts.task:Tts",
}


RECOGNITION, SYNTHESIS = "asr", "tts"  # the tasks of ``transcribe`` and ``speak``


class Needs(NamedTuple):
    """What a task can do, and what that needs: modules with what to give to ``pip install``, embedded folders below ``assets/``."""

    title: str
    modules: dict[str, str]
    assets: tuple[str, ...]


TRANSFORMERS, VIDEOS = {"transformers": "transformers"}, {"av": "av", "cv2": "'opencv-python-headless<5'"}
NEEDS = {
    "flowse": Needs("enhancement", {}, ("flowse", "demo", "speaker", "speech_encoder")),
    "avse": Needs("audio-visual enhancement", VIDEOS, ("avse", "demo")),
    "asr": Needs("recognition", TRANSFORMERS, ("asr", "demo_commands")),
    "tts": Needs("synthesis", TRANSFORMERS, ("tts", "codec", "token-reward")),
}


def get_task(name: str) -> Any:
    """The task of that name, or of ``package.module:Class``, a ``tasks.base.Task``. Raises ``UserError`` for another one."""
    if ":" in name:
        from rlspeech.tasks.base import Task

        own = load_function(name, "task", "class MyTask: ...")
        if isinstance(own, type) and not issubclass(own, Task):
            own = type(own.__name__, (own, Task), {})  # what it leaves out has its default
        return own()
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}", f"known: {', '.join(TASKS)}")
    return load(TASKS[name])()
