"""The differentiable DNSMOS: equal to the scored one where nothing is altered, a gradient where it should be, null where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlspeech.config import RL, DiffRO
from rlspeech.rewards.soft import SoftDnsmos, altered, build_soft, resampled
from rlspeech.types import Relaxed, Sample, UserError

pytest.importorskip("speechmos")
RATE = 16000


def voice(seconds: float, seed: int = 0, rate: int = RATE) -> Tensor:
    t, rng = np.arange(int(seconds * rate)) / rate, np.random.default_rng(seed)
    wav = sum(np.sin(2 * np.pi * 130 * k * t + rng.uniform(0, 6)) / k for k in range(1, 30)) * (
        0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)
    )
    return torch.from_numpy((0.05 * wav + 0.005 * rng.standard_normal(len(t))).astype(np.float32))


def relaxed(*wavs: Tensor, seed: int = 0) -> tuple[Relaxed, list[Sample]]:
    soft = torch.nn.utils.rnn.pad_sequence(
        list(wavs), batch_first=True, padding_value=9.0
    )  # what is behind the end must not be heard
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(w), dtype=torch.bool) for w in wavs], batch_first=True)
    return Relaxed(soft.requires_grad_(), mask, seed=seed), [
        Sample(f"k{i}", w.detach().numpy(), RATE) for i, w in enumerate(wavs)
    ]


def test_one_copy_is_the_score_of_the_clip_as_it_is() -> None:
    from rlspeech.rewards.dnsmos import FastDnsmos

    made, samples = relaxed(voice(1.0), voice(0.8, 1))
    soft = SoftDnsmos(copies=1)
    value = soft.score_soft(made, samples)
    fast = [row["dnsmos_fast_ovrl"].value for row in FastDnsmos(engine="torch").compute(samples, ["dnsmos_fast_ovrl"])]
    torch.testing.assert_close(value.detach(), torch.tensor(fast, dtype=torch.float32), atol=2e-3, rtol=0)
    assert soft.last["dnsmos_ovrl"] == pytest.approx(float(value.detach().mean()))
    grad = torch.autograd.grad(value.sum(), made.soft)[0]
    assert float(grad[0].abs().sum()) > 0 and float(grad[1, 12800:].abs().max()) == 0


def test_copies_are_functions_of_seed_and_key_alone_and_near_the_clip() -> None:
    wav = voice(1.0)
    one, two = altered(wav, [3, 4]), altered(wav, [4])
    assert torch.equal(one[1], two[0]) and not torch.equal(one[0], one[1]) and one.shape == (2, 14400)
    soft = SoftDnsmos(copies=3)
    made, samples = relaxed(wav, voice(1.0, 1))
    together, other = soft.score_soft(made, samples).detach(), soft.score_soft(made._replace(seed=1), samples).detach()
    alone = soft.score_soft(*relaxed(wav)).detach()
    torch.testing.assert_close(together[:1], alone)
    assert not torch.equal(together, other) and float((together - other).abs().max()) < 1.0


def test_gain_earns_nothing() -> None:
    made, samples = relaxed(voice(1.0))
    soft = SoftDnsmos(copies=2)
    loud = made._replace(soft=(0.3 * made.soft.detach()).requires_grad_())
    torch.testing.assert_close(
        soft.score_soft(made, samples).detach(), soft.score_soft(loud, samples).detach(), atol=1e-3, rtol=0
    )


def test_what_cannot_be_scored_is_nan_and_spoils_no_gradient() -> None:
    made, samples = relaxed(voice(1.0), torch.zeros(RATE), voice(0.1))
    value = SoftDnsmos(copies=2).score_soft(made, samples)
    assert value.isnan().tolist() == [False, True, True]
    grad = torch.autograd.grad(torch.where(value.isfinite(), value, 0.0).sum(), made.soft)[0]
    assert bool(grad.isfinite().all()) and float(grad[0].abs().sum()) > 0 and float(grad[1:].abs().max()) == 0


def test_other_rates_are_brought_to_16_khz() -> None:
    t = torch.arange(24000) / 24000
    low = torch.sin(2 * torch.pi * 440 * t)
    there = resampled(low, 24000)
    torch.testing.assert_close(there, torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000), atol=1e-3, rtol=0)
    assert len(resampled(low, 8000)) == 48000 and resampled(low, 16000) is low


def test_by_task() -> None:
    made = build_soft(RL(task="avse", algo="diffro", diffro=DiffRO(smooth=2)))
    assert isinstance(made, SoftDnsmos) and made.copies == 2 and not any(p.requires_grad for p in made.net.parameters())
    with pytest.raises(UserError, match="pesq"):
        build_soft(RL(task="flowse", algo="diffro", diffro=DiffRO(reward="pesq")))
