"""A local server that judges well, late, wrongly, in part, or not at all, and questions for it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from rewards.judge import Judge

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
            act = self.server.script.pop(0) if self.server.script else self.server.usual
        act(self)

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


def too_long(h: Handler) -> None:
    h.reply(200, " " * (9 * 2**20))


def hangs_up(h: Handler) -> None:
    h.connection.close()


def not_json(h: Handler) -> None:
    h.reply(200, '{"choices": [')


def html(h: Handler) -> None:
    h.reply(200, "<html>please log in</html>", "text/html")


def no_choices(h: Handler) -> None:
    h.reply(200, '{"error": {"message": "overloaded"}}')


@contextmanager
def serving() -> Iterator[Server]:
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
