"""``prepare lips``: mouth crops for every clip of a manifest or of a folder of videos.

Each video is decoded twice, frame by frame (once to find the face, once to cut), so a long one needs no more memory than its crops.
Videos that several rows share are cut once. What was found goes to ``lips/done.jsonl`` as it comes, keyed by path, size, time of change and
settings: the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.corpora.base import Candidate, check_folder, file_id
from rlspeech.corpora.faces import SIDE, Detector, cut, follow, haar_detector, landmark_detector, look, mouth_path
from rlspeech.data.audio import AudioError
from rlspeech.data.inputs import AUDIO_SUFFIXES
from rlspeech.data.manifest import ASIDE_NAMES, read_manifest
from rlspeech.data.video import (
    LIPS_FPS,
    MAX_FRAMES,
    VIDEO_SUFFIXES,
    LipsError,
    at_25_fps,
    centre_square,
    extract_audio,
    load_lips,
    read_video,
    save_lips,
    stream_video,
)
from rlspeech.files import JsonlWriter
from rlspeech.parallel import parallel_map
from rlspeech.types import UserError, Utterance

__all__ = ["Cropped", "Cropping", "MOST", "contact_sheet", "crop_clip", "crop_rows", "find"]


CLIP_TIMEOUT_S = 3600.0
CENTRE_SIDE = 112
SHORT_S = 0.06  # videos that end this much before their audio are as long as it: a frame and a half


@dataclass(frozen=True, slots=True)
class Cropping:
    """How crops are made.

    Args:
        crop: ``mouth96`` (tracked), ``centre112`` (no detector: the central half of the shorter side) or ``whole96`` (videos that are mouth
            crops already).
        landmarks: a face-landmarker model in place of the embedded detector.
        keep_faceless: clips without a face get their centre, with face rate 0, instead of being dropped.
    """

    crop: str = "mouth96"
    landmarks: str | None = None
    keep_faceless: bool = False

    def key(self) -> str:
        """What the crops depend on."""
        return f"{self.crop}|{self.landmarks or ''}" if self.crop == "mouth96" else self.crop


@dataclass
class Cropped:
    """What came out: rows by split in their order, dropped rows with reasons, and how many videos were cut or known."""

    kept: dict[str, list[Utterance]] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    cut: int = 0
    known: int = 0
    short: int = 0
    several: int = 0


def find(source: str | Path, out: Path) -> Iterator[Candidate]:
    """Rows with a video: of a manifest, of a folder's manifests (each a split), or of a folder of videos (split ``manifest``).

    Videos of a folder take the sound beside them (same name, audio suffix), else their own track, which is written below ``out``.

    Raises:
        UserError: neither, or no row names a video.
    """
    path = Path(source)
    manifests = [path] if path.is_file() else sorted(p for p in path.glob("*.jsonl") if p.name not in ASIDE_NAMES)
    if manifests:
        for manifest in manifests:
            for utt in read_manifest(manifest):
                yield Candidate(manifest.stem, utt, None if utt.video_filepath else "no video named")
        return
    folder = check_folder(source, "the source")
    videos = [
        p
        for p in sorted(folder.rglob("*"))
        if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".") and p.is_file() and out not in p.parents
    ]
    if not videos:
        raise UserError(
            f"no videos in {source}",
            "no manifest (.jsonl) and no file with a known suffix (.mp4 .mpg .avi .mkv ...) in it",
            "check the path",
        )
    with log.progress(len(videos), "sound", "videos") as bar:
        for video in videos:
            name = file_id(video, folder)
            words = video.with_suffix(".txt")
            text = words.read_text(encoding="utf-8", errors="replace").strip() or None if words.is_file() else None
            sound, problem = _sound(video, out / "audio" / f"{name}.flac")
            bar.advance()
            yield Candidate(
                "manifest", Utterance(name, str(sound or video), 0.0, 0, text=text, video_filepath=str(video)), problem
            )


def _sound(video: Path, extracted: Path) -> tuple[Path | None, str | None]:
    """The audio of a video, or why there is none."""
    for suffix in sorted(AUDIO_SUFFIXES, key=lambda s: (s != ".wav", s != ".flac", s)):
        if (beside := video.with_suffix(suffix)).is_file():
            return beside, None
    if extracted.is_file() and extracted.stat().st_mtime >= video.stat().st_mtime:
        return extracted, None
    try:
        return (extracted, None) if extract_audio(video, extracted) else (None, "no sound beside or in the video")
    except AudioError as error:
        return None, f"video: {_reason(error.reason)}"


def crop_rows(rows: dict[str, list[Utterance]], out: Path, how: Cropping, workers: int) -> Cropped:
    """Make the crops of rows whose audio is known to be good.

    Args:
        rows: by split; every row names a video.
        out: crops go to ``out/lips/SPLIT/ID.npz``.
        how: which crops.
        workers: processes; 0 works in this one.

    Raises:
        UserError: the detector cannot be had, or the disk does not take the output.
    """
    if how.crop == "mouth96":
        _detector(how.landmarks)  # says here, once, what is not installed
    jobs: dict[str, str] = {}
    for split, utts in rows.items():
        for utt in utts:
            jobs.setdefault(utt.video_filepath or "", str(out / "lips" / split / f"{utt.id}.npz"))
    done, facts = Cropped(), {}
    with JsonlWriter(out / "lips" / "done.jsonl", "key") as writer:
        keys = {video: _key(video, how) for video in jobs}
        todo = []
        for video, place in jobs.items():
            known = writer.rows.get(keys[video] or "")
            if known and (known.get("error") or (out / known["lips"]).is_file()):
                facts[video] = known
            else:
                todo.append((video, place))
        done.known, done.cut = len(facts), len(todo)
        if facts:
            log.say(f"{len(facts)} of {len(jobs)} videos were done before")
        made = parallel_map(
            partial(_job, how=how), todo, workers, CLIP_TIMEOUT_S, "cutting" if todo else None, "videos"
        )
        for (video, place), result in made:
            if isinstance(result, UserError | KeyboardInterrupt):
                raise result
            if isinstance(result, Exception):  # its process crashed or hung: this clip only, and not remembered
                facts[video] = {"error": f"unreadable: {result}"}
                continue
            facts[video] = result | {"lips": os.path.relpath(place, out)}
            if key := keys[video]:
                writer.write({"key": key} | facts[video])
    for split, utts in rows.items():
        for utt in utts:
            _sort(split, utt, facts[utt.video_filepath or ""], out, how, done)
    return done


def _sort(split: str, utt: Utterance, fact: dict[str, Any], out: Path, how: Cropping, done: Cropped) -> None:
    error = fact.get("error")
    if not error and fact["face_rate"] == 0 and not how.keep_faceless:
        error = "no face in any frame"
    if error:
        row = {
            "split": split,
            "id": utt.id,
            "path": utt.video_filepath,
            "reason": f"video: {_reason(error)}",
            "detail": error,
        }
        done.dropped.append(row)
        return
    extra = {"face_rate": fact["face_rate"]} if fact["face_rate"] is not None else {}
    short_s = utt.offset + utt.duration - fact["frames"] / LIPS_FPS
    if short_s > SHORT_S:
        extra["video_short_s"] = round(short_s, 3)
        done.short += 1
    if fact.get("problem"):
        extra["video_problem"] = fact["problem"]
    if fact.get("others"):
        extra["other_faces"] = fact["others"]
        done.several += 1
    done.kept.setdefault(split, []).append(replace(utt, lips_filepath=str(out / fact["lips"]), extra=utt.extra | extra))


def _reason(error: str) -> str:
    """The part of a message to count by."""
    return error.split(":")[0].split(" (")[0]


def _key(video: str, how: Cropping) -> str | None:
    try:
        stat = os.stat(video)
    except OSError:
        return None
    return f"{video}|{stat.st_size}|{stat.st_mtime_ns}|{how.key()}"


@lru_cache(maxsize=2)
def _detector(landmarks: str | None) -> Detector:
    """One a process: cascades take a while to load, and do not travel between processes."""
    return landmark_detector(landmarks) if landmarks else haar_detector()


def _job(job: tuple[str, str], how: Cropping) -> dict[str, Any]:
    try:
        return crop_clip(job[0], job[1], how.crop, _detector(how.landmarks) if how.crop == "mouth96" else None)
    except LipsError as error:
        return {"error": error.reason}


def crop_clip(
    video: str | Path, out: str | Path, crop: str = "mouth96", detect: Detector | None = None
) -> dict[str, Any]:
    """Crop one video and write its ``.npz``.

    Args:
        video: the file.
        out: the ``.npz``.
        crop: as in ``Cropping``.
        detect: finds faces in a frame; needed for ``mouth96``.

    Returns:
        ``frames``, ``face_rate`` (None where no face was looked for, 0 where there is none: the centre is cut), ``others`` (further
        faces, at least half as present as the one followed), ``problem`` (of a file that could be read in part).

    Raises:
        LipsError: the video cannot be used.
    """
    if crop == "mouth96":
        if detect is None:
            raise ValueError("mouth96 needs a detector")
        stream = stream_video(video)
        found, length = look(islice(at_25_fps(stream, lambda: stream.end_s), MAX_FRAMES + 1), detect)
        if length > MAX_FRAMES:
            raise LipsError(f"longer than {MAX_FRAMES / LIPS_FPS / 60:g} min")
        seen = follow(found, length)
        if seen is not None:
            path = mouth_path(seen)
            again = stream_video(video)
            frames = cut(at_25_fps(again, lambda: again.end_s), path)
            save_lips(out, frames, path.found[: len(frames)])
            rate = round(float(path.found.mean()), 4)
            return {"frames": len(frames), "face_rate": rate, "others": seen.others, "problem": stream.problem}
    side, share = (CENTRE_SIDE, 0.5) if crop == "centre112" else (SIDE, 0.5 if crop == "mouth96" else 1.0)
    whole = read_video(video, MAX_FRAMES + 1, prepare=partial(centre_square, side=side, share=share))
    if len(whole.frames) > MAX_FRAMES:
        raise LipsError(f"longer than {MAX_FRAMES / LIPS_FPS / 60:g} min")
    searched = crop == "mouth96"
    save_lips(out, whole.frames, np.zeros(len(whole.frames), dtype=bool) if searched else None)
    return {"frames": len(whole.frames), "face_rate": 0.0 if searched else None, "others": 0, "problem": whole.problem}


# A contact sheet of crops: one picture on which a person sees at a glance whether the crops are what they should be.


MOST, ACROSS = 24, 8  # clips, and crops of each
TILE, GAP, LABEL = 96, 2, 184  # pixels
POOR = 0.9  # face rates below are marked


def contact_sheet(rows: Sequence[Utterance], path: str | Path, most: int = MOST, across: int = ACROSS) -> int:
    """Draw a row of crops at even times for each clip, worst face rates first.

    Args:
        rows: with ``lips_filepath``, and ``face_rate`` in ``extra`` where faces were looked for.
        path: PNG file.
        most: clips at most; of equal face rates those are taken that lie evenly over the manifest.
        across: crops a clip.

    Returns:
        how many clips are on it.

    Each crop carries a thin cross at its middle edges, where the mouth should be.
    """
    import cv2

    chosen = _chosen(rows, most)
    lines = []
    for utt in chosen:
        try:
            frames = load_lips(utt.lips_filepath or "")
        except LipsError:
            continue
        lines.append(
            np.concatenate([_label(utt, len(frames)), *(_tile(frames[i]) for i in _even(len(frames), across))], axis=1)
        )
    if not lines:
        return 0
    half = -(-len(lines) // 2) if len(lines) > 6 else len(lines)  # two columns: the sheet stays as wide as a screen
    blank = np.full_like(lines[0], 255)
    columns = [lines[:half], lines[half:] + [blank] * (2 * half - len(lines))] if half < len(lines) else [lines]
    sheet = np.concatenate([np.concatenate(column, axis=0) for column in columns], axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet)
    return len(lines)


def _chosen(rows: Sequence[Utterance], most: int) -> list[Utterance]:
    """A half of the sheet for the worst, the other half for a fair sample of the rest; sorted by face rate."""
    ranked = sorted(rows, key=_rate)
    if len(ranked) <= most:
        return ranked
    worst = ranked[: most // 2]
    there = {id(utt) for utt in worst}
    rest = [utt for utt in rows if id(utt) not in there]
    return sorted([*worst, *(rest[i] for i in _even(len(rest), most - len(worst)))], key=_rate)


def _rate(utt: Utterance) -> float:
    rate = utt.extra.get("face_rate")
    return float(rate) if isinstance(rate, int | float) else 1.0


def _even(length: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, length - 1, count).round()]


def _tile(frame: np.ndarray) -> np.ndarray:
    import cv2

    if frame.shape != (TILE, TILE):
        frame = cv2.resize(frame, (TILE, TILE), interpolation=cv2.INTER_AREA)
    tile = frame.copy()
    middle, mark = TILE // 2, 5
    for edge in (np.s_[middle, :mark], np.s_[middle, -mark:], np.s_[:mark, middle], np.s_[-mark:, middle]):
        tile[edge] = 255
    return np.pad(tile, ((0, GAP), (0, GAP)), constant_values=255)


def _label(utt: Utterance, frames: int) -> np.ndarray:
    import cv2

    plain = utt.id.encode("ascii", "replace").decode()  # the drawing knows no other letters
    rate = utt.extra.get("face_rate")
    notes = [
        f"{frames} frames, {utt.duration:.1f} s",
        "no face looked for" if rate is None else f"face in {100 * _rate(utt):.0f} %",
    ]
    if "video_short_s" in utt.extra:
        notes.append(f"{utt.extra['video_short_s']:.2f} s short")
    poor = rate is not None and _rate(utt) < POOR
    label = np.full((TILE + GAP, LABEL), 0 if poor else 255, dtype=np.uint8)  # dark: look here
    names = [plain[i : i + 24] for i in range(0, min(len(plain), 48), 24)]
    for i, line in enumerate([*names, *notes]):
        cv2.putText(label, line, (4, 16 + 19 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255 if poor else 0, 1, cv2.LINE_AA)
    return label
