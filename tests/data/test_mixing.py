"""Mixtures: what was asked for is what is measured, and the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_corpora import RATE, voice

from rlspeech.config import Mixing
from rlspeech.data.audio import AudioError, load_audio, rms_dbfs, save_audio
from rlspeech.data.manifest import write_manifest
from rlspeech.data.mixing import MixtureSet, crop, cut, joined, mix, mixture_rng, reverberate, write_recipe
from rlspeech.types import UserError, Utterance


def _noise(seed: int = 0, seconds: float = 1.0) -> np.ndarray:
    return (0.05 * np.random.default_rng(100 + seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def _ratio_db(noisy: np.ndarray, target: np.ndarray) -> float:
    powers = (np.sum(wav.astype(np.float64) ** 2) for wav in (target, noisy - target))
    return 10 * np.log10(next(powers) / next(powers))


@settings(max_examples=25, deadline=None)
@given(snr=st.floats(-15, 30), level=st.floats(-45, -20), seed=st.integers(0, 99))
def test_the_snr_and_the_level_are_those_asked_for(snr: float, level: float, seed: int) -> None:
    noisy, target = mix(voice(seed), _noise(seed), None, snr, level)
    assert _ratio_db(noisy, target) == pytest.approx(snr, abs=0.02)
    assert rms_dbfs(noisy) == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize("offset, of_speech", [(0.3, 0.0), (-0.01, 0.05)])
def test_an_offset_is_no_sound(offset: float, of_speech: float) -> None:
    noisy, target = mix(voice(0) + np.float32(of_speech), 0.1 * _noise() + np.float32(offset), None, 5.0, -25.0)
    assert 10 * np.log10(np.var(target) / np.var(noisy - target)) == pytest.approx(5.0, abs=0.02)
    assert rms_dbfs(noisy) == pytest.approx(-25.0, abs=0.01)


def test_loud_mixtures_are_turned_down_instead_of_clipped() -> None:
    noisy, target = mix(voice(0), _noise(), None, 5.0, 10.0)
    assert 0.98 < max(np.abs(noisy).max(), np.abs(target).max()) <= 0.9901
    assert _ratio_db(noisy, target) == pytest.approx(5.0, abs=0.02)  # the same gain on both


def test_silence_is_refused() -> None:
    silent, room = np.zeros(RATE, np.float32), np.zeros(800, np.float32)
    silences = {"silent speech": (silent, _noise(), None), "silent noise": (voice(0), silent, None)}
    for words, sounds in (silences | {"impulse": (voice(0), _noise(), room)}).items():
        with pytest.raises(AudioError, match=words):
            mix(*sounds, 0, -25)


def _room(direct: int = 200, late: int = 3000) -> np.ndarray:
    rir = np.zeros(6000, np.float32)
    rir[direct], rir[direct + 300], rir[direct + late] = 0.8, 0.3, 0.2  # direct, 19 ms, 187 ms
    return rir


def test_reverberation_stays_aligned_on_the_direct_sound() -> None:
    dry = voice(0)
    wet, target = reverberate(dry, _room(direct=777), RATE, None)
    lags = np.correlate(wet, dry, "full")
    assert int(np.argmax(lags)) - (len(dry) - 1) == 0
    np.testing.assert_array_equal(wet, target)
    echo = dry.copy().astype(np.float64)  # the same by hand: taps over the direct one
    echo[300:] += 0.3 / 0.8 * dry[:-300]
    echo[3000:] += 0.2 / 0.8 * dry[:-3000]
    np.testing.assert_allclose(wet, echo, atol=1e-5)


def test_the_target_keeps_early_reflections_only() -> None:
    dry = voice(0)
    wet, target = reverberate(dry, _room(), RATE, 50.0)
    echo = dry.copy().astype(np.float64)
    echo[300:] += 0.3 / 0.8 * dry[:-300]
    np.testing.assert_allclose(target, echo, atol=1e-5)
    late = rms_dbfs(0.25 * dry[:-3000]) + 10 * np.log10(1 - 3000 / len(dry))
    assert rms_dbfs(wet - target) == pytest.approx(late, abs=0.05)
    assert np.abs(reverberate(dry, _room(), RATE, 0.0)[1] - dry).max() < 1e-5  # nothing but the direct sound


def test_crops() -> None:
    rng = mixture_rng(0, 0, "a")
    wav = np.arange(10.0)
    np.testing.assert_array_equal(cut(wav, 12, rng)[0], [*range(10), 0, 0])
    looped = crop(wav, 25, rng)
    assert len(looped) == 25 and set(np.diff(looped)) == {1.0, -9.0}
    starts = {int(cut(wav, 4, rng)[0][0]) for _ in range(200)}
    assert starts == set(range(7))  # every start can occur, the last one too


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    utts: dict[str, list[Utterance]] = {"clean": [], "noise": []}
    for kind, make, count in (("clean", voice, 5), ("noise", _noise, 3)):
        for i in range(count):
            path = folder / kind / f"{kind}{i}.flac"
            save_audio(path, make(i, 1.3), RATE)
            utts[kind].append(Utterance(f"{kind}{i}", str(path), 1.3, RATE))
        write_manifest(folder / f"{kind}.jsonl", utts[kind], None)
    return write_recipe(folder, Mixing(clip_s=0.5), rir=False)


def test_epochs_seeds_and_utterances_differ(recipe: Path) -> None:
    made = MixtureSet.from_recipe(recipe)
    first = made.get(0, 0)
    assert first.noisy.shape == first.target.shape == (RATE // 2,)
    others = [made.get(1, 0), made.get(0, 1), MixtureSet.from_recipe(recipe, seed=1).get(0, 0)]
    assert all(not np.array_equal(first.noisy, o.noisy) for o in others)
    assert len({made.get(e, 0).noise_id for e in range(30)}) == 3
    snrs = [made.get(e, i).snr_db for e in range(20) for i in range(5)]
    assert -5 <= min(snrs) < 0 and 10 < max(snrs) <= 15
    assert len(made.get(0, 0, 0.0).noisy) == int(1.3 * RATE)


def test_an_utterance_keeps_its_mixture_when_the_corpus_grows(recipe: Path) -> None:
    made = MixtureSet.from_recipe(recipe)
    wanted = made.get(2, 3)
    made.clean.insert(0, made.clean[0])
    np.testing.assert_array_equal(made.get(2, 4).noisy, wanted.noisy)


LISTS = {"clean": "clean.jsonl", "noise": "noise.jsonl"}
MISTAKES = [({"noise": None}, "mix.json"), ({"clean": "nowhere.jsonl"}, "nowhere"), ({"clean": "broken.jsonl"}, "line")]
MISTAKES += [({"mixing": {"snr_dbb": [0, 1]}}, "snr_dbb"), ({"mixing": {"snr_db": "loud"}}, "snr_db")]
UNLIKE = [("{\n\n  bad", "line 3"), ("[]", "mix.json"), ('{"clean": "clean.jsonl"}', "noise")]


@pytest.mark.parametrize(("text", "clue"), [*UNLIKE, *((json.dumps(LISTS | bad), clue) for bad, clue in MISTAKES)])
def test_recipe_mistakes_are_named(recipe: Path, tmp_path: Path, text: str, clue: str) -> None:
    for kind, name in LISTS.items():
        rows = (recipe.parent / name).read_text()
        (tmp_path / name).write_text(rows.replace(f'"{kind}/', f'"{recipe.parent}/{kind}/'))
    good = (tmp_path / "clean.jsonl").read_text().splitlines()[0]
    (tmp_path / "broken.jsonl").write_text(f'{good}\n{{"audio_filepath": 3}}\n')
    (tmp_path / "mix.json").write_text(text)
    with pytest.raises(UserError, match=clue):
        MixtureSet.from_recipe(tmp_path / "mix.json")


def _voices(folder: Path, voices: tuple[str | None, ...], **mixing: object) -> MixtureSet:
    """One utterance a voice, each a tone of its own pitch, so that a mixture tells who is in it."""
    utts = []
    for i, speaker in enumerate(voices):
        tone = 0.1 * np.sin(2 * np.pi * (300 + 200 * i) * np.arange(RATE) / RATE)
        save_audio(folder / f"v{i}.flac", tone.astype(np.float32), RATE)
        utts.append(Utterance(f"v{i}", str(folder / f"v{i}.flac"), 1.0, RATE, speaker_id=speaker))
    save_audio(folder / "noise.flac", _noise(0, 1.0), RATE)
    noise = [Utterance("n", str(folder / "noise.flac"), 1.0, RATE)]
    return MixtureSet(utts, noise, [], Mixing(**{"clip_s": 0.5, "snr_db": (60.0, 60.0), **mixing}), RATE, 3)  # type: ignore[arg-type]


def _others(made: MixtureSet, epoch: int, index: int) -> set[int]:
    """Voices other than the target's that are heard in a mixture."""
    mixture = made.get(epoch, index)
    spectrum = np.abs(np.fft.rfft(mixture.noisy * np.hanning(len(mixture.noisy))))
    floor = 0.02 * spectrum.max()
    heard = {i for i in range(len(made.clean)) if spectrum[(300 + 200 * i) // 2] > floor}
    return heard - {index}


def test_a_talker_is_as_loud_as_asked_for_and_in_as_many_mixtures(tmp_path: Path) -> None:
    made = _voices(tmp_path, ("a", "b", "c"), talker=0.6, talker_snr_db=(-4.0, 6.0))
    ratios = []
    for epoch in range(150):
        mixture = made.get(epoch, 0)
        ratio = _ratio_db(mixture.noisy, mixture.target)
        assert ratio == pytest.approx(mixture.snr_db, abs=0.05)  # what is told is what is there
        assert (mixture.talker_id is not None) == (ratio < 30)
        ratios.append(ratio)
    joint = [r for r in ratios if r < 30]  # noise alone lies at 60 dB
    assert 0.45 < len(joint) / 150 < 0.75
    assert -4.1 < min(joint) < -2.5 and 4.5 < max(joint) < 6.1


def test_a_talker_and_noise_each_have_their_own_ratio() -> None:
    clean, noise, talker = voice(0), _noise(1), voice(2)
    both = joined(clean, noise, 7.0, 5 * talker, -3.0)
    part = both @ talker / (talker @ talker) * talker  # noise and talker hardly overlap
    assert rms_dbfs(clean) - rms_dbfs(part) == pytest.approx(-3.0, abs=0.2)
    assert rms_dbfs(clean) - rms_dbfs(both - part) == pytest.approx(7.0, abs=0.2)
    with pytest.raises(AudioError, match="silent noise"):
        joined(clean, np.zeros_like(noise), 7.0, talker, 0.0)


def test_nobody_competes_with_himself(tmp_path: Path) -> None:
    made = _voices(tmp_path, ("a", "a", "b", "c"), talker=1.0)
    heard = [_others(made, epoch, 0) for epoch in range(40)]
    assert set().union(*heard) == {2, 3} and sum(len(h) == 1 for h in heard) >= 39
    unknown = _voices(tmp_path, (None, None, None), talker=1.0)
    assert set().union(*(_others(unknown, e, 0) for e in range(40))) == {1, 2}
    alone = _voices(tmp_path, ("a", "a"), talker=1.0)
    # and the run goes on without
    assert all(not _others(alone, e, 0) and alone.get(e, 0).talker_id is None for e in range(5))


def test_without_talkers_a_mixture_draws_what_it_always_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chances in their order: place in the speech, noise, place in the noise, ratio, level; nothing behind."""
    made = _voices(tmp_path, ("a", "b", "c"), snr_db=(-5.0, 15.0))
    kept: list[np.random.Generator] = []
    monkeypatch.setattr("rlspeech.data.mixing.mixture_rng", lambda *key: kept.append(mixture_rng(*key)) or kept[-1])
    for epoch, index in ((0, 1), (4, 2)):
        mixture, rng = made.get(epoch, index), mixture_rng(3, epoch, f"v{index}")
        start, noise, place = rng.integers(RATE - RATE // 2 + 1), rng.integers(1), rng.integers(RATE - RATE // 2 + 1)
        snr, level = rng.uniform(-5.0, 15.0), rng.uniform(-35.0, -15.0)
        assert (mixture.start_s, mixture.snr_db, noise, mixture.talker_id) == (start / RATE, snr, 0, None)
        assert rms_dbfs(mixture.noisy) == pytest.approx(level, abs=0.01)
        speech = load_audio(tmp_path / f"v{index}.flac")[start : start + RATE // 2]
        sound = load_audio(tmp_path / "noise.flac")[place : place + RATE // 2]
        np.testing.assert_array_equal(mixture.noisy, mix(speech, sound, None, snr, level)[0])
        np.testing.assert_equal(kept[-1].bit_generator.state, rng.bit_generator.state)


def test_what_a_mixture_may_also_be(tmp_path: Path) -> None:
    made = _voices(tmp_path, ("a", "b"), snr_db=(0.0, 0.0), clean=0.5)
    ratios = [_ratio_db(m.noisy, m.target) for m in (made.get(epoch, 0) for epoch in range(40))]
    assert {round(r) for r in ratios} == {0, 60} and 8 < sum(r > 30 for r in ratios) < 32
    kinds = [_voices(tmp_path, ("a", "b"), coloured=0.4, babble=0.3).get(e, 0).noise_id for e in range(60)]
    assert 12 < kinds.count("coloured") < 36 and 6 < kinds.count("babble") < 30 and "n" in kinds
    for how in ({"speed": (0.8, 0.8)}, {"eq_db": 6.0}, {"second": 1.0}):
        plain, other = (_voices(tmp_path, ("a", "b"), snr_db=(5.0, 5.0), **h) for h in ({}, how))
        pairs = [(plain.get(e, 0), other.get(e, 0)) for e in range(4)]
        assert all(_ratio_db(m.noisy, m.target) == pytest.approx(5.0, abs=0.1) for _, m in pairs)
        assert any(np.abs(a.noisy - b.noisy).max() > 0.01 for a, b in pairs)
    slow = _voices(tmp_path, ("a",), speed=(0.8, 0.8)).get(0, 0).target
    assert np.abs(np.fft.rfft(slow * np.hanning(len(slow)))).argmax() == round(300 * 0.8 / 2)
