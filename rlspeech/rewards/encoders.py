"""Encoders of speech, and the two rewards on them: speaker similarity and SpeechBERTScore.

Two encoders are embedded, small enough to ship with the package. Speaker: a TDNN with dilated residual blocks and attentive statistics
pooling, as ECAPA-TDNN (Desplanques et al. 2020) with its squeeze-excitation and multi-scale splits left out. Speech: dilated residual
convolutions on log-mels that predict cluster labels of clean speech from noisy input, as HuBERT (Hsu et al. 2021) with convolutions
for the transformer; the logits are the feature. Neither replaces the large encoders of the literature (give those by Hub id or
folder); they make the rewards work with nothing downloaded. ``examples/train-embedded-encoders.py`` trains both. Between the two stands
Resemblyzer's speaker encoder, whose weights lie in a package of 16 MB.

Every clip enters at -25 dBFS, so its level earns nothing. Clips of equal length share a batch, and the last results are remembered.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.files import parse_json
from rlspeech.models.folder import loading, pretrained, read_weights
from rlspeech.models.hub import embedded_path
from rlspeech.models.spectra import LogMel, level_normalise, mel_filters
from rlspeech.rewards.base import FOLDER_HINT
from rlspeech.types import Sample, Score, UserError

LEVEL_DBFS = -25.0
MAX_SAMPLES = 16 * 160000  # of one batch: 16 clips of 10 s
XVECTOR = [f"{name}ForXVector" for name in ("WavLM", "Wav2Vec2", "UniSpeechSat", "Data2VecAudio", "Wav2Vec2Conformer")]
Key = TypeVar("Key")
Value = TypeVar("Value")
Dilations = tuple[int, ...]
BLOCKS: Dilations = (1, 2, 4, 1, 2, 4)  # of the speech encoder


class Residual(nn.Module):
    """x + conv(dilated) -> norm -> relu -> pointwise: (N, C, L) -> (N, C, L)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        first = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        second, norms = nn.Conv1d(channels, channels, 1), (nn.BatchNorm1d(channels), nn.BatchNorm1d(channels))
        self.net = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (N, C, L)."""
        return F.relu(x + self.net(x))


class SpeakerNet(nn.Module):
    """Speaker embedding of a clip: (N, T) at 16 kHz -> (N, D) of length 1."""

    def __init__(
        self, n_mels: int = 64, channels: int = 160, embedding: int = 128, dilations: Dilations = (2, 3, 4)
    ) -> None:
        super().__init__()
        self.config = dict(n_mels=n_mels, channels=channels, embedding=embedding, dilations=list(dilations))
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
        self, n_mels: int = 64, channels: int = 160, dilations: Dilations = BLOCKS, layer: int = 6, classes: int = 100
    ) -> None:
        super().__init__()
        self.config = dict(n_mels=n_mels, channels=channels, dilations=list(dilations), layer=layer, classes=classes)
        self.layer = layer
        self.features = LogMel(n_mels)
        first = nn.Conv1d(n_mels, channels, 5, stride=2, padding=2)
        self.inp = nn.Sequential(first, nn.BatchNorm1d(channels), nn.ReLU())
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


class Ge2eNet(nn.Module):
    """Resemblyzer's speaker embedding, GE2E (Wan et al. 2018): (N, T) at 16 kHz -> (N, 256) of length 1.

    Three LSTMs read mel powers in stretches of 1.6 s, 1.3 of which start a second (the last one is left out where the clip fills less
    than 3/4 of it); their embeddings are averaged. Clips below 1.6 s are followed by zeros, as in the package. Otherwise than there,
    long silences are not cut out first, which would take webrtcvad; and loud clips too are brought to -30 dBFS, so that level earns
    nothing: there they stay loud.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("bank", mel_filters(16000, 400, 40).contiguous(), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T); rows are at least 0.1 s long and none is padded."""
        hop, span, step, samples = 160, 160, 77, wav.shape[-1]
        starts = [*range(0, max(1, samples // hop + 1 - span + step + 1), step)]  # in frames
        if len(starts) > 1 and samples - starts[-1] * hop < 0.75 * span * hop:
            starts.pop()
        wav = wav * (10.0 ** (-30.0 / 20.0) / wav.square().mean(-1, keepdim=True).add(1e-12).sqrt())
        wav = F.pad(wav, (0, max(0, (starts[-1] + span) * hop - samples)))
        spec = torch.stft(wav, 400, hop, 400, cast(Tensor, self.window), pad_mode="constant", return_complex=True)
        mel = (cast(Tensor, self.bank) @ (spec.real.square() + spec.imag.square())).transpose(1, 2)
        parts = torch.stack([mel[:, s : s + span] for s in starts], 1)  # (N, P, 160, 40)
        hidden = self.lstm(parts.flatten(0, 1))[1][0][-1]
        each = F.normalize(F.relu(self.linear(hidden)), dim=-1).unflatten(0, (len(wav), len(starts)))
        return F.normalize(each.mean(1), dim=-1)


def save_embedded(folder: Path, net: nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` (float16, half the size; the rounding is below the net's noise)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"class": type(net).__name__, **cast(dict[str, Any], net.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items() if "num_batches" not in k}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")


def load_embedded(folder: Path, device: str = "cpu") -> SpeakerNet | SpeechNet:
    """Read what ``save_embedded`` wrote, in float32, ready to score. Raises ``FileNotFoundError`` where the weights are missing."""
    config = parse_json((folder / "config.json").read_bytes())
    net: SpeakerNet | SpeechNet = {"SpeakerNet": SpeakerNet, "SpeechNet": SpeechNet}[config.pop("class")](**config)
    missing, unexpected = net.load_state_dict(read_weights(folder), strict=False)
    if unexpected or any("num_batches" not in k for k in missing):
        raise ValueError(f"{folder}: weights do not fit the net ({missing=}, {unexpected=})")
    return net.requires_grad_(False).eval().to(device)


class Cache(OrderedDict[Key, Value]):
    """The last ``size`` results, as by the content of the waveform: the G rollouts of a group share one reference."""

    def __init__(self, size: int = 512) -> None:
        super().__init__()
        self.size = size

    @staticmethod
    def key(wav: np.ndarray) -> bytes:
        """Digest of (T,) float32."""
        return hashlib.blake2b(np.ascontiguousarray(wav).data, digest_size=16).digest()

    def put(self, key: Key, value: Value) -> None:
        """Store a result and drop the oldest beyond the size."""
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.size:
            self.popitem(last=False)


def encoded(wavs: Sequence[Tensor], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Encode waveforms (T_i,) with their gradients, those of one length together."""
    out: dict[int, Tensor] = {}
    for length in dict.fromkeys(map(len, wavs)):
        rows, size = [i for i, w in enumerate(wavs) if len(w) == length], max(1, MAX_SAMPLES // max(1, length))
        for part in (rows[at : at + size] for at in range(0, len(rows), size)):
            out.update(zip(part, encode(torch.stack([wavs[i] for i in part])), strict=True))
    return [out[i] for i in range(len(wavs))]


def batched(
    wavs: Sequence[np.ndarray],
    encode: Callable[[Tensor], Tensor],
    device: str,
    cache: Cache[bytes, Tensor] | None = None,
) -> list[Tensor]:
    """Encode waveforms in batches of equal length, equal waveforms once.

    Padding changes the features of encoders with normalisation over time, so nothing is padded: an item's result does not depend on
    its neighbours.

    Args:
        wavs: (T_i,) float32 each, 16 kHz.
        encode: (n, T) -> tensor whose first axis is n; it computes on ``device``.
        cache: remembers results between calls.

    Returns:
        one tensor a waveform, in order, on ``device``.
    """
    keys = [Cache.key(w) for w in wavs]
    known: dict[bytes, Tensor] = {}
    if cache is not None:
        known = {k: v for k in set(keys) if (v := cache.get(k)) is not None}
    new = {k: w for k, w in zip(keys, wavs, strict=True) if k not in known}
    with torch.inference_mode():
        ready = [torch.tensor(w, dtype=torch.float32, device=device) for w in new.values()]
        known.update(zip(new, encoded(ready, encode), strict=True))
    if cache is not None:
        for k in dict.fromkeys(keys):
            cache.put(k, known[k])
    return [known[k] for k in keys]


def load_encoder(
    name: str | None, embedded: str, classes: Sequence[str], device: str, what: str
) -> tuple[Any, Any, str]:
    """Load an encoder: the model in evaluation mode, its feature extractor (None where it has none), and its version.

    Args:
        name: Hub id or folder of a transformers model; None or "embedded" takes the embedded encoder; of speakers also "resemblyzer".
        embedded: that encoder's folder below ``assets``.
        classes: names of transformers classes; the one that the config names is taken, else the first.
        what: for the error message.

    Raises:
        UserError: not found, not loadable, or no network for a Hub id.
    """
    if name in (None, "embedded"):
        folder = embedded_path(embedded)
        return load_embedded(folder, device), None, f"embedded-{digest(folder / 'model.safetensors')}"
    if name == "resemblyzer" and embedded == "speaker":
        with loading(f"the {what} {name!r}", "pip install --no-deps resemblyzer"):
            path, net = weights_in("resemblyzer", "pretrained.pt"), Ge2eNet()
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            net.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity")})
        net.requires_grad_(False).eval().lstm.train()  # it has no dropout, and cuDNN gives gradients of nothing else
        return net.to(device), None, f"resemblyzer-{digest(path)}"
    import transformers

    with loading(f"the {what} {name!r}", FOLDER_HINT):
        config = pretrained(transformers.AutoConfig, name)
        named = [c for c in config.architectures or [] if c in classes]
        model = pretrained(getattr(transformers, named[0] if named else classes[0]), name, config=config)
        try:
            extractor = pretrained(transformers.AutoFeatureExtractor, name)
        except (OSError, ValueError):
            extractor = None
    return model.requires_grad_(False).eval().to(device), extractor, str(name)


def weights_in(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported: what it would import is not needed here.

    Raises:
        ImportError: the package is not installed.
        UserError: it has no such file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / file).is_file():
        what, why = f"the package {package} in {folder.parent} has no {file}", "another package may have the same name"
        why += ": torch.hub's SpeechMOS brings one to where it is cached" if package == "speechmos" else ""
        hint = f"take {folder.parent} out of PYTHONPATH, or pip install --force-reinstall {package}"
        raise UserError(what, why, hint)
    return folder / file


@lru_cache(maxsize=8)
def digest(path: Path) -> str:
    """First 8 hex digits of a file's SHA-256, for version strings: weights have been replaced silently before."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def prepared(wavs: Tensor, extractor: Any) -> Tensor:
    """(N, T) at the level of all clips; of zero mean and unit variance where the model's feature extractor says ``do_normalize``."""
    wavs = level_normalise(wavs, LEVEL_DBFS)
    if extractor is not None and getattr(extractor, "do_normalize", False):
        return (wavs - wavs.mean(-1, keepdim=True)) / (wavs.var(-1, keepdim=True, unbiased=False) + 1e-7).sqrt()
    return wavs


class _Encoded:
    """A family that compares encodings of a waveform and of its reference, which is encoded once for the G rollouts of a group."""

    device: str
    _cache: Cache[bytes, Tensor]

    def encode(self, wavs: Tensor) -> Tensor:
        """(N, T) at 16 kHz -> (N, ...)."""
        raise NotImplementedError

    def compare(self, output: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Values by column of two encodings."""
        raise NotImplementedError

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        ours, out = batched([s.wav for s in samples], self.encode, self.device), []
        with torch.inference_mode():
            for a, b in zip(ours, self._references(samples), strict=True):
                values = {name: float(value) for name, value in self.compare(a, b).items()}
                out.append({c: Score(values[c], detail={k: v for k, v in values.items() if k != c}) for c in columns})
        return out

    def soft(self, wavs: list[Tensor], samples: list[Sample], columns: list[str]) -> list[dict[str, Tensor]]:
        """Values with a gradient to the waveforms (T_i,)."""
        pairs = zip(encoded(wavs, self.encode), self._references(samples), strict=True)
        return [self.compare(a, b.clone()) for a, b in pairs]

    def _references(self, samples: Sequence[Sample]) -> list[Tensor]:
        return batched([s.target for s in samples if s.target is not None], self.encode, self.device, self._cache)


class SpeakerSimilarity(_Encoded):
    """``speaker_similarity``: the cosine between the speaker embeddings of a waveform and of its reference.

    Args:
        encoder: Hub id or folder of a transformers x-vector model, e.g. ``microsoft/wavlm-base-plus-sv``; "resemblyzer" reads the
            weights in the package of that name; None or "embedded" is the embedded encoder.
        device: where it runs.

    Raises:
        UserError: the encoder cannot be loaded.
    """

    def __init__(self, encoder: str | None = None, device: str = "cpu") -> None:
        self.device, self._cache = device, Cache[bytes, Tensor]()
        self._net, self._extractor, version = load_encoder(encoder, "speaker", XVECTOR, device, "speaker encoder")
        own = isinstance(self._net, SpeakerNet)
        self.version = version if own else f"{version} ({type(self._net).__name__})"

    def encode(self, wavs: Tensor) -> Tensor:
        """Embeddings of length 1: (N, T) at 16 kHz -> (N, D)."""
        out = self._net(prepared(wavs, self._extractor))
        return F.normalize(out if isinstance(out, Tensor) else out.embeddings, dim=-1)

    def compare(self, output: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"speaker_similarity": (output * reference).sum()}


def bert_score(output: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 of frame features (L, D) and (L', D)."""
    similarity = F.normalize(output.float(), dim=-1) @ F.normalize(reference.float(), dim=-1).T
    precision, recall = similarity.amax(1).mean().double(), similarity.amax(0).mean().double()
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else torch.zeros_like(total)


class SpeechBertScore(_Encoded):
    """``speech_bert_score`` (precision), ``speech_bert_recall``, ``speech_bert_f1`` (Saeki et al., Interspeech 2024).

    With frame features a_i of the output and b_j of the reference: precision = mean_i max_j cos(a_i, b_j), recall = mean_j max_i
    cos(a_i, b_j), F1 their harmonic mean. The paper's score is the precision, its features are layer 14 of ``microsoft/wavlm-large``.

    Args:
        encoder: Hub id or folder of a transformers speech encoder; None or "embedded" is the embedded encoder.
        layer: hidden layer of a transformers encoder (0 is the input of the first block); None takes 14 of 24, 8 of 12, or 60 %.
        device: where it runs.

    Raises:
        UserError: the encoder cannot be loaded.
    """

    def __init__(self, encoder: str | None = None, layer: int | None = None, device: str = "cpu") -> None:
        self.device, self._cache = device, Cache[bytes, Tensor](128)
        loaded = load_encoder(encoder, "speech_encoder", ("AutoModel",), device, "speech encoder")
        self._net, self._extractor, self.version = loaded
        self._layer: int | None = None
        if not isinstance(self._net, SpeechNet):
            depth = self._net.config.num_hidden_layers
            self._layer = min(depth, round(0.6 * depth) if layer is None else layer)
            self.version += f" layer {self._layer}"

    def encode(self, wavs: Tensor) -> Tensor:
        """Frame features: (N, T) at 16 kHz -> (N, L, D)."""
        wavs = prepared(wavs, self._extractor)
        if self._layer is None:
            return cast(Tensor, self._net(wavs))
        return cast(Tensor, self._net(wavs, output_hidden_states=True).hidden_states[self._layer])

    def compare(self, output: Tensor, reference: Tensor) -> dict[str, Tensor]:
        names = ("speech_bert_score", "speech_bert_recall", "speech_bert_f1")
        return dict(zip(names, bert_score(output, reference), strict=True))
