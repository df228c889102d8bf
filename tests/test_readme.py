"""Every ``bash`` block of README.md is run, at tiny size: a shim of ``rlspeech`` on PATH lays small settings over the given ones.

A block that cannot be run (it needs a corpus, a GPU) says so in the line before it: ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["steps=2", "batch=2", "valid_items=2"]
UPDATES = ["steps=1", "prompts_per_step=2", "group=2", "micro_batch=1", "updates_per_collection=1", "valid_items=1"]
TINY = {
    "pretrain": [*STEPS, "mixing.clip_s=0.5", "max_minutes=2"],
    "rl": [*UPDATES, "clip_s=0.5", "probe_batches=4", "workers=1"],
    "eval": ["limit=2", "players=1", "workers=1"],
    "enhance": ["nfe=1"],
    "sample": ["draws=4", "limit=4"],
}
# rows of recognisers and synthesisers are never cut, and they take no Euler steps
ASR = {"sample": TINY["sample"], "pretrain": STEPS}
ASR |= {"rl": [*UPDATES, "probe_batches=4"], "eval": ["limit=4", "players=1"]}
JOBS = sorted((ROOT / "examples" / "cluster").glob("*.sbatch"))
INSTALLS = r"(python -m )?pip install|uv (pip|sync|venv)|python3? -m venv"
# what is learnt from lies in files: no size of a rollout
DPO = {"rl": [s for s in UPDATES if "group" not in s] + ["dpo.margin=0"]}
SETUP = re.compile(rf"git clone|cd rlspeech|{INSTALLS}|source |\. \.venv")


def fenced(page: Path, languages: str) -> Iterator[tuple[int, str, str, list[str]]]:
    """Line number, language, content and the lines above of every block in some languages."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(map(str.strip, lines)):
        if found := re.fullmatch(rf"```({languages})", line):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```")
            yield i + 1, found[1], "\n".join(lines[i + 1 : end]), lines[:i]


def not_run(line: str) -> str:
    """Why the block below a line is not run; empty where it is."""
    reason = re.fullmatch(r"<!-- not run: (.+) -->", line.strip())
    return reason[1] if reason else ""


def blocks() -> list[tuple[int, str, str]]:
    """Line number, content and why it is not run, of every bash block."""
    found = fenced(ROOT / "README.md", "bash|sh|shell")
    return [(line, content, not_run(above[-1])) for line, _, content, above in found]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_there_are_blocks_and_most_of_them_are_run() -> None:
    found = blocks()
    assert found, "README.md shows no commands"
    assert sum(not reason for *_, reason in found) >= len(found) / 2
    assert len(chapters()) >= 4, "they are to run beside each other"


def test_make_targets_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z-]+)`", text))
    named |= {w for _, b, _ in blocks() for w in re.findall(r"^make ([a-z-]+)", b, re.M)}
    assert named <= targets()
    assert {"help", "install", "demo", "test", "test-unit", "lint", "bench", "bench-gpu", "clean"} <= targets()


def test_commands_and_options_of_the_readme_exist() -> None:
    import typer

    from rlspeech.cli import app

    root, jobs = typer.main.get_command(app), [(p.name, p.read_text()) for p in JOBS]
    for line, block in [*((line, block) for line, block, _ in blocks()), *jobs]:
        for text in block.replace("\\\n", " ").splitlines():
            text = re.sub("^srun torchrun .* -m ", "", text.split(" #")[0].strip())
            if not text.startswith("rlspeech "):
                continue
            words, command = shlex.split(re.split(r"[|>;&]", text)[0])[1:], root
            while words and hasattr(command, "commands") and not words[0].startswith("-"):
                assert words[0] in command.commands, f"README.md:{line}: no command {words[0]}"
                command = command.commands[words.pop(0)]
            known = {option for p in command.params for option in p.opts} | {"--help", "-h"}
            assert {w.split("=")[0] for w in words if w.startswith("--")} <= known, f"README.md:{line}: {text}"


def test_files_that_the_readme_links_to_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", link):
            assert (ROOT / link).exists(), link


@pytest.fixture
def shim(tmp_path: Path) -> dict[str, str]:
    """Environment with a ``rlspeech`` that lays tiny settings over those of the block."""

    def cases(table: dict[str, list[str]]) -> str:
        sets = {name: " ".join(f"--set {s}" for s in chosen) for name, chosen in table.items()}
        return "\n".join(f'  {name}) set -- "$@" {more} ;;' for name, more in sets.items())

    whole = "|".join(f'*"--task {t} "*|*"--preset {t}-"*' for t in ("asr", "tts"))
    lay = (
        f'case " $* " in *" --help "*) ;;\n*" --samples "*) case "$1" in\n{cases(DPO)}\nesac ;;\n'
        f'{whole}) case "$1" in\n{cases(ASR)}\nesac ;;\n'
        f'*) case "$1" in\n{cases(TINY)}\nesac ;; esac'
    )
    return warm.environment(tmp_path, lay) | {"NO_COLOR": "1"}


def runnable(block: str) -> str:
    """The block without the lines that install or that ``make`` runs; those are looked at elsewhere."""
    kept, skipping = [], False
    for line in block.splitlines():
        skip = skipping or line.startswith("make ") or bool(SETUP.match(line))
        skipping = skip and line.endswith("\\")
        if not skip:
            kept.append(line)
    return "\n".join(kept).strip()


def chapters() -> list[list[tuple[int, str]]]:
    """Blocks that are run, those together and in order of which one uses what another one writes (``--out``)."""
    groups: list[list[tuple[int, str]]] = []
    for line, block, reason in blocks():
        if reason or not runnable(block):
            continue

        def uses(earlier: list[tuple[int, str]], block: str = block) -> bool:
            written = {name for _, text in earlier for name in re.findall(r"--out ([\w./-]+)", text)}
            return any(re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-])", block) for name in written)

        joined = [g for g in groups if uses(g)]
        groups = [g for g in groups if g not in joined]
        groups.append(sorted([*(entry for g in joined for entry in g), (line, runnable(block))]))
    return groups


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chapter", chapters(), ids=lambda c: f"line{c[0][0]}")
def test_every_block_of_the_readme_runs(tmp_path: Path, shim: dict[str, str], chapter: list[tuple[int, str]]) -> None:
    work = tmp_path / "work"
    if any("rlspeech serve" in block for _, block in chapter):
        pytest.importorskip("fastapi")
    work.mkdir()
    for name in ("examples", "Makefile"):  # blocks may call the examples by their path
        (work / name).symlink_to(ROOT / name)
    for line, block in chapter:
        call = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(call, cwd=work, env=shim, capture_output=True, text=True, timeout=600)
        said = f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, f"README.md:{line} exits {done.returncode}\n{said}"


SCRIPTS = sorted([*(ROOT / "examples").glob("*.sh"), *JOBS, ROOT / ".ci" / "run", ROOT / ".ci" / "install"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts_parse_and_are_strict(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, capture_output=True)
    strict = re.search(r"^set -[a-z]*e[a-z]*u|^set -euo pipefail", script.read_text(encoding="utf-8"), re.M)
    assert strict, "set -euo pipefail"
