"""One chat-completions request to any OpenAI-compatible server: a time limit, retries, and a key that stays secret.

The standard library does it: no package for HTTP is among the dependencies. Redirects are not followed, since they
would carry the key to another host.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import re
import ssl
import threading
import time
import urllib.request
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from rl.errors import RewindError

LONGEST_BACKOFF = 60.0
LARGEST_ANSWER = 8 * 2**20
MAY_PASS = {408, 409, 425, 429}
"""HTTP codes beside 5xx after which the same request may succeed."""
_logger = logging.getLogger("rewards")


class _TryAgainError(Exception):
    """A failure that may pass; `wait` is the number of seconds that the server asks for, 0 if it does not say."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Endpoint:
    """A server's chat completions.

    Args:
        url: the base URL, e.g. 'https://api.openai.com/v1' or 'http://localhost:8000/v1'.
        key_variable: the environment variable that holds the key. It is read for each request and kept nowhere; where
            it is not set, no key is sent, as local servers need none.
        timeout: seconds that a try may take.
        retries: further tries after 408, 409, 425, 429, 5xx, a timeout, a lost connection or an answer that is no JSON.
        backoff: seconds before the first further try; doubled each time, at most a minute, times a random .5 to 1. A
            longer `Retry-After` of the server is kept to.
        max_wait: the longest `Retry-After`, in seconds, that is waited for.

    Raises:
        RewindError: a URL or a variable's name that cannot be one.
    """

    def __init__(
        self, url: str, key_variable: str, *, timeout: float, retries: int, backoff: float, max_wait: float
    ) -> None:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_variable):  # not repeated: it may be the key itself
            raise RewindError("key_variable is the NAME of an environment variable in capitals, not the key itself")
        self.url, self.key_variable = _completions_url(url), key_variable
        self.timeout, self.retries, self.backoff, self.max_wait = timeout, retries, backoff, max_wait
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._random = random.Random()  # the global generator belongs to training
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(urllib.request.ProxyHandler())
        self._opener.add_handler(urllib.request.HTTPHandler())
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            # One context for all requests: it reads every certificate of the system.
            self._opener.add_handler(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
        elif parts.hostname not in ("localhost", "127.0.0.1", "::1") and self._key():
            _logger.warning("the key in %s goes to %s unencrypted: better use https", key_variable, parts.hostname)

    def count(self, **numbers: int) -> None:
        """Add to `counts`, from any thread."""
        with self.lock:
            self.counts.update(numbers)

    def chat(self, body: dict[str, Any], stop: threading.Event) -> str:
        """The text of the model's answer; '' if it has none.

        Args:
            body: the request, as the OpenAI API has it.
            stop: when set, nothing is waited for or tried any more.

        Raises:
            RewindError: the server refuses, or fails still after the last try.
        """
        for tried in range(self.retries + 1):
            if stop.is_set():
                break
            try:
                return self._once(json.dumps(body).encode())
            except _TryAgainError as error:
                last = error
            if last.wait > self.max_wait:
                raise RewindError(f"the judge at {self.url} asks to wait {last.wait:.0f} s ({last}): try again later")
            if tried < self.retries:
                self.count(retries=1)
                own = min(self.backoff * 2.0 ** min(tried, 30), LONGEST_BACKOFF) * self._random.uniform(0.5, 1.0)
                stop.wait(last.wait + own if last.wait else own)
        if stop.is_set():
            raise RewindError("the judge was stopped")
        tries = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise RewindError(
            f"the judge at {self.url} failed {tries}, at last: {last}; see to the server or try again later"
        ) from None

    def clean(self, text: str) -> str:
        """Foreign text for a message: short, on one line, without the key."""
        key = self._key()
        text = text.replace(key, "***") if key else text
        text = " ".join(text.split())
        return text if len(text) <= 200 else text[:200] + " ..."

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            if not re.fullmatch(r"[\x21-\x7e]+", key):
                raise RewindError(f"the key in {self.key_variable} has characters that no key has: set it again")
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        self.count(requests=1)
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                status, found = response.status, response.headers
                content = _read(response, deadline)
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _TryAgainError(f"no answer within {self.timeout:g} s") from None
            raise _TryAgainError(self.clean(f"{type(reason).__name__}: {reason}")) from None
        if status != 200:
            self._refused(status, found, content)
        return self._text_of(content, found)

    def _refused(self, status: int, headers: Any, content: bytes) -> None:
        says = f"{status} {self.clean(_message_of(content))}".strip()
        if status in MAY_PASS or status >= 500:
            raise _TryAgainError(says, seconds_to_wait(headers.get("Retry-After")))
        if status in (401, 403):
            state = "was refused" if self._key() else "is not set"
            raise RewindError(f"the judge at {self.url} wants a valid key ({says}): {self.key_variable} {state}")
        if 300 <= status < 400:
            where = self.clean(headers.get("Location", ""))
            raise RewindError(f"the judge at {self.url} redirects to '{where}': give the URL that answers itself")
        raise RewindError(f"the judge at {self.url} refuses the request: {says}")

    def _text_of(self, content: bytes, headers: Any) -> str:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"].get("content")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            kind = self.clean(headers.get("Content-Type", "an unnamed type"))
            says = self.clean(_message_of(content))
            raise _TryAgainError(f"an answer of {kind} that is no chat completion: '{says}'") from None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        tokens: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        if all(type(number) is int and number >= 0 for number in tokens):
            self.count(input_tokens=tokens[0], output_tokens=tokens[1])
        else:
            self.count(unmetered=1)
        return text if isinstance(text, str) else ""


def seconds_to_wait(retry_after: str | None) -> float:
    """`Retry-After`, in seconds or as a date, as seconds from now; 0 if it is absent, past or unreadable."""
    if retry_after is None:
        return 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _completions_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname is not None and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise RewindError("the judge's URL must be like https://HOST/v1: look at it again")
    if "@" in parts.netloc or parts.query or parts.fragment:  # not repeated: it may hold a password
        raise RewindError(f"the judge's URL (host {parts.hostname}) must hold no user, password, '?' or '#'")
    url = url.rstrip("/")
    return url if url.endswith("/chat/completions") else url + "/chat/completions"


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, though it come in drops."""
    parts: list[bytes] = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if sum(map(len, parts)) > LARGEST_ANSWER:
            raise http.client.HTTPException("an answer of more than 8 MiB")
    if response.length:  # read1 does not tell that the connection was closed early
        raise http.client.HTTPException("the answer is cut off")
    return b"".join(parts)


def _message_of(content: bytes) -> str:
    """The message in an error answer as the OpenAI API has it, or else the text as it is."""
    text = content.decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return text
