"""The nets of DNSMOS as torch modules, differentiable to the waveform; weights out of the ONNX files in the ``speechmos`` package.

Both are a spectrogram, 3x3 convolutions with pooling, a maximum over all positions and three dense layers, so the length is free.
P.835's spectrogram is a windowed DFT inside the graph; P.808's is librosa's mel spectrogram, computed here in torch. What the
scores are made of (windows, polynomial, average) is in ``dnsmos``.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.rewards.mel import level_normalise, mel_filters

__all__ = ["DNSMOS", "HOP", "POLYNOMIALS", "RATE", "P808Net", "model_hash", "model_path"]

RATE, HOP = 16000, 160
FILES = {
    "p835": "dnsmos_models/sig_bak_ovr.onnx",
    "pp835": "pdnsmos_models/sig_bak_ovr.onnx",
    "p808": "dnsmos_models/model_v8.onnx",
}
POLYNOMIALS = {  # rows SIG, BAK, OVRL; columns x^3, x^2, x, 1
    "p835": (
        (0.0, -0.08397278, 1.22083953, 0.0052439),
        (0.0, -0.13166888, 1.60915514, -0.39604546),
        (0.0, -0.06766283, 1.11546468, 0.04602535),
    ),
    "pp835": (
        (-0.01019296, 0.02751166, 1.19576786, -0.24348726),
        (-0.04976499, 0.44276479, -0.1644611, 0.96883132),
        (-0.00533021, 0.005101, 1.18058466, -0.11236046),
    ),
}


def model_path(kind: str) -> Path:
    """ONNX file of ``p835``, ``pp835`` (personalised) or ``p808`` in the installed speechmos package."""
    from importlib.util import find_spec

    spec = find_spec("speechmos")  # the package's own import would pull librosa
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("speechmos is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / FILES[kind]


@lru_cache(maxsize=4)
def model_hash(kind: str) -> str:
    """First 8 hex digits of the weights' SHA-256: models have been replaced silently before."""
    return hashlib.sha256(model_path(kind).read_bytes()).hexdigest()[:8]


class _Convs(nn.Module):
    """What both nets share: 3x3 convolutions with pooling, maximum over all positions, three dense layers."""

    def __init__(self, weights: list[tuple[np.ndarray, np.ndarray]], pool_after: tuple[int, ...]) -> None:
        super().__init__()
        self.pool_after = pool_after
        self.convs, self.dense = nn.ModuleList(), nn.ModuleList()
        for w, b in weights:
            layer: nn.Module = (
                nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1) if w.ndim == 4 else nn.Linear(w.shape[0], w.shape[1])
            )
            layer.load_state_dict({"weight": torch.tensor(w if w.ndim == 4 else w.T), "bias": torch.tensor(b)})
            (self.convs if w.ndim == 4 else self.dense).append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (N, 1, L, bins)."""
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i in self.pool_after:
                x = F.max_pool2d(x, 2)
        x = x.amax((2, 3))
        for i, dense in enumerate(self.dense):
            x = dense(x) if i + 1 == len(self.dense) else F.relu(dense(x))
        return x


def _read_weights(kind: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """(weight, bias) of the layers in the order of the graph, and all constants by name."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(model_path(kind))).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            layers.append((constants[node.input[1]], constants[node.input[2]]))
        elif node.op_type == "MatMul":
            bias = next(n for n in graph.node if n.op_type == "Add" and node.output[0] in n.input)
            layers.append((constants[node.input[1]], constants[bias.input[1]]))
    return layers, constants


class DNSMOS(nn.Module):
    """P.835 net, differentiable to the waveform: (N, T) at 16 kHz -> (N, 3) SIG, BAK, OVRL of the clip as it is.

    T is free (the official scores see 9.01 s; see ``windows``); the weights take no gradient.

    Args:
        personalised: the net and polynomial for personalised enhancement.
        level_dbfs: scale every clip to this RMS first, so that gain earns nothing; None leaves the level.
        raw: leave the polynomial out.
    """

    def __init__(self, personalised: bool = False, level_dbfs: float | None = None, raw: bool = False) -> None:
        super().__init__()
        self.kind, self.level_dbfs, self.raw = "pp835" if personalised else "p835", level_dbfs, raw
        layers, constants = _read_weights(self.kind)
        self.net = _Convs(layers, pool_after=(3, 4, 5))
        kernels = [torch.tensor(constants[f"time2freq/stft-{part}/kernel:0"][..., 0]) for part in ("real", "imag")]
        self.register_buffer("dft", torch.cat(kernels))  # (2 * 161, 320), the window multiplied in
        self.register_buffer("polynomial", torch.tensor(POLYNOMIALS[self.kind]))
        self.requires_grad_(False).eval()

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T), at least 0.2 s."""
        if self.level_dbfs is not None:
            wav = level_normalise(wav, self.level_dbfs)
        frames = wav.unfold(-1, 2 * HOP, HOP)  # (N, L, 320)
        real, imag = (frames @ cast(Tensor, self.dft).T).chunk(2, -1)
        logpower = (real.square() + imag.square()).clamp_min(1e-12).log10()
        x = self.net(logpower[:, None])
        if self.raw:
            return cast(Tensor, x)
        powers = torch.stack([x**3, x**2, x, torch.ones_like(x)], -1)  # (N, 3, 4)
        return (powers * cast(Tensor, self.polynomial)).sum(-1)


class P808Net(nn.Module):
    """P.808 net with its mel front end (librosa's, in torch): (N, T) at 16 kHz -> (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _Convs(_read_weights("p808")[0], pool_after=(0, 1, 3))
        self.register_buffer("window", torch.hann_window(321))
        self.register_buffer("bank", torch.from_numpy(mel_filters(RATE, 321, 120)))
        self.requires_grad_(False).eval()

    def features(self, wav: Tensor) -> Tensor:
        """Mel spectrogram in dB below the clip's maximum, (db + 40) / 40: (N, L, 120). The last 160 samples are left out."""
        wav = F.pad(wav[:, :-HOP], (160, 160))
        spec = torch.stft(wav, 321, HOP, 321, cast(Tensor, self.window), center=False, return_complex=True)
        mel = cast(Tensor, self.bank) @ torch.view_as_real(spec).square().sum(-1)
        db = 10.0 * mel.clamp_min(1e-10).log10()
        db = db - db.amax((1, 2), keepdim=True)
        return (db.clamp_min(-80.0).transpose(1, 2) + 40.0) / 40.0

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T), at least 0.2 s."""
        return cast(Tensor, self.net(self.features(wav)[:, None]))
