"""Which settings a run uses: one that its task, algorithm or mode does not use is refused with what it belongs to, never ignored.

``TASKED`` names the settings that only some tasks have (``Task.settings`` says which), ``RULES`` those that depend on other settings, and
``COMMON`` those that every run uses; each setting of ``rl``, ``eval`` and ``pretrain`` is in one of them. A name stands for its parts too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from rlspeech.plugins import load
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


class Rule(NamedTuple):
    """Settings that a run uses only under some others."""

    names: str
    owner: str  # what they belong to, as it is set
    used: Callable[[Any], bool]


DRAWN = frozenset({"sampling.temperature", "sampling.top_p", "sampling.top_k"})
RELAXED = "tau tau_end hard mode noise content_weight attribute_weights reduction".split()
# class of settings -> those that only some tasks have
TASKED: dict[str, frozenset[str]] = {
    "RL": frozenset(
        "video supervised_on explore explore.window explore.start explore.nfe explore.shared_latent explore.mask_clamp "
        "probe_settings ratio reduction clip_s train_encoder sampling sampling.language sampling.prompt sampling.tokens_per_s "
        "rollouts suppress reference_in_group encoder_cache_mib micro_tokens rollout_tokens gradient_checkpointing attn_implementation "
        "precision kl offload sharding truncated truncated_reward valid_draws change_weight diffro.last_steps diffro.smooth".split()
    )
    | {f"diffro.{name}" for name in RELAXED},
    "Pretrain": frozenset(
        "model avse listener asr codec tts token_reward augment ctc_weight content_weight content_ear video "
        "magnitude_weight flow_weight predictor_weight".split()
    ),
    "Evaluate": DRAWN
    | set(
        "nfe guidance video shuffled systems normaliser by sampling sampling.prompt sampling.tokens_per_s beams recogniser "
        "anchors best_of judge".split()
    ),
    "Enhance": frozenset({"video", "nfe", "guidance"}),
    "Transcribe": DRAWN,
    "Speak": frozenset({"sampling.language", "sampling.prompt", "sampling.tokens_per_s"}),
}
HINTS = {
    "explore": "--set sampling.temperature=1: tokens are sampled",
    "ratio": "--set ratio_level=sequence",
    "change_weight": "--set kl_beta=0.05: the KL of tokens is over all that can be drawn",
}
SAMPLED = "clip_range clip_high clip_std ratio ratio_level dynamic_sampling advantage_std advantage_clip"
DRAWING = "group micro_tokens rollout_tokens kl_beta kl_target loss_mean reduction change_weight kl explore"
# of the policy's loss, which the control without RL does not have
POLICY = (
    Rule("ppo", "--algo ppo", lambda c: c.algo == "ppo"),
    Rule(
        "ppo.discount ppo.gae_lambda ppo.value_lr ppo.value_clip ppo.value_hidden",
        "ppo.form=critic",
        lambda c: c.ppo.form == "critic",
    ),
    Rule("weights", "several rewards of rollouts", lambda c: c.algo != "dpo" and (c.algo, c.task) != ("diffro", "tts")),
    Rule("rollouts", "--algo grpo, ppo or grpo+diffro", lambda c: c.algo in ("grpo", "ppo", "grpo+diffro")),
    Rule("rollouts.weight_cap rollouts.cache_gib", "rollouts.engine=vllm", lambda c: c.rollouts.engine == "vllm"),
    Rule("weights_every", "weights=agreement", lambda c: c.weights == "agreement"),
    Rule("awr", "--algo awr", lambda c: c.algo == "awr"),
    Rule("ratio ratio_level reduction change_weight kl", "another --algo than awr", lambda c: c.algo != "awr"),
    Rule("kl ppo.kl_in", "a kl_beta above 0", lambda c: c.kl_beta > 0),
    Rule("diffro", "--algo diffro or grpo+diffro", lambda c: "diffro" in c.algo),
    Rule("diffro.weight", "--algo grpo+diffro", lambda c: c.algo == "grpo+diffro"),
    Rule("diffro.noise", "diffro.mode=teacher", lambda c: c.diffro.mode == "teacher"),
    Rule("truncated truncated_reward", "another --algo than diffro", lambda c: c.algo != "diffro"),
    Rule(SAMPLED, "--algo grpo, ppo, awr or grpo+diffro", lambda c: c.algo not in ("diffro", "dpo")),
    Rule("advantage", "--algo grpo, awr, grpo+diffro or dpo", lambda c: c.algo not in ("diffro", "ppo")),
    Rule(
        "advantage_std dynamic_sampling", "--algo grpo, awr, grpo+diffro", lambda c: "grpo" in c.algo or c.algo == "awr"
    ),
    Rule("dpo samples", "--algo dpo", lambda c: c.algo == "dpo"),
    Rule(f"data clip_s {DRAWING}", "rollouts; dpo has the prompts of --samples", lambda c: c.algo != "dpo"),
    Rule("reference_in_group", "grpo or grpo+diffro with kl=full", lambda c: "grpo" in c.method and c.kl == "full"),
    Rule("advantage_std", "advantage=sum_then_norm", lambda c: c.advantage == "sum_then_norm"),
    Rule(
        "advantage_clip",
        "ppo.whiten=true, another ppo.form or algorithm",
        lambda c: c.algo != "ppo" or c.ppo.form != "critic" or c.ppo.whiten,
    ),
    Rule("clip_std", "clip_range=auto", lambda c: c.clip_range == "auto"),
    Rule("truncated_reward", "truncated=penalise", lambda c: c.truncated == "penalise"),
    Rule("explore.bands explore.segment_s explore.basis", "explore.kind=gain", lambda c: c.explore.kind == "gain"),
    Rule("explore.mask_clamp", "explore.kind=mask", lambda c: c.explore.kind == "mask"),
    Rule(
        "group micro_tokens max_unscorable kl_beta kl_target loss_mean reduction ratio change_weight explore kl ppo awr diffro clip_range "
        "weights weights_every",
        "a policy_weight above 0",
        lambda c: c.policy_weight > 0,
    ),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "RL": (
        *POLICY,
        Rule(
            "sharding",
            "algo grpo, ppo, awr or dpo, adamw, train_encoder=false, offload=none, weights=fixed, rollouts.engine=own",
            lambda c: (
                "diffro" not in c.algo
                and (c.train_encoder, c.offload, c.weights) == (False, "none", "fixed")
                and (c.optimizer, c.rollouts.engine) == ("adamw", "own")
            ),
        ),
        Rule("hold", "a guard that is held", lambda c: any(g.hold for g in c.guards)),
        Rule("supervised_on", "supervised_weight above 0, not dpo", lambda c: c.supervised_weight and c.algo != "dpo"),
        Rule("encoder_cache_mib", "train_encoder=false", lambda c: not c.train_encoder),
    ),
    "Pretrain": (
        Rule("content_ear", "a content_weight above 0", lambda c: c.content_weight > 0),
        Rule("flow_weight predictor_weight", "a model.predictor above 0", lambda c: c.model.predictor or c.init),
        Rule("magnitude_weight", "model.objective=matching", lambda c: c.model.objective == "matching" or c.init),
    ),
}
COMMON: dict[str, frozenset[str]] = {
    "RL": frozenset(
        "task algo model valid out rewards guards policy_weight supervised_weight lora steps prompts_per_step "
        "updates_per_collection epochs micro_batch optimizer lr lr_schedule weight_decay grad_clip valid_every valid_items save_every "
        "seed device workers max_minutes tracker probe_batches probe_algos".split()  # one config serves a run and its --probe
    ),
    "Pretrain": frozenset(
        "task data valid init out mixing steps batch lr lr_schedule warmup weight_decay grad_clip ema valid_every save_every valid_items "
        "seed device precision workers max_minutes tracker".split()
    ),
    "Evaluate": frozenset(
        "task data models baseline metrics out shard limit batch seed device workers players".split()
    ),
}


def check_owners(config: BaseModel, task: Any, filled: Any = None, *, own: bool = False) -> list[str]:
    """Refuse settings with another value than their default that the run does not use, before anything is read.

    Args:
        task: a ``tasks.base.Task``.
        filled: the same with what the task fills in, by which it is judged what is used.
        own: the task is one of the user's, which knows its settings.

    Returns:
        where there is no RL (``policy_weight`` 0, the control of a run with its settings), those of the policy's loss: they are to be said.

    Raises:
        UserError: such a setting, with what it belongs to and how to leave it out.
    """
    name, spare = type(config).__name__, list[str]()
    given = dict(_given(config, task.defaults(config.algo) if name == "RL" else {}))  # type: ignore[attr-defined]
    rules = RULES.get(name, ())
    for key, default in given.items():
        for rule in rules:
            if _part_of(key, rule.names.split()) and not rule.used(filled or config):
                if rule in POLICY and not config.policy_weight:  # type: ignore[attr-defined]
                    spare.append(key)
                    break
                hint = f"leave it out, or --set {key}={_shown(default)}"
                raise UserError(f"{key} is set, and this run does not use it", f"it belongs to {rule.owner}", hint)
        else:
            needed = _part_of(key, TASKED.get(name, ()))
            whole = (key, getattr(config, key, None)) == ("clip_s", 0)  # what a task without the setting does anyway
            if needed and needed not in task.settings and not own and not whole:
                raise _of_another_task(needed, task, default, key)
    return sorted(spare)


def _of_another_task(needed: str, task: Any, default: Any, key: str) -> UserError:
    owners = ", ".join(sorted(n for n, path in TASKS.items() if needed in load(path).settings))
    hint = HINTS.get(needed) or f"leave it out, or --set {key}={_shown(default)}"
    return UserError(f"{task.name} has no setting {needed!r}", f"it belongs to {owners}", hint)


def _part_of(key: str, names: Any) -> str | None:
    """The longest of the names that stands for a key."""
    return max((n for n in names if key == n or key.startswith(f"{n}.")), key=len, default=None)


def _given(config: BaseModel, own: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys that were given another value than their default, the task's ``own`` where it has one, with that default."""
    for key in sorted(config.model_fields_set):
        value = getattr(config, key)
        default = type(config).model_fields[key].get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            below = own.get(key)
            yield from _given(value, dict(below) if isinstance(below, BaseModel) else {}, f"{prefix}{key}.")
        elif value not in (default, own.get(key, default)):
            yield prefix + key, default


def _shown(value: Any) -> str:
    """A default as ``--set`` takes it."""
    return json.dumps(value, default=str).strip('"')
