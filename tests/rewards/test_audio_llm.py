"""A tiny Qwen2-Audio with random weights through the code path of the large ones."""

from __future__ import annotations

import base64
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from reward_signals import voice
from tiny_judges import TEMPLATE, save_listener, save_sentiment

from rlspeech.rewards.client import wav_bytes
from rlspeech.rewards.llm import audio_llm
from rlspeech.rewards.llm.audio_llm import AudioLlm
from rlspeech.rewards.llm.describe import read_prompts
from rlspeech.rewards.llm.judge import get_describer
from rlspeech.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_listener(tmp_path_factory.mktemp("llm") / "listener")


@pytest.fixture(scope="module")
def listener(folder):
    return AudioLlm(str(folder), max_new_tokens=12)


def clips() -> list[np.ndarray]:
    return [voice(0.6, seed=0), voice(1.9, seed=1), voice(1.2, seed=2), voice(0.9, seed=3)]


def test_a_batch_says_what_single_clips_say_without_prompt_and_marks(listener):
    together = listener.describe(clips())
    assert [listener.describe([w])[0] for w in clips()] == together == listener.describe(clips())
    assert all(s.text for s in together) and len({s.text for s in together}) > 1  # the audio matters
    assert not any("<" in (s.text or "") or "assess" in (s.text or "") for s in together)


def test_the_model_sees_the_whole_question(folder, monkeypatch):
    model = get_describer(str(folder), prompt="rate this sample please", max_new_tokens=4)
    seen = {}
    generate = model._model.generate
    monkeypatch.setattr(model._model, "generate", lambda **inputs: seen.update(inputs) or generate(**inputs))
    model.describe([voice(0.6), voice(1.9)])
    ids = seen["input_ids"]
    words = [model._tokenizer.decode(row[row != 0]) for row in ids]
    assert all(w.endswith("rate this sample please <answer>") for w in words)
    assert (ids[0][:5] == 0).all() and (ids[1] != 0).all()  # padded on the left: the answer follows the question
    tokens = [int((row == model._model.config.audio_token_id).sum()) for row in ids]
    assert tokens[0] == pytest.approx(0.6 * 25, abs=1) and tokens[1] == pytest.approx(1.9 * 25, abs=1)
    assert seen["generation_config"].do_sample is False and seen["generation_config"].max_new_tokens == 4
    assert "rate this sample please" in model.version and "greedy" in model.version and "float32" in model.version


def test_the_folder_may_name_its_prompt(folder, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "rlspeech.json").write_text(json.dumps({"prompt": "how it sounds"}))
    assert AudioLlm(str(mine)).prompt == "how it sounds"
    assert AudioLlm(str(mine), prompt="rate").prompt == "rate"
    assert AudioLlm(str(folder)).prompt == read_prompts()[0]


def test_sampling_follows_its_seed(folder):
    wavs = [voice(0.8)] * 6
    one, again, other = (AudioLlm(str(folder), temperature=1.5, seed=s, max_new_tokens=12) for s in (0, 0, 1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    texts = [s.text for s in one.describe(wavs)]
    assert torch.equal(torch.get_rng_state(), before)  # the run's own randomness is left alone
    assert texts == [s.text for s in again.describe(wavs)] != [s.text for s in other.describe(wavs)]
    assert len(set(texts)) > 1 and "temperature 1.5" in one.version


@pytest.mark.parametrize("fits", [3, 1, 0])
def test_memory_that_runs_out_halves_the_batch(folder, listener, monkeypatch, fits):
    model = AudioLlm(str(folder), max_new_tokens=12, batch=8)
    generate, sizes = model._model.generate, []

    def scarce(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("no memory")
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", scarce)
    said = model.describe(clips())
    if fits:
        assert said == listener.describe(clips()) and model.batch <= fits and sizes[0] == 4
    else:
        assert all(s.text is None and s.error == "out of memory" for s in said)


def test_precision_longest_stretch_and_weights_are_said(folder, listener, tmp_path):
    model = AudioLlm(str(folder), dtype="bf16", max_new_tokens=4, max_s=1.5)
    assert listener.max_s == 2.0 and model.max_s == 1.5
    assert model._model.dtype == torch.bfloat16 and "bfloat16" in model.version
    assert all(s.text or s.error for s in model.describe(clips()[:2]))
    other = save_listener(tmp_path / "listener", seed=1)
    versions = {AudioLlm(str(f)).version.split("@")[1].split()[0] for f in (folder, other)}
    assert len(versions) == 2


def test_folders_that_are_no_describers_and_bad_options(folder, tmp_path):
    with pytest.raises(UserError, match="nothing"):
        get_describer(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="describer"):
        get_describer(str(save_sentiment(tmp_path / "bert")))
    torn = shutil.copytree(folder, tmp_path / "torn")
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot load"):
        get_describer(str(torn))
    for options in ({"dtype": "int3"}, {"batch": 0}, {"max_s": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(UserError):
            AudioLlm(str(folder), **options)


def test_code_of_a_checkpoint_is_not_run(folder, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    config["model_type"], config["auto_map"] = "unheard_of", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (mine / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (mine / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(UserError):
        get_describer(str(mine))
    assert not mark.exists()


class Words:
    """A tokenizer as far as ``_question`` looks at it."""

    chat_template = None

    def get_vocab(self):
        return {"<audio>": 0, "<bos>": 1}


def test_without_a_template_the_audio_token_is_used_and_stands_in_the_text_of_plain_ones():
    marks = {"audio_bos_token": "<bos>", "audio_eos_token": "<unknown>"}
    processor = SimpleNamespace(audio_token="<audio>", chat_template=None, **marks)
    assert audio_llm._question(processor, Words(), "How is it?", "x") == "<bos><audio>How is it?"
    with pytest.raises(UserError, match="neither"):
        audio_llm._question(SimpleNamespace(chat_template=None), Words(), "How is it?", "x")
    with pytest.raises(UserError, match="<audio>"):
        audio_llm._question(processor, Words(), "what is <audio>?", "x")

    class Plain(Words):
        chat_template = "plain"

        def apply_chat_template(self, talk, add_generation_prompt, tokenize):
            return f"U: {talk[0]['content'].strip()} A:"  # of plain strings; fails on parts

    assert audio_llm._question(SimpleNamespace(audio_token="<audio>"), Plain(), "How?", "x") == "U: <audio>How? A:"


def test_templates_that_know_one_question_only(folder, tmp_path):
    made = save_listener(tmp_path / "mute", template=TEMPLATE.replace("{{ c['text'] }}", ""))
    model = AudioLlm(str(made), prompt="rate this", max_new_tokens=6)
    assert model._text == "<|audio_bos|><|AUDIO|><|audio_eos|>  <answer>" and "takes no question" in model.version
    together = model.describe(clips())
    assert together == [model.describe([w])[0] for w in clips()] and all(s.text or s.error for s in together)


def test_omni_models_are_loaded_without_their_voice():
    config = SimpleNamespace(model_type="qwen2_5_omni", architectures=["Qwen2_5OmniForConditionalGeneration"])
    assert audio_llm._classes(transformers, config)[0].__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    config = SimpleNamespace(model_type="audioflamingo3", architectures=["AudioFlamingo3ForConditionalGeneration"])
    assert "AudioFlamingo3ForConditionalGeneration" in [c.__name__ for c in audio_llm._classes(transformers, config)]


def test_processors_that_take_audio_through_the_template_only(listener, monkeypatch):
    def read(raw):
        return sf.read(io.BytesIO(raw), dtype="float32")[0]

    class Template:
        """As Voxtral's: the call takes text alone."""

        def __init__(self, inner):
            self.inner = inner

        def __call__(self, text, **options):
            raise AssertionError

        def apply_chat_template(self, talks):
            parts = [t[0]["content"] for t in talks]
            wavs = [read(base64.b64decode(p[0]["base64"])) for p in parts]
            assert all(p[1] == {"type": "text", "text": listener.prompt} for p in parts)
            text = [f"<|audio_bos|><|AUDIO|><|audio_eos|> {p[1]['text']} <answer>" for p in parts]
            return self.inner(text=text, audio=wavs, sampling_rate=16000, padding=True, return_tensors="pt")

    expected = listener.describe([read(wav_bytes(w)) for w in clips()])
    assert audio_llm._only_templates(Template(None)) and not audio_llm._only_templates(listener._processor)
    monkeypatch.setattr(listener, "_processor", Template(listener._processor))
    monkeypatch.setattr(listener, "_text", None)
    assert listener.describe(clips()) == expected
