"""Evaluation of models that see: right, shuffled and hidden videos in one table, and videos that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_avse import RATE, checkpoint, clip, reference
from tiny_speech import read_rows

from rlspeech.config import Evaluate
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.manifest import read_manifest
from rlspeech.data.video import save_lips
from rlspeech.models.hub import fingerprint
from rlspeech.stages import evaluate
from rlspeech.tasks.avse.enhancer import neighbours
from rlspeech.types import UserError, Utterance

LENGTHS = (9000, 12000, 10240, 7000)
CLOSE = 2e-4  # results are stored in 16 bits


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rows = []
    for i, samples in enumerate(LENGTHS):
        noisy, clean, mouth = clip(i, samples)
        save_audio(tmp_path / "noisy" / f"u{i}.wav", noisy, RATE)
        save_audio(tmp_path / "clean" / f"u{i}.wav", clean, RATE)
        save_lips(tmp_path / "lips" / f"u{i}.npz", mouth)
        row = {"id": f"u{i}", "audio_filepath": f"noisy/u{i}.wav", "target_filepath": f"clean/u{i}.wav"}
        rows.append({**row, "lips_filepath": f"lips/u{i}.npz", "sample_rate": RATE, "duration": samples / RATE})
    _write(tmp_path, rows)
    checkpoint(tmp_path / "net")
    return tmp_path


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def _change(folder: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    lines = (folder / "test.jsonl").read_text().splitlines()
    _write(folder, [change(i, json.loads(line)) for i, line in enumerate(lines)])


def _run(folder: Path, out: str = "out", **changes: Any) -> dict[str, Any]:
    settings = {"task": "avse", "data": str(folder / "test.jsonl"), "models": {"net": str(folder / "net")}}
    settings |= {"metrics": ["si_sdr"], "batch": 4, "out": str(folder / out), "device": "cpu", "workers": 0}
    return evaluate.run(Evaluate(**{**settings, "players": 1, **changes}))


def _rows(folder: Path, out: str = "out") -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["system"], r["key"]): r for r in read_rows(folder / out, "scores.jsonl")}


def _made(folder: Path, system: str, i: int, out: str = "out") -> np.ndarray:
    return load_audio(folder / out / "audio" / system / f"u{i}.flac")


def _check(folder: Path, i: int, mouth: Path | None) -> None:
    """What ``net`` made of a row is what it makes of it alone, with this mouth."""
    expected = reference(folder / "net", load_audio(folder / "noisy" / f"u{i}.wav"), mouth)
    np.testing.assert_allclose(_made(folder, "net", i), expected, atol=CLOSE)


def test_a_model_and_its_control_in_one_table(world: Path) -> None:
    result = _run(world, shuffled=["net"])
    assert list(result["systems"]) == ["input", "net", "net-shuffled"]
    assert result["baseline"] == "net" and "without_video" not in result
    assert result["deltas"]["net-shuffled"]["si_sdr"]["n"] == len(LENGTHS)
    rows = _rows(world)
    for i in range(len(LENGTHS)):
        noisy = load_audio(world / "noisy" / f"u{i}.wav")
        right = reference(world / "net", noisy, world / "lips" / f"u{i}.npz")
        wrong = reference(world / "net", noisy, world / "lips" / f"u{(i + 1) % len(LENGTHS)}.npz")
        assert np.abs(right - wrong).max() > 5 * CLOSE, "this model sees nothing; the test would prove nothing"
        np.testing.assert_allclose(_made(world, "net", i), right, atol=CLOSE)
        np.testing.assert_allclose(_made(world, "net-shuffled", i)[:7000], wrong[:7000], atol=CLOSE)
        assert rows["net", f"u{i}"]["video"] == "right" and rows["net-shuffled", f"u{i}"]["video"] == "shuffled"
        assert "video" not in rows["input", f"u{i}"]
    assert "net-shuffled against net" in (world / "out" / "report.html").read_text()


def test_neither_batch_nor_limit_decides_whose_video_is_seen(world: Path) -> None:
    whole = _run(world, video="shuffled")
    single = _run(world, "single", video="shuffled", batch=1)
    one, other = (r["systems"]["net"]["si_sdr"]["mean"] for r in (single, whole))
    assert one == pytest.approx(other, abs=0.02)
    _run(world, "first", video="shuffled", limit=1)
    np.testing.assert_allclose(_made(world, "net", 0, "first"), _made(world, "net", 0), atol=CLOSE)


def test_hidden_video(world: Path) -> None:
    _run(world, video="none")
    _check(world, 1, None)
    row = _rows(world)["net", "u1"]
    assert row["video"] == "none" and "video_error" not in row


def test_a_bad_video_is_left_out_until_it_is_mended(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {i: (world / "lips" / f"u{i}.npz").read_bytes() for i in (0, 1)}
    (world / "lips" / "u0.npz").write_bytes(good[0][:100])
    (world / "lips" / "u1.npz").write_bytes(b"")
    _change(world, lambda i, row: row | {"lips_filepath": "lips/gone.npz"} if i == 2 else row)
    result = _run(world)
    assert result["systems"]["net"]["si_sdr"]["n"] == len(LENGTHS) and result["rows_with_errors"] == 0
    assert result["without_video"] == {"net": 3}
    rows = _rows(world)
    assert [rows["net", f"u{i}"]["video"] for i in range(4)] == ["none", "none", "none", "right"]
    assert rows["net", "u2"]["video_error"] == "missing file"
    assert "1 of 4 enhanced without video (u2): missing file" in capsys.readouterr().out
    assert "enhanced without video (u2): missing file" in (world / "out" / "report.html").read_text()
    for i in (0, 1):
        _check(world, i, None)
        (world / "lips" / f"u{i}.npz").write_bytes(good[i])
    again = _run(world)
    assert again["without_video"] == {"net": 1}
    row = _rows(world)["net", "u0"]
    assert row["video"] == "right" and "video_error" not in row
    _check(world, 0, world / "lips" / "u0.npz")


def test_videos_without_mouth_crops(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def uncut(i: int, row: dict[str, Any]) -> dict[str, Any]:
        bare = {k: v for k, v in row.items() if k != "lips_filepath"}
        return bare | {"video_filepath": f"u{i}.mp4"} if i < 2 else row

    _change(world, uncut)
    result = _run(world)
    assert result["without_video"] == {"net": 2}
    assert _rows(world)["net", "u0"]["video_error"] == "no mouth crops in the manifest"
    assert capsys.readouterr().err.count("rlspeech prepare lips") == 1


def test_both_ears_are_kept_and_their_mean_is_scored(world: Path) -> None:
    noisy, _, _ = clip(0, LENGTHS[0])
    ears = np.stack([noisy, 0.5 * noisy[::-1]])
    sf.write(world / "noisy" / "u0.wav", ears.T, RATE)
    result = _run(world, models={"two": str(checkpoint(world / "two", channels=2))})
    assert result["systems"]["two"]["si_sdr"]["n"] == len(LENGTHS)
    saved, _ = sf.read(world / "out" / "audio" / "two" / "u0.flac", dtype="float32")
    stored = load_audio(world / "noisy" / "u0.wav", channels=2)
    np.testing.assert_allclose(saved.T, reference(world / "two", stored, world / "lips" / "u0.npz"), atol=CLOSE)
    assert np.abs(saved[:, 0] - saved[:, 1]).max() > 100 * CLOSE
    assert sf.info(world / "out" / "audio" / "two" / "u1.flac").channels == 1
    tracks = (load_audio(world / "clean" / "u0.wav"), saved.mean(1))
    clean, mean = (x - x.mean() for x in (track.astype(np.float64) for track in tracks))
    scale = mean @ clean / (clean @ clean)
    expected = 10 * np.log10(np.sum((scale * clean) ** 2) / np.sum((mean - scale * clean) ** 2))
    assert _rows(world)["two", "u0"]["si_sdr"] == pytest.approx(expected, abs=0.1)


def test_results_of_other_videos_are_not_taken_up(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(world)
    right = _made(world, "net", 0)
    with pytest.raises(UserError, match="video"):
        _run(world, video="shuffled")
    (world / "out" / "config.resolved.json").unlink()  # without the run's own guard the table's must hold
    _run(world, video="shuffled")
    assert "shuffled video now" in capsys.readouterr().err
    assert _rows(world)["net", "u0"]["video"] == "shuffled" and np.abs(_made(world, "net", 0) - right).max() > 5 * CLOSE
    one = fingerprint(str(world / "net"), "avse")
    assert one != fingerprint(str(checkpoint(world / "other", seed=1)), "avse")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"shuffled": ["else"]}, "else"),
        ({"shuffled": ["net"], "video": "shuffled"}, "--shuffled"),
        ({"task": "flowse", "shuffled": ["net"]}, "shuffled"),
        ({"task": "flowse", "video": "none"}, "video"),
        ({"task": "flowse"}, "--task avse"),
        ({"models": {"net": "net", "net-shuffled": "net"}, "shuffled": ["net"]}, "net-shuffled"),
    ],
)
def test_mistakes_with_videos(world: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        _run(world, **changes)
    assert not list((world / "out").glob("audio/*/*"))


def test_neighbours_are_of_other_speech(world: Path) -> None:
    utts = read_manifest(world / "test.jsonl")
    assert {k: v.id for k, v in neighbours(utts).items()} == {"u0": "u1", "u1": "u2", "u2": "u3", "u3": "u0"}
    utts[1].lips_filepath, utts[2].extra, utts[0].extra = utts[0].lips_filepath, {"clean_id": "a"}, {"clean_id": "a"}
    utts.append(Utterance("blind", "x.wav", 1.0, RATE))
    found = {k: v.id for k, v in neighbours(utts).items()}
    assert found == {"u0": "u3", "u1": "u2", "u2": "u3", "u3": "u0", "blind": "u0"}
    with pytest.raises(UserError, match="shuffled"):
        neighbours(utts[:2])
    with pytest.raises(UserError, match="shuffled"):
        neighbours([utts[0], utts[2]])
