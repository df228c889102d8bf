"""Enhancing files: names, lengths, and what may not be lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile as sf
from tiny_avse import RATE, checkpoint, clip, reference
from tiny_runs import tone

from rlspeech.corpora import lips
from rlspeech.corpora.faces import Face
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.video import load_lips, save_lips
from rlspeech.stages import enhance as infer
from rlspeech.stages.enhance import Enhance
from rlspeech.tasks.avse import enhancer
from rlspeech.types import UserError


class Half:
    """Halves its input; refuses clips whose key says so."""

    sample_rate, channels, uses_video = RATE, 1, False
    longest = 0

    def infer(self, wavs: Sequence[np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
        self.longest = max(self.longest, *(len(w) for w in wavs))
        if any(k.startswith("boom") for k in keys):
            raise RuntimeError("out of memory")
        return [w * 0.5 for w in wavs]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Half:
    half = Half()

    class Task:
        uses_video = False

        def load(self, name: str, device: Any) -> tuple[str, dict[str, Any]]:
            return name, {}

        def enhancer(self, model: str, **options: Any) -> Half:
            return half

    monkeypatch.setattr(infer, "get_task", lambda name: Task())
    return half


def _run(tmp_path: Path, *inputs: Path, **changes: Any) -> dict[str, Any]:
    settings = {"inputs": [str(i) for i in inputs], "out": str(tmp_path / "out"), "device": "cpu"}
    return infer.run(Enhance(**{**settings, **changes}))


def test_files_folders_and_manifests(tmp_path: Path, model: Half, capsys: pytest.CaptureFixture[str]) -> None:
    save_audio(tmp_path / "one.wav", tone(300, 0.5), RATE)
    save_audio(tmp_path / "in" / "a" / "two.flac", tone(300, 0.5), RATE)
    sf.write(tmp_path / "in" / "three.ogg", tone(300, 0.5), RATE)
    (tmp_path / "in" / "readme.txt").write_text("no audio")
    row = {"id": "seg", "audio_filepath": "one.wav", "offset": 0.1, "duration": 0.2, "sample_rate": RATE}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    result = _run(tmp_path, tmp_path / "one.wav", tmp_path / "in", tmp_path / "m.jsonl")
    assert (result["enhanced"], result["failed"]) == (4, 0)
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["a/two.flac", "one.wav", "seg.flac", "three.flac"]
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "one.wav"), 0.5 * tone(300, 0.5), atol=1e-4)
    assert len(load_audio(tmp_path / "out" / "seg.flac")) == int(0.2 * RATE)
    out, err = capsys.readouterr()
    assert "enhanced" in out and "next: rlspeech reward" in err


def test_long_files_go_in_chunks_without_a_seam(tmp_path: Path, model: Half) -> None:
    long = tone(300, 25.0)
    save_audio(tmp_path / "long.wav", long, RATE)
    _run(tmp_path, tmp_path / "long.wav", chunk_s=4.0)
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "long.wav"), 0.5 * long, atol=1e-4)
    assert model.longest == 4 * RATE


def test_stereo_and_other_rates_are_said(tmp_path: Path, model: Half, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "s.wav", np.stack([tone(300, 0.5), -tone(300, 0.5)], 1) * [1, 0.5], 44100)
    _run(tmp_path, tmp_path / "s.wav")
    info = sf.info(tmp_path / "out" / "s.wav")
    assert (info.channels, info.samplerate) == (1, RATE)
    err = capsys.readouterr().err
    assert "1 file had several channels" in err and "from 44100 to 16000 Hz" in err


def test_bad_files_fail_alone(tmp_path: Path, model: Half) -> None:
    folder = tmp_path / "in"
    save_audio(folder / "good.wav", tone(300, 0.5), RATE)
    save_audio(folder / "boom.wav", tone(300, 0.5), RATE)
    save_audio(folder / "silent.wav", np.zeros(RATE, dtype=np.float32), RATE)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "torn.flac").write_bytes(b"fLaC")
    sf.write(folder / "nan.wav", np.full(100, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    sf.write(folder / "none.wav", np.zeros(0, dtype=np.float32), RATE)
    result = _run(tmp_path, folder, tmp_path / "gone.wav")
    assert (result["enhanced"], result["failed"]) == (2, 6)
    reasons = {Path(k).name: v for k, v in result["errors"].items()}
    assert "out of memory" in reasons["boom.wav"] and "NaN" in reasons["nan.wav"]
    assert reasons["gone.wav"] == "missing file"
    with pytest.raises(UserError, match="1 file"):
        _run(tmp_path, tmp_path / "gone.wav")


def test_results_are_skipped_unless_asked(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "a.wav", tone(300, 0.5), RATE)
    _run(tmp_path, tmp_path / "a.wav")
    save_audio(tmp_path / "a.wav", 0.5 * tone(300, 0.5), RATE)
    assert _run(tmp_path, tmp_path / "a.wav")["skipped"] == 1
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "a.wav"), 0.5 * tone(300, 0.5), atol=1e-4)
    assert _run(tmp_path, tmp_path / "a.wav", overwrite=True)["enhanced"] == 1
    np.testing.assert_allclose(load_audio(tmp_path / "out" / "a.wav"), 0.25 * tone(300, 0.5), atol=1e-4)


def test_inputs_are_never_overwritten(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "in" / "a.wav", tone(300, 0.5), RATE)
    before = (tmp_path / "in" / "a.wav").read_bytes()
    for inputs in ([tmp_path / "in"], [tmp_path / "in" / "a.wav"]):
        with pytest.raises(UserError, match="overwritten"):
            _run(tmp_path, *inputs, out=str(tmp_path / "in"), overwrite=True)
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "in" / "a.wav", tmp_path / "out" / "a.wav")
    with pytest.raises(UserError, match="overwritten"):
        _run(tmp_path, tmp_path / "in", overwrite=True)
    save_audio(tmp_path / "x" / "b.wav", tone(300, 0.5), RATE)
    save_audio(tmp_path / "y" / "b.wav", tone(300, 0.5), RATE)
    with pytest.raises(UserError, match="overwritten"):
        _run(tmp_path, tmp_path / "x" / "b.wav", tmp_path / "y", out=str(tmp_path / "y"), overwrite=True)
    assert (tmp_path / "in" / "a.wav").read_bytes() == before


def test_two_files_of_one_name_and_results_inside_the_input(tmp_path: Path, model: Half) -> None:
    save_audio(tmp_path / "x" / "a.wav", tone(300, 0.5), RATE)
    save_audio(tmp_path / "y" / "a.wav", tone(300, 0.5), RATE)
    result = _run(tmp_path, tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav")
    assert (result["enhanced"], result["failed"]) == (1, 1)
    assert "would have the name" in next(iter(result["errors"].values()))
    for expected in (1, 0):
        result = _run(tmp_path, tmp_path / "x", out=str(tmp_path / "x" / "enhanced"))
        assert (result["enhanced"], result["skipped"]) == (expected, 1 - expected)


MISTAKES: list[tuple[dict[str, Any], str]] = [({"inputs": []}, "enhance"), ({"out": None}, "output"), ({}, r"\.flac")]


@pytest.mark.parametrize(("changes", "what"), MISTAKES)
def test_mistakes(tmp_path: Path, model: Half, changes: dict[str, Any], what: str) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=what):
        _run(tmp_path, tmp_path / "void", **changes)


# -- files that have a video: where it is found, that it is the right stretch, and files that go on without

SAMPLES = 9000
CLOSE = 2e-4  # results are stored in 16 bits


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Clips a, b and c of one folder, their mouths in another one."""
    checkpoint(tmp_path / "net")
    for i, name in enumerate("abc"):
        noisy, _, mouth = clip(i, SAMPLES)
        save_audio(tmp_path / "in" / f"{name}.wav", noisy, RATE)
        save_lips(tmp_path / "mouths" / f"{name}.npz", mouth)
    enhancer._whole.cache_clear()
    return tmp_path


def _avse(world: Path, *inputs: Path, **changes: Any) -> dict[str, Any]:
    return _run(world, *(inputs or [world / "in"]), **{"task": "avse", "model": str(world / "net"), **changes})


def _expected(world: Path, name: str, mouth: Path | np.ndarray | None, model: str = "net") -> np.ndarray:
    return reference(world / model, load_audio(world / "in" / f"{name}.wav"), mouth)


def _check(world: Path, name: str, expected: np.ndarray, channels: int = 1, atol: float = CLOSE) -> None:
    np.testing.assert_allclose(load_audio(world / "out" / name, channels=channels), expected, atol=atol)


def _talking(path: Path, sound: np.ndarray | None, faces: bool = True) -> Path:
    """A video of a drawn head with two white eyes and a moving mouth; without ``faces`` an empty picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=Fraction(25))
        pictures.width, pictures.height, pictures.pix_fmt = 320, 240, "yuv420p"
        track = container.add_stream("pcm_s16le", rate=RATE, layout="mono") if sound is not None else None
        for k in range(-(-SAMPLES // 640)):
            picture = np.full((240, 320), 110, np.uint8)
            if faces:
                for x in (135, 185):
                    cv2.circle(picture, (x, 90), 5, 255, -1)
                cv2.ellipse(picture, (160, 148), (19, 3 + 2 * (k % 5)), 0, 0, 360, 0, -1)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(pictures.encode())
        if track is not None and sound is not None:
            piece = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts = RATE, 0
            container.mux(track.encode(piece))
            container.mux(track.encode())
    return path


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    def eyes(frame: np.ndarray) -> list[Face]:
        rows, columns = np.nonzero(frame > 190)
        if not len(rows):
            return []
        left, right = columns[columns < 160].mean(), columns[columns >= 160].mean()
        side = (right - left) / 0.335
        return [Face((160 - side / 2, 90 - 0.395 * side, side, side), np.array([[left, 90.0], [right, 90.0]]))]

    monkeypatch.setattr(lips, "_detector", lambda _: eyes)


def test_crops_beside_the_file_or_in_a_folder(world: Path) -> None:
    shutil.copy(world / "mouths" / "a.npz", world / "in" / "a.npz")
    result = _avse(world)
    assert (result["enhanced"], result["failed"], result["without_video"]) == (3, 0, 2)
    _check(world, "a.wav", _expected(world, "a", world / "mouths" / "a.npz"))
    _check(world, "b.wav", _expected(world, "b", None))
    assert np.abs(_expected(world, "b", world / "mouths" / "b.npz") - _expected(world, "b", None)).max() > 5 * CLOSE
    result = _avse(world, video=str(world / "mouths"), overwrite=True)
    assert "without_video" not in result
    for name in "abc":
        _check(world, f"{name}.wav", _expected(world, name, world / "mouths" / f"{name}.npz"))


def test_one_video_for_one_file(world: Path) -> None:
    _avse(world, world / "in" / "a.wav", video=str(world / "mouths" / "c.npz"))
    _check(world, "a.wav", _expected(world, "a", world / "mouths" / "c.npz"))
    wrong = (("c.npz", "avse", "one video for 3"), ("void", "avse", "no video"), ("", "flowse", "null"))
    for video, task, what in wrong:
        with pytest.raises(UserError, match=what):
            _avse(world, video=str(world / "mouths" / video), task=task)


def test_a_bad_video_is_left_out(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "in" / "a.npz").write_bytes((world / "mouths" / "a.npz").read_bytes()[:90])
    (world / "in" / "b.mp4").write_bytes(b"")
    np.savez(world / "in" / "c.npz", frames=np.zeros((3, 4)), fps=25.0)
    result = _avse(world)
    assert (result["enhanced"], result["failed"], result["without_video"]) == (3, 0, 3)
    err = capsys.readouterr().err
    assert "were enhanced without video: empty file (0 bytes)" in err and "a.npz is not used: no lip crops" in err
    _check(world, "c.wav", _expected(world, "c", None))


def test_rows_take_their_stretch_of_the_video(world: Path) -> None:
    noisy, _, mouth = clip(0, SAMPLES)
    row = {"id": "part", "audio_filepath": "in/a.wav", "lips_filepath": "mouths/a.npz", "sample_rate": RATE}
    (world / "m.jsonl").write_text(json.dumps(row | {"offset": 0.16, "duration": 0.3}) + "\n")
    result = _avse(world, world / "m.jsonl")
    assert "without_video" not in result
    stretch = load_audio(world / "in" / "a.wav", RATE, 0.16, 0.3)
    assert len(stretch) == 4800
    _check(world, "part.flac", reference(world / "net", stretch, mouth[4:12]))


def test_long_files_see_in_every_chunk_what_belongs_there(world: Path) -> None:
    """Chunks have statistics of their own, so their result is near the whole's, and nearer than with other frames."""
    noisy, _, mouth = clip(3, 9 * RATE)
    save_audio(world / "long.wav", noisy, RATE)
    save_lips(world / "long.npz", mouth)
    _avse(world, world / "long.wav", chunk_s=3.5)
    got, stored = load_audio(world / "out" / "long.wav"), load_audio(world / "long.wav")
    whole, late = reference(world / "net", stored, mouth), reference(world / "net", stored, np.roll(mouth, 7, axis=0))
    size = np.sqrt(np.mean(whole**2))
    near, far = (float(np.sqrt(np.mean((got - w) ** 2)) / size) for w in (whole, late))
    assert near < 0.05 and near < 0.5 * far


def test_a_video_beside_the_file_is_cut_on_the_fly(world: Path, detector: None) -> None:
    video = _talking(world / "in" / "a.mov", None)
    _talking(world / "in" / "b.MKV", None, faces=False)
    result = _avse(world)
    assert (result["enhanced"], result["without_video"]) == (3, 2)
    assert lips.crop_clip(video, world / "cut.npz")["face_rate"] == 1.0
    expected = _expected(world, "a", world / "cut.npz")
    _check(world, "a.wav", expected)
    assert np.abs(expected - _expected(world, "a", None)).max() > 5 * CLOSE
    assert load_lips(world / "cut.npz").shape == (15, 96, 96)


def test_the_sound_track_of_a_video(world: Path, detector: None) -> None:
    noisy, _, _ = clip(1, SAMPLES)
    video = _talking(world / "talks" / "t.mov", noisy)
    _talking(world / "talks" / "mute.mov", None)
    (world / "talks" / "torn.mp4").write_bytes(video.read_bytes()[:300])
    result = _avse(world, world / "talks")
    assert (result["enhanced"], result["failed"]) == (1, 2) and "without_video" not in result
    reasons = {Path(k).name: v for k, v in result["errors"].items()}
    assert "no sound track" in reasons["mute.mov"] and "unreadable" in reasons["torn.mp4"]
    got = load_audio(world / "out" / "t.flac")
    assert len(got) == SAMPLES
    enhancer._whole.cache_clear()
    expected = reference(world / "net", noisy, enhancer.load_mouth(video, 0.0, SAMPLES / RATE))
    np.testing.assert_allclose(got, expected, atol=2 * CLOSE)


def test_two_ears_stay_two(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(world / "two", channels=2)
    noisy, _, _ = clip(0, SAMPLES)
    sf.write(world / "in" / "a.wav", np.stack([noisy, -0.5 * noisy], 1), RATE)
    sf.write(world / "in" / "b.wav", np.stack([noisy] * 3, 1), RATE)
    result = _avse(world, video=str(world / "mouths"), model=str(world / "two"))
    assert result["failed"] == 0 and [sf.info(world / "out" / f"{n}.wav").channels for n in "abc"] == [2, 1, 1]
    stored = load_audio(world / "in" / "a.wav", channels=2)
    _check(world, "a.wav", reference(world / "two", stored, world / "mouths" / "a.npz"), channels=2)
    assert "1 file had several channels" in capsys.readouterr().err
