"""The fork server that tests call commands through behaves like the command."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone has pidfd_open")]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return warm.environment(tmp_path)


def test_streams_folder_environment_and_exit_codes_are_the_callers(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "probe.py").write_text("import os, sys\nprint(os.getcwd(), os.environ['WHO'], sys.stdin.read())\n")
    # reads probe.py, which is only on the caller's path
    call = ["rlspeech", "rl", "--task", "probe:missing", "--out", "out"]
    mine = {**env, "PYTHONPATH": str(tmp_path), "WHO": "me"}
    done = subprocess.run(call, env=mine, cwd=tmp_path, input="hi", capture_output=True, text=True)
    assert done.returncode == 2 and f"{tmp_path} me hi" in done.stdout + done.stderr
    version = subprocess.run(["rlspeech", "--version"], env=env, capture_output=True, text=True)
    assert version.stdout.startswith("rlspeech ")
    reads, writes = os.pipe()
    os.close(reads)  # before the start: a reader that ends while the command writes would race with it
    assert subprocess.run(["rlspeech", "presets", "ls"], env=env, stdout=writes).returncode == 141
    os.close(writes)


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_signals_reach_the_command(tmp_path: Path, env: dict[str, str], number: int, code: int) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\npathlib.Path('begun').symlink_to(str(os.getpid()))\ntime.sleep(60)\n"
    )
    call, mute = ["rlspeech", "rl", "--task", "slow:task", "--out", "out"], subprocess.DEVNULL
    mine = {**env, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(call, cwd=tmp_path, env=mine, stderr=mute, stdout=mute)
    while not (tmp_path / "begun").is_symlink():
        assert process.poll() is None
        time.sleep(0.02)
    fork = Path("/proc", os.readlink(tmp_path / "begun"))
    assert fork.exists()
    process.send_signal(number)
    assert process.wait(20) == code
    for _ in range(200):
        if not fork.exists():
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")
