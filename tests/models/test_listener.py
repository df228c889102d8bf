"""The listener is a Qwen2-Audio that transformers loads by itself, and our short forward gives its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_audio_lms import AUDIO, BOS, EOS

from rlspeech.config import ListenerModel
from rlspeech.models.listener import START, Listener, audio_tokens, load_listener, save_listener
from rlspeech.types import UserError

RATE = 16000
TINY = ListenerModel(audio_dim=32, audio_layers=2, audio_heads=2, text_dim=32, text_layers=2, text_heads=2)
WORDS = ["The", "quality", "is", "good", "bad", ".", ",", "noise", "no"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Listener, Path]:
    torch.manual_seed(0)
    model, folder = Listener(TINY, WORDS).eval(), tmp_path_factory.mktemp("listener")
    save_listener(folder, model, facts={"steps": 3}, half=True)
    return model, folder


def tones(*seconds: float) -> list[np.ndarray]:
    steps = [np.arange(int(s * RATE)) * (0.1 + 0.05 * i) for i, s in enumerate(seconds)]
    return [np.sin(x).astype(np.float32) * 0.1 for x in steps]


def by_transformers(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    return AutoProcessor.from_pretrained(folder), Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()


def test_transformers_loads_the_folder_and_says_the_same(made: tuple[Listener, Path]) -> None:
    _, folder = made
    model, about = load_listener(str(folder))
    processor, net = by_transformers(folder)
    assert type(processor).__name__ == "Qwen2AudioProcessor" and net.dtype == torch.float32
    assert about["facts"] == {"steps": 3}
    wavs = tones(1.0, 2.0)
    content = [{"type": "audio", "audio_url": "x.wav"}, {"type": "text", "text": "How does it sound?"}]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == f"{BOS}{AUDIO}{EOS}{START}"
    given = processor(text=[prompt] * 2, audio=wavs, sampling_rate=RATE, return_tensors="pt", padding=True)
    answers = net.generate(**given)[:, given["input_ids"].shape[1] :]
    assert processor.batch_decode(answers, skip_special_tokens=True) == model.generate(wavs)
    assert answers.shape[1] <= net.generation_config.max_new_tokens


def test_short_forward_is_transformers_forward(made: tuple[Listener, Path]) -> None:
    _, folder = made
    model, (processor, net) = load_listener(str(folder))[0], by_transformers(folder)
    wavs = tones(3.0, 1.37)
    text = f"{BOS}{AUDIO}{EOS}{START}The quality is good, no noise."
    given = processor(text=[text] * 2, audio=wavs, sampling_rate=RATE, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = net(**given).logits
        features, frames = model.features(wavs)
        ours, labels = model(features, frames, given["input_ids"], given["attention_mask"])
    real = given["attention_mask"].bool()
    assert features.shape[2] < given["input_features"].shape[2]  # the saving
    assert [audio_tokens(int(n)) for n in frames] == (given["input_ids"] == net.config.audio_token_id).sum(1).tolist()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=1e-4)
    assert labels.shape == (2, 9)


def test_padding_does_not_change_an_answer_and_the_level_is_heard(made: tuple[Listener, Path]) -> None:
    model, _ = made
    short, long = tones(1.0, 4.0)
    with torch.no_grad():
        alone = model.encode(*model.features([short]))
        both = model.encode(*model.features([short, long]))
    torch.testing.assert_close(alone[0], both[0, : alone.shape[1]], atol=1e-4, rtol=1e-4)
    quiet, loud = (model.features([short * gain])[0][0, :, :50] for gain in (0.05, 0.5))
    # 20 dB are 2 in log10 of the power, a quarter of that here
    assert float((loud - quiet).median()) == pytest.approx(0.5, abs=0.02)


def test_words_survive_the_tokenizer(made: tuple[Listener, Path]) -> None:
    tokenizer = made[0].processor.tokenizer
    text = "The quality is good, no noise."
    ids = tokenizer(text).input_ids
    assert len(ids) == 8 and tokenizer.decode(ids) == text
    assert tokenizer("unheard").input_ids == [tokenizer.unk_token_id]


def test_a_training_checkpoint_is_exact(made: tuple[Listener, Path], tmp_path: Path) -> None:
    model = made[0]
    average = {k: v + 0.001 for k, v in model.state_dict().items()}
    save_listener(tmp_path, model, facts={}, weights=average)
    back = load_listener(str(tmp_path))[0].state_dict()
    assert back.keys() == average.keys() and all(torch.equal(back[k], average[k]) for k in average)


@pytest.mark.parametrize("damage", ["nothing", "task", "weights", "words"])
def test_what_is_no_listener_is_refused(made: tuple[Listener, Path], tmp_path: Path, damage: str) -> None:
    for file in made[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "nothing":
        (tmp_path / "rlspeech.json").unlink()
    elif damage == "task":
        (tmp_path / "rlspeech.json").write_text('{"task": "flowse"}')
    elif damage == "weights":
        about = json.loads((tmp_path / "rlspeech.json").read_text())
        (tmp_path / "rlspeech.json").write_text(json.dumps({**about, "model": {**about["model"], "audio_dim": 64}}))
    else:
        (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="--task listener"):
        load_listener(str(tmp_path))


def test_the_embedded_one_is_small_and_whole() -> None:
    model, about = load_listener("embedded")
    folder = Path(__import__("rlspeech").__file__).parent / "assets" / "listener"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6
    assert about["task"] == "listener" and all(torch.isfinite(v).all() for v in model.net.state_dict().values())
