"""The judge over HTTP, against a real local server that answers well, late, wrongly, in part, or not at all."""

from __future__ import annotations

import base64
import inspect
import io
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from rewards import Batch, Reward, load_rewards, score
from rewards.judge import Judge
from rewards.judge_endpoint import seconds_to_wait
from rewards.judge_marks import Marks, read_marks
from rl import rerank
from rl.errors import RewindError
from rl.models.roles import ForwardDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate

ACTION = "move the red circle left"
KEY = "sk-Secret0123456789"


class Server(ThreadingHTTPServer):
    """Plays `script`, one entry a request, then `usual` for all others; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Callable[[Handler], None]] = []
        self.usual: Callable[[Handler], None] = well
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.now = self.most = 0
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen.append((dict(self.headers), self.body))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            act = self.server.script.pop(0) if self.server.script else self.server.usual
        try:
            act(self)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def says(self, content: str | None) -> None:
        message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        self.reply(200, json.dumps({**message, "usage": {"prompt_tokens": 1000, "completion_tokens": 20}}))


def marks(editing: Any, minimality: Any) -> Callable[[Handler], None]:
    return lambda h: h.says(json.dumps({"reason": "so", "editing": editing, "minimality": minimality}))


def status(code: int, message: str = "no", **headers: str) -> Callable[[Handler], None]:
    return lambda h: h.reply(code, json.dumps({"error": {"message": message}}), **headers)


def well(h: Handler) -> None:
    marks(8, 6.5)(h)


def late(h: Handler) -> None:
    h.server.over.wait(5)


def in_drops(h: Handler) -> None:
    h.send_response(200)
    h.end_headers()
    while not h.server.over.wait(0.02):
        h.wfile.write(b" ")


def cut_off(h: Handler) -> None:
    h.send_response(200)
    h.send_header("Content-Length", "1000")
    h.end_headers()
    h.wfile.write(b'{"choices": [{"message": {"content": "{}"}}]}')


def hangs_up(h: Handler) -> None:
    h.connection.close()


def not_json(h: Handler) -> None:
    h.reply(200, '{"choices": [')


def html(h: Handler) -> None:
    h.reply(200, "<html>please log in</html>", "text/html")


def no_choices(h: Handler) -> None:
    h.reply(200, '{"error": {"message": "overloaded"}}')


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "REWIND_JUDGE_URL", "REWIND_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.over.set()
        found.shutdown()
        thread.join()


def judge_of(server: Server, **arguments: Any) -> Judge:
    return Judge(server.url, "eye-1", **{"cache": None, "backoff": 0.001, "timeout": 10, "retries": 2, **arguments})


def ask(judge: Judge, number: int = 1, **more: Any) -> list[float | None]:
    """Judge `number` different predictions of one source."""
    source = np.zeros((32, 32, 3), np.uint8)
    return judge([ACTION] * number, [source] * number, [plain(n) for n in range(1, number + 1)], **more)


def plain(value: int) -> Image.Image:
    return Image.fromarray(np.full((32, 32, 3), value, np.uint8))


def picture_in(part: dict[str, Any]) -> np.ndarray:
    head, data = part["image_url"]["url"].split(",")
    assert (part["type"], head) == ("image_url", "data:image/png;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_score_is_the_smaller_mark_and_the_request_is_as_the_api_has_it(server: Server) -> None:
    assert ask(judge_of(server)) == [0.65]
    headers, body = server.seen[0]
    request = json.loads(body)
    assert (request["model"], request["temperature"]) == ("eye-1", 0)
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers  # no key is set: local servers need none
    (message,) = request["messages"]
    first, before, second, after = message["content"]
    assert message["role"] == "user"
    assert "editing" in first["text"]
    assert f'"{ACTION}"' in first["text"]
    assert "prediction" in second["text"]
    assert (picture_in(before) == np.zeros((256, 256, 3))).all()  # 32 pixels, enlarged
    assert (picture_in(after) == np.ones((256, 256, 3))).all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"editing": 8, "minimality": 6.5}', Marks(8, 6.5)),
        ('Sure:\n```json\n{"reason": "a", "editing": 0, "minimality": 10}\n```', Marks(0, 10)),
        ('<think>{"editing": 1}</think>{"editing": 2, "minimality": 3}', Marks(2, 3)),
        ('{"reason": "braces {}", "editing": 2, "minimality": 3}', Marks(2, 3)),
        ('{"editing": 8}', None),
        ('{"editing": 8, "minimality": "7"}', None),
        ('{"editing": true, "minimality": 7}', None),
        ('{"editing": 11, "minimality": 7}', None),
        ('{"editing": 8, "minimality": -0.1}', None),
        ('{"editing": NaN, "minimality": 7}', None),
        ('{"editing": Infinity, "minimality": 7}', None),
        ('{"editing": 8, "minimality": 7', None),
        ("[8, 7]", None),
        ("[" * 100_000, None),
        ("I would say 8.", None),
        ("", None),
    ],
)
def test_marks_are_two_numbers_in_range(text: str, found: Marks | None) -> None:
    assert read_marks(text) == found


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
        (cut_off, "the answer is cut off"),
        (hangs_up, "Remote end closed connection"),
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


def test_an_answer_that_cannot_be_read_is_none_and_counted(server: Server) -> None:
    judge = judge_of(server, concurrency=1)
    server.script = [marks(11, 5), marks("8", 5), lambda h: h.says(None), well]
    metrics: dict[str, float] = {}
    assert ask(judge, 2, log_metric=metrics.__setitem__) == [None, 0.65]
    assert metrics["judge/unreadable"] == 1
    assert metrics["judge/requests"] == 4
    server.script = [lambda h: h.says("hm"), marks(10, 9)]
    assert ask(judge) == [0.9]  # asked again, not counted
    assert judge.usage()["unreadable"] == 1


def test_if_no_answer_can_be_read_the_run_stops(server: Server) -> None:
    server.usual = lambda h: h.says("I see no pictures.")
    with pytest.raises(RewindError, match=r"to any of 3 pictures, e.g. 'I see no pictures.'"):
        ask(judge_of(server), 3)
    assert len(server.seen) == 9
    assert judge_of(server)([], [], []) == []


def test_a_cached_answer_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    judge = judge_of(server, cache=tmp_path / "a" / "cache")
    assert ask(judge, 3) == [0.65] * 3
    assert len(server.seen) == 3
    again = judge_of(server, cache=tmp_path / "a" / "cache", concurrency=1)
    assert ask(again, 4) == [0.65] * 4
    assert len(server.seen) == 4
    assert (again.usage()["cached"], again.usage()["requests"]) == (3, 1)
    # Another model, other options, other words, another picture are other questions.
    ask(judge_of(server, cache=again.cache.folder, options={"temperature": 1}))
    assert len(server.seen) == 5
    again([ACTION + " now"], [np.zeros((32, 32, 3), np.uint8)], [plain(1)])
    again([ACTION], [np.ones((32, 32, 3), np.uint8)], [plain(1)])
    again.model = "eye-2"
    again([ACTION], [np.zeros((32, 32, 3), np.uint8)], [plain(1)])
    assert len(server.seen) == 8
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("spoiled", ["", '{"editing": 8', '{"editing": 80, "minimality": 1}', "\0", "[]"])
def test_a_spoiled_entry_is_asked_for_again(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoiled: str
) -> None:
    judge = judge_of(server, cache=tmp_path)
    ask(judge)
    (entry,) = tmp_path.rglob("*.json")
    right = entry.read_text()
    entry.write_text(spoiled)
    assert ask(judge) == [0.65]
    assert "cannot be read: the judge is asked again" in caplog.text
    assert (len(server.seen), entry.read_text()) == (2, right)
    assert ask(judge) == [0.65]
    assert len(server.seen) == 2


def test_answers_before_a_failure_are_kept(server: Server, tmp_path: Path) -> None:
    server.script = [well, status(400)]
    with pytest.raises(RewindError, match="refuses"):
        ask(judge_of(server, cache=tmp_path, concurrency=1), 5)
    assert len(server.seen) == 2  # the first failure stops the others
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RewindError, match=r"cache .* cannot be made"):
        judge_of(server, cache=tmp_path / "file")
    judge = judge_of(server, cache=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RewindError, match="cache cannot be written"):
        ask(judge)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_run_at_once_and_no_more_than_allowed(server: Server, concurrency: int) -> None:
    together = threading.Barrier(concurrency)

    def in_company(h: Handler) -> None:
        together.wait(5)  # never passed by fewer
        # Marks that tell the predictions apart: the order of the scores must be that of the candidates.
        well_of = int(picture_in(json.loads(h.body)["messages"][0]["content"][3])[0, 0, 0])
        marks(well_of, 10)(h)

    server.usual = in_company
    assert ask(judge_of(server, concurrency=concurrency), 6) == pytest.approx([n / 10 for n in range(1, 7)])
    assert server.most == concurrency


def test_equal_questions_are_asked_once(server: Server) -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    found = judge_of(server)([ACTION] * 4, [source, source.copy(), source, source], [plain(5)] * 4)
    assert found == [0.65] * 4
    assert len(server.seen) == 1


def test_the_source_of_a_later_step_is_shown_as_its_picture(server: Server, tiny: UnifiedVLM) -> None:
    ids = tiny.layout.image_ids_V[:4].numpy()
    before = Candidate(ids, np.zeros(4, np.float32), tiny)
    found = judge_of(server)([ACTION] * 2, [before, before.image], [plain(5)] * 2)  # type: ignore[list-item]
    assert found == [0.65] * 2
    assert len(server.seen) == 1  # one and the same question


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


def test_cost_by_hand(server: Server) -> None:
    judge = judge_of(server, input_price=2.0, output_price=10.0)
    metrics: dict[str, float] = {}
    server.script = [status(500)]
    ask(judge, 3, log_metric=metrics.__setitem__)
    assert metrics == pytest.approx(
        {
            "judge/requests": 4,
            "judge/retries": 1,
            "judge/cached": 0,
            "judge/unreadable": 0,
            "judge/input_tokens": 3000,
            "judge/output_tokens": 60,
            "judge/unmetered": 0,
            "judge/cost": 3000 * 2e-6 + 60 * 10e-6,
        }
    )
    server.usual = lambda h: h.reply(
        200, json.dumps({"choices": [{"message": {"content": '{"editing": 1, "minimality": 1}'}}]})
    )
    ask(judge, 1, log_metric=metrics.__setitem__)
    assert (metrics["judge/unmetered"], metrics["judge/cost"]) == (1, 0)
    assert judge.usage()["cost"] == pytest.approx(0.0066)
    assert "cost" not in judge_of(server).usage()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"url": ""}, "give its argument url or set REWIND_JUDGE_URL"),
        ({"model": None}, "give its argument model or set REWIND_JUDGE_MODEL"),
        ({"url": "localhost:8000"}, "must be like https://HOST/v1"),
        ({"url": "http://host:port/v1"}, "must be like https://HOST/v1"),
        ({"url": "http://a b/v1"}, "must be like https://HOST/v1"),
        ({"url": f"https://me:{KEY}@host/v1"}, "must hold no user, password"),
        ({"url": f"https://host/v1?key={KEY}"}, "must hold no user, password"),
        ({"concurrency": 0}, "concurrency must be a whole number of 1 or more, not 0"),
        ({"retries": 1.5}, "retries must be a whole number of 0 or more, not 1.5"),
        ({"timeout": "60"}, "timeout must be a number of 0.001 or more, not '60'"),
        ({"backoff": float("nan")}, "backoff must be a number of 0 or more, not nan"),
        ({"input_price": 1.0}, "needs both input_price and output_price"),
        ({"options": {"model": "x"}}, "options cannot hold 'model'"),
        ({"options": {"until": {1}}}, "options cannot be written as JSON"),
    ],
)
def test_arguments_that_cannot_be(server: Server, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence) as caught:
        Judge(**{"url": server.url, "model": "eye-1", "cache": None, **arguments})
    assert KEY not in str(caught.value)


def test_the_yaml_of_the_docs_shows_every_argument_with_its_default() -> None:
    page = (ROOT / "docs" / "guide" / "rewards.md").read_text().partition("## A judge over HTTP")[2]
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["reward_arguments"]["judge"]
    real = {name: p.default for name, p in inspect.signature(Judge).parameters.items()}
    assert {**shown, "url": None, "model": None} == {**real, "options": {"temperature": 0}}
    assert Judge(**{**shown, "cache": None}).options == {"temperature": 0}


def test_by_name_with_the_environment_and_beside_another_reward(
    server: Server, tiny: UnifiedVLM, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REWIND_JUDGE_URL", server.url)
    monkeypatch.setenv("REWIND_JUDGE_MODEL", "eye-1")
    flat = Reward.of(lambda prompts: [1.0] * len(prompts), "flat")
    rewards = load_rewards(["judge=0.5", flat])
    candidates = [Candidate(np.array(ids), np.zeros(4, np.float32), tiny) for ids in first_codes(tiny)]
    server.script = [marks(3, 10)]
    assert len({c.image.tobytes() for c in candidates}) == 2
    metrics: dict[str, float] = {}
    batch = Batch([ACTION] * 3, candidates, [picture] * 3, log_metric=metrics.__setitem__)
    rewards[0].function.concurrency = 1
    found = score(rewards, batch)
    assert [s.scores["judge"] for s in found] == [0.3, 0.65, 0.3]  # the first and the last are one picture
    assert [s.total for s in found] == pytest.approx([1.15, 1.325, 1.15])
    assert metrics["judge/requests"] == 2
    assert len(list((tmp_path / ".cache" / "rewind" / "judge").rglob("*.json"))) == 2
    server.usual = status(500)
    rewards[0].function.endpoint.retries = 0
    with pytest.raises(RewindError, match="the judge at"):
        score(rewards, Batch(["jump"], candidates[:1], [picture]))


def first_codes(vlm: UnifiedVLM) -> list[list[int]]:
    dark, light = vlm.encode([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]).cpu().tolist()
    return [dark, light, dark]


def test_rerank_takes_the_picture_that_the_judge_likes(server: Server, shipped: UnifiedVLM) -> None:
    """End to end on the shipped base: this judge likes light pictures."""

    def likes_light(h: Handler) -> None:
        array = picture_in(json.loads(h.body)["messages"][0]["content"][3])
        marks(10, float(array.mean()) / 25.5)(h)

    server.usual = likes_light
    source = np.full((64, 64, 3), 200, np.uint8)
    judge = judge_of(server)
    found = rerank(ForwardDynamics(shipped), None, source, ACTION, 4, rewards=[judge])
    brightness = [np.asarray(s.image).mean() / 255 for s in found.candidates]
    assert found.best.score == pytest.approx(max(brightness))
    assert [s.score for s in found.candidates] == pytest.approx(sorted(brightness, reverse=True))
    assert len(server.seen) == len({s.image.tobytes() for s in found.candidates})
    server.usual = status(503)
    with pytest.raises(RewindError, match="503"):
        rerank(ForwardDynamics(shipped), None, source, ACTION, 4, rewards=[judge])
