"""Teaching the embedded codec: recordings of speech become pairs of a stretch to code and another stretch that lends its voice.

The waveform that the decoder makes at the true pitch is compared with the original in log-mel spectra of several resolutions; pitch
and voicing are learned beside it. Nothing is compared sample by sample: phases are not in the tokens, and noise is drawn anew. With
``content_weight`` a frozen recogniser's encoder compares them too: 250 bit/s cannot carry every spectrum, and what words hang on is a
small part of it (the tokenizer of CosyVoice, arXiv 2407.05407, is taught by a recogniser altogether).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlspeech.config import Pretrain
from rlspeech.data.audio import to_level
from rlspeech.data.batches import Clip
from rlspeech.data.mixing import cut
from rlspeech.models.codec.codec import EmbeddedCodec
from rlspeech.models.codec.net import LEVEL_DBFS, PITCH_HZ, CodecNet
from rlspeech.models.recogniser import Recogniser, load_recogniser
from rlspeech.models.spectra import mel_filters
from rlspeech.scores import step_name
from rlspeech.stats import mean_interval
from rlspeech.tasks.base import Numbers, Task, keep_samples, means_of
from rlspeech.types import Sample

CROP_S, PROMPT_S = 1.5, 2.0
NO_PROMPT = 0.05  # share of rows that are decoded without a prompt
RESOLUTIONS = ((320, 120, 48), (1024, 256, 80))  # samples, hop, mel bands
FLOOR = 3e-4
PITCH_WEIGHT, VOICED_WEIGHT, ALIKE_WEIGHT = 4.0, 0.3, 0.3
PLAYERS = 4


@dataclass
class CodecBatch:
    """B stretches and their prompts."""

    wav: Tensor  # (B, T) at -25 dBFS
    # mel, pitch: (B, L, M) and (B, L), its analysis
    mel: Tensor
    pitch: Tensor
    # prompt_mel, prompt_pitch: the same of the prompts
    prompt_mel: Tensor
    prompt_pitch: Tensor
    real: Tensor  # (B,) frames of the prompts; 0: no prompt


class CodecTask(Task):
    """The task ``codec``: pretraining only."""

    name = "codec"
    settings = frozenset({"codec", "content_weight", "content_ear"})
    required = frozenset({"audio_filepath"})
    valid_metrics = ("estoi", "speaker_similarity")
    next_command = "rlspeech pretrain --task tts --set tts.codec={run}"
    part, network = "codec", CodecNet

    def collate(self, clips: Sequence[Clip], model: CodecNet, device: torch.device | str = "cpu") -> CodecBatch:
        """A stretch and a prompt of every clip. Draws from torch's generator, which a resumed run restores."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        rate = model.sample_rate
        wavs = [to_level(np.asarray(c.target, dtype=np.float32), LEVEL_DBFS) for c in clips]
        crop = model.frames(int(CROP_S * rate)) * model.cfg.hop
        content = torch.from_numpy(np.stack([cut(w, crop, rng)[0] for w in wavs]))
        prompts = torch.from_numpy(np.stack([cut(w, int(PROMPT_S * rate), rng)[0] for w in wavs]))
        frames = model.frames(prompts.shape[1])
        real = torch.tensor([0 if rng.random() < NO_PROMPT else min(frames, model.frames(len(w))) for w in wavs])
        nothing = torch.zeros(len(wavs), 1, 1), torch.zeros(len(wavs), 1)
        prompt = model.analyse(prompts, frames) if model.cfg.voice_dim else nothing
        mel, pitch = model.analyse(content, crop // model.cfg.hop)
        return CodecBatch(*(x.to(device) for x in (content, mel, pitch, *prompt, real)))

    def pretrain_loss(self, model: CodecNet, batch: CodecBatch, config: Pretrain) -> dict[str, Tensor]:
        """``loss`` = spectra + pitch + voicing + what the dimensions of the code share; ``used`` is the share of the vocabulary in use."""
        length = batch.mel.shape[1]
        real = torch.full((len(batch.wav),), length, device=batch.wav.device)
        codes, ids = model.encode(batch.mel, batch.pitch, real)
        voice = model.encode_voice(batch.prompt_mel, batch.prompt_pitch, batch.real) if model.cfg.voice_dim else None
        out = model.decode(codes, real // model.cfg.stride, voice)
        made = model.synthesise(out, batch.pitch)
        spectra = spectral_loss(made.float(), batch.wav, model.sample_rate)
        voiced_frames = batch.pitch > 0
        truth = (batch.pitch.clamp_min(1.0) / PITCH_HZ).log()
        pitch = ((out.pitch.float() - truth).abs() * voiced_frames).sum() / voiced_frames.sum().clamp_min(1)
        voiced = F.binary_cross_entropy_with_logits(out.voiced.float(), voiced_frames.float())
        alike = correlation(codes)
        loss = spectra + PITCH_WEIGHT * pitch + VOICED_WEIGHT * voiced + ALIKE_WEIGHT * alike
        used = torch.tensor(len(ids.unique()) / min(ids.numel(), model.quantise.size))
        parts = {"spectra": spectra, "pitch": pitch, "voiced": voiced, "alike": alike}
        parts = {k: v.detach() for k, v in parts.items()} | {"used": used}
        if config.content_weight:
            content = content_loss(frozen_recogniser(config.content_ear, str(made.device)), made.float(), batch.wav)
            loss, parts["content"] = loss + config.content_weight * content, content.detach()
        return {"loss": loss, **parts}

    @torch.no_grad()
    def validate(
        self, model: CodecNet, clips: list[Clip], folder: Any, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Code held-out clips and decode them with another clip of the same speaker as the prompt (itself where there is none).

        Returns the scorer's means; ``mel`` (mean distance of log-mel spectra), ``perplexity`` of the ids, ``bits_s`` they carry a second.
        """
        codec = EmbeddedCodec(model.eval())
        wavs = [to_level(c.target, LEVEL_DBFS) for c in clips]
        ids = codec.encode(wavs)
        made = codec.decode(ids, [wavs[i] for i in other_by_speaker(clips)])
        rate, rows = codec.sample_rate, list(zip(clips, made, wavs, strict=True))
        samples = [Sample(c.key, m[: len(w)], rate, w, c.text, c.columns) for c, m, w in rows]
        keep_samples(folder.path / "samples" / step_name(step), samples, PLAYERS)
        keep_samples(folder.path / "samples" / "original", [Sample(c.key, w, rate) for c, _, w in rows], PLAYERS)
        numbers = means_of(scorer.score(samples))
        pairs = ((torch.from_numpy(s.wav)[None], torch.from_numpy(s.target)[None]) for s in samples)
        mel = [float(spectral_loss(copy, original, rate)) for copy, original in pairs]
        share = torch.bincount(torch.cat(ids), minlength=codec.size).double()
        entropy = -float(torch.xlogy(share / share.sum(), share / share.sum()).sum())
        bits_s = entropy / np.log(2) / codec.frame_s
        return numbers | {"mel": mean_interval(mel), "perplexity": float(np.exp(entropy)), "bits_s": bits_s}


def spectral_loss(made: Tensor, truth: Tensor, sample_rate: int) -> Tensor:
    """Mean distance of log-mel magnitudes over several resolutions, in nepers; both (B, T)."""
    total = made.new_zeros(())
    for size, hop, mels in RESOLUTIONS:
        window, bank = (x.to(made.device) for x in _window_and_bank(size, mels, sample_rate))

        def log_mel(wav: Tensor, size: int = size, hop: int = hop, window: Tensor = window, bank: Any = bank) -> Tensor:
            spec = torch.stft(wav, size, hop, window=window, pad_mode="constant", return_complex=True)
            return ((bank @ torch.view_as_real(spec).square().sum(-1)) + FLOOR**2).log().mul(0.5)

        with torch.no_grad():
            theirs = log_mel(truth)
        total = total + (log_mel(made) - theirs).abs().mean()
    return total / len(RESOLUTIONS)


def content_loss(recogniser: Recogniser, made: Tensor, truth: Tensor) -> Tensor:
    """1 - cosine between what a frozen recogniser's encoder makes of copies and originals, (B, T) at its rate, a mean over its frames.

    Only the copies, ``made``, take a gradient.
    """

    def encoded(wavs: Tensor) -> Tensor:
        features, real = recogniser.features(list(wavs))
        return recogniser.encode(features, real.to(features.device))

    with torch.no_grad():
        theirs = encoded(truth)
    return (1 - F.cosine_similarity(encoded(made), theirs, dim=-1)).mean()


@lru_cache(maxsize=2)
def frozen_recogniser(name: str, device: str) -> Recogniser:
    """A recogniser whose weights take no gradient. Raises ``UserError``."""
    return load_recogniser(name, device)[0].requires_grad_(False)


def correlation(codes: Tensor) -> Tensor:
    """Mean squared correlation between the dimensions of codes (B, S, D): 0 where each says something of its own."""
    flat = codes.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    flat = flat / flat.square().mean(0).clamp_min(1e-4).sqrt()
    shared = flat.T @ flat / len(flat)
    others = shared - torch.diag(shared.diag())
    return others.square().sum() / max(1, others.numel() - len(others))


@lru_cache(maxsize=8)
def _window_and_bank(size: int, mels: int, sample_rate: int) -> tuple[Tensor, Tensor]:
    """A window, and a mel bank of which every band sums to 1 over the window's length."""
    bank = mel_filters(sample_rate, size, mels)
    return torch.hann_window(size), bank / bank.sum(1, keepdim=True).clamp_min(1e-9) / size


def other_by_speaker(clips: Sequence[Clip]) -> list[int]:
    """For each clip another one of the same speaker, the next around; itself where the speaker is unknown or alone."""
    speakers: dict[Any, list[int]] = {}
    for i, c in enumerate(clips):
        speakers.setdefault(c.columns.get("speaker_id") or f"clip {i}", []).append(i)
    place = {i: (group, k) for group in speakers.values() for k, i in enumerate(group)}
    return [place[i][0][(place[i][1] + 1) % len(place[i][0])] for i in range(len(clips))]
