"""Worker processes for CPU metrics: a crash or a hang costs one metric of one item, never the run.

One thread of the parent drives each worker, a watchdog ends workers that overstay their time on one metric, and a dead worker is
replaced while the rest of the batch goes on. Workers live as long as the pool (a whole RL run) and run with one thread each. The
parent may compute while they do: ``submit`` returns at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlspeech.rewards.worker import read_message, write_message
from rlspeech.types import Sample, Score, UserError

__all__ = ["Batch", "Job", "Pool"]

Work = list[tuple[int, list[str]]]  # (index of the family, its columns)
START_S = 120.0  # a cold import on a slow disk
THREADS = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")}


@dataclass(slots=True)
class Job:
    """One sample and the families to run on it."""

    sample: Sample
    work: Work
    scores: dict[int, dict[str, Score]] = field(default_factory=dict)  # by index of the family
    seconds: dict[int, float] = field(default_factory=dict)


class Batch:
    """Jobs under way; ``result`` waits for all of them."""

    def __init__(self, jobs: Sequence[Job], pool: Pool) -> None:
        self.jobs, self._pool = list(jobs), pool
        self._left, self._done = len(self.jobs), threading.Event()
        self._lock = threading.Lock()
        if not self.jobs:
            self._done.set()

    def finish_one(self) -> None:
        """Called by a worker's thread when a job is complete."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def result(self) -> list[Job]:
        """All jobs with their scores, in the order in which they were given. Raises ``UserError`` where no worker can start."""
        while not self._done.wait(0.1):  # short waits keep Ctrl-C responsive
            if self._pool.broken:
                raise UserError("the reward workers cannot start", self._pool.broken, "rlspeech doctor, or --workers 0")
        return self.jobs


class Pool:
    """A fixed number of workers that each hold all families.

    Args:
        families: (``package.module:Class``, options) of each family; jobs refer to them by index.
        workers: number of processes.
        timeout_s: longest time that one family may take on one item.
    """

    def __init__(
        self, families: Sequence[tuple[str, dict[str, Any]]], workers: int = 2, timeout_s: float = 60.0
    ) -> None:
        self.families, self.timeout_s, self.broken = list(families), timeout_s, ""
        self.restarts = 0
        self._queue: queue.SimpleQueue[tuple[Batch, Job] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._drivers = [_Driver(self) for _ in range(workers)]
        self._watchdog = threading.Thread(target=self._watch, daemon=True)
        self._watchdog.start()

    def submit(self, jobs: Sequence[Job]) -> Batch:
        """Start scoring and return at once."""
        batch = Batch(jobs, self)
        for job in jobs:
            self._queue.put((batch, job))
        return batch

    def close(self) -> None:
        """End the workers; jobs under way are abandoned."""
        self._closed.set()
        for _ in self._drivers:
            self._queue.put(None)
        for driver in self._drivers:
            driver.kill()
        for driver in self._drivers:
            driver.thread.join(5)

    def _watch(self) -> None:
        while not self._closed.wait(min(0.1, self.timeout_s / 4)):
            now = time.monotonic()
            for driver in self._drivers:
                if driver.deadline is not None and now > driver.deadline:
                    driver.overdue = True
                    driver.kill()


class _Driver:
    """The thread that feeds one worker process and replaces it when it dies."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline: float | None = None
        self.overdue = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        process = self.process
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()

    def _start(self) -> None:
        setup = f"import sys; sys.path[:] = {[p or os.getcwd() for p in sys.path]!r}; from rlspeech.rewards.worker import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **THREADS}
        )
        self.deadline, self.overdue = time.monotonic() + START_S, False
        assert self.process.stdin and self.process.stdout
        write_message(self.process.stdin, self.pool.families)
        kind, answer, _ = read_message(self.process.stdout)
        self.deadline = None
        if kind == "fatal":
            raise RuntimeError(str(answer))

    def _run(self) -> None:
        failures = 0
        while not self.pool._closed.is_set():
            try:
                self._start()
                failures = 0
                if not self._serve():
                    break
                self.pool.restarts += 1
            except (RuntimeError, EOFError, OSError) as error:
                failures += 1
                if failures >= 3 or isinstance(error, RuntimeError):
                    self.pool.broken = str(error) or f"worker ended during its start ({self._exit()})"
                    break
            finally:
                self._reap()

    def _serve(self) -> bool:
        """Jobs until the pool closes (False) or the worker dies (True: start another)."""
        while True:
            item = self.pool._queue.get()
            if item is None:
                return False
            batch, job = item
            alive = self._score(job)
            attempts = 0
            while (
                not alive and job.work and not self.pool._closed.is_set()
            ):  # the worker died on one family: the others still count
                self._reap()
                self.pool.restarts += 1
                attempts += 1
                try:
                    if attempts > 2 * len(self.pool.families) + 2:
                        raise RuntimeError("it ends before it begins")
                    self._start()
                except (RuntimeError, EOFError, OSError) as error:
                    for family, columns in job.work:
                        job.scores[family] = {c: Score(None, f"worker could not start: {error}") for c in columns}
                    job.work = []
                    break
                alive = self._score(job)
            batch.finish_one()
            if not alive:
                return True

    def _score(self, job: Job) -> bool:
        """Run a job's remaining families; False where the worker died, with the family at fault scored null and taken out."""
        assert self.process and self.process.stdin and self.process.stdout
        s, running = job.sample, False
        try:
            write_message(self.process.stdin, (job.work, s.key, s.sample_rate, s.wav, s.target, s.text, s.columns))
            while job.work:
                self.deadline = time.monotonic() + self.pool.timeout_s
                kind, answer, seconds = read_message(self.process.stdout)
                running = kind == "begin"
                if not running:
                    family, _ = job.work.pop(0)
                    job.scores[family] = {c: Score(*parts) for c, parts in answer.items()}
                    job.seconds[family] = seconds
            return True
        except (EOFError, OSError):
            if running:  # otherwise it died between two families (or idle): nothing of this job is to blame
                reason = f"took longer than {self.pool.timeout_s:g} s" if self.overdue else f"crashed ({self._exit()})"
                family, columns = job.work.pop(0)
                job.scores[family] = {c: Score(None, reason) for c in columns}
            return False
        finally:
            self.deadline = None

    def _exit(self) -> str:
        code = self.process.wait(5) if self.process else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _reap(self) -> None:
        self.kill()
        if self.process is not None:
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
        self.process = None
