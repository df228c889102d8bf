"""``prepare lips``: mouth crops for every clip of a manifest or of a folder of videos.

Each video is decoded twice, frame by frame (once to find the face, once to cut), so a long one needs no more memory than its crops.
Videos that several rows share are cut once. What was found goes to ``lips/done.jsonl`` as it comes, keyed by path, size, time of change and
settings: the same command goes on where it was stopped.

For recordings that have no video a drawn mouth follows the speech (``draw_all``). It is not a talking face and does not claim to be one.
Three things of the sound that a mouth shows are drawn, 25 times a second: how wide the jaw opens (level of the voice below 1.5
kHz), how far the lips are spread or rounded (balance of the bands of the second and the first formant) and
teeth (energy above 4 kHz while the jaw is nearly shut). Skin, lips, light, place, size, tilt, a slow sway
of the head and a lag of up to 40 ms are drawn anew for every utterance. A model that has seen only this is no judge of faces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlspeech import log
from rlspeech.config_parts import conf
from rlspeech.corpora.base import Candidate, Layout, Rendered, Sets, candidate, check_folder, dropped_row, file_id
from rlspeech.corpora.faces import SIDE, Detector, cut, follow, haar_detector, landmark_detector, mouth_path, search
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.checks import file_stamp
from rlspeech.data.decode import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from rlspeech.data.manifest import ASIDE_NAMES, holds_rows, read_manifest
from rlspeech.data.mixing import mixture_rng
from rlspeech.data.video import LIPS_FPS, Stream, centre_square, extract_audio, frames_of, load_lips, save_lips
from rlspeech.files import JsonlWriter, safe_name
from rlspeech.parallel import parallel_map
from rlspeech.types import UserError, Utterance

CLIP_TIMEOUT_S = 3600.0
CENTRE_SIDE = 112
SHORT_S = 0.06  # videos that end this much before their audio are as long as it: a frame and a half


class Lips(Layout):
    """``rlspeech prepare lips``."""

    name = "lips"
    crop: Literal["mouth96", "centre112", "whole96"] = conf(
        "mouth96", "mouth96 (tracked), centre112 (no detector) or whole96 (videos of mouths)"
    )
    landmarks: str | None = conf(
        None, "MediaPipe face-landmarker model (.task) in place of the embedded detector; needs mediapipe"
    )
    keep_faceless: bool = conf(False, "cut the centre of clips without any face instead of dropping them")

    def find(self, out: Path) -> Iterator[Candidate]:
        """Rows with a video: of a manifest, of a folder's manifests (each a split), or of a folder of videos (split ``manifest``).

        Videos of a folder take the sound beside them (same name, audio suffix), else their own track, which is written below ``out``.
        """
        path = Path(self.root or "")
        lists = (p for p in path.glob("*.json*") if p.name not in ASIDE_NAMES and holds_rows(p))
        manifests = [path] if path.is_file() else sorted(lists)
        if manifests:
            for manifest in manifests:
                for utt in read_manifest(manifest):
                    yield Candidate(manifest.stem, utt, None if utt.video_filepath else "no video named")
            return
        folder = check_folder(self.root, "the source")
        known = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in VIDEO_SUFFIXES)
        videos = [p for p in known if p.is_file() and not p.name.startswith(".") and out not in p.parents]
        if not videos:
            why = "no manifest (.jsonl) and no file with a known suffix (.mp4 .mpg .avi .mkv ...) in it"
            raise UserError(f"no videos in {self.root}", why, "check the path")
        videos = [p for p in videos if self.part.has(str(p))]
        with log.progress(len(videos), "sound", "videos") as bar:
            for video in videos:
                name = file_id(video, folder)
                sound, problem = _sound(video, out / "audio" / f"{name}.flac")
                bar.advance()
                row = candidate("manifest", sound or video, name, problem, text=video.with_suffix(".txt"))
                row.utt.video_filepath = str(video)
                yield row

    def mine(self, row: Candidate) -> bool:
        """Rows of one video are in one shard: it is cut once."""
        return self.part.has(row.utt.video_filepath or row.utt.id)

    def make(self, out: Path) -> Sets:
        """Return the rows whose video could be cropped; ``contact.png`` shows some of the crops."""
        sets = self.vetted(self.find(out), out, "noisy")
        self._crop_rows(sets, out)
        if self.part.own:
            return sets
        rows = [utt for utts in sets.require(out).rows.values() for utt in utts]
        sheet = out / "contact.png"
        contact_sheet(rows, sheet)
        rates = [utt.extra["face_rate"] for utt in rows if "face_rate" in utt.extra]
        rate = round(sum(rates) / len(rates), 4) if rates else None
        faces = f"; a face is in {100 * rate:.1f} % of the frames" if rate is not None else ""
        sets.notes.append(f"look at {sheet}: crops of some clips, the worst first{faces}")
        counts = {}
        for key, column, what in (
            ("short_videos", "video_short_s", "video ends before its audio, the last frame is repeated"),
            ("several_faces", "other_faces", "several faces, the largest and longest one is followed"),
        ):
            if n := sum(column in utt.extra for utt in rows):
                sets.notes.append(f"{what} (column {column}): {n} of {len(rows)} clips")
            counts[key] = n
        sets.facts |= counts | {"contact": str(sheet), "face_rate": rate}
        return sets

    def _crop_rows(self, sets: Sets, out: Path) -> None:
        """Crop the videos of rows whose audio is known to be good, to ``out/lips/SPLIT/ID.npz``, and drop those that are of no use.

        Raises:
            UserError: the detector cannot be had, or the disk does not take the output.
        """
        if self.crop == "mouth96":
            _detector(self.landmarks)  # says here, once, what is not installed
        jobs: dict[str, str] = {}
        for split, utts in sets.rows.items():
            for utt in utts:
                jobs.setdefault(utt.video_filepath or "", str(out / "lips" / split / f"{utt.id}.npz"))
        facts: dict[str, dict[str, Any]] = {}
        with JsonlWriter(self.part.place(out) / "lips" / "done.jsonl", "key") as writer:
            keys = {video: self._key(video) for video in jobs}
            for video in jobs:
                known = writer.rows.get(keys[video] or "")
                if known and (known.get("error") or (out / known["lips"]).is_file()):
                    facts[video] = known
            todo = [job for job in jobs.items() if job[0] not in facts]
            sets.facts |= {"cut": len(todo), "cut_before": len(facts)}
            if facts:
                log.say(f"{len(facts)} of {len(jobs)} videos were done before")
            work = partial(_job, crop=self.crop, landmarks=self.landmarks)
            desc = "cutting" if todo else None
            for (video, place), result in parallel_map(work, todo, self.processes(), CLIP_TIMEOUT_S, desc, "videos"):
                if isinstance(result, UserError | KeyboardInterrupt):
                    raise result
                if isinstance(result, Exception):  # its process crashed or hung: this clip only, and not remembered
                    facts[video] = {"error": f"unreadable: {result}"}
                    continue
                facts[video] = result | {"lips": os.path.relpath(place, out)}
                if key := keys[video]:
                    writer.write({"key": key} | facts[video])
        found, sets.rows = sets.rows, {}
        for split, utts in found.items():
            for utt in utts:
                fact = facts[utt.video_filepath or ""]
                error = fact.get("error")
                if not error and fact["face_rate"] == 0 and not self.keep_faceless:
                    error = "no face in any frame"
                if error:
                    row = dropped_row(split, utt.id, utt.video_filepath, f"video: {_reason(error)}", error)
                    sets.dropped.append(row)
                else:
                    sets.rows.setdefault(split, []).append(_with_lips(utt, fact, out))

    def _key(self, video: str) -> str | None:
        """The file and the settings that its crops depend on; None where it is missing."""
        how = f"{self.crop}|{self.landmarks or ''}" if self.crop == "mouth96" else self.crop
        return (stamp := file_stamp(video)) and f"{stamp}|{how}"


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


def _with_lips(utt: Utterance, fact: dict[str, Any], out: Path) -> Utterance:
    """The row with its crops and what is known of its video."""
    extra = {"face_rate": fact["face_rate"]} if fact["face_rate"] is not None else {}
    short_s = utt.offset + utt.duration - fact["frames"] / LIPS_FPS
    if short_s > SHORT_S:
        extra["video_short_s"] = round(short_s, 3)
    if fact.get("problem"):
        extra["video_problem"] = fact["problem"]
    if fact.get("others"):
        extra["other_faces"] = fact["others"]
    return replace(utt, lips_filepath=str(out / fact["lips"]), extra=utt.extra | extra)


def _reason(error: str) -> str:
    """The part of a message to count by."""
    return error.split(":")[0].split(" (")[0]


@lru_cache(maxsize=2)
def _detector(landmarks: str | None) -> Detector:
    """One a process: cascades take a while to load, and do not travel between processes."""
    return landmark_detector(landmarks) if landmarks else haar_detector()


def _job(job: tuple[str, str], crop: str, landmarks: str | None) -> dict[str, Any]:
    try:
        return crop_clip(job[0], job[1], crop, _detector(landmarks) if crop == "mouth96" else None)
    except AudioError as error:
        return {"error": error.reason}


def crop_clip(
    video: str | Path, out: str | Path, crop: str = "mouth96", detect: Detector | None = None
) -> dict[str, Any]:
    """Crop one video and write its ``.npz``.

    Args:
        video: the file.
        out: the ``.npz``.
        crop: ``mouth96`` (tracked), ``centre112`` (no detector: the central half of the shorter side) or ``whole96`` (videos that are
            mouth crops already).
        detect: finds faces in a frame for ``mouth96``; None: the embedded detector.

    Returns:
        ``frames``, ``face_rate`` (None where no face was searched for, 0 where there is none: the centre is cut), ``others`` (further
        faces, at least half as present as the one followed), ``problem`` (of a file that could be read in part).

    Raises:
        LipsError: the video cannot be used.
    """
    stream, searched = Stream(video), crop == "mouth96"
    if searched:
        found, length = search(stream.frames(), detect or _detector(None))
        track = follow(found, length)
        if track is not None:
            path = mouth_path(track)
            frames = cut(Stream(video).frames(), path)
            save_lips(out, frames, path.found[: len(frames)])
            rate = round(float(path.found.mean()), 4)
            return {"frames": len(frames), "face_rate": rate, "others": track.others, "problem": stream.problem}
    side, share = (CENTRE_SIDE, 0.5) if crop == "centre112" else (SIDE, 0.5 if searched else 1.0)
    squares = [centre_square(frame, side, share) for frame in stream.frames()]
    save_lips(out, np.stack(squares), np.zeros(len(squares), dtype=bool) if searched else None)
    return {"frames": len(squares), "face_rate": 0.0 if searched else None, "others": 0, "problem": stream.problem}


# ------------------------------------------------------------------------------------------------------- contact sheet
# One picture on which a person sees at a glance whether the crops are what they should be.

RATE = 16000
FLOOR_DB = -32.0
SILENT_DB = -45.0  # of a frame's spectrum, about -90 dBFS: a recording of nothing is a shut mouth
MOST, ACROSS = 24, 8  # clips, and crops of each
TILE, GAP, LABEL = 96, 2, 184  # pixels
POOR = 0.9  # face rates below are marked


def contact_sheet(rows: Sequence[Utterance], path: str | Path, most: int = MOST) -> int:
    """Draw a row of crops at even times for each clip, worst face rates first.

    Args:
        rows: with ``lips_filepath``, and ``face_rate`` in ``extra`` where faces were searched for.
        path: PNG file.
        most: clips at most; of equal face rates those are taken that lie evenly over the manifest.

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
        except AudioError:
            continue
        tiles = [_tile(frames[i]) for i in _even(len(frames), ACROSS)]
        lines.append(np.concatenate([_label(utt, len(frames)), *tiles], axis=1))
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
    tile, middle, mark = centre_square(frame, TILE, 1.0), TILE // 2, 5
    for edge in (np.s_[middle, :mark], np.s_[middle, -mark:], np.s_[:mark, middle], np.s_[-mark:, middle]):
        tile[edge] = 255
    return np.pad(tile, ((0, GAP), (0, GAP)), constant_values=255)


def _label(utt: Utterance, frames: int) -> np.ndarray:
    import cv2

    plain = utt.id.encode("ascii", "replace").decode()  # the drawing knows no other letters
    rate = utt.extra.get("face_rate")
    faces = "no face searched for" if rate is None else f"face in {100 * _rate(utt):.0f} %"
    notes = [f"{frames} frames, {utt.duration:.1f} s", faces]
    if "video_short_s" in utt.extra:
        notes.append(f"{utt.extra['video_short_s']:.2f} s short")
    poor = rate is not None and _rate(utt) < POOR
    label = np.full((TILE + GAP, LABEL), 0 if poor else 255, dtype=np.uint8)  # dark: check these
    names = [plain[i : i + 24] for i in range(0, min(len(plain), 48), 24)]
    for i, line in enumerate([*names, *notes]):
        cv2.putText(label, line, (4, 16 + 19 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255 if poor else 0, 1, cv2.LINE_AA)
    return label


def movements(wav: np.ndarray, sample_rate: int, lag_s: float = 0.0) -> np.ndarray:
    """How the mouth moves: (F, 3) in [0, 1], jaw opening, spread of the lips, teeth.

    Args:
        wav: (T,) speech.
        sample_rate: in Hz.
        lag_s: how much later the mouth is than the sound.
    """
    frames = frames_of(len(wav) / sample_rate)
    hop, size = sample_rate / LIPS_FPS, int(0.05 * sample_rate)
    padded = np.pad(np.asarray(wav, dtype=np.float64), (size, size + int(hop)))
    centres = ((np.arange(frames) + 0.5) * hop - lag_s * sample_rate).astype(int).clip(0, len(wav)) + size
    windows = padded[centres[:, None] + np.arange(-size // 2, size - size // 2)[None]] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    bands_hz = ((150, 1500), (1500, 3500), (4000, 7500))
    low, middle, high = (power[:, (hz >= a) & (hz < b)].sum(1) + 1e-10 for a, b in bands_hz)
    level = 10 * np.log10(low + 0.5 * middle)
    top = max(float(np.percentile(level, 95)), SILENT_DB)
    jaw = np.clip((level - top - FLOOR_DB) / -FLOOR_DB, 0, 1) ** 1.5
    spread = np.clip(0.5 + (10 * np.log10(middle / low) + 12) / 24, 0, 1)
    hiss = np.clip((10 * np.log10(high) - top - FLOOR_DB) / -FLOOR_DB, 0, 1)
    moved = np.stack([jaw, spread * jaw + 0.5 * (1 - jaw), hiss * (1 - jaw)], axis=1)
    kernel = np.array([0.25, 0.5, 0.25])  # lips have mass
    return np.apply_along_axis(lambda c: np.convolve(np.pad(c, 1, mode="edge"), kernel, mode="valid"), 0, moved)


def draw_mouth(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (F, 96, 96) uint8 at 25 a second for speech (T,); all chances from ``rng``."""
    moves = movements(wav, sample_rate, lag_s=float(rng.uniform(-0.02, 0.04))).astype(np.float32)
    u, v, light = _face(len(moves), rng)
    jaw, spread, teeth = (moves[:, i, None, None] for i in range(3))
    width = 15 + 9 * spread + 2 * rng.random()
    gap = 0.4 + 11 * jaw * rng.uniform(0.8, 1.2)
    v = v - 0.35 * gap  # the upper lip stays, the lower one falls
    bow = 1.5 * np.cos(np.clip(u / width, -1, 1) * np.pi)
    thick = rng.uniform(4.0, 6.5)
    outer = _inside(u, v + 0.4 * bow, width + thick * 0.8, gap + thick)
    inner = _inside(u, v, width * 0.86, gap)
    skin, lips, dark, white = rng.uniform(120, 190), rng.uniform(70, 115), rng.uniform(15, 45), rng.uniform(170, 220)
    texture = _blotches(rng) * rng.uniform(2, 7)
    chin = 14 * np.exp(-(((v - 26 - 0.6 * gap) / 5.0) ** 2)) * rng.uniform(0.3, 1.0)
    face = skin * light + texture - chin
    visible = np.clip(0.25 * jaw + teeth, 0, 1) * _inside(u, v + 0.5 * gap, width * 0.7, 0.45 * gap + 1.2)
    mouth = dark + (white - dark) * visible
    image = face + (lips * light + 0.5 * texture - face) * outer
    image = image + (mouth - image) * inner
    return np.clip(image, 0, 255).astype(np.uint8)


def _face(frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of every pixel in the frame of the swaying face, (F, 96, 96) across and down, and the light on it (96, 96)."""
    sway = np.cumsum(rng.normal(0, 0.25, (frames, 2)), axis=0)
    sway -= np.linspace(0, 1, frames)[:, None] * (sway[-1] - sway[0])  # wander, but come back
    x0, y0 = (SIDE / 2 + rng.normal(0, 2.5) + sway[:, i].astype(np.float32)[:, None, None] for i in (0, 1))
    tilt, size = rng.normal(0, 0.08), rng.uniform(0.85, 1.15)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    u = ((xs - x0) * np.cos(tilt) + (ys - y0) * np.sin(tilt)) / size
    v = ((ys - y0) * np.cos(tilt) - (xs - x0) * np.sin(tilt)) / size
    light = 1 + rng.uniform(-0.25, 0.25) * (xs / SIDE - 0.5) + rng.uniform(-0.25, 0.25) * (ys / SIDE - 0.5)
    return u, v, light


def _inside(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 inside the ellipse with half axes a, b, 0 outside, with a soft edge of about two pixels."""
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-6)
    return 1 / (1 + np.exp(np.clip((radius - 1) * np.minimum(a, b) * 2.0, -30, 30)))


def _blotches(rng: np.random.Generator) -> np.ndarray:
    """(96, 96) smooth noise with a spread of 1."""
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    smooth = np.fft.irfft2(white * np.exp(-(fy**2 + fx**2) * (2 * np.pi * 3.0) ** 2 / 2), (SIDE, SIDE))
    return (smooth / smooth.std()).astype(np.float32)


def draw_all(utts: Sequence[Utterance], out: Path, *, seed: int = 0, workers: int = 0) -> Rendered:
    """Draw a mouth for every utterance's clean speech (its target, where it has one) and store it under ``out/lips``.

    Returns the utterances with ``lips_filepath`` and the columns ``face_rate`` and ``video: drawn``, and what was left out with reasons.
    """
    kept: list[Utterance] = []
    dropped: list[dict[str, Any]] = []
    draw = partial(_draw_one, out=str(out), seed=seed)
    for utt, path in parallel_map(draw, list(utts), workers, timeout_s=120.0, desc="draw", unit="utterances"):
        if isinstance(path, Exception):
            detail = path.reason if isinstance(path, AudioError) else f"{type(path).__name__}: {path}"
            row = {"id": utt.id, "audio_filepath": utt.audio_filepath, "reason": "cannot be drawn", "detail": detail}
            dropped.append(row)
        else:
            kept.append(replace(utt, lips_filepath=path, extra={**utt.extra, "face_rate": 1.0, "video": "drawn"}))
    return kept, dropped


def _draw_one(utt: Utterance, out: str, seed: int) -> str:
    """Path of an utterance's drawn lips, made unless they are there."""
    path = Path(out) / "lips" / f"{safe_name(utt.id)}.npz"
    try:
        load_lips(path)
    except AudioError:
        wav = load_audio(utt.target_filepath or utt.audio_filepath, RATE, utt.offset, utt.duration)
        lips = draw_mouth(wav, RATE, mixture_rng(seed, 0, utt.id))
        if utt.offset:  # frame 0 belongs to sample 0 of the file
            lips = np.concatenate([np.repeat(lips[:1], round(utt.offset * LIPS_FPS), axis=0), lips])
        save_lips(path, lips)
    return str(path)
