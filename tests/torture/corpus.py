"""Inputs that people, disks and other programs spoil, drawn by a seed from tables; each may cost itself and nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from harness import GIVEN, RL, Case, table, tried

from rlspeech import config, schema

Way = Callable[[Path], Any]  # makes a whole file a bad one
PICKLE = b"cos\nsystem\n(S'touch PWNED'\ntR."
# JSON in place of other values, blanks left out
ODD = "null true false 0 -1 7.5 1e308 1e999 -1e999 NaN 100000000 12345678901234567890 [] {} [[1]] [null] [{}] {'a':{'b':[null]}} "
ODD += "'' '.' '~' 'u0' '\\u0000' '\\ud800' '\\u001b]0;PWNED\\u0007' 'e\\u0301\\u202e' 'a\\nb' '../../../etc/passwd' '/dev/zero' "
ODD += f"'os:system' 's3://b/x.wav' '\\ufeff' '{'x' * 5000}' {'9' * 400} {'[' * 999 + ']' * 999} {'[' * 99999}"


def edit(change: Callable[[bytes], bytes]) -> Way:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def put(make: Way) -> Way:
    return lambda path: (path.unlink(), make(path))


TEXTS = {
    "empty": b"", "blank": b" \n\n", "NUL": bytes(99), "null": b"null", "list": b"[]", "number": b"5", "long": b"x" * 5000,
    "deep": b"[" * 99999, "deep object": b'{"a":' * 99999, "digits": b"9" * 9999, "zip": b"PK\3\4" + bytes(60), "pickle": PICKLE,
    "page": b"<!DOCTYPE html>\n", "escape": b"\x1b]0;PWNED\x07", "pointer": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip
WHOLE: dict[str, Way] = {name: edit(lambda _, text=text: text) for name, text in TEXTS.items()} | {
    "UTF-16": edit(lambda b: b.decode("utf-8", "replace").encode("utf-16")), "CRLF": edit(lambda b: b.replace(b"\n", b"\r\n")),
    "Latin-1": edit(lambda b: b.decode("utf-8", "replace").replace("u", "\xfc").encode("latin-1", "replace")),
    "marked": edit(lambda b: b"\xef\xbb\xbf" + b), "torn": edit(lambda b: b[: len(b) // 2]), "twice": edit(lambda b: b + b),
    "missing": Path.unlink, "folder": put(Path.mkdir), "loop": put(lambda p: p.symlink_to(p.name)),
    "dangling": put(lambda p: p.symlink_to("nowhere")),
}  # fmt: skip

SCORE = "reward GIVEN/pairs/manifest.jsonl --reward si_sdr --out"
ENHANCE = "enhance GIVEN/pairs/noisy --out out --model"
MANIFEST = "check pairs/manifest.jsonl|reward pairs/manifest.jsonl --reward si_sdr --out out|enhance pairs/manifest.jsonl --model "
MANIFEST += "GIVEN/model --out out|convert manifest pairs/manifest.jsonl --to kaldi out/k"
RUN = f"check run|report run --out out/r.html|{RL} --out run|{ENHANCE} run"
SCORES = f"{SCORE} scores|report scores --out out/r.html|check scores|convert scores scores/scores.jsonl --to versa out/v.txt"
MODEL = "config.json tokenizer.json rlspeech.json model.safetensors"
UNITS = [  # what is copied, the files of it that are spoiled, each so often, and the commands that read them
    ("pairs", "manifest.jsonl", 120, MANIFEST),
    ("mix", "mix.json", 20, f"check mix/mix.json|{RL} --out out --data mix"),
    ("model", "config.json model.safetensors", 35, f"{ENHANCE} model"),
    ("asr", MODEL, 10, "transcribe GIVEN/speech --model asr --out out/t.jsonl"),
    ("tts/model", MODEL, 9, "speak one --model tts/model --out out"),
    ("run", "config.resolved.json env.json metrics.jsonl scores.jsonl checkpoints/best checkpoints/latest", 13, RUN),
    ("run", "checkpoints/step_000001/state.json checkpoints/step_000001/state.safetensors", 12, RUN),
    ("scores", "scores.jsonl scores.meta.json", 40, SCORES),
    ("texts", "t.txt", 20, "reward GIVEN/pairs/manifest.jsonl --reward asr_wer --hypotheses texts/t.txt --out out"),
]


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document of JSON, an unknown key among them."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*where, key)
        yield from places(inner, (*where, key))


def bent(rng: random.Random, text: bytes, lines: bool) -> tuple[str, Way]:
    """One odd value in a document of JSON, or in the last of several."""
    head, line_end, last = text.strip().rpartition(b"\n") if lines else (b"", b"", text)
    document = holder = json.loads(last)
    *where, key = rng.choice([*places(document), ("unknown",)])
    for inner in where:
        holder = holder[inner]
    odd = rng.choice(ODD.split()).replace("'", '"')
    holder[key] = "@@"
    new = head + line_end + json.dumps(document).replace('"@@"', odd).encode() + b"\n"
    return f"{'.'.join(map(str, [*where, key]))}={odd[:40]}", edit(lambda _: new)


def broken(rng: random.Random, data: bytes) -> tuple[str, Way]:
    """Bytes that are cut, or overwritten near their start or anywhere."""
    if rng.random() < 0.3:
        size = rng.choice([1, 4, 12, 20, 43, 44, 45, len(data) // 2, len(data) - 1])
        return f"cut at {size}", edit(lambda b: b[:size])
    at = rng.randrange(rng.choice([64, len(data)]))
    new = rng.choice([b"\0", b"\xff", b"\x7f", rng.randbytes(1)]) * rng.choice([1, 2, 4, 8])
    return f"{new.hex()} at {at}", edit(lambda b: b[:at] + new + b[at + len(new) :])


def case(kind: str, name: str, command: str, spoil: Way, **options: Any) -> Case:
    def work(folder: Path) -> Iterator[str]:
        spoil(folder)
        yield from tried(folder, command, **options)

    return Case(kind, f"{name}: {command.split()[0]}", work)


def documents(rng: random.Random) -> Iterator[Case]:
    for unit, files, count, commands in UNITS:
        for file in files.split():
            data, structured = (GIVEN / unit / file).read_bytes(), Path(file).suffix in (".json", ".jsonl")
            for way in range(count):
                if way % 2 == 0 and way < 50:
                    name, spoil = rng.choice([*WHOLE.items()])
                else:
                    name, spoil = bent(rng, data, file.endswith("l")) if structured else broken(rng, data)

                def prepare(folder: Path, unit: str = unit, file: str = file, spoil: Way = spoil) -> None:
                    shutil.copytree(GIVEN / unit.split("/")[0], folder / unit.split("/")[0])
                    spoil(folder / unit / file)

                command = rng.choice(commands.split("|"))
                yield case(unit.split("/")[0], f"{file} {name}", command, prepare, mine={command.split()[-1]} & {unit})


LIES = [  # of a WAV: format, place, values
    ("I", 4, "0 7fffffff ffffffff"), ("I", 16, "0 e 12 f423f ffffffff"), ("H", 20, "0 3 7 55 fffe ffff"), ("H", 22, "0 2 3e8 ffff"),
    ("I", 24, "0 1 1f3f 7fffffff ffffffff"), ("I", 28, "0 ffffffff"), ("H", 32, "0 1 3e7"), ("H", 34, "0 1 7 18 40 ffff"),
    ("I", 40, "0 3 7ffff000 ffffffff"),
]  # fmt: skip
SAMPLES = {"NaN": np.nan, "infinite": np.inf, "1e38": 1e38, "denormal": 1e-42, "silent": 0.0, "constant": 1.0}
NAMES = ["bad\udcff\udcfe", "a\nb", "\x1b]0;PWNED\x07", "x" * 246, " ", "-x", "e\u0301\u202e", "a;touch PWNED", "CON"]
AUDIO = "reward in --target clean --reward si_sdr --out out|enhance in --model GIVEN/model --out out|"
AUDIO += "transcribe in --model GIVEN/asr --out out/t.jsonl|prepare folder in --out out"


def recordings(rng: random.Random) -> Iterator[Case]:
    """A bad recording beside u0, which is good, in every way that ``AUDIO`` reads them."""
    kinds = {suffix: (GIVEN / "kinds" / f"u0.{suffix}").read_bytes() for suffix in ("wav", "flac", "ogg", "mp3")}
    ways: list[tuple[str, str, Way]] = [("wav", name, way) for name, way in WHOLE.items()]
    ways += [("wav", "fifo", put(os.mkfifo)), ("wav", "endless", put(lambda p: p.symlink_to("/dev/zero")))]
    ways += [("wav", f"name {odd!r}", lambda p, n=odd: p.rename(p.with_name(f"{n}.wav"))) for odd in NAMES]
    for form, at, values in LIES:
        for new in (struct.pack(f"<{form}", int(v, 16)) for v in values.split()):
            ways.append(("wav", f"{new.hex()} at {at}", edit(lambda b, a=at, n=new: b[:a] + n + b[a + len(n) :])))
    for name, value in SAMPLES.items():
        wav = np.where(np.arange(8000) % 7, value, 0.1).astype("f4")
        ways.append(("wav", name, put(lambda p, w=wav: sf.write(p, w, 16000, "FLOAT", format="WAV"))))
    for low in (b"\0\0\0\0\0", b"\0\0\0\0\1", b"\x0f\xff\xff\xff\xff"):  # samples that a FLAC declares, in 36 bits
        lie = edit(lambda b, n=low: b[:21] + bytes([b[21] & 240 | n[0]]) + n[1:] + b[26:])
        ways.append(("flac", f"{low.hex()} samples", lie))
    for suffix, data in kinds.items():
        ways += [(suffix, *broken(rng, data)) for _ in range(16)]
        ways += [(suffix, f"is a {o}", edit(lambda _, other=kinds[o]: other)) for o in ("wav", "ogg")]
    for suffix, name, spoil in ways:

        def prepare(folder: Path, suffix: str = suffix, spoil: Way = spoil) -> None:
            for place in (folder / "in", folder / "clean"):
                place.mkdir()
                for kind, name in (("wav", "u0"), (suffix, "bad")):
                    shutil.copy(GIVEN / "kinds" / f"u0.{kind}", place / f"{name}.{kind}")
            spoil(folder / "in" / f"bad.{suffix}")

        yield case("audio", f"{suffix} {name}", rng.choice(AUDIO.split("|")), prepare, always=True)


STAGES = {"rl": config.RL, "pretrain": config.Pretrain, "eval": config.Evaluate, "reward": config.ScoreFolder}
NO_NUMBERS = ".nan .inf -.inf 1e999 'x' [1] []".split()
NUMBERS = ["0", "-1", "1e-300", "1e300", str(10**9), str(10**30), "0.5", "3"]
YAML = table("""
a: [ | a: b: c | a:\n\t- a | ? | - a\n- b | seed: 2024-13-45 | seed: !!int abc | seed: !!float x | seed: !!bool x | 1: 2
| seed: !!timestamp x | seed: 0b_ | seed: 0x_ | task: no | seed: 1\nseed: 2 | a\0b: 1 | --- 1\n--- 2 | data: '\ud800'
| data: "\\ud800" | x: !!python/object/apply:os.system ['touch PWNED'] | <<: 1 | <<: [*a] | %TAG ! x | @a: 1 | &a : *a
| rewards: {si_sdr: {weight: .nan}} | rewards: [[[1]]] | guards: [{name: lsd, max_drop: .nan}] | a: &a [*a] | model: {}
| stage: rl\nrewards: null | device: cuda:99 | task: os:system | task: subprocess:Popen | out: /dev/null/x
""")
YAML += [f"seed: {'9' * 5000}", f"steps: {'[' * 5000}"]  # and a bomb of aliases
YAML += ["a: &a [x]\n" + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))]
BODIES = table("""
return [float('nan')] * len(wavs) | return [float('inf')] | return ['x'] * len(wavs) | return [1.0] | return [1.0] * 50
| return None | return {} | return 5 | return [10**400] * len(wavs) | yield 1.0 | return [[1]] * len(wavs) | return wavs
| raise ValueError('\\x1b]0;PWNED\\x07') | raise KeyboardInterrupt | raise MemoryError | raise SystemExit(3) | raise StopIteration
| return f(wavs, texts, sample_rate) | import time; time.sleep(999) | print('\\x00' * 99); return [1.0] * len(wavs)
| for w in wavs: w[:] = 0\n return [1.0] * len(wavs) | wavs.clear(); return [1.0, 1.0] | columns['targets'].clear(); return [1.0]
""")
MODULES = table("""
def f( | raise RuntimeError | import sys; sys.exit(0) | f = 5 | f = print | import nowhere | def f(x): pass | def g(): pass
| \0 | async def f(wavs, texts, sample_rate, **c): pass | def f(prompts, completions, **k): return {'a': 1} | class f: pass
| def f(prompts, completions, **k): raise KeyError
""")
REWARDS = table("""a.b:c | ../ur:f | : | :f | nowhere | os:system | llm --llm http://[::1/v1 | llm --llm http:// | llm --llm ftp://x
| llm --llm http://127.0.0.1:1/v1 | llm --llm file:///etc/passwd | llm --llm http://127.0.0.1:99999/v1
| pesq --set seed=99999999999999999999 | pesq --set seed=2024-13-45 | pesq --set = | pesq --set a | pesq --set batch=.nan
| pesq --set rewards[9]=1 | pesq --set timeout_s=-1 | pesq --set workers=-1""")
COMMANDS = table("""enhance nowhere --out out | check nowhere | report nowhere | speak one --model nowhere --out out
| rl --data nowhere | prepare folder nowhere --out out | reward nowhere --reward si_sdr --out out | rl --task os:system
| rl --task subprocess:Popen | transcribe nowhere | eval --model a=nowhere | presets show nowhere | convert lora nowhere --to merged""")


def text(name: str, content: str) -> Way:
    return lambda folder: (folder / name).write_text(content, "utf-8", "surrogatepass")


def settings(rng: random.Random) -> Iterator[Case]:
    """Every number of every stage, as none; the numbers of ``rl`` in a run as well."""
    train = f"{RL} --out out --config c.yaml"
    for stage, cls in STAGES.items():
        for key in (k.name for k in schema.keys(cls) if {"int", "float"} & {*k.type.split("|")}):
            form = "".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(key.split(".")))[:-1] + " "
            value, check = rng.choice(NO_NUMBERS), f"check c.yaml --stage {stage}"
            yield case("settings", f"{stage} {key}={value}", check, text("c.yaml", form + value), codes=(2,))
            if stage == "rl" and key not in ("steps", "max_minutes"):
                value = rng.choice(NUMBERS)
                yield case("settings", f"{key}={value}", train, text("c.yaml", form + value))
    for document in YAML:
        command = rng.choice(["check c.yaml --stage rl", train])
        yield case("settings", document[:40], command, text("c.yaml", document))


def functions(rng: random.Random) -> Iterator[Case]:
    head = "def f(wavs, texts, sample_rate, **columns):\n "
    score = f"{SCORE} out --set timeout_s=0.5 --reward"
    for source in [head + body for body in BODIES] + MODULES:
        always = source.startswith(head)  # it costs its own score
        yield case("function", source.removeprefix(head)[:50], f"{score} ur:f", text("ur.py", source), always=always)
    for command in [*COMMANDS, *(f"{score} {reward}" for reward in REWARDS)]:
        yield case("options", command.removeprefix(score), command, lambda folder: None)
