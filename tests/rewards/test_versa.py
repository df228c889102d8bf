"""VERSA's rows: both ways of writing them are read, nothing in them runs, failures become nulls, names come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlspeech.rewards import versa
from rlspeech.rewards.base import column_of
from rlspeech.stages.check import Findings, check_scores
from rlspeech.types import UserError

# a line as VERSA 2024 printed it, and one as it writes them today
PRINTED = (
    "{'key': 'test 1', 'sdr': np.float64(4.87), 'sir': inf, 'si_snr': 1.0702, 'pesq': 1.5722705125808716, 'stoi': 0.0076, "
    "'dns_overall': 1.4526, 'spk_similarity': np.float32(0.895), 'vad_info': [{'start': 0, 'end': -1}], 'note': None}"
)
JSON = {"key": "test2", "si_snr": -3.0, "pesq": 0.0, "stoi": 1e-05, "dns_overall": float("nan"), "utmos": 3.5}
JSON |= {"ref_text": "it's {so}", "whisper_hyp_text": "its so"}
JSON |= {f"whisper_wer_{what}": n for what, n in {"delete": 1, "insert": 2, "replace": 0, "equal": 3}.items()}


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {r["key"]: r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_both_ways_of_writing_are_read(tmp_path: Path) -> None:
    source, out = tmp_path / "result.txt", tmp_path / "scores.jsonl"
    source.write_text(f"{PRINTED}\n\n{json.dumps(JSON)}\n")
    done = versa.take(source, out, "mine")
    first, second = rows(out)["test 1"], rows(out)["test2"]
    assert (done.rows, done.bad_lines, first["system"]) == (2, 0, "mine")
    numbers = {"si_sdr": 1.0702, "pesq_wb": 1.5722705125808716, "stoi": 0.0076}
    numbers |= {"dnsmos_ovrl": 1.4526, "speaker_similarity": 0.895, "sdr": 4.87}
    assert {k: first[k] for k in numbers} == numbers
    assert first["vad_info"] == [{"start": 0, "end": -1}] and first["sir"] is first["wer"] is None
    reasons = [first["errors"][n] for n in ("sir", "wer", "note")]
    assert reasons == ["VERSA wrote inf", "not in VERSA's row", "VERSA wrote nothing"]
    found = [second[n] for n in ("wer", "hypothesis", "utmos", "ref_text")]
    assert found == [0.75, "its so", 3.5, "it's {so}"]
    assert second["pesq_wb"] is second["stoi"] is second["dnsmos_ovrl"] is None, "a number for a failure is none"
    reasons = [second["errors"][n] for n in ("pesq_wb", "dnsmos_ovrl")]
    assert reasons == ["VERSA writes 0 where it fails", "VERSA wrote nan"]
    check_scores(out, found := Findings("scores"))
    assert found.problems == []
    meta = json.loads((tmp_path / "scores.meta.json").read_text())["systems"]["mine"]["metrics"]
    assert (meta["pesq_wb"]["n_valid"], meta["pesq_wb"]["n_failed"], meta["pesq_wb"]["version"]) == (1, 1, "VERSA pesq")
    assert meta["wer"]["higher_is_better"] is False and "higher_is_better" not in meta["utmos"]
    assert meta["si_sdr"]["mean"] == pytest.approx((1.0702 - 3.0) / 2)


def test_several_recognisers_stay_apart(tmp_path: Path) -> None:
    kinds = [f"{rate}_{what}" for rate in ("wer", "cer") for what in ("delete", "insert", "replace", "equal")]
    counts = {f"{who}_{kind}": n for who, n in (("whisper", 1), ("owsm", 2)) for kind in kinds}
    lines = [{"key": "a", **counts}, {"key": "b", **dict.fromkeys(counts, 0)}]
    (tmp_path / "v").write_text("\n".join(map(json.dumps, lines)))
    versa.take(tmp_path / "v", tmp_path / "s.jsonl", "x")
    found = rows(tmp_path / "s.jsonl")
    assert found["a"]["wer[recogniser=whisper]"] == found["a"]["cer[recogniser=owsm]"] == 1.0
    assert found["b"]["errors"]["wer[recogniser=owsm]"] == "the reference text is empty"


@pytest.mark.parametrize(
    "line",
    [
        "{'key': 'a', 'x': __import__('os').system('touch evil')}",
        *("{'key': 'a', 'x': open('evil', 'w')}", "[1, 2]", "{'x': 1.0}", "{broken", "{'key': 'a', **{'x': 1}}"),
        *("{'key': ['a'], 'x': 1}", "{['key']: 'a'}", "{'key': 'a', 'x': (lambda: 1)()}", "'key'", "\x00\x01"),
        *("{'key': 'a', 'x': float.fromhex('1')}", "{" * 5000, "{'key': 'a', 'x': f'{1}'}", '{"key": null}'),
        "x" * 2_000_000,
    ],
)
def test_a_line_that_is_no_row_runs_nothing(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v").write_text(f'{line}\n{{"key": "good", "pesq": 2.0}}\n{{"key": "to')
    done = versa.take(tmp_path / "v", tmp_path / "s.jsonl", "x")
    assert (done.rows, done.bad_lines) == (1, 2) and list(rows(tmp_path / "s.jsonl")) == ["good"]
    assert not (tmp_path / "evil").exists() and "line 1" in done.notes[0]


def test_numbers_beyond_any_measure_do_not_stop_it(tmp_path: Path) -> None:
    line = f'{{"key": 7, "big": {10**400}, "far": 1e999, "yes": true, "system": "s", "stamp": 1.5}}'
    (tmp_path / "v").write_text(line + "\n")
    versa.take(tmp_path / "v", tmp_path / "s.jsonl", "x")
    row = rows(tmp_path / "s.jsonl")["7"]
    assert row["far"] is None and row["system"] == "x" and row["versa_stamp"] == 1.5 and row["versa_system"] == "s"


def test_there_and_back(tmp_path: Path) -> None:
    names = ("key", "system", "pesq_wb", "estoi", "dnsmos_ovrl", "my_mod:f", "hypothesis", "stamp", "errors")
    values = [("a b/\u00e9", "m", 2.5, 0.5, 3.0, -1.0, "it's", "0", {})]
    values += [("b", "m", None, 0.25, 2.0, 4, "", "1", {"pesq_wb": "silent"})]
    ours = [dict(zip(names, row, strict=True)) for row in values]
    source = tmp_path / "scores.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in ours) + '{"key": "torn')
    done = versa.export(source, tmp_path / "versa")
    assert (done.rows, done.bad_lines) == (2, 1) and ("pesq", "pesq_wb", 1, 1) in done.metrics
    expected = {"key": "b", "estoi": 0.25, "dns_overall": 2.0, "my_mod:f": 4, "hypothesis": ""}
    assert rows(tmp_path / "versa")["b"] == expected
    versa.take(tmp_path / "versa", tmp_path / "again.jsonl", "m")
    again = rows(tmp_path / "again.jsonl")
    for row in ours:
        kept = {k: v for k, v in row.items() if k not in ("stamp", "errors")}
        assert {k: v for k, v in again[row["key"]].items() if k != "errors"} == kept
    assert again["b"]["errors"] == {"pesq_wb": "not in VERSA's row"}


def test_one_file_of_versas_is_one_system(tmp_path: Path) -> None:
    source = tmp_path / "scores.jsonl"
    lines = [{"key": "a", "system": s, "estoi": n, "errors": {}} for n, s in enumerate("xy")]
    source.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="2 systems") as error:
        versa.export(source, tmp_path / "out")
    assert error.value.try_this == "--system x" and not (tmp_path / "out").exists()
    assert versa.export(source, tmp_path / "out", "y").rows == 1 and rows(tmp_path / "out")["a"]["estoi"] == 1
    (tmp_path / "empty").write_text("")
    for convert, given in ((versa.export, source), (versa.take, tmp_path / "empty")):
        with pytest.raises(UserError, match="no score"):
            convert(given, tmp_path / "o", "z")


def test_every_name_in_the_table_is_a_reward() -> None:
    from rlspeech.rewards.catalogue import BUILTIN

    known = {name for entry in BUILTIN for name in entry.columns}
    assert set(versa.NAMES.values()) <= known and column_of("estoi").higher_is_better
