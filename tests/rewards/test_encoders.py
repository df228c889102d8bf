"""Speaker similarity and SpeechBERTScore: the embedded encoders, and transformers models from a folder."""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from reward_signals import sample, scored, voice, with_noise

from rlspeech.models.hub import embedded_path
from rlspeech.rewards import encoders
from rlspeech.rewards.encoders import Cache, SpeakerNet, SpeechNet, batched, bert_score, load_embedded, save_embedded
from rlspeech.rewards.scorer import Scorer
from rlspeech.types import UserError

NAMES = ["speaker_similarity", "speech_bert_score", "speech_bert_recall", "speech_bert_f1"]


def pair(wav, target):
    return sample(wav, target=target)


@pytest.fixture(scope="module")
def scorer():
    with Scorer(NAMES, workers=0) as made:
        yield made


def test_embedded_weights_are_small_and_documented():
    for name in ("speaker", "speech_encoder"):
        folder = embedded_path(name)
        assert (folder / "model.safetensors").stat().st_size < 2_000_000
        assert "LibriSpeech" in (folder / "README.md").read_text()


def test_identity_scores_one_and_falls_with_the_noise(scorer):
    clean = voice(2.0, seed=1)
    samples = [pair(clean, clean)] + [pair(with_noise(clean, snr), clean) for snr in (20, 10, 0, -10)]
    for name, scores in scorer.score(samples).items():
        values = [s.value for s in scores]
        assert values[0] == pytest.approx(1.0, abs=1e-4), name
        assert values[0] > values[1] > values[2] > values[3], (name, values)
        assert values[4] < values[2], (name, values)  # below 0 dB only noise is left to compare


def test_another_voice_is_further_away_than_the_same_one(scorer):
    low, again = (voice(2.0, 110, seed=s, formants_hz=(500, 1400, 2400)) for s in (1, 2))
    high = voice(2.0, 230, seed=3, formants_hz=(700, 1900, 3100))
    same, other = (s.value for s in scorer.score([pair(low, again), pair(high, again)])["speaker_similarity"])
    assert same > other + 0.1


def test_neighbours_and_gain_are_no_part_of_the_score(scorer):
    wavs = [with_noise(voice(s, seed=i), 10) for i, s in enumerate((1.0, 0.6, 1.0, 1.3))]
    samples = [pair(w, voice(len(w) / 16000, seed=i)) for i, w in enumerate(wavs)]
    together = scorer.score(samples)
    for i, one in enumerate(samples):
        for s, most in ((one, 1e-5), (pair(0.1 * one.wav, one.target), 2e-3), (pair(one.wav, 0.3 * one.target), 2e-3)):
            alone = scorer.score([s])
            assert all(alone[n][0].value == pytest.approx(together[n][i].value, abs=most) for n in NAMES)


def test_bert_score_by_hand_and_of_unlike_lengths(scorer):
    clean = voice(1.5, seed=4)
    table = scorer.score([pair(clean[:16000], clean)])
    # all of it is found again, not all is there
    assert table["speech_bert_score"][0].value > 0.99 > table["speech_bert_recall"][0].value
    a, b = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 1.0]])
    half = 0.5**0.5
    precision, recall = (1 + half) / 2, (1 + 1 + half) / 3
    assert bert_score(a, b) == pytest.approx((precision, recall, 2 * precision * recall / (precision + recall)))
    assert bert_score(b, a)[0] == pytest.approx(bert_score(a, b)[1])


def test_reference_is_encoded_once_for_a_group():
    seen = []

    def encode(x):
        seen.append(x.shape)
        return x.mean(1, keepdim=True)

    cache = Cache(2)
    wavs = [np.full(100, i, np.float32) for i in (1, 1, 2, 1)]
    out = batched(wavs, encode, "cpu", cache)
    assert [float(o) for o in out] == [1, 1, 2, 1] and seen == [(2, 100)]
    batched([wavs[0], np.full(50, 3, np.float32)], encode, "cpu", cache)
    assert seen == [(2, 100), (1, 50)]
    batched([wavs[2]], encode, "cpu", cache)  # was dropped: the cache holds two
    assert seen[-1] == (1, 100)


@pytest.mark.parametrize("net", [SpeakerNet(channels=16, embedding=8), SpeechNet(channels=16, classes=5)])
def test_saving_and_loading_keeps_the_net(net, tmp_path):
    save_embedded(tmp_path, net.eval())
    wav = torch.from_numpy(voice(0.5))[None]
    with torch.no_grad():
        torch.testing.assert_close(load_embedded(tmp_path)(wav), net(wav), atol=5e-3, rtol=5e-3)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Tiny transformers models with random weights, saved to folders."""
    import transformers

    root = tmp_path_factory.mktemp("encoders")
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    config = transformers.WavLMConfig(**small, tdnn_dim=[16] * 5, xvector_output_dim=8)
    transformers.WavLMForXVector(config).save_pretrained(root / "xvector")
    transformers.HubertModel(transformers.HubertConfig(**small)).save_pretrained(root / "hubert")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "hubert")
    return root


@pytest.mark.slow
def test_transformers_encoders_from_a_folder(pretrained):
    clean = voice(1.0)
    names = [f"speaker_similarity[encoder={pretrained}/xvector]"]
    names.append(f"speech_bert_score[encoder={pretrained}/hubert,layer=2]")
    with Scorer(names, workers=0) as scorer:
        table = scorer.score([pair(clean, clean), pair(with_noise(clean, 0), clean), pair(clean[:8000], clean)])
        meta = scorer.meta()
    for name in names:
        values = [s.value for s in table[name]]
        assert values[0] == pytest.approx(1.0, abs=1e-4) and values[1] < 1 and values[2] is not None
    assert "WavLMForXVector" in meta[names[0]]["version"] and "layer 2" in meta[names[1]]["version"]


@pytest.mark.slow
def test_missing_encoder_is_an_error_for_people(tmp_path):
    for name in ("speaker_similarity", "speech_bert_score"):
        with pytest.raises(UserError, match="cannot load"):
            scored([pair(voice(0.5), voice(0.5))], name, encoder=str(tmp_path / "nothing"))


def test_resemblyzer_beside_another_package_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "resemblyzer").mkdir()
    monkeypatch.delitem(sys.modules, "resemblyzer", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="pretrained.pt"):
        scored([pair(voice(0.5), voice(0.5))], "speaker_similarity", encoder="resemblyzer")
    torch.manual_seed(0)
    state = {"similarity_bias": torch.zeros(1), **encoders.Ge2eNet().state_dict()}
    (tmp_path / "resemblyzer" / "__init__.py").write_text("raise ImportError('webrtcvad')")
    torch.save({"model_state": state, "step": 1}, tmp_path / "resemblyzer" / "pretrained.pt")
    reward = encoders.SpeakerSimilarity("resemblyzer")
    wavs = [torch.from_numpy(voice(s))[None].requires_grad_() for s in (0.4, 2.2)]
    with torch.no_grad():
        together, one = reward.encode(torch.cat([0.1 * wavs[1], wavs[1].flip(1)])), reward.encode(wavs[1])
    torch.testing.assert_close(together[:1], one, atol=1e-4, rtol=0)
    grads = torch.autograd.grad(sum(reward.encode(w).sum() for w in wavs), wavs)
    assert all(bool(g.isfinite().all()) and float(g.abs().sum()) > 0 for g in grads)


@pytest.mark.realmodels
def test_resemblyzer_agrees_with_the_package(realmodels, monkeypatch):
    for name in ("webrtcvad", "scipy.ndimage.morphology"):  # they cut silences out
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(binary_dilation=None))
    monkeypatch.syspath_prepend(str(realmodels / "packages"))
    ours = encoders.SpeakerSimilarity("resemblyzer")
    theirs = importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)
    for wav in map(voice, (1.0, 2.5, 4.37)):
        made = theirs.embed_utterance(wav * 10 ** (-30 / 20) / np.sqrt(np.mean(wav**2)))
        np.testing.assert_allclose(ours.encode(torch.from_numpy(wav)[None])[0], made, atol=1e-4, rtol=0)


@pytest.mark.realdata
def test_real_speech_ranks_speakers_noise_and_words(real_rows):
    """Held-out LibriSpeech speakers: EER below 15 %, own noisy version above other speakers, falling with the noise."""
    from rlspeech.data.audio import load_audio

    clips: dict[str, list[np.ndarray]] = {}
    for row in real_rows:
        if row["corpus"] == "LibriSpeech test-other" and len(clips.setdefault(str(row["speaker"]), [])) < 4:
            clips[str(row["speaker"])].append(load_audio(str(row["path"]))[: 6 * 16000])
    flat = [(s, w) for s, ws in clips.items() for w in ws]
    with Scorer(NAMES, workers=0) as scorer:
        pairs = [(a, b) for i, a in enumerate(flat) for b in flat[:i]]
        sims = np.array([s.value for s in scorer.score([pair(a[1], b[1]) for a, b in pairs])["speaker_similarity"]])
        same = np.array([a[0] == b[0] for a, b in pairs])
        worse = [[pair(with_noise(w, snr, i), w) for i, (_, w) in enumerate(flat)] for snr in (20, 10, 0, -5)]
        noisy = [*map(scorer.score, worse)]
    threshold = np.quantile(sims[~same], 0.85)
    assert (sims[same] > threshold).mean() > 0.85
    for name in NAMES:
        means = [np.mean([s.value for s in t[name]]) for t in noisy]
        assert means == sorted(means, reverse=True), (name, means)
    assert np.mean([s.value for s in noisy[1]["speaker_similarity"]]) > sims[~same].mean() + 0.3
