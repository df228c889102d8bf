"""PPO and its control on the flow policy: the base's output, the critic's features, the supervised loss, and two steps of each form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_flow import SMALL, clips, disturb, policy
from training import Judge

from rlspeech.algos import get_algorithm
from rlspeech.algos.math import flat_gradient
from rlspeech.config import PPO, RL, Exploration, Lora, RewardSpec
from rlspeech.tasks.flowse.policy import FlowPolicy, collate, condition, encode

EARLY: dict[str, Any] = {"window": 2, "start": (1, 1), "nfe": (4, 4)}
GAIN = Exploration(kind="gain", noise=0.3, nfe=(2, 3))
SDE = Exploration(kind="sde", noise=0.4, **EARLY)
KINDS = [GAIN, SDE, GAIN.model_copy(update={"shared_latent": False, "nfe": (3, 3)})]


def _silent(made: FlowPolicy, seed: int, group: int = 1) -> list[np.ndarray]:
    """Rollouts of the same policy at noise 0."""
    quiet = FlowPolicy(made.adapted, made.explore.model_copy(update={"noise": 0.0}), seed=made.seed)
    return [s.wav for s in quiet.rollout(clips(8000, 5001), group=group, seed=seed).samples]


@pytest.mark.parametrize("lora", [SMALL, None], ids=["lora", "whole"])
@pytest.mark.parametrize("explore", KINDS, ids=["gain", "sde", "alone"])
def test_the_base_is_the_noiseless_rollout_of_where_it_started(explore: Exploration, lora: Lora | None) -> None:
    made = policy(explore, lora=lora, seed=5)
    batch = clips(8000, 5001)
    before = made.base(batch, seed=11)
    for sample, wav, clip in zip(before, _silent(made, 11), batch, strict=True):
        assert sample.key == clip.key and sample.wav.shape == clip.noisy.shape and sample.target is clip.target
        np.testing.assert_allclose(sample.wav, wav, atol=1e-5)
    assert np.abs(made.base(batch, seed=12)[0].wav - before[0].wav).max() > 1e-4  # another collection, another start
    disturb(made.parameters(), 0.1)
    after = made.base(batch, seed=11)
    # it does not move with the weights
    assert all(np.array_equal(a.wav, b.wav) for a, b in zip(before, after, strict=True))
    assert np.abs(_silent(made, 11)[0] - before[0].wav).max() > 3e-5
    assert np.array_equal(made.base(batch)[0].wav, made.base(batch)[0].wav)
    alone = made.base(batch[1:], seed=11)[0].wav
    np.testing.assert_allclose(alone, before[1].wav, atol=1e-5)


@pytest.mark.parametrize("explore", KINDS, ids=["gain", "sde", "alone"])
def test_features_tell_states_apart_and_hang_on_nothing_else(explore: Exploration) -> None:
    made = policy(explore)
    batch = clips(8000, 5001)
    batch[1].noisy = batch[1].noisy + 0.2 * np.random.default_rng(0).standard_normal(5001).astype(np.float32)
    rollout = made.rollout(batch, group=2, seed=1)
    found = made.features(rollout, torch.arange(4))
    assert found.shape[:2] == rollout.mask.shape and found.dtype == torch.float32 and not found.requires_grad
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(made.features(rollout, torch.tensor([3, 0])), found[[3, 0]])
    assert float((found[0] - found[2]).abs().max()) > 0.1  # prompts differ
    alone = made.rollout(batch[1:], group=2, seed=1)
    # whatever the padding
    torch.testing.assert_close(made.features(alone, torch.arange(2)), found[2:], atol=1e-3, rtol=1e-3)
    for i, d in enumerate(rollout.state):
        assert found[:, i, 0].tolist() == pytest.approx([d.site.t] * 4)
        assert found[:, i, 1].tolist() == pytest.approx([d.site.dt] * 4)
    disturb(made.parameters(), 0.05)
    assert torch.equal(made.features(rollout, torch.arange(4)), found)  # of the stored state: no pass of the network
    if rollout.mask.shape[1] > 1:
        assert not torch.equal(found[0, 1], found[1, 1])  # after the first noise the group's states differ


def test_features_are_the_means_that_they_say() -> None:
    made = policy(GAIN)
    rollout = made.rollout(clips(8000), group=2, seed=1)
    site, found = rollout.state[0].site, made.features(rollout, torch.arange(2))[0, 0]
    half = site.y.shape[2] // 2
    spectra = [v[0].numpy() for v in (site.y, site.x, site.x1)]
    logs = [np.log(np.hypot(v[:, :half], v[:, half:]).clip(1e-3)) for v in spectra]
    logs.append(logs[2] - logs[0])
    wanted = [v for log in logs for v in (log.mean(), log.std())]
    wanted += [part.mean() for part in np.array_split(logs[3], 4, axis=1)]
    np.testing.assert_allclose(found[2:].numpy(), wanted, rtol=1e-3, atol=1e-3)


def test_a_mel_policy_has_features_and_a_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # needs a vocoder, which the features do not
    monkeypatch.setattr("rlspeech.tasks.flowse.policy.decode", lambda model, x, n: torch.zeros(len(x), int(n.max())))
    made = policy(SDE, front_end="mel", head="linear")
    rollout, rows = made.rollout(clips(8000), group=2, seed=1), torch.arange(2)
    found = made.features(rollout, rows)
    assert bool(torch.isfinite(found).all()) and found.shape[:2] == (2, 2)
    assert float(found[0, 0, 2]) == pytest.approx(float(rollout.state[0].site.y[0].mean()), rel=1e-3)
    assert float(made.log_prob(rollout, rows, with_kl=True).change.detach().max()) == 0
    disturb(made.parameters(), 0.05)
    assert float(made.log_prob(rollout, rows, with_kl=True).change.detach().min()) > 0


def test_the_supervised_loss_is_that_of_pretraining() -> None:
    made, batch = policy(GAIN), clips(8000, 5001)
    data = collate(batch, made.model)
    x1, y = encode(made.model, data.target, data.samples), encode(made.model, data.noisy, data.samples)
    torch.manual_seed(4)
    wanted = made.model.loss(x1, y, condition(made.model, data)[1], 0.5, data.target)["loss"]
    torch.manual_seed(4)
    loss = made.supervised(batch)
    torch.testing.assert_close(loss, wanted)
    assert bool(flat_gradient(loss, made.parameters()).any())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_kls_come_back(reduction: str) -> None:
    made = policy(SDE, reduction=reduction)
    other = policy(SDE, reduction="sum" if reduction == "mean" else "mean")
    rollout, rows = made.rollout(clips(8000, 5001), group=2, seed=1), torch.arange(4)
    for p in (made, other):
        disturb(p.parameters(), 0.02)
    with torch.no_grad():
        look, seen = (p.log_prob(rollout, rows, with_kl=True) for p in (made, other))
    torch.testing.assert_close(look.kl_other, seen.kl.detach())
    torch.testing.assert_close(look.kl.detach(), seen.kl_other)
    big, small = (look.kl_other, look.kl) if reduction == "mean" else (look.kl, look.kl_other)
    assert float(big.min()) > 100 * float(small.max()) > 0
    assert made.log_prob(rollout, rows, with_kl=False).kl_other is None


def test_phases_that_no_kl_knows_change_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """All phases at random: the KL of eight gains is 0; strangers of half the energy (overlapping windows cancel) are 1.5 apart."""
    made = policy(GAIN, nfe=1)
    rollout, rows = made.rollout(clips(8000, 5001), group=2, seed=1), torch.arange(4)
    plain, calls = made.model.clean, []

    def redrawn(*given: Any) -> torch.Tensor:
        calls.append(len(calls))
        x1 = plain(*given)
        if len(calls) > 1:  # the reference's
            return x1
        spec, g = made.model.front.unpack(x1), torch.Generator().manual_seed(2)
        turn = torch.exp(2j * torch.pi * torch.rand(spec.shape, generator=g))
        return made.model.front.pack(spec * turn)

    monkeypatch.setattr(made.model, "clean", redrawn)
    look = made.log_prob(rollout, rows, with_kl=True)
    assert look.kl is not None and look.change is not None
    assert float(look.kl.detach().max()) < 1e-9
    assert look.change.detach().numpy() == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize("lora", [SMALL, None], ids=["lora", "whole"])
def test_the_change_is_that_of_the_outputs(lora: Lora | None) -> None:
    made, batch = policy(GAIN.model_copy(update={"nfe": (1, 1)}), lora=lora), clips(8000, 5001)
    rollout, rows = made.rollout(batch, group=2, seed=1), torch.arange(4)
    disturb(made.parameters(), 0.5 if lora else 0.05)
    pairs = zip(_silent(made, 1), made.base(batch, seed=1), strict=True)
    wanted = [np.square(a - b.wav).sum() / np.square(b.wav).sum() for a, b in pairs]
    change = made.log_prob(rollout, rows, with_kl=True).change
    assert change is not None and min(wanted) > 1e-4
    np.testing.assert_allclose(change.detach()[::2, 0], wanted, rtol=0.1)  # but for half a window at the end
    pull, size = flat_gradient(change.sum(), made.parameters()), [p.numel() for p in made.parameters()]
    for p, step in zip(made.parameters(), pull.split(size), strict=True):
        p.data -= 1e-3 * step.view_as(p) / pull.norm()
    nearer = made.log_prob(rollout, rows, with_kl=True).change
    assert nearer is not None
    assert float((nearer - change).detach().sum()) == pytest.approx(-1e-3 * float(pull.norm()), rel=0.1)


# louder is better: something that the gains reach at once
LOUD = Judge("si_sdr", lambda s: float(10 * np.log10(np.square(s.wav).mean() + 1e-9)))
FORMS: list[dict[str, Any]] = [{"form": "relative"}, {"form": "relative", "kl_in": "loss"}, {"form": "critic"}]


@pytest.mark.parametrize("ppo", FORMS, ids=str)
@pytest.mark.parametrize("explore", KINDS[:2], ids=["gain", "sde"])
def test_ppo_trains_a_flow_policy(ppo: dict[str, Any], explore: Exploration) -> None:
    made = policy(explore)
    how = {"rewards": [RewardSpec(name=LOUD.name, scale="none")], "group": 1, "prompts_per_step": 4, "micro_batch": 2}
    how |= {"epochs": 2, "kl_beta": 1e-3, "clip_range": 0.1, "supervised_weight": 0.1}
    config = RL(algo="ppo", ppo=PPO(**ppo), **how)
    algo = get_algorithm(config, made, torch.optim.AdamW(made.parameters(), 1e-3))
    start, batch = [p.detach().clone() for p in made.parameters()], clips(8000, 5001, 8000, 6000)
    rows = []
    for step in range(2):
        experience = algo.collect(batch, LOUD, seed=step)
        rows.append(algo.update(experience, lr=1e-3))
        assert bool(torch.isfinite(experience.advantage.value).all())
        assert float(experience.advantage.value.abs().max()) > 0
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4) and rows[1]["kl"] > 0 and rows[1]["kl_other"] > 0
    numbers = [[r[k] for r in rows] for k in ("supervised_loss", "grad_norm", "ratio_mean", "kl_old")]
    assert np.isfinite(numbers).all()
    assert rows[0]["ratio_max_gap"] > 0 and algo.checked  # the first pass was on policy, the second was not
    assert any(not torch.equal(a, p) for a, p in zip(start, made.parameters(), strict=True))
    assert ("reward_relative" in rows[0]) is (ppo["form"] == "relative") is not ("value_loss" in rows[0])
