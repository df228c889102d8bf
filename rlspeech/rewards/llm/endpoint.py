"""Describers and recognisers behind an OpenAI-compatible address, as vLLM, llama.cpp, FunASR and others serve them.

A describer gets ``POST URL/chat/completions`` with the clip as 16-bit WAV in an ``input_audio`` part (or, where asked for, as a data
address in ``audio_url``), a recogniser ``POST URL/audio/transcriptions`` with the clip as a file of a form. ``rewards.client`` bounds both.
"""

from __future__ import annotations

import base64
import json
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlspeech.data.audio import resample
from rlspeech.rewards.client import Client, Failure, wav_bytes
from rlspeech.rewards.llm.describe import SAMPLE_RATE, Description, clean_answer
from rlspeech.types import UserError

MAX_TRANSCRIPT = 100_000  # characters


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
            return _content(self.ask("/chat/completions", json.dumps(self._question(wav, number)).encode()))
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
            reply = self.ask("/audio/transcriptions", body, kind)
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
