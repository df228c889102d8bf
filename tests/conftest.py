"""Tiers: unmarked tests are quick, ``slow`` ones take seconds; those with other markers run where they can."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.testing

# before anything imports torch: the threads of several test processes must not spin against each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# compiled anew by every process, the tests themselves take ten seconds
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# building the commands anew takes longer than most tests that call one
typer.testing._get_command = cache(typer.testing._get_command)
# a shell's background job and nohup; the processes that tests start would inherit it
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, scripts and then the other slow tests, so that no process waits for another at the end."""
    scripts = {"test_readme.py", "test_examples.py"}
    long = {"slow", "realdata", "realmodels"}
    items.sort(key=lambda item: (not long & {m.name for m in item.iter_markers()}, item.path.name not in scripts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for variable in ("RLSPEECH_REALDATA", "RLSPEECH_REALMODELS", "RLSPEECH_NET"):
        if item.get_closest_marker(variable[9:].lower()) and not os.environ.get(variable):
            pytest.skip(f"{variable} is not set")
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def folder_of(variable: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not path.is_dir():
        pytest.skip(f"{variable} is not set, or no folder")
    return path


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder with real recordings; the tests that ask for it carry the marker ``realdata``."""
    return folder_of("RLSPEECH_REALDATA")


@pytest.fixture(scope="session")
def real_rows(realdata: Path) -> list[dict[str, object]]:
    """Rows of its manifest, with absolute paths under ``path``."""
    rows = map(json.loads, (realdata / "manifest.jsonl").open())
    return [{**r, "path": str(realdata / r["audio"])} for r in rows]


@pytest.fixture(scope="session")
def realmodels() -> Path:
    """Folder with real models, ``whisper-tiny.en`` and ``packages`` below it; the tests that ask for it carry ``realmodels``."""
    return folder_of("RLSPEECH_REALMODELS")


@pytest.fixture(scope="session")
def librosa() -> ModuleType:
    """librosa, imported before anything else does it, without numba: that compiles for 20 s, once, what no test calls."""

    def plain(*given: Any, **_: Any) -> Any:
        return given[0] if given and callable(given[0]) else plain

    numba = ModuleType("numba")
    for name in ("jit", "stencil", "vectorize", "guvectorize"):
        setattr(numba, name, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", numba)
        module = pytest.importorskip("librosa")
        assert (
            module.feature.melspectrogram and module.power_to_db and module.filters.mel
        )  # are imported when they are named
    return module


@pytest.fixture(autouse=True)
def _fresh_log() -> object:
    """The switches of ``log`` belong to the process; a test that runs a command must not silence the next one."""
    from rlspeech import log

    yield
    log.configure()
    log.to_file(None)
