"""torchaudio's SQUIM (Kumar et al. 2023): PESQ, STOI and SI-SDR predicted without a reference, as rewards or metrics.

torchaudio's wheels link CUDA libraries and fail to import beside a CPU build of torch, and transformers' audio classes then fail too,
because they import torchaudio when they find it. It is therefore an extra, imported only when a reward of it is asked for. The weights
are torchaudio's: downloaded by it once where ``download=true`` is given, or read from a safetensors file
(``squim_pesq[weights=squim.safetensors]``).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlspeech.models.folder import loading, torchaudio_problem
from rlspeech.rewards.encoders import batched, digest
from rlspeech.types import Sample, Score, UserError


class Squim:
    """``squim_stoi``, ``squim_pesq``, ``squim_si_sdr``.

    Args:
        weights: safetensors file with the state of ``torchaudio.models.squim_objective_base``.
        download: let torchaudio fetch its own weights (``SQUIM_OBJECTIVE``) where they are not cached.
        device: where it runs.

    Raises:
        UserError: torchaudio does not import, or no weights are given.
    """

    heads = ("squim_stoi", "squim_pesq", "squim_si_sdr")  # of ``predict``

    def __init__(self, weights: str | None = None, download: bool = False, device: str = "cpu") -> None:
        if reason := torchaudio_problem():
            raise UserError("torchaudio cannot be used here", reason, "rlspeech doctor")
        self.device, name = device, f"torchaudio {importlib.import_module('torchaudio').__version__}"
        if weights:  # older versions do not import their models by themselves
            net = importlib.import_module("torchaudio.models").squim_objective_base()
            with loading(f"the SQUIM weights {weights}", "a safetensors file of squim_objective_base"):
                net.load_state_dict(load_file(weights))
            self.version = f"{name}, {Path(weights).name} {digest(Path(weights))}"
        elif download:
            net = importlib.import_module("torchaudio.pipelines").SQUIM_OBJECTIVE.get_model()
            self.version = f"{name}, SQUIM_OBJECTIVE"
        else:
            hint = "squim_pesq[download=true], or squim_pesq[weights=FILE.safetensors]"
            raise UserError("squim needs weights", "nothing is downloaded unless you ask for it", hint)
        self._net = net.eval().requires_grad_(False).to(device)
        for part in (m for m in net.modules() if isinstance(m, torch.nn.RNNBase) and not m.dropout):
            part.train()  # cuDNN gives gradients of nothing else

    def predict(self, wavs: Tensor) -> Tensor:
        """(N, T) at 16 kHz -> (N, 3): STOI, PESQ, SI-SDR in dB, with a gradient."""
        return torch.stack([x.reshape(-1) for x in self._net(wavs)], 1)

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        out = []
        for row in batched([s.wav for s in samples], self.predict, self.device):
            values = dict(zip(self.heads, row.tolist(), strict=True))
            out.append({c: Score(values[c], detail={k: v for k, v in values.items() if k != c}) for c in columns})
        return out
