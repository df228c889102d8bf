"""DNSMOS (Reddy et al. 2021, 2022): P.835 (SIG, BAK, OVRL), the personalised P.835 and P.808, as torch modules and through onnxruntime.

The weights are read from the ONNX files inside the installed ``speechmos`` package. All nets are a spectrogram, 3x3 convolutions with
pooling, a maximum over all positions and three dense layers, so the length is free. P.835's spectrogram is a windowed DFT inside the
graph; P.808's is librosa's mel spectrogram, computed here in torch.

The scoring follows ``speechmos``: the clip is doubled until it lasts 9.01 s, windows of 9.01 s start every second, each window's raw
output goes through a polynomial, and the windows are averaged. Less is computed than there, with the same result. Windows of a doubled
clip that hold the same samples are scored once and weighted. P.835's windows share what its convolutions make of the clip: only so much
at a window's ends as sees beyond it is computed for each, which for the first four, 98 % of the work, are 4 frames; and what is made
of a clip of whole frames returns with it. For 2 s that is 240 frames for 6,300, for 30 s 1,620 for 6,300. P.808's windows have their
own dB scale; those that repeat a clip of whole frames are cut down to what its field of view can tell apart. On a CPU the ONNX graph runs
in onnxruntime, its length made free; on a GPU, and wherever gradients are wanted, the torch module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.models.spectra import level_normalise, mel_filters
from rlspeech.rewards.encoders import LEVEL_DBFS, digest, weights_in
from rlspeech.types import Sample, Score

RATE_HZ, HOP = 16000, 160
WINDOW = 144160  # samples: 9.01 s
VIEW = 64  # frames: more than the field of view of P.808's net (46) and of its front end
TRUNK, LAST = (
    4,
    6,
)  # of P.835's convolutions: the first whose input is pooled, and the one that sees a window's own pooling
MAX_WINDOWS = 32  # of a clip that are scored together: what they share takes 80 MB
DEAD = 0.25
MAX_FRAMES = 1200  # of one batch; larger ones measured slower: the first layers leave the cache
_OVR = "dnsmos_models/sig_bak_ovr.onnx"
FILES = {"p835": _OVR, "pp835": f"p{_OVR}", "p808": "dnsmos_models/model_v8.onnx"}
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
    return weights_in("speechmos", FILES[kind])


class _Convs(nn.Module):
    """What both nets share: 3x3 convolutions with pooling, maximum over all positions, three dense layers."""

    def __init__(self, weights: list[tuple[np.ndarray, np.ndarray]], pool_after: tuple[int, ...]) -> None:
        super().__init__()
        self.pool_after = pool_after
        self.convs, self.dense = nn.ModuleList(), nn.ModuleList()
        for w, b in weights:
            conv = w.ndim == 4
            layer: nn.Module = nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1) if conv else nn.Linear(*w.shape)
            layer.load_state_dict({"weight": torch.tensor(w if conv else w.T), "bias": torch.tensor(b)})
            (self.convs if conv else self.dense).append(layer)

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Args: x (N, 1, L, bins), or what came out before convolution ``start``; before ``stop`` it comes out as it is."""
        for i, conv in enumerate(self.convs[start:stop], start):
            x = F.relu(conv(F.max_pool2d(x, 2) if i - 1 in self.pool_after else x))
        if stop is not None:
            return x
        x = x.amax((2, 3))
        for i, dense in enumerate(self.dense):
            x = dense(x) if i + 1 == len(self.dense) else F.relu(dense(x))
        return x


def _model(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The ONNX model without P.835's dead channels, and all constants by name.

    22 of the 64 channels after the second convolution have the smallest weights (below ``DEAD``) and answer 0: to speech and noise at any
    level, tones, clicks and silence their sums stay below -0.04. A search over patches of spectrograms found some with 0.4, others' are 13.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(model_path(kind)))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if kind != "p808":
        second, third = [n.input for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 3][1:3]
        alive = np.abs(constants[second[1]]).max((1, 2, 3)) > DEAD
        for name, axis in ((second[1], 0), (second[2], 0), (third[1], 1)):
            constants[name] = np.compress(alive, constants[name], axis)
            kept = numpy_helper.from_array(constants[name], name)
            next(t for t in model.graph.initializer if t.name == name).CopyFrom(kept)
    return model, constants


def _read_weights(kind: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """(weight, bias) of the layers in the order of the graph, and all constants by name."""
    model, constants = _model(kind)
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            layers.append((constants[node.input[1]], constants[node.input[2]]))
        elif node.op_type == "MatMul":
            bias = next(n for n in model.graph.node if n.op_type == "Add" and node.output[0] in n.input)
            layers.append((constants[node.input[1]], constants[bias.input[1]]))
    return layers, constants


class P835Net(nn.Module):
    """P.835 net, differentiable to the waveform: (N, T) at 16 kHz -> (N, 3) SIG, BAK, OVRL of the clip as it is.

    T is free (the official scores see 9.01 s; see ``windows``); the weights take no gradient.

    Args:
        personalised: the net and polynomial for personalised enhancement.
        level_dbfs: scale every clip to this RMS first, so that gain earns nothing; None leaves the level.
    """

    def __init__(self, personalised: bool = False, level_dbfs: float | None = None) -> None:
        super().__init__()
        self.kind, self.level_dbfs = "pp835" if personalised else "p835", level_dbfs
        layers, constants = _read_weights(self.kind)
        self.net = _Convs(layers, pool_after=(3, 4, 5))
        kernels = [torch.tensor(constants[f"time2freq/stft-{part}/kernel:0"][..., 0]) for part in ("real", "imag")]
        self.register_buffer("dft", torch.cat(kernels))  # (2 * 161, 320), the window multiplied in
        self.register_buffer("polynomial", torch.tensor(POLYNOMIALS[self.kind]))
        self.requires_grad_(False).eval()

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T), at least 0.2 s."""
        x = self.raw(wav if self.level_dbfs is None else level_normalise(wav, self.level_dbfs))
        powers = torch.stack([x**3, x**2, x, torch.ones_like(x)], -1)  # (N, 3, 4)
        return (powers * cast(Tensor, self.polynomial)).sum(-1)

    def raw(self, wav: Tensor, stop: int | None = None) -> Tensor:
        """The same at the clip's own level and without the polynomial; or what comes out before convolution ``stop``."""
        frames = wav.unfold(-1, 2 * HOP, HOP)  # (N, L, 320)
        real, imag = (frames @ cast(Tensor, self.dft).T).chunk(2, -1)
        logpower = (real.square() + imag.square()).clamp_min(1e-12).log10()
        return cast(Tensor, self.net(logpower[:, None], stop=stop))


class P808Net(nn.Module):
    """P.808 net with its mel front end (librosa's, in torch): (N, T) at 16 kHz -> (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _Convs(_read_weights("p808")[0], pool_after=(0, 1, 3))
        self.register_buffer("window", torch.hann_window(321))
        self.register_buffer("bank", mel_filters(RATE_HZ, 321, 120).contiguous())
        self.requires_grad_(False).eval()

    def features(self, wav: Tensor) -> Tensor:
        """Mel spectrogram in dB below the clip's maximum, (db + 40) / 40: (N, L, 120). The last 160 samples are left out."""
        wav = F.pad(wav[:, :-HOP], (160, 160))
        spec = torch.stft(wav, 321, HOP, 321, cast(Tensor, self.window), center=False, return_complex=True)
        mel = cast(Tensor, self.bank) @ (spec.real.square() + spec.imag.square())
        db = 10.0 * mel.clamp_min(1e-10).log10()
        db = db - db.amax((1, 2), keepdim=True)
        return (db.clamp_min(-80.0).transpose(1, 2) + 40.0) / 40.0

    def forward(self, wav: Tensor) -> Tensor:
        """Args: wav (N, T), at least 0.2 s."""
        return cast(Tensor, self.net(self.features(wav)[:, None]))

    raw = forward


def windows(length: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Which windows of a clip have to be scored.

    Args:
        length: T, samples of the clip at 16 kHz.

    Returns:
        number of times that the clip stands in a row (doubled until it reaches 9.01 s), and (start, samples, weight) of every
        distinct window in that row, in order; the weights sum to the number of official windows.
    """
    copies = 1
    while length * copies < WINDOW:
        copies *= 2
    total = length * copies
    ends = [(s * RATE_HZ, int((s + 9.01) * RATE_HZ)) for s in range(int(total // RATE_HZ - 9.01) + 1)]
    # rounding shortens some by a sample; the official code drops them
    starts = [a for a, b in ends if b <= total and b - a >= WINDOW]
    if copies == 1:
        return 1, [(s, WINDOW, 1) for s in starts]
    found: dict[int, list[int]] = {}  # those that hold the same samples
    for s in starts:
        found.setdefault(s % length, []).append(s)
    samples = WINDOW
    if length % HOP == 0:  # frames repeat with the clip; every pooling has the same phase after a multiple of 8 frames
        period = math.lcm(length // HOP, 8)
        spare = (WINDOW // HOP - VIEW) // period - 1
        samples -= max(0, spare) * period * HOP
    return copies, [(same[0], samples, len(same)) for same in found.values()]


@lru_cache(maxsize=8)
def _session(kind: str, threads: int, trunk: bool = False) -> Any:
    """One onnxruntime session a process and a net (or its ``TRUNK``), with the graph's fixed number of frames made free."""
    import onnx
    import onnxruntime as ort  # type: ignore[import-untyped]
    from onnx import numpy_helper

    model, _ = _model(kind)
    for tensor in model.graph.initializer:
        if tensor.name in {"shape_tensor", "shape_tensor1"}:
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, -1, 160], np.int64), tensor.name))
        elif tensor.name == "input_1:01_cropping_end":
            tensor.CopyFrom(numpy_helper.from_array(np.array([2**63 - 1, -HOP], np.int64), tensor.name))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "L"
    if trunk:
        name = [node.output[0] for node in model.graph.node if node.op_type == "Relu"][TRUNK - 1]
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves other processes
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Dnsmos:
    """``dnsmos_ovrl``, ``dnsmos_sig``, ``dnsmos_bak``: P.835 as published, agreeing with ``speechmos.dnsmos.run``.

    Args:
        device: where the torch module runs.
        engine: "onnx", "torch", or "auto": onnxruntime on a CPU where it is installed.
        level_dbfs: scale every clip to this RMS first; None leaves the level.
        threads: of onnxruntime; 0 takes torch's number.
    """

    kind = "p835"
    official = True
    heads = ("sig", "bak", "ovrl")  # of ``predict``

    def __init__(
        self, device: str = "cpu", engine: str = "auto", level_dbfs: float | None = None, threads: int = 0
    ) -> None:
        if engine == "auto":
            engine = "onnx" if device == "cpu" and find_spec("onnxruntime") else "torch"
        self.device, self.engine, self.level_dbfs = device, engine, level_dbfs
        self.threads = threads or torch.get_num_threads()

    @property
    def version(self) -> str:
        """Scoring rule and the hash of the weights."""
        rule = "windows of 9.01 s" if self.official else "clip as it is"
        level = "" if self.level_dbfs is None else f", at {self.level_dbfs:g} dBFS"
        return f"{self.kind}-{digest(model_path(self.kind))}, {rule}{level}"

    @cached_property
    def predict(self) -> P835Net | P808Net:
        """The torch module, with a gradient to clips as they are: (N, T) -> (N, 3), brought to one level, or of P.808 (N, 1)."""
        level = LEVEL_DBFS if self.level_dbfs is None else self.level_dbfs
        return (P808Net() if self.kind == "p808" else P835Net(self.kind == "pp835", level)).to(self.device)

    def raw(self, wavs: np.ndarray, trunk: bool = False) -> np.ndarray:
        """Net outputs of equally long stretches: (N, T) -> (N, 3) or (N, 1); of P.835's ``TRUNK`` (N, 32, L, 161)."""
        with torch.inference_mode():
            if self.engine == "torch":
                how = {"stop": TRUNK} if trunk else {}
                return np.asarray(self.predict.raw(torch.from_numpy(wavs).to(self.device), **how).float().cpu())
            feed = cast(P808Net, self.predict).features(torch.from_numpy(wavs)).numpy() if self.kind == "p808" else wavs
            return np.asarray(_session(self.kind, self.threads, trunk).run(None, {"input_1": feed})[0])

    def outputs(self, wavs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every clip the raw outputs of its distinct windows (W, C) and their weights (W,), summing to 1."""
        stretches, made = list[np.ndarray](), list[tuple[np.ndarray | slice, np.ndarray]]()
        for wav in (w if self.level_dbfs is None else _at_level(w, self.level_dbfs) for w in wavs):
            copies, plan = windows(len(wav)) if self.official else (1, [(0, len(wav) // HOP * HOP, 1)])  # whole hops
            weights = np.array([w for _, _, w in plan], np.float64) / sum(w for _, _, w in plan)
            tiled = np.tile(wav, copies) if copies > 1 else wav
            if self.official and self.kind != "p808":
                period = len(tiled) if len(wav) % HOP or copies == 1 else len(wav) // HOP
                made.append((self._shared(tiled, [start // HOP for start, _, _ in plan], period), weights))
            else:
                made.append((slice(len(stretches), len(stretches) + len(plan)), weights))
                stretches += [tiled[start : start + samples] for start, samples, _ in plan]
        rows = self._batched(stretches)
        return [(np.stack(rows[r]) if isinstance(r, slice) else r, w) for r, w in made]

    def _batched(self, stretches: Sequence[np.ndarray], trunk: bool = False) -> list[np.ndarray]:
        """``raw`` of stretches, those of one length together."""
        out: dict[int, np.ndarray] = {}
        for length in dict.fromkeys(map(len, stretches)):
            rows, size = [i for i, s in enumerate(stretches) if len(s) == length], max(1, MAX_FRAMES * HOP // length)
            for part in (rows[k : k + size] for k in range(0, len(rows), size)):
                found = self.raw(np.stack([stretches[i] for i in part]).astype(np.float32), trunk)
                out.update(zip(part, found if trunk else found.astype(np.float64), strict=True))
        return [out[i] for i in range(len(stretches))]

    def _shared(self, wav: np.ndarray, starts: Sequence[int], period: int) -> np.ndarray:
        """Raw outputs of P.835's windows (W, 3), computing once what they share; ``starts``, and the ``period`` of the samples, in frames.

        A window's own are 4 frames at its ends, from stretches of 8; two poolings later 3 units of 4 frames, from stretches of 20.
        """
        if (count := len(starts)) > MAX_WINDOWS:
            runs = (starts[k : k + MAX_WINDOWS] for k in range(0, count, MAX_WINDOWS))
            return np.concatenate([self._shared(wav, run, period) for run in runs])
        first, frames = starts[0] + 4, WINDOW // HOP - 1
        last = min(first + (every := math.lcm(period, 4)) + 16, starts[-1] + frames - 4)
        parts = range(first, some := min(first + period, last), MAX_FRAMES)
        spans = [(at - 4, min(at + MAX_FRAMES, some) + 4) for at in parts]
        spans += [(s + at, s + at + 8) for at in (0, frames - 8) for s in starts]
        found = [torch.from_numpy(x) for x in self._batched([wav[a * HOP : (b + 1) * HOP] for a, b in spans], True)]
        shared = torch.cat([x[:, 4:-4] for x in found[: -2 * count]], 1)[:, torch.arange(last - first) % period]
        left, right = torch.stack(found[-2 * count : -count])[:, :, :4], torch.stack(found[-count:])[:, :, 4:]
        begin = torch.tensor(starts)[:, None]

        def own(x: Tensor, at: Tensor, period: int) -> Tensor:  # (W, C, units, bins): a window's part of what is shared
            return x[:, at % period].transpose(0, 1)

        with torch.inference_mode():
            net = self.predict.net
            left = torch.cat([left, own(shared, begin + torch.arange(4, 20) - first, every)], 2)
            right = torch.cat([own(shared, begin + torch.arange(frames - 20, frames - 4) - first, every), right], 2)
            middle, ends = (net(x.to(self.device), TRUNK, LAST) for x in (shared[None], torch.cat([left, right])))
            at = (begin - first - 8) // 4 + torch.arange(3, frames // 4 - 3)
            inner = own(middle[0, :, 2:-2], at, every // 4)
            return net(torch.cat([ends[:count, :, :3], inner, ends[count:, :, -3:]], 2), LAST).double().cpu().numpy()

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """SIG, BAK and OVRL of every clip; the raw averages and the number of distinct windows are in ``detail``."""
        prefix = columns[0].rsplit("_", 1)[0]
        poly = np.array(POLYNOMIALS[self.kind])
        answers = []
        for raw, weight in self.outputs([s.wav for s in samples]):
            mos = weight @ np.stack([np.polyval(p, raw[:, c]) for c, p in enumerate(poly)], 1)
            names = [f"{prefix}_{part}{kind}" for kind in ("", "_raw") for part in ("sig", "bak", "ovrl")]
            values = dict(zip(names, [*mos.tolist(), *(weight @ raw).tolist()], strict=True))
            answers.append({c: Score(values[c], detail={k: v for k, v in values.items() if k != c}) for c in columns})
        return answers


class PersonalisedDnsmos(Dnsmos):
    """``pdnsmos_*``: the personalised P.835 net with its own polynomial."""

    kind = "pp835"


class FastDnsmos(Dnsmos):
    """``dnsmos_fast_*``: the same net on the clip as it is, at -25 dBFS; a reward for short clips, not a number to report.

    It misses the joints that doubling puts between repetitions, so it is near the official score and not equal to it: on 24 real 2-s
    clips, half of them noisy, at the same level, OVRL differed by 0.06 on average and 0.22 at most (correlation 0.99).
    """

    official = False

    def __init__(self, device: str = "cpu", *, level_dbfs: float | None = LEVEL_DBFS, **how: Any) -> None:
        super().__init__(device, level_dbfs=level_dbfs, **how)


class P808(Dnsmos):
    """``dnsmos_p808``: P.808, one overall score."""

    kind = "p808"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        outputs = self.outputs([s.wav for s in samples])
        return [{columns[0]: Score(float(weight @ raw[:, 0]))} for raw, weight in outputs]


def _at_level(wav: np.ndarray, dbfs: float) -> np.ndarray:
    rms = float(np.sqrt(np.var(wav, dtype=np.float64) + 1e-12))
    return np.asarray(wav * (10.0 ** (dbfs / 20.0) / rms), np.float32)
