"""Processes and threads of this machine: one map over local processes, and threads that do not spin.

The map is for corpus-size work. A crash or a hang costs one item, Ctrl-C ends it at once.

``concurrent.futures`` declares the whole pool broken when one worker dies and cannot say which item did it; here every worker has
its own pipe, so the item is known, the worker is replaced, and the rest goes on. Workers are spawned, not forked: torch and
onnxruntime threads do not survive a fork.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing as mp
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from rlspeech import log
from rlspeech.types import UserError

__all__ = ["calm_threads", "parallel_map", "physical_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 16  # items read ahead of the slowest one, per worker


def calm_threads() -> None:
    """Keep OpenMP threads from spinning while they wait. Call it before torch is imported; what the user has set stays.

    Spinning threads of two processes on a shared machine slow each other down by 4 to 18 times.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's runtime
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def physical_cores() -> int:
    """Cores this process may use: its affinity and container quota, with two hardware threads of a core counted once."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add(
                Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
                .read_text(encoding="ascii")
                .strip()
            )
        except OSError:
            siblings.add(str(cpu))
    cores = len(siblings)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def parallel_map(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    timeout_s: float | None = None,
    desc: str | None = None,
    unit: str = "items",
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply ``fn`` to every item and yield ``(item, result)`` in the order of the items; a failure is yielded, not raised.

    Args:
        fn: importable by name (or a ``functools.partial`` of such) when there are workers.
        items: anything iterable; it is read as far ahead as the workers need.
        workers: processes; 0 runs everything here, where no crash is survived and ``timeout_s`` is not watched.
        timeout_s: an item that takes longer costs itself: its worker is ended and replaced, the result is a TimeoutError.
        desc: show progress under this name.
        unit: what the progress counts.

    Raises:
        UserError: the workers die before they have begun, three times in a row.
    """
    total = len(items) if isinstance(items, Sized) else None
    if total is not None:
        workers = min(workers, total)
    with log.progress(total, desc, unit) if desc else nullcontext() as bar:
        pairs = (
            _Pool(fn, workers, timeout_s).run(iter(items))
            if workers > 0
            else ((item, _call(fn, item)) for item in items)
        )
        for pair in pairs:
            if bar is not None:
                bar.advance()
            yield pair


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    try:
        return fn(item)
    except Exception as error:
        return error


def _work(fn: Callable[[Any], Any], pipe: Connection) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us (Windows; elsewhere it is blocked)
    pipe.send(("ready", None))
    while True:
        try:
            item = pipe.recv()
        except EOFError:  # the parent is gone
            return
        result = _call(fn, item)
        try:
            message = pickle.dumps(("done", result))
            if isinstance(result, Exception):
                pickle.loads(message)  # an exception may pickle and still not come back
        except Exception as error:
            message = pickle.dumps(("done", RuntimeError(f"{type(result).__name__}: {result} ({error})")))
        pipe.send_bytes(message)


class _Worker:
    """A process, its pipe, and the item it is at."""

    def __init__(self, context: Any, fn: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(fn, theirs), daemon=True)
        with _environment(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE"), _sigint_blocked():
            self.process.start()
        theirs.close()
        self.ready = False
        self.job: tuple[int, Any] | None = None
        self.since_s = 0.0

    def give(self, job: tuple[int, Any]) -> None:
        self.job, self.since_s = job, time.monotonic()
        self.pipe.send(job[1])

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    def __init__(self, fn: Callable[[Any], Any], workers: int, timeout_s: float | None) -> None:
        self.fn, self.size, self.timeout_s = fn, workers, timeout_s
        self.context = mp.get_context("spawn")
        self.workers: list[_Worker] = []
        self.finished: dict[int, Any] = {}
        self.stillborn = 0

    def run(self, items: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        waiting: deque[tuple[int, Any]] = deque()  # read, not begun
        begun: dict[int, Any] = {}  # item by index, until it is yielded
        numbered = enumerate(items)
        next_out = 0
        try:
            while True:
                room = self.size * AHEAD - len(begun) - len(waiting)
                waiting.extend(itertools.islice(numbered, max(0, min(room, self.size - len(waiting) + 1))))
                if not waiting and not begun:
                    return
                while len(self.workers) < min(self.size, len(waiting) + sum(w.job is not None for w in self.workers)):
                    self.workers.append(_Worker(self.context, self.fn))
                for worker in self.workers:
                    if worker.ready and worker.job is None and waiting:
                        begun[waiting[0][0]] = waiting[0][1]
                        worker.give(waiting.popleft())
                self._listen()
                while next_out in self.finished:
                    yield begun.pop(next_out), self.finished.pop(next_out)
                    next_out += 1
        finally:
            for worker in self.workers:
                worker.end()

    def _listen(self) -> None:
        """Wait for an answer, a death or the next deadline."""
        timeout_s = None
        if self.timeout_s is not None:
            ends = [w.since_s + self.timeout_s for w in self.workers if w.job is not None]
            timeout_s = max(0.0, min(ends) - time.monotonic()) + 0.01 if ends else None
        heard = wait([w.pipe for w in self.workers], timeout_s)
        for worker in [w for w in self.workers if w.pipe in heard]:
            try:
                kind, result = worker.pipe.recv()
            except Exception as error:  # the pipe ended (the worker died), or the answer cannot be read
                self._replace(worker, error)
                continue
            if kind == "ready":
                worker.ready, self.stillborn = True, 0
            elif worker.job is not None:
                self.finished[worker.job[0]] = result
                worker.job = None
        if self.timeout_s is not None:
            for worker in list(self.workers):
                if worker.job is not None and time.monotonic() - worker.since_s > self.timeout_s:
                    self._replace(worker, TimeoutError(f"took longer than {self.timeout_s:g} s"))

    def _replace(self, worker: _Worker, error: Exception) -> None:
        self.workers.remove(worker)
        worker.end()
        if not worker.ready:
            self.stillborn += 1
            if self.stillborn >= 3:
                raise UserError(
                    "worker processes do not start",
                    f"exit code {worker.process.exitcode}",
                    "--workers 0 shows the error itself",
                )
        if worker.job is not None:
            if isinstance(error, EOFError | OSError) and not isinstance(error, TimeoutError):
                error = RuntimeError(f"the worker process died (exit code {worker.process.exitcode})")
            self.finished[worker.job[0]] = error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the processes that start inside the block; what the user has set stays."""
    added = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A process that starts inside inherits the block, so Ctrl-C does not hit it while it imports; ours is delivered afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
