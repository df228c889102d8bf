"""What a run of ``rl`` leaves for people: rows and audio by clip, and a page however it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import EVIL, RATE, clips_of, rl_run

from rlspeech.config import RL
from rlspeech.report import render_report
from rlspeech.run import Run
from rlspeech.stages import finish, rl_report, validation
from rlspeech.stages.finish import at_the_end
from rlspeech.stages.past import Past, open_pasts
from rlspeech.stages.validations import Validations
from rlspeech.stats import mean_interval, paired_delta
from rlspeech.types import Sample, Score, UserError


def _open(path: Path) -> Past:
    return open_pasts([str(path)])[0]


def test_the_page_has_the_runs_own_numbers(tmp_path: Path) -> None:
    run = _open(rl_run(tmp_path / "run", 2.0))
    data = rl_report.page_data(run)
    rows = [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]
    first, last = ([r["si_sdr"] for r in rows if r["step"] == s] for s in (0, 20))
    assert data.means["before"]["si_sdr"] == mean_interval(first) and data.means["after"]["si_sdr"] == mean_interval(
        last
    )
    assert (
        data.deltas["after"]["si_sdr"] == paired_delta(last, first, seed=1)
        and data.deltas["after"]["si_sdr"].significant
    )
    assert {m.name: m.higher_is_better for m in data.metrics} == {"si_sdr": True, "lsd": False, "reward": True}
    kinds = {p.title: p.kind for p in data.plots}
    assert (
        kinds["delta/si_sdr"] == kinds["valid/reward"] == "reward"
        and kinds["delta/lsd"] == "guard"
        and kinds["kl"] == "train"
    )
    assert [line.run for p in data.plots for line in p.lines] == ["run"] * len(data.plots)
    assert (
        data.facts["rewarded"] == "1 x si_sdr"
        and "lsd (may drop by 1)" in data.facts["watched"]
        and data.facts["after"] == "step 20"
    )
    assert data.cost["rollout"].startswith("3.0 s") and any(
        c.startswith("rlspeech eval --model before=embedded") for c in data.commands
    )


def test_players_before_and_after_of_what_changed_most(tmp_path: Path) -> None:
    run = _open(rl_run(tmp_path / "run", -1.0, words=EVIL))
    data = rl_report.page_data(run, players=3)
    assert len(data.clips) == 3 and {"largest loss in reward"} <= {c.label for c in data.clips}
    for clip in data.clips:
        assert list(clip.audio) == ["input", "before", "after", "reference"]
        np.testing.assert_allclose(clip.audio["after"], clip.audio["before"] / 2, atol=1e-3)
        assert clip.texts == {"before": EVIL, "after": EVIL} and clip.scores["after"]["llm"] is not None
    changes = {k: float(r["reward"]) for k, r in run.scores["step_000020"].items()}
    worst = min(changes, key=lambda k: changes[k] - run.scores["step_000000"][k]["reward"])
    assert data.clips[0].key == worst and rl_report.page_data(run, players=0).clips == []


def test_a_page_of_a_hostile_run_is_drawn_and_escaped(tmp_path: Path, drawn: None) -> None:
    path = rl_run(tmp_path / "run", words=EVIL, count=2, steps=(0, 5), data=EVIL)
    with (path / "scores.jsonl").open("a") as file:
        file.write(
            json.dumps({"key": EVIL, "system": "step_000005", "step": 5, "si_sdr": 1e9, EVIL: 3.0, "errors": EVIL})
            + "\n"
        )
    html = render_report(tmp_path / "page.html", rl_report.page_data(_open(path))).read_text()
    assert EVIL not in html and "&lt;script&gt;alert" in html and "step 5 of 5" in html


@pytest.mark.parametrize(
    "missing",
    [
        ["scores.jsonl"],
        ["metrics.jsonl"],
        ["env.json", "config.resolved.json"],
        ["samples"],
        ["checkpoints"],
        ["scores.jsonl", "metrics.jsonl", "samples", "checkpoints"],
    ],
)
def test_a_torn_run_is_shown_with_what_it_has(tmp_path: Path, missing: list[str]) -> None:
    import shutil

    path = rl_run(tmp_path / "run", count=3)
    for name in missing:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    data = rl_report.page_data(_open(path))
    assert bool(data.clips) == ("samples" not in missing)
    if missing == ["scores.jsonl"]:  # the last means, from the log
        assert data.means["after"]["si_sdr"].lo < data.means["after"]["si_sdr"].mean and [
            c.label for c in data.clips
        ] == ["", "", ""]
    if "scores.jsonl" not in missing:
        assert data.deltas["after"]["reward"].n == 3
    rl_report.print_run(_open(path))


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
    assert kept == {
        "input": 7,
        "reference": 7,
        "step_000000": 7,
        "step_000010": validation.ON_THE_WAY,
        "step_000020": 7,
    }


def test_a_score_that_is_missing_has_its_reason(tmp_path: Path) -> None:
    clip = clips_of(1)[0]
    same = type(clip)("u0", clip.noisy, clip.noisy, RATE, "said")
    sample = Sample("u0", clip.noisy, RATE, None, "said", hypothesis="sad")
    validation.keep(tmp_path, 0, [same], [sample], {"asr_wer": [Score(None, "too quiet")]}, [None])
    (row,) = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert row["asr_wer"] is None and row["errors"] == {"asr_wer": "too quiet", "reward": "a part of it is not known"}
    assert (row["text"], row["hypothesis"]) == ("said", "sad") and (
        tmp_path / "samples" / "recording" / "u0.flac"
    ).is_file()
    checks = Validations.of(Past("x", tmp_path, "rl", scores={"step_000000": {"u0": row}}))
    assert checks.metrics == ["asr_wer", "reward"] and checks.errors(0) and checks.mean(0, "reward").n == 0


def test_the_history_of_a_checkpoint_stands_in_without_names(tmp_path: Path) -> None:
    path = rl_run(tmp_path / "run", count=3)
    (path / "scores.jsonl").unlink()
    history = [{"step": 0, "si_sdr": [1.0, 2.0, None]}, {"step": 20, "si_sdr": [2.0, 4.0, 1.0]}]
    (path / "checkpoints" / "step_000020" / "state.json").write_text(json.dumps({"history": history}))
    checks = Validations.of(_open(path))
    assert not checks.named and checks.delta(20, "si_sdr").mean == 1.5 and checks.delta(20, "si_sdr").n == 2
    assert any("kept no names" in n for n in rl_report.page_data(_open(path)).notes)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (UserError("nothing can be scored"), "nothing can be scored"),
        (RuntimeError("x"), "RuntimeError"),
        (None, "all steps done"),
    ],
)
def test_there_is_a_page_however_a_run_ends(tmp_path: Path, error: BaseException | None, reason: str) -> None:
    with Run.create(tmp_path / "run", "rl", RL()) as folder:
        folder.log(1, reward=0.5)
        try:
            with at_the_end(folder, rl_report.page_data) as end:
                end.reason = "all steps done"
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
    assert end.page == folder.path / "report.html" and end.page.is_file()
    assert (
        json.loads((folder.path / "env.json").read_text())["stopped"] == reason
        and _open(folder.path).state() == f"step 1 of 60: {reason}"
    )


def test_a_page_that_fails_does_not_cost_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(finish, "render_report", broken)
    with Run.create(tmp_path / "run", "rl", RL()) as folder, at_the_end(folder, rl_report.page_data) as end:
        end.reason = "all steps done"
    assert end.page is None and "no ink" in capsys.readouterr().err
