"""A paired corpus of a few short clips and a model of a few thousand weights, for the training stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_flow import TINY, tiny_model

from rlspeech.config import FlowModel
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import write_manifest
from rlspeech.models.hub import save_model
from rlspeech.types import Utterance

RATE = 16000
MODEL = FlowModel(**TINY, nfe=2)
# settings of ``rl`` that take seconds on one core
SMALL_RL = {"steps": 2, "prompts_per_step": 2, "group": 2, "micro_batch": 1, "device": "cpu", "workers": 0}
SMALL_RL |= {"valid_items": 1, "valid_every": 2, "save_every": 2}


def write_pairs(folder: Path, count: int = 6, seconds: float = 1.0) -> Path:
    utts, t = [], np.arange(int(seconds * RATE)) / RATE
    for i in range(count):
        rng = np.random.default_rng(i)
        clean = sum(np.sin(2 * np.pi * (110 + 15 * i) * k * t + rng.uniform(0, 6)) / k for k in range(1, 30))
        clean = 0.05 * clean * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t + i))
        noisy = clean + 0.03 * rng.standard_normal(len(t))
        for name, wav in (("clean", clean), ("noisy", noisy)):
            save_audio(folder / name / f"{i}.flac", wav.astype(np.float32), RATE)
        noisy_file, clean_file = (str(folder / name / f"{i}.flac") for name in ("noisy", "clean"))
        utts.append(Utterance(f"u{i}", noisy_file, seconds, RATE, target_filepath=clean_file))
    write_manifest(folder / "manifest.jsonl", utts, None)
    return folder / "manifest.jsonl"


def interrupted(run: Callable[[Any], object], config: Any, step: int) -> None:
    """Start a run of ``rl`` or ``pretrain`` that is interrupted before a step."""
    from rlspeech.stages import pretrain, rl

    def watched(real: Any) -> Any:
        def work(self: Any, prompts: Any) -> dict[str, Any]:
            if self.step == step:
                raise KeyboardInterrupt
            return real(self, prompts)

        return work

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rl.Session, "advance", watched(rl.Session.advance))
        patch.setattr(pretrain.Trainer, "update", watched(pretrain.Trainer.update))
        run(config)


def read_rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Rows of a file of a run."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def state_at(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    """Weights and trainer state of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    return {**load_file(folder / "state.safetensors"), **load_file(folder / "model.safetensors")}


def assert_same(a: Path, b: Path, step: int = 4) -> None:
    """Two runs have come to the same state."""
    one, two = state_at(a, step), state_at(b, step)
    assert one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


def write_model(folder: Path) -> Path:
    """A checkpoint of random weights whose output depends on every part of it."""
    save_model(folder, tiny_model(nfe=2), "flowse", facts={"stage": "made up"})
    return folder
