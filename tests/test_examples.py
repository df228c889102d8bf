"""Every script in ``examples/`` runs at tiny size, and what it promises to write is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import warm
from tiny_cli import rows_of

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPOKEN = pytest.mark.skipif(not shutil.which("flite"), reason="no flite")


def run(script: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    every = warm.environment(tmp_path) | {"TINY": "1", **env}
    call = ["bash", str(ROOT / "examples" / script)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=every)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_the_bench_compares_both_ways(tmp_path: Path) -> None:
    call = ["python", str(ROOT / "examples" / "bench.py"), *"--small --pairs 1 --only pool flowse mix".split()]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, env=warm.environment(tmp_path), check=True)
    rows = re.findall(r"^ +(\S.*?) {2,}\S.*? +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout, re.M)
    assert len(rows) == 6 and all(float(x) > 0 for row in rows for x in row[1:]), done.stdout


def systems(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "eval" / "metrics.json").read_text())["systems"]
    return found


def test_demo_goes_from_audio_to_a_verdict_and_says_the_same_again(tmp_path: Path) -> None:
    out, first = tmp_path / "out", run("demo.sh", tmp_path, OUT="out").stdout
    found, weights = systems(out), out / "pretrained" / "checkpoints" / "latest"
    assert list(found) == ["input", "pretrained", "rl"]
    assert (out / "eval" / "report.html").stat().st_size > 10_000
    assert first.count("estoi") and "rl" in first
    when = weights.stat().st_mtime_ns
    for name in ("rl", "eval"):
        shutil.rmtree(out / name)
    run("demo.sh", tmp_path, OUT="out")
    assert systems(out) == found, "same seed, same table"
    assert weights.stat().st_mtime_ns == when, "what is finished is not repeated"


def test_demo_avse_hears_judges_and_compares(tmp_path: Path) -> None:
    run("demo-avse.sh", tmp_path, OUT="out")
    found = systems(tmp_path / "out")
    assert set(found) == {"input", "pretrained", "pretrained-shuffled", "control", "rl"}
    rows = rows_of(tmp_path / "out" / "scores" / "scores.jsonl")
    assert rows and all(1 <= r["llm"] <= 5 and r["llm_text"] for r in rows)
    page = (tmp_path / "out" / "eval" / "report.html").read_text()
    assert "pretrained-shuffled" in page and page.count("<audio") > 3


def test_demo_asr_listens_learns_and_compares(tmp_path: Path) -> None:
    said = run("demo-asr.sh", tmp_path, OUT="out").stdout
    found = systems(tmp_path / "out")
    assert set(found) == {"base", "sft", "grpo"}
    assert "test_noisy_000" in said and "music_0000" in said, "one line a file"
    rows = rows_of(tmp_path / "out" / "eval" / "hypotheses" / "grpo.jsonl")
    assert len(rows) == 4 and all(isinstance(r["hypothesis"], str) for r in rows)
    assert "<audio" in (tmp_path / "out" / "eval" / "report.html").read_text()


def test_demo_tts_speaks_learns_and_compares(tmp_path: Path) -> None:
    run("demo-tts.sh", tmp_path, OUT="out")
    assert set(systems(tmp_path / "out")) == {"recordings", "resynthesis", "base", "sft", "rl"}
    said = rows_of(tmp_path / "out" / "eval" / "said" / "rl.jsonl")
    assert len(said) == 2 and all(r["samples"] > 0 and r["tokens"] for r in said)
    assert (tmp_path / "out" / "spoken").exists()
    assert "<audio" in (tmp_path / "out" / "eval" / "report.html").read_text()


def test_every_pipeline_runs(tmp_path: Path) -> None:
    done = run("pipelines.sh", tmp_path, OUT="out")
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("== ")]
    assert said == [], "quiet is quiet"
    lines, rows = done.stdout.splitlines(), rows_of(tmp_path / "out" / "scores" / "scores.jsonl")
    assert "the test set has no mistakes" in lines and "avse-lr-no-sisnr: supervised_weight: 0.0" in lines
    assert len(rows) == 2 and all(1 <= r["dnsmos_fast_ovrl"] <= 5 for r in rows)
    mean = sum(r["dnsmos_fast_ovrl"] for r in rows) / 2
    assert any(line.replace(".", "").isdigit() and abs(float(line) - mean) < 1e-3 for line in lines)
    assert len(list((tmp_path / "out" / "enhanced").glob("*.flac"))) == 2


@pytest.mark.realdata
@SPOKEN
def test_the_recogniser_is_made_from_real_recordings(tmp_path: Path) -> None:
    run("train-embedded-asr.sh", tmp_path, OUT="out")
    assert (tmp_path / "out" / "asr" / "model.safetensors").is_file() and "embedded" in systems(tmp_path / "out")


@pytest.mark.realdata
@SPOKEN
def test_rule_rewards_on_real_recordings(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    run("asr-real.sh", tmp_path, OUT="out", ARMS="graded reference")
    found = systems(tmp_path / "out")
    assert {"base", "sft-0", "grpo-0", "graded", "reference", "r1", "r12", "d0", "sft-d0"} <= set(found)


@pytest.mark.realdata
@SPOKEN
def test_synthesis_is_made_and_tuned_on_real_recordings(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    run("train-embedded-tts.sh", tmp_path, OUT="made")
    for name in ("codec", "token-reward", "tts"):
        assert (tmp_path / "made" / name / "checkpoints" / "latest").is_file()
    run("tts-real.sh", tmp_path, OUT="out", MATERIAL="made/material")
    arms = "sft grpo diffro sum r1 r12 r123 dpo raft random recorded".split()
    assert {"base", *(f"{arm}-0" for arm in arms)} <= set(systems(tmp_path / "out"))


@pytest.mark.realdata
@pytest.mark.parametrize(
    "script",
    ["train-embedded-flowse", "flowse-grpo-real", "flowse-algorithms-real", "train-embedded-avse", "avse-real"],
)
def test_scripts_on_real_recordings(script: str, tmp_path: Path) -> None:
    run(f"{script}.sh", tmp_path, OUT="out", CLEAN="cmu_arctic")
    assert "input" in systems(tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.realmodels
def test_a_real_recogniser_is_tuned_and_decodes_alike_in_transformers(tmp_path: Path, realmodels: Path) -> None:
    run("whisper-real.sh", tmp_path, OUT="out", MODEL=str(realmodels / "whisper-tiny.en"), ARMS="grpo graded dpo")
    assert {"base", "grpo-0", "graded-0", "dpo-0", "mean15", "plain-grpo-0"} <= set(systems(tmp_path / "out"))
    for arm in ("base", "grpo-0"):
        texts = []
        for path, key in ((f"eval/hypotheses/{arm}.jsonl", "key"), (f"plain/{arm}.jsonl", "id")):
            rows = map(json.loads, (tmp_path / "out" / path).read_text().splitlines())
            texts.append({r[key]: r["hypothesis"].strip() for r in rows})
        assert texts[0] == texts[1]


@pytest.mark.realdata
def test_the_judge_is_made_from_real_recordings(tmp_path: Path) -> None:
    said = run("train-embedded-judge.sh", tmp_path, OUT="out").stdout
    assert "Spearman with pesq_wb" in said and (tmp_path / "out" / "judge-listener" / "model.safetensors").is_file()
