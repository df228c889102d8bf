"""Commands that are killed, interrupted, starved and started twice: the same command afterwards has to give what it always gives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from harness import ROOT, TINY, Case, ended, logged, start, table, words_of, wrong
from tiny_runs import content, differences

TRAIN = (
    f"--data GIVEN/few/manifest.jsonl --valid GIVEN/pairs/manifest.jsonl {TINY} --set valid_items=2 --set valid_every=2"
)
RL = f"rl --model GIVEN/model --reward si_sdr --guard estoi --steps 4 --group 2 --prompts-per-step 2 {TRAIN} --set lr=1e-3"
TTS = "--data GIVEN/tts/manifest.jsonl --valid GIVEN/tts/manifest.jsonl --reward tts_duration_ratio=-1 --steps 3 --group 2"
TTS += f" --prompts-per-step 2 {TINY} --set valid_items=2 --set diffro.reward=GIVEN/tts/reward"
JOBS = {
    "mix": "prepare mix --clean GIVEN/clean --noise GIVEN/noise --render 60 --render-s 0.5 --set workers=0 --out out",
    "reward": "reward GIVEN/few/noisy --target GIVEN/few/clean --reward si_sdr --reward estoi --set batch=2 --out out",
    "enhance": "enhance GIVEN/few/noisy --model GIVEN/model --out out",
    "transcribe": "transcribe GIVEN/few/noisy --model GIVEN/asr --out out --batch 2",
    "pretrain": f"pretrain --init GIVEN/model {TRAIN} --steps 6 --batch 2 --out out",
    "grpo": f"{RL} --algo grpo --out out",
    "ppo": f"{RL} --algo ppo --out out",
    "tts": f"rl --task tts --algo grpo+diffro --model GIVEN/tts/model {TTS} --out out",
    "eval": "eval --data GIVEN/few/manifest.jsonl --model a=GIVEN/model --metric si_sdr --metric estoi --set workers=0 --out out",
    "two ranks": f"torchrun --nproc-per-node 2 --no-python rlspeech {RL} --algo grpo --out out",
}
ROOM_KB = 400  # of a disk that gets full, at most
OUTS = "/proc/1/x", "/dev/null/x", "file", "file/sub", "x" * 300, "read-only"
WRITERS = [JOBS[name] for name in JOBS if name != "two ranks"]
WRITERS += table("""speak one --model GIVEN/tts/model --out out | report GIVEN/run --out out/r.html
| presets copy asr-grpo out/x.yaml | convert manifest GIVEN/pairs/manifest.jsonl --to kaldi out/k
| prepare folder GIVEN/pairs --out out | convert scores GIVEN/scores/scores.jsonl --to versa out/v.txt""")
SPEAKERS = table("""check GIVEN/pairs/manifest.jsonl | presets keys rl | transcribe GIVEN/speech --model GIVEN/asr | presets ls
| reward GIVEN/pairs/manifest.jsonl --reward si_sdr --out out | --help | doctor --json""")
LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); "
LIMITED += "from rlspeech.cli import main; main()"


Trouble = Callable[[Path, str, random.Random], Iterator[str]]  # of a job in a folder


def stopped(number: int, codes: tuple[int, ...]) -> Trouble:
    """A signal at a random moment, three times."""

    def trouble(folder: Path, job: str, rng: random.Random) -> Iterator[str]:
        launched, (reference, took_s) = job == "two ranks", whole(job)
        for _ in range(3):
            process = start(folder, words_of(JOBS[job]))
            time.sleep(0.15 + rng.random() * took_s)
            ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            if process.poll() is None:
                os.kill(int(rng.choice(ranks)) if ranks and launched else process.pid, number)
            code, silent = ended(process), not logged(folder)[1]
            # before its first line, or when all is done, a signal may end it as if there were no handler
            if code == -number and (silent or not [*differences(content(folder / "out"), reference)]):
                code = 0
            yield from wrong(folder, code, (0, *codes), launched=launched)

    return trouble


def twice(folder: Path, job: str, rng: random.Random) -> Iterator[str]:
    """The same command from two folders, a moment apart."""
    words, other = words_of(JOBS[job]), folder / "other"
    other.mkdir()
    both = [start(folder, words)]
    time.sleep(rng.random() * 0.5)
    both.append(start(other, [str(folder / w) if w == "out" else w for w in words]))
    codes = [ended(p) for p in both]
    for place, code in zip((folder, other), codes, strict=True):
        yield from wrong(place, code)
    if 0 not in codes:
        yield f"neither of two is done: {codes}"


def full(folder: Path, job: str, rng: random.Random) -> Iterator[str]:
    """A disk with room for a part of what is written."""
    with mounted(folder / "out", f"size={4 + int(rng.random() * ROOM_KB)}k"):
        yield from wrong(folder, ended(start(folder, words_of(JOBS[job]))))
        shutil.copytree(folder / "out", folder / "kept")
    (folder / "out").rmdir()
    (folder / "kept").rename(folder / "out")


def limited(folder: Path, job: str, rng: random.Random) -> Iterator[str]:
    """A limit on the size of a file (``ulimit -f``)."""
    (folder / "limited.py").write_text(LIMITED)
    size = int(1000 * 300 ** rng.random())
    yield from wrong(folder, ended(start(folder, ["python", "limited.py", str(size), *words_of(JOBS[job])[1:]])))


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A small disk in memory, which only root can have."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def refused(command: str, out: str, folder: Path) -> Iterator[str]:
    """A place where nothing can be written."""
    (folder / "file").write_text("kept")
    with mounted(folder / "read-only", "ro") if out == "read-only" else nullcontext():
        yield from wrong(folder, ended(start(folder, words_of(command, out))), (2,))
    if (folder / "file").read_text() != "kept":
        yield "a file was overwritten"


def unread(command: str, stream: str, to: str, folder: Path) -> Iterator[str]:
    """Output that goes nowhere."""
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "wb") as disk, os.fdopen(write, "wb") as pipe:
        process = start(folder, words_of(command), **{stream: pipe if to == "a closed pipe" else disk})
    yield from wrong(folder, ended(process), (0, 2, 141))


def hurried(wait_s: float, folder: Path) -> Iterator[str]:
    """Ctrl-C while the command is still being imported."""
    process = start(folder, [sys.executable, "-m", "rlspeech", "doctor"])
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    yield from wrong(folder, ended(process), (130, -2, 0))


def absent(folder: Path) -> Iterator[str]:
    """Two ranks without a model: the reason is logged, once."""
    command = JOBS["two ranks"].replace("GIVEN/model", "nowhere")
    yield from wrong(folder, ended(start(folder, words_of(command))), launched=True)
    said = logged(folder)[1]
    if (found := f"\n{said}".count("\nerror: ")) != 1 or "interrupted" in said:
        yield f"one error is printed {found} times"


def again(job: str, trouble: Trouble, seed: float, folder: Path) -> Iterator[str]:
    """A job that something happens to, and the same command to its end."""
    yield from trouble(folder, job, random.Random(seed))
    yield from wrong(folder, ended(start(folder, words_of(JOBS[job]))), (0,))
    yield from differences(content(folder / "out"), whole(job)[0])


_lock, _whole = threading.Lock(), dict[str, tuple[dict[str, Any], float]]()


def whole(name: str) -> tuple[dict[str, Any], float]:
    """What a job leaves that nothing happens to, and how long it takes."""
    with _lock:
        if name not in _whole:
            folder, began_s = ROOT / f"whole {name}", time.monotonic()
            folder.mkdir()
            if ended(start(folder, words_of(JOBS[name]))):
                raise RuntimeError(logged(folder)[1])
            _whole[name] = content(folder / "out"), time.monotonic() - began_s
        return _whole[name]


def cases(rng: random.Random) -> Iterator[Case]:
    root = os.geteuid() == 0
    troubles = [("killed", stopped(signal.SIGKILL, (-9,)))] * 2
    troubles += [(s.name, stopped(s, (128 + s,))) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    troubles += [("two at once", twice), ("ulimit -f", limited), *([("full disk", full)] if root else [])]
    for name in JOBS:
        for kind, trouble in troubles[: 2 if name == "two ranks" else None]:
            yield Case(kind, name, partial(again, name, trouble, rng.random()))
    for command in WRITERS:
        for out in OUTS if root else OUTS[:-1]:
            yield Case("impossible --out", f"{out[:12]}: {command}", partial(refused, command, out))
    for command in SPEAKERS:
        for stream in ("stdout", "stderr"):
            for to in ("a closed pipe", "/dev/full"):
                yield Case("closed output", f"{stream} {to}: {command}", partial(unread, command, stream, to))
    for wait_s in (0.12 + 0.3 * rng.random() for _ in range(4)):
        yield Case("SIGINT", f"at the start, after {wait_s:.2f} s", partial(hurried, wait_s))
    yield Case("two ranks", "a missing model", absent)
