"""Model cards: the Hub reads their head, people their numbers, and nothing that came from data is markup."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspeech.models.card import Card, md, model_card, write_card

TAGS, USES = ["speech-enhancement", "flow-matching"], ["enhance noisy.wav --model THIS_FOLDER --out enhanced"]
CARD = Card("flow enhancer", "flowse", 6_830_000, 16000, "rlspeech", "audio-to-audio", TAGS, USES)


def part(mean: float, lo: float | None = None, hi: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "lo": lo, "hi": hi, "n": 24, "dropped": 0}


def metric(role: str, up: bool, start: float, now: float, *difference: float) -> dict[str, Any]:
    values = {"start": part(start), "now": part(now), "difference": part(*difference)}
    return {"role": role, "higher_is_better": up, **values}


METRICS = {
    "estoi": metric("rewarded", True, 0.7, 0.75, 0.05, 0.02, 0.08),
    "lsd": metric("guard", False, 9.0, 9.5, 0.5, 0.1, 0.9),
    "dnsmos_bak": metric("guard", True, 3.0, 3.1, 0.1, -0.1, 0.3),
    "reward": metric("", True, 0.0, 1.0, 1.0, 0.5, 1.5),
}
LSD = {"name": "lsd", "max_drop": 0.5, "help": "log-spectral distance in dB"}
RL: dict[str, Any] = {
    **{"algo": "grpo", "step": 60, "steps": 60, "from": "some-org/base_model-1", "seed": 0, "data": "data/mix.json"},
    **{"valid": None, "rows": 120, "prompts_per_step": 16, "group": 8, "lr": 0.001, "policy_weight": 1.0},
    "reward_specs": [{"name": "estoi", "weight": 1.0, "scale": "batch", "help": "intelligibility (extended STOI)"}],
    "guard_specs": [LSD, {"name": "dnsmos_bak", "max_drop": None}],
    "lora": {"rank": 32, "alpha": 64.0, "targets": "attention"},
    "versions": {"rlspeech": "0.1", "estoi": "rlspeech stoi 1"},
    "results": {"step": 60, "clips": 24, "metrics": METRICS},
}
FACTS = {"stage": "pretrain", "data": "64 minutes", "languages": ["en"], "rl": RL, "validation": {"estoi": 0.75}}


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_hub_reads_the_head(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write_card(tmp_path, CARD, FACTS)
    found = hub.metadata_load(tmp_path / "README.md")
    assert (found["library_name"], found["pipeline_tag"], found["language"]) == ("rlspeech", "audio-to-audio", ["en"])
    assert found["base_model"] == "some-org/base_model-1" and found["metrics"] == ["estoi", "lsd", "dnsmos_bak"]
    assert {"rlspeech", "reinforcement-learning", "grpo", "flow-matching"} <= set(found["tags"])
    assert "license" not in found
    results = hub.ModelCard((tmp_path / "README.md").read_text()).data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {"estoi": 0.75, "lsd": 9.5, "dnsmos_bak": 3.1}
    assert {(r.task_type, r.dataset_type) for r in results} == {("audio-to-audio", "mix")}


def test_it_tells_data_reward_guards_and_numbers() -> None:
    card = model_card(CARD, FACTS)
    assert "64 minutes" in section(card, "Data and training") and "data/mix.json" in section(card, "Data and training")
    assert "| estoi | 1 | batch | intelligibility" in section(card, "Rewards").replace("\\", "")
    guards = section(card, "Guards")
    assert "| lsd | 0.5 |" in guards and "| dnsmos\\_bak | any amount |" in guards
    results = section(card, "Results")
    assert "| estoi | 0.700 | 0.750 | **+0.050 [+0.020, +0.080]** | rewarded |" in results
    assert "| dnsmos\\_bak | 3.000 | 3.100 | +0.100 [-0.100, +0.300] | guard |" in results, "not bold: 0 is inside"
    assert "lsd (lower is better)" in results.replace("\\", "") and "24 held-out clips" in results
    assert "**Worse than at the start**: lsd +0.500 [+0.100, +0.900]" in section(card, "Limits")
    assert "rlspeech enhance noisy.wav --model THIS_FOLDER --out enhanced" in section(card, "How to use it")


def test_it_keeps_to_itself_where_things_lie_and_tells_a_chain_of_runs() -> None:
    places = {"data": "/home/anna/x/mix.json", "from": "/home/anna/runs/base"}
    facts = {**FACTS, "data": "/home/anna/secret/speech.jsonl", "rl": {**RL, **places}}
    card = model_card(CARD, facts)
    assert "anna" not in card
    assert all(part in card for part in ("x/mix.json", "starting from runs/base", "secret/speech.jsonl"))
    before = {"algo": "ppo", "step": 10, "from": "embedded", "rewards": {"estoi": 1.0}}
    assert "Before that: ppo, 10 steps, starting from embedded." in model_card(CARD, {**FACTS, "earlier": [before]})
    control = copy.deepcopy(FACTS)
    control["rl"]["policy_weight"] = 0.0
    assert "this is a control" in model_card(CARD, control)


ENDLESS = {k: part(float("inf")) for k in ("start", "now", "difference")}
ODD = [{}, {"rl": None}, {"data": ["a", {"b": 1}]}, {"rl": {"reward_specs": [3], "results": 5}, "earlier": 4}]
ODD += [{"rl": {"results": {"metrics": {"x": x}}}} for x in ({"start": part(1.0)}, ENDLESS)]
ODD += [{"stage": "pretrain", "steps": 9, "validation": {"estoi": 0.5, "bad": float("nan"), "none": None}}]


@pytest.mark.parametrize("facts", ODD)
def test_facts_that_are_missing_or_odd_leave_a_card(facts: dict[str, Any]) -> None:
    card = model_card(CARD, facts)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "rlspeech" and "model-index" not in head
    assert "nan" not in card and "inf" not in card.replace("info", "")
    assert ("Held-out numbers" in card) == ("steps" in facts)


NASTY = ["<script>alert(1)</script>", "x\n---\nlicense: mit\n# Heading", "[click](javascript:alert(1))", "a|b|c"]
NASTY += ["`tick` ![i](http://e.vil/x)", "- [ ] list", "{{ jinja }} $x$ *bold* _it_ ~~no~~", "key: value # comment"]
NASTY += ["'\"&amp;\u2028\u202e\x00\x07", "https://e.vil/a_b www.e.vil", "1. first", "\ud800lone", "x" * 5000]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nothing_from_data_is_markup(text: str) -> None:
    facts = copy.deepcopy(FACTS)
    facts["data"], facts[text] = text, text
    facts["rl"] |= {"data": text, "valid": text, "from": text, "algo": text}
    facts["rl"]["reward_specs"][0] |= {"name": text, "help": text}
    facts["rl"]["results"]["metrics"][text] = facts["rl"]["results"]["metrics"]["estoi"]
    facts["languages"] = [text]
    card = model_card(CARD, facts)
    plain, before = model_card(CARD, FACTS), card.split("---\n", 2)
    head = yaml.safe_load(before[1])
    assert set(head) <= set(yaml.safe_load(plain.split("---\n")[1])) and "license" not in head
    assert "language" not in head
    body = before[2]
    titles = [[line for line in text.split("\n") if line.startswith("#")] for text in (body, plain)]
    assert titles[0] == titles[1]
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]", body) and not re.search(r"(?<!\\)\]\(", body)
    assert not re.search(r"https?://", body) and "\u202e" not in body and "\x00" not in body
    rows = [line for line in section(card, "Rewards").split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}, "a cell does not end early"
    assert max(len(line) for line in card.split("\n")) < 3000


def test_markdown_shows_a_text_as_it_is() -> None:
    markdown = pytest.importorskip("markdown_it")  # comes with rich
    for text in [*NASTY[:10], "runs/base_1", "a*b*c", "2 < 3 & 4", "data/mix.json"]:
        shown = markdown.MarkdownIt("commonmark").enable("table").parse(f"- **key**: {md(text)}")
        inline = [t for t in shown if t.type == "inline"][0]
        assert {c.type for c in inline.children} <= {"text", "text_special", "strong_open", "strong_close"}
        said = "".join(c.content for c in inline.children)
        assert said.split("key: ", 1)[1] == "".join(c for c in " ".join(text.split()) if c.isprintable()).strip()
