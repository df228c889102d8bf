"""The embedded codec: ids and codes agree, rows are what they are alone, level is not in the tokens, the voice is the prompt's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_signals import voice as speech

from rlspeech.config import CodecModel
from rlspeech.data.audio import rms_dbfs
from rlspeech.models.codec.codec import Codec, EmbeddedCodec, length_batches, load_codec
from rlspeech.models.codec.net import CodecNet, FiniteScalar, band_interpolation, hold_pitch, prime_factors, pulses
from rlspeech.models.hub import save_model
from rlspeech.types import UserError

SMALL = CodecModel(dim=16, blocks=2, voice_dim=8)


@pytest.fixture(scope="module")
def codec() -> EmbeddedCodec:
    torch.manual_seed(0)
    return EmbeddedCodec(CodecNet(SMALL).eval())


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3], [4, 4, 4, 4, 4]])
def test_every_id_has_codes_and_codes_have_their_id(levels: list[int]) -> None:
    fsq = FiniteScalar(levels)
    ids = torch.arange(fsq.size)
    codes = fsq.codes(ids)
    assert fsq.size == math.prod(levels) and len(codes.unique(dim=0)) == fsq.size and codes.abs().max() == 1
    middle = ((codes + 1) / 2 * (fsq.levels - 1) + 0.5) / fsq.levels
    again, back = fsq(torch.special.ndtri(middle))
    assert torch.equal(back, ids) and torch.allclose(again, codes, atol=1e-6)
    z = torch.zeros(3, len(levels), requires_grad=True)  # the middle, where nothing is cut off
    fsq(z)[0].sum().backward()
    assert z.grad is not None and (z.grad > 0).all()  # rounding passes gradients


def test_it_is_a_codec_of_25_tokens_a_second(codec: EmbeddedCodec) -> None:
    assert isinstance(codec, Codec) and codec.frame_s == 0.04 and codec.size == 1000 and codec.sample_rate == 16000
    ids = codec.encode([speech(1.0), speech(0.5), speech(0.041), np.zeros(1, np.float32), np.zeros(0, np.float32)])
    assert [len(x) for x in ids] == [25, 13, 2, 1, 1] and all(0 <= int(x.min()) and int(x.max()) < 1000 for x in ids)
    assert [len(w) for w in codec.decode(ids)] == [25 * 640, 13 * 640, 2 * 640, 640, 640]
    assert codec.encode([]) == [] and codec.decode([]) == []
    nothing = torch.empty(0, dtype=torch.long)  # no ids, no sound
    assert [w.shape for w in codec.decode([nothing, torch.tensor([3, 4])], [None, None])] == [(0,), (1280,)]
    assert codec.decode([nothing])[0].shape == (0,)


def test_a_row_is_what_it_is_alone(codec: EmbeddedCodec) -> None:
    wavs = [speech(1.0, 110), speech(0.37, 220, 1), speech(0.7, 170, 2)]
    together = codec.encode(wavs)
    assert all(torch.equal(a, codec.encode([w])[0]) for a, w in zip(together, wavs, strict=True))
    prompts = [None, wavs[0], wavs[1]]
    made = codec.decode(together, prompts)
    for ids, prompt, wav in zip(together, prompts, made, strict=True):
        # phases add up rounding
        assert np.allclose(codec.decode([ids], [prompt])[0], wav, atol=1e-3) and np.isfinite(wav).all()


def test_level_and_trailing_nothing_are_not_in_the_tokens(codec: EmbeddedCodec) -> None:
    wav = speech(0.8)
    loud, soft = codec.encode([wav]), codec.encode([wav * 0.05])
    assert torch.equal(loud[0], soft[0])
    assert rms_dbfs(codec.decode(loud)[0]) == pytest.approx(-25, abs=0.1)


def test_the_voice_comes_from_the_prompt_and_a_prompt_is_heard_once(
    codec: EmbeddedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, prompt, heard = codec.encode([speech(0.5)])[0], speech(1.0, 240, 3), []
    encode = codec.net.encode_voice
    monkeypatch.setattr(codec.net, "encode_voice", lambda *given: heard.append(1) or encode(*given))
    a, b, c, d, e = codec.decode([ids] * 5, [prompt, prompt, None, np.zeros(8000, np.float32), np.zeros(0, np.float32)])
    assert len(heard) == 1
    assert np.array_equal(a, b) and not np.allclose(a, c, atol=1e-4) and np.array_equal(c, d) and np.array_equal(c, e)
    bare = EmbeddedCodec(CodecNet(SMALL.model_copy(update={"voice_dim": 0})).eval())
    assert not bare.wants_prompt and np.array_equal(*bare.decode([ids, ids], [None, prompt]))


@pytest.mark.parametrize(("stride", "parts"), [(1, [1]), (2, [2]), (3, [3]), (6, [2, 3]), (8, [2, 2, 2])])
def test_any_number_of_frames_a_token(stride: int, parts: list[int]) -> None:
    assert prime_factors(stride) == parts
    codec = EmbeddedCodec(CodecNet(SMALL.model_copy(update={"stride": stride})).eval())
    ids = codec.encode([speech(0.5)])
    assert len(ids[0]) == -(-8000 // (160 * stride)) and len(codec.decode(ids)[0]) == len(ids[0]) * 160 * stride


def test_analysis_and_overlap_add_are_inverse(codec: EmbeddedCodec) -> None:
    wav = torch.from_numpy(speech(0.4))[None]
    frames = codec.net.frames(wav.shape[1])
    back = codec.net.overlap(torch.fft.irfft(codec.net.stft(wav, frames), 640) * codec.net.window)
    assert torch.allclose(back[:, : wav.shape[1]], wav, atol=1e-5)


def test_pulses_have_the_pitch_power_one_and_no_aliases() -> None:
    train = pulses(torch.full((1, 100), 200.0), 160, 16000)[0]
    power = torch.fft.rfft(train[:16000] * torch.hann_window(16000)).abs().square()
    lines = torch.zeros_like(power, dtype=torch.bool)
    for k in range(200, 8000, 200):
        lines[k - 2 : k + 3] = True
    assert train.square().mean() == pytest.approx(1, abs=0.05) and power[lines].sum() / power.sum() > 0.9999
    assert (pulses(torch.zeros(1, 20), 160, 16000) == 0).all()
    # a pitch is held through what is unvoiced
    assert hold_pitch(torch.tensor([[0.0, 100, 0, 0, 120, 0]])).tolist() == [[150, 100, 100, 100, 120, 120]]


def test_band_gains_are_interpolated_and_like_lengths_share_a_batch() -> None:
    spread = band_interpolation(CodecModel())
    assert spread.shape == (80, 321) and torch.allclose(spread.sum(0), torch.ones(321), atol=1e-5)
    assert (spread >= 0).all()
    assert length_batches([5, 1, 9, 4], 10) == [[2], [0, 3], [1]]
    assert length_batches([], 10) == [] and length_batches([50], 10) == [[0]] and length_batches([0, 0], 10) == [[0, 1]]


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_is_what_was_saved(codec: EmbeddedCodec, tmp_path: Path, half: bool) -> None:
    save_model(tmp_path, codec.net, "codec", facts={"data": "none"}, half=half)
    again = load_codec(str(tmp_path))
    assert again.name == str(tmp_path) and again.size == codec.size
    wavs = [speech(0.6), speech(0.4, 200)]
    same = [float((a == b).float().mean()) for a, b in zip(again.encode(wavs), codec.encode(wavs), strict=True)]
    assert min(same) > 0.8 if half else min(same) == 1


def test_what_is_no_codec_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        load_codec(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="model_type"):
        load_codec(str(tmp_path))
