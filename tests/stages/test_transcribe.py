"""``transcribe``: files, folders and manifests, long files in pieces, bad files that fail alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_recognisers import RATE, Counting, tiny

from rlspeech.config import Sampling
from rlspeech.data.manifest import read_manifest
from rlspeech.rewards.recognisers import Recogniser, Transcript, join_texts
from rlspeech.stages import transcribe
from rlspeech.stages.transcribe import Transcribe
from rlspeech.tasks.asr.task import Asr
from rlspeech.types import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Asr, "load", lambda *a, **k: (Counting(), {}))
    monkeypatch.setattr(Counting, "batches", [])
    monkeypatch.setattr(Counting, "asked", [])
    home = tmp_path / "in"
    (home / "sub").mkdir(parents=True)
    for name, seconds in (("a.wav", 0.5), ("sub/b.flac", 1.0), ("tiny.wav", 0.05), ("long.wav", 9.0)):
        wav = 0.1 * np.random.default_rng(1).standard_normal(int(seconds * RATE)).astype(np.float32)
        sf.write(home / name, wav, RATE)
    (home / "broken.wav").write_bytes(b"RIFF of nothing")
    sf.write(home / "empty.wav", np.zeros(0), RATE)
    return home


def ask(*inputs: Path | str, **changes: Any) -> dict[str, Any]:
    return transcribe.run(Transcribe(inputs=[str(i) for i in inputs], device="cpu", **changes))


def test_one_file_is_a_line_and_several_carry_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(folder / "a.wav")
    assert capsys.readouterr().out == "5\n"
    ask(folder / "a.wav", folder / "sub")
    assert capsys.readouterr().out == "a\t5\nb\t10\n"
    (folder / "odd").mkdir()
    for name in ("a\tb\nc", "esc\x1b[31m"):
        sf.write(folder / "odd" / f"{name}.wav", np.full(RATE, 0.01), RATE)
    ask(folder / "odd")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["a\\tb\\nc", "esc\\x1b[31m"] and all(len(row) == 2 for row in rows)


def test_a_folder_with_bad_files(folder: Path, tmp_path: Path) -> None:
    made = ask(folder, out=str(tmp_path / "out"), batch=3)
    assert made["transcribed"] == 4 and made["failed"] == 2 and made["skipped"] == 0
    assert {Path(k).name for k in made["errors"]} == {"broken.wav", "empty.wav"}
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.txt"))
    assert written == ["a.txt", "long.txt", "sub/b.txt", "tiny.txt"]
    assert (tmp_path / "out" / "a.txt").read_text() == "5\n" and (tmp_path / "out" / "tiny.txt").read_text() == "1\n"
    assert max(Counting.batches) <= 3
    again = ask(folder, out=str(tmp_path / "out"))
    assert again["skipped"] == 4 and again["transcribed"] == 0
    with pytest.raises(UserError, match="2 files"):
        ask(folder / "broken.wav", folder / "gone.wav")


def test_rows_are_a_manifest_with_the_pieces_of_long_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "said.jsonl"
    ask(folder, out=str(out), batch=2)
    rows = {r["id"]: r for r in map(json.loads, out.read_text().splitlines())}
    long = rows["long"]
    assert long["duration"] == pytest.approx(9.0, abs=0.01) and len(long["pieces"]) >= 5
    assert all(a["end"] == b["start"] for a, b in zip(long["pieces"], long["pieces"][1:], strict=False))
    assert long["text"] == " ".join(p["text"] for p in long["pieces"]) and "pieces" not in rows["a"]
    assert {u.id: u.text for u in read_manifest(out)}["a"] == "5"
    # killed while writing
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:2]) + '{"id": "to')
    assert ask(folder, out=str(out))["skipped"] == 2
    assert len(read_manifest(out)) == 4


def test_a_manifest_keeps_its_columns_and_stretches(folder: Path, tmp_path: Path) -> None:
    data = folder / "m.jsonl"
    row = {"id": "x", "audio_filepath": "long.wav", "duration": 0.7, "offset": 1.0, "sample_rate": RATE}
    row |= {"speaker_id": "s", "text": "truth"}
    data.write_text(json.dumps(row) + "\n")
    made = ask(data, out=str(tmp_path / "o.jsonl"))["results"][0]
    assert made["text"] == "7" and made["speaker_id"] == "s" and made["offset"] == 1.0
    with pytest.raises(UserError, match="overwritten"):
        ask(data, out=str(data))
    (tmp_path / "other.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="--overwrite"):
        ask(data, out=str(tmp_path / "other.jsonl"))


def test_language_and_prompt_reach_the_model(folder: Path) -> None:
    ask(folder / "a.wav", sampling=Sampling(language="de", prompt="Names: Bea"))
    ask(folder / "a.wav")
    assert Counting.asked == [{"language": "de", "prompt": "Names: Bea"}, {}]


def test_a_batch_that_fails_is_taken_one_by_one(folder: Path) -> None:
    ear = Recogniser(Counting(), sampling=Sampling(), batch=4)  # type: ignore[arg-type]
    wav = np.full(RATE, 0.1, np.float32)
    made = ear.whole([wav, np.full(RATE, 0.95, np.float32), np.full(RATE // 2, 0.65, np.float32), wav])
    assert [m.text if isinstance(m, Transcript) else str(m) for m in made] == ["10", "10", "a bad one", "10"]
    long = ear.whole([np.concatenate([wav] * 5)])[0]
    assert isinstance(long, Transcript) and long.pieces >= 3 and len(long.text.split()) == long.pieces


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    for inputs in ((), (tmp_path,)):
        with pytest.raises(UserError, match="nothing to"):
            ask(*inputs)


JOINED = [("a b|c", "a b c"), ("你好|世界", "你好世界"), ("| x ", "x"), ("one||two", "one two"), ("end.|你", "end. 你")]


@pytest.mark.parametrize(("texts", "whole"), [*((t.split("|"), w) for t, w in JOINED), ([" raw "], " raw "), ([], "")])
def test_texts_are_joined_as_they_are_written(texts: list[str], whole: str) -> None:
    assert join_texts(texts) == whole


def test_odd_text_survives(folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, tmp_path: Path) -> None:
    odd = "na\u0308ive \u200bمرحبا \U0001f600\ud800 line\nbreak"
    monkeypatch.setattr(Counting, "text", lambda self, ids, mask: [odd] * len(ids))
    ask(folder / "a.wav")
    assert capsysbinary.readouterr().out.count(b"\n") == 1
    ask(folder / "a.wav", out=str(tmp_path / "o.jsonl"))
    assert json.loads((tmp_path / "o.jsonl").read_text())["text"] == odd
    ask(folder / "a.wav", out=str(tmp_path / "t"))
    assert (tmp_path / "t" / "a.txt").read_text().startswith("na\u0308ive")


def test_a_real_model_in_batches_says_what_it_says_alone() -> None:
    model, rng = tiny("fun_asr_nano", max_s=1.0), np.random.default_rng(0)
    wavs = [0.1 * rng.standard_normal(int(s * RATE)).astype(np.float32) for s in (0.01, 0.4, 0.3, 1.7)]
    ear = Recogniser(model, sampling=Sampling(max_new_tokens=6), batch=3)
    assert ear.whole(wavs) == [ear.whole([w])[0] for w in wavs]
    assert isinstance(long := ear.whole(wavs[3:])[0], Transcript) and long.pieces == 2
