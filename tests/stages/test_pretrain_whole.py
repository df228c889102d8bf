"""``mixing.clip_s=0``: whole utterances of unequal length, in batches of like length."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from rlspeech.config import FlowModel, Mixing, Pretrain
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import write_manifest
from rlspeech.stages import pretrain
from rlspeech.types import Utterance


def test_whole_utterances_of_unequal_length_are_trained_on(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(10):
        clean = (0.1 * np.sin(np.arange(6000 + 700 * i) * 0.1)).astype(np.float32)
        for name, wav in (("noisy", clean + 0.02 * rng.standard_normal(len(clean)).astype(np.float32)), ("clean", clean)):
            save_audio(tmp_path / name / f"{i}.flac", wav, 16000)
        rows.append(Utterance(f"u{i}", str(tmp_path / "noisy" / f"{i}.flac"), len(clean) / 16000, 16000,
                              target_filepath=str(tmp_path / "clean" / f"{i}.flac")))
    write_manifest(tmp_path / "pairs.jsonl", rows)
    tiny = FlowModel(dim=32, depth=1, heads=2, conv_pos_kernel=7, conv_pos_groups=4, nfe=1)
    config = Pretrain(data=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "run"), model=tiny, mixing=Mixing(clip_s=0), steps=3, batch=3,
                      valid_every=0, valid_items=1, device="cpu")
    summary = pretrain.run(config)
    assert summary["step"] == 3 and math.isfinite(summary["si_sdr"])
