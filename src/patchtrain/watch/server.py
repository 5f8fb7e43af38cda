"""The live page's server: two addresses, on the loopback interface, to read only.

Anybody who can open a connection to this machine's own loopback address can read the page; nobody
else can reach it. A web page elsewhere could still make the visitor's browser ask for it: by a name
that it lets resolve to 127.0.0.1, so a ``Host`` that is not this machine's own is refused, and
nothing allows another origin to read an answer. No answer is ever a file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs

from patchtrain.errors import UsageError
from patchtrain.watch.page import PAGE, POLICY, run_to_dict
from patchtrain.watch.watching import Watching
from patchtrain.watch.words import COLUMNS, summary

ADDRESS = "127.0.0.1"
PORT, _PORTS = 8421, 20  # the first to try, and how many
_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageServer:
    """Serves the page on the runs of ``watching`` until it is closed.

    Args:
        watching: what to show; whoever has it calls its ``look``.
        port: where to listen; None for the first free one from ``PORT`` on.

    Raises:
        UsageError: the port cannot be had.
    """

    def __init__(self, watching: Watching, port: int | None = None) -> None:
        self._server = _listen(watching, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listen(watching: Watching, port: int | None) -> _Server:
    if port is not None and not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535 (0: any free one), not {port}")
    ports = [port] if port is not None else [*range(PORT, PORT + _PORTS), 0]
    for number in ports:
        try:
            return _Server(watching, number)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
    raise UsageError(
        f"port {port} cannot be listened on: {reason}; name another --port, leave it out for the "
        f"first free one, or show no page with --no-serve"
    )


class _Server(ThreadingHTTPServer):
    # On Windows this would let two servers share a port.
    allow_reuse_address = os.name != "nt"
    daemon_threads = True
    block_on_close = False  # a browser may keep a connection open

    def __init__(self, watching: Watching, port: int) -> None:
        self.watching = watching
        super().__init__((ADDRESS, port), _Handler)

    def server_bind(self) -> None:
        """As an HTTPServer, which would also ask for this machine's name: that may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0  # of a client that says nothing
    server_version, sys_version = "patchtrain", ""

    def do_GET(self) -> None:
        if not self._from_here():
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine's own address only")
            return
        path, _, query = self.path.partition("?")
        if path not in _ANSWERS:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        try:
            kind, content = _ANSWERS[path](self.server.watching, query)
        except (LookupError, ValueError):
            self._refuse(HTTPStatus.BAD_REQUEST, "what is asked for is not understood")
            return
        self._send(HTTPStatus.OK, kind, content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses: a method that is not GET, a request that is none."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered")
        else:
            self._refuse(HTTPStatus(code), "the request is not understood")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal has the view."""

    def _from_here(self) -> bool:
        """Whether the request is to this machine by its own name.

        The port may be any: of a tunnel it is the other end's.
        """
        hosts = self.headers.get_all("Host") or []
        name, _, port = (hosts[0] if len(hosts) == 1 else "").partition(":")
        return name.lower() in _HOSTS and (not port or port.isdecimal())

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", f"{words}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _page(watching: Watching, query: str) -> tuple[str, bytes]:
    return "text/html; charset=utf-8", PAGE.encode()


def _data(watching: Watching, query: str) -> tuple[str, bytes]:
    """How all runs stand, and the points of one that the page does not have."""
    asked = {name: values[-1] for name, values in parse_qs(query, max_num_fields=8).items()}
    after = int(asked.get("after", "0"))
    if after < 0:
        raise ValueError("a count is not negative")
    states = watching.states
    answer = {
        "title": watching.path.resolve().name,
        "several": watching.is_group,
        "summary": summary(list(states.values())),
        "columns": COLUMNS,
        "runs": [run_to_dict(key, state) for key, state in states.items()],
        **watching.new_points(asked.get("run"), asked.get("generation", ""), after),
    }
    text = json.dumps(answer, allow_nan=False, ensure_ascii=True)
    return "application/json", text.encode()


_ANSWERS: dict[str, Callable[[Watching, str], tuple[str, bytes]]] = {"/": _page, "/data": _data}
