"""The two embedded encoders: a speaker net and a speech (content) net, small enough to ship with the package.

Speaker: a TDNN with dilated residual blocks and attentive statistics pooling, as ECAPA-TDNN (Desplanques et al. 2020) with its
squeeze-excitation and multi-scale splits left out. Speech: dilated residual convolutions on log-mels that predict cluster labels of
clean speech from noisy input, as HuBERT (Hsu et al. 2021) with convolutions for the transformer; the logits are the feature.
Neither replaces the large encoders of the literature (give those by name); they make the rewards work with nothing downloaded.
``examples/train-embedded-encoders.py`` trains both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.rewards.mel import LogMel

__all__ = ["SpeakerNet", "SpeechNet", "asset_folder", "load_embedded", "save_embedded"]


class Residual(nn.Module):
    """x + conv(dilated) -> norm -> relu -> pointwise: (N, C, L) -> (N, C, L)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (N, C, L)."""
        return F.relu(x + self.net(x))


class SpeakerNet(nn.Module):
    """Speaker embedding of a clip: (N, T) at 16 kHz -> (N, D) of length 1."""

    def __init__(
        self, n_mels: int = 64, channels: int = 160, embedding: int = 128, dilations: tuple[int, ...] = (2, 3, 4)
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "n_mels": n_mels,
            "channels": channels,
            "embedding": embedding,
            "dilations": list(dilations),
        }
        wide = 2 * channels
        self.features = LogMel(n_mels, centre=True)
        self.inp = nn.Sequential(nn.Conv1d(n_mels, channels, 5, padding=2), nn.BatchNorm1d(channels), nn.ReLU())
        self.blocks = nn.ModuleList(Residual(channels, d) for d in dilations)
        self.wide = nn.Sequential(nn.Conv1d(channels * len(dilations), wide, 1), nn.ReLU())
        self.attention = nn.Sequential(nn.Conv1d(wide, 64, 1), nn.Tanh(), nn.Conv1d(64, wide, 1))
        self.out = nn.Sequential(nn.BatchNorm1d(2 * wide), nn.Linear(2 * wide, embedding))

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T); rows are at least 0.1 s long and none is padded."""
        return self.embed(self.features(wav))

    def embed(self, logmel: Tensor) -> Tensor:
        """Args: logmel (N, n_mels, L), centred."""
        x = self.inp(logmel)
        outs = []
        for block in self.blocks:
            x = block(x)
            outs.append(x)
        x = self.wide(torch.cat(outs, 1))
        weight = self.attention(x).softmax(-1)
        mean = (weight * x).sum(-1)
        std = ((weight * x.square()).sum(-1) - mean.square()).clamp_min(1e-5).sqrt()
        return F.normalize(self.out(torch.cat([mean, std], 1)), dim=-1)


class SpeechNet(nn.Module):
    """Frame features of a clip: (N, T) at 16 kHz -> (N, L, D), one frame in 20 ms, standardised per dimension.

    Args:
        layer: index of the block whose output is the feature; the number of blocks (the default) takes the head's logits, which told
            words of other speakers apart better than any hidden layer did (figures in ``assets/speech_encoder``).
        classes: cluster labels that the head predicts.
    """

    def __init__(
        self,
        n_mels: int = 64,
        channels: int = 160,
        dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4),
        layer: int = 6,
        classes: int = 100,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "n_mels": n_mels,
            "channels": channels,
            "dilations": list(dilations),
            "layer": layer,
            "classes": classes,
        }
        self.layer = layer
        self.features = LogMel(n_mels)
        self.inp = nn.Sequential(
            nn.Conv1d(n_mels, channels, 5, stride=2, padding=2), nn.BatchNorm1d(channels), nn.ReLU()
        )
        self.blocks = nn.ModuleList(Residual(channels, d) for d in dilations)
        self.head = nn.Conv1d(channels, classes, 1)
        width = classes if layer == len(dilations) else channels
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def trunk(self, logmel: Tensor, upto: int | None = None) -> Tensor:
        """Hidden activations (N, C, L) after block ``upto`` (None: all). Args: logmel (N, n_mels, 2L)."""
        x = self.inp((logmel + 4.0) / 4.0)
        for block in self.blocks[: None if upto is None else upto + 1]:
            x = block(x)
        return cast(Tensor, x)

    def hidden(self, wav: Tensor) -> Tensor:
        """The features before they are standardised, (N, L, D). Args: wav (N, T)."""
        x = self.trunk(self.features(wav), self.layer)
        return cast(Tensor, self.head(x) if self.layer == len(self.blocks) else x).transpose(1, 2)

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T); none is padded."""
        hidden = self.hidden(wav)
        return (hidden - cast(Tensor, self.mean)) / cast(Tensor, self.std)


def asset_folder(name: str) -> Path:
    """Folder of the embedded weights ``name`` ('speaker' or 'speech_encoder')."""
    return Path(__file__).resolve().parent.parent / "assets" / name


def save_embedded(folder: Path, net: nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` (float16, half the size; the rounding is below the net's noise)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"class": type(net).__name__, **cast(dict[str, Any], net.config)}, indent=2) + "\n"
    )
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in net.state_dict().items()
        if "num_batches" not in k
    }
    save_file(state, folder / "model.safetensors")


def load_embedded(folder: Path, device: str = "cpu") -> SpeakerNet | SpeechNet:
    """Read what ``save_embedded`` wrote, in float32, ready to score. Raises ``FileNotFoundError`` where the weights are missing."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    cls = {"SpeakerNet": SpeakerNet, "SpeechNet": SpeechNet}[config.pop("class")]
    config["dilations"] = tuple(config["dilations"])
    net: Any = cls(**config)
    state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    if unexpected or any("num_batches" not in k for k in missing):
        raise ValueError(f"{folder}: weights do not fit the net ({missing=}, {unexpected=})")
    net.requires_grad_(False)
    return cast(SpeakerNet | SpeechNet, net.eval().to(device))
