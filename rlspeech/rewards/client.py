"""Asking a server over HTTP, within bounds: what describers, recognisers and rewards behind an address share.

The key comes from the environment only and is sent to the named host only: redirects are not followed. Attempts and waits are bounded;
after several failures in a row of the connection itself, further requests try once, so that a dead server costs minutes and not hours.
Only the standard library is used: an HTTP package is not among what transformers is sure to bring.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import numpy as np

from rlspeech import log
from rlspeech.files import parse_json
from rlspeech.parallel import within
from rlspeech.types import UserError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
KEYS = ("RLSPEECH_API_KEY", "OPENAI_API_KEY")  # the first one that is set is used
MAX_REPLY = 4_000_000  # bytes
MAX_WAIT_S = 30.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
GIVE_UP_AFTER = 4  # failures of the connection in a row, after which nothing is tried twice until something succeeds
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass
class Failure(Exception):
    """Why an attempt failed, and whether and after how long another may help."""

    reason: str
    retry: bool = False
    wait_s: float | None = None

    def __str__(self) -> str:
        return f"endpoint: {self.reason}"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the key and the audio go where the user said, and nowhere else."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Follow none."""
        return None


class Client:
    """What is asked of a server, within bounds, by several threads; here an OpenAI-compatible one.

    Args:
        url: up to what the requests' paths are added to; of OpenAI's interface with the version, ``http://host:8000/v1``.
        name: the model's name at the server; None asks the server, which must then serve exactly one.
        concurrency: requests under way at once.
        timeout_s: of one attempt, all of it.
        retries: further attempts after 429, 5xx, a timeout or a broken connection.
        backoff_s: wait before the second attempt; doubles, with jitter, and is never longer than half a minute.

    Raises:
        UserError: an address that cannot be used, or a server that does not say which model it serves.
    """

    who, usage, naming = "describer", "--llm http://HOST:8000/v1", "--llm-model NAME"
    keys: tuple[str, ...] = KEYS

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        concurrency: int = 4,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 1.0,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = (parts.hostname or "").lower(), parts.port
            if parts.scheme.lower() not in ("http", "https") or not host:
                raise ValueError("it must be http(s)://HOST[:PORT]")
        except ValueError as error:
            raise UserError(f"cannot use the address of the {self.who}", str(error), self.usage) from error
        if parts.username or parts.password or parts.query or parts.fragment:
            what = f"the address of the {self.who} must hold nothing but host and path"
            hint = f"put the key into the environment variable {self.keys[0]}"
            raise UserError(what, "the score file would hold it", hint)
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            what = f"the {self.who}'s concurrency, timeout_s or retries cannot be used"
            raise UserError(what, "one of them is too small")
        self.url, self.concurrency, self.timeout_s = url.rstrip("/"), concurrency, timeout_s
        self.retries, self.backoff_s = retries, backoff_s
        self._key = next((k.strip() for n in self.keys if (k := os.environ.get(n, "")).strip()), "")
        if re.search(r"[^\x21-\x7e]", self._key):
            why = "it holds characters that no key has: a line break, a space, or one beyond ASCII"
            raise UserError(f"the key of the {self.who} cannot be sent", why, f"look at {' and '.join(self.keys)}")
        local = host in LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_Stay(), *proxies)
        self._lock, self._broken = threading.Lock(), 0
        if self._key and parts.scheme.lower() == "http" and not local:
            log.warn(f"the key is sent to {host} unencrypted; https://... would protect it")
        self.name = str(name) if name is not None else self._only_model()

    def each(self, ask: Callable[[Asked, int], Answer], items: Sequence[Asked]) -> list[Answer]:
        """Answers to (waveform, its place), or whatever is asked about, several under way at once, in order."""
        with ThreadPoolExecutor(max(1, min(self.concurrency, len(items))), self.who) as pool:
            return list(pool.map(ask, items, range(len(items))))

    def ask(self, path: str, body: bytes | None, kind: str = "application/json") -> Any:
        """The parsed reply to a POST, or to a GET where there is no body, after as many attempts as it takes. Raises ``Failure``."""
        for attempt in range(self.retries + 1):
            try:
                reply = self._call(path, body, kind)
                self._broken = 0
                return reply
            except Failure as failure:
                with self._lock:
                    self._broken += failure.retry
                if not failure.retry or attempt == self.retries or self._broken >= GIVE_UP_AFTER:
                    raise
                wait_s = self.backoff_s * 2**attempt * (0.75 + 0.5 * random.random())
                time.sleep(min(MAX_WAIT_S, max(wait_s, failure.wait_s or 0.0)))
        raise Failure("not tried")

    def _only_model(self) -> str:
        what = f"the server at {self.url} does not name its models"
        try:
            names = [str(m["id"]) for m in self._call("/models", None)["data"]]
        except (Failure, KeyError, TypeError) as error:
            raise UserError(what, getattr(error, "reason", repr(error)), self.naming) from error
        what = f"the server at {self.url} serves {len(names)} models"
        if len(names) != 1:
            raise UserError(what, ", ".join(names[:8]), self.naming)
        return names[0]

    def _call(self, path: str, body: bytes | None, kind: str = "application/json") -> Any:
        """One attempt: the parsed JSON of the reply, in which the key, if it is there, is replaced. Raises ``Failure``, likewise."""
        try:
            return self._redacted(within(self.timeout_s, partial(self._attempt, path, body, kind)))
        except TimeoutError:  # whatever was late: the connection, a header that comes a byte a second, or the body
            raise Failure("no reply in time", retry=True) from None
        except Failure as failure:
            raise Failure(self._redacted(failure.reason)[:200], failure.retry, failure.wait_s) from None

    def _redacted(self, value: Any) -> Any:
        """A reply without the key, however deep it stands."""
        if isinstance(value, dict):
            return {self._redacted(k): self._redacted(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._redacted(v) for v in value]
        if not isinstance(value, str) or not self._key:
            return value
        for form in (self._key, urllib.parse.quote(self._key, safe=""), json.dumps(self._key)[1:-1]):
            value = value.replace(form, "***")
        return value

    def _attempt(self, path: str, body: bytes | None, kind: str) -> Any:
        headers = {"Accept": "application/json", "Content-Type": kind}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        until_s = time.monotonic() + self.timeout_s
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                raw = _read(response, until_s)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(error) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise Failure(_what(error), retry=not isinstance(error, ValueError)) from None
        try:
            reply = parse_json(raw)
        except ValueError:
            raise Failure("the reply is not JSON") from None
        if isinstance(reply, dict) and isinstance(problem := reply.get("error"), dict):
            raise Failure(str(problem.get("message", "error"))[:160])
        return reply

    def _status(self, error: urllib.error.HTTPError) -> Failure:
        """What a status other than 2xx means; the server's words are shortened."""
        if 300 <= error.code < 400:
            return Failure(f"HTTP {error.code}: a redirect is not followed")
        try:
            words = error.read(2000).decode("utf-8", "replace")
            found = parse_json(words.encode())
            inner = found.get("error", found) if isinstance(found, dict) else found
            words = self._redacted(str(inner.get("message", "") if isinstance(inner, dict) else inner))
        except (OSError, ValueError, http.client.HTTPException):
            words = ""
        hint = f" (the key is taken from {' or '.join(self.keys)})" if error.code in (401, 403) else ""
        text = f"HTTP {error.code}{hint}" + (f": {' '.join(words.split())[:160]}" if words.strip() else "")
        return Failure(text, error.code in RETRIED, _seconds(error.headers.get("Retry-After")))


def wav_bytes(wav: np.ndarray, sample_rate: int = 16000, exact: bool = False) -> bytes:
    """(T,) float32 as a WAV file: 16-bit PCM, clipped to full scale, or ``exact`` in float32."""
    import soundfile as sf

    file = BytesIO()
    kind = "FLOAT" if exact else "PCM_16"
    sf.write(file, wav if exact else np.clip(wav, -1.0, 1.0), sample_rate, format="WAV", subtype=kind)
    return file.getvalue()


def _read(response: Any, until_s: float) -> bytes:
    """The body, as long as time and size allow: a server that sends a byte a second must not hold a run."""
    parts, size = [], 0
    while block := response.read1(65536):
        parts.append(block)
        size += len(block)
        if size > MAX_REPLY:
            raise Failure(f"the reply is larger than {MAX_REPLY // 1_000_000} MB")
        if time.monotonic() > until_s:
            raise TimeoutError
    return b"".join(parts)


def _what(error: BaseException) -> str:
    """An error of the connection in few words, without addresses that differ from call to call."""
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, BaseException) else error
    if isinstance(cause, TimeoutError):
        return "no reply in time"
    if isinstance(cause, ConnectionError):
        return f"no connection ({cause.strerror or type(cause).__name__})"
    return f"{type(cause).__name__}: {cause}"[:2000]


def _seconds(text: str | None) -> float | None:
    """``Retry-After`` in seconds; dates are not understood, the wait is bounded anyway."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
