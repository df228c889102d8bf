"""Training a codec language model: batches, prompts of the same speaker, one loss; a small run learns to speak, and a stage resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_codec_lms import RATE, SMALL, V, speech, tiny
from tiny_corpora import manifest, recorded
from training import fit

from rlspeech.config import RL, CodecModel, Pretrain, Sampling
from rlspeech.data.batches import Clip
from rlspeech.models.codec.net import CodecNet
from rlspeech.models.hub import save_model
from rlspeech.tasks.tts.policy import longest
from rlspeech.tasks.tts.task import Tts
from rlspeech.types import UserError

WORDS = {"one": [4, 4, 8], "two": [12, 16], "three": [20, 6, 20, 6]}


def said(text: str) -> list[int]:
    return [i for word in text.split() for i in WORDS[word]]


def clip(key: str, text: str | None, **columns: Any) -> Clip:
    wav = speech(said(text or ""))
    return Clip(key, wav, wav, RATE, text, columns)


TEXTS = ["one two", "three", "two one three", "one one", "three two", "two"]


SILENT = SimpleNamespace(score=lambda samples: {})


def small_codec(folder: Path) -> str:
    """A codec's checkpoint in a folder."""
    net = CodecNet(CodecModel(n_fft=160, hop=80, mels=8, dim=8, levels=[3, 2], voice_dim=4))
    save_model(folder / "codec", net, "codec", facts={})
    return str(folder / "codec")


def test_a_batch_is_codes_with_a_stop() -> None:
    lm, task = tiny(), Tts()
    batch = task.collate([clip("a", "one two"), clip("b", "three"), clip("c", "")], lm, train=False)
    assert batch.ids.tolist() == [[4, 4, 8, 12, 16, V], [20, 6, 20, 6, V, V], [V] * 6]
    assert batch.mask.sum(1).tolist() == [6, 5, 1]
    assert batch.inputs is batch.ids and [x.text for x in batch.lines] == ["one two", "three", ""]
    task.collate([clip("a", "one two")], lm)
    assert lm.codec.encoded == 2  # once a recording; silence not at all
    with pytest.raises(UserError, match="^d "):
        task.collate([clip("d", None)], lm)


def test_what_the_model_sees_is_wrong_now_and_then_but_never_what_it_is_told() -> None:
    lm, task = tiny(), Tts()
    clips = [clip(f"{i}", "three three three three") for i in range(40)]
    torch.manual_seed(0)
    batch = task.collate(clips, lm)
    wrong = (batch.inputs != batch.ids)[batch.mask]
    assert 0.01 < float(wrong.float().mean()) < 0.1 and torch.equal(batch.inputs == V, batch.ids == V)


def test_training_rows_get_another_recording_of_the_speaker(tmp_path: Path) -> None:
    texts, speakers = ["one", "two", "three " * 9, "three"], ["x", "x", "x", "y"]
    recorded(tmp_path, [speech(said(t)) for t in texts], text=texts, speaker_id=speakers)
    task, lm = Tts(), tiny()
    codec = SMALL.model_copy(update={"codec": small_codec(tmp_path)})
    task.build(Pretrain(task="tts", data=str(tmp_path / "m.jsonl"), tts=codec))
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        batch = task.collate([clip("u0", "one", speaker_id="x"), clip("u3", "three", speaker_id="y")], lm)
        for c, line in zip("xy", batch.lines, strict=True):
            seen.add((c, line.prompt_text, None if line.prompt is None else tuple(line.prompt.tolist())))
    # never itself, never one that is too long
    assert seen == {("x", None, None), ("x", "two", (12, 16)), ("y", None, None)}


def test_a_small_run_learns_to_speak_and_to_stop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm, task, cfg = tiny(dim=32, ff=64), Tts(), Pretrain(task="tts", tts=SMALL)
    for p in lm.net.parameters():
        p.data /= 3.0
    clips = [clip(f"{i}", text) for i, text in enumerate(TEXTS)]
    before = task.validate(lm, clips, SimpleNamespace(path=tmp_path), 0, SILENT)
    fit(lm, lambda _: task.pretrain_loss(lm, task.collate(clips, lm), cfg), 70, 1e-2, torch.optim.AdamW)
    after = task.validate(lm, clips, SimpleNamespace(path=tmp_path), 70, SILENT)
    assert after["nll"] < 0.3 < 2.0 < before["nll"] and after["stopped"].mean == 1.0
    assert after["length_ratio"].mean == pytest.approx(1.0, abs=0.2)
    spoken = task.synthesise(lm, clips, sampling=Sampling(temperature=0.2))
    assert sum(s.tokens.tolist() == said(s.text or "") for s in spoken) >= 5
    assert len(list((tmp_path / "samples" / "step_000070").glob("*.flac"))) == 4


def test_what_is_said_hangs_on_key_and_seed_alone() -> None:
    lm, task = tiny(), Tts()
    clips = [clip(f"{i}", text) for i, text in enumerate([*TEXTS, "", "one two three " * 3])]
    whole = {s.key: s.tokens.tolist() for s in task.synthesise(lm, clips, seed=1, wavs=False)}
    for part in (clips[3:4], clips[::-1]):
        for s in task.synthesise(lm, part, seed=1, wavs=False):
            assert s.tokens.tolist() == whole[s.key] and len(s.wav) == 0
    other = {s.key: s.tokens.tolist() for s in task.synthesise(lm, clips, seed=2, wavs=False)}
    assert other != whole
    assert longest("x" * 1000, lm, Sampling()) == int(4 / 0.04) + 1 and longest(None, lm, Sampling()) == 51
    assert longest("abc", lm, Sampling(max_new_tokens=7)) == 7


def test_settings_beside_init(tmp_path: Path) -> None:
    task = Tts()
    lm = tiny()
    manifest(tmp_path / "m.jsonl", [{"id": "a", "audio_filepath": "a.wav", "text": "one"}])
    task.save(tmp_path / "lm", lm, facts={})
    given = {"task": "tts", "init": str(tmp_path / "lm"), "data": str(tmp_path / "m.jsonl")}
    again = task.build(Pretrain(**given, tts={"max_s": 2.5, "dim": 16}))
    assert again.max_s == again.layout.max_s == 2.5 and again.layout.prompt_s == 1.0
    with pytest.raises(UserError, match="another dim"):
        task.build(Pretrain(**given, tts={"dim": 32}))


def test_the_stage_trains_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlspeech.stages.pretrain import run

    assert Tts.valid_metrics == ("tts_cer",)  # of the embedded recogniser, which has better things to do here
    monkeypatch.setattr(Tts, "valid_metrics", ("tts_cer[recogniser=reward_plugins:deaf]",))
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    codec = small_codec(tmp_path)
    wavs = [0.1 * rng.standard_normal(4000 + 400 * i).astype(np.float32) for i in range(12)]
    recorded(tmp_path, wavs, text=TEXTS * 2, speaker_id=["s0", "s1", "s2"] * 4)
    cfg: dict[str, Any] = {"task": "tts", "data": str(tmp_path / "m.jsonl"), "out": str(tmp_path / "run"), "batch": 4}
    cfg |= {"valid_items": 2, "valid_every": 2, "save_every": 2, "device": "cpu"}
    cfg |= {"tts": {**SMALL.model_dump(), "codec": codec}}
    made = run(Pretrain(**cfg, steps=4, max_minutes=1e-6))
    again = run(Pretrain(**cfg, steps=4))
    assert made["step"] == 1 and again["step"] == 4 and np.isfinite(again["nll"])
    assert again["tts_cer[recogniser=reward_plugins:deaf]"] == 1.0  # an empty transcript is all wrong
    lm, about = Tts().load(again["run"])
    assert lm.codec.size == lm.size == 6 and about["facts"]["steps"] == 4


@pytest.mark.parametrize("task", ["tts", "codec", "token-reward"])
def test_texts_without_a_recording_are_left_out(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their sound is the prompt's, which says something else."""
    from rlspeech.stages.pretrain import run
    from rlspeech.tasks import get_task

    codec, text = {"codec": small_codec(tmp_path)}, "three three"
    columns = {"text": [text] * 6, "speaker_id": ["s"] * 6, "recorded": [True] * 4 + [False] * 2}
    rows = recorded(tmp_path, [speech(said(text))] * 6, **columns)
    given = {"data": str(tmp_path / "m.jsonl"), "valid": str(tmp_path / "m.jsonl"), "valid_items": 9}
    model = SimpleNamespace(sample_rate=RATE)
    for config, count in ((Pretrain(**given), 4), (RL(**given), 6)):  # rl may ask for any text
        source, held = get_task(task).data(config, model)
        assert [len(source.utts), len(held)] == [count, count]
    assert capsys.readouterr().err.count("2 of 6 rows are left out") == 2
    if task == "tts":
        known = get_task("tts")
        known.build(Pretrain(task="tts", data=str(tmp_path / "m.jsonl"), tts={**SMALL.model_dump(), **codec}))
        assert [u.id for u in known._speakers["s"]] == ["u0", "u1", "u2", "u3"]
    manifest(tmp_path / "none.jsonl", [{**r, "recorded": False} for r in rows])
    cfg: dict[str, Any] = {"task": task, "data": str(tmp_path / "none.jsonl"), "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match="6 rows") as caught:
        run(Pretrain(**cfg, device="cpu", steps=1, **({} if task == "codec" else {task.replace("-", "_"): codec})))
    assert "recorded: false" in caught.value.why


def test_a_package_without_weights_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlspeech.models import hub
    from rlspeech.models.codec.codec import load_codec
    from rlspeech.models.codec.lm import load_codec_lm
    from rlspeech.models.token_reward import load_token_reward

    monkeypatch.setattr(hub, "embedded_path", lambda task: tmp_path / task)
    loaders = {"synthesiser": load_codec_lm, "codec": load_codec, "token-to-text reward": load_token_reward}
    for what, load in loaders.items():
        with pytest.raises(UserError, match=f"no {what}|no speech {what}") as caught:
            load("embedded")
        assert "rlspeech pretrain --task" in caught.value.try_this
    with pytest.raises(UserError, match="diffro.reward"):
        Tts().soft_reward(RL(task="tts", algo="diffro"))
    lm = tiny()
    lm._codec.clear()
    lm.layout = replace(lm.layout, codec="embedded")
    with pytest.raises(UserError, match="tts.codec"):
        _ = lm.codec
