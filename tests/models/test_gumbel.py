"""Gumbel noise: its law, its law given the winner, and its independence of the batch."""

from __future__ import annotations

import math

import torch

from rlspeech.tasks.tts.policy import gumbel_noise, noise_given, relaxed_tokens


def test_moments_and_what_wins() -> None:
    noise = gumbel_noise([20000], 4, [0])
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.var()) - math.pi**2 / 6) < 0.05
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5]).expand(1, 20000, 4)
    won = (logits + noise).argmax(-1)[0].bincount(minlength=4) / 20000
    torch.testing.assert_close(won, logits[0, 0].softmax(-1), atol=0.012, rtol=0)


def test_a_row_does_not_see_its_batch() -> None:
    alone, among = gumbel_noise([3], 5, [7]), gumbel_noise([9, 3], 5, [1, 7])
    assert torch.equal(alone[0], among[1, :3]) and torch.equal(among[1, 3:], torch.zeros(6, 5))
    assert not torch.equal(alone, gumbel_noise([3], 5, [8]))


def test_noise_given_a_winner_lets_it_win_and_has_the_law_of_noise() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 2.0, -1.0]).expand(1, 40000, 3)
    ids = torch.multinomial(logits[0, 0].softmax(-1), 40000, replacement=True)[None]
    noise = noise_given(logits, ids, gumbel_noise([40000], 3, [3]))
    assert float(((logits + noise).argmax(-1) == ids).double().mean()) > 0.9999
    for k in range(3):  # winners drawn from the softmax: over all of them the noise is plain Gumbel noise again
        one = noise[0, :, k]
        assert abs(float(one.mean()) - 0.5772) < 0.03 and abs(float(one.var()) - math.pi**2 / 6) < 0.08
    hard = relaxed_tokens(logits, noise, 1.0, True, ids)
    assert torch.equal(hard.argmax(-1), ids)
    far = noise_given(torch.tensor([[[0.0, 60.0]]]), torch.tensor([[0]]), gumbel_noise([1], 2, [0]))
    assert bool(far.isfinite().all())


def test_hard_is_exactly_one_hot_and_soft_sums_to_one() -> None:
    logits, noise = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)), gumbel_noise([3, 3], 6, [0, 1])
    hard, soft = (relaxed_tokens(logits, noise, 0.3, h) for h in (True, False))
    assert set(hard.unique().tolist()) == {0.0, 1.0} and torch.equal(hard.argmax(-1), soft.argmax(-1))
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, 3))
