"""The front of a flow: what it costs nothing to have, that padding is nothing to it, and that the flow builds on it."""

from __future__ import annotations

import pytest
import tiny_flow
import torch

from rlspeech.config import Exploration, Pretrain
from rlspeech.models.adapters import Adapted
from rlspeech.models.flow import magnitude
from rlspeech.models.predictor import Predictor
from rlspeech.models.spectra import frame_mask
from rlspeech.tasks.flowse.policy import FlowPolicy, collate, flow_loss
from rlspeech.types import UserError

FRONT = {"n_fft": 64, "hop": 32, "predictor": 8, "predictor_layers": 1, "prior": "predicted"}


def test_a_row_in_a_batch_is_as_alone_and_a_mask_turns_and_scales() -> None:
    torch.manual_seed(0)
    model, y, mask = Predictor(33, 8, 2), torch.randn(2, 12, 66), frame_mask(torch.tensor([12, 7]), 12)
    out = model(torch.where(mask[..., None], y, 100.0), mask)
    torch.testing.assert_close(out[1, :7], model(y[1:, :7])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out[:1], model(y[:1]), atol=1e-5, rtol=1e-4)
    assert not out[1, 7:].any() and bool((magnitude(out) <= 1.21 * magnitude(y) + 1e-3)[0].all())
    far = y[:1] + (torch.arange(12) == 11)[:, None]
    assert not torch.allclose(model(far)[:, 0], out[:1, 0], atol=1e-7)  # it hears the whole clip


def test_one_step_of_a_fresh_flow_is_the_predictor() -> None:
    model = tiny_flow.FlowEnhancer(tiny_flow.FlowModel(**{**tiny_flow.TINY, **FRONT}))
    y = torch.randn(2, 9, 66)
    given = model.condition(y)
    torch.testing.assert_close(model.ode(given, torch.randn(2, 9, 66), 1), model.predictor(y))
    assert model.prior_moments(given)[1] == model.cfg.prior_sigma and torch.equal(model.noisy(given), y)
    for wrong in ({"predictor": 0}, {"front_end": "mel", "head": "linear"}):
        with pytest.raises(UserError, match="predictor"):
            tiny_flow.FlowEnhancer(tiny_flow.FlowModel(**{**tiny_flow.TINY, **FRONT, **wrong}))


SHARES = [({"flow_weight": 0}, {True}), ({"predictor_weight": 0}, {False}), ({}, {True, False})]


@pytest.mark.parametrize(("weights", "trained"), SHARES)
def test_each_loss_trains_its_own_part(weights: dict[str, float], trained: set[bool]) -> None:
    model = tiny_flow.tiny_model(**FRONT).train()
    parts = flow_loss(model, collate(tiny_flow.clips(4000, 3000), model), Pretrain(**weights))
    torch.testing.assert_close(2 * parts["loss"], torch.stack([*parts.values()]).sum())
    parts["loss"].backward()
    named = model.named_parameters()
    assert {k.startswith("predictor") for k, p in named if p.grad is not None and p.grad.any()} == trained
    with pytest.raises(UserError, match="flow_weight"):
        flow_loss(bare := tiny_flow.tiny_model(), collate(tiny_flow.clips(4000), bare), Pretrain(flow_weight=0))


def test_regression_trains_the_flow_by_the_predictors_loss() -> None:
    settings = {**tiny_flow.TINY, **FRONT, "objective": "regression", "condition_drop": 0.0}
    model = tiny_flow.FlowEnhancer(tiny_flow.FlowModel(**settings))
    batch = collate(tiny_flow.clips(4000, 3000), model)
    parts = flow_loss(model, batch, Pretrain())
    torch.testing.assert_close(
        parts["flow"], parts["predictor"] + parts["si_sdr"], rtol=1e-4, atol=1e-6
    )  # a fresh flow is its predictor
    parts["loss"].backward()
    assert bool(model.out.weight.grad.any())
    with pytest.raises(UserError, match="regression"):
        tiny_flow.FlowEnhancer(tiny_flow.FlowModel(**settings | {"head": "linear", "prediction": "velocity"}))


@pytest.mark.parametrize("explore", [{"kind": "gain", "nfe": (1, 1)}, {"kind": "sde", "nfe": (3, 3), "start": (1, 1)}])
def test_a_policy_acts_on_the_flow_and_leaves_the_predictor(explore: dict[str, object]) -> None:
    adapted = Adapted(tiny_flow.tiny_model(**FRONT), None)
    policy = FlowPolicy(adapted, Exploration(**explore))  # type: ignore[arg-type]
    rollout = policy.rollout(tiny_flow.clips(4000, 3000), group=2, seed=0)
    found = policy.log_prob(rollout, torch.arange(4), with_kl=True)
    torch.testing.assert_close(found.logp.detach(), rollout.logp)
    found.logp.sum().backward()
    still = [p for k, p in adapted.model.named_parameters() if "predictor" in k]
    assert adapted.model.out.weight.grad is not None and not any(p.requires_grad for p in still)
