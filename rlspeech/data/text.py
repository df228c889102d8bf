"""Transcripts: named normalisers, the units that are counted, and one alignment of two texts.

An error rate means nothing without the normaliser that made its texts comparable, so normalisers have a name and a version; a change
of what one does is a new name, never a new meaning of an old one. The unit is the word, and the character in writing without spaces
between words (Chinese, Japanese, Thai, ...; also Korean, whose spacing is a matter of taste); Latin words inside such text stay
words (a "mixed error rate"). One alignment a hypothesis gives everything: substitutions, deletions, insertions, hits, and where they
are. Distances are rapidfuzz's, the same that jiwer counts with, so the two agree alignment by alignment.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from rlspeech.plugins import load_function
from rlspeech.types import UserError

Normaliser = Callable[[str], str]
Op = tuple[str, int, int, int, int]  # tag, reference[start:end], hypothesis[start:end]

CHARACTER_LANGUAGES = frozenset(
    "zh cmn yue wuu nan hak ja ko th lo my km bo dz "
    "chinese mandarin cantonese japanese korean thai lao burmese myanmar khmer tibetan".split()
)
NO_LANGUAGES = frozenset({"", "auto", "none", "unknown", "und", "mul", "multi", "multilingual"})
CHARACTER_SCRIPTS = frozenset({"han", "kana", "hangul", "thai", "lao", "tibetan", "myanmar", "khmer"})
# Thai and Lao, Tibetan, Myanmar, Hangul, Khmer, kana and iteration marks, Han with its extensions
_CHARACTERS = (
    "\u0e01-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff\u1780-\u17ff\u3005-\u3007\u3041-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNIT = re.compile(rf"[{_CHARACTERS}]|[^\s{_CHARACTERS}]+")
_SPACED = re.compile(rf"(?<=[{_CHARACTERS}])\s+(?=[{_CHARACTERS}])")
# what stands in brackets or asterisks, and a mark of punctuation behind a word
_TAG = re.compile(r"\[[^][]*\]|\([^()]*\)|<[^<>]*>|\{[^{}]*\}|\*[^*]*\*|【[^【】]*】|（[^（）]*）|［[^［］]*］")
_MARK = re.compile(r"[.,?!;:…](?!\w)|[。，、？！；：؟،؛।]")
_KANA = ("hiragana", "katakana", "katakana-hiragana", "halfwidth")
_NAMES = {"cjk": "han", "ideographic": "han", **dict.fromkeys(_KANA, "kana")}
_NO_SCRIPT = set("modifier mathematical combining feminine masculine micro fullwidth double-struck script".split())


def normalise_basic(text: str) -> str:
    """Lower case, compatibility forms, no punctuation but apostrophes inside words, single spaces (``basic-1``).

    It parts words at combining marks, which ruins Thai and Indic writing; ``basic-2`` keeps them and is the same elsewhere.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = re.sub(r"[^\w\s']|_", " ", text)
    return _lone_apostrophes(text)


def _basic_2(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).replace("\u2019", "'")
    if not text.isascii():  # the common case needs no look at every character
        text = "".join(c if c.isalnum() or c in " '" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return _lone_apostrophes(re.sub(r"[^\w\s']|_", " ", text) if text.isascii() else text)


# Signs that stand for an apostrophe; Unicode's default ignorable characters (soft hyphen, joiners, marks of direction, selectors of
# emoji, tags) and enclosing marks, which are not read aloud.
_PLAIN: dict[int, str | None] = dict.fromkeys(
    map(ord, "`\u00b4\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u055a\u05f3\u2018\u2019\u201b\u2032\u2035\ua78b\ua78c\uff07"),
    "'",
)
_IGNORED = (
    *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    (0x200B, 0x200F),
    *((0x202A, 0x202E), (0x2060, 0x206F), (0x20DD, 0x20E4), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
_PLAIN |= {code: None for first, last in _IGNORED for code in range(first, last + 1)}


def _basic_3(text: str) -> str:
    """basic-2; characters that are not seen do not count, one apostrophe is every apostrophe, and the Turkish capital of i is an i."""
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN))
    text = unicodedata.normalize("NFKC", text.lower()).replace("i\u0307", "i")
    # the common case needs no look at every character
    kept = [re.sub(r"[^\w\s']|_", " ", text) if text.isascii() else " "]
    for c in "" if text.isascii() else text:
        # a mark without a letter is what is left of a picture
        mark = kept[-1] != " " and unicodedata.category(c)[0] == "M"
        kept.append(c if c.isalnum() or c in " '" or mark else " ")
    return _spaces(re.sub(r"(?<![^\s'])'|'(?![^\s'])", " ", "".join(kept)))


def _lone_apostrophes(text: str) -> str:
    return " ".join(re.sub(r"(?<!\w)'|'(?!\w)", " ", text).split())


def _spaces(text: str) -> str:
    return " ".join(text.split())


@cache
def _whisper_english() -> Normaliser:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normaliser: Normaliser = EnglishTextNormalizer({})  # type: ignore[no-untyped-call]  # the table of spellings comes with checkpoints
    return normaliser


def _english(text: str, basic: Normaliser = _basic_2) -> str:
    """Whisper's English normaliser: numbers, contractions and titles in one form, no fillers, nothing in brackets.

    Without its table of British spellings, which is no part of the library. Where it cannot read a text (odd numerals), ``basic``.
    """
    try:
        return _spaces(_whisper_english()(text))
    except (ValueError, ArithmeticError, LookupError):
        return basic(text)


def _chinese(text: str, basic: Normaliser = _basic_2) -> str:
    """``basic``, and no spaces between characters, which some corpora have and some have not."""
    return _SPACED.sub("", basic(text))


NORMALISERS: dict[str, Normaliser] = {
    "basic-1": normalise_basic,
    "basic-2": _basic_2,
    "basic-3": _basic_3,
    "english-1": _english,
    "english-2": lambda text: _english(text.translate(_PLAIN), _basic_3),
    "chinese-1": _chinese,
    "chinese-2": lambda text: _chinese(text, _basic_3),
    "none-1": _spaces,
}


def only_symbols(text: str) -> bool:
    """Whether something is written and none of it is a word, whatever the normaliser: ``[BLANK_AUDIO]``, ``(music)``, ``*sigh*``, ``♪``."""
    return bool(text.strip()) and not any(c.isalnum() for c in _TAG.sub(" ", text))


def is_cased(text: str) -> bool:
    """Whether a text is written as print is: capitals among small letters, or punctuation. Capitals throughout are none."""
    text = _TAG.sub(" ", text)
    return text not in (text.lower(), text.upper()) or bool(_MARK.search(text))


def get_normaliser(name: str) -> Normaliser:
    """A normaliser of ``NORMALISERS``, or ``package.module:function`` (text -> text). Raises ``UserError``."""
    if name in NORMALISERS:
        return NORMALISERS[name]
    if ":" in name:
        function: Normaliser = load_function(name, "text normaliser", "def f(text: str) -> str")
        return function
    known = f"one of {', '.join(NORMALISERS)}, or package.module:function"
    raise UserError(f"no text normaliser is called {name!r}", "", known)


@lru_cache(256)
def _code(language: str | None) -> str:
    code = re.split(r"[-_ (]", (language or "").strip().lower())[0]
    return "" if code in NO_LANGUAGES else code


def written_in_characters(text: str, language: str | None = None) -> bool:
    """Whether a text is counted in characters: by its language ("zh", "zh-CN", "Chinese") where known, else by its script."""
    code = _code(language)
    return code in CHARACTER_LANGUAGES if code else script_of(text) in CHARACTER_SCRIPTS


def units(text: str, language: str | None = None) -> list[str]:
    """What is counted in a normalised text: words, and characters in writing without words (see the module).

    Without a language every piece goes by its script, so that mixed text is counted as it is written.
    """
    code = _code(language)
    if text.isascii() or (code and code not in CHARACTER_LANGUAGES):
        return text.split()
    return _UNIT.findall(text)


def characters(text: str, language: str | None = None) -> list[str]:
    """The characters of a normalised text; spaces count (as jiwer's ``cer`` has it) where words have spaces between them."""
    text = _spaces(text)
    return list(text.replace(" ", "") if written_in_characters(text, language) else text)


@lru_cache(65536)
def _script(character: str) -> str:
    if unicodedata.category(character)[0] != "L":
        return ""
    word = unicodedata.name(character, "").split(" ")[0].lower()
    return "" if word in _NO_SCRIPT else _NAMES.get(word, word)


def script_of(text: str) -> str:
    """The script of most letters: "latin", "han", "kana", "hangul", "cyrillic", "arabic", ...; "" where there are no letters."""
    if text.isascii():
        return "latin" if any(c.isalpha() for c in text) else ""
    found = Counter(s for s in map(_script, text) if s)
    return found.most_common(1)[0][0] if found else ""


@dataclass(frozen=True, slots=True)
class Alignment:
    """A cheapest alignment of two sequences of units."""

    # counts of units
    substitutions: int
    deletions: int
    insertions: int
    # reference, hypothesis: the units
    reference: list[str]
    hypothesis: list[str]
    # blocks in order, (tag, reference start, end, hypothesis start, end), tag "equal", "replace", "delete" or "insert" (as difflib's
    # opcodes, but both sides of "replace" have the same length)
    ops: list[Op]

    @property
    def errors(self) -> int:
        """S + D + I, the edit distance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit. Of an empty reference: 0 for an empty hypothesis, else infinite."""
        if self.reference:
            return self.errors / len(self.reference)
        return float("inf") if self.hypothesis else 0.0


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align units; an empty hypothesis is all deletions (error rate 1), never a match."""
    from rapidfuzz.distance import Levenshtein

    ref, hyp = list(reference), list(hypothesis)
    ops: list[Op] = [(o.tag, o.src_start, o.src_end, o.dest_start, o.dest_end) for o in Levenshtein.opcodes(ref, hyp)]
    count = Counter[str]()
    for tag, start, end, other_start, other_end in ops:
        count[tag] += (other_end - other_start) if tag == "insert" else (end - start)
    return Alignment(count["replace"], count["delete"], count["insert"], ref, hyp, ops)
