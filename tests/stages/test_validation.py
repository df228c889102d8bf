"""What a validation of ``rl`` keeps, finds in one number, and says on a checkpoint: rows, audio, facts and a card that the Hub reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_ppo
import yaml
from tiny_runs import RATE, clips_of, rl_run
from tiny_speech import SMALL_RL

from rlspeech.config import RL, Exploration, GuardSpec, Lora, RewardSpec
from rlspeech.models.card import Card, model_card
from rlspeech.models.hub import read_config
from rlspeech.report.compare import validation as shown
from rlspeech.report.runs import RunRecord
from rlspeech.rewards.rates import corpus_interval
from rlspeech.stages import rl, validation
from rlspeech.stages.validation import TEXT, GuardWatch, Holds, reward_of, summary_line, texts_of, tuned_facts
from rlspeech.stats import Interval
from rlspeech.types import Sample, Score, Utterance

CARD = Card("flow enhancer", "flowse", 1000, 16000, "rlspeech", "audio-to-audio")


def test_rows_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", count=2)
    with (path / "scores.jsonl").open("a") as file:
        file.write('{"key": "torn')
    validation.trim(path, 10)
    rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 0, 10, 10]
    validation.trim(path, -1)
    assert (path / "scores.jsonl").read_text() == ""
    validation.trim(tmp_path, 3)  # none there


def test_audio_of_the_way_is_thinned_and_that_of_the_ends_kept(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", count=7)
    kept = {p.name: len(list(p.glob("*.flac"))) for p in (path / "samples").iterdir()}
    ends = dict.fromkeys(("input", "reference", "step_000000", "step_000020"), 7)
    assert kept == {**ends, "step_000010": validation.ON_THE_WAY}


def test_a_score_that_is_missing_has_its_reason(tmp_path: Path) -> None:
    clip = clips_of(1)[0]
    same = type(clip)("u0", clip.noisy, clip.noisy, RATE, "said")
    sample = Sample("u0", clip.noisy, RATE, None, "said", hypothesis="sad")
    validation.keep(tmp_path, 0, [same], [sample], {"asr_wer": [Score(None, "too quiet")]}, [None])
    (row,) = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert row["asr_wer"] is None and row["errors"] == {"asr_wer": "too quiet", "reward": "a part of it is not known"}
    assert (row["text"], row["hypothesis"]) == ("said", "sad")
    assert (tmp_path / "samples" / "recording" / "u0.flac").is_file()
    means = shown(RunRecord("x", tmp_path, "rl", scores={"step_000000": {"u0": row}}), 0, "x").means
    assert list(means) == ["asr_wer", "reward"] and means["reward"].n == 0


def test_one_number_for_all_rewards() -> None:
    right = RewardSpec(name="asr_accuracy", scale="none")
    keywords = RewardSpec(name="asr_keywords", scale="none", weight=0.5)
    invented = RewardSpec(name="asr_hallucination", scale="none", weight=2.0, mode="override")
    row = {"asr_accuracy": [0.5, 1.0, 0.8, None], "asr_keywords": [None, 1.0, 1.0, 1.0]}
    row["asr_hallucination"] = [0.0, 0.0, -1.0, 0.0]
    assert reward_of([right, keywords, invented], row, row) == [0.5, 1.5, -2.0, None]
    strict = [right, keywords.model_copy(update={"missing": "unscorable"})]
    assert reward_of(strict, row, row)[0] is None
    scaled = reward_of([RewardSpec(name="asr_wer")], {"asr_wer": [1.0, 3.0]}, {"asr_wer": [0.0, 2.0]})
    assert scaled == [-1.0, -3.0]  # in units of the spread at the start, and lower is better


def test_the_error_rate_of_rollouts_counts_spoken_words_alone() -> None:
    def said(text: str | None, hypothesis: str | None, **columns: Any) -> Sample:
        return Sample("k", np.zeros(0, np.float32), 16000, None, text, columns, hypothesis)

    def word_errors(*samples: Sample) -> float:
        return corpus_interval(texts_of(samples), TEXT).mean

    assert word_errors(said("a b c d", "a b x"), said("", "noise words"), said(None, "?"), said("e", "E.")) == 2 / 5
    assert word_errors(said("你好世界", "你好世", language="zh")) == 0.25
    assert math.isnan(word_errors(said("", "x")))


def config(**more: Any) -> RL:
    return RL(rewards=[RewardSpec(name="estoi", weight=0.5)], guards=[GuardSpec(name="lsd", max_drop=0.5)], **more)


def history() -> list[dict[str, Any]]:
    first = {"step": 0, "reward": [0.0] * 20, "estoi": [0.5 + 0.01 * i for i in range(20)]}
    first["lsd"] = [9.0 + 0.1 * i for i in range(20)]
    return [first, {**first, "step": 40, "estoi": [v + 0.1 for v in first["estoi"]], "lsd": [None, *first["lsd"][1:]]}]


def row(language: str | None) -> Utterance:
    return Utterance("u", "/x.wav", 1.0, 16000, language=language)


def test_numbers_have_intervals_against_the_start() -> None:
    facts = tuned_facts(config(model="base", seed=3), {"data": "64 minutes"}, history(), 42, [row("en")] * 5, {})
    json.dumps(facts, allow_nan=False)
    found = facts["rl"]["results"]
    assert (found["step"], found["clips"]) == (40, 20) and facts["rl"]["step"] == 42 and facts["data"] == "64 minutes"
    estoi, lsd = found["metrics"]["estoi"], found["metrics"]["lsd"]
    assert estoi["difference"]["mean"] == pytest.approx(0.1) and estoi["difference"]["lo"] > 0.09
    assert estoi["role"] == "rewarded"
    assert lsd["higher_is_better"] is False and lsd["role"] == "guard" and lsd["difference"]["n"] == 19
    assert facts["languages"] == ["en"] and facts["rl"]["rewards"] == {"estoi": 0.5}
    assert facts["rl"]["guard_specs"][0]["max_drop"] == 0.5
    card = model_card(CARD, facts)
    assert "**+0.100 [+0.1" in card and "starting from base" in card and "intelligibility" in card
    none = tuned_facts(config(), {}, [], 0, [], {})  # nothing was validated
    assert "results" not in none["rl"] and "validation" not in none and "Results" not in model_card(CARD, none)


def test_languages_are_only_claimed_where_every_row_says_its_own() -> None:
    many = [f"x{i}" for i in range(20)]
    for said, known in ((["en", "de"], ["de", "en"]), (["en", None], None), ([None], None), (many, None), ([], None)):
        facts = tuned_facts(config(), {"languages": ["fr"]}, history(), 1, [row(x) for x in said], {})
        assert facts.get("languages") == known


def test_a_run_on_a_run_keeps_the_chain() -> None:
    once = tuned_facts(config(model="embedded"), {"stage": "pretrain"}, history(), 10, [], {})
    twice = tuned_facts(config(model="runs/one", algo="ppo"), once, history(), 20, [], {})
    third = tuned_facts(config(model="runs/two"), twice, history(), 30, [], {})
    earlier = [(e["algo"], e["step"], e["from"]) for e in third["earlier"]]
    assert earlier == [("grpo", 10, "embedded"), ("ppo", 20, "runs/one")]
    assert "results" not in third["earlier"][0] and third["stage"] == "pretrain"
    assert "Before that: grpo, 10 steps, starting from embedded; then ppo, 20 steps" in model_card(CARD, third)


def test_a_validation_is_summed_up_as_better_worse_or_undecided() -> None:
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    found = {"estoi": (0.01, 0.005, 0.02), "lsd": (-1.5, -2.0, -1.0), "si_sdr": (-1.0, -2.0, -0.5)}
    found |= {"pesq_wb": (0.2, -0.1, 0.5), "reward": (1.25, 1.0, 2.0)}
    line = summary_line({"stoi": nothing, **{name: Interval(*values, 8) for name, values in found.items()}})
    better, worse = "better: estoi +0.01, lsd -1.5, all rewards together +1.25", "worse: si_sdr -1"
    assert line == f"{better}; {worse}; undecided: pesq_wb +0.2"
    assert summary_line({"stoi": nothing}) == ""


@pytest.mark.slow
def test_a_runs_checkpoint_has_a_card_that_the_hub_reads(flow: dict[str, str], tmp_path: Path) -> None:
    explore = Exploration(kind="gain", noise=0.3, nfe=(2, 2), bands=4)
    where = {**flow, "valid": flow["data"], "out": str(tmp_path / "run")}
    what = {"explore": explore, "lora": Lora(rank=2, alpha=4), "clip_s": 0.8, "tracker": "none"}
    rl.run(config(**{**SMALL_RL, **where, **what, "steps": 1, "valid_items": 3}))
    folder = tmp_path / "run" / "checkpoints" / "step_000001"
    facts, card = read_config(folder)["facts"], (folder / "README.md").read_text()
    assert facts["rl"]["results"]["clips"] == 3 and facts["stage"] == "made up" and "estoi" in facts["rl"]["versions"]
    head = yaml.safe_load(card.split("---\n")[1])
    (results,) = head["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in results["metrics"]} == pytest.approx(
        {k: m["now"]["mean"] for k, m in facts["rl"]["results"]["metrics"].items() if k != "reward"}, abs=1e-5
    )
    for title in ("Data and training", "Rewards", "Guards", "Results", "How to use it", "Limits", "Versions"):
        assert f"\n## {title}\n" in card
    hub = pytest.importorskip("huggingface_hub")
    assert len(hub.ModelCard(card).data.eval_results) == 2 and not (tmp_path / "run" / "tensorboard").exists()


def watch(limit: float | None, name: str = "estoi") -> GuardWatch:
    return GuardWatch([GuardSpec(name=name, max_drop=limit), GuardSpec(name="stoi", max_drop=0.1, hold=True)])


def test_guard_trips_beyond_the_limit_and_its_interval_only() -> None:
    rng, guard = np.random.default_rng(0), watch(0.2)
    base = rng.normal(3, 1, 200)
    assert guard.update(0, {"estoi": base}) is None
    assert guard.update(1, {"estoi": base - 0.19 + rng.normal(0, 0.01, 200)}) is None
    assert guard.drops["estoi"] == pytest.approx(0.19, abs=0.01)
    reason = guard.update(2, {"estoi": base - 0.3 + rng.normal(0, 0.01, 200)})
    assert reason and "step 2" in reason and "estoi is worse by 0.3" in reason
    assert guard.update(3, {"estoi": base - 0.3 + rng.normal(0, 3, 200)}) is None  # as large, and not sure
    held = [guard.update(step, {"stoi": [1.0 - step] * 9}) for step in (0, 1)]  # which stops nothing
    assert held == [None, None] and "stoi" in guard.beyond()
    assert guard.update(4, {"estoi": base + 1.0}) is None


FORMS = {"grpo": {"algo": "grpo"}, "relative": {}, "critic": {"ppo": {"form": "critic"}}}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_reward_pushes_down_is_held(form: str) -> None:
    class Both(tiny_ppo.Judge):  # the reward is theta, the guard -theta
        def score(self, samples: Any) -> dict[str, list[Score]]:
            values = [float(s.wav[0]) for s in samples]
            return {tiny_ppo.NAME: [Score(v) for v in values], "estoi": [Score(-v) for v in values]}

    ends, pulls = list[float](), list[float]()
    for hold in (False, True):
        guards = [GuardSpec(name="estoi", max_drop=0.4, hold=hold)]
        algo = tiny_ppo.make(**{**FORMS[form], "group": 4, "guards": guards})
        holds = Holds(algo.config)
        for step in range(40):
            tiny_ppo.train(algo, 1, judge=Both(), start=step, total=40)
            fall = algo.policy.theta[0].item()
            holds.update({"estoi": fall})
            algo.held = holds.state["lambda"]
            pulls += algo.held.values()
        ends.append(fall)
    assert ends[0] > 0.8 and 0.1 < ends[1] < 0.4
    assert pulls[0] == 0 and min(pulls[pulls.index(max(pulls)) :]) < 0.6 * max(pulls)  # it rises, and then falls
    again, found = Holds(algo.config), list[float]()
    again.state = json.loads(json.dumps(holds.state))
    for drop in (0.35, 99.0, math.nan, 0.1, -2.0, -2.0, 0.35):  # no integral is wound up, in either direction
        for one in (holds, again):
            one.update({"estoi": drop})
        assert again.row() == holds.row()
        found.append(algo.held["estoi"])
    assert found[1] == found[2] == 10 and found[4] == found[5] == 0 < found[6]


def test_guard_that_is_paired_where_lower_is_better_that_only_watches_or_that_vanishes() -> None:
    base, guard = np.random.default_rng(0).normal(3, 5, 50), watch(0.5)
    guard.update(0, {"estoi": list(base)})  # unpaired, a spread of 5 would hide a drop of 1
    assert guard.update(1, {"estoi": [None if i % 7 == 0 else v - 1 for i, v in enumerate(base)]})
    assert guard.drops["estoi"] == pytest.approx(1.0)
    guard, quiet, gone = watch(0.1, "lsd"), watch(None), watch(0.1)
    guard.update(0, {"lsd": [0.10] * 30})
    assert guard.update(1, {"lsd": [0.15] * 30}) is None and guard.update(2, {"lsd": [0.01] * 30}) is None
    assert guard.update(3, {"lsd": [0.40] * 30})
    quiet.update(0, {"estoi": [3.0] * 9})
    assert quiet.update(1, {"estoi": [0.0] * 9}) is None and quiet.drops["estoi"] == 3.0
    gone.update(0, {"estoi": [3.0] * 9})
    assert gone.update(1, {}) is None and "no longer be scored" in str(gone.update(2, {"estoi": [None] * 9}))
