"""One system's pass over the texts of an evaluation, and the two that no language model made: recordings and their copies by the codec.

What is said goes to ``said/NAME.jsonl`` and ``audio/NAME/`` as it comes, its scores to the table; what is there is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import Clip, columns_of
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import JsonlWriter, dumps, read_jsonl, write_text
from rlspeech.rewards.scorer import Scorer
from rlspeech.stages.summary import Table
from rlspeech.tasks import get_task
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["ANCHORS", "WORDS", "Anchor", "Job", "anchors_of", "recorded", "voice_of"]

WORDS = ("tts_cer", "tts_wer")  # by utterance in the rows; over the corpus in the tables
ANCHORS = ("recordings", "resynthesis")


def voice_of(utt: Utterance, sample_rate: int) -> np.ndarray | None:
    """Speech (T,) in the voice that a row asks for: its prompt, else its recording; None where it cannot be read."""
    try:
        if utt.prompt_filepath:
            return load_audio(utt.prompt_filepath, sample_rate)
        return load_audio(utt.audio_filepath, sample_rate, utt.offset, utt.duration or None)
    except AudioError:
        return None


@dataclass
class Job:
    """What one system's pass over the texts needs."""

    config: Evaluate
    engine: Engine
    out: Path
    table: Table
    scorer: Scorer
    dog: Watchdog
    name: str
    checkpoint: str
    weights: str
    model: Any = None
    task: Any = field(default_factory=lambda: get_task("tts"))

    def run(self, utts: Sequence[Utterance]) -> None:
        """Say and score what has no row yet."""
        todo = sorted((u for u in utts if not self.table.done(self.name, u.id)), key=lambda u: len(u.text or ""))
        if not todo:
            self.engine.say(f"{self.name}: all {len(utts)} texts are scored already")
            return
        path = self.out / "said" / f"{self.name}.jsonl"
        kept = [r for r in read_jsonl(path) if r.get("weights") == self.weights and self._whole(r)]
        write_text(path, "".join(dumps(r) + "\n" for r in kept))
        with (
            JsonlWriter(path, key="key") as said,
            log.progress(len(utts), self.name, "texts", start=len(utts) - len(todo)) as bar,
        ):
            for at in range(0, len(todo), self.config.batch):
                batch = todo[at : at + self.config.batch]
                self._say([u for u in batch if u.id not in said], said)
                self._score([u for u in batch if u.id in said], said.rows)
                bar.advance(len(batch))
                self.dog.beat()

    def loaded(self) -> Any:
        """The model, loaded when it is first needed."""
        if self.model is None:
            self.model, _ = self.task.load(self.checkpoint, self.engine.device)
        return self.model

    def make(self, utts: Sequence[Utterance]) -> list[Sample]:
        """What the system says, a sample a row, in order."""
        model = self.loaded()
        made: list[Sample] = self.task.synthesise(
            model, [self._clip(u) for u in utts], sampling=self.config.sampling, seed=self.config.seed
        )
        return made

    def target(self, utt: Utterance, rate: int) -> np.ndarray | None:
        """Speech (T,) in the voice that was wanted, to compare with."""
        return voice_of(utt, rate)

    def _whole(self, row: Mapping[str, Any]) -> bool:
        """True where the waveform of a row is there, or there is none to be had."""
        return bool(not row.get("samples") or self._file(str(row["key"])).is_file())

    def _file(self, key: str) -> Path:
        return self.out / "audio" / self.name / f"{key}.flac"

    def _say(self, utts: Sequence[Utterance], said: JsonlWriter) -> None:
        """Synthesise a batch, one by one where that fails; a text that fails has a row of nulls."""
        if not utts:
            return
        began_s = time.perf_counter()
        try:
            samples = self.make(utts)
        except (RuntimeError, ValueError, IndexError, AudioError) as error:
            if len(utts) == 1:
                self.table.fail(self.name, utts[0].id, f"{self.name}: {type(error).__name__}: {error}"[:300])
                return
            for utt in utts:
                self._say([utt], said)
            return
        seconds = (time.perf_counter() - began_s) / len(utts)
        for s in samples:
            if len(s.wav):
                save_audio(self._file(s.key), s.wav, s.sample_rate)
            said.write(
                {
                    "key": s.key,
                    "weights": self.weights,
                    "text": s.text,
                    "sample_rate": s.sample_rate,
                    "samples": len(s.wav),
                    "finished": s.finished,
                    "seconds": round(seconds, 4),
                    "token_s": s.token_s,
                    "tokens": None if s.tokens is None else s.tokens.tolist(),
                }
            )

    def _clip(self, utt: Utterance) -> Clip:
        """A row as the task wants it; the recording is read where it lends the voice."""
        voice = None if utt.prompt_filepath else voice_of(utt, self.model.sample_rate)
        wav = np.zeros(0, np.float32) if voice is None else voice
        return Clip(utt.id, wav, wav, self.model.sample_rate, utt.text, columns_of(utt))

    def _score(self, utts: Sequence[Utterance], said: Mapping[str, Mapping[str, Any]]) -> None:
        """Score saved audio."""
        samples = []
        for utt in utts:
            row = said[utt.id]
            rate, wav = int(row["sample_rate"]), np.zeros(0, np.float32)
            if row["samples"]:
                wav = load_audio(self._file(utt.id), rate)
            tokens = None if row["tokens"] is None else np.array(row["tokens"], np.int64)
            samples.append(
                Sample(
                    utt.id,
                    wav,
                    rate,
                    self.target(utt, rate),
                    utt.text,
                    columns_of(utt),
                    tokens=tokens,
                    finished=bool(row["finished"]),
                    token_s=row.get("token_s"),
                )
            )
        if not samples:
            return
        scores = self.scorer.score(samples)
        for i, sample in enumerate(samples):
            facts = {
                "text": sample.text,
                "hypothesis": scores[WORDS[0]][i].detail.get("hypothesis"),
                "finished": sample.finished,
                "seconds": round(len(sample.wav) / sample.sample_rate, 3),
            }
            self.table.add(self.name, sample.key, {m: scores[m][i] for m in scores}, facts)


@dataclass
class Anchor(Job):
    """Recordings ("recordings"), or what the codec of a job's model leaves of them ("resynthesis"), in the place of a system.

    Both are at the model's rate; a copy has the voice that the model is given, the prompt's where there is one.
    """

    source: Job | None = None

    def run_all(self, utts: Sequence[Utterance]) -> list[str]:
        """Score the rows that have a recording. Returns remarks."""
        some = recorded(utts)
        if not some:
            return [f"no {self.name}: nobody has recorded these texts"]
        try:
            self.run(some)
        except UserError as error:  # a codec that is not to be had
            return [f"no {self.name}: {error.what}"]
        return []

    def loaded(self) -> Any:
        """The model that is compared with them."""
        assert self.source is not None
        return self.source.loaded()

    def make(self, utts: Sequence[Utterance]) -> list[Sample]:
        """Recordings as they are, or through the codec. Raises ``AudioError``, and ``UserError`` where there is no codec."""
        model = self.loaded()
        rate, tokens, token_s = model.sample_rate, [None] * len(utts), None
        wavs = [load_audio(u.audio_filepath, rate, u.offset, u.duration or None) for u in utts]
        if self.name != ANCHORS[0]:
            codes, token_s = model.codec.encode(wavs), model.codec.frame_s
            tokens, wavs = [c.numpy() for c in codes], model.codec.decode(codes, [voice_of(u, rate) for u in utts])
        return [
            Sample(u.id, w, rate, None, u.text, columns_of(u), tokens=t, token_s=token_s)
            for u, w, t in zip(utts, wavs, tokens, strict=True)
        ]

    def target(self, utt: Utterance, rate: int) -> np.ndarray | None:
        """The prompt's speech; a recording is not compared with itself."""
        return None if self.name == ANCHORS[0] and not utt.prompt_filepath else voice_of(utt, rate)


def anchors_of(job: Job) -> list[Anchor]:
    """The anchors that go with a job, to be run while its model is loaded."""
    return [
        Anchor(
            job.config,
            job.engine,
            job.out,
            job.table,
            job.scorer,
            job.dog,
            name,
            job.checkpoint,
            job.weights,
            source=job,
        )
        for name in ANCHORS
    ]


def recorded(utts: Sequence[Utterance]) -> list[Utterance]:
    """The rows whose text somebody has recorded."""
    return [u for u in utts if u.extra.get("recorded") is not False and u.audio_filepath != u.prompt_filepath]
