"""``speak``: texts, lists and manifests, long texts in pieces, texts that fail alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from tiny_cli import rows_of
from tiny_tts import RATE, TEXTS

from rlspeech.data.batches import Clip
from rlspeech.data.manifest import read_manifest
from rlspeech.rewards.scorer import get_reward
from rlspeech.stages import speak
from rlspeech.stages.speak import Speak, SteadySampling, split_text
from rlspeech.tasks.tts.best import judge_of
from rlspeech.tasks.tts.task import Tts
from rlspeech.types import Sample, UserError

MODEL = SimpleNamespace(max_s=2.0, sample_rate=16000, layout=SimpleNamespace(prompt_s=0.5))
MODEL.text_bytes = lambda line, per_s: int(2.0 * per_s)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Clips as the task gets them; 10 ms a character."""
    clips: list[Any] = []

    def say(self: Tts, model: Any, some: list[Clip], **_: Any) -> list[Sample]:
        if any("crash" in c.text for c in some):
            raise RuntimeError("too much") if len(some) > 1 else ValueError("a bad one")
        clips.extend(some)
        wavs = [np.full(0 if "mute" in c.text else 160 * len(c.text), 0.1, np.float32) for c in some]
        facts = [(c.key, wav, 16000, None, c.text, c.columns) for c, wav in zip(some, wavs, strict=True)]
        return [Sample(*row, finished="endless" not in str(row[4])) for row in facts]

    monkeypatch.setattr(Tts, "load", lambda *a, **k: (MODEL, {}))
    monkeypatch.setattr(Tts, "synthesise", say)
    return clips


def ask(*inputs: Path | str, **changes: Any) -> dict[str, Any]:
    return speak.run(Speak(inputs=[str(i) for i in inputs], device="cpu", **changes))


def test_one_text_is_a_file(said: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = ask("some words")
    assert made["spoken"] == 1 and sf.info("speech.wav").frames == 1600 and made["files"] == ["speech.wav"]
    ask("others", out="x.flac")
    assert ask("some more", out="x.flac")["spoken"] == 1 and sf.info("x.flac").frames == 1440  # another text is said
    with pytest.raises(UserError, match=r"x\.wav|--out"):
        ask("a", "b", out="x.wav")
    with pytest.raises(UserError, match="--prompt"):
        ask("speech.wav")


def test_lines_become_a_folder_that_goes_on(said: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one two\n\n...\nmute\na crash\nendless three\n")
    made = ask(lines, "four", out=str(tmp_path / "out"), batch=3)
    assert made["spoken"] == 3 and made["failed"] == 3 and made["unstopped"] == 1
    empty, mute = "there are no words in it", "the model returned no speech"
    assert made["errors"] == {"lines_0003": empty, "lines_0004": mute, "lines_0005": "ValueError: a bad one"}
    rows = {u.id: u for u in read_manifest(tmp_path / "out" / "manifest.jsonl")}
    texts = {k: u.text for k, u in rows.items()}
    assert texts == {"lines_0001": "one two", "lines_0006": "endless three", "text_0002": "four"}
    assert rows["text_0002"].duration == pytest.approx(0.04)
    assert sf.info(rows["lines_0001"].audio_filepath).frames == 1120
    before = len(said)
    lines.write_text("one two\n\n...\nmute\na crash\nanother\n")
    again = ask(lines, "four", out=str(tmp_path / "out"))
    assert again["skipped"] == 2 and again["spoken"] == 1 and [c.text for c in said[before:]] == ["mute", "another"]
    lines.write_text("one two\n\n...\nmute\na crash\nendless three\n")
    assert ask(lines, out=str(tmp_path / "out"))["spoken"] == 1  # the former text is not that of the file that is there
    assert ask(lines, "four", out=str(tmp_path / "out"), seed=1)["spoken"] == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("five\nsix\n"))
    assert ask("-", out=str(tmp_path / "in"))["spoken"] == 2
    with pytest.raises(UserError, match="1 text"):
        ask("mute", out=str(tmp_path / "none.wav"))


def test_a_long_text_is_said_in_pieces(said: list[Any], tmp_path: Path) -> None:
    text = "One two three. Four five, six seven. Eight nine!"
    ask(text, out=str(tmp_path / "x.wav"), pause_s=0.1)
    assert [c.text for c in said] == ["One two three.", "Four five, six seven.", "Eight nine!"]
    assert sf.info(tmp_path / "x.wav").frames == 160 * 46 + 2 * 1600


CUT = ("a b", "", "one. two.|three.", "one two|three", "one, two,|three", "incomprehensibilities", "一二三。|四五六。")


@pytest.mark.parametrize("shown", CUT)
def test_where_texts_are_cut(shown: str) -> None:
    text, most = (shown.replace("|", ""), 12) if "一" in shown else (shown.replace("|", " "), 10)
    assert split_text(text, most) == shown.split("|")
    assert split_text("one two. ...", 10) == ["one two."]


def test_voices_are_the_prompts(said: list[Any], tts: dict[str, str], tmp_path: Path) -> None:
    voice = Path(tts["data"]).parent / "0.flac"
    ask("a", out=str(tmp_path / "a.wav"), prompt=str(voice), prompt_text="one")
    assert said[-1].columns == {"prompt_filepath": str(voice), "prompt_text": "one"}
    ask(tts["data"], out=str(tmp_path / "out"))
    assert said[-1].columns["prompt_filepath"].endswith(".flac") and not len(said[-1].target)
    rows = rows_of(tmp_path / "out" / "manifest.jsonl")
    assert [r["text"] for r in rows] == TEXTS and {r["sex"] for r in rows} == {"male"}
    assert all("prompt_filepath" in r for r in rows)
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"id": "x", "audio_filepath": str(voice), "text": "one"}) + "\n")
    ask(bare, out=str(tmp_path / "bare"))
    assert len(said[-1].target) == 16000
    with pytest.raises(UserError, match="none.wav"):
        ask("a", prompt=str(tmp_path / "none.wav"))
    with pytest.raises(UserError, match="--prompt"):
        ask("a", prompt_text="one")
    with pytest.raises(UserError, match="rlspeech speak|texts"):
        ask()


def test_a_real_model_says_the_same_twice(tts: dict[str, str], tmp_path: Path) -> None:
    voice = str(Path(tts["data"]).parent / "1.flac")
    for name in ("a", "b"):
        ask("one two three", out=str(tmp_path / f"{name}.wav"), model=tts["model"], prompt=voice, seed=3)
    a, b = (sf.read(tmp_path / f"{n}.wav")[0] for n in "ab")
    assert len(a) and np.array_equal(a, b)


def shortest(wavs: list[np.ndarray], texts: list[str], sample_rate: int, **columns: Any) -> list[float | None]:
    """Seconds; the shortest draw that says something cannot be scored."""
    least = min(map(len, filter(len, wavs)))
    return [None if len(w) == least else len(w) / sample_rate for w in wavs]


shortest.higher_is_better = False  # type: ignore[attr-defined]


def test_the_best_of_several_draws_is_kept(tts: dict[str, str], tmp_path: Path) -> None:
    model, clips = Tts().load(tts["model"])[0], [Clip("text_0001 0", *[np.zeros(0, np.float32)] * 2, RATE, "one two")]
    judge = f"token_posterior[model={tts['reward']}]"
    how: dict[str, Any] = {"model": tts["model"], "seed": 1}
    made = ask("one two", out=str(tmp_path / "out"), best_of=6, judge=judge, **how)
    (choice,) = made["choices"]["text_0001"]
    draws = Tts().synthesise(model, clips, sampling=SteadySampling(), seed=1, group=6)
    scores = [s.value for s in get_reward(judge).score(draws)]
    assert choice["judge"] == judge and choice["scores"] == pytest.approx(scores) and len(set(scores)) > 1
    ranks = [(d.finished and len(d.tokens) > 0, s) for d, s in zip(draws, scores, strict=True)]
    assert choice["chosen"] == ranks.index(max(ranks))
    wav = sf.read(tmp_path / "out" / "text_0001.wav", dtype="float32")[0]
    assert np.allclose(wav, draws[choice["chosen"]].wav, atol=1e-3)
    (row,) = rows_of(tmp_path / "out" / "said.jsonl")
    assert row["choices"] == [choice]
    ask("one two", out=str(tmp_path / "one.wav"), **how)  # one draw is the first of several
    assert np.allclose(sf.read(tmp_path / "one.wav", dtype="float32")[0], draws[0].wav, atol=1e-3)
    assert ask("one two", out=str(tmp_path / "out"), best_of=6, judge=judge, **how)["skipped"] == 1
    assert "choices" not in ask("one two", out=str(tmp_path / "out"), **how)
    digest = speak._digest(Speak(inputs=["a"]), speak._Job("k", "one two"))
    assert digest == "6b2d157458e5a9db"  # as before it could choose


def test_what_cannot_be_scored_is_not_chosen(tts: dict[str, str], tmp_path: Path) -> None:
    made = ask("one", out=str(tmp_path / "x.wav"), model=tts["model"], best_of=5, judge="test_speak:shortest")
    (choice,) = made["choices"]["text_0001"]
    known = [s for s in choice["scores"] if s]
    assert None in choice["scores"] and choice["scores"][choice["chosen"]] == min(known)
    assert sf.info(tmp_path / "x.wav").duration == pytest.approx(min(known))


@pytest.mark.parametrize(
    ("best_of", "judge", "match"),
    [(1, "dnsmos", "--best-of"), (2, "nonsense", "nonsense"), (2, "estoi", "target"), (2, "asr_wer", "hypothesis")]
    + [(2, "token_posterior", "codes"), (2, "token_posterior[model=/none]", "/none")],
)
def test_judges_that_are_refused(tts: dict[str, str], tmp_path: Path, best_of: int, judge: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        ask("one", out=str(tmp_path / "x.wav"), model=tts["model"], best_of=best_of, judge=judge)


def test_the_judge_is_the_reward_that_the_model_was_trained_with(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_1" / "config.json").write_text("{}")
    (tmp_path / "checkpoints" / "latest").write_text("step_1")
    for algo, reward, judge in (
        ("grpo", "token_posterior[nll_scale=1,model=r/a]", "token_posterior[model=r/a]"),
        ("diffro", "tts_accuracy", "token_posterior[model=r/b]"),
        ("grpo", "tts_accuracy", "token_posterior"),
    ):
        settings = {"algo": algo, "rewards": [{"name": reward}], "diffro": {"reward": "r/b"}}
        (tmp_path / "config.resolved.json").write_text(json.dumps(settings))
        assert judge_of(str(tmp_path), 2) == judge
    assert judge_of("embedded", 2) == judge_of("some/hub-id", 2) == "token_posterior"
