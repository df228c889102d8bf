"""DNSMOS against the speechmos package, and what the reward variants promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reward_signals import voice, with_noise

pytest.importorskip("speechmos")
pytest.importorskip("onnxruntime")

from rlspeech.rewards.dnsmos import P808, Dnsmos, FastDnsmos, P808Net, P835Net, PersonalisedDnsmos, _session, windows  # noqa: E402
from rlspeech.rewards.scorer import Scorer, get_reward  # noqa: E402
from rlspeech.types import Sample  # noqa: E402

COLUMNS = ["dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl"]


def official_starts(length):
    """The loop of the published script, for the windows it keeps."""
    total = length
    while total < 144160:
        total *= 2
    kept = []
    for i in range(int(np.floor(total / 16000) - 9.01) + 1):
        if len(range(total)[int(i * 16000) : int((i + 9.01) * 16000)]) >= 144160:
            kept.append(i * 16000)
    return kept, total // length


LENGTHS = [1600, 4800, 16000, 20480, 32000, 36011, 48000, 64000, 72000, 100000, 144000, 144160, 160000, 480000]


@pytest.mark.parametrize("length", LENGTHS)
def test_windows_are_the_official_ones(length):
    starts, copies = official_starts(length)
    ours_copies, plan = windows(length)
    assert ours_copies == copies and sum(w for _, _, w in plan) == len(starts)
    assert {s for s, _, _ in plan} == {s % length if copies > 1 else s for s in starts}
    assert all(samples <= 144160 and (144160 - samples) % (8 * 160) == 0 for _, samples, _ in plan)


def test_a_two_second_clip_costs_a_tenth():
    assert sum(samples for _, samples, _ in windows(32000)[1]) < 7 * 144160 / 10


@pytest.mark.parametrize(("kind", "length"), [("p835", 32000), ("p808", 32000), ("p808", 20480), ("p808", 64000)])
def test_cut_windows_answer_exactly_what_whole_windows_do(kind, length):
    scorer = {"p835": Dnsmos, "p808": P808}[kind](threads=1)
    wav = with_noise(voice(length / 16000, seed=length), 8)
    copies, plan = windows(length)
    start, samples, _ = plan[-1]
    assert samples < 144160
    tiled = np.tile(wav, copies)[start : start + 144160]
    np.testing.assert_allclose(scorer.raw(tiled[None, :samples]), scorer.raw(tiled[None]), atol=2e-5)


# one official window each; the first is cut down by us, the second cannot be
@pytest.mark.parametrize("seconds", [1.28, 2.3])
def test_agrees_with_the_published_rule_around_the_untouched_graph(seconds):
    import onnxruntime

    from rlspeech.rewards.dnsmos import model_path

    wav = with_noise(voice(seconds, seed=5), 12)
    starts, copies = official_starts(len(wav))
    assert starts == [0]
    session = onnxruntime.InferenceSession(str(model_path("p835")))
    raw = session.run(None, {"input_1": np.tile(wav, copies)[None, :144160]})[0][0]
    published = [[-0.08397278, 1.22083953, 0.0052439], [-0.13166888, 1.60915514, -0.39604546]]
    published += [[-0.06766283, 1.11546468, 0.04602535]]
    (ours,) = Dnsmos(threads=1).compute([Sample("a", wav, 16000)], COLUMNS)
    expected = [np.polyval(p, raw[i]) for i, p in enumerate(published)]
    assert [ours[c].value for c in COLUMNS] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "snr"), [(0.35, 30), (2.0, 5)])
def test_agrees_with_speechmos_on_made_up_signals(seconds, snr):
    from speechmos import dnsmos

    wav = with_noise(voice(seconds, seed=5), snr)
    reference = dnsmos.run(wav, 16000)
    (ours,) = Dnsmos(threads=1).compute([Sample("a", wav, 16000)], COLUMNS)
    (p808,) = P808(threads=1).compute([Sample("a", wav, 16000)], ["dnsmos_p808"])
    expected = [reference[k] for k in ("sig_mos", "bak_mos", "ovrl_mos")]
    assert [ours[c].value for c in COLUMNS] == pytest.approx(expected, abs=1e-4)
    assert p808["dnsmos_p808"].value == pytest.approx(reference["p808_mos"], abs=1e-4)


@pytest.mark.realdata
@pytest.mark.slow
def test_agrees_with_speechmos_on_real_clips(real_rows):
    """9 clips from 0.3 to 16 s, clean and noisy, P.835 and P.808; three of them personalised."""
    from speechmos import dnsmos

    from rlspeech.data.audio import load_audio

    rng = np.random.default_rng(0)
    speech = [r for r in real_rows if r["kind"] == "speech"]
    lengths = np.concatenate([np.geomspace(0.3, 9.5, 6), rng.uniform(9.0, 16.0, 1), [11.3, 4.5]])
    worst = {"p835": 0.0, "p808": 0.0, "personalised": 0.0}
    families = Dnsmos(threads=1), P808(threads=1), PersonalisedDnsmos(threads=1)
    for i, seconds in enumerate(lengths):
        wav = np.zeros(0, np.float32)
        while len(wav) < seconds * 16000:
            wav = np.concatenate([wav, load_audio(str(rng.choice(speech)["path"]))])
        wav = wav[: int(seconds * 16000)]
        if i % 3 == 0:
            wav = with_noise(wav, rng.uniform(-5, 20), i)
        wav = wav / max(1.0, float(np.abs(wav).max()))
        sample = [Sample("a", wav, 16000)]
        reference = dnsmos.run(wav, 16000)
        ours = families[0].compute(sample, COLUMNS)[0]
        gaps = [abs(ours[f"dnsmos_{k}"].value - reference[f"{k}_mos"]) for k in ("sig", "bak", "ovrl")]
        worst["p835"] = max(worst["p835"], *gaps)
        p808 = families[1].compute(sample, ["dnsmos_p808"])[0]["dnsmos_p808"].value
        worst["p808"] = max(worst["p808"], abs(p808 - reference["p808_mos"]))
        if i % 4 == 0:
            reference = dnsmos.run(wav, 16000, model_type="dnsmos_personalized")
            ours = families[2].compute(sample, ["pdnsmos_ovrl", "pdnsmos_sig", "pdnsmos_bak"])[0]
            gaps = [abs(ours[f"pdnsmos_{k}"].value - reference[f"{k}_mos"]) for k in ("sig", "bak", "ovrl")]
            worst["personalised"] = max(worst["personalised"], *gaps)
    print("largest difference:", worst)
    assert max(worst.values()) < 1e-3


@pytest.mark.parametrize("personalised", [False, True])
def test_torch_module_is_the_onnx_graph(personalised):
    wavs = np.stack([with_noise(voice(1.0, seed=s), 10) for s in range(2)])
    net = P835Net(personalised, raw=True)
    onnx = _session("pp835" if personalised else "p835", 1).run(None, {"input_1": wavs})[0]
    np.testing.assert_allclose(net(torch.from_numpy(wavs)).numpy(), onnx, atol=1e-4)


def test_engines_agree_with_the_polynomial():
    sample = [Sample("a", with_noise(voice(1.2), 10), 16000)]
    columns = ["dnsmos_fast_ovrl", "dnsmos_fast_sig", "dnsmos_fast_bak"]
    a, b = (FastDnsmos(engine=e, threads=1).compute(sample, columns)[0] for e in ("onnx", "torch"))
    assert [a[c].value for c in columns] == pytest.approx([b[c].value for c in columns], abs=1e-4)
    module = P835Net(level_dbfs=-25.0)(torch.from_numpy(sample[0].wav)[None])[0]
    assert [float(module[i]) for i in (2, 0, 1)] == pytest.approx([a[c].value for c in columns], abs=1e-4)


def test_gradient_reaches_the_waveform_and_points_uphill():
    wav = torch.from_numpy(with_noise(voice(0.6), 5)).double()[None].requires_grad_()
    net = P835Net(level_dbfs=-25.0).double()
    (gradient,) = torch.autograd.grad(net(wav)[0, 2], wav)
    assert torch.isfinite(gradient).all() and gradient.norm() > 0
    step = 1e-7 * gradient / gradient.norm()
    with torch.no_grad():
        slope = float(net(wav + step)[0, 2] - net(wav - step)[0, 2]) / 2e-7
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-3)


@pytest.mark.slow  # librosa's first use
def test_p808_front_end_is_librosas():
    librosa = pytest.importorskip("librosa")
    wav = with_noise(voice(1.0), 10)
    mel = librosa.feature.melspectrogram(y=wav[:-160], sr=16000, n_fft=321, hop_length=160, n_mels=120)
    expected = ((librosa.power_to_db(mel, ref=np.max) + 40) / 40).T
    np.testing.assert_allclose(P808Net().features(torch.from_numpy(wav)[None])[0].numpy(), expected, atol=2e-4)


def test_level_earns_nothing_when_it_is_normalised():
    wav = with_noise(voice(1.0), 10)
    samples = [Sample(str(g), wav * np.float32(g), 16000) for g in (0.05, 1.0, 2.5)]
    fast = [s.value for s in get_reward("dnsmos_fast").score(samples)]
    plain = [s.value for s in get_reward("dnsmos_fast[level_dbfs=none]").score(samples)]
    assert np.ptp(fast) < 1e-3 < np.ptp(plain)


def test_columns_share_one_pass_and_keep_their_names(monkeypatch):
    calls = []
    real = FastDnsmos.raw
    monkeypatch.setattr(FastDnsmos, "raw", lambda self, wavs: calls.append(wavs.shape) or real(self, wavs))
    names = ["dnsmos_fast", "dnsmos_fast_sig", "dnsmos_fast_bak"]
    wavs = [with_noise(voice(s, seed=i), 10) for i, s in enumerate((1.0, 0.5, 1.0))]
    with Scorer(names, workers=0) as scorer:
        table = scorer.score([Sample(str(i), w, 16000) for i, w in enumerate(wavs)])
        alone = scorer.score([Sample("b", wavs[1], 16000)])
    assert set(table) == set(names) and calls == [(2, 16000), (1, 8000), (1, 8000)]
    for name in names:
        assert table[name][1].value == pytest.approx(alone[name][0].value, abs=1e-5)
        assert all(1 <= s.value <= 5 for s in table[name])


def test_noise_lowers_background_and_overall():
    clean = voice(1.0)
    samples = [Sample("a", with_noise(clean, snr), 16000) for snr in (40, 15, 0)]
    high, middle, low = (s.value for s in get_reward("dnsmos_fast_bak").score(samples))
    assert high > middle > low


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_any_length_is_scored_and_a_few_samples_change_little(engine: str) -> None:
    rng = np.random.default_rng(0)
    wav = (0.05 * rng.standard_normal(24159)).astype(np.float32)
    samples = [Sample("a", wav[:24000], 16000), Sample("b", wav, 16000)]
    whole, odd = get_reward(f"dnsmos_fast[engine={engine}]").score(samples)
    assert whole.value is not None and odd.value is not None, odd.error
    assert abs(whole.value - odd.value) < 0.02
