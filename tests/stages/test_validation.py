"""What a validation of ``rl`` keeps: rows and audio by clip."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_runs import RATE, clips_of, rl_run

from rlspeech.report.runs import RunRecord
from rlspeech.report.systems import validation as shown
from rlspeech.stages import validation
from rlspeech.types import Sample, Score


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
