"""The site builds strictly, without a network, and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.docs.reading import DOCS, ROOT, text_of

pytest.importorskip("zensical")

# What a browser fetches by itself when it opens a page.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
          "audio": "src", "embed": "src", "object": "data", "link": "href"}  # fmt: skip
ELSEWHERE = re.compile(r"^(?:https?:)?//")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def copy(folder: Path) -> Path:
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy(tmp_path_factory.mktemp("site"))
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


class Loads(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and "canonical" in (values.get("rel") or ""):
            return
        if address := values.get(LOADED.get(tag, "")):
            self.found.append(address)


def leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [leaf for value in values for leaf in leaves(value)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once() -> None:
    nav = leaves(yaml.safe_load(text_of("mkdocs.yml"))["nav"])
    assert sorted(nav) == sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))


def test_every_page_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        built = (site / page.relative_to(DOCS)).with_suffix(".html")
        title = page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
        assert re.search(rf"<h1[^>]*>{re.escape(title)}<", built.read_text(encoding="utf-8"))


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for address in loads.found:
            assert not ELSEWHERE.match(address), f"{page.name} loads {address}"
            if page.name != "404.html" and not address.startswith("data:"):
                assert (page.parent / re.split("[?#]", address)[0]).exists(), address
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text):
            assert not ELSEWHERE.match("".join(address)), f"{sheet.name} loads {address}"


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    with (folder / "docs" / "limits.md").open("a", encoding="utf-8") as page:
        page.write("\n[one](none.md) [two](recipes.md#no-such-heading)\n")
    done = build(folder)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout + done.stderr
    assert "anchor does not exist" in done.stdout + done.stderr
