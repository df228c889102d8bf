"""Scoring several rewards at once: gates and resampling once a sample, one computation a family, CPU metrics beside the device ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from rlspeech import log
from rlspeech.data.audio import resample
from rlspeech.parallel import Job, Pool, WorkerDied, one_by_one
from rlspeech.plugins import load
from rlspeech.rewards.base import MAX_ABS, Family, Request, build, gate, resolve
from rlspeech.rewards.user import UserReward
from rlspeech.types import Reward, Sample, Score, UserError

FULL_SCALE_PEAK = 0.99
SENDING_S = 2e-3  # what an item costs on its way to a worker and back, on both sides
Names = Sequence[str]
Options = dict[str, dict[str, Any]] | None  # by reward or family name


def get_reward(name: str, device: str = "cpu", **options: Any) -> Reward:
    """One reward as an object with ``score(samples)``; for several at once use ``Scorer``, which shares their work.

    The options are the family's, e.g. ``encoder=...``; raises ``UserError`` for a reward that is not known or cannot be used here.
    """
    return cast(Reward, SingleReward(resolve(name, options), device))


class SingleReward:
    """One column of one family as a ``Reward``; built at the first batch, where an unknown option is a ``UserError``."""

    def __init__(self, request: Request, device: str) -> None:
        column = request.entry.columns[request.column]
        self.name, self.needs, self.where = request.asked, request.entry.needs, request.entry.where
        self.higher_is_better, self.bounds = column.higher_is_better, column.bounds
        self.sample_rate = request.entry.sample_rate
        self._scorer = Scorer([request.asked], device=device, workers=0, options={request.asked: dict(request.options)})

    @property
    def version(self) -> str:
        """Implementation and weights."""
        return str(self._scorer.meta()[self.name]["version"])

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score a batch in order; ``detail`` holds the family's other columns of the same computation."""
        return self._scorer.score(samples)[self.name]


class Pending:
    """Scores under way: the CPU metrics run in the workers, the device metrics run when ``result`` is called."""

    def __init__(self, scorer: Scorer, samples: list[Sample], groups: dict[Any, list[Request]]) -> None:
        self.samples, self.groups, self._scorer = samples, groups, scorer
        self.table: dict[str, list[Score]] = {}
        self.jobs: list[tuple[Any, int, Job]] = []  # key of the group, row, and what the workers do for them
        self.cache: dict[tuple[int, int], Sample] = {}  # resampled once, however many rewards ask

    def result(self) -> dict[str, list[Score]]:
        """Reward name (as asked for) -> one ``Score`` a sample, in order; asked for once."""
        self._scorer._finish(self)
        return self.table


class Scorer(AbstractContextManager["Scorer"]):
    """Scores batches by several rewards; a context manager that owns the worker processes.

    Args:
        names: rewards as understood by ``base.resolve``.
        device: torch device of the device rewards.
        workers: processes for the CPU metrics; 0 computes them in this process, without protection against crashes and hangs.
        timeout_s: longest time for one CPU metric, or a function of the user's, of one item.
        options: reward or family name -> options.

    Raises:
        UserError: unknown or unusable reward or option.
    """

    def __init__(
        self, names: Names, device: str = "cpu", workers: int = 2, timeout_s: float = 60, options: Options = None
    ) -> None:
        options = options or {}
        self.requests = []
        for name in dict.fromkeys(names):
            plain = resolve(name)
            extra = {**options.get(plain.entry.family, {}), **options.get(plain.column, {}), **options.get(name, {})}
            self.requests.append(resolve(name, extra) if extra else plain)
        self.seconds: dict[str, float] = {r.asked: 0.0 for r in self.requests}
        self.resampled: Counter[str] = Counter()
        self.rates: dict[str, Counter[tuple[int, int]]] = {}  # column -> (rate it was computed at, the file's) -> files
        self.over_full_scale = 0
        self._device, self._timeout_s = device, timeout_s
        self._groups: dict[Any, list[Request]] = {}
        for r in self.requests:
            self._groups.setdefault(r.key, []).append(r)
        self._families: dict[Any, Family] = {}
        self._costs: dict[Any, float] = {}  # least seconds of a metric per second of sound, by key of its group
        self._pooled = [k for k, g in self._groups.items() if g[0].entry.where == "cpu"] if workers > 0 else []
        self._pool = None
        if self._pooled:
            specs = [(self._groups[k][0].entry.factory, dict(self._groups[k][0].options)) for k in self._pooled]
            self._pool = Pool(partial(_Families, specs), workers, timeout_s)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
            self._pooled = []

    def score(self, samples: Sequence[Sample], only: Collection[str] | None = None) -> dict[str, list[Score]]:
        """Score a batch: reward name (as asked for) -> one ``Score`` a sample, in order; ``only`` names some of the rewards."""
        return self.start(samples, only).result()

    def start(self, samples: Sequence[Sample], only: Collection[str] | None = None) -> Pending:
        """Hand the CPU metrics to the workers and return; compute something else, then ask for ``result()``."""
        groups = {k: [r for r in g if only is None or r.asked in only] for k, g in self._groups.items()}
        groups = {k: g for k, g in groups.items() if g}
        pending = Pending(self, [self._scale(s) for s in samples], groups)
        for group in groups.values():
            problems = [gate(s, group[0].entry) for s in pending.samples]
            pending.table.update({r.asked: [Score(None, p) for p in problems] for r in group})
        for n, sample in enumerate(pending.samples):
            for i, key in enumerate(self._pooled):
                group = groups.get(key, [])
                if not group or pending.table[group[0].asked][n].error is not None:
                    continue
                if self._pool is not None and not self._cheap(key, sample):
                    ready = self._at_rate(sample, group, pending.cache)
                    pending.jobs.append((key, n, self._pool.submit((i, ready, _columns(group)))))
        return pending

    @log.waiting("trying the rewards")
    def dry_run(self) -> None:
        """Score one made-up sample with everything, so that what is missing is found before the first step.

        Raises:
            UserError: a reward could not be loaded, or has no answer even to a plain signal.
        """
        rng = np.random.default_rng(0)
        t = np.arange(32000) / 16000
        voiced = sum(np.sin(2 * np.pi * 140 * k * t + k) / k for k in range(1, 20))
        loud = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)
        clean = (0.05 * voiced * loud + 1e-3 * rng.standard_normal(len(t))).astype(np.float32)
        noisy = clean + 0.02 * rng.standard_normal(len(t)).astype(np.float32)
        words, keywords = "one two three", {"keywords": ["two"]}
        plain = Sample("dry run", noisy, 16000, clean, words, keywords, words, np.arange(16))
        for name, (score,) in self.score([plain]).items():
            request = next(r for r in self.requests if r.asked == name)
            excused = request.entry.factory.endswith("UserReward") or request.entry.columns[request.column].optional
            if score.value is None and not excused:
                raise UserError(f"the reward {name} does not work here", score.error or "", "rlspeech doctor")
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def meta(self) -> dict[str, dict[str, Any]]:
        """Per reward: version, rate, options, direction; under ``"_input"`` what was resampled or scaled down."""
        out: dict[str, dict[str, Any]] = {}
        for r in self.requests:
            entry, up = r.entry, r.entry.columns[r.column].higher_is_better
            out[r.asked] = {"version": self._family(r).version, "sample_rate": entry.sample_rate}
            out[r.asked] |= {"options": dict(r.options), "column": r.column, "higher_is_better": up}
            out[r.asked] |= {"where": entry.where, "needs": sorted(entry.needs)}
        return out | {"_input": self.input}

    @property
    def input(self) -> dict[str, Any]:
        """What was resampled or scaled down."""
        return {"resampled": dict(self.resampled), "over_full_scale": self.over_full_scale}

    def _family(self, request: Request) -> Family:
        if request.key not in self._families:
            family = self._families[request.key] = build(request, self._device)
            if isinstance(family, UserReward):
                family.timeout_s = self._timeout_s
        return self._families[request.key]

    def _scale(self, sample: Sample) -> Sample:
        """A peak above full scale is brought down to where saving the file would bring it."""
        wav = sample.wav
        if isinstance(wav, np.ndarray) and wav.ndim == 1 and wav.size:
            if wav.dtype != np.float32:
                wav = wav.astype(np.float32)
            peak = float(max(wav.max(), -wav.min()))
            if 1.0 < peak <= MAX_ABS:  # beyond that the gate says what it is
                self.over_full_scale += 1
                wav = wav * np.float32(FULL_SCALE_PEAK / peak)
        return sample if wav is sample.wav else replace(sample, wav=wav)

    def _at_rate(self, sample: Sample, group: list[Request], cache: dict[tuple[int, int], Sample]) -> Sample:
        rate = group[0].entry.sample_rate or sample.sample_rate
        if isinstance(rate, tuple):
            rate = max((r for r in rate if r <= sample.sample_rate), default=min(rate))
        for r in group:
            self.rates.setdefault(r.column, Counter())[rate, sample.sample_rate] += 1
        if rate == sample.sample_rate:
            return sample
        if (id(sample), rate) not in cache:
            self.resampled[f"{sample.sample_rate} Hz -> {rate} Hz"] += 1
            wav = resample(sample.wav, sample.sample_rate, rate)
            target = None if sample.target is None else resample(sample.target, sample.sample_rate, rate)
            cache[id(sample), rate] = replace(sample, wav=wav, target=target, sample_rate=rate)
        return cache[id(sample), rate]

    def _cheap(self, key: Any, sample: Sample) -> bool:
        """Whether a metric takes less time than sending the sample, and is of numpy alone, which neither crashes nor hangs."""
        entry, seconds = self._groups[key][0].entry, len(sample.wav) / sample.sample_rate
        own = entry.factory.startswith("rlspeech.") and not entry.requires
        return own and self._costs.get(key, float("inf")) * seconds < SENDING_S

    def _finish(self, pending: Pending) -> None:
        table, samples = pending.table, pending.samples
        sent = {(key, n) for key, n, _ in pending.jobs}
        for key, group in pending.groups.items():
            rows = [n for n in range(len(samples)) if table[group[0].asked][n].error is None and (key, n) not in sent]
            if not rows:
                continue
            ready = [self._at_rate(samples[n], group, pending.cache) for n in rows]
            family = self._family(group[0])
            began = time.perf_counter()
            answers = one_by_one(partial(family.compute, columns=_columns(group)), ready)
            self._book(group, time.perf_counter() - began)
            for n, scores in zip(rows, answers, strict=True):
                _fill(table, group, n, scores)
        for key, n, job in pending.jobs:
            scores, seconds = answer if isinstance(answer := job.result(), tuple) else (answer, 0.0)
            self._book(pending.groups[key], seconds)
            if seconds and len(samples[n].wav):
                cost = seconds * samples[n].sample_rate / len(samples[n].wav)
                self._costs[key] = min(cost, self._costs.get(key, cost))
            _fill(table, pending.groups[key], n, scores)

    def _book(self, group: list[Request], seconds: float) -> None:
        for r in group:
            self.seconds[r.asked] += seconds / len(group)


class _Families:
    """The CPU families in a worker: (number of the family, sample, columns) -> scores by column, seconds."""

    def __init__(self, specs: list[tuple[str, dict[str, Any]]]) -> None:
        self.families: list[Family] = [load(factory)(**options) for factory, options in specs]

    def __call__(self, job: tuple[int, Sample, list[str]]) -> tuple[dict[str, Score], float]:
        family, sample, columns = job
        began = time.perf_counter()
        return self.families[family].compute([sample], columns)[0], time.perf_counter() - began


def _columns(group: list[Request]) -> list[str]:
    return list(dict.fromkeys(r.column for r in group))


def _fill(table: dict[str, list[Score]], group: list[Request], row: int, scores: dict[str, Score] | Exception) -> None:
    for r in group:
        if isinstance(scores, TimeoutError | WorkerDied):
            score = Score(None, str(scores))
        elif isinstance(scores, Exception):
            score = Score(None, f"{type(scores).__name__}: {scores}"[:200])
        else:
            score = scores.get(r.column, Score(None, "no answer"))
        if score.value is not None and not np.isfinite(score.value):
            score = Score(None, f"the result is {score.value}", score.detail)
        table[r.asked][row] = score
