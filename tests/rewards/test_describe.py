"""Prompts and answers: what counts as said, and what is a refusal."""

from __future__ import annotations

import pytest

from rlspeech.rewards.llm.describe import MAX_TEXT, clean_answer, read_prompts, without_thoughts
from rlspeech.types import UserError


def test_prompts_that_are_shipped_and_those_of_a_file(tmp_path):
    prompts = read_prompts()
    assert len(prompts) >= 3 and len(set(prompts)) == len(prompts)
    assert all("speech" in p.lower() for p in prompts) and "quality" in prompts[0]
    assert not any(p.startswith("#") or p != p.strip() for p in prompts)
    file = tmp_path / "p.txt"
    file.write_text("# remark\n\n  How is it?  \nSecond: naïve\n", encoding="utf-8")
    assert read_prompts(file) == ["How is it?", "Second: naïve"]


@pytest.mark.parametrize("content", [b"", b"# only a remark\n\n", b"\xff\x00bad", b"x" * 9000])
def test_bad_prompt_files_are_refused(tmp_path, content):
    file = tmp_path / "p.txt"
    file.write_bytes(content)
    with pytest.raises(UserError):
        read_prompts(file)
    with pytest.raises(UserError):
        read_prompts(tmp_path / "missing.txt")


MUTE = ["", "  \n ", "...", "<think>hm", "<think>the noise is 3/5</think>  ", "\x00\x07"]


@pytest.mark.parametrize("raw", [*MUTE, None, 3, ["good"], {"a": 1}])
def test_no_answer_has_a_reason(raw):
    said = clean_answer(raw)
    assert said.text is None and said.error


REFUSALS = ["I'm sorry, but I cannot assess audio.", "I cannot hear the audio you mention."]
REFUSALS += ["Please provide the audio file.", "Unfortunately I can’t help with that request."]
REFUSALS += ["As an AI language model, I am unable to listen to recordings."]
REFUSALS += ["No audio was provided, so there is nothing to rate.", "I do not have the ability to process sound."]
ANSWERS = ["The speech is clear; I cannot hear any noise.", "Unfortunately the recording is very noisy.", "4/5", "差"]
ANSWERS += ["A listener can't understand the words.", "The speaker says: sorry, we are closed."]
ANSWERS += ["It is hard to follow; words cannot be made out."]
ANSWERS += ["Sorry to say, this sounds terrible: muffled and distorted."]


@pytest.mark.parametrize("raw", [*REFUSALS, *ANSWERS])
def test_refusals_are_no_answer_and_descriptions_are_not_taken_for_them(raw):
    said = clean_answer(raw)
    assert said.error == "the model refused" if raw in REFUSALS else said.text == raw


def test_thoughts_are_kept_in_the_text_but_no_answer_and_length_is_bounded():
    raw = "<think>loud noise, 1/5?</think>Good quality."
    assert clean_answer(raw).text == raw and without_thoughts(raw) == "Good quality."
    assert without_thoughts("opened by the template </think> Fair.") == "Fair."
    said = clean_answer("good\x1b[31m\x00 speech " + "x" * 10 * MAX_TEXT)
    assert said.text is not None and len(said.text) == MAX_TEXT and "\x1b" not in said.text and "\x00" not in said.text
