"""Masks as decisions: noise and its probability, ratios, KL, groups, padding, the base, and the supervised loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_avse import av_clips, av_policy, tiny_avse
from tiny_flow import disturb
from torch.distributions import Normal, kl_divergence

from rlspeech.config import Exploration, Lora
from rlspeech.models.avse import si_snr
from rlspeech.tasks.avse.enhancer import AvInference
from rlspeech.tasks.avse.policy import GainKernel, filter_bands
from rlspeech.tasks.avse.task import Avse
from rlspeech.types import BasePolicy, CriticPolicy, Policy, UserError

GAIN = Exploration(kind="gain", noise=0.3, bands=4)
SHORT = Exploration(kind="gain", noise=0.3, bands=2, segment_s=0.1)
MASK = Exploration(kind="mask", noise=0.05, antithetic=False)
KINDS = pytest.mark.parametrize("explore", [GAIN, SHORT, MASK], ids=["gain", "gain-0.1s", "mask"])
ROWS = torch.arange(8)


@KINDS
def test_the_second_look_repeats_the_first(explore: Exploration) -> None:
    policy = av_policy(explore)
    assert isinstance(policy, Policy) and isinstance(policy, BasePolicy) and isinstance(policy, CriticPolicy)
    rollout = policy.rollout(av_clips(6400, 4000), group=4, seed=3)
    look = policy.log_prob(rollout, ROWS, with_kl=True)
    assert torch.allclose(look.logp, rollout.logp, atol=1e-5)
    assert look.kl is not None and float(look.kl.detach().abs().max()) == 0
    disturb(policy.parameters(), 0.01)
    moved = policy.log_prob(rollout, ROWS, with_kl=True)
    assert float((moved.logp - rollout.logp).detach().abs().min()) > 0 and moved.kl is not None
    assert float(moved.kl.detach().min()) > 0


@KINDS
def test_without_noise_a_sample_is_the_output(explore: Exploration) -> None:
    policy, clips = av_policy(explore.model_copy(update={"noise": 0.0})), av_clips(4000)
    made = policy.rollout(clips, group=2, seed=1).samples
    plain = AvInference(policy.model).infer([clips[0].noisy], ["x"], [clips[0].lips])[0]
    assert np.allclose(made[0].wav, plain, atol=1e-6) and np.allclose(made[1].wav, plain, atol=1e-6)


@KINDS
def test_noise_is_mirrored_and_depends_on_nothing_else(explore: Exploration) -> None:
    policy = av_policy(explore.model_copy(update={"antithetic": True}))
    clips = av_clips(6400, 4000)
    both, alone = policy.rollout(clips, group=4, seed=2), policy.rollout(clips[1:], group=4, seed=2)
    eps = both.state.eps
    assert torch.equal(eps[:2], -eps[2:4])
    assert np.allclose(both.samples[5].wav, alone.samples[1].wav, atol=1e-5)  # padding and neighbours change nothing
    assert torch.allclose(both.logp[4:], alone.logp, atol=1e-5)
    assert not np.allclose(both.samples[4].wav, policy.rollout(clips[1:], group=4, seed=9).samples[0].wav, atol=1e-4)


def test_the_projection_gives_back_the_noise() -> None:
    """A mask that moved by exactly one action lies exactly that action away."""
    model = tiny_avse(mask="softplus")  # never exactly 0: nothing is lost to the floor
    kernel, clip = GainKernel(model, GAIN), av_clips(6400)
    batch = Avse().collate(clip, model)
    old = model(batch.noisy, batch.video, batch.present)
    eps = torch.randn(1, kernel.active(old).shape[1], generator=torch.Generator().manual_seed(0)) * 0.2
    found = kernel.shift(old, kernel.act(old, old, eps))
    assert torch.allclose(found, eps, atol=2e-2) and float(eps.abs().max()) > 0.2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kl_of_the_published_gaussian(reduction: str) -> None:
    policy = av_policy(MASK, reduction=reduction)
    rollout = policy.rollout(av_clips(3200), group=2, seed=1)
    disturb(policy.parameters(), 0.01)
    data, before = rollout.state.batch, rollout.state.old.mask
    with torch.no_grad():
        new, old = (Normal(m, 0.05) for m in (policy.model(data.noisy, data.video, data.present).mask, before))
    wanted = kl_divergence(new, old).flatten()
    look = policy.log_prob(rollout, torch.tensor([0]), with_kl=True)
    assert look.kl is not None and look.kl_other is not None
    mean, total = wanted.mean(), wanted.sum()
    ours, other = (mean, total) if reduction == "mean" else (total, mean)
    assert torch.allclose(look.kl[0, 0], ours, rtol=1e-3) and torch.allclose(look.kl_other[0, 0], other, rtol=1e-3)
    action = old.mean + 0.05 * rollout.state.eps[0].view(1, -1, 1, 16).permute(0, 2, 3, 1)
    ratio = (new.log_prob(action) - old.log_prob(action)).flatten()
    wanted = ratio.mean() if reduction == "mean" else ratio.sum()
    assert torch.allclose((look.logp - rollout.logp[:1])[0, 0], wanted, rtol=1e-2, atol=1e-4)


@KINDS
def test_the_change_is_that_of_the_outputs(explore: Exploration) -> None:
    policy, clips = av_policy(explore), av_clips(6400, 4000)
    rollout, base = policy.rollout(clips, group=2, seed=1), policy.base(clips)
    disturb(policy.parameters(), 0.01)
    now = AvInference(policy.model).infer([c.noisy for c in clips], None, [c.lips for c in clips])
    wanted = [np.square(a - b.wav).sum() / np.square(b.wav).sum() for a, b in zip(now, base, strict=True)]
    look = policy.log_prob(rollout, torch.arange(4), with_kl=True)
    assert look.change is not None and look.change.requires_grad
    np.testing.assert_allclose(look.change.detach()[:, 0], np.repeat(wanted, 2), rtol=1e-3)
    assert policy.log_prob(rollout, torch.arange(4), with_kl=False).change is None


def test_a_clamped_mask_is_not_negative() -> None:
    free = av_policy(MASK.model_copy(update={"mask_clamp": False, "noise": 3.0}))
    cut = av_policy(MASK.model_copy(update={"noise": 3.0}))
    clips = av_clips(3200)
    one, two = (p.rollout(clips, group=2, seed=1) for p in (free, cut))
    assert torch.equal(one.logp, two.logp) and not np.allclose(one.samples[0].wav, two.samples[0].wav)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4, targets="all")], ids=["full", "lora"])
def test_base_stays_where_it_was(lora: Lora | None) -> None:
    policy, clips = av_policy(GAIN, lora), av_clips(4000, 3200)
    before = [s.wav for s in policy.base(clips)]
    disturb(policy.parameters(), 0.1)
    after = [s.wav for s in policy.base(clips)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    now = AvInference(policy.model).infer([clips[0].noisy], None, [clips[0].lips])[0]
    if lora is None:  # an adapter whose B is 0 has to move further to be heard
        assert not np.allclose(now, before[0], atol=1e-4)
    assert policy.base(clips)[0].target is not None


def test_supervised_is_si_snr_and_reaches_the_video() -> None:
    policy, clips = av_policy(GAIN), av_clips(6400, 4000)
    out = AvInference(policy.model).infer([c.noisy for c in clips], None, [c.lips for c in clips])
    each = [si_snr(torch.from_numpy(o), torch.from_numpy(c.target)).item() for o, c in zip(out, clips, strict=True)]
    loss = policy.supervised(clips)
    assert loss.item() == pytest.approx(-np.mean(each), abs=1e-3)
    loss.backward()
    assert float(policy.model.video.stem.weight.grad.abs().max()) > 0


@KINDS
def test_supervised_on_samples_hears_the_samples(explore: Exploration) -> None:
    policy, clips = av_policy(explore), av_clips(6400, 4000)
    rollout = policy.rollout(clips, group=2, seed=1)
    targets = [torch.from_numpy(c.target) for c in clips for _ in range(2)]
    each = [si_snr(torch.from_numpy(s.wav), t) for s, t in zip(rollout.samples, targets, strict=True)]
    loss = policy.supervised(clips, rollout=rollout, rows=torch.arange(4)).item()
    assert loss == pytest.approx(-np.mean([float(x.clamp_min(-30)) for x in each]), abs=1e-2)


def test_gradient_of_a_reward_on_loudness_turns_the_level_up() -> None:
    """Advantage = loudness of the sample: after some steps the noiseless output is louder."""
    policy, clips = av_policy(GAIN), av_clips(6400, 4000, 4800)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)

    def loudness() -> float:
        made = AvInference(policy.model).infer([c.noisy for c in clips], None, [c.lips for c in clips])
        return float(np.mean([np.square(w).mean() for w in made]))

    before = loudness()
    for step in range(12):
        rollout = policy.rollout(clips, group=8, seed=step)
        power = torch.tensor([float(np.log(np.square(s.wav).mean())) for s in rollout.samples]).view(3, 8)
        advantage = ((power - power.mean(1, keepdim=True)) / power.std(1, keepdim=True)).flatten()
        ratio = policy.log_prob(rollout, torch.arange(24), with_kl=False).logp[:, 0].exp() / rollout.logp[:, 0].exp()
        optimizer.zero_grad()
        (-ratio * advantage).mean().backward()
        optimizer.step()
    assert loudness() > 1.2 * before


def test_features_tell_clips_apart() -> None:
    policy = av_policy(GAIN)
    found = policy.features(policy.rollout(av_clips(6400, 4000), group=2, seed=1), torch.arange(4))
    assert found.shape[:2] == (4, 1) and torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert bool(torch.isfinite(found).all())


def test_bands_follow_the_filters() -> None:
    model = tiny_avse(seed=4)
    bands, centres = filter_bands(model, 4), model.centres_hz()
    assert torch.equal(bands.sum(1), torch.ones(16)) and torch.equal(bands.sum(0), torch.full((4,), 4.0))
    tops = [float(centres[bands[:, i] > 0].max()) for i in range(4)]
    lows = [float(centres[bands[:, i] > 0].min()) for i in range(4)]
    assert all(a <= b for a, b in zip(tops[:-1], lows[1:], strict=True))


@pytest.mark.parametrize("bad", [{"kind": "sde"}, {"kind": "gain", "bands": 17}], ids=["kind", "bands"])
def test_explorations_that_do_not_fit(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        av_policy(Exploration(**bad))


def test_silence_is_masked_out() -> None:
    policy, clips = av_policy(GAIN), av_clips(4000, 4000)
    clips[0].noisy[:] = 0
    rollout = policy.rollout(clips, group=2, seed=1)
    assert rollout.mask[:2].sum() == 0 and bool(rollout.mask[2:].all())
    assert bool(torch.isfinite(policy.log_prob(rollout, torch.arange(4), with_kl=True).logp).all())


def test_binaural_keeps_both_ears_in_step() -> None:
    policy = av_policy(GAIN, channels=2)
    rollout = policy.rollout(av_clips(4000), group=2, seed=1)
    assert rollout.samples[0].wav.shape == (4000,)
    assert torch.allclose(policy.log_prob(rollout, torch.arange(2), with_kl=False).logp, rollout.logp, atol=1e-5)
