"""Stored samples: sampled, interrupted, moved, scored, checked and learnt from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cli import called, refused, rows_of
from tiny_runs import write_rows
from tiny_speech import SMALL_RL, read_rows

from rlspeech.data.audio import load_audio

SMALL = [w for k, v in SMALL_RL.items() if k not in ("group", "steps") for w in ("--set", f"{k}={v}")]


@pytest.fixture(scope="module")
def spoken(tts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four draws of each of four texts, scored."""
    out = tmp_path_factory.mktemp("spoken") / "set"
    made = called(
        *"sample --task tts --draws 4 --device cpu --model".split(), tts["model"], "--data", tts["data"], "--out", out
    )
    assert (made["prompts"], made["outputs"], made["failed"]) == (4, 16, 0)
    called("reward", out, *"--reward tts_duration --reward tts_token_diversity --workers 0".split())
    return out


def test_rows_are_a_manifest_of_outputs_with_their_prompts(spoken: Path, tts: dict[str, str]) -> None:
    rows = rows_of(spoken / "manifest.jsonl")
    assert [r["id"] for r in rows[:4]] == [f"{rows[0]['prompt']}-0{d}" for d in range(4)]
    texts = {r["id"]: r["text"] for r in rows_of(tts["data"])}
    for row in rows:
        assert row["text"] == texts[row["prompt"]] and not Path(row["audio_filepath"]).is_absolute()
        if not row["tokens"]:
            assert row["duration"] == 0 and not (spoken / row["audio_filepath"]).exists()
            continue
        wav = load_audio(spoken / row["audio_filepath"], row["sample_rate"])
        assert len(wav) == round(row["duration"] * row["sample_rate"])
        assert len(wav) == pytest.approx(len(row["tokens"]) * row["token_s"] * row["sample_rate"], abs=640)
    scores = {r["key"]: r["tts_duration"] for r in rows_of(spoken / "scores.jsonl")}
    for prompt in texts:  # by the median of all four draws of a text
        lengths = {r["id"]: len(r["tokens"]) for r in rows if r["prompt"] == prompt}
        known = [lengths[r["id"]] for r in rows if r["prompt"] == prompt and r["finished"]] or list(lengths.values())
        median = max(float(np.median(known)), 1.0)
        assert {k: -abs(n - median) / median for k, n in lengths.items()} == pytest.approx(
            {k: scores[k] for k in lengths}, abs=1e-6
        )


def test_an_interrupted_set_goes_on_as_it_would_have_been(spoken: Path, tts: dict[str, str], tmp_path: Path) -> None:
    out, line = (
        tmp_path / "set",
        ["sample", "--task", "tts", "--model", tts["model"], "--data", tts["data"], "--draws", 4],
    )
    line += ["--device", "cpu", "--set", "batch=1", "--out", out]
    called(*line, "--limit", 2)
    torn = (out / "manifest.jsonl").read_text().splitlines()[:6]
    (out / "manifest.jsonl").write_text("\n".join(torn)[:-9])
    assert called(*line)["outputs"] == 16
    assert sorted(rows_of(out / "manifest.jsonl"), key=lambda r: r["id"]) == rows_of(spoken / "manifest.jsonl")
    assert "draws" in refused(*line[:-2], "--draws", 2, "--out", out)


def test_a_prompt_that_cannot_be_read_costs_one_prompt(tts: dict[str, str], tmp_path: Path) -> None:
    rows = [
        {**r, **{k: str(Path(tts["data"]).parent / r[k]) for k in r if k.endswith("path")}}
        for r in rows_of(tts["data"])
    ]
    rows[1]["audio_filepath"] = "gone.flac"
    data = write_rows(tmp_path / "data.jsonl", rows)
    made = called(
        *"sample --task tts --draws 2 --model".split(), tts["model"], "--data", data, "--out", tmp_path / "set"
    )
    assert (made["prompts"], made["outputs"], list(made["errors"])) == (3, 6, [rows[1]["id"]])


def test_a_moved_set_is_checked(spoken: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(spoken, tmp_path / "elsewhere"))
    found = called("check", moved)
    assert found["problems"] == [] and found["facts"]["outputs with scores"] == 16
    rows = rows_of(moved / "manifest.jsonl")
    (moved / next(r["audio_filepath"] for r in rows if r["tokens"])).unlink()
    write_rows(moved / "manifest.jsonl", [*rows[:-1], {**rows[-1], "id": "odd", "prompt": "nobody"}])
    refused("check", moved)
    text = " ".join(p["message"] for p in called_problems(moved))
    assert all(part in text for part in ("is missing", "nobody", "3 of 4", "1 outputs have no scores"))


def called_problems(path: Path) -> list[dict[str, Any]]:
    from rlspeech.stages.check import run

    return list(run(path)["problems"])


ARMS = ["dpo.pairs=ranked", "dpo.winner=reference"]


@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_learns_from_the_same_samples_and_goes_on(
    spoken: Path, tts: dict[str, str], tmp_path: Path, arm: str
) -> None:
    line = [
        "rl",
        "--task",
        "tts",
        "--algo",
        "dpo",
        "--model",
        tts["model"],
        "--samples",
        spoken,
        "--valid",
        tts["data"],
        *SMALL,
    ]
    line += [
        "--reward",
        "tts_duration=1",
        "--reward",
        "tts_token_diversity=0.5",
        "--set",
        "guards=[]",
        "--set",
        "dpo.margin=0",
        "--set",
        arm,
    ]
    made = called(*line, "--out", tmp_path / "run", "--steps", 2, "--set", "lr_schedule=constant")
    rows = [r for r in read_rows(tmp_path / "run") if "dpo/loss" in r]
    assert made["steps"] == len(rows) == 2 and rows[0]["grad_norm"] > 0 and 0 < rows[0]["dpo/kept"] <= 1
    if arm != ARMS[0]:
        return
    whole = called(*line, "--out", tmp_path / "whole", "--steps", 3, "--set", "lr_schedule=constant")
    again = called(*line, "--out", tmp_path / "run", "--steps", 3, "--set", "lr_schedule=constant")
    from safetensors.torch import load_file

    ours, theirs = (load_file(Path(m["checkpoint"]) / "model.safetensors") for m in (again, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_mixtures_are_stored_with_their_references(flow: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "set"
    called(
        "sample",
        "--model",
        flow["model"],
        "--data",
        flow["data"],
        "--draws",
        3,
        "--limit",
        2,
        "--set",
        "clip_s=0.5",
        "--out",
        out,
    )
    rows, prompts = rows_of(out / "manifest.jsonl"), {r["id"]: r for r in rows_of(out / "prompts.jsonl")}
    assert {r["duration"] for r in rows} == {0.5} and all(
        r["target_filepath"] == prompts[r["prompt"]]["target_filepath"] for r in rows
    )
    wavs = [load_audio(out / r["audio_filepath"]) for r in rows[:3]]
    assert not np.allclose(wavs[0], wavs[1], atol=1e-3)
    assert called("reward", out, "--reward", "si_sdr", "--workers", 0)["metrics"]["si_sdr"]["n_valid"] == 6
    line = [
        "rl",
        "--algo",
        "dpo",
        "--model",
        flow["model"],
        "--samples",
        out,
        "--valid",
        flow["data"],
        *SMALL,
        "--set",
        "guards=[]",
    ]
    assert (
        called(*line, "--reward", "si_sdr=1", "--steps", 1, "--out", tmp_path / "run", "--set", "dpo.margin=0")["steps"]
        == 1
    )
    assert "--algo dpo" in refused("rl", "--samples", out)
    assert "--samples" in refused("rl", "--algo", "dpo")
    assert "clip_s" in refused(*line, "--set", "clip_s=1")
