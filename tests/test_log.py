"""Where output goes, and what a progress line says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from rlspeech import log

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("RANK", raising=False)


def test_stdout_holds_results_only(capsys: Capture) -> None:
    log.say("working")
    log.warn("careful")
    with log.progress(2, "scoring", "clips") as bar:
        bar.advance(2)
    log.table("Scores", ["system", "pesq"], [["input", 1.23456], ["[bold]x[/bold]", None]], notes=["n = 2"])
    log.emit({"emitted": 1})  # without --json nothing
    out, err = capsys.readouterr()
    assert "working" in err and "careful" in err and "scoring" in err
    assert "working" not in out and "scoring" not in out and "emitted" not in out + err
    assert "1.235" in out and "[bold]x[/bold]" in out and "n = 2" in out


def test_json_mode_leaves_one_object_on_stdout(capsys: Capture) -> None:
    log.configure(json_mode=True)
    log.table("Scores", ["system"], [["input"]])
    log.emit({"mean": math.nan, "n": np.int64(3), "x": np.array([1.0, np.inf]), "path": Path("a"), "names": {"b", "a"}})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"mean": None, "n": 3, "x": [1.0, None], "path": "a", "names": ["a", "b"]}
    assert "input" in err


def test_nothing_that_a_terminal_obeys_is_printed(tmp_path: Path, capsys: Capture) -> None:
    odd = "a\x1b[31m\x1b]0;title\x07\x9b2Jb\tc"
    log.to_file(tmp_path / "log")
    log.say(odd)
    log.error(odd)
    log.table(odd, [odd], [[odd]], [odd])
    log.configure(json_mode=True)
    log.emit({odd: odd})
    log.to_file(None)
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[-1]) == {odd: odd}
    shown = out.out + out.err + (tmp_path / "log").read_text()
    assert not set(shown) & {chr(c) for c in (*range(9), *range(11, 32), *range(127, 160))} and "\\x1b[31m" in shown


def test_quiet_leaves_errors_and_the_file_keeps_all(tmp_path: Path, capsys: Capture) -> None:
    log.configure(quiet=True)
    log.to_file(tmp_path / "logs" / "run.log")
    log.say("one")
    log.warn("two")
    log.error("three")
    log.table("numbers", ["a"], [[1]])
    with log.progress(1, "counting") as bar, log.waiting("reading"):
        bar.advance()
    assert capsys.readouterr() == ("", "error: three\n")
    text = (tmp_path / "logs" / "run.log").read_text()
    assert "one" in text and "two" in text and "three" in text


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK", "1")
    log.say("x")
    log.table("t", ["a"], [[1]])
    log.configure(json_mode=True)
    log.emit({"a": 1})
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, to be set."""
    time_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: time_s[0])
    return time_s


def test_plain_progress_is_sparse_and_says_rate_and_estimate(now: list[float], capsys: Capture) -> None:
    with log.progress(1000, "rollouts", "clips") as bar:
        for i in range(1000):
            now[0] += 0.02  # 20 s in all
            bar.advance(1, reward=i / 1000)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 14
    assert "rollouts: 100/1000 (10 %) clips, 50.0 clips/s, 0:18 left, reward 0.099" in lines
    assert lines[-1].startswith("rollouts: 1000/1000 (100 %)") and "0:20 taken" in lines[-1]


def test_progress_of_unknown_length_and_slow_items(now: list[float], capsys: Capture) -> None:
    with log.progress(None, "reading", "files") as bar:
        now[0] += 8
        bar.advance(2)
    assert "reading: 2 files, 4.0 s/file," in capsys.readouterr().err


def test_what_was_done_before_is_not_counted_into_the_rate(now: list[float], capsys: Capture) -> None:
    with log.progress(3, "scoring", "files", start=3):
        pass
    assert capsys.readouterr().err == "scoring: all 3 files were done before\n"
    with log.progress(100, "scoring", "files", start=80) as bar:
        now[0] += 10
        bar.advance(10)
    assert "90/100 (90 %) files, 1.0 files/s, 0:10 left" in capsys.readouterr().err


def test_a_brief_part_is_only_shown_when_it_lasts(now: list[float], capsys: Capture) -> None:
    for seconds, said in ((0.1, False), (4.0, True)):
        with log.progress(3, "looking", "parts", brief=True) as bar:
            for _ in range(3):
                now[0] += seconds
                bar.advance()
        assert bool(capsys.readouterr().err) == said


def test_waiting_speaks_up_and_remembers_how_long_it_took(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(log, "LINE_EVERY_S", 0.02)
    monkeypatch.setattr(log, "_took_s", {"validating": 75.0})

    @log.waiting("validating")
    def work() -> int:
        time.sleep(0.1)
        return 3

    assert work() == 3
    assert capsys.readouterr().err == "validating (took 1:15 before) ...\n"
    assert 0.1 <= log._took_s["validating"] < 5


def test_nobody_reading_the_remarks_does_not_stop_the_work() -> None:
    code = "from rlspeech import log\nfor i in range(5000): log.say('x' * 50)\nprint('done')"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None and first.stdout is not None
    first.stderr.readline()
    first.stderr.close()
    assert first.stdout.read() == "done\n" and first.wait() == 0


SHOW = """
import time
from rlspeech import log
with log.progress(3, "rl grpo", "steps") as bar:
    for i in range(3):
        with log.waiting("validating"):
            pass
        log.say("a remark")
        bar.advance(reward=0.412, agreement=0.1)
log.table("rl", ["metric", "before", "difference (95 %)", "role"], [["estoi", "0.698 [0.605, 0.800]", "+0.001 [-0.000, 0.002]", "reward"]],
          ["a note that is longer than a narrow window is wide, and has to be wrapped"])
log.table("Presets", ["name", "what it is"], [["a", "more words than fit into one line of a narrow window, which go on below"]])
"""


def seen(columns: int, **env: str) -> str:
    """What a person sees who runs ``SHOW`` in a terminal of so many columns."""
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "RANK")}
    given = {**plain, "TERM": "xterm", **env}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=terminal, stderr=terminal, env=given)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while data := os.read(main, 65536):
            shown += data
    os.close(main)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.parametrize("columns", [40, 80])
def test_bars_and_tables_fit_the_terminal(columns: int) -> None:
    raw = seen(columns)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw))
    assert "\x1b[" in raw and max(map(len, lines)) <= columns
    bar = next(line for line in lines if line.startswith("rl grpo") and "3/3" in line)
    assert "reward 0.412" in bar and ("agreement" in bar) == (columns == 80)
    text = "\n".join(lines)
    assert "a remark" in text and "[0.605, 0.800]" in text and ("│ estoi" in text) == (columns == 80)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_terminals_get_plain_lines(env: dict[str, str]) -> None:
    raw = seen(40, **env)
    assert "\x1b" not in raw and "│" not in raw
    assert "rl grpo: 3/3 (100 %) steps" in raw and "reward 0.412" in raw
    assert max(len(line) for line in raw.splitlines() if not line.startswith("rl grpo")) <= 40


def test_text_is_to_the_left_and_numbers_are_to_the_right(capsys: Capture) -> None:
    rows = [["estoi", 0.5, "1.2 MB, weights", "no"], ["snr", None, "", "yes"], ["x", "12.25 [1, 2]", "-", "yes"]]
    log.table("t", ["metric", "mean", "what", "usable"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("  estoi          0.500  1.2 MB, weights  no")
    assert lines[4].startswith("  snr                -                   yes")


def test_a_full_log_disk_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(log, "_file", Full())
    log.say("still alive")
    assert log._file is None


def test_a_table_that_nobody_reads_does_not_stop_what_comes_after_it() -> None:
    code = (
        "import sys\nfrom rlspeech import log\nfor i in range(300): log.table('t', ['a'], [['x' * 300]])\n"
        "print('written' if log.unread else 'read', file=sys.stderr)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "written\n" and process.wait() == 0
