"""``rlspeech rl --probe``: measure whether candidate settings and algorithms learn, before a long run.

    rlspeech rl --probe --reward pesq_wb --reward estoi --model runs/base --data mix.json
    rlspeech rl --probe --set probe_algos=[grpo,awr,diffro] --model runs/base --data mix.json

A policy gradient is signal plus noise: of the exploration (too many dimensions for the rollouts), of the reward (its gradient
differs from clip to clip). Both show in the mean pairwise cosine of independent gradients at the starting point, from disjoint prompts
and noise: 0 means no common direction, and no learning rate makes one. All rewards and guards are judged from the same rollouts.

Of an algorithm it is the direction of its update from the same prompts and seeds, and what a gradient costs in seconds; the cosine with
the first one's is that of both means over all gradients, so noise lowers it.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlspeech import log
from rlspeech.algos import get_algorithm
from rlspeech.algos.math import agreement, critical_batch
from rlspeech.algos.update import PolicyUpdate
from rlspeech.config import RL, Exploration
from rlspeech.config_parts import Sampling
from rlspeech.data.batches import batches, with_video
from rlspeech.engine import Engine
from rlspeech.files import parse_json
from rlspeech.models.adapters import Adapted
from rlspeech.report.calibrate import text_of
from rlspeech.rewards.scorer import Scorer
from rlspeech.scores import write_json
from rlspeech.stages.rl import make_scorer
from rlspeech.stats import Interval, pairwise_cosine
from rlspeech.tasks import complete, get_task
from rlspeech.tasks.base import Task
from rlspeech.types import Rollout, UserError

Setting = Exploration | Sampling
Agreement = dict[str, tuple[Interval, float]]


def candidates(config: RL, task: Task) -> Sequence[Setting]:
    """The configured setting and, unless the user listed others, its neighbours and the published one.

    Tokens are sampled in one way: the one row is then about the rewards, whose gradients are compared.
    """
    if task.published is None:
        return [config.sampling]
    if config.probe_settings:
        return list(config.probe_settings)
    mine = config.explore
    changes: list[dict[str, Any]] = [{"bands": 1}, {"bands": 16}, {"basis": ["level"]}, {"basis": ["contrast"]}]
    near = [mine.model_copy(update=change) for change in (*changes, {"segment_s": 0.25})]
    unique: list[Exploration] = []
    for setting in [mine, *(near if mine.kind == "gain" else [Exploration()]), task.published]:
        if setting not in unique:
            unique.append(setting)
    return unique


def run(config: RL) -> dict[str, Any]:
    """Probe every candidate with ``probe_batches`` independent gradients. Nothing is trained.

    Every row is written as soon as it is known; after an interruption the same command goes on behind the last one. Guards are scored only
    where they were asked for: the most expensive ones take longer than all rewards.

    Returns rows of setting, rollouts a second, and per reward the cosine with its interval and the critical number of prompts.
    """
    task = get_task(config.task)
    watched = "guards" in config.model_fields_set
    config = complete(config, task)
    engine = Engine(config.device, "fp32", config.seed)
    model, _ = task.load(config.model, engine.device, **task.load_options(config))
    adapted = Adapted(model, config.lora)
    train, _ = task.data(config, model)
    clip_s = 0.0 if task.transcribed else config.clip_s
    settings = candidates(config, task)
    algos: Sequence[Any] = config.probe_algos or [config.algo]
    if not config.probe_settings and (config.probe_algos or config.samples):
        settings = settings[:1]
    asked = zlib.crc32(config.model_dump_json(exclude={"out", "probe_settings"}).encode())
    path = Path(config.out) / "probe.json" if config.out else None
    rows = [] if len(algos) > 1 else _known(path, asked, settings)  # their gradients are compared
    summary: dict[str, Any] = {"prompts": config.prompts_per_step, "group": config.group}
    summary |= {"gradients": config.probe_batches, "asked": asked, "rows": rows}
    whole, done = len(settings) * len(algos) * config.probe_batches, len(rows) * config.probe_batches
    first: Tensor | None = None
    judge = make_scorer(config, str(engine.device), guards=watched)
    with judge as scorer, log.progress(whole, "probe", "gradients", start=done) as bar:
        try:
            for setting, name in itertools.product(settings[len(rows) :], algos):
                # one that follows a gradient has no use for a group
                sizes = {"group": task.diffro_defaults.get("group", config.group)} if name == "diffro" else {}
                own = config.model_copy(update={"algo": name, **(sizes if config.probe_algos else {})})
                policy = task.policy(adapted, own, setting if isinstance(setting, Exploration) else None)
                soft = task.soft_reward(own, engine.device) if "diffro" in name else None
                algo = get_algorithm(own, policy, torch.optim.SGD(policy.parameters(), 0.0), soft=soft)
                # every setting gets the same prompts
                feed = batches(algo.select(train), config.prompts_per_step, clip_s, seed=config.seed)
                found, rate, mean = _measure(algo, scorer, feed, bar)
                row: dict[str, Any] = {"setting": label(setting), _kind(setting): setting.model_dump(mode="json")}
                if config.probe_algos:
                    first = mean if first is None else first
                    row |= {"algo": name, "cosine": agreement([first, mean]) if mean is not first else 1.0}
                    row |= {"rollouts": own.prompts_per_step * own.group}
                    row["seconds"] = row["rollouts"] / rate
                rows.append({**row, "rollouts_per_s": rate, **found})
                if path is not None:
                    write_json(path, summary)
        finally:  # also of a probe that was interrupted
            _show(config, rows)
    return summary


def _kind(setting: Setting) -> str:
    return "explore" if isinstance(setting, Exploration) else "sampling"


def _known(path: Path | None, asked: int, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Rows of an interrupted probe that asked the same; none of a finished one, whose model may have changed, or of what is unreadable."""
    try:
        found = parse_json(path.read_bytes()) if path is not None else {}
        rows = found["rows"] if found.get("asked") == asked else []
        same = [row[_kind(s)] == s.model_dump(mode="json") for row, s in zip(rows, settings, strict=False)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return list(rows) if all(same) and len(rows) < len(settings) else []


def _show(config: RL, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    names = list(dict.fromkeys(k for r in rows for k, v in r.items() if isinstance(v, dict) and "mean" in v))
    size, several = f"{config.prompts_per_step} x {config.group} rollouts", bool(config.probe_algos)
    cells = []
    for r in rows:
        costs = [f"{r['cosine']:.2f}", str(r["rollouts"]), f"{r['seconds']:.1f}"] if several else []
        cells.append([r[k] for k in ("algo", "setting") if k in r] + (costs or [f"{r['rollouts_per_s']:.1f}"]))
        cells[-1] += [_cell(r[n]) if n in r else "" for n in names]
    notes = ["0: the gradients have no common direction, the run would wander; (n): prompts a step, half of it signal"]
    head = ["exploration", "rollouts/s", *names]
    if several:
        size = f"{config.prompts_per_step} prompts"
        head = ["algorithm", "exploration", "cosine", "rollouts", "s", *names]
        notes.append(f"cosine: of the mean gradient with that of {rows[0]['algo']}; rollouts, s: of one gradient")
    what = f"agreement of {config.probe_batches} gradients of {size}: mean pairwise cosine (95 %)"
    log.table(what, head, cells, notes)


def _measure(algo: PolicyUpdate, scorer: Scorer, feed: Any, bar: Any) -> tuple[dict[str, Any], float, Tensor]:
    """Agreement of the gradients by reward: the cosine with its interval and the critical prompts; rollouts a second; the mean (P,)."""
    config, grads = algo.config, dict[str, list[Tensor]]()
    started, rollouts = time.monotonic(), 0
    for k in range(config.probe_batches):
        experience = algo.collect(with_video(next(feed)[0], config.video), scorer, seed=k + 1)
        rollout = experience.rollout
        if not config.policy_weight:
            raise UserError("nothing to probe", "policy_weight is 0: nothing is sampled", "--set policy_weight=1")
        rollouts += 0 if rollout is None else len(rollout.samples)
        columns = {"all": experience.advantage.value}
        if rollout is None or "diffro" in config.algo:  # its direction comes from more than advantages
            prompts = torch.arange(len(experience.prompts))
            grads.setdefault("all", []).append(algo.gradients(experience, columns.pop("all"), prompts)[0].total.cpu())
        for name in () if config.probe_algos else experience.scores:  # none of stored samples
            named = next((r for r in config.rewards if r.name == name), None)
            spec = named or config.rewards[0].model_copy(update={"name": name, "bounds": (None, None)})
            alone = [spec.model_copy(update={"weight": 1.0})]
            made = algo.advantage_of(cast(Rollout, rollout), experience.scores, alone, experience.base)
            columns[name] = made[1].value
        for name, g in (algo.reward_gradients(experience, columns) if columns else {}).items():
            grads.setdefault(name, []).append(g.cpu())
        bar.advance(1)
    found = {}
    for name, (interval, critical) in summarise(grads, config.prompts_per_step, config.seed).items():
        found[name] = {**interval.as_dict(), "critical_prompts": critical if critical != float("inf") else None}
    return found, rollouts / (time.monotonic() - started), torch.stack(grads["all"]).mean(0)


def label(e: Setting) -> str:
    """A setting in a few words."""
    if isinstance(e, Sampling):
        cut = [f"top_p {e.top_p:g}"] * (e.top_p < 1) + [f"top_k {e.top_k}"] * (e.top_k > 0)
        return ", ".join([f"temperature {e.temperature:g}", *cut])
    if e.kind != "gain":
        return f"{e.kind} {e.noise:g}" + ("" if e.kind == "mask" else f", window {e.window}")
    stretch = "clip" if e.segment_s is None else f"{e.segment_s:g} s"
    return f"gain {e.noise:g}, {e.bands} bands x {stretch}, {'+'.join(e.basis)}"


def _cell(found: dict[str, Any]) -> str:
    critical = f" ({found['critical_prompts']:.0f})" if found["critical_prompts"] is not None else ""
    return text_of({**found, "value": found["mean"]}) + critical


def summarise(gradients: Mapping[str, list[Tensor]], prompts: int, seed: int = 0) -> Agreement:
    """Mean pairwise cosine with its bootstrap 95 % interval, and the prompts at which a gradient is half signal, by column.

    A column has K gradients (P,), each of so many ``prompts``.
    """
    out: Agreement = {}
    for name, grads in gradients.items():
        kept = [g.numpy() for g in grads if float(g.norm()) > 0]
        unknown = Interval(float("nan"), float("nan"), float("nan"), len(kept))
        interval = pairwise_cosine(np.stack(kept), seed=seed) if len(kept) > 2 else unknown
        out[name] = (interval, critical_batch(interval.mean, prompts))
    return out
