"""Codecs: speech to one flat stream of ids and back, whichever codec it is.

``load_codec`` takes the embedded codec (``models/codec/net.py``), a folder that ``pretrain --task codec`` wrote, or a codec of
transformers by name (``models/codec/hub.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from rlspeech.data.audio import rms_dbfs, to_level
from rlspeech.models.codec.net import LEVEL_DBFS, PITCH_HZ, CodecNet, DecoderOutput
from rlspeech.models.hub import load_model

__all__ = ["Codec", "EmbeddedCodec", "load_codec", "start_alike"]

BATCH_S = 24.0  # seconds of padded speech that go through a network at once
PROMPT_S = 10.0  # of a prompt, more tells no more of a voice


@runtime_checkable
class Codec(Protocol):
    """Speech as a flat stream of ids.

    Attributes:
        sample_rate: of the waveforms, in Hz.
        frame_s: seconds of speech that one id stands for.
        size: ids are 0 to size - 1.
        name: what it was loaded as.
        wants_prompt: whether ``decode`` takes the voice from prompt speech.
    """

    sample_rate: int
    frame_s: float
    size: int
    name: str
    wants_prompt: bool

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
    """``CodecNet`` as a ``Codec``.

    Args:
        net: in evaluation mode.
        name: what it was loaded as.
    """

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


def load_codec(name: str = "embedded", device: torch.device | str = "cpu") -> Codec:
    """A codec by name: embedded, a checkpoint or run folder of ``pretrain --task codec``, or one of transformers.

    ``xcodec2``, ``neucodec``, ``mimi`` and ``dac`` are those of the Hub; ``mimi:FOLDER`` or a Hub id or folder names another one, and
    ``mimi:FOLDER:2`` how many of its codebooks are used.

    Raises:
        UserError: no such codec, weights that do not fit.
    """
    from rlspeech.models.codec.hub import is_hub_codec, load_hub_codec

    if is_hub_codec(name):
        return load_hub_codec(name, device)
    net, _ = load_model(name, "codec", device)
    return EmbeddedCodec(net, name)


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
