"""Teaching the embedded listener: recordings with labels become batches of sound and sentences.

Rows of a paired manifest that hold the labels (``quality``, ``trait_...``, ``level_dbfs``) are taken as they are. From any other source,
such as the embedded corpus, the clean side of each clip is degraded and measured on the fly; the noise is what the mixture added, and the
other clips of the batch are the other talkers. The sentence of a clip is drawn anew each time.

The loss is cross-entropy on the words plus the squared error of the label head. The words alone would teach the encoder slowly, because
most of what decides them is which paraphrase was drawn.

Labels of a recording whose clean reference is known are a quality from 1 to 5 and graded traits. The textbook version takes ratings of
people (ITU-T P.808). None can be had for recordings that are made while a program runs, so the overall quality is *measured* against the
reference, by three scales that fail in different places and are averaged:

* PESQ (wide band), square root of its height above 1: follows rated quality best, reacts to muffling, but has a floor near 1.03 below
  5 dB and would call all bad recordings alike; the root spreads what it has there;
* ESTOI, on 0.15..1: falls steadily where PESQ lies at its floor, and reacts to gaps and rooms;
* SI-SDR, on -5..25 dB: an even ruler for noise, but blind to what hurts (a low-pass filter leaves it high).

Weights 0.4, 0.35, 0.25; the sum is stretched so that white noise at -5 dB is 1 and at 25 dB above 4. Without the pesq package the other two
share its weight, which react to muffling less. The level of the recording does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.config import Pretrain
from rlspeech.data.audio import AudioError
from rlspeech.data.batches import Clip, seed_of
from rlspeech.data.degrade import TRAITS, Degraded, Sources, degrade
from rlspeech.files import dumps, write_text
from rlspeech.models.listener import END, START, UNKNOWN, Listener, load_listener, save_listener
from rlspeech.rewards.intrusive import PesqWb, si_sdr, stoi_estoi
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.tasks.aids.sentences import describe, grades_of, read_back, stars_of, vocabulary
from rlspeech.tasks.base import Numbers, Task
from rlspeech.types import UserError

WEIGHTS = {"pesq": 0.4, "estoi": 0.35, "si_sdr": 0.25}
LOW, HIGH = 0.12, 0.92  # of the weighted sum: 1 and 5
LABELS = ("quality", *TRAITS, "level_dbfs")
# about the middle and the spread of training recordings, so that the head's errors are of one size
CENTRE = np.array([3.0, *[0.25] * len(TRAITS), -27.0], dtype=np.float32)
SPREAD = np.array([1.2, *[0.3] * len(TRAITS), 8.0], dtype=np.float32)
LABEL_WEIGHT = 1.0
BATCH = 16
QUESTIONS = (
    f"{START} user How does this recording sound? {END}",
    f"{START} user Describe the quality of the audio, please. {END}",
)


def quality(reference: np.ndarray, degraded: np.ndarray, sample_rate: int = 16000) -> float:
    """Quality 1..5 of ``degraded`` (T,) against ``reference`` (T,), aligned.

    Raises:
        ValueError: too little speech in the reference to measure anything.
    """
    scales = {
        "estoi": _unit(stoi_estoi(reference, degraded, sample_rate)[1], 0.15, 1.0),
        "si_sdr": _unit(si_sdr(reference, degraded), -5.0, 25.0),
    }
    pesq = _pesq()
    if pesq is not None and (raw := pesq.pair(reference, degraded, sample_rate)["pesq_wb"].value) is not None:
        scales["pesq"] = _unit(raw, 1.0, 4.64) ** 0.5
    total = sum(WEIGHTS[k] * v for k, v in scales.items()) / sum(WEIGHTS[k] for k in scales)
    return 1.0 + 4.0 * _unit(total, LOW, HIGH)


def row_of(made: Degraded, stars: float) -> dict[str, float]:
    """Manifest columns of a labelled recording: ``quality``, ``trait_...`` and ``level_dbfs``."""
    traits = {f"trait_{k}": round(made.severity[k], 4) for k in TRAITS}
    return {"quality": round(stars, 4), **traits, "level_dbfs": round(made.level_dbfs, 2)}


def labels_of(columns: Mapping[str, Any]) -> dict[str, float] | None:
    """The labels that ``row_of`` wrote, or None where a row does not hold all of them as numbers."""
    values = {name: columns.get(f"trait_{name}" if name in TRAITS else name) for name in LABELS}
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values.values()):
        return None
    return {name: float(v) for name, v in values.items() if v is not None}


def _unit(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


@lru_cache(maxsize=1)
def _pesq() -> Any:
    try:
        return PesqWb()
    except Exception:  # not installed, or not compiled: the other scales answer
        return None


@dataclass
class ListenerBatch:
    """B recordings and what is to be written of them."""

    features: Tensor  # (B, mels, L) log-mel
    frames: Tensor  # (B,) long, real ones
    ids: Tensor  # (B, S) long, audio marks, answer, padding behind
    mask: Tensor  # (B, S) long, 1 on real tokens
    answer: Tensor  # (B, S) bool, tokens that the model has to say
    targets: Tensor  # (B, 9) the labels, centred and scaled


def targets_of(labels: dict[str, float]) -> np.ndarray:
    """Labels as the training head sees them, (9,)."""
    return np.asarray((np.array([labels[k] for k in LABELS], dtype=np.float32) - CENTRE) / SPREAD, dtype=np.float32)


class ListenerTask(Task):
    """The task ``listener``: pretraining only."""

    name = "listener"
    settings = frozenset({"listener"})
    next_command = "rlspeech reward MANIFEST --reward llm, with the checkpoint of {run} as the describer"

    def build(self, config: Pretrain) -> Listener:
        """A model with fresh weights, or ``config.init``'s. Raises ``UserError``."""
        if config.init is not None:
            return load_listener(config.init)[0]
        return Listener(config.listener, vocabulary(), len(LABELS))

    load, save = staticmethod(load_listener), staticmethod(save_listener)

    def collate(self, clips: Sequence[Clip], model: Listener, device: torch.device | str = "cpu") -> ListenerBatch:
        """Sound, sentences and labels. Draws from torch's generator, which a resumed run restores.

        Raises:
            UserError: none of the clips can be labelled.
        """
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        wavs, labels = labelled(clips, rng)
        if not wavs:
            why = "their clean side is silent, or shorter than half a second"
            raise UserError("none of the clips of a batch can be described", why, "rlspeech check on the manifest")
        features, frames = model.features(wavs)
        question = "" if rng.random() < 0.6 else _question(rng, vocabulary())
        ids, mask, answer = model.tokens(frames.tolist(), [describe(one, rng) for one in labels], question)
        targets = torch.from_numpy(np.stack([targets_of(one) for one in labels]))
        return ListenerBatch(*(x.to(device) for x in (features, frames, ids, mask, answer, targets)))

    def pretrain_loss(self, model: Listener, batch: ListenerBatch, config: Pretrain) -> dict[str, Tensor]:
        """``loss`` is words plus labels; ``right`` is the share of words guessed right."""
        logits, guess = model(batch.features, batch.frames, batch.ids, batch.mask)
        written, truth = logits[:, :-1][batch.answer[:, 1:]], batch.ids[:, 1:][batch.answer[:, 1:]]
        words = nn.functional.cross_entropy(written.float(), truth)
        labels = (guess.float() - batch.targets).square().mean()
        right = (written.detach().argmax(-1) == truth).float().mean()
        loss = words + LABEL_WEIGHT * labels
        return {"loss": loss, "words": words.detach(), "labels": labels.detach(), "right": right}

    @torch.no_grad()
    def validate(
        self, model: Listener, clips: list[Clip], folder: Run, step: int, scorer: Any = None, seed: int = 0
    ) -> Numbers:
        """Describe held-out clips; the answers go to ``samples/step_.../said.jsonl``.

        Returns:
            ``token_accuracy``; ``grades_right`` and ``grades_near`` (off by one at most) over all grades that were named;
            ``named`` (share of answers with a verdict); ``quality_srcc`` (Spearman of the verdict with the measured quality).
        """
        from scipy.stats import spearmanr  # type: ignore[import-untyped]

        rng = np.random.default_rng(seed_of("listener", "valid", seed))
        wavs, labels = labelled(clips, rng)
        if not wavs:
            return {}
        written, right = list[str](), list[Tensor]()
        for at in range(0, len(wavs), BATCH):
            part = wavs[at : at + BATCH]
            written += model.generate(part)
            features, frames = model.features(part)
            answers = [describe(one, rng) for one in labels[at : at + BATCH]]
            ids, mask, answer = model.tokens(frames.tolist(), answers)
            device = model.head.weight.device
            logits, _ = model(*(x.to(device) for x in (features, frames, ids, mask)))
            right.append((logits[:, :-1].argmax(-1).cpu() == ids[:, 1:])[answer[:, 1:]].float())
        rows = list(zip(written, labels, strict=True))
        gaps = [abs(grade - grades_of(one)[k]) for text, one in rows for k, grade in read_back(text).items()]
        pairs = [(stars, one["quality"]) for text, one in rows if (stars := stars_of(text)) is not None]
        numbers: Numbers = {"token_accuracy": float(torch.cat(right).mean()), "named": len(pairs) / len(written)}
        if gaps:
            numbers["grades_right"] = float(np.mean([g == 0 for g in gaps]))
            numbers["grades_near"] = float(np.mean([g <= 1 for g in gaps]))
        if len({p for p, _ in pairs}) > 1 and len({q for _, q in pairs}) > 1:
            numbers["quality_srcc"] = float(spearmanr([p for p, _ in pairs], [q for _, q in pairs]).statistic)
        said = (dumps({"said": text, **one}) + "\n" for text, one in rows)
        write_text(folder.path / "samples" / step_name(step) / "said.jsonl", said)
        return numbers


def labelled(clips: Sequence[Clip], rng: np.random.Generator) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """Recordings with labels: a row's own, or a degradation of its clean side; clips that cannot be labelled are left out."""
    wavs, labels = list[np.ndarray](), list[dict[str, float]]()
    noises = [c.noisy - c.target for c in clips if len(c.noisy) == len(c.target)]
    for clip in clips:
        own = labels_of(clip.columns)
        if own is None:
            others = Sources(noises, [c.target for c in clips if c is not clip], [])
            try:
                made = degrade(clip.target, others, clip.sample_rate, rng)
                own = labels_of(row_of(made, quality(clip.target, made.wav, clip.sample_rate)))
            except (AudioError, ValueError):
                continue
            wavs.append(made.wav)
        else:
            wavs.append(clip.noisy)
        assert own is not None
        labels.append(own)
    return wavs, labels


def _question(rng: np.random.Generator, words: list[str]) -> str:
    """A question in front of the answer, or as many unknown words: what is asked must not matter."""
    if rng.random() < 0.5:
        return QUESTIONS[int(rng.integers(len(QUESTIONS)))]
    places = rng.integers(len(words), size=int(rng.integers(4, 28)))
    return " ".join(words[int(i)] if rng.random() < 0.3 else UNKNOWN for i in places)
