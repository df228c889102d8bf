"""Every kind of bad file gets its own reason; good files of many kinds get none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_corpora import RATE, write

from rlspeech.data import checks
from rlspeech.data.audio import resample
from rlspeech.data.checks import Limits, judge, judge_pair, measure
from rlspeech.types import Utterance


def speech(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise with the long-term tilt of speech and its rhythm."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    f = np.fft.rfftfreq(n, 1 / rate)
    wav = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / (1 + (f / 500) ** 1.2), n)
    wav *= 0.2 + np.abs(np.sin(2 * np.pi * 2.5 * np.arange(n) / rate))
    return (0.4 * wav / np.abs(wav).max()).astype(np.float32)


def reason(path: Path, kind: str = "speech", utt: Utterance | None = None, **limits: float) -> str | None:
    verdict = judge(measure(path), Limits(**limits), kind=kind, utt=utt)  # type: ignore[arg-type]
    return verdict.reason if verdict else None


@pytest.mark.parametrize(
    "name, rate, options",
    [
        *(("a.wav", 16000, {}), ("a.flac", 16000, {}), ("a.ogg", 16000, {}), ("a.mp3", 16000, {})),
        *(("a.wav", 44100, {}), ("a.flac", 48000, {}), ("a.wav", 16000, {"subtype": "FLOAT"})),
        *(("a.wav", 16000, {"subtype": "PCM_24"}), ("a.wav", 16000, {"subtype": "ULAW"}), ("a.aiff", 22050, {})),
        ("a.wav", 16000, {"format": "WAVEX"}),
        ("a.wav", 16000, {"format": "RF64"}),
    ],
)
def test_good_files_of_many_formats_pass(tmp_path: Path, name: str, rate: int, options: dict[str, str]) -> None:
    path = write(tmp_path / name, speech(rate=rate), rate, **options)
    facts = measure(path)
    assert reason(path) is None
    assert facts.duration == pytest.approx(2.0, abs=0.1) and facts.sample_rate == rate and facts.channels == 1
    assert facts.bandwidth_hz > 0.85 * rate / 2


def test_a_torn_tail_below_the_tolerance_passes_and_a_looser_one_lets_more_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech())
    data = path.read_bytes()
    path.write_bytes(data[:-3000])  # 0.094 s of 16-bit samples
    assert reason(path) is None
    path.write_bytes(data[:-6000])
    assert reason(path) == "truncated"
    assert reason(path, length_tolerance_s=0.3) is None


def test_headers_that_lie_do_not_hang_or_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech(0.5))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, 60, 4):
            broken[at] = rng.integers(256)
        path.write_bytes(bytes(broken))
        judge(measure(path), Limits())
    for at, value in ((24, 2_000_000_000), (22, 60_000), (24, 1)):  # rate, channels, rate
        broken = bytearray(data)
        broken[at : at + 2 + 2 * (at == 24)] = struct.pack("<I" if at == 24 else "<H", value)
        path.write_bytes(bytes(broken))
        assert reason(path) == "unreadable"


def test_silence(tmp_path: Path) -> None:
    assert reason(write(tmp_path / "zeros.wav", np.zeros(RATE))) == "silent"
    assert reason(write(tmp_path / "offset.wav", np.full(RATE, 0.02))) == "silent"
    assert reason(write(tmp_path / "faint.wav", speech() * 1e-3)) == "silent"
    assert reason(write(tmp_path / "faint.wav", speech() * 4e-3), kind="noise") is None
    word = np.concatenate([np.zeros(60 * RATE, np.float32), speech(0.5)])
    assert reason(write(tmp_path / "word.flac", word)) is None, "one word in a minute of silence is not silence"


@pytest.mark.parametrize(("floor_db", "kept"), [(60, True), (20, False)])
def test_speech_with_noisy_pauses_is_left_out_on_request(tmp_path: Path, floor_db: float, kept: bool) -> None:
    wav, rng = speech(), np.random.default_rng(0)
    wav[: RATE // 4] = 0.0
    noise = rng.standard_normal(len(wav)).astype(np.float32) * wav.std() * 10 ** (-floor_db / 20)
    path = write(tmp_path / "a.wav", wav + noise, subtype="FLOAT")
    assert measure(path).pause_db == pytest.approx(floor_db, abs=6)
    assert reason(path) is None and reason(path, "noise", pause_db=36) is None
    assert reason(path, pause_db=36) == (None if kept else "noisy")


def test_clipping_at_full_scale_and_below(tmp_path: Path) -> None:
    loud = np.clip(speech() * 8, -1, 1)
    assert reason(write(tmp_path / "a.wav", loud)) == "clipped"
    assert reason(write(tmp_path / "b.wav", loud * 0.5)) == "clipped", "clipped first, turned down later"
    assert reason(write(tmp_path / "c.wav", speech() / 0.4)) is None, "one sample at full scale is a normalised file"
    slightly = np.clip(speech() * 3.8, -1, 1)
    share = float((np.abs(slightly) >= 1).mean())
    assert 0.001 < share < 0.02
    assert reason(write(tmp_path / "d.wav", slightly)) == "clipped"
    assert reason(write(tmp_path / "d.wav", slightly), kind="noise") is None


NARROW = [(8000, 16000), (16000, 48000), (16000, 44100)]  # rate of what is inside, rate of the file


@pytest.mark.parametrize(("inside", "claimed"), [*NARROW, (12000, 16000), (32000, 48000), (16000, 16000)])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_bandwidth_below_the_claimed_rate(tmp_path: Path, inside: int, claimed: int, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", resample(speech(rate=inside), inside, claimed), claimed)
    assert reason(path) == ("bandwidth below the rate" if (inside, claimed) in NARROW else None)
    assert measure(path).bandwidth_hz == pytest.approx(inside / 2, rel=0.06)
    assert reason(path, kind="noise") is None


def test_a_resamplers_dither_does_not_hide_the_missing_band(tmp_path: Path) -> None:
    wav = resample(speech(rate=8000), 8000, 16000)
    wav += np.random.default_rng(0).normal(0, 1 / 32768, len(wav)).astype(np.float32)
    assert reason(write(tmp_path / "a.wav", wav)) == "bandwidth below the rate"


def test_lengths_and_rates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech(2.0))

    def row(duration: float, rate: int = RATE, offset: float = 0.0) -> Utterance:
        return Utterance("a", str(path), duration, rate, offset)

    assert reason(path, utt=row(2.05)) is None and reason(path, utt=row(1.95)) is None
    assert reason(path, utt=row(2.2)) == "shorter than the manifest says"
    assert reason(path, utt=row(1.0)) == "longer than the manifest says"
    assert reason(path, utt=row(1.0, offset=0.5)) is None, "a segment of a longer file"
    assert reason(path, utt=row(1.0, offset=1.5)) == "shorter than the manifest says"
    assert reason(path, utt=row(2.0, rate=48000)) == "rate differs from the manifest"
    assert reason(path, min_s=3) == "too short" and reason(path, max_s=1) == "too long"
    assert reason(path, min_rate_hz=22050) == "rate too low"
    short = write(tmp_path / "b.wav", speech(0.1))
    assert reason(short) == "too short" and reason(short, kind="rir") is None


def test_pairs_of_different_lengths(tmp_path: Path) -> None:
    long, short, near = (measure(write(tmp_path / f"{s}.wav", speech(s))) for s in (2.0, 1.8, 1.95))
    assert judge_pair(long, near, Limits()) is None
    verdict = judge_pair(long, short, Limits())
    assert verdict and verdict.reason == "pair of different lengths"


def test_equal_samples_have_equal_digests_whatever_the_container(tmp_path: Path) -> None:
    wav = (speech() * 32767).astype(np.int16)
    digests = [measure(write(tmp_path / name, wav)).digest for name in ("a.wav", "b.flac", "c.aiff")]
    assert len(set(digests)) == 1
    assert measure(write(tmp_path / "d.wav", wav // 2)).digest != digests[0]
    assert measure(write(tmp_path / "e.wav", wav, 8000)).digest != digests[0]


def test_long_files_are_measured_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", speech(5.0))
    whole = measure(path)
    monkeypatch.setattr(checks, "BLOCK_S", 1)
    pieces = measure(path)
    assert pieces.digest == whole.digest and pieces.duration == whole.duration
    assert pieces.active_dbfs == pytest.approx(whole.active_dbfs, abs=0.1)
    assert pieces.bandwidth_hz == pytest.approx(whole.bandwidth_hz, rel=0.02)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech())
    path.chmod(0)
    assert reason(path) == "unreadable"
