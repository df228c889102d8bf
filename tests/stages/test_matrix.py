"""Every algorithm on every task: each pair that goes together (``tests/test_docs.py`` runs two steps of it and reads what they log), and of
the others the reason, before any data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import tiny_recognisers
import tiny_speech
import torch
from safetensors.torch import load_file
from tiny_avse import tiny_avse, write_talkers
from tiny_speech import SMALL_RL
from tiny_tts import write_tts

from rlspeech.config import DPO, PPO, RL, DiffRO, Exploration, GuardSpec, Hold, RewardSpec, Sampling, ScoreFolder
from rlspeech.models.hub import save_model
from rlspeech.stages import probe, reward, rl, sample
from rlspeech.tasks import complete, get_task
from rlspeech.types import UserError

pytestmark = pytest.mark.slow
TASKS = ("flowse", "avse", "asr", "tts")
FORMS: dict[str, dict[str, Any]] = {algo: {"algo": algo} for algo in ("grpo", "awr", "diffro", "grpo+diffro", "dpo")}
FORMS |= {f"ppo-{form}": {"algo": "ppo", "ppo": PPO(form=form)} for form in ("relative", "critic")}
REFUSED = {("asr", "diffro"), ("asr", "grpo+diffro")}
SUPPORTED = [(t, f) for t in TASKS for f in FORMS if (t, f) not in REFUSED]
SOUND = {"rewards": [RewardSpec(name="si_sdr", scale="none")], "guards": [GuardSpec(name="stoi")], "clip_s": 0.5}
VARIED = {"rewards": [RewardSpec(name="tts_token_diversity", scale="none")], "guards": [GuardSpec(name="tts_stopped")]}
TEXTS = {"rewards": [RewardSpec(name="asr_cer", scale="none")], "guards": [GuardSpec(name="asr_wer")]}
ROLLED = {"data", "group", "clip_s", "explore", "kl_target", "diffro"}  # of rollouts, which DPO has none of
OWN: dict[str, dict[str, Any]] = {
    "flowse": {**SOUND, "explore": Exploration(nfe=(2, 2), bands=2), "diffro": DiffRO(smooth=2, last_steps=2)},
    "avse": {**SOUND, "diffro": DiffRO(smooth=2), "supervised_weight": 0.0},
    "asr": {**TEXTS, "sampling": Sampling(max_new_tokens=6), "truncated": "keep"},
    # of two rollouts each is as far from the other
    "tts": {**VARIED, "truncated": "keep", "group": 3},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Model and data by task; of tts the reward too."""
    folder = tmp_path_factory.mktemp("matrix")
    pairs = write_talkers(folder / "pairs", 4)
    save_model(folder / "avse", tiny_avse(), "avse", facts={"data": "none"})
    said = [r for r in tiny_recognisers.ROWS if r["text"]]  # of what says nothing there is no rate
    spoken, asr = tiny_recognisers.write_corpus(folder / "asr-data", said), tiny_recognisers.write_model(folder / "asr")
    tts, flow = write_tts(folder / "tts"), tiny_speech.write_model(folder / "flow")
    return {
        "flowse": {"data": str(pairs), "model": str(flow)},
        "avse": {"data": str(pairs), "model": str(folder / "avse")},
        "asr": {"data": str(spoken), "model": str(asr)},
        "tts": {"data": tts["data"], "model": tts["model"], "diffro": DiffRO(reward=tts["reward"], on="nonnegative")},
    }


def config(given: dict[str, dict[str, Any]], task: str, form: str, out: Path, **changes: Any) -> RL:
    plain = {**SMALL_RL, "task": task, "out": str(out), "lr": 1e-2, "lora": None, "kl_target": 1e-5}
    whole = {**plain, **OWN[task], **given[task], **FORMS[form], **changes}
    if form == "dpo":
        return RL(**{k: v for k, v in {**whole, **stored(given, task, out)}.items() if k not in ROLLED})
    if form != "diffro":
        whole["guards"] = [GuardSpec(name=g.name, max_drop=1e-3, hold=True) for g in whole["guards"]]
        whole["hold"] = Hold(every=1)
    unused = {"rewards", "truncated"} if form == "diffro" else set() if "diffro" in form else {"diffro"}
    return RL(**{k: v for k, v in whole.items() if k not in unused})


def stored(given: dict[str, dict[str, Any]], task: str, out: Path) -> dict[str, Any]:
    """What DPO learns from: samples beside the run, scored."""
    folder, own = out.with_name(f"{out.name}-samples"), {k: given[task][k] for k in ("model", "data")}
    own |= {k: OWN[task][k] for k in ("explore", "sampling", "clip_s") if k in OWN[task]}
    sample.run(sample.SampleSet(task=task, draws=4, device="cpu", out=str(folder), **own))
    reward.run(ScoreFolder(rewards=[r.name for r in OWN[task]["rewards"]], workers=0), folder)
    return {"samples": str(folder), "valid": own["data"], "dpo": DPO(margin=0.0)}


def check_two_steps(summary: dict[str, Any], before: str, form: str) -> None:
    """Hold what a run says and leaves to what every algorithm promises."""
    rows = [r for r in tiny_speech.read_rows(Path(summary["run"])) if "lr" in r]
    assert summary["steps"] == len(rows) == 2
    assert all(r["grad_norm"] is not None and r["skipped_updates"] == 0 for r in rows)
    if form != "dpo":
        assert [r["kl_kept"] < 1 for r in rows] == [(r["kl"] or 0) > 1e-5 for r in rows]
    if form not in ("diffro", "dpo"):
        assert rows[0]["ratio_max_gap"] < 1e-3 and rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    if "diffro" in form:
        assert 0 <= rows[0]["diffro/kept"] <= 1 and rows[0]["diffro/tau"] == 1.0
    if form == "diffro":
        assert rows[0]["grad_norm"] > 0 and (rows[1]["kl"] or 0) >= 0
    start, end = (load_file(Path(folder) / "model.safetensors") for folder in (before, summary["checkpoint"]))
    moved = {k for k, v in start.items() if not torch.equal(v.float(), end[k].float())}
    assert moved or not any(r["grad_norm"] > 0 for r in rows)


@pytest.mark.parametrize(("task", "form"), sorted(REFUSED))
def test_what_does_not_go_is_said_before_anything_is_read(tmp_path: Path, task: str, form: str) -> None:
    nothing = {task: {"data": str(tmp_path / "nowhere.jsonl"), "model": str(tmp_path / "nowhere")}}
    for stage in (rl, probe):
        with pytest.raises(UserError, match="asr") as caught:
            stage.run(config(nothing, task, form, tmp_path / "run"))
        assert "no gradient" in caught.value.why and "supervised_weight" in caught.value.try_this
    assert not (tmp_path / "run").exists()


def test_the_matrix_is_whole() -> None:
    fields = RL.model_fields
    assert set(TASKS) == set(get_args(get_args(fields["task"].annotation)[0]))
    assert {f["algo"] for f in FORMS.values()} == set(get_args(fields["algo"].annotation))


def test_a_probe_compares_algorithms(given: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    algos = ["grpo", "awr", "diffro", "grpo+diffro"]
    settings = config(given, "flowse", "grpo", tmp_path / "probe", probe_batches=4, probe_algos=algos)
    rows = probe.run(settings)["rows"]
    assert [r["algo"] for r in rows] == algos and rows[0]["cosine"] == 1.0
    assert all(-1 <= r["cosine"] <= 1 and r["seconds"] > 0 and r["all"]["n"] > 0 for r in rows)
    assert [r["rollouts"] for r in rows] == [rows[0]["rollouts"]] * 2 + [settings.prompts_per_step, rows[0]["rollouts"]]


def test_the_control_needs_no_differentiable_reward(given: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    wrong = DiffRO(reward="nowhere")
    with pytest.raises(UserError, match="nowhere"):
        rl.run(config(given, "flowse", "diffro", tmp_path / "one", diffro=wrong))
    control = {"diffro": wrong, "policy_weight": 0.0, "supervised_weight": 1.0}
    assert rl.run(config(given, "flowse", "diffro", tmp_path / "two", **control))["steps"] == 2


def test_what_is_climbed_is_measured_beside_what_is_not() -> None:
    filled = complete(RL(algo="diffro"), get_task("flowse"))
    assert [r.name for r in filled.rewards] == ["dnsmos_ovrl"] and filled.group == 1
    watched = {g.name for g in filled.guards}
    assert "dnsmos_ovrl" not in watched and {"si_sdr", "estoi"} <= watched
    assert next(g.max_drop for g in filled.guards if g.name == "estoi") == 0.02  # and may stop the run
    for how in ({"algo": "diffro"}, {"algo": "ppo", "group": 1}, {"policy_weight": 0.0, "supervised_weight": 1.0}):
        with pytest.raises(UserError, match="held"):
            complete(RL(**how, guards=[GuardSpec(name="stoi", max_drop=0.1, hold=True)]), get_task("flowse"))
    complete(RL(guards=[GuardSpec(name="reward_plugins:hold")]), get_task("flowse"))  # a function of that name
    for name, limit in (("stoi:hold", None), ("reward_plugins:letters:hold", None), ("stoi", 0.0), ("stoi", None)):
        with pytest.raises(UserError, match="limit above"):
            complete(RL(guards=[GuardSpec(name=name, max_drop=limit, hold=name == "stoi")]), get_task("flowse"))
    own = complete(RL(algo="diffro", group=3, kl_beta=0.0), get_task("flowse"))
    assert own.group == 3 and own.kl_beta == 0.0
