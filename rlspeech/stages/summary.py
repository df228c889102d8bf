"""The second half of ``rlspeech eval``: score rows on disk, means, paired differences, table and report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlspeech import log
from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.files import dumps, read_jsonl, write_text
from rlspeech.report import Clip, Metric, ReportData, mark, render_report
from rlspeech.rewards import base
from rlspeech.stages.curves import curves_behind
from rlspeech.stages.past import past_of
from rlspeech.stages.picks import beside, pick
from rlspeech.stages.run_facts import commands_of, facts_of, versions_of
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.types import Score, UserError, Utterance

__all__ = ["Folder", "Table", "default_metrics", "summarise", "write_report"]


TEXT = "llm_text"
Intervals = Mapping[str, Mapping[str, Interval]]  # system -> metric


class Folder(Protocol):
    """A run that is going on, or one of the past."""

    path: Path


def default_metrics(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The task's metrics that can be computed here, SIG and BAK beside OVRL, and a remark for each that cannot."""
    good, notes = [], []
    for name in names:
        for column in [name, *(("dnsmos_sig", "dnsmos_bak") if name == "dnsmos_ovrl" else ())]:
            try:
                base.resolve(column)
                good.append(column)
            except UserError as error:
                notes.append(f"{column} is left out: {error.why or error.what}")
    if not good:
        raise UserError("no metric can be computed here", "; ".join(notes), "rlspeech doctor")
    return good, notes


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

    def keep(self, systems: Mapping[str, str], facts: dict[str, Any]) -> None:
        """Drop rows and audio of systems whose weights or videos have changed since, and note those of today."""
        path = self.folder / "systems.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        for name, weights in systems.items():
            if before.get(name, weights) != weights:
                what = (
                    "the checkpoint has changed"
                    if before[name].split()[0] != weights.split()[0]
                    else "it was shown other videos"
                )
                log.say(f"{name}: {what} since; its results are computed again")
                self.rows = {k: r for k, r in self.rows.items() if k[0] != name}
                for file in (self.folder / "audio" / name).glob("*.flac"):
                    file.unlink()
        self.facts = facts
        self.write()
        write_text(path, json.dumps({**before, **systems}, indent=2) + "\n")

    def write(self) -> None:
        """Rewrite the file without torn and superseded rows."""
        write_text(self.path, "".join(dumps(row) + "\n" for row in self.rows.values()))

    def done(self, system: str, key: str) -> bool:
        """True where the row holds every metric, be it as null; a row of nothing but nulls is tried again, its file may be mended."""
        row = self.rows.get((system, key), {})
        return all(m in row for m in self.metrics) and any(row[m] is not None for m in self.metrics)

    def add(self, system: str, key: str, scores: Mapping[str, Score], facts: Mapping[str, Any] | None = None) -> None:
        """Append a row: columns with values or null, and the reasons of the nulls; ``facts`` are further columns."""
        old = self.rows.get((system, key), {})
        errors = {m: s.error for m, s in scores.items() if s.value is None}
        kept = {m: e for m, e in old.get("errors", {}).items() if m not in scores}
        words = {
            m.replace("llm", TEXT, 1): s.detail[TEXT] for m, s in scores.items() if TEXT in s.detail
        }  # what a judge said
        if facts is not None:
            old = {k: v for k, v in old.items() if k not in ("video", "video_error")} | dict(facts)
        row = {
            **old,
            "key": key,
            "system": system,
            **words,
            **{m: s.value for m, s in scores.items()},
            "errors": {**kept, **errors},
        }
        self.rows[system, key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dumps(row) + "\n")

    def forget(self, system: str, key: str) -> None:
        """Drop a row, to be made again."""
        self.rows.pop((system, key), None)

    def fail(self, system: str, key: str, reason: str) -> None:
        """A row of nulls for an utterance that has no output."""
        self.add(system, key, dict.fromkeys(self.metrics, Score(None, reason)))

    def column(self, system: str, metric: str, keys: Iterable[str]) -> dict[str, float | None]:
        """Values by utterance."""
        return {k: self.rows.get((system, k), {}).get(metric) for k in keys}


def summarise(
    table: Table, systems: Sequence[str], baseline: str | None, keys: Sequence[str], meta: dict[str, Any]
) -> dict[str, Any]:
    """Means, paired differences to the baseline, both with intervals; writes ``metrics.json`` and ``scores.meta.json``, prints the table.

    Raises:
        UserError: there is not one score.
    """
    table.write()
    names = table.metrics
    columns = {s: {m: table.column(s, m, keys) for m in names} for s in systems}
    means = {s: {m: mean_interval(list(columns[s][m].values())) for m in names} for s in systems}
    if not any(i.n for row in means.values() for i in row.values()):
        errors = [e for r in table.rows.values() for e in r["errors"].values()]
        raise UserError(
            "not one utterance could be scored", errors[0] if errors else "", f"look at the errors in {table.path}"
        )
    others = [s for s in [*systems[1:], systems[0]] if s != baseline] if baseline else []
    deltas = {s: {m: paired_delta(columns[s][m], columns[baseline or s][m]) for m in names} for s in others}
    better = {m: base.column_of(m).higher_is_better for m in names}
    blind = _blind(table, systems, keys)
    _print([Metric(m, better[m]) for m in names], means, deltas, baseline, len(keys), blind)
    failed = sum(bool(table.rows.get((s, k), {}).get("errors")) for s in systems for k in keys)
    summary: dict[str, Any] = {
        "n": len(keys),
        "rows_with_errors": failed,
        "baseline": baseline,
        "higher_is_better": better,
    }
    summary |= {
        "systems": {s: {m: i.as_dict() for m, i in row.items()} for s, row in means.items()},
        "deltas": {
            s: {m: {**i.as_dict(), "significant": i.significant} for m, i in row.items()} for s, row in deltas.items()
        },
    }
    without = {s: n for s in systems if (n := sum("video_error" in table.rows.get((s, k), {}) for k in keys))}
    if without:
        summary["without_video"] = without
    write_text(table.folder / "metrics.json", json.dumps(log.plain(summary), indent=2, ensure_ascii=False) + "\n")
    counts = {
        s: {m: {"n_valid": i.n, "n_failed": i.dropped, **i.as_dict()} for m, i in row.items()}
        for s, row in means.items()
    }
    facts = {"metrics": meta, "systems": counts, "settings": table.facts, "interval": "bootstrap over utterances, 95 %"}
    write_text(table.folder / "scores.meta.json", json.dumps(log.plain(facts), indent=2, ensure_ascii=False) + "\n")
    return summary


def _print(
    metrics: Sequence[Metric],
    means: Intervals,
    deltas: Intervals,
    baseline: str | None,
    n: int,
    remarks: Sequence[str] = (),
) -> None:
    shown = {
        s: d for s, d in deltas.items() if s != "input"
    }  # what the models do to the input is in the columns and in the report
    rows = []
    for m in metrics:
        cells: list[Any] = [m.name if m.higher_is_better else f"{m.name} (lower is better)"]
        cells += [means[s][m.name].mean for s in means]
        cells += [f"{d[m.name].text(sign=True)} {mark(m, d[m.name])}" for d in shown.values()]
        rows.append(cells)
    dropped = sum(i.dropped for row in means.values() for i in row.values())
    notes = [
        f"mean over {n} utterances; {dropped} scores could not be computed" if dropped else f"mean over {n} utterances"
    ]
    if shown:
        notes.append(
            f"differences to {baseline} are paired, with bootstrap 95 % intervals; better and worse where they exclude 0"
        )
    notes += remarks
    log.table("Evaluation", ["metric", *means, *(f"{s} - {baseline}" for s in shown)], rows, notes)


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
