"""``rlspeech reward``: score a folder of audio files, a manifest or saved transcripts into ``scores.jsonl`` and ``scores.meta.json``.

Every file's row is appended as soon as its batch is done, so an interrupted run goes on where it was; a row is taken over only where
the file and the metric's version are still the same. Asking for further rewards later adds columns and recomputes nothing.

Rewards of a recogniser's texts (``asr_*``) open no audio where no other reward is asked for, and do not mind audio that is lost.
"""

from __future__ import annotations

import inspect
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.config_parts import Shard
from rlspeech.data.audio import AudioError
from rlspeech.data.decode import remarks
from rlspeech.data.inputs import HYPOTHESES, Item, Items, collect, without_audio
from rlspeech.data.inputs import load as read_audio
from rlspeech.data.manifest import draws_of
from rlspeech.files import held
from rlspeech.plugins import load, load_function
from rlspeech.report.build import write_page
from rlspeech.report.calibrate import ORDER, calibrated, print_calibration
from rlspeech.rewards import base
from rlspeech.rewards.catalogue import RECOGNISED, RECOGNISERS
from rlspeech.rewards.rates import UNITS, units_rate
from rlspeech.rewards.scorer import Pending, Scorer
from rlspeech.rewards.user import is_trls
from rlspeech.scores import FIXED, JUDGE_TEXT, ScoreFile, system_facts
from rlspeech.stats import Interval, mean_interval
from rlspeech.types import Sample, Score, UserError

PAGE_ROWS = 100_000  # a page holds every row in memory: one of more is written where it is asked for
Found = Sample | AudioError
Read = Callable[[Item], Found]
Loaded = list[tuple[Item, Found]]


def run(config: ScoreFolder, path: str | Path | Sequence[str], joined: Sequence[Path] = ()) -> dict[str, Any]:
    """Score everything under ``path``: a folder, manifest or audio file, or several of them.

    Args:
        joined: folders of shards, whose scores are taken over; nothing is computed then.

    Returns:
        the summary: per metric mean, interval, valid and failed counts, reasons; where the scores are; seconds per metric; of joined
        shards how many files are to be scored once more (``missing``).

    Raises:
        UserError: nothing to score, a reward that cannot be used, or one whose references or transcripts are missing altogether.
    """
    asked = base.named(config.rewards)
    options = _options(config, [base.resolve(r).entry.family for r in asked])
    requests = [base.resolve(r, options.get(base.resolve(r).entry.family)) for r in asked]
    silent = all(_reads_only(r) for r in requests)
    shard = Shard.of(config.shard)
    items = collect(path, config.target, config.text, config.hypotheses, texts_only=silent, shard=shard)
    if config.hypotheses and not any(_judges_texts(r) for r in requests):
        raise UserError("no reward judges the hypotheses", "", "--reward asr_wer, or leave out --hypotheses")
    if unasked := sorted(set(options) - {r.entry.family for r in requests}):
        what = f"{', '.join(options[unasked[0]])} of the reward {unasked[0]} is set, and it is not asked for"
        raise UserError(what, "", f"--reward {unasked[0]}, or leave it out")
    how: dict[str, Any] = {"workers": config.workers * (not joined), "timeout_s": config.timeout_s, "options": options}
    with ExitStack() as stack:
        scorer = stack.enter_context(Scorer(asked, device=device_of(config.device, requests), **how))
        _check_needs(scorer, items)
        place = _out(config.out, path)
        found = system_facts(joined[0] / place.name, config.system)["metrics"] if joined else scorer.meta()
        meta = {r.asked: {**found[r.asked], **_normaliser(r)} for r in scorer.requests}
        stack.enter_context(held(place.parent))
        scores = ScoreFile(place, config.system, meta)
        for folder in joined:
            counted = scores.take(folder / place.name)
            scorer.resampled.update(counted.get("resampled", {}))
            scorer.over_full_scale += counted.get("over_full_scale", 0)
        known = enumerate(zip(items.keys, items.stamps, strict=True))
        todo = array("L", (n for n, (key, stamp) in known if scores.missing(key, f"{stamp:08x}")))
        if scores.outdated:
            why = f"the version or the options have changed since {scores.path} was written"
            log.say(f"recomputing {', '.join(scores.outdated)}: {why}")
        if done := len(items) - len(todo):
            log.say(f"{done} of {len(items)} files are in {scores.path} already")
        left, todo = len(todo) * bool(joined), array("L") if joined else todo
        try:
            draws = draws_of(path)  # some rewards compare those of a prompt: they are in one batch
            batch = -(-config.batch // draws) * draws
            parts = _ahead(items, todo, batch, without_audio if silent else read_audio)
            _score_all(scorer, scores, parts, len(items), done)
        except KeyboardInterrupt:
            log.say(f"interrupted; what is scored is in {scores.path}, the same command goes on from there")
            raise
        finally:
            scores.write()
            facts = _facts(scores, scorer, items.keys, config.seed)
            scores.write_meta({**facts, "settings": _settings(config, path)})
    return _report(scores, scorer, items, config) | ({"missing": left} if joined else {})


def _options(config: ScoreFolder, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings that are options of reward families, family -> option -> value; a recogniser is for all that take one and are asked for."""
    judge = {"model": config.llm, "name": config.llm_model, "sentiment": config.sentiment, "prompt": config.prompt}
    families: dict[str, dict[str, Any]] = {"speaker_similarity": {"encoder": config.speaker_encoder}, "llm": judge}
    takers = [f for f in RECOGNISERS if f in asked and not (config.hypotheses and f == RECOGNISED.family)]
    families |= {f: {"recogniser": config.recogniser} for f in takers or RECOGNISERS[:1]}
    families["speech_bert_score"] = {"encoder": config.speech_encoder}
    return {f: given for f, options in families.items() if (given := {k: v for k, v in options.items() if v})}


def _judges_texts(request: base.Request) -> bool:
    return not request.entry.needs.isdisjoint({"hypothesis", "transcript"})


def _reads_only(request: base.Request) -> bool:
    """Whether a reward never listens; a function of the user's may, whatever it asks for, but for one of TRL's form."""
    own = request.entry.family
    return "hypothesis" in request.entry.needs and (":" not in own or is_trls(load_function(own)))


def _normaliser(request: base.Request) -> dict[str, str]:
    """For the meta file: an error rate of a given hypothesis means nothing without it."""
    if not _judges_texts(request):
        return {}
    own = inspect.signature(load(request.entry.factory)).parameters.get("normaliser")
    return {} if own is None else {"normaliser": str(dict(request.options).get("normaliser", own.default))}


def _score_all(scorer: Scorer, scores: ScoreFile, parts: Iterator[Loaded], total: int, done: int) -> None:
    """Read, score and write in batches; the workers score one batch while the next is read and the device scores."""
    before: tuple[list[Item], Pending] | None = None
    texts = any(map(_judges_texts, scorer.requests))
    fixed = FIXED.union(*(r.entry.columns for r in scorer.requests))  # a column that is not asked for is no detail
    with log.progress(total, "scoring", "files", start=done) as bar:
        for part in parts:
            ready = list[tuple[Item, Sample]]()
            for item, sample in part:
                if not isinstance(sample, AudioError):
                    ready.append((item, sample))
                elif texts and item.hypothesis is not None:
                    ready.append((item, without_audio(item, sample.reason)))  # its texts can still be judged
                else:
                    nulls = dict.fromkeys(scores.metrics)
                    scores.add([_row(item, scores.system, nulls, dict.fromkeys(nulls, f"audio: {sample.reason}"))])
            wanted = {n for item, _ in ready for n in scores.missing(item.key, item.stamp())}
            now = ([i for i, _ in ready], scorer.start([s for _, s in ready], wanted)) if ready else None
            _write(before, scores, fixed)
            before = now
            bar.advance(len(part))
        _write(before, scores, fixed)


def _ahead(items: Items, todo: Sequence[int], batch: int, read: Read) -> Iterator[Loaded]:
    """Batches of loaded items, the next one being read while this one is used."""
    with ThreadPoolExecutor(2) as readers:

        def begun(start: int) -> list[tuple[Item, Future[Found]]]:
            return [(item, readers.submit(read, item)) for item in map(items.__getitem__, todo[start : start + batch])]

        waiting = begun(0)
        for start in range(batch, len(todo) + batch, batch):
            loaded = [(item, job.result()) for item, job in waiting]
            waiting = begun(start)
            yield loaded


def _write(batch: tuple[list[Item], Pending] | None, scores: ScoreFile, fixed: set[str]) -> None:
    if batch is None:
        return
    items, pending = batch
    table, rows = pending.result(), []
    for n, item in enumerate(items):
        answers = {name: column[n] for name, column in table.items()}
        errors = {k: _why(s, pending.samples[n]) for k, s in answers.items() if s.value is None}
        values: dict[str, Any] = {}
        for name, s in answers.items():
            own = _suffix(name)
            # what is judged is the item's hypothesis; a recogniser that listened itself wrote another one
            listened = item.hypothesis is not None and "normaliser" not in scores.metrics[name]
            prefix = f"{name.split('[')[0]}_" if listened else ""
            values |= {f"{prefix if k in HYPOTHESES else ''}{k}{own}": v for k, v in s.detail.items() if k not in fixed}
        rows.append(_row(item, scores.system, {**values, **{k: s.value for k, s in answers.items()}}, errors))
    scores.add(rows)


def _why(score: Score, sample: Sample) -> str:
    causes = {"no samples": ("audio", "_audio_error"), "no reference audio": ("reference", "_target_error")}
    what, column = causes.get(score.error or "", ("", ""))
    return f"{what}: {sample.columns[column]}" if column in sample.columns else score.error or "no reason given"


def _row(item: Item, system: str, values: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    clean = {k: log.plain(round(v, 6) if isinstance(v, float) else v) for k, v in values.items()}
    return {"key": item.key, "system": system, **clean, "stamp": item.stamp(), "errors": errors}


def _facts(scores: ScoreFile, scorer: Scorer, keys: Sequence[str], seed: int) -> dict[str, Any]:
    """What the meta file says of a system: per metric the version, counts, mean and interval; what happened to the input."""
    metrics = {}
    for name, (values, errors) in scores.columns(keys).items():
        found, reasons = mean_interval(values, seed), dict(errors.most_common(10))
        counts = {"n_valid": found.n, "n_failed": found.dropped}
        measured = {"mean": found.mean, "lo": found.lo, "hi": found.hi, "reasons": reasons}
        metrics[name] = {**scores.metrics[name], **counts, **measured}
    mine = scores.meta["systems"][scores.system]
    return {"metrics": {**mine["metrics"], **metrics}, "n": len(keys), "input": scorer.input}


def _report(scores: ScoreFile, scorer: Scorer, items: Items, config: ScoreFolder) -> dict[str, Any]:
    facts = scores.meta["systems"][config.system]["metrics"]
    keys, rows, notes = items.keys, [], []
    for name in scores.metrics:
        f = facts[name]
        interval = Interval(f["mean"], f["lo"], f["hi"], f["n_valid"], f["n_failed"])
        label = name if f["higher_is_better"] else f"{name} (lower is better)"
        rows.append([label, interval.text(), f["n_valid"], f["n_failed"]])
        notes += [f"{name}: {count} x {reason}" for reason, count in list(f["reasons"].items())[:3]]
    corpus = _corpus_rates(scores, keys, config.seed)
    notes += [f"{name}: {rate['text']}" for name, rate in corpus.items()]
    notes += [*_input_notes(scorer, items), f"scores: {scores.path}"]
    heading = ["metric", "mean [95 % interval]", "valid", "failed"]
    log.table(f"{config.system}: {log.several(len(items), 'file')}", heading, rows, notes)
    order = None
    if not items.columns.isdisjoint(ORDER):
        better = {n: bool(facts["higher_is_better"]) for n, facts in scores.metrics.items()}
        own = {k: scores.row(scores.system, k) for k in keys}
        order = calibrated(own, {i.key: i.columns for i in items}, better, config.seed)
        if order is not None:
            print_calibration(order)
    # a page where it is asked for, or (auto) where there is something that a table cannot show
    asked = keys if any("llm" in name for name in facts) else ()
    judged = any(c.startswith(JUDGE_TEXT) and v for k in asked for c, v in scores.row(scores.system, k).items())
    shown = config.report == "auto" and len(items) <= PAGE_ROWS and (judged or corpus or order is not None)
    asked_for = config.report == "always" or shown
    page = write_page(scores.path) if asked_for and not Shard.of(config.shard).own else None
    if page is not None:
        log.say(f"next: open {page} in a browser")
    seconds = {k: round(v, 3) for k, v in scorer.seconds.items()}
    keep = ("mean", "lo", "hi", "n_valid", "n_failed", "reasons", "version")
    summary: dict[str, Any] = {"stage": "reward", "system": config.system, "n": len(items)}
    summary |= {"scores": str(scores.path), "meta": str(scores.meta_path)}
    summary |= {"metrics": {n: {k: facts[n][k] for k in keep} for n in scores.metrics}, "seconds": seconds}
    summary |= {"corpus": corpus, "calibration": order, "report": str(page) if page else None}
    return dict(log.plain(summary))


def _input_notes(scorer: Scorer, items: Items) -> list[str]:
    """The rates at which the metrics were computed just now, and what is wrong with files that were scored as far as they go."""
    rates: dict[str, list[str]] = {}
    for name, counts in scorer.rates.items():
        pairs = sorted(counts.items())
        told = ", ".join(f"{at} Hz" + (f" ({n} of {there} Hz)" if at != there else "") for (at, there), n in pairs)
        rates.setdefault(told, []).append(name)
    notes = [f"computed at {told}: {', '.join(names)}" for told, names in rates.items()]
    known = (f"{f}: {remarks[f]}" for i in items for f in (i.audio, i.target) if f in remarks)
    return notes + list(islice(known, min(3, len(remarks))))


def _corpus_rates(scores: ScoreFile, keys: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Error rate of all hypotheses together, per options of ``asr`` that were asked for.

    Returns a name for people -> ``wer`` in % with its interval, its parts, ``units``, ``normaliser`` and ``text``, a line for the table.
    """
    made, normalisers = {}, dict[str, str]()
    for name, facts in scores.metrics.items():
        if "normaliser" in facts:
            normalisers.setdefault(_suffix(name), facts["normaliser"])
    for own, normaliser in normalisers.items():
        found = (row for k in keys if (row := scores.row(scores.system, k)).get(f"units{own}"))
        if rows := [{k: row[f"{k}{own}"] for k in UNITS} for row in found]:
            rate, parts, size = units_rate(rows, seed)
            split = ", ".join(f"{v:.2f} {k}" for k, v in parts.items())
            where = f"{size} units in {log.several(len(rows), 'file')}, texts by {normaliser}"
            made[f"all words together{own}"] = {
                **{"wer": rate.mean, "lo": rate.lo, "hi": rate.hi, **parts, "units": size, "n": len(rows)},
                **{"normaliser": normaliser, "text": f"error rate {rate.text(2)} % ({split}) of {where}"},
            }
    return made


def _suffix(name: str) -> str:
    """The options of a metric's name, ``[...]``: details of the same reward with other options are told apart by them."""
    return name[name.index("[") :] if "[" in name else ""


def _settings(config: ScoreFolder, path: str | Path | Sequence[str]) -> dict[str, Any]:
    """What the meta file keeps, so that the page can be written again: the settings, and where the files are."""
    paths = {k: os.path.abspath(v) for k in ("target", "text", "hypotheses") if (v := getattr(config, k))}
    place = os.path.abspath(path) if isinstance(path, str | Path) else [os.path.abspath(p) for p in path]
    return {**config.model_dump(mode="json"), **paths, "path": place}


def _check_needs(scorer: Scorer, items: Items) -> None:
    hint = "--hypotheses FILE, --recogniser NAME, or a column hypothesis or pred_text in the manifest"
    for need, what, flag in (
        ("hypothesis", "hypothesis", hint),
        ("target", "reference", "--target FOLDER"),
        ("text", "transcript", "--text FILE"),
    ):
        # of words, "" is a transcript like any other: nothing is said
        asking = [r for r in scorer.requests if need in r.entry.needs]
        if wanting := [r.asked for r in asking if items.given.isdisjoint({(need, True), (need, not _judges_texts(r))})]:
            what = f"{', '.join(wanting)} cannot be computed without a {what} for each file"
            raise UserError(what, "none is given", flag)


def _out(out: str | None, path: str | Path | Sequence[str]) -> Path:
    if out:
        return Path(out) if out.endswith(".jsonl") else Path(out) / "scores.jsonl"
    if not isinstance(path, str | Path):
        return Path("scores.jsonl")  # of files from anywhere: here
    path = Path(path)
    beside = path / "scores.jsonl" if path.is_dir() else path.with_suffix(".scores.jsonl")
    if os.access(beside.parent, os.W_OK):
        return beside
    raise UserError(f"cannot write {beside}", "the folder is read-only", "--out FILE or FOLDER")


def device_of(name: str, requests: Sequence[base.Request]) -> str:
    """The device of rewards; ``auto`` imports torch only where one of them needs it."""
    if name == "auto" and any(r.entry.where == "device" and ":" not in r.entry.family for r in requests):
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if name == "auto" else name
