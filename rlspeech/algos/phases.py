"""The phases of a step - encode, rollout, reward, update - which share one device: their seconds, their memory, what waits elsewhere.

The published recognition system (arXiv 2509.18569) gives the whole device to one phase after the other. Here the algorithm says which
phase begins; the policy moves what the phase does not need (its hook ``enter``), and the optimiser's moments, which only an update
needs, wait in the host's memory meanwhile. A policy that encodes its prompts before it samples announces the second phase itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch

__all__ = ["PhasedPolicy", "Phases"]

MB = 2**20


class PhasedPolicy(Protocol):
    """What a policy with phases of its own has beside ``types.Policy``."""

    announce: Callable[[str], None]  # set by the algorithm; the policy calls it inside ``rollout`` where a phase begins

    def enter(self, phase: str) -> None:
        """Move what "encode", "rollout", "reward" or "update" needs to the device, and what it does not need off it."""
        ...


class Phases:
    """Times what runs, measures its peak memory (of the device on CUDA, else of the process where Linux tells), and moves what waits.

    Args:
        policy: any; only one with an ``enter`` is told.
        optimizer: whose moments wait in the host's memory outside of updates.
        offload: "none" leaves everything where it is.
    """

    def __init__(self, policy: Any, optimizer: torch.optim.Optimizer, offload: str) -> None:
        self.optimizer, self.away = optimizer, offload == "phase"
        self.device = policy.parameters()[0].device
        self.first, self._hook = "rollout", cast(Callable[[str], None] | None, getattr(policy, "enter", None))
        self._into: dict[str, float] | None = None
        self._phase: str | None = None
        self._since = 0.0
        if self._hook is not None:
            self.first = "encode"
            policy.announce = self.enter

    @contextmanager
    def record(self, into: dict[str, float]) -> Iterator[None]:
        """Add the seconds of the phases entered inside to ``into``, and their peaks as ``memory_mb/PHASE``."""
        self._into = into
        try:
            yield
        finally:
            self._close()
            self._into = None
            self._moments("cpu")

    def enter(self, phase: str) -> None:
        """From here on it is this phase that runs."""
        self._close()
        if self._hook is not None:
            self._hook(phase)
        self._moments(None if phase == "update" else "cpu")
        if self._into is None:  # a rollout that no algorithm asked for
            return
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _forget_peak()
        self._phase, self._since = phase, time.perf_counter()

    def _close(self) -> None:
        if self._phase is None or self._into is None:
            return
        peak = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the work of this phase, not only its launch
            peak = torch.cuda.max_memory_allocated(self.device) / MB
        elif self.device.type == "cpu":
            peak = _process_peak_mb()
        if peak is not None:
            name = f"memory_mb/{self._phase}"
            self._into[name] = max(self._into.get(name, 0.0), peak)
        self._into[self._phase] = self._into.get(self._phase, 0.0) + time.perf_counter() - self._since
        self._phase = None

    def _moments(self, where: str | None) -> None:
        """Move the optimiser's state: to a device, or back to its parameters."""
        if not self.away:
            return
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.dim():  # step counters live where the optimiser put them
                    state[name] = value.to(where or parameter.device)
        if where and self.device.type == "cuda":
            torch.cuda.empty_cache()  # for the judges, which may live in other processes


def _forget_peak() -> None:
    """Let the process's peak of resident memory begin anew (Linux; elsewhere nothing)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _process_peak_mb() -> float | None:
    """Peak of resident memory since then, in MB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
