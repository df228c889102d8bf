"""The gates of a flow policy: noise 0 is the ODE, ratio 1 and KL 0 at the start, rows that depend on nothing but themselves."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_flow import RATE, clips, disturb, policy, tiny_model
from torch.distributions import Independent, Normal, kl_divergence
from training import slope

from rlspeech.config import Exploration, Lora
from rlspeech.tasks import get_task
from rlspeech.tasks.flowse.policy import Enhancer, FlowPolicy, collate, latent
from rlspeech.tasks.gaussian import counted, normal, philox
from rlspeech.types import LogProb, Policy, Rollout, UserError

EARLY: dict[str, Any] = {"window": 2, "start": (1, 1), "nfe": (4, 4)}
ALL = {
    "sde": Exploration(kind="sde", noise=0.4, **EARLY),
    "cps": Exploration(kind="cps", noise=0.6, **EARLY),
    "dance": Exploration(kind="dance", noise=0.3, **EARLY),
    "gain": Exploration(kind="gain", noise=0.3, nfe=(3, 3)),
    "gain-early": Exploration(kind="gain", noise=0.3, segment_s=0.1, bands=6, **EARLY),
    "sde-alone": Exploration(kind="sde", noise=0.4, shared_latent=False, **EARLY),
    "gain-alone": Exploration(kind="gain", noise=0.3, nfe=(3, 3), shared_latent=False),
}
kinds = pytest.mark.parametrize("kind", list(ALL))


def _rows(rollout: Rollout) -> torch.Tensor:
    return torch.arange(len(rollout.group))


def _wavs(rollout: Rollout) -> np.ndarray:
    return np.stack([s.wav for s in rollout.samples])


@kinds
def test_shapes_and_protocol(kind: str) -> None:
    made = policy(ALL[kind])
    assert isinstance(made, Policy)
    rollout = made.rollout(clips(8000, 8000), group=4, seed=1)
    steps = ALL[kind].window
    assert rollout.group.tolist() == [0] * 4 + [1] * 4
    assert rollout.logp.shape == rollout.mask.shape == (8, steps) and rollout.logp.dtype == torch.float32
    assert bool(rollout.mask.all()) and bool(rollout.finished.all())
    assert [s.key for s in rollout.samples] == ["clip0"] * 4 + ["clip1"] * 4
    assert all(s.wav.shape == s.target.shape == (8000,) and np.isfinite(s.wav).all() for s in rollout.samples)
    look = made.log_prob(rollout, torch.tensor([5, 2, 3]), with_kl=True)
    assert isinstance(look, LogProb) and look.logp.shape == look.kl.shape == look.drift.shape == (3, steps)
    assert look.scale.shape == look.dt.shape == (steps,) and float(look.dt[0]) == pytest.approx(1 / ALL[kind].nfe[0])
    assert len(set(np.round(_wavs(rollout)[:, 4000], 7))) == 8  # they explore


@kinds
def test_noise_zero_is_the_ode_to_the_bit_at_the_same_batch_shape(kind: str) -> None:
    explore = ALL[kind].model_copy(update={"noise": 0.0, "shared_latent": False})
    made = policy(explore, seed=5)
    batch = clips(8000, 8000)
    rollout = made.rollout(batch, group=2, seed=11)
    rows = [(b.noisy, f"{b.draw}#{g}") for b in batch for g in range(2)]
    wanted = Enhancer(made.model, nfe=explore.nfe[0], seed=16).infer([w for w, _ in rows], [name for _, name in rows])
    assert np.array_equal(_wavs(rollout), np.stack(wanted))


GATES: list[tuple[str, dict[str, Any]]] = [(kind, {"reduction": r}) for kind in ALL for r in ("mean", "sum")]
for prior in ("standard", "noisy"):
    GATES += [("sde", {"prior": prior, "head": "linear", "prediction": "velocity"})]
    GATES += [("gain", {"prior": prior, "head": "linear", "prediction": "clean"})]


@pytest.mark.parametrize(("kind", "changes"), GATES, ids=str)
def test_ratio_one_and_kl_zero_before_the_first_update(kind: str, changes: dict[str, Any]) -> None:
    made = policy(ALL[kind], **changes)
    rollout = made.rollout(clips(8000, 8000), group=3, seed=1)
    look = made.log_prob(rollout, _rows(rollout), with_kl=True)
    gap = (look.logp - rollout.logp).abs().max().detach()
    assert float(gap) <= 1e-3
    assert float(look.kl.detach().abs().max()) == 0.0
    part = torch.cat([made.log_prob(rollout, rows, with_kl=False).logp for rows in _rows(rollout).split(2)])
    torch.testing.assert_close(part, look.logp, atol=1e-3, rtol=1e-4)  # another micro-batch, the same answer


@pytest.mark.parametrize("kind", ["sde", "cps", "dance", "gain", "gain-early"])
def test_log_ratio_and_kl_are_those_of_unit_gaussians(kind: str) -> None:
    """Of noise whose mean has moved by the kernel's ``shift``, from what the rollout stored; the reference is where it started."""
    made = policy(ALL[kind], lora=None, reduction="sum")
    rollout = made.rollout(clips(4000), group=4, seed=1)
    for step, after in itertools.pairwise(rollout.state):
        assert torch.equal(after.site.x, made.kernel.act(step.site, step.eps, step.states))
    disturb(made.parameters(), 0.003)
    with torch.no_grad():
        look = made.log_prob(rollout, _rows(rollout), with_kl=True)
        for i, d in enumerate(rollout.state):
            x1 = made.model.clean(d.site.x, d.site.y, d.site.t, d.site.mask)
            moved, on = made.kernel.shift(d.site, x1)[d.states].double(), d.active[d.states] > 0
            for row in range(4):
                eps, mean = d.eps[row][on[row]].double(), moved[row][on[row]]
                new, old = (Independent(Normal(m, torch.ones_like(mean)), 1) for m in (mean, 0 * mean))
                wanted = new.log_prob(eps) - old.log_prob(eps)
                assert float((look.logp - rollout.logp)[row, i]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)
                assert float(look.kl[row, i]) == pytest.approx(float(kl_divergence(new, old)), rel=1e-3, abs=1e-4)
        assert float((look.logp - rollout.logp).abs().max()) > 0.02
        torch.testing.assert_close(look.drift, look.kl, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["sde", "gain"])
def test_the_gradient_agrees_with_finite_differences(kind: str) -> None:
    made = policy(ALL[kind], lora=None, reduction="mean")
    rollout = made.rollout(clips(4000), group=2, seed=1)
    disturb(made.parameters(), 1e-3)
    weight = torch.tensor([[1.0], [-0.7]])

    def value() -> torch.Tensor:
        return (weight * (made.log_prob(rollout, _rows(rollout), with_kl=False).logp - rollout.logp)).sum()

    length, found = slope(value, made.parameters(), 2e-3)
    assert found == pytest.approx(length, rel=0.05)


@kinds
def test_rows_are_functions_of_seed_key_and_member(kind: str) -> None:
    made = policy(ALL[kind])
    first = made.rollout(clips(8000, 8000), group=4, seed=3)
    assert np.array_equal(_wavs(first), _wavs(made.rollout(clips(8000, 8000), group=4, seed=3)))
    assert np.abs(_wavs(first) - _wavs(made.rollout(clips(8000, 8000), group=4, seed=4))).max() > 1e-4
    other = policy(ALL[kind], seed=1).rollout(clips(8000, 8000), group=4, seed=3)
    assert np.abs(_wavs(first) - _wavs(other)).max() > 1e-4
    swapped = made.rollout(clips(8000, 8000)[::-1], group=4, seed=3)
    np.testing.assert_allclose(_wavs(swapped)[4:], _wavs(first)[:4], atol=2e-6)


@kinds
def test_a_padded_clip_is_rolled_out_as_if_alone(kind: str) -> None:
    """The latent, the noise, the spectrum's edges and the log-probability must not see that a batch mate is longer."""
    made = policy(ALL[kind])
    short = clips(5001, seed=7)
    alone, together = made.rollout(short, group=4, seed=3), made.rollout([*short, *clips(8000)], group=4, seed=3)
    for a, b in zip(alone.samples, together.samples[:4], strict=True):
        np.testing.assert_allclose(a.wav, b.wav, atol=2e-6)
    torch.testing.assert_close(alone.logp, together.logp[:4], atol=1e-5, rtol=1e-5)
    for d in together.state:
        eps = d.eps * (1 - d.active[d.states])
        assert float(eps.abs().max()) == 0  # no noise in the padding
    disturb(made.parameters(), 0.05)
    looks = [made.log_prob(r, torch.arange(4), with_kl=True) for r in (alone, together)]
    torch.testing.assert_close(looks[0].kl, looks[1].kl, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("group", [2, 5, 6])
def test_antithetic_pairs_are_mirrored(group: int) -> None:
    for antithetic in (True, False):
        made = policy(ALL["gain"].model_copy(update={"antithetic": antithetic}))
        eps = made.rollout(clips(4000), group=group, seed=2).state[0].eps
        half = group // 2
        assert torch.equal(eps[:half], -eps[group - half :]) is antithetic
        assert len({round(float(e.abs().sum()), 4) for e in eps}) == (group - half if antithetic else group)


def test_noise_is_standard_normal_and_independent_between_steps() -> None:
    made = policy(ALL["sde"].model_copy(update={"antithetic": False}))
    one, two = (d.eps.flatten() for d in made.rollout(clips(8000), group=8, seed=2).state)
    assert abs(float(one.mean())) < 0.01 and abs(float(one.std()) - 1) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.01


def test_windows() -> None:
    wide = policy(Exploration(kind="sde", window=2, start=(1, 3), nfe=(7, 10)))
    seen = [wide.schedule(np.random.default_rng(i)) for i in range(300)]
    assert {n for n, _ in seen} == {7, 8, 9, 10} and {w[0] for _, w in seen} == {1, 2, 3}
    assert all(len(w) == 2 for _, w in seen)
    for kind in ("sde", "dance", "gain", "cps"):
        for window in (1, 2, 3):
            nfe, steps = policy(Exploration(kind=kind, window=window, nfe=(4, 4))).schedule(np.random.default_rng(0))
            assert 0 not in steps and steps[-1] == (2 if kind == "cps" else 3) and nfe == 4
            assert len(steps) == (min(window, 2) if kind == "cps" else window)
    starts: list[dict[str, Any]] = [{"start": (0, 2)}, {"start": (1, 4)}, {"start": (3, 2)}]
    cps = [{"kind": "cps", "nfe": (1, 4)}, {"kind": "cps", "nfe": (4, 4), "start": (3, 3)}]
    for bad in [*starts, *cps, {"kind": "sde", "nfe": (1, 1)}, {"window": 5}]:
        with pytest.raises((UserError, ValueError)):
            policy(Exploration(**{"nfe": (4, 4), **bad}))
    # as many steps as the model takes
    assert policy(Exploration(), nfe=5).schedule(np.random.default_rng(0)) == (5, range(4, 5))


def test_no_step_of_cps_is_without_noise() -> None:
    """Its last step has none: a log-probability there would be infinite at the first movement of the weights."""
    made = policy(Exploration(kind="cps", noise=0.6, window=3, start=(1, 2), nfe=(4, 4)), reduction="mean")
    rollout = made.rollout(clips(4000), group=2, seed=0)
    disturb(made.parameters(), 1e-3)
    look = made.log_prob(rollout, _rows(rollout), with_kl=False)
    assert float((look.logp - rollout.logp).detach().abs().max()) < 1.0 and float(look.scale.min()) > 0.01


def test_the_beginning_of_a_draw_does_not_depend_on_its_length() -> None:
    for count in (1, 15, 16, 17, 514 * 3):
        assert torch.equal(normal(count, 4), normal(4000, 4)[:count])
    assert torch.equal(latent(["a"], 0, (5, 514))[0], latent(["b", "a"], 0, (9, 514))[1, :5])
    assert torch.equal(counted([4, 9, 7], 13, "cpu")[1:], counted([9, 7], 4002, "cpu")[:, :13])
    words = [int(w) for w in philox(torch.tensor([0]), torch.tensor([0]))]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # of the authors' known answers (Random123)
    draws = torch.stack([normal(100_000, 1), *counted([1, 2], 100_000, "cpu")])
    assert float(draws.mean(1).abs().max()) < 0.02 and float((draws.std(1) - 1).abs().max()) < 0.02
    assert float((draws.corrcoef() - torch.eye(3)).abs().max()) < 0.02
    assert float((draws.pow(4).mean(1) - 3).abs().max()) < 0.1


@pytest.mark.parametrize("samples", [(8000, 5001), (3000, 1), (4096, 4097), (16000, 700)])
def test_enhancement_does_not_depend_on_the_batch(samples: tuple[int, int]) -> None:
    enhancer = Enhancer(tiny_model(), nfe=3)
    batch = clips(*samples)
    together = enhancer.infer([c.noisy for c in batch], ["a", "b"])
    for clip, name, wav in zip(batch, "ab", together, strict=True):
        alone = enhancer.infer([clip.noisy], [name])[0]
        assert wav.shape == alone.shape == clip.noisy.shape
        np.testing.assert_allclose(wav, alone, atol=2e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(enhancer.infer([batch[0].noisy], ["other"])[0], together[0], atol=2e-6)


def test_output_levels_follow_the_input() -> None:
    enhancer = Enhancer(tiny_model(), nfe=2)
    noisy = clips(8000)[0].noisy
    a, b = enhancer.infer([noisy, noisy * 0.01], ["k", "k"])
    np.testing.assert_allclose(b * 100, a, atol=1e-3 * float(np.abs(a).max()))


def test_silence_stays_silence_and_gains_are_shared_with_the_target() -> None:
    model = tiny_model()
    silent = clips(4000)[0]
    silent.noisy = np.zeros(4000, np.float32)
    batch = collate([*clips(8000), silent], model)
    assert batch.gain[1] == 1.0 and batch.samples.tolist() == [8000, 4000] and float(batch.noisy[1].abs().max()) == 0
    loud = batch.noisy[0]
    assert 20 * math.log10(float(loud.square().mean().sqrt())) == pytest.approx(model.cfg.level_dbfs, abs=0.01)
    torch.testing.assert_close(batch.target[0] / batch.gain[0], torch.from_numpy(clips(8000)[0].target))
    assert Enhancer(model, nfe=2).infer([silent.noisy], ["s"])[0].shape == (4000,)


def test_tasks_by_name() -> None:
    assert get_task("flowse").name == "flowse"
    with pytest.raises(UserError, match="flowse"):
        get_task("karaoke")
    assert isinstance(policy(ALL["gain"], lora=Lora(rank=1)), FlowPolicy) and RATE == policy(ALL["gain"]).sample_rate
