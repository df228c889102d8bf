"""The token reward as a reward: of sampled tokens, and of relaxed ones with a gradient."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlspeech.config import TokenRewardModel
from rlspeech.models.token_reward import TokenReward, make_tokenizer, save_token_reward
from rlspeech.rewards.scorer import Scorer
from rlspeech.rewards.soft import SoftTokenReward, TokenText
from rlspeech.types import Sample, UserError

V = 20
ALL = ["token_accuracy", "token_cer", "token_nll", "token_posterior", "token_sex", "token_speaker", "token_quality"]


@pytest.fixture(scope="module")
def net() -> TokenReward:
    torch.manual_seed(0)
    cfg = TokenRewardModel(dim=16, layers=1, text_layers=1, heads=2, vocabulary=280)
    labels = {"sex": ["f", "m"], "quality": ["1", "2", "3"]}
    return TokenReward(cfg, V, make_tokenizer(["one two three four"], 280), labels, 16000).frozen()


def row(tokens, text="one two", **columns):
    return Sample("a", np.zeros(0, np.float32), 16000, None, text, columns, tokens=np.asarray(tokens, np.int64))


def relaxed(ids, lengths):
    soft = torch.nn.functional.one_hot(ids, V).float().requires_grad_()
    return SimpleNamespace(soft=soft, mask=torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None])


def test_sampled_tokens_through_the_scorer(net, tmp_path):
    save_token_reward(tmp_path / "net", net, facts={})
    rows = [row(range(9), sex="m"), row([]), row([3, V]), row(range(4), text="Three!"), row(range(4), text=None)]
    with Scorer(ALL, workers=0, options={"token_text": {"model": str(tmp_path / "net"), "form": "exp"}}) as scorer:
        scorer.dry_run()
        table = scorer.score(rows)
    assert table["token_cer"][1].value == 1.0 and table["token_accuracy"][1].value == pytest.approx(
        math.exp(-2.5)
    )  # nothing was said
    assert table["token_nll"][1].value == pytest.approx(math.log(len(net.tokenizer)))
    assert (
        all("none of the codec's" in table[n][2].error for n in ALL)
        and table["token_cer"][4].error == "no reference text"
    )
    heard = net.encode(torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool))
    nll = -float(net.text_logp(heard, ["three"]).detach())
    assert table["token_nll"][3].value == pytest.approx(nll, rel=1e-4)
    assert table["token_posterior"][3].value == pytest.approx(math.exp(-nll / 3), rel=1e-4)
    assert table["token_cer"][0].detail["hypothesis"] == net.transcribe([torch.arange(9)])[0]
    assert 0 < table["token_sex"][0].value < 1 and table["token_sex"][3].value is None  # the row names no sex
    assert table["token_speaker"][0].error == "this token reward has no head for speaker"
    assert all(1 <= table["token_quality"][i].value <= 3 for i in (0, 1, 3))


def test_relaxed_tokens_have_the_sampled_ones_score_where_they_are_one_hot(net):
    ids = torch.randint(V, (3, 8), generator=torch.Generator().manual_seed(1))
    given = relaxed(ids, [8, 5, 0])
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
    given, samples = relaxed(ids, [8, 8, 8]), [row(ids[0], sex="m", quality=1), row(ids[1], sex="f"), row(ids[2])]
    heads = {k: v.log_softmax(-1) for k, v in net.attributes(net.encode(ids, given.mask)).items()}
    content = SoftTokenReward(net).score_soft(given, samples)
    soft = SoftTokenReward(net, 2.0, {"sex": 0.5, "quality": 0.1})
    expected = (
        2 * content
        + 0.5 * torch.stack([heads["sex"][0, 1], heads["sex"][1, 0], torch.zeros(())])
        + 0.1 * torch.stack([heads["quality"][0, 0], heads["quality"][1, 2], heads["quality"][2, 2]])
    )  # without a level: the best
    torch.testing.assert_close(soft.score_soft(given, samples), expected)
    assert set(soft.last) == {"content", "sex", "quality"}
    assert soft.last["sex"] == pytest.approx(float((heads["sex"][0, 1] + heads["sex"][1, 0]) / 2), rel=1e-4)


def test_mistakes_are_told(net):
    with pytest.raises(UserError, match="no head for speaker"):
        SoftTokenReward(net, attribute_weights={"speaker": 0.1})
    SoftTokenReward(net, attribute_weights={"speaker": 0.0})
    given = SimpleNamespace(soft=torch.zeros(1, 2, V + 1), mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(UserError, match="among 21 codes"):
        SoftTokenReward(net).score_soft(given, [row([1, 2])])
