"""The page of an evaluation of enhancers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.files import read_jsonl
from rlspeech.report import Clip, Metric, ReportData, render_report
from rlspeech.rewards import base
from rlspeech.stages.curves import curves_behind
from rlspeech.stages.past import past_of
from rlspeech.stages.picks import beside, pick
from rlspeech.stages.run_facts import commands_of, facts_of, versions_of
from rlspeech.stats import Interval
from rlspeech.types import Utterance

__all__ = ["Folder", "Table", "write_report"]


TEXT = "llm_text"
Intervals = Mapping[str, Mapping[str, Interval]]  # system -> metric


class Folder(Protocol):
    """A run that is going on, or one of the past."""

    path: Path


class Table:
    """``scores.jsonl``: one flat row a (system, utterance), appended; the last row of a pair counts.

    Args:
        folder: of the run.
        metrics: columns that a complete row has.
    """

    def __init__(self, folder: Path, metrics: Sequence[str]) -> None:
        self.folder, self.metrics = folder, list(metrics)
        self.path = folder / "scores.jsonl"
        self.rows: dict[tuple[str, str], dict[str, Any]] = {
            (str(r.get("system")), str(r.get("key"))): r for r in read_jsonl(self.path)
        }
        self.facts: dict[str, Any] = {}

    def column(self, system: str, metric: str, keys: Iterable[str]) -> dict[str, float | None]:
        """Values by utterance."""
        return {k: self.rows.get((system, k), {}).get(metric) for k in keys}


@log.waiting("writing the report")
def write_report(
    folder: Folder,
    config: Evaluate,
    table: Table,
    utts: Sequence[Utterance],
    summary: Mapping[str, Any],
    notes: Sequence[str],
    device: str,
    page: Path | None = None,
) -> Path:
    """Render ``report.html`` of a summary, in the run's folder or as ``page``."""
    systems = list(summary["systems"])
    intervals = {
        part: {s: {m: _interval(v) for m, v in row.items()} for s, row in summary[part].items()}
        for part in ("systems", "deltas")
    }
    keys = [u.id for u in utts]
    clips, how = _clips(config, table, utts, systems, summary["baseline"])
    remarks = [*notes, *_blind(table, systems, keys), *_errors(table, keys), *how]
    cost, seconds = {"device": device}, summary.get("seconds", {})
    if "total" in seconds:
        scoring = ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items() if k != "total")
        cost["time"] = f"{seconds['total']:.0f} s, of which scoring {scoring}"
    run = past_of(folder.path, "eval", config)
    data = ReportData(
        title=f"Evaluation: {', '.join(config.models) or 'unprocessed input'}",
        subtitle=f"{config.task}, {len(utts)} utterances of {config.data or 'the embedded test set'}"
        + ("" if config.video == "right" else f", video: {config.video}"),
        metrics=[Metric(m, up, base.column_of(m).help) for m, up in summary["higher_is_better"].items()],
        means=intervals["systems"],
        baseline=summary["baseline"],
        deltas=intervals["deltas"],
        curves=curves_behind(config.models, config.task),
        clips=clips,
        config=run.config,
        versions=versions_of(run),
        cost=cost,
        notes=remarks,
        facts=facts_of(run),
        commands=commands_of(run),
    )
    return render_report(page or folder.path / "report.html", data)


def _interval(value: dict[str, Any]) -> Interval:
    mean, lo, hi = (float("nan") if value[k] is None else value[k] for k in ("mean", "lo", "hi"))
    return Interval(mean, lo, hi, value["n"], value["dropped"])


def _errors(table: Table, keys: Sequence[str]) -> list[str]:
    wanted = set(keys)
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for (system, key), row in table.rows.items():
        for metric, reason in row["errors"].items() if key in wanted else ():
            found.setdefault((system, reason), {}).setdefault(key, set()).add(metric)
    return [
        f"{system}: {len(where)} without {', '.join(sorted(set().union(*where.values())))} ({', '.join(list(where)[:3])}): {reason}"
        for (system, reason), where in found.items()
    ][:20]


def _blind(table: Table, systems: Sequence[str], keys: Sequence[str]) -> list[str]:
    """A remark for each reason why utterances were enhanced without their video."""
    found: dict[tuple[str, str], list[str]] = {}
    for system in systems:
        for key in keys:
            reason = table.rows.get((system, key), {}).get("video_error")
            if reason:
                found.setdefault((system, reason), []).append(key)
    return [
        f"{system}: {len(where)} of {len(keys)} enhanced without video ({', '.join(where[:3])}): {reason}"
        for (system, reason), where in found.items()
    ][:20]


def _clips(
    config: Evaluate, table: Table, utts: Sequence[Utterance], systems: Sequence[str], baseline: str | None
) -> tuple[list[Clip], list[str]]:
    """Players of what the last system lost and gained most by its first metric, as many of each; and a word on how they were chosen."""
    keys, metric, last = [u.id for u in utts], table.metrics[0], systems[-1]
    sign = 1 if base.column_of(metric).higher_is_better else -1
    signed = {
        s: {k: sign * v for k, v in table.column(s, metric, keys).items() if v is not None}
        for s in (last, baseline or last)
    }
    under = signed[baseline] if baseline and baseline != last else {}
    gain = {k: v - under[k] for k, v in signed[last].items() if k in under}
    by_id, clips = {u.id: u for u in utts}, []
    for key, label in pick(
        {k: v for k, v in signed[last].items() if k in under or not under}, gain, config.players, metric
    ):
        utt = by_id[key]
        audio: dict[str, np.ndarray] = {}
        for system in systems:
            _try_load(audio, system, table.folder / "audio" / system / f"{key}.flac")
        if utt.target_filepath:
            _try_load(audio, "reference", utt.target_filepath, utt.offset, utt.duration)
        note = " · ".join(filter(None, [f"{utt.snr_db:.1f} dB SNR" if utt.snr_db is not None else "", utt.text or ""]))
        scores = {s: {m: table.rows.get((s, key), {}).get(m) for m in beside(table.metrics, 4)} for s in systems}
        said = {
            s: "\n".join(str(v) for k, v in table.rows.get((s, key), {}).items() if k.startswith(TEXT) and v)
            for s in systems
        }
        clips.append(Clip(key, audio, 16000, note, scores, {s: text for s, text in said.items() if text}, label=label))
    against = f" against {baseline}" if gain else ""
    return clips, [f"players: chosen by {metric} of {last}{against}, as many losses as gains"] if clips else []


def _try_load(
    audio: dict[str, np.ndarray], name: str, path: str | Path, offset_s: float = 0.0, duration_s: float | None = None
) -> None:
    try:
        audio[name] = load_audio(path, 16000, offset_s, duration_s)
    except AudioError:
        pass  # its row says why
