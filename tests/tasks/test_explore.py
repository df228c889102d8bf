"""Exploration kernels against the published formulas, written here a second time, and against Gaussians whose answer is known.

Formulas: FlowSE-GRPO (arXiv 2601.16483) Eq. 6, CPS (arXiv 2509.05952), DanceGRPO, all for x_t = (1-t) x_0 + t x_1.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_flow import RATE, clips, published, tiny_model
from torch import Tensor

from rlspeech.config import Exploration
from rlspeech.models.flow import euler, magnitude
from rlspeech.tasks.explore import BinNoise, GainNoise, Site, band_matrix, build_kernel
from rlspeech.types import UserError

PUBLISHED = {"sde": 0.4, "cps": 0.6, "dance": 0.3}  # kind -> noise
GAINS = [Exploration(kind="gain", noise=0.3), Exploration(kind="gain", noise=0.3, basis=["level"], bands=5)]
GAINS += [Exploration(kind="gain", noise=0.3, basis=["contrast"], segment_s=0.2)]
ALL = [Exploration(kind=kind, noise=noise) for kind, noise in PUBLISHED.items()] + GAINS
NAMES = [*PUBLISHED, "gain", "gain-level", "gain-contrast"]


def _site(model, t: float = 0.5, dt: float = 0.1, seed: int = 0, padded: bool = False) -> Site:  # type: ignore[no-untyped-def]
    batch = clips(8000, 8000, seed=seed)
    y = model.front.encode(torch.stack([torch.from_numpy(c.noisy) for c in batch]))
    g = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(y.shape, generator=g) + 0.5 * y
    mask = None
    if padded:
        mask = torch.ones(y.shape[:2], dtype=torch.bool)
        mask[1, 20:] = False
        y = y * mask[..., None]
    with torch.no_grad():
        return Site(x, y, model.clean(x, y, t, mask), t, dt, mask)


@pytest.mark.parametrize("explore", ALL[:3], ids=NAMES[:3])
@pytest.mark.parametrize(("t", "dt"), [(0.1, 0.1), (0.5, 0.05), (0.8, 0.1)])
def test_published_kernels(explore: Exploration, t: float, dt: float) -> None:
    model = tiny_model()
    site, kernel = _site(model, t, dt), build_kernel(model, explore)
    mean, std = published(explore.kind, explore.noise, site.x.double(), site.x1.double(), t, dt)
    eps = torch.randn(2, kernel.active(site).shape[1])
    after = kernel.act(site, eps, torch.tensor([0, 1]))
    torch.testing.assert_close(after.double(), mean + std * eps.view_as(site.x), atol=1e-5, rtol=1e-4)
    assert kernel.scale(site) == pytest.approx(std)
    other = site.x1 * (1 + 0.05 * torch.randn(site.x1.shape))  # another prediction near the first
    shift = (published(explore.kind, explore.noise, site.x.double(), other.double(), t, dt)[0] - mean) / std
    torch.testing.assert_close(kernel.shift(site, other).double(), shift.flatten(1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prior", ["standard", "noisy"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_marginal_is_right_as_steps_shrink(kind: Any, prior: str) -> None:
    """Every step but the first is stochastic; the data are N(0.7, 1.5^2), for which the best prediction is known.

    The noise of cps does not shrink with the step (the share of x_0 that is drawn anew is sin(eta pi/2) in every step), so that
    with a fixed eta it has no limit; it has one when eta goes with the square root of the step, as the noise of the others does.
    """
    mu, s1, s0, y = 0.7, 1.5, (1.0 if prior == "standard" else 0.4), torch.full((400, 10, 10), 2.0)
    start = 0.0 if prior == "standard" else y
    errors = []
    for steps in (8, 128):
        explore = Exploration(kind=kind, noise=0.5 * (4 / steps**0.5 if kind == "cps" else 1.0))
        kernel = BinNoise(SimpleNamespace(prior_moments=lambda _: (start, s0)), explore)
        g = torch.Generator().manual_seed(0)
        x, dt = start + s0 * torch.randn(y.shape, generator=g), 1.0 / steps
        for i in range(steps):
            t = i * dt
            x1 = mu + t * s1**2 / ((1 - t) ** 2 * s0**2 + t**2 * s1**2) * (x - (1 - t) * start - t * mu)
            site = Site(x, y, x1, t, dt, None)
            eps = torch.randn(len(x), kernel.active(site).shape[1], generator=g)
            x = kernel.act(site, eps, torch.arange(len(x))) if i else euler(x, x1, t, dt)
        errors.append(abs(float(x.std()) - s1) + abs(float(x.mean()) - mu))
    assert errors[1] < 0.04 and errors[0] > 2.5 * errors[1]


def test_states_that_rows_share() -> None:
    model = tiny_model()
    for explore in ALL:
        site, kernel = _site(model), build_kernel(model, explore)
        eps = torch.randn(3, kernel.active(site).shape[1])
        together = kernel.act(site, eps, torch.tensor([1, 0, 1]))
        one = kernel.act(site.pick(torch.tensor([1])), eps[2:], torch.tensor([0]))
        torch.testing.assert_close(together[2:], one)


def _alive(kernel: GainNoise, site: Site) -> Tensor:
    """Active dimensions whose field does not vanish (the contrast of a one-bin cell has nothing to vary)."""
    _, weight, _, fields = kernel._fields(site)
    power = torch.stack([kernel.fields.cells(weight * phi.square()) for phi in fields.values()], dim=2).flatten(1)
    return (power > 1e-3) & (kernel.active(site) > 0)


@pytest.mark.parametrize("explore", GAINS, ids=NAMES[3:])
@pytest.mark.parametrize("padded", [False, True])
def test_projection_gives_back_the_action(explore: Exploration, padded: bool) -> None:
    model = tiny_model()
    site = _site(model, 0.75, 0.25, padded=padded)
    site.x1 = 3 * site.x1  # so that the floor under the magnitudes, 3e-5, does not show
    kernel = build_kernel(model, explore)
    eps = torch.randn(2, kernel.active(site).shape[1]) * kernel.active(site)
    moved = kernel.act(site, eps, torch.tensor([0, 1]))  # the last step lands on the moved prediction
    alive = _alive(kernel, site)
    assert int(alive.sum()) > 0.8 * alive.numel() or padded
    torch.testing.assert_close(kernel.shift(site, moved)[alive], eps[alive], atol=1e-4, rtol=1e-4)


def test_gains_are_gains() -> None:
    """An action of one level field multiplies the waveform's spectrum there by exp(sigma eps) and changes no phase."""
    model = tiny_model()
    explore = Exploration(kind="gain", noise=0.3, bands=8, basis=["level"])
    site, kernel = _site(model, 0.75, 0.25), build_kernel(model, explore)
    eps = torch.zeros(2, 8)
    eps[0, 3] = 1.7
    before, after = (model.front.unpack(v) for v in (site.x1, kernel.act(site, eps, torch.tensor([0, 1]))))
    ratio = after / before
    inside = band_matrix(257, 8, RATE)[:, 3] > 0
    gain = ratio[0, inside].abs() ** (1 / 0.5)
    torch.testing.assert_close(gain, torch.full_like(gain, math.exp(0.3 * 1.7)))
    torch.testing.assert_close(ratio[0, ~inside], torch.ones_like(ratio[0, ~inside]))
    torch.testing.assert_close(ratio[1], torch.ones_like(ratio[1]))
    assert float(ratio.imag.abs().max()) < 1e-5


def test_contrast_moves_away_from_or_towards_the_input() -> None:
    """+eps deepens the attenuation where it is deep, and lifts where it is shallow; the band's weighted level stays."""
    model = tiny_model()
    explore = Exploration(kind="gain", noise=0.3, bands=4, basis=["contrast"])
    site, kernel = _site(model, 0.75, 0.25), build_kernel(model, explore)
    moved = kernel.act(site, torch.ones(2, 4), torch.tensor([0, 1]))
    attenuation = magnitude(site.x1).log() - magnitude(site.y).log()
    change = magnitude(moved).log() - magnitude(site.x1).log()
    weight = magnitude(site.x1) * (magnitude(site.x1) > 0.01)
    for band in band_matrix(257, 4, RATE).T:
        bins = band > 0
        w, a, c = (v[0][:, bins].flatten() for v in (weight, attenuation, change))
        a = a - (w * a).sum() / w.sum()
        assert float((w * c).sum() / w.sum()) == pytest.approx(0.0, abs=1e-3)
        assert float((w * a * c).sum() / ((w * a * a).sum() * (w * c * c).sum()).sqrt()) > 0.9
        # unit spread of the field
        assert float(((w * c * c).sum() / w.sum()).sqrt()) == pytest.approx(0.5 * 0.3, rel=0.1)


def test_empty_bands_and_padding_carry_no_noise() -> None:
    model = tiny_model()
    explore = Exploration(kind="gain", noise=0.3, bands=8, segment_s=0.16)
    site, kernel = _site(model, padded=True), build_kernel(model, explore)
    high = band_matrix(257, 8, RATE)[:, 6:].sum(1).bool()
    site.x1 = site.x1 * (~torch.cat([high, high]))
    active = kernel.active(site).view(2, -1, 2, 8)  # stretches of 10 frames, kinds, bands
    assert active.shape[1] == 4
    assert float(active[:, :, :, 6:].sum()) == 0 and float(active[0, :, :, :6].min()) == 1
    assert float(active[1, 2:].sum()) == 0 and float(active[1, :2, :, :6].min()) == 1  # 20 real frames
    after = kernel.act(site, torch.ones(2, kernel.active(site).shape[1]), torch.tensor([0, 1]))
    torch.testing.assert_close(after[1, 20:], euler(site.x, site.x1, site.t, site.dt)[1, 20:])
    for published_kernel in ALL[:3]:
        bins = build_kernel(model, published_kernel)
        assert float(bins.active(site).view(2, -1, 514)[1, 20:].sum()) == 0 and float(bins.active(site)[0].min()) == 1


@pytest.mark.parametrize("bands", [1, 2, 16, 32, 64, 200, 257])
def test_bands_part_the_spectrum(bands: int) -> None:
    matrix = band_matrix(257, bands, RATE)
    assert matrix.shape == (257, bands) and bool((matrix.sum(1) == 1).all()) and bool((matrix.sum(0) >= 1).all())
    starts = matrix.argmax(0)
    assert bool((starts.diff() > 0).all())
    widths = matrix.sum(0)
    assert bands < 16 or float(widths[-1]) >= float(widths[0])


def test_kernels_that_cannot_be() -> None:
    with pytest.raises(UserError, match="explore.bands"):
        build_kernel(tiny_model(), Exploration(kind="gain", bands=300))
    mel = tiny_model(front_end="mel", head="linear", n_fft=256, hop=128, n_mels=20)
    with pytest.raises(UserError, match="explore.kind"):
        build_kernel(mel, Exploration(kind="gain"))
    assert isinstance(build_kernel(mel, ALL[0]), BinNoise)
