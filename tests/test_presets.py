"""Every preset: loads as the command line loads it, says what it is, whose it is and how it is run, and is what was published."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest
from tiny_cli import RUN, called

from rlspeech.cli import app
from rlspeech.config import RL, FlowModel, Lora, Pretrain
from rlspeech.settings import preset_names, preset_path, preset_stage, resolve, stage_of
from rlspeech.types import UserError
from tests.test_cli import Stages
from tests.test_cli import stages as stages
from tests.test_settings import SCHEMAS

PAPERS = {  # paper -> its systems and the baselines that it is held against
    "2601.16483": {"flowse-paper", "flowse-grpo", "flowse-grpo-dnsmos-only"},
    "2603.13952": {"avse-paper", "avse-lr", "avse-dnsmos", "avse-sisnr", "avse-lr-no-sisnr", "avse-lr-shuffled"},
    "2509.18569": {"asr-grpo", "asr-grpo-r1", "asr-grpo-r1r2", "asr-sft"},
    "2509.01939": {"asr-edits"},
    "2601.21337": {"asr-gspo"},
}


def head(name: str) -> list[str]:
    """The lines of the comment that a preset begins with."""
    lines = preset_path(name).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines)]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_what_it_is_and_its_command_loads_it(name: str, stages: Stages) -> None:
    lines, stage = head(name), preset_stage(preset_path(name))
    assert stage in SCHEMAS and len(lines) >= 3
    assert 20 <= len(lines[0]) <= 150 and not lines[0].startswith("rlspeech"), "what `presets ls` shows"
    assert re.search(r"arXiv \d{4}\.\d{4,5}", "\n".join(lines)), "whose it is"
    commands = [line for line in lines if line.startswith("rlspeech ")]
    assert len(commands) == 1 and commands[0].startswith(f"rlspeech {stage} --preset {name}")
    called(*shlex.split(commands[0])[1:])
    assert RUN.invoke(app, ["presets", "show", name]).stdout == preset_path(name).read_text(encoding="utf-8")
    config = stages.config
    assert stage_of(type(config)) == stage and config.out, "its command says where results go"
    plain, provenance = resolve(SCHEMAS[stage], name)
    assert provenance and all(where.startswith(f"preset {name}, line ") for where in provenance.values())
    assert config.task == plain.task  # type: ignore[attr-defined]


def test_presets_are_listed_with_a_line_each() -> None:
    listed = called("presets", "ls")["presets"]
    assert [p["name"] for p in listed] == preset_names()
    assert all(p["about"] == head(p["name"])[0] and "\n" not in p["about"] for p in listed)
    assert len({p["about"] for p in listed}) == len(listed), "no two read the same"
    shown = RUN.invoke(app, ["presets", "ls"]).stdout.splitlines()
    assert all(sum(line.split()[:1] == [p["name"]] and p["about"] in line for line in shown) == 1 for p in listed)


@pytest.mark.parametrize("paper", PAPERS)
def test_published_systems_and_their_baselines_have_presets(paper: str) -> None:
    for name in PAPERS[paper]:
        assert any(paper in line for line in head(name)), name


def test_unknown_presets_are_refused_with_the_closest_name() -> None:
    with pytest.raises(UserError, match="(?s)flowse-gpro.*try: --preset flowse-grpo"):
        preset_path("flowse-gpro")


@pytest.mark.parametrize("name", [n for n in preset_names() if preset_stage(preset_path(n)) == "rl"])
def test_rewards_and_guards_of_presets_exist(name: str) -> None:
    from rlspeech.rewards import base

    config, _ = resolve(RL, name)
    rewarded = {base.resolve(s.name).column for s in config.rewards}
    watched = {n[:-1] if (n := g.name).endswith("?") else base.resolve(n).column for g in config.guards}
    assert watched <= set(base._columns)
    assert (rewarded or config.algo == "diffro") and not rewarded & watched, "a guard is a metric that is not rewarded"
    low = config.explore.nfe[0] if config.explore.nfe else 1  # null: the model's own steps, one at least
    start = config.explore.start
    assert config.explore.window <= low and (start == "last" or 1 <= start[0] <= start[1] < low)
    assert config.prompts_per_step % config.updates_per_collection == 0


def test_flowse_grpo_is_the_published_setting() -> None:
    config, _ = resolve(RL, "flowse-grpo")
    assert config.steps * config.updates_per_collection == 5000
    assert config.steps * config.prompts_per_step * config.group == 900_000
    e = config.explore
    assert (e.kind, e.noise, e.window, e.start, e.nfe) == ("sde", 0.4, 2, (1, 3), (7, 10))
    weights = {"dnsmos_ovrl": 0.6, "speaker_similarity": 1.0, "speech_bert_score": 1.0}
    assert {r.name: r.weight for r in config.rewards} == weights and {r.scale for r in config.rewards} == {"batch"}
    assert config.lora == Lora(rank=32, alpha=64.0, targets="attention")


def test_avse_lr_is_the_published_setting() -> None:
    """Section 1.4 of what is known: sigma 0.05, clip 0.1, beta 1e-4, gamma 1.0, rate 1e-3; relative reward, no critic."""
    config, _ = resolve(RL, "avse-lr")
    assert (config.algo, config.ppo.form, config.ppo.kl_in) == ("ppo", "relative", "advantage")
    assert (config.explore.kind, config.explore.noise, config.group) == ("mask", 0.05, 1)
    assert (config.clip_range, config.kl_beta, config.supervised_weight, config.lr) == (0.1, 1e-4, 1.0, 1e-3)
    assert (config.epochs, config.clip_s) == (3, 3.0)
    assert [r.name for r in config.rewards] == ["llm"]


ALLOWED = {"avse-dnsmos": {"rewards", "guards"}, "avse-lr-no-sisnr": {"supervised_weight"}}
ALLOWED |= {"avse-lr-shuffled": {"video"}}
# all but the first do nothing without a policy loss
ALLOWED |= {"avse-sisnr": {"policy_weight", "algo", "group", "explore", "clip_range", "kl_beta"}}


@pytest.mark.parametrize("name", ALLOWED)
def test_baselines_and_controls_differ_in_one_thing(name: str) -> None:
    from rlspeech.config import Exploration

    published, other = (resolve(RL, n)[0].model_dump() for n in ("avse-lr", name))
    changed = {k for k in published if published[k] != other[k]}
    assert changed and changed <= ALLOWED[name]
    assert other["policy_weight"] == 0 or other["explore"] == published["explore"] != Exploration().model_dump()


def parameters(model: FlowModel, lora: Lora | None = None) -> int:
    import torch

    from rlspeech.models.adapters import Adapted
    from rlspeech.models.flow import FlowEnhancer

    with torch.device("meta"):  # shapes only
        return sum(p.numel() for p in Adapted(FlowEnhancer(model), lora).parameters())


def test_flowse_paper_has_the_published_size() -> None:
    config = resolve(Pretrain, "flowse-paper")[0]
    model = config.model
    assert (config.lr_schedule, model.guidance, config.magnitude_weight) == ("linear", 1.0, 0.0)
    assert parameters(model) == 46_179_920
    assert parameters(model, Lora(rank=32, targets="attention")) == 1_572_864


def test_avse_paper_has_the_published_size() -> None:
    import torch

    from rlspeech.models.avse import AvseEnhancer

    whole = resolve(Pretrain, "avse-paper")[0]
    assert (whole.lr_schedule, whole.ema, whole.warmup) == ("plateau", 0.0, 0) and whole.grad_clip > 1e6
    config = whole.avse
    with torch.device("meta"):
        models = [AvseEnhancer(config.model_copy(update={"variant": v})) for v in ("own", "avse4")]
    assert [round(sum(p.numel() for p in m.parameters()) / 1e6, 1) for m in models] == [22.3, 22.3]
    assert config.channels == 2 and config.variant == "avse4"


def test_the_models_of_the_presets_can_be_built() -> None:
    assert parameters(resolve(Pretrain, "flowse-tiny")[0].model) < 7_500_000  # fp16 weights under 15 MB
    assert 10_000_000 < parameters(resolve(Pretrain, "flowse-small")[0].model) < 30_000_000


TOKENS = [n for n in preset_names() if n.startswith(("asr-", "tts-")) and preset_stage(preset_path(n)) == "rl"]


@pytest.mark.parametrize("name", TOKENS)
def test_presets_of_tokens_are_as_published(name: str) -> None:
    """Loops take part; GSPO is a mean over rollouts; DiffRO alone is a sum with fresh noise."""
    from rlspeech.tasks import complete, get_task

    found, _ = resolve(RL, name)
    config = complete(found, get_task(found.task))
    assert config.truncated == "keep" and config.kl_target is None
    assert (config.precision == "auto") != ("demo" in name)
    assert (config.ratio_level == "sequence") <= (config.loss_mean == "sequence")
    if config.algo == "diffro":
        assert config.diffro.noise == "fresh" and (config.diffro.reduction == "sum") != ("hpro" in name)
