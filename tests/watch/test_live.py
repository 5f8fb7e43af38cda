"""A training, the watching of it and a browser: three processes, as a person has them."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from patchtrain.data.prepare import prepare
from patchtrain.watch.server import PageServer
from patchtrain.watch.watching import Watching
from tests.cli.corpus import write_corpus
from tests.cli.test_train import write_recipe
from tests.report.browser import find_browser
from tests.watch.chromium import Browser, Page, open_browser
from tests.watch.pretend import Pretended, here

DESKTOP, PHONE = 1200, 360

# Trains, but waits before some steps until a file says that it may go on: what is to be seen in
# between stands as long as it takes to look.
GATED = """
import sys, time
from pathlib import Path
from patchtrain.cli.main import main
from patchtrain.training.trainer import PatchTrainer

gates, plain = Path(sys.argv[1]), PatchTrainer.training_step

def step(self, *args, **kwargs):
    gate = gates / f"before-{self.state.global_step}"
    while gate.exists():
        time.sleep(0.02)
    return plain(self, *args, **kwargs)

PatchTrainer.training_step = step
raise SystemExit(main(sys.argv[2:]))
"""

# What a shell starts in the background, tests among it, does not heed SIGINT unless it says so.
HEEDING_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from patchtrain.cli.main import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    find_browser()
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def fits(page: Page) -> bool:
    return bool(page.value("document.documentElement.scrollWidth <= window.innerWidth"))


def line_with(stream: IO[str], pattern: str) -> re.Match[str]:
    for line in stream:
        if found := re.search(pattern, line):
            return found
    pytest.fail(f"no line with {pattern}")


def test_a_page_from_before_the_first_step_to_the_end(
    browser: Browser, processes: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpus.txt")
    prepare([tmp_path / "corpus.txt"], tmp_path / "store", train_tokenizer="bpe", vocab_size=300)
    recipe = write_recipe(tmp_path, tmp_path / "store")
    gates = tmp_path / "gates"
    gates.mkdir()
    for step in (8, 20):
        (gates / f"before-{step}").touch()

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    watch = start("-c", HEEDING_CTRL_C, "watch", str(tmp_path / "run"), "--port", "0")
    assert watch.stdout is not None
    url = line_with(watch.stdout, r"page: (http://127\.0\.0\.1:\d+/)")[1]
    line_with(watch.stdout, "has not started yet")
    pages = {width: browser.page(url, width) for width in (DESKTOP, PHONE)}
    for page in pages.values():
        page.until("document.body.dataset.status === 'waiting'")
        page.until("document.body.innerText.includes('has not started yet')")

    train = start("-c", GATED, str(gates), "train", str(recipe), "--quiet",
                  "training.logging_steps=1", "training.eval_steps=4")  # fmt: skip
    for width, page in pages.items():  # it waits before its step 8, in the first stage
        page.until("document.body.dataset.status === 'running'")
        page.until("document.querySelectorAll('.curve.patch').length === 1")
        page.until("document.body.innerText.includes('8 of 30')")
        text = page.text()
        assert "1 of 2: patches of 2, step 8 of 12" in text
        assert "to tokens at step 12, in" in text
        assert re.search(r"expected end\s+.*\d\d:\d\d", text)
        assert re.search(r"speed\s+[\d.,]+M? tokens/s", text)
        assert re.search(rf"process\s+{train.pid} on .*: alive", text)
        assert page.value("document.querySelectorAll('#plot .switch').length") == 0
        assert page.value("document.querySelectorAll('#bar .switch').length") == 1
        assert fits(page), width
    before = pages[PHONE].value("document.querySelector('.curve.patch').points.length")
    assert before == 8

    (gates / "before-8").unlink()
    for width, page in pages.items():  # on to step 20, in the second
        page.until("document.body.innerText.includes('20 of 30')")
        page.until("document.querySelectorAll('.curve.token').length === 1")
        assert "2 of 2: tokens, step 8 of 18" in page.text()
        assert page.value("document.querySelector('.curve.patch').points.length") == 12
        assert page.value("document.querySelector('.curve.token').points.length") == 8
        assert page.value("document.querySelectorAll('circle.validation').length") == 5
        assert page.value("document.querySelector('.switch-label').textContent") == (
            "switch to tokens"
        )
        assert fits(page), width

    (gates / "before-20").unlink()
    assert train.wait(120) == 0
    for page in pages.values():
        page.until("document.body.dataset.status === 'finished'")
        assert "is finished, with a validation loss of" in page.text()
        assert "30 of 30, 100% of the compute" in page.text()
        # Every point came once, and never the whole page again.
        assert {address.partition("?")[0] for address in page.fetched} <= {
            url, f"{url}data", "data:,"
        }  # fmt: skip
        assert page.fetched.count(url) == 1
        assert page.errors == []

    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert "is finished, with a validation loss of" in out
    assert err == "stopped watching\n"
    for page in pages.values():
        page.until("!document.getElementById('lost').hidden")
        assert "The server does not answer" in page.text()
        assert "is finished" in page.text()  # what was known stays


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run that this process seems to train."""
    pretended = Pretended(eval_every=20, info={"process": here(os.getpid())})
    return pretended.write(tmp_path / "run", 150, started="2999-01-01T00:00:00+00:00").path


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_curves_are_drawn_and_fit(
    browser: Browser, running: Path, width: int, dark: bool
) -> None:
    watching = Watching(running)
    watching.look()
    server = PageServer(watching, 0)
    try:
        page = browser.page(server.url, width, dark=dark)
        page.until("document.querySelectorAll('.curve').length === 3")
        assert fits(page)
        shown = page.value("getComputedStyle(document.body).backgroundColor")
        assert (shown == "rgb(20, 23, 26)") is dark
        box = page.value(
            "(({left, right, height}) => [left, right, height])"
            "(document.getElementById('plot').getBoundingClientRect())"
        )
        assert box[0] >= 0
        assert box[1] <= width
        assert box[2] > 200
        # By steps, the switch stands where it was: at 100 of 150.
        page.value("document.querySelector('[data-axis=step]').click()")
        place = page.value(
            "(() => { const line = document.querySelector('#plot .switch'),"
            "  clip = document.querySelector('#inside rect').getBBox();"
            "  return (line.x1.baseVal.value - clip.x) / clip.width; })()"
        )
        assert place == pytest.approx(100 / 150, abs=0.01)
        last = page.value(
            "(() => { const points = document.querySelector('.curve.patch').points;"
            "  return points[points.length - 1].x; })()"
        )
        assert last == pytest.approx(page.value(
            "document.querySelector('#plot .switch').x1.baseVal.value"), abs=0.2)  # fmt: skip
        # What a finger or a mouse points at is told below.
        page.value(
            "(() => { const plot = document.getElementById('plot'),"
            "  box = plot.getBoundingClientRect();"
            "  plot.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 10})); })()"
        )
        assert page.value("document.getElementById('reading').textContent").startswith("step 150: ")
        assert page.errors == []
    finally:
        server.close()


def test_only_new_lines_are_fetched_also_after_a_restart(browser: Browser, running: Path) -> None:
    watching = Watching(running)
    watching.look()
    server = PageServer(watching, 0)
    page = browser.page(server.url, DESKTOP)
    page.until("document.body.dataset.points === '24'")
    metrics = running / "metrics.jsonl"
    row = json.loads(metrics.read_text().splitlines()[-1])
    _append(metrics, {**row, "step": 151})
    watching.look()
    page.until("document.body.dataset.points === '25'")
    page.until("document.body.dataset.points === '25'")
    afters = [int(re.findall(r"after=(\d+)", url)[0]) for url in page.fetched if "data?" in url]
    assert afters[0] == 0
    assert set(afters[1:]) <= {24, 25}

    port = server.port
    server.close()
    page.until("document.body.dataset.server === 'lost'")
    assert page.value("document.body.dataset.points") == "25"  # still there
    _append(metrics, {**row, "step": 152})
    again = Watching(running)
    again.look()
    server = PageServer(again, port)
    try:
        page.until("document.body.dataset.server === 'there'")
        page.until("document.body.dataset.points === '26'")
        # Taken up at an earlier step: what was drawn after it goes.
        Pretended(eval_every=20).write(running, 80)
        again.look()
        page.until("document.body.dataset.points === '13'")
        assert page.value("document.querySelectorAll('.curve.token').length") == 0
        assert page.errors == []
    finally:
        server.close()


def test_what_a_run_is_called_is_text(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)><script>throw Error('ran')</script>"
    folder = tmp_path / "runs"
    Pretended().write(folder / "a", 50, name=evil)
    Pretended().write(folder / "b", 150, status="finished")
    watching = Watching(folder)
    watching.look()
    server = PageServer(watching, 0)
    try:
        page = browser.page(server.url, PHONE)
        page.until("document.querySelectorAll('#runs tbody tr').length === 2")
        assert evil in page.text()
        assert page.value("document.querySelectorAll('img').length") == 0
        assert fits(page)
        assert page.value("document.querySelectorAll('.curve.token').length") == 0
        page.value("document.querySelector('[data-run=b]').click()")
        page.until("document.querySelectorAll('.curve.token').length === 1")
        assert page.value("document.querySelector('[data-run=b]').ariaPressed") == "true"
        assert page.errors == []
    finally:
        server.close()


def test_another_page_cannot_read_it(browser: Browser, running: Path, tmp_path: Path) -> None:
    """Neither by fetch nor in a frame, from another origin in the same browser."""
    watching = Watching(running)
    watching.look()
    server = PageServer(watching, 0)
    try:
        elsewhere = tmp_path / "elsewhere.html"
        elsewhere.write_text(f"<iframe src='{server.url}'></iframe>")
        page = browser.page(elsewhere.as_uri(), DESKTOP)
        page.until("document.readyState === 'complete'")
        read = page.value(f"fetch('{server.url}data').then(r => r.text()).catch(e => 'refused')")
        assert read == "refused"
        opaque = page.value(
            f"fetch('{server.url}data', {{mode: 'no-cors'}})"
            ".then(r => r.type).catch(e => 'refused')"
        )
        assert opaque == "refused"  # Cross-Origin-Resource-Policy
        assert any("in a frame" in error or "frame-ancestors" in error for error in page.errors)
    finally:
        server.close()


def _append(file: Path, row: dict[str, Any]) -> None:
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")


def test_a_server_that_is_gone_refuses(running: Path) -> None:
    watching = Watching(running)
    watching.look()
    server = PageServer(watching, 0)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", server.port, timeout=5).connect()
