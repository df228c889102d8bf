"""DNSMOS against the speechmos package, and what the reward variants promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reward_signals import sample, scored, voice, with_noise

pytest.importorskip("speechmos")
pytest.importorskip("onnxruntime")

from rlspeech.rewards import dnsmos  # noqa: E402
from rlspeech.rewards.dnsmos import P808, Dnsmos, FastDnsmos, P835Net, PersonalisedDnsmos, _session, windows  # noqa: E402

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
    distinct = [s % length if copies > 1 else s for s in starts]
    assert [s for s, _, _ in plan] == [s for i, s in enumerate(starts) if distinct[i] not in distinct[:i]]
    assert all(samples <= 144160 and (144160 - samples) % (8 * 160) == 0 for _, samples, _ in plan)
    assert length != 32000 or sum(samples for _, samples, _ in plan) < 7 * 144160 / 10  # two seconds cost a tenth


@pytest.mark.parametrize(("kind", "length"), [("p835", 42720), ("p835", 176123), ("p808", 32000), ("p808", 64000)])
def test_windows_answer_together_what_each_does_alone(monkeypatch, kind, length):
    monkeypatch.setattr(dnsmos, "MAX_WINDOWS", 2)
    monkeypatch.setattr(dnsmos, "MAX_FRAMES", 350)
    scorer = {"p835": Dnsmos, "p808": P808}[kind](threads=1)
    wav = with_noise(voice(length / 16000, seed=length), 8)[:length]
    copies, plan = windows(length)
    tiled, (raw, _) = np.tile(wav, copies), scorer.outputs([wav])[0]
    assert kind == "p835" or plan[0][1] < 144160
    for at, part in (0, raw[0]), (-1, raw[-1]):
        whole = tiled[None, plan[at][0] :][:, :144160]
        np.testing.assert_allclose(part, scorer.raw(whole)[0], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "snr"), [(0.35, 30), (1.28, 12), (2.3, 12)])  # the last two: one window
def test_agrees_with_speechmos_on_made_up_signals(librosa, seconds, snr):
    from speechmos import dnsmos as official

    wav = with_noise(voice(seconds, seed=5), snr)
    reference = official.run(wav, 16000)
    (ours,) = Dnsmos(threads=1).compute([sample(wav)], COLUMNS)
    (p808,) = P808(threads=1).compute([sample(wav)], ["dnsmos_p808"])
    expected = [reference[k] for k in ("sig_mos", "bak_mos", "ovrl_mos")]
    assert [ours[c].value for c in COLUMNS] == pytest.approx(expected, abs=1e-4)
    assert p808["dnsmos_p808"].value == pytest.approx(reference["p808_mos"], abs=1e-4)


@pytest.mark.realdata
@pytest.mark.slow
def test_agrees_with_speechmos_on_real_clips(librosa, real_rows):
    """Clips from 0.3 to 11.3 s, clean and noisy, P.835 and P.808; two of them personalised."""
    from speechmos import dnsmos as official

    from rlspeech.data.audio import load_audio

    rng = np.random.default_rng(0)
    speech = [r for r in real_rows if r["kind"] == "speech"]
    lengths = [0.3, 1.7, 9.5, 11.3]
    worst, families = 0.0, (Dnsmos(threads=1), P808(threads=1), PersonalisedDnsmos(threads=1))
    for i, seconds in enumerate(lengths):
        wav = np.zeros(0, np.float32)
        while len(wav) < seconds * 16000:
            wav = np.concatenate([wav, load_audio(str(rng.choice(speech)["path"]))])
        wav = wav[: int(seconds * 16000)]
        if i % 2:
            wav = with_noise(wav, rng.uniform(-5, 20), i)
        wav = wav / max(1.0, float(np.abs(wav).max()))
        parts, reference = ["sig", "bak", "ovrl"], official.run(wav, 16000)
        runs = [(families[0], "dnsmos", parts, reference), (families[1], "dnsmos", ["p808"], reference)]
        if i % 3 == 0:
            personal = official.run(wav, 16000, model_type="dnsmos_personalized")
            runs.append((families[2], "pdnsmos", parts, personal))
        for family, prefix, parts, theirs in runs:
            (ours,) = family.compute([sample(wav)], [f"{prefix}_{k}" for k in parts])
            worst = max(worst, *(abs(ours[f"{prefix}_{k}"].value - theirs[f"{k}_mos"]) for k in parts))
    assert worst < 1e-3


def test_torch_module_is_the_onnx_graph_and_the_engines_agree_with_the_polynomial():
    wavs = np.stack([with_noise(voice(1.0, seed=s), 10) for s in range(2)])
    net = P835Net(personalised=True)
    onnx = _session("pp835", 1).run(None, {"input_1": wavs})[0]
    np.testing.assert_allclose(net.raw(torch.from_numpy(wavs)).numpy(), onnx, atol=1e-4)
    columns, given = ["dnsmos_fast_sig", "dnsmos_fast_bak", "dnsmos_fast_ovrl"], [*map(sample, wavs)]
    a, b = (FastDnsmos(engine=e, threads=1).compute(given, columns) for e in ("onnx", "torch"))
    a, b = ([[row[c].value for c in columns] for row in rows] for rows in (a, b))
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(P835Net(level_dbfs=-25.0)(torch.from_numpy(wavs)).numpy(), a, atol=1e-4)


def test_level_earns_nothing_when_it_is_normalised():
    wav = with_noise(voice(1.0), 10)
    names = "dnsmos_fast", "dnsmos_fast[level_dbfs=none]"
    table = scored([sample(wav * np.float32(g)) for g in (0.05, 1.0, 2.5)], *names)
    fast, plain = ([s.value for s in table[name]] for name in names)
    assert np.ptp(fast) < 1e-3 < np.ptp(plain)


def test_columns_share_one_pass_and_keep_their_names(monkeypatch):
    calls, real = [], FastDnsmos.raw
    monkeypatch.setattr(FastDnsmos, "raw", lambda self, wavs, *how: calls.append(wavs.shape) or real(self, wavs, *how))
    names = ["dnsmos_fast", "dnsmos_fast_sig", "dnsmos_fast_bak"]
    wavs = [with_noise(voice(s, seed=i), 10) for i, s in enumerate((1.0, 0.5, 1.0))]
    table, alone = scored([*map(sample, wavs)], *names), scored([sample(wavs[1])], *names)
    assert set(table) == set(names) and calls == [(2, 16000), (1, 8000), (1, 8000)]
    for name in names:
        assert table[name][1].value == pytest.approx(alone[name][0].value, abs=1e-5)
        assert all(1 <= s.value <= 5 for s in table[name])


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_noise_lowers_the_score_any_length_has_one_and_a_few_samples_change_little(engine: str) -> None:
    wav, name = 0.05 * np.random.default_rng(0).standard_normal(24159), f"dnsmos_fast_bak[engine={engine}]"
    samples = [sample(with_noise(voice(1.0), snr)) for snr in (40, 15, 0)]
    high, middle, low, whole, odd = scored([*samples, sample(wav[:24000]), sample(wav)], name)[name]
    assert high.value > middle.value > low.value
    assert whole.value is not None and odd.value is not None, odd.error
    assert abs(whole.value - odd.value) < 0.02
