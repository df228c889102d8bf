"""Rewards behind an address: ``--reward http://host:8000#wer`` is computed by a ``rlspeech serve`` on another machine, or another scorer.

The server says once what it has. Its gates are kept here too, and waveforms are sent as they are, in float32 at their own rate, so that a
score is what it would be here. A request that fails costs its clips their scores, with the reason, and the next run of ``rlspeech
reward`` asks again. What a server says is untrusted: numbers are checked, words are shortened.

A server without a list of rewards is asked for one score a clip, in the protocol of verl-omni's ``audio_http_scorer_client``:
``{"waveform_f32_base64": ..., "sample_rate": ..., "prompt": TEXT, ...}`` to the address is answered by ``{"score": x}``; more is better.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any
from urllib.parse import unquote

from pydantic import ConfigDict, TypeAdapter

from rlspeech import log
from rlspeech.rewards.catalogue import ALIASES, Column, Entry
from rlspeech.rewards.client import Client, Failure, wav_bytes
from rlspeech.types import Sample, Score, UserError

OTHER = "other scorer"  # family and name of what a server without a list has
TOKEN = "RLSPEECH_SERVE_TOKEN"  # environment variable, here and at the server
MAX_BODY = 30_000_000  # bytes
Offers = dict[str, tuple[str, Entry]]  # what a server has: name -> version, and an entry with the one column
OFFERS = TypeAdapter(Offers, config=ConfigDict(ser_json_inf_nan="strings"))
_known: dict[str, Offers] = {}  # by address, of those that were asked


class RewardClient(Client):
    """A server of rewards."""

    who, usage, keys = "reward server", "--reward http://HOST:8000#NAME", (TOKEN,)


def entry_of(address: str, ask: bool = True) -> tuple[str, Entry, dict[str, str]]:
    """The column, entry and options of ``http://host:8000#NAME``; its server is asked once, and not at all without ``ask``.

    Raises ``UserError``: it does not answer, its list is none of ``rlspeech serve``, it has no such reward, or it was not asked.
    """
    url, _, name = address.partition("#")
    url, name = url.rstrip("/"), unquote(name)
    if url not in _known and ask:
        _known[url] = _offers(url)
    known = _known.get(url, {})
    name = name if name in known else ALIASES.get(name, name)
    offered = OTHER if OTHER in known and name else name
    if offered not in known:
        why = f"it serves {', '.join(map(_words, known))}" if known else "it was not asked"
        raise UserError(f"no reward {name!r} at {url}", why, RewardClient.usage)
    version, offer = known[offered]
    (column,) = offer.columns.values()
    columns = {f"{url}#{name}": replace(column, help=_words(column.help))}
    gates: dict[str, Any] = {"min_s": offer.min_s, "silence": offer.silence, "min_rate_hz": offer.min_rate_hz}
    made = Entry("served", f"{__name__}:ServedRewards", columns, offer.needs, "http", sample_rate=None, **gates)
    own = {"family": _words(offer.family), "version": _words(version), "needs": " ".join(sorted(offer.needs))}
    return f"{url}#{name}", made, {**own, "url": url}


def _offers(url: str) -> Offers:
    client = RewardClient(url, name="")
    try:
        with log.waiting("asking the reward server"):
            found = OFFERS.validate_python(client.ask("/rewards", None))
        if not found or any(len(entry.columns) != 1 for _, entry in found.values()):
            raise ValueError("it offers nothing")
        return found
    except (Failure, ValueError) as error:
        why = " ".join(str(getattr(error, "reason", error)).split())[:200]
        if why.startswith(("HTTP 404", "HTTP 405", "HTTP 501")):  # the status of a server that has no such page
            log.say(f"{url} has no list of rewards: it is asked for one score a clip, of which more is better")
            return {OTHER: ("unversioned", Entry(OTHER, "", {OTHER: Column("score of another server")}))}
        hint = "is rlspeech serve running there, and this its address?"
        raise UserError(f"cannot ask {url} for its rewards", why, hint) from error


class ServedRewards:
    """The rewards of one family at one server; further options are those of ``client.Client``.

    Args:
        url, family, needs, version: as ``entry_of`` has them.
        batch: most clips in a request; of long ones there are fewer.
    """

    def __init__(
        self, url: str, family: str, needs: str, version: str, batch: int = 16, timeout_s: float = 120.0, **server: Any
    ) -> None:
        self.client = RewardClient(url, name="", timeout_s=timeout_s, **server)
        self.version, self.needs, self.batch, self.family = f"{version}, served at {url}", needs.split(), batch, family

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        if self.family == OTHER:
            return [dict.fromkeys(columns, score) for score in self.client.each(self._ask_other, samples)]
        parts: list[list[str]] = []
        for row in (json.dumps(self._row(s), separators=(",", ":")) for s in samples):
            if not parts or len(parts[-1]) >= self.batch or sum(map(len, parts[-1])) + len(row) > MAX_BODY:
                parts.append([])
            parts[-1].append(row)
        return [scores for part in self.client.each(partial(self._ask, columns), parts) for scores in part]

    def _ask(self, columns: Sequence[str], rows: list[str], number: int) -> list[dict[str, Score]]:
        names = {c: c.partition("#")[2] for c in columns}
        body = f'{{"rewards":{json.dumps([*names.values()])},"samples":[{",".join(rows)}]}}'
        try:
            reply = self.client.ask("/score", body.encode())
            found = {c: [*zip(reply["scores"][n], reply["errors"][n], strict=True)] for c, n in names.items()}
            return [{c: _score(*found[c][i]) for c in columns} for i in range(len(rows))]
        except (Failure, KeyError, TypeError, ValueError, IndexError) as error:
            reason = error if isinstance(error, Failure) else Failure("the reply is none of rlspeech serve")
            return [dict.fromkeys(columns, Score(None, str(reason))) for _ in rows]

    def _ask_other(self, sample: Sample, number: int) -> Score:
        """The score of a clip in verl-omni's protocol, version 1; of its columns those that are one number or text go with it."""
        wav = base64.b64encode(sample.wav.astype("<f4").tobytes()).decode("ascii")
        plain = {**sample.columns, "id": sample.key, "hypothesis": sample.hypothesis}
        body = {"protocol_version": "1", "waveform_f32_base64": wav, "num_samples": len(sample.wav)}
        body |= {"sample_rate": sample.sample_rate, "prompt": sample.text or ""}
        body["metadata"] = {k: v for k, v in plain.items() if isinstance(v, str | int | float)}
        try:
            reply = self.client.ask("", json.dumps(body).encode())
            return _score(reply["score"], reply.get("error"))
        except (Failure, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, Failure) else Failure("the reply holds no score")
            return Score(None, str(reason))

    def _row(self, sample: Sample) -> dict[str, Any]:
        """A sample as JSON has it, with the sound that is judged or has to be recognised; a user's function gets all."""
        own, needs = ":" in self.family, self.needs
        read = "hypothesis" in needs or ("transcript" in needs and sample.hypothesis is not None)
        wavs = {"audio": sample.wav if len(sample.wav) and (own or not read) else None}
        wavs["target"] = sample.target if own or "target" in needs else None
        plain = {k: log.plain(v) for k, v in sample.columns.items() if isinstance(v, str | int | float | list | dict)}
        files = {k: wav_bytes(wav, sample.sample_rate, exact=True) for k, wav in wavs.items() if wav is not None}
        sounds = {k: None for k in wavs} | {k: base64.b64encode(file).decode("ascii") for k, file in files.items()}
        return {**plain, "key": sample.key, "text": sample.text, "hypothesis": sample.hypothesis, **sounds}


def _score(value: Any, reason: Any) -> Score:
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return Score(float(value))
    return Score(None, _words(reason or "") or "endpoint: no score in the reply")


def _words(text: Any) -> str:
    return "".join(c for c in str(text) if c.isprintable())[:300]
