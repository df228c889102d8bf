"""Parquet as ``datasets`` writes it: rows that are used, rows that are not, and what is fetched of the Hub."""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile as sf
from tiny_corpora import RATE, sound, voice

from rlspeech.corpora.hub import Hub
from rlspeech.data.audio import load_audio
from rlspeech.files import read_jsonl
from rlspeech.stages.prepare import run
from rlspeech.types import UserError

pq = pytest.importorskip("pyarrow.parquet")


def shard(path: Path, *rows: tuple[int | bytes | None, str | None, str | None], **more: list[Any]) -> None:
    """A file of (seed of a voice, or bytes; path; text), two rows in a row group."""
    from pyarrow import array, binary, field, string, struct, table

    path.parent.mkdir(parents=True, exist_ok=True)
    sounds = list[dict[str, Any]]()
    for data, name, _ in rows:
        if isinstance(data, int):
            sf.write(file := BytesIO(), voice(data), RATE, format="FLAC" if data == 2 else "WAV")
            data = file.getvalue()
        sounds.append({"bytes": data, "path": name})
    speech = array(sounds, struct([field("bytes", binary()), field("path", string())]))
    pq.write_table(table({"speech": speech, "sentence": [text for *_, text in rows], **more}), path, row_group_size=2)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of one subset, with rows of every bad kind, in ``set`` of the working folder."""
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "set/inside.wav", 7)
    sound(tmp_path / "outside.wav", 8)
    good = (1, "../../etc/passwd.wav", "one"), (2, "a.flac", "two"), (None, "../inside.wav", "")
    bad = (
        (None, None, "t"),
        (b"no", "x.wav", "t"),
        (None, "../../outside.wav", "t"),
        (None, "gone.wav", "t"),
        (4, "b", None),
    )
    more: dict[str, list[Any]] = {"speaker": [*range(8)], "target_filepath": ["/etc/passwd"] * 8, "tags": [["x"]] * 8}
    shard(
        tmp_path / "set/data/train-00000-of-00002.parquet", *good, *bad, mark=[0.5, float("nan"), *[None] * 6], **more
    )
    shard(tmp_path / "set/data/train-00001-of-00002.parquet", (5, "a.flac", "five"))
    shard(tmp_path / "set/data/test-00000-of-00001-0a1b.parquet", (6, None, "six"))
    return tmp_path / "set"


def prepare(root: Path | str, **more: Any) -> dict[str, Any]:
    return run(Hub(root=str(root), **{"out": "out", "workers": 0, **more}))


def test_rows_become_files_and_bad_ones_cost_themselves(root: Path) -> None:
    (root / "data/train-00002-of-00002.parquet").write_bytes(b"PAR1 torn")
    summary, out = prepare(root), root.parent / "out"
    first, second, third, last = rows = read_jsonl(out / "train.jsonl")
    assert [r["text"] for r in rows] == ["one", "two", "", "five"]
    assert first["id"] == "passwd" and first["speaker_id"] == "0" and first["mark"] == 0.5
    assert not {"target_filepath", "tags"} & first.keys() and "mark" not in second and last["id"].startswith("a-")
    paths = [(out / r["audio_filepath"]).resolve() for r in rows]
    assert paths.pop(2) == root / "inside.wav" and all(p.is_relative_to(out / "audio/train") for p in paths)
    assert [p.suffix for p in paths] == [".wav", ".flac", ".wav"]
    assert load_audio(paths[1]) == pytest.approx(voice(2), abs=1e-4)
    dropped = {r["id"]: r["reason"].partition(":")[0] for r in read_jsonl(out / "dropped.jsonl")}
    expected = {"train-00000-of-00002_0000003": "no audio", "x": "unreadable", "outside": "a path outside the folder"}
    expected |= {"gone": "missing file", "b": "no transcript", "train-00002-of-00002": "unreadable file"}
    assert dropped == expected and summary["manifests"]["train"]["dropped"] == 6 and "--task asr" in summary["next"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("audio/**/*.*")}
    assert prepare(root)["checked"] == 1 and read_jsonl(out / "train.jsonl") == rows, "only the missing file"
    assert {p: p.stat().st_mtime_ns for p in out.rglob("audio/**/*.*")} == before


def test_what_is_not_there_is_refused(root: Path) -> None:
    Path("e").mkdir()
    named = {"--split": {"splits": ["dev"]}, "--subset": {"subset": "en"}, "--text-column": {"text_column": "b"}}
    named |= {"--audio-column": {"audio_column": "b"}, "path": {"root": "out/a/b"}, "to_parquet": {"root": "e"}}
    for hint, more in named.items():
        with pytest.raises(UserError, match=f"(?s)try: .*{hint}"):
            prepare(**{"root": root} | more)


def test_of_the_hub_no_more_is_fetched_than_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = list[tuple[Any, ...]]()
    shutil.copytree(root / "data", root / "en")

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            if name != "user/corpus":
                raise ConnectionError("no route\nto host")
            files = [SimpleNamespace(rfilename=str(p.relative_to(root))) for p in root.rglob("*.*")]
            return SimpleNamespace(sha="c0ffee", siblings=files)

    def download(name: str, file: str, **where: str) -> str:
        fetched.append((name, file, *where.values()))
        return str(root / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, hf_hub_download=download))
    for name, hint in (("user/corpus", "--subset"), ("user/other", "HF_TOKEN")):
        with pytest.raises(UserError) as error:
            prepare(name)
        assert hint in error.value.try_this and not fetched
    prepare("user/corpus", subset="en", splits=["train"], limit=8)
    assert fetched == [("user/corpus", "en/train-00000-of-00002.parquet", "dataset", "c0ffee")]
    assert [r["text"] for r in read_jsonl(Path("out/train.jsonl"))] == ["one", "two"], "files of rows are not fetched"
