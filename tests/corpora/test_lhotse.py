"""Lhotse manifests read without lhotse say what lhotse says of them; what only lhotse could compute is refused with a reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_corpora import find

from rlspeech.corpora.toolkits import Lhotse
from rlspeech.types import UserError


def recording(path: Path, channels: int = 1) -> dict[str, Any]:
    sources = [{"type": "file", "channels": list(range(channels)), "source": path.name}]
    return {"id": "r", "sources": sources, "sampling_rate": 16000, "num_samples": 64000, "duration": 4.0}


def cut(path: Path, name: str = "c", **more: Any) -> dict[str, Any]:
    spoken = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "hello"}
    spoken |= {"language": "en", "speaker": "anna", "custom": {"mood": "calm"}}
    whole = {"id": name, "start": 1.0, "duration": 2.0, "channel": 0, "type": "MonoCut"}
    return whole | {"supervisions": [spoken], "recording": recording(path)} | more


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join((json.dumps(r) if not isinstance(r, str) else r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
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
    found = find(Lhotse, write(tmp_path / "cuts_train.jsonl.gz", rows))
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
    write(tmp_path / "libri_recordings_dev.jsonl.gz", [recording(audio)])
    one = {"id": "s1", "recording_id": "r", "start": 0.25, "duration": 1.5, "channel": 0, "text": "one"}
    two = {"id": "s2", "recording_id": "gone", "start": 0, "duration": 1, "channel": 0, "text": "two"}
    write(tmp_path / "libri_supervisions_dev.jsonl.gz", [one, two])
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
