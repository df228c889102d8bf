"""Folders in transformers' layout: their code never runs, sizes beyond any model's and integer weights are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rlspeech.models import folder
from rlspeech.models.audio_lm.model import load_audio_lm
from rlspeech.models.codec.codec import load_codec
from rlspeech.models.codec.lm import load_codec_lm
from rlspeech.models.hub import embedded_path, load_model
from rlspeech.rewards.encoders import load_encoder
from rlspeech.rewards.llm.audio_llm import AudioLlm
from rlspeech.rewards.llm.sentiment import Sentiment
from rlspeech.types import UserError

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "AutoFeatureExtractor")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser's folder whose every part asks for code that lies beside it; the code leaves a file where it runs."""
    made = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(embedded_path("asr"), made)
    (made / "evil.py").write_text(f"open({str(made / 'ran')!r}, 'w')\n")
    (made / "tokenizer.json").unlink()
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        known = json.loads((made / name).read_text()) if (made / name).is_file() else {}
        code = {"auto_map": dict.fromkeys(CLASSES, "evil.C") | {"AutoTokenizer": ["evil.C", None]}}
        kinds = dict.fromkeys(("tokenizer_class", "processor_class", "feature_extractor_type"), "Evil")
        (made / name).write_text(json.dumps(known | code | kinds | {"model_type": "evil"}))
    (made / "rlspeech.json").unlink()
    return made


@pytest.mark.parametrize("load", [load_audio_lm, load_codec_lm, AudioLlm, Sentiment, "encoder", *CLASSES])
def test_code_in_a_model_folder_never_runs(hostile: Path, load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append("".join(map(str, text))) or "y")
    with pytest.raises((UserError, ValueError, OSError)):
        if load == "encoder":
            load_encoder(str(hostile), "speech_encoder", ("AutoModel",), "cpu", "speech encoder")
        elif isinstance(load, str):
            folder.pretrained(getattr(transformers, load), hostile)
        else:
            load(str(hostile), **({"prompt": "what?"} if load is AudioLlm else {}))  # type: ignore[operator]
    assert not asked
    assert not (hostile / "ran").exists()


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 10**8}, {"text_config": {"num_hidden_layers": 10**8}}])
def test_more_layers_than_any_model_has_are_refused(tmp_path: Path, sizes: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes}))
    with pytest.raises(ValueError, match="num_hidden_layers"):
        folder.pretrained(transformers.AutoConfig, tmp_path)


@pytest.mark.parametrize(("task", "load"), [("flowse", load_model), ("asr", load_audio_lm), ("codec", load_model)])
def test_integer_weights_are_refused(tmp_path: Path, task: str, load: object) -> None:
    made = tmp_path / "model"
    shutil.copytree(embedded_path(task), made)
    weights = load_file(made / "model.safetensors")
    name = next(k for k in weights if k.endswith(".weight"))
    save_file(weights | {name: weights[name].to(torch.int32)}, made / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"why: .*{name}"):
        load(*([str(made), task] if load is load_model else [str(made)]))  # type: ignore[operator]


def test_names_that_people_know_and_versions_that_are_too_old_are_answered() -> None:
    names = {"Qwen/Qwen3-ASR-1.7B": "Qwen/Qwen3-ASR-1.7B-hf", "Systran/faster-whisper-tiny": "openai/whisper-tiny"}
    for name, answer in (names | {"xcodec2:HKUSTAudio/xcodec2": "HKUSTAudio/xcodec2-hf"}).items():
        with pytest.raises(UserError, match=f"try: {answer}$"):
            (load_codec if ":" in name else load_audio_lm)(name)
    words = f"(?s)why: .*{transformers.__version__}.*try: .*transformers>=5.17"
    with pytest.raises(UserError, match=words), folder.loading("it", "another"):
        raise ValueError("The checkpoint has model type `fun_asr_nano` but Transformers does not recognize it")


def test_weights_that_do_not_fit_are_our_error_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    shutil.copytree(embedded_path("asr"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["\x1b"] = weights.pop(next(k for k in weights if k.endswith(".weight")))
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError):
        load_audio_lm(str(tmp_path / "model"))
    assert not caplog.records
