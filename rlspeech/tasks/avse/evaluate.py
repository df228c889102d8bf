"""How enhancers are evaluated, with or without video: the unprocessed input always first, then the models.

Scores are of the saved 16-bit audio, so that what is scored is what can be heard, and a run that goes on scores the same files. A model
that takes video can be scored once more, in the same table, on the video of the next utterance (``shuffled``): the paired difference says
what its video is worth to it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.config import Evaluate
from rlspeech.data import long as chunks
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import PairedClips, lips_of
from rlspeech.data.inputs import files_of
from rlspeech.data.video import LIPS_FPS, LipsError
from rlspeech.scores import Row, ScoreTable
from rlspeech.tasks.avse.enhancer import load_recording, neighbours
from rlspeech.tasks.evaluation import Answers, Evaluation, System, grouped
from rlspeech.types import Sample, Score, UserError, Utterance

INPUT = "input"
CHUNK_S, OVERLAP_S = 30.0, 1.0
LENGTH_S = 0.1  # that an output of another program may be shorter or longer


class Enhancement(Evaluation):
    """Enhancers: waveforms in, waveforms of the same lengths out."""

    reserved = (INPUT, "reference")
    noted = ("data", "nfe", "guidance", "seed", "video")

    def __init__(self, task: Any, config: Evaluate) -> None:
        super().__init__(task, config)
        self.neighbours: dict[str, Utterance] = {}
        self.files: dict[str, dict[str, str]] = {}  # of systems of other programs: key of a row -> its file

    def rows(self, utts: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
        count = sum(bool(u.video_filepath and not u.lips_filepath) for u in utts) if self.task.uses_video else 0
        if not count:
            return list(utts), []
        what = f"{count} of {len(utts)} rows name a video but no mouth crops, and are enhanced without"
        return list(utts), [f"{what}: rlspeech prepare lips {self.config.data} --out FOLDER"]

    def systems(self, utts: Sequence[Utterance]) -> list[System]:
        config, shuffled = self.config, self.config.shuffled
        if not self.task.uses_video and (config.video != "right" or shuffled):
            why = "there is none to shuffle or to hide"
            raise UserError(f"{config.task} takes no video", why, "leave out --video and --shuffled")
        if unknown := [n for n in shuffled if n not in config.models]:
            names = ", ".join(config.models) or "none"
            raise UserError(f"no model is called {unknown[0]!r}", f"there are {names}", "--shuffled with one of them")
        if shuffled and config.video == "shuffled":
            raise UserError("every model gets shuffled video already", "video: shuffled", "--shuffled without it")
        systems = [System(INPUT)]
        for name, checkpoint in config.models.items():
            systems.append(System(name, checkpoint, "" if config.video == "right" else f"{config.video} video"))
            if name in shuffled:
                if f"{name}-shuffled" in config.models:
                    why = f"it is the name of {name} with shuffled video"
                    raise UserError(f"a model cannot be called '{name}-shuffled'", why, "--model with another name")
                systems.append(System(f"{name}-shuffled", checkpoint, "shuffled video"))
        for name, place in config.systems.items():
            self.files[name] = files_of(Path(place), {u.id: u.audio_filepath for u in utts})
            status = sorted((k, (s := os.stat(p)).st_size, s.st_mtime_ns) for k, p in self.files[name].items())
            systems.append(System(name, variant=f"files {zlib.crc32(repr(status).encode()):08x}", folder=place))
        if any(s.variant == "shuffled video" for s in systems):
            self.neighbours = neighbours(utts)
        return systems

    def answers(self, system: System, table: ScoreTable, fingerprint: str) -> Answers:
        return _Enhanced(self, system, table, fingerprint)

    def remarks(self, table: ScoreTable, systems: Sequence[str], keys: Sequence[str]) -> list[str]:
        found: dict[tuple[str, str], list[str]] = {}
        for system in systems:
            for key in keys:
                if reason := table.row(system, key).get("video_error"):
                    found.setdefault((system, reason), []).append(key)
        return grouped(found, f"of {len(keys)} enhanced without video")


class _Enhanced(Answers):
    """Outputs under ``audio/NAME``, and with which video they were made."""

    replaced = ("video", "video_error")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.videos: dict[str, dict[str, str]] = {}
        self.enhancer: Any = None

    def todo(self, utts: Sequence[Utterance]) -> list[Utterance]:
        for utt in utts:
            row = self.table.row(self.name, utt.id)
            if "video_error" in row and self._lips(utt, 0.0) is not None:  # its video has been mended
                self.table.rows.pop((self.name, utt.id))
                self.file(utt.id).unlink(missing_ok=True)
        return super().todo(utts)

    def of(self, utts: Sequence[Utterance]) -> list[Sample | Exception]:
        if self.system.checkpoint is not None and self.enhancer is None:
            model, _ = self.evaluation.load(self.system.checkpoint)
            self.enhancer = self.evaluation.task.enhancer(model, seed=self.config.seed, config=self.config)
        enhancer = self.enhancer
        rate, channels = (16000, 1) if enhancer is None else (enhancer.sample_rate, enhancer.channels)
        pairs: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        made: dict[str, Sample | Exception] = {}
        for utt in utts:
            try:
                pairs[utt.id] = _load(utt, rate, channels)
            except AudioError as error:
                made[utt.id] = error
        seconds = {key: noisy.shape[-1] / rate for key, (noisy, _) in pairs.items()}
        missing = [u for u in utts if u.id in pairs and not _readable(self.file(u.id), pairs[u.id][0].shape[-1], rate)]
        wavs: list[np.ndarray | Exception] = [self._given(u, pairs[u.id][0], rate) for u in missing]
        if enhancer is not None and missing:
            lips = [self._lips(u, seconds[u.id]) for u in missing] if enhancer.uses_video else None
            how = {"batch": self.config.batch, "size": int(CHUNK_S * rate), "overlap": int(OVERLAP_S * rate)}
            inputs, keys = [pairs[u.id][0] for u in missing], [u.id for u in missing]
            wavs = chunks.apply(enhancer.infer, inputs, keys, lips=lips, hop=round(rate / LIPS_FPS), **how)
        for utt, wav in zip(missing, wavs, strict=True):
            if isinstance(wav, Exception):
                made[utt.id] = wav
            else:
                save_audio(self.file(utt.id), wav, rate)  # both channels are kept
        for utt in (u for u in utts if u.id not in made):
            new = utt.id not in self.videos and not self.table.row(self.name, utt.id)
            if enhancer is not None and enhancer.uses_video and new:  # a run was killed before its row was written
                self._lips(utt, seconds[utt.id])
            wav = load_audio(self.file(utt.id), rate)  # the mean of the channels is what is scored
            columns = {"snr_db": utt.snr_db, **utt.extra}
            made[utt.id] = Sample(utt.id, wav, rate, pairs[utt.id][1], utt.text, columns)
        return [made[u.id] for u in utts]

    def _given(self, utt: Utterance, noisy: np.ndarray, rate: int) -> np.ndarray | Exception:
        """The input (T,) itself, or what another program made of it, at its length."""
        if self.system.folder is None:
            return noisy
        if not (path := self.evaluation.files[self.name].get(utt.id)):
            return AudioError(f"no file of its name in {self.system.folder}")
        try:
            wav = load_audio(path, rate)
        except AudioError as error:
            return error
        if abs(len(wav) - len(noisy)) > LENGTH_S * rate:
            there = f"{len(wav) / rate:.2f} s in {self.system.folder}"
            return AudioError(f"{there}, {len(noisy) / rate:.2f} s in the manifest")
        return np.pad(wav, (0, max(0, len(noisy) - len(wav))))[: len(noisy)]

    def facts(self, sample: Sample, scores: Mapping[str, Score]) -> Row:
        return self.videos.get(sample.key, {})

    def _lips(self, utt: Utterance, seconds: float) -> np.ndarray | None:
        """The video (F, H, W) that goes with an utterance, noted for its row; without a usable one it is enhanced without."""
        wanted = self.system.variant.removesuffix(" video") or "right"
        self.videos[utt.id] = {"video": "none"}
        if wanted == "none":
            return None
        source = self.evaluation.neighbours[utt.id] if wanted == "shuffled" else utt
        try:
            lips = lips_of(source, 0.0, seconds)
            reason = "no mouth crops in the manifest" if lips is None else None
        except LipsError as error:
            lips, reason = None, error.reason if source is utt else f"{source.lips_filepath}: {error.reason}"
        self.videos[utt.id] = {"video": wanted} if reason is None else {"video": "none", "video_error": reason}
        return lips


def _load(utt: Utterance, rate: int, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The input, (T,) or (2, T) where model and file have two channels, and the mono reference."""
    if not utt.target_filepath:
        return load_recording(utt.audio_filepath, rate, channels, utt.offset, utt.duration), None
    clip = PairedClips([replace(utt, lips_filepath=None)], rate).clip(0, 0, 0.0)
    if channels == 1:
        return clip.noisy, clip.target
    both = load_recording(utt.audio_filepath, rate, channels, utt.offset, utt.duration)
    return both[..., : len(clip.noisy)], clip.target


def _readable(path: Path, samples: int, rate: int) -> bool:
    """True where an earlier attempt has left this output whole."""
    try:
        return len(load_audio(path, rate)) == samples
    except AudioError:
        return False
