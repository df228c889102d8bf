"""Gumbel-softmax (arXiv 1611.01144, 1611.00712): a drawn token as a differentiable function of the logits that it was drawn from.

    mu = softmax((logits + g) / tau),   g ~ Gumbel(0, 1),   argmax mu ~ softmax(logits) at every tau.

Straight-through, what is handed on is the one-hot of the argmax, and the gradient is that of mu. Added: the noise may be drawn given which
token won (the truncated Gumbels of arXiv 1411.0030), so that a sequence that was sampled before is relaxed as itself; and a row's
noise is a function of its seed and its own length alone, whatever batch it stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

__all__ = ["gumbel_noise", "noise_given", "relaxed_tokens"]


def gumbel_noise(lengths: Sequence[int], size: int, seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise (n, T, V) float32, 0 behind the end of a row.

    Args:
        lengths: n rows' tokens, T the most of them.
        size: V.
        seeds: n of them.
        device: where it is drawn and stays; another kind of device draws other numbers.
    """
    rows = []
    for length, seed in zip(lengths, seeds, strict=True):
        drawn = torch.empty(length, size, device=device)
        drawn.exponential_(generator=torch.Generator(device).manual_seed(seed))
        rows.append(-drawn.clamp_min(torch.finfo(drawn.dtype).tiny).log())
    return pad_sequence(rows, batch_first=True)


def noise_given(logits: Tensor, ids: Tensor, noise: Tensor) -> Tensor:
    """Gumbel noise (n, T, V) under which ``ids`` win: the noise of a draw, its law given what was drawn.

    Args:
        logits: (n, T, V); no gradient goes through the noise.
        ids: (n, T) long.
        noise: (n, T, V) independent, of ``gumbel_noise``.
    """
    logits = logits.detach().float()
    top = logits.logsumexp(-1, keepdim=True) + noise.gather(
        -1, ids[..., None]
    )  # the largest sum, whichever token has it
    below = -torch.logaddexp(-top, -(logits + noise))  # the others, cut off there
    return torch.where(one_hot(ids, logits.shape[-1]).bool(), top, torch.minimum(below, top)) - logits


def relaxed_tokens(logits: Tensor, noise: Tensor, tau: float, hard: bool, ids: Tensor | None = None) -> Tensor:
    """Distributions (n, T, V) float32 over tokens, one-hot where ``hard``, with the soft ones' gradient either way.

    Args:
        logits: (n, T, V).
        noise: (n, T, V), see ``gumbel_noise``.
        tau: temperature, above 0.
        hard: straight-through.
        ids: (n, T) long, the tokens that the noise was drawn for (``noise_given``): they win, whatever rounding says.
    """
    soft = ((logits.float() + noise) / tau).softmax(-1)
    if not hard:
        return soft
    chosen = one_hot(soft.argmax(-1) if ids is None else ids, soft.shape[-1]).to(soft.dtype)
    return chosen + (soft - soft.detach())  # chosen exactly: the bracket is 0
