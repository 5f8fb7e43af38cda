"""What the live page's server answers, and to whom it does not."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchtrain.errors import UsageError
from patchtrain.watch import watching as watching_module
from patchtrain.watch.server import PORT, PageServer
from patchtrain.watch.watching import Watching
from tests.report.fake_runs import add_extras, write_run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    run = write_run(tmp_path / "run", ((4, 100), (1, 100)), finished=False)
    add_extras(run)
    watching = Watching(run.path)
    watching.look()
    server = PageServer(watching, 0)
    yield server
    server.close()


def get(
    server: PageServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Host": f"127.0.0.1:{server.port}", **headers}
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def data(server: PageServer, query: str = "") -> dict[str, Any]:
    status, headers, content = get(server, f"/data?{query}")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    found: dict[str, Any] = json.loads(content, parse_constant=pytest.fail)
    return found


def test_the_page_holds_all_it_needs(server: PageServer) -> None:
    status, headers, content = get(server, "/")
    text = content.decode()
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.findall(r"""(?:src|href)=["']?([^"' >]*)""", text) == ["data:,"]
    assert "default-src 'none'; connect-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_points_come_in_pieces_and_only_what_is_new(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "MOST_POINTS", 17)
    whole = data(server)
    points, generation, more = whole["points"], whole["generation"], whole["more"]
    while more:
        piece = data(server, f"generation={generation}&after={len(points)}")
        assert piece["from"] == len(points)
        points, more = points + piece["points"], piece["more"]
    rows = server._server.watching.history("").points
    assert len(points) == len(rows) == 43
    assert [dict(zip(whole["fields"], p, strict=True))["loss"] for p in points] == [
        row.loss for row in rows
    ]
    assert data(server, f"generation={generation}&after={len(points)}")["points"] == []
    # Of another time, or of more than there are: all of it again.
    assert data(server, f"generation=other&after={len(points)}")["from"] == 0
    assert data(server, f"generation={generation}&after=10000")["from"] == 0


def test_losses_that_are_no_numbers_are_null(server: PageServer) -> None:
    watching = server._server.watching
    file = watching.path / "metrics.jsonl"
    row = json.loads(file.read_text().splitlines()[-1])
    with file.open("a") as out:
        out.write(json.dumps({**row, "step": 201, "loss": float("nan")}) + "\n")
    watching.look()
    assert data(server)["points"][-1][-1] is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:8421",
     "127.0.0.2", "[::1]", "", "127.0.0.1:80@evil.example", "127.0.0.1:x"],
)  # fmt: skip
def test_another_name_of_this_machine_is_refused(server: PageServer, host: str) -> None:
    """A page elsewhere could let its own name resolve to 127.0.0.1 and read the answer."""
    for path in ("/", "/data"):
        status, headers, content = get(server, path, Host=host)
        assert status == 403
        assert b"run" not in content
        assert "Access-Control-Allow-Origin" not in headers


def test_the_other_end_of_a_tunnel_has_another_port(server: PageServer) -> None:
    assert get(server, "/data", Host="localhost:9999")[0] == 200
    assert get(server, "/data", Host="LOCALHOST")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/run.json", "/metrics.jsonl", "/../run.json", "/..%2frun.json", "/%2e%2e/%2e%2e/etc/passwd",
     "//etc/passwd", "/data/", "/data/../run.json", "/index.html", "/favicon.ico", "data", "*",
     "/\\..\\run.json", "http://127.0.0.1/run.json", "/.lock", "/report.html"],
)  # fmt: skip
def test_no_file_is_served(server: PageServer, path: str) -> None:
    status, _, content = get(server, path)
    assert status == 404
    assert content == b"there is nothing here\n"


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=-1", "after=1e9", "run=other", "run=../run", "run=..%2f..%2fetc",
     "after=" + "9" * 5000, "&".join(f"a{n}=1" for n in range(100))],
)  # fmt: skip
def test_what_is_not_understood_is_refused(server: PageServer, query: str) -> None:
    status, _, content = get(server, f"/data?{query}")
    assert status == 400
    assert content == b"what is asked for is not understood\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "X"])
def test_only_get_is_answered(server: PageServer, method: str) -> None:
    status, headers, _ = get(server, "/", method)
    assert status == 405
    assert headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "words",
    [b"\n\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
     b"GET /" + b"a" * 70_000],
)  # fmt: skip
def test_what_is_no_request_gets_no_page(server: PageServer, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"<html" not in answer
    assert b" 200 " not in answer
    assert data(server)["points"]  # and the next one is answered


def test_it_listens_on_the_loopback_address_alone(server: PageServer) -> None:
    assert server._server.socket.getsockname()[0] == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", server.port))


def test_ports(server: PageServer) -> None:
    watching = server._server.watching
    with pytest.raises(UsageError, match=f"port {server.port} cannot be listened on: .* in use"):
        PageServer(watching, server.port)
    with pytest.raises(UsageError, match="from 0 to 65535"):
        PageServer(watching, 65536)
    first, second = PageServer(watching), PageServer(watching)
    assert PORT <= first.port < second.port
    first.close()
    second.close()


def test_several_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name, ((1, 60),), finished=name == "a")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "c.yaml").touch()
    watching = Watching(tmp_path)
    watching.look()
    server = PageServer(watching, 0)
    try:
        found = data(server)
        assert [run["key"] for run in found["runs"]] == ["a", "b", "c"]
        assert [run["status"] for run in found["runs"]][::2] == ["finished", "waiting"]
        assert found["several"]
        assert data(server, "run=b")["run"] == "b"
        assert data(server, "run=c")["points"] == []
        assert get(server, "/data?run=d")[0] == 400
    finally:
        server.close()
