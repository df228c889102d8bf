"""Several processes of one run: how they find each other, notice that one has died, and part.

Who is who stands in the environment, as ``torchrun``, ``accelerate launch`` and others write it. A collective waits for all processes,
without end where one has died and nobody says so (NCCL), so each gives a sign of life every few seconds, in the store by which they met.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from rlspeech import log
from rlspeech.types import UserError

JOIN_S, BEAT_S, SILENT_S = 180, 5.0, 40.0  # all have come; between signs of life; without one a process is dead
PATIENCE_S = 1.5  # for what rank 0 says first
LAUNCH = "torchrun --nproc-per-node N -m rlspeech ..., or unset RANK WORLD_SIZE for one process"
# what a config of accelerate may ask for by the environment
FOREIGN = {"USE_FSDP": "FSDP", "USE_DEEPSPEED": "DeepSpeed", "USE_MEGATRON_LM": "Megatron-LM"}
FOREIGN |= {"MIXED_PRECISION": "mixed precision", "DYNAMO_BACKEND": "torch.compile"}
FOREIGN |= {"USE_PARALLELISM_CONFIG": "parallelism_config"}


class LostProcess(UserError):
    """Another process of the run has ended: what it was to take part in cannot be done."""

    def __init__(self, why: str) -> None:
        hint = "if it has not said why: a kill, or out of memory; the same command continues from the latest checkpoint"
        super().__init__("another process of this run has ended", why, hint)


def place() -> tuple[int, int]:
    """Number of this process and of all. Raises ``UserError`` where the environment's cannot be used, or asks for what there is not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ.get(name) or str(int(name.endswith("SIZE"))) for name in names}
    rank, world = given["RANK"], given["WORLD_SIZE"]
    if not all(v.isdecimal() for v in given.values()) or int(rank) >= int(world):
        found = " ".join(f"{k}={v}" for k, v in given.items() if k in os.environ)
        raise UserError(f"{found} in the environment", "ranks are numbered from 0 to WORLD_SIZE - 1", LAUNCH)
    yes = {key: os.environ.get(f"ACCELERATE_{key}", "no").lower() not in {"", "no", "false", "0"} for key in FOREIGN}
    if asked := [FOREIGN[key] for key, wanted in yes.items() if wanted]:
        why = "what is sharded is said by --set sharding=fsdp, the precision by --precision, and nothing is wrapped"
        raise UserError(f"accelerate is configured for {', '.join(asked)}", why, LAUNCH)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if int(world) > 1 and missing:
        raise UserError(f"WORLD_SIZE={world} without {' and '.join(missing)}", "processes must find each other", LAUNCH)
    return int(rank), int(world)


def join(backend: str, rank: int, world: int) -> Heartbeat:
    """Meet the other processes; the heart beats from then on. Raises ``UserError`` where they do not come."""
    from torch import distributed

    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))
        store.set_timeout(distributed.distributed_c10d.default_pg_timeout)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        log.speaks = True
        raise UserError(f"process {rank} of {world} cannot join the others", _line(error), LAUNCH) from error
    beat = Heartbeat(store, rank, world)
    beat.start()
    return beat


def together(call: Callable[..., Any], *args: Any) -> None:
    """A call that all processes make. Raises ``LostProcess``."""
    try:
        call(*args)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise LostProcess(_line(error)) from error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


class Heartbeat(threading.Thread):
    """Ends this process where another one no longer gives a sign of life."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.store, self.rank, self.world, self._left = store, rank, world, threading.Event()

    def run(self) -> None:
        """Beat, and look at the others' beats."""
        counts, since = [0] * self.world, [time.monotonic()] * self.world
        while not self._left.wait(BEAT_S):
            before, now = counts, time.monotonic()
            with suppress(RuntimeError):  # the store has ended with its process
                counts = [self.store.add(f"beat/{r}", int(r == self.rank)) for r in range(self.world)]
            since = [s if a == b else now for a, b, s in zip(before, counts, since, strict=True)]
            dead = [r for r, s in enumerate(since) if r != self.rank and now - s > SILENT_S]
            if dead and not self._left.is_set():
                if self.rank == min(set(range(self.world)) - set(dead)):
                    lost = LostProcess(f"number {dead[0]} gives no sign of life")
                    print(f"error: {lost}", file=sys.stderr, flush=True)
                os._exit(2)

    def leave(self, error: BaseException | None) -> None:
        """Leave the group when all do; after an error of this process alone find out whether it is this one that prints it."""
        from torch import distributed

        if error is None or (isinstance(error, KeyboardInterrupt) and error.args):  # all processes were interrupted
            # a launcher ends the others when one has ended, and rank 0 may still write its page
            together(distributed.barrier)
            self._end()
            distributed.destroy_process_group()
        else:
            with suppress(ValueError):  # of a launcher whose other process has ended: what is to be said comes first
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            log.speaks = self._speaks(error)
            self._end()

    def _speaks(self, error: BaseException) -> bool:
        """Rank 0 prints its errors; another process what none has said, and the loss of one where nothing was said."""
        what, lost = error.what if isinstance(error, UserError) else repr(error), isinstance(error, LostProcess)
        try:
            time.sleep(PATIENCE_S if self.rank else 0)
            first = self.store.add(f"error/{zlib.crc32(what.encode())}", 1) == 1
            others = self.store.add("errors", int(not lost))
            time.sleep(0 if self.rank else 2 * PATIENCE_S)  # the store may be this process's
        except RuntimeError:
            return True
        return self.rank == 0 or (first and not (lost and others))

    def _end(self) -> None:
        self._left.set()
        self.join()
