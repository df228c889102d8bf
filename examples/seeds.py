"""The tables of the scripts with seeds: an arm's seeds pooled, all against a start and against others, with bootstrap 95 % intervals.

    python examples/seeds.py runs/avse-real/eval --baseline pretrained --metric si_sdr --metric llm
    python examples/seeds.py runs/whisper/eval --data runs/whisper/test/all/manifest.jsonl --condition noisy --condition long

Systems called ARM-0, ARM-1 ... (ARM-0-best8) are the seeds of ARM. Item by item their errors are added up and their other scores
averaged, over evaluations too; the bootstrap then draws items, not seeds. Error rates change by percent, everything else by what it
is; a change is bold where its interval excludes 0.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.rewards.rates import RateComparison, compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.types import Sample

DIGITS = {"si_sdr": 2, "lsd": 2}  # 3 of all other scores, 1 of rates
POINTS = ("empty_output", "symbols", "cased")  # rates whose change is in points: the start may be near 0
Table = defaultdict[str, dict[str, Any]]  # arm -> item -> what is known of it


def read(folders: list[Path], wanted: set[str] | None) -> tuple[Table, dict[str, Table], dict[str, int]]:
    """Counts of errors, scores by column, and the number of systems that each arm pools; ``wanted``: keys, None for all."""
    rules, counts, pooled = TextRules("basic-2", None), Table(dict), defaultdict[str, set[str]](set)
    scores: dict[str, Table] = {}
    for folder in folders:
        for row in map(json.loads, (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()):
            key, arm = row["key"], re.sub(r"-\d(?=$|-best)", "", row["system"])
            if wanted is not None and key not in wanted:
                continue
            pooled[arm].add(row["system"] if arm != row["system"] else folder.name)
            found = row.get("counts")
            if found is None and row.get("hypothesis") is not None:
                judged = Sample(key, np.zeros(0, np.float32), 16000, None, row["text"], {}, row["hypothesis"])
                found = counts_of(rules.judge(judged.text, judged.hypothesis, judged.columns))
            if found:
                old = counts[arm].get(key, dict.fromkeys(found, 0))
                counts[arm][key] = {k: old[k] + v for k, v in found.items()}
            for column, value in row.items():
                if isinstance(value, float) or value is None:
                    scores.setdefault(column, Table(dict))[arm].setdefault(key, []).append(value)
    return counts, scores, {arm: len(some) for arm, some in pooled.items()}


def cell(value: float, digits: int, change: Interval | None, shown: str = "") -> str:
    """A value, and its change; bold where that is beyond doubt."""
    text = f"{value:.{digits}f} ({shown})" if change else f"{value:.{digits}f}"
    return f"**{text}**" if change and change.significant else text


def rate_cell(made: RateComparison, arm: str, rate: str) -> str:
    """Of one error rate."""
    if arm not in made.deltas:
        return cell(made.systems[arm][rate].mean, 1, None)
    delta, relative = made.deltas[arm][rate], made.relative[arm][rate]
    shown = delta.text(1, sign=True) if rate in POINTS else f"{relative.text(0, sign=True)} %"
    return cell(made.systems[arm][rate].mean, 1, delta if rate in POINTS else relative, shown)


def score_cell(table: Table, arm: str, baseline: str, digits: int) -> str:
    """Of one score; empty where the arm has none."""
    here, there = (
        {k: None if None in v else float(np.mean(v)) for k, v in table.get(a, {}).items()} for a in (arm, baseline)
    )
    if not any(v is not None for v in here.values()):
        return ""
    delta = paired_delta(here, there) if arm != baseline and there else None
    return cell(mean_interval(list(here.values())).mean, digits, delta, delta.text(digits, sign=True) if delta else "")


def main() -> None:
    """Print a table against each baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eval", type=Path, nargs="+", help="evaluations: other draws, models or recordings")
    parser.add_argument("--data", type=Path, help="manifest with the conditions, for --condition")
    parser.add_argument("--condition", action="append", default=[], help="only these of the manifest")
    parser.add_argument("--baseline", action="append", default=[], help="arm to compare with (base)")
    parser.add_argument("--metric", action="append", default=[], help="only these columns, in this order (all)")
    args = parser.parse_args()
    wanted = None
    if args.data:
        rows = map(json.loads, args.data.read_text(encoding="utf-8").splitlines())
        wanted = {r["id"] for r in rows if not args.condition or r.get("condition") in args.condition}
    counts, scores, pooled = read(args.eval, wanted)
    keys = sorted(set.intersection(*(set(rows) for rows in counts.values()))) if counts else []
    for baseline in args.baseline or ["base"]:
        made = compare_rates({a: [rows[k] for k in keys] for a, rows in counts.items()}, baseline) if keys else None
        rates = list(made.systems[baseline]) if made else []
        columns = args.metric or [*rates, *scores]
        print(f"\nagainst {baseline}, {len(keys or scores[columns[0]][baseline])} items\n")
        print(f"| | systems | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
        for arm, systems in pooled.items():
            row = [
                rate_cell(made, arm, c)
                if made and c in rates
                else score_cell(scores.get(c, Table(dict)), arm, baseline, DIGITS.get(c, 3))
                for c in columns
            ]
            print(f"| {arm} | {systems} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
