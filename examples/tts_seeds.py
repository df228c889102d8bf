"""The table of tts-real.sh: seeds of an arm pooled, all against the start and against others, with bootstrap 95 % intervals over texts.

    python examples/tts_seeds.py runs/tts-real/eval* --data runs/tts-real/data/test/test.jsonl [--baseline base] [--condition "new voice"]

An arm's errors are added up over its seeds (systems called ARM-0, ARM-1, ARM-0-best8 ...) and over evaluations with other draws, its other
scores are averaged, text by text; the bootstrap then draws texts, not seeds. Error rates change by percent, everything else by what it is;
a change is bold where its interval excludes 0.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.manifest import read_manifest
from rlspeech.rewards.rates import RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.stats import mean_interval, paired_delta
from rlspeech.types import Sample

RATES = ("wer", "cer")
SCORES = {  # column -> its heading
    "speaker_similarity": "speaker similarity",
    "dnsmos_ovrl": "DNSMOS OVRL",
    "tts_duration_drift": "duration off by (log)",
    "tts_pitch_std": "std of log F0",
    "tts_stopped": "stopped",
}
Table = defaultdict[str, dict[str, Any]]  # arm -> text -> what is known


def read(folders: list[Path], texts: dict[str, str]) -> tuple[Table, dict[str, Table], dict[str, int]]:
    """Errors, scores by column, and draws of every arm."""
    rules, counts, draws = TextRules("basic-2", None), Table(dict), defaultdict[str, set[str]](set)
    scores: dict[str, Table] = {column: Table(dict) for column in SCORES}
    for folder in folders:
        for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            key, arm = row["key"], re.sub(r"-\d(?=$|-best)", "", row["system"])
            if key not in texts or row.get("hypothesis") is None:
                continue
            draws[arm].add(row["system"] if arm != row["system"] else folder.name)
            said = Sample(key, np.zeros(0, np.float32), 16000, None, texts[key], {}, row["hypothesis"])
            found = counts_of(rules.judge(said.text, said.hypothesis, said.columns))
            old = counts[arm].get(key, dict.fromkeys(found, 0))
            counts[arm][key] = {k: old[k] + v for k, v in found.items()}
            for column, table in scores.items():
                if row.get(column) is not None:
                    table[arm].setdefault(key, []).append(float(row[column]))
    return counts, scores, {arm: len(some) for arm, some in draws.items()}


def cells(arm: str, baseline: str, made: RateComparison, scores: dict[str, Table], keys: list[str]) -> list[str]:
    """A row of the table."""
    out = []
    for rate in RATES:
        value = f"{made.systems[arm][rate].mean:.1f}"
        if arm != baseline:
            change = made.relative[arm][rate]
            value += f" ({change.text(0, sign=True)} %)"
            value = f"**{value}**" if change.lo > 0 or change.hi < 0 else value
        out.append(value)
    for table in scores.values():
        here, there = (
            {k: float(np.mean(v)) if (v := table[a].get(k)) else None for k in keys} for a in (arm, baseline)
        )
        value = f"{mean_interval(list(here.values())).mean:.3f}" if any(v is not None for v in here.values()) else ""
        if arm != baseline and value and any(v is not None for v in there.values()):
            delta = paired_delta(here, there)
            value += f" ({delta.mean:+.3f})"
            value = f"**{value}**" if delta.significant else value
        out.append(value)
    return out


def main() -> None:
    """Print a table against each baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("eval", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--baseline", action="append", default=[])
    parser.add_argument("--condition")
    args = parser.parse_args()
    rows = [u for u in read_manifest(args.data) if args.condition in (None, u.extra.get("condition"))]
    counts, scores, draws = read(args.eval, {u.id: u.text or "" for u in rows})
    keys = sorted(set.intersection(*(set(rows) for rows in counts.values())))
    for baseline in args.baseline or ["base"]:
        made = compare_rates({arm: [rows[k] for k in keys] for arm, rows in counts.items()}, baseline)
        heads = ["", "draws", *(r.upper() for r in RATES), *SCORES.values()]
        print(f"\nagainst {baseline}, {len(keys)} texts\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for arm in counts:
            print(f"| {arm} | {draws[arm]} | {' | '.join(cells(arm, baseline, made, scores, keys))} |")


if __name__ == "__main__":
    main()
