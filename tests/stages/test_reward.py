"""``rlspeech reward``: rows, meta, resuming, and every kind of bad file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from rlspeech import log
from rlspeech.config import ScoreFolder
from rlspeech.rewards.scorer import Scorer
from rlspeech.stages import reward
from rlspeech.types import UserError

RATE = 16000


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    """(T,) float32: harmonics that come and go at 4 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    wav = sum(np.sin(2 * np.pi * 150 * k * t + rng.uniform(0, 6)) / k for k in range(1, 20))
    wav = wav * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t + seed)) + 0.01 * rng.standard_normal(len(t))
    return (0.1 * wav / wav.std()).astype(np.float32)


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch):
    monkeypatch.setattr(log, "quiet", True)


@pytest.fixture
def folders(tmp_path):
    """Three outputs (one in a subfolder, one FLAC) and their references."""
    for i, name in enumerate(["a.wav", "sub/b.wav", "c.flac"]):
        clean = tone(0.8, i)
        noisy = clean + 0.02 * (i + 1) * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32)
        for folder, wav in (("out", noisy), ("ref", clean)):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path.with_suffix(".wav") if folder == "ref" else path, wav, RATE)
    return tmp_path


def config(folders: Path, rewards: list[str], **rest) -> ScoreFolder:
    return ScoreFolder(
        **{"rewards": rewards, "target": str(folders / "ref"), "out": str(folders / "scores"), "workers": 0, **rest}
    )


def rows(folders: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folders / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len({(r["system"], r["key"]) for r in lines}) == len(lines)
    return {r["key"]: r for r in lines}


def meta(folders: Path) -> dict:
    return json.loads((folders / "scores" / "scores.meta.json").read_text())["systems"]


def test_scores_a_folder(folders, capsys, monkeypatch):
    monkeypatch.setattr(log, "quiet", False)
    summary = reward.run(config(folders, ["si_sdr", "lsd"], system="mine"), folders / "out", json_mode=False)
    found = rows(folders)
    assert set(found) == {"a", "sub/b", "c"}
    assert found["a"]["si_sdr"] > found["sub/b"]["si_sdr"] > found["c"]["si_sdr"]
    assert all(r["system"] == "mine" and r["errors"] == {} and "lag_ms" in r for r in found.values())
    facts = meta(folders)["mine"]["metrics"]["si_sdr"]
    mean = np.mean([r["si_sdr"] for r in found.values()])
    assert facts["n_valid"] == 3 and facts["mean"] == pytest.approx(mean) and facts["version"]
    assert facts["lo"] < mean < facts["hi"]
    assert summary["metrics"]["si_sdr"]["mean"] == pytest.approx(mean) and summary["n"] == 3
    assert "lower is better" in capsys.readouterr().out
    json.dumps(summary)


def test_bad_files_cost_their_row(folders):
    out = folders / "out"
    (out / "empty.wav").touch()
    (out / "text.wav").write_text("not audio")
    sf.write(out / "none.wav", np.zeros(0), RATE)
    sf.write(out / "silent.wav", np.zeros(RATE), RATE)
    sf.write(out / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (out / "cut.wav").write_bytes((out / "a.wav").read_bytes()[:30])
    sf.write(out / "stereo48.wav", np.stack([np.repeat(tone(0.8), 3)] * 2, 1), 48000)
    sf.write(folders / "ref" / "stereo48.wav", tone(0.8), RATE)
    sf.write(folders / "ref" / "silent.wav", tone(1.0), RATE)
    (out / ".hidden.wav").touch()
    sf.write(out / "alone.wav", tone(0.5), RATE)
    sf.write(out / "badref.wav", tone(0.5), RATE)
    (folders / "ref" / "badref.wav").write_text("no")
    summary = reward.run(config(folders, ["si_sdr"]), out)
    found = rows(folders)
    reasons = {k: r["errors"].get("si_sdr", "") for k, r in found.items()}
    assert ".hidden" not in found and found["stereo48"]["si_sdr"] > 5
    expected = {"empty": "0 bytes", "text": "unreadable", "none": "no samples", "silent": "silent", "nan": "NaN"}
    expected |= {"cut": "audio: ", "alone": "no reference audio", "badref": "reference: unreadable"}
    for key, words in expected.items():
        assert found[key]["si_sdr"] is None and words in reasons[key], (key, reasons[key])
    assert summary["metrics"]["si_sdr"]["n_valid"] == 4 and summary["metrics"]["si_sdr"]["n_failed"] == 8
    assert meta(folders)["system"]["input"]["resampled"] == {"48000 Hz -> 16000 Hz": 1}
    assert sum(meta(folders)["system"]["metrics"]["si_sdr"]["reasons"].values()) == 8


def counting(monkeypatch):
    """Samples and rewards of every call of the scorer."""
    calls: list[tuple[list[str], list[str]]] = []
    real = Scorer.start

    def start(self, samples, only=None):
        calls.append((sorted(s.key for s in samples), sorted(only or [])))
        return real(self, samples, only)

    monkeypatch.setattr(Scorer, "start", start)
    return calls


def test_resumes_and_computes_only_what_is_new(folders, monkeypatch):
    calls = counting(monkeypatch)
    first = reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert len(calls) == 1
    again = reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert len(calls) == 1 and again["metrics"] == first["metrics"]
    reward.run(config(folders, ["si_sdr", "lsd"]), folders / "out")  # a further reward
    assert calls[1:] == [(["a", "c", "sub/b"], ["lsd"])]
    assert all({"si_sdr", "lsd"} <= set(r) for r in rows(folders).values())
    changed = folders / "out" / "a.wav"
    sf.write(changed, tone(0.9, 7), RATE)  # a further file version
    reward.run(config(folders, ["si_sdr", "lsd"]), folders / "out")
    assert calls[2:] == [(["a"], ["lsd", "si_sdr"])]
    reward.run(config(folders, ["si_sdr"], system="other"), folders / "out")  # another system in the same file
    assert calls[-1][0] == ["a", "c", "sub/b"] and set(meta(folders)) == {"system", "other"}


def test_changed_options_recompute(folders, monkeypatch):
    calls = counting(monkeypatch)
    reward.run(config(folders, ["si_sdr"]), folders / "out")
    monkeypatch.setattr("rlspeech.rewards.intrusive.SiSdr.version", "si-sdr-2")
    reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert [c[1] for c in calls] == [["si_sdr"], ["si_sdr"]]
    assert meta(folders)["system"]["metrics"]["si_sdr"]["version"] == "si-sdr-2"


def test_interrupt_keeps_what_is_scored(folders, monkeypatch):
    calls: list[str] = []
    real = Scorer.start

    def start(self, samples, only=None):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(samples[0].key)
        return real(self, samples, only)

    monkeypatch.setattr(Scorer, "start", start)
    with pytest.raises(KeyboardInterrupt):
        reward.run(config(folders, ["si_sdr"], batch=1), folders / "out")
    kept = rows(folders)
    assert kept and all(math.isfinite(r["si_sdr"]) for r in kept.values())
    monkeypatch.setattr(Scorer, "start", real)
    calls.clear()
    later = counting(monkeypatch)
    reward.run(config(folders, ["si_sdr"], batch=1), folders / "out")
    assert sorted(k for c in later for k in c[0]) == sorted(set(rows(folders)) - set(kept)) and len(rows(folders)) == 3


def test_torn_file_of_a_killed_run_is_taken_up(folders):
    reward.run(config(folders, ["si_sdr"]), folders / "out")
    path = folders / "scores" / "scores.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    reward.run(config(folders, ["si_sdr"]), folders / "out")
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_workers_and_inline_write_the_same_file(folders):
    names = ["estoi", "si_sdr"]
    reward.run(config(folders, names), folders / "out")
    inline = rows(folders)
    reward.run(config(folders, names, workers=2, out=str(folders / "other")), folders / "out")
    pooled = [json.loads(x) for x in (folders / "other" / "scores.jsonl").read_text().splitlines()]
    assert {r["key"]: r["estoi"] for r in pooled} == pytest.approx({k: r["estoi"] for k, r in inline.items()}, abs=1e-6)


def test_manifest_and_its_columns_reach_user_functions(folders, monkeypatch):
    (folders / "my_reward_module.py").write_text(
        "def snr(wavs, texts, sample_rate, snr=None, **columns):\n    return list(snr)\n"
    )
    monkeypatch.syspath_prepend(str(folders))
    same = {"audio_filepath": "out/a.wav", "target_filepath": "ref/a.wav", "duration": 0.8, "sample_rate": RATE}
    lines = [{"id": f"u{i}", **same, "snr": i} for i in range(2)]
    (folders / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = "my_reward_module:snr"
    summary = reward.run(ScoreFolder(rewards=[name, "si_sdr"], workers=0), folders / "m.jsonl")
    assert summary["metrics"][name]["mean"] == 0.5 and Path(summary["scores"]).name == "m.scores.jsonl"


@pytest.mark.parametrize("kind", ["jsonl", "kaldi", "folder"])
def test_transcripts_in_three_forms(folders, kind, monkeypatch):
    (folders / "my_recogniser_module.py").write_text("def hear(wavs, rate):\n    return ['one two'] * len(wavs)\n")
    monkeypatch.syspath_prepend(str(folders))
    texts = {"a": "one two", "sub/b": "one three", "c": "two"}
    path = folders / {"jsonl": "t.jsonl", "kaldi": "text", "folder": "texts"}[kind]
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in texts.items()))
    elif kind == "kaldi":
        path.write_text("".join(f"{k} {v}\n" for k, v in texts.items()))
    else:
        for k, v in texts.items():
            (path / f"{k}.txt").parent.mkdir(parents=True, exist_ok=True)
            (path / f"{k}.txt").write_text(v + "\n")
    reward.run(config(folders, ["wer"], text=str(path), recogniser="my_recogniser_module:hear"), folders / "out")
    found = rows(folders)
    assert [found[k]["wer"] for k in ("a", "sub/b", "c")] == [0.0, 0.5, 1.0] and found["a"]["hypothesis"] == "one two"


def test_mistakes_are_told(folders, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    out = folders / "out"
    for changes, path, words in [
        ({}, empty, "empty"),
        ({}, folders / "nothing", "nothing"),
        ({"target": None}, out, "--target"),
        ({"target": str(empty)}, out, "empty"),
        ({"target": str(folders / "nowhere")}, out, "nowhere"),
        ({"rewards": ["wer"], "recogniser": "x:y"}, out, "--text"),
        ({"text": str(folders / "nowhere")}, out, "nowhere"),
        ({"rewards": ["si_sdrr"]}, out, "'si_sdr'"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            reward.run(config(folders, **{"rewards": ["si_sdr"], **changes}), path)
        assert error.value.try_this


def test_references_inside_the_folder_are_not_scored(folders):
    inside = folders / "out" / "clean"
    inside.mkdir()
    for path in (folders / "ref").rglob("*.wav"):
        sf.write(inside / path.name, *sf.read(path))
    reward.run(config(folders, ["si_sdr"], target=str(inside)), folders / "out")
    assert set(rows(folders)) == {"a", "sub/b", "c"}


def test_one_file_against_one_reference(folders):
    asked, path = config(folders, ["si_sdr"], target=str(folders / "ref" / "a.wav")), folders / "out" / "a.wav"
    assert reward.run(asked, path)["n"] == 1 and rows(folders)["a"]["si_sdr"] > 10
    beside = reward.run(asked.model_copy(update={"out": None}), path)
    assert beside["scores"] == str(folders / "out" / "a.scores.jsonl")


def test_files_named_one_by_one_score_as_their_folder_does(folders, monkeypatch):
    monkeypatch.chdir(folders)
    whole = reward.run(config(folders, ["si_sdr"]), folders / "out")
    named = ["out/a.wav", "./out/sub/b.wav", "out/c.flac", "out/a.wav", "out/gone.wav"]
    some = reward.run(config(folders, ["si_sdr"], out=None), named)
    assert some["scores"] == "scores.jsonl" and some["n"] == 4, "each once; what is missing costs itself"
    found = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    values = {r["key"]: r["si_sdr"] for r in found}
    assert values.pop("gone") is None and sorted(values.values()) == sorted(r["si_sdr"] for r in rows(folders).values())
    assert whole["n"] == 3


def test_files_of_one_name_are_told_apart(folders):
    (folders / "out" / "sub" / "a.wav").write_bytes((folders / "out" / "c.flac").read_bytes())
    named = [str(folders / "out" / "a.wav"), str(folders / "out" / "sub" / "a.wav")]
    assert reward.run(config(folders, ["si_sdr"]), named)["n"] == 2 and len(rows(folders)) == 2
