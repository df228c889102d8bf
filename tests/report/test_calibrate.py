"""Correlations with a known order, against scipy and against orders that are known by construction."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr

from rlspeech.report.calibrate import calibrate, calibration_table, has_order, print_calibration


def ladder_rows(utterances: int = 6, rungs: int = 5, ways=("noise", "clipping"), **columns) -> list[dict]:
    """Rows in a shuffled order; each column is a function of (utterance, way, rung, rng)."""
    rng = np.random.default_rng(0)
    rows = [
        {"clean_id": f"u{u}", "ladder": way, "rung": k, "snr_db": 20.0 - 5 * k if way == "noise" and k else None}
        | {name: f(u, way, k, rng) for name, f in columns.items()}
        for u, way, k in product(range(utterances), ways, range(rungs))
    ]
    rng.shuffle(rows)
    return rows


@pytest.mark.slow
def test_perfect_reversed_and_blind_rewards():
    rows = ladder_rows(
        good=lambda u, w, k, r: -k,
        error=lambda u, w, k, r: 2.0 * k,
        upside_down=lambda u, w, k, r: k,
        blind=lambda u, w, k, r: r.standard_normal(),
        flat=lambda u, w, k, r: 3.0,
        voice=lambda u, w, k, r: 100 * u - k,  # counts a hundred times as much as the degradation
        by_way=lambda u, w, k, r: -k if w == "noise" else k,
    )
    names = ("good", "error", "upside_down", "blind", "flat", "voice", "by_way")
    found = calibrate(rows, {name: name != "error" for name in names})
    r = found["rewards"]
    assert (found["n"], found["ladders"], found["utterances"]) == (60, 12, 6)
    assert [r["good"][k]["value"] for k in ("within", "pooled")] == pytest.approx([1, 1])
    # lower is better
    assert r["error"]["within"]["value"] == pytest.approx(1) and r["error"]["snr"]["value"] == pytest.approx(1)
    assert r["upside_down"]["within"]["value"] == pytest.approx(-1)
    assert r["blind"]["pooled"]["lo"] < 0 < r["blind"]["pooled"]["hi"] and abs(r["blind"]["within"]["value"]) < 0.5
    assert r["flat"]["within"]["value"] is None and r["flat"]["pooled"]["value"] is None
    assert r["flat"]["within"]["undefined"] == 12
    assert r["voice"]["within"]["value"] == pytest.approx(1) and r["voice"]["pooled"]["value"] < 0.3
    ways = r["by_way"]["ladder"]
    assert (ways["noise"]["value"], ways["clipping"]["value"]) == (pytest.approx(1), pytest.approx(-1))
    assert r["by_way"]["within"]["value"] == pytest.approx(0, abs=1e-9)
    pairs = {(p["a"], p["b"]): p["value"] for p in found["between"]}
    assert len(pairs) == 21 and pairs["good", "error"] == pytest.approx(1) and pairs["good", "flat"] is None
    json.dumps(found, allow_nan=False)


def test_numbers_are_scipys():
    blurred = lambda u, w, k, r: -k + 1.5 * r.standard_normal() + u  # noqa: E731
    rows = ladder_rows(a=blurred, b=lambda u, w, k, r: round(-k + r.standard_normal()))
    found = calibrate(rows, {"a": True, "b": True})
    a, b, rung = (np.array([row[c] for row in rows], float) for c in ("a", "b", "rung"))
    assert found["rewards"]["a"]["pooled"]["value"] == pytest.approx(spearmanr(a, -rung)[0])
    assert found["between"][0]["value"] == pytest.approx(spearmanr(a, b)[0])
    noisy = [i for i, row in enumerate(rows) if row["snr_db"] is not None]
    snr, rho = found["rewards"]["b"]["snr"], spearmanr(b[noisy], [rows[i]["snr_db"] for i in noisy])[0]
    assert snr["value"] == pytest.approx(rho) and snr["n"] == len(noisy)
    groups: dict = {}
    for row in rows:
        groups.setdefault((row["clean_id"], row["ladder"]), []).append(row)
    within = [spearmanr([r["a"] for r in group], [-r["rung"] for r in group])[0] for group in groups.values()]
    assert found["rewards"]["a"]["within"]["value"] == pytest.approx(np.mean(within))


def test_intervals_hold_utterances_together():
    """Ten copies of three utterances' ladders know no more than three utterances."""
    few = ladder_rows(utterances=3, x=lambda u, w, k, r: -k + u * r.standard_normal())
    many = ladder_rows(utterances=30, x=lambda u, w, k, r: -k + (u % 3) * r.standard_normal())
    copies = [{**row, "ladder": f"{row['ladder']}{n}"} for row in few for n in range(10)]

    def width(rows):
        p = calibrate(rows, {"x": True})["rewards"]["x"]["pooled"]
        return p["hi"] - p["lo"]

    assert width(copies) == pytest.approx(width(few), rel=0.35) and width(many) < 0.6 * width(copies)


def test_missing_values_and_odd_columns_leave_out_their_row():
    rows = ladder_rows(x=lambda u, w, k, r: -float(k))
    odd = [("x", None), ("x", float("nan")), ("rung", "two"), ("rung", True), ("snr_db", float("inf"))]
    for row, (column, value) in zip(rows, odd, strict=False):
        row[column] = value
    found = calibrate(rows, {"x": True})["rewards"]["x"]
    assert found["within"]["value"] == pytest.approx(1) and found["pooled"]["n"] == len(rows) - 4


def test_snr_alone_is_an_order(capsys):
    rng = np.random.default_rng(1)
    rows = [{"snr_db": float(s), "x": s + rng.standard_normal()} for s in range(-5, 15)]
    assert has_order(rows)
    found = calibrate(rows, {"x": True})
    assert found["ladders"] == 0 and found["rewards"]["x"]["snr"]["value"] > 0.9
    assert found["rewards"]["x"]["snr"]["lo"] > 0.5
    assert found["rewards"]["x"]["within"]["value"] is None and found["rewards"]["x"]["pooled"]["value"] is None
    _, [line] = calibration_table(found)
    assert line[0] == "x with the SNR" and line[1].startswith("+0.9") and len(line) == 2
    print_calibration(found)
    printed = capsys.readouterr().out
    assert "ladder" not in printed and " - " not in printed  # no columns that nothing can stand in


UNORDERED = [[], [{}], [{"rung": 0}] * 5, [{"rung": 0}, {"rung": 1}], [{"snr_db": None}] * 4]


@pytest.mark.parametrize("rows", [*UNORDERED, [{"rung": "a"}, {"rung": "b"}] * 3])
def test_rows_without_an_order(rows):
    assert not has_order(rows)


def test_few_clips_have_no_interval():
    rows = ladder_rows(utterances=1, rungs=4, ways=("noise",), x=lambda u, w, k, r: -k)
    r = calibrate(rows, {"x": True})["rewards"]["x"]
    assert r["pooled"]["value"] == pytest.approx(1) and r["pooled"]["lo"] is None and r["within"]["lo"] is None


def test_the_same_seed_gives_the_same_interval():
    rows = ladder_rows(x=lambda u, w, k, r: -k + 2 * r.standard_normal())
    one, two, other = (calibrate(rows, {"x": True}, seed)["rewards"]["x"]["pooled"] for seed in (0, 0, 1))
    assert one == two and one["value"] == other["value"] and one["lo"] != other["lo"]
