"""Training the token reward: labels, worse recordings, corrupt tokens, one loss; a small run learns to read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_codec_lms import LevelCodec, V
from tiny_corpora import recorded
from training import fit

from rlspeech.config import Augment, Pretrain, TokenRewardModel
from rlspeech.data.batches import Clip
from rlspeech.models.recogniser import make_tokenizer
from rlspeech.models.token_reward import TokenReward, load_token_reward
from rlspeech.tasks import get_task
from rlspeech.tasks.aids.token_reward import TokenRewardTask, corrupt, degraded_to, labels_of
from rlspeech.types import UserError, Utterance

WORDS = ["one", "two", "three", "four"]


def word(w, rng):
    """Word k is a stretch at level k: eight frames, then a gap."""
    wav = np.concatenate([np.full(5120, (2 + 3 * WORDS.index(w)) / V), np.zeros(2560)])
    return wav + 0.002 * rng.random(7680)


def clip(i, sex="f", **columns):
    rng = np.random.default_rng(i)
    said = [str(w) for w in rng.choice(WORDS, rng.integers(1, 4))]
    wav = np.concatenate([word(w, rng) for w in said]).astype(np.float32)
    return Clip(f"c{i}", wav, wav, 16000, " ".join(said), {"sex": sex, "speaker_id": f"s{i % 2}", **columns})


@pytest.fixture
def task() -> TokenRewardTask:
    made = get_task("token-reward")
    made._codecs["stub"] = LevelCodec()
    return made


def network(labels=None):
    torch.manual_seed(0)
    cfg = TokenRewardModel(codec="stub", dim=32, layers=1, text_layers=1, heads=2, vocabulary=280, levels=3)
    labels = {"sex": ["f", "m"], "quality": ["1", "2", "3"]} if labels is None else labels
    return TokenReward(cfg, V, make_tokenizer([" ".join(WORDS)] * 3, 280), labels, 16000)


def test_labels_come_from_rows_and_an_attribute_of_one_class_is_none():
    speakers = [f"s{i % 3}" if i < 62 else "rare" for i in range(64)]
    rows = [
        Utterance(str(i), "x", 1.0, 16000, text="a", speaker_id=s, extra={"sex": "fm"[i % 2]})
        for i, s in enumerate(speakers)
    ]
    assert labels_of(rows, 4) == {"sex": ["f", "m"], "speaker": ["s0", "s1", "s2"], "quality": ["1", "2", "3", "4"]}
    assert labels_of([Utterance("a", "x", 1.0, 16000, extra={"sex": "f"})], 2) == {"quality": ["1", "2"]}


def test_levels_get_worse_in_order_and_are_the_same_every_time():
    rng = np.random.default_rng(0)
    wav = (0.1 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000) * (1 + rng.random(16000))).astype(np.float32)
    for seed in range(6):
        far = [float(np.mean((degraded_to(wav, k, 5, 16000, seed) - wav) ** 2)) for k in range(1, 6)]
        assert far[4] == 0.0 and all(a > b for a, b in zip(far, far[1:], strict=False)), (seed, far)
        np.testing.assert_array_equal(degraded_to(wav, 2, 5, 16000, seed), degraded_to(wav, 2, 5, 16000, seed))
    silence = np.zeros(8000, np.float32)
    assert all(np.isfinite(degraded_to(silence, 1, 5, 16000, seed)).all() for seed in range(8))
    assert len(degraded_to(wav[:5], 1, 5, 16000, 1)) == 5


def test_batches_hold_tokens_texts_and_labels_and_encode_a_recording_once(task):
    net, clips = network(), [clip(i, sex=None if i == 2 else "m") for i in range(12)]
    torch.manual_seed(0)
    batch = task.collate(clips, net)
    assert batch.mask.sum(1).tolist() == [len(c.noisy) // 640 for c in clips]
    bad = [i for i, level in enumerate(batch.values["quality"]) if level < 3]
    assert 0 < len(bad) < 12 and all((batch.texts[i] is None) == (batch.values["quality"][i] == 1) for i in range(12))
    assert batch.values["sex"][:3] == ["m", "m", None]
    calls = task._codecs["stub"].encoded
    torch.manual_seed(0)
    again = task.collate(clips, net)
    assert task._codecs["stub"].encoded == calls and torch.equal(again.ids, batch.ids)
    calm = task.collate(clips, net, degrade=False)
    assert calm.values["quality"] == [3] * 12 and calm.texts == [c.text for c in clips]
    named = task.collate([clip(i, quality=1 + i % 3) for i in range(12)], net)
    assert named.values["quality"] == [1 + i % 3 for i in range(12)] and None not in named.texts
    with pytest.raises(UserError, match="c0 "):
        task.collate([Clip("c0", clips[0].noisy, clips[0].noisy, 16000)], net)


def test_corrupted_tokens_stay_close_and_without_chance_are_the_tokens(monkeypatch):
    net = network()
    ids, mask = torch.randint(V, (64, 40)), torch.ones(64, 40, dtype=torch.bool)
    how = Augment(time_masks=1, time_share=0.2)
    torch.manual_seed(0)
    x = corrupt(net, ids, mask, how).detach()
    same = ((x - net.vectors(ids).detach()).abs().amax(-1) < 1e-6).float().mean()
    assert 0.25 < float(same) < 0.75
    hidden = ((x - net.unknown).abs().amax(-1) < 1e-7).float().mean()
    assert 0.02 < float(hidden) < 0.2
    monkeypatch.setattr("rlspeech.tasks.aids.token_reward.REPLACED", 0.0)
    monkeypatch.setattr("rlspeech.tasks.aids.token_reward.MIXED", 0.0)
    torch.testing.assert_close(corrupt(net, ids, mask, Augment(time_masks=0)), net.vectors(ids))


@pytest.mark.slow
def test_a_short_training_learns_to_read(task, tmp_path):
    net = network()
    config = Pretrain(task="token-reward", ctc_weight=0.3, augment=Augment(time_masks=0))
    clips = [clip(i, sex="fm"[i % 2]) for i in range(64)]

    def loss(step):
        return task.pretrain_loss(net, task.collate(clips[32 * (step % 2) :][:32], net), config)

    first, *_, last = fit(net, loss, 60, 3e-3)
    assert {"loss", "words", "right", "ctc", "sex", "quality"} <= set(last)
    assert last["words"] < 0.5 * first["words"] and last["right"] > 0.6
    folder = SimpleNamespace(path=tmp_path)
    numbers = task.validate(net.eval(), [clip(i) for i in range(200, 208)], folder, 80, None)
    assert {"wer", "cer", "nll", "sex_right", "quality_right"} <= set(numbers) and numbers["nll"].mean < first["words"]
    said = [json.loads(line) for line in (tmp_path / "samples" / "step_000080" / "said.jsonl").read_text().splitlines()]
    assert [s["id"] for s in said] == [f"c{i}" for i in range(200, 208)]


def test_the_loss_lives_without_texts_and_labels(task):
    net = network({})
    config = Pretrain(task="token-reward", ctc_weight=0.0)
    parts = task.pretrain_loss(net, task.collate([clip(0), clip(1)], net), config)
    assert set(parts) == {"loss", "words", "right"}
    net = network()
    batch = task.collate([clip(0), clip(1)], net, degrade=False)
    batch.texts, batch.values["sex"] = [None, None], [None, "x"]
    parts = task.pretrain_loss(net, batch, config)
    assert set(parts) == {"loss", "quality"} and float(parts["loss"].detach()) > 0


def test_pretraining_from_a_manifest_writes_a_checkpoint(tmp_path, monkeypatch):
    from rlspeech.stages.pretrain import run

    clips = [clip(i) for i in range(12)]
    recorded(tmp_path, [c.noisy for c in clips], text=[c.text for c in clips], sex=["f", "m"] * 6)
    monkeypatch.setattr("rlspeech.tasks.aids.token_reward.load_codec", lambda name, device="cpu": LevelCodec())
    model = TokenRewardModel(codec="stub", dim=16, layers=1, text_layers=1, heads=2, vocabulary=280)
    how = {"steps": 3, "batch": 4, "valid_every": 0, "save_every": 2, "device": "cpu", "out": str(tmp_path / "run")}
    config = Pretrain(task="token-reward", data=str(tmp_path / "m.jsonl"), token_reward=model, **how)
    summary = run(config)
    net, about = load_token_reward(str(tmp_path / "run"))
    assert summary["step"] == 3 and np.isfinite(summary["nll"]) and about["task"] == "token-reward"
    assert net.labels == {"sex": ["f", "m"], "quality": ["1", "2", "3", "4", "5"]} and net.codes == V
    assert run(config)["nll"] == summary["nll"]  # finds itself done
