"""A ``rlspeech`` and a ``python`` for tests that start at once: forks of a process that has imported torch, transformers and peft.

Scripts and README blocks call commands dozens of times, and the imports (five seconds with peft) would be most of what they cost. The
caller's arguments, folder, environment and three standard streams go over a Unix socket; the fork runs ``rlspeech.cli.main`` or the script
with them; its exit code comes back, signals go there. Commands compute at a test's size (``shorten``). Where Linux's ``pidfd_open`` is
missing, ``python -m rlspeech`` starts as always.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import Future
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = ("torch", "transformers.generation.utils", "transformers.models.auto.modeling_auto", "transformers.models.qwen3.modeling_qwen3",
           "peft", "scipy.signal", "scipy.stats", "soundfile", "matplotlib.figure", "onnx", "rlspeech.cli",
           "rlspeech.stages.rl", "rlspeech.stages.pretrain", "rlspeech.stages.evaluate", "rlspeech.report.build",
           *(f"rlspeech.tasks.{task}.task" for task in ("flowse", "avse", "asr", "tts")))  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def shim(folder: Path, before: str = "") -> Path:
    """Write ``folder/python`` and ``folder/rlspeech``, which first runs ``before`` (it may change ``$@``); answer the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    python = shlex.quote(sys.executable)
    scripts = {"rlspeech": f'{before}\nexec {python} -m rlspeech "$@"\n'}
    if hasattr(os, "pidfd_open"):
        start = f"exec {python} -I -S {shlex.quote(str(Path(__file__)))} {server()}"
        scripts["rlspeech"] = f'{before}\n{start} rlspeech "$@"\n'
        scripts["python"] = f'case "${{1:-}}" in *.py | -) {start} "$@" ;; esac\nexec {python} "$@"\n'
    for name, lines in scripts.items():
        if (folder / name).exists():  # a shell reads it while it runs
            continue
        (folder / name).write_text(f"#!/usr/bin/env bash\n{lines}")
        (folder / name).chmod(0o755)
    return folder


def environment(folder: Path, before: str = "") -> dict[str, str]:
    """The variables with a ``rlspeech`` of its own on PATH (``shim``) and a cache beside the folder: its corpora are short."""
    path = os.pathsep.join([str(shim(folder / "bin", before)), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "RLSPEECH_CACHE": str(folder.parent / "cache"), "PATH": path, "PYTHONPATH": str(ROOT)}


@cache
def server() -> str:
    """Start the server of this run of tests, which its processes share, unless it is there; answer its socket. It ends with the run."""
    import fcntl

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if run else os.getpid()  # xdist's processes are children of the one that was started
    folder = Path(tempfile.gettempdir(), f"warm-{run or uuid.uuid4().hex}")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "socket"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # read when torch is loaded, not by the fork
            calm = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
            call = [sys.executable, str(Path(__file__)), str(path), "--serve", str(owner)]
            env = {**calm, **os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env)
            assert process.stdout is not None and process.stdout.readline(), "the server did not start"
    return str(path)


def ask(path: str, arguments: list[str]) -> int:
    """The caller's side: hand everything over, pass signals on, answer the exit code (negative: the signal that ended it)."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        text = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(link, [len(text).to_bytes(4, "big")], [0, 1, 2])
        link.sendall(text)
        pid = int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: os.kill(pid, number))
        return int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big", signed=True)


def still_mouth(wav: Any, sample_rate: int, rng: Any) -> Any:
    """As many frames as ``draw_mouth`` makes, all the same: drawing is most of what the corpus costs."""
    from rlspeech.data.video import frames_of

    return rng.integers(0, 256, (1, 96, 96), "uint8").repeat(frames_of(len(wav) / sample_rate), axis=0)


def inline(pool: Any, item: Any, broken: object = None) -> tuple[Any, Future[bytes]]:
    """Do an item where it is handed in, in place of ``Pool._schedule``: every worker process would import everything anew."""
    from rlspeech.parallel import _call

    if not hasattr(pool, "function"):
        pool.function = pool._make()
    done = Future[bytes]()
    done.set_result(pickle.dumps((True, _call(pool.function, item))))
    return SimpleNamespace(active=True), done


def shorten() -> None:
    """Let commands compute at a test's size: DNSMOS and pocketsphinx on half a second, still mouths, few spoken commands, a figure of each
    group, no worker processes. All of it has tests of its own."""
    from rlspeech.corpora import demo, lips
    from rlspeech.parallel import Pool
    from rlspeech.report import figures
    from rlspeech.rewards import recognisers
    from rlspeech.rewards.dnsmos import HOP, Dnsmos

    whole, sphinx = Dnsmos.outputs, recognisers._pocketsphinx

    def hasty() -> recognisers.Transcribe:
        transcribe = sphinx()
        return lambda wavs, rate: transcribe([wav[: rate // 2] for wav in wavs], rate)

    recognisers._pocketsphinx = hasty
    Dnsmos.outputs = lambda self, wavs: whole(self, [wav[: 50 * HOP] for wav in wavs])  # type: ignore[method-assign]
    Pool._schedule = inline  # type: ignore[method-assign, assignment]
    lips.draw_mouth = still_mouth
    few = {"clean": 4, "noisy": 8, "long": 2, "tempting": 1}
    demo.COMMANDS = {name: part._replace(**few) for name, part in demo.COMMANDS.items()}
    figures.MAX_PLOTS = 1


def serve(path: str, owner: int) -> None:
    """Import everything, then fork for whoever asks, until the owner ends. Only a fork returns from here: it runs the command."""
    for name in IMPORTS:
        import_module(name)
    shorten()
    gc.freeze()
    listener, wait = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    running, ends = dict[int, tuple[int, socket.socket]](), os.pidfd_open(owner)
    listener.bind(path)
    listener.listen(16)
    wait.register(listener, selectors.EVENT_READ)
    wait.register(ends, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in wait.select():
            if key.fd == ends:
                shutil.rmtree(os.path.dirname(path), ignore_errors=True)
                os._exit(0)
            elif key.fileobj is listener:
                link, _ = listener.accept()
                try:
                    size, streams, _, _ = socket.recv_fds(link, 4, 3)
                    call = json.loads(link.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
                except (OSError, ValueError):  # the caller was killed while it asked
                    link.close()
                    continue
                if not (pid := os.fork()):
                    for inherited in (listener, link, *(other for _, other in running.values())):
                        inherited.close()
                    for watched in (ends, *running):
                        os.close(watched)
                    return become(call, streams)
                for stream in streams:
                    os.close(stream)
                with contextlib.suppress(OSError):
                    link.sendall(pid.to_bytes(4, "big"))
                watch = os.pidfd_open(pid)
                running[watch] = pid, link
                wait.register(watch, selectors.EVENT_READ)
                wait.register(link, selectors.EVENT_READ, data=pid)
            elif key.data:  # the caller was killed: so is what it called
                wait.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)
            else:
                pid, link = running.pop(key.fd)
                wait.unregister(key.fd)
                os.close(key.fd)
                with contextlib.suppress(KeyError):
                    wait.unregister(link)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    link.sendall(code.to_bytes(4, "big", signed=True))
                link.close()


def become(call: dict[str, object], streams: list[int]) -> None:
    """The fork takes over the caller's arguments, folder, environment and streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    environment = call["environment"]
    os.chdir(str(call["folder"]))
    os.environ.clear()
    os.environ.update(environment)  # type: ignore[call-overload]
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in sys.path]
    sys.argv[:] = call["arguments"]  # type: ignore[assignment]


if __name__ == "__main__":
    if sys.argv[2:3] == ["--serve"]:
        serve(sys.argv[1], int(sys.argv[3]))
        program = sys.argv[0]
        if program == "rlspeech":
            from rlspeech.cli import main

            main()
        elif program == "-":
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
        else:
            sys.path.insert(0, str(Path(program).resolve().parent))
            runpy.run_path(program, run_name="__main__")
    else:
        code = ask(sys.argv[1], sys.argv[2:])
        if code < 0:  # end as the command ended
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
