"""The judge over HTTP, against a real local server that answers well, late, wrongly, in part, or not at all."""

from __future__ import annotations

import json
import logging
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_server import (
    KEY,
    Handler,
    Server,
    ask,
    cut_off,
    hangs_up,
    html,
    in_drops,
    judge_of,
    late,
    no_choices,
    not_json,
    status,
    too_long,
)

from rewards.judge import Judge
from rewards.judge_endpoint import seconds_to_wait
from rl.errors import RewindError


@pytest.mark.parametrize(
    "trouble", [status(429), status(500), status(503), late, in_drops, cut_off, hangs_up, not_json, html, no_choices]
)
def test_trouble_that_passes_is_tried_again(server: Server, trouble: Callable[[Handler], None]) -> None:
    server.script = [trouble]
    judge = judge_of(server, timeout=0.3 if trouble in (late, in_drops) else 10)
    assert ask(judge) == [0.65]
    assert len(server.seen) == 2
    used = judge.usage()
    assert (used["requests"], used["retries"], used["input_tokens"]) == (2, 1, 1000)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (status(429, "slow down"), "at last: 429 slow down"),
        (status(500, "broken"), "failed 2 times, at last: 500 broken"),
        (late, "no answer within 0.1 s"),
        (in_drops, "no answer within 0.1 s"),
        (cut_off, "closed connection without sending complete message body"),
        (hangs_up, "Server disconnected"),
        (too_long, "an answer of more than 8 MiB"),
        (not_json, "an answer of application/json that is no chat completion"),
        (html, "an answer of text/html that is no chat completion: '<html>please log in</html>'"),
        (no_choices, "no chat completion: 'overloaded'"),
    ],
)
def test_a_judge_that_stays_down_is_an_error_and_no_number(
    server: Server, trouble: Callable[[Handler], None], sentence: str
) -> None:
    server.usual = trouble
    with pytest.raises(RewindError, match=r"the judge at http://127.0.0.1.*try again later") as caught:
        ask(judge_of(server, retries=1, timeout=0.1 if trouble in (late, in_drops) else 10))
    assert sentence in str(caught.value)
    assert len(server.seen) == 2


def test_no_server_at_all(server: Server) -> None:
    server.server_close()
    with pytest.raises(RewindError, match=r"Connection ?[Rr]efused"):
        ask(judge_of(server))


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (status(400, "no such model"), "refuses the request: 400 no such model"),
        (status(404, "not here"), "refuses the request: 404 not here"),
        (status(401, "who?"), r"wants a valid key \(401 who\?\): OPENAI_API_KEY is not set"),
        (status(307, "", Location="http://elsewhere/v1"), "redirects to 'http://elsewhere/v1'"),
        (status(429, "quota", Retry_After="3600"), r"asks to wait 3600 s \(429 quota\)"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    server: Server, trouble: Callable[[Handler], None], sentence: str
) -> None:
    server.usual = trouble
    with pytest.raises(RewindError, match=sentence):
        ask(judge_of(server))
    assert len(server.seen) == 1


def test_a_redirect_is_not_followed_with_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.usual = status(307, "", Location=f"{server.url}/chat/completions")
    with pytest.raises(RewindError, match="redirects to"):
        ask(judge_of(server))
    assert len(server.seen) == 1


def test_the_environment_names_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    judge = Judge("http://judge.example/v1", "eye-1", cache=None)
    assert ask(judge) == [0.65]
    assert server.seen[0][0]["Host"] == "judge.example"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("HTTP_PROXY", "tcp://127.0.0.1:1", r"cannot use \*_PROXY or SSL_CERT_\* in the environment .*: mend or unset"),
        ("SSL_CERT_FILE", "/absent.pem", r"cannot use \*_PROXY or SSL_CERT_\* in the environment .*: mend or unset"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "SOCKS proxy needs the package socksio"),
    ],
)
def test_an_environment_that_cannot_be_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(RewindError, match=sentence):
        judge_of(server)


def test_one_tls_context_for_all_connections(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads every certificate of the system: not again for a proxy, nor for a request."""
    read: list[ssl.SSLContext] = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda context, *_, **__: read.append(context))
    monkeypatch.setenv("SSL_CERT_FILE", "certificates.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    ask(judge_of(server), 3)
    assert len(read) == 1


def test_retry_after_is_honoured(server: Server) -> None:
    server.script = [status(429, Retry_After="0.3")]
    start = time.monotonic()
    assert ask(judge_of(server)) == [0.65]
    assert time.monotonic() - start >= 0.3


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert [seconds_to_wait(t) for t in ("7", " 2.5 ", None, "soon", "-3", "nan", "")] == [7, 2.5, 0, 0, 0, 0, 0]
    assert seconds_to_wait(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert seconds_to_wait(formatdate(time.time() - 100, usegmt=True)) == 0


def test_waits_grow_and_are_bounded(server: Server) -> None:
    waits: list[float] = []

    class Hurried(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    server.usual = status(503)
    endpoint = judge_of(server, retries=5, backoff=4.0).endpoint
    with pytest.raises(RewindError, match="failed 6 times"):
        endpoint.chat({}, Hurried())
    for wait, longest in zip(waits, [4, 8, 16, 32, 60], strict=True):
        assert longest / 2 <= wait <= longest
    assert len({wait / longest for wait, longest in zip(waits, [4, 8, 16, 32, 60], strict=True)}) > 1  # jitter


def test_the_key_is_in_the_header_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    judge = judge_of(server, key_variable="MY_KEY", cache=tmp_path)
    echo = json.dumps({"reason": f"your key is {KEY}", "editing": 5, "minimality": 5})
    server.script = [lambda h: h.says(echo)]
    metrics: dict[str, float] = {}
    assert ask(judge, log_metric=metrics.__setitem__) == [0.5]
    assert server.seen[0][0]["Authorization"] == f"Bearer {KEY}"
    assert KEY.encode() not in server.seen[0][1]

    told = []
    for trouble in (
        status(401, f"Incorrect API key {KEY}"),
        status(503, f"key {KEY}"),
        lambda h: h.reply(200, f"<p>{KEY}</p>", f"text/{KEY}"),
        status(302, "", Location=f"http://elsewhere/{KEY}"),
        lambda h: h.says(f"What is {KEY}?"),
    ):
        server.usual = trouble
        with pytest.raises(RewindError) as caught:
            ask(judge_of(server, key_variable="MY_KEY"), 2)
        told.append("".join(traceback.format_exception(caught.value)))
    assert "MY_KEY was refused" in told[0]
    written = [path.read_text() + str(path) for path in tmp_path.rglob("*.json")]
    assert len(written) == 1
    kept = str({**vars(judge), **vars(judge.endpoint)})
    for text in (*told, *written, kept, repr(judge), caplog.text, str(metrics)):
        assert KEY not in text

    monkeypatch.setenv("MY_KEY", f"{KEY}\r\nX-More: 1")  # http.client would repeat it in its error
    with pytest.raises(RewindError, match="the key in MY_KEY has characters that no key has") as caught:
        ask(judge, 2)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(RewindError, match="NAME of an environment variable") as caught:
        judge_of(server, key_variable=KEY)
    assert KEY not in str(caught.value)


def test_a_key_over_plain_http_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: Server
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge_of(server)
    Judge("https://judge.example/v1", "eye-1", cache=None)
    assert "unencrypted" not in caplog.text
    Judge("http://judge.example/v1", "eye-1", cache=None)
    assert "goes to judge.example unencrypted" in caplog.text
