"""prepare for recognisers, end to end: transcribed corpora, the RL sets, the hallucination set, the commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rlspeech.cli import app
from rlspeech.corpora.nonspeech import Nonspeech
from rlspeech.corpora.rl_asr import RlAsr
from rlspeech.corpora.rl_asr_recognise import recognise
from rlspeech.data.audio import save_audio
from rlspeech.data.manifest import find_manifest, read_jsonl, read_manifest
from rlspeech.stages import prepare
from rlspeech.types import UserError

RATE = 16000
NEW = ("librispeech", "kaldi", "nemo", "lhotse", "rl-asr", "nonspeech")


def sound(path: Path, seed: int, seconds: float = 1.0) -> Path:
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    save_audio(path, (0.1 * rng.standard_normal(n) * np.abs(np.sin(np.arange(n) / RATE * 9))).astype(np.float32), RATE)
    return path


def corpus(folder: Path, count: int = 8) -> Path:
    """A manifest of ``count`` rows, the last one with a file that is not there."""
    rows = []
    for i in range(count):
        path = folder / f"u{i}.wav" if i == count - 1 else sound(folder / f"u{i}.wav", i, 0.6 + 0.05 * i)
        rows.append(
            {
                "id": f"u{i}",
                "audio_filepath": path.name,
                "duration": 0.6 + 0.05 * i,
                "sample_rate": RATE,
                "text": f"number {i} spoken clearly",
                "speaker_id": f"s{i % 2}",
            }
        )
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "train.jsonl"


CALLS: list[int] = []


def exact(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
    """A recogniser that tells clips by their length."""
    CALLS.append(len(wavs))
    return [f"number {round((len(w) / rate - 0.6) / 0.05)} spoken clearly" for w in wavs]


def poor(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
    """One that mishears every clip, and gives up on batches with the longest."""
    if max(len(w) for w in wavs) / rate > 0.87:
        raise RuntimeError("too long for me")
    return ["number spoken" for _ in wavs]


NAMES = [f"{__name__}:exact", f"{__name__}:poor"]


def build(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = {"recognisers": NAMES, "rows": 8, "batch": 3, "long_s": (1.5, 4.0), "device": "cpu"} | more
    return prepare.run(RlAsr(data=str(data), out=str(out), **settings))  # type: ignore[arg-type]


def test_transcribed_corpora(tmp_path: Path) -> None:
    for i in range(3):
        sound(tmp_path / "audio" / f"a{i}.wav", i)
    (tmp_path / "list.tsv").write_text("path\tsentence\na0.wav\thello\na1.wav\t\n")
    listed = prepare.run(
        prepare.Prepare(
            source="folder",
            root=str(tmp_path / "audio"),
            text=str(tmp_path / "list.tsv"),
            out=str(tmp_path / "listed"),
            workers=0,
        )
    )
    assert [(u.id, u.text) for u in read_manifest(find_manifest(tmp_path / "listed"))] == [("a0", "hello"), ("a1", "")]
    assert listed["dropped"] == {"no transcript": 1} and "--task asr" in listed["next"]
    data = tmp_path / "data" / "test"
    data.mkdir(parents=True)
    (data / "wav.scp").write_text(f"r {tmp_path}/audio/a0.wav\n")
    (data / "text").write_text("u1 hello\nu2 there\nu3 never\n")
    (data / "segments").write_text("u1 r 0.0 0.45\nu2 r 0.5 1.0\nu3 r 0.9 5.0\n")
    made = prepare.run(
        prepare.Prepare(source="kaldi", root=str(tmp_path / "data"), out=str(tmp_path / "kaldi"), workers=0)
    )
    rows = read_manifest(tmp_path / "kaldi" / "test.jsonl")
    assert [(u.id, u.offset, u.duration) for u in rows] == [("u1", 0.0, 0.45), ("u2", 0.5, 0.5)]
    assert made["dropped"] == {"shorter than the manifest says": 1} and made["checked"] == 1
    assert made["next"].startswith("rlspeech eval --task asr")


def test_recognisers_listen_once_and_their_disagreement_decides(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    CALLS.clear()
    summary = build(data, tmp_path / "out")
    assert summary["recognisers"] == {NAMES[0]: 7, NAMES[1]: 6} and sum(CALLS) == 7
    assert summary["facts"]["in_band"] == 6 and set(summary["manifests"]) >= {"d0", "d1", "d123"}
    hard = [u for u in read_manifest(tmp_path / "out" / "d1.jsonl") if u.extra["condition"] != "long"]
    wers = (2 / 4 + 2 / 2) / 2  # two of four words are missing; seen from the other side, two of two are too many
    assert hard and all(u.extra["agreement"] == pytest.approx(1 - wers) for u in hard)
    meta = json.loads((tmp_path / "out" / "d1.meta.json").read_text())
    assert meta["normaliser"] == "basic-1" and meta["recognisers"] == NAMES
    CALLS.clear()
    before = (tmp_path / "out" / "d123.jsonl").read_bytes()
    again = build(data, tmp_path / "out")
    assert (
        not CALLS
        and again["recognisers"] == summary["recognisers"]
        and (tmp_path / "out" / "d123.jsonl").read_bytes() == before
    )
    sound(tmp_path / "u1.wav", 99, 0.65)
    build(data, tmp_path / "out")
    assert CALLS == [1], "a changed file is heard again"
    json.dumps(again)


def test_hypotheses_from_files(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    rows = [{"id": f"u{i}", "texts": ["number one", f"number {i} spoken"]} for i in range(7)]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "third.jsonl").write_text(json.dumps({"audio_filepath": "/elsewhere/u0.wav", "pred_text": "x"}) + "\n")
    files = [str(tmp_path / "both.jsonl"), str(tmp_path / "third.jsonl")]
    summary = build(data, tmp_path / "out", recognisers=[], hypotheses=files)
    assert summary["recognisers"] == {"both:0": 7, "both:1": 7, "third": 1} and summary["facts"]["in_band"] == 7
    for text in ("{", '{"id": "u0"}', "7", '{"id": "stranger", "text": "x"}'):
        (tmp_path / "bad.jsonl").write_text(text + "\n")
        with pytest.raises(UserError, match="bad.jsonl"):
            build(data, tmp_path / "out", recognisers=[], hypotheses=[str(tmp_path / "bad.jsonl")])


def test_what_cannot_work_is_refused_before_anyone_listens(tmp_path: Path) -> None:
    data = corpus(tmp_path, 2)
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "plain.jsonl").write_text(
        json.dumps({"id": "a", "audio_filepath": "u0.wav", "duration": 1.0, "sample_rate": RATE}) + "\n"
    )
    for more in (
        {"recognisers": NAMES[:1]},
        {"normaliser": "nobody-1"},
        {"keywords": str(tmp_path / "empty.txt")},
        {"data": None},
        {"keywords": str(tmp_path / "gone.txt")},
        {"data": str(tmp_path / "plain.jsonl")},
    ):
        with pytest.raises(UserError):
            prepare.run(RlAsr(**({"data": str(data), "recognisers": NAMES, "out": str(tmp_path / "out")} | more)))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "heard").exists()


def test_silence_is_not_shown_and_a_deaf_recogniser_is_refused(tmp_path: Path) -> None:
    save_audio(tmp_path / "quiet.wav", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "q", "audio_filepath": "quiet.wav", "duration": 1.0, "sample_rate": RATE}) + "\n"
    )
    CALLS.clear()
    assert recognise(NAMES[0], read_manifest(tmp_path / "m.jsonl"), tmp_path / "h") == {"q": ""} and not CALLS
    sound(tmp_path / "quiet.wav", 1, 1.0)
    with pytest.raises(UserError, match="test_prepare_asr:poor"):
        recognise(NAMES[1], read_manifest(tmp_path / "m.jsonl"), tmp_path / "h")


def test_the_hallucination_set(tmp_path: Path) -> None:
    data = corpus(tmp_path, 3)
    data.write_text("\n".join(data.read_text().splitlines()[:2]) + "\n")
    sound(tmp_path / "noise" / "n.wav", 5)
    config = Nonspeech(
        noise=[str(tmp_path / "noise")], clean=[str(data)], count=3, max_s=4.0, out=str(tmp_path / "out")
    )
    summary = prepare.run(config)
    rows = read_manifest(find_manifest(tmp_path / "out"))
    hours = sum(u.duration for u in rows[3:6]) / 3600
    assert summary["conditions"]["noise"] == {"rows": 3, "hours": pytest.approx(hours, abs=1e-6), "words": 0}
    assert (
        summary["conditions"]["looped"]["words"] >= 3 * 2 * 4 and len(rows) == summary["manifests"]["manifest"]["rows"]
    )
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == sum(summary["dropped"].values())
    json.dumps(summary)


def test_without_speech_the_set_is_smaller_or_refused(tmp_path: Path) -> None:
    summary = prepare.run(Nonspeech(count=1, max_s=1.0, out=str(tmp_path / "out")))
    assert set(summary["conditions"]) == {"silence", "noise", "music"}
    with pytest.raises(UserError, match="no speech"):
        prepare.run(Nonspeech(count=1, conditions=["cut"], out=str(tmp_path / "out")))


@pytest.mark.parametrize("name", NEW)
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    found: Any = typer.main.get_command(app).commands["prepare"].commands[name]  # type: ignore[attr-defined]
    words = shlex.split(found.epilog.removeprefix("Example: "))
    assert words[:3] == ["rlspeech", "prepare", name]
    found.make_context("x", words[3:])
    assert "Usage" in CliRunner().invoke(app, ["prepare", name, "--help"]).stdout


def test_flags_arrive(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    line = (
        f"prepare rl-asr --data {data} --recogniser {NAMES[0]} --recogniser {NAMES[1]} --rows 6 --band 0.1 0.9 --seed 3"
    )
    line += f" --out {tmp_path}/o --json -q"
    result = CliRunner().invoke(app, [*shlex.split(line), "--set", "long_share=0"])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["facts"]["in_band"] == 6 and answer["manifests"]["d1"]["rows"] == 3
    meta = json.loads((tmp_path / "o" / "d0.meta.json").read_text())
    assert (meta["settings"]["band"], meta["seed"]) == ([0.1, 0.9], 3)
    line = f"prepare nonspeech --condition silence --condition music --count 2 --max-s 1 --out {tmp_path}/n --json -q"
    assert set(json.loads(CliRunner().invoke(app, shlex.split(line)).stdout)["conditions"]) == {"silence", "music"}
