"""The numbers of a run over its steps: ``metrics.jsonl``, and whatever tracker is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

from rlspeech import log
from rlspeech.checkpoints import disk_error, write_text

__all__ = ["MetricsLog", "MetricsSink", "metrics_sink", "read_metrics"]


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and hands them to the sink.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._sink: MetricsSink = _Null()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write one row at once. nan and infinities are written as null.

        Raises:
            UserError: the disk is full.
        """
        row = log.plain({"step": int(step), "time": round(time.time(), 3), **metrics})
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
                self._sink = metrics_sink(self.folder / "tensorboard")
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._sink.log(step, row)

    def trim(self, last_step: int) -> None:
        """Drop torn lines, and rows after a step: what a resumed run is going to do again."""
        if self.path.exists():
            rows = [row for row in read_metrics(self.path) if row["step"] <= last_step]
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def close(self) -> None:
        """Close the file and flush the sink."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._sink.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; a torn line (the process died while writing) is left out."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class MetricsSink(Protocol):
    """Where metrics go besides ``metrics.jsonl``."""

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Take one step's numbers."""

    def close(self) -> None:
        """Flush."""


class _Null:
    def log(self, step: int, metrics: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def metrics_sink(folder: Path) -> MetricsSink:
    """TensorBoard files in ``folder`` where the package is installed and torch is in use, else a sink that does nothing."""
    if log.is_main() and "torch" in sys.modules and importlib.util.find_spec("tensorboard") is not None:
        try:
            return _TensorBoard(folder)
        except Exception as error:  # a broken tracker must not cost the run
            log.warn(f"TensorBoard is installed but does not start ({error}); metrics.jsonl has everything")
    return _Null()
