"""How ``tts`` is evaluated: synthesisers on the same texts, judged by a recogniser that is named, and by how they sound.

What a system says goes to ``said/NAME.jsonl`` (tokens) and ``audio/NAME/`` as it comes; what is there is not made again. A model that was
rewarded by a recogniser has learned to be understood by that one: who listens here should be another, and where it is the same there is a
remark. A text that one system could not be scored on is left out for all of them.

Two rows say how much could be had (``anchors``): the recordings themselves, of which the recogniser misunderstands some, and their copies
through the codec, which no language model over its ids can be better than.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from rlspeech.config import Evaluate
from rlspeech.config_parts import SPEAKING
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import Clip, columns_of
from rlspeech.data.text import get_normaliser
from rlspeech.parallel import one_by_one
from rlspeech.run import settings_of
from rlspeech.scores import Row, ScoreTable
from rlspeech.tasks.evaluation import Answers, Evaluation, System
from rlspeech.tasks.tts.best import BestOf, judge_of, run_of
from rlspeech.types import Sample, Score, UserError, Utterance

EMBEDDED = "embedded"
RECORDINGS, RESYNTHESIS = ANCHORS = ("recordings", "resynthesis")
LISTENED = re.compile(r"^tts_(?:accuracy|cer|wer|posterior|nll)\b(?:\[(.*)\])?$")  # rewards of a recogniser


class Synthesis(Evaluation):
    """Synthesisers on the same texts, and the anchors."""

    reserved = ("prompt", *ANCHORS)
    neutral = ("best_of", "judge")  # they are of one system, and in its variant
    noted = ("data", "normaliser", "recogniser", "sampling", "seed")
    rates = ("cer", "wer", "substitutions", "deletions", "insertions", "exact")
    rated = ("tts_cer", "tts_wer")
    interval = "bootstrap over texts, 95 %; rates are ratios of sums, the rest means; differences are paired"

    def __init__(self, task: Any, config: Evaluate) -> None:
        super().__init__(task, config)
        if "temperature" not in config.sampling.model_fields_set:
            sampling = config.sampling.model_copy(update={"temperature": _temperature(config.out)})
            self.config = config = config.model_copy(update={"sampling": sampling})
        self.normalise = get_normaliser(config.normaliser)
        self.listener = config.recogniser or EMBEDDED
        self.summary = {"recogniser": self.listener, "temperature": config.sampling.temperature}
        self.anchors: tuple[str, ...] = ()  # those that the rows allow

    def rows(self, utts: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
        some = [u for u in utts if self.normalise(u.text or "")]
        if not some:
            why = f"{len(utts)} rows of {self.config.data}, after {self.config.normaliser}"
            raise UserError("no row has a text", why, "rlspeech prepare tts --help")
        notes = [f"{n} rows have no text and are left out"] if (n := len(utts) - len(some)) else []
        self.anchors = ANCHORS if self.config.anchors and any(map(_recorded, some)) else ()
        if self.config.anchors and not self.anchors:
            notes.append(f"no {' and no '.join(ANCHORS)}: these texts are not recorded")
        return some, notes + self.partial()

    def systems(self, utts: Sequence[Utterance]) -> list[System]:
        config, (first, *others) = self.config, super().systems(utts)
        anchors = (System(a, first.checkpoint, compared=False) for a in self.anchors)
        systems = [first, *anchors, *others]  # the anchors while the first model is loaded
        of = (config.baseline or first.name).removesuffix(f"-best{config.best_of}")
        base = next((s for s in systems if s.name == of), first)
        judge, name = judge_of(str(base.checkpoint), config.best_of, config.judge), f"{base.name}-best{config.best_of}"
        if judge and name in config.models:
            why = f"it is the name of the best of {config.best_of} draws of {base.name}"
            raise UserError(f"a model cannot be called {name!r}", why, "--model with another name")
        best = [System(name, base.checkpoint, f"best of {config.best_of} by {judge}")] if judge else []
        at = systems.index(base) + 1
        return [*systems[:at], *best, *systems[at:]]

    def metrics(self) -> tuple[list[str], list[str]]:
        names, notes = super().metrics()
        return [self.rated[0], *(m for m in names if m != self.rated[0])], notes

    def scoring(self) -> dict[str, dict[str, Any]]:
        config = self.config
        options = {"recogniser": self.listener, "normaliser": config.normaliser, "language": config.sampling.language}
        return {"tts": options}

    def answers(self, system: System, table: ScoreTable, fingerprint: str) -> Answers:
        return (_Spoken if system.compared else _Anchor)(self, system, table, fingerprint)

    def remarks(self, table: ScoreTable, systems: Sequence[str], keys: Sequence[str]) -> list[str]:
        mute = {s: sum(not table.row(s, k)["seconds"] for k in keys) for s in systems}
        return [f"{s}: no speech for {n} texts, which are missing from scores of sound" for s, n in mute.items() if n]

    def partial(self) -> list[str]:
        """A remark for each system that was rewarded or chosen by the recogniser that judges here."""
        found = []
        used = {f"{name} was trained on": run_of(checkpoint)[0] for name, checkpoint in self.config.models.items()}
        used |= {"the best draw is chosen by": [self.config.judge]} if self.config.judge else {}
        for what, rewards in used.items():
            given = [m[1] or "" for r in rewards if (m := LISTENED.match(r))]
            options = [dict(p.partition("=")[::2] for p in text.split(",")) for text in given]
            if self.listener in {o.get("recogniser", EMBEDDED) for o in options}:
                found.append(f"{what} what {self.listener} recognises, which judges here: --recogniser names others")
        return found


class _Spoken(Answers):
    """Speech of a system."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.said, self.best = self.journal_of("said", self._whole), cast(BestOf | None, None)

    def _whole(self, row: Row) -> bool:
        """True where a row is of these weights, and its waveform is there, or there is none to be had."""
        there = not row.get("samples") or self.file(str(row["key"])).is_file()
        return there and row.get("weights") == self.fingerprint

    @property
    def model(self) -> Any:
        """The system's, loaded when it is first needed."""
        return self.evaluation.load(self.system.checkpoint)[0]

    def todo(self, utts: Sequence[Utterance]) -> list[Utterance]:
        return sorted((u for u in utts if not self.table.done(self.name, u.id)), key=lambda u: len(u.text or ""))

    def of(self, utts: Sequence[Utterance]) -> list[Sample | Exception]:
        new, began_s = [u for u in utts if u.id not in self.said], time.perf_counter()
        made = dict(zip((u.id for u in new), one_by_one(self.make, new), strict=True))
        seconds = round((time.perf_counter() - began_s) / max(1, len(new)), 4)
        for s in (s for s in made.values() if isinstance(s, Sample)):
            if len(s.wav):
                save_audio(self.file(s.key), s.wav, s.sample_rate)
            row: Row = {"key": s.key, "weights": self.fingerprint, "text": s.text, "sample_rate": s.sample_rate}
            row.update({"samples": len(s.wav), "finished": s.finished, "seconds": seconds, "token_s": s.token_s})
            row |= {} if self.best is None else self.best.choices.pop(s.key, {})
            self.said.write({**row, "tokens": None if s.tokens is None else s.tokens.tolist()})
        failed = {k: m for k, m in made.items() if isinstance(m, Exception)}
        return [failed.get(u.id) or self._kept(u) for u in utts]

    def make(self, utts: Sequence[Utterance]) -> list[Sample]:
        """Synthesise the rows: a sample each, in order."""
        config, model, evaluation = self.config, self.model, self.evaluation
        if self.best is None:
            what = (config.best_of, config.judge) if self.system.variant else (1, None)
            how: dict[str, Any] = {"sampling": config.sampling, "seed": config.seed, "device": str(evaluation.device)}
            self.best = BestOf(evaluation.task, model, str(self.system.checkpoint), *what, **how)
        return self.best([self._clip(u, model.sample_rate) for u in utts])

    def target(self, utt: Utterance, sample_rate: int) -> np.ndarray | None:
        """Speech (T,) in the voice that was wanted, to compare with."""
        return voice_of(utt, sample_rate)

    def facts(self, sample: Sample, scores: Mapping[str, Score]) -> Row:
        return {
            "text": sample.text,
            "hypothesis": scores[self.evaluation.rated[0]].detail.get("hypothesis"),
            "finished": sample.finished,
            "seconds": round(len(sample.wav) / sample.sample_rate, 3),
        }

    def _clip(self, utt: Utterance, sample_rate: int) -> Clip:
        """A row as the task wants it; the recording is read where it lends the voice."""
        voice = None if utt.prompt_filepath else voice_of(utt, sample_rate)
        wav = np.zeros(0, np.float32) if voice is None else voice
        return Clip(utt.id, wav, wav, sample_rate, utt.text, columns_of(utt))

    def _kept(self, utt: Utterance) -> Sample:
        """The saved speech of a row, to be scored."""
        row = self.said.rows[utt.id]
        rate = int(row["sample_rate"])
        wav = load_audio(self.file(utt.id), rate) if row["samples"] else np.zeros(0, np.float32)
        tokens = None if row["tokens"] is None else np.array(row["tokens"], np.int64)
        sample = Sample(utt.id, wav, rate, self.target(utt, rate), utt.text, columns_of(utt), tokens=tokens)
        sample.finished, sample.token_s = bool(row["finished"]), row.get("token_s")
        return sample


class _Anchor(_Spoken):
    """Recordings, or what the codec of the first model leaves of them, in the place of a system.

    Both are at the model's rate; a copy has the voice that the model is given, the prompt's where there is one.
    """

    def todo(self, utts: Sequence[Utterance]) -> list[Utterance]:
        return super().todo([u for u in utts if _recorded(u)])

    def make(self, utts: Sequence[Utterance]) -> list[Sample]:
        """Raises ``AudioError``, and ``UserError`` where there is no codec."""
        model = self.model
        rate, tokens, token_s = model.sample_rate, [None] * len(utts), None
        wavs = [load_audio(u.audio_filepath, rate, u.offset, u.duration) for u in utts]
        if self.name == RESYNTHESIS:
            codes, token_s = model.codec.encode(wavs), model.codec.frame_s
            tokens, wavs = [c.numpy() for c in codes], model.codec.decode(codes, [voice_of(u, rate) for u in utts])
        rows = zip(utts, wavs, tokens, strict=True)
        return [Sample(u.id, w, rate, None, u.text, columns_of(u), tokens=t, token_s=token_s) for u, w, t in rows]

    def target(self, utt: Utterance, sample_rate: int) -> np.ndarray | None:
        """The prompt's speech; a recording is not compared with itself."""
        return None if self.name == RECORDINGS and not utt.prompt_filepath else voice_of(utt, sample_rate)


def voice_of(utt: Utterance, sample_rate: int) -> np.ndarray | None:
    """Speech (T,) in the voice that a row asks for: its prompt, else its recording; None where it cannot be read."""
    try:
        if utt.prompt_filepath:
            return load_audio(utt.prompt_filepath, sample_rate)
        return load_audio(utt.audio_filepath, sample_rate, utt.offset, utt.duration)
    except AudioError:
        return None


def _temperature(out: str | None) -> float:
    """At which speech is drawn: an evaluation goes on as it was begun, a new one draws as ``speak`` does."""
    sampling = settings_of(out).get("sampling") if out else None
    return float(sampling.get("temperature", SPEAKING)) if isinstance(sampling, dict) else SPEAKING


def _recorded(utt: Utterance) -> bool:
    """Whether a row's recording says its text."""
    return utt.extra.get("recorded") is not False and utt.audio_filepath != utt.prompt_filepath
