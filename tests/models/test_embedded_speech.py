"""The packaged weights for synthesis: the codec keeps words, the language model says them and stops, the reward reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlspeech.config import Sampling
from rlspeech.corpora.demo import demo_commands_clean
from rlspeech.data.audio import load_audio
from rlspeech.data.batches import Clip, columns_of
from rlspeech.data.manifest import read_manifest
from rlspeech.data.text import align
from rlspeech.models.codec.codec import load_codec, start_alike
from rlspeech.models.token_reward import load_token_reward
from rlspeech.rewards.recognisers import load_recogniser
from rlspeech.tasks import get_task
from rlspeech.types import Utterance


def digits(count: int) -> list[Utterance]:
    """Digit strings of the embedded corpus, a voice that nothing was trained on."""
    return [u for u in read_manifest(demo_commands_clean("test")) if u.extra["kind"] == "digits"][:count]


def wrong(utts: list[Utterance], texts: list[str]) -> float:
    """Share of the words that are wrong."""
    words = [str(u.text).split() for u in utts]
    return sum(align(w, t.split()).rate * len(w) for w, t in zip(words, texts, strict=True)) / sum(map(len, words))


def test_ids_with_like_codes_start_with_like_vectors() -> None:
    torch.manual_seed(0)
    codec = load_codec("embedded")
    rows = torch.randn(codec.size, 64) * 0.02
    before = rows.std()
    start_alike(rows, codec)
    codes = codec.coordinates
    assert codes.shape == (1000, 4) and len(codes.unique(dim=0)) == 1000
    near = (codes[:, None] - codes[None]).abs().sum(-1)
    distance = torch.cdist(rows, rows)
    assert distance[(near > 0) & (near < 0.6)].mean() < 0.8 * distance[near > 3].mean()
    assert rows.std() == pytest.approx(float(before), rel=0.15)  # the spread that the model was built with
    kept = rows.clone()
    start_alike(rows, object())  # type: ignore[arg-type]  # a codec that cannot tell
    assert torch.equal(rows, kept)


@pytest.mark.slow
def test_words_survive_the_codec_and_the_reward_reads_its_tokens() -> None:
    utts, codec = digits(8), load_codec("embedded")
    wavs = [load_audio(u.audio_filepath, 16000) for u in utts]
    ids = codec.encode(wavs)
    assert sum(map(len, ids)) / sum(map(len, wavs)) * 16000 == pytest.approx(25, rel=0.05)
    copies = codec.decode(ids, [load_audio(str(u.prompt_filepath), 16000) for u in utts])
    ear = load_recogniser("embedded", "cpu", None, 8)
    assert wrong(utts, ear(copies, 16000)) <= wrong(utts, ear(wavs, 16000)) + 0.2
    reward, _ = load_token_reward("embedded")
    assert wrong(utts, list(reward.frozen().transcribe(ids))) < 0.6  # chance is 0.9 and more


@pytest.mark.slow
def test_the_language_model_says_its_text_and_stops() -> None:
    utts, task = digits(8), get_task("tts")
    model, _ = task.load("embedded")
    nothing = np.zeros(0, np.float32)
    clips = [Clip(u.id, nothing, nothing, 16000, u.text, columns_of(u)) for u in utts]
    said = task.synthesise(model, clips, sampling=Sampling(temperature=0.7), seed=0)
    assert all(s.finished for s in said)
    texts = load_recogniser("embedded", "cpu", None, 8)([s.wav for s in said], 16000)
    assert wrong(utts, texts) < 0.6 < wrong(utts, [*texts[1:], texts[0]])  # its own text, not another's
