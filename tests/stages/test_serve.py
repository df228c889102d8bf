"""Rewards over HTTP: a server on the loopback, asked by other trainers' clients as they are documented, and by ours."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from reward_signals import sample, voice
from tiny_cli import RUN
from tiny_judges import serving

from rlspeech.cli import app
from rlspeech.config import ScoreFolder
from rlspeech.data.audio import save_audio
from rlspeech.files import read_jsonl
from rlspeech.rewards import base, served
from rlspeech.rewards.scorer import Scorer
from rlspeech.rewards.trl import as_trl_reward
from rlspeech.stages import reward
from rlspeech.stages.serve import Serve, Service, application
from rlspeech.types import UserError

NAMES = ["estoi", "si_sdr", "lsd", "asr_wer", "asr_keywords", "reward_plugins:longer", "reward_plugins:everything"]
KEY = "sesame/1"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    config = Serve(max_mb=1.0, max_clips=20, max_s=10.0, concurrency=8)
    with socket.create_server(("127.0.0.1", 0)) as listener, Scorer(NAMES, workers=0) as scorer:
        service = Service(scorer, config)
        web = uvicorn.Server(uvicorn.Config(application(service, KEY), log_config=None, lifespan="off"))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        yield SimpleNamespace(service=service, config=config, port=port, url=f"http://127.0.0.1:{port}", scorer=scorer)
        web.should_exit = True
        thread.join(10)


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(served.TOKEN, KEY)
    monkeypatch.setattr(served, "_known", {})


def ask(server, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and reply; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"} | headers
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, raw, headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def file_of(wav: np.ndarray, rate: int = 16000, kind: str = "FLAC") -> str:
    out = io.BytesIO()
    sf.write(out, wav, rate, format=kind)
    return base64.b64encode(out.getvalue()).decode()


def pairs(count: int) -> list[Any]:
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    clean = [voice(0.6 + 0.1 * i, seed=i) for i in range(count)]
    return [sample(c + 0.01 * noise[: len(c)], target=c, text="one two", hypothesis="one too") for c in clean]


def test_a_served_score_is_the_score(server):
    rows = pairs(5)
    rows[1].target, rows[2].hypothesis, rows[3].columns = None, None, {"keywords": ["two"], "path": None}
    far = [f"{server.url}#{name}[batch=2]" for name in NAMES]
    with Scorer(far, workers=0) as scorer, Scorer(NAMES, workers=0) as local:
        found, expected = scorer.score(rows), local.score(rows)
        meta = scorer.meta()
    for name, address in zip(NAMES, far, strict=True):
        assert [(s.value, s.error) for s in found[address]] == [(s.value, s.error) for s in expected[name]]
        assert base.column_of(address) == base.column_of(name)
        assert meta[address]["needs"] == local.meta()[name]["needs"] and server.url in meta[address]["version"]
    assert KEY not in str(meta)


def test_the_forms_of_other_trainers_in_which_more_is_better(server):
    wav = pairs(1)[0].wav
    clip: dict[str, Any] = {"protocol_version": "1", "num_samples": len(wav), "sample_rate": 16000, "prompt": "one two"}
    clip |= {"waveform_f32_base64": base64.b64encode(wav.astype("<f4").tobytes()).decode()}
    basic = "Basic " + base64.b64encode(f"rlspeech:{KEY}".encode()).decode()  # of http://rlspeech:KEY@host
    said = {"metadata": {"hypothesis": "one too", "id": "a"}}
    assert ask(server, "/score/asr_wer", clip | said, Authorization=basic) == (200, {"score": -0.5})
    assert ask(server, "/score/estoi", clip) == (200, {"score": None, "error": "no reference audio"})
    status, reply = ask(server, "/score/si_sdr", clip | {"metadata": {"target": file_of(wav, kind="WAV")}})
    assert status == 200 and set(reply) == {"score"} and reply["score"] > 40
    body = {"completions": ["one two", [{"role": "assistant", "content": "one"}]], "text": ["one two"] * 2, "x": 1}
    assert ask(server, "/score/asr_wer", body) == (200, {"scores": [0.0, -0.5], "errors": [None, None]})
    far = as_trl_reward(f"{server.url}#asr_wer")
    assert far(prompts=["", ""], completions=body["completions"], text=body["text"]) == [0.0, -0.5]


def test_a_form_is_a_clip(server):
    row, edge = pairs(1)[0], "----edge+1"
    sound = {"audio": file_of(row.wav, kind="WAV"), "target": file_of(row.target, kind="WAV")}
    fields = {k: base64.b64decode(v) for k, v in sound.items()} | {"hypothesis": b"one too", "text": b"one two"}
    head = '--%s\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n'
    body = b"".join((head % (edge, name)).encode() + raw + b"\r\n" for name, raw in fields.items())
    body, kind = body + f"--{edge}--\r\n".encode(), {"Content-Type": f'multipart/form-data; boundary="{edge}"'}
    assert ask(server, "/score/asr_wer", body, **kind) == (200, {"score": -0.5})
    assert ask(server, "/score/si_sdr", body, **kind) == ask(server, "/score/si_sdr", {"metadata": sound})
    assert ask(server, "/score/si_sdr", body, Origin="http://a.b", **kind)[0] == 415, "from a web page"


def test_requests_that_come_together_are_scored_in_one_call(server, monkeypatch):
    rows = [{"audio": file_of(r.wav), "target": file_of(r.target)} for r in pairs(6)] + [{"audio": "AAAA"}]
    bodies = [{"samples": rows[i : i + 2], "rewards": ["si_sdr", "lsd", "si_sdr"]} for i in range(6)] + [{"samples": 3}]
    alone = [ask(server, "/score", body) for body in bodies]
    calls, score = [], server.scorer.score
    monkeypatch.setattr(server.config, "wait_ms", 300.0)
    monkeypatch.setattr(server.scorer, "score", lambda *given: calls.append(len(given[0])) or score(*given))
    with ThreadPoolExecutor(7) as pool:
        assert list(pool.map(lambda body: ask(server, "/score", body), bodies)) == alone
    assert sum(calls) == 11 and len(calls) < 6


def test_a_clip_that_cannot_be_read_fails_alone_and_no_path_is_opened(server, tmp_path):
    save_audio(tmp_path / "secret.wav", voice(0.5), 16000)
    good = {"audio": file_of(voice(0.5)), "target": file_of(voice(0.5), kind="OGG")}
    bad = [{"audio": str(tmp_path / "secret.wav")}, {"audio": "AAAA"}, {"text": 3}, [], {"sample_rate": 1e9}]
    bad += [{"audio": file_of(np.zeros((800, 3)))}, {"audio": file_of(np.zeros(88_000), 8000)}]
    status, reply = ask(server, "/score", {"samples": [*bad, good], "rewards": ["si_sdr"]})
    assert status == 200 and reply["scores"]["si_sdr"][:-1] == [None] * len(bad) and reply["scores"]["si_sdr"][-1] > 5
    assert all(reason.startswith("request: ") for reason in reply["errors"]["si_sdr"][:-1])


@pytest.mark.parametrize(
    ("status", "path", "body", "headers"),
    [
        *((401, "/score", {}, {"Authorization": h}) for h in ("", "Bearer", "Bearer x", f"bearer {KEY}")),
        (401, "/rewards", None, {"Authorization": ""}),
        (404, "/score/wer", {"samples": [{}]}, {}),
        (404, "/score", {"samples": [{}], "rewards": ["estoi", "none"]}, {}),
        (413, "/score", {"samples": [{}] * 21}, {}),
        (413, "/score", {"samples": []}, {}),
        (413, "/score", b" " * 1_100_000, {}),
        (415, "/score", {"samples": [{}]}, {"Content-Type": "text/plain"}),
        (422, "/score", {"completions": ["a"]}, {}),
        *((400, "/score", raw, {}) for raw in (b"", b"{", b"[" * 10_000, b"\xff")),
        (200, "/health", None, {"Authorization": ""}),
    ],
)
def test_what_is_refused(server, status, path, body, headers):
    found, reply = ask(server, path, body, **headers)
    assert found == status and (reply["status"] == "ok" if status == 200 else reply["error"])
    assert KEY not in str(reply)


def test_a_request_that_takes_too_long_is_given_up(server, monkeypatch):
    monkeypatch.setattr(server.config, "timeout_s", 0.2)
    monkeypatch.setattr(server.service, "answers", lambda *_: time.sleep(0.6))
    assert ask(server, "/score", {})[0] == 504


def test_reward_writes_a_served_column_and_asks_for_each_file_once(server, tmp_path):
    for i, row in enumerate(pairs(2)):
        for folder, wav in (("out", row.wav), ("clean", row.target)):
            save_audio(tmp_path / folder / f"{i}.wav", wav, 16000)
    config = {"rewards": [f"{server.url}#lsd"], "target": str(tmp_path / "clean"), "out": str(tmp_path), "workers": 0}
    before = server.service.counts["clips"]
    for _ in range(2):
        reward.run(ScoreFolder(**config), tmp_path / "out")
    assert server.service.counts["clips"] == before + 2
    assert all(r[f"{server.url}#lsd"] > 0 for r in read_jsonl(tmp_path / "scores.jsonl"))
    served._known.clear()
    with pytest.raises(UserError):  # a page does not ask
        base.column_of(f"{server.url}#lsd")


def test_a_scorer_of_another_project_is_asked_for_a_clip_at_a_time():
    rows, replies = pairs(3), iter([{"score": 1.5}, {"score": None, "error": "no"}, {}])
    rows[1].columns = {"take": 2, "keywords": ["two"]}
    with serving(lambda r: next(replies) if r else (404, {}, {})) as other:
        name = f"{other.url}#mos[concurrency=1]"
        with Scorer([name], workers=0) as scorer:
            found = scorer.score(rows)[name]
    assert [s.value for s in found] == [1.5, None, None] and "no" in found[1].error and found[2].error
    assert base.column_of(name).higher_is_better and [s["path"] for s in other.seen] == ["/v1/rewards", *["/v1"] * 3]
    sent = other.seen[2]["json"]
    assert np.array_equal(np.frombuffer(base64.b64decode(sent["waveform_f32_base64"]), "<f4"), rows[1].wav)
    assert sent["metadata"] == {"take": 2, "id": rows[1].key, "hypothesis": "one too"} and sent["prompt"] == "one two"
    assert (sent["protocol_version"], sent["num_samples"], sent["sample_rate"]) == ("1", len(rows[1].wav), 16000)


OFFER = {"family": "a", "factory": "os:system", "columns": {"a": {"help": "a", "bounds": [0, "Infinity"]}}}


@pytest.mark.parametrize(
    "offers", [b"<html>", [], {}, {"a": []}, {"a": ["1", OFFER | {"needs": 3}]}, {"a": ["1", OFFER | {"columns": {}}]}]
)
def test_a_server_of_something_else(offers):
    with serving(lambda r: offers) as other, pytest.raises(UserError):
        base.resolve(f"{other.url}#a")


@pytest.mark.parametrize(
    "reply",
    [
        *(b"no", {}, {"scores": {"a": [1.0]}, "errors": {"a": []}}, {"scores": [], "errors": 0}, (500, {}, {})),
        *({"scores": {"a": [v, 2]}, "errors": {"a": [None] * 2}} for v in (True, "1", float("inf"))),
    ],
)
def test_odd_replies_are_null_with_a_reason(reply):
    with serving(lambda r: reply if r else {"a": ["1", OFFER]}) as other:
        (found,) = Scorer([f"{other.url}#a[retries=0]"], workers=0).score(pairs(2)[:2]).values()
    assert found[0].value is None and found[0].error.startswith("endpoint: ") and found[1].value in (None, 2.0)


def test_what_cannot_be_served(monkeypatch):
    pytest.importorskip("uvicorn")
    monkeypatch.delenv(served.TOKEN)
    monkeypatch.setattr("rlspeech.rewards.client.MAX_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, word in (
            (["--host", "0.0.0.0"], served.TOKEN),
            (["--reward", "tts_loop"], "tts_loop"),
            (["--reward", "estoi", "--port", port], port),
            (["--reward", "http://127.0.0.1:1#x"], "127.0.0.1:1"),
        ):
            done = RUN.invoke(app, ["serve", *options])
            assert done.exit_code == 2 and word in done.stderr
