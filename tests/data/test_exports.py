"""Manifests for other toolkits: they come back as they went, are what the toolkits' own rules ask for, and hold nothing that runs."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_corpora import find, write

from rlspeech.corpora.folder import find as find_audio
from rlspeech.corpora.toolkits import Kaldi, Lhotse, Nemo
from rlspeech.data import exports
from rlspeech.data.decode import read_audio
from rlspeech.data.exports import write_manifest_as
from rlspeech.data.manifest import read_manifest, write_manifest
from rlspeech.types import Utterance

ODD = "line one\nline two\u2028three\u00a0four\tfive \U0001f600 \u65e5\u672c\u8a9e 'q\" <b>"


def sound(path: Path, seconds: float = 2.0, channels: int = 1) -> str:
    rng = np.random.default_rng(len(str(path)))
    return str(write(path, 0.1 * rng.standard_normal((int(16000 * seconds), channels))))


def utterance(path: str, name: str, text: str | None = "some words", **more: Any) -> Utterance:
    return Utterance(name, path, **{"duration": 2.0, "sample_rate": 16000, "text": text, **more})


def kaldi(rows: list[Utterance], folder: Path) -> tuple[Any, dict[str, Any]]:
    """Write and check a data folder; what the export says, and what is read back, by utterance."""
    folder.mkdir()
    done = write_manifest_as(rows, "kaldi", folder)
    valid_kaldi(folder)
    return done, {c.utt.id: c for c in find(Kaldi, folder)}


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8").split("\n")[:-1]


def valid_kaldi(folder: Path) -> None:
    """What Kaldi's utils/validate_data_dir.sh asks of a folder (written anew from its rules)."""
    tables = {p.name: [line.split(" ", 1) for line in lines(p)] for p in folder.iterdir()}
    for name, rows in tables.items():
        keys = [r[0].encode() for r in rows]
        assert rows and keys == sorted(set(keys)), f"{name} is not sorted by bytes, or a key is there twice"
        assert all(len(r) == 2 and r[1].strip() for r in rows) or name == "text"
        assert name == "wav.scp" or all(line == line.strip() and line.isprintable() for line in lines(folder / name))
    utts = [r[0] for r in tables["utt2spk"]]
    pairs = [tuple(reversed(r)) for r in tables["utt2spk"]]
    speakers = [p[0].encode() for p in pairs]
    assert speakers == sorted(speakers), "by utterance and by speaker it is not the same order"
    for name in {"text", "segments", "utt2lang"} & set(tables):
        assert [r[0] for r in tables[name]] == utts
    recordings = [r[0] for r in tables["wav.scp"]]
    if "segments" in tables:
        for _, piece in tables["segments"]:
            recording, start, end = piece.split()
            assert recording in recordings and 0 <= float(start) < float(end)
    else:
        assert recordings == utts
    spoken = {utt: speaker for speaker, said in tables["spk2utt"] for utt in said.split(" ")}
    assert spoken == {utt: speaker for speaker, utt in pairs}


def test_kaldi_comes_back(tmp_path: Path) -> None:
    long, short = sound(tmp_path / "wavs" / "rec one.wav", 4.0), sound(tmp_path / "wavs" / "b.wav")
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "wav.scp").write_text(f"R1 {long}\nb {short}\n")
    (source / "segments").write_text("anna-1 R1 0 1.25\nanna-2 R1 1.5 3.123456\nben-1 b 0 2\n")
    (source / "text").write_text("anna-1 hello there\nanna-2\nben-1 \u00fcber 'quotes\n")
    (source / "utt2spk").write_text("anna-1 anna\nanna-2 anna\nben-1 ben\n")
    (source / "spk2utt").write_text("anna anna-1 anna-2\nben ben-1\n")
    (source / "utt2lang").write_text("anna-1 en\nanna-2 en\nben-1 de\n")
    rows = [c.utt for c in find(Kaldi, source)]
    for row in rows:
        row.sample_rate = 16000  # as prepare fills it in
    write_manifest(tmp_path / "ours.jsonl", rows)
    out = tmp_path / "again"
    done, _ = kaldi(read_manifest(tmp_path / "ours.jsonl"), out)
    assert done.rows == 3 and not done.left_out and not done.notes
    assert {p.name: lines(p) for p in out.iterdir()} == {p.name: lines(p) for p in source.iterdir()}


def test_ours_to_kaldi_and_back(tmp_path: Path) -> None:
    names = ["b", "a b", "Z", "\u00e9t\u00e9", "a-b", "z\u2003z"]
    rows = []
    for i, (n, speaker) in enumerate(zip(names, ["s p", "s p", None, "anna", "b", None], strict=True)):
        path, more = sound(tmp_path / f"{n} x.wav"), {"original_id": n} if " " in n else {}
        rows.append(utterance(path, f"id{n}", ODD if n == "Z" else f"text {i}", speaker_id=speaker, extra=more))
    done, found = kaldi(rows, tmp_path / "kaldi")
    assert done.rows == len(rows) and not (tmp_path / "kaldi" / "segments").exists()
    back = {c.utt.audio_filepath: c for c in found.values()}
    for row in rows:
        found = back[row.audio_filepath]
        assert found.problem is None and found.utt.text == " ".join((row.text or "").split())
        assert (found.utt.speaker_id is None) == (row.speaker_id is None)


def test_any_ids_and_speakers_sort_as_kaldi_wants(tmp_path: Path) -> None:
    draw = random.Random(0)
    for n in range(60):
        letters = ["a", "b", "-", "_", ".", "A", "0", "+", "\u00e9", "@"]
        speakers = ["".join(draw.choices(letters, k=draw.randint(1, 3))) for _ in range(4)]
        rows = []
        for i in range(8):
            name = "".join(draw.choices(letters, k=4)) + str(i)
            rows.append(utterance(f"/x/{i}.wav", name, speaker_id=draw.choice([*speakers, None])))
        assert kaldi(rows, tmp_path / str(n))[0].rows == 8


@pytest.mark.parametrize("name", ["touch evil |", "| touch evil", "x.ark:12", "a\nb.wav", " lead.wav", "trail.wav "])
def test_no_name_of_a_file_becomes_a_command(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name) if not name.startswith("|") else name
    good = sound(tmp_path / "good.wav")
    done = write_manifest_as([utterance(path, "bad"), utterance(good, "good")], "kaldi", tmp_path)
    if name != " lead.wav":  # in the middle of a path a space is part of it
        assert done.left_out == [("bad", "Kaldi would take the file's name for something else than a file")]
        assert lines(tmp_path / "wav.scp") == [f"good {good}"]
    assert all(c.problem is None or c.utt.audio_filepath == path for c in find(Kaldi, tmp_path))


def test_what_kaldi_cannot_hold_is_said(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.flac")
    rows = [utterance(path, "a", target_filepath=path, extra={"mood": "calm", "channels": 2})]
    rows += [utterance(path, "mute", None, offset=1.0), utterance(path, "bad\udcff", offset=0.5)]
    rows.append(utterance(path, "endless", offset=0.25, duration=0.0))
    done = write_manifest_as(rows, "kaldi", tmp_path)
    wanted = {"mute": "no text", "bad\udcff": "a name or text that is not UTF-8", "endless": "no duration"}
    assert done.rows == 1 and dict(done.left_out) == wanted
    assert any("no .wav" in n for n in done.notes) and any("mood, target_filepath" in n for n in done.notes)


def test_recordings_of_one_name_stay_two(tmp_path: Path) -> None:
    rows = []
    for place, n in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
        path = sound(tmp_path / place / "x.wav")
        rows.append(utterance(path, f"{place}{n}", offset=float(n), duration=0.5))
    found = [c.utt for c in kaldi(rows, tmp_path / "k")[1].values()]
    assert {(u.audio_filepath, u.offset) for u in found} == {(u.audio_filepath, u.offset) for u in rows}


def test_nemo_comes_back(tmp_path: Path) -> None:
    sound(tmp_path / "wavs" / "a.wav")
    named = {"audio_filepath": "wavs/a.wav"}
    theirs = [
        {**named, "duration": 1.5, "text": "hello", "lang": "en", "speaker": "s", "pnc": "yes"},
        {**named, "duration": 1.0, "offset": 0.5, "text": ODD, "target_lang": "de", "tags": ["x", 1]},
        {**named, "duration": 1.5, "offset": 0, "text": ""},
    ]
    (tmp_path / "train.json").write_text("".join(json.dumps(r) + "\n" for r in theirs))
    rows = [c.utt for c in find(Nemo, tmp_path / "train.json")]
    for row in rows:
        row.sample_rate = 16000  # as prepare fills it in
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other" / "ours.jsonl", rows)
    out = tmp_path / "again.json"
    done = write_manifest_as(read_manifest(tmp_path / "other" / "ours.jsonl"), "nemo", out)
    again = [json.loads(line) for line in lines(out)]
    assert done.rows == 3
    assert [{k: v for k, v in row.items() if k not in ("id", "sample_rate")} for row in again] == theirs


def test_a_row_that_is_no_json_costs_itself(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.wav")
    rows = [utterance(path, "a", extra={"x": float("nan")}), utterance(path, "b")]
    for to, name in (("nemo", "m.json"), ("lhotse", "cuts.jsonl")):
        done = write_manifest_as(rows, to, tmp_path / name)
        assert done.rows == 1 and [key for key, _ in done.left_out] == ["a"]


def some_rows(folder: Path) -> list[Utterance]:
    mono, clean, two = sound(folder / "a b.flac"), sound(folder / "clean.wav"), sound(folder / "two.wav", channels=2)
    facts = {"speaker_id": "anna", "language": "en", "snr_db": 5.0, "extra": {"mood": "calm"}}
    return [
        utterance(mono, "whole", ODD, target_filepath=clean, **facts),
        utterance(mono, "piece_1", offset=0.5, duration=1.0, extra={"original_id": "piece 1"}),
        utterance(two, "two", "", extra={"channels": 2}),
        utterance(mono, "silent", None, extra={"kind": "noise"}),
    ]


def test_lhotse_comes_back(tmp_path: Path) -> None:
    rows, good = some_rows(tmp_path), str(tmp_path / "a b.flac")
    rows.append(utterance(str(tmp_path / "gone.wav"), "gone"))
    rows += [utterance(str(tmp_path / "clean.wav"), "long", offset=1.5), utterance(good, "bad\ud800")]
    done = write_manifest_as(rows, "lhotse", tmp_path / "cuts_train.jsonl.gz")
    wanted = {"gone": "the file cannot be read", "long": "the row ends behind its file"}
    assert done.rows == 4 and dict(done.left_out) == wanted | {"bad\ud800": "a name or text that is not UTF-8"}
    back = {c.utt.id: c for c in find(Lhotse, tmp_path / "cuts_train.jsonl.gz")}
    whole, piece = back["whole"], next(c for c in back.values() if c.utt.extra.get("original_id") == "piece 1")
    assert (whole.utt.text, whole.utt.speaker_id, whole.utt.language) == (ODD, "anna", "en") and whole.problem is None
    assert whole.utt.extra["mood"] == "calm" and whole.utt.extra["snr_db"] == 5.0
    assert (piece.utt.offset, piece.utt.duration, piece.utt.audio_filepath) == (0.5, 1.0, str(tmp_path / "a b.flac"))
    assert back["two"].utt.text == "" and back["two"].problem is None and back["silent"].problem == "no transcript"
    first = (tmp_path / "cuts_train.jsonl.gz").read_bytes()
    write_manifest_as(rows, "lhotse", tmp_path / "cuts_train.jsonl.gz")
    assert (tmp_path / "cuts_train.jsonl.gz").read_bytes() == first, "the same rows, the same bytes"
    assert gzip.decompress(first).count(b"\n") == 4


def in_tars(folder: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Utterance], list[Utterance]]:
    """Rows, and what is read back of them, two to a tar."""
    rows = some_rows(folder)
    rows[1].id, rows[3].prompt_filepath = "piece.1", sound(folder / "voice.wav", 1.0)
    gone = utterance(str(folder / "gone.wav"), "gone")
    monkeypatch.setattr(exports, "PER_TAR", 2)
    for place in (folder / to, folder / "twice"):
        place.mkdir()
        done = write_manifest_as([gone, *rows], to, place)
        assert done.rows == 4 and [key for key, _ in done.left_out] == ["gone"]
    assert {p.name: p.read_bytes() for p in (folder / to).iterdir()} == {
        p.name: p.read_bytes() for p in (folder / "twice").iterdir()
    }
    return rows, [c.utt for c in (find(Lhotse, folder / to) if to == "shar" else find_audio(folder / to))]


@pytest.mark.parametrize("to", ["webdataset", "shar"])
def test_tars_come_back(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, back = in_tars(tmp_path, to, monkeypatch)
    assert {p.suffix for p in (tmp_path / to).iterdir()} <= {".tar", ".gz"}
    for row, utt in zip(rows, back, strict=True):
        for name in ("audio_filepath", "target_filepath", "prompt_filepath"):
            one, two = getattr(row, name), getattr(utt, name)
            piece = (row.offset, row.duration) if name == "audio_filepath" and row.offset else (0.0, None)
            assert (one is None) == (two is None)
            if one:
                assert ".tar/" in two and np.array_equal(read_audio(one, *piece)[0], read_audio(two)[0])
        assert (utt.text, utt.speaker_id, utt.offset) == (row.text, row.speaker_id, 0.0)
        assert utt.extra.get("mood") == row.extra.get("mood") and utt.duration == pytest.approx(row.duration)
    assert back[1].extra["original_id"] == "piece 1"


@pytest.mark.slow  # its import takes seconds
def test_lhotse_itself_reads_the_shar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lhotse = pytest.importorskip("lhotse")
    rows, _ = in_tars(tmp_path, "shar", monkeypatch)
    found = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "shar"))
    for row, cut in zip(rows, found, strict=True):
        wav = read_audio(row.audio_filepath, row.offset, row.duration)[0]
        assert cut.id == row.id and np.array_equal(cut.load_audio().mean(0), wav)
    assert np.array_equal(found[0].load_target_recording()[0], read_audio(str(rows[0].target_filepath))[0])


@pytest.mark.slow  # its import takes seconds
def test_lhotse_itself_reads_the_same_samples(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    rows = some_rows(tmp_path)
    write_manifest_as(rows, "lhotse", tmp_path / "cuts.jsonl.gz")
    found = lhotse.CutSet.from_file(tmp_path / "cuts.jsonl.gz").to_eager()
    lhotse.qa.validate(found, read_data=True)
    for row, cut in zip(rows, found, strict=True):
        start, frames = int(row.offset * 16000), int(row.duration * 16000)
        wav, _ = sf.read(row.audio_filepath, start=start, frames=frames, always_2d=True)
        assert np.array_equal(cut.load_audio(), wav.T.astype(np.float32))
        assert [s.text for s in cut.supervisions] == [row.text] * (row.text is not None)
    clean, _ = sf.read(tmp_path / "clean.wav", dtype="float32")
    assert np.array_equal(found["whole"].load_target_recording()[0], clean) and found["silent"].kind == "noise"
