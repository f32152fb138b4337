"""One chat-completions request to any OpenAI-compatible server: a time limit, retries, and a key that stays secret."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from rl.errors import RewindError

LONGEST_BACKOFF = 60.0
LARGEST_ANSWER = 8 * 2**20
MAY_PASS = {408, 409, 425, 429}
"""HTTP codes beside 5xx after which the same request may succeed."""
_logger = logging.getLogger("rewards")
for _name in ("httpx2", "httpcore2"):  # they log a line a request, or all headers, in which a server may echo the key
    logging.getLogger(_name).setLevel(logging.WARNING)


class _TryAgainError(Exception):
    """A failure that may pass."""

    wait = 0.0
    """Seconds that the server asks for; 0 if it does not say."""


class Endpoint:
    """A server's chat completions, reached through the environment's proxies.

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
        RewindError: a URL, a variable's name or a proxy that cannot be one, certificates that cannot be read.
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
        try:
            self._client = httpx2.Client(
                follow_redirects=False,  # they would carry the pictures, and on the same host the key, elsewhere
                limits=httpx2.Limits(),  # how many at once is the judge's to say
                timeout=timeout,
                verify=httpx2.create_ssl_context(),  # one for all, proxies too: it reads every certificate there is
            )
        except ImportError as error:
            raise RewindError("a SOCKS proxy needs the package socksio: install it, or unset the proxy") from error
        except (OSError, ValueError, httpx2.InvalidURL) as error:
            about = "*_PROXY or SSL_CERT_* in the environment"
            raise RewindError(f"the judge cannot use {about} ({error}): mend or unset it") from error
        parts = urlsplit(self.url)
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1") and self._key():
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
        headers, key = {"Content-Type": "application/json", "Accept": "application/json"}, self._key()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise RewindError(f"the key in {self.key_variable} has characters that no key has: set it again")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.count(requests=1)
        deadline, content = time.monotonic() + self.timeout, b""
        try:
            with self._client.stream("POST", self.url, content=body, headers=headers) as response:
                for part in response.iter_bytes():  # httpx2's limit is for each part, and an answer may come in drops
                    content += part
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("")
                    if len(content) > LARGEST_ANSWER:
                        raise _TryAgainError("an answer of more than 8 MiB")
        except httpx2.TimeoutException:
            raise _TryAgainError(f"no answer within {self.timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise _TryAgainError(self.clean(f"{type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            raise self._refusal(response, content)
        return self._text_of(response, content)

    def _refusal(self, response: httpx2.Response, content: bytes) -> Exception:
        status = response.status_code
        says = f"{status} {self.clean(_message_of(content))}".strip()
        if status in MAY_PASS or status >= 500:
            again = _TryAgainError(says)
            again.wait = seconds_to_wait(response.headers.get("Retry-After"))
            return again
        if status in (401, 403):
            state = "was refused" if self._key() else "is not set"
            return RewindError(f"the judge at {self.url} wants a valid key ({says}): {self.key_variable} {state}")
        if 300 <= status < 400:
            where = self.clean(response.headers.get("Location", ""))
            return RewindError(f"the judge at {self.url} redirects to '{where}': give the URL that answers itself")
        return RewindError(f"the judge at {self.url} refuses the request: {says}")

    def _text_of(self, response: httpx2.Response, content: bytes) -> str:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"].get("content")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            kind = self.clean(response.headers.get("Content-Type", "an unnamed type"))
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


def _message_of(content: bytes) -> str:
    """The message in an error answer as the OpenAI API has it, or else the text as it is."""
    text = content.decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return text
