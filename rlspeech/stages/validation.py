"""The held-out clips of ``rlspeech rl``: scored before, on the way and after, and what of that is kept and said.

Clips are shared out over the processes and gathered in their order, so that the numbers are those of one process; what follows from
them, a guard's stop or the best step, is decided by the first. A validation leaves a row a clip in ``scores.jsonl`` and outputs under
``samples/``. Rows have the step as their system (``step_000020``, the name that samples and checkpoints have), so that clips can be
compared one by one within a run and between runs; ``item`` is a checksum of the input, because a name alone does not say that two runs
had the same.
"""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlspeech import __version__, log
from rlspeech.config import RL, GuardSpec, RewardSpec
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.engine import Engine
from rlspeech.files import safe_name, write_error
from rlspeech.report.runs import find
from rlspeech.rewards.base import column_of, known_column
from rlspeech.rewards.mix import compose
from rlspeech.rewards.rates import corpus_interval
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run, versions_of
from rlspeech.scores import append_rows, judge_texts, keep_rows, step_name
from rlspeech.stats import Interval, interval_columns, mean_interval, paired_delta
from rlspeech.tasks import get_task
from rlspeech.tasks.base import Task, keep_samples
from rlspeech.types import Sample, Score, Utterance

AUDIBLE = 24  # clips that can be heard before and after
ON_THE_WAY = 4  # and at the validations in between
DRAW = 100_003  # from the seed of a validation's draw to that of the next
TEXT = "basic-3"  # normaliser of the word error rates of a run
ALTOGETHER = "reward"  # the column of all rewards together
PACKAGES = ("torch", "transformers", "peft")  # whose versions a checkpoint names
Change = tuple[Interval, Interval, Interval]  # before, after, and their paired difference
Rewards = Sequence[float | None]  # a value a clip
Columns = Mapping[str, Rewards]  # by name
Scores = Mapping[str, Sequence[Score]]
SPEC = {"name", "weight", "scale"}  # what a checkpoint says of a reward
NOTED = {"prompts_per_step", "group", "lr", "kl_beta", "clip_range", "policy_weight", "supervised_weight"}


class GuardWatch:
    """Metrics that are measured and not rewarded: the first reading is the baseline, a later one may be a reason to stop.

    A guard trips when its mean over the items where both readings are values is worse than the baseline by more than ``max_drop``
    *and* the bootstrap interval of the difference says so; a limit of None only watches, and one that is held (``Holds``) does not trip.
    """

    def __init__(self, specs: Sequence[GuardSpec]) -> None:
        self.specs = list(specs)
        self._first: dict[str, np.ndarray] = {}
        self.drops: dict[str, float] = {}

    def update(self, step: int, readings: Mapping[str, Sequence[float | None]]) -> str | None:
        """Take in a validation: name -> values (K,) in the same order each time, None or nan where missing.

        Returns why the run should stop, or None.
        """
        reasons = []
        for spec in (s for s in self.specs if s.name in readings):
            now = np.array([np.nan if v is None else v for v in readings[spec.name]], np.float64)
            first = self._first.setdefault(spec.name, now)
            if now is first:
                continue
            if not np.isfinite(now).any():
                if spec.max_drop is not None and np.isfinite(first).any():
                    reasons.append(f"{spec.name} can no longer be scored")
                continue
            difference = (first - now) * (1.0 if column_of(spec.name).higher_is_better else -1.0)
            found = mean_interval(difference)
            drop, half = found.mean, (found.hi - found.lo) / 2 if found.n > 1 else 0.0
            self.drops[spec.name] = drop
            if spec.max_drop is not None and not spec.hold and np.isfinite(drop) and drop - half > spec.max_drop:
                means = f"{np.nanmean(first):.4g} -> {np.nanmean(now):.4g}"
                reasons.append(f"{spec.name} is worse by {drop:.3g} +- {half:.2g} (limit {spec.max_drop:g}): {means}")
        return f"step {step}: " + "; ".join(reasons) if reasons else None

    def beyond(self) -> list[str]:
        """Guards whose mean was beyond its limit at the last reading, if not yet beyond doubt."""
        limits = {s.name: s.max_drop for s in self.specs if s.max_drop is not None}
        return [name for name, limit in limits.items() if self.drops.get(name, 0.0) > limit]


class Holds:
    """Multipliers of the guards that are held, by PID control (arXiv 2007.03964): they rise where a fall is beyond its aim, and sink.

    At a reading the error e is the fall in units of its limit, less ``hold.aim``; both are clipped to [0, ``hold.most``], against windup:

        integral += I min(e, 1),   lambda = P e + integral + D max(0, e - the last reading's e).

    Falls are read on the validation clips, not on the rollouts, though these are scored by then: exploration alone worsens most metrics by
    more than a limit, and every step has other clips. There a fall is paired with step 0, for every algorithm, and is what the limit is of.
    """

    def __init__(self, config: RL) -> None:
        self.limits, self.how = {g.name: cast(float, g.max_drop) for g in config.guards if g.hold}, config.hold
        self.state = {part: dict.fromkeys(self.limits, 0.0) for part in ("drop", "integral", "lambda")}

    def update(self, drops: Mapping[str, float]) -> None:
        """Take in the falls, in the metrics' units; one that is not known leaves its multiplier as it is."""
        (p, i, d), most, (before, integral, pull) = self.how.gains, self.how.most, self.state.values()
        for name, limit in self.limits.items():
            if math.isfinite(drop := drops.get(name, math.nan)):
                error, rise = drop / limit - self.how.aim, max(0.0, drop - before[name]) / limit
                integral[name] = min(max(integral[name] + i * min(error, 1.0), 0.0), most)
                pull[name] = min(max(p * error + integral[name] + d * rise, 0.0), most)
                before[name] = drop

    def row(self) -> dict[str, float]:
        """What is logged of a step."""
        return {f"hold/{name}/{part}": self.state[part][name] for name in self.limits for part in ("drop", "lambda")}


@dataclass
class Validation:
    """The held-out clips of a run, their scores at every validation, and what guards say of them."""

    config: RL  # the run's, its rewards and guards filled in
    engine: Engine
    task: Task
    folder: Run
    judge: Scorer  # computes rewards and guards
    clips: list[Clip]  # the same ones every time
    # columns of each validation, ``{"step": ..., name: [a value a clip]}``, the first before training
    history: list[dict[str, Any]] = field(default_factory=list)
    tripped: str | None = None  # a guard's reason to stop, or None
    best: float = -math.inf  # largest mean gain in reward of a step that no guard objects to
    gain: float | None = None  # the last validation's mean gain in reward; None before the second one

    def __post_init__(self) -> None:
        self.guards, self.holds = GuardWatch(self.config.guards), Holds(self.config)

    def restore(self, history: list[dict[str, Any]], best: float | None, holds: Mapping[str, Any]) -> None:
        """Take up what an earlier attempt has found. Raises ``TypeError`` and others where it is spoilt."""
        self.history, self.best = history, -math.inf if best is None else best
        changes(history, self.config.seed)
        for part, kept in holds.items():
            self.holds.state[part].update(kept)  # the algorithm has that of the multipliers
        self.guards.update(0, history[0])
        self.tripped = self.guards.update(history[-1]["step"], history[-1])

    @log.waiting("validating")
    def run(self, policy: Any, step: int) -> bool:
        """Score the clips without exploration, keep and log what was found. Returns True where the step is the best one so far."""
        began_s = time.monotonic()
        samples, scores = self._score(policy)
        row: dict[str, Any] = {"step": step, **{k: [s.value for s in column] for k, column in scores.items()}}
        row[ALTOGETHER] = reward_of(self.config.rewards, row, (self.history or [row])[0])
        self.history.append(row)
        found = changes(self.history, self.config.seed)
        means, deltas = {k: now for k, (_, now, _) in found.items()}, {k: d for k, (_, _, d) in found.items()}
        if any(s.hypothesis is not None for s in samples):
            means["wer"] = corpus_interval(texts_of(samples), TEXT, self.config.seed)
        if self.folder.main:
            keep(self.folder.path, step, self.clips, samples, scores, row[ALTOGETHER])
        seconds = {"seconds/validate": time.monotonic() - began_s}
        self.folder.log(step, **interval_columns("valid", means), **interval_columns("delta", deltas), **seconds)
        if step and (line := summary_line(deltas)):
            log.say(f"step {step}, {len(self.clips)} held-out clips against step 0: {line}")
        tripped, gain = self.guards.update(step, row), deltas[ALTOGETHER].mean
        self.gain = gain if step else None
        better = gain > self.best and step > 0 and not tripped and not self.guards.beyond()
        self.tripped, better = self.engine.agree((tripped, better))
        self.best = gain if better else self.best
        return better

    def hold(self, policy: Any, step: int) -> None:
        """Where it is time, read the guards that are held, which a validation of the step has done, and set their multipliers."""
        if not self.holds.limits or step % self.config.hold.every:
            return
        if self.history[-1]["step"] != step:
            _, scores = self._score(policy, self.holds.limits)
            self.guards.update(step, {name: [s.value for s in column] for name, column in scores.items()})
        self.holds.update(self.engine.agree(self.guards.drops))

    def _score(self, policy: Any, only: Collection[str] | None = None) -> tuple[list[Sample], dict[str, list[Score]]]:
        """Outputs of all clips (with sound where it is kept) and a score a clip by name; each process makes its share."""
        cfg, world, count = self.config, self.engine.world, len(self.clips)
        mine = self.clips[self.engine.rank :: world]
        made, found = list[Sample](), dict[str, list[Score]]()
        if mine or self.engine.is_main:  # the same latents at every validation: differences are the weights'
            draws = [self.task.outputs(policy, mine, seed=cfg.seed + DRAW * draw) for draw in range(cfg.valid_draws)]
            made, found = draws[0], averaged([self.judge.score(samples, only) for samples in draws])
        audible = len(range(self.engine.rank, min(AUDIBLE, count), world))  # of this process's
        kept = [replace(s, target=None, wav=s.wav if i < audible else s.wav[:0]) for i, s in enumerate(made)]
        samples, scores = list[Any]([None] * count), dict[str, list[Any]]()
        for rank, (part, columns) in enumerate(self.engine.gather((kept, found))):
            samples[rank::world] = part
            for name, column in columns.items():
                scores.setdefault(name, [None] * count)[rank::world] = column
        return samples, scores

    def summary(self) -> dict[str, Any]:
        """Guards beyond their limits; means before and after, and their paired differences, by metric."""
        found, parts = changes(self.history, self.config.seed), ("before", "after", "difference")
        made = {part: {k: change[i].as_dict() for k, change in found.items()} for i, part in enumerate(parts)}
        return {"beyond": self.guards.beyond(), **made}

    def table(self) -> list[list[str]]:
        """A row a metric for the terminal: name, before, after, difference, role."""
        kind = "reward" if self.config.policy_weight else "measured"
        roles, rows = {**{r.name: kind for r in self.config.rewards}, ALTOGETHER: "all together"}, []
        for k, (first, last, delta) in changes(self.history, self.config.seed).items():
            name = k if _up(k) else f"{k} (lower is better)"
            rows.append([name, first.text(3), last.text(3), delta.text(3, sign=True), roles.get(k, "guard")])
        return rows


def changes(history: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Change]:
    """For every metric the first validation, the last one and their paired difference, each with its interval (``Validation.history``)."""
    first, last = history[0], history[-1]
    shared = [k for k in first if k != "step" and k in last]
    deltas = {k: paired_delta(last[k], first[k], seed=seed) for k in shared}
    return {k: (mean_interval(first[k]), mean_interval(last[k]), deltas[k]) for k in shared}


def averaged(draws: Sequence[Mapping[str, Sequence[Score]]]) -> dict[str, list[Score]]:
    """A validation's scores over its draws, name -> a score a clip: the mean of those that are known, with the first draw's words."""

    def mean(scores: Sequence[Score]) -> Score:
        known = [s.value for s in scores if s.value is not None]
        return replace(scores[0], value=float(np.mean(known)), error=None) if known else scores[0]

    return {name: [mean(of_clip) for of_clip in zip(*(d[name] for d in draws), strict=True)] for name in draws[0]}


def reward_of(specs: Sequence[RewardSpec], row: Columns, first: Columns) -> list[float | None]:
    """The rewards of every validation clip in one number, as the run weighs them but for their bounds.

    Rewards with a scale count in units of their spread over the clips at step 0 (``first``), so that the number means the same at every
    step. Columns hold (K,) values, one a clip.
    """
    values = {s.name: np.array([np.nan if v is None else v for v in row[s.name]], np.float64) for s in specs}
    unbounded = [s.model_copy(update={"bounds": (None, None)}) for s in specs]
    count = len(row[specs[0].name])
    made = compose(values, np.zeros(count), unbounded, spread=[1.0] * len(specs))
    units = [1.0 if s.scale == "none" else _spread(first[s.name]) for s in specs]
    weighed = zip(made.weights, made.parts.T, units, strict=True)
    total = sum((weight * part / unit for weight, part, unit in weighed if weight), np.zeros(count))
    return [float(v) if np.isfinite(v) else None for v in total]


def _spread(values: Sequence[float | None]) -> float:
    """Standard deviation of what could be scored; 1 where there is none to divide by."""
    known = np.array([v for v in values if v is not None])
    return float(known.std()) or 1.0 if len(known) else 1.0


def texts_of(samples: Iterable[Sample]) -> list[tuple[str, str, str | None]]:
    """Reference, hypothesis and language of the samples that have both texts."""
    found = ((s.text, s.hypothesis, s.columns.get("language")) for s in samples)
    return [(text, words, language) for text, words, language in found if text is not None and words is not None]


# -- what is kept ------------------------------------------------------------------------------------------------------


def keep(
    folder: Path, step: int, clips: Sequence[Clip], samples: Sequence[Sample], scores: Scores, reward: Rewards
) -> None:
    """Append a validation's rows and save its outputs; the inputs at the first one; thin out the audio of those before this one.

    ``reward`` is all rewards together, as the run weighs them. Raises ``UserError`` where the disk is full.
    """
    rows = []
    for i, (clip, sample) in enumerate(zip(clips, samples, strict=True)):
        values = {name: column[i].value for name, column in scores.items()}
        errors = {name: scores[name][i].error or "no reason given" for name, value in values.items() if value is None}
        errors |= {} if reward[i] is not None else {ALTOGETHER: "a part of it is not known"}
        facts: dict[str, Any] = {"key": clip.key, "system": step_name(step), "step": step, "item": _item(clip)}
        words = _words(clip, sample, {name: column[i].detail for name, column in scores.items()})
        rows.append({**facts, **words, **values, ALTOGETHER: reward[i], "errors": errors})
    append_rows(folder / "scores.jsonl", rows)
    place = folder / "samples"
    try:
        keep_samples(place / step_name(step), samples, AUDIBLE)
        if step == 0:
            keep_inputs(place, clips[:AUDIBLE])
        _thin(place, step, [c.key for c in clips[:ON_THE_WAY]])
    except OSError as error:
        raise write_error(place, error, "what was validated before is kept") from error


def trim(folder: Path, step: int) -> None:
    """Drop torn rows and those after a step: what a resumed run is going to do again; -1 drops all."""
    keep_rows(folder / "scores.jsonl", lambda row: isinstance(row.get("step"), int) and row["step"] <= step)


def _item(clip: Clip) -> str:
    """A checksum of what was put in."""
    wav = np.ascontiguousarray(clip.noisy, dtype=np.float32)
    return f"{zlib.crc32((clip.text or '').encode(errors='surrogatepass'), zlib.crc32(wav.tobytes())):08x}"


def _words(clip: Clip, sample: Sample, details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Reference text, transcript and description of a sample, those that there are."""
    recognised = next((d["hypothesis"] for d in details.values() if "hypothesis" in d), None)
    found = {"text": clip.text, "hypothesis": recognised if sample.hypothesis is None else sample.hypothesis}
    found |= judge_texts(details)
    return {k: v for k, v in found.items() if isinstance(v, str)}


def keep_inputs(folder: Path, clips: Sequence[Clip]) -> None:
    """Save the inputs and references under ``folder``; where they are the same, as for a recogniser, the recording."""
    for clip in clips:
        same = clip.noisy is clip.target
        for name, wav in (("recording", clip.noisy),) if same else (("input", clip.noisy), ("reference", clip.target)):
            mono = wav if wav.ndim == 1 else wav.mean(0)
            if mono.size:
                save_audio(folder / name / f"{safe_name(clip.key)}.flac", mono, clip.sample_rate)


def _thin(folder: Path, step: int, keys: Sequence[str]) -> None:
    """Keep only the audio of ``keys`` of validations before ``step``, but for the first."""
    for place in folder.glob("step_*"):
        number = re.fullmatch(r"step_(\d+)", place.name)
        if number is None or not 0 < int(number[1]) < step:
            continue
        files = {p.stem: p for p in place.glob("*.flac")}
        kept = set(find(files, keys).values())
        for path in files.values():
            if path not in kept:
                path.unlink(missing_ok=True)


# -- what a checkpoint says of itself: data, settings, rewards, guards, and its numbers against the start ---------------


def tuned_facts(
    config: RL,
    before: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    step: int,
    utts: Sequence[Utterance],
    judged: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts of a checkpoint.

    Args:
        before: the facts of the checkpoint that it started from.
        history: as ``Validation.history``.
        utts: what prompts are drawn from.
        judged: what the judge says of its metrics (``Scorer.meta``).
    """
    kept = {k: v for k, v in before.items() if k not in ("rl", "validation", "earlier", "languages")}
    if isinstance(before.get("rl"), Mapping):
        earlier = {k: before["rl"].get(k) for k in ("algo", "step", "from", "rewards", "guards")}
        kept["earlier"] = [*(before.get("earlier") or []), earlier]
    languages = {u.language for u in utts}
    if None not in languages and 0 < len(languages) <= 8:  # every row says its own, and there are few
        kept["languages"] = sorted(map(str, languages))
    sampling = "explore" if "explore" in get_task(config.task).settings else "sampling"
    versions = {k: v for k, v in versions_of(PACKAGES).items() if v is not None}
    versions |= {k: v["version"] for k, v in judged.items() if isinstance(v, Mapping) and "version" in v}
    rewards, guards = config.rewards, config.guards
    rl: dict[str, Any] = {"algo": config.method, "step": step, "steps": config.steps, "from": config.model}
    rl |= {"seed": config.seed, "data": config.data, "valid": config.valid, "rows": len(utts)}
    rl |= {"rewards": {r.name: r.weight for r in rewards}, "guards": [g.name for g in guards]}
    rl["reward_specs"] = [{**r.model_dump(include=SPEC), "help": _help(r.name)} for r in rewards]
    rl["guard_specs"] = [{**g.model_dump(), "help": _help(g.name)} for g in guards]
    rl |= config.model_dump(include=NOTED)
    rl |= {"lora": config.lora and config.lora.model_dump(), sampling: getattr(config, sampling).model_dump()}
    rl["versions"] = {"rlspeech": __version__, **versions}
    if history:
        rl["results"] = _results(config, history)
        kept["validation"] = {k: mean_interval(v).mean for k, v in history[-1].items() if k != "step"}
    return {**kept, "rl": rl}


def _results(config: RL, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per metric the start, the last validation and their paired difference, each with its interval."""
    kind = "rewarded" if config.policy_weight else "measured"
    roles = {**{r.name: kind for r in config.rewards}, ALTOGETHER: ""}
    found = dict[str, dict[str, Any]]()
    for name, change in changes(history, config.seed).items():
        numbers = zip(("start", "now", "difference"), (i.as_dict() for i in change), strict=True)
        found[name] = {"role": roles.get(name, "guard"), "higher_is_better": _up(name), **dict(numbers)}
    clips = max((len(v) for k, v in history[0].items() if k != "step"), default=0)
    return {"step": history[-1]["step"], "clips": clips, "metrics": found}


def summary_line(deltas: Mapping[str, Interval]) -> str:
    """What a validation found against the first one, for the terminal: means, sorted by whether their intervals say better or worse."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, d in deltas.items():
        if not math.isfinite(d.mean):
            continue
        verdict = "undecided" if not d.significant else "better" if (d.mean > 0) == _up(name) else "worse"
        found[verdict].append(f"{'all rewards together' if name == ALTOGETHER else name} {d.mean:+.3g}")
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names)


def _help(name: str) -> str:
    return getattr(known_column(name), "help", "")


def _up(name: str) -> bool:
    """Whether more of a column is better; of one that is not known, yes."""
    return getattr(known_column(name), "higher_is_better", True)
