"""Gradients of micro-batches, added up as they come: a model's worth of memory for the sum, however many parts there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["GradientSum", "flat_gradient"]


class GradientSum:
    """The sum of K flat gradients (P,), and how well they agree without keeping them: only the sum of their unit vectors is kept.

    Args:
        total: (P,) sum of what was added, or None before that.
        count: how many were added.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0
        self._units: Tensor | None = None
        self._nonzero = 0

    def add(self, gradient: Tensor) -> None:
        """Take one more (P,). It may be changed in place."""
        self.count += 1
        norm = gradient.norm()
        if norm > 0:
            self._nonzero += 1
            unit = gradient / norm
            self._units = unit if self._units is None else self._units.add_(unit)
        self.total = gradient if self.total is None else self.total.add_(gradient)

    def agreement(self) -> float:
        """Mean pairwise cosine, as ``math.agreement``: |sum of units|^2 = K + sum of cosines; NaN with fewer than two that are not zero."""
        k = self._nonzero
        if k < 2 or self._units is None:
            return float("nan")
        return float((self._units.square().sum() - k) / (k * (k - 1)))


def flat_gradient(loss: Tensor, parameters: Sequence[Parameter]) -> Tensor:
    """Flat gradient (P,) of a scalar; 0 for parameters that it does not depend on."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )
