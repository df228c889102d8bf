"""The listener's labels, batches and training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training import fit

import rlspeech
from rlspeech.config import ListenerModel, Pretrain
from rlspeech.data.audio import load_audio
from rlspeech.data.batches import Clip
from rlspeech.data.degrade import TRAITS, Sources, add_noise, degrade
from rlspeech.data.mixing import coloured
from rlspeech.tasks.aids import listener as hearing
from rlspeech.tasks.aids.listener import ListenerTask, labelled, labels_of, quality, row_of, targets_of
from rlspeech.tasks.aids.sentences import read_back
from rlspeech.types import UserError

RATE = 16000
ASSETS = Path(rlspeech.__file__).parent / "assets"
TINY = ListenerModel(audio_dim=32, audio_layers=1, audio_heads=2, text_dim=32, text_layers=1, text_heads=2)
CONFIG = Pretrain(task="listener", listener=TINY)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    files = sorted((ASSETS / "demo" / "clean").glob("valid*.flac"))[:6]
    return [load_audio(f)[: 2 * RATE] for f in files]


def with_labels(speech: list[np.ndarray]) -> list[Clip]:
    rows = []
    for i, clean in enumerate(speech):
        made = degrade(clean, Sources([], [], []), RATE, np.random.default_rng(i))
        rows.append(Clip(f"c{i}", made.wav, clean, RATE, columns=row_of(made, quality(clean, made.wav))))
    return rows


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pesq", [True, False])
def test_quality_falls_with_the_ratio(speech: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, pesq: bool) -> None:
    if not pesq:
        monkeypatch.setattr(hearing, "_pesq", lambda: None)
    elif hearing._pesq() is None:
        pytest.skip("pesq is not installed")
    noise = coloured(2 * RATE, 0.5, np.random.default_rng(0))
    ratios = (-5, 0, 5, 10, 15, 20, 25)
    curve = [float(np.mean([quality(s, add_noise(s, noise[: len(s)], snr)[0]) for s in speech[:3]])) for snr in ratios]
    assert curve == sorted(curve)
    assert curve[0] < 1.6 and curve[-1] > 4.2
    assert quality(speech[0], speech[0]) == pytest.approx(5.0)


def test_quality_does_not_count_the_level(speech: list[np.ndarray]) -> None:
    noisy = add_noise(speech[0], coloured(len(speech[0]), 0.0, np.random.default_rng(1)), 8.0)[0]
    assert quality(speech[0], noisy * 0.1) == pytest.approx(quality(speech[0], noisy), abs=0.05)


def test_quality_needs_speech() -> None:
    with pytest.raises(ValueError, match="speech"):
        quality(np.ones(1000, dtype=np.float32), np.ones(1000, dtype=np.float32))


def test_labels_survive_a_manifest_row(speech: list[np.ndarray]) -> None:
    made = degrade(speech[0], Sources([], [], []), RATE, np.random.default_rng(3))
    row = json.loads(json.dumps(row_of(made, 3.21)))
    labels = labels_of({**row, "other": "x"})
    assert labels is not None
    assert labels["quality"] == 3.21
    assert labels["level_dbfs"] == pytest.approx(made.level_dbfs, abs=0.01)
    assert all(labels[t] == pytest.approx(made.severity[t], abs=1e-4) for t in TRAITS)
    for bad in ({"quality": None}, {"quality": "3"}, {"trait_noise": float("nan")}, {"level_dbfs": True}):
        assert labels_of({**row, **bad}) is None
    assert labels_of({}) is None


# -- batches and training ---------------------------------------------------------------------------------------------


def test_a_batch_says_what_its_labels_say(speech: list[np.ndarray]) -> None:
    task, clips = ListenerTask(), with_labels(speech)
    model = task.build(CONFIG)
    torch.manual_seed(5)
    batch = task.collate(clips, model)
    torch.manual_seed(5)
    again = task.collate(clips, model)
    assert torch.equal(batch.ids, again.ids)
    assert batch.ids.shape == batch.mask.shape == batch.answer.shape and len(batch.ids) == len(clips)
    for i, clip in enumerate(clips):
        labels = labels_of(clip.columns)
        assert labels is not None
        text = model.processor.tokenizer.decode(batch.ids[i][batch.answer[i]], skip_special_tokens=True)
        assert read_back(text)["overall"] == round((labels["quality"] - 1) * 3)
        assert np.allclose(batch.targets[i].numpy(), targets_of(labels))
    logits, guess = model(batch.features, batch.frames, batch.ids, batch.mask)
    assert logits.shape == (*batch.ids.shape, len(model.processor.tokenizer)) and guess.shape == batch.targets.shape


def test_other_data_is_degraded_on_the_fly(speech: list[np.ndarray]) -> None:
    clips = [Clip(f"c{i}", s + np.float32(0.01), s, RATE) for i, s in enumerate(speech)]
    wavs, labels = labelled(clips, np.random.default_rng(0))
    assert len(wavs) == len(labels) == len(clips)
    assert len({round(one["quality"], 2) for one in labels}) > 2
    assert all(1.0 <= one["quality"] <= 5.0 for one in labels)


def test_bad_clips_cost_themselves_only(speech: list[np.ndarray], tmp_path: Path) -> None:
    silent = np.zeros(RATE, np.float32)
    bad = [Clip("silent", silent, silent, RATE), Clip("short", speech[0][:99], speech[0][:99], RATE)]
    wavs, _ = labelled([*bad, Clip("good", speech[1], speech[1], RATE)], np.random.default_rng(0))
    assert len(wavs) == 1
    task, run = ListenerTask(), SimpleNamespace(path=tmp_path)
    with pytest.raises(UserError, match="rlspeech check"):
        task.collate(bad, task.build(CONFIG))
    assert task.validate(task.build(CONFIG).eval(), bad, run, 1) == {}  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns_and_validates(speech: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, clips = ListenerTask(), with_labels(speech)[:4]
    model = task.build(CONFIG)
    parts = fit(model, lambda _: task.pretrain_loss(model, task.collate(clips, model), CONFIG), 60, 5e-3)
    first, last = ({k: np.mean([row[k] for row in part]) for k in parts[0]} for part in (parts[:5], parts[-5:]))
    assert last["words"] < 0.6 * first["words"] and last["labels"] < first["labels"]
    assert last["right"] > first["right"] + 0.2
    run: Any = SimpleNamespace(path=tmp_path)
    numbers = task.validate(model.eval(), clips, run, 70)
    assert numbers["named"] > 0.2 and numbers["token_accuracy"] > 0.3
    assert 0 <= numbers["grades_right"] <= numbers["grades_near"] <= 1
    said = [json.loads(line) for line in (tmp_path / "samples" / "step_000070" / "said.jsonl").read_text().splitlines()]
    assert len(said) == len(clips) and all(isinstance(one["said"], str) and 1 <= one["quality"] <= 5 for one in said)
    task.save(tmp_path / "out", model, facts={"stage": "pretrain"}, weights=model.state_dict())
    loaded, about = task.load(str(tmp_path / "out"))
    assert about["facts"]["stage"] == "pretrain" and task.sample_rate_of(loaded) == RATE
    assert loaded.generate([clips[0].noisy]) == model.generate([clips[0].noisy])
