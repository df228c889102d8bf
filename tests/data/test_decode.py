"""What decodes of a file is how long it is, in every command: headers that lie, do not know, or speak for a part."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from rlspeech.data.audio import load_audio
from rlspeech.data.checks import Limits, judge, measure
from rlspeech.data.decode import AudioError, read_audio, remarks, sound_info
from rlspeech.data.inputs import Item, audio_files, load
from rlspeech.data.long import stream
from rlspeech.types import Sample

RATE = 16000
TIME = np.arange(2 * RATE) / RATE
WAV = 0.2 * np.sin(2 * np.pi * 300 * TIME) * (1 + np.sin(2 * np.pi * 3 * TIME))
WAV = (WAV + 0.02 * np.random.default_rng(0).standard_normal(len(TIME))).astype(np.float32)


def encoded(kind: str, subtype: str | None = None, **more: object) -> bytes:
    file = io.BytesIO()
    sf.write(file, WAV, RATE, format=kind, subtype=subtype, **more)  # type: ignore[arg-type]
    return file.getvalue()


def sized(data: bytes, size: int) -> bytes:
    """A WAV file whose chunks claim a size."""
    at, both = data.index(b"data") + 4, [struct.pack("<I", n) for n in (min(size + 36, 2**32 - 1), size)]
    return data[:4] + both[0] + data[8:at] + both[1] + data[at + 4 :]


def total(data: bytes, samples: int) -> bytes:
    """A FLAC file whose header claims a number of samples (36 bits); 0 says that it is unknown."""
    facts = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    return data[:18] + facts.to_bytes(8, "big") + data[26:]


def headless(data: bytes) -> bytes:
    """An MP3 file without the frame that counts the others."""
    return data[data.index(data[:2], 4) :]


VBR, FLAC = encoded("MP3", bitrate_mode="VARIABLE", compression_level=0.3), encoded("FLAC")
OGG, OPUS = encoded("OGG", "VORBIS"), encoded("OGG", "OPUS")
PIPES = [("PCM_24", 0), ("PCM_24", 0x7FFFF000), ("FLOAT", 0), ("FLOAT", 0x7FFFF000)]
PIPES += [("PCM_16", n) for n in (0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF)]  # the last two: arecord, ffmpeg
WHOLE = {
    **{f"{kind}-{n:x}.wav": (sized(encoded("WAV", kind), n), 2.0) for kind, n in PIPES},
    "pipe.flac": (total(FLAC, 0), 2.0),
    **{f"fewer-{n}.flac": (total(FLAC, n), 2.0) for n in (1, 16000, len(WAV) - 1)},
    "headless.mp3": (headless(VBR), 2.0),
    "joined.mp3": (VBR + encoded("MP3", bitrate_mode="CONSTANT"), 4.0),
    "chained.ogg": (OGG + OGG, 4.0),
    "chained.opus": (OPUS * 3, 6.0),
    "joined.flac": (FLAC + total(FLAC, 0), 4.0),
    "size-1.caf": (encoded("CAF").replace(b"data" + struct.pack(">Q", 64004), b"data" + b"\xff" * 8), 2.0),
}
CUT = {
    "cut.wav": encoded("WAV")[:32000],
    "cut.flac": FLAC[: len(FLAC) // 2],
    "more.flac": total(FLAC, 2**36 - 1),  # more samples than any memory
    "cut.mp3": VBR[: len(VBR) // 2],
    "cut.aiff": encoded("AIFF")[:32000],
    "cut.au": encoded("AU")[:32000],
    "cut.sph": encoded("NIST")[:32000],
}


@pytest.mark.parametrize("name", WHOLE)
def test_length_is_what_decodes(tmp_path: Path, name: str) -> None:
    path, (data, seconds) = tmp_path / name, WHOLE[name]
    path.write_bytes(data)
    close = 0.15 * (seconds / 2) if name.endswith("mp3") else 1e-4  # an encoder's padding stays where nothing tells it
    wav, rate = read_audio(path)
    info, facts = sound_info(path), measure(path)
    pieces = np.concatenate([piece for _, piece in stream(path, rate, 1.0)])
    assert len(wav) / rate == pytest.approx(seconds, abs=close)
    assert info.seconds == facts.duration == len(pieces) / rate == len(wav) / rate
    assert judge(facts, Limits(), kind="noisy") is None and str(path) not in remarks
    later = read_audio(path, seconds - 0.5, 0.25)[0]
    assert np.array_equal(later, wav[round((seconds - 0.5) * rate) :][: round(0.25 * rate)])
    if not name.endswith(("mp3", "ogg", "opus")):
        assert np.abs(wav[: len(WAV)] - WAV).max() < 1e-4


@pytest.mark.parametrize("name", CUT)
def test_what_is_left_of_a_file_is_read_and_told(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(CUT[name])
    wav, info = load_audio(path), sound_info(path)
    assert 0.5 < len(wav) / RATE == info.seconds <= 2.0 < info.promised_s + 0.1
    assert "truncated" in remarks[str(path)] and capsys.readouterr().err.count("truncated") == 1
    verdict = judge(measure(path), Limits(), kind="noisy")
    assert verdict is not None and verdict.reason == "truncated"


@pytest.mark.parametrize("suffix", [".m4a", ".mp4", ".mka"])
def test_containers_are_read(tmp_path: Path, suffix: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        sound = container.add_stream("pcm_s16le" if suffix == ".mka" else "aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((WAV * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    wav, rate = read_audio(tmp_path / f"a{suffix}")
    assert rate == RATE and len(wav) / RATE == pytest.approx(2.0, abs=0.15)
    assert np.corrcoef(wav[: len(WAV)], WAV)[0, 1] > 0.98 and audio_files(tmp_path) == [tmp_path / f"a{suffix}"]


def test_a_piece_at_0_is_a_piece_and_a_rounded_length_is_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(FLAC)
    for start, length, samples in (
        (0.0, 1.0, 16000),
        (1.0, 0.5, 8000),
        (0.0, 1.995, 32000),
        (0.0, None, 32000),
        (1.0, 0.0, 16000),
    ):
        found = load(Item("k", path, path, offset_s=start, duration_s=length))
        assert isinstance(found, Sample) and found.target is not None
        assert len(found.wav) == len(found.target) == samples and str(path) not in remarks
    assert len(load_audio(path, RATE, 1.0, 2.0)) == 16000 and "2.00" in remarks[str(path)]


def test_a_name_of_any_encoding_is_opened(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.flac")
    Path(odd).write_bytes(FLAC)
    assert len(load_audio(odd)) == len(WAV) and sound_info(odd).seconds == measure(odd).duration == 2.0


BAD = {
    **{"gone.wav": "missing file", "zero.flac": "empty file", "none.wav": "no samples", "folder": "folder"},
    **{"text.flac": "unreadable", "phone.m4a": "unreadable", "nan.wav": "NaN", "inf.wav": "infinite"},
    **{"pipe.wav": "pipe", "loop.wav": "links", "lfs.wav": "lfs", "x" * 300: "long", "\ud800": "name"},
}
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
CONTENT = {"zero": b"", "text": b"no audio" * 99, "phone": b"\0" * 99, "lfs": POINTER}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_path_costs_itself(tmp_path: Path, name: str) -> None:
    path, wav = tmp_path / name, WAV.copy()
    wav[777] = np.inf if name == "inf.wav" else np.nan
    if name in ("none.wav", "nan.wav", "inf.wav"):
        sf.write(path, wav[: len(wav) * (name != "none.wav")], RATE, subtype="FLOAT")
    elif name == "pipe.wav":
        os.mkfifo(path)
    elif name == "loop.wav":
        path.symlink_to("loop.wav")
    elif name == "folder":
        path.mkdir()
    elif path.stem in CONTENT:
        path.write_bytes(CONTENT[path.stem])
    for read in (load_audio, lambda p: list(stream(p, RATE, 5.0))):
        with pytest.raises(AudioError, match=BAD[name]) as error:
            read(path)
        assert len(error.value.reason) < 160 and "\n" not in error.value.reason  # fits a table
    assert re.search(BAD[name], measure(path).error or "")
    assert isinstance(load(Item("k", path)), AudioError) and Item("k", path).stamp()


def test_one_list_of_kinds_and_what_is_passed_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.OPUS", "b.aiff", "c.m4a", "d.mp4", "e.mov", "e.wav", "f.txt", "g.pdf", ".h.wav"):
        (tmp_path / name).touch()
    assert [p.name for p in audio_files(tmp_path)] == ["a.OPUS", "b.aiff", "c.m4a", "d.mp4", "e.wav"]
    assert "1 .pdf (g.pdf)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [OGG[:12], OGG[:26], b"OggS\0\2", encoded("MP3")[:150].ljust(182) + b"Xing" + bytes(6)], ids=len
)
def test_a_file_that_ends_in_its_header_is_no_audio(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AudioError):
        read_audio(tmp_path / "a")
