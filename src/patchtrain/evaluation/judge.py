"""A judge behind an OpenAI-compatible endpoint: one question to it, and patience.

Only the address the user gave is talked to: no other host that it redirects to gets the key or the
question.
"""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from patchtrain.chat import Messages
from patchtrain.errors import PatchtrainError, UsageError, one_line

KEY_VARIABLE = "OPENAI_API_KEY"
_TIMEOUT_SECONDS = 300.0
# Between tries, unless the endpoint itself says how long to wait.
_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_WAIT_SECONDS = 60.0
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None  # which makes it an HTTPError


@dataclass
class Judge:
    """Whom to ask: ``url`` up to ``/v1`` or with ``/chat/completions``, and the model's name there.

    ``temperature`` is 0, or None once the endpoint has refused to be told one.
    """

    url: str
    model: str
    temperature: float | None = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--judge-url must be like http://localhost:8000/v1, not {one_line(self.url, 80)}"
            )
        if parts.username or parts.password or parts.query:
            raise UsageError(
                f"--judge-url carries a name, a key or a query; set the key in {KEY_VARIABLE}, "
                "where no record keeps it"
            )
        if not self.url.rstrip("/").endswith("/chat/completions"):
            self.url = f"{self.url.rstrip('/')}/chat/completions"
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [ProxyHandler({})] if local else []  # a proxy does not know this machine
        self._opener: OpenerDirector = build_opener(_NoRedirects(), *proxies)

    def ask(self, messages: Messages) -> dict[str, Any]:
        """The whole response to a conversation, as the endpoint gave it.

        A failing request is tried again, up to 5 times over half a minute.

        Raises:
            PatchtrainError: it kept failing, or the endpoint refuses, with what it said.
        """
        waits, tries = list(_WAITS_SECONDS), 0
        while True:
            tries += 1
            try:
                return self._ask_once(messages)
            except _TryAgainError as error:
                if error.refused_temperature and self.temperature is not None:
                    self.temperature = None
                    continue
                if not waits or self.stop.is_set():
                    raise PatchtrainError(
                        f"the judge at {self.url} failed {tries} times: {error}; "
                        "what it said so far is kept, and the same command goes on"
                    ) from error
                wait = waits.pop(0)
                self.stop.wait(min(max(wait, error.wait_seconds), _LONGEST_WAIT_SECONDS))

    def _ask_once(self, messages: Messages) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        headers = {"Content-Type": "application/json", "User-Agent": "patchtrain"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self.url, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                raw = response.read()
        except HTTPError as error:
            raise self._refusal(error) from error
        except (URLError, OSError, ValueError) as error:  # ValueError: no HTTP at all
            raise _TryAgainError(one_line(getattr(error, "reason", error))) from error
        try:
            found = json.loads(raw)
            if isinstance(found["choices"][0]["message"]["content"], str):
                return dict(found)
            problem = "its answer has no text"
        except (ValueError, LookupError, TypeError, RecursionError):
            problem = f"its answer is no chat completion: {one_line(raw.decode(errors='replace'))}"
        raise _TryAgainError(problem)

    def _refusal(self, error: HTTPError) -> PatchtrainError:
        """What an HTTP status means: to be tried again, or the end."""
        try:
            said = error.read(10_000).decode(errors="replace")
        except OSError:
            said = ""
        what = f"HTTP {error.code} {one_line(said or error.reason or '', 200)}"
        if error.code in _AGAIN:
            after = error.headers.get("Retry-After", "") if error.headers else ""
            return _TryAgainError(what, float(after) if re.fullmatch(r"\d{1,5}", after) else 0.0)
        if error.code == 400 and "temperature" in said and self.temperature is not None:
            return _TryAgainError(what, refused_temperature=True)
        hint = f"; is {KEY_VARIABLE} set and right?" if error.code in (401, 403) else ""
        if 300 <= error.code < 400:
            there = one_line(error.headers.get("Location", "elsewhere"), 80)
            hint = f"; it redirects to {there}, and only the address given is asked"
        return PatchtrainError(f"the judge at {self.url} refuses: {what}{hint}")


class _TryAgainError(PatchtrainError):
    """A request failed in a way that may pass."""

    def __init__(
        self, message: str, wait_seconds: float = 0.0, refused_temperature: bool = False
    ) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.refused_temperature = refused_temperature


def text_of(response: dict[str, Any]) -> str:
    """What the judge said, in a response of ``Judge.ask``."""
    return str(response["choices"][0]["message"]["content"])
