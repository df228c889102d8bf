"""The flow enhancer: exact sizes, padding, and what its solver integrates."""

from __future__ import annotations

import math
from functools import partial

import pytest
import tiny_flow
import torch

from rlspeech.config import FlowModel
from rlspeech.models.flow import Attention, Block, FlowEnhancer, TimeEmbedding, euler, rotary
from rlspeech.models.spectra import frame_mask
from rlspeech.types import UserError

SIZES = {"depth": 2, "n_fft": 64, "hop": 32}
TINY, tiny = tiny_flow.TINY | SIZES, partial(tiny_flow.tiny_model, std=0.1, **SIZES)


def test_a_fresh_model_is_the_identity_with_a_mask_head_and_silent_with_a_linear_one() -> None:
    y, x, t = torch.randn(2, 9, 66), torch.randn(2, 9, 66), torch.rand(2)
    torch.testing.assert_close(FlowEnhancer(FlowModel(**TINY))(x, y, t), y)
    assert float(FlowEnhancer(FlowModel(**TINY, head="linear"))(x, y, t).detach().abs().max()) == 0


@pytest.mark.parametrize("head", ["mask", "linear"])
def test_padding_does_not_change_real_frames(head: str) -> None:
    model = tiny(head=head)
    x, y, t = torch.randn(2, 14, 66), torch.randn(2, 14, 66), torch.rand(2)
    mask = frame_mask(torch.tensor([14, 9]), 14)
    junk = torch.where(mask[..., None], 0.0, 100.0)
    out = model(x + junk, y + junk, t, mask)
    alone = model(x[1:, :9], y[1:, :9], t[1:])
    torch.testing.assert_close(out[1:, :9], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out[:1], model(x[:1], y[:1], t[:1]), atol=1e-5, rtol=1e-4)
    assert float(out[1, 9:].detach().abs().max()) == 0
    assert frame_mask(torch.tensor([5, 5]), 5) is None


def test_every_input_counts() -> None:
    model = tiny()
    x, y, t = torch.randn(1, 8, 66), torch.randn(1, 8, 66), torch.tensor([0.3])
    base = model(x, y, t)
    assert not torch.allclose(base, model(x + 0.1, y, t)) and not torch.allclose(base, model(x, y, t + 0.3))
    far = y.clone()
    far[:, 7] += 1.0
    assert not torch.allclose(base[:, 0], model(x, far, t)[:, 0], atol=1e-7)  # attention reaches the other end


def test_dropping_the_condition_equals_an_empty_one() -> None:
    model = tiny(head="linear")
    x, y, t = torch.randn(2, 6, 66), torch.randn(2, 6, 66), torch.rand(2)
    out = model(x, y, t, drop=torch.tensor([True, False]))
    torch.testing.assert_close(out[0], model(x, torch.zeros_like(y), t)[0])
    torch.testing.assert_close(out[1], model(x, y, t)[1])


def test_guidance() -> None:
    model = tiny()
    x, y = torch.randn(2, 6, 66), torch.randn(2, 6, 66)
    plain, blind = model.clean(x, y, 0.4), model(x, y, torch.full((2,), 0.4), drop=torch.ones(2, dtype=torch.bool))
    assert torch.equal(model.clean(x, y, 0.4, guidance=0.0), plain)
    torch.testing.assert_close(model.clean(x, y, 0.4, guidance=0.5), 1.5 * plain - 0.5 * blind)
    velocity = tiny(head="linear", prediction="velocity")
    one, two = velocity.clean(x, y, 0.4), velocity.clean(x, y, 0.4, guidance=2.0)
    v_seen, v_blind = velocity(x, y, torch.full((2,), 0.4)), velocity(x, torch.zeros_like(y), torch.full((2,), 0.4))
    torch.testing.assert_close(two - one, 0.6 * 2.0 * (v_seen - v_blind))


def test_attention_is_relative_and_matches_the_textbook_without_positions() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2)
    x, rope = torch.randn(1, 7, 16), rotary(12, 8, torch.device("cpu"))
    early, late = (tuple(r[s : s + 7] for r in rope) for s in (0, 5))
    # shift of every position
    torch.testing.assert_close(attention(x, None, early), attention(x, None, late), atol=1e-5, rtol=1e-4)
    q, k, v = (f(x).view(7, 2, 8).transpose(0, 1) for f in (attention.to_q, attention.to_k, attention.to_v))
    still = tuple(torch.full((7, 8), value) for value in (1.0, 0.0))  # every position 0: attention as in the textbook
    heads = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1) @ v
    wanted = attention.to_out(heads.transpose(0, 1).reshape(7, 16))
    torch.testing.assert_close(attention(x, None, still)[0], wanted, atol=1e-5, rtol=1e-4)
    # order matters
    assert not torch.allclose(attention(x, None, early)[0, 0], attention(x.flip(1), None, early)[0, -1], atol=1e-4)


def test_blocks_start_as_the_identity_and_times_are_told_apart() -> None:
    block, x = Block(16, 2, 2), torch.randn(2, 5, 16)
    assert torch.equal(block(x, torch.randn(2, 16), None, rotary(5, 8, x.device)), x)
    codes = TimeEmbedding(16)(torch.linspace(0, 1, 101))
    distance = torch.cdist(codes, codes) + 1e9 * torch.eye(101)
    assert float(distance.detach().min()) > 1e-4


def test_heads_that_do_not_go_with_the_prediction_are_refused() -> None:
    for changes in ({"prediction": "velocity"}, {"front_end": "mel"}):
        with pytest.raises(UserError, match="mask"):
            FlowEnhancer(FlowModel(**{**TINY, **changes}))


# -- the flow on data whose answer is known ------------------------------------------------------------------------------


class Toy(FlowEnhancer):
    """Data N(mu, s1^2) in every dimension: the best prediction is known in closed form."""

    def __init__(self, mu: float = 0.7, s1: float = 1.5, **changes: object) -> None:
        super().__init__(FlowModel(**{**TINY, "head": "linear", **changes}))
        self.mu, self.s1 = mu, s1

    def forward(self, x, y, t, mask=None, drop=None):  # type: ignore[no-untyped-def]
        t = t[:, None, None]
        s0 = 1.0 if self.cfg.prior == "standard" else self.cfg.prior_sigma
        start = torch.zeros_like(x) if self.cfg.prior == "standard" else y
        variance = (1 - t) ** 2 * s0**2 + t**2 * self.s1**2
        x1 = self.mu + t * self.s1**2 / variance * (x - (1 - t) * start - t * self.mu)
        return x1 if self.cfg.prediction == "clean" else (x1 - x) / (1 - t)


@pytest.mark.parametrize("prior", ["standard", "noisy"])
@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_the_ode_ends_in_the_data(prior: str, prediction: str) -> None:
    model, gen = Toy(prior=prior, prediction=prediction), torch.Generator().manual_seed(0)
    y, z = torch.full((40, 20, 66), 3.0), torch.randn((40, 20, 66), generator=gen)
    errors = []
    for nfe in (10, 40, 160):
        x = model.ode(y, z, nfe)
        errors.append(abs(float(x.std()) - 1.5) + abs(float(x.mean()) - 0.7))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.03


def test_euler_lands_on_the_prediction() -> None:
    x, x1 = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(euler(x, x1, 0.75, 0.25), x1)
    torch.testing.assert_close(euler(x, x1, 0.2, 0.4), x + 0.4 * (x1 - x) / 0.8)
    for nfe in (3, 7, 10, 49):  # i * dt + dt is not exactly 1 in floats
        assert torch.equal(euler(x, x1, (nfe - 1) * (1 / nfe), 1 / nfe), x1)


def test_the_noisy_prior_starts_at_the_input() -> None:
    model = tiny(prior="noisy", prior_sigma=0.3)
    y, z = torch.randn(1, 5, 66), torch.randn(1, 5, 66)
    torch.testing.assert_close(model.prior(y, z), y + 0.3 * z)
    mean, std = model.prior_moments(y)
    assert torch.equal(mean, y) and std == 0.3
    assert tiny().prior_moments(y) == (0.0, 1.0) and tiny().prior(y, z) is z


def test_the_loss_is_smallest_at_the_best_prediction() -> None:
    y = torch.zeros(64, 20, 66)
    x1 = 0.7 + 1.5 * torch.randn(y.shape)
    for prediction in ("clean", "velocity"):
        losses = []
        for mu, s1 in ((0.7, 1.5), (0.4, 1.5), (0.7, 1.0), (1.0, 2.5)):
            torch.manual_seed(3)
            losses.append(float(Toy(mu, s1, prediction=prediction).loss(x1, y, None, 0.0, x1[..., 0])["loss"]))
        assert losses[0] == min(losses)


def test_the_loss_sees_real_frames_only() -> None:
    model = tiny(condition_drop=0.0, head="linear")
    x1, y = torch.randn(2, 8, 66), torch.randn(2, 8, 66)
    mask = frame_mask(torch.tensor([8, 5]), 8)
    values = []
    for junk in (0.0, 50.0):
        torch.manual_seed(1)
        parts = model.loss(x1 + junk * ~mask[..., None], y, mask, 0.5, x1[..., 0])
        values.append(float(parts["loss"]))
        assert float(parts["loss"]) == pytest.approx(float(parts["flow"] + parts["magnitude"]))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
