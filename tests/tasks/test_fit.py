"""How likely a policy says given outputs are: against its own log-probabilities, and against regression written here a second time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_asr_policy as asr
import test_tts_policy as tts
import tiny_flow
import torch
from tiny_avse import av_clips, av_policy
from training import Judge, algorithm, train

from rlspeech.config import RL, Exploration, RewardSpec
from rlspeech.data.batches import Clip, seed_of
from rlspeech.tasks.avse.enhancer import collate as collate_videos
from rlspeech.tasks.flowse.policy import collate, condition, encode, latent
from rlspeech.types import Sample

FLOWS = {"one step": 1, "three steps": 3}


def fitted(kind: str) -> tuple[Any, list[Clip]]:
    """A policy and its prompts, of several lengths."""
    if kind == "tts":
        return tts.policy(kl_beta=0.0, lora=None), tts.CLIPS
    if kind == "asr":
        return asr._policy("whisper", lora=None), asr._clips("whisper")
    if kind == "avse":
        return av_policy(Exploration(bands=4)), av_clips(6400, 4000)
    nfe = FLOWS[kind]
    explore = Exploration(nfe=(nfe, nfe), noise=0.3)
    return tiny_flow.policy(explore, None, head="linear", prediction="clean"), tiny_flow.clips(8000, 6000)


KINDS = ["tts", "asr", "avse", *FLOWS]


@pytest.mark.parametrize("kind", KINDS)
def test_fit_of_own_rollouts(kind: str) -> None:
    """A row is its own whatever stands beside it; the reference starts as the policy, and stays where it was."""
    policy, prompts = fitted(kind)
    assert "fit" in policy.supports
    made = policy.rollout(prompts, group=2, seed=1)
    owners = [prompts[p] for p in made.group.tolist()]
    whole = policy.fit(owners, made.samples, seed=1)
    assert whole.logp.shape == whole.size.shape == (len(owners),) and bool((whole.logp < 0).all())
    torch.testing.assert_close(whole.reference, whole.logp.detach())
    assert float(whole.kl.detach().abs().max()) < 1e-6
    for i in (0, len(owners) - 1):
        alone = policy.fit([owners[i]], [made.samples[i]], seed=1, reference=False)
        assert alone.reference is alone.kl is None and float(alone.size) == float(whole.size[i])
        torch.testing.assert_close(alone.logp[0], whole.logp[i], rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(whole.logp.sum(), policy.parameters(), allow_unused=True)
    assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0
    tiny_flow.disturb(policy.parameters(), 0.01)
    after = policy.fit(owners, made.samples, seed=1)
    torch.testing.assert_close(after.reference, whole.reference)
    assert float(after.kl.detach().min()) > 0 and not torch.allclose(after.logp, whole.logp, rtol=1e-3)


def test_tokens_are_those_of_the_rollout() -> None:
    policy, prompts = fitted("tts")
    made = policy.rollout(prompts, group=3, seed=2)
    owners = [prompts[p] for p in made.group.tolist()]
    found = policy.fit(owners, made.samples, seed=0)
    torch.testing.assert_close(found.logp, (made.logp * made.mask).sum(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.size, made.mask.sum(1).float())
    cut = [replace(s, finished=False) for s in made.samples]  # the stop is one decision
    assert torch.equal(policy.fit(owners, cut, seed=0, reference=False).size, found.size - made.finished.float())


def test_a_transcript_is_written_as_the_model_would() -> None:
    policy, prompts = fitted("asr")
    samples = [Sample(c.key, c.noisy, 16000, hypothesis=c.text) for c in prompts]
    ids, mask = policy.model.references([c.text or "" for c in prompts], None)
    logits = policy.model.forward_logits(policy._encode(prompts), torch.arange(len(prompts)), ids)
    logp = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    wanted = torch.where(mask & logp.isfinite(), logp, torch.zeros(())).sum(1)
    torch.testing.assert_close(policy.fit(prompts, samples, seed=0).logp, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_is_fitted_as_it_denoises(kind: str) -> None:
    policy, prompts = fitted(kind)
    (clip,), model, nfe = prompts[:1], policy.model, FLOWS[kind]
    outputs = [0.5 * clip.target, clip.noisy]
    found = policy.fit([clip, clip], [Sample(clip.key, w, tiny_flow.RATE) for w in outputs], seed=7, reference=False)
    data = collate([clip], model)
    y, _ = condition(model, data)
    x0, t = latent([clip.draw], 7, tuple(y.shape[1:])), seed_of(0, 7, clip.draw, "t") % nfe / nfe
    for wav, logp in zip(outputs, found.logp, strict=True):
        x1 = encode(model, torch.from_numpy(wav)[None] * data.gain[:, None], data.samples)
        predicted = model.clean((1 - t) * x0 + t * x1, y, t)
        wanted = -(predicted - x1).square().sum() / (2 * 0.3**2 * y.square().mean())
        torch.testing.assert_close(logp, wanted, rtol=1e-4, atol=0)
    assert found.size.tolist() == [y.numel()] * 2


def test_outputs_without_noise_are_learnt_from() -> None:
    """As AdvantageFlow has it: members of a group differ by their latents alone."""
    explore = Exploration(kind="sde", noise=0.0, window=1, start=(1, 1), nfe=(4, 4), shared_latent=False)
    policy = tiny_flow.policy(explore, None)
    policy.config = RL(algo="awr", rewards=[RewardSpec(name="si_sdr")], group=4, prompts_per_step=2, explore=explore)
    loud = Judge("si_sdr", lambda s: float(np.square(s.wav).mean()))
    rows = train(algorithm(policy, 1e-3), tiny_flow.clips(8000, 6000), loud, 2, lr=1e-3)
    assert all(r["grad_norm"] > 0 and r["skipped_updates"] == 0 for r in rows) and rows[1]["kl"] > 0


def test_a_mask_is_fitted_by_its_waveform() -> None:
    policy, prompts = fitted("avse")
    clip, wav = prompts[1], np.atleast_2d(prompts[1].target).mean(0)
    found = policy.fit([clip], [Sample(clip.key, wav[:3500], 16000)], seed=7, reference=False)
    data = collate_videos([clip], policy.model)
    mean = (policy.model.enhance(data.noisy, data.video, data.present, data.samples) / data.gain)[0].mean(0).detach()
    goal = torch.from_numpy(np.pad(wav[:3500], (0, 500)))
    gauss = torch.distributions.Normal(mean, 0.3 * goal.square().mean().sqrt())
    wanted = gauss.log_prob(goal) - gauss.log_prob(mean)
    torch.testing.assert_close(found.logp[0].detach(), wanted.sum(), rtol=1e-4, atol=0)
    assert float(found.size) == 4000
