"""Reading and writing waveforms: what must survive, and every kind of file that must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from rlspeech.data.audio import AudioError, load_audio, resample, rms_dbfs, save_audio, to_level

RATE = 16000


def _tone(hz: float, seconds: float = 1.0, rate: int = RATE, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_round_trip_within_a_16_bit_step(tmp_path: Path, suffix: str) -> None:
    wav = (0.3 * np.random.default_rng(0).standard_normal(4001)).clip(-0.9, 0.9).astype(np.float32)
    save_audio(tmp_path / f"a{suffix}", wav, RATE)
    back = load_audio(tmp_path / f"a{suffix}", RATE)
    assert back.dtype == np.float32 and back.shape == wav.shape
    assert np.abs(back - wav).max() <= 1 / 32768
    assert sf.info(tmp_path / f"a{suffix}").subtype == "PCM_16"


def test_a_loud_waveform_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    wav = _tone(200, peak=3.0)
    save_audio(tmp_path / "loud.wav", wav, RATE)
    back = load_audio(tmp_path / "loud.wav", RATE)
    assert 0.98 < np.abs(back).max() < 0.999
    np.testing.assert_allclose(back * 3.0 / 0.99, wav, atol=2e-4)  # clipping would change the shape


def test_saving_is_complete_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "a.flac"
    save_audio(path, _tone(300), RATE)
    before = path.read_bytes()
    with pytest.raises(AudioError, match="NaN"):
        save_audio(path, np.array([0.0, np.nan], np.float32), RATE)
    real = sf.write

    def dies(file: object, *args: object, **kwargs: object) -> None:
        real(file, *args, **kwargs)
        raise OSError("No space left on device")

    def short(file: object, wav: np.ndarray, *args: object, **kwargs: object) -> None:
        real(file, wav[:99], *args, **kwargs)  # libsndfile does not always notice that a disk has no room for the end

    def refuses(*args: object, **kwargs: object) -> None:
        raise AssertionError  # as soundfile does where it wrote less than it was given

    for fails, why in ((dies, "No space"), (short, "flac"), (refuses, "flac")):
        monkeypatch.setattr(sf, "write", fails)
        with pytest.raises(OSError, match=why):
            save_audio(path, _tone(400), RATE)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.flac"]  # no half-written file is left behind


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_keep_pitch_energy_and_length(tmp_path: Path, rate: int) -> None:
    sf.write(tmp_path / "r.wav", _tone(1234, 1.0, rate), rate, subtype="FLOAT")
    wav = load_audio(tmp_path / "r.wav", RATE)
    assert abs(len(wav) - RATE) <= 1
    peak_hz = np.abs(np.fft.rfft(wav * np.hanning(len(wav)))).argmax() * RATE / len(wav)
    assert abs(peak_hz - 1234) <= 1.5
    middle = wav[1000:-1000]
    assert abs(rms_dbfs(middle) - 20 * np.log10(0.5 / np.sqrt(2))) < 0.05


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    assert rms_dbfs(resample(_tone(15000, rate=48000), 48000, 16000)[500:-500]) < -60  # would alias to 1 kHz
    wav = _tone(500)
    np.testing.assert_array_equal(resample(wav, RATE, RATE), wav)


def test_offset_and_duration_are_seconds_of_the_file(tmp_path: Path) -> None:
    rate = 8000
    wav = np.linspace(-0.5, 0.5, 2 * rate).astype(np.float32)
    sf.write(tmp_path / "o.wav", wav, rate, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "o.wav", rate, 0.5, 0.25), wav[4000:6000])
    assert len(load_audio(tmp_path / "o.wav", rate, 1.5, 10.0)) == 4000
    with pytest.raises(AudioError, match="no samples"):
        load_audio(tmp_path / "o.wav", rate, 2.5)


@pytest.mark.parametrize("dbfs", [-40.0, -25.0, -3.0])
def test_level(dbfs: float) -> None:
    assert abs(rms_dbfs(to_level(_tone(440, peak=0.01), dbfs)) - dbfs) < 1e-3
    assert rms_dbfs(np.array([1, -1] * 9, np.float32)) == pytest.approx(0.0)
    silence = np.zeros(100, np.float32)
    assert rms_dbfs(silence) == rms_dbfs(silence[:0]) == float("-inf")
    np.testing.assert_array_equal(to_level(silence, dbfs), silence)


def test_channels_that_cancel_each_other_are_told(tmp_path, capsys):
    wav = np.sin(np.arange(8000) / 9).astype(np.float32) / 3
    sf.write(tmp_path / "opposite.wav", np.stack([wav, -wav], 1), 16000)
    sf.write(tmp_path / "one-sided.wav", np.stack([wav, 0 * wav], 1), 16000)
    for name in ("opposite.wav", "one-sided.wav"):
        load_audio(tmp_path / name)
    shown = capsys.readouterr().err
    assert "opposite.wav" in shown and "remix" in shown and "one-sided" not in shown
