"""The registry of rewards, and the gates that every one of them stands behind.

A reward is asked for by name: ``pesq_wb``, with options ``dnsmos_ovrl[level_dbfs=-25]``, as a function ``my_pkg.mod:my_reward``, or
at an address ``http://host:8000#wer`` (``served``).
Nothing here imports torch: ``rlspeech doctor`` and ``rlspeech --help`` read the list.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from rlspeech.data.audio import NOTHING_DBFS, loudest_dbfs, silence
from rlspeech.plugins import load
from rlspeech.rewards import served
from rlspeech.rewards.catalogue import ALIASES, BUILTIN, RECOGNISED, Column, Entry
from rlspeech.rewards.user import entry_of
from rlspeech.types import Sample, Score, UserError

FOLDER_HINT = "a folder that holds config.json and the weights, or a Hub id with the network at hand"
LOWEST_DBFS = {"null": NOTHING_DBFS, "scale-free": -199.0}  # by ``Entry.silence``
WORDS = {"true": True, "false": False, "none": None, "null": None}  # of an option
MAX_ABS = 1.0e4  # beyond this a waveform is a numerical accident, not a level

_entries: dict[str, Entry] = {}
_columns: dict[str, Entry] = {}
_aliases: dict[str, str] = {}


class Family(Protocol):
    """One computation with named columns; ``version`` says which implementation and which weights."""

    version: str

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Score a batch whose samples passed the gates, at the family's rate. One dict (column -> score) a sample, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A reward as asked for: ``asked`` is the name as written (the key of its scores), ``options`` go to the family."""

    asked: str
    entry: Entry
    column: str
    options: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """What has to be equal for two requests to share a computation."""
        return self.entry.family, self.options


def register(entry: Entry, aliases: dict[str, str] | None = None) -> None:
    """Add a family. Raises ``ValueError`` where a family, column or alias of that name exists: nothing is overwritten silently."""
    new = [*entry.columns, *(aliases or {})]
    taken = [n for n in new if n in _columns or n in _aliases] + ([entry.family] if entry.family in _entries else [])
    if taken or len(set(new)) != len(new):
        raise ValueError(f"reward names already taken: {', '.join(taken or new)}")
    _entries[entry.family] = entry
    _columns.update(dict.fromkeys(entry.columns, entry))
    _aliases.update(aliases or {})


for _entry in BUILTIN:
    register(_entry)
_aliases.update(ALIASES)


def why_not(entry: Entry) -> str:
    """Empty where the family can be used on this machine, else one line that says what is missing."""
    for module, hint in entry.requires.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install {hint}"
    return str(load(entry.probe)()) if entry.probe else ""


def available() -> list[tuple[Entry, str]]:
    """All families in the order of the catalogue, each with ``why_not``: "" where it can be used here."""
    return [(entry, why_not(entry)) for entry in _entries.values()]


def resolve(asked: str, options: dict[str, Any] | None = None, ask: bool = True) -> Request:
    """Understand a name: alias, ``name[option=value,...]``, ``package.module:function`` or ``http://host:port#name``.

    Options in the name go before ``options``; the server at an address is asked what it has, unless ``ask`` is False.

    Raises ``UserError``: no such reward (the closest name is offered), or one that cannot be used here.
    """
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", asked)
    if match is None:
        raise UserError(
            f"cannot read the reward {asked!r}",
            "",
            "name, name[option=value], package.module:function or http://host:port#name",
        )
    name, merged = match[1], {**(options or {}), **_parse_options(match[2] or "", asked)}
    if name.startswith(("http://", "https://")):
        column, entry, own = served.entry_of(name, ask)
        return Request(asked, entry, column, tuple(sorted({**merged, **own}.items())))
    if ":" in name:
        return Request(asked, entry_of(name), name, tuple(sorted({**merged, "name": name}.items())))
    name = _aliases.get(name, name)
    if name not in _columns:
        close = difflib.get_close_matches(name, [*_columns, *_aliases], 1, 0.5)
        hint = "rlspeech doctor lists the rewards; package.module:function names your own"
        hint = f"did you mean {close[0]!r}?" if close else hint
        raise UserError(f"unknown reward {name!r}", f"known: {', '.join(sorted(_columns))}", hint)
    entry = _columns[name]
    if "recogniser" in merged and entry.family == RECOGNISED.family:
        entry = RECOGNISED
    if reason := why_not(entry):
        raise UserError(f"the reward {name!r} cannot be used here", reason, "rlspeech doctor lists those that can")
    return Request(asked, entry, name, tuple(sorted(merged.items())))


def named(asked: Sequence[str]) -> list[str]:
    """The columns of what is asked for: of an alias its full name, of a family's name (``dnsmos``, ``squim``) all that it has."""
    found = list[str]()
    for name, bracket, options in (a.strip().partition("[") for a in asked):
        family = _entries.get(name := name.strip())
        columns = [_aliases.get(name, name)] if family is None or name in family.columns else family.columns
        found += [column + bracket + options for column in columns]
    return list(dict.fromkeys(found))


def column_of(asked: str) -> Column:
    """Direction and range of a reward by name, without loading it; of a served one only where its server was asked before."""
    request = resolve(asked, ask=False)
    return request.entry.columns[request.column]


def known_column(name: str) -> Column | None:
    """``column_of``; None of a score that no reward of this machine makes."""
    with suppress(UserError):
        return column_of(name)
    return None


def build(request: Request, device: str = "cpu") -> Family:
    """Make the family of a request. Raises ``UserError`` for options that it does not know."""
    options = dict(request.options)
    if request.entry.where == "device":
        options["device"] = device
    try:
        return cast(Family, load(request.entry.factory)(**options))
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        why = "the reward has no such option"
        raise UserError(f"{request.asked}: {error}", why, f"see {request.entry.factory}") from error


def gate(sample: Sample, entry: Entry) -> str | None:
    """Why a sample cannot be scored, or None: the checks that all rewards share, before any of them computes.

    Where a hypothesis is judged, the waveform is only what was recognised, and silence or no samples at all are allowed; a reference
    text of "" is then an answer too (nothing is said), and only None is no reference.
    """
    heard = "transcript" in entry.needs
    if "hypothesis" in entry.needs or (heard and sample.hypothesis is not None):
        if not isinstance(sample.hypothesis, str):
            return "no hypothesis"
        return "no reference text" if "text" in entry.needs and sample.text is None else None
    rate, reason = sample.sample_rate, None
    if "tokens" in entry.needs:
        reason = "no codec tokens" if sample.tokens is None else None
    elif not (entry.silence == "empty" and isinstance(sample.wav, np.ndarray) and sample.wav.shape == (0,)):
        # synthesis that says nothing is an answer, too
        reason = wave_problem(sample.wav, rate, entry.min_s, LOWEST_DBFS.get(entry.silence))
    if reason is None and rate < entry.min_rate_hz:
        reason = f"sampled at {rate} Hz, the measure is of {entry.min_rate_hz} Hz and more"
    if reason is None and "text" in entry.needs and (sample.text is None or not (heard or sample.text.strip())):
        reason = "no reference text"
    if reason is not None or "target" not in entry.needs:
        return reason
    if sample.target is None:
        return "no reference audio"
    reason = wave_problem(sample.target, rate, entry.min_s, LOWEST_DBFS.get(entry.silence, NOTHING_DBFS))
    return f"reference: {reason}" if reason else None


def wave_problem(wav: np.ndarray, rate: int, min_s: float, lowest_dbfs: float | None = NOTHING_DBFS) -> str | None:
    """Reason why (T,) is no waveform to score: shape, length, NaN, all of it below a level (None: any will do); None where it is fine."""
    if not isinstance(wav, np.ndarray) or wav.ndim != 1:
        return f"not a mono waveform (shape {getattr(wav, 'shape', None)})"
    if len(wav) == 0:
        return "no samples"
    with np.errstate(over="ignore"):
        power = float(np.dot(wav, wav)) / len(wav)  # one fast pass: NaN and infinity survive the sum
    if not np.isfinite(power):
        return "NaN or infinite samples" if not np.isfinite(wav).all() else "samples beyond any level"
    if power > MAX_ABS**2:
        return "samples beyond any level"
    if len(wav) < min_s * rate:
        return f"too short ({len(wav) / rate:.2f} s, at least {min_s:g} s)"
    silent = lowest_dbfs is not None and (level := loudest_dbfs(wav, rate)) < lowest_dbfs
    return silence(level) if silent else None


def _parse_options(text: str, asked: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or not key.isidentifier():
            why, usage = f"{part!r} is not option=value", "name[option=value,option=value]"
            raise UserError(f"cannot read the options of {asked!r}", why, usage)
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
