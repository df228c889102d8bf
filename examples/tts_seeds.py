"""The table of tts-real.sh: seeds of an arm pooled, all against the start and against others, with bootstrap 95 % intervals over texts.

    python examples/tts_seeds.py runs/tts-real/eval* --data runs/tts-real/data/test/test.jsonl [--baseline base] [--condition "new voice"]

An arm's errors are added up over its seeds (systems called ARM-0, ARM-1 ...) and over evaluations with other draws, its other scores are
averaged, text by text; the bootstrap then draws texts, not seeds. Error rates change by percent, everything else by what it is.
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
from rlspeech.rewards.rates import compare_rates, counts_of
from rlspeech.rewards.rules import TextRules
from rlspeech.stats import mean_interval, paired_delta
from rlspeech.types import Sample

RATES = ("wer", "cer")


def main() -> None:
    """Print a table against each baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("eval", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--baseline", action="append", default=[])
    parser.add_argument("--condition")
    args = parser.parse_args()
    texts = {u.id: u for u in read_manifest(args.data) if args.condition in (None, u.extra.get("condition"))}
    rules, counts = TextRules("basic-2", None), defaultdict[str, dict[str, dict[str, int]]](dict)
    scores: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in [x for folder in args.eval for x in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]:
        row: dict[str, Any] = json.loads(line)
        if row["key"] not in texts or row.get("hypothesis") is None:
            continue
        arm, key = re.sub(r"-\d$", "", row["system"]), row["key"]
        judged = rules.judge(Sample(key, np.zeros(0, np.float32), 16000, None, texts[key].text, {}, row["hypothesis"]))
        found = counts_of(judged)
        old = counts[arm].get(key, dict.fromkeys(found, 0))
        counts[arm][key] = {k: old[k] + v for k, v in found.items()}
        for name, value in row.items():
            if (
                isinstance(value, int | float)
                and name not in ("tts_cer", "tts_wer", "seconds", "key")
                and value is not None
            ):
                scores[arm][name][key].append(float(value))
    keys = sorted(set.intersection(*(set(rows) for rows in counts.values())))
    names = [n for n in scores[next(iter(scores))] if n.startswith(("tts_", "dnsmos", "speaker"))]
    if "finished" in scores[next(iter(scores))]:
        names.append("finished")
    means = {
        arm: {n: {k: float(np.mean(v)) if (v := scores[arm][n].get(k)) else None for k in keys} for n in names}
        for arm in counts
    }
    for baseline in args.baseline or ["base"]:
        made = compare_rates({arm: [rows[k] for k in keys] for arm, rows in counts.items()}, baseline)
        print(
            f"\nagainst {baseline}, {len(keys)} texts\n\n| | {' | '.join([*RATES, *names])} |\n|{'---|' * (len(RATES) + len(names) + 1)}"
        )
        for arm in counts:
            cells = []
            for rate in RATES:
                value = f"{made.systems[arm][rate].mean:.1f}"
                if arm != baseline:
                    change = made.relative[arm][rate]
                    value += f" ({change.text(0, sign=True)} %)"
                    value = f"**{value}**" if change.lo > 0 or change.hi < 0 else value
                cells.append(value)
            for name in names:
                value = f"{mean_interval(list(means[arm][name].values())).mean:.3f}"
                if arm != baseline:
                    delta = paired_delta(means[arm][name], means[baseline][name])
                    value += f" ({delta.mean:+.3f})"
                    value = f"**{value}**" if delta.significant else value
                cells.append(value)
            print(f"| {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
