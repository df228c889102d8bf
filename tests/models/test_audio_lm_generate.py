"""Drawing from a distribution: the frequencies are the probabilities, and a row's numbers are its own."""

from __future__ import annotations

import torch

from rlspeech.config import Sampling
from rlspeech.models.audio_lm.generate import sample_tokens, uniforms


def _logits(v: int = 40) -> torch.Tensor:
    return 3 * torch.randn(v, generator=torch.Generator().manual_seed(0))


def test_frequencies_are_probabilities() -> None:
    logits, n = _logits(), 20000
    u = (torch.arange(n, dtype=torch.double) + 0.5) / n
    for temperature in (0.5, 1.0, 2.0):
        counts = torch.bincount(sample_tokens(logits.expand(n, -1), Sampling(temperature=temperature), u), minlength=40)
        assert float((counts - n * (logits / temperature).softmax(0)).abs().max()) <= 1.01


def test_truncation_keeps_the_likeliest() -> None:
    logits, n = _logits(), 5000
    u = (torch.arange(n, dtype=torch.double) + 0.5) / n
    p = logits.softmax(0)
    order = p.argsort(descending=True)
    top = sample_tokens(logits.expand(n, -1), Sampling(top_k=3), u)
    assert set(top.tolist()) == set(order[:3].tolist())
    nucleus = set(sample_tokens(logits.expand(n, -1), Sampling(top_p=0.8), u).tolist())
    size = int((p[order].cumsum(0) < 0.8).sum()) + 1  # the smallest set that holds as much
    assert nucleus == set(order[:size].tolist())
    best = sample_tokens(logits[None], Sampling(top_k=1), torch.tensor([0.999999]))
    assert best == sample_tokens(logits[None], None, None) == order[0]


def test_rare_tokens_of_a_large_vocabulary_are_drawn() -> None:
    logits = torch.zeros(200_000)
    logits[0] = 30.0  # each of the others has 1e-13: sums in single precision would never reach them
    u = torch.tensor([1 - 1e-8], dtype=torch.double)
    assert 90_000 < sample_tokens(logits[None], Sampling(), u).item() < 96_000


def test_extreme_numbers_stay_in_the_vocabulary() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[:, 3] = 0.0
    assert sample_tokens(logits, Sampling(), torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)).tolist() == [3, 3]


def test_a_rows_numbers_hang_on_seed_prompt_and_place() -> None:
    whole = uniforms(3, 4, 10, 7)
    assert whole.shape == (12, 10) and len({tuple(r) for r in whole.tolist()}) == 12
    assert torch.equal(whole, uniforms(3, 4, 10, 7)) and not torch.equal(whole, uniforms(3, 4, 10, 8))
    assert torch.equal(uniforms(3, 4, 25, 7)[:, :10], whole)  # a longer limit changes no token before it
    assert torch.equal(uniforms(5, 2, 10, 7)[:6:2], whole[::4][:3])  # nor do a smaller group or more prompts
    chosen = uniforms(2, 2, 10, [4, 9])
    assert torch.equal(chosen[2:], uniforms(1, 2, 10, [9])) and uniforms(0, 3, 5, 1).shape == (0, 5)
