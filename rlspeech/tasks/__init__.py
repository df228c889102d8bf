"""The tasks by name, and which settings of ``rl`` each of them has.

A task knows its data, its model, its default rewards and metrics; it knows no algorithm (``tasks/base.py``). Settings that a task does not
have are refused with the tasks that have them, those not given are filled in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from rlspeech.config import RL, GuardSpec
from rlspeech.plugins import load, load_function
from rlspeech.types import UserError

if TYPE_CHECKING:
    from rlspeech.tasks.base import Task

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
        if not isinstance(own, type):
            raise UserError(f"{name} is no task", f"it is a {type(own).__name__}, not a class", "class MyTask: ...")
        if not issubclass(own, Task):
            own = type(own.__name__, (own, Task), {})  # what it leaves out has its default
        try:
            return own()
        except Exception as error:
            raise UserError(f"the task {name} cannot be made", f"{type(error).__name__}: {error}") from error
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}", f"known: {', '.join(TASKS)}")
    return load(TASKS[name])()


# settings that only some tasks have (``Task.settings``) -> what to do where a task has none
OWNED = {
    "video": "leave it out: this task is shown no video",
    "supervised_on": "leave it out: the supervised loss is taken where the task takes it",
    "explore": "--set sampling.temperature=1: tokens are sampled",
    "probe_settings": "leave it out: there is one way to sample tokens",
    "ratio": "--set ratio_level=sequence",
    "change_weight": "--set kl_beta=0.05: the KL of tokens is over all that can be drawn",
    "clip_s": "leave it out: a text belongs to the whole of its recording",
    "train_encoder": "leave it out: this task has no encoder to train",
    **dict.fromkeys(("sampling", "precision", "kl", "offload"), "leave it out: this task draws no tokens"),
    **{f"diffro.{k}": "leave it out" for k in ("last_steps", "smooth", "tau", "tau_end", "hard", "mode", "noise")},
    **dict.fromkeys(("diffro.content_weight", "diffro.attribute_weights", "diffro.reduction"), "leave it out"),
}


def check_settings(config: RL, task: Task) -> None:
    """Stop at settings that the task does not have, before anything is read; a task of one's own knows its settings.

    Raises:
        UserError: such a setting with another value than its default, or DiffRO where nothing can be differentiated.
    """
    if "diffro" in config.algo and not task.relaxes:
        what, why = (
            f"{config.task} cannot be trained with {config.algo}",
            "its rewards count the errors of a text, and a count",
        )
        why += " has no gradient; what has one is the likelihood of a known text, which is supervised training"
        raise UserError(what, why, "--algo grpo, or --set policy_weight=0 --set supervised_weight=1")
    for key in () if ":" in config.task else _given(config):
        if key not in task.settings:
            owners = ", ".join(sorted(name for name in TASKS if key in get_task(name).settings))
            raise UserError(f"{config.task} has no setting {key!r}", f"it belongs to {owners}", OWNED[key])


def _given(config: RL) -> Iterator[str]:
    """Names of the settings of some tasks alone that have another value than their default."""
    parts: dict[str, Any] = {"": config, **({"diffro.": config.diffro} if "diffro" in config.algo else {})}
    for prefix, part in parts.items():
        for key in sorted(part.model_fields_set):
            value, default = getattr(part, key), type(part).model_fields[key].get_default(call_default_factory=True)
            whole = (prefix + key, value) == ("clip_s", 0)  # every task can keep its clips as they are
            if prefix + key in OWNED and value != default and not whole:
                yield prefix + key


def _under(own: Any, config: RL, key: str) -> Any:
    """A task's own setting below what was given: of a part, as ``sampling``, some settings may be given and the others not."""
    given = getattr(config, key)
    if key in config.model_fields_set and isinstance(own, BaseModel) and isinstance(given, BaseModel):
        return own.model_copy(update={k: getattr(given, k) for k in given.model_fields_set})
    return given if key in config.model_fields_set else own


def complete(config: RL, task: Task) -> RL:
    """Fill in what is the task's own: settings that were not given, the default composition, and guards.

    Default guards that are rewarded, or cannot be computed here, are left out.

    Raises:
        UserError: settings of another task.
    """
    from rlspeech.rewards.base import available

    check_settings(config, task)
    alone = config.algo == "diffro"
    own = {**task.rl_defaults, **(task.diffro_defaults if alone else {})}
    config = config.model_copy(update={k: _under(v, config, k) for k, v in own.items()})
    rewards = config.rewards or list(task.default_rewards)
    named = {r.name for r in rewards} | {
        column for entry, why_not in available() if why_not for column in entry.columns
    }
    watched: dict[str, float | None] = {**dict.fromkeys(task.default_guards), **task.guard_limits}
    watched |= task.diffro_guards if alone else {}
    guards = config.guards or [GuardSpec(name=n, max_drop=drop) for n, drop in watched.items() if n not in named]
    return config.model_copy(update={"rewards": rewards, "guards": guards})
