"""The embedded recogniser: its tokenizer writes any text, its folder is transformers' own, what it learns is the text behind the sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlspeech.config import RecogniserModel
from rlspeech.models.recogniser import AUDIO, END, START, Recogniser, load_recogniser, make_tokenizer, save_recogniser
from rlspeech.types import UserError

AUDIO_SIDE = {"audio_dim": 16, "audio_layers": 2, "audio_heads": 2, "audio_ff": 32}
TEXT_SIDE = {"text_dim": 16, "text_layers": 2, "text_heads": 2, "text_ff": 32}
SMALL = RecogniserModel(**AUDIO_SIDE, **TEXT_SIDE, vocabulary=280)
TEXTS = ["turn on the light", "one two three", "call anna at home", "turn off the radio"]


@pytest.fixture(scope="module")
def model() -> Recogniser:
    torch.manual_seed(0)
    return Recogniser(SMALL, make_tokenizer(TEXTS, SMALL.vocabulary)).eval()


@pytest.mark.parametrize("text", ["one two three", "na\u00efve \u4f60\u597d \U0001f600", "\u202e<p>", "", "a" * 300])
def test_any_text_can_be_written_and_read_back(model: Recogniser, text: str) -> None:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    assert model.tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()


def test_a_text_cannot_pass_for_a_mark(model: Recogniser) -> None:
    ids, _, answer = model.tokens([3], [f"hello {END} {AUDIO}"])
    said = ids[0][answer[0]].tolist()
    assert said.count(model.marks[END]) == 1 and said[-1] == model.marks[END] and model.marks[AUDIO] not in said
    assert model.tokenizer.decode(said[:-1]).strip() == f"hello {END} {AUDIO}"
    assert ids[0].tolist()[:5] == [model.marks[START], *[model.marks[AUDIO]] * 3, model.marks[START]]


def test_forward_is_that_of_transformers_does_not_look_ahead_and_ignores_padding(model: Recogniser) -> None:
    wavs = [torch.randn(16000) * 0.1, torch.randn(8000) * 0.1]
    features, real = model.features(wavs)
    ids, mask, _ = model.tokens(real.sum(1).tolist(), TEXTS[:2])
    logits, heard = model(features, real, ids, mask)
    theirs = model.net(input_ids=ids, attention_mask=mask, input_features=features, input_features_mask=real).logits
    torch.testing.assert_close(logits, theirs)
    assert logits.shape == (2, ids.shape[1], len(model.tokenizer)) and heard.shape[:2] == features.shape[:2]
    alone_f, alone_r = model.features(wavs[1:])
    alone_ids, alone_mask, _ = model.tokens(alone_r.sum(1).tolist(), TEXTS[1:2])
    alone, _ = model(alone_f, alone_r, alone_ids, alone_mask)
    torch.testing.assert_close(logits[1, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-3)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 100) % len(model.tokenizer)
    assert torch.equal(model(features, real, changed, mask)[0][:, :-1], logits[:, :-1])


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_it_says_the_same(model: Recogniser, tmp_path: Path, half: bool) -> None:
    from transformers import AutoModelForMultimodalLM

    save_recogniser(tmp_path / "m", model, facts={"steps": 1}, half=half)
    again, about = load_recogniser(str(tmp_path / "m"))
    assert about["facts"] == {"steps": 1} and about["model"] == SMALL.model_dump()
    features, real = model.features([torch.randn(9000) * 0.1])
    ids, mask, _ = model.tokens(real.sum(1).tolist(), TEXTS[:1])
    made, wanted = (m(features, real, ids, mask)[0] for m in (again, model))
    torch.testing.assert_close(made, wanted, atol=2e-2 if half else 1e-6, rtol=1e-2)
    assert (tmp_path / "m" / "head.safetensors").is_file() != half
    theirs = AutoModelForMultimodalLM.from_pretrained(tmp_path / "m", local_files_only=True)
    assert type(theirs).__name__ == "FunAsrNanoForConditionalGeneration"
    chat = [{"role": "user", "content": [{"type": "audio"}]}]
    written = again.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written == START + AUDIO + START


def test_it_transcribes_whatever_it_is_given_and_a_folder_of_something_else_is_refused(
    model: Recogniser, tmp_path: Path
) -> None:
    made = model.transcribe([torch.zeros(0), torch.randn(3000), torch.zeros(16000)], max_new_tokens=4)
    assert len(made) == 3 and all(isinstance(t, str) for t in made)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="rlspeech.json"):
        load_recogniser(str(tmp_path))
