from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny_cli import RUN, called, refused

import rlspeech
from rlspeech import __version__, log
from rlspeech.cli import app, common
from rlspeech.config import RL
from rlspeech.types import UserError

ROOT = Path(rlspeech.__file__).parent
PRESENT = common.present


class Stages:
    """Stands in for the stages: keeps what they were called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.answer: Any = lambda: {"done": True}
        self.real = common.load

    def load(self, path: str) -> Any:
        if not path.endswith(":run"):
            return self.real(path)

        def stage(config: Any = None, *args: Any, **given: Any) -> Any:
            self.calls.append((path, config, given))
            return self.answer()

        return stage

    @property
    def config(self) -> Any:
        assert len(self.calls) == 1
        return self.calls[0][1]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    fake = Stages()
    monkeypatch.setattr(common, "present", lambda config: None)  # none of the paths below is there
    monkeypatch.setattr(common, "load", fake.load)
    return fake


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_and_module() -> None:
    assert RUN.invoke(app, ["--version"]).stdout.strip() == f"rlspeech {__version__}"
    done = subprocess.run([sys.executable, "-m", "rlspeech", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"rlspeech {__version__}"


def test_rl_with_nothing_else_is_the_default_run(stages: Stages) -> None:
    assert RUN.invoke(app, ["rl", "--algo", "grpo", "--task", "flowse"]).exit_code == 0
    assert stages.calls[0][0] == "stages.rl:run" and stages.config == RL() and stages.config.model == "embedded"


def test_preset_config_flag_and_set_are_layered(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("group: 6\nsteps: 8\nlr: 0.5\n")
    layers = ["--preset", "flowse-grpo", "--config", str(tmp_path / "a.yaml"), "--steps", "9", "--set", "lr=0.25"]
    called("rl", *layers)
    c = stages.config
    assert (c.prompts_per_step, c.group, c.steps, c.lr) == (72, 6, 9, 0.25)


@pytest.mark.parametrize("models", [["a=x", "a=y"], ["=x"], ["a="]])
def test_eval_refuses_unclear_models(stages: Stages, models: list[str]) -> None:
    assert "--model" in refused("eval", *[w for m in models for w in ("--model", m)]) and not stages.calls


ARRIVING: list[tuple[str, dict[str, Any]]] = [  # command line, setting -> value
    (
        "rl --model runs/base --data d.jsonl --valid v.jsonl --reward estoi=1 --reward pesq_wb=0.5 --guard stoi=0.02 --guard lsd "
        "--steps 3 --group 4 --prompts-per-step 2 --lr 1e-3 --max-minutes 5 --seed 7 --device cpu --out runs/x "
        "--offload phase --set explore.noise=0.1 --set rewards[1].scale=none",
        {"model": "runs/base", "data": "d.jsonl", "valid": "v.jsonl", "steps": 3, "group": 4, "prompts_per_step": 2}
        | {"lr": 1e-3, "max_minutes": 5.0, "seed": 7, "device": "cpu", "out": "runs/x", "explore.noise": 0.1}
        | {"rewards.0.name": "estoi", "rewards.0.weight": 1.0, "rewards.0.scale": "batch", "rewards.1.name": "pesq_wb"}
        | {"rewards.1.weight": 0.5, "rewards.1.scale": "none", "guards.0.name": "stoi", "guards.0.max_drop": 0.02}
        | {"guards.1.name": "lsd", "guards.1.max_drop": None, "offload": "phase"},
    ),
    ("rl --probe --set probe_batches=4", {"probe_batches": 4}),
    (
        "pretrain --data d --valid v --init embedded --steps 3 --batch 2 --lr 0.1 --max-minutes 1 --seed 2 --device cpu "
        "--out o --set model.dim=32",
        {"data": "d", "valid": "v", "init": "embedded", "steps": 3, "batch": 2, "lr": 0.1, "max_minutes": 1.0}
        | {"seed": 2, "device": "cpu", "out": "o", "model.dim": 32},
    ),
    (
        "reward wavs --reward dnsmos --reward pesq --target t --text x --system s --recogniser pocketsphinx --workers 0 --out o",
        {"rewards": ["dnsmos", "pesq"], "target": "t", "text": "x", "system": "s", "recogniser": "pocketsphinx"}
        | {"workers": 0, "out": "o", "path": "wavs"},
    ),
    ("reward a.wav b.wav --reward dnsmos", {"path": ["a.wav", "b.wav"]}),
    (
        "eval --data d --model base=runs/a --model runs/rl --baseline base --metric estoi --metric stoi --nfe 3 --limit 2 --workers 1",
        {"models": {"base": "runs/a", "rl": "runs/rl"}, "metrics": ["estoi", "stoi"], "data": "d", "baseline": "base"}
        | {"nfe": 3, "limit": 2, "workers": 1, "out": None},
    ),
    (
        "eval --task asr --model base=x --normaliser none-1 --by set --set beams=2",
        {"task": "asr", "normaliser": "none-1", "by": "set", "beams": 2},
    ),
    (
        "eval --task tts --model base=x --recogniser pocketsphinx --by kind",
        {"task": "tts", "recogniser": "pocketsphinx", "by": "kind"},
    ),
    (
        "enhance a.wav b --model m --nfe 2 --guidance 0.5 --overwrite --out o",
        {"inputs": ["a.wav", "b"], "model": "m", "nfe": 2, "guidance": 0.5, "overwrite": True, "out": "o"},
    ),
    (
        "transcribe a.wav b --model m --out - --language de --prompt p --set sampling.top_k=3",
        {"inputs": ["a.wav", "b"], "out": "-", "sampling.language": "de", "sampling.prompt": "p", "sampling.top_k": 3},
    ),
    (
        "speak 'some words' --model m --prompt p.wav --prompt-text t --out x.wav --temperature 0.8",
        {"inputs": ["some words"], "prompt": "p.wav", "prompt_text": "t", "sampling.temperature": 0.8, "out": "x.wav"},
    ),
    (
        "prepare dns /d --snr -5 20 --level -30 -10 --reverb 0.5",
        {"root": "/d", "mixing.snr_db": (-5, 20), "mixing.level_dbfs": (-30, -10), "mixing.reverb": 0.5},
    ),
    ("prepare voicebank /v --speakers 56 --workers 3", {"root": "/v", "speakers": "56", "workers": 3}),
    ("prepare pairs --noisy n --clean c --seed 3", {"noisy": "n", "clean": ["c"], "seed": 3}),
    (
        "prepare mix --clean a --clean b --noise c --rir d --render 4 --render-s 2",
        {"clean": ["a", "b"], "noise": ["c"], "rir": ["d"], "render": 4, "render_s": 2.0},
    ),
    ("prepare folder f --kind noisy --set limits.min_s=1", {"root": "f", "kind": "noisy", "limits.min_s": 1.0}),
    ("prepare demo --out o", {"out": "o"}),
    ("report runs/a b=runs/b --players 2 --out x", {"0": "runs/a", "1": "b=runs/b", "players": 2, "out": "x"}),
    (
        "prepare nonspeech --condition silence --condition music --count 2 --max-s 1",
        {"conditions": ["silence", "music"], "count": 2, "max_s": 1.0},
    ),
    (
        "prepare rl-asr --data d --recogniser a --recogniser b --rows 6 --band 0.1 0.9 --seed 3 --set long_share=0",
        {"data": "d", "recognisers": ["a", "b"], "rows": 6, "band": (0.1, 0.9), "seed": 3, "long_share": 0},
    ),
]


@pytest.mark.parametrize(("line", "expected"), ARRIVING, ids=[line.split(" --")[0] for line, _ in ARRIVING])
def test_options_arrive(stages: Stages, line: str, expected: dict[str, Any]) -> None:
    result = RUN.invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.stderr
    ((path, config, given),) = stages.calls
    word = line.split()[0]
    assert path == f"stages.{'probe' if '--probe' in line else {'eval': 'evaluate'}.get(word, word)}:run"
    for key, value in expected.items():
        got: Any = given[key] if key in given else config
        for part in () if key in given else key.split("."):
            got = got[int(part)] if part.isdigit() else getattr(got, part)
        assert got == value, key


def talk() -> dict[str, Any]:
    print("a library that prints")
    log.say("a remark")
    log.table("numbers", ["a"], [[1]])
    warnings.warn("deprecated", stacklevel=1)
    logging.getLogger("a.library").warning("careful")
    return {"mean": float("nan"), "path": Path("x")}


def test_json_is_alone_on_stdout_and_quiet_silences_remarks_and_libraries(stages: Stages) -> None:
    stages.answer = talk
    switches: tuple[tuple[str, ...], ...] = ((), ("--json",), ("--quiet",), ("--quiet", "--json"))
    with pytest.warns(UserWarning, match="deprecated") as caught:
        plain, machine, calm, both = (RUN.invoke(app, ["rl", *given]) for given in switches)
    assert len(caught) == 2, "those of the loud ones"
    assert "numbers" in plain.stdout and "{" not in plain.stdout and "a remark" in plain.stderr
    assert json.loads(machine.stdout) == json.loads(both.stdout) == {"mean": None, "path": "x"}
    assert "a library that prints" in machine.stderr and "a remark" in machine.stderr
    assert (calm.stdout, calm.stderr) == ("a library that prints\n", "") and both.stderr == calm.stdout
    assert logging.root.manager.disable == 0, "and only while the command runs"
    stages.answer = fail(UserError("no data"))
    assert RUN.invoke(app, ["rl", "--quiet"]).stderr == "error: no data\n"


def test_real_commands_print_one_object_with_json_and_nothing_with_quiet(here: Path) -> None:
    quiet = ["prepare demo --out data", "check data/test.jsonl", "presets copy flowse-tiny"]
    for line in [*quiet, "presets ls", "presets keys rl", "presets show flowse-tiny"]:
        words = line.split()
        told = RUN.invoke(app, [*words, "--json"])
        assert told.exit_code == 0 and isinstance(json.loads(told.stdout), dict) and told.stdout.count("\n") == 1, words
        Path("flowse-tiny.yaml").unlink(missing_ok=True)
        calm = RUN.invoke(app, [*words, "--quiet"])
        assert calm.exit_code == 0 and calm.stderr == "" and bool(calm.stdout) == (line not in quiet), words
    Path("bad.jsonl").write_text('{"audio_filepath": "gone.wav", "duration": 1.0}\n')
    found = RUN.invoke(app, ["check", "bad.jsonl", "--quiet"])
    assert found.exit_code == 2 and found.stdout == "" and "bad.jsonl:1" in found.stderr


def fail(error: BaseException) -> Any:
    def raise_it() -> None:
        raise error

    return raise_it


ERRORS: list[tuple[BaseException, int, str]] = [
    (UserError("no data", "none", "this"), 2, r"error: no data\n  why: none\n  try: this\n"),
    (KeyboardInterrupt(), 130, "kept"),
    (ZeroDivisionError("by zero\nsecond line"), 1, r"ZeroDivisionError: by zero\n.*\n.*--debug"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 1, "CUDA out of memory\n.*micro_batch"),
]


@pytest.mark.parametrize(("error", "code", "shown"), ERRORS)
def test_errors_are_short_and_have_a_code(stages: Stages, error: BaseException, code: int, shown: str) -> None:
    stages.answer = fail(error)
    result = RUN.invoke(app, ["rl"])
    assert result.exit_code == code and result.stdout == "" and re.search(shown, result.stderr)
    assert "Traceback" not in result.stderr and "second line" not in result.stderr
    assert ("Traceback" in RUN.invoke(app, ["rl", "--debug"]).stderr) == (code != 130)
    facts = json.loads(RUN.invoke(app, ["rl", "--json"]).stdout)
    assert list(facts) == ["error", "why", "try", "exit"] and facts.pop("exit") == code
    assert all(text in result.stderr for text in facts.values())


def test_a_run_that_a_guard_stopped_is_done_and_says_why(stages: Stages) -> None:
    stages.answer = lambda: {"run": "runs/x", "stopped": "guard estoi fell by 0.05"}
    assert "guard" in called("rl")["stopped"]


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line with ``rlspeech`` in it as a shell does, with ``pipefail``."""
    python = f"{shlex.quote(sys.executable)} -m rlspeech"
    call = ["bash", "-o", "pipefail", "-c", re.sub(r"\brlspeech\b", lambda _: python, line)]
    return subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("line", ["rlspeech presets show flowse-grpo", "(sleep 0.1; rlspeech --help)"])
def test_a_pipe_without_a_reader_ends_quietly_with_141(line: str) -> None:
    done = shell(f"{line} | true")
    assert done.returncode == 141 and done.stderr == ""


def test_head_gets_its_lines() -> None:
    done = shell("rlspeech presets ls | head -n 2; echo ${PIPESTATUS[1]}")
    assert done.stdout.splitlines()[0] == "Presets" and done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_a_command_with_the_codes_that_shells_know(number: int, code: int) -> None:
    start = """
import sys, rlspeech.cli
from rlspeech.cli import common
def listed(inputs):
    print("up", file=sys.stderr, flush=True)
    sys.stdin.read()
common.listed = listed
sys.argv = ["rlspeech", "transcribe", "-"]
rlspeech.cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "up\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in said and "kept" in said


@pytest.mark.parametrize("given", [b"a.wav\nsub dir/b.wav\n", b"a.wav\0sub dir/b.wav\0"])
def test_paths_come_from_stdin_where_a_dash_stands(stages: Stages, given: bytes) -> None:
    for words in (["transcribe", "first.wav", "-"], ["enhance", "first.wav", "-", "--out", "o"]):
        stages.calls.clear()
        assert RUN.invoke(app, words, input=given).exit_code == 0
        assert stages.config.inputs == ["first.wav", "a.wav", "sub dir/b.wav"]
    stages.calls.clear()
    assert RUN.invoke(app, ["reward", "-"], input=given).exit_code == 0
    assert stages.calls[0][2]["path"] == ["a.wav", "sub dir/b.wav"]


def test_an_empty_list_on_stdin_is_refused(stages: Stages) -> None:
    for command in ("transcribe", "enhance", "reward"):
        assert "no paths on stdin" in refused(command, "-") and not stages.calls


def test_a_config_can_come_from_stdin(stages: Stages) -> None:
    assert RUN.invoke(app, ["rl", "--config", "-"], input="group: 6\n").exit_code == 0 and stages.config.group == 6
    result = RUN.invoke(app, ["rl", "--config", "-"], input="group: 6\ngruop: 7\n")
    assert result.exit_code == 2 and "line 2" in result.stderr


SETTINGS = ["rl --set stesp=3", "rl --set steps=x", "rl --preset none", "rl --config /nowhere.yaml"]
WORDS = ["rl --nonsense", "nonsense", "rl --steps many", "reward", "prepare nonsense"]


@pytest.mark.parametrize("line", [*SETTINGS, *WORDS])
def test_a_wrong_line_exits_2_before_any_stage_is_imported(stages: Stages, line: str) -> None:
    result = RUN.invoke(app, line.split())
    assert result.exit_code == 2 and result.stderr and "Traceback" not in result.stderr
    told = json.loads(RUN.invoke(app, [*line.split(), "--json"]).stdout)
    assert told["exit"] == 2 and told["error"].split("(")[0].strip() in result.stderr
    assert line in SETTINGS or told["try"].endswith("--help")
    assert not stages.calls


def test_data_that_is_not_there_is_refused_at_once(stages: Stages, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "present", PRESENT)
    Path("valid.jsonl").write_text("")
    for line, hint in (("--valid vaild.jsonl", "--valid valid.jsonl"), ("--data /nowhere/x", "prepare")):
        shown = refused("rl", *line.split())
        assert "does not exist" in shown and hint in shown and not stages.calls
    assert RUN.invoke(app, ["rl", "--valid", "valid.jsonl"]).exit_code == 0


def test_settings_are_refused_without_importing_torch() -> None:
    code = (
        "import sys\nfrom rlspeech.cli import app\ntry:\n    app(['rl', '--set', 'stesp=3'])\n"
        "except SystemExit as e:\n    assert e.code == 2\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_check_exits_2_where_there_are_problems(stages: Stages) -> None:
    stages.answer = lambda: {"problems": [{"path": "x", "line": 3, "message": "m"}]}
    result = RUN.invoke(app, ["check", "x", "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["problems"][0]["line"] == 3
    stages.answer = lambda: {"problems": []}
    assert RUN.invoke(app, ["check", "x"]).exit_code == 0


def test_presets_can_be_listed_read_and_copied(here: Path) -> None:
    listed = called("presets", "ls")["presets"]
    assert {p["name"]: p["stage"] for p in listed}["flowse-grpo"] == "rl"
    some = RUN.invoke(app, ["presets", "ls", "avse-lr", "--quiet"])
    assert some.stdout.split() == sorted(p["name"] for p in listed if "avse-lr" in p["name"]) and some.stderr == ""
    assert refused("presets", "ls", "nothing-like-it")
    shown = RUN.invoke(app, ["presets", "show", "flowse-grpo"]).stdout
    assert "noise: 0.4" in shown and shown == (ROOT / "presets" / "flowse-grpo.yaml").read_text()
    facts = called("presets", "show", "flowse-grpo")
    assert facts["text"] == shown and facts["stage"] == "rl" and facts["settings"]["explore"]["noise"] == 0.4
    assert RUN.invoke(app, ["presets", "copy", "flowse-grpo"]).exit_code == 0
    assert (here / "flowse-grpo.yaml").read_text() == shown
    (here / "flowse-grpo.yaml").write_text("mine: true\n")
    for words in (["flowse-grpo"], ["flowse-grpo", "flowse-grpo.yaml"], ["flowse-grpo", "."]):
        assert "already exists" in refused("presets", "copy", *words)
    assert (here / "flowse-grpo.yaml").read_text() == "mine: true\n"
    assert called("presets", "copy", "flowse-grpo", "sub/x.yaml")["path"] == "sub/x.yaml"
    assert refused("presets", "show", "flowse")


def test_a_preset_of_another_stage_names_the_command(stages: Stages) -> None:
    assert "try: rlspeech pretrain --preset flowse-tiny" in refused("rl", "--preset", "flowse-tiny")


def test_presets_keys_lists_what_can_be_set() -> None:
    found = {k["key"]: k for k in called("presets", "keys", "rl")["keys"]}
    assert found["explore.noise"]["default"] == 0.3 and found["explore.noise"]["help"]
    assert found["lora.rank"]["type"] == "int"
    assert found["steps"]["range"] == ">= 1" and found["ppo.discount"]["range"] == "0 to 1"
    assert "explore.noise" in RUN.invoke(app, ["presets", "keys", "rl"]).stdout
    assert "explore.noise" in RUN.invoke(app, ["presets", "keys", "rl", "--quiet"]).stdout.split()
    assert "rlspeech presets keys transcribe" in refused("presets", "keys", "transcibe")
    assert refused("presets", "keys", "nothing")
