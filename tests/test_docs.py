"""What is written in ``examples/`` is held to the code: every logged number is explained, and none that is not there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_recognisers
import tiny_speech
import warm
from safetensors.torch import load_file
from tiny_cli import rows_of as rows

import rlspeech
from rlspeech.config import RL, AvseModel, CodecLMModel, CodecModel, DiffRO, Pretrain, Sampling, TokenRewardModel
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.manifest import read_manifest
from rlspeech.report import build
from rlspeech.report.runs import open_runs
from rlspeech.rewards import rates
from rlspeech.rewards.catalogue import ALIASES, BUILTIN, Column
from rlspeech.stages import finish
from tests.stages import test_matrix as matrix
from tests.stages.test_matrix import given as given
from tests.tasks.test_asr_task import SMALL as RECOGNISER
from tests.test_readme import fenced, not_run

slow, pytestmark = pytest.mark.slow, pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parent.parent
METRICS, EXTENDING = ROOT / "examples" / "metrics.md", ROOT / "examples" / "extending.md"
COLUMNS: dict[str, Column] = {name: column for entry in BUILTIN for name, column in entry.columns.items()}
UP, DOWN = "higher is better", "lower is better"
DIRECTIONS = (UP, DOWN, "no direction", "1 is right", "direction of NAME")
LOGGED, SCORES, RATES = ("Names with a part in capitals", "A step of `rl`", "`pretrain`"), "Scores", "Rates of `eval`"


class Entry(NamedTuple):
    """A paragraph that explains one number or a few: in which section, what of the brackets, what it says."""

    section: str
    names: tuple[str, ...]
    unit: str
    body: str


def entries() -> list[Entry]:
    found, section = [], ""
    for block in METRICS.read_text(encoding="utf-8").split("\n\n"):
        text = " ".join(block.split())
        if heading := re.fullmatch(r"## (.+)", text):
            section = heading[1]
        elif match := re.match(r"((?:\*\*`[^`]+`\*\*(?:, )?)+) \(([^)]+)\)\. (.+)", text):
            found.append(Entry(section, tuple(re.findall(r"`([^`]+)`", match[1])), match[2], match[3]))
        else:
            assert not text.startswith("**"), f"no entry, but looks like one: {text[:80]}"
    return found


def names_of(*sections: str) -> list[str]:
    return [name for e in entries() if e.section in sections for name in e.names]


# -- metrics.md ----------------------------------------------------------------------------------------------------------------


def test_every_entry_is_an_explanation_and_stands_once() -> None:
    found = entries()
    assert len(found) > 100
    for e in found:
        assert e.unit.endswith(DIRECTIONS), f"{e.names}: which way is better? ({e.unit})"
        assert len(e.body.split()) >= 5 and e.body.endswith((".", ")")), f"{e.names} is not explained: {e.body}"
    for section in (*LOGGED, SCORES, RATES):
        names = names_of(section)
        twice = sorted(n for n in set(names) if names.count(n) > 1)
        assert names and not twice, f"{section}: {twice} twice"


@pytest.mark.parametrize(("section", "known"), [(SCORES, COLUMNS), (RATES, {r.name: r for r in rates.RATES})])
def test_scores_and_rates_are_explained_with_direction_and_range(section: str, known: dict[str, Any]) -> None:
    assert sorted(names_of(section)) == sorted(known)
    for e in (e for e in entries() if e.section == section):
        for column in (known[name] for name in e.names):
            ends = (UP if column.higher_is_better else DOWN, *(["1 is right"] if section == SCORES else []))
            assert e.unit.endswith(ends), e.names
            low, high = getattr(column, "bounds", (-np.inf, np.inf))
            if abs(low) < 1e9 and abs(high) < 1e9 and column.higher_is_better:
                assert f"{low:g} to {high:g}" in e.unit, f"{e.names}: {low:g} to {high:g}"


def test_what_the_pages_name_exists() -> None:
    """Settings, commands and names in backticks: their words stand in the code, so that a renamed one is noticed."""
    code = "\n".join(p.read_text(encoding="utf-8") for p in sorted(Path(rlspeech.__file__).parent.rglob("*.py")))
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]+", code)) | set(ALIASES)
    # some are put together from parts
    words |= set(re.findall(r"[a-z][a-z0-9_]+", " ".join([*names_of(*LOGGED), *COLUMNS])))
    shown = {name.removesuffix(".py") for kind, name, _ in page_parts() if kind == "file"}
    shown |= {w for _, _, part in page_parts() for w in re.findall(r"\w+", part)}
    pages = {METRICS: words, EXTENDING: words | shown}
    for page, known in pages.items():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for quoted in re.findall(r"`([^`\n]+)`", text):
            for word in re.findall(r"(?<![A-Za-z_])[a-z][a-z0-9_]+", quoted):
                assert word in known, f"{page.name}, `{quoted}`: nothing in the code is called {word}"
        for path in re.findall(r"`((?:rlspeech|examples)/[\w./]+)`|\]\(([\w.]+)\)", text):
            assert (ROOT / path[0] if path[0] else page.parent / path[1]).exists(), f"{page.name}: {path}"


def runs(given: dict[str, dict[str, Any]], folder: Path) -> Iterator[tuple[str, Path]]:
    """Every task with every algorithm, the options that log more, and every task's pretraining, as small as they can be."""
    from rlspeech.stages import pretrain, rl

    off = {"truncated": "keep", "sampling": Sampling(max_new_tokens=3, temperature=0.7, top_p=0.9)}
    off |= {"dynamic_sampling": 1, "supervised_weight": 1.0}
    head = DiffRO(reward=given["tts"]["diffro"].reward, on="nonnegative", attribute_weights={"sex": 0.1})
    more: list[tuple[str, str, dict[str, Any]]] = [("asr", "grpo", off), ("tts", "diffro", {"diffro": head})]
    more.append(("flowse", "grpo", {"weights": "agreement", "rewards": [{"name": "si_sdr"}, {"name": "lsd"}]}))
    for i, (task, form, changes) in enumerate([*((t, f, {}) for t, f in matrix.SUPPORTED), *more]):
        out = folder / f"rl-{i}"
        settings = matrix.config(given, task, form, out)
        summary = rl.run(RL.model_validate(settings.model_dump() | changes))
        if not changes:
            matrix.check_two_steps(summary, given[task]["model"], form)
        yield f"rl {task} {form}", out
    for i, settings in enumerate(pretraining(given, folder)):
        out = folder / f"pretrain-{i}"
        small = {"steps": 1, "batch": 2, "valid_items": 2, "device": "cpu", "out": str(out)}
        pretrain.run(Pretrain(**{**small, **settings}))
        yield f"pretrain {settings['task']}", out


def pretraining(given: dict[str, dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    kinds = [{**row, "kind": "digits"} for row in tiny_recognisers.ROWS]
    rows = [json.loads(line) for line in Path(given["tts"]["data"]).read_text().splitlines()]
    place = Path(given["tts"]["data"]).parent
    labelled = []
    for i in range(40):
        row = rows[i % 4]
        labels = {"sex": ("female", "male")[i % 2], "speaker_id": f"s{i % 2}", "kind": "digits"}
        labelled.append({**row, **labels, "id": f"v{i}", "audio_filepath": str(place / row["audio_filepath"])})
    (folder / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labelled))
    codec = str(place / "codec")
    ear = {"filters": 16, "kernel": 32, "stride": 16, "bottleneck": 8, "hidden": 8, "blocks": 2, "repeats": 1}
    eye = {"video_crop": 32, "video_size": 16, "video_stem": 2, "video_channels": [2], "video_layers": [1]}
    speaker = {"layers": 1, "heads": 2, "ff": 32, "vocabulary": 290, "prompt_s": 1.0, "max_s": 2.0}
    judge = {"layers": 1, "text_layers": 1, "heads": 2, "vocabulary": 290}
    models: dict[str, dict[str, Any]] = {
        "flowse": {"model": tiny_speech.MODEL.model_copy(update={"predictor": 8})},
        "avse": {"avse": AvseModel(**ear, **eye, visual_blocks=1)},
        "codec": {"codec": CodecModel(dim=16, blocks=1, levels=[4, 5], voice_dim=8)},
        "tts": {"tts": CodecLMModel(codec=codec, dim=16, **speaker)},
    }
    data = {task: given["tts" if task == "codec" else task]["data"] for task in models}
    token_reward = TokenRewardModel(codec=codec, dim=16, **judge)
    return [
        *({"task": task, "data": data[task], "valid": data[task], **model} for task, model in models.items()),
        {"task": "listener", "init": "embedded", "valid_items": 8},
        {"task": "asr", "data": str(tiny_recognisers.write_corpus(folder / "said", kinds)), "asr": RECOGNISER},
        {"task": "token-reward", "data": str(folder / "labelled.jsonl"), "batch": 8, "token_reward": token_reward},
    ]


@pytest.fixture(scope="module")
def logged(given: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every key that a run wrote to ``metrics.jsonl``, and one run that did; its page is put together, but not drawn."""
    keys: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_page", lambda folder: None)
        for label, out in runs(given, tmp_path_factory.mktemp("logged")):
            assert build.build(build.compared(open_runs([str(out)]))).title
            for row in rows(out / "metrics.jsonl"):
                keys = dict.fromkeys(row, label) | keys
    return keys


def explains(name: str, key: str) -> bool:
    """Whether an entry is about a logged key; NAME is a score column, PHASE and HEAD are words, KIND is anything."""
    pattern = re.escape(name)
    for word, stands_for in {"NAME": "(?P<column>.+)", "PHASE": r"\w+", "HEAD": r"\w+", "KIND": ".+"}.items():
        pattern = pattern.replace(word, stands_for)
    match = re.fullmatch(pattern, key)
    return match is not None and ("column" not in match.groupdict() or match["column"].split("[")[0] in COLUMNS)


@slow
def test_every_logged_number_is_explained_and_every_explained_one_is_logged(logged: dict[str, str]) -> None:
    names = names_of(*LOGGED)
    missing = {key: run for key, run in logged.items() if not any(explains(name, key) for name in names)}
    assert not missing, f"examples/metrics.md does not explain {missing}"
    stale = [name for name in names if not any(explains(name, key) for key in logged)]
    elsewhere = ("rollout/",) if sys.platform == "linux" else ("rollout/", "memory_mb/")  # in vLLM's environment
    assert not [n for n in stale if not n.startswith(elsewhere)], f"nothing logs {stale}"


# -- extending.md --------------------------------------------------------------------------------------------------------------

HUB = "hf-audio/MOSS-Transcribe-Diarize-HF"
STEP = ["steps=1", "prompts_per_step=2", "micro_batch=1", "valid_items=2"]
SMALL = ["steps=2", "batch=2", "valid_items=2", "mixing.clip_s=1.0", "model.dim=32", "model.depth=1", "model.heads=2"]
TINY = {  # (program, command) -> settings laid over those of the page
    ("moss.py", "transcribe"): ["sampling.max_new_tokens=8"],
    ("moss.py", "rl"): [*STEP, "group=6", "sampling.max_new_tokens=12", "truncated=keep"],
    ("gru.py", "pretrain"): SMALL,
    ("gru.py", "rl"): [*STEP, "group=2", "clip_s=1.0"],
    ("rlspeech", "rl"): ["valid_items=8"],
    ("rlspeech", "eval"): ["limit=8", "players=1"],
}


def page_parts() -> Iterator[tuple[str, str, str]]:
    """In order: ("file", name, content) and ("commands", why they are not run, lines)."""
    for line, language, content, above in fenced(EXTENDING, "python|bash"):
        if language == "python":
            name = re.fullmatch(r"`([\w.]+)`:", above[-2])
            assert name and not above[-1], f"{EXTENDING.name}:{line}: which file is this?"
            yield "file", name[1], content + "\n"
        else:
            yield "commands", not_run(above[-1]), content + "\n"


def moss(folder: Path) -> None:
    """A MOSS-Transcribe-Diarize of random weights, as transformers writes it."""
    import tiny_audio_lms as tiny
    import torch
    import transformers as tf

    torch.manual_seed(0)
    words = tiny.tokenizer()
    ear = tiny.sizes(1, 32, num_mel_bins=8, max_source_positions=100, model_type="moss_transcribe_diarize_audio")
    sizes = tiny._given(words, "qwen3", ear)
    config = tf.MossTranscribeDiarizeConfig(**sizes, audio_chunk_size=32000, tie_word_embeddings=False)
    net = tf.MossTranscribeDiarizeForConditionalGeneration(config)
    for p in net.parameters():
        if p.ndim > 1 and p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    given = net.generation_config
    given._from_model_config = False
    given.eos_token_id, given.pad_token_id = (words.convert_tokens_to_ids(m) for m in (tiny.END, tiny.PAD))
    net.save_pretrained(folder)
    extractor = tf.MossTranscribeDiarizeFeatureExtractor(feature_size=8, chunk_length=2)
    marks = {"audio_token": tiny.AUDIO, "audio_bos_token": tiny.BOS, "audio_eos_token": tiny.EOS}
    processor = tf.MossTranscribeDiarizeProcessor(extractor, words, chat_template=tiny.TEMPLATE, **marks)
    processor.save_pretrained(folder)


def digits(folder: Path) -> None:
    """Recordings under the names of the Free Spoken Digit Dataset, one of them empty."""
    rng, t = np.random.default_rng(0), np.arange(4800) / 8000
    for digit in range(3):
        for speaker in ("jackson", "theo"):
            for index in (0, 4, 5, 49):
                hum = np.sin(2 * np.pi * (150 + 40 * digit + index) * t) * (1 + np.sin(2 * np.pi * 4 * t))
                wav = (0.2 * hum + 0.01 * rng.standard_normal(len(t))).astype(np.float32)
                save_audio(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", wav, 8000)
    (folder / "recordings" / "9_theo_7.wav").touch()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page was followed from its first line to its last."""
    folder = tmp_path_factory.mktemp("page")
    moss(folder / "moss-tiny")
    digits(folder / "free-spoken-digit-dataset")
    todo = []
    for kind, name, content in page_parts():
        if kind == "file":
            (folder / name).write_text(content, encoding="utf-8")
        elif not name:
            for line in content.replace(HUB, "moss-tiny").splitlines():
                words = shlex.split(line)
                program = words[1:] if words[0] == "python" else words
                todo.append(line + "".join(f" --set {s}" for s in TINY.get((program[0], program[1]), ())))
    call: dict[str, Any] = {"cwd": folder, "env": warm.environment(folder) | {"NO_COLOR": "1"}, "timeout": 850}
    done = subprocess.run(["bash", "-exc", "\n".join(todo)], capture_output=True, text=True, **call)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return folder


def test_the_page_shows_whole_files() -> None:
    parts = list(page_parts())
    names = [name for kind, name, _ in parts if kind == "file"]
    assert len(names) == len(set(names)) >= 6
    for kind, name, content in parts:
        if kind == "file":
            compile(content, name, "exec")
    commands = "".join(content for kind, reason, content in parts if kind == "commands" and not reason)
    assert all(name in commands or f"{name.removesuffix('.py')}:" in commands for name in names)  # none is unused


@slow
def test_a_function_and_a_family_are_rewards(work: Path) -> None:
    heard = {u.id: load_audio(u.audio_filepath, 16000) for u in read_manifest(work / "data" / "test.jsonl")}
    level = {key: 10 * np.log10(np.mean(wav.astype(float) ** 2)) for key, wav in heard.items()}
    found = rows(work / "scores" / "scores.jsonl")
    assert len(found) == len(heard) and all(isinstance(r["si_sdr"], float) for r in found)
    wanted = {k: -abs(v + 25) for k, v in level.items()}
    assert {r["key"]: r["my_rewards:loudness"] for r in found} == pytest.approx(wanted, abs=1e-3)
    loudness = runpy.run_path(str(work / "my_rewards.py"))["loudness"]
    answers = loudness([np.zeros(9, np.float32), np.full(9, 10 ** (-25 / 20), np.float32)], [None] * 2, 16000)
    assert answers == [None, pytest.approx(0, abs=1e-4)]
    more = rows(work / "levels" / "scores.jsonl")
    asked = "level_off[target_dbfs=-20]"
    assert {r["key"]: r[asked] for r in more} == pytest.approx({k: abs(v + 20) for k, v in level.items()}, abs=1e-3)
    assert {r["clipped"] for r in more} == {0.0}
    meta = json.loads((work / "levels" / "scores.meta.json").read_text())["systems"]["system"]["metrics"]
    assert meta[asked]["higher_is_better"] is False and meta[asked]["version"] == "level-1"


@slow
def test_a_corpus_is_a_script_or_a_layout_with_a_command(work: Path) -> None:
    train, test = (read_manifest(work / "data" / "fsdd" / f"{split}.jsonl") for split in ("train", "test"))
    assert len(train) == len(test) == 12 and {u.id.split("_")[2] for u in test} == {"0", "4"}
    assert {(u.text, u.speaker_id, u.sample_rate) for u in train if u.id.startswith("2_t")} == {("two", "theo", 8000)}
    assert all(u.duration == pytest.approx(0.6) and u.extra["kind"] == "digits" for u in train)
    assert [r["id"] for r in rows(work / "data" / "fsdd" / "dropped.jsonl")] == ["9_theo_7"]
    for split, script in (("train", train), ("test", test)):
        command = read_manifest(work / "data" / "digits" / f"{split}.jsonl")
        assert [(u.id, u.text, u.speaker_id) for u in command] == [(u.id, u.text, u.speaker_id) for u in script]


@slow
def test_a_family_is_a_recogniser(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rlspeech.models.audio_lm import families
    from rlspeech.models.audio_lm.model import load_audio_lm

    assert len(list((work / "said").glob("*.txt"))) == 24
    first = next(r for r in rows(work / "runs" / "moss" / "metrics.jsonl") if "lr" in r)
    assert first["ratio_max_gap"] < 1e-3 and first["unscorable"] == 0
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    family = runpy.run_path(str(work / "moss.py"))["Moss"]
    assert family.transcript(family, "[0.00][S01]Hello there.[1.20][1:02.5][S02]Yes.[2]") == "Hello there. Yes."
    model, _ = load_audio_lm(str(work / "moss-tiny"))
    lengths = (16000, 8000, 40000)
    clips = [0.1 * np.random.default_rng(i).standard_normal(n).astype(np.float32) for i, n in enumerate(lengths)]
    together, alone = model.encode(clips), [model.encode([c]) for c in clips]
    assert all(torch.allclose(a, b.audio[0], atol=1e-5) for a, b in zip(together.audio, alone, strict=True))
    ids = torch.tensor([[5, 9, 11]])
    ours = model.forward_logits(together, [2], ids)[0, 0]
    asked = model.processor.apply_transcription_request([clips[2]], return_tensors="pt", sampling_rate=16000)
    with torch.no_grad():
        theirs = model.net(**{k: v for k, v in asked.items() if k != "labels"}).logits[0, -1]
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-4, rtol=1e-4)


@slow
def test_a_network_of_ones_own_is_trained_tuned_and_used(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rlspeech.config import FlowModel
    from rlspeech.models.hub import KINDS, resolve
    from rlspeech.tasks import TASKS

    for run in ("gru", "gru-rl"):
        folder = resolve(str(work / "runs" / run))
        assert json.loads((folder / "config.json").read_text())["model_type"] == "gru-enhancer"
        assert any("gru.weight_hh" in name for name in load_file(folder / "model.safetensors"))
    assert len(list((work / "enhanced").rglob("*.flac"))) == 24
    monkeypatch.setitem(KINDS, "flowse", KINDS["flowse"])  # the launcher changes them
    monkeypatch.setitem(TASKS, "flowse", TASKS["flowse"])
    torch.manual_seed(0)
    GruEnhancer = runpy.run_path(str(work / "gru.py"))["GruEnhancer"]
    net = GruEnhancer(FlowModel(dim=32, depth=2, heads=2, n_fft=64, hop=32)).eval()
    torch.nn.init.normal_(net.out.weight, std=0.1)
    x, y, mask = torch.randn(2, 9, 66), torch.randn(2, 9, 66), torch.arange(9)[None] < torch.tensor([[9], [5]])
    whole, t = net(x, y, torch.full((2,), 0.3), mask), torch.full((1,), 0.3)
    torch.testing.assert_close(whole[1:, :5], net(x[1:, :5], y[1:, :5], t), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole, net(x + 1, y, torch.full((2,), 0.3), mask), atol=1e-3)


@slow
def test_a_task_of_one_number_learns_what_its_reward_asks_for(work: Path) -> None:
    logged = rows(work / "runs" / "subtract" / "metrics.jsonl")
    steps, checks = [r for r in logged if "lr" in r], [r for r in logged if "delta/reward" in r]
    assert steps[0]["ratio_max_gap"] < 1e-3 and steps[0]["kl"] == 0 < steps[-1]["kl"]
    assert checks[-1]["delta/si_sdr"] > 0.4 and checks[-1]["delta/reward"] > 0
    assert "delta/my_rewards:loudness" in checks[-1]
    defaults = runpy.run_path(str(work / "subtract.py"))["Subtract"].rl_defaults
    rollouts = defaults["steps"] * defaults["prompts_per_step"] * defaults["group"]
    assert f"after {rollouts} rollouts" in EXTENDING.read_text() and len(steps) == defaults["steps"]
    strength = load_file(work / "runs" / "subtract" / "checkpoints" / "step_000012" / "model.safetensors")["strength"]
    assert float(strength) == pytest.approx(2, abs=0.5)
    found = json.loads((work / "runs" / "subtract-eval" / "metrics.json").read_text())
    assert list(found["systems"]) == ["input", "tuned"] and found["deltas"]["tuned"]["si_sdr"]["mean"] > 0.3
