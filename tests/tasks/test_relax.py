"""Enhancers relaxed: at the weights that acted they are the rollout, with the gradient of finite differences and a KL that sees all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_avse import av_clips, tiny_avse
from tiny_flow import SMALL, clips, disturb, tiny_model
from torch import Tensor
from training import Judge, algorithm, slope, train

from rlspeech.algos.math import flat_gradient
from rlspeech.config import RL, DiffRO, Exploration, Lora, RewardSpec
from rlspeech.models.adapters import Adapted
from rlspeech.rewards.soft import SoftMix
from rlspeech.tasks.avse.task import Avse
from rlspeech.tasks.flowse.task import FlowSE
from rlspeech.tasks.gaussian import distance
from rlspeech.types import UserError

BANDS = Exploration(bands=4)
GAIN = Exploration(kind="gain", noise=0.3, nfe=(4, 4), bands=4)
FLOWS: dict[str, tuple[Exploration, int]] = {
    "gain, one step": (GAIN, 1),
    "gain, three steps": (GAIN, 3),
    "gain, all steps": (GAIN, 4),
    "gain in the middle": (GAIN.model_copy(update={"start": (1, 1), "window": 2}), 4),
    "steps behind the noise": (GAIN.model_copy(update={"start": (1, 1)}), 1),
    "own latents": (GAIN.model_copy(update={"shared_latent": False}), 2),
    "sde": (Exploration(kind="sde", noise=0.4, window=2, start=(1, 1), nfe=(4, 4)), 3),
    "dance": (Exploration(kind="dance", noise=0.3, nfe=(4, 4)), 2),
    "cps": (Exploration(kind="cps", noise=0.4, nfe=(4, 4)), 3),
}


def flow(explore: Exploration = GAIN, last_steps: int = 1, lora: Lora | None = SMALL, **changes: Any) -> Any:
    model = tiny_model(**changes)
    torch.manual_seed(3)
    config = RL(algo="diffro", explore=explore, diffro=DiffRO(last_steps=last_steps))
    return FlowSE().policy(Adapted(model, lora), config)


def avse(explore: Exploration = BANDS, **changes: Any) -> Any:
    return Avse().policy(Adapted(tiny_avse(**changes), None), RL(algo="diffro", task="avse", explore=explore))


def gap(policy: Any, rollout: Any, rows: Tensor) -> float:
    with torch.no_grad():
        made = policy.relax(rollout, rows, tau=1.0, hard=True, seed=0)
    worst = 0.0
    for wav, mask, i in zip(made.soft, made.mask, rows.tolist(), strict=True):
        own = rollout.samples[i].wav
        assert int(mask.sum()) == len(own) and not mask[len(own) :].any()
        worst = max(worst, float(np.abs(wav[: len(own)].numpy() - own).max()))
    return worst


@pytest.mark.parametrize("case", FLOWS)
def test_a_relaxed_flow_is_its_rollout(case: str) -> None:
    explore, steps = FLOWS[case]
    policy = flow(explore, steps)
    assert "relax" in policy.supports
    rollout = policy.rollout(clips(6400, 8000), group=3, seed=1)
    assert gap(policy, rollout, torch.tensor([0, 2, 3, 4])) < 1e-5
    disturb(policy.parameters(), 0.1)
    assert gap(policy, rollout, torch.tensor([0, 2, 3, 4])) > 1e-4  # and follows its weights


@pytest.mark.parametrize("explore", [Exploration(bands=4), Exploration(kind="mask", noise=0.05)], ids=["gain", "mask"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_relaxed_mask_is_its_rollout(explore: Exploration, channels: int) -> None:
    policy = avse(explore, channels=channels)
    rollout = policy.rollout(av_clips(6400, 8000), group=2, seed=1)
    assert gap(policy, rollout, torch.tensor([0, 3])) < 1e-5
    disturb(policy.parameters(), 0.05)
    assert gap(policy, rollout, torch.tensor([0, 3])) > 1e-4


def pull(policy: Any, rollout: Any, rows: Tensor) -> Tensor:
    """A number with gradient: energy, and the KL."""
    made = policy.relax(rollout, rows, tau=1.0, hard=True, seed=0, with_kl=True)
    return 10 * (made.soft.square() * made.mask).sum() + made.kl.mean()


CASES = {"gain": ("flow", *FLOWS["gain, three steps"]), "sde": ("flow", *FLOWS["sde"]), "avse": ("avse", BANDS, 1)}


@pytest.mark.parametrize(("name", "explore", "steps"), CASES.values(), ids=CASES)
def test_the_gradient_is_that_of_finite_differences(name: str, explore: Exploration, steps: int) -> None:
    # a softplus has no kinks
    policy: Any = flow(explore, steps, lora=None) if name == "flow" else avse(explore, mask="softplus")
    rollout = policy.rollout(av_clips(4800, 6400), group=2, seed=1)
    disturb(policy.parameters(), 0.02)
    length, found = slope(lambda: pull(policy, rollout, torch.tensor([0, 1, 3])), policy.parameters(), 1e-3)
    assert length == pytest.approx(found, rel=0.02) and found > 0


def test_more_steps_have_another_gradient_of_the_same_output() -> None:
    made = []
    for steps in (1, 3):
        policy = flow(GAIN, steps, lora=None)
        rollout = policy.rollout(clips(6400), group=2, seed=1)
        out = policy.relax(rollout, torch.arange(2), tau=1.0, hard=True, seed=0)
        made.append((out.soft.detach(), flat_gradient(out.soft.square().sum(), policy.parameters())))
    torch.testing.assert_close(made[0][0], made[1][0], atol=1e-5, rtol=1e-4)
    assert float((made[0][1] - made[1][1]).norm()) > 1e-3 * float(made[0][1].norm())


@pytest.mark.parametrize("name", ["flow", "avse"])
def test_the_kl_is_that_of_the_waveforms(name: str) -> None:
    policy: Any = flow(lora=None) if name == "flow" else avse()
    rollout = policy.rollout(av_clips(6400, 8000), group=2, seed=1)
    rows = torch.arange(4)
    assert float(policy.log_prob(rollout, rows, with_kl=True).kl.detach().abs().max()) < 1e-9
    disturb(policy.parameters(), 0.05)
    made = policy.relax(rollout, rows, tau=1.0, hard=True, seed=0, with_kl=True)
    look = policy.log_prob(rollout, rows, with_kl=True)
    assert made.kl.shape == look.logp.shape == rollout.logp.shape and float(made.kl.detach().min()) > 0
    torch.testing.assert_close(made.kl, look.kl)
    assert policy.log_prob(rollout, rows, with_kl=False).kl is None


def test_the_change_in_numbers() -> None:
    w = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1000, dtype=torch.bool)
    mask[1, 500:] = False
    off = w + torch.where(mask, 0.1, 7.0) * w  # 20 dB below, and anything behind the end
    torch.testing.assert_close(distance(off, w, mask), torch.full((2,), 0.01))
    assert float(distance(w, w, mask).max()) == 0
    assert bool(distance(w, torch.zeros_like(w), mask).isfinite().all())


def test_followed_rewards_weigh_as_much_as_their_gradients_agree() -> None:
    """What is asked to get worse agrees as much as it disagreed."""
    found = []
    for sign in (1.0, -1.0):
        rewards = [RewardSpec(name=n, weight=w, scale="none") for n, w in (("si_sdr", 2.0), ("lsd", sign))]
        config = RL(algo="diffro", explore=GAIN, rewards=rewards, weights="agreement", group=1, prompts_per_step=2)
        policy, soft = flow(lora=None), SoftMix(rewards, 1)
        policy.config = config
        row = train(algorithm(policy, soft=soft), clips(6400, 8000), Judge("si_sdr", lambda s: 0.0), 1)[0]
        assert [s.weight for s in soft.specs] == [2.0, row["weight/lsd"]] and row["grad_norm"] > 0
        assert row["weight/lsd"] == pytest.approx(sign * max(0.0, row["agreement/lsd"]))
        found.append(row["agreement/lsd"])
    assert found[0] == pytest.approx(-found[1], rel=1e-2) and abs(found[0]) > 1e-3


def test_what_does_not_go() -> None:
    with pytest.raises(UserError, match="5 last steps"):
        flow(GAIN, 5)
    for make in (flow, avse):
        with pytest.raises(UserError, match="explore.noise"):
            make(Exploration(noise=0.0))
