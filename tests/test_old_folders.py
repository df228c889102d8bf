"""Folders of an earlier version still open, go on, are evaluated and reported on; see ``fixtures/README.md``."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_cli import RUN
from tiny_cli import called as call
from tiny_cli import rows_of as rows

from rlspeech.cli import app

pytestmark = pytest.mark.slow
FIXTURES = Path(__file__).parent / "fixtures"
MADE_AT_NS = 1_767_225_600_000_000_000  # the audio's time when it was scored, which its rows remember
PAIRS = "--data data/pairs.jsonl --valid data/pairs.jsonl"
PRETRAIN = shlex.split(
    f"pretrain {PAIRS} --out pretrain --lr 0.02 --seed 1 --set batch=2 --set ema=0 --set warmup=1 --set valid_every=2 "
    "--set save_every=2 --set valid_items=2 --set mixing.clip_s=0.8 --set tracker=none --set 'model={n_fft: 64, "
    "hop: 32, dim: 8, depth: 1, heads: 2, conv_pos_kernel: 3, conv_pos_groups: 4, nfe: 2}'"
)
RL = (
    f"rl --algo grpo --model pretrain {PAIRS} --reward si_sdr=1 --reward estoi=2 --guard lsd --out rl --lr 0.05 "
    "--seed 1 --group 2 --prompts-per-step 2 --set micro_batch=2 --set clip_s=0.5 --set valid_items=2 "
    "--set valid_every=2 --set save_every=2 --set workers=0 --set lora.rank=2 --set tracker=none"
).split()
EVAL = "eval --data data/pairs.jsonl --model base=pretrain --model rl=rl --baseline base --workers 0".split()
EVAL += ["--metric", "si_sdr", "--metric", "estoi"]
ASR = "eval --task asr --data data/speech.jsonl --model one=embedded --model two=embedded --baseline one".split()
ASR += ["--out", "asr-eval"]
TTS = "eval --task tts --data data/speech.jsonl --model base=embedded --limit 2 --workers 0 --out tts-eval".split()
REWARD = (
    "reward data/noisy --target data/clean --text data/texts.jsonl --hypotheses data/hypotheses.jsonl --reward si_sdr "
    "--reward estoi --reward asr_wer --system noisy --workers 0 --out scores"
).split()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in folder.rglob("*.json"):
        if "@HERE@" in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace("@HERE@", str(folder)), encoding="utf-8")
    for path in (folder / "data").rglob("*.*"):
        os.utime(path, ns=(MADE_AT_NS, MADE_AT_NS))
    monkeypatch.chdir(folder)
    return folder


def by_item(path: str | Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["system"], r["key"]): r for r in rows(path)}


def written(folder: str | Path) -> dict[str, int]:
    """When each file below a folder was written, in ns."""
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}


def plant(path: str, number: int, **values: Any) -> dict[str, Any]:
    """Write values that no computation gives into a row, so that computing it again is noticed; return the row."""
    found = rows(path)
    found[number] |= values
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
    return found[number]


def words_of(page: str | Path) -> str:
    """What a page shows, in one line."""
    text = re.sub(r"(?s)<(script|style).*?</\1>", " ", Path(page).read_text(encoding="utf-8"))
    return unescape(" ".join(re.sub(r"<[^>]*>", " ", text).split()))


def test_a_stopped_rl_run_goes_on_and_can_grow() -> None:
    before = rows("rl/metrics.jsonl")
    assert [r["step"] for r in before] == [0, 1, 1]
    summary = call(*RL, "--steps", "4")
    after = rows("rl/metrics.jsonl")
    assert summary["steps"] == 4 and after[: len(before)] == before
    validated, rewards = ([r[key] for r in after if key in r] for key in ("valid/si_sdr", "reward"))
    # the steps since then draw noise by the prompts' place in the batch, which a run of that time did not
    assert validated[:2] == pytest.approx([5.7305, 5.7732], rel=2e-3)
    assert validated[2:] == pytest.approx([5.7, 5.7], abs=0.5)
    assert rewards[0] == pytest.approx(8.4632, rel=1e-2) and len(rewards) == 4 and np.isfinite(rewards).all()
    assert [r["step"] for r in after if "lr" in r] == [1, 2, 3, 4]
    assert all(math.isfinite(r["grad_norm"]) for r in after if "lr" in r)
    assert Path("rl/checkpoints/latest").read_text().strip() == "step_000004"
    assert json.loads(Path("rl/env.json").read_text())["earlier"][0]["argv"][:2] == ["rlspeech", "rl"]
    grown = call(*RL, "--steps", "5")
    assert grown["steps"] == 5 and [r["step"] for r in rows("rl/metrics.jsonl") if "lr" in r] == [1, 2, 3, 4, 5]


def test_other_settings_are_refused() -> None:
    before = rows("rl/metrics.jsonl")
    done = RUN.invoke(app, [*RL, "--steps", "4", "--group", "4", "--json"])
    assert done.exit_code == 2 and "group" in json.loads(done.stdout)["why"]
    assert rows("rl/metrics.jsonl") == before and not Path("rl/checkpoints/step_000004").exists()


def test_a_pretraining_goes_on() -> None:
    before = rows("pretrain/metrics.jsonl")
    summary = call(*PRETRAIN, "--steps", "3")
    after = rows("pretrain/metrics.jsonl")
    assert summary["step"] == 3 and after[: len(before)] == before and after[-1]["step"] == 3
    assert Path("pretrain/checkpoints/step_000003/model.safetensors").is_file()


def test_checkpoints_are_evaluated() -> None:
    summary = call(*EVAL, "--limit", "2", "--out", "new")
    assert list(summary["systems"]) == ["input", "base", "rl"]
    old, new = by_item("eval/scores.jsonl"), by_item("new/scores.jsonl")
    assert old.keys() == new.keys() and len(old) == 6
    for item, row in old.items():
        assert new[item]["si_sdr"] == pytest.approx(row["si_sdr"], abs=1e-2)
        assert new[item]["estoi"] == pytest.approx(row["estoi"], abs=1e-3)
    new_systems, old_systems = (json.loads(Path(f, "systems.json").read_text()) for f in ("new", "eval"))
    assert new_systems == old_systems, "the same weights"


def test_a_checkpoint_enhances_and_its_adapter_is_exported() -> None:
    summary = call("enhance", "data/noisy/u0.flac", "--model", "rl", "--out", "enhanced")
    assert len(list(Path("enhanced").rglob("*.flac"))) + len(list(Path("enhanced").rglob("*.wav"))) == 1 and summary
    call("convert", "lora", "rl", "--to", "adapter", "adapter")
    call("convert", "lora", "rl", "--to", "merged", "merged")
    assert Path("adapter/adapter_model.safetensors").is_file() and Path("merged/model.safetensors").is_file()


@pytest.mark.parametrize("folder", ["rl", "pretrain", "eval", "asr-eval", "tts-eval", "rl/checkpoints/step_000001"])
def test_nothing_is_wrong_with_them(folder: str) -> None:
    assert call("check", folder)["problems"] == []


def test_an_unfinished_evaluation_is_finished_and_keeps_what_is_scored() -> None:
    plant("eval-unfinished/scores.jsonl", 3, si_sdr=-77.25)
    before, sounds = by_item("eval-unfinished/scores.jsonl"), written("eval-unfinished/audio")
    assert {s for s, _ in before} == {"input", "base"} and len(before) == 4
    assert not Path("eval-unfinished/metrics.json").exists()
    summary = call(*EVAL, "--out", "eval-unfinished", "--set", "batch=1")
    after = by_item("eval-unfinished/scores.jsonl")
    assert len(after) == 9 and all(after[item] == row for item, row in before.items()), "rows are kept"
    assert {p: t for p, t in written("eval-unfinished/audio").items() if p in sounds} == sounds, "audio is kept"
    assert summary["n"] == 3 and set(summary["deltas"]) == {"input", "rl"}
    assert Path("eval-unfinished/metrics.json").is_file()


def test_a_finished_evaluation_is_not_repeated() -> None:
    before, sounds = by_item("eval/scores.jsonl"), written("eval/audio")
    old = json.loads(Path("eval/metrics.json").read_text())
    summary = call(*EVAL, "--limit", "2", "--out", "eval")
    assert summary["systems"] == old["systems"] and summary["deltas"] == old["deltas"]
    assert by_item("eval/scores.jsonl") == before and written("eval/audio") == sounds
    kept = plant("eval/scores.jsonl", -1, si_sdr=-77.25)
    assert call(*EVAL, "--limit", "2", "--out", "eval")["systems"]["rl"]["si_sdr"]["lo"] == -77.25
    assert by_item("eval/scores.jsonl")["rl", kept["key"]] == kept


def test_transcripts_are_counted_anew_without_recognising() -> None:
    before, old = rows("asr-eval/hypotheses/two.jsonl"), json.loads(Path("asr-eval/metrics.json").read_text())
    summary = call(*ASR)
    found = {s: {m: row[m] for m in old["systems"][s]} for s, row in summary["systems"].items()}
    assert found == old["systems"] and summary["systems"]["one"]["symbols"]["mean"] == 0  # a younger rate
    assert summary["systems"]["two"]["deletions"]["mean"] == pytest.approx(100 / 15)
    assert rows("asr-eval/hypotheses/two.jsonl") == before, "a word was taken out of it by hand"
    other = call(*ASR, "--normaliser", "english-1")
    assert other["normaliser"] == "english-1" and rows("asr-eval/hypotheses/two.jsonl") == before


def test_speech_is_not_synthesised_again() -> None:
    before, sounds = rows("tts-eval/said/base.jsonl"), written("tts-eval/audio")
    old = json.loads(Path("tts-eval/metrics.json").read_text())
    summary = call(*TTS)
    assert list(summary["systems"]) == ["recordings", "resynthesis", "base"] and summary["systems"] == old["systems"]
    assert rows("tts-eval/said/base.jsonl") == before and written("tts-eval/audio") == sounds


def test_scores_are_kept_and_columns_added() -> None:
    kept = plant("scores/scores.jsonl", 0, si_sdr=-77.25)
    before = by_item("scores/scores.jsonl")
    summary = call(*REWARD)
    after = by_item("scores/scores.jsonl")
    changed = {k for item, row in before.items() for k in row if after[item].get(k) != row[k]}
    assert changed <= {"asr_wer", "normaliser"}, "the default normaliser of texts is a younger one"
    assert summary["n"] == 3 and summary["metrics"]["si_sdr"]["lo"] == kept["si_sdr"]
    before = after
    call(*REWARD, "--reward", "lsd")
    after = by_item("scores/scores.jsonl")
    assert all(after[item].pop("lsd") > 0 and after[item] == row for item, row in before.items())


SHOWN = {  # parts of each page's text, split at bars
    "rl": "step 1 of 4|si_ sdr ↑ 5.730 3.274 to 8.187 5.773 better|lsd ↓ −0.108 better −0.116 to −0.101 · n 2|u0|u2",
    "pretrain": "step 2 of 2|estoi ↑ 0.620 0.600 to 0.640|dnsmos_ ovrl ↑ 1.192 1.099 to 1.285|0.055 → 0.033|u0|u2",
    "eval": "4.497|4.766|4.858|si_ sdr ↑ +0.091 better +0.085 to +0.098 · n 2|estoi ↑ −0.002 worse|u0|u1",
    "eval-unfinished": "without rl|6.031 2.985 to 9.099 3.254|0.620 0.499 to 0.710 0.603|u0",
    "asr-eval": "wer ↓ 20.000 0.000 to 40.000 26.667|cer ↓ 14.062 0.000 to 38.095 21.875|test_002|seven five two",
    "tts-eval": "cer ↓ 20.000 4.167 to 38.095 20.000 4.167 to 38.095 28.889|0.763|0.743|0.671|2.695|2.216|test_000",
    "scores": "si_ sdr ↑ 6.031 2.985 to 9.099|asr_ wer ↓ 0.111 0.000 to 0.333|the astronomer pointed|u2",
}


@pytest.mark.parametrize("folder", SHOWN)
def test_reports(folder: str) -> None:
    before = written(folder)
    summary = call("report", folder)
    page = Path(summary["report"])
    assert page.parent.resolve() == Path(folder).resolve()
    text = words_of(page)
    assert not [part for part in SHOWN[folder].split("|") if part not in text], text[:3000]
    assert {p: t for p, t in written(folder).items() if p in before} == before, "nothing but the page is written"


def test_several_are_compared() -> None:
    summary = call("report", "first=eval", "second=eval-unfinished", "--out", "compare.html")
    text = words_of("compare.html")
    assert "first" in text and "second" in text and "estoi" in text and summary["report"].endswith("compare.html")
    call("report", "pretrain", "rl", "eval", "scores", "--out", "all.html")
    assert all(name in words_of("all.html") for name in ("pretrain", "rl", "eval", "scores"))
