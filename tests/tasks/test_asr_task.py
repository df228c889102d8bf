"""Recognition as a task: batches, the loss, validation, and a model that learns two words from two sounds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_corpora import recorded
from tiny_runs import RATE, tone
from training import fit

from rlspeech.config import Augment, Pretrain, RecogniserModel
from rlspeech.data.batches import Clip, open_clips, whole_clips
from rlspeech.models.recogniser import Recogniser
from rlspeech.tasks.asr.task import Asr, rates, spec_augment, speed_perturb, transcripts
from rlspeech.types import Sample, UserError

AUDIO_SIDE = {"audio_dim": 32, "audio_layers": 2, "audio_heads": 2, "audio_ff": 64}
TEXT_SIDE = {"text_dim": 32, "text_layers": 2, "text_heads": 2, "text_ff": 64}
SMALL = RecogniserModel(**AUDIO_SIDE, **TEXT_SIDE, vocabulary=270)
Fresh = tuple[Asr, Recogniser, list[Clip]]
STILL = Augment(speed=(1.0, 1.0), time_masks=0, mel_masks=0)


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """The task, a model of two words, and their clips."""
    recorded(tmp_path, [tone(300, 0.5), tone(2000, 0.5)], text=["low", "high note"], kind=["low", "high"])
    torch.manual_seed(0)
    model = Asr().build(Pretrain(task="asr", data=str(tmp_path / "m.jsonl"), asr=SMALL))
    return Asr(), model, whole_clips(open_clips(tmp_path / "m.jsonl", RATE, paired=False), 2)


def test_it_learns_what_is_said_in_two_sounds(fresh: Fresh, tmp_path: Path) -> None:
    task, model, clips = fresh
    config = Pretrain(task="asr", asr=SMALL)
    model.train()

    def loss(_: int) -> dict[str, torch.Tensor]:
        return task.pretrain_loss(model, task.collate(clips, model, augment=STILL), config)

    assert fit(model, loss, 60, 5e-3, torch.optim.AdamW)[-1]["right"] == 1.0
    folder = SimpleNamespace(path=tmp_path / "run")
    found = task.validate(model.eval(), clips, folder, 60, None)
    assert {k: v.mean for k, v in found.items() if k != "ctc_wer"} == {"wer": 0.0, "wer/low": 0.0, "wer/high": 0.0}
    assert 0 <= found["ctc_wer"].mean <= 1
    said = (tmp_path / "run" / "samples" / "step_000060" / "said.jsonl").read_text()
    assert [json.loads(line)["hypothesis"] for line in said.splitlines()] == ["low", "high note"]


def test_the_ctc_share_is_a_share(fresh: Fresh) -> None:
    task, model, clips = fresh
    batch = task.collate(clips, model, augment=STILL)
    without = task.pretrain_loss(model, batch, Pretrain(task="asr", ctc_weight=0.0))
    mixed = task.pretrain_loss(model, batch, Pretrain(task="asr", ctc_weight=0.25))
    assert "ctc" not in without and torch.equal(without["loss"], without["words"])
    torch.testing.assert_close(mixed["loss"], 0.75 * without["words"] + 0.25 * mixed["ctc"])
    alone = task.pretrain_loss(model, batch, Pretrain(task="asr", ctc_weight=1.0))
    torch.testing.assert_close(alone["loss"], mixed["ctc"])
    assert set(alone) == {"loss", "ctc"}


def test_a_row_without_a_text_is_refused_and_an_empty_text_is_one(fresh: Fresh) -> None:
    task, model, _ = fresh
    with pytest.raises(UserError, match="no text"):
        task.collate([Clip("x", tone(400), tone(400), RATE, None)], model)
    nothing = np.zeros(0, np.float32)
    batch = task.collate([Clip("x", tone(400), tone(400), RATE, ""), Clip("y", nothing, nothing, RATE, "a")], model)
    loss = task.pretrain_loss(model, batch, Pretrain(task="asr"))["loss"]
    assert batch.answer[0].sum() == 1 and torch.isfinite(loss)


def test_data_without_any_text_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path, [tone(300)])
    with pytest.raises(UserError, match="prepare --help"):
        Asr().build(Pretrain(task="asr", data=str(tmp_path / "m.jsonl"), asr=SMALL))


def test_speed_changes_length_and_pitch() -> None:
    torch.manual_seed(0)
    wav = torch.from_numpy(tone(500, 1.0))
    for _ in range(5):
        made = speed_perturb(wav, Augment(speed=(0.8, 1.25)))
        peak = np.abs(np.fft.rfft(made.numpy())).argmax() * RATE / len(made)
        assert peak == pytest.approx(500 * len(wav) / len(made), abs=3)
    assert speed_perturb(torch.zeros(1), Augment(speed=(2.0, 2.0))).shape == (1,)
    assert torch.equal(speed_perturb(wav, STILL), wav)


def test_masks_hide_stretches_and_bands_only() -> None:
    torch.manual_seed(1)
    frames = torch.randn(100, 80)
    made = spec_augment(frames, Augment(time_masks=1, time_share=0.2, mel_masks=1, mel_width=10))
    changed = made != frames
    assert 0 < changed.sum() < changed.numel() // 2
    assert torch.equal(made[changed], frames.mean().expand(int(changed.sum())))
    assert torch.equal(spec_augment(frames, STILL), frames) and spec_augment(frames[:1], Augment()).shape == (1, 80)


def test_transcripts_come_in_the_clips_order() -> None:
    wavs = [np.zeros(n, np.float32) for n in (50, 10, 30, *range(100, 130))]
    clips = [Clip(str(len(w)), w, w, RATE, "t") for w in wavs]
    made = transcripts(lambda part: [str(len(c.noisy)) for c in part], clips, RATE)
    assert [s.hypothesis for s in made] == [c.key for c in clips]


def test_rates_are_of_the_corpus_and_leave_empty_references_out() -> None:
    def sample(text: str, said: str, kind: str) -> Sample:
        return Sample("x", np.zeros(0), RATE, None, text, {"kind": kind}, said)

    found = rates([sample("one two three", "one two", "a"), sample("four", "five six", "b"), sample("", "words", "b")])
    assert {k: v.mean for k, v in found.items()} == pytest.approx({"wer": 3 / 4, "wer/a": 1 / 3, "wer/b": 2.0})
    assert found["wer"].n == 2 and found["wer"].lo <= 3 / 4 <= found["wer"].hi


def test_what_pretrain_writes_goes_on(fresh: Fresh, tmp_path: Path) -> None:
    task, model, _ = fresh
    task.save(tmp_path / "m", model, facts={})
    again = task.build(Pretrain(task="asr", init=str(tmp_path / "m")))
    assert isinstance(again, Recogniser)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
