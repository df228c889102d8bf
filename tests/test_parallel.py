"""Worker processes: a crash, a hang, an exception or an answer that cannot travel costs one item; batches that are tried one by one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlspeech.parallel import Pool, calm_threads, one_by_one, parallel_map
from rlspeech.types import UserError

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def test_calm_threads_leaves_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    calm_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and os.environ["KMP_BLOCKTIME"] == "0"


# ---- one by one


def test_a_batch_that_fails_is_tried_item_by_item() -> None:
    calls: list[list[int]] = []

    def work(items: list[int]) -> list[float]:
        calls.append(items)
        return [1 / i for i in items]

    assert one_by_one(work, [1, 2]) == [1.0, 0.5] and calls == [[1, 2]]
    first, bad, last = one_by_one(work, [1, 0, 2])
    assert (first, last) == (1.0, 0.5) and isinstance(bad, ZeroDivisionError) and calls[-3:] == [[1], [0], [2]]
    assert one_by_one(work, []) == [] and len(calls) == 5
    (short,) = one_by_one(lambda items: [], [1])
    assert isinstance(short, ValueError)


def test_errors_of_the_whole_work_are_raised() -> None:
    def work(items: list[int]) -> list[int]:
        raise UserError("no such option")

    with pytest.raises(UserError, match="option"):
        one_by_one(work, [1, 2])
    assert all(isinstance(r, UserError) for r in one_by_one(work, [1, 2], raised=()))


# ---- the map


def _square(x: int) -> int:
    return x * x


def _fragile(x: int, folder: str = "") -> int:
    if x == 3:
        raise ValueError("three")
    if x == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if x == 6:
        os._exit(7)
    if x == 7:
        time.sleep(60)
    return x


class _Stubborn(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("stubborn")


def _unpicklable(x: int) -> object:
    if x == 0:
        raise _Stubborn(1, 2)
    return lambda: x


@pytest.mark.parametrize("workers", [0, 2])
def test_map_keeps_the_order_and_pairs_items(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(parallel_map(_square, range(40), workers, desc="squares")) == [(i, i * i) for i in range(40)]
    assert "squares: 40/40" in capsys.readouterr().err


@pytest.mark.slow
def test_a_crash_a_hang_and_an_exception_cost_one_item_each() -> None:
    pairs = list(parallel_map(functools.partial(_fragile, folder="x"), iter(range(10)), 2, timeout_s=2.0))
    results = dict(pairs)
    assert [item for item, _ in pairs] == list(range(10))
    assert [r for r in results.values() if not isinstance(r, Exception)] == [0, 1, 2, 4, 8, 9]
    assert isinstance(results[3], ValueError) and isinstance(results[7], TimeoutError)
    assert "signal 11" in str(results[5]) and "exit code 7" in str(results[6])


def test_what_cannot_travel_is_an_error_of_its_item() -> None:
    results = dict(parallel_map(_unpicklable, [0, 1], 1))
    assert "stubborn" in str(results[0]) and isinstance(results[1], RuntimeError)


def test_inline_failures_are_yielded_and_nothing_to_do_is_fine() -> None:
    results = dict(parallel_map(_fragile, [1, 3], 0))
    assert results[1] == 1 and isinstance(results[3], ValueError)
    assert list(parallel_map(_square, [], 4)) == []


def test_items_are_read_only_as_far_as_needed_and_stopping_ends_the_workers() -> None:
    read = []

    def items() -> Iterator[int]:
        for i in range(10_000):
            read.append(i)
            yield i

    stream = parallel_map(_square, items(), 1)
    assert next(stream) == (0, 0)
    stream.close()
    assert len(read) < 100


CTRL_C = """
import test_parallel
from rlspeech.parallel import parallel_map
if __name__ == "__main__":
    try:
        for _ in parallel_map(test_parallel._hang, range(4), 2):
            pass
    except KeyboardInterrupt:
        print("clean", flush=True)
"""
UNGUARDED = """
import test_parallel
from rlspeech.parallel import parallel_map
from rlspeech.types import UserError
try:
    list(parallel_map(test_parallel._square, range(4), 2))
except UserError as error:
    print(error.try_this)
"""


def _hang(x: int) -> None:
    print("up", flush=True)
    time.sleep(60)


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_leaves_nobody(tmp_path: Path) -> None:
    script = tmp_path / "ctrl_c.py"
    script.write_text(CTRL_C)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, str(script)], env=ENV, start_new_session=True, **pipes)
    assert child.stderr is not None and child.stderr.readline() == "up\n"  # what a worker prints is no output
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert out == "clean\n" and "Traceback" not in err
    deadline_s = time.monotonic() + 30  # multiprocessing's own resource tracker leaves a moment later
    with pytest.raises(ProcessLookupError):  # no worker is left
        while time.monotonic() < deadline_s:
            os.killpg(child.pid, 0)
            time.sleep(0.05)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENV, timeout=60)
    assert "__main__" in done.stdout and done.returncode == 0


# ---- the pool


def _make(mark: str) -> Callable[[float], tuple[float, int, str]]:
    if mark == "broken":
        raise ImportError("no such library")

    def work(x: float) -> tuple[float, int, str]:
        if x == 0.9:
            os.kill(os.getpid(), signal.SIGSEGV)
        if x == 0.8:
            time.sleep(60)
        if x == 0.7:
            raise RuntimeError("on purpose")
        return x, os.getpid(), os.environ["OMP_NUM_THREADS"]

    return work


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(functools.partial(_make, "fine"), workers=2, timeout_s=1.0) as made:
        yield made


def test_trouble_costs_one_item_and_batches_overlap(pool: Pool) -> None:
    marks = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.9, 0.5]
    jobs, later = [pool.submit(m) for m in marks], [pool.submit(0.6) for _ in range(10)]
    assert {job.result()[0] for job in later} == {0.6}
    results = [job.result() for job in jobs]
    assert [isinstance(r, Exception) for r in results] == [False, True, False, True, False, True, False, True, False]
    assert [r[0] for r in results if not isinstance(r, Exception)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    for at, words in ((1, "signal 11"), (3, "longer than 1 s"), (5, "on purpose")):
        assert words in str(results[at])


def test_workers_persist_share_the_work_and_have_one_thread(pool: Pool) -> None:
    results = [job.result() for _ in range(4) for job in [pool.submit(0.1) for _ in range(20)]]
    pids = {r[1] for r in results}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids and {r[2] for r in results} == {"1"}


def test_a_worker_killed_while_idle_costs_nothing(pool: Pool) -> None:
    for _ in range(3):
        os.kill(pool.submit(0.1).result()[1], signal.SIGKILL)
        time.sleep(0.1)
        assert [job.result()[0] for job in [pool.submit(0.2) for _ in range(12)]] == [0.2] * 12


def test_a_function_that_cannot_be_built_is_an_error_not_a_hang() -> None:
    with Pool(functools.partial(_make, "broken"), workers=1) as broken, pytest.raises(UserError, match="ImportError"):
        broken.submit(0.1).result()


def test_close_ends_the_workers_whatever_they_do() -> None:
    made = Pool(functools.partial(_make, "fine"), workers=2)
    pid = made.submit(0.1).result()[1]
    jobs = [made.submit(0.8) for _ in range(100)]
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RuntimeError):
        jobs[-1].result()
