"""From a run's folder to its page: five kinds of run, whole, torn and hostile; the numbers on it are those of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from tiny_cli import rows_of
from tiny_runs import EVIL, eval_run, manifest, pretrain_run, reward_run, rl_run, summarised, texts_run, write_rows

from rlspeech import log
from rlspeech.report import ReportData, build
from rlspeech.report.build import compared, print_table, write_page
from rlspeech.report.runs import RunRecord, open_runs
from rlspeech.stats import mean_interval, paired_delta

KINDS = ("rl", "pretrain", "enhancement", "recognition", "synthesis", "reward")


def run_of(kind: str, folder: Path) -> Path:
    run, data = folder / "run", manifest(folder / "data", 4, place="home", snr_db=5.0)
    texts = {"base": ["say 0", "sa 1", "say 2", "say"], "m": ["say 0", "say 1", "", "say three"]}
    if kind == "rl":
        return rl_run(run, 2.0)
    if kind == "pretrain":
        return pretrain_run(run, texts=["say 0", "sad 1"])
    if kind == "reward":
        return reward_run(run, {"system": [3.0, 1.0, 2.0, 4.0, None]})
    if kind != "enhancement":
        return texts_run(run, texts, data, audio=kind == "synthesis")
    scores = {"input": [1.0, 2.0, 3.0, 4.0], "m": [2.0, 2.5, 5.0, 4.5]}
    return summarised(eval_run(run, scores, data=str(data), players=3, models={"m": str(run / "gone")}), "input")


def opened(path: Path) -> RunRecord:
    return open_runs([str(path)])[0]


def page_of(*paths: Path | str, players: int | None = None) -> ReportData:
    return build.build(compared(open_runs([str(p) for p in paths])), players)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_a_page_with_its_numbers(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The stage's own page is what ``report`` makes of the folder, nothing else in it changes, and its strings stay strings."""
    folder = run_of(kind, tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    page = write_page(folder)
    assert page == folder / "report.html" and {p: p.read_bytes() for p in before} == before
    html = page.read_text(encoding="utf-8")
    order = [html.find(f'id="{section}"') for section in ("listen", "scores", "differences", "curves", "run", "next")]
    assert [at for at in order if at > 0] == sorted(at for at in order if at > 0) and order[0] > 0 and order[1] > 0
    data = page_of(folder)
    items = f"4 utterances of {tmp_path}/data/test.jsonl"
    title, subtitle, means, players = {
        "rl": ("grpo on flowse: run", "step 20 of 20: all steps done", "before|after", "input|before|after|reference"),
        "pretrain": ("pretrain flowse: run", "step 100 of 100", "step 50|step 100", "input|step 50|step 100|reference"),
        "enhancement": ("Evaluation of flowse: m", items, "input|m", "input|m|reference"),
        "recognition": ("Evaluation of asr: base, m", f"{items}, texts by basic-2", "base|m", "recording"),
        "synthesis": ("Evaluation of tts: base, m", f"{items}, texts by basic-2", "base|m", "base|m|reference"),
        "reward": ("Scores: system", "5 files scored", "system", "system"),
    }[kind]
    assert (data.title, data.subtitle, "|".join(data.means)) == (title, subtitle, means)
    assert data.clips and "|".join(data.clips[0].audio) == players
    assert data.facts and data.config and data.commands[-1] == f"rlspeech report {folder} OTHER_RUN"
    print_table(compared([opened(folder)]))
    assert data.metrics[0].name in capsys.readouterr().out


def test_rl_is_compared_with_its_start(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", 2.0)
    data = page_of(path)
    rows = rows_of(path / "scores.jsonl")
    first, last = ([r["si_sdr"] for r in rows if r["step"] == s] for s in (0, 20))
    assert data.means["before"]["si_sdr"] == mean_interval(first)
    assert data.means["after"]["si_sdr"] == mean_interval(last)
    delta = data.deltas["after"]["si_sdr"]
    assert delta == paired_delta(last, first, seed=1) and delta.significant and data.baseline == "before"
    assert {m.name: m.higher_is_better for m in data.metrics} == {"si_sdr": True, "lsd": False, "reward": True}
    kinds = {p.title: p.kind for p in data.plots}
    assert kinds["delta/si_sdr"] == kinds["valid/reward"] == "reward"
    assert kinds["delta/lsd"] == "guard" and kinds["kl"] == "train"
    assert [line.run for p in data.plots for line in p.lines] == ["run"] * len(data.plots)
    assert data.facts["rewarded"] == "1 x si_sdr" and "lsd (may drop by 1)" in data.facts["watched"]
    held = [{"name": "lsd", "max_drop": 1, "hold": True}]
    assert "lsd (held within 1)" in page_of(rl_run(tmp_path / "held", guards=held)).facts["watched"]
    assert data.facts["after"] == "step 20" and data.cost["rollout"].startswith("3.0 s")
    commands = [c.split(" --")[0] for c in data.commands]
    assert commands == ["rlspeech eval", "rlspeech enhance RECORDINGS", data.commands[-1]]
    (grid,) = data.grids
    assert grid.title.endswith(": reward") and grid.rows[0][0] == data.clips[0].key


def test_players_before_and_after_of_what_changed_most(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", -1.0, words=EVIL)
    run, data = opened(path), page_of(path, players=3)
    assert len(data.clips) == 3 and "largest loss in reward" in {c.label for c in data.clips}
    for clip in data.clips:
        np.testing.assert_allclose(clip.audio["after"], clip.audio["before"] / 2, atol=1e-3)
        assert clip.texts == {"before": EVIL, "after": EVIL} and clip.scores["after"]["llm"] is not None
    start = run.scores["step_000000"]
    change = {k: r["reward"] - start[k]["reward"] for k, r in run.scores["step_000020"].items()}
    assert data.clips[0].key == min(change, key=lambda k: change[k]) and page_of(path, players=0).clips == []


def test_the_best_checkpoint_stands_beside_the_last(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", 2.0)
    (path / "checkpoints" / "best").write_text("step_000010\n")
    data = page_of(path)
    assert list(data.means) == ["before", "after", "best"] and data.facts["best"] == "step 10"
    assert any("--model" in n for n in data.notes) and data.grids[0].heading == ["clip", "before", "after", "better by"]


def test_pretraining_has_two_moments_and_no_comparison(tmp_path: Path) -> None:
    data = page_of(run_of("pretrain", tmp_path))
    assert data.means["step 100"]["si_sdr"].mean == 100.0 and data.baseline is None and not data.deltas
    kinds = {p.title: p.kind for p in data.plots}
    assert kinds["valid/si_sdr"] == "valid" and kinds["train/loss"] == "train"
    read = {c.key: c for c in data.clips}["t1"]
    assert [(e.kind, e.hypothesis) for e in read.edits["step 100"]] == [("replace", "sad"), ("equal", "1")]


def test_an_evaluation_shows_what_it_has_summarised(tmp_path: Path) -> None:
    path = run_of("enhancement", tmp_path)
    data, summary = page_of(path), opened(path).summary
    found = data.deltas["m"]["si_sdr"]
    assert found.as_dict() == summary["deltas"]["m"]["si_sdr"] and found.mean == pytest.approx((1 + 0.5 + 2 + 0.5) / 4)
    assert [c.label for c in data.clips] == ["smallest gain in si_sdr", "largest gain in si_sdr", "worst"]
    assert all(c.note.startswith("5.0 dB SNR · say ") for c in data.clips)
    assert data.cost["time"] == "3 s, of which scoring si_sdr 1.0 s" and data.facts["model m"].endswith("gone")
    assert data.commands[0] == f"rlspeech enhance RECORDINGS --model {path / 'gone'}"


def test_curves_of_the_runs_that_models_come_from(tmp_path: Path) -> None:
    trained = rl_run(tmp_path / "rl", count=2)
    scores = {"input": [1.0, 2.0], "m": [2.0, 3.0]}
    for model in (trained, trained / "checkpoints" / "step_000020"):
        data = page_of(eval_run(tmp_path / "eval", scores, models={"m": str(model), "gone": "nowhere"}))
        assert "valid/si_sdr" in {p.title for p in data.plots}
        assert {line.run for p in data.plots for line in p.lines} == {"m"}


@pytest.mark.parametrize("kind", ["recognition", "synthesis"])
def test_texts_are_compared_by_sums_of_errors(tmp_path: Path, kind: str) -> None:
    data = page_of(run_of(kind, tmp_path))
    assert data.means["base"]["wer"].mean == pytest.approx(100 * 2 / 8)
    assert data.means["m"]["wer"].mean == pytest.approx(100 * 3 / 8)
    assert not data.metrics[0].higher_is_better and "Sums of errors over sums of words" in data.basis
    assert [g.title for g in data.grids] == ["Relative change against base, in %", "place: home"]
    assert data.grids[0].rows[0][0] == "wer (lower is better)" and data.grids[0].rows[0][1].startswith("+50.0 [")
    assert data.grids[1].rows[0][0] == "wer" and data.grids[1].note == "2 items" and "1 row has no text" in data.notes
    clips = {c.key: c for c in data.clips}
    assert [(e.kind, e.reference, e.hypothesis) for e in clips["u2"].edits["m"]] == [("delete", "say 2", "")]
    assert ("m: did not stop" in clips["u0"].note) == (kind == "synthesis")
    assert clips["u2"].label.endswith("words right") == (kind == "recognition")
    verb = {"recognition": "transcribe RECORDINGS", "synthesis": "speak TEXT"}[kind]
    assert data.commands[0] == f"rlspeech {verb} --model runs/m" and data.facts["normaliser"] == "basic-2"


def test_scores_of_files_have_their_spread_and_what_was_lost(tmp_path: Path) -> None:
    data = page_of(path := run_of("reward", tmp_path))
    assert data.means["system"]["lsd"] == mean_interval([3.0, 1.0, 2.0, 4.0, None])
    assert [(p.kind, sum(p.lines[0].mean)) for p in data.plots] == [("spread", 4.0)]
    assert [c.label for c in data.clips] == ["worst", "best", "in between"] and data.clips[0].key == "f3"
    assert [list(g.rows[0]) for g in data.grids] == [["lsd", "1", "empty file"]] and data.versions == {"lsd": "1"}
    meta = json.loads((path / "scores.meta.json").read_text())
    meta["systems"]["system"]["settings"] = [[1]]
    (path / "scores.meta.json").write_text(json.dumps(meta))
    assert not page_of(path).clips


def test_rewards_are_held_against_a_known_order(tmp_path: Path) -> None:
    path = reward_run(tmp_path / "run", {"system": [1.0, 2.0, 3.0, 4.0]})
    rows = manifest(path / "system", 4)
    order = {"ladder": "noise", "clean_id": "a"}
    write_rows(rows, [row | order | {"rung": i} for i, row in enumerate(rows_of(rows))])
    meta = json.loads((path / "scores.meta.json").read_text())
    meta["systems"]["system"]["settings"]["path"] = str(rows)
    (path / "scores.meta.json").write_text(json.dumps(meta))
    write_rows(path / "scores.jsonl", [row | {"key": f"u{i}"} for i, row in enumerate(rows_of(path / "scores.jsonl"))])
    data = page_of(path)
    assert [g.title for g in data.grids] == ["Calibration", "Order within a ladder, by the way of degrading"]
    assert data.grids[0].rows[0][:2] == ["lsd", "+1.000"] and data.clips[0].note.startswith("noise · rung ")


TORN = {
    "config.resolved.json": ("rl", "pretrain", "enhancement", "recognition", "synthesis"),
    "env.json": ("rl", "pretrain", "enhancement"),
    "scores.jsonl": ("rl", "enhancement", "recognition", "synthesis", "reward"),
    "scores.meta.json": ("enhancement", "reward"),
    "metrics.jsonl": ("rl", "pretrain"),
    "metrics.json": ("enhancement", "recognition", "synthesis"),
    "samples": ("rl", "pretrain"),
    "checkpoints": ("rl",),
}


@pytest.mark.parametrize(("torn", "kind"), [(torn, kind) for torn, kinds in TORN.items() for kind in kinds])
def test_a_torn_run_is_shown_with_what_it_has(tmp_path: Path, torn: str, kind: str) -> None:
    place = run_of(kind, tmp_path) / torn
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    made = compared([opened(tmp_path / "run")])
    data = build.build(made)
    assert data.means and data.title and (data.notes or ".json" not in torn or "jsonl" in torn or "meta" in torn)
    silent = {("samples", "rl"), ("samples", "pretrain"), ("scores.meta.json", "reward")}
    assert bool(data.clips) == ((torn, kind) not in silent)
    print_table(made)
    if kind == "rl":  # beside a whole one
        both = compared([opened(rl_run(tmp_path / "whole")), opened(tmp_path / "run")])
        assert both.means["run"] and build.build(both, 2).plots
        json.dumps(log.plain(both.as_dict()), allow_nan=False)
        print_table(both)


def test_numbers_of_another_version_are_left_for_those_of_the_rows(tmp_path: Path) -> None:
    path = run_of("enhancement", tmp_path)
    content = json.loads((path / "metrics.json").read_text())
    others = {"../m": content["systems"]["m"]}, {"input": {"si_sdr": {"mean": 1}}, "m": {}}
    for wrong in (*({"systems": found} for found in others), {"deltas": 3}):
        (path / "metrics.json").write_text(json.dumps({**content, **wrong}))
        data = page_of(path)
        assert any("metrics.json" in n for n in data.notes) and data.means["m"]["si_sdr"].n == 4 and data.deltas["m"]


def test_what_the_items_were_made_from_may_be_gone(tmp_path: Path) -> None:
    path = run_of("enhancement", tmp_path)
    (tmp_path / "data" / "test.jsonl").unlink()
    assert [list(c.audio) for c in page_of(path).clips] == [["input", "m"]] * 3
    path = run_of("reward", tmp_path / "other")
    shutil.rmtree(path / "system")
    data = page_of(path)
    assert data.means["system"]["lsd"].n == 4 and not data.clips and any("no players" in n for n in data.notes)


def test_the_embedded_set_is_found_by_the_manifest_that_the_run_noted(tmp_path: Path) -> None:
    path = run_of("enhancement", tmp_path)
    config, env = (json.loads((path / n).read_text()) for n in ("config.resolved.json", "env.json"))
    (path / "env.json").write_text(json.dumps({**env, "manifest": config["data"]}))
    (path / "config.resolved.json").write_text(json.dumps({**config, "data": None}))
    data = page_of(path)
    assert "reference" in data.clips[0].audio and data.subtitle.endswith("the embedded test set")


def test_without_scores_the_log_and_the_kept_audio_are_shown(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", count=3)
    (path / "scores.jsonl").unlink()
    data = page_of(path)
    mean = data.means["after"]["si_sdr"]
    assert mean.lo < mean.mean and [c.label for c in data.clips] == ["", "", ""]


@pytest.mark.parametrize("kind", ["rl", "several"])
def test_strings_of_a_run_never_become_markup(tmp_path: Path, kind: str) -> None:
    a, b = (rl_run(tmp_path / n, words=EVIL, count=2, steps=(0, 5), data=EVIL) for n in "ab")
    with (a / "scores.jsonl").open("a") as file:
        row = {"key": EVIL, "system": "step_000005", "step": 5, "si_sdr": 1e9, EVIL: 3.0, "errors": EVIL}
        file.write(json.dumps(row) + "\n")
    runs = [str(a)] if kind == "rl" else [str(a), f"{EVIL}={b}"]
    html = build.render_report(tmp_path / "page.html", page_of(*runs)).read_text()
    assert EVIL not in html and html.count("&lt;script&gt;alert(1)") > 4


def test_a_page_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rl_run(tmp_path / "run", count=2)
    monkeypatch.setattr(build, "render_report", Mock(side_effect=ValueError("no ink")))
    assert write_page(path) is None and write_page(tmp_path / "nowhere") is None
    assert "no ink" in (said := capsys.readouterr().err) and f"rlspeech report {path}" in said
