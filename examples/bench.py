"""What the fast paths are worth on this machine: ``python examples/bench.py`` (``make bench``).

Every row times two ways of doing the same work in this one process, in turns, and gives the medians and their ratio:
DNSMOS in batches against the ``speechmos`` package file by file, CPU metrics in worker processes against one after another,
rollouts that share their deterministic steps against rollouts that do not, and structured against per-bin exploration. Before that it
times (once) the commands that read manifests, on one of a million rows; ``--manifest`` does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from rlspeech import log
from rlspeech.config import Exploration, FlowModel, Lora
from rlspeech.data.inputs import Item
from rlspeech.parallel import calm_threads, physical_cores
from rlspeech.types import Sample

RATE = 16000
COLUMNS = ["what", "one way", "s", "other way", "s", "ratio"]


def speech(seed: int, seconds: float) -> np.ndarray:
    """(T,) float32: harmonics in syllables, with noise."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    f0 = 100 + 10 * (seed % 12)
    wav = sum(np.sin(2 * np.pi * f0 * k * t + rng.uniform(0, 6)) / k for k in range(1, 30))
    return (0.05 * wav * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t + seed))).astype(np.float32)


def samples(count: int, seconds: float) -> list[Sample]:
    """Noisy speech with its reference."""
    made = []
    for i in range(count):
        clean = speech(i, seconds)
        made.append(
            Sample(
                f"s{i}",
                clean + 0.02 * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32),
                RATE,
                clean,
            )
        )
    return made


def compare(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of both, taken in turns after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, row in zip((first, second), times, strict=True):
            started = time.perf_counter()
            work()
            if turn:
                row.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def bench_dnsmos(repeats: int) -> list[Any] | None:
    """Our scorer on a batch against ``speechmos.dnsmos.run`` on each clip."""
    from rlspeech.rewards.scorer import Scorer

    try:
        from speechmos import dnsmos
    except ImportError as error:
        log.say(f"no comparison with speechmos: {error} (pip install librosa requests)")
        return None
    batch = samples(4, 4.0)
    found: dict[str, list[Any]] = {}
    with Scorer(["dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak"], workers=0) as scorer:
        ours, theirs = compare(
            lambda: found.update(ours=[s.value for s in scorer.score(batch)["dnsmos_ovrl"]]),
            lambda: found.update(theirs=[dnsmos.run(b.wav, RATE)["ovrl_mos"] for b in batch]),
            repeats,
        )
    gap = max(abs(a - b) for a, b in zip(found["ours"], found["theirs"], strict=True))
    log.say(f"dnsmos: largest difference of OVRL to speechmos {gap:.1e}")
    return ["DNSMOS, 4 clips of 4 s", "speechmos, one by one", theirs, "rlspeech, batched", ours, theirs / ours]


def bench_manifest(count: int) -> list[list[Any]]:
    """What commands cost that read a manifest of so many rows: seconds, of them on a CPU, and MB in memory at most."""
    sounds = min(count, 1000)  # rows share their files: it is the manifest that is timed
    facts = '"duration": 1.0, "sample_rate": 16000, "text": "two words"'
    row = '{{"id": "u{0:08}", "audio_filepath": "a/{1}.wav", ' + facts + "}}\n"
    with tempfile.TemporaryDirectory() as name:
        folder, scores, (one, left, right) = (
            Path(name),
            Path(name, "s", "scores.jsonl"),
            (f"{m}/m.jsonl" for m in "abc"),
        )
        (folder / "loud.py").write_text("def peak(wavs, texts, sample_rate, **rest):\n    return [1.0] * len(wavs)\n")
        for path, ids in ((one, range(count)), (left, range(count // 2)), (right, range(count // 4, count // 4 * 3))):
            (folder / path).parent.mkdir()
            with (folder / path).open("w") as file:
                file.writelines(row.format(n, n % sounds) for n in ids)
        (folder / "a" / "a").mkdir()
        for n in range(sounds):
            sf.write(folder / "a" / "a" / f"{n}.wav", np.full(RATE, 0.1), RATE)
        reward = ("reward", one, "--reward", "loud:peak", "--out", "s", "--workers", "0")
        found = [["check", *cost(folder, "check", one)], ["reward, first score", *cost(folder, *reward, until=scores)]]
        first, *_ = (json.loads(line) for line in scores.read_text().splitlines())
        with scores.open("w") as file:
            stamps = [
                Item("", folder / "a" / "a" / f"{n}.wav", text="two words", duration_s=1.0).stamp()
                for n in range(sounds)
            ]
            for n in range(count):
                file.write(json.dumps({**first, "key": f"u{n:08}", "stamp": stamps[n % sounds]}) + "\n")
        found.append(["reward, all scored before", *cost(folder, *reward)])
        found.append(["prepare join, of two halves", *cost(folder, "prepare", "join", left, right, "--out", "joined")])
        return found


def cost(folder: Path, *command: str, until: Path | None = None) -> tuple[float, float, float]:
    """Run a command, or begin it ``until`` a file holds something: seconds, of them on a CPU, and MB in memory at most."""
    started, environment = time.perf_counter(), {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", "rlspeech", *command], cwd=folder, env=environment)
    while until is not None and not (until.exists() and until.stat().st_size):
        assert process.poll() is None, command
        time.sleep(0.05)
    if until is not None:
        process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    assert until is not None or status == 0, command
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def bench_pool(workers: int, repeats: int) -> list[Any]:
    """CPU metrics in a pool of workers against the same metrics in this process."""
    from rlspeech.rewards.base import available
    from rlspeech.rewards.scorer import Scorer

    usable = {column for entry, why_not in available() if not why_not for column in entry.columns}
    names = [n for n in ("pesq_wb", "stoi", "estoi") if n in usable]
    batch = samples(12, 2.0)
    with Scorer(names, workers=workers) as pool, Scorer(names, workers=0) as serial:
        one, other = compare(lambda: serial.score(batch), lambda: pool.score(batch), repeats)
    return [f"{'+'.join(names)}, 12 clips of 2 s", "serial", one, f"{workers} workers", other, one / other]


def bench_rollouts(repeats: int, model: FlowModel) -> list[list[Any]]:
    """Rollouts with and without a shared latent, and both kinds of exploration as they are used."""
    import torch

    from rlspeech.data.batches import Clip
    from rlspeech.models.adapters import Adapted
    from rlspeech.models.flow import FlowEnhancer
    from rlspeech.tasks.flowse.policy import FlowPolicy

    torch.manual_seed(0)
    adapted, group = Adapted(FlowEnhancer(model), Lora()), 8
    prompts = [Clip(s.key, s.wav, np.asarray(s.target), RATE) for s in samples(2, 2.0)]
    gain = Exploration(kind="gain", nfe=(4, 4))
    sde = Exploration(kind="sde", noise=0.4, window=2, start=(1, 1), nfe=(4, 4))
    turn = iter(range(10_000))

    def roll(explore: Exploration) -> Callable[[], Any]:
        policy = FlowPolicy(adapted, explore)
        return lambda: policy.rollout(prompts, group=group, seed=next(turn))

    pairs = [
        ("gain", gain.model_copy(update={"shared_latent": False}), "own latents", gain, "shared latent"),
        ("sde", sde.model_copy(update={"shared_latent": False}), "own latents", sde, "shared latent"),
        ("4 steps", sde, "sde, window 2 from step 1", gain, "gain at the last step"),
    ]
    rows = []
    for what, first, name, second, other in pairs:
        a, b = compare(roll(first), roll(second), repeats)
        n = len(prompts) * group
        rows.append(
            [f"{n} rollouts of 2 s, {what}", f"{name} ({n / a:.1f}/s)", a, f"{other} ({n / b:.1f}/s)", b, a / b]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(4, physical_cores()))
    parser.add_argument(
        "--small", action="store_true", help="a model of a few thousand weights: checks the script, measures nothing"
    )
    parser.add_argument("--manifest", action="store_true", help="only what manifests cost")
    args = parser.parse_args()
    calm_threads()
    model = FlowModel(dim=128, depth=4)
    if args.small:
        model = FlowModel(dim=32, depth=1, heads=2, conv_pos_kernel=7, conv_pos_groups=4)
    started = time.perf_counter()
    count = 10_000 if args.small else 1_000_000
    found = [[what, *(f"{figure:.0f}" for figure in figures)] for what, *figures in bench_manifest(count)]
    log.table(f"a manifest of {count} rows", ["what", "s", "CPU s", "MB at most"], found)
    if args.manifest:
        return
    rows = [row for row in (bench_dnsmos(args.repeats), bench_pool(args.workers, args.repeats)) if row]
    rows += bench_rollouts(args.repeats, model)
    log.table(
        f"medians of {args.repeats} in turns, {physical_cores()} cores, {time.perf_counter() - started:.0f} s in all",
        COLUMNS,
        rows,
    )


if __name__ == "__main__":
    main()
