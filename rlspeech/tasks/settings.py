"""Settings of ``rl`` by task: those that a task does not have are refused with the tasks that have them, those not given are filled in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlspeech.config import RL, GuardSpec
from rlspeech.rewards.base import available
from rlspeech.tasks import TASKS, get_task
from rlspeech.tasks.base import Task
from rlspeech.types import UserError

__all__ = ["OWNED", "check_settings", "complete"]

# settings that only some tasks have (``Task.settings``) -> what to do where a task has none
OWNED = {
    "video": "leave it out: this task is shown no video",
    "supervised_on": "leave it out: the supervised loss is taken where the task takes it",
    "explore": "--set sampling.temperature=1: tokens are sampled",
    "probe_settings": "leave it out: there is one way to sample tokens",
    "ratio": "--set ratio_level=sequence",
    "clip_s": "leave it out: a text belongs to the whole of its recording",
    "train_encoder": "leave it out: this task has no encoder to train",
    **dict.fromkeys(("sampling", "precision", "kl", "offload"), "leave it out: this task draws no tokens"),
    **dict.fromkeys(
        ("diffro.last_steps", "diffro.smooth", "diffro.tau", "diffro.tau_end", "diffro.hard"), "leave it out"
    ),
    **dict.fromkeys(("diffro.mode", "diffro.noise", "diffro.content_weight"), "leave it out"),
    "diffro.attribute_weights": "leave it out",
}


def check_settings(config: RL, task: Task) -> None:
    """Stop at settings that the task does not have, before anything is read; a task of one's own knows its settings.

    Raises:
        UserError: such a setting with another value than its default, or DiffRO where nothing can be differentiated.
    """
    if "diffro" in config.algo and not task.relaxes:
        raise UserError(
            f"{config.task} cannot be trained with {config.algo}",
            "its rewards count the errors of a text, and a count has no gradient; what has one is the likelihood of a known text, "
            "which is supervised training",
            "--algo grpo, or --set policy_weight=0 --set supervised_weight=1",
        )
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


def complete(config: RL, task: Task) -> RL:
    """Fill in what is the task's own: settings that were not given, the default composition, and guards.

    Default guards that are rewarded, or cannot be computed here, are left out.

    Raises:
        UserError: settings of another task.
    """
    check_settings(config, task)
    alone = config.algo == "diffro"
    own = {**task.rl_defaults, **(task.diffro_defaults if alone else {})}
    config = config.model_copy(update={k: v for k, v in own.items() if k not in config.model_fields_set})
    rewards = config.rewards or list(task.default_rewards)
    named = {r.name for r in rewards} | {column for info in available() if not info.usable for column in info.columns}
    watched: dict[str, float | None] = {**dict.fromkeys(task.default_guards), **task.guard_limits}
    watched |= task.diffro_guards if alone else {}
    guards = config.guards or [GuardSpec(name=n, max_drop=drop) for n, drop in watched.items() if n not in named]
    return config.model_copy(update={"rewards": rewards, "guards": guards})
