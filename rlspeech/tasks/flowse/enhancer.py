"""Flow-matching enhancement of a batch: levelling and padding, the training loss, and the deterministic ODE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlspeech.data.batches import Clip, Keys, Videos, seed_of
from rlspeech.models.flow import FlowEnhancer, frame_mask
from rlspeech.tasks.gaussian import Levelled, levelled, normal


def collate(
    clips: Sequence[Clip], model: FlowEnhancer, device: torch.device | str = "cpu", with_target: bool = True
) -> Levelled:
    """Bring clips to the model's level and pad them: (B, T)."""
    batch = levelled(clips, model.cfg.level_dbfs, 1, device, with_target)
    return replace(batch, noisy=batch.noisy[:, 0], target=None if batch.target is None else batch.target[:, 0])


def flow_loss(model: FlowEnhancer, batch: Levelled, magnitude_weight: float) -> dict[str, Tensor]:
    """The flow-matching loss in named parts; ``loss`` is the one to minimise."""
    assert batch.target is not None
    x1, y = encode(model, batch.target, batch.samples), encode(model, batch.noisy, batch.samples)
    return model.loss(x1, y, spectral_mask(model, batch, y.shape[1]), magnitude_weight)


def latent(keys: Sequence[str], seed: int, shape: tuple[int, int]) -> Tensor:
    """Standard normal (B, L, D), each row drawn from (seed, key) alone, so that a clip's output does not depend on its batch."""
    count = shape[0] * shape[1]
    return torch.stack([normal(count, seed_of(seed, key)).view(shape) for key in keys])


class Enhancer:
    """Deterministic enhancement by the ODE; every clip's latent depends on (seed, key) alone.

    ``nfe`` Euler steps under classifier-free guidance of scale ``guidance``; None: the model's own.
    """

    uses_video = False

    def __init__(
        self, model: FlowEnhancer, *, nfe: int | None = None, guidance: float | None = None, seed: int = 0
    ) -> None:
        self.model, self.seed, self.sample_rate, self.channels = model, seed, model.sample_rate, 1
        self.nfe = nfe or model.cfg.nfe
        self.guidance = model.cfg.guidance if guidance is None else guidance

    @torch.no_grad()
    def infer(self, wavs: Sequence[np.ndarray], keys: Keys = None, lips: Videos = None) -> list[np.ndarray]:
        model = self.model
        names = [str(i) for i in range(len(wavs))] if keys is None else list(keys)
        device = next(model.parameters()).device
        clips = [Clip(k, w, w, self.sample_rate) for k, w in zip(names, wavs, strict=True)]
        batch = collate(clips, model, device, with_target=False)
        y = encode(model, batch.noisy, batch.samples)
        z = latent(names, self.seed, (y.shape[1], y.shape[2])).to(device)
        x = model.ode(y, z, self.nfe, spectral_mask(model, batch, y.shape[1]), self.guidance)
        out = decode(model, x, batch.samples) / batch.gain[:, None]
        return [o[:n].numpy() for o, n in zip(out.float().cpu(), batch.samples.tolist(), strict=True)]


def encode(model: FlowEnhancer, wavs: Tensor, samples: Tensor) -> Tensor:
    """(B, T) padded -> (B, L, D) padded; every row as if it were alone, for a window that reaches into padding would see another end."""
    counts = samples.tolist()
    if min(counts) == wavs.shape[1]:
        return model.front.encode(wavs)
    rows = [model.front.encode(w[None, :n])[0] for w, n in zip(wavs, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def decode(model: FlowEnhancer, x: Tensor, samples: Tensor) -> Tensor:
    """(B, L, D) padded -> (B, T) padded with zeros; every row as if it were alone, as in ``encode``."""
    counts = samples.tolist()
    if min(counts) == max(counts):
        return model.front.decode(x, counts[0])
    rows = [model.front.decode(row[None, : model.front.frames(n)], n)[0] for row, n in zip(x, counts, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def spectral_mask(model: FlowEnhancer, batch: Levelled, length: int) -> Tensor | None:
    """(B, L) bool over real frames, or None where nothing is padded."""
    frames = torch.tensor([model.front.frames(n) for n in batch.samples.tolist()], device=batch.noisy.device)
    return frame_mask(frames, length)
