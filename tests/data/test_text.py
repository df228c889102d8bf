"""Normalisers, units and alignments, against jiwer, a textbook edit distance, and what has to hold for any text."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from operator import eq

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.data.text import NORMALISERS, align, characters, get_normaliser, script_of, units, written_in_characters
from rlspeech.plugins import load_function
from rlspeech.types import UserError

WORDS = st.lists(st.sampled_from("the a cat sat on mat 你 好 x".split()), max_size=12)
ANY = st.text(st.characters(), max_size=40)  # surrogates, marks and unassigned characters too


def edit_distance(a, b):
    """Wagner and Fischer, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_counts_of_an_alignment(ref, hyp):
    found = align(ref, hyp)
    counted = found.substitutions + found.deletions + found.insertions
    assert found.errors == counted == edit_distance(ref, hyp) == align(hyp, ref).errors
    assert found.insertions - found.deletions == len(hyp) - len(ref)
    assert (found.errors == 0) == (ref == hyp) and align(ref, ref).errors == 0


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_blocks_of_an_alignment_lead_from_one_text_to_the_other(ref, hyp):
    made, at_ref, at_hyp = [], 0, 0
    for tag, start, end, other, other_end in align(ref, hyp).ops:
        assert (start, other) == (at_ref, at_hyp)
        equal = list(map(eq, ref[start:end], hyp[other:other_end]))
        paired = end - start == other_end - other
        right = {"equal": paired and all(equal), "replace": paired and not any(equal)}
        right |= {"delete": other == other_end and start < end, "insert": start == end and other < other_end}
        assert right[tag]
        made += ref[start:end] if tag == "equal" else hyp[other:other_end]
        at_ref, at_hyp = end, other_end
    assert made == hyp and at_ref == len(ref)


def test_nothing_said_and_nothing_heard():
    assert align([], []).rate == 0.0 and align([], ["a"]).rate == float("inf")
    assert align(["a", "b"], []).rate == 1.0 and align(["a", "b"], []).deletions == 2  # an empty transcript is no match


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_no_text_breaks_a_normaliser_and_twice_is_once(text):
    for name in NORMALISERS:
        once = get_normaliser(name)(text)
        assert isinstance(once, str) and once == " ".join(once.split())
        if not name.startswith("english"):  # the library's is not: "mr." becomes "mister", "mister" stays
            assert get_normaliser(name)(once) == once
        units(once), script_of(once), characters(once)


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_basic_2_differs_from_basic_1_at_combining_marks_only(text):
    lower = unicodedata.normalize("NFKC", text).lower()
    folded = unicodedata.normalize("NFKC", lower)
    if folded == lower and not any(unicodedata.category(c)[0] == "M" for c in folded):
        assert get_normaliser("basic-2")(text) == get_normaliser("basic-1")(text)


THAI = "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Thai keeps its vowels in the second version; the first does as it always did
        ("basic-2", THAI + "!", THAI),
        ("basic-1", THAI + "!", "\u0e2a\u0e27 \u0e2a\u0e14"),
        ("basic-2", "Hello, World! It\u2019s  'quoted' rock'n'roll", "hello world it's quoted rock'n'roll"),
        ("basic-2", "snake_case a-b \ufb01ne", "snake case a b fine"),
        ("basic-2", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),
        ("basic-2", "e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("english-1", "Mr. Smith won't pay twenty-one dollars, uh, [laughs] $5", "mister smith will not pay $21 $5"),
        ("english-1", "it's", "it is"),
        ("chinese-1", "\u4f60 \u597d\uff0c WORLD \u4e16 \u754c\u3002", "\u4f60\u597d world \u4e16\u754c"),
        ("none-1", " A,  b ", "A, b"),
        *(("basic-2", "Donau\u00addampf \u0130", "donau dampf i\u0307"), ("english-1", "I don\u2019t", "i don t")),
    ],
)
def test_what_a_named_normaliser_does_stays(name, text, expected):
    assert get_normaliser(name)(text) == expected


def test_normalisers_by_name():
    assert get_normaliser("os.path:basename")("a/b") == "b"
    with pytest.raises(UserError, match="basic-99"):
        get_normaliser("basic-99")
    with pytest.raises(UserError, match="no_such_module:f"):
        get_normaliser("no_such_module:f")
    with pytest.raises(UserError, match="function"):
        load_function("os:sep")


MIXED = "\u6211\u4eec\u7528 python \u5199"  # Chinese with an English word


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        *(("a cat", language, ["a", "cat"]) for language in (None, "zh")),
        *((MIXED, zh, [*"\u6211\u4eec\u7528", "python", "\u5199"]) for zh in (None, "zh-CN", "Chinese", "auto")),
        (MIXED, "en", ["\u6211\u4eec\u7528", "python", "\u5199"]),
        ("\ud55c\uad6d\uc5b4 \ub9d0", "ko", [*"\ud55c\uad6d\uc5b4\ub9d0"]),
        ("\u3068\u3046\u304d\u3087\u3046", None, [*"\u3068\u3046\u304d\u3087\u3046"]),
        ("\u043f\u0440\u0438 \u043c\u0438\u0440", None, ["\u043f\u0440\u0438", "\u043c\u0438\u0440"]),
        ("", "zh", []),
    ],
)
def test_units_go_by_language_else_by_script(text, language, expected):
    assert units(text, language) == expected


@settings(max_examples=100, deadline=None)
@given(ANY, st.sampled_from([None, "en", "zh", "th"]))
def test_units_lose_nothing(text, language):
    assert "".join(units(text, language)) == "".join(text.split())


def test_characters_count_spaces_where_words_have_them():
    assert characters("a  cat") == list("a cat") and characters("a cat", "zh") == list("acat")
    assert characters("\u4f60 \u597d") == ["\u4f60", "\u597d"]
    ref, hyp = "the cat sat", "the bat  sat on"
    assert align(characters(ref), characters(hyp)).rate == pytest.approx(jiwer.cer(ref, " ".join(hyp.split())))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        *(("", ""), ("123 !?", ""), ("abc", "latin"), ("\u00e9t\u00e9", "latin"), ("\u4f60\u597d a", "han")),
        *(("\u30ab\u30bf\u3072", "kana"), ("\ud55c\uad6d", "hangul"), ("\u043f\u0440", "cyrillic")),
        *(("\u0645\u0631", "arabic"), ("\u0e2a\u0e27\u0e31", "thai"), ("\ud800\U0010ffff", "")),
    ],
)
def test_scripts(text, script):
    assert script_of(text) == script
    assert written_in_characters(text) == (script in {"han", "kana", "hangul", "thai"})


def test_the_module_is_light():
    code = "import sys, rlspeech.data.text as t; t.align(['a'], ['b']); "
    code += "bad = {'torch', 'numpy', 'transformers'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


PAIRS = [  # reference, hypothesis, normaliser, wrong words: of characters that are not seen, and of one apostrophe for all
    ("\u0130yi g\u00fcnler \u0130stanbul", "iyi g\u00fcnler istanbul", "basic-3", 0),
    ("Donau\u00addampf schiff", "Donaudampf schiff", "basic-3", 0),
    ("I \u2764\ufe0f you", "i you", "basic-3", 0),
    ("п\u02bcять яблук", "п'ять яблук", "basic-3", 0),
    ("ශ්\u200dරී ලංකාව", "ශ්\u200dරී ලංකා", "basic-3", 1),
    ("I don\u2019t know", "I don't know", "basic-3", 0),
    ("I don\u2019t know", "I do not know", "english-2", 0),
    ("a\u200bb\u2060c", "abc", "chinese-2", 0),
]


@pytest.mark.parametrize(("reference", "hypothesis", "name", "wrong"), PAIRS)
def test_characters_that_are_not_seen_do_not_count(reference, hypothesis, name, wrong):
    one, other = (get_normaliser(name)(t).split() for t in (reference, hypothesis))
    assert len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == wrong
