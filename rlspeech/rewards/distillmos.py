"""DistillMOS (Stahl and Gamper, arXiv 2502.05356): overall quality without a reference, learnt from one that reads XLS-R's features.

A complex spectrogram, its magnitudes to the power 0.3, six convolutions, a transformer of seven layers and attention pooling: 4.1 M
parameters, another net and other training data than DNSMOS's, and therefore a witness where DNSMOS is rewarded. The weights are read from
the installed package ``distillmos`` (MIT), which is not imported: it wants torchaudio.

The score is the package's: windows of 7.68 s that are spread evenly over the clip, at most 1 s apart, each scaled to its peak, are
averaged. Two things differ. A shorter clip is repeated and cut, where the package appends zeros, which it has not been trained to ignore:
the same 4 s of speech are rated 0.8 lower with them. And the magnitude has a floor inside its root: without one the gradient of a frame
of zeros is not a number; scores are the same to 1e-5. Such frames keep a steep one, on real clips 40 times that of speech.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.rewards.encoders import batched, digest, weights_in
from rlspeech.types import Sample, Score

SPAN, STEP = 122880, 16000  # samples at 16 kHz: of a window, and between windows at most
FLOOR = 1e-12  # of squared magnitudes
WEIGHTS = "distillmos", "weights/distill_mos_v7.pt"  # the checkpoint in the installed package
BATCH = 8  # windows: the first layer's output takes 31 MB of each
# what the checkpoint's names have and ours have not
PREFIXES = re.compile(r"cnn\.(?=cnn)|(transformer_pool_attn|transformer|position_encoding|pool)\.")


class DistillMosNet(nn.Module):
    """The net, differentiable to the waveform: (N, T) at 16 kHz -> (N,) MOS from 1 to 5. Level earns nothing."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise((2, 64, 64, 128, 256, 256, 256))):
            stride = (2 if i > 0 else 1, 2 if i == 5 else 1)
            layers += [nn.Conv2d(inputs, outputs, 3, stride, (0, 1)), nn.LeakyReLU(0.1, inplace=True)]
        self.cnn = nn.Sequential(*layers)
        self.norm_input, self.norm, self.norm_trans = nn.BatchNorm1d(1024), nn.BatchNorm1d(1024), nn.BatchNorm1d(200)
        self.linear_proj, self.linear1 = nn.Linear(1024, 200), nn.Linear(200, 400)
        self.linear2, self.linear3 = nn.Linear(400, 1), nn.Linear(200, 1)
        layer = nn.TransformerEncoderLayer(200, 8, 400, 0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 7, enable_nested_tensor=False)
        self.register_buffer("pe", torch.zeros(1, 384, 200))  # positions; filled from the checkpoint
        self.register_buffer("window", torch.hann_window(320), persistent=False)
        self.requires_grad_(False).eval()

    def rate(self, wav: Tensor) -> Tensor:
        """MOS (N,) of windows. Args: wav (N, SPAN)."""
        x = F.pad(wav / (wav.abs().amax(1, keepdim=True) + 1e-8), (80, 80), mode="reflect")
        spec = torch.stft(x, 320, 160, 320, cast(Tensor, self.window), center=False, return_complex=True)
        x = torch.view_as_real(spec).permute(0, 3, 1, 2)  # (N, 2, bins, L)
        x = self.cnn(x * (x.square().sum(1, keepdim=True) + FLOOR) ** -0.35).flatten(1, 2)  # (N, 1024, L / 2)
        x = self.linear_proj(self.norm(self.norm_input(x)).transpose(1, 2)) + cast(Tensor, self.pe)
        x = self.norm_trans(self.transformer_encoder(x).transpose(1, 2)).transpose(1, 2)
        x = self.linear2(F.relu(self.linear1(x))).softmax(1).transpose(1, 2) @ x  # (N, 1, 200)
        return 1 + 4 * cast(Tensor, self.linear3(x)).sigmoid()[:, 0, 0]

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T)."""
        parts = windows(wav)
        rated = torch.cat([self.rate(part) for part in parts.flatten(0, 1).split(BATCH)])
        return rated.unflatten(0, parts.shape[:2]).mean(0)


def windows(wav: Tensor) -> Tensor:
    """(N, T) -> (W, N, SPAN): the windows that the score is the mean of; the first SPAN samples of a repeated clip where T is less."""
    spare = wav.shape[-1] - SPAN
    if spare <= 0:
        return wav.repeat(1, math.ceil(SPAN / wav.shape[-1]))[None, :, :SPAN]
    starts = [int(share * spare) for share in np.linspace(0, 1, math.ceil(spare / STEP) + 1)]
    return torch.stack([wav[:, start : start + SPAN] for start in starts])


class DistillMos:
    """``distillmos``. ``device``: where it runs."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        """Scoring rule and the hash of the weights."""
        return f"distillmos-v7-{digest(weights_in(*WEIGHTS))}, windows of 7.68 s, short clips repeated"

    @cached_property
    def predict(self) -> DistillMosNet:
        """The net with the package's weights. Raises ``ImportError`` and ``UserError`` as ``encoders.weights_in``."""
        net, state = DistillMosNet(), torch.load(weights_in(*WEIGHTS), map_location="cpu", weights_only=True)["model"]
        net.load_state_dict({PREFIXES.sub("", name): value for name, value in state.items()})
        return net.to(self.device)

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Score the windows of all clips together."""
        parts = [windows(torch.from_numpy(s.wav)[None])[:, 0].numpy() for s in samples]
        rated = batched([w for part in parts for w in part], self.predict, self.device)
        means = [part.mean() for part in torch.stack(rated).split([len(p) for p in parts])]
        return [{columns[0]: Score(float(mean))} for mean in means]
