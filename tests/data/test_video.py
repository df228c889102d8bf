"""Videos that the tests write themselves: rates, times, damage, and what must not be opened."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from tiny_corpora import sound as sound_file
from tiny_videos import tone, write_video

from rlspeech.data import video
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.video import LIPS_FPS, LipsError, Stream, load_lips, save_lips


def read_video(path: Path) -> np.ndarray:
    """The frames (F, H, W) of a file without a problem."""
    stream = Stream(path)
    frames = np.stack([*stream.frames()])
    assert stream.problem is None
    return frames


def levels_of(frames: np.ndarray) -> list[int]:
    return [int(v) for v in np.median(frames.reshape(len(frames), -1), axis=1)]


def nearest(times_s: list[float], k: int) -> int:
    """Reference: the frame whose time is nearest to k / 25 s."""
    return min(range(len(times_s)), key=lambda i: (round(abs(times_s[i] - k / 25), 9), i))


LEVELS = [20 + 37 * i % 200 for i in range(50)]  # neighbours lie far apart, further than any codec errs


RATES = [(25, "mp4", "mpeg4"), (50, "avi", "mpeg4"), (30000 / 1001, "mp4", "mpeg4")]
RATES += [(30, "mkv", "ffv1"), (12.5, "mkv", "ffv1")]


@pytest.mark.parametrize(("fps", "suffix", "codec"), RATES)
def test_every_rate_comes_out_at_25(tmp_path: Path, fps: float, suffix: str, codec: str) -> None:
    frames = read_video(write_video(tmp_path / f"v.{suffix}", LEVELS, fps, codec=codec))
    times = [i / fps for i in range(50)]
    assert frames.dtype == np.uint8 and frames.shape == (round(50 / fps * 25), 48, 64)
    wrong = [k for k, level in enumerate(levels_of(frames)) if abs(level - LEVELS[nearest(times, k)]) > 6]
    assert not wrong


def test_variable_rate_follows_the_times(tmp_path: Path) -> None:
    times_ms = [0, 40, 43, 200, 230, 270, 600, 640]
    got = levels_of(read_video(write_video(tmp_path / "v.mkv", LEVELS[:8], times_ms=times_ms, codec="ffv1")))
    want = [LEVELS[nearest([t / 1000 for t in times_ms], k)] for k in range(len(got))]
    assert len(got) in (17, 18) and np.abs(np.subtract(got, want)).max() <= 1  # 0.64 s and the last picture's time


def test_odd_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", LEVELS[:20], size=(75, 101), codec="ffv1")
    assert read_video(path).shape == (20, 75, 101)


class Fake:
    """A decoded frame with the time that the test wants."""

    rotation = 0

    def __init__(self, level: int, time: float | None, width: int = 16, height: int = 12) -> None:
        self.time, self.width, self.height = time, width, height
        self.frame = av.VideoFrame.from_ndarray(np.full((height, width), level, np.uint8), format="gray")

    def reformat(self, **keys: Any) -> Any:
        return self.frame.reformat(**keys)


TIMES: list[tuple[list[float | None], list[int]]] = [
    ([None] * 6, [0, 1, 2, 3, 4, 5]),
    ([0.0, 0.04, None, 0.12], [0, 1, 2, 3]),
    ([0.0, 0.04, 0.0, 0.04], [0, 1, 2, 3]),  # two recordings joined
    ([0.0, 0.04, 5000.0, 5000.04], [0, 1, 2, 3]),  # a broken time stamp
    ([0.0, 0.04, 5000.0, 5000.08, 5000.16], [0, 1, 2, 2, 3, 3, 4]),  # after it the distances count
    ([7.0, 7.04, 7.08], [0, 1, 2]),  # no sound: the first picture is the beginning
    ([0.0, 0.04, 0.04, 0.08], [0, 1, 2, 3]),
]


@pytest.mark.parametrize("case", TIMES)
def test_times_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    times, want = case
    path = write_video(tmp_path / "v.avi", LEVELS[:3], size=(16, 16))
    monkeypatch.setattr(video, "packets", lambda *_: (Fake(10 * i, t) for i, t in enumerate(times)))
    assert [level // 10 for level in levels_of(read_video(path))] == want


def test_a_picture_of_another_size_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.avi", LEVELS[:3])
    monkeypatch.setattr(video, "packets", lambda *_: (Fake(50, i / 25, 16 + 16 * i, 12) for i in range(4)))
    assert read_video(path).shape == (4, 12, 16)


def test_a_video_that_begins_after_its_sound_is_held_in_front(tmp_path: Path) -> None:
    times = [200 + 40 * i for i in range(10)]
    frames = read_video(write_video(tmp_path / "v.mkv", LEVELS[:10], times_ms=times, codec="ffv1", tone_s=0.6))
    assert np.abs(np.subtract(levels_of(frames)[:7], [20] * 6 + [57])).max() <= 1 and len(frames) == 15


def test_a_telephone_held_upright(tmp_path: Path) -> None:
    picture = np.full((48, 64), 30, np.uint8)
    picture[:, :32] = 200  # bright on the left: after a quarter turn clockwise, at the top
    path = write_video(tmp_path / "v.mp4", [picture] * 5)  # type: ignore[list-item]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = read_video(path)[0]
    assert frame.shape == (64, 48) and frame[:24].mean() > 150 > 80 > frame[40:].mean()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.mp4", None, "missing file"),
        ("empty.mp4", b"", "empty file"),
        ("text.mp4", b"not a video at all" * 40, "unreadable"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nv.mkv\n#EXT-X-ENDLIST\n", "unreadable"),
        ("list.mp4", b"ffconcat version 1.0\nfile v.mkv\n", "unreadable"),
    ],
)
def test_files_that_are_no_videos(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    write_video(tmp_path / "v.mkv", LEVELS[:5], codec="ffv1")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_video, video.check_video):
        with pytest.raises(LipsError) as caught:
            read(tmp_path / name)
        assert caught.value.reason.startswith(reason) and str(tmp_path) not in caught.value.reason


def test_a_still_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound, cover = container.add_stream("aac", rate=16000, layout="mono"), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", 0x400  # attached picture
        piece = av.AudioFrame.from_ndarray(np.ones((1, 16000), np.int16), format="s16", layout="mono")
        piece.sample_rate, piece.pts = 16000, 0
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray")
        for stream, frame in ((sound, piece), (cover, picture)):
            container.mux([*stream.encode(frame), *stream.encode(None)])
    still = write_video(tmp_path / "still.mkv", LEVELS[:1], codec="ffv1")
    for path in (tmp_path / "song.mp4", still, sound_file(tmp_path / "alone.wav")):
        for read in (read_video, video.check_video):
            with pytest.raises(LipsError, match="no video"):
                read(path)
    assert len(load_audio(tmp_path / "song.mp4")) >= 16000


def noise(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64), dtype=np.uint8) for _ in range(count)]


def test_truncated_gives_what_is_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", noise(40), codec="ffv1")
    whole = read_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    some = np.stack([*Stream(path).frames()])
    assert 10 <= len(some) <= 30 and np.array_equal(some[:10], whole[:10])
    path = write_video(tmp_path / "v.mp4", noise(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its index stands at the end
    with pytest.raises(LipsError, match="unreadable"):
        read_video(path)
    path = write_video(tmp_path / "w.mkv", noise(40), codec="ffv1")
    path.write_bytes(path.read_bytes()[:900])  # the header is there, no picture is
    with pytest.raises(LipsError):
        read_video(path)


def test_damage_in_the_middle_is_noted_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mkv", LEVELS[:20], codec="ffv1")
    real = video.packets

    def decode() -> None:
        raise av.error.InvalidDataError(1, "broken packet")

    def demux(container: Any, stream: Any) -> Any:
        for i, packet in enumerate(container.demux(stream)):
            yield SimpleNamespace(decode=decode) if i == 7 else packet

    monkeypatch.setattr(video, "packets", lambda c, *rest: real(SimpleNamespace(demux=partial(demux, c)), *rest))
    stream = Stream(path)
    frames = np.stack([*stream.frames()])
    assert stream.problem is not None and stream.problem.startswith("damaged")
    want = LEVELS[:20]
    want[7] = LEVELS[6]  # the one before is held
    assert np.abs(np.subtract(levels_of(frames), want)).max() <= 1


def test_the_sound_of_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", LEVELS[:25], tone_s=1.0)
    assert video.extract_audio(path, tmp_path / "v.flac")
    wav = load_audio(tmp_path / "v.flac")
    assert len(wav) == 16000 and np.abs(wav - tone(1.0) / 32768).max() < 1e-3
    assert not video.extract_audio(write_video(tmp_path / "silent.mp4", LEVELS[:5]), tmp_path / "none.flac")
    assert not (tmp_path / "none.flac").exists()


def test_frames_are_not_gathered() -> None:
    alive = {"now": 0, "most": 0}

    class Tracked(np.ndarray):
        def __array_finalize__(self, _: Any) -> None:
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])

        def __del__(self) -> None:
            alive["now"] -= 1

    frames = ((i / 60, np.zeros((2, 2), np.uint8).view(Tracked)) for i in range(600))
    assert sum(1 for _ in video.at_25_fps(frames, lambda: 10.0)) == 250 and alive["most"] <= 5


def test_nothing_in_nothing_out() -> None:
    assert list(video.at_25_fps([])) == []
    one = [(0.0, np.zeros((2, 2), np.uint8))]
    assert len(list(video.at_25_fps(one))) == len(list(video.at_25_fps(one, lambda: 0.001))) == 1


def test_the_centre_of_the_challenge_is_its_crop() -> None:
    frame = np.random.default_rng(1).integers(0, 255, (224, 224), dtype=np.uint8)
    assert np.array_equal(video.centre_square(frame, 112), frame[56:168, 56:168])
    wide = np.zeros((288, 360), np.uint8)
    wide[72:216, 108:252] = 255
    assert video.centre_square(wide, 112).min() == 255 and video.centre_square(wide, 112).shape == (112, 112)
    assert video.centre_square(np.full((3, 2), 7, np.uint8), 112).shape == (112, 112)


def numbered(count: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint8), height * width).reshape(count, height, width)


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
        *((0.0, 3, [0, 1, 2]), (0.04, 3, [1, 2, 3])),
        # shorter than its audio: the last frame is held
        *((0.12, 4, [3, 4, 4, 4]), (9.0, 2, [4, 4])),
        *((-0.04, 3, [0, 0, 1]), (0.019, 2, [0, 1]), (0.021, 2, [1, 2])),
    ],
)
def test_a_stretch_of_it(start_s: float, frames: int, want: list[int]) -> None:
    assert video.frames_at(numbered(5), start_s, frames / LIPS_FPS)[:, 0, 0].tolist() == want


GOOD = {"frames": numbered(3), "fps": np.float32(25)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((some, "no lip crops") for some in ({"frames": GOOD["frames"]}, {"fps": GOOD["fps"]})),
        (GOOD | {"frames": numbered(3).astype(np.float32)}, "float32"),
        *((GOOD | {"frames": bad}, "shape") for bad in (numbered(3)[0], numbered(3)[:0], np.zeros((2, 1, 1025), "u1"))),
        *((GOOD | {"fps": np.float32(bad)}, f"{bad}.* 25") for bad in ("30", "nan")),
        (GOOD | {"fps": np.zeros(3)}, "no lip crops"),
    ],
)
def test_other_arrays(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    np.savez_compressed(tmp_path / "a.npz", **content)
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

    np.savez_compressed(tmp_path / "a.npz", frames=np.array([Trap()], dtype=object), fps=np.float32(25))
    ran.clear()
    with pytest.raises(LipsError):
        load_lips(tmp_path / "a.npz")
    assert not ran


@pytest.mark.parametrize(("shape", "kind"), [((3, 4), "uint8"), ((3, 4, 5), "float32"), ((1, 2, 3, 4), "uint8")])
def test_only_grey_bytes_are_written(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ValueError, match="uint8"):
        save_lips(tmp_path / "a.npz", np.zeros(shape, kind))
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


LENGTHS = {0.0: 1, 0.04: 1, 0.0401: 2, 1.0: 25, 2.98: 75, 2.9779: 75, 3.00000001: 75}


@pytest.mark.parametrize(("seconds", "frames"), LENGTHS.items())
def test_frames_that_cover_a_stretch(seconds: float, frames: int) -> None:
    assert video.frames_of(seconds) == frames
