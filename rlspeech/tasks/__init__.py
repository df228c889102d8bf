"""The tasks by name. A task knows its data, its model, its default rewards and metrics; it knows no algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlspeech.types import UserError

if TYPE_CHECKING:
    from rlspeech.tasks.flowse import FlowSE

NAMES = ("flowse",)


def get_task(name: str, **options: Any) -> FlowSE:
    """The task of that name. Raises ``UserError`` for another one."""
    if name == "flowse":
        from rlspeech.tasks.flowse import FlowSE

        return FlowSE(**options)
    raise UserError(f"unknown task {name!r}", f"known: {', '.join(NAMES)}")
