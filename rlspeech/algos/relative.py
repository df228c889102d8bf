"""Rewards relative to the frozen base's output: its scores, kept by clip, and the difference in the rollouts' units.

LR-AVSE: R = r(y) - r(y_base). A judge that is dear (a language model) hears the base's output of a clip once. Training clips are
random crops and fresh mixtures, so that an utterance's name alone does not say what was heard: scores are kept by name and by a
digest of the clip's samples (and video), and another crop is another clip.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlspeech.config import RewardSpec
from rlspeech.rewards.mix import compose

__all__ = ["BaseScores", "Relative", "clip_name", "relative_reward"]

EPS = 1e-8


def clip_name(clip: Any) -> tuple[str, str]:
    """Key of a clip and digest of what it holds: the input, the target that it is judged against, the video."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (clip.noisy, clip.target, getattr(clip, "lips", None)):
        if part is None:
            digest.update(b"none")
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return clip.key, digest.hexdigest()


class BaseScores:
    """The base's scores by clip, the latest ``limit`` clips. What could not be scored is not kept: the next time it may be.

    Args:
        limit: clips.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self._known: OrderedDict[tuple[str, str], dict[str, float]] = OrderedDict()

    def get(self, name: tuple[str, str], columns: Collection[str]) -> dict[str, float] | None:
        """Scores by column, or None where one of them is not known."""
        found = self._known.get(name)
        if found is None or not set(columns) <= set(found):
            return None
        self._known.move_to_end(name)
        return found

    def put(self, name: tuple[str, str], scores: Mapping[str, float]) -> None:
        """Keep the scores of a clip, unless one of them is NaN."""
        if not all(np.isfinite(v) for v in scores.values()):
            return
        self._known[name] = dict(scores)
        while len(self._known) > self.limit:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


class Relative(NamedTuple):
    """Composed rewards (N,) of the rollouts and of the base in the same units, and their difference; NaN where one is missing."""

    reward: np.ndarray
    base: np.ndarray
    difference: np.ndarray


def relative_reward(
    scores: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    group: np.ndarray,
    specs: Sequence[RewardSpec],
    higher_is_better: Mapping[str, bool] | None = None,
) -> Relative:
    """Sum over the rewards of weight x (rollout - base) / spread, both clamped and signed as the specs say.

    The spread is the *rollouts'*: over the batch, inside the group, or 1, by the spec's scale; a reward without spread adds 0. With
    one reward of weight 1 and scale "none" the difference is exactly r(y) - r(y_base).

    Args:
        scores, base: name -> (N,), of the rollouts and of every row's base, nan where unscorable.
        group: (N,) prompt of every row.
        specs: the composition.
        higher_is_better: directions by name; those left out are looked up in the registry.
    """
    plain = [spec.model_copy(update={"scale": "none"}) for spec in specs]
    ours = compose(scores, group, plain, higher_is_better=higher_is_better)
    theirs = compose(base, group, plain, higher_is_better=higher_is_better)
    spread = np.stack([_spread(ours.parts[:, i], group, spec.scale) for i, spec in enumerate(specs)], 1)
    active, unit = ours.weights != 0, np.where(spread > EPS, spread, np.inf)
    weights = ours.weights[active]

    def total(parts: np.ndarray) -> np.ndarray:
        return (parts / unit)[:, active] @ weights

    return Relative(total(ours.parts), total(theirs.parts), total(ours.parts - theirs.parts))


def _spread(x: np.ndarray, group: np.ndarray, scale: str) -> np.ndarray:
    """(N,) what each row is divided by: standard deviation over the scorable rows of the batch or of its group, or 1."""
    if scale == "none":
        return np.ones(len(x))
    index = np.unique(group, return_inverse=True)[1] if scale == "group" else np.zeros(len(x), int)
    good = np.isfinite(x)
    filled, count = np.where(good, x, 0.0), np.maximum(np.bincount(index, good), 1)
    centred = np.where(good, x - (np.bincount(index, filled) / count)[index], 0.0)
    return np.asarray(np.sqrt(np.bincount(index, centred**2) / count)[index])
