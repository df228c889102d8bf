from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rlspeech.config import RL, Evaluate, Mixing, Pretrain, ScoreFolder, Strict
from rlspeech.plugins import SCHEMAS as PATHS
from rlspeech.plugins import load
from rlspeech.schema import keys, load_yaml, parse_value
from rlspeech.settings import read_config, resolve
from rlspeech.types import UserError

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
    assert [provenance[k] for k in ("group", "lr", "steps")] == [f"{file}, line 1", "--lr", "--set steps"]
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


VALUES = {"lr=2e-4": 2e-4, "lr=0.5": 0.5, "clip_range=1e-4": 1e-4, "clip_range=auto": "auto", "out=a=b": "a=b"}
VALUES |= {"explore.start=[1,3]": (1, 3), "explore.start=last": "last", "explore.antithetic=false": False}
VALUES |= {"data=null": None, "grad_clip= 0.9": 0.9, "sampling.language=no": "no", "sampling.prompt=12:30": "12:30"}
VALUES |= {"explore.antithetic=off": False, "out=2024-01-01": "2024-01-01", "steps=010": 10}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_set_reads_values_as_yaml(text: str, value: Any) -> None:
    config: Any = resolve(RL, sets=[text])[0]
    for part in text.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


def test_set_reaches_into_lists() -> None:
    sets = ["rewards[1].weight=2", "rewards[0].bounds=[0.1,null]"]
    config, _ = resolve(RL, flags={"rewards": ["estoi=1", "pesq_wb=0.5"]}, sets=sets)
    assert [r.weight for r in config.rewards] == [1.0, 2.0] and config.rewards[0].bounds == (0.1, None)
    assert resolve(RL, sets=["explore.basis[0]=contrast"])[0].explore.basis == ["contrast", "contrast"]
    with pytest.raises(UserError, match=r"(?s)rewards.* 0 \(--set rewards\[0\].weight\).*try: .*--reward"):
        resolve(RL, sets=["rewards[0].weight=2"])
    with pytest.raises(UserError, match=r"(?s)rewards.* 2 .*try: .*rewards\[1\]"):
        resolve(RL, flags={"rewards": ["estoi", "lsd"]}, sets=["rewards.2.weight=2"])


@pytest.mark.parametrize("path", ["rewards.1.scale", "rewards[1].scale"])
def test_list_entries_are_written_either_way(path: str, tmp_path: Path) -> None:
    config, provenance = resolve(RL, flags={"rewards": ["estoi=1", "pesq_wb=0.5"]}, sets=[f"{path}=none"])
    assert [r.scale for r in config.rewards] == ["batch", "none"] and provenance["rewards[1].scale"] == f"--set {path}"
    file = write(tmp_path / "x.yaml", "rewards: {estoi: 1, lsd: 2}\n")
    assert [r.scale for r in resolve(RL, config_file=file, sets=[f"{path}=group"])[0].rewards] == ["batch", "group"]
    assert [r.scale for r in resolve(RL, "flowse-grpo", sets=[f"{path}=group"])[0].rewards][1] == "group"


def test_entries_of_pairs_can_be_set() -> None:
    assert resolve(Pretrain, sets=["mixing={snr_db: [0, 5]}", "mixing.snr_db.1=9"])[0].mixing.snr_db == (0, 9)
    assert resolve(RL, sets=["explore.nfe=[7,10]", "explore.nfe[0]=5"])[0].explore.nfe == (5, 10)


def test_set_takes_whole_mappings() -> None:
    sets = ["explore={noise: 0.2, bands: 8}", "diffro.attribute_weights={sex: 0.1}", "diffro.attribute_weights.age=0.2"]
    config, _ = resolve(RL, sets=sets)
    assert (config.explore.noise, config.explore.bands, config.explore.kind) == (0.2, 8, "gain")
    assert config.diffro.attribute_weights == {"sex": 0.1, "age": 0.2}
    rewards = resolve(RL, sets=["rewards={estoi: 2, lsd: 1}"])[0].rewards
    assert [(r.name, r.weight) for r in rewards] == [("estoi", 2.0), ("lsd", 1.0)]
    compared, _ = resolve(Evaluate, flags={"models": {"base": "runs/base"}}, sets=["models.rl=runs/rl"])
    assert compared.models == {"base": "runs/base", "rl": "runs/rl"}


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
    asked = ["estoi=0.02", "pesq_wb", "si_sdr?=0.2:hold", "mine.mod:fn=1:hold", "mine.mod:fn"]
    guards = resolve(RL, flags={"guards": asked})[0].guards
    assert resolve(RL, flags={"guards": {"estoi": 0.02, "si_sdr?": "0.2:hold"}})[0].guards == [guards[0], guards[2]]
    held = [("si_sdr?", 0.2, True), ("mine.mod:fn", 1, True), ("mine.mod:fn", None, False)]
    assert [(g.name, g.max_drop, g.hold) for g in guards][2:] == held and guards[0].max_drop == 0.02


@pytest.mark.parametrize(
    ("layers", "what", "hint"),
    [
        ({"sets": ["stesp=3"]}, "'stesp' (--set stesp)", "did you mean steps?"),
        ({"sets": ["explore.nois=3"]}, "'explore.nois' (--set explore.nois)", "did you mean explore.noise?"),
        ({"sets": ["noise=0.1"]}, "'noise'", "did you mean explore.noise?"),
        ({"sets": ["lora.targts=all"]}, "'lora.targts'", "did you mean lora.targets?"),
        ({"flags": {"grop": 3}}, "'grop' (--grop)", "did you mean group?"),
        ({"sets": ["rewards=[{name: estoi, wieght: 1}]"]}, "'rewards[0].wieght'", "did you mean rewards[0].weight?"),
        ({"sets": ["explor.noise=1"]}, "'explor'", "did you mean explore.noise?"),
        ({"sets": ["lora_rank=1"]}, "'lora_rank'", "did you mean lora.rank?"),
        ({"sets": ["temprature=1"]}, "'temprature'", "did you mean sampling.temperature?"),
        ({"sets": ["explore.baands=1"]}, "'explore.baands'", "did you mean explore.bands?"),
        ({"sets": ["explore={nose: 1}"]}, "'explore.nose'", "did you mean explore.noise?"),
        ({"sets": ["rewards=[estoi]", "rewards.0.scal=none"]}, "'rewards[0].scal'", "did you mean rewards[0].scale?"),
    ],
)
def test_unknown_keys_are_refused_with_the_closest_name(layers: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RL, **layers)
    assert what in caught.value.what and caught.value.try_this == hint
    assert "valid" in caught.value.why and len(caught.value.why) < 250, "a list that can be read"


def test_a_key_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(UserError, match="qqqq") as caught:
        resolve(RL, sets=["qqqq=1"])
    assert {"steps", "explore"} < set(caught.value.why.split(": ")[1].split(", "))
    assert caught.value.try_this == "rlspeech presets keys rl"


def test_an_unknown_key_in_a_file_has_its_line(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "steps: 3\nexplore:\n  noise: 0.1\n  nosie: 0.2\n")
    with pytest.raises(UserError, match="x.yaml, line 4"):
        resolve(RL, config_file=file)


PARTS = {"rewards=[estoi=x]": "rewards[0].weight", "rewards=[{weight: 1}]": "rewards[0].name"}
PARTS |= {"rewards=[{name: estoi, scale: nonne}]": "rewards[0].scale"}
OTHERS = ["steps=abc", "steps=2.5", "explore.start=[a,3]", "explore.kind=other", "clip_range=often", *PARTS]


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("steps=0", "steps is int >= 1, by default 60"),
        ("ppo.discount=3", "ppo.discount is float 0 to 1, by default 1.0"),
        ("lr=0", "lr is float > 0"),
        ("explore.kind=gian", "did you mean explore.kind=gain? explore.kind is sde|cps|dance|gain|mask"),
        ("lr_schedule=x", "lr_schedule is linear|constant, by default 'linear'"),
        ("rewards=[{name: estoi, scale: nonne}]", "did you mean rewards[0].scale=none?"),
        ("diffro.attribute_weights.sex=x", "diffro.attribute_weights.sex is float"),
        ("explore=3", "explore has parts: kind, noise"),
        ("rewards=3", "rewards is a list whose entries have name, weight"),
        ("lora.rank=x", "lora.rank is int 1 to 65536, by default 32"),
        *((text, "") for text in OTHERS),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_its_layer_and_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RL, sets=[text])
    key = text.split("=")[0]
    assert caught.value.what.startswith(PARTS.get(text, key)) and f"(--set {key})" in caught.value.what
    assert caught.value.try_this.startswith(allowed)


@pytest.mark.parametrize(("key", "wrong", "right"), [("algo", "gprpo", "grpo"), ("task", "flowsee", "flowse")])
def test_a_wrong_choice_is_mended_as_it_was_given(key: str, wrong: str, right: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RL, flags={key: wrong})
    assert f"--{key} {right}?" in caught.value.try_this and "str" not in caught.value.try_this


def test_type_errors_in_a_file_have_their_line_and_say_what_is_wanted(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "group: 4\nlr: fast\n")
    with pytest.raises(UserError, match="x.yaml, line 2") as caught:
        resolve(RL, config_file=file, sets=["group=x"])
    assert "lr" in str(caught.value) and "group" in str(caught.value) and "--set group" in str(caught.value)


MALFORMED = ["steps", "=3", "a..b=1", "rewards[x].weight=1", "rewards[-1]=1", "[0]=1", "steps.x=1", "lr[0]=1"]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_set_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        resolve(RL, sets=[text])


BROKEN = {"a: [1\n": "line 2", "steps: 1\n\tx: 2\n": "line 2", "a: !!python/object/apply:os.system [true]\n": "line 1"}
BROKEN |= dict.fromkeys(("- 1\n- 2\n", "word", "1: 2\n"), "steps: 100") | {"a: &a [*a]\n": "refers to itself"}
LEVELS = zip("abcdefg", "bcdefgh", strict=True)
BOMB = "a: &a [x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in LEVELS)
BROKEN |= {BOMB: "aliases", "seed: \0\n": "#x0000", "a: " + "[" * 1000: "too deeply"}
TAGS = ("!!int abc", "!!float x", "!!bool xx", "!!timestamp x", "!!int 0x_", "!!int 0b_", "9" * 5000)
BROKEN |= {f"seed: {value}\n": "cannot be read" for value in TAGS}
BROKEN |= {"steps: 1\nsteps: 2\n": "line 2: duplicate key steps"}
BROKEN |= {"explore: {noise: 1, noise: 2}\n": "duplicate key explore.noise"}


@pytest.mark.parametrize(("content", "said"), BROKEN.items())
def test_broken_files_are_refused_with_the_line(tmp_path: Path, content: str, said: str) -> None:
    file = write(tmp_path / "x.yaml", content)
    with pytest.raises(UserError, match=said):
        load_yaml(file)


ODD = ["2024-13-45", "2024-01-01", "25:99:99", "!!int abc", "!!bool xx", "0b_", "9" * 20, "9" * 5000, "[" * 400]


@pytest.mark.parametrize("text", [*ODD, "-1", ".inf", "1e400"])
def test_no_value_of_a_seed_is_worse_than_a_wrong_one(text: str) -> None:
    with pytest.raises(UserError, match="seed") as caught:
        resolve(RL, sets=[f"seed={text}"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ['"a\\0b"', '"\\ud800"'])
def test_texts_that_no_file_can_have_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out"):
        resolve(RL, config_file=write(tmp_path / "x.yaml", f"out: {text}\n"))
    assert resolve(RL, flags={"out": "caf\udce9"})[0].out == "caf\udce9", "bytes of a name that are not UTF-8"


def classes(annotation: Any) -> set[type[BaseModel]]:
    """The settings classes in a type, and those in them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(classes(f.annotation) for f in annotation.model_fields.values()))
    return set[type[BaseModel]]().union(*map(classes, get_args(annotation)))


def with_number(annotation: Any, x: float) -> Any:
    """A value of a type with ``x`` wherever there is a number; None where there is none."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return x
    if kind is Annotated:
        return with_number(parts[0], x)
    inside = [with_number(part, x) for part in parts]
    if kind is tuple:
        return inside if None not in inside else None
    if kind is types.UnionType or "Union" in str(kind):
        return next((value for value in inside if value is not None), None)
    found = next((value for value in inside if value is not None), None) if kind in (list, dict) else None
    return found if found is None else {"name": found} if kind is dict else [found]


# the others are not negative, or a level in dB
SIGNED = {"RewardSpec.weight", "RewardSpec.bounds", "DiffRO.attribute_weights", "RL.truncated_reward"}


@pytest.mark.parametrize("path", PATHS.values())
def test_every_number_has_its_range_and_none_is_nan_or_infinite(path: str) -> None:
    numbers = 0
    for cls in classes(load(f"rlspeech.{path}")):
        blank = cls.model_construct()
        for name, field in cls.model_fields.items():
            signed = f"{cls.__name__}.{name}" in SIGNED
            for x in (math.nan, math.inf, -math.inf, True, 1e12, -1e12 if signed else -300.0):
                value = with_number(field.annotation, x)
                if value is None:
                    continue
                numbers += 1
                with pytest.raises(ValidationError):
                    cls.__pydantic_validator__.validate_assignment(blank, name, value)
                    pytest.fail(f"{cls.__name__}.{name} takes {value}")
    assert numbers or path.endswith("Join")


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
    values = {"2e-4": 2e-4, "-1E3": -1e3, ".5e1": 5.0, "1.5": 1.5, "7": 7, "1e-4x": "1e-4x", "[1e2]": [100.0]}
    assert {text: parse_value(text) for text in values} == values


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
