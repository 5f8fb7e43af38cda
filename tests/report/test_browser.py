"""The page in a real browser: the figures are drawn, nothing is fetched, a phone can read it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from patchtrain.report.page import write_page
from tests.report.browser import dump_dom, find_browser
from tests.report.fake_runs import add_extras, write_run

# Goes into a copy of the page, first of all scripts, and reports what happened to its frame.
PROBE = """<script>
var seen = {errors: [], refused: []};
window.addEventListener('error', function (e) { seen.errors.push(String(e.message)); });
document.addEventListener('securitypolicyviolation', function (e) {
  seen.refused.push(e.violatedDirective + ' ' + e.blockedURI); });
function report() {
  var plots = Array.prototype.slice.call(document.querySelectorAll('.plotly-graph-div'));
  seen.loaded = performance.getEntriesByType('resource').map(function (e) { return e.name; });
  seen.width = document.documentElement.scrollWidth;
  seen.frame = window.innerWidth;
  seen.plots = plots.map(function (plot) {
    var lines = Array.prototype.slice.call(plot.querySelectorAll('.scatterlayer path.js-line'));
    return {id: plot.id, width: plot.getBoundingClientRect().width,
      lines: lines.map(function (line) { return line.getAttribute('d').length; }),
      dashed: plot.querySelectorAll('.scatterlayer path.js-line[style*=dasharray]').length,
      labels: Array.prototype.slice.call(plot.querySelectorAll('.annotation-text'))
        .map(function (text) { return text.textContent; })};
  });
  parent.postMessage(JSON.stringify(seen), '*');
}
window.addEventListener('load', function () { setTimeout(report, 1500); });
</script>"""

FRAME = """<!doctype html><body><iframe src="probed.html"
style="width:WIDTHpx;height:800px;border:0"></iframe><div id="result">nothing came</div>
<script>window.addEventListener('message', function (e) {
  document.getElementById('result').textContent = e.data; });</script></body>"""


def look(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What the probe saw with the page in a frame of ``width`` pixels."""
    text = page.read_text(encoding="utf-8")
    assert text.count('<meta name="viewport"') == 1
    probed = text.replace('<meta name="viewport"', PROBE + '<meta name="viewport"')
    (folder / "probed.html").write_text(probed, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    found = re.search(r'<div id="result">(.*?)</div>', dump_dom(frame, folder / "profile"), re.S)
    assert found
    import html

    values: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return values


@pytest.fixture
def page(tmp_path: Path) -> Path:
    find_browser()
    runs = [
        write_run(tmp_path / "a rather long name of a token-level run", ((1, 1200),)),
        write_run(tmp_path / "patch-level", ((4, 300), (2, 300), (1, 300))),
    ]
    for run in runs:
        add_extras(run)
    return write_page(runs, tmp_path / "page.html")


@pytest.mark.parametrize("width", [1200, 360])
def test_figures_are_drawn_and_the_page_fits(page: Path, tmp_path: Path, width: int) -> None:
    seen = look(page, tmp_path, width)
    assert seen["errors"] == []
    assert seen["refused"] == []
    assert seen["loaded"] == []
    assert seen["frame"] == width
    assert seen["width"] <= width
    names = ["against-compute", "against-time", "by-position-0"]
    assert [plot["id"] for plot in seen["plots"]] == names
    assert all(0.8 * min(width, 960) < plot["width"] <= width for plot in seen["plots"])
    assert len(seen["plots"][2]["lines"]) == 4  # of each run before and after
    assert seen["plots"][2]["dashed"] == 2
    for plot in seen["plots"][:2]:
        # Training and validation of the first run; two patch stages, tokens, validation.
        assert len(plot["lines"]) == 2 + 4
        assert min(plot["lines"]) > 20
        assert plot["dashed"] == 2
        assert plot["labels"] == ["switch to patches of 2", "switch to tokens"]


def test_scripts_in_prompts_are_text_and_do_not_run(tmp_path: Path) -> None:
    find_browser()
    evil = "</p></script><script>throw Error('ran')</script><img src=x onerror=alert(1)>"
    run = write_run(tmp_path / "evil", name=evil)
    run.samples_file.write_text(json.dumps([{"prompt": evil, "completion": evil}]), "utf-8")
    run.recipe_file.write_text(f"name: {evil}\n", encoding="utf-8")
    page = write_page([run], tmp_path / "page.html", title=evil)
    seen = look(page, tmp_path, 800)
    assert seen["errors"] == []
    assert seen["refused"] == []
    assert len(seen["plots"]) == 2


def test_a_run_that_has_just_begun_is_a_quiet_page(tmp_path: Path) -> None:
    find_browser()
    run = write_run(tmp_path / "new", finished=False)
    run.metrics_file.unlink()
    seen = look(write_page([run], tmp_path / "page.html"), tmp_path, 800)
    assert seen["errors"] == []
    assert seen["plots"] == []


class _Addresses(HTMLParser):
    """Every attribute of the page that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag in ("link", "iframe", "object", "embed", "base", "form"):
            self.found.append(tag)


def test_the_page_names_no_address(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    add_extras(run)
    parser = _Addresses()
    parser.feed(write_page([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert parser.found == []
