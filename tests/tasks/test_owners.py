"""Every setting is used by a run, or refused with what it belongs to: by task, by algorithm, by mode."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from rlspeech.config import RL, Evaluate, Pretrain
from rlspeech.plugins import SCHEMAS, load
from rlspeech.schema import keys
from rlspeech.settings import preset_names, preset_path, preset_stage, resolve
from rlspeech.stages.finish import shown
from rlspeech.tasks import TASKS, check_settings, complete, get_task
from rlspeech.tasks.owners import COMMON, RULES, TASKED, check_owners
from rlspeech.types import UserError


def listed(key: str, names: Any) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("schema", [RL, Pretrain, Evaluate], ids=lambda s: s.__name__)
def test_every_setting_is_common_or_has_an_owner(schema: Any) -> None:
    name = schema.__name__
    rules = RULES.get(name, ())
    owned = {n for rule in rules for n in rule.names.split()} | TASKED[name]
    wrong = [k.name for k in keys(schema) if listed(k.name, COMMON[name]) == listed(k.name, owned)]
    assert wrong == [], "in none of the lists, or in both"


@pytest.mark.parametrize("command", [*SCHEMAS][-7:])
def test_what_only_some_tasks_have_exists_and_some_task_has_it(command: str) -> None:
    schema = load(f"rlspeech.{SCHEMAS[command]}")
    known = {k.name for k in keys(schema)} | {k.name.split(".")[0] for k in keys(schema)}
    own = set().union(*(get_task(t).settings for t in TASKS))
    assert TASKED.get(schema.__name__, set()) <= known
    assert TASKED.get(schema.__name__, set()) <= own


# what is set -> the key that is refused, and what makes it used
PAIRS = {
    "ppo.discount=0.9": ("ppo.discount", ["algo=ppo", "ppo.form=critic"]),
    "ppo.kl_in=loss": ("ppo.kl_in", ["algo=ppo"]),
    "diffro.weight=2": ("diffro.weight", ["algo=grpo+diffro"]),
    "clip_std=3 clip_range=0.2": ("clip_std", ["clip_range=auto"]),
    "clip_range=0.1 algo=diffro": ("clip_range", ["algo=grpo"]),
    "advantage_std=batch algo=ppo": ("advantage_std", ["algo=grpo"]),
    "advantage_std=batch advantage=norm_then_sum": ("advantage_std", ["advantage=sum_then_norm"]),
    "reference_in_group=true task=asr algo=ppo": ("reference_in_group", ["algo=grpo"]),
    "reference_in_group=true task=tts kl=k3": ("reference_in_group", ["kl=full"]),
    "reference_in_group=true task=avse": ("reference_in_group", ["task=asr"]),
    "explore.bands=8 explore.kind=sde": ("explore.bands", ["explore.kind=gain"]),
    "explore.mask_clamp=false task=avse": ("explore.mask_clamp", ["explore.kind=mask"]),
    "explore.nfe=[4,4] task=avse": ("explore.nfe", ["task=flowse"]),
    "truncated=keep": ("truncated", ["task=asr"]),
    "truncated_reward=-2 task=asr": ("truncated_reward", ["truncated=penalise"]),
    "kl=k3 task=asr kl_beta=0": ("kl", ["kl_beta=0.1"]),
    "supervised_on=sample task=avse supervised_weight=0": ("supervised_on", ["supervised_weight=1"]),
    "sampling.language=de task=tts": ("sampling.language", ["task=asr"]),
    "valid_draws=4 task=asr": ("valid_draws", ["task=tts"]),
    "video=shuffled task=asr": ("video", ["task=avse"]),
    "clip_s=3 task=asr": ("clip_s", ["task=avse"]),
    "sampling.temperature=0.5": ("sampling", ["task=asr"]),
    "train_encoder=true task=avse": ("train_encoder", ["task=asr"]),
    "precision=bf16": ("precision", ["task=asr"]),
    "sharding=fsdp": ("sharding", ["task=asr"]),
    "sharding=fsdp task=tts optimizer=adamw_8bit": ("sharding", ["optimizer=adamw"]),
    "supervised_on=sample task=asr supervised_weight=1": ("supervised_on", ["task=avse"]),
    "diffro.mode=free algo=diffro": ("diffro.mode", ["task=tts"]),
    "diffro.smooth=8 task=tts algo=diffro": ("diffro.smooth", ["task=avse"]),
    "diffro.tau=2 task=avse algo=diffro": ("diffro.tau", ["task=tts"]),
    "diffro.noise=fresh diffro.mode=free task=tts algo=diffro": ("diffro.noise", ["diffro.mode=teacher"]),
    "diffro.last_steps=2 task=avse algo=diffro": ("diffro.last_steps", ["task=flowse"]),
}


@pytest.mark.parametrize("given", PAIRS)
def test_a_setting_is_used_or_refused_and_the_hint_mends_it(given: str) -> None:
    (key, mended), sets = PAIRS[given], given.split()
    with pytest.raises(UserError, match=key) as caught:
        asked(sets)
    assert caught.value.why
    asked([*sets, caught.value.try_this.split("--set ")[1]])
    asked([*sets, *mended])


def asked(sets: list[str]) -> RL:
    config, _ = resolve(RL, sets=sets)
    return complete(config, get_task(config.task))


def test_what_diffro_does_not_climb_is_no_reward_of_it() -> None:
    for task, name in (("flowse", "pesq_wb"), ("avse", "llm"), ("tts", "tts_accuracy")):
        config = resolve(RL, flags={"task": task, "algo": "diffro", "rewards": [f"{name}=1"]})[0]
        with pytest.raises(UserError, match=f"--reward {name}") as caught:
            check_settings(config, get_task(task))
        assert f"--guard {name}" in caught.value.try_this
        assert task == "tts" or "speaker_similarity" in caught.value.why
        check_settings(config.model_copy(update={"algo": "grpo"}), get_task(task))
    filled = asked(["task=tts", "algo=diffro", "diffro.reward=runs/r"])
    assert [r.name for r in filled.rewards] == ["token_posterior[model=runs/r]"]
    assert "tts_accuracy" in {g.name for g in filled.guards}


def test_rewards_of_waveforms_are_followed_where_they_have_a_gradient() -> None:
    def followed(algo: str, *names: str, **diffro: Any) -> list[str]:
        given = {"task": "avse", "algo": algo, "rewards": [f"{n}=1" for n in names], "diffro": diffro}
        config = complete(resolve(RL, flags=given)[0], get_task("avse"))
        assert not names or [r.name for r in config.rewards] == list(names)
        return [s.name for s in get_task("avse").soft_reward(config).specs]

    assert followed("diffro", "estoi", "spk_sim", "dnsmos") == ["estoi", "spk_sim", "dnsmos"]
    assert followed("diffro") == followed("diffro", "dnsmos_ovrl", reward="dnsmos", smooth=2) == ["dnsmos_ovrl"]
    assert followed("grpo+diffro", "estoi", "pesq_wb", "lsd") == ["estoi", "lsd"]
    for names in ((), ("estoi",), ("pesq_wb",)):  # one kind alone is GRPO's
        assert followed("grpo+diffro", *names) == ["dnsmos_ovrl"]
    assert followed("grpo+diffro", "estoi", "pesq_wb", reward="dnsmos_p808") == ["dnsmos_p808"]
    with pytest.raises(UserError, match="pesq"):
        followed("diffro", reward="pesq")


def test_no_guards_are_none_and_not_the_tasks_own() -> None:
    assert asked(["guards=[]"]).guards == [] and asked([]).guards
    again = resolve(RL, flags=asked(["guards=[]"]).model_dump(mode="json"))[0]
    assert complete(again, get_task("flowse")).guards == []


def test_a_guard_with_a_question_mark_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(*sets: str) -> list[str]:
        return [g.name for g in asked(list(sets)).guards]

    absent, found = {"distillmos", "pesq"}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else found(n))
    guards, dnsmos = "guards=['distillmos?', 'pesq?', lsd]", "rewards=[dnsmos_fast_ovrl=1]"
    assert watched(guards) == ["lsd"] and "distillmos" not in watched(dnsmos)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: object() if n in absent else found(n))
    assert watched(guards) == ["distillmos", "pesq", "lsd"] and watched(dnsmos, "guards=[lsd]") == ["lsd"]
    for sets in (["algo=diffro"], ["algo=grpo+diffro"], [dnsmos], ["rewards=[p808=1]", "task=tts"]):
        assert watched(*sets)[-1] == "distillmos", sets
        assert "distillmos" not in watched(*sets, "policy_weight=0", "supervised_weight=1")
    climbed = ["algo=diffro", "diffro.reward=distillmos"]
    assert [r.name for r in asked(climbed).rewards] == ["distillmos"] and "dnsmos_ovrl" in watched(*climbed)
    with pytest.raises(UserError, match="dnsmos_ovrl"):
        asked([*climbed, "rewards=[dnsmos_ovrl=1]"])
    (tmp_path / "config.resolved.json").write_text('{"guards": [{"name": "lsd"}]}')  # it goes on as it began
    assert watched(guards, f"out={tmp_path}") == ["lsd"] and "distillmos" not in watched(dnsmos, f"out={tmp_path}")


def test_the_control_says_what_of_a_run_it_leaves_out() -> None:
    control = asked(["task=asr", "policy_weight=0", "supervised_weight=1", "group=4", "clip_range=0.3", "steps=3"])
    assert check_owners(control, get_task("asr")) == ["clip_range", "group"] and control.method == "control"
    with pytest.raises(UserError, match="video"):  # of another task all the same
        asked(["task=asr", "policy_weight=0", "video=none"])
    row = {"supervised_loss": 2.0, "reward/estoi": 0.5, "reward": 20.1, "wer": 0.1, "grad_agreement": 0.2}
    assert shown(control, row, None) == {"loss": 2.0}
    run = asked(["rewards=[estoi=1, lsd=1]"])
    assert list(shown(run, row, 0.3).items())[0] == ("estoi", 0.5) and shown(run, row, 0.3)["gain"] == 0.3


def test_presets_and_what_runs_write_down_use_all_that_they_set() -> None:
    stages: dict[str | None, Any] = {"rl": RL, "pretrain": Pretrain, "eval": Evaluate}
    for name in preset_names():
        schema = stages.get(preset_stage(preset_path(name)))
        if schema is not None:
            config = resolve(schema, name)[0]
            task = get_task(config.task)
            assert check_owners(config, task) == [], name
            filled = complete(config, task) if schema is RL else config
            assert check_owners(filled, task) == [], name


@pytest.mark.parametrize(
    ("task", "algo"),
    [*itertools.product(["flowse", "avse", "asr", "tts"], get_args(RL.model_fields["algo"].annotation))],
)
def test_what_is_filled_in_can_be_given(task: str, algo: str) -> None:
    if get_task(task).relaxes or "diffro" not in algo:
        filled = asked([f"task={task}", f"algo={algo}"])
        assert complete(filled, get_task(task)) == filled
