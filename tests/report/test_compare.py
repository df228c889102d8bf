"""Runs side by side: paired only where the items are the same, numbers that agree with other ways to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_cli import rows_of
from tiny_runs import eval_run, manifest, pretrain_run, reward_run, rl_run, texts_run, write_rows

from rlspeech import log
from rlspeech.config import RewardSpec
from rlspeech.report.build import build, print_table
from rlspeech.report.compare import Comparison, System, compare
from rlspeech.report.runs import RunRecord, open_runs


def _compare(*paths: Path | str) -> Comparison:
    return compare(open_runs([str(p) for p in paths]))


def _column(path: Path, step: int, metric: str = "si_sdr") -> dict[str, float]:
    return {r["key"]: r[metric] for r in rows_of(path / "scores.jsonl") if r["step"] == step}


def test_two_runs_are_paired_clip_by_clip(tmp_path: Path) -> None:
    a, b = rl_run(tmp_path / "a", 1.0), rl_run(tmp_path / "b", 3.0, lr=5e-4)
    made = _compare(a, b)
    one, two = _column(a, 20), _column(b, 20)
    delta = made.pairings[0].deltas["b"]["si_sdr"]
    assert made.pairings[0].baseline == "a" and delta.mean == pytest.approx(np.mean([two[k] - one[k] for k in one]))
    assert delta.n == 8 and delta.lo < delta.mean < delta.hi and delta.significant
    unpaired = made.means["b"]["si_sdr"]
    assert delta.hi - delta.lo < unpaired.hi - unpaired.lo  # difficulty of the clips is not in the difference
    own = np.mean(list(one.values())) - np.mean(list(_column(a, 0).values()))
    assert made.own["a"]["si_sdr"].mean == pytest.approx(own)
    assert {m.name: m.higher_is_better for m in made.metrics} == {"si_sdr": True, "lsd": False, "reward": True}
    assert made.settings == {"rl": {"lr": {"a": 1e-3, "b": 5e-4}}} and not made.versions
    json.dumps(log.plain(made.as_dict()), allow_nan=False)


def test_clips_of_the_same_name_that_are_others_are_not_paired(tmp_path: Path) -> None:
    made = _compare(rl_run(tmp_path / "a"), rl_run(tmp_path / "b", shift=7.0))
    assert not made.pairings[0].deltas and made.means["b"]["si_sdr"].n == 8
    assert any("8 of 8 items of the same name are not the same" in n for n in made.notes)


def test_sums_of_rewards_that_are_weighed_differently_are_not_compared(tmp_path: Path) -> None:
    other = [RewardSpec(name="si_sdr", weight=2.0), RewardSpec(name="lsd")]
    made = _compare(rl_run(tmp_path / "a"), rl_run(tmp_path / "b", rewards=other, guards=[]))
    assert set(made.pairings[0].deltas["b"]) == {"si_sdr", "lsd"}
    assert any("weigh their rewards" in n for n in made.notes)
    found = made.settings["rl"]
    assert found["rewards.si_sdr.weight"] == {"a": 1.0, "b": 2.0} and found["rewards.lsd.weight"] == {"b": 1.0}
    assert not any(k.startswith("rewards.si_sdr.") for k in found if k != "rewards.si_sdr.weight")


def test_the_page_has_curves_together_and_players_side_by_side(tmp_path: Path) -> None:
    made = _compare(rl_run(tmp_path / "a"), rl_run(tmp_path / "b", 2.0, lr=5e-4), rl_run(tmp_path / "c", 0.5))
    data = build(made, 4)
    plots = {p.title: p for p in data.plots}
    assert [line.run for line in plots["delta/si_sdr"].lines] == ["a", "b", "c"]
    assert plots["delta/si_sdr"].lines[1].lo is not None
    assert data.baseline == "a" and list(data.deltas) == ["b", "c"] and len(data.clips) == 4
    for clip in data.clips:
        assert list(clip.audio) == ["input", "before", "a", "b", "c", "reference"]
        assert set(clip.scores) == {"a", "b", "c"} and clip.label
    titles = [g.title for g in data.grids]
    assert titles == ["Runs", "Settings that differ: rl", "Paired difference to each run's own start"]
    assert list(data.grids[1].rows) == [["lr", "0.001", "0.0005", "0.001"]]
    print_table(made)


def test_evaluations_are_paired_where_their_inputs_score_the_same(tmp_path: Path) -> None:
    noisy = [1.0, 2.0, 3.0, None]
    a = eval_run(tmp_path / "a", {"input": noisy, "base": [2.0, 3.0, 4.0, None]})
    b = eval_run(tmp_path / "b", {"input": noisy, "rl": [2.5, 3.0, 4.9, 1.0]}, data="elsewhere/test.jsonl")
    made = _compare(a, b)
    assert list(made.means) == ["input", "a: base", "b: rl"] and made.pairings[0].baseline == "a: base"
    delta = made.pairings[0].deltas["b: rl"]["si_sdr"]
    assert delta.n == 3 and delta.dropped == 1 and delta.mean == pytest.approx((0.5 + 0 + 0.9) / 3)
    assert made.means["a: base"]["si_sdr"].dropped == 1 and not made.as_dict()["against_own_start"]
    data = build(made, 2)
    assert all(list(c.audio) == ["input", "a: base", "b: rl"] for c in data.clips)
    c = eval_run(tmp_path / "c", {"input": [9.0, 9.0, 9.0, 9.0], "rl": [2.5, 3.0, 4.9, 1.0]})
    other = _compare(a, c)
    assert "c: rl" not in other.pairings[0].deltas and list(other.means) == ["a: input", "a: base", "c: input", "c: rl"]


def test_recognisers_are_compared_by_sums_of_errors(tmp_path: Path) -> None:
    data = manifest(tmp_path / "data", 4)
    written = {"a": ["say", "sad one", "say 2", "say 3"], "b": ["say 0", "sad 1", "say 2", "say 3"]}
    made = _compare(*(texts_run(tmp_path / name, {name: texts}, data) for name, texts in written.items()))
    assert [made.means[s]["wer"].mean for s in "ab"] == pytest.approx([100 * 3 / 8, 100 * 1 / 8])
    delta = made.pairings[0].deltas["b"]["wer"]
    assert delta.mean == pytest.approx(-100 * 2 / 8) and delta.n == 4
    assert not next(m for m in made.metrics if m.name == "wer").higher_is_better
    clips = build(made, 2).clips
    assert len(clips) == 2 and all(set(c.edits) == {"a", "b"} and "recording" in c.audio for c in clips)


def test_scored_folders_are_paired_by_name(tmp_path: Path) -> None:
    for system, level in (("base", 0.0), ("rl", 1.0)):
        reward_run(tmp_path / system, {system: [5 - level * (1 + i / 10) for i in range(4)]})
    made = _compare(tmp_path / "base", tmp_path / "rl")
    assert made.pairings[0].deltas["rl"]["lsd"].mean == pytest.approx(-1.15) and made.means["base"]["lsd"].n == 4
    data = build(made, 3)
    assert [p.kind for p in data.plots] == ["spread"] and all(list(c.audio) == ["base", "rl"] for c in data.clips)
    labels = "smallest gain in lsd|largest gain in lsd|worst|best|in between"
    assert {c.label for c in data.clips} <= set(labels.split("|"))


def test_stages_may_be_mixed(tmp_path: Path) -> None:
    pretrained = pretrain_run(tmp_path / "base")
    evaluated = eval_run(tmp_path / "eval", {"input": [1.0, 2.0], "m": [2.0, 4.0]})
    made = _compare(pretrained, rl_run(tmp_path / "rl"), evaluated)
    assert made.means["base"]["si_sdr"].mean == 100.0
    assert made.versions == {"torch": {"base": "1.0", "rl": "2.0", "eval": "2.0"}}
    assert [(p.stage, sorted(p.deltas)) for p in made.pairings] == [("pretrain", []), ("rl", []), ("eval", ["eval: m"])]
    data = build(made, 2)
    assert {p.title.split(":")[0] for p in data.plots} == {"rl", "pretrain"}
    assert any("within a stage" in n for n in data.notes)


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    a, b = rl_run(tmp_path / "a"), rl_run(tmp_path / "b", 2.0)
    odd: dict[str, Any] = {"u0": float("nan"), "u1": "high", "u2": None, "u3": [1], "u4": True}
    rows = [{**r, "si_sdr": odd.get(r["key"], r["si_sdr"])} for r in rows_of(b / "scores.jsonl")]
    write_rows(b / "scores.jsonl", rows)
    delta = _compare(a, b).pairings[0].deltas["b"]["si_sdr"]
    assert delta.n == 3 and delta.dropped == 5


def test_edits_put_the_texts_together_again(tmp_path: Path) -> None:
    row = {"text": "a b c d", "hypothesis": "a x c c e d"}
    edits = System("s", RunRecord("r", tmp_path, "rl"), "s", {"k": row}).edits("k")
    assert edits and " ".join(e.reference for e in edits if e.reference) == "a b c d"
    assert " ".join(e.hypothesis for e in edits if e.hypothesis) == "a x c c e d"
