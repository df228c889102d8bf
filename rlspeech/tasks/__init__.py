"""The tasks by name, and which settings of ``rl`` each of them has.

A task knows its data, its model, its default rewards and metrics; it knows no algorithm (``tasks/base.py``). Settings that a task does not
have are refused with the tasks that have them, those not given are filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from rlspeech import log
from rlspeech.config import RL, GuardSpec, RewardSpec
from rlspeech.data.manifest import PROMPTS, SAMPLE_SET
from rlspeech.files import read_object
from rlspeech.plugins import load, load_function
from rlspeech.rewards.catalogue import ALIASES
from rlspeech.tasks.owners import TASKS, check_owners
from rlspeech.types import UserError

if TYPE_CHECKING:
    from rlspeech.tasks.base import Task


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


def check_settings(config: RL, task: Task) -> list[str]:
    """Stop at settings and rewards that the run does not use, before anything is read; see ``owners.check_owners``.

    Raises:
        UserError: such a setting, or DiffRO where nothing can be differentiated.
    """
    from rlspeech.rewards.base import known_column, resolve

    if "diffro" in config.algo and not task.relaxes:
        what = f"{config.task} cannot be trained with {config.algo}"
        why = "its rewards count the errors of a text, and a count has no gradient; "
        why += "what has one is the likelihood of a known text, which is supervised training"
        raise UserError(what, why, "--algo grpo, or --set policy_weight=0 --set supervised_weight=1")
    alone = config.algo == "diffro" and ":" not in config.task
    unused = [resolve(r.name).column for r in config.rewards if r.weight and alone]
    if unused:
        families = tuple(resolve(r.name).column.partition("_")[0] for r in task.climbed_rewards(config))
        climbed = tuple(name for name in task.climbs if name.startswith(families))
        unused = [name for name in unused if not name.startswith(climbed)]
    if config.policy_weight and unused:
        why = f"diffro follows the gradient of {task.climbed(config)} alone"
        why += f"; those that have one: {', '.join(task.climbs)}" if len(task.climbs) > 1 else ""
        hint = f"--guard {unused[0]} measures it; leave out --reward, or train with --algo grpo"
        raise UserError(f"--reward {', '.join(unused)} would not be trained", why, hint)
    scaled = [r.name for r in config.rewards if r.scale != RewardSpec.model_fields["scale"].default]
    if config.advantage == "norm_then_sum" and scaled and config.rewards != list(task.default_rewards):
        why = "advantage=norm_then_sum normalises every reward inside its group"
        raise UserError(f"the scale of {', '.join(scaled)} is not used", why, "leave scale out")
    # pesq_wb:hold lacks a limit, of pkg.mod:hold the function hold is meant
    bare = [g for g in config.guards if g.name.endswith(":hold") and (":" in g.name[:-5] or known_column(g.name[:-5]))]
    held, filled = [g for g in config.guards if g.hold or g in bare], _filled(config, task)
    if held and (filled.algo in ("diffro", "dpo") or filled.group < 2 or not filled.policy_weight):
        why = "what is held is weighed in by its spread over a group of scored rollouts, and there is none"
        raise UserError(f"{held[0].name} cannot be held here", why, "--algo grpo --set group=4, or leave out :hold")
    if unlimited := [g.name.removesuffix(":hold") for g in held if not g.max_drop]:
        raise UserError(f"{unlimited[0]} cannot be held", "it has no limit above 0", f"--guard {unlimited[0]}=0.1:hold")
    return check_owners(config, task, filled, own=":" in config.task)


def _under(own: Any, config: RL, key: str) -> Any:
    """A task's own setting below what was given: of a part, as ``sampling``, some settings may be given and the others not."""
    given = getattr(config, key)
    if key in config.model_fields_set and isinstance(own, BaseModel) and isinstance(given, BaseModel):
        return own.model_copy(update={k: getattr(given, k) for k in given.model_fields_set})
    return given if key in config.model_fields_set else own


def _filled(config: RL, task: Task) -> RL:
    made = config.model_copy(update={k: _under(v, config, k) for k, v in task.defaults(config.algo).items()})
    if config.algo != "dpo" or config.samples is None:
        return made
    folder, valid = Path(config.samples), config.valid
    if valid is None and read_object(folder / SAMPLE_SET).get("data", "") is None:
        valid = str(task.demo("valid"))  # of the embedded prompts, as elsewhere
    return made.model_copy(update={"data": str(folder / PROMPTS), "clip_s": 0.0, "valid": valid})


def complete(config: RL, task: Task) -> RL:
    """Fill in what is the task's own: settings that were not given, the default composition, and guards.

    Default guards that are rewarded, or cannot be computed here, are left out; guards that are asked for as ``NAME?`` where they cannot.
    Where DNSMOS is rewarded, DistillMOS is such a default guard: either is raised by its own gradient while the other falls.

    Raises ``UserError``: settings of another task.
    """
    from rlspeech.rewards.base import available

    check_settings(config, task)
    alone, config = config.algo == "diffro", _filled(config, task)
    climbed = task.climbed_rewards(config) if "diffro" in config.algo else []
    rewards = config.rewards or (climbed if alone else list(task.default_rewards))
    missing = {column: why_not for entry, why_not in available() if why_not for column in entry.columns}
    named = {ALIASES.get(r.name, r.name) for r in rewards}
    watched: dict[str, float | None] = {**dict.fromkeys(task.default_guards), **task.guard_limits}
    watched |= task.diffro_guards if alone else {}
    raised = {ALIASES.get(r.name, r.name) for r in [*rewards, *climbed] if r.weight and config.policy_weight}
    if any("dnsmos" in name for name in raised) and "distillmos" not in named:
        watched["distillmos?"] = None
    guards = config.guards
    if "guards" not in config.model_fields_set:  # an empty list that is given means none
        guards = [GuardSpec(name=n, max_drop=drop) for n, drop in watched.items() if n not in {*named, *missing}]
    guards = [*_computable(guards, {**missing, **dict.fromkeys(named, "it is rewarded")}, config.out)]
    return config.model_copy(update={"rewards": rewards, "guards": guards})


def _computable(guards: list[GuardSpec], missing: Mapping[str, str], out: str | None) -> Iterator[GuardSpec]:
    """Leave out, with a line, what is asked for as ``NAME?`` and cannot be computed; a run that goes on has the guards it began with."""
    from rlspeech.run import settings_of

    before = settings_of(out).get("guards") if out else None
    for guard in guards:
        name = guard.name.removesuffix("?")
        if name != guard.name:
            why = missing.get(ALIASES.get(name, name.partition("[")[0]))
            if isinstance(before, list):
                known = any(isinstance(g, dict) and g.get("name") == name for g in before)
                why = "" if known else f"{out} began without it"
            if why:
                log.say(f"the guard {name} is left out: {why}")
                continue
        yield guard.model_copy(update={"name": name})
