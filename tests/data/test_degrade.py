"""Degradations do what they say, by measures of their own; ladders fall; a seed is a recording."""

from __future__ import annotations

import numpy as np
import pytest

from rlspeech.corpora.demo import demo_folder
from rlspeech.data import degrade
from rlspeech.data.audio import AudioError, load_audio, rms_dbfs
from rlspeech.data.degrade import RUNGS, TRAITS, Sources
from rlspeech.data.mixing import coloured
from rlspeech.rewards.intrusive import stoi_estoi

RATE = 16000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_audio(demo_folder() / "clean" / "train_02_rms-long.flac")[: 3 * RATE]


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return load_audio(sorted((demo_folder() / "noise").glob("train*.flac"))[-1])


def power_above(wav: np.ndarray, hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(wav)) ** 2
    return float(spectrum[np.fft.rfftfreq(len(wav), 1 / RATE) > hz].sum() / spectrum.sum())


@pytest.mark.parametrize("snr_db", [-5.0, 10.0])
def test_noise_comes_at_its_ratio(speech: np.ndarray, snr_db: float) -> None:
    wav, facts = degrade.add_noise(speech, coloured(len(speech), 0.5, np.random.default_rng(0)), snr_db)
    assert 20 * np.log10(np.std(speech) / np.std(wav - speech)) == pytest.approx(snr_db, abs=0.1)
    assert facts["snr_db"] == snr_db
    with pytest.raises(AudioError, match="silent"):
        degrade.add_noise(speech, np.zeros_like(speech), 0.0)


def test_slope_of_coloured_noise() -> None:
    for slope in (0.0, 1.0):
        spectrum = np.abs(np.fft.rfft(coloured(1 << 16, slope, np.random.default_rng(1)))) ** 2
        ratio_db = 10 * np.log10(spectrum[1000:2000].mean() / spectrum[8000:16000].mean())  # three octaves
        assert ratio_db == pytest.approx(slope * 20 * np.log10(8), abs=1.5)


def test_room_decays_as_asked_and_keeps_the_level(speech: np.ndarray) -> None:
    rir = degrade.synthetic_rir(RATE, 0.5, 0.0, np.random.default_rng(2))
    decay = np.cumsum(rir[::-1].astype(np.float64)[:-1] ** 2)[::-1]  # backward integration, without the direct sound
    decay_db = 10 * np.log10(decay / decay[0])
    t20 = (np.argmax(decay_db < -25) - np.argmax(decay_db < -5)) / RATE
    assert 3 * t20 == pytest.approx(0.5, rel=0.15)
    assert np.sum(rir[1:] ** 2) == pytest.approx(1.0, rel=0.05)  # 0 dB against the direct sound
    dry = degrade.add_room(speech, rir, RATE)[1]
    small = degrade.add_room(speech, degrade.synthetic_rir(RATE, 0.5, 12.0, np.random.default_rng(2)), RATE)
    assert rms_dbfs(small[0]) == pytest.approx(rms_dbfs(speech), abs=0.2)
    assert small[1]["c50_db"] > dry["c50_db"] + 6


def test_clipping_clips(speech: np.ndarray) -> None:
    hard, mild = degrade.clip_peaks(speech, -6.0), degrade.clip_peaks(speech, 6.0)
    top = np.abs(hard[0]).max()
    assert np.mean(np.abs(hard[0]) > 0.999 * top) > 0.05 > np.mean(np.abs(speech) > 0.999 * np.abs(speech).max())
    assert rms_dbfs(hard[0]) == pytest.approx(rms_dbfs(speech), abs=0.1)
    assert hard[1]["sdr_db"] < mild[1]["sdr_db"] - 5
    untouched, facts = degrade.clip_peaks(speech, 60.0)
    assert np.allclose(untouched, speech, atol=1e-5) and facts["sdr_db"] > 50


def test_rounding_to_few_bits(speech: np.ndarray) -> None:
    wav, facts = degrade.quantise(speech, 4)
    assert len(np.unique(wav)) <= 2**4 + 1
    assert facts["sdr_db"] < degrade.quantise(speech, 8)[1]["sdr_db"] - 15


def test_low_pass_takes_the_top(speech: np.ndarray) -> None:
    noise = coloured(len(speech), 0.0, np.random.default_rng(0))
    wav, _ = degrade.low_pass(noise, 1000.0, RATE)
    assert power_above(wav, 1500.0) < 0.01 < 0.5 < power_above(noise, 1500.0)
    assert degrade.low_pass(speech, 8000.0, RATE)[0] is speech


def test_gaps_cover_their_share_and_nest(speech: np.ndarray) -> None:
    ones = np.ones(RATE, dtype=np.float32)
    few, many = (degrade.drop_out(ones, share, 40.0, RATE, np.random.default_rng(3))[0] for share in (0.1, 0.4))
    assert np.mean(few < 0.5) == pytest.approx(0.1, abs=0.03)
    assert np.mean(many < 0.5) == pytest.approx(0.4, abs=0.03)
    assert (many[few < 0.5] < 0.5).all()
    assert degrade.drop_out(speech, 0.0, 40.0, RATE, np.random.default_rng(0))[1]["energy_lost"] < 1e-9


def test_suppression_removes_noise_and_then_speech(speech: np.ndarray, noise: np.ndarray) -> None:
    noise = np.resize(noise, len(speech)) * np.float32(np.std(speech) / np.std(noise))  # 0 dB
    good, bad = (degrade.suppress(speech, noise, strength, np.random.default_rng(4)) for strength in (0.0, 1.0))
    assert degrade.sdr_db(speech, good[0]) > degrade.sdr_db(speech, speech + noise) + 5
    assert good[1]["snr_db"] > 5
    assert bad[1]["sdr_db"] < good[1]["sdr_db"] - 5


def test_there_and_back() -> None:
    wav, window = np.random.default_rng(0).standard_normal(5003).astype(np.float32), np.hanning(513)[:-1]
    assert np.abs(degrade.istft(degrade.stft(wav, window, 128), window, 128, len(wav)) - wav).max() < 1e-5


def test_a_seed_is_a_recording(speech: np.ndarray, noise: np.ndarray) -> None:
    sources = Sources([noise], [speech[::-1].copy()], [degrade.synthetic_rir(RATE, 0.4, 0.0, np.random.default_rng(0))])
    drawn = [degrade.degrade(speech, sources, RATE, np.random.default_rng(seed)) for seed in range(40)]
    again = degrade.degrade(speech, sources, RATE, np.random.default_rng(11))
    assert np.array_equal(again.wav, drawn[11].wav) and again.severity == drawn[11].severity
    for made in drawn:
        assert made.wav.dtype == np.float32 and made.wav.shape == speech.shape
        assert np.isfinite(made.wav).all() and np.abs(made.wav).max() <= 1.0
        assert set(made.severity) == set(TRAITS) and all(0.0 <= v <= 1.0 for v in made.severity.values())
        assert made.level_dbfs == pytest.approx(rms_dbfs(made.wav))
    for trait in TRAITS:
        assert any(m.severity[trait] > 0 for m in drawn) and any(m.severity[trait] == 0 for m in drawn), trait


def test_without_sources_and_without_speech(speech: np.ndarray) -> None:
    made = [degrade.degrade(speech, Sources([], [], []), RATE, np.random.default_rng(s)) for s in range(20)]
    assert all(m.severity["talker"] == 0 for m in made) and any(m.severity["noise"] > 0 for m in made)
    for silent in (np.zeros(RATE, dtype=np.float32), np.zeros(0, dtype=np.float32)):
        with pytest.raises(AudioError, match="silent"):
            degrade.degrade(silent, Sources([], [], []), RATE, np.random.default_rng(0))
        with pytest.raises(AudioError, match="silent"):
            degrade.ladders(silent, np.ones(RATE, dtype=np.float32), RATE, np.random.default_rng(0))


def test_ladders_fall(speech: np.ndarray, noise: np.ndarray) -> None:
    rungs = degrade.ladders(speech, noise, RATE, np.random.default_rng(5))
    names = list(dict.fromkeys(r.ladder for r in rungs))
    assert {"noise", "reverb", "clipping", "low_pass", "dropouts", "combined"} <= set(names)
    assert len(rungs) == RUNGS * len(names)
    for name in names:
        steps = [r for r in rungs if r.ladder == name]
        assert [r.rung for r in steps] == list(range(RUNGS))
        assert np.allclose(steps[0].wav, speech, atol=1e-6) and steps[0].snr_db is None
        heard = [stoi_estoi(speech, r.wav, RATE)[1] for r in steps]
        assert all(b < a + 1e-9 for a, b in zip(heard, heard[1:], strict=False)), (name, heard)
        assert all(abs(rms_dbfs(r.wav) - rms_dbfs(speech)) < 3 for r in steps)
    for r in [r for r in rungs if r.ladder == "noise"][1:]:
        assert r.snr_db is not None and degrade.sdr_db(speech, r.wav) == pytest.approx(r.snr_db, abs=1.0)
