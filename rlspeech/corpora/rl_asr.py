"""Which utterances a recogniser should be trained on with rewards: the sets D0 to D3 of GRPO for LLM recognition (arXiv 2509.18569).

    d0     a random sample: the control
    d1     hard cases: recognisers disagree with each other, their mean pairwise WER lies in a band; and long speech, rendered: one
           sentence several times, or sentences of one speaker one after the other, which makes a language model loop or stop early
    d2     a random sample of what is shorter than 20 s and in neither of the others
    d3     the utterances with most keywords to the word: from a list, or the rarest words of the corpus
    d123   d1, d2 and d3 together; d0 is given as many rows, so that the two can be compared

The paper says neither sizes nor thresholds. The band begins where a public pipeline (CosyVoice 3) stops to trust a transcript on which
three recognisers agree, 15 %; what lies above its upper end is more often a wrong transcript or no speech than a hard case.
Disagreement is symmetric: the mean over ordered pairs of edits over the second one's length, each at most 1. Hypotheses are read from
files, or made by recognisers, whose texts are kept in ``OUT/heard/NAME.jsonl`` as they come: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from pydantic import Field

from rlspeech import log
from rlspeech.config_parts import Count, NonNegative, Positive, Share, Strict, Whole, conf
from rlspeech.corpora.base import Rendered, Sets, Source, dropped_row, shown
from rlspeech.corpora.join import read, write_joined
from rlspeech.data.audio import AudioError, rms_dbfs
from rlspeech.data.checks import file_stamp
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.data.mixing import mixture_rng
from rlspeech.data.text import get_normaliser, units
from rlspeech.files import JsonlWriter, numbered_rows, read_text, safe_name, write_error
from rlspeech.models.hub import embedded_path
from rlspeech.parallel import one_by_one
from rlspeech.rewards.recognisers import Transcribe, load_recogniser
from rlspeech.rewards.rules import keywords_of
from rlspeech.types import UserError, Utterance

RATE_HZ = 16000
SETS = ("d0", "d1", "d2", "d3", "d123")
ID_KEYS = ("id", "key", "audio_filepath")
TEXT_KEYS = ("texts", "hypotheses", "hypothesis", "text", "pred_text")
RARE = "without a list, the rarest words that make up this share of the corpus' running words are keywords"
DISTRACTORS = (
    "keywords that an utterance does not hold, added to its column `keywords`: without any, keyword precision knows no "
    "false alarms"
)
Texts = Mapping[str, Sequence[str]]  # row id -> what each recogniser made of it
Units = Callable[[str, str | None], list[str]]  # text, language -> normalised words (or characters)


class Rules(Strict):
    """What goes into which set."""

    rows: Count = conf(600, "size of d123 and of the control d0; smaller where the corpus is")
    shares: tuple[Share, Share, Share] = conf((0.5, 0.25, 0.25), "of d1, d2 and d3 in rows")
    sizes: tuple[Whole, Whole, Whole, Whole] | None = conf(
        None, "rows of d0, d1, d2, d3 in place of rows and shares; 0 for d0: as many as d123"
    )
    band: tuple[NonNegative, NonNegative] = conf(
        (0.15, 1.0), "hard cases (d1): least and largest mean pairwise WER between recognisers"
    )
    long_share: Share = conf(0.3, "d1: share that is rendered as long speech")
    long_s: tuple[NonNegative, NonNegative] = conf((10.0, 30.0), "d1: shortest and longest of that")
    repeats: tuple[Count, Count] = conf((2, 6), "d1: how many utterances are put one after the other")
    gap_s: tuple[NonNegative, NonNegative] = conf((0.1, 0.5), "d1: pause between them")
    short_s: Positive = conf(20.0, "d2: longer recordings are left out")
    keyword_share: Share = conf(0.1, RARE)
    keyword_letters: int = conf(4, "without a list: shorter words are no keywords", ge=1)
    distractors: int = conf(0, DISTRACTORS, ge=0)
    seed: int = Field(0, ge=0)


class RlAsr(Rules, Source):
    """``rlspeech prepare rl-asr``."""

    name = "rl-asr"
    needed = ("data",)
    data: str | None = conf(None, "manifest with transcripts, or a folder that holds one")
    recognisers: list[str] = conf(
        [], "two or more: embedded, Hub id, folder, http://host/v1#model, pocketsphinx or module:function; repeatable"
    )
    hypotheses: list[str] = conf(
        [],
        "JSONL with id and text, one file a recogniser, or with id and texts, in place of recognisers or beside them",
    )
    keywords: str | None = conf(None, "text file with one keyword or phrase a line; none: rare words of the corpus")
    normaliser: str = conf("basic-3", "normaliser for texts before they are compared")
    language: str | None = conf(None, "language of rows without one, and for recognisers that take one")
    batch: int = conf(8, "recordings in one call of a recogniser", ge=1)
    device: str = "auto"

    def make(self, out: Path) -> Sets:
        """Return the sets d0, d1, d2, d3 and d123, those that are not empty."""
        normalise = get_normaliser(self.normaliser)
        keywords = _lines(self.keywords) if self.keywords else []
        source = find_manifest(self.data or "", recipe=False)
        utts = read_manifest(source)
        if not any(u.text for u in utts):
            why = f"no row of {len(utts)} has a text"
            raise UserError(f"{source} has no transcripts", why, "rlspeech prepare folder --text FILE adds them")
        hypotheses = _hypotheses(self, utts, out)
        by_row = {u.id: [texts[u.id] for texts in hypotheses.values() if u.id in texts] for u in utts}

        def in_units(text: str, language: str | None) -> list[str]:
            return units(normalise(text), language or self.language)

        built = build(utts, by_row, keywords, self, in_units, out)
        sets = Sets({name: rows for name, rows in built.sets.items() if rows}, failed=built.failed)
        sets.meta = {"normaliser": self.normaliser, "recognisers": list(hypotheses)}
        facts, (low, high) = built.facts, self.band
        sets.facts = {"recognisers": {name: len(texts) for name, texts in hypotheses.items()}, "facts": facts}
        rare = "" if self.keywords else " (rare words)"
        sets.notes = [
            f"recognisers disagree by {low:g} to {high:g} WER on {facts['in_band']} of {facts['rows']} rows",
            f"{facts['with_keywords']} rows hold one of {facts['keywords']} keywords{rare}",
        ]
        sets.following = f"rlspeech rl --task asr --data {shown(out)}/d123.jsonl"
        return sets


class Built(NamedTuple):
    """The sets by name, rendered rows that failed, and the figures for the summary."""

    sets: dict[str, list[Utterance]]
    failed: list[dict[str, Any]]
    facts: dict[str, Any]


def disagreement(texts: Sequence[Sequence[str]]) -> float:
    """Mean pairwise WER of two or more hypotheses in units, 0 to 1: over ordered pairs, an empty one against words counts as 1."""
    from rapidfuzz.distance import Levenshtein

    rates = [min(1.0, Levenshtein.distance(a, b) / max(1, len(b))) for a, b in permutations(texts, 2)]
    return sum(rates) / max(1, len(rates))


def rare_words(texts: Iterable[Sequence[str]], share: float, letters: int) -> list[str]:
    """The rarest words of texts in units, rarest and longest first, that together make up at most ``share`` of the running words.

    Texts that are there several times (one prompt, many readers) count once. Words with digits are left out.
    """
    counts: dict[str, int] = {}
    for text in dict.fromkeys(tuple(t) for t in texts):
        for word in text:
            counts[word] = counts.get(word, 0) + 1
    left = share * sum(counts.values())
    found = []
    words = (w for w in counts if len(w) >= letters and w.replace("'", "").isalpha())
    for word in sorted(words, key=lambda w: (counts[w], -len(w), w)):
        left -= counts[word]
        if left < 0:
            break
        found.append(word)
    return found


def find_keywords(text: Sequence[str], table: Mapping[str, Sequence[tuple[tuple[str, ...], str]]]) -> list[str]:
    """Keywords that occur in a text in units, in order and once each; ``table``: first unit -> (units, keyword as written)."""
    found: dict[str, None] = {}
    for at, unit in enumerate(text):
        for phrase, name in table.get(unit, ()):
            if tuple(text[at : at + len(phrase)]) == phrase:
                found[name] = None
    return list(found)


def build(
    utts: Sequence[Utterance], hypotheses: Texts, keywords: Sequence[str], rules: Rules, units: Units, out: Path
) -> Built:
    """Choose and render; rows of the result carry ``set``, ``agreement`` (1 - mean pairwise WER), ``keywords`` and ``condition``.

    Args:
        utts: the corpus; rows without a known text are left out.
        hypotheses: rows with fewer than two are no hard cases.
        keywords: the list; empty: rare words are taken.
        units: text and language -> normalised units.
        out: folder; long speech goes to ``out/audio``, at 16 kHz.

    Raises:
        UserError: the disk does not take it.
    """
    known = [u for u in utts if u.text is not None]
    texts = {u.id: units(u.text or "", u.language) for u in known}
    listed = list(keywords) or rare_words(texts.values(), rules.keyword_share, rules.keyword_letters)
    table: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name in dict.fromkeys(listed):
        if phrase := tuple(units(name, None)):
            table.setdefault(phrase[0], []).append((phrase, name))
    rows = []
    for utt in known:
        hits = [] if keywords else keywords_of(utt.extra)
        hits = hits or find_keywords(texts[utt.id], table)
        columns: dict[str, Any] = {"_words": len(texts[utt.id]), "_hits": len(hits)}
        if hits:
            columns["keywords"] = hits + _distractors(utt.id, hits, listed, rules)
        answers = [units(text, utt.language) for text in hypotheses.get(utt.id, ())]
        if len(answers) > 1:
            columns["agreement"] = round(1 - disagreement(answers), 4)
        condition = utt.extra.get("condition") or ("noisy" if utt.snr_db is not None else "clean")
        rows.append(_with(utt, condition=condition, **columns))
    return _chosen(rows, rules, out, len(listed))


def _chosen(rows: list[Utterance], rules: Rules, out: Path, keywords: int) -> Built:
    """The sets of rows that have all their columns; ``_words`` and ``_hits`` are dropped."""
    sizes = rules.sizes or (0, *(round(rules.rows * share) for share in rules.shares))
    low, high = rules.band
    hard = [u for u in rows if "agreement" in u.extra and low <= 1 - u.extra["agreement"] <= high]
    long, failed = _long(hard if len(hard) >= 20 else rows, round(sizes[1] * rules.long_share), rules, out)
    sets = {"d1": _sample(hard, sizes[1] - len(long), rules, "d1") + long}
    rich = [u for u in rows if _density(u) > 0]
    order = mixture_rng(rules.seed, 3, "d3").permutation(len(rich))  # ties are drawn
    sets["d3"] = sorted((rich[i] for i in order), key=_density, reverse=True)[: sizes[3]]
    taken = {u.id for name in ("d1", "d3") for u in sets[name]}
    sets["d2"] = _sample([u for u in rows if u.duration < rules.short_s and u.id not in taken], sizes[2], rules, "d2")
    together: dict[str, Utterance] = {}
    for name in ("d1", "d2", "d3"):
        for utt in sets[name]:
            before = together.get(utt.id)
            together[utt.id] = _with(utt, set=f"{before.extra['set']}+{name}" if before else name)
    sets["d123"] = list(together.values())
    sets["d0"] = _sample(rows, sizes[0] or len(together), rules, "d0")
    tidy = {name: [_tidy(u if name == "d123" else _with(u, set=name)) for u in sets[name]] for name in SETS}
    facts = {"keywords": keywords, "in_band": len(hard), "with_keywords": len(rich), "rows": len(rows)}
    return Built(tidy, failed, facts | {"wanted": dict(zip(SETS, sizes, strict=False))})


def _distractors(key: str, hits: Sequence[str], listed: Sequence[str], rules: Rules) -> list[str]:
    others = mixture_rng(rules.seed, 4, key).permutation(len(listed))[: rules.distractors + len(hits)]
    return [listed[i] for i in others if listed[i] not in hits][: rules.distractors]


def _density(utt: Utterance) -> float:
    return float(utt.extra["_hits"]) / max(1, utt.extra["_words"])


def _with(utt: Utterance, **columns: Any) -> Utterance:
    return replace(utt, extra=utt.extra | columns)


def _tidy(utt: Utterance) -> Utterance:
    return replace(utt, extra={k: v for k, v in utt.extra.items() if not k.startswith("_")})


def _sample(rows: Sequence[Utterance], count: int, rules: Rules, name: str) -> list[Utterance]:
    """A random sample in the corpus' order."""
    chosen = mixture_rng(rules.seed, 0, name).permutation(len(rows))[: max(0, count)]
    return [rows[i] for i in sorted(chosen)]


def _long(rows: Sequence[Utterance], count: int, rules: Rules, out: Path) -> Rendered:
    """Long speech of several rows each; every other one repeats one sentence."""
    short = [u for u in rows if u.text and u.duration * rules.repeats[0] <= rules.long_s[1]]
    made: list[Utterance] = []
    failed: list[dict[str, Any]] = []
    with log.progress(count, "rendering", "long utterances") as bar:
        for number in range(count if short else 0):
            rng = mixture_rng(rules.seed, number, "long")
            parts = _parts(short, number % 2 == 0, rules, rng)
            name = f"long_{number:04d}"
            how = "speaker" if len({u.id for u in parts}) > 1 else "repeat"
            extra: dict[str, Any] = {"condition": "long", "how": how, "repeats": len(parts)}
            if keywords := list(dict.fromkeys(k for u in parts for k in u.extra.get("keywords", ()))):
                extra["keywords"] = keywords
            options: dict[str, Any] = {"gap_s": rules.gap_s, "sample_rate": RATE_HZ, "rng": rng, "extra": extra}
            try:
                made.append(write_joined(parts, out / "audio" / f"{name}.flac", **options))
            except AudioError as error:
                failed.append(dropped_row("d1", name, parts[0].audio_filepath, "cannot be made", error.reason))
            except OSError as error:
                raise write_error(out, error, f"{len(made)} long utterances were kept") from error
            bar.advance()
    return made, failed


def _parts(short: Sequence[Utterance], repeated: bool, rules: Rules, rng: Generator) -> list[Utterance]:
    """The rows of one long utterance, at least ``repeats[0]`` of them and together within ``long_s`` where that can be."""
    first = short[int(rng.integers(len(short)))]
    target = float(rng.uniform(*rules.long_s))
    others = [] if repeated or not first.speaker_id else [u for u in short if u.speaker_id == first.speaker_id]
    others = [u for u in others if u.id != first.id]
    if others:
        parts, seconds = [first], first.duration
        for i in rng.permutation(len(others)):
            gap = rules.gap_s[1] * len(parts)
            if len(parts) == rules.repeats[1] or (len(parts) >= rules.repeats[0] and seconds + gap >= target):
                break
            if seconds + gap + others[i].duration <= rules.long_s[1]:
                parts.append(others[i])
                seconds += others[i].duration
        if len(parts) >= rules.repeats[0]:
            return parts
    least, most = rules.repeats
    fitting = int(rules.long_s[1] // max(0.1, first.duration + rules.gap_s[1]))
    times = max(round(target / max(0.1, first.duration)), least)
    return [first] * min(times, most, max(fitting, least))


def _hypotheses(config: RlAsr, utts: Sequence[Utterance], out: Path) -> dict[str, dict[str, str]]:
    """Recogniser -> row id -> text, from files and from recognisers that are run now."""
    found: dict[str, dict[str, str]] = {}
    for path in config.hypotheses:
        for name, texts in _read_hypotheses(Path(path), utts).items():
            found[name if name not in found else f"{path}:{name}"] = texts
    if len(found) + len(set(config.recognisers)) == 1:
        why = "hard cases are those on which two or more differ"
        try_this = "name another one with --recogniser, or give its transcripts with --hypotheses"
        raise UserError("one recogniser cannot disagree", why, try_this)
    for name in dict.fromkeys(config.recognisers):
        found[name] = recognise(name, utts, out / "heard", config.batch, config.device, config.language)
    if not found:
        log.warn("without recognisers or hypotheses no row is known to be hard: d1 holds long speech alone")
    return found


def _read_hypotheses(path: Path, utts: Sequence[Utterance]) -> dict[str, dict[str, str]]:
    """A file's recognisers: one, named by the file, or one for every place of its lists."""
    known = {u.id for u in utts} | {str(u.extra["original_id"]) for u in utts if "original_id" in u.extra}
    by_name = {os.path.basename(u.audio_filepath): u.id for u in utts}
    by_name |= {str(u.extra.get("original_id", u.id)): u.id for u in utts}
    found: dict[str, dict[str, str]] = {}
    for number, row in numbered_rows(path):
        try:
            key = next(str(row[k]) for k in ID_KEYS if row.get(k) is not None)
            given = next(row[k] for k in TEXT_KEYS if row.get(k) is not None)
        except (ValueError, TypeError, AttributeError, StopIteration) as error:
            why = "an object with id and text (or texts) is expected"
            try_this = '{"id": "utt1", "texts": ["the first one\'s", "the second one\'s"]}'
            raise UserError(f"{path} line {number} is no hypothesis", why, try_this) from error
        key = key if key in known else os.path.basename(key)
        texts = list(map(str, given)) if isinstance(given, list) else [str(given)]
        for place, text in enumerate(texts):
            found.setdefault(f"{path.stem}:{place}" if len(texts) > 1 else path.stem, {})[by_name.get(key, key)] = text
    if not any(key in known for texts in found.values() for key in texts):
        why = "its ids are not the manifest's"
        raise UserError(f"{path} names none of the rows", why, "check id, or the name of the audio file")
    return found


def _lines(path: str) -> list[str]:
    lines = read_text(path).splitlines()
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not found:
        raise UserError(f"{path} is empty", "no keyword in it", "one keyword or phrase a line")
    return found


# ---------------------------------------------------------------------------------------------------------- recognition
#
# A row is recognised anew where its file or the recogniser's folder has changed. A row that cannot be read, or on which the recogniser
# fails, is left out and retried by the next run; a silent one is not given to the recogniser and has an empty text.

SILENT_DBFS = -80.0


def recognise(
    name: str,
    utts: Sequence[Utterance],
    folder: Path,
    batch: int = 8,
    device: str = "auto",
    language: str | None = None,
) -> dict[str, str]:
    """Row id -> transcript by the recogniser ``name``, ``batch`` recordings in one call.

    The journal ``folder/NAME.jsonl`` is continued where it is there; ``language`` is handed to recognisers that take one.

    Raises ``UserError``: it cannot be loaded, or fails on every row.
    """
    with JsonlWriter(folder / f"{safe_name(name)}.jsonl", "key") as journal:
        state = f"{language or ''}|{_weights(name)}"
        files = {path: file_stamp(path) or f"{path}|missing" for path in {utt.audio_filepath for utt in utts}}
        keys = {u.id: f"{u.id}|{files[u.audio_filepath]}|{u.offset:g}|{u.duration:g}|{state}" for u in utts}
        texts = {key: str(journal.rows[keys[key]]["text"]) for key in keys if keys[key] in journal}
        todo = sorted((u for u in utts if u.id not in texts), key=lambda u: u.duration)  # like lengths together
        if not todo:
            return texts
        if texts:
            log.say(f"{name} has transcribed {len(texts)} of {len(utts)} rows before")
        if name != "pocketsphinx" and ":" not in name:  # these know no devices, and need no torch
            from rlspeech.engine import Engine

            device = str(Engine(device, "fp32").device)
        run, problem = load_recogniser(name, device, language, batch), None
        with log.progress(len(utts), f"transcribing with {name}", "rows", start=len(texts)) as bar:
            for at in range(0, len(todo), batch):
                part = todo[at : at + batch]
                found, error = _transcribe(part, run)
                problem = error or problem
                for key in (u.id for u in part if u.id in found):
                    texts[key] = found[key]
                    journal.write({"key": keys[key], "id": key, "text": found[key]})
                bar.advance(len(part))
    if not texts:
        raise UserError(f"{name} has transcribed nothing", str(problem), "try it on one file") from problem
    if lost := len(utts) - len(texts):
        log.warn(f"{name}: {lost} of {len(utts)} rows could not be transcribed ({problem})")
    return texts


def _weights(name: str) -> str:
    """Changes with the files of a recogniser in a folder; empty for others."""
    folder = embedded_path("asr") if name == "embedded" else Path(name)
    if not folder.is_dir():
        return ""
    facts = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(folder.iterdir()) if p.is_file()]
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=6).hexdigest()


def _transcribe(utts: Sequence[Utterance], run: Transcribe) -> tuple[dict[str, str], Exception | None]:
    """Row id -> text, and the last failure; after a failed call every row is tried by itself."""
    texts: dict[str, str] = {}
    wavs: dict[str, np.ndarray] = {}
    problem: Exception | None = None
    for utt in utts:
        try:
            wav = read(utt, RATE_HZ)
        except AudioError as error:
            problem = error
            continue
        if rms_dbfs(wav) < SILENT_DBFS:
            texts[utt.id] = ""
        else:
            wavs[utt.id] = wav
    answers = one_by_one(lambda keys: run([wavs[k] for k in keys], RATE_HZ), list(wavs))
    for key, answer in zip(wavs, answers, strict=True):
        if isinstance(answer, Exception):
            problem = answer
        else:
            texts[key] = answer
    return texts, problem
