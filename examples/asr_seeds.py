"""The table of asr-real.sh: seeds of an arm pooled, all against the start and against SFT, relative changes with bootstrap 95 % intervals.

    python examples/asr_seeds.py runs/asr-real/eval

An arm's errors are added up over its seeds, utterance by utterance; the bootstrap then draws utterances, not seeds.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

from rlspeech.rewards.rates import RateComparison, compare_rates

SHOWN = (
    "wer",
    "substitutions",
    "deletions",
    "insertions",
    "keyword_f1",
    "hallucinated",
    "empty_output",
    "symbols",
    "cased",
)
PLAIN = {"empty_output", "symbols", "cased"}  # a change in points: the start may be near 0


def pooled(paths: list[Path], conditions: set[str], kinds: dict[str, str]) -> dict[str, list[dict[str, int]]]:
    """Counts by arm, one an utterance, summed over seeds (names that end in -0, -1 ...); conditions: empty for all."""
    sums: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    lines = [x for path in paths for x in (path / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in map(json.loads, lines):
        if conditions and kinds.get(row["key"]) not in conditions:
            continue
        arm = re.sub(r"-\d$", "", row["system"])
        old = sums[arm].setdefault(row["key"], dict.fromkeys(row["counts"], 0))
        sums[arm][row["key"]] = {k: old[k] + v for k, v in row["counts"].items()}
    keys = sorted(set.intersection(*(set(rows) for rows in sums.values())))
    return {arm: [rows[k] for k in keys] for arm, rows in sums.items()}


def cell(made: RateComparison, arm: str, rate: str) -> str:
    """The value, and the relative change (of ``PLAIN``: in points), bold where its interval excludes 0."""
    value = made.systems[arm][rate].mean
    if arm not in made.deltas:
        return f"{value:.1f}"
    delta, change = made.deltas[arm][rate], made.relative[arm][rate]
    shown = f"{delta.text(1, sign=True)}" if rate in PLAIN else f"{change.text(0, sign=True)} %"
    text = f"{value:.1f} ({shown})"
    return f"**{text}**" if delta.lo > 0 or delta.hi < 0 else text


def main() -> None:
    """Print a table against each baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("eval", type=Path, nargs="+", help="evaluations, of other models or on other recordings")
    parser.add_argument("--data", type=Path, help="manifest with the conditions, for --condition")
    parser.add_argument("--condition", action="append", default=[])
    parser.add_argument("--baseline", action="append", default=[])
    args = parser.parse_args()
    kinds = {}
    if args.data:
        kinds = {
            (r := json.loads(line))["id"]: r.get("condition", "")
            for line in args.data.read_text(encoding="utf-8").splitlines()
        }
    counts = pooled(args.eval, set(args.condition), kinds)
    for baseline in args.baseline or ["base"]:
        made = compare_rates(counts, baseline)
        rates = [r for r in SHOWN if r in made.systems[baseline]]
        print(
            f"\nagainst {baseline}, {made.items} utterances\n\n| | {' | '.join(rates)} |\n|{'---|' * (len(rates) + 1)}"
        )
        for arm in made.systems:
            print(f"| {arm} | {' | '.join(cell(made, arm, r) for r in rates)} |")


if __name__ == "__main__":
    main()
