"""The worker pool: crashes, hangs, exceptions and deaths cost one metric of one item."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from reward_signals import voice, with_noise

from rlspeech.rewards.pool import Job, Pool
from rlspeech.rewards.scorer import Scorer
from rlspeech.types import Sample, UserError

FAMILIES = [("reward_plugins:Mean", {}), ("reward_plugins:Trouble", {})]


def jobs(marks):
    return [
        Job(Sample(str(i), np.full(100, m, np.float32), 16000), [(0, ["mean"]), (1, ["trouble"])])
        for i, m in enumerate(marks)
    ]


@pytest.fixture(scope="module")
def pool():
    made = Pool(FAMILIES, workers=2, timeout_s=1.0)
    yield made
    made.close()


def test_trouble_costs_one_metric_of_one_item(pool):
    marks = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.9, 0.5]
    done = pool.submit(jobs(marks)).result()
    assert [round(j.scores[0]["mean"].value, 3) for j in done] == marks  # order kept, and the neighbour metric unharmed
    trouble = [j.scores[1]["trouble"] for j in done]
    assert [t.value is None for t in trouble] == [False, True, False, True, False, True, False, True, False]
    assert (
        "signal 11" in trouble[1].error and "longer than 1 s" in trouble[3].error and "on purpose" in trouble[5].error
    )
    again = pool.submit(jobs([0.1, 0.2])).result()  # the pool is whole again
    assert all(j.scores[1]["trouble"].value == 1.0 for j in again)


def test_workers_persist_between_batches_and_share_the_work(pool):
    pids = {j.scores[0]["mean"].detail["pid"] for _ in range(4) for j in pool.submit(jobs([0.1] * 20)).result()}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids


def test_a_worker_killed_while_idle_costs_nothing(pool):
    (job,) = pool.submit(jobs([0.1])).result()
    os.kill(job.scores[0]["mean"].detail["pid"], signal.SIGKILL)
    done = pool.submit(jobs([0.1] * 12)).result()
    assert all(j.scores[i][c].value is not None for j in done for i, c in ((0, "mean"), (1, "trouble")))


def test_batches_overlap(pool):
    first, second = pool.submit(jobs([0.1] * 10)), pool.submit(jobs([0.2] * 10))
    assert {round(j.scores[0]["mean"].value, 1) for j in second.result()} == {0.2}
    assert {round(j.scores[0]["mean"].value, 1) for j in first.result()} == {0.1}
    assert pool.submit([]).result() == []


def test_a_family_that_cannot_be_built_is_an_error_not_a_hang():
    broken = Pool([("reward_plugins:CannotStart", {})], workers=1)
    try:
        with pytest.raises(UserError, match="no such library"):
            broken.submit([Job(Sample("a", voice(0.1), 16000), [(0, ["x"])])]).result()
    finally:
        broken.close()


def test_close_ends_processes_and_threads():
    made = Pool(FAMILIES, workers=2)
    made.submit(jobs([0.1] * 4)).result()
    processes = [d.process for d in made._drivers]
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 5 and all(
        p is None or p.poll() is not None for p in processes
    )  # None: not started yet
    assert not any(d.thread.is_alive() for d in made._drivers)
    assert threading.active_count() < 50


def test_pool_and_inline_scores_are_the_same():
    clean = voice(1.0)
    samples = [Sample(str(i), with_noise(clean, snr, i), 16000, clean) for i, snr in enumerate((15, 5, -5))]
    samples[1].wav = np.zeros_like(clean)
    names = ["estoi", "si_sdr", "stoi", "lsd"]
    with Scorer(names, workers=2) as scorer, Scorer(names, workers=0) as inline:
        a, b = scorer.score(samples), inline.score(samples)
    for name in names:
        assert [s.error for s in a[name]] == [s.error for s in b[name]]
        assert all(
            x.value == pytest.approx(y.value, abs=1e-9)
            for x, y in zip(a[name], b[name], strict=True)
            if x.error is None
        )
    assert a["si_sdr"][0].detail == b["si_sdr"][0].detail
    assert scorer.seconds["estoi"] > 0
