"""The audio-visual enhancer as a policy whose output can be differentiated: its mask again, with the noise that was drawn.

See ``tasks/wave_relax.py``. Both ears of a binaural model are heard as their mean, as by every metric.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlspeech.models.avse import AvseEnhancer, Masked
from rlspeech.tasks.avse_policy import AvsePolicy, Decisions
from rlspeech.tasks.wave_relax import real_samples, wave_kl
from rlspeech.types import LogProb, Relaxed, Rollout, UserError

__all__ = ["RelaxedAvse"]


class RelaxedAvse(AvsePolicy):
    """An ``AvsePolicy`` with ``relax``; its KL is that of the waveforms.

    Raises:
        UserError: exploration without noise, which is the KL's unit.
    """

    supports = AvsePolicy.supports | {"relax"}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.explore.noise:
            raise UserError(
                "explore.noise is 0", "it is also the unit of the KL to the reference", "--set explore.noise=0.1"
            )

    def relax(
        self,
        rollout: Rollout,
        rows: Tensor,
        *,
        tau: float = 1.0,
        hard: bool = True,
        seed: int = 0,
        with_kl: bool = False,
    ) -> Relaxed:
        """Waveforms (n, T) of some rows under the current weights and their own noise; see ``types.RelaxPolicy``."""
        wav, mask = self._wave(self.model, rollout.state, rows)
        return Relaxed(wav, mask, kl=self._away(rollout, rows, wav, mask) if with_kl else None, seed=seed)

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        """As ``AvsePolicy.log_prob``, with the KL of the waveforms."""
        new = super().log_prob(rollout, rows, with_kl=False)
        return (
            new._replace(kl=self._away(rollout, rows, *self._wave(self.model, rollout.state, rows))) if with_kl else new
        )

    def _away(self, rollout: Rollout, rows: Tensor, wav: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad(), self.adapted.reference() as model:
            there, _ = self._wave(model, rollout.state, rows)
        return wave_kl(wav, there, mask, self.explore.noise)[:, None]

    def _wave(self, model: AvseEnhancer, state: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (n, T) at the inputs' levels, and their real samples; a clip's mask is computed once, however many rows it has."""
        rows = rows.to(state.prompts.device)
        used, back = torch.unique(state.prompts[rows], return_inverse=True)
        made = self._look(state, used, model)
        again = Masked(made.latent[back], made.mask[back], None if made.real is None else made.real[back])
        mask = self.kernel.act(again, state.of(used[back]), state.eps[rows])
        batch, who = state.batch, state.prompts[rows]
        wavs = model.decode(again.latent[:, None] * mask, batch.noisy.shape[-1]) / batch.gain[who][:, None, None]
        real = real_samples(batch.samples[who], wavs.shape[-1])
        return wavs.mean(1), real
