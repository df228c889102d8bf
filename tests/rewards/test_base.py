"""The registry, names with options, gates, and Python functions as rewards."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import numpy as np
import pytest
from reward_signals import sample, scored, voice, with_noise

from rlspeech.data.audio import resample
from rlspeech.rewards import base
from rlspeech.rewards.base import available, column_of, gate, register, resolve
from rlspeech.rewards.catalogue import Column, Entry
from rlspeech.rewards.intrusive import si_sdr
from rlspeech.rewards.scorer import Scorer, get_reward
from rlspeech.tasks import get_task
from rlspeech.types import Reward, UserError


def test_listing_the_rewards_imports_nothing_heavy():
    code = "import sys; from rlspeech.rewards.base import available; available(); "
    heavy = {"torch", "librosa", "onnxruntime", "transformers", "pesq", "scipy"}
    code += f"bad = {heavy} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_of_the_catalogue_names_a_class_that_exists_and_columns_it_computes():
    for entry in base._entries.values():
        module, _, name = entry.factory.partition(":")
        assert hasattr(getattr(importlib.import_module(module), name), "compute"), entry
    stoi, why_not = next((e, why) for e, why in available() if e.family == "stoi")
    assert not why_not and [*stoi.columns] == ["stoi", "estoi"] and stoi.needs == {"target"}


def test_duplicate_names_are_refused_and_nothing_is_half_registered():
    before = (dict(base._columns), dict(base._aliases))
    with pytest.raises(ValueError, match="stoi"):
        register(Entry("fresh", "x:y", {"brand_new": Column(""), "stoi": Column("")}))
    with pytest.raises(ValueError, match="pesq"):
        register(Entry("fresh", "x:y", {"brand_new": Column("")}), {"pesq": "brand_new"})
    assert (base._columns, base._aliases) == before


def test_missing_package_is_a_reason_and_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in next(why for entry, why in available() if entry.family == "pesq_wb")
    with pytest.raises(UserError) as error:
        resolve("pesq")
    assert "pesq is not installed" in error.value.why


def test_names_aliases_options_and_typos():
    assert resolve("pesq").column == "pesq_wb"
    request = resolve("dnsmos_ovrl[level_dbfs=-25, engine=torch,threads=none]")
    assert dict(request.options) == {"level_dbfs": -25, "engine": "torch", "threads": None}
    assert resolve("dnsmos_sig").key == resolve("dnsmos_bak").key != resolve("dnsmos_sig[threads=2]").key
    assert not column_of("lsd").higher_is_better and column_of("estoi").higher_is_better
    with pytest.raises(UserError, match="'dnsmos_ovrl'"):
        resolve("dnsmos_ovlr")
    for bad in ("estoi[x]", "estoi[", "[a=1]", "estoi[1=2]"):
        with pytest.raises(UserError):
            resolve(bad)
    with pytest.raises(UserError, match="option"):
        scored([sample(voice(0.5), target=voice(0.5))], "speech_bert_score[nonsense=1]")


@pytest.mark.parametrize(
    ("wav", "reason"),
    [
        *((np.zeros(0), "no samples"), (np.zeros(16000), "silent"), (np.full(16000, 1e-5), "silent")),
        *((np.full(16000, np.nan), "NaN"), (np.r_[np.ones(100), np.inf], "NaN or infinite")),
        *((np.ones(20) * 0.1, "too short"), (np.ones((2, 16000)) * 0.1, "mono")),
        (np.ones(16000) * 1e6, "beyond any level"),
    ],
)
def test_gates(wav, reason):
    entry = resolve("si_sdr").entry
    assert reason in (gate(sample(wav, target=voice(1)), entry) or "passed")
    assert reason in (gate(sample(voice(1), target=np.asarray(wav, np.float32)), entry) or "passed") or wav.ndim == 2
    assert gate(sample(voice(1)), entry) == "no reference audio"
    assert gate(sample(voice(1)), resolve("wer").entry) == "no reference text"
    assert gate(sample(voice(1), target=voice(1)), entry) is None


def test_bad_items_cost_themselves_only_and_order_is_kept():
    clean = voice(1.0)
    bad = [np.zeros(16000, np.float32), np.full(16000, np.nan, np.float32), clean[:10]]
    good = [with_noise(clean, snr) for snr in (20, 10, 0)]
    wavs = [good[0], bad[0], good[1], bad[1], bad[2], good[2]]
    samples = [sample(w, str(i), target=clean) for i, w in enumerate(wavs)]
    names = ["si_sdr", "estoi", "speaker_similarity", "lsd"]
    table, alone = scored(samples, *names), scored(samples[5:], *names)
    for name in names:
        values = [s.value for s in table[name]]
        assert [v is None for v in values] == [False, True, False, True, True, False], name
        assert all(s.error for s in table[name] if s.value is None)
        assert values[5] == pytest.approx(alone[name][0].value, abs=1e-5)
    si_sdr = [s.value for s in table["si_sdr"]]
    assert si_sdr[0] > si_sdr[2] > si_sdr[5] and si_sdr[0] == pytest.approx(20, abs=0.5)


def test_single_reward_is_a_reward():
    reward = get_reward("pesq_wb")
    assert isinstance(reward, Reward) and reward.needs == {"target"} and reward.sample_rate == 16000
    assert "pesq" in reward.version
    (score,) = reward.score([sample(voice(1), target=voice(1))])
    assert score.value == pytest.approx(4.64, abs=0.01)
    assert reward.score([]) == []


def test_rates_are_converted_and_counted():
    clean = voice(1.0)
    noisy = with_noise(clean, 10)
    up = [resample(x, 16000, 48000) for x in (noisy, clean)]
    with Scorer(["si_sdr", "estoi", "pesq_wb", "dnsmos"], workers=0) as scorer:
        a = scorer.score([sample(noisy, target=clean)])
        b = scorer.score([sample(up[0], target=up[1], rate=48000)])
        meta = scorer.meta()
    assert b["si_sdr"][0].value == pytest.approx(a["si_sdr"][0].value, abs=0.3)  # at their own rates
    assert meta["_input"]["resampled"] == {"48000 Hz -> 16000 Hz": 1}  # once, though two rewards asked
    assert scorer.rates["si_sdr"] == {(16000, 16000): 1, (48000, 48000): 1}
    assert (16000, 48000) in scorer.rates["pesq_wb"]
    assert meta["estoi"]["version"] and meta["estoi"]["needs"] == ["target"]


def test_measures_have_their_own_rate_or_none():
    from pesq import pesq
    from pystoi import stoi

    clean = resample(voice(2.0), 16000, 8000)
    noisy = with_noise(clean, 10)
    with Scorer(["pesq_nb", "pesq", "estoi", "si_sdr", "lsd"], workers=0) as scorer:
        table = {k: v[0] for k, v in scorer.score([sample(noisy, target=clean, rate=8000)]).items()}
    assert table["pesq"].value is None and "8000 Hz" in table["pesq"].error
    assert table["pesq_nb"].value == pytest.approx(pesq(8000, clean, noisy, "nb"), abs=1e-6)
    assert table["estoi"].value == pytest.approx(stoi(clean, noisy, 8000, extended=True), abs=1e-9)
    assert table["si_sdr"].value == pytest.approx(si_sdr(clean, noisy), abs=1e-9)
    assert all(set(rates) == {(8000, 8000)} for name, rates in scorer.rates.items()) and "pesq_wb" not in scorer.rates


def test_a_level_matters_only_to_what_hears_it():
    clean, gain = voice(1.0), np.float32(10 ** (-70 / 20))
    noisy, names = with_noise(clean, 10), ["si_sdr", "estoi", "stoi", "pesq_wb", "dnsmos"]
    far = np.full(16000, 1e38, np.float32)
    pairs = [sample(noisy, target=clean), sample(noisy * gain, target=clean * gain), sample(far, target=clean)]
    table = scored(pairs, *names)
    for name in names[:4]:
        assert table[name][1].value == pytest.approx(table[name][0].value, abs=1e-3), name
    assert table["dnsmos"][1].value is None and "dBFS" in table["dnsmos"][1].error
    assert all(table[name][2].value is None and "beyond" in table[name][2].error for name in names)


def test_over_full_scale_is_scored_as_it_would_be_saved_and_only_what_is_asked_for():
    clean = voice(1.0)
    wavs = clean * 20, clean * (0.99 / np.abs(clean).max())
    with Scorer(["si_sdr", "lsd"], workers=0) as scorer:
        table = scorer.score([sample(w, target=clean) for w in wavs], only=["lsd"])
        assert scorer.meta()["_input"]["over_full_scale"] == 1
    loud, scaled = table["lsd"]
    assert loud.value == pytest.approx(scaled.value, abs=1e-3)
    assert set(table) == {"lsd"} and scorer.seconds["si_sdr"] == 0.0 < scorer.seconds["lsd"]


def test_user_function_scores_its_failures_and_every_rate():
    name, wav = "reward_plugins:picky", voice(0.2)
    scores = scored([sample(wav, snr=s) for s in ("fine", "raise", "none", "text", "nan", "fine")], name)[name]
    for kind, why in (("few", "0 for 1"), ("number", "float")):
        good, bad = scored([sample(wav, snr="fine"), sample(wav, snr=kind)], name)[name]
        assert (good.value, bad.value) == (1.5, None) and why in bad.error
    assert [s.value for s in scores] == [1.5, None, None, None, None, 1.5]
    for score, word in zip(scores[1:5], ("this one", "None", "str", "nan"), strict=True):
        assert word in score.error
    assert not column_of(name).higher_is_better
    scores = scored([sample(wav, rate=rate) for rate in (16000, 8000, 16000)], "reward_plugins:loudness")
    assert [s.value for s in scores["reward_plugins:loudness"]] == pytest.approx([0.1] * 3, rel=1e-3)


def test_user_function_that_never_returns_changes_its_input_or_wants_to_end_the_run():
    wav, clean = voice(0.5), voice(0.5) + 0.01
    names = [*(f"reward_plugins:{name}" for name in ("zeroes", "sleeps", "leaves", "endless")), "si_sdr"]
    with Scorer(names, workers=0, timeout_s=0.05) as scorer:
        began = time.monotonic()
        zeroes, sleeps, leaves, endless, si_sdr = scorer.score([sample(wav, target=clean)] * 12).values()
        assert time.monotonic() - began < 5  # after three calls in a row it is not called any more
    assert [s.value for s in zeroes] == [1.0] * 12
    assert all(s.value is not None and s.value > 1 for s in si_sdr)  # of the waveform as it was
    assert all(s.error and ("longer" in s.error or "time" in s.error) for s in sleeps)
    assert all(s.error and "SystemExit" in s.error for s in leaves)
    assert all(s.error and "float" in s.error for s in endless)


@pytest.mark.parametrize("code", ["def f(:", "raise RuntimeError('x')", "import sys; sys.exit(3)", "1 / 0"])
def test_user_modules_that_do_not_load(tmp_path, code, monkeypatch):
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(UserError):
        Scorer(["broken_module:f"], workers=0)
    with pytest.raises(UserError):
        get_task("os:system")


MISTAKES = {"wrong_signature": "signature", "nothing": "import", "NOT_CALLABLE": "function"}


@pytest.mark.parametrize(("function", "word"), MISTAKES.items())
def test_user_function_mistakes_are_told(function, word):
    with pytest.raises(UserError, match=word):
        scored([sample(voice(0.2))] * 2, f"reward_plugins:{function}")
    with pytest.raises(UserError, match="import"):
        Scorer(["no_such_package_here:f"], workers=0)


def test_dry_run_passes_on_what_works_and_names_what_does_not():
    with Scorer(["estoi", "si_sdr", "lsd", "speaker_similarity"], workers=0) as scorer:
        scorer.dry_run()
        assert sum(scorer.seconds.values()) == 0.0
    with Scorer(["wer"], workers=0) as scorer, pytest.raises(UserError, match="recogniser"):
        scorer.dry_run()


def test_functions_that_ask_for_hypotheses_judge_texts_whatever_the_waveform():
    name = "reward_plugins:letters"
    request = resolve(name)
    assert "hypothesis" in request.entry.needs
    assert column_of(name).optional and not column_of("reward_plugins:loudness").optional
    rows = [sample(text="x", hypothesis="four", condition=1), sample(np.full(5, np.nan), rate=8000, hypothesis="four")]
    scores = get_reward(name).score([*rows, sample(voice(0.2), text="x")])
    assert [s.value for s in scores] == [4.0, None, None] and scores[2].error == "no hypothesis"
    entry = resolve("asr_wer").entry  # tells an empty reference from an unknown one
    assert gate(sample(), entry) == "no hypothesis" and gate(sample(hypothesis=""), entry) == "no reference text"
    empty = sample(text="", hypothesis="")
    assert gate(empty, entry) is None and gate(empty, resolve("wer").entry) == "no samples"
