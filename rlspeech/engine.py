"""Devices, precision, processes: a thin layer so that the stages read the same on one CPU, one GPU or several.

The textbook way wraps the model in DistributedDataParallel. Here a policy is called in more ways than ``forward`` and gradients
are summed over many micro-batches, so they are added up once, just before the optimiser's step (``Ranks.add_up``). Who is who
stands in the environment, as ``torchrun``, ``accelerate launch`` and others write it.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from rlspeech.parallel import calm_threads, physical_cores

calm_threads()

import numpy as np
import torch

from rlspeech import log
from rlspeech.processes import Heartbeat, join, place, together
from rlspeech.types import Rollout, Sample, UserError

Columns = dict[str, np.ndarray]  # a value a row, by name
MB = 2**20


def sampled_rows(samples: Sequence[Sample]) -> torch.Tensor:
    """(N,) bool on the host: rows that the policy sampled, False of the references that joined their group."""
    return torch.tensor([not s.reference for s in samples], dtype=torch.bool)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Ranks:
    """The processes of a run, of which this one is number ``rank`` of ``world``. One alone shares with nobody.

    Every process must come by every one of these calls, in the same order. Raises ``LostProcess`` where one has ended.
    """

    rank, world = 0, 1

    @property
    def is_main(self) -> bool:
        """True in the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, in every process; anything that can be pickled."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        together(torch.distributed.all_gather_object, found, value)
        return found

    def agree(self, value: Any) -> Any:
        """Rank 0's value, in every process: for decisions that must be the same everywhere."""
        return self.gather(value)[0]

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Sum tensors over the processes, in place."""
        if self.world == 1:
            return
        for tensor in tensors:
            together(torch.distributed.all_reduce, tensor)

    def share(self, items: Sequence[Any], parts: int = 1) -> list[Any]:
        """Those items of all processes' that are this one's.

        The items are cut into ``parts``, and a process gets a stretch of each: what it has, cut into ``parts``, are these. Stretches
        differ by one item at most, and may be empty.
        """
        whole = np.array_split(np.arange(len(items)), parts)
        return [items[i] for part in whole for i in np.array_split(part, self.world)[self.rank]]

    def rows(
        self, rollout: Rollout, prompts: Sequence[Any], *columns: Columns
    ) -> tuple[Rollout, torch.Tensor, tuple[Columns, ...]]:
        """The rows of all processes, in the order of their prompts' ``place`` in the batch.

        Args:
            rollout: of this process: n rows.
            prompts: its own.
            columns: arrays (n,) or (n, S) by name.

        Returns:
            a rollout of nothing but groups, masks and ends of all N rows; which of those are this process's, (n,); the columns (N, ...).
        """
        if self.world == 1:
            return rollout, torch.arange(len(rollout.group)), columns
        own = {"place": np.array([p.place for p in prompts], np.int64)[rollout.group.numpy()]}
        own |= {"mask": rollout.mask.cpu().numpy(), "finished": rollout.finished.numpy()}
        found = self.gather((own, *columns))
        shape, *others = (_stacked(parts) for parts in zip(*found, strict=True))
        order = np.argsort(shape["place"], kind="stable")
        start = sum(len(parts[0]["place"]) for parts in found[: self.rank])
        mine = torch.from_numpy(np.argsort(order)[start : start + len(rollout.group)])
        place, mask, finished = (torch.from_numpy(shape[k][order]) for k in ("place", "mask", "finished"))
        group = torch.unique(place, return_inverse=True)[1]
        whole = Rollout(group, torch.zeros(mask.shape), mask, [], None, finished)
        return whole, mine, tuple({k: v[order] for k, v in c.items()} for c in others)


def _stacked(parts: Sequence[Columns]) -> Columns:
    """Arrays of all parts behind each other, those (n, S) as wide as the widest; a part without rows may lack some."""
    out: Columns = {}
    for name in dict.fromkeys(k for part in parts for k in part):
        found = [part[name] for part in parts if name in part]
        width = max(x.shape[-1] for x in found)
        out[name] = np.concatenate([x if x.ndim == 1 else np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in found])
    return out


class Engine(Ranks, AbstractContextManager["Engine"]):
    """The device, the precision and the other processes; a context, at whose end the processes part.

    Args:
        device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32" or "bf16".
        seed: of every generator, the same in each process, so that weights start equal.
        shared: several processes share the work; without it there may be only one.

    Attributes:
        device, precision: what is used; ``precision`` is "fp32" or "bf16", and ``reason`` says why in one line.

    Raises:
        UserError: the device or the precision is not there; processes or a config of accelerate that cannot be used.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", seed: int = 0, *, shared: bool = False) -> None:
        self.rank, self.world = place()
        if self.world > 1 and not shared:
            why = f"{self.world} were started; rl and pretrain share their work, other commands do not"
            raise UserError("this command takes one process", why, "start it without torchrun or accelerate launch")
        self.device, why = _pick_device(device)
        self._heartbeat: Heartbeat | None = None
        if self.world > 1:
            if self.device.type == "cuda":
                self.device = torch.device("cuda", _local_rank() % torch.cuda.device_count())
                torch.cuda.set_device(self.device)
            self._heartbeat = join("nccl" if self.device.type == "cuda" else "gloo", self.rank, self.world)
        self.precision, why_precision = _pick_precision(precision, self.device)
        self.reason = f"{why}; {why_precision}" + (f"; {self.world} processes" if self.world > 1 else "")
        if self.device.type == "cpu" and not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)))
        seed_all(seed)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward pass: bf16 where that is the precision, else nothing changes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def reseed(self, seed: int, step: int) -> None:
        """Draw otherwise than the other processes from here on."""
        if self.world > 1:
            seed_all(seed + 1_000_003 * (1 + step * self.world + self.rank))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Part from the other processes."""
        if self._heartbeat is not None:
            beat, self._heartbeat = self._heartbeat, None
            beat.leave(error)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or 0)


def _pick_device(name: str) -> tuple[torch.device, str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda is not None or torch.version.hip is not None
    absent = "torch sees no CUDA device" if built else "this torch is a CPU build"
    if name == "auto":
        if not count:
            return torch.device("cpu"), f"cpu ({absent})"
        local = _local_rank() % count
        return torch.device("cuda", local), f"cuda:{local} ({torch.cuda.get_device_name(local)})"
    try:
        device = torch.device(name)
        kind, index = device.type, device.index or 0
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}", "", "--device auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and index >= count:
        why = f"torch sees {count} CUDA device(s), counted from 0" if count else absent
        raise UserError(f"device {name} is not there", why, "--device auto, or rlspeech doctor")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not there", "needs macOS on Apple silicon", "--device cpu")
    return device, f"{name} (as asked)"


def _pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    if name not in ("auto", "fp32", "bf16"):
        raise UserError(f"unknown precision {name!r}", "", "--precision auto, fp32 or bf16")
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return "fp32", "fp32"
    capable = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not capable:
        raise UserError("this GPU has no bf16", torch.cuda.get_device_name(device), "--precision fp32")
    return ("bf16", "bf16") if capable else ("fp32", "fp32, for this GPU has no bf16")


class Watchdog:
    """A thread that writes every thread's stack to stderr, once, when nothing has happened for so many minutes."""

    def __init__(self, minutes: float = 15.0) -> None:
        self.limit_s, self.dumps = minutes * 60, 0
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
                with suppress(OSError, ValueError, RuntimeError):  # a stderr without a file behind it
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
                self.dumps += 1

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)


class Phases:
    """The phases of a step - encode, rollout, reward, update - which share one device: their seconds, their memory, what waits elsewhere.

    The published recognition system (arXiv 2509.18569) gives the whole device to one phase after the other. Here the algorithm says which
    phase begins; the policy moves what the phase does not need (its hook ``enter``), and the optimiser's moments, which only an update
    needs, wait in the host's memory meanwhile. A policy that encodes its prompts before it samples announces the second phase itself.
    Measured are a phase's seconds and its peak memory: of the device on CUDA, else of the process where Linux tells.

    Args:
        policy: any; one with a method ``enter(phase)`` is told, and gets ``announce`` to call inside ``rollout`` where a phase begins.
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
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _process_peak_mb() -> float | None:
    """Peak of resident memory since then, in MB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
