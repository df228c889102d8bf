"""What the torture's cases share: what is given to them, a command and what must hold of it however it ends, what a folder holds."""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import soundfile as sf
import tiny_recognisers
import tiny_speech
import tiny_tts
import warm
from tiny_runs import content, differences

ROOT = Path(tempfile.mkdtemp(prefix="torture-"))
GIVEN = ROOT / "given"
HANG_S = 60.0
CALM = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
ENVIRONMENT = warm.environment(ROOT / "home") | CALM | {"HOME": str(ROOT / "home")}
TINY = "--set device=cpu --set workers=0 --set save_every=1"
RL = "rl --model GIVEN/model --data GIVEN/pairs/manifest.jsonl --valid GIVEN/pairs/manifest.jsonl --reward si_sdr --guard estoi"
RL += " --steps 1 --group 2 --prompts-per-step 2 --set valid_items=1 --set workers=0 --set max_minutes=0.03"


class Case(NamedTuple):
    """Something that goes wrong: ``run`` makes it happen in an empty folder and yields what did not hold."""

    kind: str
    name: str
    run: Callable[[Path], Iterator[str]]


def table(text: str) -> list[str]:
    """Its cells, which ``|`` parts."""
    return [cell.strip(" \n") for cell in re.split(r"\s\| ", text)]


def words_of(command: str, out: str = "out") -> list[str]:
    words = [w.replace("GIVEN", str(GIVEN)).replace("out/", f"{out}/") for w in command.split()]
    words = [out if w == "out" else w for w in words]
    return words if words[0] == "torchrun" else ["rlspeech", *words]


def start(folder: Path, words: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """The command in a folder, what it prints in a file of ``log/`` there; who asks anything is answered with y."""
    (folder / "log").mkdir(exist_ok=True)
    log = folder / "log" / f"{len(list((folder / 'log').iterdir())):02d}.txt"
    with (ROOT / "yes").open("rb") as answers, log.open("wb", buffering=0) as output:
        output.write(f"cd {folder} && {shlex.join(words)}\n".encode(errors="surrogateescape"))
        streams = {"stdin": answers, "stdout": output, "stderr": output} | streams
        return subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, **streams)


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, None where it did not end in time."""
    try:
        return process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def logged(folder: Path) -> tuple[str, str]:
    """The last command and what it has printed."""
    command, _, output = max((folder / "log").iterdir()).read_text("utf-8", "replace").partition("\n")
    return command, output


def wrong(folder: Path, code: int | None, codes: tuple[int, ...] = (0, 2), *, launched: bool = False) -> Iterator[str]:
    """What does not hold of a command, whatever it was to do; a launcher has an exit code and tracebacks of its own."""
    # a signal while libsndfile calls back is printed and lost; the command goes on
    output = re.sub(r"Exception ignored from cffi callback.*\nTraceback \(most", "", logged(folder)[1])
    if output.endswith("KeyboardInterrupt\n") and f"{warm.ROOT}/rlspeech/" not in output:
        return  # Python was still starting
    last = output.strip().splitlines()[-3:]
    if code is None:
        yield f"hangs: {last}"
    elif not launched and code not in codes and not (code == 1 and "out of memory" in output):
        yield f"exit {code}: {last}"
    for sign in ("this is a bug", "\x1b", *([] if launched else ["Traceback (most"])):
        if sign in output:
            yield f"prints {sign!r}: {last}"
    if found := [*folder.rglob("PWNED*"), *GIVEN.rglob("PWNED*")]:
        yield f"ran code of a file: {found}"


def listing(folder: Path, mine: set[str]) -> set[tuple[str, int, int]]:
    """Files of a folder, those of its output and what the harness itself writes left out."""
    names = [(p.relative_to(folder), p.lstat()) for p in folder.rglob("*") if not p.is_dir()]
    return {
        (str(n), s.st_size, s.st_mtime_ns) for n, s in names if not {"out", "log", "__pycache__", *mine} & {*n.parts}
    }


def tried(
    folder: Path, command: str, codes: tuple[int, ...] = (0, 2), always: bool = False, mine: set[str] = frozenset()
) -> Iterator[str]:
    """Run a command to its end; yield what does not hold of it, and where it is done, or ``always``, of the good item."""
    before = listing(folder, mine)
    code = ended(start(folder, words_of(command)))
    yield from wrong(folder, code, codes)
    if changed := {name for name, *_ in before ^ listing(folder, mine)}:
        yield f"changes files outside of its output: {sorted(changed)[:3]}"
    if code == 0 or always:
        yield from undone(folder, command.split()[0])


def undone(folder: Path, command: str) -> Iterator[str]:
    """The good item u0, which lies beside the bad one, is done as if it were alone."""
    out = folder / "out"
    scores, texts = out / "scores.jsonl", out / "t.jsonl"
    if command == "reward" and (scores.is_file() or not (folder / "scores").is_dir()):
        rows = [json.loads(line) for line in scores.read_text("utf-8").splitlines()] if scores.is_file() else []
        if not any("u0" in str(r.get("key")) and None not in (r.get("si_sdr"), r.get("system")) for r in rows):
            yield "the good item has no score"
    elif command == "enhance" and not any(p.stem in ("u0", "0") for p in out.rglob("*")):
        yield "the good item is not enhanced"
    elif command == "transcribe" and not any("u0" in row for row in texts.read_text("utf-8").splitlines()):
        yield "the good item is not transcribed"


def give() -> None:
    """Make what is whole: recordings, a manifest, models, a run, scores."""
    (ROOT / "yes").write_text("y\n" * 999)
    for folder in ("kinds", "speech", "texts", "clean", "noise"):
        (GIVEN / folder).mkdir(parents=True)
    tiny_speech.write_pairs(GIVEN / "pairs", 2, 0.5)
    tiny_speech.write_pairs(GIVEN / "few", 12, 0.7)
    tiny_speech.write_model(GIVEN / "model")
    tiny_recognisers.write_model(GIVEN / "asr")
    tiny_tts.write_tts(GIVEN / "tts")
    wav, _ = sf.read(GIVEN / "pairs" / "noisy" / "0.flac")
    for place in ("kinds/u0.wav", "kinds/u0.flac", "kinds/u0.ogg", "kinds/u0.mp3", "speech/u0.wav"):
        sf.write(GIVEN / place, wav, 16000)
    (GIVEN / "texts" / "t.txt").write_text("u0 one two\nu1 three\n")
    for kind in ("clean", "noise"):
        for path in sorted((warm.ROOT / "rlspeech" / "assets" / "demo" / kind).glob("test_*"))[:4]:
            shutil.copy(path, GIVEN / kind)
    mix = "prepare mix --clean GIVEN/clean --noise GIVEN/noise --out mix"
    score = "reward GIVEN/pairs/manifest.jsonl --reward si_sdr --out scores"
    for command in (mix, score, f"{RL} --out run"):
        if ended(start(GIVEN, words_of(command))):
            raise SystemExit(logged(GIVEN)[1])
    shutil.copy(GIVEN / "run/checkpoints/latest", GIVEN / "run/checkpoints/best")


def failures(case: Case, number: int) -> list[str]:
    """What does not hold, and the command; the folder of a case in which all holds is removed."""
    folder = ROOT / f"{number:04d}"
    folder.mkdir()
    try:
        found = list(case.run(folder))
    except Exception:
        found = [traceback.format_exc()]
    if found:
        return [*found[:5], logged(folder)[0]]
    shutil.rmtree(folder, ignore_errors=True)
    return []


def torture(*groups: Callable[[random.Random], Iterator[Case]]) -> int:
    """Try the cases of the groups and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=torture.__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose kind and name match this")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    began_s, rng = time.monotonic(), random.Random(given.seed)
    give()
    before = content(GIVEN)
    cases = [c for group in groups for c in group(rng) if re.search(given.only, f"{c.kind} {c.name}")]
    cases = random.Random(given.seed).sample(cases, max(1, round(given.share * len(cases))))
    failed, count = Counter[str](), Counter(c.kind for c in cases)
    with ThreadPoolExecutor(given.workers) as pool:
        for case, found in zip(cases, pool.map(failures, cases, range(len(cases))), strict=True):
            if found:
                print("\n    ".join([f"FAILED {case.kind}: {case.name}", *found]), flush=True)
                failed[case.kind] += 1
    if found := list(differences(content(GIVEN), before)):
        failed["what was given"] += 1
        print("\n    ".join([f"FAILED: {GIVEN} was changed", *found]))
    print("\n| kind | tried | failed |\n|---|---|---|")
    for kind in sorted({*count, *failed}):
        print(f"| {kind} | {count[kind]} | {failed[kind]} |")
    print(f"| all | {count.total()} | {failed.total()} |\n\nseed {given.seed}, {time.monotonic() - began_s:.0f} s")
    if not failed:
        shutil.rmtree(ROOT, ignore_errors=True)
    return int(bool(failed))
