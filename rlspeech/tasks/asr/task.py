"""Recognition: transcribed recordings become batches for ``pretrain``, and an audio language model becomes a policy for ``rl``.

``pretrain`` trains the small Fun-ASR-Nano of ``models/recogniser.py`` from nothing: cross-entropy on the text's pieces plus CTC on the
encoder. ``rl``, ``eval`` and ``transcribe`` take any audio language model through ``models/audio_lm/model.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlspeech.config import RL, Evaluate, Pretrain, RewardSpec
from rlspeech.config_parts import Augment
from rlspeech.data.batches import Clip
from rlspeech.data.text import get_normaliser
from rlspeech.models.audio_lm.model import load_audio_lm, save_audio_lm
from rlspeech.models.recogniser import SAMPLE_RATE, Recogniser, load_recogniser, make_tokenizer, save_recogniser
from rlspeech.rewards.rates import corpus_interval
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stats import Interval
from rlspeech.tasks.asr.policy import AsrPolicy
from rlspeech.tasks.base import Numbers, Task, Weights, keep_samples
from rlspeech.tasks.token_policy import RL_DEFAULTS, TOKEN_SETTINGS, check_texts, rows_of, texts_of
from rlspeech.types import Sample

TEXT = "basic-1"  # how training texts are written: what the model learns to write
BATCH = 16


@dataclass
class AsrBatch:
    """B recordings and their texts."""

    features: Tensor  # (B, L, D) stacked log-mel windows
    real: Tensor  # (B, L) long, 1 on real windows
    # ids, mask: (B, S) long, prompt and text
    ids: Tensor
    mask: Tensor
    answer: Tensor  # (B, S) bool, tokens that the model has to write
    labels: list[Tensor]  # B texts as pieces, for CTC


class Asr(Task):
    """The task ``asr``."""

    name = "asr"
    required = frozenset({"audio_filepath", "text"})
    settings = TOKEN_SETTINGS | {
        *("train_encoder", "suppress", "encoder_cache_mib", "asr", "augment", "ctc_weight", "beams", "systems"),
        *("sampling.language", "sampling.prompt", "sampling.tokens_per_s"),
    }
    next_command = "rlspeech rl --task asr --model {run}, or rlspeech transcribe FILE --model {run}"
    _rules = ("asr_accuracy", "asr_hallucination", "asr_keywords")
    default_rewards = tuple(RewardSpec(name=name, scale="none") for name in _rules)
    default_guards = ("asr_wer", "asr_insertions", "asr_deletions")
    default_metrics = tuple(
        "asr_wer asr_cer asr_insertions asr_deletions asr_substitutions asr_exact asr_keyword_f1 asr_hallucinated".split()
    )
    rl_defaults = RL_DEFAULTS

    def demo(self, part: Literal["train", "valid", "test"]) -> Path:
        from rlspeech.corpora.demo import demo_commands

        return demo_commands(part)

    # -- supervised training -------------------------------------------------------------------------------------------

    def build(self, config: Pretrain) -> Recogniser:
        """Fresh weights with a tokenizer trained on the data's texts, or ``init``'s. Raises ``UserError``: no texts."""
        if config.init is not None:
            return load_recogniser(config.init)[0]
        texts = texts_of(rows_of(config.data), get_normaliser(TEXT), "a recogniser")
        return Recogniser(config.asr, make_tokenizer(texts, config.asr.vocabulary))

    reload = staticmethod(load_recogniser)
    load = staticmethod(load_audio_lm)

    def save(self, folder: Path, model: Any, *, facts: dict[str, Any], weights: Weights = None) -> None:
        save = save_recogniser if isinstance(model, Recogniser) else save_audio_lm
        save(folder, model, facts=facts, weights=weights)

    def collate(
        self,
        clips: Sequence[Clip],
        model: Recogniser,
        device: torch.device | str = "cpu",
        *,
        augment: Augment | None = None,
    ) -> AsrBatch:
        """Features and pieces of clips. Draws from torch's generator, which a resumed run restores.

        Raises:
            UserError: a clip has no text.
        """
        normalise, augment = get_normaliser(TEXT), augment or Augment()
        check_texts(clips, "a recogniser")
        wavs = [speed_perturb(torch.from_numpy(c.noisy), augment) for c in clips]
        features, real = model.features(wavs, lambda frames: spec_augment(frames, augment))
        ids, mask, answer = model.tokens(real.sum(1).tolist(), texts := [normalise(c.text or "") for c in clips])
        labels = [torch.tensor(model.pieces(t), dtype=torch.long) for t in texts]
        features, real, ids, mask, answer = (x.to(device) for x in (features, real, ids, mask, answer))
        return AsrBatch(features, real, ids, mask, answer, labels)

    def pretrain_loss(self, model: Recogniser, batch: AsrBatch, config: Pretrain) -> dict[str, Tensor]:
        """``loss`` = (1 - w) cross-entropy of the text + w CTC of the encoder; ``right`` is the share of pieces guessed right.

        With w = 1 the language model is not run at all: a phase in which only the encoder learns takes half the time.
        """
        weight, parts = config.ctc_weight, dict[str, Tensor]()
        if weight == 1:
            loss = torch.zeros((), device=batch.features.device)
            states = model.head(model.encode(batch.features, batch.real))
        else:
            logits, states = model(batch.features, batch.real, batch.ids, batch.mask)
            written, truth = logits[:, :-1][batch.answer[:, 1:]], batch.ids[:, 1:][batch.answer[:, 1:]]
            loss = nn.functional.cross_entropy(written.float(), truth)
            parts = {"words": loss.detach(), "right": (written.detach().argmax(-1) == truth).float().mean()}
        if weight:
            logp, labels = states.float().log_softmax(-1).transpose(0, 1), torch.cat(batch.labels).to(states.device)
            lengths = batch.real.sum(1).cpu(), torch.tensor([len(x) for x in batch.labels])
            ctc = nn.functional.ctc_loss(logp, labels, *lengths, zero_infinity=True)
            loss, parts["ctc"] = (1 - weight) * loss + weight * ctc, ctc.detach()
        return {"loss": loss, **parts}

    def validate(
        self, model: Recogniser, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Greedy transcripts of held-out clips; word error rate by kind of speech where rows say it, and of the CTC head alone."""

        def by(method: Callable[[list[Tensor]], list[str]]) -> list[Sample]:
            return transcripts(lambda part: method([torch.from_numpy(c.noisy) for c in part]), clips, SAMPLE_RATE)

        samples = by(model.transcribe)
        keep_samples(folder.path / "samples" / step_name(step), samples, 0)
        return {**rates(samples), "ctc_wer": rates(by(model.ctc_transcribe)).get("wer", math.nan)}

    # -- reinforcement -------------------------------------------------------------------------------------------------

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        return AsrPolicy(self, adapted, config)

    def evaluation(self, config: Evaluate) -> Any:
        from rlspeech.tasks.asr.evaluate import Recognition

        return Recognition(self, config)

    def outputs(self, policy: Any, clips: list[Clip], *, seed: int = 0) -> list[Sample]:
        return transcripts(policy.transcribe, clips, policy.sample_rate)


def transcripts(recognise: Callable[[Sequence[Clip]], list[str]], clips: Sequence[Clip], rate: int) -> list[Sample]:
    """What ``recognise`` makes of clips, like lengths together, in the clips' order."""
    order = sorted(range(len(clips)), key=lambda i: len(clips[i].noisy))
    texts = [""] * len(clips)
    for at in range(0, len(order), BATCH):
        part = order[at : at + BATCH]
        for i, text in zip(part, recognise([clips[i] for i in part]), strict=True):
            texts[i] = text
    rows = zip(clips, texts, strict=True)
    return [Sample(c.key, c.noisy, rate, None, c.text, c.columns, hypothesis=text) for c, text in rows]


def rates(samples: Sequence[Sample]) -> dict[str, Interval]:
    """Corpus word error rate with its interval, of all and of each ``kind`` that the rows name."""
    groups: dict[str, list[tuple[str, str, str | None]]] = {}
    for s in samples:
        for name in ["wer", *([f"wer/{s.columns['kind']}"] if "kind" in s.columns else [])] if s.text else []:
            groups.setdefault(name, []).append((s.text or "", s.hypothesis or "", s.columns.get("language")))
    return {name: corpus_interval(texts, TEXT) for name, texts in groups.items()}


def speed_perturb(wav: Tensor, how: Augment) -> Tensor:
    """(T,) played at a speed drawn from the range, by linear interpolation."""
    low, high = how.speed
    speed = low + (high - low) * float(torch.rand(()))
    count = int(len(wav) / speed)
    if abs(speed - 1) < 1e-3 or count < 2:
        return wav
    return nn.functional.interpolate(wav[None, None], size=count, mode="linear", align_corners=True)[0, 0]


def spec_augment(frames: Tensor, how: Augment) -> Tensor:
    """Log-mel frames (L, mels) with stretches and bands set to their mean (SpecAugment, arXiv 1904.08779)."""
    frames, mean = frames.clone(), frames.mean()
    for axis, count, most in ((0, how.time_masks, how.time_share * len(frames)), (1, how.mel_masks, how.mel_width)):
        for _ in range(count):
            width = int(torch.rand(()) * (most + 1))
            start = int(torch.rand(()) * max(1, frames.shape[axis] - width))
            frames.transpose(0, axis)[start : start + width] = mean
    return frames
