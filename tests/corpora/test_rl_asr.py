"""The sets D0 to D3: each holds what it promises, the union holds each row once, the same seed chooses the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_corpora import manifest, sound

from rlspeech.corpora.rl_asr import Built, RlAsr, Rules, build, disagreement, find_keywords, rare_words, recognise
from rlspeech.data.audio import load_audio, save_audio
from rlspeech.data.manifest import read_manifest
from rlspeech.data.text import units
from rlspeech.stages.prepare import run
from rlspeech.types import UserError, Utterance

RATE = 16000
WORDS = "one two three four five six seven eight".split()
COMMON = Rules(rows=20, shares=(0.5, 0.25, 0.25), long_s=(2.0, 4.0), gap_s=(0.05, 0.1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        path = folder / f"u{i:02d}.wav"
        seconds = 0.8 + 0.01 * i
        save_audio(path, 0.1 * rng.standard_normal(int(seconds * RATE)).astype(np.float32), RATE)
        words = [WORDS[j] for j in rng.integers(8, size=4)] + {7: ["aardvark"], 9: ["green", "zebra"]}.get(i, [])
        row = Utterance(path.stem, str(path), seconds if i != 39 else 25.0, RATE, text=" ".join(words), language="en")
        row.speaker_id, row.snr_db = f"s{i % 5}", 5.0 if i % 2 else None
        rows.append(row)
    return [*rows, Utterance("mute", str(folder / "u00.wav"), 1.0, RATE, text=None)]


def heard(corpus: list[Utterance]) -> dict[str, list[str]]:
    """Every third row is heard differently, every other way identically; some by one recogniser only."""
    texts = {u.id: [u.text or ""] * 2 for u in corpus[:-1]}
    for utt in corpus[:-1:3]:
        texts[utt.id][1] = " ".join(texts[utt.id][0].split()[:2])
    texts[corpus[38].id].pop()
    return texts


def made(corpus: list[Utterance], out: Path, rules: Rules = COMMON, keywords: tuple[str, ...] = ()) -> Built:
    return build(corpus, heard(corpus), keywords, rules, units, out)


def test_every_set_holds_what_it_promises(corpus: list[Utterance], tmp_path: Path) -> None:
    sets = made(corpus, tmp_path, keywords=("zebra", "green zebra", "aardvark", "nowhere")).sets
    d1, d2, d3, both = sets["d1"], sets["d2"], sets["d3"], sets["d123"]
    long = [u for u in d1 if u.extra["condition"] == "long"]
    assert len(d1) == 10 and len(long) == 3 and len(d2) == 5 and len(d3) == 2
    assert all(0.15 <= 1 - u.extra["agreement"] <= 1 for u in d1 if u not in long)
    assert [u.extra["keywords"] for u in d3] == [["green zebra", "zebra"], ["aardvark"]]
    assert all(u.duration < 20 for u in d2) and not {u.id for u in d2} & {u.id for u in [*d1, *d3]}
    assert len({u.id for u in both}) == len(both) and {u.id for u in both} == {u.id for u in [*d1, *d2, *d3]}
    assert len(sets["d0"]) == len(both) and all(u.text is not None for u in [*both, *sets["d0"]])
    assert all(u.extra["set"] == "d0" for u in sets["d0"])
    for utt in both:
        assert utt.extra["set"] == "+".join(n for n in ("d1", "d2", "d3") if utt.id in {u.id for u in sets[n]})
        assert not any(k.startswith("_") for k in utt.extra)
        assert utt.extra["condition"] in ("clean", "noisy", "long")


def test_long_speech_says_what_was_put_together(corpus: list[Utterance], tmp_path: Path) -> None:
    rules = COMMON.model_copy(update={"long_share": 1.0})
    built = made(corpus, tmp_path, rules)
    known = {u.id: u for u in corpus}
    ways = set()
    for utt in built.sets["d1"]:
        parts = [known[i] for i in utt.extra["clean_id"].split()]
        parts = parts * utt.extra["repeats"] if utt.extra["how"] == "repeat" else parts
        ways.add(utt.extra["how"])
        assert utt.text == " ".join(p.text or "" for p in parts) and len(parts) == utt.extra["repeats"] >= 2
        assert len({p.speaker_id for p in parts}) == 1 and utt.speaker_id == parts[0].speaker_id
        wav = load_audio(utt.audio_filepath)
        assert len(wav) / RATE == pytest.approx(utt.duration) and utt.duration <= 4.0
        assert sum(p.duration for p in parts) < utt.duration
    assert ways == {"repeat", "speaker"}


def test_seeds(corpus: list[Utterance], tmp_path: Path) -> None:
    def ids(name: str, seed: int) -> dict[str, list[str]]:
        rules = COMMON.model_copy(update={"seed": seed})
        return {k: [u.id + (u.text or "") for u in v] for k, v in made(corpus, tmp_path / name, rules).sets.items()}

    assert ids("a", 1) == ids("b", 1) != ids("c", 2)


def test_without_hypotheses_there_are_no_hard_cases_but_long_ones(corpus: list[Utterance], tmp_path: Path) -> None:
    built = build(corpus, {}, [], COMMON, units, tmp_path)
    assert {u.extra["condition"] for u in built.sets["d1"]} == {"long"} and built.facts["in_band"] == 0
    assert "agreement" not in built.sets["d0"][0].extra


def test_sizes_and_distractors(corpus: list[Utterance], tmp_path: Path) -> None:
    rules = COMMON.model_copy(update={"sizes": (7, 0, 3, 1), "distractors": 2})
    sets = made(corpus, tmp_path, rules, ("zebra", "aardvark", "crane", "goose")).sets
    assert [len(sets[n]) for n in ("d0", "d1", "d2", "d3", "d123")] == [7, 0, 3, 1, 4]
    keywords = sets["d3"][0].extra["keywords"]
    assert len(keywords) == 3 and len(set(keywords)) == 3


def test_a_row_that_cannot_be_rendered_is_left_out(corpus: list[Utterance], tmp_path: Path) -> None:
    gone = [Utterance(f"g{i}", str(tmp_path / "gone.wav"), 1.0, RATE, text="a b") for i in range(2)]
    built = build(gone, {}, [], COMMON, units, tmp_path)
    assert {f["detail"] for f in built.failed} == {"missing file"} and len(built.failed) == 3 and built.sets["d1"] == []


def test_keywords_of_a_row_are_kept_unless_a_list_is_given(tmp_path: Path) -> None:
    rows = [Utterance("a", "a", 1.0, RATE, text="green zebra here", extra={"keywords": "zebra, here"})]
    rules = COMMON.model_copy(update={"long_share": 0.0})
    assert build(rows, {}, [], rules, units, tmp_path).sets["d3"][0].extra["keywords"] == ["zebra", "here"]
    assert build(rows, {}, ["green"], rules, units, tmp_path).sets["d3"][0].extra["keywords"] == ["green"]


def test_characters_are_found_in_writing_without_spaces(tmp_path: Path) -> None:
    rows = [Utterance("a", "a", 1.0, RATE, text="我想去北京看看", language="zh")]
    rules = COMMON.model_copy(update={"long_share": 0.0})
    built = build(rows, {"a": ["我想去北京看看", "我想去背景看看"]}, ["北京", "上海"], rules, units, tmp_path)
    assert built.sets["d3"][0].extra["keywords"] == ["北京"]
    assert built.sets["d1"][0].extra["agreement"] == pytest.approx(1 - 2 / 7, abs=1e-4)


texts = st.lists(st.sampled_from(WORDS), max_size=6)


@given(st.lists(texts, min_size=2, max_size=4))
def test_disagreement_is_symmetric_and_bounded(said: list[list[str]]) -> None:
    value = disagreement(said)
    assert 0 <= value <= 1 and value == pytest.approx(disagreement(said[::-1]))
    assert (value == 0) == all(s == said[0] for s in said)


@given(texts.filter(bool), texts.filter(bool))
def test_disagreement_of_two_is_the_mean_of_both_error_rates(a: list[str], b: list[str]) -> None:
    rates = [min(1.0, jiwer.wer(" ".join(x), " ".join(y))) for x, y in ((a, b), (b, a))]
    assert disagreement([a, b]) == pytest.approx(sum(rates) / 2)


@given(st.lists(texts, max_size=8), st.floats(0, 1))
def test_rare_words_keep_to_their_share(said: list[list[str]], share: float) -> None:
    distinct = [list(t) for t in dict.fromkeys(map(tuple, said))]
    counts = {w: sum(t.count(w) for t in distinct) for w in WORDS}
    found = rare_words(said, share, 4)
    assert sum(counts[w] for w in found) <= share * sum(counts.values()) + 1e-9
    assert all(len(w) >= 4 for w in found) and [counts[w] for w in found] == sorted(counts[w] for w in found)


def test_keywords_are_whole_units() -> None:
    table = {"new": [(("new", "york"), "New York"), (("new",), "new")], "art": [(("art",), "art")]}
    assert find_keywords("the new york party has a new art".split(), table) == ["New York", "new", "art"]
    assert find_keywords("start party".split(), table) == find_keywords([], table) == []


# the command


def data_set(folder: Path, count: int = 8) -> Path:
    """A manifest of ``count`` rows, the last one with a file that is not there."""
    rows = []
    for i in range(count):
        path, seconds = folder / f"u{i}.wav", 0.6 + 0.05 * i
        if i < count - 1:
            sound(path, i, seconds)
        facts = {"id": f"u{i}", "audio_filepath": path.name, "duration": seconds, "speaker_id": f"s{i % 2}"}
        rows.append(facts | {"text": f"number {i} spoken clearly"})
    return manifest(folder / "train.jsonl", rows)


CALLS: list[int] = []


def exact(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
    """A recogniser that tells clips by their length."""
    CALLS.append(len(wavs))
    return [f"number {round((len(w) / rate - 0.6) / 0.05)} spoken clearly" for w in wavs]


def poor(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
    """One that mishears every clip, and gives up on batches with the longest."""
    if max(len(w) for w in wavs) / rate > 0.87:
        raise RuntimeError("too long for me")
    return ["number spoken" for _ in wavs]


NAMES = [f"{__name__}:exact", f"{__name__}:poor"]


def prepare(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = {"recognisers": NAMES, "rows": 8, "batch": 3, "long_s": (1.5, 4.0), "device": "cpu"} | more
    return run(RlAsr(data=str(data), out=str(out), **settings))  # type: ignore[arg-type]


def test_recognisers_listen_once_and_their_disagreement_decides(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    CALLS.clear()
    summary = prepare(data, tmp_path / "out")
    assert summary["recognisers"] == {NAMES[0]: 7, NAMES[1]: 6} and sum(CALLS) == 7
    assert summary["facts"]["in_band"] == 6 and set(summary["manifests"]) >= {"d0", "d1", "d123"}
    hard = [u for u in read_manifest(tmp_path / "out" / "d1.jsonl") if u.extra["condition"] != "long"]
    wers = (2 / 4 + 2 / 2) / 2  # two of four words are missing; seen from the other side, two of two are too many
    assert hard and all(u.extra["agreement"] == pytest.approx(1 - wers) for u in hard)
    meta = json.loads((tmp_path / "out" / "d1.meta.json").read_text())
    assert meta["normaliser"] == "basic-3" and meta["recognisers"] == NAMES
    CALLS.clear()
    before = (tmp_path / "out" / "d123.jsonl").read_bytes()
    again = prepare(data, tmp_path / "out")
    assert not CALLS and again["recognisers"] == summary["recognisers"]
    assert (tmp_path / "out" / "d123.jsonl").read_bytes() == before
    sound(tmp_path / "u1.wav", 99, 0.65)
    prepare(data, tmp_path / "out")
    assert CALLS == [1], "a changed file is heard again"
    json.dumps(again)


def test_hypotheses_from_files(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    both = [{"id": f"u{i}", "texts": ["number one", f"number {i} spoken"]} for i in range(7)]
    manifest(tmp_path / "both.jsonl", both)
    (tmp_path / "third.jsonl").write_text(json.dumps({"audio_filepath": "/elsewhere/u0.wav", "pred_text": "x"}) + "\n")
    files = [str(tmp_path / "both.jsonl"), str(tmp_path / "third.jsonl")]
    summary = prepare(data, tmp_path / "out", recognisers=[], hypotheses=files)
    assert summary["recognisers"] == {"both:0": 7, "both:1": 7, "third": 1} and summary["facts"]["in_band"] == 7
    for text in ("{", '{"id": "u0"}', "7", '{"id": "stranger", "text": "x"}'):
        (tmp_path / "bad.jsonl").write_text(text + "\n")
        with pytest.raises(UserError, match="bad.jsonl"):
            prepare(data, tmp_path / "out", recognisers=[], hypotheses=[str(tmp_path / "bad.jsonl")])


def test_what_cannot_work_is_refused_before_anyone_listens(tmp_path: Path) -> None:
    data = data_set(tmp_path, 2)
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    plain = manifest(tmp_path / "plain.jsonl", [{"id": "a", "audio_filepath": "u0.wav"}])
    lists = [{"keywords": str(tmp_path / name)} for name in ("empty.txt", "gone.txt")]
    others = [{"recognisers": NAMES[:1]}, {"normaliser": "basic-99"}, {"data": None}, {"data": str(plain)}]
    for more in (*lists, *others):
        with pytest.raises(UserError):
            run(RlAsr(**({"data": str(data), "recognisers": NAMES, "out": str(tmp_path / "out")} | more)))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "heard").exists()


def test_silence_is_not_shown_and_a_deaf_recogniser_is_refused(tmp_path: Path) -> None:
    save_audio(tmp_path / "quiet.wav", np.zeros(RATE, np.float32), RATE)
    utts = read_manifest(manifest(tmp_path / "m.jsonl", [{"id": "q", "audio_filepath": "quiet.wav"}]))
    CALLS.clear()
    assert recognise(NAMES[0], utts, tmp_path / "h") == {"q": ""} and not CALLS
    sound(tmp_path / "quiet.wav", 1, 1.0)
    with pytest.raises(UserError, match="test_rl_asr:poor"):
        recognise(NAMES[1], utts, tmp_path / "h")
