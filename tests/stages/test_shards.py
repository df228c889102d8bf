"""``--shard`` and ``rlspeech merge``: what shards make together is, byte for byte, what one run makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_cli import RUN, called, refused, rows_of
from tiny_corpora import sound, write
from tiny_recognisers import RATE, ROWS, Counting, write_corpus
from tiny_speech import write_pairs

from rlspeech.cli import app
from rlspeech.config_parts import Shard
from rlspeech.corpora import base
from rlspeech.data.inputs import Item, Items
from rlspeech.tasks.asr.task import Asr

Words = tuple[object, ...]
MORTAL = """
import os, pathlib, signal
def level(wavs, texts, sample_rate, **columns):
    if not os.path.exists("died"):
        pathlib.Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(abs(w).mean()) for w in wavs]
"""


def test_every_item_is_in_one_shard_whatever_the_others_are() -> None:
    keys = [f"mix_{n:06d}" for n in range(4000)]
    found = [[k for k in keys if Shard.of(f"{i}/8").has(k)] for i in range(1, 9)]
    assert sorted(sum(found, [])) == keys and all(400 < len(part) < 600 for part in found)
    assert {*found[2], *found[4]} == {k for k in keys if Shard.of("3,5/8").has(k)}


def test_the_draws_of_a_prompt_stay_together() -> None:
    items = [Item(f"p{n}-{k:02d}", None, columns={"prompt": f"p{n}", "draw": k}) for n in range(9) for k in range(4)]
    found = [{key[:2] for key in Items(items, shard=Shard.of(f"{i}/3")).keys} for i in (1, 2, 3)]
    assert sum(map(len, found)) == 9 == len(set.union(*found))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/2", "1,2/2", "-1/2"])
def test_what_is_no_shard_is_refused(text: str, tmp_path: Path) -> None:
    assert "shard" in refused("reward", tmp_path, "--reward", "estoi", "--shard", text, "--out", tmp_path / "x")


def sharded(words: Words, out: Path, count: int = 3) -> None:
    """Run every shard, in no order, the last of them twice."""
    for i in [*range(count, 0, -1), 1]:
        called(*words, "--out", out, "--shard", f"{i}/{count}")


def same(words: Words, folder: Path, out: str, *names: str) -> dict[str, Any]:
    """Merge twice; compare files of OUT with those of one run."""
    merged = called("merge", folder / "parts" / out)
    assert merged["missing"] == [] == called("merge", folder / "parts" / out)["missing"]
    called(*words, "--out", folder / "whole" / out)
    for name in names:
        whole, parts = ((folder / place / out / name).read_text() for place in ("whole", "parts"))
        assert parts.replace(f"{folder}/parts", f"{folder}/whole") == whole, name
    return merged


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_pairs(tmp_path / "data", 7)


def test_scores(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "data" / "noisy" / "3.flac").write_bytes(b"no sound")
    words = "reward", pairs, "--reward", "si_sdr", "--reward", "lsd", "--workers", 0
    sharded(words, tmp_path / "parts" / "x", 9)  # some of them are empty
    assert same(words, tmp_path, "x", "scores.jsonl", "scores.meta.json")["n"] == 7


def test_shards_that_are_missing_or_not_alike_are_named(tmp_path: Path, pairs: Path) -> None:
    out = tmp_path / "x" / "scores.jsonl"
    words = "reward", pairs, "--reward", "si_sdr", "--workers", 0, "--out", out
    assert "shard-I-of-N" in refused("merge", out)
    called(*words, "--shard", "2/3")
    called(*words, "--shard", "1/3")
    done = RUN.invoke(app, ["merge", str(out), "--json"])
    found, rows = json.loads(done.stdout), rows_of(out)
    assert done.exit_code == 2 and len(found["missing"]) == 1 and "3/3" in found["missing"][0]
    assert 0 < len(rows) == found["n"] < 7 and all(Shard.of("1,2/3").has(r["key"]) for r in rows)
    mark = tmp_path / "x" / "scores.shard-1-of-3" / "shard.json"
    mark.write_text(mark.read_text().replace('"complete": true', '"complete": false'))  # as of one that was killed
    assert "1/3" in json.loads(RUN.invoke(app, ["merge", str(out), "--json"]).stdout)["missing"][0]
    called(*words, "--shard", "1/3", "--reward", "lsd")
    assert "rewards" in refused("merge", out)
    called(*words, "--shard", "1/2")
    assert "[2, 3]" in refused("merge", out)


def test_evaluations(tmp_path: Path, flow: dict[str, str]) -> None:
    words = "eval", "--data", flow["data"], "--model", f"a={flow['model']}", "--metric", "si_sdr", "--nfe", 1
    words = *words, "--workers", 0, "--set", "batch=1", "--set", "players=1"
    sharded(words, tmp_path / "parts" / "x")
    merged = same(words, tmp_path, "x", "scores.jsonl")
    whole = json.loads((tmp_path / "whole" / "x" / "metrics.json").read_text())
    assert merged["systems"] == whole["systems"] and merged["deltas"] == whole["deltas"]
    audio = [sorted(p.name for p in (tmp_path / at / "x" / "audio" / "a").iterdir()) for at in ("parts", "whole")]
    assert audio[0] == audio[1] and Path(merged["report"]).is_file()


def test_recognisers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_corpus(tmp_path / "data", [{**row, "duration": 0.5 + 0.1 * i} for i, row in enumerate(ROWS)])
    (tmp_path / "data" / "none.wav").write_bytes(b"no sound")
    evaluation: Words = ("eval", "--task", "asr", "--data", data, "--model", "a=hub/a")
    texts: Words = ("transcribe", data, tmp_path / "data" / "none.wav")
    for words, out, name in (evaluation, "x", "scores.jsonl"), (texts, "t.jsonl", ""), (texts, "t", "a.txt"):
        with monkeypatch.context() as patch:
            patch.setattr(Asr, "load", lambda *a, **k: (Counting(), {}))
            sharded(words, tmp_path / "parts" / out)
            called(*words, "--out", tmp_path / "whole" / out)
        same(words, tmp_path, out, name)  # no model is loaded
    assert len(rows_of(tmp_path / "parts" / "t.jsonl")) == len(ROWS)


def test_enhanced_files_need_no_joining(tmp_path: Path, flow: dict[str, str]) -> None:
    words = "enhance", Path(flow["data"]).parent / "noisy", "--model", flow["model"], "--nfe", 1
    sharded(words, tmp_path / "parts")
    assert called("merge", tmp_path / "parts")["failed"] == 0
    assert len(list((tmp_path / "parts").glob("*.flac"))) == 6


def test_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        sound(tmp_path / "clean" / f"s{i}.wav", i, 1.6)
    shutil.copy(tmp_path / "clean" / "s1.wav", tmp_path / "clean" / "twin.wav")
    write(tmp_path / "noise" / "n.wav", 0.05 * np.random.default_rng(0).standard_normal(RATE))
    folder: Words = ("prepare", "folder", tmp_path / "clean", "--workers", 0)
    mix: Words = ("prepare", "mix", "--clean", tmp_path / "clean", "--noise", tmp_path / "noise", "--workers", 0)
    mixed: Words = (*mix, "--render", 5, "--render-s", 1)
    names = "manifest.jsonl", "manifest.meta.json", "dropped.jsonl"
    for words, out, files in (folder, "f", names), (mix, "m", ("mix.json", "clean.jsonl")), (mixed, "m", names):
        sharded(words, tmp_path / "parts" / out)
        with monkeypatch.context() as patch:
            patch.setattr(base, "measure", lambda *a, **k: pytest.fail("read once more"))
            called("merge", tmp_path / "parts" / out)
        same(words, tmp_path, out, *files)
    assert "shards" in refused("prepare", "demo", "--set", "shard=1/2", "--out", tmp_path / "d")


@pytest.mark.slow
def test_ray_repeats_the_shard_whose_process_was_killed(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "mortal.py").write_text(MORTAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = "reward", pairs, "--reward", "mortal:level", "--workers", 0
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "x.shard-3-of-3").touch()  # where there should be a folder
    done = RUN.invoke(app, [*map(str, words), "--out", "parts/x", "--engine", "ray", "--shards", "3", "--json"])
    assert (tmp_path / "died").is_file() and done.exit_code == 2, done.stderr
    assert done.stderr.count("failed:") == 1 and "shard 3/3 failed: cannot write" in done.stderr, done.stderr
    assert "3/3" in "".join(json.loads(done.stdout)["missing"])
    (tmp_path / "parts" / "x.shard-3-of-3").unlink()
    called(*words, "--out", "parts/x", "--shard", "3/3")
    assert same(words, tmp_path, "x", "scores.jsonl")["shards"] == 3
