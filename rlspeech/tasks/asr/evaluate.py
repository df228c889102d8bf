"""How ``asr`` is evaluated: recordings of any length in, raw decodes out.

The raw decodes go to ``hypotheses/NAME.jsonl`` as they come, and a recording that has its row is not recognised again; everything else
is counted from them every time, so another normaliser or another baseline needs no recogniser. A recording that one system failed on is
left out for all of them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.batches import columns_of
from rlspeech.data.inputs import texts_of
from rlspeech.rewards import base
from rlspeech.rewards.rates import RATES, counts_of
from rlspeech.rewards.recognisers import Recogniser
from rlspeech.rewards.rules import TextRules
from rlspeech.scores import Row, ScoreTable, write_json
from rlspeech.tasks.evaluation import Answers, Evaluation, System, reason_of
from rlspeech.types import Sample, Score, UserError, Utterance

NO_SOUND = np.zeros(0, dtype=np.float32)  # rules look at texts alone


class Recognition(Evaluation):
    """Recognisers on the same recordings, compared by what they write."""

    neutral = ("normaliser",)
    rates = tuple(r.name for r in RATES)
    recounted = True
    interval = "bootstrap over utterances, 95 %, of ratios of sums; differences are paired"

    def __init__(self, task: Any, config: Evaluate) -> None:
        super().__init__(task, config)
        self.rules = TextRules(config.normaliser, config.sampling.language)
        self.transcripts: dict[str, dict[str, Row]] = {}
        self.texts: dict[str, dict[str, str]] = {}  # of systems that are other programs
        self.meta = {"normaliser": config.normaliser, "rules": self.rules.version}

    def rows(self, utts: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
        some = [u for u in utts if u.text is not None]
        if not some:
            why = f"{len(utts)} rows of {self.config.data}"
            raise UserError("no recording has a text", why, "rlspeech transcribe takes recordings without one")
        notes = [f"{n} recordings have no text and are left out"] if (n := len(utts) - len(some)) else []
        blank = [u.id for u in some if (u.text or "").strip() and not self.rules.judge(u.text, "").texts[0]]
        if blank:
            normaliser, few = self.config.normaliser, ", ".join(sorted(blank)[:3])
            notes.append(f"{len(blank)} texts are empty after {normaliser} and are left out: {few}")
        return [u for u in some if u.id not in blank], notes

    def metrics(self) -> tuple[list[str], list[str]]:
        return base.named(self.config.metrics), []

    def systems(self, utts: Sequence[Utterance]) -> list[System]:
        systems = super().systems(utts) if self.config.models or not self.config.systems else []
        for name, path in self.config.systems.items():
            self.texts[name] = texts_of(path, utts)
            status = zlib.crc32(repr(sorted(self.texts[name].items())).encode())
            systems.append(System(name, variant=f"files {status:08x}", folder=path))
        return systems

    def scoring(self) -> dict[str, dict[str, Any]]:
        return {"asr": {"normaliser": self.config.normaliser, "language": self.config.sampling.language}}

    def answers(self, system: System, table: ScoreTable, fingerprint: str) -> Answers:
        return _Transcripts(self, system, table, fingerprint)

    def remarks(self, table: ScoreTable, systems: Sequence[str], keys: Sequence[str]) -> list[str]:
        cut = {s: sum(self.transcripts[s].get(k, {}).get("truncated", 0) > 0 for k in keys) for s in systems}
        return [f"{s}: {n} outputs ran into the limit of tokens, and are scored so" for s, n in cut.items() if n]


class _Transcripts(Answers):
    """Rows of ``hypotheses/NAME.jsonl``; rows of failures are tried again."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rows = self.journal_of("hypotheses", lambda row: not row.get("errors"))
        self.evaluation.transcripts[self.name] = self.rows.rows
        self.recogniser: Recogniser | None = None

    def todo(self, utts: Sequence[Utterance]) -> list[Utterance]:
        return sorted(utts, key=lambda u: (u.id in self.rows, u.duration))

    def of(self, utts: Sequence[Utterance]) -> list[Sample | Exception]:
        if self.system.folder is not None:
            texts, why = self.evaluation.texts[self.name], AudioError(f"no text in {self.system.folder}")
            return [_sample(u, texts[u.id]) if u.id in texts else why for u in utts]
        failed = self._recognise([u for u in utts if u.id not in self.rows])
        return [failed.get(u.id) or _sample(u, self.rows.rows[u.id]["hypothesis"]) for u in utts]

    def facts(self, sample: Sample, scores: Mapping[str, Score]) -> Row:
        judged = self.evaluation.rules.judge(sample.text, sample.hypothesis, sample.columns)
        return {
            "text": sample.text,
            "hypothesis": sample.hypothesis,
            "normaliser": self.config.normaliser,
            "normalised": list(judged.texts),
            "rules": "+".join(judged.fired),
            "counts": counts_of(judged),
        }

    def _recognise(self, utts: Sequence[Utterance]) -> dict[str, Exception]:
        """Recognise a batch and write its rows; returns what failed."""
        if not utts:
            return {}
        recogniser = self._recogniser()
        failed: dict[str, Exception] = {}
        wavs: dict[str, np.ndarray] = {}
        for utt in utts:
            try:
                wavs[utt.id] = load_audio(utt.audio_filepath, recogniser.sample_rate, utt.offset, utt.duration)
            except AudioError as error:
                failed[utt.id] = error
        began_s = time.perf_counter()
        made = {**dict(zip(wavs, recogniser.whole(list(wavs.values())), strict=True)), **failed}
        seconds = round((time.perf_counter() - began_s) / max(1, len(wavs)), 4)
        for key, found in ((u.id, made[u.id]) for u in utts):
            row: Row = {"hypothesis": None, "errors": {}}
            if isinstance(found, Exception):
                row["errors"]["hypothesis"] = reason_of(found)
            else:
                row |= {"hypothesis": found.text, "pieces": found.pieces, "truncated": found.truncated}
            self.rows.write({"key": key, "system": self.name, **row, "seconds": seconds})
        return {key: found for key, found in made.items() if isinstance(found, Exception)}

    def _recogniser(self) -> Recogniser:
        if self.recogniser is None:
            config, checkpoint = self.config, self.system.checkpoint
            model, facts = self.evaluation.load(checkpoint)
            self.recogniser = Recogniser(model, sampling=config.sampling, beams=config.beams, batch=config.batch)
            meta = {"model": checkpoint, "facts": facts, "normaliser": "none: raw decodes", "beams": config.beams}
            meta |= {"sampling": config.sampling.model_dump(mode="json")}
            write_json(self.rows.path.with_suffix(".meta.json"), meta)
        return self.recogniser


def _sample(utt: Utterance, hypothesis: str) -> Sample:
    return Sample(utt.id, NO_SOUND, 16000, None, utt.text, columns_of(utt), hypothesis)
