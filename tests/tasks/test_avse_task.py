"""The task ``avse``: batches, controls, the loss, training through the stage, and that the video is used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_avse import CROPPED, RATE, av_clips, tiny_avse, write_talkers
from training import fit

from rlspeech.config import AvseModel, Pretrain
from rlspeech.corpora import demo
from rlspeech.corpora.lips import draw_mouth
from rlspeech.data.audio import load_audio, rms_dbfs, save_audio
from rlspeech.data.batches import Clip, open_clips, whole_clips, with_video
from rlspeech.data.manifest import read_manifest
from rlspeech.models.avse import AvseEnhancer, si_snr
from rlspeech.models.hub import embedded_path, load_model
from rlspeech.stages import pretrain
from rlspeech.tasks.avse.enhancer import AvInference, supervised_loss
from rlspeech.tasks.avse.task import Avse
from rlspeech.tasks.flowse.task import FlowSE
from rlspeech.types import UserError

TASK = Avse()


def _config(**changes: Any) -> Pretrain:
    return Pretrain(task="avse", avse=AvseModel(**CROPPED), **changes)


def _binaural(*samples: int) -> list[Clip]:
    """Both ears: the right one fainter, and with noise of its own."""
    made = []
    for i, c in enumerate(av_clips(*samples)):
        other = 0.02 * np.random.default_rng(50 + i).standard_normal(len(c.noisy)).astype(np.float32)
        noisy, target = np.stack([c.noisy, 0.5 * c.noisy + other]), np.stack([c.target, 0.5 * c.target])
        made.append(Clip(c.key, noisy, target, RATE, lips=c.lips))
    return made


def test_clips_are_levelled_and_padded() -> None:
    model, clips = tiny_avse(), av_clips(8000, 5000, 6500)
    clips[1].noisy, clips[1].target = 0.01 * clips[1].noisy, 0.01 * clips[1].target
    batch = TASK.collate(clips, model)
    assert batch.target is not None and batch.video is not None
    assert batch.noisy.shape == batch.target.shape == (3, 1, 8000) and batch.samples.tolist() == [8000, 5000, 6500]
    for i, c in enumerate(clips):
        n = len(c.noisy)
        assert rms_dbfs(batch.noisy[i, 0, :n].numpy()) == pytest.approx(-25.0, abs=0.01)
        # one gain for both
        np.testing.assert_allclose((batch.target[i, 0, :n] / batch.gain[i]).numpy(), c.target, rtol=1e-4, atol=1e-7)
        assert not batch.noisy[i, :, n:].any() and not batch.target[i, :, n:].any()
    assert TASK.collate(clips, tiny_avse(level_dbfs=None)).gain.tolist() == [1.0, 1.0, 1.0]
    assert TASK.collate(clips, model, with_target=False).target is None


def test_silence_and_nan_are_not_amplified() -> None:
    clips = av_clips(4000, 4000, 4000)
    clips[0].noisy, clips[1].noisy = np.zeros(4000, np.float32), np.full(4000, np.nan, np.float32)
    batch = TASK.collate(clips, tiny_avse())
    assert batch.gain[:2].tolist() == [1.0, 1.0] and batch.gain[2] != 1.0
    made = AvInference(tiny_avse()).infer([c.noisy for c in clips], None, [c.lips for c in clips])
    alone = AvInference(tiny_avse()).infer([clips[2].noisy], None, [clips[2].lips])[0]
    assert not made[0].any() and np.abs(made[2] - alone).max() < 1e-5


def test_videos_are_cut_and_held_and_may_be_missing() -> None:
    clips = av_clips(8000, 5000, 8000, 8000)
    long = np.concatenate([clips[0].lips, clips[0].lips])  # type: ignore[list-item]
    clips[0].lips, clips[2].lips = long, None
    batch = TASK.collate(clips, tiny_avse())
    assert batch.video is not None and batch.video.shape == (4, 13, 32, 32)
    assert batch.present.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(batch.video[0].numpy(), long[:13])
    assert clips[1].lips is not None
    np.testing.assert_array_equal(batch.video[1].numpy(), clips[1].lips[[*range(8), *[7] * 5]])
    assert TASK.collate(av_clips(8000, lips=False), tiny_avse()).video is None


def test_videos_of_two_sizes_are_an_error() -> None:
    clips = av_clips(4000, 4000)
    assert clips[1].lips is not None
    clips[1].lips = clips[1].lips[:, :24, :30]
    with pytest.raises(UserError, match="--crop") as error:
        TASK.collate(clips, tiny_avse())
    assert "24x30" in error.value.why and "32x32" in error.value.why


def test_clips_that_are_done_or_hopeless_have_no_gradient() -> None:
    model, clips = tiny_avse(), av_clips(6000, 6000, 6000, 6000)
    clips[2].target = np.zeros(6000, np.float32)
    batch = TASK.collate(clips, model)
    assert batch.target is not None
    noise = torch.randn(4, 1, 6000, generator=torch.Generator().manual_seed(0)) * batch.target.std()
    # 40 dB, 6 dB, silent target, -40 dB
    made = batch.target + torch.tensor([0.01, 0.5, 1.0, 100.0]).view(4, 1, 1) * noise
    made.requires_grad_()
    loss = supervised_loss(model, made, batch)
    assert made.grad is None
    loss.backward()
    assert made.grad is not None
    assert [bool(g.abs().sum() > 0) for g in made.grad] == [False, True, False, False]
    ordinary = 10 * np.log10(float(batch.target[1].var() / (0.25 * noise[1].var())))
    assert loss.item() == pytest.approx((-30.0 - ordinary + 30.0 + 30.0) / 4, abs=0.3)


def _loss(config: Pretrain, model: AvseEnhancer, clips: list[Clip], seed: int = 0) -> float:
    torch.manual_seed(seed)
    with torch.no_grad():
        return float(TASK.pretrain_loss(model, TASK.collate(clips, model), config)["loss"])


def test_controls_and_hidden_videos_of_the_loss() -> None:
    clips = av_clips(8000, 8000, 8000, 8000)
    blind = [Clip(c.key, c.noisy, c.target, RATE) for c in clips]
    model = tiny_avse(video_drop=1.0)
    seen, none = _loss(_config(), model, clips), _loss(_config(), model, blind)
    assert seen != pytest.approx(none, abs=1e-4)
    assert _loss(_config(video="none"), model, clips) == pytest.approx(none, abs=1e-5)
    swapped = with_video(clips, "shuffled")
    assert _loss(_config(video="shuffled"), model, clips) == pytest.approx(_loss(_config(), model, swapped), abs=1e-5)
    for module in model.modules():  # statistics of the batch are not the question here
        module.training = not isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    assert _loss(_config(), model, clips) == pytest.approx(none, abs=1e-5)  # in training all are hidden
    model.cfg = model.cfg.model_copy(update={"video_drop": 0.5})
    found = {round(_loss(_config(), model, clips, seed), 6) for seed in range(8)}
    assert len(found) > 3  # other clips each time
    model.cfg = model.cfg.model_copy(update={"video_drop": 0.0})
    assert _loss(_config(), model, clips) == pytest.approx(seen, abs=1e-5)


def test_no_video_teaches_the_front_end_nothing() -> None:
    model, clips = tiny_avse(video_drop=0.0).train(), av_clips(8000, 8000)
    for how, reached in (("none", False), ("right", True)):
        model.zero_grad()
        TASK.pretrain_loss(model, TASK.collate(clips, model), _config(video=how))["loss"].backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.video.parameters()) == reached


def test_a_binaural_model_takes_mono_and_the_other_way_round() -> None:
    two, clips = AvInference(tiny_avse(channels=2)), _binaural(6000, 4500)
    both = two.infer([c.noisy for c in clips], None, [c.lips for c in clips])
    assert [w.shape for w in both] == [(2, 6000), (2, 4500)]
    assert not np.allclose(both[0][0], both[0][1])
    alone = two.infer([clips[1].noisy], None, [clips[1].lips])[0]
    np.testing.assert_allclose(both[1], alone, atol=1e-5)
    ear = clips[0].noisy[0]
    heard = two.infer([ear], None, [clips[0].lips])[0]
    doubled = two.infer([np.stack([ear, ear])], None, [clips[0].lips])[0]
    assert heard.shape == (6000,)
    np.testing.assert_allclose(heard, doubled.mean(0), atol=1e-6)
    one = AvInference(tiny_avse())
    assert one.infer([ear], None, None)[0].shape == (6000,)
    assert TASK.channels_of(two.model) == 2 and TASK.channels_of(one.model) == FlowSE().channels_of(None) == 1
    batch = TASK.collate(clips, tiny_avse())
    np.testing.assert_allclose((batch.noisy[0, 0] / batch.gain[0]).numpy(), clips[0].noisy.mean(0), atol=1e-6)
    ears = TASK.collate(clips, two.model)
    level = [rms_dbfs(ears.noisy[0, i].numpy()) for i in (0, 1)]
    was = [rms_dbfs(ear) for ear in clips[0].noisy]
    assert level[0] - level[1] == pytest.approx(was[0] - was[1], abs=1e-3)  # what tells directions


@pytest.mark.parametrize("channels", [1, 2])
def test_outputs_keep_the_level_of_their_inputs(channels: int) -> None:
    model, clip = tiny_avse(channels=channels), _binaural(6000)[0]
    wav = clip.noisy if channels == 2 else clip.noisy[0]
    loud, faint = (AvInference(model).infer([g * wav], None, [clip.lips])[0] for g in (1.0, 0.05))
    np.testing.assert_allclose(0.05 * loud, faint, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_training_saves_resumes_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(Avse, "valid_metrics", ("si_sdr",))
    data = write_talkers(tmp_path, 10)
    for utt in read_manifest(data) if channels == 2 else []:
        for path in (utt.audio_filepath, utt.target_filepath):
            save_audio(path, load_audio(path) * np.float32([[1.0], [0.5]]), RATE)
    settings: dict[str, Any] = {"task": "avse", "avse": AvseModel(**CROPPED, channels=channels), "batch": 2}
    settings |= {"warmup": 1, "data": str(data), "save_every": 1, "valid_every": 0, "valid_items": 2}
    settings |= {"device": "cpu", "workers": 0}
    whole = pretrain.run(Pretrain(**settings, steps=2, out=str(tmp_path / "whole")))
    assert {"si_sdr", "si_sdr_shuffled_video"} <= whole.keys()
    model, facts = load_model(str(tmp_path / "whole"), "avse")
    source, _ = TASK.data(Pretrain(**settings), model)
    assert source.clip(0, 0, 0.0).noisy.shape[:-1] == ((2,) if channels == 2 else ())  # both ears are read
    assert model.cfg.channels == channels and facts["facts"]["steps"] == 2
    (tmp_path / "whole" / "checkpoints" / "latest").write_text("step_000001")  # as if it had been cut off there
    again = pretrain.run(Pretrain(**settings, steps=2, out=str(tmp_path / "whole")))
    after, _ = load_model(str(tmp_path / "whole"), "avse")
    assert again["step"] == 2 and all(torch.equal(v, model.state_dict()[k]) for k, v in after.state_dict().items())


def test_settings_that_fit_the_weights_can_be_changed(tmp_path: Path) -> None:
    TASK.save(tmp_path / "m", tiny_avse(), facts={})
    model = TASK.build(Pretrain(task="avse", init=str(tmp_path / "m"), avse=AvseModel(video_drop=0.5, cap_db=20.0)))
    assert (model.cfg.video_drop, model.cfg.cap_db, model.cfg.filters) == (0.5, 20.0, CROPPED["filters"])
    with pytest.raises(UserError, match="variant"):
        TASK.build(Pretrain(task="avse", init=str(tmp_path / "m"), avse=AvseModel(variant="avse4")))


def _worth_db(model: AvseEnhancer, clips: list[Clip]) -> tuple[float, float, float]:
    """Mean SI-SDR of the inputs, of the outputs, and of the outputs where every clip has its neighbour's video."""
    see = AvInference(model.eval())

    def mean(outputs: Iterable[np.ndarray]) -> float:
        pairs = zip(outputs, clips, strict=True)
        return float(np.mean([float(si_snr(torch.from_numpy(o), torch.from_numpy(c.target))) for o, c in pairs]))

    given = ([c.noisy for c in clips], None)
    return mean(given[0]), *(
        mean(see.infer(*given, [c.lips for c in by])) for by in (clips, with_video(clips, "shuffled"))
    )


def _syllables(seed: int, seconds: float = 1.2) -> np.ndarray:
    """Hoarse syllables and pauses; two of them differ in nothing but when they speak."""
    rng = np.random.default_rng(seed)
    voice = np.convolve(rng.standard_normal(int(seconds * RATE)), np.hanning(12), mode="same")
    on = np.concatenate([np.full(int(rng.uniform(0.1, 0.25) * RATE), i % 2) for i in range(rng.integers(2), 14)])
    gate = np.convolve(on, np.hanning(480) / np.hanning(480).sum(), mode="same")[: len(voice)]
    return (0.05 * voice * gate).astype(np.float32)


@pytest.mark.slow
def test_the_mouth_tells_who_is_meant() -> None:
    sources = [_syllables(i) for i in range(60)]
    mouths = [draw_mouth(s, RATE, np.random.default_rng(0)) for s in sources]  # one face: this is not about faces

    def mixture(i: int, j: int) -> Clip:
        return Clip(f"{i}+{j}", sources[i] + sources[j], sources[i], RATE, lips=mouths[i])

    sound = {"filters": 32, "kernel": 64, "stride": 32, "bottleneck": 24, "hidden": 32}
    video = {"video_crop": 64, "video_stem": 4, "video_channels": [8], "visual_blocks": 0, "video_drop": 0.0}
    torch.manual_seed(0)
    cfg = AvseModel(**{**CROPPED, **sound, **video, "video_mean": 0.5, "video_std": 0.2})
    model, rng = AvseEnhancer(cfg).train(), np.random.default_rng(0)

    def loss(_: int) -> dict[str, torch.Tensor]:
        pairs = [rng.choice(48, 2, replace=False) for _ in range(6)]
        return TASK.pretrain_loss(model, TASK.collate([mixture(i, j) for i, j in pairs], model), _config())

    fit(model, loss, 80, 5e-3)
    before, right, wrong = _worth_db(model, [mixture(i, i + 6 if i < 54 else i - 6) for i in range(48, 60)])
    assert right > before + 1.0 and right > wrong + 3.0, (before, right, wrong)


@pytest.mark.slow
@pytest.mark.skipif(not (embedded_path("avse") / "config.json").is_file(), reason="no embedded audio-visual checkpoint")
def test_the_embedded_model_uses_its_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "COUNT", 6)
    clips = whole_clips(open_clips(demo.demo_test(tmp_path, faces=True), RATE), 6)
    before, right, wrong = _worth_db(load_model("embedded", "avse")[0], clips)
    assert right > before + 2.0 and right > wrong + 4.0, (before, right, wrong)
