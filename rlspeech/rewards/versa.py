"""Score rows to and from VERSA (github.com/wavlab-speech/versa): one row a line, ``key`` and metrics under VERSA's names.

VERSA's scorer writes its lines as JSON or, up to 2025, as Python prints a dict (``{'key': 'a', 'sir': inf, 'pesq': np.float64(1.2)}``).
Both are read, the second without running it. Where VERSA puts a number in place of a failure (PESQ 0, STOI 1e-05), the score is null
here. Names are translated by the table below, all others kept; a metric of the same name is not the same computation (VERSA scales
before DNSMOS, its speaker and speech encoders are others), which the version in the meta file says.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspeech.files import dumps, numbered_lines, write_text
from rlspeech.rewards.catalogue import BUILTIN
from rlspeech.scores import FIXED, write_json
from rlspeech.stats import mean_interval
from rlspeech.types import UserError

NAMES = {  # VERSA's name -> ours; where several of theirs are one of ours, the first is written
    "pesq": "pesq_wb",
    "stoi": "stoi",
    "estoi": "estoi",
    "si_snr": "si_sdr",
    "si-snr": "si_sdr",
    "dns_overall": "dnsmos_ovrl",
    "dnsmos_overall": "dnsmos_ovrl",
    "dns_p808": "dnsmos_p808",
    "spk_similarity": "speaker_similarity",
    "speech_bert": "speech_bert_score",
    "torch_squim_pesq": "squim_pesq",
    "torch_squim_stoi": "squim_stoi",
    "torch_squim_si_sdr": "squim_si_sdr",
}
FAILED = {"pesq": 0.0, "stoi": 1e-5, "estoi": 1e-5}  # numbers that stand for a failure
COUNTS = re.compile(r"(.+)_([wc]er)_(delete|insert|replace|equal)")
NUMPY = re.compile(r"(np\.|numpy\.)?(float|int|bool|array)[0-9_]*")
TRANSCRIPT = re.compile(r".+_hyp_text")
WORDS: dict[str, Any] = dict.fromkeys(("nan", "NaN"), math.nan) | dict.fromkeys(("inf", "Infinity"), math.inf)
WORDS |= {"null": None, "true": True, "false": False}
ABSENT = "not in VERSA's row"
MAX_LINE = 1_000_000
EXAMPLE = '{"key": "utterance", "pesq": 1.6, "dns_overall": 2.9}'


@dataclass
class Done:
    """What was written: per metric VERSA's name, ours, numbers, and values that are missing."""

    rows: int = 0
    bad_lines: int = 0
    metrics: list[tuple[str, str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export(source: Path, out: Path, system: str | None = None) -> Done:
    """Write one system's rows as VERSA does. A null is left out of its row: VERSA has no word for it.

    Raises:
        UserError: no rows, or rows of several systems and none is named.
    """
    done = Done()
    rows = list(_rows(source, done))
    systems = sorted({str(r.get("system", "")) for r in rows})
    if system is not None:
        rows = [r for r in rows if str(r.get("system", "")) == system]
    elif len(systems) > 1:
        raise UserError(f"{source} holds {len(systems)} systems", ", ".join(systems), f"--system {systems[0]}")
    if not rows:
        why = f"it has {', '.join(filter(None, systems))}" if any(systems) else "it has no row with a key"
        what = f"no score rows{f' of {system}' if system else ''} in {source}"
        raise UserError(what, why, "rlspeech reward writes scores.jsonl")
    theirs = {ours: name for name, ours in reversed(NAMES.items())}
    lines, counts = [], dict[str, list[int]]()
    for row in rows:
        named = {}
        for name, value in row.items():
            if name in FIXED:
                continue
            missing = value is None or isinstance(value, float) and not math.isfinite(value)
            if missing or _is_number(value):
                counts.setdefault(name, [0, 0])[missing] += 1
            if not missing:
                named[theirs.get(name, name)] = value
        lines.append(dumps({"key": str(row["key"]), **named}) + "\n")
    write_text(out, "".join(lines))
    done.rows = len(lines)
    done.metrics = [(theirs.get(name, name), name, n, missing) for name, (n, missing) in counts.items()]
    return done


def take(source: Path, out: Path, system: str) -> Done:
    """Write VERSA's rows as ours, with a ``.meta.json`` beside them. Raises ``UserError``: not one row that could be read."""
    done, rows = Done(), dict[str, dict[str, Any]]()
    for row in _rows(source, done):
        key = str(row["key"])
        if key in rows:
            done.notes.append(f"{key} has more than one row: the last one counts")
        rows[key] = row
    if not rows:
        why = f"{done.bad_lines} lines could not be read" if done.bad_lines else "it is empty"
        raise UserError(f"no score rows in {source}", why, EXAMPLE)
    known: dict[str, list[str]] = {}  # by metric, each backend's four counts
    counted = {(m[1], m[2]) for row in rows.values() for name in row if (m := COUNTS.fullmatch(name))}
    for backend, rate in sorted(counted):
        known.setdefault(rate, []).append(backend)
    versions: dict[str, str] = {}
    values = {key: _values(row, known, versions) for key, row in rows.items()}
    ours: list[dict[str, Any]] = []
    for key, (scores, errors, rest) in values.items():
        errors |= {name: ABSENT for name in versions if name not in scores}
        ours.append({"key": key, "system": system, **rest, **{n: scores.get(n) for n in versions}, "errors": errors})
    write_text(out, "".join(dumps(row) + "\n" for row in ours))
    facts = {name: _facts(name, theirs, ours) for name, theirs in versions.items()}
    meta = {"systems": {system: {"metrics": facts, "n": len(ours), "source": source.name}}}
    write_json(out.with_suffix(".meta.json"), meta)
    done.rows = len(ours)
    done.metrics = [(t, name, facts[name]["n_valid"], facts[name]["n_failed"]) for name, t in versions.items()]
    return done


def _values(
    row: dict[str, Any], known: dict[str, list[str]], versions: dict[str, str]
) -> tuple[dict[str, float | None], dict[str, str], dict[str, Any]]:
    """Scores, reasons of nulls, and everything else of one row; ``versions`` collects our names and VERSA's behind them."""
    scores: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    rest: dict[str, Any] = {}
    for theirs, value in row.items():
        name = NAMES.get(theirs, theirs)
        if theirs == "key":
            continue
        if name in FIXED or name in scores:
            name = f"versa_{theirs}"
        if value is None or _is_number(value):
            versions.setdefault(name, theirs)
            scores[name] = None
            if value is None or not math.isfinite(value):
                errors[name] = f"VERSA wrote {'nothing' if value is None else value}"
            elif FAILED.get(theirs) == value:
                errors[name] = f"VERSA writes {value:g} where it fails"
            else:
                scores[name] = value
        else:
            rest["hypothesis" if TRANSCRIPT.fullmatch(theirs) and "hypothesis" not in rest else name] = value
    for rate, backends in known.items():
        for backend in backends:
            name = rate if len(backends) == 1 else f"{rate}[recogniser={backend}]"
            scores[name], reason = _rate(row, f"{backend}_{rate}")
            versions[name] = f"{backend}_{rate}_*"
            if reason:
                errors[name] = reason
    return scores, errors, rest


def _rate(row: dict[str, Any], stem: str) -> tuple[float | None, str]:
    """An error rate of the counts that VERSA writes."""
    given = [row.get(f"{stem}_{what}") for what in ("delete", "insert", "replace", "equal")]
    counts = [float(n) for n in given if n is not None and _is_number(n) and math.isfinite(n)]
    if len(counts) < len(given):
        return None, ABSENT
    delete, insert, replace, equal = counts
    if not delete + replace + equal:
        return None, "the reference text is empty"
    return (delete + insert + replace) / (delete + replace + equal), ""


def _facts(name: str, theirs: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    column = next((c for entry in BUILTIN for n, c in entry.columns.items() if n == name.partition("[")[0]), None)
    interval = mean_interval([row[name] for row in rows])
    # the direction of other metrics is not known here
    direction = {} if column is None else {"higher_is_better": column.higher_is_better}
    facts = {"version": f"VERSA {theirs}", "options": {}, "column": name, **direction}
    facts |= {"n_valid": interval.n, "n_failed": len(rows) - interval.n}
    facts |= {k: v for k, v in interval.as_dict().items() if k in ("mean", "lo", "hi")}
    return facts | {"reasons": dict(Counter(row["errors"][name] for row in rows if name in row["errors"]))}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _rows(path: Path, done: Done) -> Iterator[dict[str, Any]]:
    """Lines that are rows with a key; the others are counted."""
    for number, line in numbered_lines(path):
        try:
            row = parse(line.decode("utf-8"))
            if not isinstance(row.get("key"), str | int):
                raise ValueError("no key")
        except (ValueError, RecursionError, MemoryError) as error:
            done.bad_lines += 1
            if done.bad_lines <= 3:
                done.notes.append(f"line {number} is left out: {str(error)[:100]}")
            continue
        yield row


def parse(line: str) -> dict[str, Any]:
    """One line as JSON or as a printed dict. Raises ``ValueError``: neither."""
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} characters")
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        try:
            row = _plain(ast.parse(line.strip(), mode="eval").body)
        except (SyntaxError, TypeError) as error:  # a list as a key is a TypeError
            raise ValueError(f"neither JSON nor a printed dict: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"no row but {type(row).__name__}")
    return {str(k): v for k, v in row.items()}


def _plain(node: ast.AST) -> Any:
    """The value of a literal; ``nan``, ``inf`` and numpy's scalars and arrays too, as they are printed. Nothing is called."""
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int | float)):
        return node.value
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _plain(node.operand)
        if _is_number(value):
            return -value
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_plain(k): _plain(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(e) for e in node.elts]
    if isinstance(node, ast.Call) and NUMPY.fullmatch(ast.unparse(node.func)) and node.args:
        return _plain(node.args[0])
    raise ValueError(f"not a literal: {ast.unparse(node)[:60]}")
