"""``rlspeech eval --task asr``: recognisers on the same held-out recordings, compared by what they wrote.

    rlspeech eval --task asr --data test.jsonl --model base=runs/base --model grpo=runs/rl --out runs/eval

The raw decodes go to ``hypotheses/NAME.jsonl`` as they come, and a recording that has its row is not recognised again; everything else
is counted from them, so another normaliser or another baseline costs nothing. A recording that one system could not take is left out
for all of them, which is said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.batches import columns_of
from rlspeech.data.text import get_normaliser
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import JsonlWriter, dumps, read_jsonl, safe_name, write_text
from rlspeech.log import several
from rlspeech.models.hub import fingerprint
from rlspeech.rewards.rates import RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import Judged, TextRules
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run
from rlspeech.stages.decode import Recogniser
from rlspeech.stages.recognition_page import print_table, write_page
from rlspeech.tasks import get_task
from rlspeech.types import Sample, UserError, Utterance

__all__ = ["Judgements", "run"]

NEUTRAL = ("models", "baseline", "metrics", "limit", "batch", "normaliser", "by")  # what a run that goes on may change
MOST_VALUES = 12  # of the column ``by`` that get a table
SAID = "hypotheses"


def run(config: Evaluate, utts: Sequence[Utterance], *, json_mode: bool = False) -> dict[str, Any]:
    """Recognise, count and compare.

    Args:
        config: the evaluation's.
        utts: the recordings, the limit not yet applied.
        json_mode: tables go to stderr.

    Returns:
        what ``metrics.json`` holds, and the paths of the report and the rows.

    Raises:
        UserError: data, checkpoint, normaliser or baseline that cannot be used; nothing that could be recognised.
    """
    models = _models(config)
    names = list(models)
    baseline = config.baseline or (names[0] if len(names) > 1 else None)
    rules = TextRules(config.normaliser, config.sampling.language)
    rows = [u for u in utts[: config.limit] if u.text is not None]
    notes = [f"{n} recordings have no text and are left out"] if (n := len(utts[: config.limit]) - len(rows)) else []
    if not rows:
        raise UserError(
            "no recording has a text",
            f"{len(utts)} rows of {config.data}",
            "rlspeech transcribe takes recordings without one",
        )
    engine = Engine(config.device, "fp32", config.seed)
    if not engine.is_main:  # one process evaluates; the others have nothing to add
        return {}
    began_s = time.monotonic()
    with Run.create(config.out, "eval", config, neutral=NEUTRAL) as folder, Watchdog() as dog:
        folder.note(device=engine.reason)
        engine.say(
            f"{several(len(rows), 'recording')}, {several(len(names), 'recogniser')}, texts by {config.normaliser}, {engine.reason}"
        )
        _forget_others(folder.path, {s: fingerprint(c, "asr") for s, c in models.items()})
        said = {s: _recognise(config, engine, folder.path, s, c, rows, dog) for s, c in models.items()}
        made = Judgements(config, rules, rows, said)
        notes += made.notes
        if not made.utts:
            first = next(
                (r["errors"]["hypothesis"] for part in said.values() for r in part.values() if r["errors"]), ""
            )
            raise UserError(
                "not one recording could be compared", "; ".join([*notes, first]), f"look at {folder.path / SAID}"
            )
        summary = _summary(config, made, names, baseline)
        extra = _further(config, made, folder.path, str(engine.device), summary)
        summary["seconds"] = {"total": round(time.monotonic() - began_s, 1)}
        write_text(folder.path / "metrics.json", json.dumps(log.plain(summary), indent=2, ensure_ascii=False) + "\n")
        print_table(made.whole, baseline, notes, config)
        page = write_page(folder, config, made, summary, notes, extra, engine.reason)
        summary |= {"run": str(folder.path), "report": str(page), "scores": str(folder.path / "scores.jsonl")}
    log.say(f"next: open {page} in a browser")
    return summary


def _models(config: Evaluate) -> dict[str, str]:
    """Systems by name; settings are looked at before anything is computed."""
    for name in ("nfe", "guidance", "video", "shuffled"):
        if getattr(config, name) != Evaluate.model_fields[name].get_default(call_default_factory=True):
            raise UserError(f"a recogniser has no setting {name!r}", "it belongs to an enhancer", "leave it out")
    get_normaliser(config.normaliser)
    models = config.models or {"embedded": "embedded"}
    for name in models:
        if safe_name(name) != name:
            raise UserError(f"a model cannot be called {name!r}", "the name becomes a file", "--model NAME=PATH")
    if config.baseline is not None and config.baseline not in models:
        raise UserError(
            f"no system is called {config.baseline!r}", f"there are {', '.join(models)}", "--baseline with one of them"
        )
    return models


def _forget_others(folder: Path, systems: Mapping[str, str]) -> None:
    """Drop what other weights under the same name wrote, and note those of today."""
    path = folder / "systems.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    for name, weights in systems.items():
        if before.get(name, weights) != weights:
            log.say(f"{name}: the checkpoint has changed since; its recordings are recognised again")
            (folder / SAID / f"{name}.jsonl").unlink(missing_ok=True)
    write_text(path, json.dumps({**before, **systems}, indent=2) + "\n")


def _recognise(
    config: Evaluate, engine: Engine, folder: Path, name: str, checkpoint: str, utts: Sequence[Utterance], dog: Watchdog
) -> dict[str, dict[str, Any]]:
    """Rows by id of everything asked for, recognised now or by an earlier attempt; rows of failures are tried again."""
    path = folder / SAID / f"{name}.jsonl"
    kept = [r for r in read_jsonl(path) if not r.get("errors")]
    write_text(path, "".join(dumps(r) + "\n" for r in kept))
    with JsonlWriter(path, key="key") as rows:
        todo = sorted((u for u in utts if u.id not in rows), key=lambda u: u.duration)
        if not todo:
            engine.say(f"{name}: all {len(utts)} recordings are recognised already")
            return rows.rows
        model, facts = get_task("asr").load(checkpoint, engine.device)
        recogniser = Recogniser(model, sampling=config.sampling, beams=config.beams, batch=config.batch)
        meta = {
            "model": checkpoint,
            "facts": facts,
            "normaliser": "none: raw decodes",
            "beams": config.beams,
            "sampling": config.sampling.model_dump(mode="json"),
        }
        write_text(
            path.with_suffix(".meta.json"),
            json.dumps(log.plain(meta), indent=2, default=str, ensure_ascii=False) + "\n",
        )
        with log.progress(len(utts), name, "recordings", start=len(utts) - len(todo)) as bar:
            for at in range(0, len(todo), config.batch):
                for row in _batch(recogniser, todo[at : at + config.batch], name):
                    rows.write(row)
                    bar.advance()
                dog.beat()
        return rows.rows


def _batch(recogniser: Recogniser, utts: Sequence[Utterance], system: str) -> list[dict[str, Any]]:
    wavs, rows = dict[str, np.ndarray](), dict[str, dict[str, Any]]()
    for utt in utts:
        try:
            wavs[utt.id] = load_audio(utt.audio_filepath, recogniser.sample_rate, utt.offset, utt.duration or None)
        except AudioError as error:
            rows[utt.id] = {"hypothesis": None, "errors": {"hypothesis": f"audio: {error.reason}"}}
    began_s = time.perf_counter()
    for key, heard in zip(wavs, recogniser.whole(list(wavs.values())), strict=True):
        if isinstance(heard, Exception):
            rows[key] = {"hypothesis": None, "errors": {"hypothesis": f"{type(heard).__name__}: {heard}"[:300]}}
        else:
            rows[key] = {"hypothesis": heard.text, "pieces": heard.pieces, "truncated": heard.truncated, "errors": {}}
    seconds = (time.perf_counter() - began_s) / max(1, len(wavs))
    return [{"key": u.id, "system": system, **rows[u.id], "seconds": round(seconds, 4)} for u in utts]


@dataclass(frozen=True, slots=True)
class _One:
    """A hypothesis under the rules."""

    sample: Sample
    judged: Judged
    counts: dict[str, int]
    row: dict[str, Any]


class Judgements:
    """Every hypothesis under the rules, and the corpus rates of all of them and of each value of a column.

    Args:
        config: ``by``, ``baseline`` and ``seed`` are used.
        rules: normaliser and detector.
        utts: with texts.
        said: system -> id -> row of ``hypotheses/``.
    """

    def __init__(
        self, config: Evaluate, rules: TextRules, utts: Sequence[Utterance], said: Mapping[str, Mapping[str, Any]]
    ) -> None:
        both = [u for u in utts if all(said[s].get(u.id, {}).get("hypothesis") is not None for s in said)]
        blank = {
            u.id
            for u in both
            if (u.text or "").strip() and not rules.judge(Sample(u.id, _NOTHING, 16000, None, u.text)).texts[0]
        }
        self.utts = [u for u in both if u.id not in blank]
        lost = len(utts) - len(both)
        self.notes = [f"{lost} recordings could not be recognised and are left out for all"] if lost else []
        if blank:
            self.notes.append(
                f"{len(blank)} texts are empty after {config.normaliser} and are left out: {', '.join(sorted(blank)[:3])}"
            )
        self.rows = {s: {u.id: self._one(rules, u, said[s][u.id]) for u in self.utts} for s in said}
        cut = {s: n for s in said if (n := sum(o.row.get("truncated", 0) > 0 for o in self.rows[s].values()))}
        self.notes += [
            f"{s}: {n} outputs ran into the limit of tokens and are scored as they are" for s, n in cut.items()
        ]
        if not self.utts:
            return
        baseline = config.baseline or (next(iter(said)) if len(said) > 1 else None)
        self.whole = self._compare([u.id for u in self.utts], baseline, config.seed)
        self.parts: dict[str, RateComparison] = {}
        values = {u.id: str(v) for u in self.utts if (v := columns_of(u).get(config.by)) is not None}
        kinds = sorted(set(values.values()))
        if len(kinds) > MOST_VALUES:
            self.notes.append(
                f"{config.by} has {len(kinds)} values, too many for tables of their own (at most {MOST_VALUES})"
            )
            return
        for kind in kinds:
            self.parts[kind] = self._compare([k for k, v in values.items() if v == kind], baseline, config.seed)

    def _one(self, rules: TextRules, utt: Utterance, row: dict[str, Any]) -> _One:
        sample = Sample(utt.id, _NOTHING, 16000, None, utt.text, columns_of(utt), row["hypothesis"])
        judged = rules.judge(sample)
        return _One(sample, judged, counts_of(judged), row)

    def _compare(self, keys: Sequence[str], baseline: str | None, seed: int) -> RateComparison:
        return compare_rates({s: [rows[k].counts for k in keys] for s, rows in self.rows.items()}, baseline, seed)


_NOTHING = np.zeros(0, dtype=np.float32)  # rules look at texts alone


def _summary(config: Evaluate, made: Judgements, names: Sequence[str], baseline: str | None) -> dict[str, Any]:
    from rlspeech.rewards.rates import RATES

    found = made.whole.as_dict()
    return {
        "task": "asr",
        "normaliser": config.normaliser,
        "baseline": baseline,
        "by_column": config.by,
        **found,
        "units": {r.name: "%" if r.factor == 100 else "words" for r in RATES if r.name in made.whole.systems[names[0]]},
        "higher_is_better": {r.name: r.higher_is_better for r in RATES if r.name in made.whole.systems[names[0]]},
        "by": {value: part.as_dict() for value, part in made.parts.items()},
        "interval": "bootstrap over utterances, 95 %, of ratios of sums; differences are paired",
    }


def _further(
    config: Evaluate, made: Judgements, folder: Path, device: str, summary: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write ``scores.jsonl``, with the metrics that were asked for beside the counts; returns their means by system.

    Those of the rules are in the corpus rates already; a function of the user's has a mean over utterances.
    """
    from rlspeech.stats import mean_interval

    lines, means = list[str](), dict[str, dict[str, Any]]()
    options = {"asr": {"normaliser": config.normaliser, "language": config.sampling.language}}
    with Scorer(config.metrics, device=device, workers=0, options=options) as scorer:
        for system, rows in made.rows.items():
            scores = scorer.score([o.sample for o in rows.values()]) if config.metrics else {}
            means[system] = {m: mean_interval([s.value for s in column], config.seed) for m, column in scores.items()}
            for i, (key, one) in enumerate(rows.items()):
                errors = {m: column[i].error for m, column in scores.items() if column[i].value is None}
                row = {
                    "key": key,
                    "system": system,
                    "text": one.sample.text,
                    "hypothesis": one.sample.hypothesis,
                    "normaliser": config.normaliser,
                    "normalised": list(one.judged.texts),
                    "rules": "+".join(one.judged.fired),
                    "counts": one.counts,
                    **{m: column[i].value for m, column in scores.items()},
                    "errors": errors,
                }
                lines.append(dumps(row) + "\n")
        meta = {
            "normaliser": config.normaliser,
            "rules": TextRules(config.normaliser).version,
            "metrics": scorer.meta(),
        }
    write_text(folder / "scores.jsonl", "".join(lines))
    write_text(folder / "scores.meta.json", json.dumps(log.plain(meta), indent=2, ensure_ascii=False) + "\n")
    if config.metrics:
        summary["metrics"] = {s: {m: i.as_dict() for m, i in row.items()} for s, row in means.items()}
    return means
