"""Bytes that are text, names that are equal to the eye, and paths as other systems write them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tiny_corpora import sound

from rlspeech import names
from rlspeech.data.inputs import collect, read_list, read_texts
from rlspeech.data.manifest import read_manifest, scan_manifest
from rlspeech.files import parse_json, read_text
from rlspeech.models.hub import embedded_path, load_model
from rlspeech.types import UserError

CAFE = "caf\u00e9"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_by_its_mark(tmp_path: Path, encoding: str) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + f"a {CAFE}\r\nb two\rc three\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == f"a {CAFE}\nb two\nc three\n"
    assert read_texts(tmp_path / "a.txt") == {"a": CAFE, "b": "two", "c": "three"}


NO_TEXT = {CAFE.encode("latin-1"): "0xe9", b"a\0b\0": "NUL", b"\xff\xfea": "UTF-16", POINTER.encode(): "git lfs pull"}


@pytest.mark.parametrize(("data", "reason"), NO_TEXT.items())
def test_what_is_no_text_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        read_text(tmp_path / "a.txt")


LISTS = {
    "mixed.txt": "u1 hello there\nu2\tyou are here\nu3   ok\n",
    "file.txt": "my talk.wav\thello there\nu2.wav you are here\nu3\tok\n",
    "kaldi-nbsp": "u1 hello\u00a0there\nu2 you are here\nu3 ok\n",
    "quoted.csv": 'path,sentence\nu1.mp3,"Hello; how are you"\nu2.mp3,"a ""b"", c"\nu3.mp3,ok\n',
    "semicolon.csv": 'path;sentence\nu1.mp3;"Hello; how are you"\nu2.mp3;a "b", c\nu3.mp3;ok\n',
    "bare.csv": 'u1.mp3,"Hello; how are you"\r\nu2.mp3,"a ""b"", c"\r\nu3.mp3,ok\r\n',
    "lines.csv": 'path,sentence\nu1.mp3,"two\nlines"\nu2.mp3,b\nu3.mp3,ok\n',
    "voice.tsv": 'client_id\tpath\tsentence\nx\tu1.mp3\t"Hello" he said\ny\tu2.mp3\tb\nz\tu3.mp3\tok\n',
    "ljspeech.csv": 'u1|He said "no|He said "no\nu2|b|b\nu3|3rd|third\n',
}
RIGHT = {
    "mixed.txt": ["hello there", "you are here", "ok"],
    "file.txt": ["hello there", "you are here", "ok"],
    "kaldi-nbsp": ["hello\u00a0there", "you are here", "ok"],
    "lines.csv": ["two\nlines", "b", "ok"],
    "voice.tsv": ['"Hello" he said', "b", "ok"],
    "ljspeech.csv": ['He said "no', "b", "third"],
}


@pytest.mark.parametrize("name", LISTS)
def test_one_reader_of_lists(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LISTS[name].encode())
    rows = [row.get("text") or row.get("sentence") for _, row in read_list(tmp_path / name)]
    assert rows == RIGHT.get(name, ["Hello; how are you", 'a "b", c', "ok"])


def test_names_are_matched_composed_and_opened_as_they_are(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", CAFE)
    noisy, clean = sound(tmp_path / "noisy" / f"{decomposed}.wav"), sound(tmp_path / "clean" / f"{CAFE}.wav")
    (tmp_path / "texts").write_text(f"{CAFE} one two\n")
    (item,) = collect(str(tmp_path / "noisy"), str(tmp_path / "clean"), str(tmp_path / "texts"))
    assert (item.key, item.audio, item.target, item.text) == (CAFE, str(noisy), str(clean), "one two")
    row = {"audio_filepath": f"noisy/{CAFE}.wav", "duration": 0.1, "sample_rate": 16000}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (utt,) = read_manifest(tmp_path / "m.jsonl")
    assert utt.audio_filepath == str(noisy) and Path(utt.audio_filepath).exists()


def test_paths_as_they_are_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = sound(tmp_path / "a b" / "x.wav")
    base = str(tmp_path)
    for name in ("a b\\x.wav", "~/a b/x.wav", f"file://{tmp_path}/a%20b/x.wav", f"file:{tmp_path}/a b/x.wav"):
        assert names.local_path(name, base) == str(made)
    sound(tmp_path / "c\\d.wav")  # a name may hold a backslash
    assert names.local_path("c\\d.wav", base) == f"{base}/c\\d.wav"
    rows = [{"audio_filepath": p, "duration": 1, "sample_rate": 16000} for p in ("s3://bucket/x.wav", "gs://b/y.wav")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    utts, problems = scan_manifest(tmp_path / "m.jsonl")
    assert not utts and all("address" in message for _, message in problems)
    with pytest.raises(UserError):
        names.local_option("s3://bucket/model", "--model")


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((embedded_path("flowse") / "config.json").read_text())
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(UserError, match="try: .*lfs pull"):
        load_model(str(tmp_path), "flowse")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "nope", "\x00", "9" * 400], ids=len)
def test_broken_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode())
