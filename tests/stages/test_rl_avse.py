"""``rl`` on the audio-visual task: both algorithms, the control without RL, other videos, resuming, and what the task fills in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_avse import av_clips, tiny_avse, write_talkers
from tiny_speech import SMALL_RL, assert_same, interrupted, read_rows, state_at

from rlspeech.config import PPO, RL, Exploration, GuardSpec, Lora, RewardSpec
from rlspeech.data.batches import with_video
from rlspeech.models.hub import load_model, save_model
from rlspeech.stages import probe, rl
from rlspeech.tasks import complete, get_task
from rlspeech.types import UserError

pytestmark = pytest.mark.slow
STEPS = SMALL_RL["steps"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rl-avse")
    data = write_talkers(folder / "pairs")
    save_model(folder / "model", tiny_avse(), "avse", facts={"data": "none"})
    return {"data": str(data), "model": str(folder / "model")}


def _config(given: dict[str, str], out: Path, **changes: Any) -> RL:
    what = {"task": "avse", "algo": "ppo", "rewards": [RewardSpec(name="si_sdr", scale="none")], "clip_s": 0.8}
    what |= {"guards": [GuardSpec(name="stoi")], "save_every": 1, "lr": 1e-3}
    return RL(**{**SMALL_RL, "out": str(out), **what, **given, **changes})


CASES: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo-published": {"explore": Exploration(kind="mask", noise=0.05, antithetic=False), "group": 1, "clip_range": 0.1},
    "ppo-samples": {"supervised_on": "sample", "supervised_weight": 1.0},
    "grpo-lora": {"algo": "grpo", "lora": Lora(rank=2, alpha=4, targets="all"), "supervised_weight": 0.0},
    "no-video": {"video": "none"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=list(CASES))
def test_two_steps_of_everything(given: dict[str, str], tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = rl.run(_config(given, tmp_path / "run", **changes))
    assert summary["steps"] == STEPS and summary["after"]["si_sdr"]["n"] == 1
    model, config = load_model(summary["run"], "avse")
    assert config["facts"]["rl"]["algo"] == changes.get("algo", "ppo")
    before = load_model(given["model"], "avse")[0].state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    rows = [r for r in read_rows(tmp_path / "run") if "lr" in r]
    assert len(rows) == STEPS and rows[0]["ratio_max_gap"] < 1e-3 and rows[0]["grad_norm"] > 0
    assert ("supervised_loss" in rows[0]) == (changes.get("supervised_weight", 1.0) > 0)


def test_other_videos_train_another_model(given: dict[str, str], tmp_path: Path) -> None:
    for video in ("right", "shuffled"):
        rl.run(_config(given, tmp_path / video, video=video, policy_weight=0.0, valid_items=2))
    one, two = state_at(tmp_path / "right", STEPS), state_at(tmp_path / "shuffled", STEPS)
    assert any(not torch.equal(v, two[k]) for k, v in one.items())


def test_who_sees_what() -> None:
    clips = av_clips(4000, 4000, 4800)
    assert with_video(clips, "right") is clips and all(c.lips is None for c in with_video(clips, "none"))
    swapped = with_video(clips, "shuffled")
    assert [c.key for c in swapped] == [c.key for c in clips]
    assert all(c.lips is clips[i - 1].lips and c.noisy is clips[i].noisy for i, c in enumerate(swapped))
    with pytest.raises(UserError, match="another one's video"):
        with_video(clips[:1], "shuffled")


def test_a_run_that_goes_on_ends_where_the_whole_one_did(given: dict[str, str], tmp_path: Path) -> None:
    config = {"ppo": PPO(form="critic"), "steps": 3, "valid_every": 3}  # a critic has a state of its own
    rl.run(_config(given, tmp_path / "whole", **config))
    interrupted(rl.run, _config(given, tmp_path / "cut", **config), 2)
    rl.run(_config(given, tmp_path / "cut", **config))
    assert_same(tmp_path / "whole", tmp_path / "cut", 3)


def test_the_task_fills_in_what_is_not_given() -> None:
    task = get_task("avse")
    filled = complete(RL(task="avse", lr=3e-3), task)
    assert filled.lr == 3e-3 and filled.lora is None
    assert filled.supervised_weight == task.rl_defaults["supervised_weight"]
    assert [r.name for r in filled.rewards] == ["llm"] and "si_sdr" in [g.name for g in filled.guards]
    assert complete(RL(), get_task("flowse")).supervised_weight == 0.0


def test_a_flow_checkpoint_is_refused_with_the_task_that_takes_it(given: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="audio-visual") as caught:
        rl.run(_config(given, tmp_path / "run", model=str(Path(rl.__file__).parent.parent / "assets" / "flowse")))
    assert "--task flowse" in caught.value.why


def test_probe_compares_masks_and_gains(given: dict[str, str], tmp_path: Path) -> None:
    settings = [Exploration(kind="gain", bands=2), Exploration(kind="mask", noise=0.05)]
    found = probe.run(_config(given, tmp_path / "probe", probe_batches=4, probe_settings=settings))
    assert [r["explore"]["kind"] for r in found["rows"]] == ["gain", "mask"]
    assert all(r["si_sdr"]["n"] > 0 for r in found["rows"])
