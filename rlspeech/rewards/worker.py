"""A worker process of the reward pool: reads jobs from its standard input, writes scores to its standard output.

Started by ``pool.Pool`` as ``python -c "...; main()"`` and not through ``multiprocessing``: the parent's ``__main__`` is not imported
again (a user's script needs no guard, the start costs an import of numpy), and nothing is forked from a process with threads.
Messages are length-prefixed pickles between this process and its own parent; nothing of the kind is ever read from a file.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import time
from typing import IO, Any

__all__ = ["main", "read_message", "write_message"]

HEAD = struct.Struct("<Q")


def write_message(stream: IO[bytes], message: Any) -> None:
    """Send one object. Raises ``OSError`` where the other side is gone."""
    data = pickle.dumps(message, protocol=5)
    stream.write(HEAD.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Receive one object. Raises ``EOFError`` where the other side is gone."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    (size,) = HEAD.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Serve jobs until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; the closed pipe ends this process
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the messages
    from rlspeech.rewards.base import _load
    from rlspeech.types import Sample, Score

    families: list[Any] = []
    try:
        for factory, options in read_message(source):
            families.append(_load(factory)(**dict(options)))
        write_message(sink, ("ready", [f.version for f in families], 0.0))
    except Exception as error:
        write_message(sink, ("fatal", f"{type(error).__name__}: {error}", 0.0))
        return
    while True:
        try:
            work, key, rate, wav, target, text, columns_ = read_message(source)
        except (EOFError, OSError):
            return
        sample = Sample(key, wav, rate, target, text, columns_)
        for family, columns in work:
            write_message(sink, ("begin", family, 0.0))
            began = time.perf_counter()
            try:
                scores = families[family].compute([sample], columns)[0]
            except Exception as error:
                scores = {c: Score(None, f"{type(error).__name__}: {error}"[:200]) for c in columns}
            write_message(
                sink,
                ("done", {c: (s.value, s.error, s.detail) for c, s in scores.items()}, time.perf_counter() - began),
            )
