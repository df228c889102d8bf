"""Teaching the codec: batches are drawn reproducibly, everything is trained, the loss hears spectra alone, the stage runs on recordings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_corpora import recorded
from training import fit

from rlspeech.config import CodecModel, Pretrain
from rlspeech.corpora.demo import demo_commands_clean
from rlspeech.data.audio import load_audio
from rlspeech.data.batches import Clip
from rlspeech.data.manifest import read_manifest
from rlspeech.models.codec.codec import load_codec
from rlspeech.models.codec.net import CodecNet
from rlspeech.stages import pretrain
from rlspeech.tasks import get_task
from rlspeech.tasks.aids import codec as aid
from rlspeech.tasks.aids.codec import CodecTask, content_loss, correlation, spectral_loss
from rlspeech.types import UserError

SMALL = CodecModel(dim=16, blocks=1, levels=[4, 5], voice_dim=8)
CONFIG = Pretrain(task="codec", codec=SMALL)


def clip(name: str, seconds: float = 1.0, hertz: float = 130.0, speaker: str | None = None) -> Clip:
    rng, t = np.random.default_rng(len(name)), np.arange(int(16000 * seconds)) / 16000
    tone = sum(np.sin(2 * np.pi * k * hertz * t) / k for k in range(1, 12)) * (0.2 + np.abs(np.sin(9 * t)))
    wav = (0.05 * tone + 0.002 * rng.standard_normal(len(t))).astype(np.float32)
    return Clip(name, wav, wav, 16000, "one", {"speaker_id": speaker} if speaker else {})


CLIPS = [clip("a", 1.0, 120, "x"), clip("bb", 2.5, 200, "y"), clip("ccc", 0.3, 160, "x")]


@pytest.fixture
def task() -> CodecTask:
    torch.manual_seed(0)
    return get_task("codec")


def test_a_batch_hangs_on_torchs_generator_alone(task: CodecTask) -> None:
    net = task.build(CONFIG)
    torch.manual_seed(1)
    one = task.collate(CLIPS, net)
    torch.manual_seed(1)
    two, three = task.collate(CLIPS, net), task.collate(CLIPS, net)
    assert torch.equal(one.wav, two.wav)
    assert torch.equal(one.prompt_mel, two.prompt_mel)
    assert not torch.equal(one.wav, three.wav)
    assert one.wav.shape == (3, 24320) and one.mel.shape == (3, 152, 80) and one.pitch.shape == (3, 152)
    assert 0.04 < one.wav[1].square().mean().sqrt() < 0.08


def test_a_recognisers_ear_tells_words_apart_and_not_levels(task: CodecTask) -> None:
    ear = aid.frozen_recogniser("embedded", "cpu")
    long = [u for u in read_manifest(demo_commands_clean("test")) if u.duration > 1.1][:3]
    truth = torch.from_numpy(np.stack([load_audio(u.audio_filepath, 16000)[:16000] for u in long]))
    same, softer, others = (content_loss(ear, made, truth) for made in (truth, 0.7 * truth, truth.roll(1, 0)))
    assert abs(float(same)) < 1e-5 and float(softer) < 0.2 * float(others)
    made = truth.clone().requires_grad_()
    content_loss(ear, made + 0.01 * torch.randn_like(made), truth).backward()
    assert made.grad is not None and float(made.grad.abs().sum()) > 0 and all(p.grad is None for p in ear.parameters())


def test_the_ear_is_a_part_of_the_loss_where_it_has_a_weight(task: CodecTask) -> None:
    net = task.build(CONFIG).eval()
    batch = task.collate(CLIPS, net)

    def parts(weight: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)  # of the decoder's noise
        return task.pretrain_loss(net, batch, CONFIG.model_copy(update={"content_weight": weight}))

    without, heard = parts(0.0), parts(5.0)
    assert "content" not in without
    wanted = without["loss"].detach() + 5 * heard["content"].detach()
    torch.testing.assert_close(heard["loss"].detach(), wanted, rtol=1e-4, atol=0)


def test_all_weights_learn(task: CodecTask) -> None:
    net = task.build(CONFIG).train()
    batch = task.collate(CLIPS, net)
    batch.real[0] = 0  # one row without a prompt
    parts = task.pretrain_loss(net, batch, CONFIG)
    parts["loss"].backward()
    assert set(parts) == {"loss", "spectra", "pitch", "voiced", "alike", "used"} and 0 < parts["used"] <= 1
    grads = {n: p.grad for n, p in net.named_parameters()}
    still = [n for n, g in grads.items() if g is None or not torch.isfinite(g).all() or not g.abs().sum()]
    assert still in ([], ["look.bias"])  # a shift of all attention weights changes none


@pytest.mark.parametrize("voice", [0, 8])
def test_the_loss_falls(task: CodecTask, voice: int) -> None:
    config = CONFIG.model_copy(update={"codec": SMALL.model_copy(update={"voice_dim": voice})})
    net = task.build(config).train()
    batch = task.collate(CLIPS, net)
    parts = fit(net, lambda _: task.pretrain_loss(net, batch, config), 12, 5e-3)
    assert parts[-1]["loss"] < 0.8 * parts[0]["loss"]


def test_the_loss_hears_spectra_not_phases() -> None:
    torch.manual_seed(0)
    wav = torch.randn(1, 8000) * 0.05
    assert spectral_loss(wav, wav, 16000) == 0 and spectral_loss(-wav, wav, 16000) < 1e-6
    assert spectral_loss(wav * 0.5, wav, 16000) == pytest.approx(np.log(2), abs=0.02)
    assert spectral_loss(torch.zeros_like(wav), wav, 16000) > 2


def test_dimensions_that_say_the_same_cost() -> None:
    torch.manual_seed(0)
    codes = torch.randn(4, 500, 1).repeat(1, 1, 2)
    assert correlation(codes) == pytest.approx(1, abs=1e-3) and correlation(-codes) == pytest.approx(1, abs=1e-3)
    assert correlation(torch.randn(4, 500, 3)) < 0.01 and correlation(codes[..., :1]) == 0


def test_prompts_are_of_the_same_speaker() -> None:
    assert aid.other_by_speaker([*CLIPS, clip("dddd")]) == [2, 1, 0, 3]


def test_validation_leaves_numbers_and_recordings(task: CodecTask, tmp_path: Path) -> None:
    scored, half = [], SimpleNamespace(value=0.5)
    scorer = SimpleNamespace(score=lambda samples: scored.extend(samples) or {"estoi": [half] * len(samples)})
    numbers = task.validate(task.build(CONFIG), CLIPS, SimpleNamespace(path=tmp_path), 3, scorer)
    assert set(numbers) == {"estoi", "mel", "perplexity", "bits_s"} and numbers["estoi"].mean == 0.5
    assert 1 <= numbers["perplexity"] <= 20 and 0 <= numbers["bits_s"] <= 25 * np.log2(20)
    assert [len(s.wav) for s in scored] == [len(c.target) for c in CLIPS]
    assert (tmp_path / "samples/step_000003/a.flac").is_file() and (tmp_path / "samples/original/a.flac").is_file()


def test_the_stage_trains_on_recordings_alone(tmp_path: Path) -> None:
    recorded(tmp_path, [clip(f"u{i}", 0.6 + 0.2 * i, 110 + 20 * i).target for i in range(5)])
    how = {"steps": 2, "batch": 2, "valid_items": 1, "device": "cpu", "out": str(tmp_path / "run")}
    summary = pretrain.run(Pretrain(task="codec", codec=SMALL, data=str(tmp_path / "m.jsonl"), **how))
    assert summary["step"] == 2 and 0 < summary["mel"] < 20
    assert load_codec(str(tmp_path / "run")).size == 20
    assert isinstance(get_task("codec").build(Pretrain(task="codec", init=str(tmp_path / "run"))), CodecNet)
    with pytest.raises(UserError, match="another dim"):
        get_task("codec").build(Pretrain(task="codec", init=str(tmp_path / "run"), codec=CodecModel(dim=32)))
