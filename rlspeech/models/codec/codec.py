"""Codecs: speech to one flat stream of ids and back, whichever codec it is.

``load_codec`` takes the embedded codec (``models/codec/net.py``), a folder that ``pretrain --task codec`` wrote, or a codec of
transformers by name: XCodec2, NeuCodec, Mimi and DAC, by Hub id or folder.

Codecs of several codebooks become one stream by writing the first K codes of every frame one after the other, each with its codebook's
offset: position ``t * K + k`` holds ``k * codebook_size + code``. ``decode`` reads a code by its position, so an id of another codebook
(a language model may write anything) counts as the code that it is modulo the codebook, and an unfinished last frame is left out.

Every waveform is encoded by itself, and only streams of one length are decoded together: the encoders look at padding (none of the four
masks its convolutions), and what a row sounds like must not hang on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from rlspeech.data.audio import resample, rms_dbfs, to_level
from rlspeech.files import read_object
from rlspeech.models.codec.net import LEVEL_DBFS, PITCH_HZ, CodecNet, DecoderOutput
from rlspeech.models.folder import load_net, loading, pretrained
from rlspeech.models.hub import load_model, refuse_originals
from rlspeech.models.spectra import kaldi_filters
from rlspeech.types import UserError

BATCH_S = 24.0  # seconds of padded speech that go through a network at once
PROMPT_S = 10.0  # of a prompt, more tells no more of a voice


@runtime_checkable
class Codec(Protocol):
    """Speech as a flat stream of ids."""

    sample_rate: int  # of the waveforms, in Hz
    frame_s: float  # seconds of speech that one id stands for
    size: int  # ids are 0 to size - 1
    name: str  # what it was loaded as
    wants_prompt: bool  # whether ``decode`` takes the voice from prompt speech

    def encode(self, wavs: Sequence[np.ndarray]) -> list[Tensor]:
        """Ids (T_i,) long, on the CPU, of waveforms (samples_i,); each has at least one."""
        ...

    def decode(self, ids: Sequence[Tensor], prompts: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """Waveforms (samples_i,) float32 of ids (T_i,); no ids, no samples. Each is the same whatever else is in the list.

        Args:
            ids: every one below ``size``.
            prompts: speech in the voice that is wanted, one a row; None: no particular voice.
        """
        ...


class EmbeddedCodec:
    """``CodecNet``, in evaluation mode, as a ``Codec``; ``name`` is what it was loaded as."""

    def __init__(self, net: CodecNet, name: str = "embedded") -> None:
        self.net, self.name = net, name
        self.sample_rate, self.size = net.sample_rate, net.quantise.size
        self.frame_s = net.samples / net.sample_rate
        self.wants_prompt = net.cfg.voice_dim > 0

    @property
    def coordinates(self) -> Tensor:
        """(V, D) in [-1, 1]: the code of every id."""
        return self.net.quantise.codes(torch.arange(self.size, device=self.device)).cpu()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.window.device

    @torch.no_grad()
    def encode(self, wavs: Sequence[np.ndarray]) -> list[Tensor]:
        """Ids of waveforms; level, mean spectrum and mean pitch of each are not in them."""
        found: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(wavs)
        for rows in length_batches([len(w) for w in wavs], BATCH_S * self.sample_rate):
            mel, pitch, real = self.analyse([wavs[i] for i in rows])
            _, ids = self.net.encode(mel, pitch, real)
            for i, row, n in zip(rows, ids.cpu(), real.tolist(), strict=True):
                found[i] = row[: n // self.net.cfg.stride].clone()
        return found

    @torch.no_grad()
    def decode(self, ids: Sequence[Tensor], prompts: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """Waveforms at -25 dBFS."""
        voices = self.voices(prompts if prompts is not None else [None] * len(ids))
        made: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(ids)
        for rows in length_batches([len(x) * self.net.samples for x in ids], BATCH_S * self.sample_rate):
            real = torch.tensor([len(ids[i]) for i in rows], device=self.device)
            if int(real.max()) == 0:
                continue
            padded = pad_sequence([ids[i].long().cpu() for i in rows], batch_first=True).to(self.device)
            wavs = self.synthesise(padded, real, None if voices is None else voices[rows])
            for i, wav in zip(rows, wavs, strict=True):
                made[i] = to_level(wav.cpu().numpy().astype(np.float32), LEVEL_DBFS)
        return made

    def synthesise(self, ids: Tensor, real: Tensor, voice: Tensor | None) -> list[Tensor]:
        """Waveforms (samples_i,) of padded ids (N, S), ``real`` (N,) of each, in voices (N, voice_dim)."""
        out = self.net.decode(self.net.quantise.codes(ids), real, voice)
        hertz = PITCH_HZ * out.pitch.clamp(-1.2, 1.2).exp()
        pitch, made = torch.where(out.voiced > 0, hertz, torch.zeros_like(hertz)), list[Tensor]()
        for i, frames in enumerate((real * self.net.cfg.stride).tolist()):
            if not frames:
                made.append(torch.zeros(0, device=ids.device))
                continue
            # a row is synthesised alone, on the same noise from its start: what it sounds like must not hang on its neighbours
            own = DecoderOutput(*(x[i : i + 1, :frames] for x in out))
            made.append(self.net.synthesise(own, pitch[i : i + 1, :frames], torch.Generator().manual_seed(0))[0])
        return made

    @torch.no_grad()
    def voices(self, prompts: Sequence[np.ndarray | None]) -> Tensor | None:
        """Voice vectors (N, voice_dim) of prompts; equal arrays are encoded once. None where the codec has no voices."""
        if not self.wants_prompt:
            return None
        known: dict[int, Tensor] = {}
        for prompt in prompts:
            if id(prompt) not in known:
                known[id(prompt)] = self._voice(prompt)
        nothing = torch.zeros(0, self.net.cfg.voice_dim, device=self.device)
        return torch.stack([known[id(p)] for p in prompts]) if prompts else nothing

    def _voice(self, prompt: np.ndarray | None) -> Tensor:
        if prompt is None or not np.isfinite(rms_dbfs(prompt)):
            return self.net.nobody.detach()
        mel, pitch, real = self.analyse([prompt[: int(PROMPT_S * self.sample_rate)]])
        return self.net.encode_voice(mel, pitch, real)[0]

    def analyse(self, wavs: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel (N, L, M), pitch (N, L) and real frames (N,) of waveforms, each brought to -25 dBFS."""
        real = torch.tensor([self.net.frames(len(w)) for w in wavs])
        padded = np.zeros((len(wavs), max(map(len, wavs))), dtype=np.float32)
        for row, wav in zip(padded, wavs, strict=True):
            row[: len(wav)] = to_level(np.asarray(wav, dtype=np.float32), LEVEL_DBFS)
        real = real.to(self.device)
        return *self.net.analyse(torch.from_numpy(padded).to(self.device), int(real.max()), real), real


def length_batches(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Rows of like length together, ``most`` padded samples a batch, longest first."""
    batches, held = list[list[int]](), list[int]()
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if held and lengths[held[0]] * (len(held) + 1) > most:
            batches.append(held)
            held = []
        held.append(i)
    return [*batches, held] if held else batches


def start_alike(rows: Tensor, codec: Codec) -> None:
    """Start the codes' vectors, rows (V, D), so that ids whose codes differ little have vectors that differ little.

    A code of finite scalar quantisation is a few numbers, and an id says nothing of them: a language model that has to find out from data
    which of a thousand ids sound the same needs three times the steps to the same loss (measured over the first 300). Rows of a codec
    that does not tell its codes are left as they are.
    """
    if not isinstance(codec, EmbeddedCodec):
        return
    codes = codec.coordinates
    spread = rows.std()
    each = torch.cat([one_hot(column.unique(return_inverse=True)[1]).float() for column in codes.T], 1)
    for part, share in ((codes, 0.7), (each, 0.5)):
        made = part.to(rows) @ torch.randn(part.shape[1], rows.shape[1]).to(rows)
        rows.mul_((1 - share**2) ** 0.5).add_(made / made.std() * spread * share)


class Family(NamedTuple):
    """A codec's class in transformers, where its weights are and under which licence, how many codebooks are used by default."""

    cls: str
    hub: str
    licence: str
    books: int
    semantic: bool = False  # encodes Kaldi features as well


FAMILIES = {
    "xcodec2": Family("Xcodec2Model", "HKUSTAudio/xcodec2-hf", "CC BY-NC 4.0 (no commercial use)", 1, semantic=True),
    "neucodec": Family("NeuCodecModel", "neuphonic/neucodec", "Apache-2.0", 1, semantic=True),
    "mimi": Family("MimiModel", "kyutai/mimi", "CC BY 4.0", 8),
    "dac": Family("DacModel", "descript/dac_16khz", "MIT", 3),
}


class HubCodec:
    """A codec of transformers.

    Args:
        net: the model, in evaluation mode.
        name: what it was loaded as.
        books: how many codebooks are used, from the first on; None: as many as the family's default.

    Raises:
        UserError: more codebooks than there are.
    """

    wants_prompt = False

    def __init__(self, net: Any, name: str, books: int | None = None) -> None:
        self.net, self.name = net, name
        cfg, self.family = net.config, str(net.config.model_type)
        have = int(getattr(cfg, "num_quantizers", 0) or getattr(cfg, "n_codebooks", 0) or 1)
        least = int(getattr(cfg, "num_semantic_quantizers", 1))
        self.books = books if books is not None else max(least, min(FAMILIES[self.family].books, have))
        if not least <= self.books <= have:
            why = f"it has {have}, and needs {least} at least"
            hint = f"{self.family}:FOLDER_OR_HUB_ID:{have}"
            raise UserError(f"{name} cannot use {self.books} codebooks", why, hint)
        self.input_rate = int(getattr(cfg, "input_sampling_rate", 0) or cfg.sampling_rate)
        self.sample_rate = int(getattr(cfg, "output_sampling_rate", 0) or cfg.sampling_rate)
        if self.family == "mimi":
            self.hop = round(self.input_rate / float(cfg.frame_rate))
        else:
            self.hop = math.prod(cfg.downsampling_ratios)
        self.codebook = int(getattr(cfg, "codebook_size", 0) or math.prod(cfg.quantization_levels))
        self.size = self.books * self.codebook
        self.frame_s = self.hop / self.input_rate / self.books

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.net.parameters()).device
        return device

    @torch.no_grad()
    def encode(self, wavs: Sequence[np.ndarray]) -> list[Tensor]:
        """Ids of waveforms at ``sample_rate``; each is encoded alone."""
        rates = self.sample_rate, self.input_rate
        return [self._encode(resample(np.asarray(w, dtype=np.float32), *rates)) for w in wavs]

    def _encode(self, wav: np.ndarray) -> Tensor:
        frames = max(1, -(-len(wav) // self.hop))
        # one frame to spare, as the extractors leave: NeuCodec's mel branch is a frame behind its waveform branch
        given = torch.zeros(1, 1, (frames + 1) * self.hop)
        given[0, 0, : len(wav)] = torch.from_numpy(wav)
        if FAMILIES[self.family].semantic:
            features = fbank_features(given[0, 0].numpy(), self.hop // 2 if self.family == "xcodec2" else 0)
            codes = self.net.encode(given.to(self.device), input_features=features[None].to(self.device)).audio_codes
        else:
            books = {"num_quantizers" if self.family == "mimi" else "n_quantizers": self.books}
            codes = self.net.encode(given[..., : -self.hop].to(self.device), **books).audio_codes
        kept = codes[0, : self.books, :frames].cpu().long()  # (K, frames)
        return (kept + self.codebook * torch.arange(self.books)[:, None]).T.reshape(-1)

    @torch.no_grad()
    def decode(self, ids: Sequence[Tensor], prompts: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """Waveforms of ids; ``prompts`` are not needed, the voice is in the ids."""
        made: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(ids)
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(ids):
            groups.setdefault(len(row) // self.books, []).append(i)
        for frames, rows in groups.items():
            if frames == 0:
                continue
            most = max(1, int(BATCH_S / (frames * self.books * self.frame_s)))
            for at in range(0, len(rows), most):
                some = rows[at : at + most]
                flat = torch.stack([ids[i][: frames * self.books].long().cpu() for i in some]) % self.codebook
                codes = flat.reshape(len(some), frames, self.books).transpose(1, 2)
                wavs = self.net.decode(audio_codes=codes.to(self.device)).audio_values
                for i, wav in zip(some, wavs.reshape(len(some), -1).float().cpu().numpy(), strict=True):
                    length = round(frames * self.hop * self.sample_rate / self.input_rate)
                    made[i] = np.pad(wav[:length], (0, max(0, length - len(wav))))
        return made


def fbank_features(wav: np.ndarray, side: int) -> Tensor:
    """Input of the semantic half of XCodec2 and NeuCodec: (T,) at 16 kHz -> (L, 160).

    Kaldi's log-mel (25 ms Povey windows every 10 ms, pre-emphasis 0.97, 80 bands from 20 Hz), mean 0 and spread 1 over the recording,
    two frames side by side. transformers' extractors ask torchaudio for it, which has no build beside every torch; this is the numpy
    version that the original XCodec2 used. ``side`` zeros stand at both ends.
    """
    from transformers.audio_utils import spectrogram, window_function

    how: dict[str, Any] = {"frame_length": 400, "hop_length": 160, "fft_length": 512, "power": 2.0, "center": False}
    how |= {"preemphasis": 0.97, "mel_filters": kaldi_filters(80, 512, 16000), "log_mel": "log"}
    how |= {"mel_floor": 1.192092955078125e-07, "remove_dc_offset": True}
    frames = spectrogram(np.pad(wav, side) * 2.0**15, window_function(400, "povey", periodic=False), **how).T
    x = torch.from_numpy(np.ascontiguousarray(frames)).float()
    x = (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=True) + 1e-7) if len(x) > 1 else x - x.mean(0)
    if len(x) % 2:
        x = torch.cat([x, torch.ones(1, x.shape[1])])  # the extractors' padding value
    return x.reshape(len(x) // 2, -1)


def parse(name: str) -> tuple[str, str, int | None] | None:
    """Family ("": the checkpoint says it), Hub id or folder, and codebooks of a name; None where it is not a codec of transformers."""
    head, _, rest = name.partition(":")
    if head in FAMILIES:
        where, _, books = rest.rpartition(":") if rest.rpartition(":")[2].isdigit() else (rest, "", "")
        return head, where or FAMILIES[head].hub, int(books) if books else None
    path = Path(name)
    if (path / "config.json").is_file():
        kind = read_object(path / "config.json").get("model_type")
        return (kind, name, None) if kind in FAMILIES else None
    hub_like = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.exists()
    return ("", name, None) if hub_like and not path.parent.exists() else None


def licence_of(name: str) -> str:
    """Under which licence the weights of a codec are published: "unknown" of others than ``FAMILIES``, "" of one that was trained here."""
    parsed = parse(name) if name else ("", "", None)
    return "" if parsed is None else next((f.licence for f in FAMILIES.values() if f.hub == parsed[1]), "unknown")


def load_codec(name: str = "embedded", device: torch.device | str = "cpu") -> Codec:
    """A codec by name: embedded, a checkpoint or run folder of ``pretrain --task codec``, or one of transformers (``FAMILIES``).

    ``xcodec2``, ``neucodec``, ``mimi`` and ``dac`` are those of the Hub; ``mimi:FOLDER`` or a Hub id or folder names another one, and
    ``mimi:FOLDER:2`` how many of its codebooks are used.

    Raises ``UserError``: no such codec, another kind of model, or weights that do not fit.
    """
    if (parsed := parse(name)) is None:
        return EmbeddedCodec(load_model(name, "codec", device)[0], name)
    import transformers

    family, where, books = parsed
    refuse_originals(where)
    hint = "embedded, a folder of `pretrain --task codec`, or mimi:FOLDER_OR_HUB_ID (xcodec2, neucodec, dac)"
    with loading(f"the codec {name}", hint):
        found = str(pretrained(transformers.AutoConfig, where).model_type)
        if found not in FAMILIES or family not in ("", found):
            raise ValueError(f"its model_type is {found!r}, not {family or ' or '.join(FAMILIES)}")
        net = load_net(getattr(transformers, FAMILIES[found].cls), where, dtype=torch.float32)
    return HubCodec(net.to(device).eval().requires_grad_(False), name, books)
