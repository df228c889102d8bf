"""Whole utterances: of unequal length in batches of like length (``mixing.clip_s=0``), and so few that none can be held back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_tts import CODEC, MODEL, REWARD, write_tts

from rlspeech.config import CodecLMModel, FlowModel, Mixing, Pretrain, TokenRewardModel
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import write_manifest
from rlspeech.stages import pretrain
from rlspeech.types import Utterance


def test_whole_utterances_of_unequal_length_are_trained_on(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(10):
        clean = (0.1 * np.sin(np.arange(6000 + 700 * i) * 0.1)).astype(np.float32)
        noisy = clean + 0.02 * rng.standard_normal(len(clean)).astype(np.float32)
        files = {name: str(tmp_path / name / f"{i}.flac") for name in ("noisy", "clean")}
        for name, wav in (("noisy", noisy), ("clean", clean)):
            save_audio(Path(files[name]), wav, 16000)
        rows.append(Utterance(f"u{i}", files["noisy"], len(clean) / 16000, 16000, target_filepath=files["clean"]))
    write_manifest(tmp_path / "pairs.jsonl", rows)
    tiny = FlowModel(dim=32, depth=1, heads=2, conv_pos_kernel=7, conv_pos_groups=4, nfe=1)
    sizes = {"steps": 3, "batch": 3, "valid_every": 0, "valid_items": 1, "mixing": Mixing(clip_s=0)}
    places = {"data": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "run")}
    config = Pretrain(**places, **sizes, model=tiny, device="cpu")
    summary = pretrain.run(config)
    assert summary["step"] == 3 and math.isfinite(summary["si_sdr"])


@pytest.mark.parametrize("task", ["codec", "tts", "token-reward"])
def test_four_utterances_train_and_nothing_is_validated(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_tts(tmp_path)
    codec = {"codec": str(tmp_path / "codec")}
    parts = {"codec": CODEC, "tts": CodecLMModel(**codec, **MODEL), "token_reward": TokenRewardModel(**codec, **REWARD)}
    places = {"data": given["data"], "out": str(tmp_path / "run")}
    config = Pretrain(task=task, **places, **parts, steps=2, batch=2, device="cpu")
    summary = pretrain.run(config)
    assert summary["step"] == 2 and Path(summary["report"]).is_file()
    assert "too few to hold any back: nothing is validated" in capsys.readouterr().err
