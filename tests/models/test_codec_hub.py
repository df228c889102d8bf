"""transformers' codecs with random weights: one flat stream, ids agree with the model's own, any stream can be decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_codecs import ALL, tiny

from rlspeech.models.codec.codec import Codec, HubCodec, fbank_features, load_codec, parse
from rlspeech.types import UserError

RATES = {"xcodec2": (16000, 320, 1, 65536), "neucodec": (24000, 480, 1, 65536)}
RATES |= {"mimi": (24000, 1920, 2, 64), "dac": (16000, 512, 3, 96)}


@pytest.fixture(scope="module", params=ALL)
def codec(request: pytest.FixtureRequest) -> HubCodec:
    return HubCodec(tiny(request.param), request.param, 2 if request.param == "mimi" else None)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_one_flat_stream_there_and_back(codec: HubCodec) -> None:
    rate, hop, books, size = RATES[codec.family]
    assert isinstance(codec, Codec) and (codec.sample_rate, codec.books, codec.size) == (rate, books, size)
    assert codec.frame_s == pytest.approx(hop / rate / books)
    wavs = [noise(rate // 2), noise(1), noise(0), noise(hop), noise(hop + 1)]
    ids = codec.encode(wavs)
    frames = [-(-(rate // 2) // hop), 1, 1, 1, 2]
    assert [len(x) for x in ids] == [n * books for n in frames] and len(ids[0].unique()) > 1
    made = codec.decode(ids)
    assert [w.shape for w in made] == [(n * hop,) for n in frames]
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in made)
    assert torch.equal(ids[0] // codec.codebook, torch.arange(books).repeat(frames[0]))  # codebooks take turns


def test_a_row_is_what_it_is_alone(codec: HubCodec) -> None:
    wavs = [noise(6000, 1), noise(12000, 2), noise(6000, 3)]
    together = codec.encode(wavs)
    made = codec.decode(together, [None, noise(100), None])
    for wav, ids, sound in zip(wavs, together, made, strict=True):
        assert torch.equal(codec.encode([wav])[0], ids) and np.allclose(codec.decode([ids])[0], sound, atol=1e-4)


def test_any_stream_can_be_decoded(codec: HubCodec) -> None:
    torch.manual_seed(0)
    wild = torch.randint(codec.size, (3 * codec.books,))
    proper = wild % codec.codebook + codec.codebook * torch.arange(codec.books).repeat(3)
    torn = torch.cat([proper, proper[: codec.books - 1]])
    made = codec.decode([wild, proper, torn, torch.empty(0, dtype=torch.long)])
    assert np.allclose(made[0], made[1], atol=1e-6) and np.allclose(made[1], made[2], atol=1e-6)
    assert made[3].shape == (0,)


@pytest.mark.parametrize("family", ["mimi", "dac"])
def test_ids_are_those_of_the_model(family: str) -> None:
    codec = HubCodec(tiny(family), family, 3)
    wav = torch.from_numpy(noise(4 * codec.hop))
    given = {"num_quantizers": 3} if family == "mimi" else {"n_quantizers": 3}
    with torch.no_grad():
        codes = codec.net.encode(wav[None, None], **given).audio_codes[0]
        sound = codec.net.decode(audio_codes=codes[None]).audio_values.reshape(-1)
    ids = codec.encode([wav.numpy()])[0]
    assert torch.equal(ids.reshape(-1, 3).T % codec.codebook, codes)
    length = min(len(sound), 4 * codec.hop)
    assert np.allclose(codec.decode([ids])[0][:length], sound[:length].numpy(), atol=1e-6)


def test_kaldi_features_are_those_of_the_numpy_extractor() -> None:
    from transformers import SeamlessM4TFeatureExtractor

    wav = noise(3200)
    theirs = SeamlessM4TFeatureExtractor()(wav, sampling_rate=16000, return_tensors="pt", padding=False)
    ours, theirs = fbank_features(wav, 0), theirs["input_features"][0]
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=2e-3)
    assert fbank_features(np.zeros(3200, np.float32), 160).shape == (10, 160)


def test_names(tmp_path: Path) -> None:
    assert parse("mimi") == ("mimi", "kyutai/mimi", None) and parse("mimi:/a/b:4") == ("mimi", "/a/b", 4)
    assert parse("dac:someone/dac") == ("dac", "someone/dac", None)
    assert parse("dac::2") == ("dac", "descript/dac_16khz", 2)
    assert parse("someone/codec") == ("", "someone/codec", None)
    for name in ("embedded", "runs/tts/codec", str(tmp_path), "./a/b"):
        assert parse(name) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dac"}))
    assert parse(str(tmp_path)) == ("dac", str(tmp_path), None)
    (tmp_path / "config.json").write_text("[")
    assert parse(str(tmp_path)) is None


def test_folders_load_and_what_is_none_is_said(tmp_path: Path) -> None:
    net = tiny("dac")
    net.save_pretrained(tmp_path / "dac")
    for name in (str(tmp_path / "dac"), f"dac:{tmp_path / 'dac'}:2"):
        codec = load_codec(name)
        assert isinstance(codec, HubCodec) and codec.name == name and codec.books == (2 if name.endswith("2") else 3)
        ours, theirs = (c.encode([noise(2000)])[0] % 32 for c in (codec, HubCodec(net, "x", codec.books)))
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="(?s)mimi:.*why: .*model_type is 'dac', not mimi"):
        load_codec(f"mimi:{tmp_path / 'dac'}")
    with pytest.raises(UserError, match="dac:"):
        load_codec(f"dac:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="cannot use 9 codebooks"):
        HubCodec(net, "dac", 9)
