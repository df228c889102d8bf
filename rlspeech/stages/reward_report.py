"""The page of ``rlspeech reward``: means, how the rewards follow a known order, and players with what the judge said of them.

Of a recogniser's texts the page shows the mistakes; the audio is played where it can be read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.data.audio import AudioError
from rlspeech.data.inputs import Item, collect, load, without_audio
from rlspeech.data.text import align, units
from rlspeech.log import several
from rlspeech.report import Clip, Edit, Grid, Metric, ReportData, render_report
from rlspeech.scores import ScoreFile
from rlspeech.stages.calibrate import (
    calibrate,
    calibration_heading,
    calibration_rows,
    has_order,
    print_calibration,
    text_of,
)
from rlspeech.stages.curves import spreads_of
from rlspeech.stages.past import Past
from rlspeech.stages.picks import pick
from rlspeech.stages.recognition_page import edits_of
from rlspeech.stages.run_facts import facts_of, help_of, quoted
from rlspeech.stats import draws_interval, mean_interval, resampled_sums
from rlspeech.types import Sample

__all__ = ["calibration", "corpus_rates", "page", "page_path", "settings_of", "write_again"]

TEXT = "llm_text"
MOST_REASONS = 5  # of a metric


def calibration(scores: ScoreFile, items: Sequence[Item], seed: int) -> dict[str, Any] | None:
    """Correlations with the order that the rows carry, printed; None where they carry none."""
    result = _calibrated(scores, items, seed)
    if result is not None:
        print_calibration(result)
    return result


def _calibrated(scores: ScoreFile, items: Sequence[Item], seed: int) -> dict[str, Any] | None:
    rows = [{**item.columns, **scores.rows.get((scores.system, item.key), {})} for item in items]
    for row, item in zip(rows, items, strict=True):
        row.update({k: item.columns[k] for k in ("rung", "ladder", "snr_db", "clean_id") if k in item.columns})
    if not has_order(rows):
        return None
    return calibrate(rows, {n: bool(facts["higher_is_better"]) for n, facts in scores.metrics.items()}, seed)


def corpus_rates(scores: ScoreFile, items: Sequence[Item], seed: int) -> dict[str, dict[str, Any]]:
    """Error rate of all hypotheses together, per options of ``asr`` that were asked for.

    Returns:
        a name for people -> ``wer`` in % with its interval, its parts, ``units``, ``normaliser`` and ``text``, a line for the table.
        The mean over files, which the column ``asr_wer`` has, weighs a word in a short file more.
    """
    made = {}
    for own in dict.fromkeys(_options(n) for n in _of_texts(scores)):
        rows = [scores.rows.get((scores.system, i.key), {}) for i in items]
        counts = np.array(
            [
                [r[f"{k}{own}"] for k in ("units", "substitutions", "deletions", "insertions")]
                for r in rows
                if r.get(f"units{own}")
            ],
            np.float64,
        )
        if not len(counts):
            continue
        sums, draws = counts.sum(0), resampled_sums(counts, seed)
        rate = draws_interval(
            float(100 * sums[1:].sum() / sums[0]), 100 * draws[:, 1:].sum(1) / draws[:, 0], len(counts)
        )
        parts = dict(
            zip(("substitutions", "deletions", "insertions"), (100 * sums[1:] / sums[0]).tolist(), strict=True)
        )
        normaliser = next(scores.metrics[n]["normaliser"] for n in _of_texts(scores) if _options(n) == own)
        split = ", ".join(f"{v:.2f} {k}" for k, v in parts.items())
        made[f"all words together{own}"] = {
            "wer": rate.mean,
            "lo": rate.lo,
            "hi": rate.hi,
            **parts,
            "units": int(sums[0]),
            "n": len(counts),
            "normaliser": normaliser,
            "text": f"error rate {rate.text(2)} % ({split}) of {int(sums[0])} units in {several(len(counts), 'file')}, texts by "
            f"{normaliser}",
        }
    return made


def _of_texts(scores: ScoreFile) -> list[str]:
    """The columns of the family ``asr``."""
    return [name for name, facts in scores.metrics.items() if "normaliser" in facts]


def _options(name: str) -> str:
    return name[name.index("[") :] if "[" in name else ""


def page_path(scores: Path) -> Path:
    """``report.html`` beside ``scores.jsonl``, ``NAME.report.html`` beside ``NAME.scores.jsonl``."""
    stem = scores.stem
    return scores.with_name(
        (stem[: -len("scores")] + "report" if stem.endswith("scores") else f"{stem}.report") + ".html"
    )


def page(
    scores: ScoreFile, items: Sequence[Item], config: ScoreFolder, result: Mapping[str, Any] | None
) -> Path | None:
    """Write the page where it is asked for, or (auto) where there is something that a table cannot show.

    Returns:
        its path, or None.

    Raises:
        UserError: the disk does not take it.
    """
    spoken = [n for n in scores.metrics if any(_said(scores, n, i.key) for i in items)]
    if config.report == "never" or (
        config.report == "auto" and not spoken and not _of_texts(scores) and result is None
    ):
        return None
    return render_report(page_path(scores.path), _page_data(scores, items, config, result, _noted(scores, config)))


def settings_of(config: ScoreFolder, path: str | Path | Sequence[str]) -> dict[str, Any]:
    """What the meta file keeps, so that the page can be written again: the settings, and where the files are."""
    paths = {k: os.path.abspath(v) for k in ("target", "text", "hypotheses") if (v := getattr(config, k))}
    several = [os.path.abspath(p) for p in path] if not isinstance(path, str | Path) else os.path.abspath(path)
    return {**config.model_dump(mode="json"), **paths, "path": several}


def _noted(scores: ScoreFile, config: ScoreFolder) -> dict[str, Any]:
    noted = scores.meta["systems"].get(scores.system, {}).get("settings")
    return dict(noted) if isinstance(noted, dict) else config.model_dump(mode="json")


def write_again(run: Past, to: Path, players: int | None, table: bool = True) -> dict[str, Any]:
    """The page of a score file as ``rlspeech reward`` writes it; nothing is scored.

    Returns:
        means and counts by metric.

    Raises:
        UserError: the files are not where they were.
    """
    [system] = run.scores
    given = {k: v for k, v in run.config.items() if k != "path"} | ({} if players is None else {"players": players})
    config, path = ScoreFolder.model_validate(given), run.config["path"]
    items = collect(path, config.target, config.text, config.hypotheses, texts_only=True)
    scores = ScoreFile(run.scores_path, system)
    items = [i for i in items if (system, i.key) in scores.rows]
    render_report(to, _page_data(scores, items, config, _calibrated(scores, items, config.seed), run.config))
    keys = [i.key for i in items]
    found = {n: mean_interval(scores.values(n, keys), config.seed) for n in scores.metrics}
    rows = [
        [n if facts["higher_is_better"] else f"{n} (lower is better)", found[n].text(), found[n].n, found[n].dropped]
        for n, facts in scores.metrics.items()
    ]
    if table:
        log.table(
            f"{system}: {several(len(items), 'file')}", ["metric", "mean [95 % interval]", "valid", "failed"], rows
        )
    return {
        "stage": "reward",
        "system": system,
        "n": len(items),
        "scores": str(scores.path),
        "metrics": {n: {**i.as_dict(), "n_valid": i.n, "n_failed": i.dropped} for n, i in found.items()},
    }


def _page_data(
    scores: ScoreFile,
    items: Sequence[Item],
    config: ScoreFolder,
    result: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> ReportData:
    keys = [i.key for i in items]
    spoken = [n for n in scores.metrics if any(_said(scores, n, k) for k in keys)]
    means = {n: mean_interval(scores.values(n, keys), config.seed) for n in scores.metrics}
    run = Past(config.system, scores.path.parent, "reward", dict(settings), scores_path=scores.path)
    beside = scores.path if scores.path.name != "scores.jsonl" else scores.path.parent
    return ReportData(
        title=f"Scores of {config.system}",
        subtitle=f"{several(len(items), 'file')}",
        metrics=[Metric(n, bool(facts["higher_is_better"]), help_of(n)) for n, facts in scores.metrics.items()],
        means={config.system: means},
        grids=[*_grids(result), *_lost(scores, keys)],
        clips=_clips(scores, items, config, spoken),
        plots=spreads_of({n: {config.system: scores.values(n, keys)} for n in scores.metrics}),
        config=settings,
        versions={n: facts.get("version") for n, facts in scores.metrics.items()},
        facts=facts_of(run),
        commands=[f"rlspeech report {quoted(beside)} OTHER_SCORES"],
    )


def _lost(scores: ScoreFile, keys: Sequence[str]) -> list[Grid]:
    """Reasons of what could not be scored, counted."""
    rows = [
        [n, str(count), reason]
        for n in scores.metrics
        for reason, count in scores.errors(n, keys).most_common(MOST_REASONS)
    ]
    return [Grid("Files without a score", ["metric", "files", "reason"], rows)] if rows else []


def _grids(result: Mapping[str, Any] | None) -> list[Grid]:
    if result is None:
        return []
    ladders = f"{result['ladders']} ladders, " if result["ladders"] else ""
    note = (
        f"Spearman correlation, +1 where the less degraded clip always has the better score; {result['n']} clips, {ladders}"
        f"{result['utterances']} utterances. Intervals: bootstrap over utterances, 95 %."
    )
    grids = [Grid("Calibration", calibration_heading(result), calibration_rows(result), note)]
    ways = list(dict.fromkeys(way for r in result["rewards"].values() for way in r["ladder"]))
    if ways:
        rows = [[way, *(text_of(r["ladder"][way]) for r in result["rewards"].values())] for way in ways]
        grids.append(Grid("Order within a ladder, by the way of degrading", ["ladder", *result["rewards"]], rows))
    return grids


def _clips(scores: ScoreFile, items: Sequence[Item], config: ScoreFolder, spoken: Sequence[str]) -> list[Clip]:
    """Players of the worst and the best by the judge (or the first reward), and of some in between, so that they flatter nobody."""
    lead = (spoken or list(scores.metrics))[0]
    sign = 1 if scores.metrics[lead]["higher_is_better"] else -1
    value = dict(zip((i.key for i in items), scores.values(lead, [i.key for i in items]), strict=True))
    level = {k: sign * float(v) for k, v in value.items() if v is not None}
    by_key, clips = {i.key: i for i in items}, []
    for key, label in pick(level, {}, config.players, lead):
        item = by_key[key]
        sample = load(item)
        edits = _edits(scores, item, config.system)
        if isinstance(sample, AudioError):
            if not edits:  # its row says why; words need no sound
                continue
            sample = without_audio(item)
        clips.append(replace(_clip(scores, item, sample, config.system, spoken, edits), label=label))
    if len(level) > len(clips):
        log.say(f"the report shows {len(clips)} of {len(level)} files, from the lowest {lead} to the highest")
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


def _clip(
    scores: ScoreFile,
    item: Item,
    sample: Sample,
    system: str,
    spoken: Sequence[str],
    edits: Mapping[str, Sequence[Edit]],
) -> Clip:
    row = scores.rows.get((scores.system, item.key), {})
    audio = {system: sample.wav} if len(sample.wav) else {}
    if sample.target is not None:
        audio["reference"] = sample.target
    columns = item.columns
    facts = [
        f"{columns[k]}" if k == "ladder" else f"{k} {columns[k]}"
        for k in ("ladder", "rung")
        if columns.get(k) is not None
    ]
    if isinstance(columns.get("snr_db"), int | float):
        facts.append(f"{columns['snr_db']:.1f} dB SNR")
    words = [(n, text) for n in spoken if (text := _said(scores, n, item.key))]
    text = "\n".join(t if len(words) == 1 else f"{n}: {t}" for n, t in words)
    facts += [item.text] if item.text and not edits else []
    if not audio:  # values stand below the players
        facts += [f"{n} {row[n]:.3g}" for n in scores.metrics if row.get(n) is not None]
    return Clip(
        item.key,
        audio,
        sample.sample_rate,
        " · ".join(facts),
        {system: {n: row.get(n) for n in scores.metrics}},
        {system: text} if text else {},
        dict(edits),
    )


def _said(scores: ScoreFile, name: str, key: str) -> str:
    """What the judge ``name`` said of a file; a judge with options has a column of its own."""
    if name.split("[")[0] != "llm":
        return ""
    text = scores.rows.get((scores.system, key), {}).get(TEXT + name[len("llm") :])
    return text if isinstance(text, str) else ""
