"""Reward functions as users of TRL write them; imported by name from the tests."""

from __future__ import annotations

import asyncio
from typing import Any


def longer(completions: list[str], **kwargs: Any) -> list[float]:
    """Length of the completion; checks what else it is given."""
    assert {"prompts", "completion_ids", "trainer_state", "text", "keys"} <= set(kwargs)
    kwargs["log_extra"]("column", completions)
    kwargs["log_metric"]("longest", max(map(len, completions)))
    return [float(len(c)) for c in completions]


def matches(prompts: list[str], completions: list[str], text: list[str], topic: list[str]) -> list[float | None]:
    """Takes nothing that it does not name; None where it does not apply."""
    assert prompts == [f"say {t}" if t == "digits" else "" for t in topic]
    return [None if t == "other" else float(c == x) for c, x, t in zip(completions, text, topic, strict=True)]


async def slow(completions: list[str], **kwargs: Any) -> list[float]:
    """As for services that are asked over the network."""
    await asyncio.sleep(0)
    return [1.0] * len(completions)


def messages(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """Of a dataset of conversations."""
    return [float(len(c[0]["content"])) for c in completions]


def misses(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    """Wants a column that there is not."""
    return [1.0] * len(completions)
