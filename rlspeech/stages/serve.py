"""``rlspeech serve``: rewards over HTTP, for trainers that run elsewhere and for ``--reward http://host:port#name``.

``GET /rewards`` says what there is, ``GET /health`` that it runs, ``POST /score[/NAME]`` scores; a request has one of three forms:

- ``{"samples": [{"audio": ..., "target": ..., "text": ..., "hypothesis": ..., COLUMN: ...}, ...], "rewards": [NAME, ...]}``, answered by
  ``{"scores": {NAME: [3.1, null, ...]}, "errors": {NAME: [null, REASON, ...]}}``;
- ``{"completions": [TEXT, ...], COLUMN: [...], ...}``, what TRL and ms-swift hand to a reward function, by ``{"scores": [...],
  "errors": [...]}``;
- ``{"waveform_f32_base64": ..., "sample_rate": ..., "prompt": TEXT, "metadata": {...}}``, one clip as verl-omni's
  ``audio_http_scorer_client`` sends it, or a form (``curl -F audio=@clip.wav -F text=WORDS``), by ``{"score": x}``, or null with an
  ``error``, at which that trainer stops.

Trainers maximise: in the last two, rewards that are better when lower change sign. Sound comes in the request, in base64 or as a form's
file: WAV, FLAC or Ogg, or float32 samples; paths and addresses are not opened. Requests for the same rewards that come within
``wait_ms``, or while others are scored, are scored in one call; completions are not, for functions may compare those of a request.
"""

# no ``from __future__ import annotations``: FastAPI, which is imported late, reads those of the handlers
import asyncio
import base64
import hmac
import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from pydantic import Base64Bytes, BaseModel, Field

from rlspeech import __version__, log
from rlspeech.config import DEVICE
from rlspeech.config_parts import Count, NonNegative, Positive, Strict, Workers, conf
from rlspeech.data.audio import resample
from rlspeech.files import object_of
from rlspeech.rewards import base
from rlspeech.rewards.catalogue import ALIASES
from rlspeech.rewards.client import LOOPBACK
from rlspeech.rewards.served import OFFERS, TOKEN, Offers
from rlspeech.rewards.trl import SILENCE, words_of
from rlspeech.types import Sample, Score, UserError

FORM = "multipart/form-data"
SOUNDS, MIN_HZ, MAX_HZ = ("WAV", "WAVEX", "RF64", "FLAC", "OGG"), 1000, 192_000


class Serve(Strict):
    """``rlspeech serve``."""

    rewards: list[str] = conf(["dnsmos"], "reward: dnsmos, wer[recogniser=NAME], package.module:function; repeatable")
    host: str = conf("127.0.0.1", f"address to listen at; beyond the loopback {TOKEN} must hold a token")
    port: int = conf(8000, "port to listen at; 0: a free one", ge=0, le=65_535)
    max_mb: Positive = conf(64.0, "largest request")
    max_clips: Count = conf(64, "most clips in a request")
    max_s: Positive = conf(1800.0, "most seconds of sound in a request, references included")
    timeout_s: Positive = conf(120.0, "give up a request after this long, its wait included")
    concurrency: Count = conf(32, "requests that are held at a time; further ones wait to be read")
    batch: Count = conf(16, "most requests scored in one call")
    wait_ms: NonNegative = conf(5.0, "a request waits this long for others to be scored with it")
    device: str = conf("auto", DEVICE)
    workers: Workers = conf(2, "processes for CPU metrics")


class Clip(BaseModel, extra="allow"):
    """What a request says of a clip; further keys are columns."""

    key: str = ""
    audio: Base64Bytes | None = None  # a file
    waveform_f32_base64: Base64Bytes | None = None  # or samples at this rate
    sample_rate: int = Field(16000, ge=MIN_HZ, le=MAX_HZ)
    target: Base64Bytes | None = None
    text: str | None = None
    hypothesis: str | None = None


class Refusal(Exception):
    """The status and the reason of a request that is not answered."""


class Asked(NamedTuple):
    """A request that was read."""

    form: str
    names: tuple[str, ...]  # of rewards
    clips: list[Sample | str]  # a sample, or why there is none


class Service:
    """Answers requests with the rewards of a scorer, in one thread, for models are made for one."""

    def __init__(self, scorer: Any, config: Serve) -> None:
        self.scorer, self.config, self.counts = scorer, config, Counter[str]()
        columns = Counter(r.column for r in scorer.requests)
        self.served = {r.column if columns[r.column] == 1 else r.asked: r for r in scorer.requests}
        self.thread = ThreadPoolExecutor(1, "scoring")
        self.waiting = list[tuple[tuple[bytes, str, str], asyncio.Future[Any]]]()
        self.scoring: asyncio.Task[None] | None = None

    def offers(self) -> Offers:
        """What ``/rewards`` says."""
        meta, made = self.scorer.meta(), Offers()
        for name, request in self.served.items():
            columns = {name: request.entry.columns[request.column]}
            made[name] = meta[request.asked]["version"], replace(request.entry, columns=columns)
        return made

    async def reply(self, raw: bytes, kind: str, name: str) -> dict[str, Any]:
        """The reply to a request, scored with those that wait beside it; arguments as in ``read``. Raises ``Refusal``."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(((raw, kind, name), future))
        if self.scoring is None or self.scoring.done():
            self.scoring = asyncio.create_task(self._score_waiting())
        return dict(await future)

    async def _score_waiting(self) -> None:
        while self.waiting:
            if len(self.waiting) < self.config.batch:
                await asyncio.sleep(self.config.wait_ms / 1000)
            batch, self.waiting = self.waiting[: self.config.batch], self.waiting[self.config.batch :]
            batch = [(request, future) for request, future in batch if not future.done()]  # the others were given up
            work = self.thread.submit(self.answers, [request for request, _ in batch])
            try:
                found = [*await asyncio.wrap_future(work)]
            except Exception as error:  # a fault of a reward, for all who wait for it
                found = [error] * len(batch)
            for (_, future), reply in zip(batch, found, strict=True):
                if not future.done():
                    (future.set_exception if isinstance(reply, Exception) else future.set_result)(reply)

    def answers(self, requests: Sequence[tuple[bytes, str, str]]) -> list[Any]:
        """A reply or a ``Refusal`` to each of several requests, in one call of the scorer for those that ask for the same rewards."""
        replies, together = list[Any](), dict[Any, list[int]]()
        for n, request in enumerate(requests):
            try:
                replies.append(asked := self.read(*request))
                together.setdefault((asked.names, n if asked.form == "completions" else -1), []).append(n)
            except Refusal as refusal:
                replies.append(refusal)
        for (names, _), members in together.items():
            good = [c for n in members for c in replies[n].clips if isinstance(c, Sample)]
            table = self.scorer.score(good, [self.served[name].asked for name in names])
            found = {name: iter(table[self.served[name].asked]) for name in names}
            for n in members:
                replies[n] = self._reply(replies[n], found)
        return replies

    def read(self, raw: bytes, kind: str, name: str = "") -> Asked:
        """What a body of that content type asks for; ``name`` is the reward in its address. Raises ``Refusal``."""
        if not (body := _fields(raw, kind) if kind.startswith(FORM) else object_of(raw)):
            raise Refusal(400, f"the body is no {'form' if kind.startswith(FORM) else 'JSON object'}")
        form = next((f for f in ("samples", "completions") if isinstance(body.get(f), list)), "clip")
        given = body.get("rewards") if form == "samples" else None
        asked = [name] if name else given if isinstance(given, list) and given else [*self.served]
        names = tuple(dict.fromkeys(n if n in self.served else ALIASES.get(n, n) for n in map(str, asked)))
        if unknown := [n for n in names if n not in self.served]:
            raise Refusal(404, f"no reward {', '.join(unknown)} here, but {', '.join(self.served)}")
        if form != "samples" and len(names) > 1:
            raise Refusal(422, f"several rewards are served: /score/NAME, with one of {', '.join(names)}")
        return Asked(form, names, self._clips(_rows(body, form)))

    def _reply(self, asked: Asked, found: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request whose samples' scores come next in ``found``."""
        scores, errors = {}, {}
        for n in asked.names:
            request = self.served[n]
            row = [next(found[n]) if isinstance(c, Sample) else Score(None, c) for c in asked.clips]
            up = request.entry.columns[request.column].higher_is_better
            sign = 1.0 if up or asked.form == "samples" else -1.0
            scores[n], errors[n] = [None if s.value is None else sign * s.value for s in row], [s.error for s in row]
            self.counts["nulls"] += scores[n].count(None)
        self.counts.update(requests=1, clips=len(asked.clips))
        if asked.form == "samples":
            return {"scores": scores, "errors": errors}
        (values,), (reasons,) = scores.values(), errors.values()
        if asked.form == "completions":
            return {"scores": values, "errors": reasons}
        return {"score": values[0]} if reasons[0] is None else {"score": None, "error": reasons[0]}

    def _clips(self, rows: list[Any]) -> list[Sample | str]:
        """A sample for each row, or the reason why it is none."""
        clips, left_s, most = list[Sample | str](), self.config.max_s, self.config.max_clips
        if not 0 < len(rows) <= most:
            raise Refusal(413, f"a request is of 1 to {most} clips (max_clips)")
        for n, row in enumerate(rows):
            try:
                clips.append(made := _sample(row, n, left_s))
                left_s -= sum(len(w) for w in (made.wav, made.target) if w is not None) / made.sample_rate
            except ValueError as error:
                clips.append(f"request: {' '.join(str(error).split())[:200]}")
        return clips


def _fields(raw: bytes, kind: str) -> dict[str, Any]:
    """A form of one clip, as the request in JSON has it: sound in base64, anything else as text."""
    edge, found = re.search(r'boundary="?([^";]+)', kind), dict[str, Any]()
    for part in raw.split(b"--" + edge[1].encode())[1:-1] if edge else ():
        head, _, content = part.partition(b"\r\n\r\n")
        if name := re.search(rb'[; ]name="?([^";\r]+)', head):
            key, content = name[1].decode("utf-8", "replace"), content.removesuffix(b"\r\n")
            sound = key in ("audio", "target")
            found[key] = base64.b64encode(content).decode() if sound else content.decode("utf-8", "replace")
    return {"metadata": found} if found else {}


def _rows(body: dict[str, Any], form: str) -> list[Any]:
    if form == "samples":
        return list(body["samples"])
    if form == "clip":
        metadata: dict[str, Any] = given if isinstance(given := body.get("metadata"), dict) else {}
        return [{"text": body.get("prompt"), **metadata, **{k: body[k] for k in Clip.model_fields if k in body}}]
    said = [words_of(c) for c in body["completions"]]
    lists = {k: v for k, v in body.items() if isinstance(v, list) and len(v) == len(said) and k != "completions"}
    lists |= {"prompt": lists.pop("prompts")} if "prompts" in lists else {}
    return [{**{k: v[i] for k, v in lists.items()}, "hypothesis": h} for i, h in enumerate(said)]


def _sample(row: Any, number: int, left_s: float) -> Sample:
    """The sample of a row with at most ``left_s`` of sound. Raises ``ValueError``."""
    clip = Clip.model_validate(row)
    wav, rate, target = SILENCE, clip.sample_rate, None
    if clip.waveform_f32_base64 is not None:
        wav = np.frombuffer(clip.waveform_f32_base64, "<f4").astype(np.float32)
    elif clip.audio is not None:
        wav, rate = _sound(clip.audio, left_s)
    if clip.target is not None:
        target = resample(*_sound(clip.target, left_s), rate)
    if len(wav) + (0 if target is None else len(target)) > left_s * rate:
        raise ValueError("the request holds more sound than max_s")
    return Sample(clip.key or str(number), wav, rate, target, clip.text, clip.model_extra or {}, clip.hypothesis)


def _sound(raw: bytes, most_s: float) -> tuple[np.ndarray, int]:
    """The waveform (T,) and the rate of a file's bytes. Raises ``ValueError``."""
    import soundfile as sf

    try:
        with sf.SoundFile(BytesIO(raw)) as sound:
            if sound.format in SOUNDS and sound.channels <= 2 and MIN_HZ <= sound.samplerate <= MAX_HZ:
                wav = sound.read(int(most_s * sound.samplerate) + 1, dtype="float32", always_2d=True)
                return np.ascontiguousarray(wav.mean(1)), int(sound.samplerate)
    except RuntimeError:  # libsndfile's
        pass
    raise ValueError("no mono or stereo WAV, FLAC or Ogg file in base64")


def application(service: Service, token: str = "") -> Any:
    """The ASGI application. A token is wanted by all but ``/health``: as a bearer's, or as the password of the user ``rlspeech``."""
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect

    config, offers = service.config, OFFERS.dump_json(service.offers())
    app, held = FastAPI(openapi_url=None), asyncio.Semaphore(config.concurrency)
    keys = [f"Bearer {token}".encode(), b"Basic " + base64.b64encode(f"rlspeech:{token}".encode())]

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return JSONResponse({"error": error.args[1]}, error.args[0])

    def admit(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token and not any([hmac.compare_digest(given, key) for key in keys]):
            raise Refusal(401, f"the token that the server has in {TOKEN} is needed")

    async def body_of(request: Request, kind: str) -> bytes:
        # a web page may send others than JSON to any address, but not without its name
        if not kind.startswith("application/json") and ("origin" in request.headers or not kind.startswith(FORM)):
            raise Refusal(415, f"Content-Type: application/json is needed, or {FORM}")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > config.max_mb * 1e6:
                raise Refusal(413, f"a request is of {config.max_mb:g} MB at most (max_mb)")
        return bytes(body)

    @app.get("/")
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "rlspeech": __version__}

    @app.get("/rewards")
    async def rewards(request: Request) -> Response:
        admit(request)
        return Response(offers, media_type="application/json")

    @app.post("/score")
    @app.post("/score/{name:path}")
    async def score(request: Request, name: str = "") -> JSONResponse:
        admit(request)
        try:
            async with asyncio.timeout(config.timeout_s), held:
                kind = request.headers.get("content-type", "")
                return JSONResponse(await service.reply(await body_of(request, kind), kind, name))
        except (TimeoutError, ClientDisconnect) as error:
            raise Refusal(504, f"it took longer than {config.timeout_s:g} s (timeout_s)") from error

    return app


def run(config: Serve) -> dict[str, Any]:
    """Serve until a signal ends it; the summary has the address, the rewards, and counts of requests, clips and nulls.

    Raises:
        UserError: the extra is not installed, a reward that cannot be served, an address that cannot be used, or no token.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError("rewards cannot be served here", str(error), "pip install 'rlspeech[serve]'") from error

    from rlspeech.rewards.scorer import Scorer
    from rlspeech.stages.reward import device_of

    token, host = os.environ.get(TOKEN, "").strip(), config.host
    if host not in LOOPBACK and not token:
        why = f"anyone who reaches {host} could use this machine"
        raise UserError(f"--host {host} needs a token", why, f"export {TOKEN}=$(openssl rand -hex 16)")
    requests = [base.resolve(r) for r in base.named(config.rewards)]
    if tokens := [r.asked for r in requests if "tokens" in r.entry.needs]:
        raise UserError(f"{tokens[0]} cannot be served", "it judges the tokens of a codec", "a reward of sound or text")
    try:
        listener = socket.create_server((host, config.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        what, hint = f"cannot listen at {host}, port {config.port}", "--port 0 takes a free one"
        raise UserError(what, error.strerror or str(error), hint) from error
    how: dict[str, Any] = {"workers": config.workers, "timeout_s": config.timeout_s}
    with listener, Scorer([r.asked for r in requests], device_of(config.device, requests), **how) as scorer:
        scorer.dry_run()
        service = Service(scorer, config)
        how = {"log_config": None, "access_log": False, "server_header": False, "timeout_graceful_shutdown": 5}
        server = uvicorn.Server(uvicorn.Config(application(service, token), lifespan="off", **how))
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        log.say(f"serving {', '.join(service.served)} at {url}; Ctrl-C ends it")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # how a service ends
            log.say(f"served {log.several(service.counts['clips'], 'clip')}")
    return {"stage": "serve", "url": url, "rewards": [*service.served], **service.counts}
