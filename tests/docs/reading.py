"""The pages of the documentation, their blocks of code, and the commands in these."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # its path in the repository
    line: int  # of the opening fence, from 1
    language: str
    text: str


def pages() -> list[str]:
    """README and all pages of the site."""
    return ["README.md", *sorted(str(file.relative_to(ROOT)) for file in DOCS.rglob("*.md"))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The page's fenced blocks of these languages (none: all), in order."""
    found = []
    text = text_of(page)
    for fence in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, fence.start()) + 1
        if not languages or fence[2] in languages:
            found.append(Block(page, line, fence[2], fence[3]))
    return found


def commands(page: str, *languages: str) -> list[list[str]]:
    """The words of each command of the page's blocks, without comments; bash unless told."""
    return [
        words
        for block in blocks(page, *(languages or ("bash",)))
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines()
        if (words := shlex.split(line, comments=True))
    ]
