"""Log-probabilities of tokens, and how far two distributions over a vocabulary are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from rlspeech.config import Sampling

__all__ = ["kept_mass", "token_kl", "token_logp"]


def token_logp(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (n, S) of tokens (n, S) under logits (n, S, V), in fp32; no second tensor of V numbers a token is kept at 1."""
    logits = logits if temperature == 1 else logits / temperature
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


def token_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) (n, S) over the vocabulary, in nats, with gradient to the first (n, S, V)."""
    here = logits.log_softmax(-1)
    return (here.exp() * (here - reference.log_softmax(-1))).sum(-1)


def kept_mass(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probability (n, S) at the sampling temperature of the tokens that top-k and top-p leave; a drawn token's was divided by it."""
    ordered = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True).values
    if sampling.top_k:
        ordered = ordered[..., : sampling.top_k]
    whole = ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    return torch.where(before < sampling.top_p * whole, ordered, torch.zeros_like(ordered)).sum(-1)
