"""The page of ``rlspeech reward``: means, how the rewards follow a known order, and players with what the judge said of them.

Of a recogniser's texts the page shows the mistakes; the audio is played where it can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.data.audio import AudioError
from rlspeech.data.text import align, units
from rlspeech.report import Clip, Edit, Grid, Metric, ReportData, render_report
from rlspeech.rewards import base
from rlspeech.rewards.files import Item, load, unheard
from rlspeech.rewards.scorefile import ScoreFile
from rlspeech.stages.calibrate import HEADING, calibrate, calibration_rows, has_order, print_calibration, text_of
from rlspeech.stages.recognition_page import edits_of
from rlspeech.stats import draws_interval, mean_interval, resampled_sums
from rlspeech.types import Sample

__all__ = ["calibration", "corpus_rates", "page", "page_path"]

TEXT = "llm_text"


def calibration(scores: ScoreFile, items: Sequence[Item], seed: int) -> dict[str, Any] | None:
    """Correlations with the order that the rows carry, printed; None where they carry none."""
    rows = [{**item.columns, **scores.rows.get((scores.system, item.key), {})} for item in items]
    for row, item in zip(rows, items, strict=True):
        row.update({k: item.columns[k] for k in ("rung", "ladder", "snr_db", "clean_id") if k in item.columns})
    if not has_order(rows):
        return None
    result = calibrate(rows, {n: bool(facts["higher_is_better"]) for n, facts in scores.metrics.items()}, seed)
    print_calibration(result)
    return result


def corpus_rates(scores: ScoreFile, items: Sequence[Item], seed: int) -> dict[str, dict[str, Any]]:
    """Error rate of all hypotheses together, per options of ``asr`` that were asked for.

    Returns:
        a name for people -> ``wer`` in % with its interval, its parts, ``units``, ``normaliser`` and ``text``, a line for the table.
        The mean over files, which the column ``asr_wer`` has, weighs a word in a short file more.
    """
    made = {}
    for own in dict.fromkeys(_options(n) for n in _of_texts(scores)):
        rows = [scores.rows.get((scores.system, i.key), {}) for i in items]
        counts = np.array([[r[f"{k}{own}"] for k in ("units", "substitutions", "deletions", "insertions")]
                           for r in rows if r.get(f"units{own}")], np.float64)
        if not len(counts):
            continue
        sums, draws = counts.sum(0), resampled_sums(counts, seed)
        rate = draws_interval(float(100 * sums[1:].sum() / sums[0]), 100 * draws[:, 1:].sum(1) / draws[:, 0], len(counts))
        parts = dict(zip(("substitutions", "deletions", "insertions"), (100 * sums[1:] / sums[0]).tolist(), strict=True))
        normaliser = next(scores.metrics[n]["normaliser"] for n in _of_texts(scores) if _options(n) == own)
        split = ", ".join(f"{v:.2f} {k}" for k, v in parts.items())
        made[f"all words together{own}"] = {
            "wer": rate.mean, "lo": rate.lo, "hi": rate.hi, **parts, "units": int(sums[0]), "n": len(counts), "normaliser": normaliser,
            "text": f"error rate {rate.text(2)} % ({split}) of {int(sums[0])} units in {len(counts)} files, texts by {normaliser}"}
    return made


def _of_texts(scores: ScoreFile) -> list[str]:
    """The columns of the family ``asr``."""
    return [name for name, facts in scores.metrics.items() if "normaliser" in facts]


def _options(name: str) -> str:
    return name[name.index("["):] if "[" in name else ""


def page_path(scores: Path) -> Path:
    """``report.html`` beside ``scores.jsonl``, ``NAME.report.html`` beside ``NAME.scores.jsonl``."""
    stem = scores.stem
    return scores.with_name((stem[: -len("scores")] + "report" if stem.endswith("scores") else f"{stem}.report") + ".html")


def page(scores: ScoreFile, items: Sequence[Item], config: ScoreFolder, result: Mapping[str, Any] | None) -> Path | None:
    """Write the page where it is asked for, or (auto) where there is something that a table cannot show.

    Returns:
        its path, or None.

    Raises:
        UserError: the disk does not take it.
    """
    spoken = [n for n in scores.metrics if any(_said(scores, n, i.key) for i in items)]
    if config.report == "never" or (config.report == "auto" and not spoken and not _of_texts(scores) and result is None):
        return None
    keys = [i.key for i in items]
    means = {n: mean_interval(scores.values(n, keys), config.seed) for n in scores.metrics}
    reasons = [f"{n}: {count} without a value: {reason}" for n in scores.metrics for reason, count in scores.errors(n, keys).most_common(5)]
    versions = {n: facts.get("version") for n, facts in scores.metrics.items()}
    data = ReportData(
        title=f"Scores of {config.system}", subtitle=f"{len(items)} files",
        metrics=[Metric(n, bool(facts["higher_is_better"]), base.column_of(n).help) for n, facts in scores.metrics.items()],
        means={config.system: means}, grids=_grids(result), clips=_clips(scores, items, config, spoken),
        config=config.model_dump(mode="json"), versions=versions, notes=reasons)
    return render_report(page_path(scores.path), data)


def _grids(result: Mapping[str, Any] | None) -> list[Grid]:
    if result is None:
        return []
    note = (f"Spearman correlation, +1 where the less degraded clip always has the better score; {result['n']} clips, {result['ladders']} "
            f"ladders, {result['utterances']} utterances. Intervals: bootstrap over utterances, 95 %.")
    grids = [Grid("Calibration", HEADING, calibration_rows(result), note)]
    ways = list(dict.fromkeys(way for r in result["rewards"].values() for way in r["ladder"]))
    if ways:
        rows = [[way, *(text_of(r["ladder"][way]) for r in result["rewards"].values())] for way in ways]
        grids.append(Grid("Order within a ladder, by the way of degrading", ["ladder", *result["rewards"]], rows))
    return grids


def _clips(scores: ScoreFile, items: Sequence[Item], config: ScoreFolder, spoken: Sequence[str]) -> list[Clip]:
    """Players from the lowest to the highest value of the judge (or the first reward), evenly spaced, so that they flatter nobody."""
    lead = (spoken or list(scores.metrics))[0]
    sign = 1 if scores.metrics[lead]["higher_is_better"] else -1
    value = dict(zip((i.key for i in items), scores.values(lead, [i.key for i in items]), strict=True))
    ranked = sorted((i for i in items if value[i.key] is not None), key=lambda i: (sign * float(value[i.key] or 0.0), i.key))
    count = min(config.players, len(ranked))
    clips = []
    for n in np.unique(np.linspace(0, len(ranked) - 1, count).astype(int)) if count else []:
        item = ranked[n]
        sample = load(item)
        edits = _edits(scores, item, config.system)
        if isinstance(sample, AudioError):
            if edits:  # its row says why; the words need no sound
                clips.append(_clip(scores, item, unheard(item), config.system, spoken, edits))
            continue
        clips.append(_clip(scores, item, sample, config.system, spoken, edits))
    if len(ranked) > len(clips):
        log.say(f"the report shows {len(clips)} of {len(ranked)} files, from the lowest {lead} to the highest")
    return clips


def _edits(scores: ScoreFile, item: Item, system: str) -> dict[str, list[Edit]]:
    """What was written against what was said, as the first reward of texts compared them."""
    row, names = scores.rows.get((scores.system, item.key), {}), _of_texts(scores)
    texts = [row.get(f"{k}{_options(names[0])}") for k in ("reference_text", "hypothesis_text")] if names else [None]
    if not all(isinstance(t, str) for t in texts):
        return {}
    language = scores.metrics[names[0]]["options"].get("language") or item.columns.get("language")
    said, written = (units(str(t), language if isinstance(language, str) else None) for t in texts)
    return {system: edits_of(align(said, written))}


def _clip(scores: ScoreFile, item: Item, sample: Sample, system: str, spoken: Sequence[str], edits: Mapping[str, Sequence[Edit]]) -> Clip:
    row = scores.rows.get((scores.system, item.key), {})
    audio = {system: sample.wav} if len(sample.wav) else {}
    if sample.target is not None:
        audio["reference"] = sample.target
    columns = item.columns
    facts = [f"{columns[k]}" if k == "ladder" else f"{k} {columns[k]}" for k in ("ladder", "rung") if columns.get(k) is not None]
    if isinstance(columns.get("snr_db"), int | float):
        facts.append(f"{columns['snr_db']:.1f} dB SNR")
    words = [(n, text) for n in spoken if (text := _said(scores, n, item.key))]
    text = "\n".join(t if len(words) == 1 else f"{n}: {t}" for n, t in words)
    facts += [item.text] if item.text and not edits else []
    if not audio:  # values stand below the players
        facts += [f"{n} {row[n]:.3g}" for n in scores.metrics if row.get(n) is not None]
    return Clip(item.key, audio, sample.sample_rate, " · ".join(facts),
                {system: {n: row.get(n) for n in scores.metrics}}, {system: text} if text else {}, dict(edits))


def _said(scores: ScoreFile, name: str, key: str) -> str:
    """What the judge ``name`` said of a file; a judge with options has a column of its own."""
    if name.split("[")[0] != "llm":
        return ""
    text = scores.rows.get((scores.system, key), {}).get(TEXT + name[len("llm"):])
    return text if isinstance(text, str) else ""
