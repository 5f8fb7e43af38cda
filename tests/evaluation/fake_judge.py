"""A small OpenAI-compatible endpoint on this machine, which behaves as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]


def completion(text: Any) -> Reply:
    """What such an endpoint says when all is well."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    body = {"model": "fake-1", "usage": {"total_tokens": 7}, "choices": [choice]}
    return 200, json.dumps(body).encode(), {}


class FakeJudge:
    """``reply`` gets a request's body and its number from 0; all requests are kept."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.url = ""
        self.lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[FakeJudge]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge.lock:
                    number = len(judge.bodies)
                    judge.bodies.append(body)
                    judge.headers.append(dict(self.headers))
                    judge.paths.append(self.path)
                status, content, headers = judge.reply(body, number)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
