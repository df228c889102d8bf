"""What tests of losses and gradients share: a few steps of an optimiser, and the finite difference along a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.algos.update import flat_gradient


def fit(
    model: nn.Module, loss: Callable[[int], dict[str, Tensor]], steps: int, rate: float, by: Any = torch.optim.Adam
) -> list[dict[str, float]]:
    """Train for a few steps on the "loss" of each; return the parts of the loss, one dictionary a step."""
    optimizer, rows = by(model.parameters(), rate), []
    for step in range(steps):
        parts = loss(step)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        rows.append({k: float(torch.as_tensor(v).detach()) for k, v in parts.items()})
    return rows


def slope(value: Callable[[], Tensor], parameters: list[nn.Parameter], step: float) -> tuple[float, float]:
    """The length of a gradient, and the slope along it by finite differences, which should be the same."""
    found = flat_gradient(value(), parameters)
    ways = (found / found.norm()).split([p.numel() for p in parameters])
    ends = []
    for sign in (1, -1):
        for turn in (sign, -sign):
            with torch.no_grad():
                for p, way in zip(parameters, ways, strict=True):
                    p.data += turn * step * way.view_as(p)
                if turn == sign:
                    ends.append(float(value().double()))
    return float(found.norm()), (ends[0] - ends[1]) / (2 * step)
