"""The house rules: imports only go down the floors, no cycles, a quick start, small files, nothing that executes data."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import rlspeech

ROOT = Path(rlspeech.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))
GROUND = "__init__ types config config_parts settings schema plugins names"
FIRST = "files scores log stats parallel engine run state tracking processes"
HIGHER = ("data", "models", "rewards", "algos tasks corpora", "report", "stages", "cli __main__")
FLOORS = {part: floor for floor, parts in enumerate((GROUND, FIRST, *HIGHER)) for part in parts.split()}
BLIND = {("algos", "tasks"), ("tasks", "algos"), ("algos", "corpora"), ("corpora", "algos"), ("corpora", "tasks")}
MAX_FILE, MAX_FUNCTION = 520, 80
# Figures that may only fall: formatted lines and files of the package, lines of the core (what a newcomer reads first), lines of the
# tests, and how often stages, pages and commands spell a task's name. A change that needs more first deletes something.
WALK = 12  # files of one step of rl
SENTENCES = 0  # places where tests match an error by a sentence
PACKAGE_LINES, PACKAGE_FILES, CORE_LINES, TEST_LINES, TASK_NAMES = 39_605, 155, 10_414, 29_771, 0
CORE = (
    *(f"{n}.py" for n in "__init__ __main__ types config config_parts settings schema plugins files scores".split()),
    *(f"{n}.py" for n in "log stats parallel engine run state tracking".split()),
    *("algos/*.py", "tasks/base.py", "tasks/gaussian.py", "tasks/explore.py", "tasks/flowse/*.py"),
    *("rewards/base.py", "rewards/catalogue.py", "rewards/scorer.py", "rewards/mix.py"),
    *("data/manifest.py", "data/audio.py", "data/batches.py"),
    *(f"stages/{stage}.py" for stage in ("prepare", "pretrain", "reward", "rl", "evaluate")),
)
NAMES_OF_TASKS = {"flowse", "avse", "asr", "tts"}
# messages between a process and the workers that it started; nothing is ever unpickled from a file
PIPES = {"parallel.py"}


def name_of(path: Path) -> str:
    parts = ["rlspeech", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(p) for p in FILES}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@cache
def tree(path: Path) -> ast.Module:
    with suppress(SystemError):  # Python 3.11: garbage collected in between is taken for a mismatch of depths
        return ast.parse(path.read_text(encoding="utf-8"))
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of this package that a file imports, at its start, later or by a name in a table; not what only types need."""
    package = name_of(path) if path.stem == "__init__" else name_of(path).rpartition(".")[0]

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
                yield child
                yield from walk(child)

    for node in walk(tree(path)):
        if isinstance(node, ast.Import):
            found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found = [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"rlspeech(\.\w+)+:\w+", str(node.value)):
            found = [str(node.value).partition(":")[0]]  # a module named in a table and imported later
        else:
            continue
        yield from ((m, node.lineno) for m in found if m == "rlspeech" or m.startswith("rlspeech."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = part_of(name_of(path))
    assert here in FLOORS
    for module, line in imports(path):
        there = part_of(module)
        assert there in FLOORS, f"{path.name}:{line} imports {module}, which does not exist"
        assert FLOORS[there] <= FLOORS[here], (
            f"{path.name}:{line}: floor {FLOORS[here]} ({here}) imports {module} of floor {FLOORS[there]}"
        )
        assert (here, there) not in BLIND, f"{path.name}:{line}: {here} may not know {there}"


def test_the_floor_check_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "MODULES", {"rlspeech.stages.rl", "rlspeech.log", "rlspeech.data.audio"})
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "audio.py"
    late = "def f():\n    from ..stages.rl import run\nX = 'rlspeech.stages.rl:run'\n"
    file.write_text(f"import rlspeech.log\nfrom rlspeech.stages import rl\n{late}")
    assert [m for m, _ in imports(file)] == ["rlspeech.log", *["rlspeech.stages.rl"] * 3]


def circles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        open_.append(module)
        for other in edges.get(module, ()):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in open_:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = open_[open_.index(module) :]
            del open_[-len(group) :]
            found.extend([sorted(group)] if len(group) > 1 else [])

    for module in edges:
        if module not in number:
            visit(module)
    return found


def test_no_import_circles() -> None:
    edges = {name_of(p): {m for m, _ in imports(p) if m != name_of(p)} for p in FILES}
    assert circles(edges) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def lines_of(paths: Iterable[Path]) -> int:
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths)


def test_sizes_only_fall() -> None:
    core = {p for pattern in CORE for p in ROOT.glob(pattern)}
    tests = Path(__file__).parent.rglob("*.py")
    assert lines_of(FILES) <= PACKAGE_LINES and len(FILES) <= PACKAGE_FILES, (lines_of(FILES), len(FILES))
    assert lines_of(core) <= CORE_LINES, lines_of(core)
    assert lines_of(tests) <= TEST_LINES


SENTENCE = re.compile(r"[a-z]+,? [a-z]+,? [a-z]+")


def sentences_matched(path: Path) -> list[str]:
    """Places where a test matches an error by a sentence, which a change of wording breaks."""
    found = []
    for k in (n for n in ast.walk(tree(path)) if isinstance(n, ast.keyword) and n.arg == "match"):
        texts = [c.value for c in ast.walk(k.value) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
        found += [f"{path.name}:{k.lineno}"] if any(map(SENTENCE.search, texts)) else []
    return found


def test_tests_match_options_and_values_not_sentences() -> None:
    found = [place for path in sorted(Path(__file__).parent.rglob("*.py")) for place in sentences_matched(path)]
    assert len(found) <= SENTENCES, found


def test_stages_pages_and_commands_name_no_task() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] in {"stages", "report", "cli"}
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in NAMES_OF_TASKS
    ]
    assert len(found) <= TASK_NAMES, found


@pytest.mark.slow
def test_the_walk_of_one_rl_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the optimiser: the files above the models in which code runs while one step of ``rl`` is made.

    Left out are the decorator that every command goes through and the computations of the rewards, which the user names.
    """
    from typer.testing import CliRunner

    from rlspeech.cli import app
    from rlspeech.rewards.catalogue import BUILTIN
    from rlspeech.stages import rl

    files: set[str] = set()
    advance = rl.Session.advance

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call" and (path := Path(frame.f_code.co_filename)).is_relative_to(ROOT):
            files.add(path.relative_to(ROOT).as_posix())

    def walked(session: Any, *args: Any) -> Any:
        frame: Any = sys._getframe()
        while frame := frame.f_back:  # what has called the step
            note(frame, "call", None)
        sys.setprofile(note)
        try:
            return advance(session, *args)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(rl.Session, "advance", walked)
    small = "steps=1 valid_items=2 clip_s=0.5 micro_batch=1 workers=0 group=2 prompts_per_step=2".split()
    line = f"rl --task flowse --reward si_sdr=1 --reward estoi=1 --guard lsd --out {tmp_path / 'run'}"
    done = CliRunner().invoke(app, [*line.split(), *(w for s in small for w in ("--set", s))])
    assert done.exit_code == 0, done.stderr
    modules = {entry.factory.partition(":")[0].removeprefix("rlspeech.") for entry in BUILTIN}
    families = {f"{module.replace('.', '/')}.py" for module in modules}
    above = {f for f in files if FLOORS[f.partition("/")[0].removesuffix(".py")] > FLOORS["models"]}
    walk = above - families - {"cli/common.py", "cli/__init__.py"}
    assert {"stages/rl.py", "algos/grpo.py", "tasks/flowse/policy.py", "rewards/mix.py"} <= walk
    assert len(walk) <= WALK, sorted(walk)


HEAVY = set("av cv2 torch numpy scipy transformers peft librosa onnxruntime matplotlib yaml soundfile".split())


@pytest.mark.parametrize("arguments", [["--help"], ["rl", "--help"], ["prepare", "mix", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    # a command's own options are described by its settings, and those of a corpus lie beside its code
    own = {"--help": {"pydantic"}, "rl": set(), "prepare": {"numpy"}}[arguments[0]]
    heavy = HEAVY ^ own
    code = (
        "import sys\nfrom rlspeech.cli import main\ntry:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        f"found = [m for m in {heavy!r} if m in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_takes_less_than_half_a_second() -> None:
    wall, cpu = [], []
    for _ in range(4):  # the first one may have to write byte code
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "rlspeech", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # one thread: on a machine with nothing else to do the two are the same; on a busy one only the second says anything
    assert min(min(wall), min(cpu)) < 0.5, f"wall {min(wall):.2f} s, cpu {min(cpu):.2f} s"
    if os.getloadavg()[0] < 0.5:
        assert min(wall) < 0.5


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    assert lines_of([path]) <= MAX_FILE, f"{path.name} is longer than {MAX_FILE} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= MAX_FUNCTION, f"{path.name}:{node.lineno} {node.name} has {size} lines"


UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def executes_data(path: Path) -> list[str]:
    """Places where a file's content could be run as code."""
    found = []
    for node in ast.walk(tree(path)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        found += [f"{where} imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in {"eval", "exec", "os.system", "os.popen"}:
            found.append(f"{where} calls {called}")
        if called == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{where} calls torch.load without weights_only=True")
        if called in {"np.load", "numpy.load"} and keywords.get("allow_pickle", "False") != "False":
            found.append(f"{where} lets numpy unpickle")
        if called == "yaml.load" and not (len(node.args) == 2 and ast.unparse(node.args[1]) == "_Loader"):
            found.append(f"{where} calls yaml.load; yaml.safe_load")
        if re.search(r"(?<!PeftModel)\.from_pretrained$", called) and path.name != "folder.py":
            found.append(f"{where} calls from_pretrained past models.folder.pretrained")
        if keywords.get("shell") == "True" or keywords.get("trust_remote_code") == "True":
            found.append(f"{where} runs what it is given")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_executes_data(path: Path) -> None:
    found = executes_data(path)
    if str(path.relative_to(ROOT)) in PIPES:
        found = [f for f in found if not f.endswith("imports pickle")]
        assert "pickle.load(" not in path.read_text(encoding="utf-8"), "pickles are for pipes, not for files"
    assert not found


def test_the_search_for_executed_data_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    lines = ["import pickle", "from joblib import load", "eval('1')", "torch.load(p)", "yaml.load(t, yaml.Loader)"]
    lines += ["torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)"]
    lines += ["from_pretrained(n, trust_remote_code=True)", "AutoModel.from_pretrained(n)"]
    fine = ["torch.load(p, weights_only=True)", "model.eval()", "yaml.safe_load(t)", "np.load(p)"]
    file.write_text("\n".join([*lines, *fine]))
    assert len(executes_data(file)) == len(lines)


def test_files_of_json_are_read_in_one_way() -> None:
    here = {str(p.relative_to(ROOT)) for p in FILES if "json.loads(" in p.read_text(encoding="utf-8")}
    others = {"rewards/versa.py", "models/codec/lm.py"}
    assert here <= {"files.py", *others}


def test_public_modules_say_what_they_are_for() -> None:
    assert [p.name for p in FILES if not ast.get_docstring(tree(p))] == []
