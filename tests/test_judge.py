"""The judge as a reward: its marks, its cache, its threads, its cost; see test_judge_endpoint.py for HTTP."""

from __future__ import annotations

import inspect
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from judge_server import ACTION, KEY, Handler, Server, ask, judge_of, marks, picture_in, plain, status, well

from rewards.judge import Judge
from rewards.judge_marks import Marks, read_marks
from rl.errors import RewindError
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate


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
        ('{"reason": "from } to { and {x}", "editing": 2, "minimality": 3}', Marks(2, 3)),
        ('Here: {"reason": "a {b} c", "editing": 2, "minimality": 3} - a {fair} mark.', Marks(2, 3)),
        ('```json\n{"reason": "it says {\\"editing\\": 9}", "editing": 2, "minimality": 3}\n```\nDone.', Marks(2, 3)),
        ('{"editing": 2, "minimality": 3,}', Marks(2, 3)),
        ('So:\n```\n{\n  "editing": 2,\n  "minimality": 3,\n}\n```', Marks(2, 3)),
        ('{"editing": 2, "minimality": 3} as asked: {"reason": "", "x": 1}', Marks(2, 3)),
        ('{"marks": {"editing": 2, "minimality": 3}}', Marks(2, 3)),
        ('[{"editing": 2, "minimality": 3}]', Marks(2, 3)),
        ('{"first": {"editing": 9, "minimality": 9}, "editing": 2, "minimality": 3}', Marks(2, 3)),
        ('{"editing": 9, "minimality": 9} no: {"editing": 90, "minimality": 3}', None),
        ('{"editing": 2, "minimality": 3 and so on', None),
        ('{"a":' * 100_000, None),
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
def test_marks_are_two_numbers_in_range_with_braces_fences_prose_or_a_trailing_comma(
    text: str, found: Marks | None
) -> None:
    assert read_marks(text) == found


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


def test_the_first_failure_stops_the_others_and_is_the_one_that_is_told(server: Server) -> None:
    server.script, server.usual = [status(400)], status(503)
    with pytest.raises(RewindError, match="refuses"):
        ask(judge_of(server, concurrency=3, backoff=60.0), 9)  # not after a minute, and not "was stopped"
    assert len(server.seen) <= 3


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RewindError, match=r"cache .* cannot be made"):
        judge_of(server, cache=tmp_path / "file")
    judge = judge_of(server, cache=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RewindError, match="cache cannot be written"):
        ask(judge)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_run_at_once_and_no_more_than_allowed(
    server: Server, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    together, lock = threading.Barrier(concurrency), threading.Lock()
    judge = judge_of(server, concurrency=concurrency)
    chat, now, most = judge.endpoint.chat, 0, 0

    def in_company(h: Handler) -> None:
        together.wait(60)  # never passed by fewer
        # Marks that tell the predictions apart: the order of the scores must be that of the candidates.
        well_of = int(picture_in(json.loads(h.body)["messages"][0]["content"][3])[0, 0, 0])
        marks(well_of, 10)(h)

    def counted(body: dict[str, Any], stop: threading.Event) -> str:
        """Counts where requests are made: when a client has its answer, the server may still be at work on it."""
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return chat(body, stop)
        finally:
            with lock:
                now -= 1

    server.usual = in_company
    monkeypatch.setattr(judge.endpoint, "chat", counted)
    assert ask(judge, 6) == pytest.approx([n / 10 for n in range(1, 7)])
    assert most == concurrency


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
