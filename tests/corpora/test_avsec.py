"""The challenge's layouts: which file becomes what, what the metadata give, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_corpora import find, table, write
from tiny_videos import flat, write_video

from rlspeech.corpora.avsec import Avsec
from rlspeech.data.manifest import read_manifest
from rlspeech.stages.prepare import Prepare, run

pytestmark = pytest.mark.slow
NEW = tuple("mix target target_anechoic interferer mono_mix target_mono target_mono_anechoic interferer_mono".split())
OLD = ("mixed", "target", "interferer")


def wav(path: Path, seed: int, seconds: float = 0.6, rate: int = 16000, channels: int = 1) -> None:
    write(path, 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)), rate)


def scene(place: Path, name: str, members: tuple[str, ...] = NEW, seed: int = 0, video: bool = True) -> None:
    for i, member in enumerate(members):
        wav(place / f"{name}_{member}.wav", 100 * seed + i, channels=1 if "mono" in member or members == OLD else 2)
    if video:
        write_video(place / f"{name}_silent.mp4", flat(15, 60 + seed))


def fourth(root: Path) -> Path:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "dev": []}
    for i, (split, name) in enumerate((("train", "S00001"), ("train", "S00002"), ("dev", "S30001"))):
        scene(root / split / "scenes", name, seed=i)
        kinds = ["speech", "noise"] if i else ["music"]
        interferers = [{"position": 1, "time_start": 0, "time_end": 9600, "type": k, "name": f"x{k}"} for k in kinds]
        facts = {"dataset": split, "scene": name, "room": f"R0000{i}", "duration": 9600, "SNR": -2.5 * i}
        rows[split].append(facts | {"target": {"name": f"spk{i}/0001"}, "interferers": interferers, "listener": {}})
    scene(root / "eval" / "scenes", "S40001", ("mix", "mono_mix"), seed=9)
    (root / "metadata").mkdir()
    for split, listed in rows.items():
        (root / "metadata" / f"scenes.{split}.json").write_text(json.dumps(listed))
    return root


@pytest.mark.parametrize("inside", [".", "avsec4"])
def test_the_fourth_challenge(tmp_path: Path, inside: str) -> None:
    fourth(tmp_path / inside)
    rows = table(find(Avsec, tmp_path))
    named = {split: list(found) for split, found in rows.items()}
    assert named == {"train": ["S00001", "S00002"], "valid": ["S30001"], "test": ["S40001"]}
    assert not any(row.problem for found in rows.values() for row in found.values())
    utt = rows["train"]["S00002"].utt
    assert Path(utt.audio_filepath).name == "S00002_mono_mix.wav"
    assert Path(utt.target_filepath or "").name == "S00002_target_mono_anechoic.wav"
    assert Path(utt.video_filepath or "").name == "S00002_silent.mp4" and utt.snr_db == -2.5
    assert utt.extra == {"scene": "S00002", "room": "R00001", "interferers": "speech+noise", "target_name": "spk1/0001"}
    blind = rows["test"]["S40001"].utt
    assert blind.target_filepath is None and blind.snr_db is None and blind.video_filepath


@pytest.mark.parametrize(("channels", "count", "mono"), [("mono", 1, "mono_"), ("binaural", 2, "")])
@pytest.mark.parametrize(("target", "kind"), [("anechoic", "_anechoic"), ("reverberant", "")])
def test_which_files(tmp_path: Path, channels: str, count: int, mono: str, target: str, kind: str) -> None:
    utt = table(find(Avsec, fourth(tmp_path), channels=channels, target=target))["train"]["S00001"].utt
    assert Path(utt.audio_filepath).name == f"S00001_{mono}mix.wav"
    assert Path(utt.target_filepath or "").name == f"S00001_target{mono and '_mono'}{kind}.wav"
    assert sf.info(utt.audio_filepath).channels == sf.info(utt.target_filepath).channels == count


@pytest.mark.parametrize("channels", ["mono", "binaural"])
def test_the_first_three(tmp_path: Path, channels: str) -> None:
    scene(tmp_path / "train" / "scenes", "S00001", OLD, 1)
    scene(tmp_path / "dev" / "scenes", "S00002", OLD, 2)
    write_video(tmp_path / "dev" / "lips" / "S00002_silent.mp4", flat(15))
    interferer = {"type": "noise", "name": "n", "offset": 0, "time_start": 0, "time_end": 1}
    rows = [{"scene": "S00001", "SNR": 4, "interferer": interferer, "pre_samples": 0}]
    (tmp_path / "train" / "scenes.json").write_text(json.dumps(rows))
    found = table(find(Avsec, tmp_path, channels=channels))
    utt = found["train"]["S00001"].utt
    names = [Path(p or "").name for p in (utt.audio_filepath, utt.target_filepath)]
    assert names == ["S00001_mixed.wav", "S00001_target.wav"]
    assert utt.snr_db == 4 and utt.extra["interferers"] == "noise"
    assert "lips" not in (found["valid"]["S00002"].utt.video_filepath or "")
    given = table(find(Avsec, tmp_path, channels=channels, given_lips=True))
    assert Path(given["valid"]["S00002"].utt.video_filepath or "").parent.name == "lips"
    assert Path(given["train"]["S00001"].utt.video_filepath or "").parent.name == "scenes"  # where there are none


def test_one_split_alone(tmp_path: Path) -> None:
    fourth(tmp_path)
    assert set(table(find(Avsec, tmp_path / "dev"))) == {"train", "valid", "test"}  # named inside the corpus: all of it
    scene(tmp_path / "other" / "eval", "S50000", ("mono_mix",))
    assert [(row.split, row.utt.id) for row in find(Avsec, tmp_path / "other")] == [("test", "S50000")]


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    fourth(tmp_path)
    place = tmp_path / "train" / "scenes"
    for i in range(3, 10):
        scene(place, f"S0000{i}", seed=10 + i)
    (place / "S00003_mono_mix.wav").unlink()
    (place / "S00004_target_mono_anechoic.wav").unlink()
    (place / "S00005_silent.mp4").unlink()
    (place / "S00006_silent.mp4").write_bytes(b"")
    (place / "S00007_silent.mp4").write_bytes((place / "S00007_silent.mp4").read_bytes()[:40])
    wav(place / "S00008_target_mono_anechoic.wav", 1, rate=48000)
    (place / "S00009_interferer.wav").unlink()
    # half a reference is an accident, not a test set
    scene(tmp_path / "eval" / "scenes", "S40002", ("mono_mix", "target_mono"), seed=11)
    file = tmp_path / "metadata" / "scenes.train.json"
    file.write_text(json.dumps([*json.loads(file.read_text()), {"scene": "S09999", "SNR": 0}]))
    problems = {row.utt.id: row.problem for row in find(Avsec, tmp_path) if row.problem}
    missing = {"S00003": "mono_mix", "S00004": "target_mono_anechoic", "S00005": "silent"}
    missing["S40002"] = "target_mono_anechoic"
    wanted = {name: f"missing {member}" for name, member in missing.items()}
    wanted |= {"S00006": "video: empty file", "S00007": "video: unreadable", "S09999": "no files of the scene"}
    assert problems == wanted | {"S00008": "mixture and target of different rates"}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[1, 2]", '{"scene": "S00001"}', '[{"scene": 5, "SNR": 1}]', "[" * 5000, "null"),
        '[{"scene": "S00001", "SNR": "loud", "room": [1], "interferers": [3, {"type": 4}], "target": "x"}]',
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    scene(tmp_path / "train" / "scenes", "S00001")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "scenes.train.json").write_text(content)
    row = table(find(Avsec, tmp_path))["train"]["S00001"]
    assert row.problem is None and row.utt.snr_db is None and set(row.utt.extra) <= {"scene"}


def test_prepare_writes_manifests_and_counts(tmp_path: Path) -> None:
    root, out = str(fourth(tmp_path / "corpus")), str(tmp_path / "out")
    summary = run(Prepare(source="avsec4", root=root, out=out, workers=0))
    assert {split: m["rows"] for split, m in summary["manifests"].items()} == {"train": 2, "valid": 1, "test": 1}
    utt = read_manifest(tmp_path / "out" / "train.jsonl")[0]
    assert utt.id == "S00001" and utt.snr_db == 0 and utt.sample_rate == 16000 and utt.duration == pytest.approx(0.6)
    assert utt.extra["interferers"] == "music" and Path(utt.video_filepath or "").is_file()
    assert "prepare lips" in summary["next"]
    assert read_manifest(tmp_path / "out" / "test.jsonl")[0].target_filepath is None


def test_mixtures_without_reference_are_not_held_to_clean_speech(tmp_path: Path) -> None:
    scene(tmp_path / "eval" / "scenes", "S40001", ("mono_mix",))
    n = np.arange(9600)
    loud = np.clip(1.1 * np.sin(n / 40) * (1 + 0.01 * np.sin(n / 7)), -1, 1)
    quiet = np.where(n % 600 < 20, loud, 0.3 * loud)  # 1 % of it is clipped
    sf.write(tmp_path / "eval" / "scenes" / "S40001_mono_mix.wav", quiet, 16000)
    summary = run(Prepare(source="avsec4", root=str(tmp_path), out=str(tmp_path / "out"), workers=0))
    assert summary["manifests"]["test"]["rows"] == 1
