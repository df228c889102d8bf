"""Rewards behind an address: ``--reward http://host:8000#wer`` is computed by a ``rlspeech serve`` on another machine.

The server says once what it has. Its gates are kept here too, and waveforms are sent as they are, in float32 at their own rate, so that a
score is what it would be here. A request that fails costs its clips their scores, with the reason, and the next run of ``rlspeech
reward`` asks again. What a server says is untrusted: numbers are checked, words are shortened.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import isfinite
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from rlspeech import log
from rlspeech.rewards.catalogue import ALIASES, Column, Entry
from rlspeech.rewards.client import Client, Failure
from rlspeech.types import Sample, Score, UserError

TOKEN = "RLSPEECH_SERVE_TOKEN"  # environment variable, here and at the server
MAX_BODY = 30_000_000  # bytes
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=2000)]


@dataclass(frozen=True, slots=True)
class Offer:
    """A reward that a server has: its name there, and what of its entry is needed elsewhere."""

    name: Line
    version: Line
    family: Line
    column: Column
    needs: frozenset[str]
    silence: str
    min_s: float
    min_rate_hz: int


OFFERS = TypeAdapter(list[Offer], config=ConfigDict(ser_json_inf_nan="strings"))
_known: dict[str, dict[str, Offer]] = {}  # by address, of those that were asked


class RewardClient(Client):
    """A server of rewards."""

    who, usage, keys = "reward server", "--reward http://HOST:8000#NAME", (TOKEN,)


def entry_of(address: str, ask: bool = True) -> tuple[str, Entry, dict[str, str]]:
    """The column, entry and options of ``http://host:8000#NAME``; its server is asked once, and not at all without ``ask``.

    Raises:
        UserError: it does not answer, or not as ``rlspeech serve`` does, has no such reward, or was not asked.
    """
    url, _, name = address.partition("#")
    url, name = url.rstrip("/"), unquote(name)
    if url not in _known and ask:
        _known[url] = {o.name: o for o in _offers(url)}
    known = _known.get(url, {})
    offer = known.get(name) or known.get(ALIASES.get(name, name))
    if offer is None:
        why = f"it serves {', '.join(known)}" if known else "it was not asked"
        raise UserError(f"no reward {name!r} at {url}", why, f"--reward {url}#{next(iter(known), 'NAME')}")
    column, gates = (
        f"{url}#{offer.name}",
        {"silence": offer.silence, "min_s": offer.min_s, "min_rate_hz": offer.min_rate_hz},
    )
    own = {"url": url, "family": offer.family, "needs": " ".join(sorted(offer.needs)), "version": offer.version}
    made = Entry("served", f"{__name__}:ServedRewards", {column: offer.column}, offer.needs, "http", {}, None, **gates)
    return column, made, own


def _offers(url: str) -> list[Offer]:
    client = RewardClient(url, name="")
    try:
        with log.waiting("asking the reward server"):
            return OFFERS.validate_python(client.ask("/rewards", None))
    except Failure as failure:
        hint = "is rlspeech serve running there, and this its address?"
        raise UserError(f"cannot ask {url} for its rewards", failure.reason, hint) from failure
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{url} is no server of rewards", why, RewardClient.usage) from error


class ServedRewards:
    """The rewards of one family at one server.

    Args:
        url, family, needs, version: as ``entry_of`` has them; the family only tells computations apart.
        batch: most clips in a request; of long ones there are fewer.
        timeout_s: of one attempt.
        server: further options of ``client.Client``.
    """

    def __init__(
        self, url: str, family: str, needs: str, version: str, batch: int = 16, timeout_s: float = 120.0, **server: Any
    ) -> None:
        self.client = RewardClient(url, name="", timeout_s=timeout_s, **server)
        self.version, self.needs, self.batch = f"{version}, served at {url}", needs.split(), batch

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
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

    def _row(self, sample: Sample) -> dict[str, Any]:
        """A sample as JSON has it; its waveform only where that is judged, or has to be recognised."""
        heard = "hypothesis" in self.needs or ("transcript" in self.needs and sample.hypothesis is not None)
        wavs = {"audio": None if heard else sample.wav, "target": sample.target if "target" in self.needs else None}
        plain = {k: log.plain(v) for k, v in sample.columns.items() if isinstance(v, str | int | float | list | dict)}
        sounds = {k: None if wav is None else _packed(wav, sample.sample_rate) for k, wav in wavs.items()}
        return {**plain, "key": sample.key, "text": sample.text, "hypothesis": sample.hypothesis, **sounds}


def _packed(wav: np.ndarray, rate: int) -> str:
    import soundfile as sf

    file = BytesIO()
    sf.write(file, wav, rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _score(value: Any, reason: Any) -> Score:
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return Score(float(value))
    words = "".join(c for c in str(reason or "") if c.isprintable())[:300]
    return Score(None, words or "endpoint: no score in the reply")
