"""``eval --task tts``: tiny models of random weights, and a listener with a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from tiny_tts import TEXTS

from rlspeech.config import Evaluate
from rlspeech.config_parts import SPEAKING
from rlspeech.data.audio import load_audio
from rlspeech.stages import evaluate
from rlspeech.tasks.tts.evaluate import Synthesis
from rlspeech.tasks.tts.task import Tts
from rlspeech.types import Sample, UserError

pytestmark = pytest.mark.slow
RATE, LISTENER = 16000, "test_evaluate_tts:listen"
SAID = {
    "base": ["one too three", "four", "six seven eight", "mine zero"],
    "good": ["one two three", "four five", "six seven", ""],
}
Tiny = dict[str, str]
METRICS = ["tts_cer", "tts_wer", "tts_duration_ratio", "tts_duration_drift", "tts_stopped"]


def listen(wavs: list[np.ndarray], sample_rate: int) -> list[str]:
    """Texts are known by the lengths of their audio."""
    found = []
    for wav in wavs:
        place = round(len(wav) / sample_rate * 100) - 50
        found.append(SAID["good" if place >= 10 else "base"][place % 10])
    return found


class Speaker:
    """Says a sine of a length that says which text, and which speaker, it is of."""

    sample_rate = RATE

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def calls(tts: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, text by text, in the order in which it is said."""
    said: list[str] = []

    def say(
        self: Tts, model: Speaker, clips: Any, *, sampling: Any = None, seed: int = 0, wavs: bool = True
    ) -> list[Sample]:
        made = []
        for c in clips:
            if SAID[model.name][int(c.key[1])] == "crash":
                raise RuntimeError("this one again")
            said.append(f"{model.name} {c.key}")
            seconds = 0.5 + 0.01 * int(c.key[1]) + (0.1 if model.name == "good" else 0.0)
            wav = 0.2 * np.sin(np.arange(round(seconds * RATE)) / 9).astype(np.float32)
            if not SAID[model.name][int(c.key[1])]:
                wav = wav[:0]
            made.append(Sample(c.key, wav, RATE, None, c.text, c.columns, tokens=np.arange(8), finished=c.key != "u1"))
        return made

    monkeypatch.setattr(Tts, "load", lambda self, name, *a, **k: (Speaker(name.removeprefix("hub/")), {}))
    monkeypatch.setattr(Tts, "synthesise", say)
    return said


def ask(tts: Tiny, out: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"models": {"base": "hub/base", "good": "hub/good"}, "device": "cpu", "players": 3}
    settings |= {"metrics": METRICS, "recogniser": LISTENER, "workers": 0, "batch": 3, "anchors": False}
    return evaluate.run(Evaluate(task="tts", out=str(out), **{**settings, "data": tts["data"], **changes}))


def test_rates_are_those_of_the_corpus_and_differences_are_paired(tts: Tiny, calls: list[str], tmp_path: Path) -> None:
    made = ask(tts, tmp_path / "out")
    assert made["n"] == 4 and made["recogniser"] == LISTENER and made["baseline"] == "base"
    for system, texts in SAID.items():
        row = made["systems"][system]
        assert row["wer"]["mean"] == pytest.approx(100 * jiwer.wer(TEXTS, texts))
        assert row["tts_stopped"]["mean"] == 0.75 and "tts_cer" not in row
    base, good = made["systems"]["base"], made["systems"]["good"]
    assert made["deltas"]["good"]["cer"]["mean"] == pytest.approx(good["cer"]["mean"] - base["cer"]["mean"])
    relative = 100 * (good["wer"]["mean"] / base["wer"]["mean"] - 1)
    assert made["relative"]["good"]["wer"]["mean"] == pytest.approx(relative)
    assert base["tts_duration_ratio"]["mean"] == pytest.approx(0.515, abs=1e-3)
    assert "tts_duration_ratio" not in made["deltas"]["good"] and "tts_duration_drift" in made["deltas"]["good"]
    json.dumps(made, allow_nan=False)
    page = Path(made["report"]).read_text()
    assert "no speech for 1 texts" in page and "u1" in page and "did not stop" in page
    assert len(load_audio(tmp_path / "out" / "audio" / "base" / "u1.flac", RATE)) == round(0.51 * RATE)
    assert not (tmp_path / "out" / "audio" / "good" / "u3.flac").exists()


def test_a_run_goes_on_and_what_is_said_is_not_said_again(tts: Tiny, calls: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = ask(tts, out)
    assert len(calls) == 8
    lines = (out / "scores.jsonl").read_text().splitlines(keepends=True)
    (out / "scores.jsonl").write_text("".join(lines[:6]) + lines[6][:30])  # killed while writing
    (out / "audio" / "good" / "u1.flac").unlink()
    again = ask(tts, out, baseline="good", metrics=["tts_wer", "tts_loop"])
    assert len(calls) == 9 and calls[-1] == "good u1"
    assert again["systems"]["base"]["cer"] == first["systems"]["base"]["cer"] and "tts_loop" in again["systems"]["base"]
    with pytest.raises(UserError):  # other ears are another evaluation
        ask(tts, out, recogniser="reward_plugins:deaf")
    ask(tts, out, models={"base": "hub/good"}, baseline=None)  # another checkpoint under the same name
    assert calls[9:] and {t.split()[0] for t in calls[9:]} == {"good"}


def test_a_text_that_fails_is_left_out_for_every_system(
    tts: Tiny, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAID, "base", [*SAID["base"][:3], "crash"])
    made = ask(tts, tmp_path / "out")
    assert made["n"] == 3 and "1 utterances could not be scored" in Path(made["report"]).read_text()
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert "this one again" in next(r for r in rows if r["system"] == "base" and r["key"] == "u3")["errors"]["tts_cer"]
    monkeypatch.setitem(SAID, "base", SAID["good"])
    assert ask(tts, tmp_path / "out")["n"] == 4


def test_values_of_a_column_get_tables(tts: Tiny, calls: list[str], tmp_path: Path) -> None:
    made = ask(tts, tmp_path / "out", by="sex")
    assert made["by"]["male"]["n"] == 4 and "sex: male" in Path(made["report"]).read_text()


def test_a_real_model_is_heard_by_deaf_ears(tts: Tiny, tmp_path: Path) -> None:
    asked = {"models": {"m": tts["model"]}, "recogniser": "reward_plugins:deaf", "limit": 3}
    made = ask(tts, tmp_path / "out", **asked, metrics=["speaker_similarity", "tts_pitch_std", "tts_stopped"])
    assert made["n"] == 3 and made["systems"]["m"]["cer"]["mean"] == 100 and not made["deltas"]
    assert -1 <= made["systems"]["m"]["speaker_similarity"]["mean"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "said" / "m.jsonl").read_text().splitlines()]
    assert [r["key"] for r in rows] == ["u1", "u0", "u2"] and all(r["weights"] != tts["model"] for r in rows)
    again = ask(tts, tmp_path / "out2", **asked, batch=1, metrics=["tts_stopped"])
    assert again["systems"]["m"]["tts_stopped"] == made["systems"]["m"]["tts_stopped"]


def test_the_ears_of_the_reward_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_1").mkdir(parents=True)
    (run / "checkpoints" / "step_1" / "config.json").write_text("{}")
    (run / "checkpoints" / "latest").write_text("step_1")
    rewards = [{"name": "tts_accuracy[form=tanh,recogniser=pocketsphinx]"}, {"name": "tts_duration"}]
    (run / "config.resolved.json").write_text(json.dumps({"rewards": rewards}))

    def partial(listener: str, **models: str) -> list[str]:
        return Synthesis(Tts(), Evaluate(task="tts", models=models, recogniser=listener)).partial()

    assert "rl was trained on what pocketsphinx" in partial("pocketsphinx", rl=str(run))[0]
    assert not partial("embedded", rl=str(run), base="hub/base")
    (run / "config.resolved.json").write_text(json.dumps({"rewards": [{"name": "tts_cer"}]}))
    assert partial("embedded", rl=str(run))


def test_what_cannot_be_is_refused(tts: Tiny, calls: list[str], tmp_path: Path) -> None:
    for changes, match in (
        ({"nfe": 3}, "nfe"),
        ({"baseline": "who"}, "who"),
        ({"models": {"a/b": "x"}}, "a/b"),
        ({"models": {"recordings": "x"}}, "recordings"),
        ({"normaliser": "x"}, "x"),
        ({"metrics": ["nonsense"]}, "nonsense"),
        ({"recogniser": "no:such"}, "no"),
        ({"judge": "dnsmos"}, "--best-of"),
        ({"best_of": 2, "judge": "pesq"}, "target"),
        ({"best_of": 2, "models": {"a": "hub/base", "a-best2": "hub/good"}}, "a-best2"),
    ):
        with pytest.raises(UserError, match=match):
            ask(tts, tmp_path / "out", **changes)
    bare = tmp_path / "bare.jsonl"
    row = json.loads(Path(tts["data"]).read_text().splitlines()[0])
    bare.write_text(json.dumps({**row, "text": " ... ", "audio_filepath": "/none.flac"}) + "\n")
    with pytest.raises(UserError, match="prepare tts"):
        ask({**tts, "data": str(bare)}, tmp_path / "out")


def long(wavs: list[np.ndarray], sample_rate: int) -> list[str]:
    """Hears the first text in whatever lasts a second, and nothing in the rest."""
    return [TEXTS[0] if len(w) == sample_rate else "" for w in wavs]


def test_recordings_and_their_copies_say_what_could_be_had(tts: Tiny, tmp_path: Path) -> None:
    """The recordings last a second, and so do their copies of 25 ids a second."""
    out, models = tmp_path / "out", {"m": tts["model"], "n": tts["model"]}
    asked = {"models": models, "recogniser": "test_evaluate_tts:long"}
    metrics = ["speaker_similarity", "tts_duration_ratio", "tts_stopped", "tts_loop"]
    made = ask(tts, out, anchors=True, metrics=metrics, **asked)
    assert list(made["systems"]) == ["recordings", "resynthesis", "m", "n"]
    assert list(made["deltas"]) == ["n"] and made["baseline"] == "m"
    for name in ("recordings", "resynthesis"):
        row = made["systems"][name]
        assert row["wer"]["n"] == 4 and row["exact"]["mean"] == 25.0 and row["tts_duration_ratio"]["mean"] == 1.0
        assert list(row) == list(made["systems"]["m"])
        assert len(load_audio(out / "audio" / name / "u2.flac", RATE)) == RATE
    rows = {r["key"]: r for r in map(json.loads, (out / "said" / "resynthesis.jsonl").read_text().splitlines())}
    assert [len(r["tokens"]) for r in rows.values()] == [25] * 4 and {r["token_s"] for r in rows.values()} == {0.04}
    found, copies = (made["systems"][s] for s in ("recordings", "resynthesis"))
    assert found["tts_stopped"]["n"] == 0 and copies["tts_stopped"]["mean"] == 1.0  # recordings have no tokens
    # with their prompts
    assert -1 <= copies["speaker_similarity"]["mean"] <= 1 and found["speaker_similarity"]["n"] == 4
    page = Path(made["report"]).read_text()
    assert "recordings" in page and "resynthesis" in page
    before = (out / "scores.jsonl").read_text()
    assert ask(tts, out, anchors=True, metrics=metrics, **asked)["systems"] == made["systems"]  # nothing is made again
    assert (out / "scores.jsonl").read_text() == before
    alone = ask(tts, out, metrics=metrics, **asked)
    assert list(alone["systems"]) == ["m", "n"] and alone["systems"]["m"] == made["systems"]["m"]


def test_texts_without_a_recording_have_no_anchor(tts: Tiny, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(tts["data"]).read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {k: str(Path(tts["data"]).parent / row[k]) for k in ("audio_filepath", "prompt_filepath")}
        row["sex"] = f"s{i}"
    rows[0]["recorded"], rows[1]["audio_filepath"] = False, "/nowhere.flac"
    rows[2] = {k: v for k, v in rows[2].items() if not k.startswith("prompt")}
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    some.write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = {"models": {"m": tts["model"]}, "recogniser": "test_evaluate_tts:long", "anchors": True, "by": "sex"}
    made = ask(tts, tmp_path / "out", data=str(some), metrics=["speaker_similarity"], **asked)
    assert made["n"] == 4 and made["systems"]["recordings"]["wer"]["n"] == 2 and made["systems"]["m"]["wer"]["n"] == 4
    # u2 has no prompt, and is not compared with itself
    assert made["systems"]["recordings"]["speaker_similarity"]["n"] == 1
    assert made["systems"]["resynthesis"]["speaker_similarity"]["n"] == 2
    assert made["by"]["s0"]["systems"]["recordings"]["wer"]["n"] == 0  # not recorded
    assert "of 2 utterances; the other 2 have none" in Path(made["report"]).read_text()
    none.write_text("".join(json.dumps({**r, "recorded": False}) + "\n" for r in rows))
    made = ask(tts, tmp_path / "none", data=str(none), **asked)
    assert list(made["systems"]) == ["m"] and "these texts are not recorded" in Path(made["report"]).read_text()


def test_without_a_codec_there_is_no_resynthesis(tts: Tiny, calls: list[str], tmp_path: Path) -> None:
    def gone(self: Any) -> Any:
        raise UserError("no codec came with this installation")

    Speaker.codec = property(gone)
    try:
        made = ask(tts, tmp_path / "out", anchors=True, recogniser="test_evaluate_tts:long")
    finally:
        del Speaker.codec
    assert list(made["systems"]) == ["recordings", "base", "good"]
    assert "no resynthesis: no codec came" in Path(made["report"]).read_text()


def test_the_best_of_the_baseline_is_a_system(tts: Tiny, tmp_path: Path) -> None:
    models, judge = {"other": tts["model"], "m": tts["model"]}, f"token_posterior[model={tts['reward']}]"
    asked: dict[str, Any] = {"models": models, "baseline": "m", "metrics": [judge], "recogniser": "reward_plugins:deaf"}
    made = ask(tts, tmp_path / "out", best_of=4, judge=judge, **asked)
    assert list(made["systems"]) == ["other", "m", "m-best4"] and made["temperature"] == SPEAKING
    best, plain = made["systems"]["m-best4"][judge]["mean"], made["systems"]["m"][judge]["mean"]
    assert best > plain == made["systems"]["other"][judge]["mean"] and made["deltas"]["m-best4"][judge]["mean"] > 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "said" / "m-best4.jsonl").read_text().splitlines()]
    assert {len(r["scores"]) for r in rows} == {4}
    assert np.mean([r["scores"][r["chosen"]] for r in rows]) == pytest.approx(best)
    again = ask(tts, tmp_path / "out", **asked)  # without it the others stay
    assert list(again["systems"]) == ["other", "m"] and again["systems"]["m"] == made["systems"]["m"]
    meta = json.loads((tmp_path / "out" / "scores.meta.json").read_text())
    assert meta["settings"]["sampling"]["temperature"] == SPEAKING


def test_an_evaluation_goes_on_at_the_temperature_it_was_begun_with(tmp_path: Path) -> None:
    def temperature(**sampling: Any) -> float:
        config = Evaluate.model_validate({"task": "tts", "out": str(tmp_path), "sampling": sampling})
        return float(Synthesis(Tts(), config).config.sampling.temperature)

    assert temperature(top_p=0.9) == SPEAKING and temperature(temperature=1.0) == 1.0
    (tmp_path / "config.resolved.json").write_text(json.dumps({"sampling": {"temperature": 0.8}}))
    assert temperature() == 0.8 and temperature(temperature=0.7) == 0.7
