"""A headless Chromium that is talked to, so that a test can wait for what a page shows.

The DevTools protocol over two pipes: no port, no driver, no library. A page is one tab with a
width of its own; what it fetched and what went wrong in it is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.report.browser import FLAGS, find_browser

# Chromium has the two pipes by these numbers.
_AS_3_AND_4 = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # for a busy machine; what is waited for comes at once on an idle one


class Browser:
    """One Chromium; use ``open_browser``."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, out: int) -> None:
        self._process, self._to, self._out = process, to, out
        self._number, self._buffer = 0, b""
        self.pages: dict[str, Page] = {}

    def call(self, method: str, session: str | None = None, **values: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def page(self, url: str, width: int, height: int = 800, dark: bool = False) -> Page:
        """A tab of that size with ``url`` in it; narrow ones are phones."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=scheme)
        page.call("Page.navigate", url=url)
        while not page.loaded:
            self._note(self._receive())
        return page

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser says nothing"
            data = os.read(self._out, 1 << 16)
            assert data, f"the browser ended with {self._process.poll()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        page, values = self.pages.get(event.get("sessionId", "")), event.get("params", {})
        if page is None:
            return
        if event["method"] == "Page.loadEventFired":
            page.loaded = True
        elif event["method"] == "Network.requestWillBeSent":
            page.fetched.append(values["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            page.errors.append(str(values["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and values["entry"]["source"] != "network":
            page.errors.append(values["entry"]["text"])


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.fetched: list[str] = []
        self.errors: list[str] = []
        self.loaded = False

    def call(self, method: str, **values: Any) -> Any:
        return self.browser.call(method, self.session, **values)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise it gives, comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript condition holds; fails with what the page shows instead."""
        until = time.monotonic() + PATIENCE
        # Looked at by the page itself every few frames, a while at a time.
        look = f"""new Promise(done => {{
            const end = Date.now() + 5000;
            const look = () => ({condition}) ? done(true)
                : Date.now() > end ? done(false) : setTimeout(look, 20);
            look();
        }})"""
        while not self.value(look):
            assert time.monotonic() < until, f"never {condition}: {self.text()}"

    def text(self) -> str:
        return str(self.value("document.body.innerText"))

    def picture(self, file: Path) -> None:
        """A PNG of the whole page, for a person."""
        import base64

        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A Chromium that finds this machine alone; skips the test where there is none."""
    found = find_browser()
    flags = [flag for flag in FLAGS.split(" ") if "host-resolver" not in flag]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    theirs_in, to = os.pipe()
    out, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _AS_3_AND_4, str(theirs_in), str(theirs_out), found, *flags],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(process, to, out)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to)
        os.close(out)
