"""Crops on disk: what goes in comes out, and what is no such file costs its clip with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspeech.data.audio import AudioError
from rlspeech.data.video import LIPS_FPS, LipsError, centre_crop, frames_of, load_lips, save_lips


def numbered(count: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint8), height * width).reshape(count, height, width)


def first(frames: np.ndarray) -> list[int]:
    return [int(v) for v in frames[:, 0, 0]]


def test_there_and_back(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (7, 5, 9), dtype=np.uint8)
    found = np.array([1, 1, 0, 1, 0, 1, 1], dtype=bool)
    save_lips(tmp_path / "deep" / "a.npz", frames, found)
    assert np.array_equal(load_lips(tmp_path / "deep" / "a.npz"), frames)
    with np.load(tmp_path / "deep" / "a.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["found"], found) and float(stored["fps"]) == LIPS_FPS
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.npz"]  # no part is left
    save_lips(tmp_path / "deep" / "a.npz", frames[:2])
    assert len(load_lips(tmp_path / "deep" / "a.npz")) == 2


@pytest.mark.parametrize(
    ("start_s", "frames", "want"),
    [
        (0.0, None, [0, 1, 2, 3, 4]),
        (0.08, None, [2, 3, 4]),
        (0.0, 3, [0, 1, 2]),
        (0.04, 3, [1, 2, 3]),
        (0.12, 4, [3, 4, 4, 4]),  # shorter than its audio: the last frame is held
        (9.0, 2, [4, 4]),
        (9.0, None, [4]),
        (-0.04, 3, [0, 0, 1]),
        (0.019, 2, [0, 1]),
        (0.021, 2, [1, 2]),
    ],
)
def test_a_stretch_of_it(tmp_path: Path, start_s: float, frames: int | None, want: list[int]) -> None:
    save_lips(tmp_path / "a.npz", numbered(5))
    if start_s >= 0 or frames is not None:
        assert first(load_lips(tmp_path / "a.npz", start_s, frames)) == want


def arrays(path: Path, **content: Any) -> None:
    with path.open("wb") as f:
        np.savez_compressed(f, **content)


GOOD = {"frames": numbered(3), "fps": np.float32(25)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"frames": GOOD["frames"]}, "no lip crops"),
        ({"fps": GOOD["fps"]}, "no lip crops"),
        (GOOD | {"frames": numbered(3).astype(np.float32)}, "float32"),
        (GOOD | {"frames": numbered(3)[0]}, "shape"),
        (GOOD | {"frames": numbered(3)[:0]}, "shape"),
        (GOOD | {"frames": np.zeros((2, 1, 1025), np.uint8)}, "shape"),
        (GOOD | {"fps": np.float32(30)}, "30 frames a second instead of 25"),
        (GOOD | {"fps": np.float32("nan")}, "instead of 25"),
        (GOOD | {"fps": np.zeros(3)}, "no lip crops"),
    ],
)
def test_other_arrays(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    arrays(tmp_path / "a.npz", **content)
    with pytest.raises(LipsError, match=reason):
        load_lips(tmp_path / "a.npz")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(LipsError, match="missing file"):
        load_lips(path)
    save_lips(path, np.random.default_rng(0).integers(0, 255, (20, 16, 16), dtype=np.uint8))
    whole = path.read_bytes()
    for bad in (b"", b"not an archive", whole[: len(whole) // 2], whole[:200] + bytes(60) + whole[260:]):
        path.write_bytes(bad)
        with pytest.raises(LipsError):
            load_lips(path)
    assert issubclass(LipsError, AudioError)  # so that whoever drops bad audio drops these too


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    ran: list[int] = []

    class Trap:
        def __reduce__(self) -> Any:
            return ran.append, (1,)

    arrays(tmp_path / "a.npz", frames=np.array([Trap()], dtype=object), fps=np.float32(25))
    ran.clear()
    with pytest.raises(LipsError):
        load_lips(tmp_path / "a.npz")
    assert not ran


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 5), np.float32), np.zeros((1, 2, 3, 4), np.uint8)]
)
def test_only_grey_bytes_are_written(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        save_lips(tmp_path / "a.npz", frames)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lips(tmp_path / "a.npz", numbered(3))

    def full(path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        save_lips(tmp_path / "a.npz", numbered(5))
    assert len(load_lips(tmp_path / "a.npz")) == 3 and len(list(tmp_path.iterdir())) == 1


def test_the_centre() -> None:
    frames = np.arange(2 * 7 * 10, dtype=np.uint8).reshape(2, 7, 10)
    assert np.array_equal(centre_crop(frames, 3), frames[:, 2:5, 3:6])
    assert np.array_equal(centre_crop(frames, 7), frames[:, :, 1:8])
    small = centre_crop(frames, 12)
    assert small.shape == (2, 12, 12) and np.array_equal(small[:, 2:9, 1:11], frames)
    assert np.array_equal(small[:, 0], small[:, 2]) and np.array_equal(
        small[:, :, 11], small[:, :, 10]
    )  # edges are repeated


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.0, 1), (0.04, 1), (0.0401, 2), (1.0, 25), (2.98, 75), (2.9779, 75), (3.00000001, 75)]
)
def test_frames_that_cover_a_stretch(seconds: float, frames: int) -> None:
    assert frames_of(seconds) == frames
