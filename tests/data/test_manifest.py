"""Manifests: what goes in comes out, what is wrong is named by line, nothing escapes its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from rlspeech import files as jsonl
from rlspeech.data.inputs import collect
from rlspeech.data.manifest import find_manifest, meta_path, read_manifest, scan_manifest, to_row, write_manifest
from rlspeech.files import JsonlWriter, read_jsonl, safe_name
from rlspeech.types import UserError, Utterance


def utt(name: str, path: str | Path = "/nowhere/a.wav", **more: object) -> Utterance:
    return Utterance(name, str(path), 1.5, 16000, **more)  # type: ignore[arg-type]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_round_trip_keeps_every_field_and_unknown_keys(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("c.wav", "v.mp4", "l.npz", "p.wav")]
    extra = {"mos": 3.1, "tags": ["x"], "n": None}
    sound = ("a", str(tmp_path / "w" / "a.wav"), 2.5, 48000, 0.25, "héllo")
    full = Utterance(*sound, *paths, "prompt", "spk", "en", -2.5, extra)
    write_manifest(tmp_path / "m.jsonl", [full, utt("b")], {"rows": 2})
    assert read_manifest(tmp_path / "m.jsonl") == [full, utt("b")]
    assert json.loads(meta_path(tmp_path / "m.jsonl").read_text()) == {"rows": 2}
    row = json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])
    assert row["audio_filepath"] == "w/a.wav"
    assert row["mos"] == 3.1 and "extra" not in row


def test_a_moved_folder_still_finds_its_audio(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "deeper" / "new"
    (old / "audio").mkdir(parents=True)
    write_manifest(old / "m.jsonl", [utt("a", old / "audio" / "a.wav")])
    new.parent.mkdir()
    shutil.move(old, new)
    assert read_manifest(new / "m.jsonl")[0].audio_filepath == str(new / "audio" / "a.wav")


def test_paths_hold_through_a_symbolic_link(tmp_path: Path) -> None:
    real = tmp_path / "far" / "away" / "out"
    real.mkdir(parents=True)
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "link").symlink_to(real)
    write_manifest(tmp_path / "link" / "m.jsonl", [utt("a", tmp_path / "a.wav")])
    for way in (tmp_path / "link" / "m.jsonl", real / "m.jsonl"):
        assert Path(read_manifest(way)[0].audio_filepath).read_bytes() == b"x"


def test_bad_lines_are_named_by_number(tmp_path: Path) -> None:
    good = {"id": "a", "audio_filepath": "a.wav", "duration": 1, "sample_rate": 16000}
    times = [{"duration": "long"}, {"duration": -1}, {"offset": True}]
    others = [{"sample_rate": 0}, {"audio_filepath": 3}, {"audio_filepath": "a\0b"}, {"text": ["x"]}]
    wrong = [good | {"id": f"w{i}"} | bad for i, bad in enumerate((*times, *others))]
    numbers = [f'{{"id": "n{i}", "audio_filepath": "a", "duration": {n}}}' for i, n in enumerate(("NaN", 10**400))]
    path = lines(tmp_path / "m.jsonl", good, "{broken", "", "[1]", {"id": "b"}, good, *wrong, *numbers)
    utts, problems = scan_manifest(path)
    assert [u.id for u in utts] == ["a"]
    assert [number for number, _ in problems] == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert "duplicate id 'a', first on line 1" in problems[3][1]
    with pytest.raises(UserError, match="(?s)13 bad lines.*why: .*line 2.*5 more"):
        read_manifest(path)


def test_bytes_that_are_no_text_cost_their_line(tmp_path: Path) -> None:
    row = b'{"id": "a", "audio_filepath": "a.wav", "duration": 1, "sample_rate": 8000}\n'
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + row + b'{"id": "\xff"}\n' + b"[" * 100_000 + b"\n")
    utts, problems = scan_manifest(tmp_path / "m.jsonl")
    assert [u.id for u in utts] == ["a"]
    assert [number for number, _ in problems] == [2, 3]


def test_empty_and_missing_manifests(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n")
    for path, words in (("m.jsonl", "is empty"), ("none.jsonl", "cannot read"), (".", "cannot read")):
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path / path)


def test_other_peoples_manifests_need_neither_id_nor_rate(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(12000), 8000)
    named = {"audio_filepath": "a.wav"}
    first = {**named, "duration": 1.0, "text": "x", "speaker_id": 7}
    rows = [first, {**named, "offset": 0.5}, named, {"audio_filepath": "gone.wav"}]
    rows = read_manifest(lines(tmp_path / "m.jsonl", *rows))
    assert len({u.id for u in rows}) == 4
    assert [u.duration for u in rows] == [1.0, 1.0, 1.5, 0.0]
    assert [u.sample_rate for u in rows] == [8000, 8000, 8000, 0]
    assert rows[0].speaker_id == "7"


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/abs", "a/b", "a\\b", "..", ".", ".hidden", "", "a\0b", "x" * 500, "con", "é" * 200),
        *("a b", "nul.txt", "\ud800", "trailing."),
    ],
)
def test_ids_become_file_names_that_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    safe = safe_name(name)
    target = tmp_path / f"{safe}.flac"
    assert os.path.normpath(target).startswith(str(tmp_path) + os.sep) and target.parent == tmp_path
    target.write_bytes(b"")
    assert safe_name(safe) == safe
    if name:
        row = {"id": name, "audio_filepath": "a.wav", "duration": 1, "sample_rate": 16000}
        utt = read_manifest(lines(tmp_path / "m.jsonl", row))[0]
        assert utt.id == safe and utt.extra.get("original_id", safe) == (name if name != safe else safe)


@given(st.lists(st.text(max_size=30), unique=True, max_size=20))
def test_different_ids_stay_different(names: list[str]) -> None:
    assert len({safe_name(n) for n in names}) == len(names)


def test_good_ids_are_left_alone() -> None:
    for name in ("p226_001", "103-1240-0000", "clnsp102_traffic_248091_3_snr0_tl-21_fileid_268", "größe", "a.b@c=d+e"):
        assert safe_name(name) == name


def test_duplicates_nan_and_a_full_disk_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, [utt("a")])
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    for bad in ([utt("b"), utt("b")], [utt("b", extra={"x": float("nan")})]):
        with pytest.raises(UserError):
            write_manifest(path, bad)
    monkeypatch.setattr(jsonl.os, "fsync", full)
    with pytest.raises(UserError, match="full"):
        write_manifest(path, [utt("b")])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_file_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    Path(path).write_bytes(b"x")
    write_manifest(tmp_path / "m.jsonl", [utt("a", path)])
    assert Path(read_manifest(tmp_path / "m.jsonl")[0].audio_filepath).read_bytes() == b"x"


def test_the_writer_continues_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    a, b, c = (to_row(utt(name), tmp_path) for name in "abc")
    with JsonlWriter(path) as writer:
        assert writer.write(a) and writer.write(b) and not writer.write(a)
    whole = path.read_bytes()
    for torn in (b'{"id": "c", "audio_fi', b'{"id": "c"}', b"\0\0\0\0", b'{"id": "c", "audio_fi\n{"id": "d"}\n'):
        path.write_bytes(whole + torn)
        assert [r["id"] for r in read_jsonl(path)][:2] == ["a", "b"]
        with JsonlWriter(path) as writer:
            assert set(writer.rows) == {"a", "b"}
            assert writer.write(c)
        assert [u.id for u in read_manifest(path)] == ["a", "b", "c"]


def test_a_killed_writer_loses_at_most_the_row_it_was_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = f"""
        from rlspeech.files import JsonlWriter
        writer = JsonlWriter({str(path)!r}, "key")
        i = len(writer.rows)
        while True:
            writer.write({{"key": i, "load": "x" * 5000}})
            i += 1
            print(i, flush=True)
    """
    reached = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for _ in range(20):
            reached = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        reached = int(rest[-1]) if rest and rest[-1].isdigit() else reached
        with JsonlWriter(path, "key") as writer:
            assert list(writer.rows) == [str(i) for i in range(len(writer.rows))]
            assert len(writer.rows) >= reached - 1 and len(writer.rows) >= 20


def test_a_full_disk_stops_the_writer_with_what_was_kept(tmp_path: Path) -> None:
    code = f"""
        import resource
        from rlspeech.files import JsonlWriter
        from rlspeech.types import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        writer = JsonlWriter({str(tmp_path / "rows.jsonl")!r}, "key")
        try:
            for i in range(100):
                writer.write({{"key": i, "load": "x" * 1000}})
        except UserError as error:
            print(error.why)
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "4 rows were kept" in answer.stdout
    with JsonlWriter(tmp_path / "rows.jsonl", "key") as writer:
        assert len(writer.rows) == 4


def test_find_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exist"):
        find_manifest(tmp_path / "gone")
    with pytest.raises(UserError, match="no manifest"):
        find_manifest(tmp_path)
    for name in ("dropped.jsonl", "checks.jsonl", "b.jsonl"):
        lines(tmp_path / name, {})
    assert find_manifest(tmp_path) == tmp_path / "b.jsonl" == find_manifest(tmp_path / "b.jsonl")
    lines(tmp_path / "c.jsonl", {})
    with pytest.raises(UserError, match="holds 2 manifests"):
        find_manifest(tmp_path)
    lines(tmp_path / "manifest.jsonl", {})
    assert find_manifest(tmp_path).name == "manifest.jsonl"
    lines(tmp_path / "mix.json", {})
    assert find_manifest(tmp_path).name == "mix.json"
    assert find_manifest(tmp_path, recipe=False).name == "manifest.jsonl"


def test_rows_to_score_stay_on_the_disk(tmp_path: Path) -> None:
    path, count = tmp_path / "m.jsonl", 8_000
    facts = '"duration": 1.0, "sample_rate": 16000, "text": "set the lamp to forty two please", "speaker_id": "s"'
    rows = [f'{{"id": "u{n * 7919 % count:06}", "audio_filepath": "a/f{n % 50}.wav", {facts}}}\n' for n in range(count)]
    path.write_text("".join(rows))
    tracemalloc.start()
    assert len(collect(path)) == count
    assert tracemalloc.get_traced_memory()[1] / count < 400  # bytes; some 250 while ids are compared, 100 afterwards
    tracemalloc.stop()
    rows = rows[:100]
    for n in (3, 53):  # made ids, one of them twice
        rows[n] = "\n" + rows[n].replace('"id": "u', '"offset": 0.5, "other": "')
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("".join(rows), encoding=encoding)
        items, utts = collect(path), sorted(read_manifest(path), key=lambda u: u.id)
        assert items.keys == [u.id for u in utts] and {"f3_500ms", "f3_500ms_56"} <= set(items.keys)
        assert [(i.key, str(i.audio), i.text, i.columns) for i in items] == [
            (u.id, u.audio_filepath, u.text, {"speaker_id": "s", **u.extra}) for u in utts
        ]
        assert items.columns == {"speaker_id", "other"}
    path.write_text("".join([*rows, "[]\n"]))
    with pytest.raises(UserError, match="line 103"):
        collect(path)
