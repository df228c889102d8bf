"""Work on many items, where a failure costs one of them: worker processes that keep what they have loaded, and batches tried one by one.

The processes are pebble's: ``concurrent.futures`` declares a whole pool broken when one worker dies, and cannot stop one that hangs.
Workers are spawned, not forked (threads of torch and onnxruntime do not survive a fork), and have one thread each. A spawned worker
imports the script that was started: in a script of your own, what starts workers stands under ``if __name__ == "__main__":``, or it
takes ``workers=0``. What a worker prints goes to standard error.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlspeech import log
from rlspeech.types import UserError

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool


Item = TypeVar("Item")
Result = TypeVar("Result")
Raised = tuple[type[Exception], ...]
AHEAD = 16  # items read ahead of the slowest one, per worker
POLL_S = 0.2
STARTS = 3  # pools that break in a row, without one result, before nothing is tried any more
CALM = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}  # GNU's OpenMP, Intel's
NUMERIC = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ONE_THREAD = {**dict.fromkeys(NUMERIC, "1"), "OMP_WAIT_POLICY": "PASSIVE"}


class WorkerDied(RuntimeError):
    """The process that worked on an item ended."""


def calm_threads() -> None:
    """Keep OpenMP threads from spinning while they wait. Call it before torch is imported; what the user has set stays.

    Spinning threads of two processes on a shared machine slow each other down by 4 to 18 times.
    """
    for name, value in CALM.items():
        os.environ.setdefault(name, value)


def physical_cores() -> int:
    """Cores this process may use: its affinity and container quota, with two hardware threads of a core counted once."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = set()
    for cpu in cpus:
        try:
            file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            siblings.add(file.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    cores = len(siblings)
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Do ``work`` in a thread and wait for it so long. What takes longer is left behind, for a thread cannot be ended.

    Raises:
        TimeoutError: it took longer.
        Exception: what ``work`` raises; one that would end the process (``sys.exit``) is a ``RuntimeError``.
    """
    from pebble.concurrent import thread

    future = thread(work)()
    if not wait([future], seconds).done:
        raise TimeoutError(f"took longer than {seconds:g} s")
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise RuntimeError(f"it raised {type(error).__name__}") from error
    return future.result()


def one_by_one(
    work: Callable[[list[Item]], Iterable[Result]], items: Sequence[Item], raised: Raised = (UserError,)
) -> list[Result | Exception]:
    """Run ``work`` (n items to n results) on a batch and, where that fails, on each of its items alone: a bad item fails alone.

    Return the result or the exception of each item, in order; errors in ``raised``, which concern all items, are raised.
    """
    if not items:
        return []
    try:
        results: list[Result | Exception] = [*work(list(items))]
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results for {len(items)} items")
        return results
    except raised:
        raise
    except Exception as error:
        if len(items) == 1:
            return [error]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()  # a batch too large for the GPU leaves blocks behind that single items need
    return [result for item in items for result in one_by_one(work, [item], raised)]


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
        items: read as far ahead as the workers need.
        workers: processes; 0 runs everything here, where no crash is survived and ``timeout_s`` is not watched.
        timeout_s: the result of an item that takes longer is a ``TimeoutError``, and its worker is replaced.
        desc, unit: show progress under this name; what it counts.

    Raises:
        UserError: the workers die before they have begun.
    """
    total = len(items) if isinstance(items, Sized) else None
    if total is not None:
        workers = min(workers, total)
    with log.progress(total, desc, unit) if desc else nullcontext() as bar:
        for pair in _in_order(fn, items, workers, timeout_s) if workers > 0 else ((i, _call(fn, i)) for i in items):
            if bar is not None:
                bar.advance()
            yield pair


def _in_order(
    fn: Callable[[Any], Any], items: Iterable[Any], workers: int, timeout_s: float | None
) -> Iterator[tuple[Any, Any]]:
    jobs: deque[Job] = deque()
    with Pool(partial(_itself, fn), workers, timeout_s) as pool:
        for item in items:
            jobs.append(pool.submit(item))
            while jobs and (len(jobs) >= workers * AHEAD or jobs[0].done()):
                yield jobs[0].item, jobs.popleft().result()
        while jobs:
            yield jobs[0].item, jobs.popleft().result()


class Pool(AbstractContextManager["Pool"]):
    """Worker processes that each build a function once and call it on items; a crash, a hang or an exception costs one item.

    A worker that dies, also while it is idle, is replaced, and the other items go on. ``make`` builds the function in the worker: it is
    importable by name, or a ``functools.partial`` of such. The processes start with the first item, which may take ``timeout_s``.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], workers: int, timeout_s: float | None = None) -> None:
        self._make, self._workers, self._timeout_s = make, workers, timeout_s
        self._processes: ProcessPool | None = None
        self._closed, self._broken = False, 0

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, item: Any) -> Job:
        """Hand an item to the workers and return at once. Raises ``UserError`` where no worker starts."""
        return Job(self, item)

    def close(self) -> None:
        """End the workers at once; items under way are abandoned."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        if self._processes is not None:
            self._processes.stop()
            self._processes.join()
            self._processes = None

    def _schedule(self, item: Any, broken: ProcessPool | None = None) -> tuple[ProcessPool, ProcessFuture[bytes]]:
        """Give an item to the processes, new ones where those of before are ``broken``."""
        from pebble import ProcessPool

        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._processes is not None and (self._processes is broken or not self._processes.active):
            self._end()
            self._broken += 1
            if self._broken == STARTS:
                try_this = '--workers 0 shows why; a script of yours needs `if __name__ == "__main__":`, or workers=0'
                raise UserError("the worker processes do not start", "each ended before its first item", try_this)
        if self._processes is None:
            self._processes = ProcessPool(self._workers, 0, _begin, (self._make,), _Context())  # type: ignore[arg-type]
        return self._processes, self._processes.schedule(_serve, (item,), timeout=self._timeout_s)

    def _result(self, future: ProcessFuture[bytes], error: BaseException | None) -> Any:
        from pebble import ProcessExpired

        if error is None:
            self._broken = 0
            began, result = pickle.loads(future.result())
            if not began:
                raise UserError("the worker processes cannot start", result, "rlspeech doctor, or --workers 0")
            return result
        if isinstance(error, TimeoutError):
            return TimeoutError(f"took longer than {self._timeout_s:g} s")
        if isinstance(error, ProcessExpired):
            code = error.exitcode
            return WorkerDied(f"crashed ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
        return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


class Job:
    """An item at the workers of a pool."""

    def __init__(self, pool: Pool, item: Any) -> None:
        self.item, self._pool = item, pool
        self._processes, self._future = pool._schedule(item)

    def done(self) -> bool:
        """Whether ``result`` answers at once."""
        return self._future.done()

    def result(self) -> Any:
        """Wait for the result, or the exception of the item. Raises ``UserError`` where no worker starts."""
        while True:
            done = bool(wait([self._future], POLL_S).done)
            error = self._future.exception() if done else None
            # an item that a pool had not begun when it broke is never done
            if isinstance(error, BrokenProcessPool) or not (done or self._processes.active):
                self._processes, self._future = self._pool._schedule(self.item, self._processes)
            elif done:
                return self._pool._result(self._future, error)


_starting = threading.Lock()  # for the environment is the whole process's
_function: Callable[[Any], Any] | str = "not built"  # of a worker; a text says why it could not be built


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _function
    with suppress(OSError):
        os.dup2(2, 1)  # what a library prints is no output of the command
    try:
        _function = make()
    except Exception as error:
        _function = f"{type(error).__name__}: {error}"


def _serve(item: Any) -> bytes:
    """The result as bytes, so that one that cannot travel is an error of its item and not of the pool."""
    if isinstance(_function, str):
        return pickle.dumps((False, _function))
    result = _call(_function, item)
    try:
        message = pickle.dumps((True, result), protocol=5)
        if isinstance(result, Exception):
            pickle.loads(message)  # an exception may pickle and still not come back
        return message
    except Exception as error:
        return pickle.dumps((True, RuntimeError(f"{type(result).__name__}: {result} ({error})")))


def _itself(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return fn


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    try:
        return fn(item)
    except Exception as error:
        return error


class _Process(SpawnProcess):
    def start(self) -> None:
        """Start with one thread, and with Ctrl-C blocked: it is the parent's, also while the worker imports."""
        with _starting:
            own = {key: os.environ.get(key) for key in ONE_THREAD}
            masks = hasattr(signal, "pthread_sigmask")
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
            os.environ.update(ONE_THREAD)
            try:
                super().start()
            finally:
                for key in ONE_THREAD:
                    os.environ.pop(key)
                os.environ.update({key: value for key, value in own.items() if value is not None})
                if masks:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Context(SpawnContext):
    Process = _Process
