"""``rl --task asr`` end to end on a recogniser of random weights, and what the stage knows of its tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_recognisers import ROWS, write_corpus, write_model
from tiny_speech import SMALL_RL, assert_same, interrupted, read_rows, state_at

from rlspeech import log
from rlspeech.config import RL, Sampling
from rlspeech.stages import probe, rl
from rlspeech.tasks import get_task
from rlspeech.types import UserError


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("asr")
    model, valid = write_model(folder / "model"), write_corpus(folder / "valid", ROWS[:2])
    return {"model": str(model), "data": str(write_corpus(folder / "data")), "valid": str(valid)}


def config(given: dict[str, str], out: Path, **changes: Any) -> RL:
    small = {**SMALL_RL, "group": 3, "valid_items": 2, "save_every": 1, "truncated": "keep", "lr": 1e-2}
    return RL(task="asr", out=str(out), **given, **{**small, "sampling": Sampling(max_new_tokens=4), **changes})


def test_a_run_and_the_same_run_in_two_attempts(given: dict[str, str], tmp_path: Path) -> None:
    how = {"dynamic_sampling": 1, "reference_in_group": True, "sampling": Sampling(max_new_tokens=8)}
    summary = rl.run(config(given, tmp_path / "whole", **how))
    assert {"asr_accuracy", "asr_hallucination", "asr_wer", "reward"} <= set(summary["difference"])
    json.dumps(log.plain(summary), allow_nan=False)
    steps = [r for r in read_rows(tmp_path / "whole") if "tokens" in r]
    assert [r["step"] for r in steps] == [1, 2] and steps[0]["ratio_max_gap"] < 1e-3
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    for name in "wer finished reward/asr_accuracy seconds/encode seconds/rollout seconds/update prompts_drawn".split():
        assert all(r[name] is not None for r in steps), name
    assert all(1 <= r["tokens"] <= 8 and r["wer"] > 0 for r in steps)
    assert all(r["valid/wer"] > 0 for r in read_rows(tmp_path / "whole") if "valid/reward" in r)
    before, after = load_file(Path(given["model"]) / "model.safetensors"), state_at(tmp_path / "whole", 2)
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    # encoder and projector stay
    assert moved and not any("audio" in k or "adaptor" in k or "projector" in k for k in moved)

    interrupted(rl.run, config(given, tmp_path / "cut", **how), 1)
    rl.run(config(given, tmp_path / "cut", **how))
    assert_same(tmp_path / "whole", tmp_path / "cut", 2)


def test_the_control_and_the_probe(given: dict[str, str], tmp_path: Path) -> None:
    rl.run(config(given, tmp_path / "sft", policy_weight=0.0, supervised_weight=1.0))
    made = [r["supervised_loss"] for r in read_rows(tmp_path / "sft") if "supervised_loss" in r]
    assert len(made) == 2 and all(math.isfinite(v) for v in made)
    found = probe.run(config(given, tmp_path / "probe", probe_batches=4))
    assert [r["setting"] for r in found["rows"]] == ["temperature 1"] and "all" in found["rows"][0]


def test_a_recogniser_needs_texts_and_clips_it_can_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoken = [{"id": f"u{i}", "text": f"word {i}"} for i in range(6)]
    path = write_corpus(tmp_path, [*spoken, {"id": "silent"}, {"id": "long", "text": "x"}])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["duration"] = 99.0
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    model = SimpleNamespace(sample_rate=16000, max_s=20.0)
    source, held = get_task("asr").data(RL(data=str(path), valid_items=1), model)
    assert len(source.utts) == 5 and len(held) == 1 and "2 of 8 rows are left out" in capsys.readouterr().err
    assert held[0].noisy is held[0].target or np.array_equal(held[0].noisy, held[0].target)
    with pytest.raises(UserError, match="8 rows"):
        get_task("asr").data(RL(data=str(path)), SimpleNamespace(sample_rate=16000, max_s=0.1))
