"""The embedded corpus: small, clean, split by voice, text and noise; and its mixtures, the same wherever they are rendered."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import warm

from rlspeech.config import Mixing
from rlspeech.corpora import demo, lips
from rlspeech.corpora.demo import demo_commands, demo_commands_clean
from rlspeech.data.audio import load_audio, rms_dbfs, to_level
from rlspeech.data.batches import open_clips
from rlspeech.data.checks import Limits, judge, measure
from rlspeech.data.manifest import read_manifest
from rlspeech.data.mixing import MixtureSet
from rlspeech.data.video import frames_of, load_lips
from rlspeech.types import Utterance

ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
LISTS = ("clean", "valid_clean", "test_clean", "noise", "test_noise")


@pytest.fixture(scope="module")
def lists() -> dict[str, list[Utterance]]:
    return {name: read_manifest(demo.demo_folder() / f"{name}.jsonl") for name in LISTS}


def test_every_file_is_listed_once_and_sound(lists: dict[str, list[Utterance]]) -> None:
    folder = demo.demo_folder()
    listed = [u.audio_filepath for rows in lists.values() for u in rows]
    assert sorted(listed) == sorted(str(p) for p in folder.rglob("*.flac"))
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 8e6
    digests = set()
    for name, rows in lists.items():
        for utt in rows:
            facts = measure(utt.audio_filepath)
            assert judge(facts, Limits(), kind="noise" if "noise" in name else "speech", utt=utt) is None, utt.id
            assert facts.sample_rate == 16000 and facts.channels == 1 and facts.peak < 1
            digests.add(facts.digest)
    assert len(digests) == len(listed)


def test_speech_is_levelled_and_trimmed(lists: dict[str, list[Utterance]]) -> None:
    for name in ("clean", "valid_clean", "test_clean"):
        for utt in lists[name]:
            wav = load_audio(utt.audio_filepath)
            assert rms_dbfs(wav) == pytest.approx(-25, abs=0.1) and 1.8 < utt.duration < 4.6 and utt.text
            assert rms_dbfs(wav[:6400]) > -60 and rms_dbfs(wav[-6400:]) > -60


def test_the_splits_share_no_voice_and_no_text(lists: dict[str, list[Utterance]]) -> None:
    commands = [read_manifest(demo_commands_clean(part)) for part in ("train", "valid", "test")]
    for parts in ([lists[name] for name in ("clean", "valid_clean", "test_clean")], commands):
        for column in ("speaker_id", "text"):
            sets = [{getattr(u, column) for u in rows} for rows in parts]
            assert sum(map(len, sets)) == len(set.union(*sets))
    kinds = {u.extra["kind"] for u in lists["noise"]}, {u.extra["kind"] for u in lists["test_noise"]}
    assert len(kinds[1] - kinds[0]) >= 4 and kinds[0] & kinds[1]


def test_the_recipe_lies_in_the_package_and_mixes() -> None:
    mixtures = MixtureSet.from_recipe(demo.demo_recipe())
    assert Mixing(**json.loads(demo.demo_recipe().read_text())["mixing"]) == demo.TRAIN
    assert mixtures.mixing == demo.TRAIN and len(mixtures) == 60
    made = mixtures.get(0, 3)
    assert made.noisy.shape == made.target.shape == (32000,)


def samples(manifest: Path) -> list[np.ndarray]:
    files = [p for u in read_manifest(manifest) for p in (u.audio_filepath, u.target_filepath or "")]
    return [sf.read(p, dtype="int16")[0] for p in files]


def test_test_mixtures_are_paired_and_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path / "cache"))
    one, two = demo.demo_test(), demo.demo_test(tmp_path / "out")
    for a, b in zip(samples(one), samples(two), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = read_manifest(one)
    assert len(rows) == 24 and min(u.snr_db or 0 for u in rows) == -2.5 and max(u.snr_db or 0 for u in rows) == 12.5
    for utt in rows:
        noisy, clean = load_audio(utt.audio_filepath), load_audio(utt.target_filepath or "")
        assert len(noisy) == len(clean) and utt.text
        assert rms_dbfs(clean) - rms_dbfs(noisy - clean) == pytest.approx(utt.snr_db, abs=0.1)
    stamp = one.stat().st_mtime_ns
    assert demo.demo_test() == one and one.stat().st_mtime_ns == stamp, "rendered once"
    Path(rows[0].audio_filepath).unlink()
    assert Path(read_manifest(demo.demo_test())[0].audio_filepath).is_file(), "a damaged cache is made again"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [one.parent.name]


def test_validation_mixtures_use_other_voices_than_both(tmp_path: Path) -> None:
    speakers = {u.speaker_id for u in read_manifest(demo.demo_valid(tmp_path))}
    assert speakers == {"kal", "nyc-f1"}


@pytest.mark.parametrize("name", ["file", pytest.param("shut", marks=ROOT)])
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "shut").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path / name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    place = demo.cache_folder()
    assert place.is_dir() and tmp_path not in place.parents


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_noise_can_be_made_again(monkeypatch: pytest.MonkeyPatch, lists: dict[str, list[Utterance]]) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    demo_noise = importlib.import_module("demo_noise")
    for split, name in (("train", "noise"), ("test", "test_noise")):
        assert [u.extra["kind"] for u in lists[name]] == demo_noise.KINDS[split]
    for i in (0, 8):
        utt = lists["noise"][i]
        made = demo_noise.make_noise(utt.extra["kind"], utt.duration, 16000, seed=i)
        np.testing.assert_allclose(to_level(made, -32), load_audio(utt.audio_filepath), atol=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("flite") or not shutil.which("espeak-ng"), reason="no flite and espeak-ng")
def test_the_script_builds_the_whole_folder(tmp_path: Path, lists: dict[str, list[Utterance]]) -> None:
    script = ["sh", str(EXAMPLES / "make-demo-corpus.sh"), str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True, env=os.environ | {"PYTHON": sys.executable})
    for name, rows in lists.items():
        made = read_manifest(tmp_path / f"{name}.jsonl")
        assert [(u.id, u.text, u.speaker_id) for u in made] == [(u.id, u.text, u.speaker_id) for u in rows]
    assert len({str(MixtureSet.from_recipe(p).mixing) for p in (tmp_path / "mix.json", demo.demo_recipe())}) == 1


@pytest.mark.slow
def test_faces_are_drawn_and_say_so(tmp_path: Path) -> None:
    test = read_manifest(demo.demo_test(tmp_path / "a", faces=True))
    assert len(test) == 24 and all(u.extra["video"] == "drawn" and u.extra["talker"] for u in test)
    assert all(len(load_lips(u.lips_filepath or "")) == frames_of(u.duration) for u in test)
    assert json.loads((tmp_path / "a" / "test.meta.json").read_text())["video"] == "drawn"


def test_the_recipe_with_faces_mixes_talkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lips, "draw_mouth", warm.still_mouth)
    recipe = demo.demo_recipe(tmp_path, faces=True)
    clean = read_manifest(tmp_path / "clean.jsonl")
    assert len(clean) == 60 and all(u.lips_filepath for u in clean)
    source = open_clips(recipe, 16000)
    clip = source.clip(0, 3, 2.0)
    assert clip.lips is not None and clip.lips.shape == (50, 96, 96)
    talkers = [source.mixtures.get(0, i).talker_id for i in range(60)]  # type: ignore[attr-defined]
    assert 25 < sum(t is not None for t in talkers) < 58


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_commands_hold_their_keywords(part: str) -> None:
    for utt in read_manifest(demo_commands_clean(part)):
        assert utt.text and sf.info(utt.audio_filepath).samplerate == 16000
        assert len(load_audio(utt.audio_filepath, 16000)) == pytest.approx(16000 * utt.duration, abs=2)
        assert all(f" {k} " in f" {utt.text} " for k in utt.extra["keywords"])


def test_every_condition_is_rendered_the_same_way_twice(tmp_path: Path) -> None:
    first, second = (read_manifest(demo_commands("valid", tmp_path / name)) for name in "ab")
    conditions = Counter(str(u.extra["condition"]) for u in first)
    assert {"noisy", "long", "silence", "noise", "music", "looped"} <= set(conditions)
    assert [(u.id, u.text, u.duration) for u in first] == [(u.id, u.text, u.duration) for u in second]
    sounds = [[load_audio(u.audio_filepath, 16000) for u in rows] for rows in (first, second)]
    assert all((a == b).all() for a, b in zip(*sounds, strict=True))
    assert all(u.text == "" for u in first if u.extra["condition"] in {"silence", "noise", "music"})
    assert all(u.text for u in first if u.extra["condition"] in {"noisy", "long", "looped"})
