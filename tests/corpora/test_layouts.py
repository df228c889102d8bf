"""Every layout, as a tiny tree that the test writes itself: what is found, how it is paired, what is said of the rest."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_corpora import find, manifest, table, touch

from rlspeech.corpora.avsec import Avsec
from rlspeech.corpora.base import Candidate, Layout
from rlspeech.corpora.folder import Folder, Pairs
from rlspeech.corpora.lips import Lips
from rlspeech.corpora.mix import Mix
from rlspeech.corpora.published import Dns, LibriSpeech, VoiceBank
from rlspeech.corpora.toolkits import Kaldi, Lhotse, Nemo
from rlspeech.data.inputs import audio_files
from rlspeech.types import UserError

TEST_NAMES = ["clnsp102_traffic_248091_3_snr0_tl-21_fileid_268", "clnsp1_train_69005_1_snr15_tl-23_fileid_157"]
TEST_NAMES += ["clnsp7_a_snr-5_tl-30.5_fileid_007"]


def dns_2020(root: Path) -> None:
    touch(root, "clean/book_00000_chp_0009_reader_06709_0.wav clean/book_1_chp_2_reader_3_10.wav")
    touch(root, "noise/abc_DEF.wav noise/.hidden.wav noise/readme.txt")
    for kind in ("no_reverb", "with_reverb"):
        place = f"test_set/synthetic/{kind}"
        touch(root, *(f"{place}/noisy/{n}.wav" for n in TEST_NAMES))
        touch(root, *(f"{place}/clean/clean_fileid_{n}.wav" for n in (268, 157, 7)))
    real = root / "test_set" / "real_recordings"
    touch(real, "audioset_realrec_airconditioner_2uXCzjmrw3A.wav ms_realrec_1.wav")
    touch(root, "blind_test_set/noreverb_fileid_3.wav")


@pytest.mark.parametrize("inside", ["datasets", "."])
def test_dns_2020(tmp_path: Path, inside: str) -> None:
    dns_2020(tmp_path / inside)
    splits = table(find(Dns, tmp_path))
    assert set(splits) == {"clean", "noise", "test_no_reverb", "test_with_reverb", "real"}
    assert set(splits["noise"]) == {"abc_DEF"} and len(splits["clean"]) == 2 and len(splits["real"]) == 3
    assert splits["clean"]["book_00000_chp_0009_reader_06709_0"].utt.speaker_id == "06709"
    for split in ("test_no_reverb", "test_with_reverb"):
        rows = splits[split]
        assert set(rows) == set(TEST_NAMES) and not any(r.problem for r in rows.values())
        for name, partner, snr, level in zip(TEST_NAMES, (268, 157, 7), (0, 15, -5), (-21, -23, -30.5), strict=True):
            utt = rows[name].utt
            assert Path(utt.target_filepath or "").name == f"clean_fileid_{partner}.wav"
            assert split[5:] in (utt.target_filepath or "")
            assert utt.snr_db == snr and utt.extra["level_dbfs"] == level


def test_dns_of_a_test_set_alone(tmp_path: Path) -> None:
    dns_2020(tmp_path / "datasets")
    splits = table(find(Dns, tmp_path / "datasets" / "test_set"))
    assert set(splits) == {"test_no_reverb", "test_with_reverb", "real"} and len(splits["real"]) == 2


def test_dns_pairs_that_do_not_match_are_named(tmp_path: Path) -> None:
    place = tmp_path / "datasets/test_set/synthetic/no_reverb"
    touch(place / "noisy", "a_fileid_1.wav b_fileid_2.wav nonumber.wav c_fileid_11.wav")
    touch(place / "clean", "clean_fileid_1.wav clean_fileid_3.wav x_fileid_11.wav y_fileid_11.wav")
    rows = table(find(Dns, tmp_path))["test_no_reverb"]
    problems = {"a_fileid_1": None, "b_fileid_2": "no clean partner", "clean_fileid_3": "no noisy partner"}
    problems |= {"nonumber": "no number after fileid_ in the name", "c_fileid_11": "2 clean partners"}
    assert {k: r.problem for k, r in rows.items()} == problems


def test_dns_2021_and_later(tmp_path: Path) -> None:
    base, full = tmp_path / "datasets", tmp_path / "datasets_fullband"
    spoken = "read_speech/book_1_chp_1_reader_42_1.wav french_data/M-AILABS/x.wav singing_voice/s.wav"
    touch(base / "clean", spoken)
    touch(base, "noise/n.wav impulse_responses/SLR26/simulated_rirs_16k/r.wav")
    touch(base, "impulse_responses/SLR28/RIRS_NOISES/real/q.wav")
    track = base / "dev_testset_wideband" / "track_1"
    touch(track, "synthetic/noisy/a_snr3_fileid_1.wav synthetic/clean/c_fileid_1.wav real_recordings/r.wav")
    touch(full, "clean_fullband/vctk_wav48_silence_trimmed/p225/p225_001.wav")
    touch(full, "noise_fullband/n48.wav impulse_responses/SLR26/r48.wav")
    touch(tmp_path, "V5_dev_testset/Track1_Headset/noisy/n.wav", "V5_dev_testset/Track1_Headset/enrol/e.wav")
    splits = table(find(Dns, tmp_path))
    assert set(splits) == {"clean", "noise", "rir", "dev_testset_wideband_track_1", "real"}
    clean = splits["clean"]
    subsets = [clean[k].utt.extra["subset"] for k in sorted(clean)]
    assert subsets == ["french_data", "read_speech", "singing_voice", "vctk_wav48_silence_trimmed"]
    assert clean["french_data_M-AILABS_x"].utt.language == "fr" and clean["singing_voice_s"].utt.language is None
    assert {r.utt.extra["subset"] for r in splits["rir"].values()} == {"SLR26", "SLR28"}
    assert splits["dev_testset_wideband_track_1"]["a_snr3_fileid_1"].utt.snr_db == 3
    assert len(splits["real"]) == 2 and not any("enrol" in k for k in splits["real"])


def test_dns_mixtures_made_by_the_challenges_script(tmp_path: Path) -> None:
    made = "noisy/a_b_snr4_tl-20_fileid_0.wav clean/clean_fileid_0.wav noise/noise_fileid_0.wav"
    touch(tmp_path / "training", made)
    splits = table(find(Dns, tmp_path))
    assert set(splits) == {"train"} and splits["train"]["a_b_snr4_tl-20_fileid_0"].utt.snr_db == 4


OTHERS = {Dns: "DNS", VoiceBank: "VoiceBank-DEMAND", Folder: "audio", LibriSpeech: "LibriSpeech", Kaldi: "wav.scp"}
OTHERS |= {Avsec: "AVSEC", Nemo: "manifest", Lhotse: "lhotse", Lips: "videos"}


@pytest.mark.parametrize(("layout", "name"), OTHERS.items())
def test_a_folder_of_something_else_is_refused(tmp_path: Path, layout: type[Layout], name: str) -> None:
    touch(tmp_path, "clean_trainset_28spk_wav/p226_001.txt train/scenes/notes.txt")
    with pytest.raises(UserError, match=name):
        find(layout, tmp_path)
    with pytest.raises(UserError, match="gone"):
        find(layout, tmp_path / "gone")


def voicebank_tree(root: Path, size: str, speakers: Iterable[str], nested: bool = False) -> None:
    for kind in ("clean", "noisy"):
        name = f"{kind}_trainset_{size}spk_wav"
        touch(root, *(f"{name}/{name + '/' if nested else ''}{s}_00{i}.wav" for s in speakers for i in (1, 2)))


@pytest.mark.parametrize("nested", [False, True])
def test_voicebank_28(tmp_path: Path, nested: bool) -> None:
    voicebank_tree(tmp_path, "28", ("p226", "p228"), nested)
    touch(tmp_path, "clean_testset_wav/p232_001.wav noisy_testset_wav/p232_001.wav")
    touch(tmp_path, "noisy_testset_wav/p257_009.wav license.txt")
    touch(tmp_path, "trainset_28spk_txt/p228_001.txt", "logfiles/x")
    (tmp_path / "trainset_28spk_txt" / "p228_001.txt").write_text("Please call Stella.\n")
    (tmp_path / "logfiles" / "log_testset.txt").write_text("file noise snr\np232_001 bus 17.5\n")
    (tmp_path / "logfiles" / "log_trainset_28spk.txt").write_text("p228_001 babble 15\np228_002 cafe\n")
    splits = table(find(VoiceBank, tmp_path))
    assert {k: len(v) for k, v in splits.items()} == {"train": 2, "valid": 2, "test": 2}
    utt = splits["train"]["p228_001"].utt
    assert (utt.text, utt.speaker_id) == ("Please call Stella.", "p228")
    assert (utt.snr_db, utt.extra["noise_type"]) == (15.0, "babble")
    assert splits["train"]["p228_002"].utt.snr_db is None
    assert splits["test"]["p232_001"].utt.snr_db == 17.5 and splits["test"]["p257_009"].problem == "no clean partner"
    assert {r.utt.speaker_id for r in splits["valid"].values()} == {"p226"}
    for row in splits["train"].values():
        noisy, clean = Path(row.utt.audio_filepath), Path(row.utt.target_filepath or "")
        assert noisy.name == clean.name and "noisy_" in noisy.parts[-2] and "clean_" in clean.parts[-2]
    found = table(find(VoiceBank, tmp_path, valid_speakers=[]))
    assert {k: len(v) for k, v in found.items()} == {"train": 4, "test": 2}


def test_voicebank_56_and_both(tmp_path: Path) -> None:
    voicebank_tree(tmp_path, "56", ("p234",))
    assert len(table(find(VoiceBank, tmp_path))["train"]) == 2
    voicebank_tree(tmp_path, "28", ("p228",))
    for speakers, expected in (("auto", {"p228"}), ("28", {"p228"}), ("56", {"p234"}), ("all", {"p228", "p234"})):
        assert {
            r.utt.speaker_id for r in table(find(VoiceBank, tmp_path, speakers=speakers))["train"].values()
        } == expected


def test_pairs_by_place_stem_or_number(tmp_path: Path) -> None:
    touch(tmp_path, "n1/s/a.wav n1/b.wav c1/s/a.flac c1/b.wav c1/z.wav n2/deep/a.wav c2/a.wav")
    touch(tmp_path, "n3/x_snr5_fileid_4.wav c3/clean_fileid_4.wav n4/a.wav c4/b.wav")
    rows = table(find(Pairs, noisy=str(tmp_path / "n1"), clean=[str(tmp_path / "c1")]))["manifest"]
    assert {k: r.problem for k, r in rows.items()} == {"s_a": None, "b": None, "z": "no noisy partner"}
    assert rows["s_a"].utt.target_filepath == str(tmp_path / "c1" / "s" / "a.flac")
    for i in (2, 3):
        row = find(Pairs, noisy=str(tmp_path / f"n{i}"), clean=[str(tmp_path / f"c{i}")])[0]
        assert row.problem is None and row.utt.target_filepath
    with pytest.raises(UserError, match="n4"):
        find(Pairs, noisy=str(tmp_path / "n4"), clean=[str(tmp_path / "c4")])


def test_pairs_when_one_folder_lies_in_the_other(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.wav", "clean/a.wav", "clean/b.wav")
    rows = table(find(Pairs, noisy=str(tmp_path), clean=[str(tmp_path / "clean")]))["manifest"]
    assert set(rows) == {"a", "b"} and not any(r.problem for r in rows.values())


def test_folder_reads_texts_and_skips_what_it_should(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.WAV", "a/.y.wav", ".git/z.wav", "out/o.wav", "a/notes.md", "b.mp3")
    (tmp_path / "a" / "x.txt").write_text("hello\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    rows = table(find(Folder, tmp_path))["manifest"]
    assert set(rows) == {"a_x", "b"} and rows["a_x"].utt.text == "hello"


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.wav")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "link").symlink_to(tmp_path / "real")
    assert [p.name for p in audio_files(tmp_path / "view")] == ["a.wav"]


def test_mix_takes_folders_and_manifests(tmp_path: Path) -> None:
    touch(tmp_path, "c1/a.wav", "c2/b.wav", "n/n.wav", "r/r.wav")
    rows = manifest(tmp_path / "m.jsonl", [{"id": "seg", "audio_filepath": "c1/a.wav", "offset": 2.0}])
    sources = {"clean": ["c1", "c2", rows], "noise": ["n"], "rir": ["r"]}
    splits = table(find(Mix, **{kind: [str(tmp_path / name) for name in names] for kind, names in sources.items()}))
    assert {k: sorted(v) for k, v in splits.items()} == {"clean": ["a", "b", "seg"], "noise": ["n"], "rir": ["r"]}
    assert splits["clean"]["seg"].utt.offset == 2.0


# transcripts


def texts(rows: Iterable[Candidate]) -> dict[str, str | None]:
    return {row.utt.id: row.problem or row.utt.text for row in rows}


@pytest.mark.parametrize("below", ["", "LibriSpeech"])
def test_librispeech(tmp_path: Path, below: str) -> None:
    top = tmp_path / below
    for split, name in (("dev-clean", "84-1-0000"), ("dev-clean", "84-1-0001"), ("train-clean-100", "9-2-0000")):
        touch(top, f"{split}/{name.split('-')[0]}/{name.split('-')[1]}/{name}.flac")
    (top / "dev-clean/84/1/84-1.trans.txt").write_text("84-1-0000 MISTER O'BRIEN WAS HERE\n")
    (top / "train-clean-100/9/2/9-2.trans.txt").write_text("9-2-0000 YES\n")
    (top / "SPEAKERS.TXT").write_text("; comment\n84 | F | dev-clean | 8.0 | N. N.\n")
    rows = find(LibriSpeech, tmp_path)
    assert texts(rows) == {"84-1-0000": "mister o'brien was here", "84-1-0001": "no transcript", "9-2-0000": "yes"}
    assert [r.split for r in rows] == ["dev-clean", "dev-clean", "train-clean-100"]
    assert (rows[0].utt.speaker_id, rows[0].utt.extra["sex"], rows[2].utt.extra.get("sex")) == ("84", "female", None)
    assert len(find(LibriSpeech, tmp_path, splits=["dev-clean"])) == len(find(LibriSpeech, top / "dev-clean")) == 2
    with pytest.raises(UserError, match="test-other"):
        find(LibriSpeech, tmp_path, splits=["test-other"])


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
    touch(tmp_path / "audio", "x/one.wav", "two.flac", "three.wav")
    (tmp_path / name).write_text(LISTS[name])
    rows = find(Folder, tmp_path / "audio", text=str(tmp_path / name))
    assert texts(rows) == {"x_one": "hello there", "two": "", "three": "no transcript"}
    speakers = {row.utt.id: row.utt.speaker_id for row in rows}
    assert speakers["x_one"] == ("s1" if "s1" in LISTS[name] else None)


def test_the_same_stem_in_two_folders_needs_its_folder(tmp_path: Path) -> None:
    touch(tmp_path / "audio", "a/1.wav", "b/1.wav")
    (tmp_path / "t.jsonl").write_text('{"path": "a/1.wav", "text": "first"}\n{"path": "1.wav", "text": "which"}\n')
    assert texts(find(Folder, tmp_path / "audio", text=str(tmp_path / "t.jsonl"))) == {"a_1": "first", "b_1": "which"}
    (tmp_path / "t").write_text("a/1 first\n")
    found = texts(find(Folder, tmp_path / "audio", text=str(tmp_path / "t")))
    assert found == {"a_1": "first", "b_1": "no transcript"}


def test_ids_with_dots_are_not_shortened(tmp_path: Path) -> None:
    touch(tmp_path / "audio", "v1.2.wav", "v1.wav")
    (tmp_path / "text").write_text("v1.2 two\nv1 one\n")
    rows = find(Folder, tmp_path / "audio", text=str(tmp_path / "text"))
    assert {Path(r.utt.audio_filepath).name: r.utt.text for r in rows} == {"v1.2.wav": "two", "v1.wav": "one"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("t.jsonl", content) for content in (b"{", b"[1]", b'{"nothing": 1}', b"")),
        *(("t", content) for content in (b"", b"other words", b"\xff\xfe\x00")),
        ("t.tsv", b""),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, name: str, content: str) -> None:
    touch(tmp_path / "audio", "one.wav")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError):
        find(Folder, tmp_path / "audio", text=str(tmp_path / name))


def test_kaldi_segments(tmp_path: Path) -> None:
    files = {
        "wav.scp": f"r1 {tmp_path}/wavs/r1.flac\n",
        "text": "u1 hello there\nu2\nu5 x\nu6 x\nu3 a\n",
        "segments": "u1 r1 0.5 1.75\nu2 r1 2 -1\nu3 r9 0 1\nu4 r1 3 4\nu5 r1 4 3\nu6 r1 soon\n",
        "utt2spk": "u1 anna\n",
        "utt2lang": "u1 de\n",
    }
    touch(tmp_path, "wavs/r1.flac", *(f"data/train/{name}" for name in files))
    for name, content in files.items():
        (tmp_path / "data" / "train" / name).write_text(content)
    rows = find(Kaldi, tmp_path / "data")
    said, bad = texts(rows), {"u3": "recording not in wav.scp", "u4": "no transcript", "u6": "bad line in segments"}
    assert said == {"u1": "hello there", "u2": "", "u5": "segment ends before it begins"} | bad
    first, open_end = rows[0].utt, rows[1].utt
    assert (first.offset, first.duration, first.speaker_id, first.language) == (0.5, 1.25, "anna", "de")
    assert rows[0].split == "train"
    assert (open_end.offset, open_end.duration) == (2.0, 0.0), "to the end of the file"


@pytest.mark.parametrize(
    "entry",
    [
        *("a.flac", "flac -c -d -s a.flac |", "sph2pipe -f wav -p a.flac |", "sox a.flac -t wav - |"),
        *("bad: sph2pipe -f wav -p -c 1 a.flac |", "bad: sox a.flac -t wav - speed 1.1 |"),
        "bad: cat a.flac | sox -t flac - -t wav - |",
        *("bad: touch evil; cat a.flac |", "bad: wget a.flac |", "bad: raw.ark:123"),
    ],
)
def test_kaldi_commands_are_never_run(tmp_path: Path, entry: str) -> None:
    good = not entry.startswith("bad: ")
    touch(tmp_path, "d/a.flac")
    (tmp_path / "d" / "wav.scp").write_text(f"u {entry.removeprefix('bad: ')}\n")
    (row,) = find(Kaldi, tmp_path / "d")
    assert (row.problem is None) == good and not (tmp_path / "evil").exists() and not Path("evil").exists()
    if good:
        assert row.utt.audio_filepath == str(tmp_path / "d" / "a.flac") and row.utt.text is None


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
    rows = find(Nemo, tmp_path)
    assert {r.split for r in rows} == {"train"} and len({r.utt.id for r in rows}) == 7
    assert [r.problem is None for r in rows] == [True, True, True, False, False, False, False]
    first = rows[0].utt
    assert (first.text, first.language, first.speaker_id) == ("hello", "en", "s")
    assert (first.duration, first.extra["pnc"]) == (1.5, "yes")
    assert rows[1].utt.text == "" and rows[1].utt.offset == 2 and rows[3].problem == "no transcript"
    assert [r.utt.extra.get("segment") for r in rows[:3]] == [None, None, True]
    assert first.audio_filepath == str(tmp_path / "a.wav") and first.sample_rate == 0


# lhotse: what only it could compute is refused with a reason


def recording(path: Path, channels: int = 1) -> dict[str, Any]:
    sources = [{"type": "file", "channels": list(range(channels)), "source": path.name}]
    return {"id": "r", "sources": sources, "sampling_rate": 16000, "num_samples": 64000, "duration": 4.0}


def cut(path: Path, name: str = "c", **more: Any) -> dict[str, Any]:
    spoken = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "hello"}
    spoken |= {"language": "en", "speaker": "anna", "custom": {"mood": "calm"}}
    whole = {"id": name, "start": 1.0, "duration": 2.0, "channel": 0, "type": "MonoCut"}
    return whole | {"supervisions": [spoken], "recording": recording(path)} | more


def gzipped(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(gzip.compress("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows).encode()))
    return path


def test_every_kind_of_cut(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"x")
    good = cut(audio)
    two = good["supervisions"] + [good["supervisions"][0] | {"start": 1.0, "text": "there", "speaker": "ben"}]
    moved = {"recording": recording(audio) | {"transforms": [{"name": "Speed"}]}}
    memory = {"recording": recording(audio) | {"sources": [{"type": "memory", "channels": [0], "source": ""}]}}
    rows = [good, cut(audio, "two", supervisions=list(reversed(two)), start=0.0), cut(audio, "cutoff", duration=0.5)]
    rows += [cut(audio, "mute", supervisions=[]), cut(audio, "speed", **moved), cut(audio, "memory", **memory)]
    rows += [cut(audio, "stereo", recording=recording(audio, 2)), cut(audio, "none", recording=None)]
    tracks = {"mix": [{"cut": good}, {"cut": good, "offset": 1}], "alone": [{"cut": good}]}
    rows += [{"id": name, "type": "MixedCut", "tracks": mixed} for name, mixed in tracks.items()]
    rows += [{"id": "pad", "type": "PaddingCut", "duration": 1.0}, "{broken", "[1]", {"id": "empty"}]
    found = find(Lhotse, gzipped(tmp_path / "cuts_train.jsonl.gz", rows))
    assert len(found) == len(rows) and {r.split for r in found} == {"train"}
    by_id = {r.utt.id: r for r in found}
    assert {name for name, r in by_id.items() if r.problem is None} == {"c", "two", "alone"}
    utt = by_id["c"].utt
    assert (utt.text, utt.offset, utt.duration, utt.speaker_id, utt.language) == ("hello", 1.0, 2.0, "anna", "en")
    assert utt.audio_filepath == str(audio) and utt.extra == {"mood": "calm"} and by_id["two"].utt.extra["segment"]
    assert (by_id["two"].utt.text, by_id["two"].utt.speaker_id) == ("hello there", None)
    assert "beyond" in str(by_id["cutoff"].problem) and by_id["stereo"].problem == "one channel of several"


def test_recordings_with_supervisions(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"x")
    gzipped(tmp_path / "libri_recordings_dev.jsonl.gz", [recording(audio)])
    one = {"id": "s1", "recording_id": "r", "start": 0.25, "duration": 1.5, "channel": 0, "text": "one"}
    two = {"id": "s2", "recording_id": "gone", "start": 0, "duration": 1, "channel": 0, "text": "two"}
    gzipped(tmp_path / "libri_supervisions_dev.jsonl.gz", [one, two])
    rows = find(Lhotse, tmp_path)
    found = [(r.split, r.utt.id, r.utt.offset, r.utt.duration, r.problem) for r in rows]
    assert found == [("libri_dev", "s1", 0.25, 1.5, None), ("libri_dev", "s2", 0.0, 1.0, "no recording")]


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(b"{}" * 999)[:-9])
    with pytest.raises(UserError, match="cuts.jsonl.gz"):
        find(Lhotse, tmp_path)


@pytest.mark.slow  # its import takes seconds
def test_the_library_agrees(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    rng = np.random.default_rng(0)
    for n in range(3):
        sf.write(tmp_path / f"{n}.flac", 0.1 * rng.standard_normal(32000), 16000)
    files = [lhotse.Recording.from_file(tmp_path / f"{n}.flac") for n in range(3)]
    facts = [{"text": f"text {n}", "speaker": f"s{n}", "language": "en"} for n in range(3)]
    spoken = [lhotse.SupervisionSegment(f"u{n}", str(n), 0.25 * n, 1.0, **more) for n, more in enumerate(facts)]
    whole = lhotse.RecordingSet.from_recordings(files), lhotse.SupervisionSet.from_segments(spoken)
    cuts = lhotse.CutSet.from_manifests(*whole).trim_to_supervisions()
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    rows = find(Lhotse, tmp_path / "cuts.jsonl.gz")
    assert len(rows) == 3 and all(r.problem is None for r in rows)
    for row, theirs in zip(rows, lhotse.load_manifest(tmp_path / "cuts.jsonl.gz"), strict=True):
        (said,) = theirs.supervisions
        mine = row.utt
        assert (mine.text, mine.speaker_id, mine.language) == (said.text, said.speaker, said.language)
        wav, _ = sf.read(mine.audio_filepath, start=int(mine.offset * 16000), frames=int(mine.duration * 16000))
        assert np.allclose(wav, theirs.load_audio()[0], atol=1e-6)
