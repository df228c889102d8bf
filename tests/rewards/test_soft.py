"""Differentiable rewards: of waveforms equal to the scored ones where nothing is altered; the token reward, sampled and relaxed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reward_signals
import torch
from tiny_codec_lms import V, token_reward
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config import RewardSpec
from rlspeech.models.token_reward import save_token_reward
from rlspeech.rewards.base import build, resolve
from rlspeech.rewards.mix import compose, to_arrays
from rlspeech.rewards.scorer import Scorer
from rlspeech.rewards.soft import SoftMix, SoftTokenReward, TokenText, altered, resampled
from rlspeech.types import Relaxed, Sample, UserError

pytest.importorskip("speechmos")
RATE = 16000


def voice(seconds: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(reward_signals.with_noise(reward_signals.voice(seconds, seed=seed), 20, seed))


def relaxed(*wavs: Tensor, seed: int = 0) -> tuple[Relaxed, list[Sample]]:
    soft = pad_sequence(list(wavs), True, 9.0)  # what is behind the end must not be scored
    mask = pad_sequence([torch.ones(len(w), dtype=torch.bool) for w in wavs], batch_first=True)
    clean = [reward_signals.voice(len(w) / RATE, seed=i) for i, w in enumerate(wavs)]
    samples = [Sample(f"k{i}", w.detach().numpy(), RATE, c) for i, (w, c) in enumerate(zip(wavs, clean, strict=True))]
    return Relaxed(soft.requires_grad_(), mask, seed=seed), samples


def test_copies_are_functions_of_seed_and_key_alone_and_near_the_clip() -> None:
    wav = voice(1.0)
    one, two = altered(wav, [3, 4]), altered(wav, [4])
    assert torch.equal(one[1], two[0]) and not torch.equal(one[0], one[1]) and one.shape == (2, 14400)
    soft = SoftMix([RewardSpec(name="dnsmos_ovrl")], copies=3)
    made, samples = relaxed(wav, voice(1.0, 1))
    together, other = soft.score_soft(made, samples).detach(), soft.score_soft(made._replace(seed=1), samples).detach()
    alone = soft.score_soft(*relaxed(wav)).detach()
    torch.testing.assert_close(together[:1], alone)
    assert not torch.equal(together, other) and float((together - other).abs().max()) < 1.0


def test_other_rates_are_brought_to_16_khz() -> None:
    t = torch.arange(24000) / 24000
    low = torch.sin(2 * torch.pi * 440 * t)
    there = resampled(low, 24000)
    torch.testing.assert_close(there, torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000), atol=1e-3, rtol=0)
    assert len(resampled(low, 8000)) == 48000 and resampled(low, 16000) is low


COMPARED = "estoi stoi si_sdr lsd mrstft speaker_similarity speech_bert_score speech_bert_recall speech_bert_f1".split()


def test_scores_are_the_scorers_and_what_it_has_null_of_is_nan() -> None:
    made, samples = relaxed(voice(1.0), 5 * voice(1.0, 1), torch.zeros(RATE), voice(0.9, 2), voice(0.05))
    samples.append(Sample("none", samples[0].wav, RATE))  # without a reference
    made = Relaxed(torch.cat([made.soft, made.soft[:1]]), torch.cat([made.mask, made.mask[:1]]))
    names = [*COMPARED, "dnsmos_fast_ovrl"]
    soft = SoftMix([RewardSpec(name=name) for name in names], copies=1)
    with Scorer(names, workers=0) as scorer:
        scores = to_arrays(scorer.score(samples))
    for name, values in soft.measure(samples).items():  # a peak that is too high from 0.99 of it, as the scorer
        np.testing.assert_allclose(values, scores[name], rtol=2e-6, atol=2e-5, err_msg=name)
        assert np.isnan(values[[2, 4]]).all() and np.isnan(values[5]) == (name in COMPARED)
    value = soft.score_soft(made, samples)
    assert value.isnan().tolist() == [False, False, True, False, True, True]
    grad = torch.autograd.grad(torch.where(value.isfinite(), value, 0.0).sum(), made.soft)[0]
    assert bool(grad.isfinite().all()) and float(grad[2].abs().max()) == 0 == float(grad[3, 14400:].abs().max())
    torch.testing.assert_close(soft.score_soft(*relaxed(voice(1.0)))[0], value[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*COMPARED[:8], "dnsmos_ovrl", "dnsmos_p808"])
def test_gradients_are_finite_differences(name: str) -> None:
    """Along the gradient, in double precision but for the encoders; of comparisons with digital silence inside."""
    family, clean, double = build(resolve(name)), reward_signals.voice(0.8), name not in COMPARED[5:]
    wav, step = (voice(0.8).double(), 1e-6) if double else (voice(0.8), 2e-4)
    wav[4000 : 6000 if name in COMPARED[:5] else 4000] = 0

    def score(at: Tensor) -> Tensor:
        if name not in COMPARED:
            return family.predict.double()(at[None])[0, -1]
        return family.soft([at], [Sample("a", at.detach().float().numpy(), RATE, clean)], [name])[0][name]

    (grad,) = torch.autograd.grad(score(wav.requires_grad_()), wav)
    ahead, behind = (score((wav + way * grad / grad.norm()).detach()) for way in (step, -step))
    assert float(ahead - behind) / (2 * step) == pytest.approx(float(grad.norm()), rel=1e-3 if double else 3e-2)


def test_a_composition_is_that_of_sampled_rewards() -> None:
    made, samples = relaxed(*(voice(1.0, i) for i in range(4)), torch.zeros(RATE))
    plain = {"estoi": {"weight": 2.0}, "lsd": {"weight": 0.5}, "si_sdr": {"scale": "none", "bounds": (None, 5.0)}}
    for missing in ("auto", "skip"):
        specs = [RewardSpec(name=k, missing=missing, **v) for k, v in plain.items()]
        soft = SoftMix([*specs, RewardSpec(name="stoi", weight=0)])
        assert soft.divides
        scores = soft.measure(samples)
        soft.settle(scores)
        expected = compose(scores, np.arange(5), specs).reward
        np.testing.assert_allclose(soft.score_soft(made, samples).detach(), expected, rtol=1e-4)
        assert set(soft.last) == set(plain) and soft.last["lsd"] == pytest.approx(np.nanmean(scores["lsd"]), rel=1e-5)
    bound = SoftMix(specs[2:])
    assert not bound.divides  # of one alone the deviation says nothing
    (grad,) = torch.autograd.grad(bound.score_soft(made, samples).nansum(), made.soft)
    assert not grad.any()  # all are above the bound
    for wrong in (RewardSpec(name="pesq_wb"), RewardSpec(name="estoi", scale="group")):
        with pytest.raises(UserError) as caught:
            SoftMix([wrong])
        assert wrong.name in caught.value.what


ALL = ["token_accuracy", "token_cer", "token_nll", "token_posterior", "token_sex", "token_speaker", "token_quality"]


net = pytest.fixture(scope="module")(token_reward)


def row(tokens, text="one two", **columns):
    return reward_signals.sample(tokens=tokens, text=text, **columns)


def one_hot(ids, lengths):
    soft = torch.nn.functional.one_hot(ids, V).float().requires_grad_()
    return SimpleNamespace(soft=soft, mask=torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None])


def test_sampled_tokens_through_the_scorer(net, tmp_path):
    save_token_reward(tmp_path / "net", net, facts={})
    rows = [row(range(9), sex="m"), row([]), row([3, V]), row(range(4), text="Three!"), row(range(4), text=None)]
    with Scorer(ALL, workers=0, options={"token_text": {"model": str(tmp_path / "net"), "form": "exp"}}) as scorer:
        scorer.dry_run()
        table = scorer.score(rows)
    silent = [table[n][1].value for n in ("token_cer", "token_accuracy", "token_nll")]  # nothing was said
    assert silent == pytest.approx([1.0, math.exp(-2.5), math.log(len(net.tokenizer))])
    assert all("none of the codec's" in table[n][2].error for n in ALL)
    assert table["token_cer"][4].error == "no reference text"
    encoded = net.encode(torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool))
    nll = -float(net.text_logp(encoded, ["three"]).detach())
    assert table["token_nll"][3].value == pytest.approx(nll, rel=1e-4)
    assert table["token_posterior"][3].value == pytest.approx(math.exp(-nll / 3), rel=1e-4)
    assert table["token_cer"][0].detail["hypothesis"] == net.transcribe([torch.arange(9)])[0]
    assert 0 < table["token_sex"][0].value < 1 and table["token_sex"][3].value is None  # the row names no sex
    assert table["token_speaker"][0].error == "this token reward has no head for speaker"
    assert all(1 <= table["token_quality"][i].value <= 3 for i in (0, 1, 3))


def test_relaxed_tokens_have_the_sampled_ones_score_where_they_are_one_hot(net):
    ids = torch.randint(V, (3, 8), generator=torch.Generator().manual_seed(1))
    given = one_hot(ids, [8, 5, 0])
    samples = [row(ids[0], sex="m"), row(ids[1, :5], text="four"), row([])]
    plain = SoftTokenReward(net).score_soft(given, samples)
    hard = TokenText(net).compute(samples, ["token_nll"])
    assert plain[:2].tolist() == pytest.approx([-h["token_nll"].value for h in hard[:2]], rel=1e-4)
    mute = SoftTokenReward(net).score_soft(given, [samples[0], row(ids[1], text="?!"), samples[2]])
    assert mute.isnan().tolist() == [False, True, False]
    silent = torch.autograd.grad(mute.nansum(), given.soft, retain_graph=True)[0]
    alone = torch.autograd.grad(plain[0], given.soft, retain_graph=True)[0][0]
    assert float(silent[1].abs().sum()) == 0 and torch.allclose(silent[0], alone)
    (grad,) = torch.autograd.grad(plain.sum(), given.soft)
    assert float(grad[0].abs().sum()) > 0 and float(grad[1, 5:].abs().sum()) == 0 == float(grad[2].abs().sum())


def test_attributes_add_their_weighted_log_probabilities(net):
    ids = torch.randint(V, (3, 8), generator=torch.Generator().manual_seed(2))
    given, samples = one_hot(ids, [8, 8, 8]), [row(ids[0], sex="m", quality=1), row(ids[1], sex="f"), row(ids[2])]
    heads = {k: v.log_softmax(-1) for k, v in net.attributes(net.encode(ids, given.mask)).items()}
    content = SoftTokenReward(net).score_soft(given, samples)
    whole = SoftTokenReward(net, sums=True).score_soft(given, samples)
    torch.testing.assert_close(whole, content * net.pieces([s.text for s in samples])[1].sum(1))
    soft = SoftTokenReward(net, 2.0, {"sex": 0.5, "quality": 0.1})
    sex = torch.stack([heads["sex"][0, 1], heads["sex"][1, 0], torch.zeros(())])
    # the best by default
    quality = torch.stack([heads["quality"][0, 0], heads["quality"][1, 2], heads["quality"][2, 2]])
    torch.testing.assert_close(soft.score_soft(given, samples), 2 * content + 0.5 * sex + 0.1 * quality)
    assert set(soft.last) == {"content", "sex", "quality"}
    assert soft.last["sex"] == pytest.approx(float((heads["sex"][0, 1] + heads["sex"][1, 0]) / 2), rel=1e-4)


def test_mistakes_are_told(net):
    with pytest.raises(UserError, match="speaker"):
        SoftTokenReward(net, attribute_weights={"speaker": 0.1})
    SoftTokenReward(net, attribute_weights={"speaker": 0.0})
    given = SimpleNamespace(soft=torch.zeros(1, 2, V + 1), mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(UserError, match=f"among {V + 1} codes"):
        SoftTokenReward(net).score_soft(given, [row([1, 2])])
