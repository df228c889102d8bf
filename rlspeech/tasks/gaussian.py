"""What the relaxed enhancers share: a sampled output as a differentiable function of the weights, and how far it is from the reference's.

An enhancer has no tokens to relax: its sample is its own noise put through its weights, f(theta, eps), and the same eps through other
weights is the relaxed sample (the reparameterisation of arXiv 1312.6114). At the weights that acted it is the rollout itself.

The KL of the exploration (``tasks/explore.py``) knows the few directions that noise is drawn in. A gradient through the waveform goes
anywhere, first where that KL sees nothing, so for these policies the KL is that of the waveforms: both outputs as means of white
Gaussians whose standard deviation is ``noise`` times the reference output's RMS,

    KL = |w - w_ref|^2 / (2 noise^2 |w_ref|^2),

0.056 where the two differ at -20 dB and noise is 0.3. GRPO beside DiffRO has the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wave_kl"]

QUIET = 1e-4  # RMS that a silent reference is taken to have


def wave_kl(wav: Tensor, reference: Tensor, mask: Tensor, noise: float) -> Tensor:
    """KL (n,) in nats a sample of waveforms (n, T) to reference waveforms, over real samples (n, T); gradient to the first."""
    size = mask.sum(1).clamp_min(1)
    power = (reference.square() * mask).sum(1) / size
    moved = ((wav - reference).square() * mask).sum(1) / size
    return moved / (2 * noise**2 * power.clamp_min(QUIET**2))


def real_samples(samples: Tensor, length: int) -> Tensor:
    """(n, T) bool of counts (n,)."""
    return torch.arange(length, device=samples.device)[None] < samples[:, None]
