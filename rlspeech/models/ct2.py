"""Whispers in CTranslate2's format, which faster-whisper loads, as folders that transformers loads.

``model.bin`` is little endian: u32 version, the spec's name, u32 revision, u32 count; of each variable its name, u8 rank, u32 dimensions,
u8 type, u32 bytes, data; then u32 count of aliases, two names each. A name is a u16 length with its final 0, and its bytes. Query, key and
value stand one under the other in one matrix. Integers were made by a ``_scale``: one a row (int8), or one of all (int16). What a header
claims is checked against what lies behind it, and every shape against transformers' own model, before anything is written.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.files import parse_json
from rlspeech.models.card import write_card
from rlspeech.models.folder import refuse_sizes
from rlspeech.models.hub import card_of

SPEC, VERSIONS, REVISION = "WhisperSpec", (5, 6), 3  # the latest revision that is known here
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16)  # by number; the last: the bits of bf16
MOST = 20_000  # variables that are read; the largest Whisper has some 1,600
COPIES = 8  # bytes of weights that a byte of the file may become: int8 in fp32 is 4, and few are aliases
MULTILINGUAL = 51_865  # ids of a Whisper for several languages, at least
MARKS = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
NEEDED = ("model.bin", "config.json", "tokenizer.json")
# of a layer of the encoder and of the decoder: CTranslate2's name, transformers' name; q, k, v: parts of one matrix
LAYER = {"self_attention/linear_0": "self_attn.qkv", "self_attention/linear_1": "self_attn.out_proj"}
LAYER |= {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}
LAYER |= {"ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}
CROSS = {"attention/layer_norm": "encoder_attn_layer_norm", "attention/linear_0": "encoder_attn.q"}
CROSS |= {"attention/linear_1": "encoder_attn.kv", "attention/linear_2": "encoder_attn.out_proj"}


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """The variables of a ``model.bin`` by name, aliases too, not yet loaded. Raises ``ValueError``: no whole Whisper, or a later one."""
    data, at = np.memmap(path, np.uint8, "r"), 0

    def take(size: int) -> np.ndarray:
        nonlocal at
        at += size
        if at > len(data):
            raise ValueError("model.bin ends too early: a part is missing")
        return data[at - size : at]

    def number(size: int) -> int:
        return int.from_bytes(take(size).tobytes(), "little")

    def name() -> str:
        return take(number(2)).tobytes().removesuffix(b"\0").decode()

    def array() -> np.ndarray:
        shape, kind, size = [number(4) for _ in range(number(1))], number(1), number(4)
        dtype = np.dtype(TYPES[kind] if kind < len(TYPES) else np.void)
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"model.bin claims {size} bytes for {shape} numbers of type {kind}")
        return np.frombuffer(take(size), dtype).reshape(shape)

    if (version := number(4)) not in VERSIONS or (spec := (name(), number(4)))[0] != SPEC or spec[1] > REVISION:
        raise ValueError(f"model.bin is no {SPEC} {REVISION} of version {VERSIONS[-1]} or earlier (version {version})")
    found = {name(): array() for _ in range(min(number(4), MOST))}
    found |= {alias: found[of] for alias, of in [(name(), name()) for _ in range(min(number(4), MOST))]}
    if at != len(data) or 4 * sum(a.size for a in found.values()) > COPIES * len(data):
        raise ValueError("model.bin holds more than a Whisper has, or less: it is damaged")
    return found


def weight(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    """A copy of a weight as floats; integers are divided by their scale, to the type of what is not quantised."""
    array = arrays[name]
    if array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.int16)).view(torch.bfloat16)
    made = torch.from_numpy(np.array(array))
    if made.is_floating_point():
        return made
    scale = weight(arrays, f"{name}_scale").float()
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError(f"{name} has scales that are not above 0")
    scale = scale[:, None] if scale.ndim == 2 else scale.reshape(scale.shape + (1,) * (made.ndim - 1) * scale.ndim)
    return (made / scale).to(weight(arrays, "encoder/layer_norm/gamma").dtype)


def state_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The weights under transformers' names. Raises ``KeyError``: one is missing; ``ValueError``: a key has a bias."""
    out: dict[str, Tensor] = {}

    def put(theirs: str, ours: str) -> None:
        names = ("gamma", "beta") if theirs.endswith("layer_norm") else ("weight", "bias")
        pair, (top, _, parts) = [weight(arrays, f"{theirs}/{n}") for n in names], ours.rpartition(".")
        split = parts if parts in ("q", "qkv", "kv") else ""
        for part, w, b in zip(split or "-", *(x.tensor_split(len(split) or 1) for x in pair), strict=True):
            own = f"{top}.{part}_proj" if split else ours
            out[f"{own}.weight"] = w.clone()
            if part != "k":
                out[f"{own}.bias"] = b.clone()
            elif b.any():
                raise ValueError(f"{theirs} has a key with a bias")

    for part, layer in (("encoder", LAYER), ("decoder", LAYER | CROSS)):
        out[f"model.{part}.embed_positions.weight"] = weight(arrays, f"{part}/position_encodings/encodings")
        put(f"{part}/layer_norm", f"model.{part}.layer_norm")
        for n in range(sum(bool(re.fullmatch(rf"{part}/layer_\d+/ffn/linear_0/weight", name)) for name in arrays)):
            for theirs, ours in layer.items():
                put(f"{part}/layer_{n}/{theirs}", f"model.{part}.layers.{n}.{ours}")
    put("encoder/conv1", "model.encoder.conv1")
    put("encoder/conv2", "model.encoder.conv2")
    return out | {"model.decoder.embed_tokens.weight": weight(arrays, "decoder/embeddings/weight")}


def convert_whisper(folder: Path, place: Path) -> int:
    """Write what ``folder`` holds (``NEEDED``) into ``place``, an empty one; returns how many parameters the model has.

    Halves are stored as such, and computed in single precision.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a file is missing, damaged, or does not belong to the others.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    if missing := [n for n in NEEDED if not (folder / n).is_file()]:
        raise ValueError(f"it has no {missing[0]}{' (the original model has it)' if missing[0] == NEEDED[2] else ''}")
    about, words = (parse_json((folder / n).read_bytes()) for n in NEEDED[1:])
    arrays, sizes = read_variables(folder / NEEDED[0]), dict[str, Any]()
    state = state_of(arrays)
    vocab, (width, mels, _) = len(state["model.decoder.embed_tokens.weight"]), state["model.encoder.conv1.weight"].shape
    for part, bound in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        biases = [len(v) for k, v in state.items() if re.fullmatch(rf"model\.{part}\.layers\.\d+\.fc1\.bias", k)]
        sizes |= {f"{part}_layers": len(biases), f"{part}_ffn_dim": max(biases, default=1)}
        sizes[f"{part}_attention_heads"] = int(arrays.get(f"{part}/num_heads", np.array(max(1, width // 64))).flat[0])
        sizes[bound] = len(state[f"model.{part}.embed_positions.weight"])
    given = _generation(about, words, vocab) | {"max_length": sizes["max_target_positions"]}
    sizes |= {k: v for k, v in given.items() if k.endswith(("start_token_id", "os_token_id", "pad_token_id"))}
    sizes |= dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"))  # they stand in the generation config
    refuse_sizes(sizes)
    config: Any = WhisperConfig(vocab_size=vocab, num_mel_bins=mels, d_model=width, tie_word_embeddings=True, **sizes)
    config.architectures, config.dtype = ["WhisperForConditionalGeneration"], "float32"
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in WhisperForConditionalGeneration(config).state_dict().items()}
    del wanted["proj_out.weight"]  # it is the table of embeddings
    if wrong := set(wanted.items()) ^ {(k, v.shape) for k, v in state.items()}:
        raise ValueError(f"its weights are not a Whisper's: {min(wrong)[0]} is missing, or of another shape")
    seconds = sizes["max_source_positions"] // 50  # 20 ms each
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    for saved in (config, GenerationConfig(**given), extractor):
        saved.save_pretrained(place)
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    (place / "model.safetensors").chmod(0o644)
    shutil.copyfile(folder / NEEDED[2], place / NEEDED[2])
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), MARKS[0])
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer", **marks}, indent=2))
    parameters = sum(v.numel() for v in state.values())
    card = card_of("asr", parameters, extractor.sampling_rate, title="recogniser (whisper)")
    write_card(place, card, {"stage": "convert", "layout": "ct2", "source": folder.absolute().name})
    return parameters


def _generation(about: Any, words: Any, vocab: int) -> dict[str, Any]:
    """The generation config: CTranslate2's ``config.json`` and the tokenizer's marks. Raises ``ValueError``: they do not fit."""
    added = {t["content"]: t["id"] for t in words["added_tokens"]}
    ids: dict[str, int] = words["model"]["vocab"] | added
    end, start, quiet = own = [ids[mark] for mark in MARKS]
    lists = {"suppress_tokens": "suppress_ids", "begin_suppress_tokens": "suppress_ids_begin"}
    found = {k: about.get(n) for k, n in lists.items()}
    if not all(isinstance(i, int) and 0 <= i < vocab for row in (own, *filter(None, found.values())) for i in row):
        raise ValueError(f"its config.json or tokenizer.json names an id that is none of the model's {vocab}")
    given: dict[str, Any] = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), end) | found
    given |= {"decoder_start_token_id": start, "no_timestamps_token_id": quiet, "return_timestamps": False}
    given |= {"max_initial_timestamp_index": 50, "is_multilingual": vocab >= MULTILINGUAL}
    given |= {"alignment_heads": about["alignment_heads"]} if about.get("alignment_heads") else {}
    given |= {"prev_sot_token_id": ids["<|startofprev|>"]} if "<|startofprev|>" in ids else {}
    if given["is_multilingual"]:
        given["lang_to_id"] = {k: i for k, i in added.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", k)}
        given["task_to_id"] = {t: ids[f"<|{t}|>"] for t in ("transcribe", "translate")}
    return given
