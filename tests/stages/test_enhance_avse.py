"""Enhancing files that have a video: where it is found, that it is the right stretch, and files that go on without."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile as sf
from tiny_avse import RATE, checkpoint, clip, reference

from rlspeech.corpora.faces import Face
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.video import load_lips, save_lips
from rlspeech.stages import enhance as infer
from rlspeech.stages.enhance import Enhance
from rlspeech.tasks.avse import enhancer
from rlspeech.types import UserError

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


def _run(world: Path, *inputs: str | Path, **changes: Any) -> dict[str, Any]:
    settings = {"inputs": [str(i) for i in inputs or [world / "in"]], "out": str(world / "out"), "device": "cpu"}
    return infer.run(Enhance(**{**settings, "task": "avse", "model": str(world / "net"), **changes}))


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

    monkeypatch.setattr(enhancer, "_detector", lambda: eyes)


def test_crops_beside_the_file_or_in_a_folder(world: Path) -> None:
    shutil.copy(world / "mouths" / "a.npz", world / "in" / "a.npz")
    result = _run(world)
    assert (result["enhanced"], result["failed"], result["without_video"]) == (3, 0, 2)
    _check(world, "a.wav", _expected(world, "a", world / "mouths" / "a.npz"))
    _check(world, "b.wav", _expected(world, "b", None))
    assert np.abs(_expected(world, "b", world / "mouths" / "b.npz") - _expected(world, "b", None)).max() > 5 * CLOSE
    result = _run(world, video=str(world / "mouths"), overwrite=True)
    assert "without_video" not in result
    for name in "abc":
        _check(world, f"{name}.wav", _expected(world, name, world / "mouths" / f"{name}.npz"))


def test_one_video_for_one_file(world: Path) -> None:
    _run(world, world / "in" / "a.wav", video=str(world / "mouths" / "c.npz"))
    _check(world, "a.wav", _expected(world, "a", world / "mouths" / "c.npz"))
    for changes, what in [
        ({"video": str(world / "mouths" / "c.npz")}, "one video for 3"),
        ({"video": str(world / "void")}, "no video at"),
        ({"video": str(world / "mouths"), "task": "flowse"}, "--video"),
    ]:
        with pytest.raises(UserError, match=what):
            _run(world, **changes)


def test_a_bad_video_costs_the_video(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "in" / "a.npz").write_bytes((world / "mouths" / "a.npz").read_bytes()[:90])
    (world / "in" / "b.mp4").write_bytes(b"")
    np.savez(world / "in" / "c.npz", frames=np.zeros((3, 4)), fps=25.0)
    result = _run(world)
    assert (result["enhanced"], result["failed"], result["without_video"]) == (3, 0, 3)
    err = capsys.readouterr().err
    assert "were enhanced without video: empty file (0 bytes)" in err and "a.npz is not used: no lip crops" in err
    _check(world, "c.wav", _expected(world, "c", None))


def test_rows_take_their_stretch_of_the_video(world: Path) -> None:
    noisy, _, mouth = clip(0, SAMPLES)
    row = {"id": "part", "audio_filepath": "in/a.wav", "lips_filepath": "mouths/a.npz", "sample_rate": RATE}
    (world / "m.jsonl").write_text(json.dumps(row | {"offset": 0.16, "duration": 0.3}) + "\n")
    result = _run(world, world / "m.jsonl")
    assert "without_video" not in result
    stretch = load_audio(world / "in" / "a.wav", RATE, 0.16, 0.3)
    assert len(stretch) == 4800
    _check(world, "part.flac", reference(world / "net", stretch, mouth[4:12]))


def test_long_files_see_in_every_chunk_what_belongs_there(world: Path) -> None:
    """Chunks have statistics of their own, so their result is near the whole's, and nearer than with other frames."""
    noisy, _, mouth = clip(3, 9 * RATE)
    save_audio(world / "long.wav", noisy, RATE)
    save_lips(world / "long.npz", mouth)
    _run(world, world / "long.wav", chunk_s=3.5)
    got, heard = load_audio(world / "out" / "long.wav"), load_audio(world / "long.wav")
    whole, late = reference(world / "net", heard, mouth), reference(world / "net", heard, np.roll(mouth, 7, axis=0))
    size = np.sqrt(np.mean(whole**2))
    near, far = (float(np.sqrt(np.mean((got - w) ** 2)) / size) for w in (whole, late))
    assert near < 0.05 and near < 0.5 * far


def test_a_video_beside_the_file_is_cut_on_the_fly(world: Path, detector: None) -> None:
    from rlspeech.corpora.lips import crop_clip

    video = _talking(world / "in" / "a.mov", None)
    _talking(world / "in" / "b.MKV", None, faces=False)
    result = _run(world)
    assert (result["enhanced"], result["without_video"]) == (3, 2)
    assert crop_clip(video, world / "cut.npz", detect=enhancer._detector())["face_rate"] == 1.0
    expected = _expected(world, "a", world / "cut.npz")
    _check(world, "a.wav", expected)
    assert np.abs(expected - _expected(world, "a", None)).max() > 5 * CLOSE
    assert load_lips(world / "cut.npz").shape == (15, 96, 96)


def test_the_sound_track_of_a_video(world: Path, detector: None) -> None:
    noisy, _, _ = clip(1, SAMPLES)
    video = _talking(world / "talks" / "t.mov", noisy)
    _talking(world / "talks" / "mute.mov", None)
    (world / "talks" / "torn.mp4").write_bytes(video.read_bytes()[:300])
    result = _run(world, world / "talks")
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
    result = _run(world, video=str(world / "mouths"), model=str(world / "two"))
    assert result["failed"] == 0 and [sf.info(world / "out" / f"{n}.wav").channels for n in "abc"] == [2, 1, 1]
    heard = load_audio(world / "in" / "a.wav", channels=2)
    _check(world, "a.wav", reference(world / "two", heard, world / "mouths" / "a.npz"), channels=2)
    assert "1 file had several channels" in capsys.readouterr().err
