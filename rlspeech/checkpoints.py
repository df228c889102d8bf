"""Checkpoints that are there whole or not at all.

A folder is written under a temporary name, every file fsynced, then renamed; ``latest`` and ``best`` are text files that name one.
Whatever moment the process dies at, a start finds the last complete checkpoint and removes the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.data.jsonl import is_full, sync, write_error, write_text
from rlspeech.state import load_state, save_state

__all__ = ["Checkpoints"]


class Checkpoints:
    """``step_000200/`` folders and the text files ``latest`` and ``best`` beside them.

    Args:
        folder: where they lie.
        keep_last: how many to keep besides the best one.
        writable: False in processes other than rank 0: saving does nothing.
    """

    def __init__(self, folder: Path, keep_last: int = 2, writable: bool = True) -> None:
        self.folder, self.keep_last, self.writable = folder, keep_last, writable

    def save(self, step: int, write: Callable[[Path], Any], state: dict[str, Any]) -> Path:
        """Write a checkpoint whole or not at all, point ``latest`` at it, and drop the oldest ones.

        Args:
            step: optimiser steps done.
            write: writes the model files into the folder it is given.
            state: nested dict of tensors, arrays, numbers, strings; ``step`` is added.

        Raises:
            UserError: the disk is full; the earlier checkpoints are intact.
        """
        folder = self.folder
        final = folder / f"step_{step:06d}"
        if not self.writable:
            return final
        temporary = folder / f".tmp-{final.name}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            save_state(temporary, {**state, "step": int(step)})
            _fsync_tree(temporary)
            aside = folder / f".old-{final.name}"
            if (
                final.exists()
            ):  # a folder cannot be renamed onto a full one; _clean puts `aside` back if we die in between
                os.rename(final, aside)
            os.rename(temporary, final)
            sync(folder)
            shutil.rmtree(aside, ignore_errors=True)
            write_text(folder / "latest", final.name + "\n")
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_full(error):
                raise write_error(self.folder, error, "the earlier checkpoints are intact") from error
            raise
        self._prune()
        return final

    def mark_best(self, step: int) -> None:
        """Point ``best`` at a checkpoint that exists; it is then kept."""
        if self.writable:
            if not (self.folder / f"step_{step:06d}").is_dir():
                raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}")
            write_text(self.folder / "best", f"step_{step:06d}\n")

    def pointed(self, name: str) -> Path | None:
        """The folder that ``latest`` or ``best`` names, or None."""
        try:
            target = self.folder / (self.folder / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return target if target.name.startswith("step_") and target.is_dir() else None

    def last_step(self) -> int:
        """The step that ``latest`` names; 0 where there is none."""
        folder = self.pointed("latest")
        digits = folder.name.removeprefix("step_") if folder else ""
        return int(digits) if digits.isdecimal() else 0

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from and its state (with ``step``), or None. A damaged one is passed over with a warning."""
        first = self.pointed("latest")
        for path in [*([first] if first else []), *(p for p in reversed(self._steps()) if p != first)]:
            try:
                return path, load_state(path)
            except Exception as error:  # whatever is wrong with the files, an older checkpoint is better than none
                log.warn(f"{path} cannot be read ({error}); looking for an earlier one")
        return None

    def _steps(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step_*") if p.is_dir()), key=lambda p: (len(p.name), p.name))

    def _prune(self) -> None:
        keep = {self.pointed("latest"), self.pointed("best")}
        for path in self._steps()[: -self.keep_last or None]:
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a process that died has left half-written."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".old-*"):
            final = path.with_name(path.name.removeprefix(".old-"))
            shutil.rmtree(path, ignore_errors=True) if final.exists() else os.rename(path, final)


def _fsync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
