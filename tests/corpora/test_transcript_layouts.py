"""LibriSpeech, Kaldi, NeMo and lists of texts: every row finds its own transcript, what cannot be used says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlspeech.corpora import folder, kaldi_nemo, librispeech
from rlspeech.corpora.base import Candidate
from rlspeech.types import UserError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def texts(rows: list[Candidate]) -> dict[str, str | None]:
    return {row.utt.id: row.problem or row.utt.text for row in rows}


@pytest.mark.parametrize("below", ["", "LibriSpeech"])
def test_librispeech(tmp_path: Path, below: str) -> None:
    top = tmp_path / below
    for split, name in (("dev-clean", "84-1-0000"), ("dev-clean", "84-1-0001"), ("train-clean-100", "9-2-0000")):
        touch(top / split / name.split("-")[0] / name.split("-")[1] / f"{name}.flac")
    (top / "dev-clean/84/1/84-1.trans.txt").write_text("84-1-0000 MISTER O'BRIEN WAS HERE\n")
    (top / "train-clean-100/9/2/9-2.trans.txt").write_text("9-2-0000 YES\n")
    (top / "SPEAKERS.TXT").write_text("; comment\n84 | F | dev-clean | 8.0 | N. N.\n")
    rows = list(librispeech.find(tmp_path))
    assert texts(rows) == {"84-1-0000": "mister o'brien was here", "84-1-0001": "no transcript", "9-2-0000": "yes"}
    assert [r.split for r in rows] == ["dev-clean", "dev-clean", "train-clean-100"]
    assert (rows[0].utt.speaker_id, rows[0].utt.extra["sex"], rows[2].utt.extra.get("sex")) == ("84", "female", None)
    assert len(list(librispeech.find(tmp_path, ["dev-clean"]))) == len(list(librispeech.find(top / "dev-clean"))) == 2
    with pytest.raises(UserError, match="test-other"):
        list(librispeech.find(tmp_path, ["test-other"]))


LISTS = {
    "a.jsonl": '{"audio": "x/one.wav", "text": "hello there", "speaker": "s1"}\n{"audio_filepath": "two.flac", "sentence": ""}\n',
    "b.tsv": "client_id\tpath\tsentence\ts\ns1\tone.wav\thello there\t\ns2\ttwo.flac\t\t\n",
    "c.csv": 'file,text,speaker\nx/one.wav,"hello there",s1\ntwo.flac,,s2\n',
    "metadata.csv": "one|Hello, there!|hello there\ntwo||\n",
    "text": "one hello there\ntwo\n",
    "d.txt": "one.wav\thello there\ntwo.flac\t\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_texts(tmp_path: Path, name: str) -> None:
    for file in ("x/one.wav", "two.flac", "three.wav"):
        touch(tmp_path / "audio" / file)
    (tmp_path / name).write_text(LISTS[name])
    rows = list(folder.find_listed(tmp_path / "audio", tmp_path / name))
    assert texts(rows) == {"x_one": "hello there", "two": "", "three": "no transcript"}
    speakers = {row.utt.id: row.utt.speaker_id for row in rows}
    assert speakers["x_one"] == ("s1" if "s1" in LISTS[name] else None)


def test_the_same_stem_in_two_folders_needs_its_folder(tmp_path: Path) -> None:
    for file in ("a/1.wav", "b/1.wav"):
        touch(tmp_path / "audio" / file)
    (tmp_path / "t.jsonl").write_text('{"path": "a/1.wav", "text": "first"}\n{"path": "1.wav", "text": "which"}\n')
    assert texts(list(folder.find_listed(tmp_path / "audio", tmp_path / "t.jsonl"))) == {"a_1": "first", "b_1": "which"}
    (tmp_path / "t").write_text("a/1 first\n")
    assert texts(list(folder.find_listed(tmp_path / "audio", tmp_path / "t"))) == {
        "a_1": "first",
        "b_1": "no transcript",
    }


def test_ids_with_dots_are_not_shortened(tmp_path: Path) -> None:
    for file in ("v1.2.wav", "v1.wav"):
        touch(tmp_path / "audio" / file)
    (tmp_path / "text").write_text("v1.2 two\nv1 one\n")
    rows = folder.find_listed(tmp_path / "audio", tmp_path / "text")
    assert sorted((Path(r.utt.audio_filepath).name, r.utt.text) for r in rows) == [
        ("v1.2.wav", "two"),
        ("v1.wav", "one"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", "{"),
        ("t.jsonl", "[1]"),
        ("t.jsonl", '{"nothing": 1}'),
        ("t.jsonl", ""),
        ("t", ""),
        ("t", "other words"),
        ("t.tsv", ""),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, name: str, content: str) -> None:
    touch(tmp_path / "audio" / "one.wav")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError):
        list(folder.find_listed(tmp_path / "audio", tmp_path / name))


def test_a_list_that_is_not_text(tmp_path: Path) -> None:
    touch(tmp_path / "audio" / "one.wav")
    (tmp_path / "t").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        list(folder.find_listed(tmp_path / "audio", tmp_path / "t"))


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", name == "wav_scp")).write_text(content)
    return folder


def test_kaldi_segments(tmp_path: Path) -> None:
    touch(tmp_path / "wavs" / "r1.flac")
    kaldi(
        tmp_path / "data" / "train",
        wav_scp=f"r1 {tmp_path}/wavs/r1.flac\n",
        text="u1 hello there\nu2\nu5 x\nu6 x\nu3 a\n",
        segments="u1 r1 0.5 1.75\nu2 r1 2 -1\nu3 r9 0 1\nu4 r1 3 4\nu5 r1 4 3\nu6 r1 soon\n",
        utt2spk="u1 anna\n",
        utt2lang="u1 de\n",
    )
    rows = list(kaldi_nemo.find_kaldi(tmp_path / "data"))
    assert texts(rows) == {
        "u1": "hello there",
        "u2": "",
        "u3": "recording not in wav.scp",
        "u4": "no transcript",
        "u5": "segment ends before it begins",
        "u6": "bad line in segments",
    }
    first, open_end = rows[0].utt, rows[1].utt
    assert (first.offset, first.duration, first.speaker_id, first.language) == (0.5, 1.25, "anna", "de") and rows[
        0
    ].split == "train"
    assert (open_end.offset, open_end.duration) == (2.0, 0.0), "to the end of the file"


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        ("a.flac", True),
        ("flac -c -d -s a.flac |", True),
        ("sph2pipe -f wav -p a.flac |", True),
        ("sox a.flac -t wav - |", True),
        ("sph2pipe -f wav -p -c 1 a.flac |", False),
        ("sox a.flac -t wav - speed 1.1 |", False),
        ("cat a.flac | sox -t flac - -t wav - |", False),
        ("touch evil; cat a.flac |", False),
        ("wget a.flac |", False),
        ("raw.ark:123", False),
    ],
)
def test_kaldi_commands_are_never_run(tmp_path: Path, entry: str, good: bool) -> None:
    touch(tmp_path / "d" / "a.flac")
    (tmp_path / "d" / "wav.scp").write_text(f"u {entry}\n")
    (row,) = kaldi_nemo.find_kaldi(tmp_path / "d")
    assert (row.problem is None) == good and not (tmp_path / "evil").exists() and not Path("evil").exists()
    if good:
        assert row.utt.audio_filepath == str(tmp_path / "d" / "a.flac") and row.utt.text is None


def test_kaldi_needs_a_wav_scp(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wav.scp"):
        list(kaldi_nemo.find_kaldi(tmp_path))


def test_nemo(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello", "lang": "en", "speaker": "s", "pnc": "yes"},
        {"audio_filepath": "a.wav", "duration": 1.0, "offset": 2, "text": ""},
        {"audio_filepath": "a.wav", "duration": 1.5, "offset": 0, "text": "again"},
        {"audio_filepath": "a.wav", "duration": 1.0},
        {"duration": 1},
        7,
    ]
    (tmp_path / "train_manifest.json").write_text("".join(json.dumps(x) + "\n" for x in lines) + "{broken\n")
    rows = list(kaldi_nemo.find_nemo(tmp_path))
    assert {r.split for r in rows} == {"train"} and len({r.utt.id for r in rows}) == 7
    assert [r.problem is None for r in rows] == [True, True, True, False, False, False, False]
    first = rows[0].utt
    assert (first.text, first.language, first.speaker_id, first.duration, first.extra["pnc"]) == (
        "hello",
        "en",
        "s",
        1.5,
        "yes",
    )
    assert rows[1].utt.text == "" and rows[1].utt.offset == 2 and rows[3].problem == "no transcript"
    assert [r.utt.extra.get("segment") for r in rows[:3]] == [None, None, True]
    assert first.audio_filepath == str(tmp_path / "a.wav") and first.sample_rate == 0
    with pytest.raises(UserError):
        list(kaldi_nemo.find_nemo(tmp_path / "gone"))
