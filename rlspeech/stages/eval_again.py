"""The page of an evaluation from its folder: what was scored is shown, no model is loaded, nothing but the page is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlspeech.config import Evaluate
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.files import read_jsonl, safe_name
from rlspeech.stages.past import Past
from rlspeech.stats import Interval
from rlspeech.types import UserError, Utterance

__all__ = ["write_again"]


def write_again(run: Past, page: Path, players: int | None) -> dict[str, Any]:
    """Write the page that ``rlspeech eval`` writes.

    Args:
        run: a whole evaluation.
        page: where to.
        players: in place of the run's own.

    Returns:
        what ``metrics.json`` holds.

    Raises:
        UserError: the manifest is gone.
        ValueError: settings or numbers of another version.
    """
    config = Evaluate.model_validate({**run.config, **({} if players is None else {"players": players})})
    systems = [s for s in run.summary["systems"] if safe_name(s) == s and (s in run.scores or config.task == "asr")]
    if len(systems) < len(run.summary["systems"]):
        raise UserError("some of its systems have no scores", ", ".join(set(run.summary["systems"]) - set(systems)))
    utts, device = _utterances(run, config)[: config.limit], str(run.env.get("device", "unknown"))
    run.notes += run.summary.get("notes", [])
    {"asr": _recognition, "tts": _synthesis}.get(config.task, _enhancement)(run, config, utts, page, device)
    return {**run.summary, "run": str(run.path), "scores": str(run.scores_path)}


def _utterances(run: Past, config: Evaluate) -> list[Utterance]:
    from rlspeech.tasks import get_task

    if config.data is not None:
        return read_manifest(find_manifest(config.data, recipe=False))
    return read_manifest(run.env.get("manifest") or get_task(config.task).demo("test"))


def _enhancement(run: Past, config: Evaluate, utts: list[Utterance], page: Path, device: str) -> None:
    from rlspeech.stages.summary import Table, write_report

    table = Table(run.path, list(run.summary["higher_is_better"]))
    scored = {key for rows in run.scores.values() for key in rows}
    write_report(run, config, table, [u for u in utts if u.id in scored], run.summary, run.notes, device, page)


def _recognition(run: Past, config: Evaluate, utts: list[Utterance], page: Path, device: str) -> None:
    from rlspeech.rewards.rules import TextRules
    from rlspeech.stages.recognition import SAID, Judgements
    from rlspeech.stages.recognition_page import write_page

    said = {
        s: {str(r.get("key")): r for r in read_jsonl(run.path / SAID / f"{s}.jsonl")} for s in run.summary["systems"]
    }
    rules = TextRules(config.normaliser, config.sampling.language)
    made = Judgements(config, rules, [u for u in utts if u.text is not None], said)
    further = {s: {m: _interval(v) for m, v in row.items()} for s, row in run.summary.get("metrics", {}).items()}
    write_page(
        run,
        config,
        made,
        run.summary,
        run.notes if "notes" in run.summary else [*run.notes, *made.notes],
        further,
        device,
        page,
    )


def _synthesis(run: Past, config: Evaluate, utts: list[Utterance], page: Path, device: str) -> None:
    from rlspeech.stages.summary import Table
    from rlspeech.stages.synthesis import Spoken
    from rlspeech.stages.synthesis_page import write_page

    metrics = [
        m
        for m in dict.fromkeys(k for rows in run.scores.values() for r in rows.values() for k in r)
        if m in run.meta["metrics"]
    ]
    made = Spoken(config, Table(run.path, metrics), utts, list(run.summary["systems"]), run.summary["baseline"])
    write_page(
        run, config, made, run.summary, run.notes if "notes" in run.summary else [*run.notes, *made.notes], device, page
    )


def _interval(value: Mapping[str, Any]) -> Interval:
    mean, lo, hi = (float("nan") if value[k] is None else float(value[k]) for k in ("mean", "lo", "hi"))
    return Interval(mean, lo, hi, int(value["n"]), int(value.get("dropped", 0)))
