"""Describers and recognisers behind an OpenAI-compatible address, as vLLM, llama.cpp, FunASR and others serve them.

A describer gets ``POST URL/chat/completions`` with the clip as 16-bit WAV in an ``input_audio`` part (or, where asked for, as a data
address in ``audio_url``), a recogniser ``POST URL/audio/transcriptions`` with the clip as a file of a form. The key comes from the
environment only and is sent to the named host only: redirects are not followed. Attempts and waits are bounded; after several failures
in a row of the connection itself, further clips try once, so that a dead server costs minutes and not hours. Only the standard library is
used: an HTTP package is not among what transformers is sure to bring.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import re
import secrets
import threading
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from rlspeech import log
from rlspeech.data.audio import resample
from rlspeech.parallel import within
from rlspeech.rewards.llm.describe import SAMPLE_RATE, Description, clean_answer, wav_bytes
from rlspeech.types import UserError

Answer = TypeVar("Answer")
KEYS = ("RLSPEECH_API_KEY", "OPENAI_API_KEY")  # the first one that is set is used
MAX_REPLY = 4_000_000  # bytes
MAX_WAIT_S = 30.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
GIVE_UP_AFTER = 4  # failures of the connection in a row, after which nothing is tried twice until something succeeds
MAX_TRANSCRIPT = 100_000  # characters
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
    """What is asked of an OpenAI-compatible server, within bounds, by several threads.

    Args:
        url: up to and with the version, ``http://host:8000/v1``.
        name: the model's name at the server; None asks the server, which must then serve exactly one.
        concurrency: requests under way at once.
        timeout_s: of one attempt, all of it.
        retries: further attempts after 429, 5xx, a timeout or a broken connection.
        backoff_s: wait before the second attempt; doubles, with jitter, and is never longer than half a minute.

    Raises:
        UserError: an address that cannot be used, or a server that does not say which model it serves.
    """

    who, usage, naming = "describer", "--llm http://HOST:8000/v1", "--llm-model NAME"

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
                raise ValueError("it must be http(s)://HOST[:PORT]/v1")
        except ValueError as error:
            raise UserError(f"cannot use the address of the {self.who}", str(error), self.usage) from error
        if parts.username or parts.password or parts.query or parts.fragment:
            what = f"the address of the {self.who} must hold nothing but host and path"
            hint = f"put the key into the environment variable {KEYS[0]}"
            raise UserError(what, "the score file would hold it", hint)
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            what = f"the {self.who}'s concurrency, timeout_s or retries cannot be used"
            raise UserError(what, "one of them is too small")
        self.url, self.concurrency, self.timeout_s = url.rstrip("/"), concurrency, timeout_s
        self.retries, self.backoff_s = retries, backoff_s
        self._key = next((k.strip() for n in KEYS if (k := os.environ.get(n, "")).strip()), "")
        if re.search(r"[^\x21-\x7e]", self._key):
            why = "it holds characters that no key has: a line break, a space, or one beyond ASCII"
            raise UserError(f"the key of the {self.who} cannot be sent", why, f"look at {' and '.join(KEYS)}")
        local = host in LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_Stay(), *proxies)
        self._lock, self._broken = threading.Lock(), 0
        if self._key and parts.scheme.lower() == "http" and not local:
            log.warn(f"the key is sent to {host} unencrypted; https://... would protect it")
        self.name = str(name) if name is not None else self._only_model()

    def each(self, ask: Callable[[np.ndarray, int], Answer], wavs: Sequence[np.ndarray]) -> list[Answer]:
        """Answers to (waveform, its place), several under way at once, in order."""
        with ThreadPoolExecutor(max(1, min(self.concurrency, len(wavs))), self.who) as pool:
            return list(pool.map(ask, wavs, range(len(wavs))))

    def post(self, path: str, body: bytes, kind: str = "application/json") -> Any:
        """The parsed reply, after as many attempts as it takes. Raises ``Failure``."""
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
            reply = json.loads(raw)
        except (ValueError, RecursionError):
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
            found = json.loads(words)
            inner = found.get("error", found) if isinstance(found, dict) else found
            words = self._redacted(str(inner.get("message", "") if isinstance(inner, dict) else inner))
        except (OSError, ValueError, RecursionError, http.client.HTTPException):
            words = ""
        hint = f" (the key is taken from {' or '.join(KEYS)})" if error.code in (401, 403) else ""
        text = f"HTTP {error.code}{hint}" + (f": {' '.join(words.split())[:160]}" if words.strip() else "")
        return Failure(text, error.code in RETRIED, _seconds(error.headers.get("Retry-After")))


class Endpoint(Client):
    """An OpenAI-compatible server as a describer.

    Args:
        url: see ``Client``.
        prompt: what is asked.
        temperature: 0 always takes the likeliest word.
        max_new_tokens: longest answer.
        audio: "input_audio", or "audio_url" for servers that want a data address.
        max_s: longer audio is cut; None sends any length.
        seed: of sampled answers.
        server: of ``Client``.
    """

    def __init__(
        self,
        url: str,
        *,
        prompt: str,
        temperature: float = 0.0,
        max_new_tokens: int = 300,
        audio: str = "input_audio",
        max_s: float | None = None,
        seed: int = 0,
        **server: Any,
    ) -> None:
        if audio not in ("input_audio", "audio_url"):
            raise UserError(f"audio cannot be sent as {audio!r}", "", "audio=input_audio or audio=audio_url")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens} cannot be used", "an answer has a token at least")
        super().__init__(url, **server)
        self.prompt, self.temperature, self.audio = prompt, temperature, audio
        self.max_new_tokens, self.max_s, self.seed = max_new_tokens, max_s, seed
        decoding = "greedy" if temperature == 0 else f"temperature {temperature:g}, seed {seed}"
        at = f"{self.name} at {self.url} ({audio})"
        self.version = f"{at}, {decoding}, at most {max_new_tokens} tokens, prompt: {prompt}"

    def describe(self, wavs: Sequence[np.ndarray]) -> list[Description]:
        return self.each(self._one, wavs)

    def _one(self, wav: np.ndarray, number: int) -> Description:
        try:
            return _content(self.post("/chat/completions", json.dumps(self._question(wav, number)).encode()))
        except Failure as failure:
            return Description(None, str(failure))

    def _question(self, wav: np.ndarray, number: int) -> dict[str, Any]:
        data = base64.b64encode(wav_bytes(wav)).decode("ascii")
        sound: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        if self.audio == "audio_url":
            sound = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        content = [sound, {"type": "text", "text": self.prompt}]
        question: dict[str, Any] = {"model": self.name, "messages": [{"role": "user", "content": content}]}
        question |= {"temperature": self.temperature, "max_tokens": self.max_new_tokens}
        return question if self.temperature == 0 else {**question, "seed": self.seed + number}


class ServedRecogniser(Client):
    """An OpenAI-compatible server as a recogniser (``recognisers.Transcribe``): transcripts as it writes them, or why there is none.

    Args:
        address: as ``Client`` takes it; ``#NAME`` behind it names the model.
        language: code of the language that is spoken; None lets the server find out.
        prompt: words that are handed to the model, for servers that take some.
        server: of ``Client``.
    """

    who, usage, naming = "recogniser", "--recogniser http://HOST:8000/v1", "--recogniser http://HOST:8000/v1#NAME"

    def __init__(self, address: str, language: str | None = None, prompt: str | None = None, **server: Any) -> None:
        url, _, name = address.partition("#")
        super().__init__(url, **{"name": name or None, **server})
        given = {"language": language, "prompt": prompt}
        self._fields = {k: str(v) for k, v in given.items() if v is not None}
        self.version = ", ".join([f"{self.name} at {self.url}", *(f"{k} {v}" for k, v in self._fields.items())])
        self._fields |= {"model": self.name, "response_format": "json", "temperature": "0"}

    def __call__(self, wavs: Sequence[np.ndarray], rate: int) -> list[str | Exception]:
        """Transcribe (T,) float32 waveforms; they are sent at 16 kHz. One that fails, fails alone."""
        return self.each(self._one, [resample(w, rate, SAMPLE_RATE) for w in wavs])

    def _one(self, wav: np.ndarray, number: int) -> str | Exception:
        body, kind = _form(self._fields, wav_bytes(wav))
        try:
            reply = self.post("/audio/transcriptions", body, kind)
        except Failure as failure:
            return failure
        text = reply.get("text") if isinstance(reply, dict) else None
        if not isinstance(text, str) or len(text) > MAX_TRANSCRIPT:
            return Failure(f"no text in the reply, or one of more than {MAX_TRANSCRIPT} characters")
        return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _form(fields: Mapping[str, str], wav: bytes) -> tuple[bytes, str]:
    """A form (multipart/form-data) of fields and a WAV file, and its content type."""
    mark, line = secrets.token_hex(16), "\r\n"
    parts = [f'form-data; name="{k}"{line}{line}{v}' for k, v in fields.items()]
    parts.append(f'form-data; name="file"; filename="clip.wav"{line}Content-Type: audio/wav{line}{line}')
    text = "".join(f"--{mark}{line}Content-Disposition: {part}{line}" for part in parts).removesuffix(line)
    return text.encode() + wav + f"{line}--{mark}--{line}".encode(), f"multipart/form-data; boundary={mark}"


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


def _content(reply: Any) -> Description:
    """The text of a chat completion, or why there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices:
        return Description(None, "endpoint: no choices in the reply")
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        return Description(None, "endpoint: no message in the reply")
    if message.get("refusal"):
        return Description(None, "the model refused")
    if choices[0].get("finish_reason") == "content_filter":
        return Description(None, "endpoint: the answer was filtered")
    content = message.get("content")
    if isinstance(content, list):  # some servers answer in parts
        texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") in ("text", "output_text")]
        content = "\n".join(t for t in texts if isinstance(t, str)) if texts else content
    return Description(None, "empty answer") if content is None else clean_answer(content)


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
