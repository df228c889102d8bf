"""prepare join: paths, ids, columns and samples of several manifests as one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_corpora
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cli import called

from rlspeech.corpora.join import Join, Joined, _tags
from rlspeech.data.manifest import read_manifest
from rlspeech.files import read_jsonl
from rlspeech.stages import prepare
from rlspeech.types import UserError, Utterance


def manifest(path: Path, ids: list[str], **columns: Any) -> Path:
    facts = {"duration": 2.0, "text": "one two"} | columns
    return tiny_corpora.manifest(path, [{"id": i, "audio_filepath": f"wavs/{i}.wav"} | facts for i in ids])


def join(tmp_path: Path, *manifests: str | Path, **rest: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = prepare.run(Join(manifests=[str(m) for m in manifests], out=str(tmp_path / "deep" / "out"), **rest))
    return summary, list(read_jsonl(tmp_path / "deep" / "out" / "manifest.jsonl"))


def test_paths_lead_from_the_result_to_the_same_files(tmp_path):
    a = manifest(tmp_path / "a" / "test.jsonl", ["x", "y"], lips_filepath="lips.npz")
    b = manifest(tmp_path / "other" / "b" / "train.jsonl", ["z"], keywords=["two"])
    summary, rows = join(tmp_path, a, b.parent)  # a folder stands for its manifest
    places = ["a/wavs/x.wav", "a/wavs/y.wav", "other/b/wavs/z.wav"]
    assert [r["audio_filepath"] for r in rows] == [f"../../{place}" for place in places]
    assert rows[0]["lips_filepath"] == "../../a/lips.npz" and rows[2]["keywords"] == ["two"]
    whole = read_manifest(tmp_path / "deep" / "out" / "manifest.jsonl")
    assert [u.audio_filepath for u in whole] == [u.audio_filepath for p in (a, b) for u in read_manifest(p)]
    assert summary["manifests"]["manifest"]["rows"] == 3 and summary["renamed"] == 0
    assert "eval --task asr" in summary["next"]
    meta = json.loads((tmp_path / "deep" / "out" / "manifest.meta.json").read_text())
    assert [j["rows"] for j in meta["joined"]] == [2, 1] and meta["rows"] == 3


def test_ids_that_several_use_are_told_apart_by_their_folders(tmp_path):
    a, b = manifest(tmp_path / "a" / "test.jsonl", ["x", "only"]), manifest(tmp_path / "b" / "test.jsonl", ["x", "a_x"])
    summary, rows = join(tmp_path, a, b)
    assert [r["id"] for r in rows] == ["a_x_2", "only", "b_x", "a_x"] and summary["renamed"] == 2
    assert [Path(r["audio_filepath"]).name for r in rows] == ["x.wav", "only.wav", "x.wav", "a_x.wav"]


def test_folders_of_one_name_are_told_apart_by_their_files_and_numbers(tmp_path):
    one, two = manifest(tmp_path / "d" / "clean.jsonl", ["x"]), manifest(tmp_path / "d" / "noisy.jsonl", ["x"])
    assert [r["id"] for r in join(tmp_path, one, two)[1]] == ["d_clean_x", "d_noisy_x"]
    assert [r["id"] for r in join(tmp_path, one, one)[1]] == ["d_clean_1_x", "d_clean_2_x"]  # twice the weight


def test_columns_are_set_by_manifest(tmp_path):
    a = manifest(tmp_path / "a" / "m.jsonl", ["x"], condition="old")
    b, c = manifest(tmp_path / "b" / "m.jsonl", ["y"]), manifest(tmp_path / "with:k=v" / "m.jsonl", ["z"])
    several = f"{b.parent}:condition=a, b,snr_db=5,language=007,weight=0.5,text="
    _, rows = join(tmp_path, f"{a}:condition=clean", several, c)
    assert rows[0]["condition"] == "clean"
    columns = {"condition": "a, b", "snr_db": 5, "language": "007", "weight": 0.5, "text": ""}
    assert rows[1] | columns == rows[1]
    assert "condition" not in rows[2]  # a path that is there is only a path


def test_a_sample_is_the_seeds_and_keeps_the_order(tmp_path):
    order = [f"a{i}" for i in range(30)] + ["b0", "b1"]
    a, b = manifest(tmp_path / "a" / "m.jsonl", order[:30]), manifest(tmp_path / "b" / "m.jsonl", order[30:])
    draws = ((10, 0), (10, 0), (10, 1), (99, 0))
    ids = [[r["id"] for r in join(tmp_path, a, b, sample=n, seed=s)[1]] for n, s in draws]
    assert ids[0] == ids[1] != ids[2] and [len(i) for i in ids] == [10, 10, 10, 32]
    assert all(i == sorted(i, key=order.index) for i in ids)


IDS = ["x", "a_x", "a_x_2", "b_x", "a_m_x", "é", "x" * 115]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(IDS), unique=True, min_size=1), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", "b", "a_m"]), min_size=4, max_size=4),
)
def test_ids_of_the_result_are_always_unique(ids, folders):
    paths = [Path(f) / "m.jsonl" for f in folders[: len(ids)]]
    parts = [
        SimpleNamespace(tag=tag, rows=lambda names=names: (Utterance(i, "x.wav", 1.0, 16000) for i in names))
        for tag, names in zip(_tags(paths), ids, strict=True)
    ]
    joined = Joined(parts)
    before, after = [i for names in ids for i in names], [u.id for u in joined]
    assert len(set(after)) == len(after) and joined.renamed == sum(before.count(i) > 1 for i in before)
    assert all(new == old for new, old in zip(after, before, strict=True) if before.count(old) == 1)


def test_mistakes_are_refused(tmp_path):
    a = manifest(tmp_path / "a" / "manifest.jsonl", ["x"])
    for manifests, out, words in [
        ([], "out", "manifests"),
        ([a, tmp_path / "nothing"], "out", "nothing"),
        ([f"{a}:duration=3"], "out", "duration"),
        ([f"{a}:snr_db=high"], "out", "snr_db"),
        ([a], "a", "manifest.jsonl"),
    ]:
        with pytest.raises(UserError, match=f"(?s){words}.*try: "):
            prepare.run(Join(manifests=[str(m) for m in manifests], out=str(tmp_path / out)))


def test_the_command(tmp_path):
    a, b = manifest(tmp_path / "a" / "test.jsonl", ["x"]), manifest(tmp_path / "b" / "test.jsonl", ["x"])
    called("prepare", "join", a, f"{b}:condition=noisy", *"--sample 2 --seed 3 --out".split(), tmp_path / "out")
    rows = list(read_jsonl(tmp_path / "out" / "manifest.jsonl"))
    assert [(r["id"], r.get("condition")) for r in rows] == [("a_x", None), ("b_x", "noisy")]
