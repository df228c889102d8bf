from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rlspeech.config import RL, Evaluate, FlowModel, Mixing, Pretrain, ScoreFolder, Strict
from rlspeech.schema import keys
from rlspeech.settings import preset_names, preset_path, preset_stage, read_config, resolve, stage_of
from rlspeech.types import UserError
from rlspeech.yamlfile import load_yaml, parse_value

SCHEMAS: dict[str, type[BaseModel]] = {"rl": RL, "pretrain": Pretrain, "eval": Evaluate, "reward": ScoreFolder}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_layers_everything_has_its_default() -> None:
    for schema in SCHEMAS.values():
        config, provenance = resolve(schema)
        assert config == schema() and provenance == {}


def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "group: 6\nlr: 1e-3\nsteps: 7\nkl_beta: 0.5\n")
    preset = write(tmp_path / "preset.yaml", "stage: rl\ngroup: 5\nlr: 1e-1\nsteps: 5\nkl_beta: 0.1\nclip_s: 9.0\n")
    config, provenance = resolve(RL, str(preset), file, {"lr": 3e-3, "steps": 8, "data": None}, ["steps=9"])
    assert (config.clip_s, config.group, config.lr, config.steps, config.kl_beta) == (9.0, 6, 3e-3, 9, 0.5)
    assert provenance["clip_s"].startswith(f"preset {preset}") and provenance["clip_s"].endswith("line 6")
    assert provenance["group"] == f"{file}, line 1" and provenance["lr"] == "--lr" and provenance["steps"] == "--set steps"
    assert "data" not in provenance and "micro_batch" not in provenance


def test_later_files_win_and_nested_keys_are_merged(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "explore: {noise: 0.1, bands: 8}\nrewards: [estoi=1]\n")
    second = write(tmp_path / "b.json", json.dumps({"explore": {"noise": 0.2}, "rewards": ["stoi"]}))
    config, provenance = resolve(RL, config_file=[first, second])
    assert (config.explore.noise, config.explore.bands, [r.name for r in config.rewards]) == (0.2, 8, ["stoi"])
    assert provenance["explore.bands"].startswith(str(first)) and provenance["explore.noise"].startswith(str(second))


def test_setting_a_part_keeps_the_rest_of_a_default() -> None:
    class Outer(Strict):
        mixing: Mixing = Mixing(snr_db=(1.0, 2.0))
        other: Mixing | None = None

    config, _ = resolve(Outer, sets=["mixing.reverb=0.5", "other.reverb=0.25"])
    assert config.mixing == Mixing(snr_db=(1.0, 2.0), reverb=0.5)
    assert config.other == Mixing(reverb=0.25)


def test_null_and_parts_replace_each_other() -> None:
    assert resolve(RL, sets=["lora=null"])[0].lora is None
    config, _ = resolve(RL, sets=["lora=null", "lora.rank=4"])
    assert config.lora is not None and config.lora.rank == 4 and config.lora.alpha == 64.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=2e-4", 2e-4),
        ("lr=0.5", 0.5),
        ("clip_range=1e-4", 1e-4),
        ("clip_range=auto", "auto"),
        ("explore.start=[1,3]", (1, 3)),
        ("explore.start=last", "last"),
        ("explore.antithetic=false", False),
        ("out=a=b", "a=b"),
        ("data=null", None),
        ("grad_clip= 0.9", 0.9),
    ],
)
def test_set_reads_values_as_yaml(text: str, value: Any) -> None:
    config: Any = resolve(RL, sets=[text])[0]
    for part in text.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


def test_set_reaches_into_lists() -> None:
    config, _ = resolve(RL, flags={"rewards": ["estoi=1", "pesq_wb=0.5"]}, sets=["rewards[1].weight=2", "rewards[0].bounds=[0.1,null]"])
    assert [r.weight for r in config.rewards] == [1.0, 2.0] and config.rewards[0].bounds == (0.1, None)
    assert resolve(RL, sets=["explore.basis[0]=contrast"])[0].explore.basis == ["contrast", "contrast"]
    with pytest.raises(UserError, match=r"rewards has no entry 0 \(--set rewards\[0\].weight\)"):
        resolve(RL, sets=["rewards[0].weight=2"])


def test_set_reaches_into_mappings() -> None:
    config, _ = resolve(Evaluate, flags={"models": {"base": "runs/base"}}, sets=["models.rl=runs/rl"])
    assert config.models == {"base": "runs/base", "rl": "runs/rl"}


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        (["estoi"], [("estoi", 1.0)]),
        (["pesq_wb=0.6", "my_pkg.mod:fn=2"], [("pesq_wb", 0.6), ("my_pkg.mod:fn", 2.0)]),
        (["dnsmos_ovrl[level_dbfs=-25]"], [("dnsmos_ovrl[level_dbfs=-25]", 1.0)]),
        (["dnsmos_ovrl[level_dbfs=-25,a=1]=0.6"], [("dnsmos_ovrl[level_dbfs=-25,a=1]", 0.6)]),
        ({"estoi": 2, "si_sdr": 0.1}, [("estoi", 2.0), ("si_sdr", 0.1)]),
        ("estoi=3", [("estoi", 3.0)]),
        ([{"name": "estoi", "scale": "none"}], [("estoi", 1.0)]),
    ],
)
def test_rewards_have_a_shorthand(given_as: Any, expected: list[tuple[str, float]]) -> None:
    assert [(r.name, r.weight) for r in resolve(RL, flags={"rewards": given_as})[0].rewards] == expected


def test_guards_have_a_shorthand() -> None:
    guards = resolve(RL, flags={"guards": ["estoi=0.02", "pesq_wb"]})[0].guards
    assert [(g.name, g.max_drop) for g in guards] == [("estoi", 0.02), ("pesq_wb", None)]


@pytest.mark.parametrize(
    ("layers", "what", "hint"),
    [
        ({"sets": ["stesp=3"]}, "'stesp' (--set stesp)", "did you mean steps?"),
        ({"sets": ["explore.nois=3"]}, "'explore.nois' (--set explore.nois)", "did you mean explore.noise?"),
        ({"sets": ["noise=0.1"]}, "'noise'", "did you mean explore.noise?"),
        ({"sets": ["lora.targts=all"]}, "'lora.targts'", "did you mean lora.targets?"),
        ({"flags": {"grop": 3}}, "'grop' (--grop)", "did you mean group?"),
        ({"sets": ["rewards=[{name: estoi, wieght: 1}]"]}, "'rewards[0].wieght'", "did you mean rewards[0].weight?"),
    ],
)
def test_unknown_keys_are_refused_with_the_closest_name(layers: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RL, **layers)
    assert what in caught.value.what and caught.value.try_this == hint
    assert "valid" in caught.value.why


def test_an_unknown_key_in_a_file_has_its_line(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "steps: 3\nexplore:\n  noise: 0.1\n  nosie: 0.2\n")
    with pytest.raises(UserError, match="x.yaml, line 4"):
        resolve(RL, config_file=file)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("steps=abc", "steps"),
        ("steps=0", "steps"),
        ("lora.rank=x", "lora.rank"),
        ("explore.start=[a,3]", "explore.start"),
        ("explore.kind=other", "explore.kind"),
        ("clip_range=often", "clip_range"),
        ("rewards=[estoi=x]", "rewards[0].weight"),
        ("rewards=[{weight: 1}]", "rewards[0].name"),
        ("explore=3", "explore"),
        ("steps=2.5", "steps"),
    ],
)
def test_type_errors_name_the_key_and_its_layer(text: str, name: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RL, sets=[text])
    assert caught.value.what.startswith(name) and f"(--set {text.split('=')[0]})" in caught.value.what


def test_type_errors_in_a_file_have_their_line_and_say_what_is_wanted(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "group: 4\nlr: fast\n")
    with pytest.raises(UserError, match="x.yaml, line 2") as caught:
        resolve(RL, config_file=file, sets=["group=x"])
    assert "lr" in str(caught.value) and "group" in str(caught.value) and "--set group" in str(caught.value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=1", "rewards[x].weight=1", "rewards[-1]=1", "[0]=1", "steps.x=1", "lr[0]=1"])
def test_malformed_set_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        resolve(RL, sets=[text])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1\n", "line 2"),
        ("steps: 1\nsteps: 2\n", "line 2: steps is there twice"),
        ("- 1\n- 2\n", "has to hold keys"),
        ("word", "has to hold keys"),
        ("1: 2\n", "has to hold keys"),
        ("a: !!python/object/apply:os.system [true]\n", "line 1"),
        ("steps: 1\n\tx: 2\n", "line 2"),
        ("explore: {noise: 1, noise: 2}\n", "explore.noise is there twice"),
        ("a: &a [*a]\n", "refers to itself"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path: Path, content: str, said: str) -> None:
    file = write(tmp_path / "x.yaml", content)
    with pytest.raises(UserError) as caught:
        load_yaml(file)
    assert said in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError):
            load_yaml(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="binary.yaml"):
        load_yaml(tmp_path / "binary.yaml")
    assert load_yaml(write(tmp_path / "empty.yaml", "")) == ({}, {})


def test_a_file_of_another_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rlspeech pretrain"):
        read_config(write(tmp_path / "x.yaml", "stage: pretrain\nsteps: 3\n"), RL)


def test_numbers_are_those_of_yaml_1_2() -> None:
    assert [parse_value(t) for t in ("2e-4", "-1E3", ".5e1", "1.5", "7", "1e-4x", "[1e2]")] == [2e-4, -1e3, 5.0, 1.5, 7, "1e-4x", [100.0]]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_as_text(x: float) -> None:
    assert parse_value(repr(x)) == x


def test_what_a_run_writes_down_can_be_read_again(tmp_path: Path) -> None:
    import yaml

    config, _ = resolve(RL, "flowse-grpo", sets=["rewards[0].bounds=[1,null]", "guards=[estoi=0.1]"])
    file = write(tmp_path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    assert resolve(RL, config_file=file)[0] == config
    assert resolve(RL, config_file=write(tmp_path / "r.json", config.model_dump_json()))[0] == config


def test_every_setting_can_be_listed_and_set_to_its_default() -> None:
    for schema in SCHEMAS.values():
        listed = list(keys(schema))
        assert len({k.name for k in listed}) == len(listed) > 5
        assert {k.name.split(".")[0] for k in listed} == set(schema.model_fields)
        for key in listed:
            value = json.loads(json.dumps(key.default, default=lambda v: v.model_dump()))
            assert resolve(schema, flags={key.name: value})[0] == schema(), key.name


# ---- presets


def test_there_are_presets_and_unknown_ones_are_refused() -> None:
    assert {"flowse-tiny", "flowse-small", "flowse-paper", "flowse-grpo", "flowse-grpo-gain", "flowse-grpo-dnsmos-only"} <= set(
        preset_names()
    )
    with pytest.raises(UserError, match="flowse-gpro") as caught:
        preset_path("flowse-gpro")
    assert caught.value.try_this.startswith("--preset flowse-grpo")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_what_it_is(name: str) -> None:
    path = preset_path(name)
    head = path.read_text(encoding="utf-8").splitlines()[:3]
    stage = preset_stage(path)
    assert stage in SCHEMAS and all(line.startswith("# ") for line in head)
    assert any("arXiv" in line for line in head) and any(f"rlspeech {stage} --preset {name}" in line for line in head)
    config, provenance = resolve(SCHEMAS[stage], name)
    assert stage_of(type(config)) == stage
    assert provenance and all(where.startswith(f"preset {name}, line ") for where in provenance.values())


@pytest.mark.parametrize("name", [n for n in preset_names() if preset_stage(preset_path(n)) == "rl"])
def test_rewards_and_guards_of_presets_exist(name: str) -> None:
    from rlspeech.rewards.base import available

    known = {column for family in available() for column in family.columns}
    config, _ = resolve(RL, name)
    assert {s.name for s in config.rewards} | {g.name for g in config.guards} <= known
    assert not {s.name for s in config.rewards} & {g.name for g in config.guards}, "a guard is a metric that is not rewarded"
    low = config.explore.nfe[0] if config.explore.nfe else 1  # null: the model's own steps, one at least
    assert config.explore.window <= low and (
        config.explore.start == "last" or 1 <= config.explore.start[0] <= config.explore.start[1] < low
    )
    assert config.prompts_per_step % config.updates_per_collection == 0


def test_flowse_grpo_is_the_published_setting() -> None:
    config, _ = resolve(RL, "flowse-grpo")
    assert config.steps * config.updates_per_collection == 5000
    assert config.steps * config.prompts_per_step * config.group == 900_000
    assert (config.explore.kind, config.explore.noise, config.explore.window, config.explore.start, config.explore.nfe) == (
        "sde",
        0.4,
        2,
        (1, 3),
        (7, 10),
    )
    assert {(r.name, r.weight, r.scale) for r in config.rewards} == {
        ("dnsmos_ovrl", 0.6, "batch"),
        ("speaker_similarity", 1.0, "batch"),
        ("speech_bert_score", 1.0, "batch"),
    }
    assert config.lora is not None and (config.lora.rank, config.lora.alpha, config.lora.targets) == (32, 64.0, "attention")


def test_avse_lr_is_the_published_setting() -> None:
    """Section 1.4 of what is known: sigma 0.05, clip 0.1, beta 1e-4, gamma 1.0, rate 1e-3; relative reward, no critic."""
    config, _ = resolve(RL, "avse-lr")
    assert (config.algo, config.ppo.form, config.ppo.kl_in) == ("ppo", "relative", "advantage")
    assert (config.explore.kind, config.explore.noise, config.group) == ("mask", 0.05, 1)
    assert (config.clip_range, config.kl_beta, config.supervised_weight, config.lr) == (0.1, 1e-4, 1.0, 1e-3)
    assert [r.name for r in config.rewards] == ["llm"]


@pytest.mark.parametrize("name", ["avse-dnsmos", "avse-lr-no-sisnr", "avse-lr-shuffled", "avse-sisnr"])
def test_baselines_and_controls_differ_in_one_thing(name: str) -> None:
    from rlspeech.config import Exploration

    published, other = (resolve(RL, n)[0].model_dump() for n in ("avse-lr", name))
    changed = {k for k in published if published[k] != other[k]}
    allowed = {"avse-dnsmos": {"rewards", "guards"}, "avse-lr-no-sisnr": {"supervised_weight"}, "avse-lr-shuffled": {"video"},
               "avse-sisnr": {"policy_weight", "explore", "clip_range", "kl_beta"}}  # the last three do nothing without a policy loss
    assert changed and changed <= allowed[name]
    assert other["policy_weight"] == 0 or other["explore"] == published["explore"] != Exploration().model_dump()


def parameters(model: FlowModel) -> int:
    import torch

    from rlspeech.models.flow import FlowEnhancer

    with torch.device("meta"):  # shapes only
        return sum(p.numel() for p in FlowEnhancer(model).parameters())


def test_flowse_paper_has_the_published_size() -> None:
    assert parameters(resolve(Pretrain, "flowse-paper")[0].model) == 46_179_920


def test_avse_paper_has_the_published_size() -> None:
    import torch

    from rlspeech.models.avse import AvseEnhancer

    config = resolve(Pretrain, "avse-paper")[0].avse
    with torch.device("meta"):
        assert sum(p.numel() for p in AvseEnhancer(config).parameters()) == pytest.approx(22.3e6, abs=5e4)
    assert config.channels == 2


def test_the_models_of_the_presets_can_be_built() -> None:
    assert parameters(resolve(Pretrain, "flowse-tiny")[0].model) < 7_500_000  # fp16 weights under 15 MB
    assert 10_000_000 < parameters(resolve(Pretrain, "flowse-small")[0].model) < 30_000_000
