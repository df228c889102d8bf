"""Devices, precision, processes: a thin layer so that the stages read the same on one CPU, one GPU or several.

The textbook way wraps the model in DistributedDataParallel. Here a policy is called in more ways than ``forward`` and gradients
are summed over many micro-batches, so the gradients are averaged once, just before the optimiser's step
(``average_gradients``); accelerate is used for the start of the process group under ``torchrun`` and ``accelerate launch``,
and is not imported for one process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspeech import log
from rlspeech.parallel import calm_threads, physical_cores
from rlspeech.types import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["Engine", "Watchdog", "seed_all"]


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Engine:
    """The device, the precision and the other processes.

    Args:
        device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32" or "bf16".
        seed: of every generator, the same in each process, so that weights start equal.

    Attributes:
        device: torch.device.
        precision: "fp32" or "bf16".
        reason: one line that says why this device and precision.
        rank: of this process.
        world: number of processes.

    Raises:
        UserError: the device or the precision is not there.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", seed: int = 0) -> None:
        calm_threads()
        import torch

        self.world = int(os.environ.get("WORLD_SIZE", "1") or 1)
        self.rank = int(os.environ.get("RANK", "0") or 0)
        self.is_main = self.rank == 0
        self.device, why = _pick_device(device)
        if self.world > 1:
            from accelerate import Accelerator

            self.device = Accelerator(cpu=self.device.type == "cpu").device
        self.precision, why_precision = _pick_precision(precision, self.device)
        self.reason = f"{why}; {why_precision}" + (f"; {self.world} processes" if self.world > 1 else "")
        if self.device.type == "cpu" and not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)))
        seed_all(seed)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward pass: bf16 where that is the precision, else nothing changes."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Average gradients over the processes, in place; call it once before the optimiser's step. One process: nothing to do.

        A parameter without a gradient in one process (its micro-batches were all skipped) counts as zero there.
        """
        if self.world == 1:
            return
        import torch

        for p in parameters:
            if p.requires_grad:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                torch.distributed.all_reduce(p.grad)
                p.grad /= self.world

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, in every process; anything that can be pickled."""
        if self.world == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def agree(self, value: Any) -> Any:
        """Rank 0's value, in every process: for decisions that must be the same everywhere."""
        return self.gather(value)[0]

    def say(self, message: str) -> None:
        """``log.say`` in rank 0."""
        if self.is_main:
            log.say(message)


def _pick_device(name: str) -> tuple[torch.device, str]:
    import torch

    cuda = torch.cuda.is_available()
    absent = (
        "this torch is a CPU build"
        if torch.version.cuda is None and torch.version.hip is None
        else "torch sees no CUDA device"
    )
    if name == "auto":
        if cuda:
            local = int(os.environ.get("LOCAL_RANK", "0") or 0) % torch.cuda.device_count()
            return torch.device("cuda", local), f"cuda:{local} ({torch.cuda.get_device_name(local)})"
        return torch.device("cpu"), f"cpu ({absent})"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}", "", "--device auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        if not cuda:
            raise UserError(f"device {name} is not there", absent, "--device cpu, or rlspeech doctor")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(
                f"device {name} is not there",
                f"torch sees {torch.cuda.device_count()} CUDA device(s), counted from 0",
                "--device cuda:0",
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device mps is not there", "needs macOS on Apple silicon", "--device cpu")
    elif device.type != "cpu":
        raise UserError(f"device {name!r} is not supported", "", "--device auto, cpu, cuda, cuda:1 or mps")
    return device, f"{name} (as asked)"


def _pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    import torch

    if name not in ("auto", "fp32", "bf16"):
        raise UserError(f"unknown precision {name!r}", "", "--precision auto, fp32 or bf16")
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return "fp32", "fp32"
    capable = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not capable:
        raise UserError("this GPU has no bf16", torch.cuda.get_device_name(device), "--precision fp32")
    return ("bf16", "bf16") if capable else ("fp32", "fp32, for this GPU has no bf16")


class Watchdog:
    """A thread that writes every thread's stack to stderr (and a file) when nothing has happened for too long.

    Args:
        minutes: of silence before it speaks; it speaks once a silence.
        path: a file that gets the stacks too.
    """

    def __init__(self, minutes: float = 15.0, path: Path | None = None) -> None:
        self.limit_s, self.path = minutes * 60, path
        self.dumps = 0
        self._last_s = time.monotonic()
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Something has happened."""
        self._last_s, self._warned = time.monotonic(), False

    def _watch(self) -> None:
        while not self._stop.wait(min(5.0, self.limit_s / 4)):
            silent_s = time.monotonic() - self._last_s
            if silent_s > self.limit_s and not self._warned:
                self._warned = True
                log.error(f"no progress for {silent_s / 60:.1f} minutes; what every thread is doing follows")
                self._dump()
                self.dumps += 1

    def _dump(self) -> None:
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        except (OSError, ValueError, RuntimeError):  # a stderr without a file behind it
            pass

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)
