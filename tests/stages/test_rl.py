"""RL end to end on a model of a few thousand weights: resume, validation, guards, and what stops a run."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_speech import SMALL_RL, assert_same, interrupted, read_rows

from rlspeech.config import RL, Exploration, GuardSpec, Hold, Lora, RewardSpec
from rlspeech.models.hub import load_model
from rlspeech.report.runs import open_runs
from rlspeech.stages import pretrain, rl
from rlspeech.types import UserError

GAIN = Exploration(kind="gain", noise=0.3, nfe=(2, 2), bands=4)
HELD: dict[str, Any] = {"hold": Hold(every=1)}  # ESTOI is rewarded, and falls by 7e-7
HELD["guards"] = [GuardSpec(name="stoi"), GuardSpec(name="estoi", max_drop=1e-6, hold=True)]
SDE = Exploration(kind="sde", noise=0.4, window=2, start=(1, 1), nfe=(3, 3), shared_latent=False)


def _config(flow: dict[str, str], out: Path, **changes: Any) -> RL:
    what = {"rewards": [RewardSpec(name="si_sdr"), RewardSpec(name="estoi", weight=0.5)], "lora": Lora(rank=2, alpha=4)}
    what |= {"guards": [GuardSpec(name="stoi")], "explore": GAIN, "clip_s": 0.8, "lr": 1e-3, "seed": 2}
    return RL(**{**SMALL_RL, **flow, "out": str(out), "steps": 4, "group": 4, **what, **changes})


@pytest.fixture(scope="module")
def whole(flow: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, rl.run(_config(flow, out))


def test_what_a_run_leaves(flow: dict[str, str], whole: tuple[Path, dict[str, Any]]) -> None:
    out, summary = whole
    assert summary["steps"] == 4 and summary["stopped"] == "all steps done"
    assert set(summary["difference"]) == {"si_sdr", "estoi", "stoi", "reward"}
    assert math.isfinite(summary["difference"]["si_sdr"]["mean"])
    json.dumps(summary, allow_nan=False)
    steps = [r for r in read_rows(out) if "reward" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    names = "grad_agreement critical_prompts ratio_mean kl clipped_positive clipped_negative groups_with_signal lr grad_norm"
    names += " constant_groups unscorable seconds/rollout seconds/reward seconds/update reward/si_sdr"
    for key in names.split():
        assert all(key in r for r in steps), key
    assert steps[0]["kl"] == 0.0 and steps[0]["ratio_mean"] == pytest.approx(1, abs=1e-4) and steps[-1]["kl"] > 0
    assert -1 <= steps[0]["grad_agreement"] <= 1
    before, after = load_model(flow["model"], "flowse")[0].state_dict(), load_model(str(out), "flowse")[0].state_dict()
    best = load_model(str(out / "checkpoints" / (out / "checkpoints" / "best").read_text().strip()), "flowse")[0]
    assert all(torch.equal(v, after[k]) for k, v in best.state_dict().items())  # is the one that is used
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert moved and all(".attention.to_" in k for k in moved)  # the adapter, folded in, and nothing else
    assert list(out.glob("checkpoints/step_*/adapter/adapter_model.safetensors"))
    assert len(list(out.glob("samples/step_*/*.flac"))) >= 2
    assert summary["report"] == str(out / "report.html") and "<audio" in (out / "report.html").read_text()
    scored = read_rows(out, "scores.jsonl")
    assert [r["step"] for r in scored] == [0, 2, 4]
    assert scored[-1]["si_sdr"] == pytest.approx(summary["after"]["si_sdr"]["mean"])
    assert open_runs([str(out)])[0].state() == "step 4 of 4: all steps done"


def test_the_validation_is_of_the_same_clips_with_the_same_latents(flow: dict[str, str], tmp_path: Path) -> None:
    summary = rl.run(_config(flow, tmp_path / "still", lr=1e-12, steps=2, valid_every=1))
    for name, found in summary["before"].items():
        assert summary["after"][name]["mean"] == pytest.approx(found["mean"], abs=1e-4)
        assert abs(summary["difference"][name]["mean"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [HELD, {"explore": SDE, "lora": None, "updates_per_collection": 2}], ids=["gain-lora", "sde-full"]
)
def test_two_and_two_steps_are_four(flow: dict[str, str], tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = tmp_path / "whole"
    rl.run(_config(flow, whole, **changes))
    interrupted(rl.run, _config(flow, tmp_path / "cut", **changes), 3)
    assert [r["step"] for r in read_rows(tmp_path / "cut") if "reward" in r] == [1, 2, 3]
    assert (tmp_path / "cut" / "report.html").is_file()
    assert "interrupted" in open_runs([str(tmp_path / "cut")])[0].state()
    rl.run(_config(flow, tmp_path / "cut", **changes))
    assert_same(whole, tmp_path / "cut")
    passing = ("seconds", "memory_mb", "time")  # of these runs
    steps = [[r for r in read_rows(p) if "reward" in r] for p in (whole, tmp_path / "cut")]
    a, b = ([{k: v for k, v in r.items() if not k.startswith(passing)} for r in rows] for rows in steps)
    assert a == b
    assert (whole / "scores.jsonl").read_text() == (tmp_path / "cut" / "scores.jsonl").read_text()
    assert (len({r.get("hold/estoi/lambda") for r in a}) > 1) == (changes is HELD)


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(
    flow: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    rl.run(_config(flow, out, steps=2))
    summary = rl.run(_config(flow, out, steps=4))
    assert summary["steps"] == 4 and "learning rate falls over all 4" in capsys.readouterr().err
    rows = read_rows(out)
    assert [r["step"] for r in rows if "reward" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in rows if "valid/reward" in r] == [0, 2, 4]
    # over 2 steps, then over 4
    assert [r["lr"] for r in rows if "reward" in r] == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])
    with pytest.raises(UserError, match="other settings"):
        rl.run(_config(flow, out, steps=5, lr=1e-4))


PARTS = {"after": "valid", "difference": "delta"}


def test_validation_has_intervals_in_the_log(flow: dict[str, str], tmp_path: Path) -> None:
    summary = rl.run(_config(flow, tmp_path / "run", valid=flow["data"], valid_items=4, steps=1, valid_every=1, **HELD))
    last = [r for r in read_rows(tmp_path / "run") if "valid/si_sdr" in r][-1]
    for name, (part, column) in itertools.product(("si_sdr", "stoi", "reward"), PARTS.items()):
        logged = [last[f"{column}/{name}{end}"] for end in ("", "_lo", "_hi")]
        assert logged == [summary[part][name][k] for k in ("mean", "lo", "hi")]
    assert summary["beyond"] == ["estoi"] * (last["delta/estoi"] < -1e-6)
    assert all(isinstance(v, int | float) for v in last.values()) and last["seconds/validate"] > 0


@pytest.mark.slow
def test_the_reward_that_is_trained_goes_up(flow: dict[str, str], tmp_path: Path) -> None:
    sizes = {"steps": 30, "prompts_per_step": 4, "group": 8, "micro_batch": 4, "valid_every": 30, "save_every": 30}
    what = {"rewards": [RewardSpec(name="si_sdr")], "lr": 3e-3, "lora": None, "kl_beta": 0.0}
    config = _config(flow, tmp_path / "up", **sizes, **what)
    rl.run(config)
    rewards = [r["reward/si_sdr"] for r in read_rows(tmp_path / "up") if "reward" in r]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5


def test_rewards_and_guards_that_do_not_exist_are_named_before_anything_runs(
    flow: dict[str, str], tmp_path: Path
) -> None:
    for changes in ({"rewards": [RewardSpec(name="loveliness")]}, {"guards": [GuardSpec(name="loveliness")]}):
        with pytest.raises(UserError, match="loveliness"):
            rl.run(_config(flow, tmp_path / "x", **changes))
    with pytest.raises(UserError, match="no checkpoint"):
        rl.run(_config(flow, tmp_path / "y", model=str(tmp_path / "nowhere")))


def test_rows_of_processes_become_one() -> None:
    one = {"reward": 1.0, "groups": 5, "grad_norm": 0.1, "seconds/reward": 2.0, "wer": math.nan}
    two = {**one, "reward": 2.0, "seconds/reward": 1.0, "wer": 0.5, "kl": 0.25}
    made = rl.merged([(one, {"": 8, "reward": 6, "wer": 0}), (two, {"": 8, "reward": 2, "wer": 4})])
    # the reward of those that could be scored
    assert made == {**one, "reward": 1.25, "wer": 0.5, "kl": 0.25}
    assert rl.merged([(one, {"": 8})]) is one


@pytest.mark.parametrize("trainer", [rl.Session, pretrain.Trainer])
def test_a_state_that_somebody_edited_is_refused(trainer: Any, tmp_path: Path) -> None:
    folder = SimpleNamespace(latest=lambda agree: (tmp_path, {"trained": {}, "weights": 5}))
    with pytest.raises(UserError):
        trainer.resume(SimpleNamespace(folder=folder, engine=SimpleNamespace(agree=None)))
