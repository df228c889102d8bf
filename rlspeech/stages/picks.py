"""Which items a page lets people look at and listen to: as many losses as gains, so that they flatter nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["beside", "pick"]


def beside(metrics: Sequence[str], count: int) -> list[str]:
    """Metrics whose values stand beside a player: the first ones, and those that have words to be shown with."""
    return [m for i, m in enumerate(metrics) if i < count or m.split("[")[0] == "llm"]


def pick(level: Mapping[str, float], gain: Mapping[str, float], count: int, metric: str) -> list[tuple[str, str]]:
    """Items and why they are shown: the largest losses and gains, the worst, the best, the rest evenly spaced in between.

    Args:
        level: item -> value, signed so that more is better.
        gain: item -> difference to a baseline, signed alike; empty where there is no baseline.
        count: most items.
        metric: its name, for the labels.

    Returns:
        (item, label), losses first; fewer than ``count`` where there are not more.
    """
    by_gain, by_level = ([k for _, k in sorted((v, k) for k, v in values.items())] for values in (gain, level))
    share, chosen = max(1, count // 3), dict[str, str]()

    def take(keys: list[str], most: int, label: str) -> None:
        for key in [k for k in keys if k not in chosen][: max(0, min(most, count - len(chosen)))]:
            chosen[key] = label

    if by_gain:
        half = (len(by_gain) + 1) // 2  # one item is not both
        for key in by_gain[:half][:share]:
            take([key], 1, _change(gain[key], "largest loss in", "smallest gain in", metric))
        for key in by_gain[half:][::-1][:share]:
            take([key], 1, _change(-gain[key], "largest gain in", "smallest loss in", metric))
        take(by_level, 1, "worst")
        take(by_level[::-1], 1, "best")
    else:
        take(by_level, share, "worst")
        take(by_level[::-1], share, "best")
    rest = [k for k in by_gain or by_level if k not in chosen]
    room = min(count - len(chosen), len(rest))
    take([rest[i] for i in ((np.arange(room) + 0.5) * len(rest) / max(1, room)).astype(int)], room, "in between")
    return list(chosen.items())


def _change(value: float, below: str, above: str, metric: str) -> str:
    return f"unchanged {metric}" if value == 0 else f"{below if value < 0 else above} {metric}"
