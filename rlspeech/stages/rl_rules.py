"""What ``rlspeech rl`` needs to know of its tasks besides the loop: which settings are whose, and what a row of metrics says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlspeech.algos.update import Experience
from rlspeech.config import RL, DiffRO, GuardSpec, RewardSpec
from rlspeech.rewards.base import available
from rlspeech.stats import Interval, mean_interval
from rlspeech.tasks.base import EnhancementTask
from rlspeech.types import Sample, Score, SoftReward, UserError

__all__ = [
    "averaged",
    "climbing",
    "complete",
    "describe",
    "load_options",
    "refuse",
    "soft_of",
    "word_errors",
    "word_interval",
]

ENHANCING = frozenset({"flowse", "avse"})
TOKENS = frozenset({"asr", "tts"})
# settings that some tasks have not -> those that have them, and what to do instead
ONLY: dict[str, tuple[frozenset[str], str]] = {
    "video": (frozenset({"avse"}), "leave it out: this task is shown no video"),
    "supervised_on": (frozenset({"avse"}), "leave it out: the supervised loss is taken where the task takes it"),
    "explore": (ENHANCING, "--set sampling.temperature=1: tokens are sampled"),
    "probe_settings": (ENHANCING, "leave it out: there is one way to sample tokens"),
    "ratio": (ENHANCING, "--set ratio_level=sequence"),
    "clip_s": (ENHANCING, "leave it out: a text belongs to the whole of its recording"),
    "train_encoder": (frozenset({"asr"}), "leave it out: this task has no encoder to train"),
    **dict.fromkeys(("sampling", "precision", "kl", "offload"), (TOKENS, "leave it out: this task draws no tokens")),
}
RELAXED = frozenset({"flowse", "avse", "tts"})  # tasks with a differentiable reward
SPOKEN = frozenset({"tts"})
ONLY_DIFFRO: dict[str, frozenset[str]] = {  # settings of DiffRO -> tasks that have them
    "last_steps": frozenset({"flowse"}),
    "smooth": ENHANCING,
    **dict.fromkeys(("tau", "tau_end", "hard", "mode", "noise", "content_weight", "attribute_weights"), SPOKEN),
}
CLIMBED: dict[
    str, Any
] = {  # defaults of DiffRO alone on enhancement: what is climbed is measured as published, beside what is not climbed
    "rewards": [RewardSpec(name="dnsmos_ovrl", scale="none")],
    "group": 1,
    "kl_beta": 0.1,
    "lr": 3e-4,
}
WITNESSES = {
    "pesq_wb": 0.1,
    "estoi": 0.02,
    "dnsmos_p808": None,
    "lsd": None,
    "speaker_similarity": None,
}  # and how far they may drop


def refuse(config: RL) -> None:
    """Stop at settings that the task does not have, before anything is read.

    Raises:
        UserError: such a setting with another value than its default.
    """
    for name in (
        sorted(config.model_fields_set & set(ONLY)) if ":" not in config.task else ()
    ):  # a task of one's own knows its settings
        tasks, instead = ONLY[name]
        value, default = getattr(config, name), RL.model_fields[name].get_default(call_default_factory=True)
        if (
            config.task not in tasks and value != default and not (name == "clip_s" and value == 0)
        ):  # 0: whole, as they are
            raise UserError(
                f"{config.task} has no setting {name!r}", f"it belongs to {', '.join(sorted(tasks))}", instead
            )
    if "diffro" in config.algo:
        _refuse_diffro(config)


def _refuse_diffro(config: RL) -> None:
    if config.task not in RELAXED:
        why = (
            "its rewards count the errors of a text, and a count has no gradient; what has one is the likelihood of a known text, "
            "which is supervised training"
        )
        raise UserError(
            f"{config.task} cannot be trained with {config.algo}",
            why,
            "--algo grpo, or --set policy_weight=0 --set supervised_weight=1",
        )
    for name in sorted(config.diffro.model_fields_set & set(ONLY_DIFFRO)):
        value, default = getattr(config.diffro, name), DiffRO.model_fields[name].get_default(call_default_factory=True)
        if config.task not in ONLY_DIFFRO[name] and value != default:
            raise UserError(
                f"{config.task} has no setting 'diffro.{name}'",
                f"it belongs to {', '.join(sorted(ONLY_DIFFRO[name]))}",
                "leave it out",
            )


def complete(config: RL, task: EnhancementTask) -> RL:
    """Fill in what is the task's own: settings that nobody gave, the default composition, and guards.

    Default guards that are rewarded, or not to be had here, are left out.
    """
    refuse(config)
    alone = config.algo == "diffro" and config.task in ENHANCING
    own = {**task.rl_defaults, **(CLIMBED if alone else {})}
    config = config.model_copy(update={k: v for k, v in own.items() if k not in config.model_fields_set})
    rewards = config.rewards or list(task.default_rewards)
    named = {r.name for r in rewards} | {column for info in available() if not info.usable for column in info.columns}
    watched = {
        **dict.fromkeys(task.default_guards),
        **getattr(task, "guard_limits", {}),
        **(WITNESSES if alone else {}),
    }
    guards = config.guards or [GuardSpec(name=n, max_drop=drop) for n, drop in watched.items() if n not in named]
    return config.model_copy(update={"rewards": rewards, "guards": guards})


def soft_of(config: RL, device: Any) -> SoftReward | None:
    """The differentiable reward of a run that has one. Raises ``UserError``: there is none of that name."""
    if "diffro" not in config.algo or not config.policy_weight:
        return None
    from rlspeech.rewards.soft import build_soft

    return build_soft(config, device)


def climbing(config: RL) -> str:
    """What DiffRO does in this run, in a line."""
    d, alone = config.diffro, config.algo == "diffro"
    of = {
        "tts": f"the token reward {d.reward}",
        "flowse": f"DNSMOS through the last {d.last_steps} step(s), {d.smooth} altered copies",
        "avse": f"DNSMOS, {d.smooth} altered copies",
    }[config.task]
    end = d.tau if d.tau_end is None else d.tau_end
    noise = "" if d.mode == "free" else f", noise {d.noise}"
    drawn = (
        f"; tau {d.tau:g} to {end:g}, {'one-hot' if d.hard else 'soft'}, {d.mode}{noise}"
        if config.task in SPOKEN
        else ""
    )
    which = {"positive": "rollouts with A > 0", "nonnegative": "rollouts with A >= 0", "all": "every rollout"}[d.on]
    if alone:
        which = "rollouts that stopped and do not loop" if config.task in SPOKEN and d.on != "all" else "every rollout"
    return f"gradient of {of}, on {which}{'' if alone else f', weight {d.weight:g}'}{drawn}; KL {config.kl_beta:g}"


def load_options(config: RL) -> dict[str, Any]:
    """What ``task.load`` is told beyond the checkpoint and the device."""
    return {"dtype": config.precision, "train_encoder": config.train_encoder} if config.task in TOKENS else {}


def averaged(draws: Sequence[Mapping[str, Sequence[Score]]]) -> Mapping[str, Sequence[Score]]:
    """A validation's scores over its draws: the mean of those of a clip that are known, with the first draw's words.

    Args:
        draws: for every draw, name -> a score a clip.
    """

    def mean(scores: Sequence[Score]) -> Score:
        known = [s.value for s in scores if s.value is not None]
        return replace(scores[0], value=float(np.mean(known)), error=None) if known else scores[0]

    return {name: [mean(of_clip) for of_clip in zip(*(d[name] for d in draws), strict=True)] for name in draws[0]}


def describe(experience: Experience) -> dict[str, Any]:
    """What a collection logs: reward and its parts, spread inside groups, shares without signal, seconds and memory a phase.

    Rollouts of tokens also log how long they are and the share that stopped by itself, transcripts their word error rate.
    """
    a, rollout = experience.advantage, experience.rollout
    parts = {f"reward/{k}": mean_interval(v, n=1).mean for k, v in experience.scores.items()}
    spent = {k if "/" in k else f"seconds/{k}": v for k, v in experience.seconds.items()}
    if rollout is None:  # the control without RL
        return {"reward": math.nan, **spent}
    words: dict[str, Any] = {}
    if any(s.hypothesis is not None or s.tokens is not None for s in rollout.samples):
        words = {
            "tokens": rollout.mask.sum(1).float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
        }
    if any(s.hypothesis is not None for s in rollout.samples):
        words["wer"] = word_errors(rollout.samples)
    return {
        "reward": mean_interval(experience.reward, n=1).mean,
        **parts,
        **words,
        "groups": a.groups,
        "groups_with_signal": a.signal,
        "constant_groups": a.constant_groups,
        "unscorable": a.unscorable,
        **spent,
    }


def word_errors(samples: Sequence[Sample], normaliser: str = "basic-2") -> float:
    """Errors over words (characters where the language has no spaces) of all texts in which something is said; nan where nothing is."""
    from rlspeech.rewards.rates import corpus_rate

    return corpus_rate(_heard(samples), normaliser)


def word_interval(samples: Sequence[Sample], seed: int = 0, normaliser: str = "basic-2") -> Interval:
    """The same with its interval over the clips."""
    from rlspeech.rewards.rates import corpus_interval

    return corpus_interval(_heard(samples), normaliser, seed)


def _heard(samples: Sequence[Sample]) -> list[tuple[str, str, str | None]]:
    return [
        (s.text, s.hypothesis, s.columns.get("language"))
        for s in samples
        if s.text is not None and s.hypothesis is not None
    ]
