"""What a checkpoint of ``rlspeech rl`` says of itself: data, settings, rewards, guards, and its numbers against the start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from rlspeech import __version__
from rlspeech.config import RL
from rlspeech.rewards.base import column_of
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.types import UserError, Utterance

__all__ = ["change_told", "shown_name", "tuned_facts"]

PACKAGES = ("torch", "transformers", "peft")
ALTOGETHER = "reward"  # the validation's column of all rewards together
OF_THE_MODEL = frozenset({"flowse", "avse"})  # tasks whose supervised loss and exploration are settings of their own


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
        config: the run's.
        before: the facts of the checkpoint that it started from.
        history: validation columns, {"step": ..., metric: [a value a clip]}, the first before training.
        step: of the checkpoint.
        utts: what prompts are drawn from.
        judged: what the judge says of its metrics (``Scorer.meta``).
    """
    kept = {k: v for k, v in before.items() if k not in ("rl", "validation", "earlier", "languages")}
    if isinstance(before.get("rl"), Mapping):
        past = {k: before["rl"].get(k) for k in ("algo", "step", "from", "rewards", "guards")}
        kept["earlier"] = [*(before.get("earlier") or []), past]
    if languages := _languages(utts):
        kept["languages"] = languages
    explored = (
        {"explore": config.explore.model_dump()}
        if config.task in OF_THE_MODEL
        else {"sampling": config.sampling.model_dump()}
    )
    rl = {
        "algo": config.algo,
        "step": step,
        "steps": config.steps,
        "from": config.model,
        "seed": config.seed,
        "data": config.data,
        "valid": config.valid,
        "rows": len(utts),
        "rewards": {r.name: r.weight for r in config.rewards},
        "guards": [g.name for g in config.guards],
        "reward_specs": [
            {"name": r.name, "weight": r.weight, "scale": r.scale, "help": _help(r.name)} for r in config.rewards
        ],
        "guard_specs": [{"name": g.name, "max_drop": g.max_drop, "help": _help(g.name)} for g in config.guards],
        **config.model_dump(
            include={"prompts_per_step", "group", "lr", "kl_beta", "clip_range", "policy_weight", "supervised_weight"}
        ),
        "lora": None if config.lora is None else config.lora.model_dump(),
        **explored,
        "versions": {
            **_versions(),
            **{k: v["version"] for k, v in judged.items() if isinstance(v, Mapping) and "version" in v},
        },
    }
    if history:
        rl["results"] = _results(config, history)
        kept["validation"] = {k: mean_interval(v).mean for k, v in history[-1].items() if k != "step"}
    return {**kept, "rl": rl}


def _results(config: RL, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per metric the start, the last validation and their paired difference, each with its interval."""
    first, last = history[0], history[-1]
    rewarded = {r.name for r in config.rewards}
    found = {}
    for name in (k for k in first if k != "step" and k in last):
        role = "" if name == ALTOGETHER else "rewarded" if name in rewarded else "guard"
        found[name] = {
            "role": role,
            "higher_is_better": name == ALTOGETHER or _up(name),
            "start": mean_interval(first[name]).as_dict(),
            "now": mean_interval(last[name]).as_dict(),
            "difference": paired_delta(last[name], first[name], seed=config.seed).as_dict(),
        }
    clips = max((len(v) for k, v in first.items() if k != "step"), default=0)
    return {"step": last["step"], "clips": clips, "metrics": found}


def shown_name(name: str) -> str:
    """A metric as tables name it, with its direction where that is down."""
    return name if name == ALTOGETHER or _up(name) else f"{name} (lower is better)"


def change_told(deltas: Mapping[str, Interval]) -> str:
    """What a validation found against the first one, for the terminal: means, sorted by whether their intervals say better or worse."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, found in deltas.items():
        if not math.isfinite(found.mean):
            continue
        up = name == ALTOGETHER or _up(name)
        verdict = "undecided" if not found.significant else "better" if (found.mean > 0) == up else "worse"
        told[verdict].append(f"{'all rewards together' if name == ALTOGETHER else name} {found.mean:+.3g}")
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in told.items() if names)


def _help(name: str) -> str:
    try:
        return column_of(name).help
    except UserError:
        return ""


def _up(name: str) -> bool:
    try:
        return column_of(name).higher_is_better
    except UserError:
        return True


def _languages(utts: Iterable[Utterance]) -> list[str]:
    """Languages of the data, where every row says its own and there are few."""
    found = {u.language for u in utts}
    return sorted(str(x) for x in found) if None not in found and 0 < len(found) <= 8 else []


def _versions() -> dict[str, str]:
    found = {"rlspeech": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
