"""PESQ, STOI, SI-SDR and LSD against independent implementations and known answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_signals import sample, scored, voice, with_noise

from rlspeech.rewards.intrusive import lag, log_spectral_distance, multi_resolution_stft, si_sdr, stoi_estoi


@pytest.mark.parametrize("seconds", [1.2, 2.37, 4.0])
@pytest.mark.parametrize("rate", [16000, 10000, 8000])
def test_stoi_is_pystoi(seconds, rate):
    from pystoi import stoi

    x = voice(seconds, seed=3)
    y = with_noise(x, 3.0)
    ours = stoi_estoi(x, y, rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours == pytest.approx((stoi(x, y, rate), stoi(x, y, rate, extended=True)), abs=1e-9)


def test_stoi_of_too_little_speech_is_null_where_pystoi_answers_1e_5():
    x = np.concatenate([voice(0.25), np.zeros(16000, np.float32)])
    for (score,) in scored([sample(with_noise(x, 20), target=x)], "stoi", "estoi").values():
        assert score.value is None and "too little speech" in score.error


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.01, 50), offset=st.floats(-1, 1), snr=st.floats(-20, 40))
def test_si_sdr_ignores_gain_and_offset_and_knows_the_snr(gain, offset, snr):
    rng = np.random.default_rng(1)
    x, n = rng.standard_normal((2, 8000))
    x -= x.mean()
    n -= n.mean()
    n -= x * np.dot(n, x) / np.dot(x, x)  # orthogonal: the SNR is exact
    y = x + n * np.linalg.norm(x) / np.linalg.norm(n) * 10 ** (-snr / 20)
    assert si_sdr(x, gain * y + offset) == pytest.approx(snr, abs=1e-6)
    assert si_sdr(x, -y) == pytest.approx(snr, abs=1e-6)
    assert si_sdr(x, x) == 120.0 and np.isfinite([si_sdr(x, 0 * x), si_sdr(0 * x, x)]).all()


def test_distances_of_spectra_are_scipys_of_a_gain_the_gain_and_of_itself_nothing():
    from scipy.signal import stft

    x = np.random.default_rng(0).standard_normal(16000)
    assert log_spectral_distance(x, x) == 0.0
    assert log_spectral_distance(x, 2 * x) == pytest.approx(20 * np.log10(2), abs=1e-6)
    assert multi_resolution_stft(x, x) == 0.0
    assert multi_resolution_stft(x, 2 * x) == pytest.approx(1 + np.log(2), abs=1e-6)
    near, far = (log_spectral_distance(voice(1), with_noise(voice(1), snr)) for snr in (20, 0))
    assert far > near
    x, y = voice(1, seed=1), with_noise(voice(1, seed=1), 5)
    options = {"nperseg": 512, "noverlap": 384, "boundary": None, "padded": False, "scaling": "psd"}
    p, q = (np.abs(stft(s, **options)[2]) ** 2 for s in (x, y))
    floor = p.max() * 1e-8
    expected = np.sqrt(((10 * np.log10(np.maximum(p, floor) / np.maximum(q, floor))) ** 2).mean(0)).mean()
    assert log_spectral_distance(x, y) == pytest.approx(expected, rel=1e-4)
    p, q = (np.sqrt(np.maximum(power, floor)) for power in (p, q))
    expected = np.linalg.norm(p - q) / np.linalg.norm(p) + np.abs(np.log(p / q)).mean()
    assert multi_resolution_stft(x, y, [512]) == pytest.approx(expected, rel=1e-4)


def test_shifted_copy_has_no_si_sdr_but_says_why():
    x = np.random.default_rng(0).standard_normal(16000)
    for shift in (-300, -1, 0, 17, 800):
        found, there, _ = lag(x, np.roll(x, shift), 1000)
        assert found == shift and there == pytest.approx(1.0, abs=0.1)
    x = voice(2.0)
    y = np.roll(x, 480)
    late, bad = scored([sample(y, target=x), sample(with_noise(x, -15), target=x)], "si_sdr")["si_sdr"]
    assert late.value is None and "30.0 ms" in late.error and late.detail["lag_ms"] == 30.0
    assert bad.value == pytest.approx(-15, abs=1)  # aligned: a number


def test_lengths_are_cut_or_refused():
    x = voice(2.0)
    for near, far in scored([sample(x[:-n], target=x) for n in (100, 8000)], "si_sdr", "estoi", "lsd").values():
        assert near.value is not None and far.value is None and "0.50 s" in far.error


def test_pesq_matches_the_package_and_never_invents_a_number():
    pesq = pytest.importorskip("pesq")
    x = voice(2.0)
    y = with_noise(x, 15)
    blip = np.zeros(32000, np.float32)
    blip[8000:8400] = 0.3 * np.sign(np.sin(np.arange(400)))  # above the silence gate, and no utterance to PESQ
    for name, (score, none) in scored([sample(y, target=x), sample(y, target=blip)], "pesq_wb", "pesq_nb").items():
        assert score.value == pytest.approx(pesq.pesq(16000, x, y, name[-2:]), abs=1e-6)
        assert none.value is None and none.error.startswith("PESQ: ")


def test_pesq_of_long_recordings_is_scored_in_parts(monkeypatch):
    pytest.importorskip("pesq")
    x = np.concatenate([voice(1.0, seed=1), np.zeros(16000, np.float32), voice(1.0, seed=2)])
    y = with_noise(x, 20)
    spoken = [slice(0, 16000), slice(32000, 48000)]
    parts = scored([sample(y[s], target=x[s]) for s in spoken], "pesq_wb")["pesq_wb"]
    monkeypatch.setattr("rlspeech.rewards.intrusive.MAX_PESQ_S", 1.0)
    (score,) = scored([sample(y, target=x)], "pesq_wb")["pesq_wb"]
    assert score.detail["pesq_wb_parts"] == "2 of 3"
    assert score.value == pytest.approx(np.mean([s.value for s in parts]), abs=1e-9)
