"""Rewards of codec tokens (family ``token_text``), and the differentiable rewards of DiffRO (``types.SoftReward``).

Of sampled tokens the token-to-text network answers what a recogniser answers of their waveform, without codec, vocoder or recogniser in
the loop. Of relaxed tokens it is arXiv 2507.05911's objective: R = log-posterior of the text (a mean over its pieces) + the weighted
log-probabilities of attributes. Both are in nats, so that weights mean the same for every head.

Of enhanced speech it is any composition of rewards that have one (``SoftMix``). What compares with the reference is taken as it is scored.
A predicted MOS is not: its raw gradient is adversarial. Eight steps along the sign of DNSMOS's, no sample moved by more than 0.008, lift
the score of a noisy clip by a point and nothing audible. It points where this very net, on this very grid of frames, is blind, so it is
averaged over what does not matter to a listener (the smoothing of arXiv 1706.03825, as part of the objective): faint noise, a crop at
another phase of the frames, a low-pass. The score that is climbed is the mean over such copies.

Measured: eight such steps on two noisy clips raise OVRL from 1.5 to 3.5 by the raw gradient, to 2.2 by that of 4 copies, and P.808 and
PESQ fall in every case. The copies help and do not cure: no metric that is climbed is its own witness, and the guards decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config import RewardSpec
from rlspeech.data.audio import resample
from rlspeech.data.batches import seed_of
from rlspeech.data.text import get_normaliser
from rlspeech.models.token_reward import IGNORED, TokenReward, load_token_reward
from rlspeech.rewards.base import MAX_ABS, Request, build, column_of, gate, resolve
from rlspeech.rewards.catalogue import SOFT, Entry
from rlspeech.rewards.dnsmos import HOP, RATE_HZ
from rlspeech.rewards.mix import divisor
from rlspeech.rewards.scorer import FULL_SCALE_PEAK
from rlspeech.rewards.speech_rules import TextScores
from rlspeech.types import Relaxed, Sample, Score, UserError

TEXT = "basic-1"  # as the network's training texts are written
BATCH = 64
COLUMN = {"sex": "sex", "speaker": "speaker_id"}  # attribute -> the manifest's column that names its value
SHORTEST = RATE_HZ // 5  # samples that the nets need
NOISE_DB = (25.0, 40.0)  # of a copy's noise below its speech
CROP = 0.1  # longest part of the clip that a copy lacks
PASS_HZ = (5000.0, 8000.0)  # where a copy is 3 dB down
SILENT = 1e-4  # RMS below which there is nothing to score: the level would make speech of rounding errors


def attribute_of(name: str, sample: Sample, levels: Sequence[str]) -> Any:
    """The value that a row should have: of the manifest's column; of quality the column's level, without one the best level."""
    value = sample.columns.get(COLUMN.get(name, name))
    return levels[-1] if name == "quality" and str(value) not in levels else value


class TokenText:
    """Family ``token_text``.

    Args:
        model: checkpoint of ``pretrain --task token-reward``, or 'embedded'; the network itself is taken as it is.
        device: where it runs.
        text: of ``speech_rules.TextScores``.
    """

    def __init__(self, model: str | TokenReward = "embedded", device: str = "cpu", **text: Any) -> None:
        self._scores = TextScores(**text)
        self._net = load_token_reward(model, device)[0].frozen() if isinstance(model, str) else model
        self._normalise = get_normaliser(TEXT)
        name = model if isinstance(model, str) else "unnamed"
        self.version = f"token-text-1, {name}, text {self._scores.name}, form {self._scores.form}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Read, rate and classify; a row with an id that is none of the codec's has null."""
        rows = [torch.from_numpy(np.asarray(s.tokens, dtype=np.int64).ravel()) for s in samples]
        good = [i for i, r in enumerate(rows) if not len(r) or (0 <= int(r.min()) and int(r.max()) < self._net.codes)]
        wrong = Score(None, f"a token is none of the codec's {self._net.codes} ids")
        out: list[dict[str, Score]] = [dict.fromkeys(columns, wrong) for _ in samples]
        for part in (good[i : i + BATCH] for i in range(0, len(good), BATCH)):
            judged = self._judge([samples[i] for i in part], [rows[i] for i in part], columns)
            for i, scores in zip(part, judged, strict=True):
                out[i] = scores
        return out

    @torch.no_grad()
    def _judge(self, samples: list[Sample], rows: list[Tensor], columns: Sequence[str]) -> list[dict[str, Score]]:
        net, asked = self._net, set(columns)
        texts: list[str | None] = [None] * len(rows)
        nll: list[float | None] = [None] * len(rows)
        if asked & {"token_accuracy", "token_cer"}:
            texts = [*net.transcribe(rows)]
        encoded = None
        if asked - {"token_accuracy", "token_cer"}:
            mask = pad_sequence([torch.ones_like(r, dtype=torch.bool) for r in rows], batch_first=True)
            encoded = net.encode(pad_sequence(rows, batch_first=True).to(net.device), mask.to(net.device))
        if asked & {"token_nll", "token_posterior"} and encoded is not None:
            guess = math.log(len(net.tokenizer))  # no token tells nothing of a text
            logp = net.text_logp(encoded, [self._normalise(s.text or "") for s in samples])
            nll = [value if len(r) else guess for value, r in zip((-logp).tolist(), rows, strict=True)]
        out = [self._scores.row(s, t, v, "token", columns) for s, t, v in zip(samples, texts, nll, strict=True)]
        for name in ("sex", "speaker", "quality"):
            if f"token_{name}" in asked and encoded is not None:
                for scores, score in zip(out, self._attribute(name, samples, encoded), strict=True):
                    scores[f"token_{name}"] = score
        return out

    def _attribute(self, name: str, samples: list[Sample], encoded: Any) -> list[Score]:
        net = self._net
        if name not in net.pools:
            return [Score(None, f"this token reward has no head for {name}")] * len(samples)
        p = net.pools[name](encoded).softmax(-1).cpu()
        if name == "quality":
            return [Score(e) for e in (p * torch.arange(1, p.shape[1] + 1)).sum(1).tolist()]
        wanted = net.classes(name, [s.columns.get(COLUMN[name]) for s in samples]).tolist()
        unknown = Score(None, f"the row's {COLUMN[name]} is none that the token reward knows")
        return [unknown if k == IGNORED else Score(float(row[k])) for k, row in zip(wanted, p, strict=True)]


class SoftTokenReward:
    """A ``types.SoftReward``: the reward of relaxed tokens, with a gradient to them.

    Args:
        model: the network, or its checkpoint's name.
        content_weight: of the text's log-posterior.
        sums: the text's is the sum over its pieces, not their mean.
        attribute_weights: of the log-probabilities of attributes; see ``attribute_of`` for their values. A row whose value is not known
            has none.
        device: where a checkpoint is loaded to.

    Raises:
        UserError: a weight for an attribute that the network has no head for.
    """

    def __init__(
        self,
        model: TokenReward | str,
        content_weight: float = 1.0,
        attribute_weights: Mapping[str, float] | None = None,
        device: str | torch.device = "cpu",
        sums: bool = False,
    ) -> None:
        self.sums = sums
        self.net = (load_token_reward(model, device)[0] if isinstance(model, str) else model).frozen()
        self._content, self._weights = content_weight, {k: w for k, w in (attribute_weights or {}).items() if w}
        self._normalise = get_normaliser(TEXT)
        missing = sorted(set(self._weights) - set(self.net.labels))
        if missing:
            what, why = f"the token reward has no head for {', '.join(missing)}", ", ".join(self.net.labels) or "none"
            raise UserError(what, f"it has {why}", "--set diffro.attribute_weights={...} with these")
        self.last: dict[str, float] = {}  # means of the parts of the last call, for the log

    def score_soft(self, relaxed: Any, samples: Sequence[Sample]) -> Tensor:
        """Reward (n,) in nats of relaxed tokens; nan, without a gradient, where a row has no text.

        Args:
            relaxed: ``types.Relaxed`` with ``soft`` (n, T, V) distributions over the codec's ids and ``mask`` (n, T) bool.
            samples: n rows with ``text`` and columns.

        Raises:
            UserError: the tokens are another codec's.
        """
        if relaxed.soft.shape[-1] != self.net.codes:
            what = f"the policy chooses among {relaxed.soft.shape[-1]} codes, the token reward knows {self.net.codes}"
            why = f"it was trained on tokens of the codec {self.net.cfg.codec}"
            raise UserError(what, why, "--set diffro.reward=CHECKPOINT of that codec")
        encoded = self.net.encode(relaxed.soft, relaxed.mask.bool())
        texts = [self._normalise(s.text or "") for s in samples]
        mute = torch.tensor([not t for t in texts], device=encoded.states.device)
        content = self.net.text_logp(encoded, texts)
        content = content * self.net.pieces(texts)[1].sum(1) if self.sums else content
        total, self.last = self._content * content, {"content": _mean(content, ~mute)}
        for name, weight in self._weights.items():
            logp = self.net.pools[name](encoded).float().log_softmax(-1)
            wanted = self.net.classes(name, [attribute_of(name, s, self.net.labels[name]) for s in samples])
            known = wanted != IGNORED
            part = logp.gather(1, wanted.clamp_min(0)[:, None])[:, 0].masked_fill(~known, 0.0)
            total = total + weight * part
            self.last[name] = _mean(part, known & ~mute)
        return total.masked_fill(mute, torch.nan)


def _mean(values: Tensor, rows: Tensor) -> float:
    return float(values.detach()[rows].mean()) if bool(rows.any()) else float("nan")


class SoftMix:
    """A ``types.SoftReward``: a composition of rewards of waveforms, with a gradient to them.

    Each is signed, clamped, divided and weighted as ``mix.compose`` does it. "batch" divides by the spread among all rollouts of a
    collection, a number (``settle``); of a single reward that would only change what the KL weighs, and it is left as it is.

    Args:
        specs: the rewards; those of weight 0 are left out.
        copies: altered ones of a clip that a predicted score is the mean of; 1 is the clip itself: the raw gradient.
        device: where nets go.

    Raises:
        UserError: a reward that has no gradient, compares rollouts, or cannot be computed here.
    """

    def __init__(self, specs: Sequence[RewardSpec], copies: int = 4, device: torch.device | str = "cpu") -> None:
        self.specs, self.copies, self.device = [s for s in specs if s.weight], copies, device
        self.last = dict[str, float]()
        self.divides = len(self.specs) > 1 and any(s.scale == "batch" for s in self.specs)
        self.units, self.groups = dict.fromkeys((s.name for s in self.specs), 1.0), dict[Any, list[Request]]()
        ends = (-math.inf, math.inf)
        self.bounds = {s.name: [e if b is None else b for b, e in zip(s.bounds, ends, strict=True)] for s in self.specs}
        for s in self.specs:
            request = resolve(s.name)
            if request.column not in SOFT or s.scale == "group" or s.mode == "override":
                why = f"it can follow {', '.join(SOFT)}, with neither scale: group nor mode: override"
                raise UserError(f"DiffRO cannot follow {s.name}", why, "--algo grpo")
            self.groups.setdefault(request.key, []).append(request)
        self.families: dict[Any, Any] = {key: build(group[0], str(device)) for key, group in self.groups.items()}

    def measure(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Scores (N,) of rollouts by name, nan where there is none."""
        with torch.no_grad():
            found = self._scores([torch.from_numpy(s.wav).to(self.device) for s in samples], samples, 0)
        return {name: values.cpu().double().numpy() for name, values in found.items()}

    def settle(self, scores: Mapping[str, np.ndarray]) -> None:
        """Divide by the spread of these, from ``measure``, until the next ones."""
        for s in self.specs:
            low, high = self.bounds[s.name]
            if s.scale == "batch" and len(found := np.clip(scores[s.name], low, high)):
                self.units[s.name] = float(divisor(found, np.zeros(len(found)), "batch")[0])

    def score_soft(self, relaxed: Relaxed, samples: Sequence[Sample]) -> Tensor:
        """Composed reward (n,) of waveforms (n, T), with gradient; nan where one of them has no score. See ``types.SoftReward``."""
        wavs = [wav[: int(real.sum())].float() for wav, real in zip(relaxed.soft, relaxed.mask, strict=True)]
        scores = self._scores(wavs, samples, relaxed.seed)
        self.last = {name: float(values.detach().nanmean()) for name, values in scores.items()}
        sign = {s.name: 1.0 if column_of(s.name).higher_is_better else -1.0 for s in self.specs}
        clamped = [sign[s.name] * scores[s.name].clamp(*self.bounds[s.name]) / self.units[s.name] for s in self.specs]
        parts, skip = torch.stack(clamped, 1), torch.tensor([s.missing == "skip" for s in self.specs])
        known = parts.isfinite()
        parts = torch.where(skip.to(known.device) & ~known & known.any(1, keepdim=True), 0.0, parts)
        return parts @ parts.new_tensor([s.weight for s in self.specs])

    def _scores(self, wavs: list[Tensor], samples: Sequence[Sample], seed: int) -> dict[str, Tensor]:
        """Scores (n,) by name, with gradient, of waveforms (T_i,) at the samples' rates."""
        out, null = dict[str, Tensor](), torch.tensor(torch.nan)
        for key, group in self.groups.items():
            family, columns = self.families[key], [r.column for r in group]
            if group[0].entry.needs:
                rows = _compared(family, group[0].entry, wavs, samples, columns)
            else:
                seeds = [[seed_of(seed, s.key, c) for c in range(self.copies)] for s in samples]
                pairs = zip(wavs, samples, seeds, strict=True)
                rows = [_predicted(family, resampled(w, s.sample_rate), own, columns) for w, s, own in pairs]
            for r in group:
                values = [row.get(r.column, null).float().to(w.device) for w, row in zip(wavs, rows, strict=True)]
                out[r.asked] = torch.stack(values) if values else torch.zeros(0)
        return out


def _predicted(family: Any, wav: Tensor, seeds: Sequence[int], columns: Sequence[str]) -> dict[str, Tensor]:
    """Scores of (T,) at 16 kHz by column, means over altered copies; none of silence and of less than 0.2 s."""
    if len(wav) < SHORTEST * (1 + CROP) + HOP or float(wav.detach().square().mean().sqrt()) < SILENT:
        return {}
    rated = family.predict(altered(wav, seeds) if len(seeds) > 1 else wav[None])
    heads = getattr(family, "heads", ())
    at = {c: next((i for i, head in enumerate(heads) if c.endswith(head)), 0) for c in columns}
    return {c: (rated[:, i] if rated.ndim == 2 else rated).mean() for c, i in at.items()}


def _compared(
    family: Any, entry: Entry, wavs: Sequence[Tensor], samples: Sequence[Sample], columns: Sequence[str]
) -> list[dict[str, Tensor]]:
    """Scores of waveforms (T_i,) by column, against their references; none of what a scorer gives null."""
    ready = dict[int, tuple[Tensor, Sample]]()
    for i, (wav, s) in enumerate(zip(wavs, samples, strict=True)):
        peak = float(wav.detach().abs().max()) if len(wav) else 0.0
        wav = wav * (FULL_SCALE_PEAK / peak) if 1 < peak <= MAX_ABS else wav  # as the scorer
        own = replace(s, wav=wav.detach().cpu().numpy())
        if gate(own, entry) is None:
            if entry.sample_rate and own.target is not None:
                own = replace(own, target=resample(own.target, s.sample_rate, RATE_HZ))
            ready[i] = resampled(wav, s.sample_rate) if entry.sample_rate else wav, own
    scored = family.soft([w for w, _ in ready.values()], [s for _, s in ready.values()], columns)
    made = dict(zip(ready, scored, strict=True))
    return [made.get(i, {}) for i in range(len(wavs))]


def altered(wav: Tensor, seeds: Sequence[int]) -> Tensor:
    """Copies (C, T') of one waveform (T,), each with noise, crop and low-pass of its own seed."""
    size = int(len(wav) * (1 - CROP)) // HOP * HOP
    copies = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)  # on the host: the same on every device
        at, down, edge = torch.rand(3, generator=generator).tolist()
        start = int(at * (len(wav) - size))
        part = wav[start : start + size]
        hiss = torch.randn(size, generator=generator).to(wav)
        level = part.detach().square().mean().sqrt() * 10 ** (-(NOISE_DB[0] + down * (NOISE_DB[1] - NOISE_DB[0])) / 20)
        cut = PASS_HZ[0] + edge * (PASS_HZ[1] - PASS_HZ[0])
        hz = torch.fft.rfftfreq(size, 1 / RATE_HZ, device=wav.device)
        gain = (1 + (hz / cut) ** 8).rsqrt()  # Butterworth's, of fourth order
        copies.append(torch.fft.irfft(torch.fft.rfft(part + level * hiss) * gain, size))
    return torch.stack(copies)


def resampled(wav: Tensor, rate: int) -> Tensor:
    """(T,) at ``rate`` -> (T',) at 16 kHz, by its spectrum, differentiably."""
    if rate == RATE_HZ or not len(wav):
        return wav
    size = round(len(wav) * RATE_HZ / rate)
    bins = size // 2 + 1
    spec = torch.fft.rfft(wav)[:bins]
    return torch.fft.irfft(torch.nn.functional.pad(spec, (0, bins - len(spec))), size) * (size / len(wav))
