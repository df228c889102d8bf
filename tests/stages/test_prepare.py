"""prepare, end to end: every kind of bad input is dropped, a killed run goes on where it was, the same input gives the same output."""

from __future__ import annotations

import errno
import gzip
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_cli import called, refused, rows_of
from tiny_corpora import RATE, manifest, sound, voice, write

from rlspeech.config import Mixing
from rlspeech.corpora import base, mix
from rlspeech.data.audio import load_audio, resample, rms_dbfs
from rlspeech.data.checks import Limits
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.data.mixing import MixtureSet
from rlspeech.files import read_jsonl
from rlspeech.stages.prepare import Prepare, run
from rlspeech.types import UserError


def corpus(root: Path, clean: int = 4, noise: int = 3) -> None:
    for i in range(clean):
        sound(root / "clean" / f"c{i}.wav", i)
    for i in range(noise):
        sound(root / "noise" / f"n{i}.wav", 100 + i, 0.7)


def prepare(source: str, out: Path, **more: Any) -> dict[str, Any]:
    return run(Prepare(source=source, out=str(out), **({"workers": 0} | more)))  # type: ignore[arg-type]


def mixed(root: Path, out: Path, **more: Any) -> dict[str, Any]:
    return prepare("mix", out, clean=[str(root / "clean")], noise=[str(root / "noise")], **more)


def bad_files(folder: Path) -> dict[str, str]:
    """One file of every bad kind -> the reason it must be dropped for."""
    wav, nan = voice(51), voice(50)
    nan[100] = np.nan
    write(folder / "nan.wav", nan, subtype="FLOAT")
    write(folder / "slow.wav", voice(54, rate=8000), 8000)
    sounds = {
        "silent": (np.zeros(RATE), "silent"),
        "cancel": (np.stack([wav, -wav], axis=1), "silent"),
        "clipped": (np.clip(voice(52) * 20, -1, 1), "clipped"),
        "short": (voice(53, 0.05), "too short"),
        "upsampled": (resample(voice(55, rate=8000), 8000, 16000), "bandwidth below the rate"),
        "nothing": (np.zeros(0), "no samples"),
        "zz_copy": (voice(0), "duplicate"),
    }
    for name, (made, _) in sounds.items():
        write(folder / f"{name}.wav", made)
    (folder / "text.flac").write_text("not audio")
    (folder / "dangling.wav").symlink_to(folder / "gone")
    for suffix in ("wav", "flac"):
        path = write(folder / f"torn.{suffix}", voice(56 + (suffix == "wav")))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reasons = {"nan": "NaN or infinite samples", "slow": "rate too low", "text": "unreadable"}
    return reasons | {"dangling": "missing file"} | {name: reason for name, (_, reason) in sounds.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_of_every_kind_is_dropped_alone(tmp_path: Path, workers: int) -> None:
    corpus(tmp_path)
    write(tmp_path / "clean" / "stereo.wav", np.stack([voice(60), voice(61)], axis=1))
    write(tmp_path / "clean" / "fast.wav", voice(62, rate=48000), 48000)
    expected = bad_files(tmp_path / "clean")
    summary = mixed(tmp_path, tmp_path / "out", workers=workers)
    assert {u.id for u in read_manifest(tmp_path / "out" / "clean.jsonl")} == {"c0", "c1", "c2", "c3", "stereo", "fast"}
    dropped = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "dropped.jsonl")}
    assert {k: row["reason"] for k, row in dropped.items() if k != "torn"} == expected
    assert dropped["torn"]["reason"] in {"truncated", "unreadable"} and all(row["detail"] for row in dropped.values())
    assert summary["manifests"]["clean"]["dropped"] == len(expected) + 2 == sum(summary["dropped"].values())
    meta = json.loads((tmp_path / "out" / "clean.meta.json").read_text())
    assert meta["rows"] == 6 and meta["reasons"]["silent"] == 2 and meta["settings"]["mixing"]["clip_s"] == 2.0
    assert meta["hours"] == pytest.approx(6 / 3600, abs=1e-6) and meta["seed"] == 0
    assert summary["multichannel"] == 1


def test_the_recipe_mixes_and_is_found(tmp_path: Path) -> None:
    corpus(tmp_path)
    room = np.exp(-np.arange(2000) / 300) * np.random.default_rng(0).standard_normal(2000) * 0.3
    write(tmp_path / "rir" / "r.wav", room)
    mixing = Mixing(snr_db=(0, 5), level_dbfs=(-30, -20), reverb=1.0, clip_s=0.5)
    summary = mixed(tmp_path, tmp_path / "out", rir=[str(tmp_path / "rir")], mixing=mixing)
    assert find_manifest(tmp_path / "out") == Path(summary["recipe"]) and "mix.json" in summary["next"]
    made = MixtureSet.from_recipe(summary["recipe"]).get(0, 0)
    assert len(made.noisy) == 8000 and 0 <= made.snr_db <= 5 and made.rir_id == "r" and -31 < rms_dbfs(made.noisy) < -19


def test_nothing_left_is_the_users_error(tmp_path: Path) -> None:
    write(tmp_path / "clean" / "a.wav", np.zeros(RATE))
    write(tmp_path / "noise" / "n.wav", voice(1))
    with pytest.raises(UserError) as error:
        mixed(tmp_path, tmp_path / "out")
    assert "nothing is left of clean" in error.value.what and "1 silent" in error.value.why
    assert not (tmp_path / "out" / "clean.jsonl").exists() and (tmp_path / "out" / "dropped.jsonl").exists()
    for options in ({"root": str(tmp_path / "clean")}, {"root": str(tmp_path / "gone")}, {}):
        with pytest.raises(UserError):
            prepare("folder", tmp_path / "out", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out"):
        mixed(tmp_path, tmp_path / "file" / "out")


def outputs(folder: Path) -> dict[str, bytes]:
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in {"checks.jsonl", "rendered.jsonl"})
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


def test_the_same_input_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    corpus(tmp_path)
    for name, workers in (("a", 0), ("b", 2)):
        mixed(tmp_path, tmp_path / name, render=6, seed=3, workers=workers)
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    mixed(tmp_path, tmp_path / "c", render=6, seed=4)
    assert outputs(tmp_path / "c").keys() == outputs(tmp_path / "a").keys()
    noisy = {k: v for k, v in outputs(tmp_path / "a").items() if k.startswith("audio/noisy")}
    assert noisy and all(outputs(tmp_path / "c")[k] != v for k, v in noisy.items())
    mixed(tmp_path, tmp_path / "a", render=6, seed=4)  # other settings do not reuse old mixtures
    assert outputs(tmp_path / "a") == outputs(tmp_path / "c")


def test_rendered_mixtures_are_paired_and_as_asked(tmp_path: Path) -> None:
    corpus(tmp_path)
    mixing = Mixing(snr_db=(3, 9), level_dbfs=(-28, -22))
    summary = mixed(tmp_path, tmp_path / "out", render=10, render_s=0.5, mixing=mixing)
    assert find_manifest(tmp_path / "out").name == "manifest.jsonl"
    assert summary["recipe"] is None and "manifest.jsonl" in summary["next"]
    rows = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert len(rows) == 10 and {u.extra["clean_id"] for u in rows} == {"c0", "c1", "c2", "c3"}
    for utt in rows:
        noisy, clean = load_audio(utt.audio_filepath), load_audio(utt.target_filepath or "")
        assert len(noisy) == len(clean) == 8000 and utt.snr_db is not None and 3 <= utt.snr_db <= 9
        assert rms_dbfs(clean) - rms_dbfs(noisy - clean) == pytest.approx(utt.snr_db, abs=0.1)
        assert -28.1 < rms_dbfs(noisy) < -21.9


def test_a_second_run_reads_no_audio_whatever_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path)
    assert mixed(tmp_path, tmp_path / "out")["checked"] == 7
    monkeypatch.setattr(base, "measure", lambda path, floor_db: pytest.fail(f"{path} was read again"))
    again = mixed(tmp_path, tmp_path / "out")
    assert (again["checked"], again["known"]) == (0, 7)
    with pytest.raises(UserError, match="left"):
        mixed(tmp_path, tmp_path / "out", limits=Limits(min_s=5))
    monkeypatch.undo()
    write(tmp_path / "clean" / "c0.wav", voice(70, 1.1))
    changed = mixed(tmp_path, tmp_path / "out")
    assert (changed["checked"], changed["known"]) == (1, 6), "a changed file is read again"


DRIVER = """
import json, sys, time
from rlspeech.corpora import base, mix
from rlspeech.stages.prepare import Prepare, run
slow = lambda f: lambda *a, **k: (time.sleep(0.15), f(*a, **k))[1]
base.measure, mix.render_one = slow(base.measure), slow(mix.render_one)
print(json.dumps(run(Prepare(**json.loads(sys.argv[1])))))
"""


def start(config: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stop_at(process: subprocess.Popen[str], journal: Path, rows: int, how: signal.Signals) -> int:
    """Send a signal when the journal has some rows; how many it has then."""
    for _ in range(6000):
        if journal.exists() and len(read_jsonl(journal)) >= rows:
            break
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(60)
    return len(read_jsonl(journal))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_without_repeating_work(tmp_path: Path, how: signal.Signals) -> None:
    corpus(tmp_path, clean=13, noise=3)
    config: dict[str, Any] = {"source": "mix", "out": str(tmp_path / "out"), "render": 16, "seed": 1, "workers": 0}
    config |= {name: [str(tmp_path / name)] for name in ("clean", "noise")}
    process = start(config)
    done = stop_at(process, tmp_path / "out" / "checks.jsonl", 5, how)
    assert 5 <= done < 16 and not (tmp_path / "out" / "sources").exists() and process.returncode != 0
    if how == signal.SIGINT:
        assert process.stderr and "the same command goes on" in process.stderr.read()
    process = start(config)
    rendered = stop_at(process, tmp_path / "out" / "rendered.jsonl", 5, how)
    assert 5 <= rendered < 16 and not (tmp_path / "out" / "manifest.jsonl").exists()
    assert len(read_jsonl(tmp_path / "out" / "checks.jsonl")) == 16
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "audio").rglob("mix_00000[0-3].flac")}
    summary = run(Prepare(**config))
    assert (summary["checked"], summary["known"]) == (0, 16) and summary["manifests"]["manifest"]["rows"] == 16
    assert len(kept) == 8 and all(p.stat().st_mtime_ns == t for p, t in kept.items()), "finished mixtures stay"
    whole = run(Prepare(**(config | {"out": str(tmp_path / "whole")})))
    assert whole["checked"] == 16
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_full_disk_says_what_was_kept_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path)
    save, calls = mix.save_audio, []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)

    monkeypatch.setattr(mix, "save_audio", full)
    with pytest.raises(UserError) as error:
        mixed(tmp_path, tmp_path / "out", render=8)
    assert "disk is full" in error.value.why and "3 of 8 mixtures were kept" in error.value.why
    monkeypatch.undo()
    assert mixed(tmp_path, tmp_path / "out", render=8)["manifests"]["manifest"]["rows"] == 8


def test_pairs_are_dropped_for_either_side_and_for_lengths(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / "noisy" / f"p{i}.wav", voice(i))
        write(tmp_path / "clean" / f"p{i}.wav", voice(10 + i))
    write(tmp_path / "clean" / "p1.wav", voice(11, 1.3))
    write(tmp_path / "clean" / "p2.wav", np.zeros(RATE))
    (tmp_path / "noisy" / "p3.wav").write_bytes(b"")
    (tmp_path / "clean" / "p4.wav").unlink()
    summary = prepare("pairs", tmp_path / "out", noisy=str(tmp_path / "noisy"), clean=[str(tmp_path / "clean")])
    reasons = ("empty file", "no clean partner", "pair of different lengths", "target: silent")
    assert summary["dropped"] == dict.fromkeys(reasons, 1)
    rows = read_manifest(find_manifest(tmp_path / "out"))
    assert [u.id for u in rows] == ["p0"] and rows[0].target_filepath == str(tmp_path / "clean" / "p0.wav")
    assert summary["next"].startswith("rlspeech pretrain")


def test_a_manifest_that_claims_otherwise_is_not_believed(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 0.6), ("c", 1.0), ("d", 1.5)):
        write(tmp_path / f"{name}.wav", voice(ord(name), seconds))
    rates = {"c": 48000}
    rows = [{"id": n, "audio_filepath": f"{n}.wav", "sample_rate": rates.get(n, RATE), "mos": 3} for n in "abcd"]
    manifest(tmp_path / "m.jsonl", rows)
    summary = prepare("folder", tmp_path / "out", root=str(tmp_path / "m.jsonl"))
    wrong = ("longer than the manifest says", "rate differs from the manifest", "shorter than the manifest says")
    assert summary["dropped"] == dict.fromkeys(wrong, 1)
    kept = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [u.id for u in kept] == ["a"] and kept[0].extra == {"mos": 3}


def test_a_corpus_in_the_dns_layout(tmp_path: Path) -> None:
    base = tmp_path / "datasets"
    for i in range(3):
        write(base / "clean" / "read_speech" / f"book_{i}_reader_{i}.wav", voice(i))
        write(base / "noise" / f"n{i}.wav", voice(20 + i))
        write(base / "test_set" / "synthetic" / "no_reverb" / "noisy" / f"x_snr{i}_tl-25_fileid_{i}.wav", voice(30 + i))
        write(base / "test_set" / "synthetic" / "no_reverb" / "clean" / f"clean_fileid_{i}.wav", voice(40 + i))
    write(base / "test_set" / "real_recordings" / "real.wav", voice(60))
    write(base / "noise" / "leak.wav", voice(31))  # a test recording among the training noise
    summary = prepare("dns", tmp_path / "out", root=str(tmp_path))
    counts = {k: m["rows"] for k, m in summary["manifests"].items()}
    assert counts == {"clean": 3, "noise": 3, "test_no_reverb": 3, "real": 1}
    assert summary["dropped"] == {"duplicate": 1} and read_jsonl(tmp_path / "out" / "dropped.jsonl")[0]["id"] == "leak"
    assert [u.snr_db for u in read_manifest(tmp_path / "out" / "test_no_reverb.jsonl")] == [0, 1, 2]
    assert len(MixtureSet.from_recipe(find_manifest(tmp_path / "out"))) == 3


def test_a_corpus_in_the_voicebank_layout(tmp_path: Path) -> None:
    files = (("trainset_28spk", "p226_001"), ("trainset_28spk", "p228_001"), ("testset", "p232_001"))
    for i, (part, name) in enumerate(files):
        write(tmp_path / f"noisy_{part}_wav" / f"{name}.wav", voice(i, rate=48000), 48000)
        write(tmp_path / f"clean_{part}_wav" / f"{name}.wav", voice(10 + i, rate=48000), 48000)
    summary = prepare("voicebank", tmp_path / "out", root=str(tmp_path))
    assert {k: m["rows"] for k, m in summary["manifests"].items()} == {"train": 1, "valid": 1, "test": 1}
    assert "train.jsonl --valid" in summary["next"] and find_manifest(tmp_path / "out").name == "train.jsonl"


def test_transcribed_corpora(tmp_path: Path) -> None:
    for i in range(3):
        sound(tmp_path / "audio" / f"a{i}.wav", i)
    (tmp_path / "list.tsv").write_text("path\tsentence\na0.wav\thello\na1.wav\t\n")
    texts = str(tmp_path / "list.tsv")
    listed = prepare("folder", tmp_path / "listed", root=str(tmp_path / "audio"), text=texts)
    assert [(u.id, u.text) for u in read_manifest(find_manifest(tmp_path / "listed"))] == [("a0", "hello"), ("a1", "")]
    assert listed["dropped"] == {"no transcript": 1} and "--task asr" in listed["next"]
    data = tmp_path / "data" / "test"
    data.mkdir(parents=True)
    (data / "wav.scp").write_text(f"r {tmp_path}/audio/a0.wav\n")
    (data / "text").write_text("u1 hello\nu2 there\nu3 never\n")
    (data / "segments").write_text("u1 r 0.0 0.45\nu2 r 0.5 1.0\nu3 r 0.9 5.0\n")
    made = prepare("kaldi", tmp_path / "kaldi", root=str(tmp_path / "data"))
    rows = read_manifest(tmp_path / "kaldi" / "test.jsonl")
    assert [(u.id, u.offset, u.duration) for u in rows] == [("u1", 0.0, 0.45), ("u2", 0.5, 0.5)]
    assert made["dropped"] == {"shorter than the manifest says": 1} and made["checked"] == 1
    assert made["next"].startswith("rlspeech eval --task asr")


def test_a_tar_is_read_where_it_stands(tmp_path: Path) -> None:
    for i in range(3):
        sound(tmp_path / "in" / f"a{i}.wav", i)
    (tmp_path / "in" / "a0.json").write_text('{"text": "one", "speaker_id": "s"}')
    (tmp_path / "in" / "a1.txt").write_text("two")
    (tmp_path / "in" / "a3.wav").write_bytes(b"no sound")
    tar = tmp_path / "tars" / "c.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as file:
        file.add(tmp_path / "in", ".")
    prepare("folder", tmp_path / "out", root=str(tar.parent))
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "manifest.jsonl")}
    assert {k: row.get("text") for k, row in rows.items()} == {"a0": "one", "a1": "two", "a2": None}
    assert rows["a0"]["audio_filepath"] == "../tars/c.tar/a0.wav" and rows["a0"]["speaker_id"] == "s"
    assert prepare("folder", tmp_path / "out", root=str(tar))["checked"] == 0
    scores = [called("reward", path, "--reward", "reward_plugins:loudness") for path in (tmp_path / "in", tar)]
    values = [[row.get("reward_plugins:loudness") for row in rows_of(made["scores"])] for made in scores]
    assert values[0] == values[1] and None not in values[0][:3] and values[0][3] is None
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    assert "compressed" in refused("reward", tar, "--reward", "reward_plugins:loudness")


def test_files_with_one_stem_get_ids_of_their_own(tmp_path: Path) -> None:
    for i, name in enumerate(("a.wav", "a.flac", "b/c.wav", "b_c.wav")):
        write(tmp_path / "in" / name, voice(i))
    prepare("folder", tmp_path / "in" / "out", root=str(tmp_path / "in"))
    assert len({u.id for u in read_manifest(tmp_path / "in" / "out" / "manifest.jsonl")}) == 4


def test_a_file_that_crashes_its_worker_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path)
    measure = base.measure

    def sometimes(path: str, floor_db: float) -> Any:
        if path.endswith("c1.wav"):
            raise RuntimeError("the worker process died (exit code -11)")
        return measure(path, floor_db)

    monkeypatch.setattr(base, "measure", sometimes)
    assert mixed(tmp_path, tmp_path / "out")["dropped"] == {"unreadable": 1}
    monkeypatch.undo()
    again = mixed(tmp_path, tmp_path / "out")
    assert again["dropped"] == {} and again["checked"] == 1


def test_prepare_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = prepare("demo", tmp_path)
    counts = {k: m["rows"] for k, m in summary["manifests"].items()}
    assert counts == {"clean": 60, "noise": 16, "valid": 24, "test": 24}
    assert len(MixtureSet.from_recipe(find_manifest(tmp_path))) == 60
    assert find_manifest(tmp_path, recipe=False).name == "test.jsonl"
    printed = capsys.readouterr()
    assert "valid" in printed.out and "next: rlspeech pretrain" in printed.err
    json.dumps(summary)


@pytest.mark.realdata
def test_real_speech_and_noise_pass_the_checks(realdata: Path, tmp_path: Path) -> None:
    clean, noise = realdata / "speech" / "librispeech_train_clean_100", realdata / "noise" / "esc10"
    summary = prepare("mix", tmp_path, clean=[str(clean)], noise=[str(noise)], workers=2)
    rows = sum(m["rows"] for m in summary["manifests"].values())
    assert rows > 100 and sum(summary["dropped"].values()) < 0.05 * rows
