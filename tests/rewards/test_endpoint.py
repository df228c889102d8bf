"""The describer and the recogniser behind an address, against a server on the loopback that looks at what it is sent."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from reward_signals import sample, scored, voice
from tiny_judges import said, serving

from rlspeech.rewards.client import KEYS
from rlspeech.rewards.llm.endpoint import Endpoint
from rlspeech.rewards.llm.judge import get_describer
from rlspeech.rewards.recognisers import load_recogniser
from rlspeech.rewards.scorer import Scorer
from rlspeech.types import UserError

KEY = "sk-secret/123"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the loopback is never asked through a proxy


def judge(server, **options) -> Endpoint:
    usual = {"prompt": "How is it?", "name": "judge-7b", "backoff_s": 0.01, "timeout_s": 5.0}
    return Endpoint(server.url, **{**usual, **options})


@pytest.mark.parametrize("audio", ["input_audio", "audio_url"])
def test_the_server_gets_what_was_sent(audio, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    wav = voice(0.7, seed=2)
    with serving(lambda r: said("Clear speech, good quality.")) as server:
        found = judge(server, audio=audio, max_new_tokens=77).describe([wav])
        (seen,) = server.seen
        request = seen["json"]
        assert np.abs(server.heard(request) - wav).max() <= 1.0 / 32768
    assert [s.text for s in found] == ["Clear speech, good quality."]
    assert seen["method"] == "POST" and seen["path"] == "/v1/chat/completions" and seen["key"] == f"Bearer {KEY}"
    assert request["model"] == "judge-7b" and request["temperature"] == 0 and request["max_tokens"] == 77
    (message,) = request["messages"]
    assert message["role"] == "user" and [p["type"] for p in message["content"]] == [audio, "text"]
    assert message["content"][1]["text"] == "How is it?"


def test_the_key_is_sent_only_where_there_is_one_and_never_shown(monkeypatch, capsys):
    with serving(lambda r: (401, {"error": {"message": f"bad key {KEY}"}}, {})) as server:
        assert judge(server).describe([voice(0.5)])[0].text is None
        assert server.seen[0]["key"] is None
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
        monkeypatch.setenv("RLSPEECH_API_KEY", KEY)
        model = judge(server)
        (found,) = model.describe([voice(0.5)])
        assert server.seen[1]["key"] == f"Bearer {KEY}" and len(server.seen) == 2  # 401 is not tried again
    assert "HTTP 401" in found.error and "***" in found.error
    out = capsys.readouterr()
    assert KEY not in found.error + model.version + out.out + out.err


def test_order_is_kept_while_several_are_under_way():
    wavs = [voice(0.3 + 0.1 * i, seed=i) for i in range(7)]

    def slow(request):
        seconds = len(server.heard(request)) / 16000
        time.sleep(0.25 * (1.1 - seconds))  # the first ones answer last
        return said(f"{seconds:.1f} seconds")

    with serving(slow) as server:
        found = judge(server, concurrency=3).describe(wavs)
        assert [s.text for s in found] == [f"{0.3 + 0.1 * i:.1f} seconds" for i in range(7)]
        assert 2 <= server.most <= 3


@pytest.mark.parametrize("status", [429, 500, 503, 400, 401, 404, 413, 422])
def test_passing_trouble_is_tried_again_and_lasting_trouble_is_not(status):
    def reply(request):
        trouble = status, {"error": {"message": "no\n such <b>model</b>"}}, {}
        return trouble if len(server.seen) < 3 else said("fine speech")

    with serving(reply) as server:
        (found,) = judge(server).describe([voice(0.5)])
    assert len({str(r["json"]) for r in server.seen}) == 1
    if status in (429, 500, 503):
        assert found.text == "fine speech" and len(server.seen) == 3
    else:
        assert found.text is None and f"HTTP {status}" in found.error and "no such <b>model</b>" in found.error
        assert len(server.seen) == 1


def test_attempts_and_waits_are_bounded():
    with serving(lambda r: (503, {}, {})) as server:
        began = time.monotonic()
        (found,) = judge(server, retries=2, backoff_s=0.05).describe([voice(0.5)])
        took = time.monotonic() - began
        gaps = np.diff([r["time"] for r in server.seen])
    assert len(server.seen) == 3 and "HTTP 503" in found.error and took < 3
    assert gaps[0] >= 0.03 and gaps[1] >= 0.07  # longer each time
    with serving(lambda r: said("ok") if len(server.seen) > 1 else (429, {}, {"Retry-After": "0.4"})) as server:
        assert judge(server).describe([voice(0.5)])[0].text == "ok"
        assert server.seen[1]["time"] - server.seen[0]["time"] >= 0.4  # the server may ask for patience


def test_a_dead_server_is_given_up():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # a port on which nobody listens
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        model = Endpoint(url, prompt="?", name="x", backoff_s=0.2, retries=3, concurrency=1)
        began = time.monotonic()
        found = model.describe([voice(0.3)] * 40)
    assert all(s.text is None and "endpoint: no connection" in s.error for s in found)
    assert time.monotonic() - began < 4  # not 40 times all the waits


ESCAPED = "".join(f"\\u{ord(c):04x}" for c in KEY)
ECHOES = {
    "error": {"error": {"message": f"key {KEY}"}},
    "escaped": ('{"error": {"message": "' + ESCAPED + '"}}').encode(),
    "text": said(f"It sounds like {KEY}."),
    "quoted": (500, {"error": {"message": KEY.replace("/", "%2F")}}, {}),
    "status": None,  # a status line that is none
}


@pytest.mark.parametrize("reply", ECHOES.values(), ids=ECHOES)
def test_a_key_that_is_sent_back_is_not_shown(reply, monkeypatch):
    monkeypatch.setenv("RLSPEECH_API_KEY", KEY)
    if reply is None:
        with raw_server(f"HTTP/1.0 {KEY}\r\n\r\n".encode(), 0) as url:
            (found,) = Endpoint(url, prompt="?", name="x", retries=0).describe([voice(0.3)])
    else:
        with serving(lambda r: reply) as server:
            (found,) = judge(server, retries=0).describe([voice(0.3)])
    assert "***" in f"{found.text} {found.error}" and KEY not in f"{found.text} {found.error}"


@pytest.mark.parametrize("key", ["sk-a\nsk-b", "sk-a\rX: y", "sk a", "sk-\u00e9"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key, monkeypatch):
    monkeypatch.setenv("RLSPEECH_API_KEY", key)
    with pytest.raises(UserError) as error:
        Endpoint("http://localhost:1/v1", prompt="?", name="x")
    assert "RLSPEECH_API_KEY" in str(error.value) and "sk" not in str(error.value)


@contextmanager
def raw_server(reply: bytes, pause_s: float):
    """Send the same bytes to whoever asks, one at a time where there is a pause."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    with connection, suppress(OSError):
                        connection.recv(1 << 20)
                        for i in range(len(reply)) if pause_s else ():
                            connection.sendall(reply[i : i + 1])
                            time.sleep(pause_s)
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


@pytest.mark.parametrize("drip", [False, True])
def test_no_reply_in_time(drip):
    with raw_server(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100, 0.1) as url:  # a header a byte at a time
        began = time.monotonic()
        (found,) = Endpoint(url, prompt="?", name="x", timeout_s=0.3, retries=0).describe([voice(0.3)])
    assert found.text is None and "in time" in found.error and time.monotonic() - began < 2
    over = threading.Event()

    def reply(request):
        if not drip:
            over.wait(3)
            return said("too late")
        return 200, b"", {"Content-Length": "100000"}  # promises more than it sends

    with serving(reply) as server:
        began = time.monotonic()
        (found,) = judge(server, timeout_s=0.3, retries=1).describe([voice(0.4)])
        took = time.monotonic() - began
        over.set()
    assert found.text is None and found.error.startswith("endpoint") and took < 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *((body, "not JSON") for body in (b"<html>not json", b"", b"\xff\xfe{", b"[" * 100000)),
        *((body, "no choices") for body in ([], {}, {"choices": []}, {"choices": "x"}, {"text": "x " * 60_000})),
        *(({"choices": [choice]}, "no message") for choice in (None, {"message": None})),
        *((body, "empty answer") for body in (said(None), said(""), said("   "))),
        *((body, "no text") for body in (said(7), said([{"type": "image_url"}]), said({"a": 1}))),
        *((said("<think>never ends"), "thoughts"), ({"error": {"message": "overloaded"}}, "overloaded")),
        *((said("Good.", refusal="I will not"), "refused"), (said("I'm sorry, I cannot assess audio."), "refused")),
        ({"choices": [{"finish_reason": "content_filter", "message": {"content": "x"}}]}, "filtered"),
    ],
)
def test_odd_replies_are_null_with_a_reason(body, reason):
    with serving(lambda r: body) as server:
        (found,) = judge(server).describe([voice(0.4)])
        (heard,) = load_recogniser(f"{server.url}#m")([voice(0.4)], 16000)
        assert len(server.seen) == 2
    assert found.text is None and reason in found.error and str(heard).startswith("endpoint: ")


def test_one_bad_reply_costs_its_own_clip_and_answers_in_parts_are_joined():
    parts = said([{"type": "text", "text": "Good,"}, {"type": "text", "text": "clear."}, {"type": "image"}])
    with serving(lambda r: b"garbage" if len(server.heard(r)) == 8000 else parts) as server:
        found = judge(server).describe([voice(0.4), voice(0.5), voice(0.6)])
    assert [s.text for s in found] == ["Good,\nclear.", None, "Good,\nclear."]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status, monkeypatch):
    monkeypatch.setenv("RLSPEECH_API_KEY", KEY)

    def away(request):
        return status, {}, {"Location": f"{thief.url}/chat/completions"}

    with serving(lambda r: said("stolen")) as thief, serving(away) as server:
        (found,) = judge(server).describe([voice(0.4)])
        assert thief.seen == [] and len(server.seen) == 1
    assert found.text is None and "redirect" in found.error


def test_the_only_model_is_found():
    with serving(lambda r: {"data": [{"id": "only/one"}]}) as server:
        assert get_describer(server.url).name == "only/one"
        assert server.seen[0]["method"] == "GET" and server.seen[0]["path"] == "/v1/models"
    for listed in ({"data": [{"id": "a"}, {"id": "b"}]}, {"data": []}, {}, b"junk"):
        for load, option in ((get_describer, "--llm-model"), (load_recogniser, "#NAME")):
            with serving(lambda r, listed=listed: listed) as server, pytest.raises(UserError) as error:
                load(server.url, retries=0)
            assert option in str(error.value)


URLS = "http://user:pw@host/v1 http://[::1/v1 http://host:x/v1 http://host/v1?key=abc http:///v1 https://".split()
MISTAKES = [{"audio": "mp3"}, {"concurrency": 0}, {"timeout_s": 0.0}, {"retries": -1}, *({"url": url} for url in URLS)]


@pytest.mark.parametrize("options", MISTAKES)
def test_addresses_that_hold_secrets_or_nothing_and_bad_options_are_refused(options):
    for load in (lambda url, **given: load_recogniser(f"{url}#x", **given), Endpoint):
        with pytest.raises((UserError, TypeError)) as error:
            load(**{"url": "http://127.0.0.1:1/v1", "prompt": "?", "name": "x", **options})
        assert "pw" not in str(error.value) and "abc" not in str(error.value)
    for load, name in ((load_recogniser, "reward_plugins:recogniser"), (get_describer, "file:///etc/passwd")):
        with pytest.raises(UserError, match=name):
            load(name, prompt="?")  # no server


def test_sampled_answers_have_a_seed_each_and_say_so_and_loud_audio_is_clipped_not_wrapped():
    with serving(lambda r: said("good")) as server:
        model = judge(server, temperature=0.8, seed=3, concurrency=1)
        model.describe([np.array([0.0, 1.5, -1.5] * 2000, dtype=np.float32)] * 3)
        assert [(r["json"]["seed"], r["json"]["temperature"]) for r in server.seen] == [(3, 0.8), (4, 0.8), (5, 0.8)]
        heard = server.heard(server.seen[0]["json"])
    assert "seed 3" in model.version and heard[1] > 0.99 and heard[2] < -0.99


def test_a_recogniser_gets_a_form_and_its_text_is_cleaned(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    wavs = [voice(0.7, seed=2), voice(0.5), voice(0.6)]
    with serving(lambda r: {"text": f"{len(server.heard(r))}\x1b\ud800{KEY}\u200d."}) as server:
        recognise = load_recogniser(f"{server.url}#org/ear", language="de", prompt="Zürich\r\n--", retries=0)
        assert recognise(wavs, 16000) == [f"{len(w)}  ***\u200d." for w in wavs] and recognise([], 16000) == []
        assert recognise([voice(0.5)], 8000)[0].startswith("16000 ")  # sent at 16 kHz
        request = next(r for r in server.seen if len(server.heard(r["json"])) == len(wavs[0]))
        assert np.abs(server.heard(request["json"]) - wavs[0]).max() <= 1.0 / 32768
    assert request["path"] == "/v1/audio/transcriptions" and request["key"] == f"Bearer {KEY}"
    fields = {"model": "org/ear", "language": "de", "prompt": "Zürich\r\n--", "response_format": "json"}
    assert {k: v.decode() for k, v in request["json"].items() if k != "file"} == fields | {"temperature": "0"}


def test_a_clip_that_is_not_transcribed_is_null_with_a_reason():
    with serving(lambda r: (400, {}, {}) if len(server.heard(r)) == 8000 else {"text": "One, two."}) as server:
        rows, options = [sample(voice(s), text="one two") for s in (0.5, 0.6)], {"recogniser": f"{server.url}#m"}
        for name in ("wer", "tts_wer"):
            bad, good = scored(rows, name, **options)[name]
            assert bad.value is None and bad.error.startswith("endpoint: ") and good.value == 0.0
        assert len(server.seen) == 4  # lasting trouble is not tried again
        with Scorer(["wer"], options={"wer": {**options, "recogniser": server.url, "name": "m"}}) as scorer:
            assert scorer.meta()["wer"]["version"] == f"recogniser m at {server.url}, text basic-3"
