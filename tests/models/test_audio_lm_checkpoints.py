"""Recognisers on disk: transformers' layout, readable by transformers itself, and folders that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_audio_lms import ALL, clips, parameters_of, tiny

from rlspeech.config import Lora
from rlspeech.models.adapters import Adapted
from rlspeech.models.audio_lm.model import load_audio_lm, save_audio_lm
from rlspeech.types import UserError


def _logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        ids, mask = lm.references(["abc", "d"])
        return lm.forward_logits(lm.encode(clips(0.6, 0.9)), [0, 1], ids)[mask]


@pytest.mark.parametrize("model_type", ALL)
def test_round_trip(model_type: str, tmp_path: Path) -> None:
    import transformers

    lm, first = tiny(model_type, max_s=1.75), tmp_path / "run" / "checkpoints" / "step_000002"
    save_audio_lm(first, lm, facts={"steps": 3, "data": "made up"})
    (first.parent / "latest").write_text("step_000002\n")
    again, about = load_audio_lm(str(tmp_path / "run"))
    torch.testing.assert_close(_logits(again), _logits(lm), atol=1e-5, rtol=1e-5)
    assert again.max_s == 1.75 and not again.training and again.stops == lm.stops and again.pad == lm.pad
    assert about["facts"]["steps"] == 3 and about["task"] == "asr" and about["model_type"] == model_type
    assert "made up" in (first / "README.md").read_text()
    theirs = type(lm.net).from_pretrained(first)  # the library needs nothing of ours
    assert all(torch.equal(v, lm.net.state_dict()[k]) for k, v in theirs.state_dict().items())
    assert len(transformers.AutoTokenizer.from_pretrained(first)) == len(lm.tokenizer)
    save_audio_lm(tmp_path / "b", again, facts={})  # from a loaded one: the files as they were
    third, _ = load_audio_lm(str(tmp_path / "b"))
    torch.testing.assert_close(_logits(third), _logits(lm), atol=1e-5, rtol=1e-5)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    assert (first / "model.safetensors").stat().st_mode & 0o044


def test_adapters_folded_in_and_half_precision(tmp_path: Path) -> None:
    lm = tiny("fun_asr_nano")
    before, adapted = _logits(lm), Adapted(lm, Lora(rank=2, alpha=4, targets="all"))
    for p in adapted.parameters():
        p.data += 0.1
    after = _logits(lm)
    assert float((after - before).abs().max()) > 1e-2
    plain = tiny("fun_asr_nano", seed=1)
    save_audio_lm(tmp_path / "merged", plain, facts={}, weights=adapted.merged())
    torch.testing.assert_close(_logits(load_audio_lm(str(tmp_path / "merged"))[0]), after, atol=1e-4, rtol=1e-4)
    save_audio_lm(tmp_path / "half", plain, facts={}, weights=adapted.merged(), half=True)
    again, _ = load_audio_lm(str(tmp_path / "half"))
    assert next(again.parameters()).dtype == torch.float32
    torch.testing.assert_close(_logits(again), after, atol=5e-2, rtol=5e-2)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "merged")]
    assert sizes[0] < 0.65 * sizes[1]  # names take their share of a file this small
    bf16, _ = load_audio_lm(str(tmp_path / "merged"), dtype="bf16")
    assert {p.dtype for p in parameters_of(bf16, "language")} == {torch.bfloat16}


def test_a_checkpoints_own_adapter_becomes_weights(tmp_path: Path) -> None:
    """Granite's: transformers switches it off where embeddings are given, and a policy's reference would be without it."""
    from peft import LoraConfig
    from transformers import PreTrainedModel

    lm = tiny("granite_speech")
    bare = _logits(lm)
    save_audio_lm(tmp_path, lm, facts={})
    lm.net.add_adapter(LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False))
    wanted = _logits(lm)
    assert float((wanted - bare).abs().max()) > 1e-3
    # the adapter alone; the class's own also writes weights that it cannot read
    PreTrainedModel.save_pretrained(lm.net, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"has_lora_adapter": True}))
    assert (tmp_path / "adapter_config.json").is_file()
    folded, _ = load_audio_lm(str(tmp_path))
    torch.testing.assert_close(_logits(folded), wanted, atol=1e-5, rtol=1e-5)
    assert not any("lora" in n for n, _ in folded.named_parameters()) and not folded.net.config.has_lora_adapter
    save_audio_lm(tmp_path / "out", folded, facts={})
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    torch.testing.assert_close(_logits(load_audio_lm(str(tmp_path / "out"))[0]), wanted, atol=1e-5, rtol=1e-5)


# file -> what becomes of its bytes; nothing: it is not there
SPOILT: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "no weights": ("model.safetensors", None),
    "truncated weights": ("model.safetensors", lambda b: b[:3000]),
    "no config": ("config.json", None),
    "broken json": ("config.json", lambda b: b"{"),
    "foreign": ("config.json", lambda b: b'{"model_type": "bert", "hidden_size": 16}'),
    "unknown type": ("config.json", lambda b: b.replace(b'"fun_asr_nano"', b'"no_such_model"')),
    "other width": ("config.json", lambda b: re.sub(rb'(?s)("text_config".*"intermediate_size": )32', rb"\g<1>48", b)),
    "no tokenizer": ("token*", None),
    "about a list": ("rlspeech.json", lambda b: b"[]"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_folders_that_cannot_be_used(how: str, tmp_path: Path) -> None:
    save_audio_lm(tmp_path / "c", tiny("fun_asr_nano"), facts={})
    pattern, change = SPOILT[how]
    for file in list((tmp_path / "c").glob(pattern)):
        before = file.read_bytes()
        file.unlink()
        if change is not None:
            file.write_bytes(change(before))
            assert file.read_bytes() != before
    with pytest.raises(UserError, match="why: "):
        load_audio_lm(str(tmp_path / "c"))
    for name in ("/nothing/here", "./nothing/here"):
        with pytest.raises(UserError, match="no checkpoint"):
            load_audio_lm(name)
