"""Mouth crops: the right place, steady, whatever the head does and whatever is missing; and why a bad video is dropped."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile as sf
from tiny_corpora import sound
from tiny_videos import eye_finder, flat, head, mouth_of, tone, write_video

from rlspeech.corpora import faces, lips
from rlspeech.corpora.faces import EYES_PX, SIDE, Face, Path2D, follow, mouth_row, search, smooth
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.data.video import LipsError, frames_at, load_lips, save_lips
from rlspeech.files import read_jsonl
from rlspeech.stages.prepare import Prepare, run
from rlspeech.types import UserError, Utterance

COUNT = 60
Pose = tuple[float, float, float, float]  # x, y, distance of the eyes, degrees


def film(pose: Callable[[float], Pose], count: int = COUNT, below: float = 1.16, **more: Any) -> list[np.ndarray]:
    """A head that moves as told, time from 0 to 1, and talks four times a second."""
    return [head(*pose(i / count), opened=0.5 + 0.5 * np.sin(i), below=below, **more) for i in range(count)]


def tracked(frames: list[np.ndarray], detect: Callable[[np.ndarray], Any] = eye_finder) -> tuple[Path2D, np.ndarray]:
    seen = follow(*search(frames, detect))
    assert seen is not None
    path = faces.mouth_path(seen)
    return path, faces.cut(frames, path)


def mouth_widths(crops: np.ndarray) -> list[int]:
    return [np.ptp(np.nonzero((crop < 45).any(axis=0))[0]) for crop in crops]


MOVES: dict[str, Callable[[float], Pose]] = {
    "still": lambda t: (160, 90, 50, 0),
    "walks": lambda t: (110 + 100 * t, 80 + 30 * t, 50, 0),
    "tilted": lambda t: (160, 90, 50, 14),
    "tilts": lambda t: (160, 90, 50, 24 * t - 12),
    "near": lambda t: (160, 80, 92, -8),
    "far": lambda t: (160, 100, 24, 5),
    "comes nearer": lambda t: (160, 90, 36 + 24 * t, 0),
    "nods": lambda t: (160, 90 + 5 * np.sin(6 * t), 50, 0),
}


@pytest.mark.parametrize("move", MOVES)
def test_the_mouth_stays_in_the_middle(move: str) -> None:
    path, crops = tracked(film(MOVES[move]))
    assert crops.shape == (COUNT, SIDE, SIDE) and crops.dtype == np.uint8 and path.found.all()
    places = np.array([mouth_of(crop) for crop in crops])
    assert np.abs(places).max() < 4.5, places[np.abs(places).max(axis=1).argmax()]
    assert np.abs(np.diff(places, axis=0)).max() < 1.5  # no jumps between frames
    middle = slice(15, 45)
    widths = mouth_widths(crops[middle])
    assert np.mean(widths) == pytest.approx(0.76 * EYES_PX, rel=0.08)  # the same size whatever the distance
    for crop in crops[middle]:  # and upright
        rows, columns = np.nonzero(crop < 45)
        if len(rows) > 150:
            assert abs(np.polyfit(columns, rows, 1)[0]) < np.tan(np.radians(4))


@pytest.mark.parametrize("below", [1.05, 1.1, 1.3])
def test_long_and_short_faces(below: float) -> None:
    _, crops = tracked(film(MOVES["still"], below=below))
    assert abs(np.mean([mouth_of(crop)[1] for crop in crops])) < 2.5


def test_without_motion_nothing_is_corrected() -> None:
    still = np.full((20, 124, 96), 90, np.uint8)
    assert mouth_row(still) == 62 and mouth_row(still[:2]) == 62
    noise = np.random.default_rng(0).integers(80, 100, (20, 124, 96), dtype=np.uint8)
    assert mouth_row(noise) == 62  # noise everywhere is no mouth


def test_misses_are_bridged_and_the_ends_are_held() -> None:
    frames = film(MOVES["walks"])
    path, _ = tracked([np.full_like(f, 110) if 20 <= i < 36 else f for i, f in enumerate(frames)])
    whole, _ = tracked(frames)
    assert np.abs(path.centre - whole.centre).max() < 3.0  # straight on in between
    assert not path.found[22:34].any() and path.found[:18].all() and path.found[38:].all()
    assert path.found.mean() == pytest.approx(1 - 16 / 60, abs=0.05)
    path, _ = tracked([np.full_like(f, 110) if i < 16 or i >= 48 else f for i, f in enumerate(film(MOVES["still"]))])
    assert np.ptp(path.centre, axis=0).max() < 0.5 and not path.found[:14].any() and not path.found[50:].any()


def test_one_wrong_look_moves_nothing() -> None:
    looks = itertools.count(1)

    def errs_once(frame: np.ndarray) -> list[Face]:
        (face,) = eye_finder(frame)
        eyebrow = np.array([[0, 0], [15, 12]])
        return [Face(face.box, face.eyes + eyebrow) if next(looks) == 8 else face]

    path, _ = tracked(film(MOVES["still"]), errs_once)
    assert next(looks) == 17  # every fourth frame, and the last one
    assert np.ptp(path.centre, axis=0).max() < 0.5 and np.ptp(path.angle) < 0.01


def test_eyes_that_are_not_found_are_taken_from_the_box() -> None:
    looks = itertools.count(1)

    def blinks(frame: np.ndarray) -> list[Face]:
        face = eye_finder(frame)[0]
        left, top, width, height = face.box
        moved = Face((left - 6, top + 9, width, height), face.eyes)  # a detector whose boxes sit elsewhere
        return [moved if next(looks) % 2 else Face(moved.box)]

    path, _ = tracked(film(MOVES["tilted"]), blinks)
    # what boxes and eyes have to do with each other was learnt from the clip
    assert np.ptp(path.centre, axis=0).max() < 1.0
    never, crops = tracked(film(MOVES["still"]), lambda frame: [Face(eye_finder(frame)[0].box)])
    assert np.abs([mouth_of(crop) for crop in crops]).max() < 4.5 and never.found.all()


def test_of_several_faces_the_large_lasting_one() -> None:
    def box(x: float, side: float) -> Face:
        return Face((x, 50.0, side, side))

    big, small = [box(100 + i, 80) for i in range(15)], [box(20, 40) for _ in range(15)]
    seen = follow({4 * i: [small[i], big[i]] for i in range(15)}, 60)
    assert seen is not None and [f.box[2] for f in seen.faces] == [80] * 15 and seen.others == 0
    # someone walks through
    passing = {4 * i: [box(100, 60), *([box(200, 110)] if 6 <= i < 9 else [])] for i in range(15)}
    seen = follow(passing, 60)
    assert seen is not None and {f.box[2] for f in seen.faces} == {60.0}
    pair = follow({4 * i: [box(20, 70), box(150, 80)] for i in range(15)}, 60)
    assert pair is not None and pair.others == 1 and {f.box[0] for f in pair.faces} == {150.0}
    crossed = {4 * i: sorted([box(20 + 3 * i, 70), box(150 - 3 * i, 80)], key=lambda f: -f.box[0]) for i in range(8)}
    seen = follow(crossed, 32)
    assert seen is not None and len(seen.faces) == 8 and {f.box[2] for f in seen.faces} == {80.0}
    assert follow({0: [], 4: []}, 5) is None


def test_two_drawn_heads(tmp_path: Path) -> None:
    frames = [head(220, 90, 44, opened=0.5 + 0.5 * np.sin(i), onto=head(80, 90, 30)) for i in range(40)]
    write_video(tmp_path / "v.mkv", frames, codec="ffv1")
    fact = lips.crop_clip(tmp_path / "v.mkv", tmp_path / "v.npz", "mouth96", eye_finder)
    assert fact["others"] == 1 and fact["face_rate"] == 1
    assert np.mean(mouth_widths(load_lips(tmp_path / "v.npz"))) == pytest.approx(0.76 * EYES_PX, rel=0.1)


def test_landmarks_name_the_mouth_itself() -> None:
    points = np.random.default_rng(0).uniform(100, 200, (478, 2))
    points[[33, 133]], points[[362, 263]] = [(110, 120), (130, 120)], [(160, 124), (180, 124)]
    points[[61, 291, 0, 17]] = [(130, 180), (160, 180), (145, 170), (145, 190)]
    face = faces.face_of_landmarks(points)
    assert face.eyes is not None and np.allclose(face.eyes, [[120, 120], [170, 124]])
    assert np.allclose(face.mouth, [145, 180])
    frames = [np.full((240, 320), 100, np.uint8)] * 10
    path, crops = tracked(frames, lambda _: [face])
    assert path.exact and np.allclose(path.centre, [145, 180]) and crops.shape == (10, 96, 96)
    with pytest.raises(UserError, match="face.task"):
        faces.landmark_detector("/nowhere/face.task")


def test_landmarks_without_mediapipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "face.task").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "mediapipe", None)
    with pytest.raises(UserError, match="try: .*install mediapipe"):
        faces.landmark_detector(tmp_path / "face.task")


def test_smoothing() -> None:
    line = np.arange(40.0)
    assert np.allclose(smooth(line, 12), line)  # what moves evenly is not delayed, nor bent at the ends
    spike = np.zeros(41)
    spike[20] = 13.0
    assert np.allclose(smooth(spike, 12)[14:27], 1.0) and smooth(spike, 12)[13] == 0
    assert smooth(np.array([3.0]), 12)[0] == 3.0


def test_a_crop_over_the_edge_repeats_it() -> None:
    frames = [np.full((60, 60), 100, np.uint8)] * 6
    path = Path2D(np.full((6, 2), 58.0), np.full(6, 1.0), np.zeros(6), np.ones(6, bool))
    assert (faces.cut(frames, path) == 100).all()


def test_fine_detail_is_averaged_not_sampled() -> None:
    board = (np.indices((600, 800)).sum(axis=0) % 2 * 200).astype(np.uint8)  # a chequered frame four times too large
    path = Path2D(np.array([[400.0, 300.0]]), np.array([0.25]), np.zeros(1), np.ones(1, bool))
    crop = faces.cut([board], path)
    assert crop.std() < 4 and abs(crop.mean() - 100) < 4


def test_the_embedded_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    detect = faces.haar_detector()
    assert list(detect(np.full((240, 320), 128, np.uint8))) == [] and list(detect(np.zeros((10, 10), np.uint8))) == []
    monkeypatch.setattr(cv2.data, "haarcascades", "/nowhere/")
    with pytest.raises(UserError, match="try: .*<5"):
        faces.haar_detector()


# whole runs


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lips, "_detector", lambda landmarks: eye_finder)


def prepare(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    return run(Prepare(source="lips", root=str(source), out=str(out), **({"workers": 0} | more)))  # type: ignore[arg-type]


def clips(folder: Path) -> dict[str, str]:
    """A folder of good and bad clips; name -> why it is dropped."""
    talk = film(MOVES["still"], 30)
    for i, name in enumerate(("good", "short", "faceless", "empty", "cut", "text", "mute", "damaged")):
        if name != "mute":
            sound(folder / f"{name}.wav", i, 1.2)
        if name in ("good", "mute"):
            write_video(folder / f"{name}.mp4", talk)
    write_video(folder / "short.mp4", talk[:20])
    write_video(folder / "faceless.mp4", flat(30, size=(240, 320)))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "good.mp4").read_bytes()[:2000])
    (folder / "text.avi").write_text("no video")
    write_video(folder / "damaged.mkv", talk, codec="ffv1")
    whole = (folder / "damaged.mkv").read_bytes()
    (folder / "damaged.mkv").write_bytes(whole[: len(whole) * 2 // 3])  # what is there is used
    unreadable = dict.fromkeys(("cut", "text"), "video: unreadable")
    bad = {"faceless": "video: no face in any frame", "empty": "video: empty file", **unreadable}
    return bad | {"mute": "no sound beside or in the video"}


def test_every_kind_of_clip(tmp_path: Path) -> None:
    bad = clips(tmp_path / "in")
    (tmp_path / "in" / "good.txt").write_text("hello there\n")
    summary = prepare(tmp_path / "in", tmp_path / "out")
    assert {row["id"]: row["reason"] for row in read_jsonl(tmp_path / "out" / "dropped.jsonl")} == bad
    rows = {utt.id: utt for utt in read_manifest(tmp_path / "out" / "manifest.jsonl")}
    assert set(rows) == {"good", "short", "damaged"}
    assert rows["good"].text == "hello there" and rows["good"].extra["face_rate"] == 1
    assert "video_short_s" not in rows["good"].extra
    assert rows["short"].extra["video_short_s"] == pytest.approx(0.4, abs=0.01)
    held = frames_at(load_lips(rows["short"].lips_filepath or ""), 0.0, 1.2)
    assert np.array_equal(held[19], held[29]) and not np.array_equal(held[18], held[19])
    assert 0.2 < rows["damaged"].extra["video_short_s"] < 0.7
    assert summary["short_videos"] == 2 and summary["cut"] == 7 and summary["face_rate"] == 1
    assert load_lips(rows["good"].lips_filepath or "").shape == (30, 96, 96)
    assert cv2.imread(summary["contact"]).shape[0] == 3 * 98


def test_a_second_run_reads_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips(tmp_path / "in")
    first = prepare(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()
    real = lips.crop_clip
    seen: list[str] = []
    monkeypatch.setattr(lips, "crop_clip", lambda video, *a: (seen.append(Path(video).name), real(video, *a))[1])
    second = prepare(tmp_path / "in", tmp_path / "out")
    assert not seen and second["cut_before"] == first["cut"] and second["dropped"] == first["dropped"]
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    (tmp_path / "out" / "lips" / "manifest" / "good.npz").unlink()
    os.utime(tmp_path / "in" / "faceless.mp4", (1, 1))
    prepare(tmp_path / "in", tmp_path / "out")
    assert seen == ["faceless.mp4", "good.mp4"]
    prepare(tmp_path / "in", tmp_path / "out", crop="centre112")
    assert "short.mp4" in seen  # other settings, other crops


def test_faceless_clips_may_stay(tmp_path: Path) -> None:
    clips(tmp_path / "in")
    prepare(tmp_path / "in", tmp_path / "out", keep_faceless=True)
    rows = {utt.id: utt for utt in read_manifest(tmp_path / "out" / "manifest.jsonl")}
    assert rows["faceless"].extra["face_rate"] == 0
    with np.load(rows["faceless"].lips_filepath or "", allow_pickle=False) as stored:
        assert stored["frames"].shape == (30, 96, 96) and not stored["found"].any()


def test_the_centre_needs_no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lips, "_detector", lambda _: pytest.fail("no detector is needed"))
    picture = np.random.default_rng(0).integers(0, 255, (224, 224), dtype=np.uint8)
    write_video(tmp_path / "in" / "a.mkv", [picture] * 10, codec="ffv1")
    sound(tmp_path / "in" / "a.flac", 0, 0.4)
    summary = prepare(tmp_path / "in", tmp_path / "out", crop="centre112")
    utt = read_manifest(tmp_path / "out" / "manifest.jsonl")[0]
    crop = load_lips(utt.lips_filepath or "")
    assert crop.shape == (10, 112, 112) and np.abs(crop[0].astype(int) - picture[56:168, 56:168]).max() <= 1
    assert "face_rate" not in utt.extra and summary["face_rate"] is None
    prepare(tmp_path / "in", tmp_path / "whole", crop="whole96")
    assert load_lips(read_manifest(tmp_path / "whole" / "manifest.jsonl")[0].lips_filepath or "").shape == (10, 96, 96)


def test_rows_that_share_a_video_and_several_splits(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", film(MOVES["still"], 30)))
    target, utts = str(sound(tmp_path / "t.wav", 77, 1.2)), []
    for i in range(3):
        utt = Utterance(f"u{i}", str(sound(tmp_path / f"u{i}.wav", i, 1.2)), 1.2, 16000, video_filepath=video)
        utt.speaker_id, utt.target_filepath, utt.extra = "s", target, {"scene": f"S{i}"}
        utts.append(utt)
    plain = Utterance("plain", str(sound(tmp_path / "p.wav", 9, 1.2)), 1.2, 16000)
    write_manifest(tmp_path / "in" / "train.jsonl", utts[:2])
    write_manifest(tmp_path / "in" / "valid.jsonl", [utts[2], plain])
    summary = prepare(tmp_path / "in", tmp_path / "out")
    assert summary["cut"] == 1 and summary["dropped"] == {"no video named": 1} and "--task avse" in summary["next"]
    rows = read_manifest(tmp_path / "out" / "train.jsonl") + read_manifest(tmp_path / "out" / "valid.jsonl")
    assert [r.id for r in rows] == ["u0", "u1", "u2"] and len({r.lips_filepath for r in rows}) == 1
    assert all(r.extra["scene"] == f"S{i}" and r.speaker_id == "s" and r.target_filepath for i, r in enumerate(rows))


@pytest.mark.parametrize("crop", ["mouth96", "centre112"])
def test_endless_videos_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: str) -> None:
    monkeypatch.setattr("rlspeech.data.video.MAX_FRAMES", 20)
    write_video(tmp_path / "v.mp4", film(MOVES["still"], 30))
    with pytest.raises(LipsError, match="min"):
        lips.crop_clip(tmp_path / "v.mp4", tmp_path / "v.npz", crop, eye_finder)
    assert not (tmp_path / "v.npz").exists()


def test_a_video_brings_its_own_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "v.mkv", film(MOVES["still"], 30), codec="ffv1", tone_s=1.2)
    prepare(tmp_path / "in", tmp_path / "out")
    utt = read_manifest(tmp_path / "out" / "manifest.jsonl")[0]
    assert Path(utt.audio_filepath) == tmp_path / "out" / "audio" / "v.flac" and utt.duration == pytest.approx(1.2)
    assert np.abs(sf.read(utt.audio_filepath)[0] * 32768 - tone(1.2)).max() < 2


def test_a_video_that_kills_its_worker_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("ab"):
        write_video(tmp_path / "in" / f"{name}.mp4", flat(10))
        sound(tmp_path / "in" / f"{name}.wav", i, 0.4)
    real = lips.crop_clip

    def dies(video: str, *more: Any) -> dict[str, Any]:
        if video.endswith("a.mp4"):
            raise RuntimeError("the worker process died")
        return real(video, *more)

    monkeypatch.setattr(lips, "crop_clip", dies)
    for _ in range(2):
        summary = prepare(tmp_path / "in", tmp_path / "out", crop="centre112")
        assert summary["dropped"] == {"video: unreadable": 1} and summary["manifests"]["manifest"]["rows"] == 1
    monkeypatch.undo()
    assert prepare(tmp_path / "in", tmp_path / "out", crop="centre112")["dropped"] == {}


def test_the_contact_sheet(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        save_lips(tmp_path / f"{i}.npz", np.full((20, 96, 96), 5 * i, np.uint8))
        extra = {"face_rate": 0.5 if i == 33 else 1.0}
        rows.append(Utterance(f"clip-{i}", "a.wav", 0.8, 16000, lips_filepath=str(tmp_path / f"{i}.npz"), extra=extra))
    gone = str(tmp_path / "gone.npz")
    rows.append(Utterance("gone", "a.wav", 0.8, 16000, lips_filepath=gone, extra={"face_rate": 1.0}))
    assert lips.contact_sheet(rows, tmp_path / "sheet.png", most=12) in (11, 12)
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[0] == 6 * 98
    last_of_first_row = sheet[:96, sheet.shape[1] // 2 - 90 : sheet.shape[1] // 2 - 10]
    assert np.median(last_of_first_row) == 5 * 33  # the worst stands at the top
    assert lips.contact_sheet([], tmp_path / "none.png") == 0 and not (tmp_path / "none.png").exists()


@pytest.mark.realdata
def test_real_talking_faces(realdata: Path, tmp_path: Path) -> None:
    videos = [realdata / "av" / f"{name}.mpg" for name in ("bbaf2n", "brbk7n", "lwbsza", "pwij3p", "sbia1a", "swwp2s")]
    detect = faces.haar_detector()
    agreement = []
    for video in videos:
        fact = lips.crop_clip(video, tmp_path / "v.npz", "mouth96", detect)
        assert fact["face_rate"] > 0.9 and fact["frames"] == 75 and fact["others"] == 0
        crops = load_lips(tmp_path / "v.npz").astype(np.float32)
        mouth = np.abs(np.diff(crops[:, 34:62, 28:68], axis=0)).mean(axis=(1, 2))
        above = np.abs(np.diff(crops[:, :28, 28:68], axis=0)).mean(axis=(1, 2))
        below = np.abs(np.diff(crops[:, 68:, 28:68], axis=0)).mean(axis=(1, 2))
        # what moves most lies in the middle
        assert mouth.mean() > 1.4 * above.mean() and mouth.mean() > 1.15 * below.mean()
        wav, rate = sf.read(video.with_suffix(".flac"))
        frames = wav[: len(wav) // 640 * 640].reshape(-1, 640)
        level = np.log(np.sqrt((frames**2).mean(axis=1)) + 1e-3)
        both = [np.convolve(series[1:74], np.ones(7) / 7, mode="valid") for series in (mouth, level)]
        agreement.append(np.corrcoef(*both)[0, 1])
        assert rate == 16000
    assert min(agreement) > 0.3 and np.median(agreement) > 0.5, agreement  # lips move when there is speech
