"""Score rows on disk: the last one counts, those of one file's stamp add up, and torn lines are left out."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rlspeech.scores import ScoreFile, ScoreTable, append_rows, keep_rows, read_scores
from rlspeech.types import Score, UserError


def test_the_last_row_counts_and_rows_of_one_stamp_add_up(tmp_path: Path) -> None:
    path, notes = tmp_path / "scores.jsonl", list[str]()
    append_rows(path, [{"key": "a", "system": "s", "x": 1.0}, {"key": "a", "system": "s", "y": 2.0}])
    first = {"key": "b", "system": "s", "stamp": "1", "x": None, "errors": {"x": "no", "z": "no"}}
    append_rows(path, [first, {**first, "x": 3.0, "errors": {}}, {"key": "c", "system": "t", "stamp": "1", "x": 4.0}])
    append_rows(path, [{"key": "c", "system": "t", "stamp": "2", "y": 5.0}])
    with path.open("a") as file:
        file.write('{"key": "d", "sys\n[1]\n{"system": "s"}\n{"key": "e", "system": "s", "x": 6.0}\n')
    rows = read_scores(path, notes)
    assert rows["s"]["a"] == {"key": "a", "system": "s", "y": 2.0} and rows["s"]["e"]["x"] == 6.0
    assert rows["s"]["b"]["x"] == 3.0 and rows["s"]["b"]["errors"] == {"z": "no"}
    assert rows["t"]["c"] == {"key": "c", "system": "t", "stamp": "2", "y": 5.0}
    assert len(notes) == 1 and notes[0].startswith("3 lines") and read_scores(tmp_path / "none.jsonl", notes) == {}
    keep_rows(path, lambda row: row["key"] != "e")
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["key"] for r in kept] == ["a", "b", "c"]


def test_rows_of_other_weights_are_dropped(tmp_path: Path) -> None:
    table = ScoreTable(tmp_path, ["x", "y"])
    assert table.keep({"m": "1", "n": "1"}) == {}
    table.add("m", "a", {"x": Score(1.0)}, {"video": "right"})
    table.add("n", "a", {"x": Score(None, "bad")})
    assert not table.done("m", "a")
    table.add("m", "a", {"y": Score(2.0)}, {"text": "t"}, ["video"])
    table.fail("n", "b", "no output")
    again = ScoreTable(tmp_path, ["x", "y"])
    assert again.rows == table.rows and again.done("m", "a") and not again.done("n", "b")
    assert again.row("m", "a") == {"key": "a", "system": "m", "x": 1.0, "y": 2.0, "text": "t", "errors": {}}
    assert again.row("n", "b")["errors"] == {"x": "no output", "y": "no output"}
    assert again.keep({"m": "2", "n": "1"}) == {"m": "1"} and {s for s, _ in again.rows} == {"n"}
    assert again.column("n", "x", ["a", "c"]) == {"a": None, "c": None}


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        ScoreFile(tmp_path / "file" / "scores.jsonl", "s", {"x": {}})


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_stay_on_the_disk_are_those_of_the_whole_file(tmp_path: Path, seed: int) -> None:
    draw, path = random.Random(seed), tmp_path / "scores.jsonl"

    def row() -> dict[str, Any]:
        column, fails = draw.choice("xy"), draw.random() < 0.3
        found = {column: None if fails else draw.random(), "errors": {column: "no"} if fails else {}}
        return {"key": draw.choice("abcd\u00e9"), "system": draw.choice("st"), "stamp": draw.choice("12")} | found

    append_rows(path, [row() for _ in range(12)])
    path.write_bytes(path.read_bytes() + b'{"torn\n\n')
    path.with_suffix(".meta.json").write_text('{"systems": {"s": {"metrics": {"x": {}, "y": {}}}}}')
    scores = ScoreFile(path, "s", {"x": {}, "y": {}})
    for _ in range(4):
        scores.add([row() for _ in range(draw.randrange(4))])
    whole = read_scores(path)
    for system, rows in whole.items():
        assert {k: scores.row(system, k) for k in rows} == rows
    assert scores.row("s", "z") == {} and scores.missing("z", "1") == ["x", "y"]
    own = whole.get("s", {})
    values, errors = scores.columns(list(own))["x"]
    assert [None if math.isnan(v) else v for v in values] == [r.get("x") for r in own.values()]
    assert errors.total() == sum("x" in r["errors"] for r in own.values())
    scores.write()
    assert read_scores(path) == whole and len(path.read_text().splitlines()) == sum(map(len, whole.values()))
    before = path.stat().st_ino
    ScoreFile(path, "s", {"x": {}, "y": {}}).write()
    assert path.stat().st_ino == before  # nothing to do, nothing rewritten
    ScoreFile(path, "s", {"x": {"version": 2}})
    assert not any("x" in r for r in read_scores(path).get("s", {}).values())  # of another version
    assert read_scores(path).get("t") == whole.get("t")


ODD_FACTS = [5, [], {}, {"metrics": []}, {"metrics": {"a": None}}, {"metrics": {"a": 5}}]


@pytest.mark.parametrize("facts", ODD_FACTS)
def test_facts_of_another_shape_are_written_anew(tmp_path: Path, facts: object) -> None:
    (tmp_path / "s.meta.json").write_text(json.dumps({"systems": {"x": facts, "\ud800": {}}}))
    (tmp_path / "s.jsonl").write_text('{"key": "k", "system": "x", "stamp": "1", "a": "1"}\n')
    scores = ScoreFile(tmp_path / "s.jsonl", "x", {"a": {"version": "1"}})
    assert scores.missing("k", "1") == ["a"] and scores.meta["systems"]["x"]["metrics"] == {"a": {"version": "1"}}
