"""Stored samples: sampled, interrupted, moved, scored, checked and learnt from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_cli import called, refused, rows_of
from tiny_runs import write_rows
from tiny_speech import SMALL_RL, read_rows

from rlspeech.data.audio import load_audio
from rlspeech.stages.check import run as check

SMALL = [w for k, v in SMALL_RL.items() if k not in ("group", "steps") for w in ("--set", f"{k}={v}")]
SMALL += ["--set", "guards=[]", "--set", "dpo.margin=0", "--algo", "dpo"]


def sample(given: dict[str, str], out: Path, *words: object, data: object = None) -> dict[str, Any]:
    return called("sample", "--model", given["model"], "--data", data or given["data"], "--out", out, *words)


@pytest.fixture(scope="module")
def spoken(tts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four draws of each of four texts, scored."""
    out = tmp_path_factory.mktemp("spoken") / "set"
    made = sample(tts, out, *"--task tts --draws 4".split())
    assert (made["prompts"], made["outputs"], made["failed"]) == (4, 16, 0)
    called("reward", out, *"--reward tts_duration --reward tts_token_diversity --workers 0".split())
    return out


def test_rows_are_a_manifest_of_outputs_with_their_prompts(spoken: Path, tts: dict[str, str]) -> None:
    rows, texts = rows_of(spoken / "manifest.jsonl"), {r["id"]: r["text"] for r in rows_of(tts["data"])}
    for i, row in enumerate(rows):
        assert row["id"] == f"{row['prompt']}-0{i % 4}" and row["text"] == texts[row["prompt"]]
        path, samples = Path(row["audio_filepath"]), round(row["duration"] * row["sample_rate"])
        assert not path.is_absolute() and (spoken / path).exists() == bool(row["tokens"])
        assert not samples or len(load_audio(spoken / path, row["sample_rate"])) == samples
        assert samples == pytest.approx(len(row["tokens"]) * row["token_s"] * row["sample_rate"], abs=640)
    scores = {r["key"]: r["tts_duration"] for r in rows_of(spoken / "scores.jsonl")}
    for prompt in texts:  # by the median of all four draws of a text
        lengths = {r["id"]: len(r["tokens"]) for r in rows if r["prompt"] == prompt}
        done = [lengths[r["id"]] for r in rows if r["prompt"] == prompt and r["finished"]] or list(lengths.values())
        median = max(float(np.median(done)), 1.0)
        wanted = [-abs(n - median) / median for n in lengths.values()]
        assert [scores[k] for k in lengths] == pytest.approx(wanted, abs=1e-6)


def test_an_interrupted_set_goes_on_as_it_would_have_been(spoken: Path, tts: dict[str, str], tmp_path: Path) -> None:
    out, words = tmp_path / "set", "--task tts --draws 4 --set batch=1".split()
    sample(tts, out, *words, "--limit", 2)
    torn = (out / "manifest.jsonl").read_text().splitlines()[:6]
    (out / "manifest.jsonl").write_text("\n".join(torn)[:-9])
    assert sample(tts, out, *words)["outputs"] == 16
    assert sorted(rows_of(out / "manifest.jsonl"), key=lambda r: r["id"]) == rows_of(spoken / "manifest.jsonl")
    line = ["sample", "--model", tts["model"], "--data", tts["data"], "--out", out]
    assert "draws" in refused(*line, "--task", "tts", "--draws", 2)


def test_a_prompt_that_cannot_be_read_costs_one_prompt(tts: dict[str, str], tmp_path: Path) -> None:
    place = Path(tts["data"]).parent
    rows = [{**r, **{k: str(place / r[k]) for k in r if k.endswith("path")}} for r in rows_of(tts["data"])]
    rows[1]["audio_filepath"] = "gone.flac"
    made = sample(tts, tmp_path / "set", *"--task tts --draws 2".split(), data=write_rows(tmp_path / "d.jsonl", rows))
    assert (made["prompts"], made["outputs"], list(made["errors"])) == (3, 6, [rows[1]["id"]])


def test_a_moved_set_is_checked(spoken: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(spoken, tmp_path / "elsewhere"))
    found = called("check", moved)
    assert found["problems"] == [] and found["facts"]["outputs with scores"] == 16
    rows = rows_of(moved / "manifest.jsonl")
    (moved / next(r["audio_filepath"] for r in rows if r["tokens"])).unlink()
    write_rows(moved / "manifest.jsonl", [*rows[:-1], {**rows[-1], "id": "odd", "prompt": "nobody"}])
    text = " ".join(p["message"] for p in check(moved)["problems"])
    assert all(part in text for part in ("is missing", "nobody", "3 of 4", "1 outputs"))


@pytest.mark.parametrize("arm", ["dpo.pairs=ranked", "dpo.winner=reference"])
def test_arms_learn_from_the_same_samples_and_go_on(
    spoken: Path, tts: dict[str, str], tmp_path: Path, arm: str
) -> None:
    line = ["rl", "--task", "tts", "--model", tts["model"], "--samples", spoken, "--valid", tts["data"], *SMALL]
    line += [*"--reward tts_duration=1 --reward tts_token_diversity=0.5 --set lr_schedule=constant --set".split(), arm]
    made = called(*line, "--out", tmp_path / "run", "--steps", 2)
    rows = [r for r in read_rows(tmp_path / "run") if "dpo/loss" in r]
    assert made["steps"] == len(rows) == 2 and rows[0]["grad_norm"] > 0 and 0 < rows[0]["dpo/kept"] <= 1
    if "ranked" in arm:
        made = [called(*line, "--out", tmp_path / name, "--steps", 3) for name in ("run", "whole")]
        ours, theirs = (load_file(Path(m["checkpoint"]) / "model.safetensors") for m in made)
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_enhanced_clips_are_stored_with_their_references(flow: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "set"
    sample(flow, out, *"--draws 3 --limit 2 --set clip_s=0.5".split())
    rows, prompts = rows_of(out / "manifest.jsonl"), {r["id"]: r for r in rows_of(out / "prompts.jsonl")}
    assert {r["duration"] for r in rows} == {0.5}
    assert all(r["target_filepath"] == prompts[r["prompt"]]["target_filepath"] for r in rows)
    wavs = [load_audio(out / r["audio_filepath"]) for r in rows[:2]]
    assert not np.allclose(*wavs, atol=1e-3)
    assert called("reward", out, "--reward", "si_sdr", "--workers", 0)["metrics"]["si_sdr"]["n_valid"] == 6
    line = ["rl", "--model", flow["model"], "--samples", out, "--valid", flow["data"], *SMALL]
    assert called(*line, "--reward", "si_sdr=1", "--steps", 1, "--out", tmp_path / "run")["steps"] == 1
    assert "--algo dpo" in refused("rl", "--samples", out)
    assert "rollouts" in refused(*line, "--set", "group=2")
