"""Ladders on disk, and the calibration that ``rlspeech reward`` makes of them."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
import soundfile as sf
from tiny_cli import called
from tiny_corpora import RATE, sound, write

from rlspeech.config import ScoreFolder
from rlspeech.corpora.mix import render_ladders
from rlspeech.data.manifest import read_manifest
from rlspeech.stages import reward
from rlspeech.stages.prepare import Prepare
from rlspeech.stages.prepare import run as prepare
from rlspeech.types import UserError, Utterance


@pytest.fixture
def sources(tmp_path):
    for i in range(3):
        sound(tmp_path / "clean" / f"s{i}.wav", i, 1.6)
    write(tmp_path / "noise" / "n.wav", 0.05 * np.random.default_rng(0).standard_normal(RATE))
    return tmp_path


def utts(folder, *names) -> list[Utterance]:
    return [Utterance(n, str(folder / f"{n}.wav"), 0.0, RATE) for n in names]


def test_every_utterance_goes_down_every_ladder(sources):
    rows, failed = render_ladders(utts(sources / "clean", "s0", "s1"), utts(sources / "noise", "n"), sources / "out")
    assert failed == [] and len({r.id for r in rows}) == len(rows)
    ways = {r.extra["ladder"] for r in rows}
    groups = defaultdict(list)
    for r in rows:
        groups[r.extra["clean_id"], r.extra["ladder"]].append(r)
    assert len(groups) == 2 * len(ways) and len(ways) >= 3
    for group in groups.values():
        assert sorted(r.extra["rung"] for r in group) == list(range(len(group)))
        wavs = {r.extra["rung"]: sf.read(r.audio_filepath)[0] for r in group}
        target = sf.read(group[0].target_filepath)[0]
        assert {r.target_filepath for r in group} == {group[0].target_filepath}
        assert np.array_equal(wavs[0], target)  # the best rung is the reference
        far = [np.abs(wavs[k] - target).mean() for k in sorted(wavs)]
        assert far[0] == 0 and far[-1] > far[1] > 0
    noisy = sorted((r.extra["rung"], r.snr_db) for r in groups["s0", "noise"] if r.snr_db is not None)
    assert len(noisy) >= 4 and [s for _, s in noisy] == sorted((s for _, s in noisy), reverse=True)
    assert all(abs(r.duration * RATE - len(sf.read(r.audio_filepath)[0])) < 1 for r in rows)


def test_the_seed_decides(sources):
    clean, noise = utts(sources / "clean", "s0", "s1", "s2"), utts(sources / "noise", "n")
    seeds = (("a", 0), ("b", 0), ("c", 1))
    runs = [render_ladders(clean, noise, sources / name, count=1, seed=s, clip_s=1.2)[0] for name, s in seeds]
    wavs = [[sf.read(r.audio_filepath)[0] for r in rows] for rows in runs]
    assert [r.id for r in runs[0]] == [r.id for r in runs[1]]
    assert all(np.array_equal(a, b) for a, b in zip(wavs[0], wavs[1], strict=True))
    assert not all(np.array_equal(a, c) for a, c in zip(wavs[0], wavs[2], strict=True))
    assert all(len(w) == int(1.2 * RATE) for w in wavs[0])


def test_bad_files_are_left_out(sources):
    clean = sources / "clean"
    write(clean / "silent.wav", np.zeros(2 * RATE))
    sound(clean / "short.wav", 0, 0.3)
    (clean / "empty.wav").touch()
    mixed, noise = utts(clean, "silent", "short", "empty", "gone", "s0"), utts(sources / "noise", "n")
    rows, failed = render_ladders(mixed, noise, sources / "out", count=1)
    assert {r.extra["clean_id"] for r in rows} == {"s0"}
    everything, failed = render_ladders(mixed, noise, sources / "all")
    assert {f["id"] for f in failed} == {"silent", "short", "empty", "gone"} and all(f["detail"] for f in failed)
    assert {r.extra["clean_id"] for r in everything} == {"s0"}


@pytest.mark.slow
def test_prepare_and_reward_make_a_calibration(sources):
    out = sources / "ladder"
    words = f"--clean {sources}/clean --noise {sources}/noise --utterances 2 --clip-s 1.5 --out {out} --workers 0"
    summary = called("prepare", "ladder", *words.split())
    rows = read_manifest(out / "manifest.jsonl")
    assert "--reward llm" in summary["next"] and summary["manifests"]["manifest"]["rows"] == len(rows)
    config = ScoreFolder(rewards=["si_sdr", "lsd", "stoi"], out=str(out / "scores"), workers=0)
    found = reward.run(config, out / "manifest.jsonl")
    table = found["calibration"]
    assert table["utterances"] == 2 and table["rewards"]["si_sdr"]["ladder"]["noise"]["value"] > 0.95
    assert table["rewards"]["lsd"]["ladder"]["noise"]["value"] > 0.9  # lower is better, so it is turned
    assert table["rewards"]["si_sdr"]["snr"]["value"] > 0.5 and len(table["between"]) == 3
    json.dumps(found, allow_nan=False)


def test_nothing_to_degrade_is_said(sources):
    with pytest.raises(UserError, match="noise"):
        prepare(Prepare(source="ladder", clean=[str(sources / "clean")], out=str(sources / "o")))
