"""The token-to-text reward of DiffRO, trained: recordings become codec tokens, and tokens are to tell text, speaker and quality.

Labels come from the manifest: ``text``, ``sex``, ``speaker_id`` (of speakers with enough recordings), ``quality`` (a level, 1 the
worst). Where no row names its quality, it is made: a share of the recordings gets noise, a low-pass or clipping, its level says how much.
The published network learns from labels that other networks gave; here nothing is guessed.

A policy's tokens are not a codec's: some are wrong, and relaxed ones are mixtures. A network that never saw such input answers it anyhow,
and an optimiser finds out. So in training some tokens are replaced, some hidden, and some rows are mixtures of two tokens a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config import Pretrain
from rlspeech.config_parts import Augment
from rlspeech.data.audio import AudioError
from rlspeech.data.batches import Clip, columns_of, seed_of
from rlspeech.data.degrade import add_noise, clip_peaks, low_pass
from rlspeech.data.manifest import recordings
from rlspeech.data.mixing import coloured
from rlspeech.data.text import get_normaliser
from rlspeech.models.codec.codec import load_codec, start_alike
from rlspeech.models.recogniser import make_tokenizer
from rlspeech.models.token_reward import IGNORED, TokenReward, load_token_reward, save_token_reward
from rlspeech.rewards.soft import COLUMN, TEXT, TokenText
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stats import mean_interval
from rlspeech.tasks.asr.task import rates
from rlspeech.tasks.base import Numbers, Task, keep_samples
from rlspeech.tasks.token_policy import check_texts, rows_of, texts_of
from rlspeech.types import Sample, Utterance

SPOILT = 0.25  # share of training recordings that are made worse, where quality is learned
REPLACED = 0.08  # tokens that become others, at most
MIXED = 0.5  # share of rows that are mixtures
RECORDINGS, SPEAKERS = 20, 256  # of a speaker, to be a class; most classes
SMOOTH = 0.1  # label smoothing of the heads: RRPO's cure for rewards that an analytic gradient exploits
ATTRIBUTE = 0.2  # weight of a head


@dataclass
class TokenBatch:
    """B rows."""

    # ids, mask: (B, T) long and bool, codec tokens
    ids: Tensor
    mask: Tensor
    texts: list[str | None]  # B normalised texts, or None where the recording is too bad to be held to it
    values: dict[str, list[Any]]  # attribute -> B values, None where unknown


class TokenRewardTask(Task):
    """The task ``token-reward``."""

    name = "token-reward"
    settings = frozenset({"token_reward"})
    required = frozenset({"audio_filepath", "text"})
    valid_metrics = ()
    next_command = "rlspeech rl --task tts --algo diffro --set diffro.reward={run}"

    def __init__(self) -> None:
        self._codecs: dict[str, Any] = {}
        # of recordings by key and level: a codec costs more than a training step
        self._tokens: dict[tuple[str, int], np.ndarray] = {}

    # -- model -----------------------------------------------------------------------------------------------------------

    def build(self, config: Pretrain) -> TokenReward:
        """Fresh weights with a tokenizer and labels from the data, or ``init``'s. Raises ``UserError``: no texts, no codec."""
        if config.init is not None:
            return load_token_reward(config.init)[0]
        rows = recordings(rows_of(config.data), config.data or "the embedded corpus")
        texts = texts_of(rows, get_normaliser(TEXT), "the reward")
        cfg = config.token_reward
        codec, tokenizer = self.codec(cfg.codec), make_tokenizer(texts, cfg.vocabulary)
        model = TokenReward(cfg, codec.size, tokenizer, labels_of(rows, cfg.levels), codec.sample_rate)
        start_alike(model.table.weight.data, codec)
        return model

    def codec(self, name: str, device: torch.device | str = "cpu") -> Any:
        """The codec of that name, loaded once."""
        if name not in self._codecs:
            self._codecs[name] = load_codec(name, device)
        return self._codecs[name]

    load, save = staticmethod(load_token_reward), staticmethod(save_token_reward)

    # -- batches ---------------------------------------------------------------------------------------------------------

    def collate(
        self, clips: Sequence[Clip], model: TokenReward, device: torch.device | str = "cpu", *, degrade: bool = True
    ) -> TokenBatch:
        """Tokens, texts and labels of clips; with ``degrade`` some are made worse. Draws from torch's generator.

        Raises:
            UserError: a clip has no text.
        """
        check_texts(clips, "the reward")
        levels = len(model.labels.get("quality", ()))
        named = any("quality" in c.columns for c in clips)
        graded = [levels] * len(clips)  # as they are
        if degrade and levels and not named:
            draws = zip(clips, torch.rand(len(clips)).tolist(), strict=True)
            graded = [1 + seed_of("level", c.key) % (levels - 1) if x < SPOILT else levels for c, x in draws]
        rows = self._encoded(clips, graded, levels, model, device)
        normalise = get_normaliser(TEXT)
        values = {name: [c.columns.get(COLUMN.get(name, name)) for c in clips] for name in model.labels}
        if levels and not named:
            values["quality"] = list(graded)
        bad = [bool(levels) and 2 * g <= levels for g in graded]
        texts = [None if b else normalise(c.text or "") for c, b in zip(clips, bad, strict=True)]
        ids = pad_sequence(rows, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
        return TokenBatch(ids.to(device), mask.to(device), texts, values)

    def _encoded(
        self, clips: Sequence[Clip], graded: Sequence[int], levels: int, model: TokenReward, device: torch.device | str
    ) -> list[Tensor]:
        keys = [(c.key, g) for c, g in zip(clips, graded, strict=True)]
        new = {k: c for k, c in zip(keys, clips, strict=True) if k not in self._tokens}
        if new:
            worse = [(c.noisy, g, seed_of("worse", key)) for (key, g), c in new.items()]
            wavs = [degraded_to(wav, g, levels, model.sample_rate, seed) for wav, g, seed in worse]
            for k, ids in zip(new, self.codec(model.cfg.codec, device).encode(wavs), strict=True):
                self._tokens[k] = ids.cpu().numpy().astype(np.int32)
        return [torch.from_numpy(self._tokens[k].astype(np.int64)) for k in keys]

    # -- training --------------------------------------------------------------------------------------------------------

    def pretrain_loss(self, model: TokenReward, batch: TokenBatch, config: Pretrain) -> dict[str, Tensor]:
        """``loss`` = (1 - w) cross-entropy of the text + w CTC + 0.2 a head; ``right`` is the share of pieces guessed right."""
        encoded = model.encode_vectors(corrupt(model, batch.ids, batch.mask, config.augment), batch.mask)
        parts = {"loss": encoded.states.new_zeros(())}
        read = [i for i, t in enumerate(batch.texts) if t is not None]
        if read:
            some = type(encoded)(encoded.states[read], encoded.keep[read])
            ids, mask = model.pieces([batch.texts[i] or "" for i in read])
            logits = model.text_logits(some, ids)[mask]
            words = nn.functional.cross_entropy(logits, ids[mask])
            right = (logits.detach().argmax(-1) == ids[mask]).float().mean()
            parts |= {"loss": words, "words": words.detach(), "right": right}
            if config.ctc_weight:
                sizes = mask.sum(1) - 1  # without the end mark
                logp = model.ctc(some.states).float().log_softmax(-1).transpose(0, 1)
                lengths = some.keep.sum(1), sizes
                ctc = nn.functional.ctc_loss(logp, ids, *lengths, blank=model.pad, zero_infinity=True)
                parts |= {"loss": (1 - config.ctc_weight) * words + config.ctc_weight * ctc, "ctc": ctc.detach()}
        for name, logits in model.attributes(encoded).items():
            truth = model.classes(name, batch.values[name])
            known = truth != IGNORED
            if bool(known.any()):
                part = nn.functional.cross_entropy(logits[known].float(), truth[known], label_smoothing=SMOOTH)
                parts |= {"loss": parts["loss"] + ATTRIBUTE * part, name: part.detach()}
        return parts

    def validate(
        self, model: TokenReward, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Word error rate by kind of speech, CER and NLL of the text, accuracy of the heads, on recordings as they are."""
        device = model.device
        batch = self.collate(clips, model, device, degrade=False)
        rows = [r[m] for r, m in zip(batch.ids, batch.mask, strict=True)]
        texts = model.transcribe(rows)
        samples = [
            Sample(c.key, c.noisy, c.sample_rate, None, c.text, c.columns, hypothesis=t, tokens=r.cpu().numpy())
            for c, t, r in zip(clips, texts, rows, strict=True)
        ]
        keep_samples(folder.path / "samples" / step_name(step), samples, 0)
        numbers: Numbers = {**rates(samples)}
        judge = TokenText(model)
        known_texts = [s for s in samples if s.text]
        scores = judge.compute(known_texts, ["token_cer", "token_nll"]) if known_texts else []
        for name in ("cer", "nll"):
            values = [v for row in scores if (v := row[f"token_{name}"].value) is not None]
            numbers |= {name: mean_interval(values)} if values else {}
        with torch.no_grad():
            heads = model.attributes(model.encode(batch.ids, batch.mask))
        for name, logits in heads.items():
            truth = model.classes(name, batch.values[name])
            known = truth != IGNORED
            if bool(known.any()):
                numbers[f"{name}_right"] = float((logits.argmax(-1) == truth)[known].float().mean())
        return numbers


def corrupt(model: TokenReward, ids: Tensor, mask: Tensor, how: Augment) -> Tensor:
    """Vectors (n, T, D) of ids (n, T) as a policy might write them: some replaced, some rows mixtures of two, stretches hidden."""
    n, length = ids.shape
    draw = torch.rand(3, n, 1).to(ids.device)
    other = torch.randint(model.codes, ids.shape).to(ids.device)
    swapped = torch.where((torch.rand(n, length).to(ids.device) < REPLACED * draw[0]), other, ids)
    x = model.vectors(swapped)
    share = (0.5 * draw[1] * (draw[2] < MIXED))[..., None]
    x = (1 - share) * x + share * model.vectors(other.roll(1, 0))
    lengths = mask.sum(1)
    for _ in range(how.time_masks):
        width = (torch.rand(n).to(ids.device) * how.time_share * lengths).long()
        start = (torch.rand(n).to(ids.device) * (lengths - width)).long()
        at = torch.arange(length, device=ids.device)
        hide = (at >= start[:, None]) & (at < (start + width)[:, None])
        x = torch.where(hide[..., None], model.unknown.to(x.dtype), x)
    return x


def degraded_to(wav: np.ndarray, level: int, levels: int, sample_rate: int, seed: int) -> np.ndarray:
    """A recording (T,) at a level of quality: ``levels`` leaves it as it is, 1 is the worst. One seed, one way of getting worse."""
    if level >= levels:
        return wav
    rng = np.random.default_rng(seed)
    part = (level - 1) / max(levels - 2, 1)  # 0 the worst, 1 the mildest
    way = int(rng.integers(4))
    try:
        if way == 0:
            return low_pass(wav, 900.0 * 4.0**part, sample_rate)[0]
        if way == 1:
            return clip_peaks(wav, -14.0 + 16.0 * part)[0]
        return add_noise(wav, coloured(len(wav), float(rng.uniform(0, 1)), rng), 20.0 * part)[0]
    except (AudioError, ValueError):  # silence, or too short for a filter: nothing to degrade
        return wav


def labels_of(rows: Sequence[Utterance], levels: int) -> dict[str, list[str]]:
    """The classes that rows name: ``sex``, ``speaker`` (with enough recordings), ``quality``; an attribute of one class is left out."""
    columns = [columns_of(u) for u in rows]
    sexes = sorted({str(c["sex"]) for c in columns if c.get("sex") is not None})
    speakers = Counter(str(c["speaker_id"]) for c in columns if c.get("speaker_id") is not None)
    known = sorted(name for name, count in speakers.most_common(SPEAKERS) if count >= RECORDINGS)
    found = {"sex": sexes, "speaker": known, "quality": [str(k) for k in range(1, levels + 1)]}
    return {name: classes for name, classes in found.items() if len(classes) > 1}
