"""A codec, a codec language model over it and a token reward, of random weights, and texts with recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_corpora import manifest

from rlspeech.config import CodecLMModel, CodecModel, TokenRewardModel
from rlspeech.data.audio import save_audio
from rlspeech.models.codec.codec import load_codec
from rlspeech.models.codec.lm import build_codec_lm, save_codec_lm
from rlspeech.models.codec.net import CodecNet
from rlspeech.models.hub import save_model
from rlspeech.models.recogniser import make_tokenizer
from rlspeech.models.token_reward import TokenReward, save_token_reward

RATE = 16000
TEXTS = ["one two three", "four five", "six seven eight", "nine zero"]
CODEC = CodecModel(dim=16, blocks=1, levels=[4, 5], voice_dim=8)
MODEL = dict(dim=16, layers=1, heads=2, ff=32, vocabulary=290, prompt_s=1.0, max_s=4.0)
REWARD = dict(dim=16, layers=1, text_layers=1, heads=2, vocabulary=290)


def write_tts(folder: Path) -> dict[str, str]:
    """Folders: ``model`` (its codec beside it), ``reward``; and ``data``, a manifest of four rows."""
    torch.manual_seed(0)
    save_model(folder / "codec", CodecNet(CODEC), "codec", facts={"data": "none"})
    codec = load_codec(str(folder / "codec"))
    lm = build_codec_lm(CodecLMModel(codec=str(folder / "codec"), **MODEL), TEXTS, codec)
    save_codec_lm(folder / "model", lm, facts={})
    cfg = TokenRewardModel(codec=str(folder / "codec"), **REWARD)
    tokenizer, labels = make_tokenizer(TEXTS, 290), {"sex": ["female", "male"]}
    save_token_reward(folder / "reward", TokenReward(cfg, codec.size, tokenizer, labels, codec.sample_rate), facts={})
    rows = []
    for i, text in enumerate(TEXTS):
        t = np.arange(RATE) / RATE
        wav = 0.1 * np.sin(2 * np.pi * (120 + 20 * i) * t) * (1 + np.sin(2 * np.pi * 3 * t))
        save_audio(folder / f"{i}.flac", wav.astype(np.float32), RATE)
        row = {"id": f"u{i}", "audio_filepath": f"{i}.flac", "text": text, "sex": "male"}
        prompt = {"prompt_filepath": f"{(i + 1) % 4}.flac", "prompt_text": TEXTS[(i + 1) % 4]}
        rows.append(row | prompt)
    data = manifest(folder / "manifest.jsonl", rows)
    return {"model": str(folder / "model"), "data": str(data), "reward": str(folder / "reward")}
