"""Put the results that README and docs quote into them: no number there is typed by hand.

After a marker ``<!-- results/NAME -->`` stands what the file holds: Markdown as it is, other text
in a fenced block.

    python benchmarks/quote.py
"""

import re
from pathlib import Path

from patchtrain.files import write_text

ROOT = Path(__file__).parents[1]


def quoted(name: str) -> str:
    """The marker of a result and its content."""
    text = (ROOT / "results" / name).read_text(encoding="utf-8").strip("\n")
    text = "\n".join(line.rstrip() for line in text.splitlines())
    if not name.endswith(".md"):
        text = f"```text\n{text}\n```"
    return f"<!-- results/{name} -->\n{text}\n<!-- end -->"


def quoting(text: str) -> str:
    """``text`` with every quoted result as its file has it now."""
    pattern = r"<!-- results/(\S+) -->\n.*?<!-- end -->"
    return re.sub(pattern, lambda found: quoted(found[1]), text, flags=re.DOTALL)


def main() -> None:
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = file.read_text(encoding="utf-8")
        if (new := quoting(text)) != text:
            write_text(file, new)


if __name__ == "__main__":
    main()
