"""RL on synthesis: validation looks at what a reward does not, and a guard stops the run before the speech is spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_cli import rows_of
from tiny_runs import write_rows
from tiny_speech import SMALL_RL, read_rows

from rlspeech.config import PPO, RL, DiffRO, GuardSpec, RewardSpec
from rlspeech.config_parts import SPEAKING
from rlspeech.models.hub import resolve
from rlspeech.settings import preset_names
from rlspeech.settings import resolve as resolve_settings
from rlspeech.stages import rl
from rlspeech.stages.speak import Speak
from rlspeech.stages.validation import DRAW, GuardWatch
from rlspeech.tasks import complete, get_task
from rlspeech.tasks.tts.task import Tts

LIMIT = 0.5


# makes speech degenerate: the shorter the better
BRIEF = RewardSpec(name="tts_duration_ratio", weight=-1.0, scale="none")


@pytest.fixture(scope="module")
def tiny(tts: dict[str, str]) -> dict[str, str]:
    """A model and four texts; the same five times over to validate on, each with a draw of its own."""
    data = Path(tts["data"])
    valid = data.with_name("valid.jsonl")
    write_rows(valid, [{**row, "id": f"{row['id']}_{i}"} for i in range(5) for row in rows_of(data)])
    return {**tts, "valid": str(valid)}


def asked(tiny: dict[str, str], out: Path, **changes: Any) -> RL:
    guards = [GuardSpec(name="tts_stopped"), GuardSpec(name="tts_duration_drift", max_drop=LIMIT)]
    what = {"task": "tts", "rewards": [BRIEF], "guards": guards, "truncated": "keep", "lr": 0.01, "kl_beta": 0.0}
    sizes = {"steps": 60, "prompts_per_step": 4, "group": 8, "micro_batch": 4, "valid_items": 20, "save_every": 100}
    places = {k: tiny[k] for k in ("model", "data", "valid")} | {"out": str(out)}
    return RL(**{**SMALL_RL, **what, **sizes, **places, **changes})


@pytest.mark.slow
def test_a_guard_stops_a_reward_that_makes_speech_degenerate(tiny: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = rl.run(asked(tiny, out))
    rows = read_rows(out)
    checks = {r["step"]: r for r in rows if "valid/tts_duration_drift" in r}
    assert made["tripped"] == made["stopped"] and "tts_duration_drift is worse" in made["stopped"]
    assert made["steps"] < 60
    # it looked all along, and stopped at the first look that was too bad
    assert list(checks) == list(range(0, made["steps"] + 1, 2))
    drift = {step: r["valid/tts_duration_drift"] - checks[0]["valid/tts_duration_drift"] for step, r in checks.items()}
    assert drift[made["steps"]] > LIMIT and checks[made["steps"]]["valid/reward"] > checks[0]["valid/reward"]
    assert Path(made["checkpoint"]).is_dir() and made["best"] and Path(made["best"]) == resolve(str(out), "tts")
    kept = int(Path(made["best"]).name.removeprefix("step_"))
    assert 0 < kept < made["steps"] and drift[kept] <= LIMIT  # rewarded less than the last, which the guard objects to
    allowed = [r["delta/reward"] for step, r in checks.items() if step and drift[step] <= LIMIT]
    assert checks[kept]["delta/reward"] == max(allowed)
    assert Tts().load(str(out))[0].max_s == 4.0

    again = rl.run(asked(tiny, out))  # the same command does not go on with the damage
    assert again["tripped"] == made["tripped"] and again["steps"] == made["steps"] and again["best"] == made["best"]
    assert [r for r in read_rows(out) if "lr" in r] == [r for r in rows if "lr" in r]


def test_a_guard_that_trips_at_once_leaves_no_best_checkpoint(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GuardWatch, "update", lambda self, step, readings: f"step {step}: worse" if step else None)
    varied = [RewardSpec(name="tts_token_diversity", scale="none")]
    made = rl.run(asked(tiny, tmp_path / "run", steps=4, rewards=varied))
    assert made["best"] is None and made["tripped"] == made["stopped"] == "step 2: worse" and made["steps"] == 2
    assert Path(made["checkpoint"]).name == "step_000002" and Path(made["report"]).is_file()
    assert "before any better checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_more_draws_are_averaged_and_the_first_is_kept(tiny: dict[str, str], tmp_path: Path) -> None:
    def first(name: str, **changes: Any) -> tuple[dict[str, float], dict[str, bytes]]:
        out = tmp_path / name
        rewards = [RewardSpec(name="tts_duration_ratio", scale="none")]
        sizes = {"steps": 1, "prompts_per_step": 2, "group": 2, "valid_items": 8}
        rl.run(asked(tiny, out, rewards=rewards, guards=[GuardSpec(name="tts_stopped")], **sizes, **changes))
        values = {r["key"]: r["tts_duration_ratio"] for r in read_rows(out, "scores.jsonl") if not r["step"]}
        return values, {p.name: p.read_bytes() for p in (out / "samples" / "step_000000").iterdir()}

    alone = [first(str(i), seed=i * DRAW) for i in range(3)]
    values, audio = first("three", valid_draws=3)
    assert values == pytest.approx({k: sum(v[k] for v, _ in alone) / 3 for k in alone[0][0]}) and len(values) == 8
    assert values != alone[0][0] and audio == alone[0][1]


@pytest.mark.parametrize("preset", [None, *(p for p in preset_names() if p.startswith("tts-") and p != "tts-tiny")])
def test_rollouts_are_drawn_where_the_speech_is_used(preset: str | None) -> None:
    """Whatever else of the sampling is given."""
    config = resolve_settings(RL, preset, flags={"task": "tts"}, sets=["sampling.top_p=0.9"])[0]
    used = complete(config, get_task("tts")).sampling
    assert (used.temperature, used.top_p) == (SPEAKING, 0.9) == (Speak().sampling.temperature, 0.9)
    given = resolve_settings(RL, preset, flags={"task": "tts"}, sets=["sampling.temperature=1"])[0]
    assert complete(given, get_task("tts")).sampling.temperature == 1
    assert complete(RL(task="asr", algo="ppo", ppo=PPO(gae_lambda=0.5)), get_task("asr")).ppo.form == "critic"


def test_the_default_guards_have_limits() -> None:
    task = get_task("tts")
    guards = {g.name: g.max_drop for g in complete(RL(task="tts"), task).guards}
    assert {"tts_cer", "tts_stopped", "tts_duration_drift"} <= {n for n, drop in guards.items() if drop}
    assert guards["tts_duration_ratio"] is None  # more is neither better nor worse
    assert set(guards) <= set(task.default_guards) and set(task.guard_limits) <= set(task.default_guards)
    own = complete(RL(task="tts", rewards=[RewardSpec(name="tts_cer", scale="none")], diffro=DiffRO()), task)
    assert "tts_cer" not in {g.name for g in own.guards}
