"""Help texts and shell completion: complete, with examples that parse, derived from the settings, and quick."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from tiny_cli import RUN

from rlspeech.cli import PANELS, app
from rlspeech.cli.common import Group, load
from rlspeech.plugins import SCHEMAS
from rlspeech.schema import model
from rlspeech.settings import preset_names

ROOT: Any = typer.main.get_command(app)


def walk(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with its words."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


EVERY = dict(walk())
LEAVES = {path: c for path, c in EVERY.items() if not hasattr(c, "commands")}


def examples(text: str) -> list[list[str]]:
    """The commands of an epilog's example, in words."""
    line = re.search(r"Example: (.+)", text)
    assert line is not None
    return [shlex.split(part) for part in re.split(r"&&|[|;]", line[1])]


@pytest.mark.parametrize("path", EVERY, ids=lambda p: " ".join(p) or "rlspeech")
def test_every_command_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    found = examples(EVERY[path].epilog or "")
    assert found[0][: len(path) + 1] == ["rlspeech", *path], "it shows the command itself"
    for words in found:
        assert words[0] == "rlspeech"
        command, rest = ROOT, words[1:]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context("x", list(rest))  # raises on an unknown option or a missing argument
        assert set(w for w in rest if re.fullmatch(r"--[a-z].*", w)) <= {o for p in command.params for o in p.opts}


def declared(path: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What tells one parameter from another, wording aside; what stands for nothing is left out."""
    command = EVERY[path]
    context = command.context_class(command, info_name=" ".join(("rlspeech", *path)))
    usual = {"required": False, "multiple": False, "nargs": 1, "is_flag": False, "hidden": False}
    usual |= dict.fromkeys(("default", "metavar"))
    found = {}
    for p in command.params:
        name = ", ".join(p.opts) if p.param_type_name == "option" else p.metavar or p.name
        facts = {key: getattr(p, key, value) for key, value in usual.items()}
        facts["panel"], facts["is_flag"] = getattr(p, "rich_help_panel", None), bool(facts["is_flag"])
        facts["completes"] = bool(list(p.shell_complete(context, ""))) or None
        found[name] = {key: value for key, value in facts.items() if value != usual.get(key)}
    return found


@pytest.mark.parametrize("path", EVERY, ids=lambda p: " ".join(p) or "rlspeech")
def test_every_option_is_there_as_it_was(path: tuple[str, ...]) -> None:
    before = json.loads((Path(__file__).parent / "help_options.json").read_text())
    assert set(before) == {" ".join(("rlspeech", *p)) for p in EVERY}
    assert declared(path) == before[" ".join(("rlspeech", *path))]


def helped(path: tuple[str, ...]) -> str:
    """The help of a command as it is shown; what its options say of themselves is complete behind it."""
    context = EVERY[path].context_class(EVERY[path], info_name=" ".join(("rlspeech", *path)))
    formatter = context.make_formatter()
    EVERY[path].format_help(context, formatter)
    return formatter.getvalue()


@pytest.mark.parametrize("path", EVERY, ids=lambda p: " ".join(p) or "rlspeech")
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    shown = helped(path)
    assert "Usage" in shown and "Example" in shown and "{" not in shown.split("Options:")[-1].replace("'{", "")
    assert all(name in shown for name in getattr(EVERY[path], "commands", {}))
    for parameter in EVERY[path].params:
        assert parameter.name == "help" or getattr(parameter, "help", ""), f"{parameter.name} says nothing of itself"


@pytest.mark.parametrize("columns", [60, 160])
def test_the_help_lists_the_commands_by_kind_in_whole_sentences(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = RUN.invoke(app, ["--help"]).stdout.split("Options:")[1]
    names = [name for panel, names in PANELS.items() for name in (f"{panel}:", *names)]
    places = [re.search(rf"^ *{name}(  |$)", shown, re.M).start() for name in names]  # type: ignore[union-attr]
    assert places == sorted(places) and {n for n in names if n[-1] != ":"} == set(ROOT.commands) and "..." not in shown
    words = " ".join(shown.split())
    for command in ROOT.commands.values():
        assert command.help and " ".join(command.help.split("\n\n")[0].split()) in words
    assert all(f"{code} " in words.split("Exit codes")[1] for code in (0, 2, 130, 141, 1))


def schema_of(path: tuple[str, ...]) -> type[BaseModel] | None:
    name = next((n for n in (" ".join(path), path[0]) if n in SCHEMAS), None)
    schema = None if name is None else load(SCHEMAS[name])
    return getattr(schema, "layouts", {}).get(path[-1], schema)


def literals(annotation: Any) -> set[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return set(map(str, typing.get_args(annotation)))
    return {v for part in typing.get_args(annotation) if model(part) is None for v in literals(part)}


@pytest.mark.parametrize("path", [p for p in LEAVES if schema_of(p) is not None], ids=" ".join)
def test_options_with_choices_name_all_of_them(path: tuple[str, ...]) -> None:
    schema = schema_of(path)
    assert schema is not None and helped(path)
    options = [p for p in LEAVES[path].params if p.param_type_name == "option" and p.name in schema.model_fields]
    assert options
    for option in options:
        named = set(re.findall(r"[\w+-]+", option.help))
        lacking = literals(schema.model_fields[option.name].annotation) - named
        assert not lacking, f"{option.opts[0]} of {' '.join(path)} does not name {lacking}"


def offered(line: str) -> list[str]:
    """What is offered at the end of a line."""
    assert isinstance(ROOT, Group)
    *words, last = line.split(" ")
    context, rest = ROOT.make_context("rlspeech", list(words), resilient_parsing=True), list(words)
    command: Any = ROOT
    while rest and rest[0] in getattr(command, "commands", {}):
        name = rest.pop(0)
        command = command.commands[name]
        context = command.make_context(name, list(rest), parent=context, resilient_parsing=True)
    if rest and rest[-1].startswith("-"):
        option = next(p for p in command.params if rest[-1] in p.opts)
        return [item.value for item in option.shell_complete(context, last)]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments and not last.startswith("-"):
        return [item.value for item in arguments[0].shell_complete(context, last)]
    return [item.value for item in command.shell_complete(context, last)]


def test_names_are_completed() -> None:
    assert set(offered("pre")) == {"prepare", "pretrain", "presets"}
    assert offered("rl --task ") == ["flowse", "avse", "asr", "tts"] and offered("rl --task fl") == ["flowse"]
    assert set(offered("pretrain --task ")) > {"codec", "token-reward", "tts"}
    assert offered("rl --algo g") == ["grpo", "grpo+diffro"]
    assert offered("eval --video s") == ["shuffled"] and offered("enhance --task a") == ["avse"]
    assert "estoi" in offered("rl --reward es") and "dnsmos_ovrl" in offered("eval --metric dns")
    assert "pesq_wb" in offered("reward --reward pe") and "lsd" in offered("rl --guard l")
    assert offered("rl --device cu") == ["cuda", "cuda:0"]
    assert offered("presets keys re") == ["reward"]


def test_presets_are_completed_for_their_stage() -> None:
    rl, pretrain = offered("rl --preset "), offered("pretrain --preset ")
    assert "flowse-grpo" in rl and "flowse-tiny" in pretrain and not set(rl) & set(pretrain)
    assert set(offered("presets show ")) == set(preset_names()) >= {*rl, *pretrain}


def test_settings_and_their_values_are_completed() -> None:
    assert "explore.noise=" in offered("rl --set explore.") and offered("rl --set stee") == []
    assert offered("rl --set lr_schedule=") == ["lr_schedule=linear", "lr_schedule=constant"]
    assert "model.dim=" in offered("pretrain --set model.d")
    assert "mixing.snr_db=" in offered("prepare mix --set mixing.") and offered("prepare join --set sam") == ["sample="]


def ask_bash(line: str) -> subprocess.CompletedProcess[str]:
    """What bash gets to hear on Tab."""
    words = line.split(" ")
    env = {**os.environ, "_RLSPEECH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = (
        "import sys, time\nstart = time.process_time()\nsys.argv = ['rlspeech']\nfrom rlspeech.cli import main\n"
        "try:\n    main()\nfinally:\n    print(time.process_time() - start, 'torch' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("words", "expected"), [("--reward esto", "estoi"), ("--set explore.ki", "explore.kind=")])
def test_completion_in_bash_is_quick_and_knows_no_torch(words: str, expected: str) -> None:
    for _ in range(3):  # the first one may have to write byte code
        done = ask_bash(f"rlspeech rl {words}")
        assert done.stdout.split() == [expected], done.stderr
        seconds, torch = done.stderr.split()[-2:]
        assert torch == "False"
        if float(seconds) < 0.5:
            return
    pytest.fail(f"{seconds} s")


def test_completion_can_be_shown_and_installed(tmp_path: Any) -> None:
    options = {o for p in ROOT.params for o in p.opts}
    assert {"--install-completion", "--show-completion"} <= options
    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    start = time.monotonic()
    run = [sys.executable, "-c", "import sys; sys.argv[0] = 'rlspeech'; from rlspeech.cli import main; main()"]
    how: dict[str, Any] = {"env": env, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run([*run, "--show-completion", "bash"], **how).stdout
    assert "complete" in shown and "_RLSPEECH_COMPLETE" in shown and time.monotonic() - start < 30
    subprocess.run([*run, "--install-completion", "bash"], **how)
    assert "rlspeech" in (tmp_path / ".bashrc").read_text() and list(tmp_path.rglob("rlspeech.sh"))
